"""What Asterisk's events mean for calls: which step comes next, decided without a connection.

A call is a channel of the caller's, or of whom we call; its name is the call's. Its audio comes by
a media channel beside it, in a bridge. All three have names that follow from the call's, so any
process can tell what a channel of Asterisk's is, and clean up after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from server.carrier import (
    MAX_CALL_SID_CHARS,
    CallStatus,
    ResumeRequest,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.carrier.asterisk.events import Channel, Event
from server.carrier.asterisk.leg import Leg, sent_away, unfollow, without_stream
from server.carrier.asterisk.steps import (
    Answer,
    Continue,
    Drop,
    Fetch,
    Find,
    Gone,
    HangUp,
    Heard,
    Join,
    Limit,
    Look,
    Move,
    OpenStream,
    Play,
    SayThere,
    Step,
    Tell,
    Unfollow,
)
from server.carrier.webhooks import (
    ConnectStream,
    EndCall,
    PassOn,
    RefuseCall,
    Reply,
    SayAndEndCall,
)

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CALL_PREFIX, MEDIA_PREFIX, BRIDGE_PREFIX = "offhook-", "offhook.media.", "offhook.bridge."
PLAYBACK_PREFIX = "offhook.say."
TRANSFERRED = "transferred"
"""What the dialplan gives ``Stasis`` when a caller comes back from a transfer, and before why."""
STASIS = "Stasis"
"""The dialplan's application that gives a channel to an app; one that runs another is in none."""
GIVEN = "given"
"""What we give ``move``, after all else, when another process of ours has chosen this one."""
ASKS_THERE, IS_THERE = "offhook.asks", "offhook.there"
"""User events: an app is asked whether a process hears it, and answers."""
MAX_ARGUMENTS, MAX_TEXT = 16, 256
"""Of an event, as much as is kept."""
NO_EXTENSIONS = frozenset({"s", "i", "t", "h"})
"""Extensions that nobody has dialled."""
_NAME = re.compile(rf"[A-Za-z0-9._:+@-]{{1,{MAX_CALL_SID_CHARS}}}")
_HEADER = re.compile(r"(X-[A-Za-z0-9-]{1,64})=(.*)", re.DOTALL)

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


