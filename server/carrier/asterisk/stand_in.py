"""Hearing the app of a process that is gone, for as long as calls may come to it.

Asterisk gives a channel to no app that nobody hears: a phone that a process has had dialled, and
that is answered after its end, would be hung up, and so would a caller who comes back from a
transfer. What a channel is given to cannot be changed before. So whoever has taken such a call over
hears that app, too, until the call is in their own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio
from websockets.exceptions import WebSocketException
from websockets.trio.client import ClientConnection

from server.carrier.asterisk.ari import Ari
from server.carrier.asterisk.events import EVENTS as ALL_EVENTS
from server.carrier.asterisk.events import Channel, read_event
from server.carrier.asterisk.exchange import (
    CALL_PREFIX,
    MAX_ARGUMENTS,
    MEDIA_PREFIX,
    TRANSFERRED,
)
from server.carrier.asterisk.steps import Bring, Look, Step
from server.errors import CarrierError

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EVENTS = tuple(sorted(ALL_EVENTS))
"""All that the app's own process has told: it may be back by the time that we ask for these, and
nothing of its own may be kept from it. Their order shows who has asked last."""
LOOK_S = 0.25
"""How often it is looked whether it is still wanted."""
AGAIN_S = 2.0
"""Until the app is heard again where that has ended: another may stand in, and is not driven out
again and again."""
OTHERS_S = 3.0
"""So long a channel of which nothing is known here is left to whoever has it: then it is nobody's.
"""


class StandIns:
    """Hears the apps of processes that are gone.

    Args:
        ari: Asterisk's REST interface.
        expected: The calls of ours that may still come to an app.
        is_served: Says whether there is a process again whose app it is; None if that is not known
            now: then none is begun to be stood in for, and one that is is still.
        is_heard: Asks a process by way of Asterisk whether it hears its app.
        bring: Has steps carried out: those that bring a channel of such an app to our own.
    """

    def __init__(
        self,
        ari: Ari,
        *,
        expected: Callable[[str], list[str]],
        is_served: Callable[[str], bool | None],
        is_heard: Callable[[str], Awaitable[bool]],
        bring: Callable[[list[Step]], None],
    ) -> None:
        self._ari = ari
        self._expected = expected
        self._is_served = is_served
        self._is_heard = is_heard
        self._bring = bring
        self._apps: set[str] = set()

    async def stand_in(self, app: str) -> None:
        """Hear an app until none of our calls may come to it, whenever its own process does not;
        return at once where that is done already.
        """
        if app in self._apps:
            return
        self._apps.add(app)
        try:
            while self._expected(app):
                if not await self._has_process(app):
                    await self._hear_while_wanted(app)
                # One that has come while another heard the app waits for us there.
                self._bring([Look(call_sid) for call_sid in self._expected(app)])
                await trio.sleep(AGAIN_S)
        finally:
            self._apps.discard(app)

    async def _has_process(self, app: str) -> bool:
        """Whether an app has a process of its own, whose events are not ours to take; so, too, if
        that is not known.
        """
        try:
            return self._is_served(app) is not False or await self._is_heard(app)
        except CarrierError:
            return True

    async def _hear_while_wanted(self, app: str) -> None:
        try:
            async with self._ari.events(app) as events, trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, events, app, nursery)
                while self._expected(app) and not self._is_served(app):  # noqa: ASYNC110
                    await trio.sleep(LOOK_S)
                nursery.cancel_scope.cancel("no call may come to it, or it has a process again")
        except* (OSError, WebSocketException, trio.TooSlowError, CarrierError) as group:
            logger.warning("the app of a process that is gone is not heard", error=repr(group))

    async def _hear(self, events: ClientConnection, app: str, nursery: trio.Nursery) -> None:
        await self._ari.allow_events(app, EVENTS)
        logger.info("the app of a process that is gone is heard", app=app)
        there: set[str] = set()
        async for message in events:
            event = read_event(message)
            if event is None or event.channel is None:
                continue
            channel = event.channel
            if event.type == "StasisEnd":
                there.discard(channel.id)
            elif event.type == "StasisStart":
                there.add(channel.id)
                nursery.start_soon(self._see_to, channel, event.args, there)
        nursery.cancel_scope.cancel("the app is another's, or Asterisk is gone")

    async def _see_to(self, channel: Channel, args: list[str], there: set[str]) -> None:
        """Bring a channel here, unless whoever has taken it over does; a new call is nobody's."""
        if channel.id.startswith((CALL_PREFIX, MEDIA_PREFIX)) or args[:1] == [TRANSFERRED]:
            await trio.sleep(OTHERS_S)
        if channel.id in there:
            self._bring([Bring(channel.id, tuple(args[:MAX_ARGUMENTS]))])
