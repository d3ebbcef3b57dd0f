"""What can be found out from caller audio: the words of :mod:`codec.ear`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The caller has begun to speak."""

    at: float
    """When the first frame of it was spoken, on the clock given to ``hear``."""


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The caller has been silent long enough for the turn to be over."""

    at: float
    """When the last frame of speech was over."""
    speech_s: float
    """Speech in it, pauses left out."""
    known_at: float
    """When that was certain: after the silence."""
    sure: bool | None = None
    """Whether a judge of voices was sure of a voice in it; None where none has heard it."""
    goes_on: bool = False
    """Whether a lower voice goes on: somebody else's, or the caller's, which is to be seen."""


@dataclass(frozen=True, slots=True)
class EchoFound:
    """What has been heard up to now was the agent, come back."""

    at: float


@dataclass(frozen=True, slots=True)
class Suspected:
    """Somebody may speak: it is worth asking a better judge than a detector."""

    at: float


class Stop(Enum):
    """What the agent has to do about a sound from the caller."""

    HOLD = auto()
    """Fall silent at once; it may go on in a moment."""
    CUT = auto()
    """The caller has the word."""
    RESUME = auto()
    """It was a cough, a click, an echo: go on where the caller's ear was."""
