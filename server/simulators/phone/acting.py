"""A script acted out: a generator of 20 ms frames that is given what is heard meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from codec.line import FRAME_BYTES
from server.simulators.phone.sound import SILENCE, frames, is_loud, load_speech, tone
from server.simulators.phone.steps import (
    Beep,
    Drop,
    FallSilent,
    Forever,
    HangUp,
    HearPause,
    HearSpeech,
    Press,
    Say,
    SayFrames,
    SendRaw,
    Step,
    Wait,
)


@dataclass(frozen=True, slots=True)
class SpeechBegan:
    """From the next frame on a sentence is said."""

    clip: str


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The sentence is over, or broken off."""


@dataclass(frozen=True, slots=True)
class Beeped:
    """The tone is over."""


@dataclass(frozen=True, slots=True)
class KeyPressed:
    """A key went down."""

    digit: str


@dataclass(frozen=True, slots=True)
class RawMessage:
    """One message of a :class:`SendRaw`."""

    message: str | bytes


Deed = (
    bytes
    | SpeechBegan
    | SpeechEnded
    | Beeped
    | KeyPressed
    | RawMessage
    | HangUp
    | Drop
    | FallSilent
)
"""``bytes`` is the 20 ms frame that is said; everything else takes no time."""

Acting = Generator[Deed, bytes, None]
"""Yields deeds; for each frame said it is given the frame heard meanwhile."""


def act(steps: tuple[Step, ...]) -> Acting:
    """Act steps out, a frame at a time."""
    for step in steps:
        match step:
            case Wait(duration_s):
                for _ in frames(duration_s):
                    yield SILENCE
            case HearSpeech(timeout_s):
                for _ in frames(timeout_s):
                    if is_loud((yield SILENCE)):
                        break
            case HearPause(quiet_s, timeout_s):
                quiet_frames = 0
                for _ in frames(timeout_s):
                    quiet_frames = 0 if is_loud((yield SILENCE)) else quiet_frames + 1
                    if quiet_frames >= len(frames(quiet_s)):
                        break
            case Say(clip, break_off_s, own):
                speech = load_speech(clip) if own is None else own
                if break_off_s is not None:
                    speech = speech[: len(frames(break_off_s)) * FRAME_BYTES]
                yield SpeechBegan(clip)
                for start in range(0, len(speech), FRAME_BYTES):
                    yield speech[start : start + FRAME_BYTES].ljust(FRAME_BYTES, SILENCE[:1])
                yield SpeechEnded()
            case SayFrames(source):
                for frame in source:  # noqa: UP028 -- "from" would close it with this stream
                    yield frame
            case Beep(hz, duration_s):
                beep = tone(hz, duration_s)
                for start in range(0, len(beep), FRAME_BYTES):
                    yield beep[start : start + FRAME_BYTES]
                yield Beeped()
            case Press(digits):
                for digit in digits:
                    yield KeyPressed(digit)
                    yield from act((Wait(0.2),))
            case SendRaw(messages):
                for message in messages:
                    yield RawMessage(message)
            case HangUp() | Drop() | FallSilent():
                yield step
            case Forever(steps_again):
                while True:
                    yield from act(steps_again)
