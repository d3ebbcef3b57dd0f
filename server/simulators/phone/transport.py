"""The phone's socket: what it needs of one, and one that lives in memory."""

from __future__ import annotations

from typing import Protocol

import trio

from server.carrier.transport import TextSocket
from server.errors import StreamEnded


class PhoneTransport(TextSocket, Protocol):
    """A text transport that can also misbehave, and knows how the other side closed it."""

    async def send(self, text: str | bytes) -> None:
        """Send a text frame, or a binary one; raises as :class:`TextSocket` does."""
        ...

    async def abort(self) -> None:
        """Let the connection go without a word."""
        ...

    @property
    def closed_by_peer(self) -> tuple[int, str] | None:
        """Close code and reason of the other side, once :class:`StreamEnded` was raised."""
        ...


class MemoryTransport:
    """One end of a socket that lives in memory."""

    def __init__(
        self,
        to_peer: trio.MemorySendChannel[str | bytes],
        from_peer: trio.MemoryReceiveChannel[str | bytes],
    ) -> None:
        self._to_peer = to_peer
        self._from_peer = from_peer
        self._peer: MemoryTransport | None = None
        self._closed: tuple[int, str] | None = None

    @property
    def closed_by_peer(self) -> tuple[int, str] | None:
        """Close code and reason of the other side; None while it is open."""
        return self._peer._closed if self._peer is not None else None

    async def receive(self) -> str | bytes:
        """Wait for the next message; raises StreamEnded after the last one."""
        try:
            return await self._from_peer.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StreamEnded("the socket is closed") from None

    def receive_nowait(self) -> str | bytes | None:
        """The next message if it is already here; raises StreamEnded after the last one."""
        try:
            return self._from_peer.receive_nowait()
        except trio.WouldBlock:
            return None
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StreamEnded("the socket is closed") from None

    async def send(self, text: str | bytes) -> None:
        """Send a message; raises StreamEnded when either side has closed."""
        try:
            await self._to_peer.send(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamEnded("the socket is closed") from None

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close both directions; what was sent before still arrives."""
        if self._closed is None:
            self._closed = (code, reason)
        self._to_peer.close()
        self._from_peer.close()

    async def abort(self) -> None:
        """Close as a broken line does."""
        await self.aclose(1006)


def memory_transports(buffered_messages: int = 1024) -> tuple[MemoryTransport, MemoryTransport]:
    """Two ends of a socket in memory: what one sends the other receives, in order."""
    to_right, from_left = trio.open_memory_channel[str | bytes](buffered_messages)
    to_left, from_right = trio.open_memory_channel[str | bytes](buffered_messages)
    left, right = MemoryTransport(to_right, from_right), MemoryTransport(to_left, from_left)
    left._peer, right._peer = right, left
    return left, right