@dataclass(slots=True)
class Exchange:
    """The calls of one app, by name; every event leads to steps that somebody else carries out.

    Attributes:
        mark: What this process's media channels have in their names, so that they are no other's.
        legs: The calls.
    """

    mark: str = ""
    legs: dict[str, Leg] = field(default_factory=dict)

    # -- what we do ------------------------------------------------------------------------

    def dial(self, call_sid: str, ticket: str) -> Leg:
        """A call is about to be placed."""
        leg = Leg(call_sid, ticket, is_outbound=True, is_dialling=True, is_limited=True)
        self.legs[call_sid] = leg
        return leg

    def forget(self, call_sid: str) -> None:
        """A call was never placed, or is not ours any more."""
        self.legs.pop(call_sid, None)

    def adopt(self, call_sid: str, now: float | None) -> Leg:
        """A call that is there, though nothing is known of how it came: another process had it.

        Args:
            call_sid: The call.
            now: The time; None for a call that is not known to have been answered.
        """
        if (leg := self.legs.get(call_sid)) is None:
            is_outbound = call_sid.startswith(CALL_PREFIX)
            leg = self.legs[call_sid] = Leg(call_sid, is_outbound=is_outbound, answered_at=now)
            leg.is_taken_over = now is not None
        return leg

    def taken_over(self, call_sid: str) -> list[Step]:
        """A call was adopted; that whoever is called has answered may have been told to nobody."""
        leg = self.legs.get(call_sid)
        if leg is None or not leg.is_outbound or leg.answered_at is None:
            return []
        return [_status(call_sid, CallStatus.IN_PROGRESS)]

    def await_answer(self, call_sid: str, ticket: str, app: str) -> None:
        """A phone rings that a process which is gone has had dialled.

        Args:
            call_sid: The call.
            ticket: That its stream is to show, once it is answered.
            app: That process's, which it is given to then.
        """
        self.legs[call_sid] = Leg(
            call_sid, ticket, is_outbound=True, is_heard_of=True, is_limited=True, left_app=app
        )

    def await_caller(self, call_sid: str, app: str, now: float) -> None:
        """A caller is with somebody else, whom a process which is gone has sent there.

        Args:
            call_sid: The call.
            app: That process's, which the caller is given to when they come back.
            now: The time.
        """
        leg = self.adopt(call_sid, now)
        leg.is_away, leg.left_app, leg.has_left = True, app, False

    def is_awaited(self, call_sid: str) -> bool:
        """Whether a call is still to be fetched from another process's app."""
        leg = self.legs.get(call_sid)
        return leg is not None and bool(leg.left_app)

    def expected(self, app: str) -> list[str]:
        """The calls of ours that may still come to the app of a process that is gone."""
        return [leg.call_sid for leg in self.legs.values() if leg.left_app == app]

    def open_stream(self, call_sid: str, ticket: str) -> list[Step]:
        """The steps that give a call a stream; none if there is no such call."""
        leg = self.legs.get(call_sid)
        if leg is None or leg.is_last:
            return []
        leg.lacks_stream = leg.is_away
        if leg.is_away:
            return []
        if leg.is_outbound and leg.answered_at is None:  # whoever is called has not answered yet
            leg.ticket = ticket
            return []
        steps: list[Step] = list(self.take_stream(call_sid))
        leg.ticket = ""  # one that waits is of no use any more
        leg.streams += 1
        leg.media_id = f"{MEDIA_PREFIX}{self.mark}{leg.streams}.{call_sid}"
        steps.append(OpenStream(call_sid, leg.media_id, ticket))
        if not leg.is_limited:
            leg.is_limited = True
            steps.append(Limit(call_sid))
        return steps

    def opened(self, media_id: str) -> None:
        """Asterisk knows of a media channel."""
        leg = self.legs.get(call_of(media_id))
        if leg is not None and leg.media_id == media_id:
            leg.is_open = True

    def is_replaced(self, media_id: str) -> bool:
        """Whether a call goes on, with another stream or without any."""
        leg = self.legs.get(call_of(media_id))
        return leg is not None and leg.media_id != media_id

    def caller_stayed(self, call_sid: str) -> list[Step]:
        """A caller is here whom another process had sent away, or was about to when it ended."""
        if (leg := self.legs.get(call_sid)) is None:
            return []
        return _back(leg, CallStatus.FAILED)

    def take_stream(self, call_sid: str) -> list[Step]:
        """What takes a call's stream away; that it ends is then no news."""
        leg = self.legs.get(call_sid)
        return [] if leg is None else without_stream(leg)

    def do(self, call_sid: str, reply: Reply | PassOn | None) -> list[Step]:
        """The steps of what the desk has answered."""
        leg = self.legs.get(call_sid)
        match reply:
            case None:
                return []
            case ConnectStream(ticket):
                steps: list[Step] = []
                if leg is not None and leg.answered_at is None and not leg.is_outbound:
                    steps.append(Answer(call_sid))
                return steps + self.open_stream(call_sid, ticket)
            case SayAndEndCall():
                return self.say(call_sid)
            case PassOn(process):
                self.forget(call_sid)
                told = () if leg is None else leg.arguments
                return [Move(call_sid, process, (*told, GIVEN))]
            case RefuseCall():  # somebody else may take it, and else it is for the dialplan to say
                self.forget(call_sid)
                return [Continue(call_sid)]
            case EndCall():
                if leg is not None and leg.unheard is not None and leg.answered_at is None:
                    asked, leg.unheard = leg.unheard, None  # nobody knows of it: it is new
                    return [Tell(asked)]
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
                return self._left(channel.id)
            case "ApplicationMoveFailed" if channel is not None:
                # The one that was chosen hears no events yet, or any more.
                if channel.id not in self.legs and not channel.id.startswith(MEDIA_PREFIX):
                    return self._new(channel, [*event.args, GIVEN], now)
            case "Dial":
                return self._dialled(event)
            case "PlaybackFinished" if event.playback is not None:
                call_sid = event.playback.id.removeprefix(PLAYBACK_PREFIX)
                return [HangUp(call_sid)] if call_sid != event.playback.id else []
            case "ChannelUserevent" if event.userevent is not None:
                other = event.userevent.app[:MAX_TEXT]
                if event.eventname == ASKS_THERE:
                    return [SayThere(other)]
                return [Heard(other)] if event.eventname == IS_THERE else []
        return []

    # -- what was missed while nothing could be heard ----------------------------------------

    def open_legs(self) -> dict[str, Leg]:
        """The calls that Asterisk knows of, as they stand at this moment."""
        return {leg.call_sid: replace(leg) for leg in self.legs.values() if not leg.is_dialling}

    def settle(
        self, before: Mapping[str, Leg], there: set[str], bridges: Iterable[str], now: float
    ) -> list[Step]:
        """What was missed of streams, and which channels are nobody's.

        Args:
            before: The calls before it was asked what there is.
            there: The channels that the app has in its hands, or hears of.
            bridges: Its bridges.
            now: The time.
        """
        steps: list[Step] = []
        wanted = {bridge_of(leg.media_id) for leg in self.legs.values() if leg.media_id}
        for bridge in bridges:
            if bridge.startswith(BRIDGE_PREFIX) and bridge not in wanted:
                steps.append(Drop(f"{MEDIA_PREFIX}{bridge.removeprefix(BRIDGE_PREFIX)}"))
        for channel_id in there - self.legs.keys() - before.keys():
            if channel_id.startswith(MEDIA_PREFIX):
                steps += self._media_started(channel_id)
            else:
                steps.append(Find(channel_id))
        for call_sid, was in before.items():
            if (leg := self.legs.get(call_sid)) is not None and call_sid in there:
                leg.is_here = True
            elif leg is not None and was.is_in_hand and leg.is_in_hand:
                leg.has_left = True  # over, or another process's: that a stream ends is no news
            if was.is_open and was.media_id not in there:
                steps += self._destroyed(was.media_id, 0, 0, now)
        return steps

    def seen(self, call_sid: str, channel: Channel | None, now: float) -> list[Step]:
        """A channel is among the app's, and it was not told how it came: another process, or one
        before this, has had it. A caller who was transferred is among them, and is left alone.

        Args:
            call_sid: The channel's name.
            channel: How it stands; None where it is gone by now.
            now: The time.
        """
        if channel is None or call_sid in self.legs:
            return []
        rings = call_sid.startswith(CALL_PREFIX) and channel.state != "Up"
        if rings or channel.dialplan.app_name == STASIS:
            steps = self._left_behind(call_sid, now if channel.state == "Up" else None)
            if not rings and channel.state != "Up":
                told = channel.dialplan.app_data.split(",")[1:]
                self.legs[call_sid].unheard = _question(self.legs[call_sid], channel, told)
            return steps
        return [Unfollow(call_sid)]

    def _left_behind(self, call_sid: str, answered_at: float | None) -> list[Step]:
        self.adopt(call_sid, answered_at).is_here = True
        return [*self.taken_over(call_sid), Tell(ResumeRequest(call_sid))]

    def doubtful(self, before: Iterable[str], there: set[str]) -> list[str]:
        """The calls of which something may have been missed that the lists do not tell."""
        legs = [leg for call_sid in before if (leg := self.legs.get(call_sid)) is not None]
        return [
            leg.call_sid
            for leg in legs
            if leg.call_sid not in there
            or (leg.is_away or leg.is_last or leg.answered_at is None or leg.ticket)
            or leg.is_followed  # it may be away
        ]

    def found(
        self, call_sid: str, channel: Channel | None, now: float, *, has_waited: bool = False
    ) -> list[Step]:
        """How a call stands, as Asterisk has been asked.

        Args:
            call_sid: The call.
            channel: What Asterisk knows of it; None where that is nothing.
            now: The time.
            has_waited: Whether why it is gone, or that it is back, would have been told by now.
        """
        leg = self.legs.get(call_sid)
        if leg is None:
            return []
        if channel is None:
            if leg.answered_at is None and not has_waited:
                return [Gone(call_sid)]
            return self._destroyed(call_sid, 0, 0, now)  # why is nowhere to be asked
        runs = channel.dialplan.app_name
        # The app is shown, and told of, one who was to be sent away wherever they are since.
        is_outside = leg.is_followed and leg.sent_to != "" and runs not in ("", STASIS)
        is_sent_there = is_outside and channel.dialplan.exten == leg.sent_to
        if leg.has_left and is_sent_there:
            return sent_away(leg)
        if leg.has_left and not has_waited:  # it may come again at once
            return [Gone(call_sid)]
        if leg.has_left:  # with the dialplan, or another process: whoever has it ends it
            self.forget(call_sid)
            return [*without_stream(leg), _over(leg, CallStatus.COMPLETED, {}, now)]
        if leg.is_last:
            return [HangUp(call_sid)]
        told = channel.dialplan.app_data.split(",")[1:]
        if leg.is_away and channel.dialplan.app_name == STASIS and told[:1] == [TRANSFERRED]:
            if leg.left_app:
                return [Fetch(call_sid, tuple(told[:MAX_ARGUMENTS]))]
            return self._started(channel, told, now)
        if leg.is_left_away and channel.dialplan.app_name == STASIS:
            return [Fetch(call_sid)] if leg.left_app else self.caller_stayed(call_sid)
        if channel.state == "Up" and (leg.answered_at is None or leg.ticket):
            if leg.left_app:
                return [*self._answered(leg, now), Fetch(call_sid)]
            return self._started(channel, [], now) if leg.ticket else self._answered(leg, now)
        if is_sent_there and leg.is_in_hand:
            return sent_away(leg)
        if is_outside and leg.is_in_hand:  # somebody else has taken them, and we were not told
            leg.has_left = True
            return [Gone(call_sid)]
        steps: list[Step] = []
        if leg.is_in_hand and runs == STASIS:  # they were not sent away
            if leg.streams and not leg.is_limited:
                leg.is_limited = True
                steps.append(Limit(call_sid))
            if leg.lacks_stream:
                leg.lacks_stream = False
                steps.append(Tell(ResumeRequest(call_sid)))
        return steps

    # -- events ------------------------------------------------------------------------------

    def _started(self, channel: Channel, args: Sequence[str], now: float) -> list[Step]:
        name = channel.id
        if name.startswith(MEDIA_PREFIX):
            return self._media_started(name)
        if _NAME.fullmatch(name) is None:
            refused = "call hung up: no name of a channel may be so long, or have such characters"
            logger.error(refused, chars=len(name), most=MAX_CALL_SID_CHARS)
            return [HangUp(name)]
        leg = self.legs.get(name)
        was_out = leg is not None and leg.has_left
        if leg is not None:
            leg.left_app, leg.is_here, leg.has_left = "", True, False
        if args[:1] == [TRANSFERRED]:
            leg = leg or self.adopt(name, now)
            leg.is_here = True
            return _back(leg, dial_status(args[1] if len(args) > 1 else ""))
        if leg is None and name.startswith(CALL_PREFIX):
            # Whoever has dialled it is gone, or has given it up without Asterisk's hearing of it.
            return self._left_behind(name, now)
        if leg is None:
            return self._new(channel, args, now)
        if leg.is_left_away:
            return self.caller_stayed(name)
        if leg.is_away and leg.was_sent:  # by somebody else, as nobody is rung for them any more
            return [*without_stream(leg), *_back(leg, CallStatus.FAILED)]
        ticket, leg.ticket = leg.ticket, ""
        leg.is_heard_of = True
        if not ticket and was_out and leg.streams and not leg.is_last:
            # By somebody else: it is in no bridge now, and may have no stream any more.
            return [*without_stream(leg), Tell(ResumeRequest(name))]
        if not ticket:  # it was brought here, by us
            return []
        return [*self._answered(leg, now), *unfollow(leg), *self.open_stream(name, ticket)]

    def _new(self, channel: Channel, args: Sequence[str], now: float) -> list[Step]:
        """A call comes in; the dialplan may have answered it, of which nothing more is told."""
        leg = self.legs[channel.id] = Leg(channel.id, is_here=True)
        request = _question(leg, channel, args)
        answered = self._answered(leg, now) if channel.state == "Up" else []
        return [*answered, Tell(request)]

    def _media_started(self, name: str) -> list[Step]:
        leg = self.legs.get(call_of(name))
        if leg is None or leg.media_id != name:
            return [Drop(name)]
        if leg.is_joined:
            return []
        leg.is_open = leg.is_joined = True
        return [Join(leg.call_sid, name)]

    def _answered(self, leg: Leg, now: float) -> list[Step]:
        if leg.answered_at is not None:
            return []
        leg.answered_at = now
        return [_status(leg.call_sid, CallStatus.IN_PROGRESS)]

    def _changed(self, channel: Channel, now: float) -> list[Step]:
        leg = self.legs.get(channel.id)
        if leg is None:
            return []
        leg.is_heard_of = True
        if channel.state == "Up":
            steps = self._answered(leg, now)
            return [*steps, Fetch(channel.id)] if steps and leg.left_app else steps
        if channel.state == "Ringing" and leg.is_outbound:
            return [_status(leg.call_sid, CallStatus.RINGING)]
        return []

    def _left(self, name: str) -> list[Step]:
        """A channel is in the app's hands no more: of some, nothing more is told."""
        leg = self.legs.get(name)
        if leg is None or leg.is_away:
            if leg is not None:
                leg.was_sent = True
            return []
        leg.has_left = True
        return [Look(name)]

    def _dialled(self, event: Event) -> list[Step]:
        if event.caller is not None and (leg := self.legs.get(event.caller.id)) is not None:
            if leg.is_away and event.dialstatus == "ANSWER":
                leg.left_app = ""  # they talk, and whoever comes back after that is nobody's
                update = TransferUpdate(leg.call_sid, CallStatus.IN_PROGRESS, wants_document=False)
                return [*without_stream(leg), Tell(update)]  # which ends with the call
            if leg.is_away and leg.left_app and event.dialstatus in _DIAL_STATUS:
                return [Fetch(leg.call_sid, (TRANSFERRED, event.dialstatus))]
        elif event.peer is not None and (leg := self.legs.get(event.peer.id)) is not None:
            leg.is_heard_of = True
            leg.dial_status = event.dialstatus[:MAX_TEXT] or leg.dial_status
        return []

    def _destroyed(self, name: str, cause: int, tech_cause: int, now: float) -> list[Step]:
        if name.startswith(MEDIA_PREFIX):
            leg = self.legs.get(call_of(name))
            if leg is None or leg.media_id != name:
                return []
            steps = without_stream(leg)
            return steps if leg.has_left else [*steps, Tell(ResumeRequest(leg.call_sid))]
        leg = self.legs.pop(name, None)
        if leg is None:
            return []
        leg.is_heard_of = True
        facts = {}
        if leg.answered_at is not None:
            status = CallStatus.COMPLETED
        elif leg.dial_status in _DIAL_STATUS and leg.dial_status != "ANSWER":
            status = _DIAL_STATUS[leg.dial_status]
        else:
            status = _CAUSES.get(cause, CallStatus.FAILED)
        if leg.answered_at is None and 100 <= tech_cause < 1000:
            facts["sip_response_code"] = str(tech_cause)
        return [*without_stream(leg), _over(leg, status, facts, now)]


