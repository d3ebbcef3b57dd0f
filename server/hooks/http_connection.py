"""An HTTP request's connection to hypercorn: idle ones are closed in time.

When a response is complete, hypercorn first tells the app that the exchange is over and then, still
inside the app's last ``send``, starts the timer that closes an idle connection. Quart-Trio takes
that news for a client that has gone and cancels the request: the timer never starts, the connection
stays open for as long as the client likes, and a server that stops waits for it to the end of its
grace period. Here the news is not passed on once the response is complete: there is nothing left
to cancel. ``asgi_http_class`` is Quart's documented seam for this.

:class:`Inbox` is what hypercorn leaves for it to hear.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
from quart.wrappers import Request, base
from quart_trio.asgi import TrioASGIHTTPConnection

if TYPE_CHECKING:
    from hypercorn.typing import (
        ASGIReceiveCallable,
        ASGIReceiveEvent,
        ASGISendCallable,
        ASGISendEvent,
    )


class _Never(Exception):
    pass


GONE: type[Exception] = getattr(base, "ClientDisconnectedError", _Never)
"""How Quart, from 0.23 on, tells itself that nobody is there any more to be answered."""


class HttpConnection(TrioASGIHTTPConnection):
    """One request; a client that leaves cancels it only while there is something to cancel."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request."""
        complete = False

        async def noting_send(event: ASGISendEvent) -> None:
            nonlocal complete
            if event["type"] == "http.response.body" and not event["more_body"]:
                complete = True
            await send(event)

        async def needed_receive() -> ASGIReceiveEvent:
            event = await receive()
            if complete and event["type"] == "http.disconnect":
                await trio.sleep_forever()  # the request ends by itself, and this with it
            return event

        try:
            await super().__call__(needed_receive, noting_send)
        except* GONE:
            pass

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Have the app answer it."""
        try:
            await super().handle_request(nursery, request, send)
        finally:
            # Where there is no such route, its error leads back to it by the frames it has passed.
            request.routing_exception = None


class Inbox:
    """What an app is yet to hear of its request; the end of it always fits."""

    def __init__(self, size: int) -> None:
        self._in, self._out = trio.open_memory_channel[Any](size)
        self._last: Any = None

    async def put(self, event: Any) -> None:
        """Add an event; waits while there are too many, unless nobody reads them any more.

        Without a wait where there is room: a body that has come with its head is then whole
        before the app is asked, and whoever answers without reading it need not close.
        """
        if event["type"].endswith(".disconnect"):
            self._last = event
            self._in.close()
            return
        try:
            self._in.send_nowait(event)
        except trio.WouldBlock:
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await self._in.send(event)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass

    async def receive(self) -> Any:
        """Wait for an event; the end comes as often as it is asked for.

        What is there is given at once: a pass of the scheduler for each would cost more than it.
        """
        try:
            return self._out.receive_nowait()
        except trio.WouldBlock:
            pass
        except trio.EndOfChannel:
            return self._last
        try:
            return await self._out.receive()
        except trio.EndOfChannel:
            return self._last

    def close(self) -> None:
        """Take no more events: the app has ended."""
        self._out.close()
