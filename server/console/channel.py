"""``GET /events``: one live channel to a browser, as Server-Sent Events, of all processes' calls.

A channel keeps nothing but how far its reader has got in each process's journal, and says so with
whatever it sends: a browser that has lost its channel shows that again (``Last-Event-ID``), to any
process of the server, and goes on there. What a reader does not take is not kept for them: the
write waits, and whoever takes nothing for twenty seconds has lost the connection
(:mod:`server.hooks.connections`). Not to be confused with the events that are sent to receivers
(:mod:`server.events`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Any, cast

import structlog
import trio
from quart import Quart, Response, g, request
from quart.wrappers.response import ResponseBody
from quart_schema import hide

from server.cluster.passing_on import PASSED_ON, Hop, WorkerLost
from server.console.journal import Batch
from server.console.live import Live
from server.headers import single
from server.service import Service
from server.web.api import Answer, error_body, retry_after
from server.web.elsewhere import MAX_ASKED

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PATH = "/events"
CONTENT_TYPE = "text/event-stream; charset=utf-8"
MAX_CHANNELS = 50
"""Of one process: a page each."""
MAX_OF_CLIENT = 25
"""Of those, that one key may have: what opens channel after channel leaves others theirs."""
BEGIN_S = 10.0
"""Within so long an answer begins whose place is kept."""
CHANNEL_S = 900.0
"""Then the browser comes again, and is asked again who it is."""
ASK_WAIT_S = 5.0
"""How long another process holds a question for news until it has some."""
ASK_TIMEOUT_S = 15.0
ASK_PAUSE_S = 0.25
"""From one question to the next, so that what happens meanwhile comes together."""
LOST_PAUSE_S = 1.0
BUSY_PAUSE_S = 5.0
RETRY_MS = 1_000
"""When a browser comes again that has lost its channel."""
MAX_NUMBER = 10**15
_POSITION = re.compile(r"([A-Za-z0-9.-]{1,100})~([0-9a-f]{1,16})~([0-9]{1,15})")
MAX_POSITIONS = 100

_News = tuple[str, str, Batch | None]
"""Of which process: its name and which one of that name; nothing more if it is gone."""
Positions = dict[str, tuple[str, int]]
"""By the name of a process: which one of that name, and up to which of its news one knows."""


def read_positions(text: str | None) -> Positions:
    """What a browser says that it knows; nothing of what is no position."""
    found = (_POSITION.fullmatch(part) for part in (text or "").split(",")[:MAX_POSITIONS])
    return {match[1]: (match[2], int(match[3])) for match in found if match is not None}


def written_positions(positions: Mapping[str, tuple[str, int]]) -> str:
    """Positions as a browser shows them again."""
    return ",".join(f"{name}~{born}~{number}" for name, (born, number) in positions.items())


def message(kind: str, data: str, positions: Positions | None = None) -> bytes:
    """One event as it goes over the channel; data has no line break in it."""
    known = "" if positions is None else f"id: {written_positions(positions)}\n"
    return f"event: {kind}\n{known}data: {data}\n\n".encode()


class Places:
    """Whose channels are open here, or about to be."""

    def __init__(self) -> None:
        self._taken: dict[object, tuple[str, float]] = {}

    def take(self, channel: object, client: str, now: float) -> bool:
        """Keep a place for a channel that has not begun, if there is one for this client."""
        for other in [one for one, (_, until) in self._taken.items() if until <= now]:
            del self._taken[other]  # whoever had asked for it went before it began
        of_client = sum(name == client for name, _ in self._taken.values())
        if len(self._taken) >= MAX_CHANNELS or of_client >= MAX_OF_CLIENT:
            return False
        self._taken[channel] = client, now + BEGIN_S
        return True

    def begin(self, channel: object, client: str) -> None:
        """The channel is open, and keeps its place until it is left."""
        self._taken[channel] = client, math.inf

    def leave(self, channel: object) -> None:
        """The channel is over."""
        self._taken.pop(channel, None)


class Channel(ResponseBody):
    """The body of one answer to ``GET /events``.

    Args:
        service: This process's.
        live: This process's news.
        scope: Of the request, which goes on to other processes.
        known: What the reader knows already.
        places: Of all that are open here.
        client: Whose it is.
    """

    def __init__(
        self,
        service: Service,
        live: Live,
        scope: Mapping[str, Any],
        known: Positions,
        places: Places,
        client: str,
    ) -> None:
        self._service = service
        self._live = live
        self._scope = scope
        self._known: Positions = {
            name: (born, number)
            for name, (born, number) in known.items()
            if (member := service.cluster.member(name)) is not None and f"{member.born:x}" == born
        }
        self._positions = dict(self._known)
        self._misses_some = len(self._known) < len(known)
        self._places, self._client = places, client
        self._stack = AsyncExitStack()
        self._until = trio.current_time() + CHANNEL_S

    async def __aenter__(self) -> AsyncIterator[bytes]:
        """Begin to ask everybody for news."""
        self._places.begin(self, self._client)
        self._stack.callback(self._places.leave, self)
        nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._stack.callback(nursery.cancel_scope.cancel, "the channel is over")
        # Nothing waits in it: whoever has news waits until they are taken.
        into, news = trio.open_memory_channel[_News](0)
        nursery.start_soon(self._hear_us, into)
        if self._service.cluster.are_several:
            nursery.start_soon(self._hear_others, into)
        return await self._stack.enter_async_context(aclosing(self._messages(news)))

    async def __aexit__(  # type: ignore[override]
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        """Ask nobody any more."""
        return await self._stack.__aexit__(exc_type, exc_value, tb)

    async def _messages(self, news: trio.MemoryReceiveChannel[_News]) -> AsyncGenerator[bytes]:
        yield f"retry: {RETRY_MS}\n\n".encode()
        if self._misses_some:  # of a process that is gone, or another by now
            yield message("gap", json.dumps({"process": ""}))
        async for name, born, batch in news:
            if batch is None:
                self._positions.pop(name, None)
                yield message("gap", json.dumps({"process": name}), self._positions)
                continue
            self._positions[name] = born, batch.upto
            if batch.has_gap:
                yield message("gap", json.dumps({"process": name}), self._positions)
            if batch.news:
                yield b"".join(self._written(batch))
            is_last = self._service.is_over or self._service.cluster.stands_aside
            if is_last or trio.current_time() >= self._until:
                return

    def _written(self, batch: Batch) -> Iterator[bytes]:
        for news in batch.news[:-1]:
            yield message("news", news)
        yield message("news", batch.news[-1], self._positions)

    # -- this process ------------------------------------------------------------------------

    async def _hear_us(self, into: trio.MemorySendChannel[_News]) -> None:
        me = self._service.cluster.me
        born = f"{me.born:x}"
        after = self._live.watch()
        if (known := self._known.get(me.name)) is not None:
            _, after = known
        else:
            await into.send((me.name, born, Batch(after, [], has_gap=True)))
        while True:
            batch = await self._live.batch(after, wait_s=ASK_WAIT_S)
            after = batch.upto
            await into.send((me.name, born, batch))

    # -- the others --------------------------------------------------------------------------

    async def _hear_others(self, into: trio.MemorySendChannel[_News]) -> None:
        heard: dict[str, trio.CancelScope] = {}

        async def hear(name: str) -> None:
            with heard[name]:
                await self._hear_other(name, into)
            del heard[name]

        async with trio.open_nursery() as nursery:
            while True:
                cluster = self._service.cluster
                for name in (*cluster.siblings(), *cluster.there()[:MAX_ASKED]):
                    if name not in heard:
                        heard[name] = trio.CancelScope()
                        nursery.start_soon(hear, name)
                await trio.sleep(LOST_PAUSE_S)

    async def _hear_other(self, name: str, into: trio.MemorySendChannel[_News]) -> None:
        """Have the reader hear a process until it is gone."""
        cluster = self._service.cluster
        if (member := cluster.member(name)) is None:
            return
        born, was_heard = f"{member.born:x}", False
        _, after = self._known.get(name, ("", None))
        while cluster.member(name) == member:
            try:
                batch = await self._ask(name, after)
            except (WorkerLost, KeyError, TypeError, ValueError):
                await trio.sleep(LOST_PAUSE_S)
                continue
            was_heard, after = True, batch.upto
            await into.send((name, born, batch))
            await trio.sleep(ASK_PAUSE_S)
        if was_heard:  # its calls are over, or another's by now
            await into.send((name, born, None))

    async def _ask(self, name: str, after: int | None) -> Batch:
        """Ask another process for its news.

        Raises:
            WorkerLost: It is gone.
            KeyError, TypeError, ValueError: It has said something else.
        """
        query = b"" if after is None else b"after=%d" % after
        asked = {**self._scope, "path": PATH, "raw_path": PATH.encode(), "query_string": query}
        cluster = self._service.cluster
        hop = Hop(cluster.me.name)
        answer = await cluster.peers.ask(name, asked, b"", hop, timeout_s=ASK_TIMEOUT_S)
        if answer.status_code != 200:
            raise ValueError("a process has no news for the console")
        return Batch.of(answer.json())


def add_channel(app: Quart, service: Service, live: Live) -> None:
    """Add the route of the live channel, and of what its processes tell each other for it."""
    places = Places()

    @app.get(PATH)
    @hide
    async def events() -> Any:
        """What happens to calls, as it happens, in all processes."""
        if PASSED_ON in request.scope:
            return await news_for_another()
        if request.method == "HEAD":
            return Response(content_type=CONTENT_TYPE)
        scope = cast("dict[str, Any]", request.scope)
        known = read_positions(single(request.headers, "Last-Event-ID"))
        channel = Channel(service, live, scope, known, places, g.client)
        if not places.take(channel, g.client, trio.current_time()):
            most = f"{MAX_CHANNELS} channels open here, or {MAX_OF_CLIENT} of this key"
            body = error_body("too-many", f"there are {most}")
            return Answer(body, 503, retry_after(BUSY_PAUSE_S)).response()
        response = Response(channel, content_type=CONTENT_TYPE)
        response.cache_control.no_store = True
        response.headers["X-Accel-Buffering"] = "no"  # nginx would keep it back
        return response

    async def news_for_another() -> Any:
        text = request.args.get("after", "")
        if text and not (text.isascii() and text.isdigit() and int(text) <= MAX_NUMBER):
            return error_body("invalid", "after must be the number of a piece of news"), 422
        begin = live.watch()
        if not text:
            return Batch(begin, [], has_gap=True).as_dict()
        return (await live.batch(int(text), wait_s=ASK_WAIT_S)).as_dict()
