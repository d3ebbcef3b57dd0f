"""WebSocket frames on the ordinary path: a bound on those that say nothing.

hypercorn looks at all frames that one read (64 KiB) has brought without a pause, answers every ping
by itself, and of a message that it has refused as too long keeps what still comes. Ten thousand
fragments of a byte each held every call up for a tenth of a second that way, and a stranger who
goes on with such a message has it kept. The media plane has its bounds in
``server/media/wire.py``.

hypercorn has no setting for this. :func:`bound_frames` puts a subclass of wsproto's connection in
the place where hypercorn makes one; its test fails when that is elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any
from weakref import proxy

from hypercorn.protocol import ws_stream
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameProtocol

MAX_IDLE_FRAMES = 64
"""Pings, pongs and fragments in a row until a message is complete. Twilio's messages come whole, 50
a second."""
MAX_BYTES_AFTER_CLOSE = 64 * 1024
"""What a peer may still send when we have said goodbye: what was on its way."""


class BoundedConnection(Connection):
    """wsproto's connection, which ends when its peer talks and says nothing.

    Of pings that come in one read the latest is answered: RFC 6455 section 5.5.3.
    """

    _idle_frames = 0
    _after_close_bytes = 0

    def __init__(
        self,
        connection_type: ConnectionType,
        extensions: list[Extension] | None = None,
        trailing_data: bytes = b"",
    ) -> None:
        super().__init__(connection_type, extensions, trailing_data)
        # wsproto's parser is a generator that its own frame holds on to: from Python 3.13 on, only
        # the garbage collector would free the two. It runs only while its owner is there.
        owner: Any = proxy(self._proto)
        self._proto._parse_more = FrameProtocol._parse_more_gen(owner)

    def events(self) -> Generator[Event, None, None]:
        """What the frames received say."""
        ping: Ping | None = None
        for event in super().events():
            if isinstance(event, CloseConnection):
                yield event
                return
            self._count(event)
            if self._is_too_much:
                yield self._end()
                return
            if isinstance(event, Ping):
                ping = event
            elif self.state is ConnectionState.OPEN:
                yield event
        if ping is not None:
            yield ping

    def _count(self, event: Event) -> None:
        if self.state is not ConnectionState.OPEN and isinstance(event, Message):
            # Nobody hears it any more, so none of it is a message.
            self._after_close_bytes += len(event.data)
            self._idle_frames += event.frame_finished
        elif not isinstance(event, TextMessage | BytesMessage):
            self._idle_frames += 1
        elif event.message_finished:
            self._idle_frames = 0
        else:
            self._idle_frames += event.frame_finished

    @property
    def _is_too_much(self) -> bool:
        return (
            self._idle_frames > MAX_IDLE_FRAMES or self._after_close_bytes > MAX_BYTES_AFTER_CLOSE
        )

    def _end(self) -> CloseConnection:
        if self.state is ConnectionState.OPEN:
            # As if the peer had closed with this code: hypercorn then answers with the same.
            self._state = ConnectionState.REMOTE_CLOSING
        return CloseConnection(CloseReason.POLICY_VIOLATION, "too many frames and no message")


def bound_frames() -> None:
    """Have hypercorn use it for every WebSocket; doing it again does nothing."""
    module: Any = ws_stream  # to mypy, what it imports is not its to give away
    module.Connection = BoundedConnection
