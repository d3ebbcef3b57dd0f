"""What a process that is gone has left at Asterisk, where it is not a call that talks.

A phone that still rings, and a caller who is with somebody else, are in no app's hands: they come
to that process's when they are answered, or are back, and are fetched from there. Whatever nobody
has taken over goes on in the dialplan, or is ended.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
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
from server.carrier.asterisk.leg import Leg
from server.carrier.asterisk.steps import (
    Bring,
    Continue,
    Drop,
    Fetch,
    HangUp,
    Look,
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
        is_served: Says whether there is a process, maybe another by now, whose app it is; None if
            that is not known now.
        app: Our own app.
        apps: How the apps of all processes begin, before ``-`` and the process's name.
    """

    def __init__(
        self,
        hands: Hands,
        exchange: Exchange,
        do_later: Callable[[list[Step]], None],
        is_served: Callable[[str], bool | None],
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

    async def bring_here(self, call_sid: str) -> bool:
        """Have a call in our app's hands; returns whether another process's had it.

        Raises:
            CallNotInProgress: The call is over, or its phone still rings.
            CarrierError: Refused or not reached.
        """
        before = self._exchange.legs.get(call_sid)
        if before is not None and not before.has_left:
            return False
        # Before it is asked for: that it starts here is then no news.
        leg = self._exchange.adopt(call_sid, trio.current_time())
        try:
            if before is None and await self._hands.has(call_sid):
                leg.is_here = True
            else:
                await self._move_here(leg)
            if call_sid.startswith(CALL_PREFIX):
                await self._check_answered(call_sid)
        except BaseException:
            if before is None:
                self._exchange.forget(call_sid)
            raise
        return True

    async def _move_here(self, leg: Leg) -> None:
        """Move a call to our app, which is told of it: that one comes that had left is no news."""
        was_out, leg.has_left, leg.is_here = leg.has_left, False, False
        try:
            await self._hands.move_here(leg.call_sid)
        except BaseException:
            if was_out and not leg.is_here:  # and it has not come all the same
                leg.has_left = leg.is_here = True
                self._do_later([Look(leg.call_sid)])  # the one before may have been misled
            raise

    async def _check_answered(self, call_sid: str) -> None:
        channel = await self._hands.look(call_sid)
        if channel is None or channel.state != "Up":  # our app hears of a phone that rings, too
            raise CallNotInProgress("nobody has answered it", status=409)
        self._do_later(self._exchange.taken_over(call_sid))

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
        if not (app := await self._hands.app_of(call_sid)):  # which is set before they are sent
            await self.bring_here(call_sid)
            self._do_later(self._exchange.caller_stayed(call_sid))
            return
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
            if (leg := self._exchange.legs.get(call_sid)) is not None:
                leg.is_followed = True
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
            CallNotInProgress: It is over, or another has it.
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
        self,
        process: str,
        is_somebodys: Callable[[str], Awaitable[bool]],
        apologise: Callable[[str], Awaitable[None]],
    ) -> bool:
        """Clear up what a process has left that nobody has taken over; nothing where somebody hears
        its app, or talks with its callers: it may be cut off from all others, but not from here.

        Args:
            process: Its name.
            is_somebodys: Says whether a call is some process's.
            apologise: Ends an answered call with the apology.

        Returns:
            False if something is left, and it is to be tried again.

        Raises:
            CarrierError: Refused or not reached.
        """
        app = f"{self._apps}-{process}"
        if (is_served := self._is_served(app)) is not False:
            return is_served is True  # it looks after what is left by itself
        if await self._hands.is_heard(app):
            logger.info("a process that is silent still hears its calls", app=app)
            return False
        left = (await self._hands.app(app)).channel_ids
        if not (await self._hands.joined()).isdisjoint(left):
            logger.info("calls are left alone: somebody still talks with a caller", app=app)
            return False
        random.shuffle(left)  # others do the same
        is_clear = True
        for channel_id in left:
            clear: Awaitable[object]
            if channel_id.startswith(MEDIA_PREFIX):
                clear = self._hands.do(Drop(channel_id))
            else:
                clear = self._clear_up(channel_id, app, is_somebodys, apologise)
            is_clear &= await _is_done(clear)
        return await _is_done(self._drop_empty_bridges(app)) and is_clear

    async def _drop_empty_bridges(self, app: str) -> None:
        if empty := set(await self._hands.empty_bridges(app)):
            await trio.sleep(EMPTY_S)
            for media_id in empty.intersection(await self._hands.empty_bridges(app)):
                await self._hands.do(Drop(media_id))

    async def leave(self) -> None:
        """No events are heard any more: what came in meanwhile goes on in the dialplan."""
        try:
            state = await self._hands.app(self._app)
        except CarrierError as error:
            logger.warning("calls that came at the end are not seen to", error=error.message)
            return
        for channel_id in state.channel_ids:
            leg = self._exchange.legs.get(channel_id)
            is_new = leg is None or leg.is_new  # the dialplan may have answered it
            if is_new and not channel_id.startswith((MEDIA_PREFIX, CALL_PREFIX)):
                try:
                    await self._hands.do(Continue(channel_id))
                except CallNotInProgress:
                    pass  # it is over, or a caller who was transferred
                except CarrierError as error:
                    logger.warning("a call that came at the end is left", error=error.message)

    async def _clear_up(
        self,
        channel_id: str,
        app: str,
        is_somebodys: Callable[[str], Awaitable[bool]],
        apologise: Callable[[str], Awaitable[None]],
    ) -> None:
        channel = await self._hands.look(channel_id)
        if channel is None:
            return
        is_in_hand = channel.dialplan.app_name == STASIS
        rings = channel.state != "Up" and channel_id.startswith(CALL_PREFIX)
        # Another may have taken it, or clear up as we do: so it is asked last of all.
        if not (is_in_hand or rings) or await is_somebodys(channel_id):
            return
        is_there = channel_id in (await self._hands.app(app)).channel_ids
        if not is_there or channel_id in self._exchange.legs:
            return
        if is_in_hand and channel.state == "Up":
            await apologise(channel_id)
            return
        # A phone that rings with nobody behind it; or a caller whom nobody has seen, for whom the
        # next line of the plan is done.
        step = HangUp(channel_id) if rings else Continue(channel_id)
        logger.warning("a call that a process has left is cleared up", step=type(step).__name__)
        await self._hands.do(step)


async def _is_done(clear: Awaitable[object]) -> bool:
    """Clear one thing up; False, and no error, if that has failed: others are still to come."""
    try:
        await clear
    except CallNotInProgress:
        pass  # it has just gone, or another has seen to it
    except CarrierError as error:
        logger.warning("something that a process has left is still there", error=error.message)
        return False
    return True
