"""What a process that is gone has left at Asterisk, where it is not a call that talks.

A phone that still rings, and a caller who is with somebody else, are in no app's hands: they come
to that process's when they are answered, or are back, and are fetched from there. Whatever nobody
has taken over goes on in the dialplan, or is ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import structlog
import trio

from server.carrier import CallStatus, TransferUpdate
from server.carrier.asterisk.exchange import (
    CALL_PREFIX,
    MEDIA_PREFIX,
    STASIS,
    Exchange,
)
from server.carrier.asterisk.hands import Hands
from server.carrier.asterisk.steps import (
    Bring,
    Continue,
    Drop,
    Fetch,
    HangUp,
    StandIn,
    Step,
    Tell,
)
from server.errors import CallNotInProgress, CarrierError

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EMPTY_S = 1.0
"""A bridge that is empty for so long is nobody's: others have just been made."""


class Left:
    """Takes over what is in no app's hands, and clears up the rest.

    Args:
        hands: Ask Asterisk.
        exchange: The calls of our app.
        do_later: Has steps carried out, each by itself.
        is_served: Says whether there is a process, maybe another by now, whose app it is.
        app: Our own app.
        apps: How the apps of all processes begin, before ``-`` and the process's name.
    """

    def __init__(
        self,
        hands: Hands,
        exchange: Exchange,
        do_later: Callable[[list[Step]], None],
        is_served: Callable[[str], bool],
        *,
        app: str,
        apps: str,
    ) -> None:
        self._hands = hands
        self._exchange = exchange
        self._do_later = do_later
        self._app = app
        self._apps = apps
        self._is_served = is_served
        self._fetching: set[str] = set()

    async def await_answer(self, call_sid: str, ticket: str) -> bool:
        """Have a call's stream opened once it is answered; False if it is none that rings.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        channel = await self._hands.look(call_sid)
        if channel is None or channel.state == "Up" or not call_sid.startswith(CALL_PREFIX):
            return False
        app = await self._hands.app_of(call_sid)
        self._exchange.await_answer(call_sid, ticket, "" if app == self._app else app)
        await self._begin_to_follow(call_sid, app)
        return True

    async def await_caller(self, call_sid: str) -> None:
        """Have a caller back who is with somebody else.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        app = await self._hands.app_of(call_sid)
        now = trio.current_time()
        self._exchange.await_caller(call_sid, "" if app == self._app else app, now)
        await self._begin_to_follow(call_sid, app)
        if await self._hands.talks(call_sid):
            answered = TransferUpdate(call_sid, CallStatus.IN_PROGRESS, wants_document=False)
            self._do_later([Tell(answered)])

    async def _begin_to_follow(self, call_sid: str, app: str) -> None:
        if app and app != self._app:
            self._do_later([StandIn(app)])
        try:
            await self._hands.follow(call_sid)
            channel = await self._hands.look(call_sid)  # what was missed until now
        except CarrierError as error:
            self._exchange.forget(call_sid)
            if error.status in (404, 422):
                raise CallNotInProgress(error.message, status=error.status) from error
            raise
        except BaseException:
            self._exchange.forget(call_sid)
            raise
        self._do_later(self._exchange.found(call_sid, channel, trio.current_time()))

    async def fetch(self, step: Fetch | Bring) -> None:
        """Have a call in our own app that comes, or has come, to that of a process that is gone;
        once, as it would leave ours if it were moved there again.

        Raises:
            CallNotInProgress: It is not there, or has not come in time.
            CarrierError: Refused or not reached.
        """
        match step:
            case Bring(call_sid, arguments) if call_sid not in self._exchange.legs:
                await self._hands.move_here(call_sid, arguments)
                return
            case Bring(call_sid, arguments) | Fetch(call_sid, arguments):
                pass
        if call_sid in self._fetching:
            return
        self._fetching.add(call_sid)
        try:
            is_wanted = partial(self._exchange.is_awaited, call_sid)
            await self._hands.fetch(call_sid, arguments, is_wanted)
            if (leg := self._exchange.legs.get(call_sid)) is not None:
                leg.left_app = ""  # our app is told of it next
        finally:
            self._fetching.discard(call_sid)

    async def clear_up_after(
        self, process: str, is_somebodys: Callable[[str], Awaitable[bool]]
    ) -> list[str]:
        """Clear up what a process has left that nobody has taken over.

        Returns:
            The calls that were answered, and are owed an apology.

        Raises:
            CarrierError: Refused or not reached.
        """
        app = f"{self._apps}-{process}"
        if self._is_served(app):  # which looks after what is left by itself
            return []
        left = await self._hands.app(app)
        answered: list[str] = []
        for channel_id in left.channel_ids:
            if channel_id in self._exchange.legs:
                continue
            if channel_id.startswith(MEDIA_PREFIX):
                await self._hands.do(Drop(channel_id))
            elif not await is_somebodys(channel_id):
                answered += await self._clear_up(channel_id)
        empty = set(await self._hands.empty_bridges())
        if empty:
            await trio.sleep(EMPTY_S)
            for media_id in empty.intersection(await self._hands.empty_bridges()):
                await self._hands.do(Drop(media_id))
        return answered

    async def leave(self) -> None:
        """No events are heard any more: what came in meanwhile goes on in the dialplan."""
        try:
            state = await self._hands.app(self._app)
        except CarrierError as error:
            logger.warning("calls that came at the end are not seen to", error=error.message)
            return
        for channel_id in state.channel_ids:
            leg = self._exchange.legs.get(channel_id)
            is_new = leg is None or not (leg.is_outbound or leg.answered_at is not None)
            if is_new and not channel_id.startswith((MEDIA_PREFIX, CALL_PREFIX)):
                try:
                    await self._hands.do(Continue(channel_id))
                except CallNotInProgress:
                    pass  # it is over, or a caller who was transferred
                except CarrierError as error:
                    logger.warning("a call that came at the end is left", error=error.message)

    async def _clear_up(self, channel_id: str) -> list[str]:
        channel = await self._hands.look(channel_id)
        if channel is None:
            return []
        is_ours = channel_id.startswith(CALL_PREFIX)
        if channel.dialplan.app_name == STASIS and channel.state == "Up":
            return [channel_id]
        step: Step | None = None
        if channel.state != "Up" and is_ours:
            step = HangUp(channel_id)  # a phone that rings with nobody behind it
        elif channel.dialplan.app_name == STASIS:
            step = Continue(channel_id)  # a caller whom nobody has seen: the next line of the plan
        if step is None:
            return []
        logger.warning("a call that a process has left is cleared up", step=type(step).__name__)
        with suppress(CallNotInProgress):  # it has just gone, or another has seen to it
            await self._hands.do(step)
        return []
