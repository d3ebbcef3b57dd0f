"""What is to be done at Asterisk for a call, in words."""

from __future__ import annotations

from dataclasses import dataclass

from server.carrier import ResumeRequest, StatusUpdate, TransferUpdate, VoiceRequest
from server.carrier.webhooks import Report


@dataclass(frozen=True, slots=True)
class Tell:
    """The desk is told, and what it answers is done."""

    report: Report

    @property
    def asks(self) -> bool:
        """Whether there is anything to be answered."""
        match self.report:
            case VoiceRequest() | ResumeRequest():
                return True
            case TransferUpdate(wants_document=asks):
                return asks
        return False

    @property
    def is_quick(self) -> bool:
        """Whether it is told in the order of events: nothing has to be looked up for it."""
        is_last = isinstance(self.report, StatusUpdate) and self.report.status.is_final
        return not self.asks and not is_last


@dataclass(frozen=True, slots=True)
class Answer:
    """An inbound call is answered."""

    call_sid: str


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A call is given a media channel whose stream shows this ticket."""

    call_sid: str
    media_id: str
    ticket: str


@dataclass(frozen=True, slots=True)
class Join:
    """A media channel is there: it and the call are to hear each other."""

    call_sid: str
    media_id: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A media channel and its bridge are of no use any more."""

    media_id: str


@dataclass(frozen=True, slots=True)
class Play:
    """The apology is played to a caller."""

    call_sid: str


@dataclass(frozen=True, slots=True)
class Limit:
    """Asterisk itself is to end a call that lasts longer than any may."""

    call_sid: str


@dataclass(frozen=True, slots=True)
class Move:
    """A call goes to another process's app."""

    call_sid: str
    process: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Continue:
    """A call that is not taken goes on in the dialplan, on the next line."""

    call_sid: str


@dataclass(frozen=True, slots=True)
class Look:
    """How a call stands is asked: it has left the app, or something of it may have been missed."""

    call_sid: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A call that nobody has answered is not there any more, or one has left the app: why may be
    told yet, or that it is back.
    """

    call_sid: str


@dataclass(frozen=True, slots=True)
class Find:
    """A channel is there of which nothing was told: it may be told yet, or was left behind."""

    call_sid: str


@dataclass(frozen=True, slots=True)
class Unfollow:
    """Nothing more is told of a channel outside the app, as was asked for when the caller was
    transferred: they are back, or a process that is gone has asked for it.
    """

    channel_id: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """A call that was another process's is to come here, as soon as that one's app has got it."""

    call_sid: str
    arguments: tuple[str, ...] = ()
    """What the dialplan gives that app, as far as it is known."""


@dataclass(frozen=True, slots=True)
class Bring:
    """A channel has come to the app of a process that is gone: it is to come here."""

    channel_id: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StandIn:
    """An app whose process is gone is to be heard, for as long as calls of ours may come to it."""

    app: str


@dataclass(frozen=True, slots=True)
class SayThere:
    """Another process asks, by way of Asterisk, whether anybody hears our app: it is told."""

    app: str
    """The other's."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A process has answered that it hears its app."""

    app: str


@dataclass(frozen=True, slots=True)
class HangUp:
    """A channel is ended."""

    channel_id: str


Step = (
    Tell
    | Answer
    | OpenStream
    | Join
    | Drop
    | Play
    | Limit
    | Move
    | Continue
    | Look
    | Gone
    | Find
    | Unfollow
    | Fetch
    | Bring
    | StandIn
    | SayThere
    | Heard
    | HangUp
)
