"""How an ear does in a room: what it takes for the caller, what it misses, and how soon.

An ear is anything that is fed frames and gives back what it has found (:data:`Hear`). It is told
before whether the agent is heard meanwhile: only then is there anything to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.percentiles import percentiles
from benchmarks.rooms import Mix, frames
from codec.ear import SpeechEnded, SpeechStarted, Stop
from server.dialogue.ear import Found
from server.dialogue.remedies import Patience
from server.dialogue.turns import Turns

Hear = Callable[[bytes, float], Iterable[Found]]
"""Takes a frame and the time at which it is over."""
MakeEar = Callable[[bool], Hear]
"""An ear for another call; whether the agent is heard on it all the time."""

FRAME_S = 0.02
AGAIN_S = 1.0
"""A false alarm that goes on is another one after this."""
GRACE_S = 0.5
"""What is found so long after the end of an utterance was still found for it."""
WATCHED_S = 60.0


@dataclass(frozen=True, slots=True)
class Soon:
    """How soon something was found, and how often it was not."""

    p50_ms: float
    p95_ms: float
    missed: float
    """Share of those that had not begun before there was anything to find."""
    count: int

    @classmethod
    def of(cls, latencies_s: Sequence[float], missed: int) -> Soon:
        count = len(latencies_s) + missed
        if not latencies_s:
            return cls(float("nan"), float("nan"), 1.0 if count else float("nan"), count)
        found = percentiles([1_000 * each for each in latencies_s], ("p50", "p95"))
        return cls(found["p50"], found["p95"], missed / count, count)

    def __str__(self) -> str:
        return f"{self.p50_ms:.0f} / {self.p95_ms:.0f} / {self.missed:.0%}"


def false_holds(make: MakeEar, payload: bytes) -> float:
    """How often the agent is held in ten minutes of a room in which nobody speaks to it."""
    return _per_10_min(make(True), payload, Stop.HOLD)


def false_starts(make: MakeEar, payload: bytes) -> float:
    """How often the caller's turn begins in ten minutes of a room, while the agent is silent."""
    return _per_10_min(make(False), payload, SpeechStarted)


def _per_10_min(hear: Hear, payload: bytes, what: object) -> float:
    alarms, last_s, is_on = 0, -AGAIN_S, False
    all_frames = frames(payload)
    for number, frame in enumerate(all_frames, 1):
        now, is_new = number * FRAME_S, False
        for found in hear(frame, now):
            if found is what or type(found) is what:
                is_on = is_new = True
            elif isinstance(found, Stop) if what is Stop.HOLD else isinstance(found, SpeechEnded):
                is_on = False
        if (is_on or is_new) and now - last_s >= AGAIN_S:
            alarms, last_s = alarms + 1, now
    return alarms * 600 / (len(all_frames) * FRAME_S)


def share_speaking(make: MakeEar, payload: bytes) -> float:
    """Share of the time of a room alone in which the caller is taken to speak."""
    hear, speaks, spoken = make(False), False, 0
    all_frames = frames(payload)
    for number, frame in enumerate(all_frames, 1):
        for found in hear(frame, number * FRAME_S):
            if not isinstance(found, Stop):
                speaks = isinstance(found, SpeechStarted)
        spoken += speaks
    return spoken / len(all_frames)


def held(make: MakeEar, mixes: Iterable[Mix]) -> Soon:
    """From the first sound of an utterance over the agent to when it is held.

    One in which the room holds the agent already says nothing about the caller.
    """
    latencies: list[float] = []
    missed = 0
    for mix in mixes:
        hear, holds, at = make(True), False, None
        for number, frame in enumerate(mix.frames(), 1):
            now = number * FRAME_S
            if now > mix.ended_s + GRACE_S or (holds and at is None and now > mix.began_s):
                break
            for found in hear(frame, now):
                if isinstance(found, Stop):
                    holds = found is Stop.HOLD
                if found is Stop.HOLD and now > mix.began_s and at is None:
                    at = now
        if at is not None:
            latencies.append(at - mix.began_s)
        elif not holds:
            missed += 1
    return Soon.of(latencies, missed)


def started(make: MakeEar, mixes: Iterable[Mix]) -> Soon:
    """From the first sound of an utterance to the beginning of a turn; the agent is silent."""
    latencies: list[float] = []
    missed = 0
    for mix in mixes:
        hear, speaks, at = make(False), False, None
        for number, frame in enumerate(mix.frames(), 1):
            now = number * FRAME_S
            if now > mix.ended_s + GRACE_S or (speaks and now > mix.began_s and at is None):
                break
            for found in hear(frame, now):
                if isinstance(found, SpeechStarted) and now > mix.began_s and at is None:
                    at = now
                if not isinstance(found, Stop):
                    speaks = isinstance(found, SpeechStarted)
        if at is not None:
            latencies.append(at - mix.began_s)
        elif not speaks:
            missed += 1
    return Soon.of(latencies, missed)


def ended(make: MakeEar, mixes: Iterable[Mix]) -> Soon:
    """From the last sound of an utterance to when its end is known; missed is never."""
    latencies: list[float] = []
    missed = 0
    for mix in mixes:
        hear, speaks, at = make(False), False, None
        for number, frame in enumerate(mix.frames(), 1):
            now = number * FRAME_S
            for found in hear(frame, now):
                if isinstance(found, Stop):
                    continue
                speaks = isinstance(found, SpeechStarted)
                if isinstance(found, SpeechEnded) and now > mix.ended_s and at is None:
                    at = now
        if at is not None:
            latencies.append(at - mix.ended_s)
        elif speaks:
            missed += 1
    return Soon.of(latencies, missed)


def noticed_s(make: MakeEar, mix: Mix, room: bytes) -> float | None:
    """When a model that never answers is noticed, from the caller's last word; None for never.

    The caller has asked something in a room, which goes on.
    """
    hear, turns = make(False), Turns(Patience())
    turns.answered(0.0)
    until = mix.ended_s + WATCHED_S
    for number, frame in enumerate([*mix.frames(), *frames(room)], 1):
        now = number * FRAME_S
        if now > until:
            break
        for found in hear(frame, now):
            if isinstance(found, SpeechStarted):
                turns.caller_started(now)
            elif isinstance(found, SpeechEnded):
                turns.caller_ended(
                    found.at, now, speech_s=found.speech_s, agent_until=0.0, sure=found.sure
                )
        if turns.decide(now, agent_until=0.0) is not None:
            return now - mix.ended_s
    return None
