"""How Twilio reaches the server: what a certificate is worth, and a media stream's socket."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import cache
from urllib.parse import urlsplit

import httpx2
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from server.errors import StreamEnded
from server.settings.values import is_loopback

CONNECT_TIMEOUT_S = 5.0
# What is still in a connection that is cut is a bug to the library.
_logger = logging.getLogger(f"{__name__}.websocket")
_logger.setLevel(logging.CRITICAL)


@cache
def client_context(*, is_here: bool) -> ssl.SSLContext:
    """What a server's certificate is verified by.

    A server on this machine need not have one that anybody vouches for: it is our own. To read
    all the certificates there are takes as long as a call.
    """
    if not is_here:
        return httpx2.create_ssl_context(trust_env=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class WebSocketTransport:
    """A phone's transport over a WebSocket that this side has opened."""

    def __init__(
        self, websocket: ClientConnection, inbox: trio.MemoryReceiveChannel[str | bytes]
    ) -> None:
        self._websocket = websocket
        self._inbox = inbox

    @property
    def closed_by_peer(self) -> tuple[int, str] | None:
        """Close code and reason of the other side, 1006 if it just went; None while open."""
        if self._websocket.close_code is None:
            return None
        return self._websocket.close_code, self._websocket.close_reason or ""

    async def receive(self) -> str | bytes:
        """Wait for the next message; raises StreamEnded after the last one."""
        try:
            return await self._inbox.receive()
        except trio.EndOfChannel:
            raise StreamEnded("the socket is closed") from None

    def receive_nowait(self) -> str | bytes | None:
        """The next message if it is already here; raises StreamEnded after the last one."""
        try:
            return self._inbox.receive_nowait()
        except trio.WouldBlock:
            return None
        except trio.EndOfChannel:
            raise StreamEnded("the socket is closed") from None

    async def send(self, text: str | bytes) -> None:
        """Send a text or binary frame; raises StreamEnded when the socket is closed."""
        try:
            await self._websocket.send(text)
        except ConnectionClosed as error:
            raise StreamEnded("the socket is closed") from error

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket; closing again does nothing."""
        await self._websocket.aclose(code, reason)

    async def abort(self) -> None:
        """Let the TCP connection go without a close frame.

        To close the stream under the library may leave its reader waiting for ever; whoever reads
        a connection that is shut down finds its end.
        """
        stream = self._websocket.stream
        tcp = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        assert isinstance(tcp, trio.SocketStream)
        await trio.lowlevel.checkpoint()
        with suppress(OSError):  # it has gone already
            tcp.socket.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def open_websocket(url: str, signature: str) -> AsyncGenerator[WebSocketTransport]:
    """Connect to a media stream server as Twilio does.

    Raises:
        OSError, InvalidHandshake, InvalidURI, TimeoutError: It cannot be reached or says no.
    """
    async with connect(
        url,
        ssl=client_context(is_here=is_loopback(url)) if urlsplit(url).scheme == "wss" else None,
        additional_headers={"X-Twilio-Signature": signature},
        user_agent_header="Twilio.TmeWs/1.0",
        compression=None,
        proxy=None,
        open_timeout=CONNECT_TIMEOUT_S,
        close_timeout=1.0,
        ping_interval=None,
        max_size=16 * 2**20,
        # Unbounded: a reader that waits for room would not see that the connection was cut, and
        # nobody would make room any more.
        max_queue=None,
        logger=_logger,
    ) as websocket:
        # A task of its own takes messages off the socket, because only then can one ask
        # whether something has come. The bound is what a burst of the server's may be ahead.
        to_inbox, inbox = trio.open_memory_channel[str | bytes](1024)

        async def read() -> None:
            with to_inbox, suppress(ConnectionClosed):
                while True:  # no generator, which a cancelled task would leave behind
                    await to_inbox.send(await websocket.recv())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            yield WebSocketTransport(websocket, inbox)
            nursery.cancel_scope.cancel()
