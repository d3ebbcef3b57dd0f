"""Open a WebSocket to the model on the media plane.

The handshake is the ``websockets`` library's own, without its I/O; frames are the codec's from then
on. TLS is OpenSSL's in C (``codec/tls.py``), or the standard library's, on a socket that does not
block: certificate and host name are verified by the context that the caller gives. A proxy on the
way sees neither: it is asked for a connection to the host (CONNECT), and what goes through that is
between the two ends.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

import structlog
import trio
from websockets.client import ClientProtocol
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidHandshake,
)
from websockets.frames import Close, CloseCode
from websockets.proxy import parse_proxy
from websockets.trio.client import connect_http_proxy
from websockets.uri import parse_uri

from codec.path import WebSocket
from codec.tls import AVAILABLE, compiled_context
from server.hooks.sockets import limit_unread
from server.media.words import MediaSocket, Plane, Wire

if TYPE_CHECKING:
    from codec.tls import ClientContext

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_RESPONSE_BYTES = 64 * 1024
"""Of the handshake's answer, head and (when refused) body."""
DEAD_PATH_TIMEOUT_S = 5.0
"""What is sent and not acknowledged for so long went into a path that is dead. Audio is sent all
the time, so that is noticed; to resume elsewhere takes half a second, TCP's own patience a quarter
of an hour."""
END_OF_HEAD = b"\r\n\r\n"


class WireSocket:
    """The model's WebSocket, as a session wants it; raises what ``websockets`` would."""

    def __init__(self, wire: Wire, *, close_timeout_s: float) -> None:
        self.wire = wire
        self._close_timeout_s = close_timeout_s

    async def send(self, message: bytes, *, text: bool) -> None:
        """Send a whole message as text; it does not wait, and what is unread has a bound.

        Raises:
            ConnectionClosed: The connection is closed.
        """
        assert text
        self.send_nowait(message)

    def send_nowait(self, message: bytes) -> None:
        """Send a text frame without blocking; what cannot be written yet is kept."""
        if not self.wire.websocket.is_open:
            raise self.closing()
        self.wire.send_text(message)

    async def recv(self, *, decode: Literal[False]) -> bytes:
        """Wait for a whole message, as bytes whatever the frame.

        Raises:
            ConnectionClosed: The connection is closed, and everything before has been given out.
        """
        if (message := await self.wire.receive()) is None:
            raise self.closing()
        return message[0]

    async def aclose(self, code: int, reason: str) -> None:
        """Close, and wait for the other side to agree, for a bounded time."""
        self.wire.send_close(code, reason)
        await self.wire.wait_ended(timeout_s=self._close_timeout_s)
        self.wire.close()

    def closing(self) -> ConnectionClosed:
        """How the connection was closed, as ``websockets`` would raise it."""
        websocket = self.wire.websocket
        received = sent = None
        if websocket.close_code not in (None, CloseCode.ABNORMAL_CLOSURE):
            received = Close(websocket.close_code, websocket.close_reason)
        if websocket.close_code_sent is not None:
            sent = Close(websocket.close_code_sent, websocket.failure or "")
        fine = received is not None and received.code in (1000, 1001)
        # The WebSocket answers the peer's close by itself; who was first tells nothing new here.
        order = None if received is None or sent is None else True
        return (ConnectionClosedOK if fine else ConnectionClosedError)(received, sent, order)


@asynccontextmanager
async def open_wire(
    plane: Plane,
    url: str,
    headers: Mapping[str, str],
    *,
    tls: ssl.SSLContext | ClientContext | None,
    max_message_bytes: int,
    connect_timeout_s: float,
    close_timeout_s: float,
    proxy: str | None = None,
) -> AsyncGenerator[WireSocket]:
    """Connect, shake hands, and put the socket on the plane; it is closed when the block ends.

    Raises:
        OSError: Nobody is there, or TLS failed.
        InvalidHandshake: The other side, or the proxy, refused or answered wrongly; redirects are
            not followed.
        trio.TooSlowError: It took longer than ``connect_timeout_s``.
    """
    with trio.fail_after(connect_timeout_s):
        sock = await _connect(url, tls, proxy)
        try:
            early = await _shake_hands(sock, url, headers)
            websocket = WebSocket(is_client=True, max_message_bytes=max_message_bytes)
            wire = plane.new_wire(sock, websocket, early)
        except BaseException:
            sock.close()
            raise
    try:
        yield WireSocket(wire, close_timeout_s=close_timeout_s)
    finally:
        wire.close()