def _back(leg: Leg, status: CallStatus) -> list[Step]:
    leg.is_away = False
    update = TransferUpdate(leg.call_sid, status, wants_document=True)
    return [Tell(update), *unfollow(leg)]


def _over(leg: Leg, status: CallStatus, facts: Mapping[str, str], now: float) -> Tell:
    if leg.answered_at is not None and not leg.is_taken_over:
        facts = {"duration_s": str(max(0, round(now - leg.answered_at))), **facts}
    return _status(leg.call_sid, status, facts)


def _status(call_sid: str, status: CallStatus, facts: Mapping[str, str] | None = None) -> Tell:
    # Numbered so that it is in order whoever tells it: one that takes a call over knows no other's
    # count.
    return Tell(StatusUpdate(call_sid, status, status.progress, facts or {}))


def _question(leg: Leg, channel: Channel, args: Sequence[str]) -> VoiceRequest:
    """What is asked about a call that comes in, of which the dialplan has told this."""
    told = leg.arguments = tuple(one[:MAX_TEXT] for one in args[:MAX_ARGUMENTS] if one != GIVEN)
    headers = {found[1]: found[2] for one in told if (found := _HEADER.fullmatch(one)) is not None}
    called = channel.dialplan.exten
    return VoiceRequest(
        leg.call_sid,
        channel.caller.number[:64],
        begins=True,
        called="" if called in NO_EXTENSIONS else called[:64],
        headers=headers,
        is_given=GIVEN in args,
    )


def bridge_of(media_id: str) -> str:
    """The name of the bridge that a media channel and its call are in."""
    return f"{BRIDGE_PREFIX}{media_id.removeprefix(MEDIA_PREFIX)}"


def call_of(media_id: str) -> str:
    """The call that a media channel, or its bridge, is of, by its name."""
    bare = media_id.removeprefix(MEDIA_PREFIX).removeprefix(BRIDGE_PREFIX)
    return bare.partition(".")[2]


def dial_status(word: str) -> CallStatus:
    """What became of a dial, by Asterisk's word for it."""
    return _DIAL_STATUS.get(word, CallStatus.FAILED)
