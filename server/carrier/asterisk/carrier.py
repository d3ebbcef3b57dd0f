"""Calls on an Asterisk of one's own: its events come in, and what follows from them goes out."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Self

import structlog
import trio
from websockets.exceptions import WebSocketException
from websockets.trio.client import ClientConnection

from server.carrier import CallStatus, PlacedCall, StatusUpdate
from server.carrier.account import AccountState
from server.carrier.asterisk.ari import Ari
from server.carrier.asterisk.events import EVENTS, read_event
from server.carrier.asterisk.exchange import CALL_PREFIX, Exchange
from server.carrier.asterisk.hands import APP_VARIABLE, CLEAN_UP_S, LIMIT_VARIABLE, Hands
from server.carrier.asterisk.left import Left
from server.carrier.asterisk.leg import STATES, Leg, unfollow
from server.carrier.asterisk.stand_in import AGAIN_S as AGAIN_AFTER_S
from server.carrier.asterisk.stand_in import StandIns
from server.carrier.asterisk.steps import (
    Answer,
    Bring,
    Drop,
    Fetch,
    Find,
    Gone,
    HangUp,
    Heard,
    Join,
    Limit,
    Look,
    OpenStream,
    SayThere,
    StandIn,
    Step,
    Tell,
    Unfollow,
)
from server.carrier.asterisk.stream import AsteriskMediaStream
from server.carrier.transport import Transport
from server.carrier.webhooks import Desk
from server.errors import CallNotInProgress, CarrierError, ConfigurationError
from server.settings.values import LONGEST_CALL_S

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Until the event connection is tried again, each time it is lost without having been of use."""
REPLACED_PAUSE_S = 30.0
"""When another program has taken the app's events: Asterisk gives them to the last who asks."""
STOOD_IN_PAUSE_S, STOOD_IN_AGAIN_S = AGAIN_AFTER_S, 60.0
"""When it may be another of our processes, which stands in for one that is held up; not where it
has taken them again within so long.
"""
DIAL_TRIES = 3
AGAIN_S = (0.5, 2.0, 5.0)
"""How long to wait before it is tried again to end what has to end."""
TOLD_S = 1.0
"""What has come, or gone, just when we asked is told by then."""
OVERTIME_S = 60.0
"""Asterisk itself ends a call that lasts so much longer than it may, should nobody here do it.

Of one that was not placed here that is not known: it depends on the agent, so it is the most."""


