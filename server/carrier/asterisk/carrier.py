"""Calls on an Asterisk of one's own: its events come in, and what follows from them goes out."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import msgspec
import structlog
import trio
from websockets.exceptions import InvalidHandshake, WebSocketException
from websockets.trio.client import ClientConnection, connect

from server.carrier import CallStatus, PlacedCall, StatusUpdate
from server.carrier.account import AccountState
from server.carrier.asterisk.ari import AppState, Ari, ChannelState
from server.carrier.asterisk.exchange import (
    CALL_PREFIX,
    EVENTS,
    PLAYBACK_PREFIX,
    Answer,
    Drop,
    Exchange,
    HangUp,
    Join,
    OpenStream,
    Play,
    Step,
    Tell,
    bridge_of,
    read_event,
)
from server.carrier.asterisk.messages import CALL_VARIABLE, TICKET_VARIABLE
from server.carrier.asterisk.stream import AsteriskMediaStream
from server.carrier.transport import Transport
from server.carrier.webhooks import Desk
from server.errors import CallNotInProgress, CarrierError, ConfigurationError

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 5.0
PING_S = 5.0
"""How often the event connection is tried; a dead one is noticed within twice as long."""
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Until the event connection is tried again, each time it is lost without having been of use."""
REPLACED_PAUSE_S = 30.0
"""When another program has taken the app's events: Asterisk gives them to the last who asks."""
MAX_EVENT_BYTES = 256 * 1024
JOIN_TIMEOUT_S = 2.0
"""From the start of a stream until it is in a bridge with the caller: some ten milliseconds."""
CLEAN_UP_S = 5.0
"""For what has to be taken away though nobody waits for it any more."""
DIAL_TRIES = 3
OVERTIME_S = 60.0
"""Asterisk itself ends a call that lasts so much longer than it may, should nobody here do it."""
STATES = {"Up": CallStatus.IN_PROGRESS, "Ringing": CallStatus.RINGING, "Ring": CallStatus.RINGING}
"""Of a channel; in any other it has only begun."""


