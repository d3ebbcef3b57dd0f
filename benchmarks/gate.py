"""Has the codec become slower? ``python -m benchmarks.gate`` ends with status 1 if it has.

Nothing absolute is asked of a shared machine. Time is compared with ``audioop`` doing the same in
the same run, round by round, and the best of several attempts counts: a neighbour can make one
attempt look bad, but not all, and nothing makes slow code look fast. Instructions, where there is
valgrind, are the same on every run. Bounds leave half as much again above what was measured.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from benchmarks import cost
from benchmarks.codec import timed
from benchmarks.peers.codecs import DIRECTIONS, find_peer

ATTEMPTS = 6
ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Bound:
    """Against audioop as most bridges call it; measured on x86-64 with gcc 12 and Python 3.11.

    Times: on the machine these bounds were first set on, and on a shared Xeon of 2.1 GHz, at worst.
    """

    key: str
    direction: str
    least_times_cheaper: float
    most_instructions: int


BOUNDS = (
    Bound("offhook", "caller", 2.3, 10_000),  # measured: 6.2 and 3.4 times, 6,760
    Bound("offhook", "agent", 4.7, 14_000),  # 12.6 and 7.1 times, 9,470
    Bound("offhook_baseline", "caller", 1.2, 24_000),  # 2.9 and 1.8 times, 16,300
    Bound("offhook_baseline", "agent", 2.1, 36_000),  # 5.7 and 3.1 times, 23,800
)


def main() -> int:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        print(f"codec gate: skipped, its bounds are not known for {platform.machine()}")
        return 0
    try:
        audioop = find_peer("audioop")
    except ImportError:
        audioop = None
        print("codec gate: no audioop to compare times with")
    if not cost.has_valgrind():
        print("codec gate: no valgrind to count instructions with")

    failures = 0
    for bound in BOUNDS:
        try:
            ours = find_peer(bound.key)
        except StopIteration:  # a CPU without AVX2 has one kind of kernels
            continue
        way = next(way for way in DIRECTIONS if way.name == bound.direction)
        said = []
        slow = False
        if audioop is not None:
            times = 0.0
            for _ in range(ATTEMPTS):
                pair = timed(ours, way), timed(audioop, way)
                for _ in range(ROUNDS):
                    for one in pair:
                        one.run_round()
                times = max(times, pair[0].times_cheaper_than(pair[1]))
                if times >= bound.least_times_cheaper:
                    break
            said.append(f"{times:.1f} times cheaper than audioop, not below "
                        f"{bound.least_times_cheaper}")  # fmt: skip
            slow |= times < bound.least_times_cheaper
        if cost.has_valgrind():
            instructions = cost.instructions_per_chunk(bound.key, bound.direction)
            said.append(f"{instructions:,.0f} instructions, at most {bound.most_instructions:,}")
            slow |= instructions > bound.most_instructions
        print(f"codec gate: {bound.key} {bound.direction}: {'SLOW' if slow else 'ok'}: "
              f"{'; '.join(said) or 'nothing to measure with'}")  # fmt: skip
        failures += slow
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
