"""A session's connection: a real WebSocket, or one in memory for calls on a mock clock."""

from __future__ import annotations

from typing import Literal, Protocol

import trio
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
)
from websockets.frames import Close, Frame, Opcode
from websockets.trio.server import ServerConnection


class ServerSocket(Protocol):
    """What a session needs of a connection; raises ``websockets.exceptions.ConnectionClosed``."""

    async def send(self, message: bytes, *, text: bool) -> None:
        """Send a whole message, as a text or a binary frame."""
        ...

    async def recv(self, *, decode: Literal[False]) -> bytes:
        """Wait for a whole message."""
        ...

    async def aclose(self, code: int, reason: str) -> None:
        """Close with a close frame."""
        ...

    async def drop(self) -> None:
        """Cut the connection without a word: the client sees 1006."""
        ...


def answer_pings_late(connection: ServerConnection, delay_s: float) -> None:
    """Let every pong of this connection wait."""
    send_frame = connection.protocol.send_frame

    async def send_late(frame: Frame) -> None:
        with trio.move_on_after(delay_s):
            await connection.wait_closed()
            return
        send_frame(frame)
        await connection.send_data()

    def send_frame_or_wait(frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            connection.nursery.start_soon(send_late, frame)
        else:
            send_frame(frame)

    # The protocol answers a ping by itself, and this is the only way it has.
    connection.protocol.send_frame = send_frame_or_wait  # type: ignore[method-assign]


class WebSocket:
    """A real connection, as :class:`ServerSocket` wants it."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def send(self, message: bytes, *, text: bool) -> None:
        """Send a whole message, as a text or a binary frame."""
        await self._connection.send(message, text=text)

    async def recv(self, *, decode: Literal[False]) -> bytes:
        """Wait for a whole message."""
        return await self._connection.recv(decode=decode)

    async def aclose(self, code: int, reason: str) -> None:
        """Close with a close frame."""
        await self._connection.aclose(code, reason)

    async def drop(self) -> None:
        """Cut the connection without a word: the client sees 1006."""
        await trio.aclose_forcefully(self._connection.stream)


class MemorySocket:
    """One end of a connection in memory; fails with the same errors as a WebSocket."""

    def __init__(
        self, send: trio.MemorySendChannel[bytes], receive: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self.peer = self
        self._send = send
        self._receive = receive
        self._received: Close | None = None
        self._sent: Close | None = None

    async def send(self, message: bytes, *, text: bool) -> None:
        """Send a whole message; there are no frames here, so ``text`` means nothing."""
        try:
            await self._send.send(bytes(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._closed() from None

    async def recv(self, *, decode: Literal[False]) -> bytes:
        """Wait for a whole message; what was sent before a close is still read."""
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._closed() from None

    async def aclose(self, code: int, reason: str) -> None:
        """Close with a close frame."""
        if self._sent is None:
            self._sent = self.peer._received = Close(code, reason)
            self.peer._sent = self.peer._sent or self._sent  # the echo
        await self.drop()

    async def drop(self) -> None:
        """Cut the connection; without a close frame the other side sees 1006."""
        self.hang_up()
        await trio.lowlevel.checkpoint()

    def hang_up(self) -> None:
        """Close both directions."""
        self._send.close()
        self._receive.close()

    def _closed(self) -> ConnectionClosed:
        if self._received is None:
            return ConnectionClosedError(None, self._sent)
        kind = ConnectionClosedOK if self._received.code in (1000, 1001) else ConnectionClosedError
        return kind(self._received, self._sent, rcvd_then_sent=True)


def memory_sockets() -> tuple[MemorySocket, MemorySocket]:
    """Make both ends of a connection that holds at most a moment's messages each way."""
    to_server, at_server = trio.open_memory_channel[bytes](64)
    to_client, at_client = trio.open_memory_channel[bytes](64)
    client, server = MemorySocket(to_server, at_client), MemorySocket(to_client, at_server)
    client.peer, server.peer = server, client
    return client, server
