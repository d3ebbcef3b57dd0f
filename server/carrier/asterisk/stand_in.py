"""Hearing the app of a process that is gone, for as long as calls may come to it.

Asterisk gives a channel to no app that nobody hears: a phone that a process has had dialled, and
that is answered after its end, would be hung up, and so would a caller who comes back from a
transfer. What a channel is given to cannot be changed before. So whoever has taken such a call over
hears that app, too, until the call is in their own.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio
from websockets.exceptions import WebSocketException
from websockets.trio.client import ClientConnection, connect

from server.carrier.asterisk.ari import Ari
from server.carrier.asterisk.events import Channel, read_event
from server.carrier.asterisk.exchange import (
    CALL_PREFIX,
    MAX_ARGUMENTS,
    MEDIA_PREFIX,
    TRANSFERRED,
)
from server.carrier.asterisk.steps import Bring, Step
from server.errors import CarrierError

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EVENTS = ("StasisStart", "StasisEnd", "ApplicationReplaced")
LOOK_S = 0.25
"""How often it is looked whether it is still wanted."""
AGAIN_S = 2.0
"""Until the app is heard again where that has ended: another may stand in, and is not driven out
again and again."""
OTHERS_S = 3.0
"""So long a channel of which nothing is known here is left to whoever has it: then it is nobody's.
"""
CONNECT_TIMEOUT_S = 5.0
MAX_EVENT_BYTES = 256 * 1024


class StandIns:
    """Hears the apps of processes that are gone.

    Args:
        ari: Asterisk's REST interface.
        is_wanted: Says whether any call of ours may still come to an app.
        is_served: Says whether there is a process again whose app it is.
        bring: Has steps carried out: those that bring a channel of such an app to our own.
    """

    def __init__(
        self,
        ari: Ari,
        *,
        is_wanted: Callable[[str], bool],
        is_served: Callable[[str], bool],
        bring: Callable[[list[Step]], None],
    ) -> None:
        self._ari = ari
        self._is_wanted = is_wanted
        self._is_served = is_served
        self._bring = bring
        self._apps: set[str] = set()

    async def stand_in(self, app: str) -> None:
        """Hear an app until none of our calls may come to it; at once where it is heard already."""
        if app in self._apps:
            return
        self._apps.add(app)
        try:
            while self._is_wanted(app):
                if self._is_served(app):
                    await trio.sleep(LOOK_S)
                    continue
                await self._hear_while_wanted(app)
                if self._is_wanted(app):
                    await trio.sleep(AGAIN_S)
        finally:
            self._apps.discard(app)

    async def _hear_while_wanted(self, app: str) -> None:
        try:
            async with (
                connect(
                    self._ari.events_url(app),
                    additional_headers={"Authorization": self._ari.authorization},
                    compression=None,
                    proxy=None,
                    open_timeout=CONNECT_TIMEOUT_S,
                    close_timeout=CONNECT_TIMEOUT_S,
                    max_size=MAX_EVENT_BYTES,
                ) as events,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._hear, events, app, nursery)
                while self._is_wanted(app):  # noqa: ASYNC110
                    await trio.sleep(LOOK_S)
                nursery.cancel_scope.cancel("all calls are in our own app, or over")
        except* (OSError, WebSocketException, trio.TooSlowError, CarrierError) as group:
            logger.warning("the app of a process that is gone is not heard", error=repr(group))

    async def _hear(self, events: ClientConnection, app: str, nursery: trio.Nursery) -> None:
        await self._ari.put(
            *("applications", app, "eventFilter"),
            body={"allowed": [{"type": kind} for kind in EVENTS]},
        )
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
