"""What a scripted person does on the phone, step by step, and what becomes of a call to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from server.carrier import CallStatus


@dataclass(frozen=True, slots=True)
class Wait:
    """Say nothing for a while."""

    duration_s: float


@dataclass(frozen=True, slots=True)
class HearSpeech:
    """Say nothing until somebody can be heard, or for too long."""

    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class HearPause:
    """Say nothing until nobody was heard for ``quiet_s``, or for too long."""

    quiet_s: float = 0.9
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Say:
    """Say a recorded sentence, or as much of it as ``break_off_s`` allows."""

    clip: str
    break_off_s: float | None = None
    speech: bytes | None = field(default=None, repr=False)
    """What is said in the recording's place, mu-law."""


@dataclass(frozen=True, slots=True)
class SayFrames:
    """Say these frames of 20 ms, until there are no more; a call's next stream goes on in them."""

    frames: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Beep:
    """Sound one tone, as an answering machine does when it begins to record."""

    hz: float = 1_000.0
    duration_s: float = 0.4


@dataclass(frozen=True, slots=True)
class Press:
    """Press keys (``0-9 * # A-D``), 200 ms apart."""

    digits: str


@dataclass(frozen=True, slots=True)
class SendRaw:
    """Put something on the socket that no Twilio would; ``{sid}`` stands for the stream's sid."""

    messages: tuple[str | bytes, ...]


@dataclass(frozen=True, slots=True)
class HangUp:
    """Put the phone down."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Lose the connection: the socket closes without a ``stop``."""


@dataclass(frozen=True, slots=True)
class FallSilent:
    """Lose the network: nothing more is sent, and nobody closes the socket."""


@dataclass(frozen=True, slots=True)
class Forever:
    """Do the same steps again and again; at least one of them must take time."""

    steps: tuple[Step, ...]


Step = (
    Wait
    | HearSpeech
    | HearPause
    | Say
    | SayFrames
    | Beep
    | Press
    | SendRaw
    | HangUp
    | Drop
    | FallSilent
    | Forever
)
"""One line of a script. A new kind of step is a dataclass here and a case in ``acting.act``."""


@dataclass(frozen=True, slots=True)
class Speakerphone:
    """A telephone on the table: what it plays it hears again, later and quieter."""

    delay_s: float = 0.2
    gain: float = 0.25
    """-12 dB."""


@dataclass(frozen=True, slots=True)
class PhoneScript:
    """What becomes of a call to somebody, and what they do on the phone.

    ``dataclasses.replace`` makes variants: shorter ringing, other steps.
    """

    name: str
    steps: tuple[Step, ...] = ()
    """After the last one they stay on the line and say nothing."""
    ring_s: float = 1.5
    """How long the phone rings before ``outcome``."""
    outcome: CallStatus = CallStatus.IN_PROGRESS
    """``IN_PROGRESS`` if they answer; else BUSY, NO_ANSWER or FAILED."""
    speakerphone: Speakerphone | None = None
    """None for a handset, which does not hear itself."""
    answered_by: str = "human"
    """What answering machine detection takes them for when it is asked to wait for the beep."""
    verdict_s: float | None = 3.0
    """When it says so, from the answer; None: right after the first :class:`Beep`."""