def plane_context(default: ssl.SSLContext) -> ssl.SSLContext | ClientContext:
    """What the plane verifies with: this context, which is Python's default, or its like in C."""
    compiled = compiled_context(default)
    if compiled is None and AVAILABLE:
        keys = default.keylog_filename is not None
        logger.warning("TLS to the model is Python's, which costs more", keys_written_down=keys)
    return default if compiled is None else compiled


def notice_dead_path(stream: trio.abc.Stream) -> None:
    """Have a connection to the model end when nothing of what it is sent arrives any more."""
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        limit_unread(stream.socket, DEAD_PATH_TIMEOUT_S)


async def _connect(
    url: str, tls: ssl.SSLContext | ClientContext | None, proxy: str | None
) -> MediaSocket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    if proxy is None:
        port = parts.port or (443 if tls else 80)
        stream = await trio.open_tcp_stream(parts.hostname, port)  # addresses in parallel, RFC 8305
    else:
        tunnel = await connect_http_proxy(parse_proxy(proxy), parse_uri(url))
        assert isinstance(tunnel, trio.SocketStream)  # the proxy's own scheme is http://
        stream = tunnel
    notice_dead_path(stream)
    plain = socket.socket(fileno=stream.socket.detach())
    plain.setblocking(False)
    if tls is None:
        return plain
    try:
        secure = tls.wrap_socket(
            plain, server_hostname=parts.hostname, do_handshake_on_connect=False
        )
    except BaseException:
        plain.close()
        raise
    try:
        await _until_done(secure, secure.do_handshake)
    except BaseException:
        secure.close()
        raise
    return secure


async def _shake_hands(sock: MediaSocket, url: str, headers: Mapping[str, str]) -> bytes:
    """Upgrade to a WebSocket; returns what was read beyond the answer."""
    protocol = ClientProtocol(parse_uri(url))
    try:
        return await _upgrade(protocol, sock, headers)
    finally:
        protocol.parser.close()  # it and the protocol know each other: nobody would free them


async def _upgrade(
    protocol: ClientProtocol, sock: MediaSocket, headers: Mapping[str, str]
) -> bytes:
    request = protocol.connect()
    request.headers.update(headers)
    protocol.send_request(request)
    unsent = b"".join(protocol.data_to_send())
    while unsent:
        unsent = unsent[await _until_done(sock, partial(sock.send, unsent)) :]
    answer = b""
    while END_OF_HEAD not in answer:
        answer += await _read_some(sock)
        if len(answer) > MAX_RESPONSE_BYTES:
            raise InvalidHandshake("the answer to the WebSocket handshake is too long")
    head, _, rest = answer.partition(END_OF_HEAD)
    protocol.receive_data(head + END_OF_HEAD)
    if protocol.events_received() and protocol.handshake_exc is None:
        return rest
    # Refused: the library says how when it has the body too, which may last until the end.
    protocol.receive_data(rest[:MAX_RESPONSE_BYTES])
    protocol.events_received()
    while protocol.handshake_exc is None:
        try:
            rest = await _read_some(sock)
        except OSError:
            protocol.receive_eof()
            protocol.events_received()
            break
        protocol.receive_data(rest)
        protocol.events_received()
    raise protocol.handshake_exc or _closed()


async def _read_some(sock: MediaSocket) -> bytes:
    data = await _until_done(sock, partial(sock.recv, 4096))
    if not data:
        raise _closed()
    return data


def _closed() -> ConnectionResetError:
    return ConnectionResetError("closed during the WebSocket handshake")


async def _until_done(sock: MediaSocket, step: Callable[[], T]) -> T:
    """Repeat a step of a socket that does not block until it has been done."""
    while True:
        try:
            return step()
        except (BlockingIOError, ssl.SSLWantReadError):
            await trio.lowlevel.wait_readable(sock.fileno())
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock.fileno())
