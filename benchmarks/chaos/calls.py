"""One call judged by what was said at one end and arrived at the other; no clock, no socket."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import inf
from typing import Any

from benchmarks.chaos.numbered import (
    FRAME_S,
    NUMBERS,
    Comparison,
    compare,
    levels_of,
    times_of,
)

CALLER, AGENT, OVERTAKEN = "caller", "agent", "agent whose process was overtaken"
"""Whose audio was lost."""
INTERRUPTED = "is interrupted"
CUT_SLACK_S = 1.0
"""How much later than it says a model may have interrupted: its clock is read after that."""
SLACK_S = 4.0
"""How long after a turn was to be over it may still be on its way to the ear."""
STILL_S = 0.5
"""Who hears the agent until so shortly before they hang up has not lost what was behind that."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Frames that were said in one direction and did not arrive."""

    way: str
    """:data:`CALLER`, :data:`AGENT` or :data:`OVERTAKEN`."""
    frames: int
    since: float
    until: float
    """Between which moments they should have arrived, by the monotonic clock."""


@dataclass(frozen=True, slots=True)
class SessionSeen:
    """One connection of the model's: what came, when, and what was said when."""

    levels: bytes
    times: array[float]
    moments: Sequence[tuple[float, str]]


@dataclass(slots=True)
class CallSeen:
    """What is known of one call when it is over, from outside; times are monotonic."""

    call_sid: str
    number: int
    direction: str
    began: float
    answered: float | None
    ended: float
    hung_up: bool
    """Its own telephone has ended it."""
    streams: list[str]
    """How each of its media streams ended."""
    notes: list[tuple[float, str]]
    unanswered: int
    """Webhooks that were not."""
    losses: list[Loss] = field(default_factory=list)
    caller_frames: int = 0
    agent_frames: int = 0
    """How many arrived."""
    caller_tail: int = 0
    """Frames at the caller's end that did not arrive."""
    doubled: int = 0
    strange_up: int = 0
    """Somebody else's audio, or nobody's, on the caller's way."""
    strange_down: int = 0
    """The same on the agent's."""
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """When the agent was not heard in the middle of a sentence, and for how long, s."""

    @property
    def strange(self) -> int:
        """Frames of somebody else's, or nobody's."""
        return self.strange_up + self.strange_down


@dataclass(frozen=True, slots=True)
class _Utterance:
    text: str
    frames: int
    said_at: float
    is_whole: bool
    """All of it was sent, and nobody cut it."""
    way: str = AGENT


def judge_call(
    *,
    said: bytes,
    heard: tuple[bytes, array[float]],
    sessions: Sequence[SessionSeen],
    frames_of: Mapping[str, int],
    **facts: Any,
) -> CallSeen:
    """Compare both directions of a call.

    Args:
        said: Levels of the caller, as they were sent.
        heard: Levels that the caller's ear got, and when.
        sessions: The model's connections, oldest first.
        frames_of: How long each thing is that the model has said.
        facts: The rest of :class:`CallSeen`.
    """
    seen = CallSeen(**facts)
    arrived = b"".join(session.levels for session in sessions)
    times = array("d")
    for session in sessions:
        times.extend(session.times)
    if said and sessions:
        upward = compare(said, arrived)
        seen.caller_frames = upward.matched
        seen.caller_tail = upward.unheard
        seen.losses += [Loss(CALLER, gap.frames, *times_of(gap, times)) for gap in upward.gaps]
        seen.doubled += upward.doubled
        seen.strange_up = upward.strange
    utterances: list[_Utterance] = []
    for session, later in zip_longest(sessions, sessions[1:]):
        way = OVERTAKEN if later is not None and _is_overtaken(session, later) else AGENT
        utterances += (replace(one, way=way) for one in _utterances(session.moments, frames_of))
    cuts = [at for session in sessions for at, what in session.moments if what == INTERRUPTED]
    _judge_agent(seen, utterances, cuts, *heard)
    return seen


def _is_overtaken(session: SessionSeen, later: SessionSeen) -> bool:
    """Whether there was another connection before this one was closed: it was another process's,
    and nobody has read what this one still brought.
    """
    return bool(session.moments and later.moments) and later.moments[0][0] < session.moments[-1][0]


def _utterances(
    moments: Sequence[tuple[float, str]], frames_of: Mapping[str, int]
) -> list[_Utterance]:
    """What a session said, and whether it was allowed to finish."""
    found: list[_Utterance] = []
    saying: _Utterance | None = None
    for at, what in moments:
        text = what.removeprefix("says ")
        if text in frames_of:
            saying = _Utterance(text, frames_of[text], at, is_whole=False)
            found.append(saying)
        elif what == INTERRUPTED:
            saying = None
        elif what == "completes" and saying is not None:
            found[-1] = replace(saying, is_whole=True)
            saying = None
    return found


def _judge_agent(
    seen: CallSeen,
    utterances: Sequence[_Utterance],
    cuts: Sequence[float],
    heard: bytes,
    times: array[float],
) -> None:
    starts, sent = [], b""
    for one in utterances:
        starts.append(len(sent))
        sent += levels_of(int(one.text) % NUMBERS, one.frames)
    found = compare(sent, heard, starts)
    seen.agent_frames = found.matched
    seen.doubled += found.doubled
    seen.strange_down = found.strange
    position = len(sent) - found.unheard
    # What was held up is heard later than it was due, until a line is cut.
    heard_until = times[found.arrived - 1] if found.arrived else -inf
    for one, start in zip(utterances, starts, strict=True):
        end = start + one.frames
        for gap in found.gaps:
            lost = min(end, gap.sent_at + gap.frames) - max(start, gap.sent_at)
            since, until = times_of(gap, times) if lost > 0 else (0.0, 0.0)
            if lost > 0 and _is_owed(one, cuts, until):
                seen.losses.append(Loss(one.way, lost, since, until))
        # What is not heard at the end was not due yet, unless it was said long ago, and nothing
        # that was held up was still being heard.
        due = one.said_at + one.frames * FRAME_S + SLACK_S
        is_due = due < seen.ended and heard_until < seen.ended - STILL_S
        if end > position and is_due and _is_owed(one, cuts, seen.ended):
            until = max(due, heard_until + CUT_SLACK_S)
            seen.losses.append(Loss(one.way, end - max(position, start), one.said_at, until))
    for position, frames in found.pauses:
        if position not in starts:
            index = min(_index_at(heard, position, found), len(times) - 1)
            seen.pauses.append((times[index] if times else 0.0, frames * FRAME_S))


def _is_owed(one: _Utterance, cuts: Sequence[float], until: float) -> bool:
    """Whether all of it should have been heard: an interruption takes all that is not yet."""
    return one.is_whole and not any(one.said_at <= cut <= until + CUT_SLACK_S for cut in cuts)


def _index_at(heard: bytes, position: int, found: Comparison) -> int:
    """About where a position of what was sent is in what was heard."""
    before = sum(gap.frames for gap in found.gaps if gap.sent_at < position)
    silence = sum(frames for at, frames in found.pauses if at <= position)
    return min(len(heard) - 1, max(0, position - before + silence))
