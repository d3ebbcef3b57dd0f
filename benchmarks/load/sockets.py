"""WebSockets for the load generator, whose own cost must not be what is measured.

picows on uvloop where they are installed; else the sans-I/O half of ``websockets`` on asyncio,
which does the same at about four times the cost, so that fewer calls can be generated.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

try:
    import picows
except ImportError:
    picows = None  # type: ignore[assignment]

MAX_BYTES = 16 * 2**20


class Socket(Protocol):
    """An open WebSocket; nothing here waits."""

    def send(self, text: bytes) -> None: ...

    def send_bare(self, content: bytes) -> None:
        """Send a binary message."""

    def send_prepared(self, message: Any) -> None:
        """Send what :meth:`Backend.prepare` made of a text."""

    def close(self) -> None: ...


class Peer(Protocol):
    """Who owns a socket."""

    def opened(self, socket: Socket) -> None: ...

    def received(self, message: bytes) -> None: ...

    def closed(self) -> None: ...


Welcome = Callable[[str, Mapping[str, str]], Peer | None]
"""Path and headers of a connection to whom it is for; None refuses it."""


class Backend(Protocol):
    """One of the two ways."""

    name: str

    def prepare(self, text: bytes) -> Any:
        """Make a message that servers here can send again and again."""

    async def connect(
        self,
        url: str,
        headers: Mapping[str, str],
        peer: Peer,
        tls: ssl.SSLContext | None = None,
    ) -> None: ...

    async def serve(self, welcome: Welcome, tls: ssl.SSLContext | None) -> asyncio.Server:
        """Listen on loopback, on a free port."""


def port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


def backend() -> Backend:
    """The faster one that is installed."""
    return Websockets() if picows is None else Picows()


# --- picows ---------------------------------------------------------------------------------------

if picows is not None:

    class _PicowsSocket:
        def __init__(self, transport: picows.WSTransport) -> None:
            self._transport = transport
            self._send = transport.send
            self._send_in_place = transport.send_reuse_external_bytearray

        def send(self, text: bytes) -> None:
            self._send(picows.WSMsgType.TEXT, text)

        def send_bare(self, content: bytes) -> None:
            self._send(picows.WSMsgType.BINARY, content)

        def send_prepared(self, message: bytearray) -> None:
            self._send_in_place(picows.WSMsgType.TEXT, message, Picows.HEADER_BYTES)

        def close(self) -> None:
            self._transport.send_close(picows.WSCloseCode.OK)
            self._transport.disconnect()

    class _Listener(picows.WSListener):
        def __init__(self, peer: Peer) -> None:
            super().__init__()
            self._peer = peer

        def on_ws_connected(self, transport: picows.WSTransport) -> None:
            self._peer.opened(_PicowsSocket(transport))

        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type in (picows.WSMsgType.TEXT, picows.WSMsgType.BINARY):
                self._peer.received(frame.get_payload_as_bytes())
            elif frame.msg_type == picows.WSMsgType.CLOSE:
                transport.send_close()
                transport.disconnect()

        def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
            self._peer.closed()


class Picows:
    """C framing, and a send that goes to the kernel at once."""

    name = "picows"
    HEADER_BYTES = 14

    def prepare(self, text: bytes) -> bytearray:
        return bytearray(self.HEADER_BYTES) + text

    async def connect(
        self,
        url: str,
        headers: Mapping[str, str],
        peer: Peer,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        await picows.ws_connect(
            lambda: _Listener(peer),
            url,
            extra_headers=headers,
            max_frame_size=MAX_BYTES,
            ssl_context=tls,
        )

    async def serve(self, welcome: Welcome, tls: ssl.SSLContext | None) -> asyncio.Server:
        def listener(request: picows.WSUpgradeRequest) -> picows.WSListener | None:
            peer = welcome(request.path.decode(), request.headers)
            return None if peer is None else _Listener(peer)

        return await picows.ws_create_server(
            listener, "127.0.0.1", 0, ssl=tls, max_frame_size=MAX_BYTES, backlog=1024
        )


# --- websockets, without its I/O ------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """Either end of a WebSocket over an asyncio transport."""

    def __init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._peer: Peer | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if isinstance(event, Frame):
                if event.opcode in (Opcode.TEXT, Opcode.BINARY) and self._peer is not None:
                    self._peer.received(bytes(event.data))
            else:
                self.shake_hands(event)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        if self._peer is not None:
            self._peer.closed()
        if not self.done.done():
            self.done.set_exception(ConnectionError("closed during the handshake"))

    def send(self, text: bytes) -> None:
        self.protocol.send_text(text)
        self._flush()

    send_prepared = send

    def send_bare(self, content: bytes) -> None:
        self.protocol.send_binary(content)
        self._flush()

    def close(self) -> None:
        self.protocol.send_close(1000)
        self._flush()

    def open(self, peer: Peer) -> None:
        self._peer = peer
        peer.opened(self)
        self.done.set_result(None)

    def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    protocol: ClientProtocol | ServerProtocol

    def shake_hands(self, event: Request | Response) -> None:
        raise NotImplementedError


class _Client(_Connection):
    def __init__(self, url: str, headers: Mapping[str, str], peer: Peer) -> None:
        super().__init__()
        self.protocol = ClientProtocol(parse_uri(url), max_size=MAX_BYTES)
        self._headers = headers
        self._wanted = peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        request = self.protocol.connect()  # type: ignore[union-attr]
        request.headers.update(Headers(self._headers))
        self.protocol.send_request(request)  # type: ignore[union-attr]
        self._flush()

    def shake_hands(self, event: Request | Response) -> None:
        if self.protocol.handshake_exc is not None:
            self.done.set_exception(self.protocol.handshake_exc)
        else:
            self.open(self._wanted)


class _Server(_Connection):
    def __init__(self, welcome: Welcome) -> None:
        super().__init__()
        self.protocol = ServerProtocol(max_size=MAX_BYTES)
        self._welcome = welcome

    def shake_hands(self, event: Request | Response) -> None:
        assert isinstance(event, Request)
        assert isinstance(self.protocol, ServerProtocol)
        peer = self._welcome(event.path, event.headers)
        answer = self.protocol.accept(event) if peer else self.protocol.reject(404, "Not Found\n")
        self.protocol.send_response(answer)
        if peer is not None and self.protocol.handshake_exc is None:
            self._flush()
            self.open(peer)
        else:
            self.done.cancel()


class Websockets:
    """Pure Python: it works everywhere."""

    name = "websockets"

    def prepare(self, text: bytes) -> bytes:
        return text

    async def connect(
        self,
        url: str,
        headers: Mapping[str, str],
        peer: Peer,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        address = parse_uri(url)
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: _Client(url, headers, peer), address.host, address.port, ssl=tls
        )
        await client.done

    async def serve(self, welcome: Welcome, tls: ssl.SSLContext | None) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            lambda: _Server(welcome), "127.0.0.1", 0, ssl=tls, backlog=1024
        )
