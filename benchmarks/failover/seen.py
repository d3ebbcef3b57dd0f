"""What is seen of calls from outside: streams, sound and silence; no clock, no socket.

All times are of the monotonic clock, which the processes of a machine share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

FRAME_S = 0.02
GAP_S = 1.0
"""The doubles' agents are never silent for so long by themselves."""


@dataclass(frozen=True, slots=True)
class StreamSeen:
    """One media stream of a call's."""

    began: float
    ended: float | None
    """None if it goes on."""
    sounded: float | None
    """When the agent was first heard on it."""
    url: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One call, as its carrier saw it."""

    call_sid: str
    answered: float | None
    ended: float | None
    hung_up: bool
    """Its own telephone has ended it."""
    streams: Sequence[StreamSeen]
    silences: Sequence[tuple[float, float]]
    """When the agent was not heard for longer than :data:`GAP_S`, between two sounds, and from the
    last sound until now or the end."""
    notes: Sequence[str] = ()
    behind_s: float = 0.0
    """How much of its time its telephone has not played: the doubles cannot keep up."""

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Trace:
        """As it comes out of JSON."""
        streams = [StreamSeen(**stream) for stream in facts.pop("streams")]
        silences = [(since, until) for since, until in facts.pop("silences")]
        return cls(streams=streams, silences=silences, **facts)

    def was_up(self, at: float) -> bool:
        """Whether it was answered then and not over."""
        return (
            self.answered is not None
            and self.answered <= at
            and (self.ended is None or self.ended > at)
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that the carrier's API got."""

    at: float
    asked_at: str
    what: str
    call_sid: str
    status: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody has tried to make a call, in either direction."""

    at: float
    taken: bool
    what: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What the database has of a call."""

    call_sid: str
    state: str
    reason: str | None
    duration_s: float
    turns: int | None = None
    """In its transcript; None where that was not looked at."""
    not_whole: str | None = None
    """Why only its summary is there, if that is so."""


@dataclass(slots=True)
class Noticed:
    """What a fault was to one call that was up when it happened."""

    call_sid: str
    lived: bool
    stream_s: float | None = None
    """From the fault to its new media stream, if it got one."""
    heard_s: float | None = None
    """From the fault until its agent was heard again, if it was missed."""
    is_deaf: bool = False
    """It lives, and the agent is not heard any more."""
    notes: Sequence[str] = field(default=(), repr=False)

    @property
    def is_hit(self) -> bool:
        """Whether it noticed anything."""
        times = (self.stream_s, self.heard_s)
        return not self.lived or self.is_deaf or any(one is not None for one in times)


def silences(
    sounds: Iterable[tuple[float, float]], until: float | None, least_s: float = GAP_S
) -> list[tuple[float, float]]:
    """Between which moments nothing was heard for so long.

    Args:
        sounds: From when to when something was heard, in order.
        until: What comes after the last sound counts up to then; None for not at all.
        least_s: Shorter ones are pauses.
    """
    found, last = [], None
    for since, to in sounds:
        if last is not None and since - last >= least_s:
            found.append((last, since))
        last = max(to, last or to)
    if last is not None and until is not None and until - last >= least_s:
        found.append((last, until))
    return found


def sounds_of(began: float, frames: bytes, silence: int) -> list[tuple[float, float]]:
    """From when to when something was heard on a stream.

    Args:
        began: When its first frame was played.
        frames: The level of each 20 ms.
        silence: The level that is none.
    """
    found: list[tuple[float, float]] = []
    since: int | None = None
    for place, level in enumerate(frames):
        if level != silence and since is None:
            since = place
        elif level == silence and since is not None:
            found.append((began + since * FRAME_S, began + place * FRAME_S))
            since = None
    if since is not None:
        found.append((began + since * FRAME_S, began + len(frames) * FRAME_S))
    return found


def noticed(trace: Trace, fault: float, until: float) -> Noticed:
    """What one call noticed of a fault.

    Args:
        trace: A call that was up when it happened.
        fault: When it happened.
        until: When everybody was told to hang up, or was looked at.
    """
    lived = trace.ended is None or trace.ended >= until or trace.hung_up
    fell_silent = any(gap[0] < until - GAP_S and gap[1] >= until for gap in trace.silences)
    seen = Noticed(trace.call_sid, lived, is_deaf=lived and fell_silent, notes=trace.notes)
    after = [stream for stream in trace.streams if fault < stream.began < until]
    # A silence that lasts to the end of a call is not followed by the agent.
    missed = [gap for gap in trace.silences if fault < gap[1] < until and gap[1] != trace.ended]
    if after:
        seen.stream_s = after[0].began - fault
        sounded = [stream.sounded for stream in after if stream.sounded is not None]
        seen.heard_s = sounded[0] - fault if sounded else None
    elif missed:
        # From the fault on, what was in the carrier's buffer was heard a while longer.
        seen.heard_s = max(missed, key=lambda gap: gap[1] - gap[0])[1] - fault
    return seen


def at_once(trace: Trace) -> int:
    """How many media streams a call had at the same time."""
    edges = []
    for stream in trace.streams:
        edges.append((stream.began, 1))
        if stream.ended is not None:
            edges.append((stream.ended, -1))
    most = count = 0
    for _, change in sorted(edges):
        count += change
        most = max(most, count)
    return most


def refused_for_s(attempts: Iterable[Attempt]) -> float:
    """The longest time in which everybody was refused: from the first to the next who was not."""
    longest_s, since, last = 0.0, None, 0.0
    for attempt in sorted(attempts, key=lambda one: one.at):
        last = attempt.at
        if not attempt.taken and since is None:
            since = attempt.at
        elif attempt.taken and since is not None:
            longest_s, since = max(longest_s, attempt.at - since), None
    return longest_s if since is None else max(longest_s, last - since)


def rate_per_s(times: Sequence[float]) -> float:
    """How many a second there were, from the first to the last; 0 for fewer than two."""
    if len(times) < 2:
        return 0.0
    ordered = sorted(times)
    passed_s = ordered[-1] - ordered[0]
    return (len(ordered) - 1) / passed_s if passed_s > 0 else 0.0


def unsound_records(
    traces: Iterable[Trace], records: Iterable[Record], slack_s: float = 3.0
) -> list[str]:
    """What is wrong with the records of calls that are over: none, several, or not whole."""
    by_sid: dict[str, list[Record]] = {}
    for record in records:
        by_sid.setdefault(record.call_sid, []).append(record)
    wrong = []
    for trace in traces:
        found = by_sid.get(trace.call_sid, [])
        if len(found) != 1:
            wrong.append(f"{trace.call_sid} has {len(found)} records")
        elif found[0].state != "ended" or not found[0].reason:
            wrong.append(f"{trace.call_sid} is {found[0].state} in its record")
        elif found[0].not_whole is not None:
            wrong.append(f"{trace.call_sid} has a summary only: {found[0].not_whole}")
        elif trace.answered is not None and trace.ended is not None:
            lasted_s = trace.ended - trace.answered
            if abs(found[0].duration_s - lasted_s) > slack_s:
                said_s = found[0].duration_s
                wrong.append(f"{trace.call_sid} lasted {lasted_s:.1f} s, recorded {said_s:.1f} s")
            elif found[0].turns == 0 and lasted_s > slack_s:  # agents speak all the time
                wrong.append(f"{trace.call_sid} has no turn in its record")
    return wrong
