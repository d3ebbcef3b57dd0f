"""What Asterisk's events mean for calls: which step comes next, decided without a connection.

A call is a channel of the caller's, or of whom we call; its name is the call's. Its audio comes by
a media channel beside it, in a bridge. All three have names that follow from the call's, so any
process can tell what a channel of Asterisk's is, and clean up after another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from server.carrier import CallStatus, ResumeRequest, StatusUpdate, TransferUpdate, VoiceRequest
from server.carrier.webhooks import (
    ConnectStream,
    EndCall,
    RefuseCall,
    Reply,
    Report,
    SayAndEndCall,
)

CALL_PREFIX, MEDIA_PREFIX, BRIDGE_PREFIX = "offhook-", "offhook.media.", "offhook.bridge."
PLAYBACK_PREFIX = "offhook.say."
TRANSFERRED = "transferred"
"""What the dialplan gives ``Stasis`` when a caller comes back from a transfer, and before why."""
EVENTS = (
    "StasisStart",
    "StasisEnd",
    "ChannelStateChange",
    "ChannelDestroyed",
    "Dial",
    "PlaybackFinished",
    "ApplicationReplaced",
)
"""All that have to be told."""
_NAME = re.compile(r"[A-Za-z0-9._:+@-]{1,128}")
_Text = Annotated[str, Meta(max_length=256)]

_DIAL_STATUS: Mapping[str, CallStatus] = {
    "ANSWER": CallStatus.IN_PROGRESS,
    "BUSY": CallStatus.BUSY,
    "NOANSWER": CallStatus.NO_ANSWER,
    "CANCEL": CallStatus.CANCELED,
    "CONGESTION": CallStatus.FAILED,
    "CHANUNAVAIL": CallStatus.FAILED,
}
"""Of ``DIALSTATUS``; any other word is a failure."""
NORMAL_CLEARING = 16
_CAUSES: Mapping[int, CallStatus] = {
    NORMAL_CLEARING: CallStatus.CANCELED,  # before anybody has answered
    17: CallStatus.BUSY,
    18: CallStatus.NO_ANSWER,
    19: CallStatus.NO_ANSWER,
    21: CallStatus.BUSY,  # rejected
    26: CallStatus.CANCELED,
    32: CallStatus.CANCELED,
}
"""Why a channel that nobody has answered has ended (Q.850); any other is a failure."""


class _Party(Struct):
    number: _Text = ""


class _Channel(Struct):
    id: _Text
    state: _Text = ""
    caller: _Party = msgspec.field(default_factory=_Party)


class _Playback(Struct):
    id: _Text


class Event(Struct):
    """One event of ARI's, as much of it as is of use here."""

    type: _Text
    channel: _Channel | None = None
    peer: _Channel | None = None
    """Of a dial: who is dialled."""
    caller: _Channel | None = None
    """Of a dial: who dials, if that is a channel."""
    args: Annotated[list[_Text], Meta(max_length=16)] = []
    dialstatus: _Text = ""
    cause: int = 0
    tech_cause: int = 0
    playback: _Playback | None = None


read_event = msgspec.json.Decoder(Event, strict=False).decode


# ------------------------------------------------------------------------------------------
# What is to be done


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
class HangUp:
    """A channel is ended."""

    channel_id: str
    reason: str = "normal"


Step = Tell | Answer | OpenStream | Join | Drop | Play | HangUp


@dataclass(slots=True)
class Leg:
    """One call, as Asterisk has told of it."""

    call_sid: str
    ticket: str = ""
    """That the stream of a call which we have placed is to show."""
    is_outbound: bool = False
    is_dialling: bool = False
    """Asterisk has not yet answered that it knows of the call."""
    answered_at: float | None = None
    dial_status: str = ""
    media_id: str = ""
    """The channel of its stream; empty if it has none, or that is not wanted any more."""
    streams: int = 0
    is_away: bool = False
    """The caller is with somebody else, in the dialplan's hands."""
    is_last: bool = False
    """The last words are being said: no more streams."""


