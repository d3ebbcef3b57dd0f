"""What the judge costs whole calls, with rooms on most lines: CPU, and how late audio is.

The load of ``benchmarks calls``, but on nine of ten lines there is a room in place of the numbered
frames; what those of the tenth take is measured. With the judge and without it by turns, because a
machine is not as fast at every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx2
from rich.table import Table

from benchmarks import rooms
from benchmarks.options import Options
from benchmarks.point import OFFHOOK, run_point, sum_of

ROOM_S = 20.0
"""Of each, over and over."""
SNR_DB = 15.0
WARM_S = 5.0
SECONDS, QUICK_SECONDS = 20.0, 8.0
ROUNDS, QUICK_ROUNDS = 3, 1
MOST_SHARE = 0.32
"""Of what a call takes without the judge: 0.6 ms a second where that is 1.85."""
WAYS = ("off", "auto")


@dataclass(frozen=True, slots=True)
class Figures:
    """What so many calls took, with the judge or without."""

    cpu_ms: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    judge_ms: float
    """Of the same CPU: what the judge has taken, in its thread and in the loop."""
    hops: float
    """Judged, of each call in a second."""
    late: float
    lost_ms: float

    @classmethod
    def of(cls, outcomes: Sequence[Mapping[str, Any]]) -> Figures:
        """The median of several rounds."""
        way = [outcome["caller_to_model_ms"] for outcome in outcomes]
        return cls(
            median([outcome["cpu_ms_per_call_s"] for outcome in outcomes]),
            *(median([each[name] for each in way]) for name in ("p50", "p99", "p999")),
            *(median([each["looked"][name] for each in outcomes]) for name in ("judge_ms", "hops")),
            sum(outcome["looked"]["late"] for outcome in outcomes),
            sum(outcome["lost_ms"] for outcome in outcomes),
        )


def run(options: Options, calls: int, *, realtime: bool) -> dict[str, Figures]:
    """Measure so many calls by turns, and print what they took."""
    behind = [
        rooms.room_alone(name, ROOM_S, SNR_DB) for name in rooms.NOISES if rooms.is_there(name)
    ]
    outcomes: dict[str, list[Mapping[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(QUICK_ROUNDS if options.quick else ROUNDS):
        for way in WAYS:
            outcomes[way].append(_once(way, calls, behind, options, realtime=realtime))
    found = {way: Figures.of(each) for way, each in outcomes.items()}
    options.console.print(_table(found, calls))
    return found


def missed(found: Mapping[str, Figures]) -> list[str]:
    """What is not as it has to be."""
    # Not the difference of the two: where noise holds no agent there is more to be said.
    share = found["auto"].judge_ms / found["off"].cpu_ms
    if share <= MOST_SHARE:
        return []
    return [f"the judge takes {share:.0%} of what a call does ({MOST_SHARE:.0%} at most)"]


def _once(
    way: str, calls: int, behind: Sequence[bytes], options: Options, *, realtime: bool
) -> dict[str, Any]:
    def look(client: httpx2.Client, outcome: Mapping[str, Any]) -> dict[str, float]:
        text = client.get("/metrics").raise_for_status().text
        talked_s = calls * (outcome["window_s"] + WARM_S)
        return {
            "judge_ms": 1_000 * sum_of(text, "offhook_voice_judge_cpu_seconds_total") / talked_s,
            "hops": sum_of(text, "offhook_voice_hops_total") / talked_s,
            "late": sum_of(text, "offhook_voice_late_total"),
        }

    return run_point(
        OFFHOOK,
        calls,
        window_s=QUICK_SECONDS if options.quick else SECONDS,
        warm_s=WARM_S,
        settings={"VOICE_JUDGE": way},
        rooms=behind,
        realtime=realtime,
        look=look,
    )


def _table(found: Mapping[str, Figures], calls: int) -> Table:
    table = Table(
        "VOICE_JUDGE", "CPU, ms a call and second", "the judge's",
        "caller to model p50 / p99 / p99.9, ms",
        "judged a call and second", "late", "audio lost, ms",
        title=f"{calls} calls, a room on nine of ten lines ({SNR_DB:g} dB)",
    )  # fmt: skip
    for way, each in found.items():
        table.add_row(
            way,
            f"{each.cpu_ms:.2f}",
            f"{each.judge_ms:.2f}",
            f"{each.p50_ms:.2f} / {each.p99_ms:.2f} / {each.p999_ms:.2f}",
            f"{each.hops:.1f}",
            f"{each.late:.0f}",
            f"{each.lost_ms:.0f}",
        )
    return table
