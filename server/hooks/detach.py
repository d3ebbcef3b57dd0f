"""The hook into hypercorn that gives a media socket to the plane, before it is accepted.

A handler that is about to accept a WebSocket asks for its connection's socket. hypercorn then no
longer reads it, but still writes the 101. A client may not send frames before that (RFC 6455
section 4.1), so at that moment no byte of a frame can be in any buffer of hypercorn's: nothing is
raced and nothing has to be moved over. When it is known whose socket it is, hypercorn is told that
the connection is over, and the request ends: what it holds is not kept for the length of a call.

hypercorn offers no public way to do this: :class:`DetachableServer` is the class of connections
that ``hypercorn_worker.py`` serves. Where it cannot work (TLS ended by hypercorn, another server,
the test client) :func:`detachable` is None and the ordinary path serves the call.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from server.errors import StreamEnded
from server.hooks.connections import Connection, Doors
from server.hooks.sockets import limit_unread
from server.logs import log_stranger

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_STATE_KEY = "offhook.connection"


class _LendableStream:
    """hypercorn's stream; once its socket is lent out, nothing is read from it but its end.

    Args:
        stream: hypercorn's.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.aclose = stream.aclose
        self.is_lent = False
        self.is_given_away = False
        self.returned = trio.Event()
        self._reading = trio.CancelScope()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self.is_lent:
            with trio.CancelScope() as self._reading:
                return await self._stream.receive_some(max_bytes)
        await self.returned.wait()
        return b""

    async def send_all(self, data: bytes) -> None:
        if not self.is_given_away:
            await self._stream.send_all(data)

    async def send_eof(self) -> None:
        # The lent socket is a duplicate: to shut one of them down would shut down both.
        if not self.is_lent:
            await self._stream.send_eof()

    def lend(self) -> socket.socket:
        """A duplicate of the socket, and from now on nobody else reads it.

        Raises:
            StreamEnded: There is none: the client has left meanwhile, or descriptors have run out.
        """
        ours = self.socket
        if ours.fileno() < 0:  # a client may leave at any moment, before it is served as well
            raise StreamEnded("the client has left")
        try:
            number = os.dup(ours.fileno())
        except OSError as error:
            why = f"media stream refused: {error.strerror}"
            log_stranger(logger.warning, why, kind="media stream without a descriptor")
            raise StreamEnded(why) from error
        own = socket.socket(ours.family, ours.type, ours.proto, fileno=number)
        own.setblocking(False)
        self.is_lent = True
        self._reading.cancel("the media plane reads now")
        return own


class DetachableServer(Connection):
    """One connection of hypercorn's whose socket can be taken over."""

    def __init__(
        self, doors: Doors, app: Any, config: Any, context: Any, state: Any, stream: Any
    ) -> None:
        if isinstance(stream, trio.SocketStream):
            limit_unread(stream.socket)
            stream = _LendableStream(stream)
        # Each request's scope gets a copy of this; hypercorn itself shares one among connections.
        super().__init__(doors, app, config, context, {**state, _STATE_KEY: self}, stream)
        self._knows_the_end = trio.Event()

    def requests_are_over(self) -> None:
        """The app knows that nothing more is read from this connection: no request comes after."""
        self._knows_the_end.set()

    @property
    def can_detach(self) -> bool:
        """Whether this is a connection without TLS that asks for a WebSocket."""
        is_free = isinstance(self.stream, _LendableStream) and not self.stream.is_lent
        return is_free and self.asks_for_websocket

    def give_away(self) -> None:
        """Inside :meth:`detach`: another process has the socket now, and we leave it alone."""
        assert isinstance(self.stream, _LendableStream)
        self.stream.is_given_away = True

    @asynccontextmanager
    async def detach(self) -> AsyncGenerator[socket.socket]:
        """Stop reading, and lend the socket out; accept the WebSocket inside the block.

        The socket is a duplicate of hypercorn's, not blocking, for the caller to close, which may
        be long after the block: hypercorn closing its own does not pull it from under anybody. At
        the block's end hypercorn is told that the connection is over.

        Raises:
            StreamEnded: The client has left, or there is no descriptor for a duplicate.
        """
        assert isinstance(self.stream, _LendableStream)
        own = self.stream.lend()
        try:
            yield own
        finally:
            self.stream.returned.set()
            # Until hypercorn knows, it would answer the handler's return with a close frame.
            with trio.CancelScope(shield=True):
                await self._knows_the_end.wait()


def detachable(scope: Mapping[str, Any]) -> DetachableServer | None:
    """The connection of this request if its socket can be taken over, else None."""
    connection = (scope.get("state") or {}).get(_STATE_KEY)
    if isinstance(connection, DetachableServer) and connection.can_detach:
        return connection
    return None
