"""Calls that talk, something that happens to them, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from benchmarks.failover.judge import Check, Outcome
from benchmarks.failover.seen import (
    GAP_S,
    Asked,
    Attempt,
    Record,
    Trace,
    at_once,
    noticed,
    unsound_records,
)
from benchmarks.failover.world import Node, World
from benchmarks.point import sum_of

PLACE_S = 60.0
SETTLE_S = 3.0
LEAVE_S = 40.0
RECORDS_S = 15.0
LOOK_EVERY_S = 0.3
MOST_DOUBLED = 25
"""Frames of a call that may come twice: half a second."""
MOST_LOOKUPS = 12
LATE_S = 0.25


@dataclass(slots=True)
class Everything:
    """What the doubles have seen."""

    traces: list[Trace]
    asked: list[Asked]
    attempts: list[Attempt]
    doubled: dict[str, int]
    late_s: float = 0.0
    """The longest time that the doubles themselves were late."""


@dataclass(slots=True)
class Fault:
    """What was done, and when."""

    at: float
    old: Node | None = None
    """The node that is to do nothing any more."""
    checks: list[Check] = field(default_factory=list)
    is_over: Callable[[], None] = lambda: None
    """Looks at what has to be looked at while the calls are still up."""


def see(world: World) -> Everything:
    """Ask the doubles for all there is."""
    said = world.doubles.ask("seen")
    return Everything(
        [Trace.read(facts) for facts in said["traces"]],
        [Asked(**facts) for facts in said["asked"]],
        [Attempt(**facts) for facts in said["attempts"]],
        {one["call_sid"]: one["doubled"] for one in said["judged"]},
        max((until - since for since, until in said["late"]), default=0.0),
    )


def place(world: World, calls: int) -> int:
    """Have so many calls talk on each node; how many do."""
    said = world.doubles.ask("place", urls=world.urls, calls=calls, within_s=PLACE_S)
    time.sleep(SETTLE_S)
    return int(said["heard"])


def happens_to_calls(
    world: World, calls: int, act: Callable[[World], Fault], watch_s: float
) -> Outcome:
    """Have calls talk on every node, let something happen, and see what becomes of them.

    Args:
        world: Where.
        calls: How many on each node.
        act: Does it, and says when it did.
        watch_s: How long they are watched after that.
    """
    outcome = Outcome(wanted=calls * len(world.nodes))
    place(world, calls)
    fault = act(world)
    time.sleep(watch_s)
    outcome.checks += fault.checks
    fault.is_over()
    until = time.monotonic()
    end_calls(world, outcome)
    seen = see(world)
    up = [trace for trace in seen.traces if trace.was_up(fault.at)]
    sids = {trace.call_sid for trace in up}
    outcome.calls = [noticed(trace, fault.at, until) for trace in up]
    if fault.old is not None:
        outcome.by_old = [
            one
            for one in seen.asked
            if one.asked_at == fault.old.rest and one.call_sid in sids and one.at > fault.at
        ]
    judge_all(world, seen, up, outcome)
    return outcome


def end_calls(world: World, outcome: Outcome) -> None:
    """Have everybody hang up."""
    left = world.doubles.ask("hang_up", within_s=LEAVE_S)["live"]
    if left:
        why = f"{left} after {LEAVE_S:g} s"
        outcome.checks.append(Check("calls that nobody ends", "none", why, holds=False))


def judge_all(world: World, seen: Everything, traces: list[Trace], outcome: Outcome) -> None:
    """See whether two had a call at once, and whether the records are whole."""
    for trace in traces:
        if (count := at_once(trace)) > 1:
            outcome.twice = [*outcome.twice, f"{trace.call_sid}: {count} streams at once"]
        elif (frames := seen.doubled.get(trace.call_sid, 0)) > MOST_DOUBLED:
            outcome.twice = [*outcome.twice, f"{trace.call_sid}: {frames} frames twice"]
    outcome.records = len(traces)
    outcome.unsound = wait_records(world, traces)
    if seen.late_s > LATE_S:
        late = f"{seen.late_s:.2f} s"
        # No promise of the server's; it is what the figures are worth.
        outcome.checks.append(Check("the doubles themselves late", "", late, holds=True))
    if (behind := behind_of(traces)) is not None:
        outcome.checks.append(behind)


def behind_of(traces: Iterable[Trace]) -> Check | None:
    """What there is to say of telephones that have not played what they got; None for nothing."""
    behind_s = max((trace.behind_s for trace in traces), default=0.0)
    if behind_s < GAP_S:
        return None
    said = f"{behind_s:.1f} s behind: too many calls for this machine, see --calls"
    return Check("the doubles' telephones", "there in time", said, holds=False)


def wait_records(world: World, traces: Iterable[Trace]) -> list[str]:
    """What is wrong with the records, when those that are late have been given time."""
    traces = list(traces)
    deadline = time.monotonic() + RECORDS_S
    while True:
        records: list[Record] = world.records()
        wrong = unsound_records(traces, records)
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(0.5)


def held_by(world: World, nodes: Iterable[Node], metric: str = "offhook_calls_active") -> int:
    """How many calls these nodes say they have, by this metric; -1 if one does not say."""
    total = 0
    for node in nodes:
        try:
            with world.client(node.url) as client:
                text = client.get("/metrics").raise_for_status().text
        except httpx2.HTTPError:
            return -1
        total += round(sum_of(text, metric))
    return total


def each_held_once(world: World, nodes: Iterable[Node]) -> Check:
    """Whether the nodes have as many calls as the carrier."""
    nodes = list(nodes)
    count, live = -1, 0
    for _ in range(10):
        live = int(sum(trace.ended is None for trace in see(world).traces))
        count = held_by(world, nodes)
        if count == live:
            break
        time.sleep(LOOK_EVERY_S)
    return Check("calls that nodes have", f"{live}, as the carrier", str(count), count == live)


def look_up(world: World, nodes: Iterable[Node], call_sids: Iterable[str]) -> dict[int, int]:
    """Ask every node for calls; how many answers there were of each status.

    Of many calls every so-manieth is asked for. 0 stands for no answer, and who gives none is not
    asked again.
    """
    found: dict[int, int] = {}
    sids = list(call_sids)
    sids = sids[:: max(1, len(sids) // MOST_LOOKUPS)]
    for node in nodes:
        with world.client(node.url) as client:
            for call_sid in sids:
                try:
                    status = client.get(f"/calls/{call_sid}").status_code
                except httpx2.HTTPError:
                    status = 0
                found[status] = found.get(status, 0) + 1
                if not status:
                    break
    return found


def live_sids(world: World) -> list[str]:
    """The calls that the carrier has just now."""
    now: list[dict[str, Any]] = world.doubles.ask("seen")["traces"]
    return [facts["call_sid"] for facts in now if facts["ended"] is None]
