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
