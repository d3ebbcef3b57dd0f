"""The carrier's side of a call: its words, and what a carrier has to offer.

A carrier places calls and gives, for each, one :class:`MediaStream`: the caller's audio, key
presses and marks come out of it, the agent's audio goes in. ``twilio/`` is the first of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from server.errors import CarrierProtocolError
from server.media.words import SoundPath

MAX_CALL_SID_CHARS = 120
"""Of a call's name, at every carrier and in every record. Asterisk's may be the longest, with a
``systemname``; its channels' have at most 149, and up to 29 more are in that of a call's stream."""

# ------------------------------------------------------------------------------------------
# What a media stream tells us


@dataclass(frozen=True, slots=True)
class StreamStarted:
    """The stream is open and belongs to this call; nothing is sent before this."""

    stream_sid: str
    call_sid: str
    parameters: Mapping[str, str]
    """What the carrier was told to show here; ``ticket`` proves whose call it is."""
    received_at: float
    wait_heard: Callable[[], Awaitable[float | None]] | None = field(default=None, compare=False)
    """Waits until what is sent is heard by the caller, and what they say comes here. Returns from
    when it was, from which the stream's clock counts; None if it never will be. Without it they
    hear each other from the start."""


@dataclass(frozen=True, slots=True)
class CallerAudio:
    """One chunk of what the caller said."""

    payload: bytes
    """Mu-law codes at 8 kHz, usually one frame (160 bytes, 20 ms)."""
    timestamp_ms: int
    """The carrier's clock: milliseconds from the stream's start to this chunk's first sample."""
    received_at: float
    """``trio.current_time()`` when the message was read."""
    wide: bytes = b""
    """The same as 16-bit samples at 16 kHz, from a stream that has more than mu-law can carry."""


@dataclass(frozen=True, slots=True)
class MarkReached:
    """The carrier has played (or cleared) everything sent before this mark."""

    name: str
    received_at: float


@dataclass(frozen=True, slots=True)
class DigitPressed:
    """The caller pressed a key: one of ``0-9 * # A-D``."""

    digit: str


@dataclass(frozen=True, slots=True)
class StreamStopped:
    """The last event of every stream.

    ``said`` is True when the carrier has said with it that the call is over, as by a ``stop``
    message, and False when the socket just closed: both mean that the stream is over.
    """

    said: bool


CarrierEvent = StreamStarted | CallerAudio | MarkReached | DigitPressed | StreamStopped

# ------------------------------------------------------------------------------------------
# What we tell a media stream


@dataclass(frozen=True, slots=True)
class SendAudio:
    """Play this after everything sent before."""

    payload: bytes
    """Mu-law codes at 8 kHz."""
    received_at: float = 0.0
    """``trio.current_time()`` when the model's message was read; 0 when nobody asked."""
    turn: int = field(default=0, compare=False)
    """The agent turn it belongs to."""
    at: int = field(default=0, compare=False)
    """Where in that it begins, in bytes."""
    wide: bytes = field(default=b"", compare=False)
    """The same as 16-bit samples at 24 kHz, for a stream that takes more than mu-law can carry."""


@dataclass(frozen=True, slots=True)
class SendMark:
    """Tell us when everything sent before has been played."""

    name: str


@dataclass(frozen=True, slots=True)
class Clear:
    """Drop everything that has not been played.

    Outstanding marks come back at once, or never, as the carrier has it: nobody waits for them.
    """


CarrierCommand = SendAudio | SendMark | Clear


Listener = Callable[[Sequence[CarrierEvent | CarrierProtocolError]], None]
"""Called with what one read of the socket brought, in order."""


@dataclass(slots=True)
class StreamCounts:
    """What one stream has carried and what was wrong with it, for metrics and the call's record."""

    media: int = 0
    """Chunks of caller audio delivered."""
    malformed: int = 0
    """Not JSON, too long, or without the fields its kind must have; ignored."""
    unknown: int = 0
    """Kinds of message this program has never heard of; ignored."""
    misplaced: int = 0
    """Known kinds at the wrong time, such as media before start or after stop; ignored."""
    foreign: int = 0
    """Another stream's sid, or the track of our own audio; ignored."""
    binary: int = 0
    """Binary frames, which no carrier of text sends; ignored."""
    hasty: int = 0
    """Keys that follow each other faster than anybody presses them; ignored."""
    missing_chunks: int = 0
    """Chunk numbers that were skipped: audio the carrier dropped before we saw it."""
    repeated_chunks: int = 0
    """Chunk numbers that were late or not new; their audio is delivered all the same."""
    timestamp_jumps: int = 0
    """Chunks that began somewhere else than where the one before ended."""


