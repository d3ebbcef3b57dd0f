"""Does a server's memory stay flat while calls come and go, and is every call's record there?

As many calls as asked for are kept up, with every feature at its default; each lasts between 20 and
60 seconds, and when it hangs up another begins in its place. What the server's process has in
memory is read meanwhile; nothing goes wrong on purpose: for that there is ``chaos``.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field

from rich import box
from rich.table import Table

from benchmarks.options import Options, machine, machine_line
from benchmarks.point import OFFHOOK, Held, run_point
from benchmarks.processes import family, resident_kib
from benchmarks.weighing import Weighed, growth, said

CALLS = 150
MINUTES = 20.0
CALL_S = (20.0, 60.0)
WEIGH_EVERY_S = 15.0
WRITTEN_S = 15.0
"""How long the last records may take to be written."""
MORE_S = 300.0
"""What a run may take beside the time that is asked for: set-up, and the calls' end."""


@dataclass(slots=True)
class Outcome:
    """What was seen of a run."""

    began: float
    ended_calls: int = 0
    lost: list[str] = field(default_factory=list)
    """Why calls ended that had not hung up."""
    records: dict[str, int] = field(default_factory=dict)
    """How many there are of each call that has ended."""
    weighed: list[Weighed] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    """Agent to caller, of each stretch between two looks: what a caller says first waits."""
    faults: dict[str, int] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone is told."""
    parser.add_argument("--calls", type=int, default=CALLS, metavar="N", help="at once")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M", help="how long")
    parser.add_argument("--realtime", action="store_true", help="prefer us to other programs")
    parser.add_argument(
        "--check", action="store_true", help="fail if memory grows, or a call or record is lost"
    )


def run(options: Options) -> dict[str, object]:
    """Let calls come and go, and print what is left of them."""
    console, chosen = options.console, options.arguments
    facts = machine()
    console.print(machine_line(facts), highlight=False)
    outcome = measure(chosen.calls, 60 * chosen.minutes, realtime=chosen.realtime)
    found = broken(outcome)
    console.print(_table(outcome))
    console.print(said(outcome.weighed, outcome.began), highlight=False)
    for what in found:
        console.print(what, style="red", highlight=False, markup=False)
    if chosen.check and found:
        raise SystemExit("; ".join(found))
    return {"versions": facts["versions"], **asdict(outcome)}


def measure(
    calls: int,
    seconds: float,
    *,
    call_s: tuple[float, float] = CALL_S,
    realtime: bool = False,
    weigh_every_s: float = WEIGH_EVERY_S,
    warm_s: float = 5.0,
) -> Outcome:
    """Keep so many calls up for so long.

    Raises:
        PointFailed: There is no figure.
    """

    def watch(held: Held) -> Outcome:
        return _watch(held, seconds, call_s, weigh_every_s)

    outcome: Outcome = run_point(
        OFFHOOK,
        calls,
        window_s=1.0,
        warm_s=warm_s,
        realtime=realtime,
        hold=watch,
        timeout_s=seconds + MORE_S,
    )["held"]
    return outcome


def _watch(
    held: Held, seconds: float, call_s: tuple[float, float], weigh_every_s: float
) -> Outcome:
    outcome = Outcome(time.monotonic())
    ended: list[str] = []
    while (left_s := outcome.began + seconds - time.monotonic()) > 0.0:
        seen = held.turn_over(min(weigh_every_s, left_s), call_s)
        ended += seen["call_sids"]
        outcome.lost += seen["lost"]
        outcome.p99_ms += [seen["agent_to_caller_ms"]["p99"] or 0.0]
        pids, kib = tuple(family(held.pid)), resident_kib(held.pid)
        outcome.weighed.append(Weighed(time.monotonic(), pids, kib * 1024))
    outcome.ended_calls = len(ended)
    deadline = time.monotonic() + WRITTEN_S
    while True:
        outcome.records = _records(held, ended)
        if all(outcome.records.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    outcome.faults = held.faults()
    return outcome


def _records(held: Held, ended: list[str]) -> dict[str, int]:
    """How many records there are of each of these calls."""
    with closing(sqlite3.connect(held.directory / "offhook.db")) as database:
        written = Counter(sid for (sid,) in database.execute("SELECT call_sid FROM offhook_calls"))
    return {sid: written[sid] for sid in ended}


def broken(outcome: Outcome) -> list[str]:
    """What has not held."""
    found = [f"{count} x {why}" for why, count in Counter(outcome.lost).items()]
    if missing := sum(not count for count in outcome.records.values()):
        found.append(f"{missing} records are missing")
    if grown := growth(outcome.weighed, outcome.began):
        found.append(f"memory has grown after five minutes: {grown}")
    found += [f"{count} x {what} in the log" for what, count in outcome.faults.items()]
    return found


def _table(outcome: Outcome) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="calls that come and go")
    for name in ("calls that have ended", "lost", "records", "p99 agent to caller, ms"):
        table.add_column(name, justify="right")
    p99_ms = sorted(outcome.p99_ms)
    shown = f"{p99_ms[len(p99_ms) // 2]:.2f}, at worst {p99_ms[-1]:.2f}" if p99_ms else "-"
    count = sum(outcome.records.values())
    table.add_row(str(outcome.ended_calls), str(len(outcome.lost)), str(count), shown)
    return table