class AsteriskCarrier:
    """A :class:`server.carrier.Carrier` over ARI, and its :class:`server.carrier.webhooks.Events`.

    It is both, as every answer to an event is a request, and every request is followed by events.

    Args:
        ari: Asterisk's REST interface; opened and closed with this.
        app: What the dialplan's ``Stasis`` names.
        client: The connection of ``websocket_client.conf`` that leads here.
        number: That calls come from; empty for the trunk's own.
        dial: What is dialled, with ``{number}`` in it.
        law: ``ulaw`` or ``alaw``.
        transfer_context: Where the dialplan dials whom a caller is transferred to.
        apology: The recording that is played where a call has failed, as ARI names it.
        ring_timeout_s: How long a phone rings before the call is given up as no-answer.
        process: This process's name, which media streams show as ``process``; empty if it is alone.
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
    ) -> None:
        self.on_wait: Callable[[float], None] = lambda wait_s: None
        self._ari = ari
        self._app = app
        self._client = client
        self._number = number
        self._dial = dial
        self._law = law
        self._transfer_context = transfer_context
        self._apology = apology
        self._ring_timeout_s = ring_timeout_s
        self._process = process
        self._exchange = Exchange()
        self._joined: dict[str, trio.Event] = {}

    async def __aenter__(self) -> Self:
        """Open the connections, and look whether Asterisk is there and new enough.

        Raises:
            ConfigurationError: It is not what is needed. One that is not reached may come later.
        """
        await self._ari.__aenter__()
        try:
            await self._ari.check()
            if doubt := await self._doubt():
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
        return AccountState(f"Asterisk {self._ari.version}", doubt=await self._doubt())

    def new_stream(self, transport: Transport) -> AsteriskMediaStream:
        """The media stream of a socket that Asterisk has opened."""
        return AsteriskMediaStream(transport, self._wait_joined)

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
        not answered is simply made again. Answering machines are left to the model.

        Raises:
            CarrierError: Refused or not reached.
        """
        call_sid = f"{CALL_PREFIX}{secrets.token_hex(16)}"
        leg = self._exchange.dial(call_sid, ticket)
        caller: dict[str, str] = {"callerId": self._number} if self._number else {}
        for left in reversed(range(DIAL_TRIES)):
            try:
                await self._ari.post(
                    "channels",
                    endpoint=self._dial.format(number=destination_number),
                    app=self._app,
                    channelId=call_sid,
                    timeout=math.ceil(self._ring_timeout_s),
                    variables={"TIMEOUT(absolute)": str(math.ceil(max_duration_s + OVERTIME_S))},
                    **caller,
                )
            except CarrierError as error:
                if error.status == 409:  # the request before this one was heard
                    break
                if not left or error.status is not None:
                    self._exchange.forget(call_sid)
                    raise
            else:
                break
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
        await self._do_now(self._exchange.say(call_sid))

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        """Have the dialplan ring another number for a caller, and take the stream away.

        Raises:
            CarrierError: Refused or not reached; the stream goes on.
        """
        exchange = self._exchange
        if (leg := exchange.legs.get(call_sid)) is None:
            raise CallNotInProgress("the call is over", status=404)
        told = {"OFFHOOK_RING_S": str(math.ceil(ring_timeout_s)), "OFFHOOK_APP": self._app}
        leg.is_away = True
        try:
            # Outside Stasis a channel is told of only if it is asked for.
            source = f"channel:{call_sid}"
            await self._ari.post("applications", self._app, "subscription", eventSource=source)
            for name, value in told.items():
                await self._ari.post(
                    *("channels", call_sid, "variable"), variable=name, value=value
                )
            await self._ari.post(
                *("channels", call_sid, "continue"),
                context=self._transfer_context,
                extension=number,
                priority=1,
            )
        except CarrierError:
            leg.is_away = False
            raise
        # Who is called may have answered already: then the call is over, and whoever asked is gone.
        with trio.move_on_after(CLEAN_UP_S, shield=True):
            await self._do_now(exchange.take_stream(call_sid))

    async def reconnect(self, call_sid: str, ticket: str) -> None:
        """Give a live call another stream with this ticket; one that it has is taken away.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        exchange = self._exchange
        if call_sid not in exchange.legs:
            await self._move_here(call_sid)
        steps = exchange.take_stream(call_sid)
        if (stream := exchange.open_stream(call_sid, ticket)) is not None:
            steps.append(stream)
        await self._do_now(steps)

    async def fetch_status(self, call_sid: str) -> StatusUpdate:
        """Ask how a call stands; one that Asterisk does not know is over.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            state = (await self._ari.get(ChannelState, "channels", call_sid)).state
        except CarrierError as error:
            if error.status != 404:
                raise
            return StatusUpdate(call_sid, CallStatus.COMPLETED, None, {"asked": "yes"})
        status = STATES.get(state, CallStatus.INITIATED)
        return StatusUpdate(call_sid, status, None, {"asked": "yes"})

    async def _move_here(self, call_sid: str) -> None:
        """Take a call over that another process's app has in its hands."""
        with _in_progress():
            await self._ari.post("channels", call_sid, "move", app=self._app)
        self._exchange.adopt(call_sid, trio.current_time())

    async def _doubt(self) -> str:
        """What may be a mistake, in words; empty if nothing is."""
        try:
            await self._ari.get(dict, "sounds", self._apology.removeprefix("sound:"))
        except CarrierError as error:
            if error.status != 404:
                raise
            return (
                "ASTERISK_APOLOGY is no recording that Asterisk has: where a call fails, its "
                "caller hears nothing"
            )
        return ""

    # -- events ----------------------------------------------------------------------------

    async def run(self, desk: Desk) -> None:
        """Hear Asterisk's events and do what follows from them, until cancelled."""
        lost = 0
        while True:
            pause_s = PAUSES_S[min(lost, len(PAUSES_S) - 1)]
            lost += 1
            try:
                await self._ari.check()
                async with connect(
                    self._ari.events_url(self._app),
                    additional_headers={"Authorization": self._ari.authorization},
                    compression=None,
                    proxy=None,
                    open_timeout=CONNECT_TIMEOUT_S,
                    ping_interval=PING_S,
                    ping_timeout=PING_S,
                    max_size=MAX_EVENT_BYTES,
                ) as events:
                    if await self._hear(events, desk):
                        pause_s = REPLACED_PAUSE_S
                        logger.error(
                            "another program has taken the events of our app: ASTERISK_APP must "
                            "be one's own",
                            app=self._app,
                        )
                    else:
                        lost = 0
            except (OSError, WebSocketException, InvalidHandshake, trio.TooSlowError) as error:
                logger.warning("Asterisk's events are not heard", error=type(error).__name__)
            except (CarrierError, ConfigurationError) as error:
                logger.warning("Asterisk's events are not heard", error=str(error))
            self.on_wait(pause_s)
            await trio.sleep(pause_s)

    async def _hear(self, events: ClientConnection, desk: Desk) -> bool:
        """Hear one connection to its end; True if another program has taken its place."""
        async with trio.open_nursery() as nursery:

            async def do_all(steps: list[Step]) -> None:
                for step in steps:
                    if isinstance(step, Tell) and not step.asks:
                        await desk(step.report)
                    else:
                        nursery.start_soon(self._do_or_tell, step, desk)

            await self._ari.put(
                *("applications", self._app, "eventFilter"),
                body={"allowed": [{"type": kind} for kind in EVENTS]},
            )
            logger.info("Asterisk's events are heard", app=self._app)
            await do_all(await self._settle())
            is_replaced = False
            async for message in events:
                try:
                    event = read_event(message)
                except (msgspec.DecodeError, UnicodeError, RecursionError):
                    logger.warning("event of Asterisk's ignored: it cannot be read")
                    continue
                is_replaced |= event.type == "ApplicationReplaced"
                await do_all(self._exchange.take(event, trio.current_time()))
            logger.warning("Asterisk's events have ended")
            nursery.cancel_scope.deadline = trio.current_time() + CONNECT_TIMEOUT_S
        return is_replaced

    async def _settle(self) -> list[Step]:
        """What was missed while no events were heard."""
        exchange, now = self._exchange, trio.current_time()
        state = await self._ari.get(AppState, "applications", self._app)
        there = set(state.channel_ids)
        steps = exchange.settle(there, set(state.bridge_ids), now)
        for call_sid in exchange.unheard_of:
            if call_sid not in there:
                update = await self.fetch_status(call_sid)
                if update.status.is_final:
                    steps += exchange.gone(call_sid, now)
        return steps

    # -- steps -----------------------------------------------------------------------------

    async def _do_or_tell(self, step: Step, desk: Desk) -> None:
        """Carry a step out; one that fails ends its call, and no other."""
        try:
            await self._do(step, desk)
        except CarrierError as error:
            logger.warning("Asterisk refuses a step", step=type(step).__name__, error=error.message)
            if isinstance(step, Answer | OpenStream | Join | Play):
                try:
                    await self._ari.delete("channels", step.call_sid)
                except CarrierError as failed:
                    logger.warning("hang-up failed", error=failed.message)
        except Exception:
            logger.exception("event of Asterisk's not seen to by a bug of ours")

    async def _do(self, step: Step, desk: Desk) -> None:
        match step:
            case Tell(report):
                answer = await desk(report)
                await self._do_now(self._exchange.do(report.call_sid, answer))
            case _:
                await self._do_now([step])

    async def _do_now(self, steps: list[Step]) -> None:
        """Carry out steps that ask nobody.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        for step in steps:
            match step:
                case Answer(call_sid):
                    with _in_progress():
                        await self._ari.post("channels", call_sid, "answer")
                case OpenStream():
                    await self._open_stream(step)
                case Join(call_sid, media_id):
                    await self._join(call_sid, media_id)
                case Drop(media_id):
                    self._joined.pop(media_id, None)
                    await self._ari.delete("channels", media_id)
                    await self._ari.delete("bridges", bridge_of(media_id))
                case Play(call_sid):
                    playback_id = f"{PLAYBACK_PREFIX}{call_sid}"
                    with _in_progress():
                        await self._ari.post(
                            *("channels", call_sid, "play"),
                            media=self._apology,
                            playbackId=playback_id,
                        )
                case HangUp(channel_id, reason):
                    await self._ari.delete("channels", channel_id, reason=reason)

    async def _open_stream(self, step: OpenStream) -> None:
        self._joined[step.media_id] = trio.Event()
        arguments = f"v(process={self._process})" if self._process else ""
        await self._ari.post(
            *("channels", "externalMedia"),
            app=self._app,
            channelId=step.media_id,
            external_host=self._client,
            transport="websocket",
            encapsulation="none",
            format=self._law,
            transport_data=f"f(json){arguments}",
            variables={CALL_VARIABLE: step.call_sid, TICKET_VARIABLE: step.ticket},
        )

    async def _join(self, call_sid: str, media_id: str) -> None:
        bridge_id = bridge_of(media_id)
        await self._ari.post("bridges", type="mixing", bridgeId=bridge_id)
        both = f"{call_sid},{media_id}"
        await self._ari.post("bridges", bridge_id, "addChannel", channel=both)
        if (joined := self._joined.get(media_id)) is not None:
            joined.set()

    async def _wait_joined(self, media_id: str) -> None:
        joined = self._joined.get(media_id)
        if joined is not None:
            with trio.move_on_after(JOIN_TIMEOUT_S):
                await joined.wait()


@contextmanager
def _in_progress() -> Generator[None]:
    """Give a request about a call that is over an error of its own."""
    try:
        yield
    except CarrierError as error:
        if error.status in (404, 409, 412, 422):  # not there, or in nobody's hands any more
            raise CallNotInProgress(error.message, status=error.status) from error
        raise
