"""An HTTP request's connection to hypercorn: idle ones are closed in time.

When a response is complete, hypercorn first tells the app that the exchange is over and then, still
inside the app's last ``send``, starts the timer that closes an idle connection. Quart-Trio takes
that news for a client that has gone and cancels the request: the timer never starts, the connection
stays open for as long as the client likes, and a server that stops waits for it to the end of its
grace period. Here the news is not passed on once the response is complete: there is nothing left
to cancel. ``asgi_http_class`` is Quart's documented seam for this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from quart.asgi import ASGIHTTPConnection
from quart.wrappers import Request, base
from quart_trio.asgi import TrioASGIHTTPConnection

if TYPE_CHECKING:
    from hypercorn.typing import (
        ASGIReceiveCallable,
        ASGISendCallable,
        ASGISendEvent,
    )


class _Never(Exception):
    pass


GONE: type[Exception] = getattr(base, "ClientDisconnectedError", _Never)
"""How Quart, from 0.23 on, tells itself that nobody is there any more to be answered."""


class HttpConnection(TrioASGIHTTPConnection):
    """One request; a client that leaves cancels it only while there is something to cancel."""

    _is_complete = False

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request, in the task that brought it; another hears what more comes of it."""

        async def noting_send(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.body" and not event["more_body"]:
                self._is_complete = True
            await send(event)

        request = self._create_request_from_scope(send)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.handle_messages, nursery, request, receive)
                await self.handle_request(nursery, request, noting_send)
        except* GONE:
            pass

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Give the request its body, and end it when the client goes before it is answered."""
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if not self._is_complete:
            nursery.cancel_scope.cancel("the client has gone")

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Have the app answer it."""
        try:
            await super().handle_request(nursery, request, send)
        finally:
            # Where there is no such route, its error leads back to it by the frames it has passed.
            request.routing_exception = None