class AsteriskCarrier:
    """A :class:`server.carrier.Carrier` over ARI, and its :class:`server.carrier.webhooks.Events`.

    It is both, as every answer to an event is a request, and every request is followed by events.

    Args:
        ari: Asterisk's REST interface; opened and closed with this.
        app: What the dialplan's ``Stasis`` names; where there are several processes, with ``-`` and
            the name of one.
        client: The connection of ``websocket_client.conf`` that leads here.
        number: That calls come from; empty for the trunk's own.
        dial: What is dialled, with ``{number}`` in it.
        law: ``ulaw`` or ``alaw``.
        transfer_context: Where the dialplan dials whom a caller is transferred to.
        apology: The recording that is played where a call has failed, as ARI names it.
        ring_timeout_s: How long a phone rings before the call is given up as no-answer.
        process: This process's name, which media streams show as ``process``; empty if it is alone.
        is_there: Says whether there is a process of a name; None if that is not known now.
    """

    name = "asterisk"

    def __init__(
        self,
        ari: Ari,
        *,
        app: str,
        client: str,
        number: str,
        dial: str,
        law: str,
        transfer_context: str,
        apology: str,
        ring_timeout_s: float,
        process: str = "",
        is_there: Callable[[str], bool | None] = lambda process: False,
    ) -> None:
        self.on_wait: Callable[[float], None] = lambda wait_s: None
        self._ari = ari
        self._app = f"{app}-{process}" if process else app
        self._has_stand_ins = bool(process)
        self._number = number
        self._dial = dial
        self._transfer_context = transfer_context
        self._ring_timeout_s = ring_timeout_s
        # No media channel of another process, or of one that had our name before, is taken for one
        # of ours.
        self._exchange = Exchange(mark=f"{secrets.token_hex(4)}-")
        # Of any size: the calls of an app bound what there is to do about them.
        self._todo, self._steps = trio.open_memory_channel[Step](math.inf)
        self._hands = Hands(
            ari,
            app=self._app,
            apps=app,
            client=client,
            law=law,
            apology=apology,
            process=process,
            longest_s=LONGEST_CALL_S + OVERTIME_S,
        )

        def is_served(one: str) -> bool | None:
            return is_there(one.removeprefix(f"{app}-"))

        self._stand_ins = StandIns(
            ari,
            expected=self._exchange.expected,
            is_served=is_served,
            is_heard=self._hands.is_heard,
            bring=self._do_later,
        )
        facts = {"app": self._app, "apps": app}
        self._left = Left(self._hands, self._exchange, self._do_later, is_served, **facts)

    async def __aenter__(self) -> Self:
        """Open the connections, and look whether Asterisk is there and new enough.

        Raises:
            ConfigurationError: It is not what is needed. One that is not reached may come later.
        """
        await self._ari.__aenter__()
        try:
            await self._ari.check()
            if doubt := await self._hands.doubt():
                logger.warning("a setting may be a mistake", what=doubt)
        except CarrierError as error:
            logger.warning("Asterisk is not there yet", error=error.message)
        except BaseException as error:
            if isinstance(error, ConfigurationError):  # said here, as much is said on its way out
                logger.critical("this Asterisk will not do", problem=str(error))
            await self._ari.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._ari.__aexit__(exc_type, exc_value, traceback)

    async def describe(self) -> AccountState:
        """How the PBX stands.

        Raises:
            ConfigurationError: It cannot do what calls need.
            CarrierError: It was not reached.
        """
        await self._ari.check()
        return AccountState(f"Asterisk {self._ari.version}", doubt=await self._hands.doubt())

    def new_stream(self, transport: Transport) -> AsteriskMediaStream:
        """The media stream of a socket that Asterisk has opened."""
        return AsteriskMediaStream(transport, self._hands.wait_joined)

    # -- what is asked of it ---------------------------------------------------------------

    async def place_call(
        self,
        destination_number: str,
        *,
        ticket: str,
        max_duration_s: float,
        detect_machine: bool = False,
    ) -> PlacedCall:
        """Dial a number; when it is answered, a stream is opened that shows the ticket.

        The call's name is ours, and Asterisk has no two channels of one name, so a request that was
        not answered is simply made again. One that fails leaves no phone ringing, as far as
        Asterisk can be told. Answering machines are left to the model.

        Raises:
            CarrierError: Refused or not reached.
        """
        call_sid = f"{CALL_PREFIX}{secrets.token_hex(16)}"
        leg = self._exchange.dial(call_sid, ticket)
        try:
            await self._originate(leg, destination_number, max_duration_s)
        except BaseException as error:
            self._exchange.forget(call_sid)
            is_refused = isinstance(error, CarrierError) and not error.outcome_unknown
            if is_refused or not await self._take_back(call_sid):
                raise
            if isinstance(error, CarrierError):  # it is known by now: nobody is called
                raise CarrierError(error.message, status=error.status) from error
            raise
        leg.is_dialling = False
        return PlacedCall(call_sid, CallStatus.INITIATED)

    async def hang_up(self, call_sid: str) -> None:
        """End a call in any state; a call that is already over is success.

        Raises:
            CarrierError: Refused or not reached.
        """
        await self._ari.delete("channels", call_sid)

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        """Play the recorded apology to the caller, and end the call after that.

        Asterisk cannot speak: what is said is what was recorded, whatever the text.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        await self._left.bring_here(call_sid)
        await self._do_now(self._exchange.say(call_sid))

    async def follow(self, call_sid: str) -> None:
        """Be told of a caller who is with somebody else, whom another process has sent there.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        await self._left.await_caller(call_sid)

    async def clear_up_after(
        self, process: str, is_somebodys: Callable[[str], Awaitable[bool]]
    ) -> bool:
        """See to what a process that is gone has left, beside the calls that were taken over.

        Args:
            process: Its name.
            is_somebodys: Says whether a call is some process's.

        Returns:
            False if something is left, and it is to be tried again.

        Raises:
            CarrierError: Refused or not reached.
        """

        async def apologise(call_sid: str) -> None:
            await self.say_and_hang_up(call_sid, "", "")
            await self._hands.clear_away(call_sid, but="")

        return await self._left.clear_up_after(process, is_somebodys, apologise)

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        """Have the dialplan ring another number for a caller, and take the stream away.

        Raises:
            CarrierError: Refused or not reached; the stream goes on.
        """
        exchange = self._exchange
        await self._left.bring_here(call_sid)
        if (leg := exchange.legs.get(call_sid)) is None:
            raise CallNotInProgress("the call is over", status=404)
        told = {"OFFHOOK_RING_S": str(math.ceil(ring_timeout_s)), APP_VARIABLE: self._app}
        was_limited, media_id = leg.is_limited, leg.media_id
        leg.is_away, leg.sent_to, leg.was_sent, leg.is_limited = True, number, False, False
        try:
            # Outside Stasis a channel is told of only if it is asked for.
            if not leg.is_followed:
                await self._hands.follow(call_sid)
                leg.is_followed = True
            # Two people who talk with each other may do so for as long as they like.
            await self._hands.limit(call_sid, 0.0)
            await self._hands.set(call_sid, told)
            # Who is called may answer before we are: then the call is over, and whoever asked is
            # gone. A request has a deadline of its own.
            with trio.CancelScope(shield=True):
                where = self._transfer_context, number
                await self._hands.send_away(call_sid, *where, lambda: leg.was_sent)
        except BaseException as error:
            leg.is_away = False
            is_here = not (isinstance(error, CarrierError) and error.outcome_unknown)
            if is_here:
                self._do_later(unfollow(leg))
            # That they have hung up was no news of a caller who was taken to be away.
            self._do_later([Look(call_sid)])
            if was_limited and is_here:  # else once they are seen to be: outside none can undo it
                leg.is_limited = True
                with trio.move_on_after(CLEAN_UP_S, shield=True):
                    await self._do_now([Limit(call_sid)])
            raise
        # If it has failed already, the stream that the caller is back with is not ours to take.
        if leg.media_id == media_id:
            steps, is_done = exchange.take_stream(call_sid), False
            with suppress(CarrierError), trio.move_on_after(CLEAN_UP_S, shield=True):
                await self._do_now(steps)
                is_done = True
            if not is_done:  # the caller has gone all the same
                self._do_later(steps)

    async def reconnect(self, call_sid: str, ticket: str) -> None:
        """Give a live call another stream with this ticket; one that it has is taken away.

        A phone that still rings gets it when it is answered, whoever has had it dialled.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        try:
            is_others = await self._left.bring_here(call_sid)
        except CallNotInProgress:
            if not await self._left.await_answer(call_sid, ticket):
                raise
            return
        if is_others and not call_sid.startswith(CALL_PREFIX):  # it may not have been answered
            await self._do_now([Answer(call_sid)])
        await self._do_now(self._exchange.open_stream(call_sid, ticket))
        if is_others and (leg := self._exchange.legs.get(call_sid)) is not None:
            await self._hands.clear_away(call_sid, but=leg.media_id)

    async def fetch_status(self, call_sid: str) -> StatusUpdate:
        """Ask how a call stands; one that Asterisk does not know is over.

        Why one is over that nobody has answered cannot be asked: it is told in a moment, as failed
        if Asterisk does not say more by then. Of one that was another process's, it is not told.

        Raises:
            CarrierError: Refused or not reached.
        """
        channel = await self._hands.look(call_sid)
        if channel is None:
            leg = self._exchange.legs.get(call_sid)
            if leg is not None and leg.answered_at is None:
                self._do_later(self._exchange.found(call_sid, None, trio.current_time()))
                return StatusUpdate(call_sid, CallStatus.INITIATED, None, {"asked": "yes"})
            over, facts = CallStatus.COMPLETED, {"asked": "yes"}
            return StatusUpdate(call_sid, over, None, facts, is_unknown=leg is None)
        status = STATES.get(channel.state, CallStatus.INITIATED)
        return StatusUpdate(call_sid, status, None, {"asked": "yes"})

    async def _originate(self, leg: Leg, number: str, max_duration_s: float) -> None:
        caller: dict[str, str] = {"callerId": self._number} if self._number else {}
        longest_s = self._ring_timeout_s + max_duration_s + OVERTIME_S  # it counts from the dial
        is_unknown = False
        for left in reversed(range(DIAL_TRIES)):
            try:
                await self._ari.post(
                    "channels",
                    endpoint=self._dial.format(number=number),
                    app=self._app,
                    channelId=leg.call_sid,
                    timeout=math.ceil(self._ring_timeout_s),
                    variables={
                        LIMIT_VARIABLE: str(math.ceil(longest_s)),
                        APP_VARIABLE: self._app,
                    },
                    **caller,
                )
            except CarrierError as error:
                # The request before this one was heard, or this one was: the phone may have been
                # answered, or busy, before we were told.
                if error.status == 409 or leg.is_heard_of:
                    return
                is_unknown = is_unknown or error.outcome_unknown
                if not left or (error.status is not None and error.status < 500):
                    error.outcome_unknown = is_unknown
                    raise
            else:
                return

    async def _take_back(self, call_sid: str) -> bool:
        """End a call that may have been placed; returns whether it was there, and is no more.

        One that is not there may have been over already, or is only about to be dialled.
        """
        with trio.move_on_after(CLEAN_UP_S, shield=True):
            try:
                if await self._ari.delete("channels", call_sid):
                    return True
                logger.warning("a call may have been placed, or be placed yet")
            except CarrierError as error:
                logger.warning("a call may ring with nobody behind it", error=error.message)
        return False

    async def _is_in_hand(self, call_sid: str) -> bool:
        """Whether a call is for us to end: not one that talks with somebody else, or has gone."""
        leg = self._exchange.legs.get(call_sid)
        return (leg is None or not leg.is_away) and await self._hands.has(call_sid)

    # -- events ----------------------------------------------------------------------------

    async def run(self, desk: Desk) -> None:
        """Hear Asterisk's events and do what follows from them, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._do_all, desk)
                await self._keep_hearing(desk)
        finally:
            with trio.move_on_after(CLEAN_UP_S, shield=True):
                await self._left.leave()

    async def _keep_hearing(self, desk: Desk) -> None:
        lost, stood_in_until = 0, -math.inf
        while True:
            was_heard, was_replaced = trio.Event(), trio.Event()
            try:
                await self._ari.check()
                async with self._ari.events(self._app) as events:
                    await self._hear(events, desk, was_heard, was_replaced)
            except* (OSError, WebSocketException, trio.TooSlowError) as group:
                names = sorted({type(error).__name__ for error in _leaves(group)})
                logger.warning("Asterisk's events are not heard", error=", ".join(names))
            except* (CarrierError, ConfigurationError) as group:
                words = "; ".join(str(error) for error in _leaves(group))
                logger.warning("Asterisk's events are not heard", error=words)
            lost = 0 if was_heard.is_set() else lost + 1
            # Other processes have lost theirs at the same moment.
            pause_s = PAUSES_S[min(lost, len(PAUSES_S) - 1)] * random.uniform(0.5, 1.0)
            now = trio.current_time()
            if was_replaced.is_set() and self._has_stand_ins and now > stood_in_until:
                pause_s, stood_in_until = STOOD_IN_PAUSE_S, now + STOOD_IN_AGAIN_S
                logger.warning("the events of our app were heard in our place", app=self._app)
            elif was_replaced.is_set():
                pause_s = REPLACED_PAUSE_S
                logger.error(
                    "another program has taken the events of our app: ASTERISK_APP must "
                    "be one's own",
                    app=self._app,
                )
            self.on_wait(pause_s)
            await trio.sleep(pause_s)

    async def _hear(
        self,
        events: ClientConnection,
        desk: Desk,
        was_heard: trio.Event,
        was_replaced: trio.Event,
    ) -> None:
        """Hear one connection to its end, which may be another program's in its place."""

        async def see_to(steps: list[Step]) -> None:
            for step in steps:
                if isinstance(step, Tell) and step.is_quick:
                    await self._do_or_end(step, desk)  # in the order of events
                else:
                    self._do_later([step])

        await self._ari.allow_events(self._app, EVENTS)
        logger.info("Asterisk's events are heard", app=self._app)
        await see_to(await self._settle())
        was_heard.set()
        async for message in events:
            if (event := read_event(message)) is None:
                logger.warning("event of Asterisk's ignored: it cannot be read")
                continue
            if event.type == "ApplicationReplaced":  # the last, however the connection ends
                was_replaced.set()
            await see_to(self._exchange.take(event, trio.current_time()))
        logger.warning("Asterisk's events have ended")

    async def _settle(self) -> list[Step]:
        """What was missed while no events were heard."""
        exchange, before = self._exchange, self._exchange.open_legs()
        state = await self._hands.app(self._app)
        there = set(state.channel_ids)
        steps = exchange.settle(before, there, state.bridge_ids, trio.current_time())
        # Steps of their own: what is decided is not lost if one cannot be looked at.
        return [*steps, *(Look(call_sid) for call_sid in exchange.doubtful(before, there))]

    # -- steps -----------------------------------------------------------------------------

    async def _do_all(self, desk: Desk) -> None:
        """Carry steps out, each on its own: they outlive the connection that they follow from."""
        async with trio.open_nursery() as nursery:
            async for step in self._steps:
                nursery.start_soon(self._do_or_end, step, desk)

    async def _do_or_end(self, step: Step, desk: Desk) -> None:
        """Carry a step out; one that fails ends its call, and no other."""
        try:
            if isinstance(step, Tell):
                answer = await desk(step.report)
                await self._do_now(self._exchange.do(step.report.call_sid, answer))
            else:
                await self._do_now([step])
        except CarrierError as error:
            is_over = isinstance(error, CallNotInProgress)  # who hangs up is not waited for
            log = logger.debug if is_over else logger.warning
            log("Asterisk refuses a step", step=type(step).__name__, error=error.message)
            await self._end(step)
        except Exception:
            logger.exception("event of Asterisk's not seen to by a bug of ours")
            if isinstance(step, Tell) and step.asks:  # its caller would hear nothing for ever
                await self._end(step)

    async def _end(self, failed: Step) -> None:
        """End the call of a step that has failed, unless it has left meanwhile; what has to be done
        is tried again and again.
        """
        call_sid = ""
        match failed:
            case Drop() | HangUp() | Look() | Gone() | Find() | Unfollow():
                step = failed
            case StandIn() | SayThere() | Heard():
                return
            case Bring(channel_id):
                call_sid = channel_id
            case Tell(report):
                call_sid = report.call_sid
            case _:
                call_sid = failed.call_sid
        if call_sid:
            step = HangUp(call_sid)
        for pause_s in (0.0, *AGAIN_S):
            await trio.sleep(pause_s)
            try:
                # What was not answered may have been done: then somebody else has the call by now.
                if not call_sid or await self._is_in_hand(call_sid):
                    await self._do_now([step])
            except CarrierError as error:
                logger.warning("hang-up failed", step=type(step).__name__, error=error.message)
            else:
                break

    async def _do_now(self, steps: list[Step]) -> None:
        """Carry out steps in turn.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        for step in steps:
            match step:
                case Look(call_sid):
                    channel = await self._hands.look(call_sid)
                    self._do_later(self._exchange.found(call_sid, channel, trio.current_time()))
                case Gone(call_sid):
                    await trio.sleep(TOLD_S)
                    channel, now = await self._hands.look(call_sid), trio.current_time()
                    self._do_later(self._exchange.found(call_sid, channel, now, has_waited=True))
                case Find(call_sid):
                    await trio.sleep(TOLD_S)
                    channel = await self._hands.look(call_sid)
                    self._do_later(self._exchange.seen(call_sid, channel, trio.current_time()))
                case OpenStream(media_id=media_id) | Join(media_id=media_id):
                    try:
                        await self._hands.do(step)
                    except CarrierError:
                        if not self._exchange.is_replaced(media_id):
                            raise
                    else:
                        self._exchange.opened(media_id)
                case Fetch() | Bring():
                    await self._left.fetch(step)
                case Tell():  # it may take a while
                    self._do_later([step])
                case StandIn(app):
                    await self._stand_ins.stand_in(app)
                case HangUp(channel_id):
                    if not await self._hands.do(step):
                        now = trio.current_time()
                        self._do_later(self._exchange.found(channel_id, None, now))
                case _:
                    await self._hands.do(step)

    def _do_later(self, steps: list[Step]) -> None:
        for step in steps:
            self._todo.send_nowait(step)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Generator[BaseException]:
    """The errors of a group, and of the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