@dataclass(frozen=True, slots=True)
class StreamAbilities:
    """What a carrier's media streams can do, where carriers differ."""

    buffer_s: float
    """How much audio that has not been played the carrier keeps; what is sent beyond is lost."""
    sends_silence: bool
    """Whether chunks come while the caller says nothing, too: then a stream without any is dead."""
    comes_back: bool = False
    """Whether we are asked how a call goes on when its stream has ended before it, be it by the
    carrier itself or by what follows its events: then it can be given another stream. Elsewhere a
    call ends with its stream."""
    is_wide: bool = False
    """Whether it brings and takes more than a telephone's band, beside the mu-law."""


class MediaStream(Protocol):
    """One call's audio, both ways: events are pushed, and sending waits for nothing."""

    @property
    def abilities(self) -> StreamAbilities:
        """What can be expected of the carrier on this stream."""
        ...

    @property
    def stream_sid(self) -> str:
        """The carrier's name for this stream."""
        ...

    @property
    def counts(self) -> StreamCounts:
        """What the stream has carried and what was wrong with it."""
        ...

    async def receive_start(self) -> StreamStarted | None:
        """Wait until the stream says which call it is; None if it ends without that.

        Raises:
            CarrierProtocolError: The carrier broke its own protocol beyond what can be ignored.
        """
        ...

    def listen(self, on_events: Listener, relay: SoundPath) -> None:
        """Push events from now on, those first that have come already; once, after the start.

        The listener must not wait for anything. An error of the carrier's comes in the place of an
        event, as the last of all; so does :class:`StreamStopped`.

        Args:
            on_events: The listener.
            relay: If the stream is a wire of the media plane, it is joined to this: its path then
                takes caller audio, and the listener hears of it from there.
        """
        ...

    def send(self, command: CarrierCommand) -> None:
        """Send one command; what the peer does not read is kept, with a bound.

        Raises:
            StreamEnded: The socket is closed; there is nobody to send to.
        """
        ...

    def leave(self) -> None:
        """Push nothing more and leave the relay: the call has no use for this stream any more."""
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Send what waits and close with a WebSocket close code.

        Whether the call ends with that is the carrier's to say: see ``abilities.comes_back``.
        """
        ...


# ------------------------------------------------------------------------------------------
# Placing and steering calls

BROWSER = "browser"
"""In the place of a number: the caller is a page in a browser, which no carrier bills."""


class CallStatus(StrEnum):
    """What the carrier says about a call, in its own words."""

    QUEUED = "queued"
    INITIATED = "initiated"
    RINGING = "ringing"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"
    BUSY = "busy"
    FAILED = "failed"
    NO_ANSWER = "no-answer"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether the call is over and nothing more will be reported."""
        return self in _FINAL

    @property
    def progress(self) -> int:
        """How far a call has come with it; a call never goes back."""
        return _PROGRESS.index(self) if self in _PROGRESS else len(_PROGRESS)


_FINAL = frozenset(
    {
        CallStatus.COMPLETED,
        CallStatus.BUSY,
        CallStatus.FAILED,
        CallStatus.NO_ANSWER,
        CallStatus.CANCELED,
    }
)


_PROGRESS = (
    CallStatus.QUEUED,
    CallStatus.INITIATED,
    CallStatus.RINGING,
    CallStatus.IN_PROGRESS,
)


NOT_REACHED = frozenset(
    {CallStatus.BUSY, CallStatus.NO_ANSWER, CallStatus.FAILED, CallStatus.CANCELED}
)
"""Ends of an attempt to reach somebody who never answered."""


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call the carrier has accepted; the phone may not ring yet."""

    call_sid: str
    status: CallStatus


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """How a call stands, as the carrier has reported it, or said when it was asked.

    Reports may come twice and in any order; the number orders them. What was asked for has none,
    and counts if it is further on than what is known.
    """

    call_sid: str
    status: CallStatus
    sequence_number: int | None
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else it said that is worth keeping: ``duration_s``, ``sip_response_code`` …"""
    is_unknown: bool = False
    """It was asked, and knows nothing of the call any more: it is over, however it was."""


