"""The media WebSocket on the ordinary path: every queued message is delivered, then the end.

Quart-Trio's own connection class cancels the handler when the socket closes and throws away what
is queued: the carrier's ``stop`` and the caller's last words. This one ends the queue instead, so a
disconnect is an event like any other, and it does without a signal per message.
``asgi_websocket_class`` is Quart's documented seam for this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.protocol import ws_stream
from quart_trio.asgi import TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioWebsocket

from server.errors import StreamEnded

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable

QUEUED_MESSAGES = 64
"""1.3 s of 20 ms frames; then the socket is no longer read, and TCP holds the carrier back."""


def refuse_compression() -> None:
    """Have hypercorn negotiate no WebSocket extension: it has no setting for that.

    permessage-deflate costs CPU and memory for nothing on 20 ms frames, and lets a stranger have
    small messages unpacked into large ones.
    """

    def none_of_them(requested: Iterable[str], supported: Iterable[object]) -> None:
        return None

    module: Any = ws_stream  # to mypy, what it imports is not its to give away
    module.server_extensions_handshake = none_of_them


class MediaWebsocket(TrioWebsocket):
    """A Quart WebSocket whose messages can also be read without waiting."""

    inbox: trio.MemoryReceiveChannel[str | bytes]


class MediaWebsocketConnection(TrioASGIWebsocketConnection):
    """Feeds one WebSocket; its handler ends by itself, never because the peer left.

    Only what Quart-Trio 0.12 and 0.13 have in common is used: they differ in how messages reach
    the WebSocket, and neither way keeps them.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Run the handler and feed it, until it returns."""
        websocket = cast(MediaWebsocket, self._create_websocket_from_scope(send))
        feed, websocket.inbox = trio.open_memory_channel[str | bytes](QUEUED_MESSAGES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, receive, feed)
            try:
                await self.handle_websocket(nursery, websocket, send)
            finally:
                # Where there is no such route, its error leads back to it by the frames it passed.
                websocket.routing_exception = None

    async def _feed(
        self, receive: ASGIReceiveCallable, feed: trio.MemorySendChannel[str | bytes]
    ) -> None:
        """Pass messages on until the socket closes, then end the queue."""
        async with feed:
            while True:
                event = await receive()
                if event["type"] == "websocket.receive":
                    text = event.get("text")
                    await feed.send(text if text is not None else cast(bytes, event.get("bytes")))
                elif event["type"] == "websocket.disconnect":
                    return


class AcceptedSocket:
    """One accepted media WebSocket, without Quart."""

    def __init__(self, websocket: MediaWebsocket) -> None:
        self._websocket = websocket
        self._closed = False

    async def receive(self) -> str | bytes:
        """Wait for the next message.

        Raises:
            StreamEnded: The socket is closed and everything it sent has been received.
        """
        try:
            return await self._websocket.inbox.receive()
        except trio.EndOfChannel:
            raise StreamEnded("the media socket is closed") from None

    def receive_nowait(self) -> str | bytes | None:
        """The next message if it is already here, else None; raises as :meth:`receive` does."""
        try:
            return self._websocket.inbox.receive_nowait()
        except trio.WouldBlock:
            return None
        except trio.EndOfChannel:
            raise StreamEnded("the media socket is closed") from None

    async def send(self, text: str | bytes) -> None:
        """Send a text frame, or a binary one; on a closed socket hypercorn drops it silently.

        Raises:
            StreamEnded: We have closed the socket.
        """
        if self._closed:
            raise StreamEnded("the media socket is closed")
        await cast(Any, self._websocket).send(text)  # whichever it is

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with a WebSocket close code; closing again does nothing."""
        if not self._closed:
            self._closed = True
            await self._websocket.close(code, reason)