@dataclass(slots=True)
class Exchange:
    """The calls of one app, by name; every event leads to steps that somebody else carries out."""

    legs: dict[str, Leg] = field(default_factory=dict)
    _media: dict[str, str] = field(default_factory=dict)  # the call of each media channel
    _reports: int = 0

    # -- what we do ------------------------------------------------------------------------

    def dial(self, call_sid: str, ticket: str) -> Leg:
        """A call is about to be placed."""
        leg = self.legs[call_sid] = Leg(call_sid, ticket, is_outbound=True, is_dialling=True)
        return leg

    def forget(self, call_sid: str) -> None:
        """A call was never placed."""
        self.legs.pop(call_sid, None)

    def adopt(self, call_sid: str, now: float) -> Leg:
        """A call that is there, though nothing is known of how it came: another process had it."""
        return self.legs.setdefault(call_sid, Leg(call_sid, answered_at=now))

    def open_stream(self, call_sid: str, ticket: str) -> OpenStream | None:
        """The step that gives a call a stream; None if there is no such call."""
        leg = self.legs.get(call_sid)
        if leg is None or leg.is_last:
            return None
        leg.streams += 1
        leg.media_id = f"{MEDIA_PREFIX}{leg.streams}.{call_sid}"
        self._media[leg.media_id] = call_sid
        return OpenStream(call_sid, leg.media_id, ticket)

    def take_stream(self, call_sid: str) -> list[Step]:
        """What takes a call's stream away; that it ends is then no news."""
        leg = self.legs.get(call_sid)
        if leg is None or not leg.media_id:
            return []
        media_id, leg.media_id = leg.media_id, ""
        return [Drop(media_id)]

    def do(self, call_sid: str, reply: Reply | None) -> list[Step]:
        """The steps of what the desk has answered."""
        leg = self.legs.get(call_sid)
        match reply:
            case None:
                return []
            case ConnectStream(ticket):
                steps: list[Step] = []
                if leg is not None and leg.answered_at is None:
                    steps.append(Answer(call_sid))
                if (stream := self.open_stream(call_sid, ticket)) is not None:
                    steps.append(stream)
                return steps
            case SayAndEndCall():
                return self.say(call_sid)
            case RefuseCall():
                return [HangUp(call_sid, "busy")]
            case EndCall():
                return [HangUp(call_sid)]

    def say(self, call_sid: str) -> list[Step]:
        """The steps that end a call with the apology."""
        leg = self.legs.get(call_sid)
        if leg is None:
            return [HangUp(call_sid)]
        steps: list[Step] = self.take_stream(call_sid)
        leg.is_last = True
        if leg.answered_at is None:
            steps.append(Answer(call_sid))
        return [*steps, Play(call_sid)]

    # -- what Asterisk tells ---------------------------------------------------------------

    def take(self, event: Event, now: float) -> list[Step]:
        """What follows from an event.

        Args:
            event: As it was told.
            now: ``trio.current_time()`` when it was read.
        """
        channel = event.channel
        match event.type:
            case "StasisStart" if channel is not None:
                return self._started(channel, event.args, now)
            case "ChannelStateChange" if channel is not None:
                return self._changed(channel, now)
            case "ChannelDestroyed" if channel is not None:
                return self._destroyed(channel.id, event.cause, event.tech_cause, now)
            case "StasisEnd" if channel is not None:
                return self._left(channel.id, now)
            case "Dial":
                return self._dialled(event)
            case "PlaybackFinished" if event.playback is not None:
                call_sid = event.playback.id.removeprefix(PLAYBACK_PREFIX)
                return [HangUp(call_sid)] if call_sid != event.playback.id else []
        return []

    def settle(self, there: set[str], bridges: set[str], now: float) -> list[Step]:
        """What was missed while nothing could be heard.

        Args:
            there: The channels that the app has in its hands.
            bridges: Its bridges.
            now: The time.
        """
        steps: list[Step] = []
        wanted = {bridge_of(leg.media_id) for leg in self.legs.values()}
        for bridge in bridges - wanted:
            if bridge.startswith(BRIDGE_PREFIX):
                steps.append(Drop(f"{MEDIA_PREFIX}{bridge.removeprefix(BRIDGE_PREFIX)}"))
        for channel_id in there - self.legs.keys():
            if channel_id.startswith(MEDIA_PREFIX):
                if channel_id not in self._media:
                    steps.append(HangUp(channel_id))
            else:
                self.adopt(channel_id, now)
                steps.append(Tell(ResumeRequest(channel_id)))
        for leg in list(self.legs.values()):
            if leg.is_dialling or leg.is_away or leg.call_sid not in there:
                continue
            if leg.media_id and leg.media_id not in there:
                steps += self._destroyed(leg.media_id, 0, 0, now)
        return steps

    @property
    def unheard_of(self) -> list[str]:
        """The calls that the app may have lost without a word: they are to be asked about."""
        return [leg.call_sid for leg in self.legs.values() if not leg.is_dialling]

    def gone(self, call_sid: str, now: float) -> list[Step]:
        """A call is over, and nobody has said why."""
        return self._destroyed(call_sid, 0, 0, now) if call_sid in self.legs else []

    def _started(self, channel: _Channel, args: list[str], now: float) -> list[Step]:
        name = channel.id
        if name.startswith(MEDIA_PREFIX):
            call_sid = self._media.get(name)
            leg = self.legs.get(call_sid or "")
            if leg is None or leg.media_id != name:
                return [HangUp(name)]
            return [Join(leg.call_sid, name)]
        if _NAME.fullmatch(name) is None:
            return [HangUp(name)]
        leg = self.legs.get(name)
        if args[:1] == [TRANSFERRED]:
            leg = leg or self.adopt(name, now)
            leg.is_away = False
            status = dial_status(args[1] if len(args) > 1 else "")
            return [Tell(TransferUpdate(name, status, wants_document=True))]
        if leg is not None and leg.is_outbound:
            steps = self._answered(leg, now)
            if (stream := self.open_stream(name, leg.ticket)) is not None:
                steps.append(stream)
            return steps
        self.legs[name] = Leg(name)
        return [Tell(VoiceRequest(name, channel.caller.number[:64], begins=True))]

    def _answered(self, leg: Leg, now: float) -> list[Step]:
        if leg.answered_at is not None:
            return []
        leg.answered_at = now
        return [self._status(leg.call_sid, CallStatus.IN_PROGRESS)]

    def _changed(self, channel: _Channel, now: float) -> list[Step]:
        leg = self.legs.get(channel.id)
        if leg is None:
            return []
        if channel.state == "Up":
            return self._answered(leg, now)
        if channel.state == "Ringing" and leg.is_outbound:
            return [self._status(leg.call_sid, CallStatus.RINGING)]
        return []

    def _left(self, name: str, now: float) -> list[Step]:
        """A channel is in the app's hands no more: of one that has called us, no more is told."""
        leg = self.legs.get(name)
        if leg is None or leg.is_outbound or leg.is_away:
            return []
        return self._destroyed(name, NORMAL_CLEARING, 0, now)

    def _dialled(self, event: Event) -> list[Step]:
        if event.caller is not None and (leg := self.legs.get(event.caller.id)) is not None:
            if leg.is_away and event.dialstatus == "ANSWER":
                update = TransferUpdate(leg.call_sid, CallStatus.IN_PROGRESS, wants_document=False)
                return [Tell(update)]
        elif event.peer is not None and (leg := self.legs.get(event.peer.id)) is not None:
            leg.dial_status = event.dialstatus or leg.dial_status
        return []

    def _destroyed(self, name: str, cause: int, tech_cause: int, now: float) -> list[Step]:
        if (call_sid := self._media.pop(name, None)) is not None:
            leg = self.legs.get(call_sid)
            if leg is None or leg.media_id != name:
                return []
            leg.media_id = ""
            return [Drop(name), Tell(ResumeRequest(call_sid))]
        leg = self.legs.pop(name, None)
        if leg is None:
            return []
        facts = {}
        if leg.answered_at is not None:
            status = CallStatus.COMPLETED
            facts["duration_s"] = str(max(0, round(now - leg.answered_at)))
        elif leg.dial_status in _DIAL_STATUS and leg.dial_status != "ANSWER":
            status = _DIAL_STATUS[leg.dial_status]
        else:
            status = _CAUSES.get(cause, CallStatus.FAILED)
        if 100 <= tech_cause < 1000:
            facts["sip_response_code"] = str(tech_cause)
        dropped: list[Step] = [Drop(leg.media_id)] if leg.media_id else []
        return [*dropped, self._status(name, status, facts)]

    def _status(
        self, call_sid: str, status: CallStatus, facts: Mapping[str, str] | None = None
    ) -> Tell:
        self._reports += 1
        return Tell(StatusUpdate(call_sid, status, self._reports, facts or {}))


def bridge_of(media_id: str) -> str:
    """The name of the bridge that a media channel and its call are in."""
    return f"{BRIDGE_PREFIX}{media_id.removeprefix(MEDIA_PREFIX)}"


def dial_status(word: str) -> CallStatus:
    """What became of a dial, by Asterisk's word for it."""
    return _DIAL_STATUS.get(word, CallStatus.FAILED)