@dataclass(frozen=True, slots=True)
class VoiceRequest:
    """The carrier asks how a call is to go on."""

    call_sid: str
    number: str
    """Who calls; empty if that is not told."""
    begins: bool
    """An inbound call that may be new here. Any other must be one of ours, or it is nobody's."""
    report: StatusUpdate | None = None
    """How the call stands, if the carrier only reports that and reads no answer."""
    called: str = ""
    """Which number or address of ours is called; empty if that is not told."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of a SIP leg, what its ``X-`` headers say."""
    is_given: bool = False
    """Another process of this server has chosen this one for it."""


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """The carrier asks how a call goes on whose stream has ended, as far as it can tell."""

    call_sid: str


class AnsweredBy(StrEnum):
    """Who or what the carrier believes has picked up; it errs."""

    HUMAN = "human"
    MACHINE_START = "machine_start"
    """A machine, whose announcement goes on."""
    MACHINE_END_BEEP = "machine_end_beep"
    MACHINE_END_SILENCE = "machine_end_silence"
    MACHINE_END_OTHER = "machine_end_other"
    FAX = "fax"
    UNKNOWN = "unknown"

    @property
    def is_machine(self) -> bool:
        """True if the carrier believes that a machine or a fax has answered."""
        return self not in (AnsweredBy.HUMAN, AnsweredBy.UNKNOWN)

    @property
    def announcement_is_over(self) -> bool:
        """Whether it is a machine that has said all it has to say."""
        return self.value.startswith("machine_end")


@dataclass(frozen=True, slots=True)
class MachineVerdict:
    """What answering machine detection says about a call."""

    call_sid: str
    answered_by: AnsweredBy
    took_s: float
    """How long it listened."""


@dataclass(frozen=True, slots=True)
class TransferUpdate:
    """How the attempt to connect a caller with somebody else stands."""

    call_sid: str
    """The caller's own call, which the transfer began from."""
    status: CallStatus
    """IN_PROGRESS and COMPLETED mean that somebody has answered; NOT_REACHED holds the others."""
    wants_document: bool
    """The carrier asks how the caller's call is to go on; otherwise it only reports."""
    leg: str = ""
    """The other party's own call, another for each attempt; empty where that is not said."""


class Steering(Protocol):
    """What one call asks of its carrier."""

    async def hang_up(self, call_sid: str) -> None:
        """End a call in any state; a call that is already over is success.

        Raises:
            CarrierError: Refused or not reached.
        """
        ...

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        """Let the carrier itself speak to the caller, and end the call after that.

        The call's stream is stopped by it.

        Args:
            call_sid: A call that has been answered.
            text: What it says.
            language: A BCP 47 tag; a carrier without it takes the nearest it has.

        Raises:
            CallNotInProgress: The call is over, or the carrier has not answered it yet.
            CarrierError: Refused or not reached.
        """
        ...

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        """Take a live call's stream away and connect the caller with another number.

        Raises:
            CarrierError: Refused or not reached; the stream goes on.
        """
        ...


class CallsCarrier(Steering, Protocol):
    """What one call has of its carrier: it is steered, and given another stream."""

    async def reconnect(self, call_sid: str, ticket: str) -> None:
        """Take a live call's stream away, if it has one, and give it another with this ticket.

        Raises:
            CallNotInProgress: The call is over, or the carrier has not answered it yet.
            CarrierError: Refused or not reached.
        """
        ...


class Carrier(CallsCarrier, AbstractAsyncContextManager["Carrier"], Protocol):
    """Places calls and steers live ones, while it is open.

    Attributes:
        on_wait: Called when the carrier asks to be left alone for so many seconds.
    """

    on_wait: Callable[[float], None]

    @property
    def name(self) -> str:
        """What answers and banners say: ``twilio``, ``asterisk``, ``browser`` or ``simulator``."""
        ...

    async def place_call(
        self,
        destination_number: str,
        *,
        ticket: str,
        max_duration_s: float,
        detect_machine: bool = False,
    ) -> PlacedCall:
        """Dial a number; when it is answered, the carrier opens a stream that shows the ticket.

        With ``detect_machine`` it also listens for an answering machine, and reports later.

        Raises:
            CarrierError: Refused (with the carrier's code) or not reached.
        """
        ...

    async def fetch_status(self, call_sid: str) -> StatusUpdate:
        """Ask how a call stands.

        Raises:
            CarrierError: Refused or not reached.
        """
        ...
