"""What carries a media stream's messages: the socket as a carrier's protocol wants to see it.

A stream is pushed what comes, and sends without waiting. A wire of the media plane can do that
(:class:`WireTransport`); any other socket is read and written by :meth:`QueuedTransport.run`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
import trio

from server.errors import CarrierProtocolError, StreamEnded
from server.media.words import SoundPath, Wire

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MESSAGES_AT_ONCE = 64
"""Given to the listener together, if so many wait: more than a second of audio."""
MAX_UNSENT_CHARS = 4 * 1024 * 1024
"""Text, or bytes, that a peer has not read; a peer beyond it has stalled, and is given up."""

OnMessages = Callable[[Sequence[str | bytes], bool], None]
"""Called with messages, ``str`` for text frames, and whether that was the end."""


class TextSocket(Protocol):
    """One WebSocket, as little of it as a media stream needs."""

    async def receive(self) -> str | bytes:
        """Wait for the next message: ``str`` for a text frame, ``bytes`` for a binary one.

        Raises:
            StreamEnded: The socket is over and every message that came before has been given.
        """
        ...

    def receive_nowait(self) -> str | bytes | None:
        """The next message if it is already here, else None; raises as :meth:`receive` does."""
        ...

    async def send(self, text: str | bytes) -> None:
        """Send a text frame, or a binary one.

        Raises:
            StreamEnded: The socket is over.
        """
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with a WebSocket close code; closing again does nothing."""
        ...


class Transport(Protocol):
    """A socket that pushes what comes, once somebody listens, and sends without waiting."""

    async def receive(self) -> str | bytes:
        """Wait for the next message; only until somebody listens.

        Raises:
            StreamEnded: The socket is over and every message that came before has been given.
            CarrierProtocolError: The socket was given up, as its peer broke a rule.
        """
        ...

    def listen(self, on_messages: OnMessages) -> None:
        """Call back with what has come already, and with all that comes from now on."""
        ...

    def join(self, relay: SoundPath) -> bool:
        """Have the relay's path take the audio; False, with nothing changed, if it cannot."""
        ...

    def leave(self, relay: SoundPath) -> None:
        """Take the socket off the relay."""
        ...

    def send(self, message: str | bytes) -> None:
        """Send a text frame, or a binary one.

        Raises:
            StreamEnded: The socket is over.
        """
        ...

    def forget_unsent(self) -> None:
        """Drop what has not been written, as far as that can be: it is to be cleared anyway."""
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Send what waits, then close with a WebSocket close code; again does nothing."""
        ...


class QueuedTransport:
    """A :class:`Transport` over a socket that has to be waited for.

    Whoever opened the socket runs :meth:`run` while there is a listener.
    """

    def __init__(self, socket: TextSocket) -> None:
        self._socket = socket
        self._listener: OnMessages | None = None
        self._unsent: deque[str | bytes] = deque()
        self._unsent_chars = 0
        self._is_over = False
        self._runs = False
        self._changed = trio.Event()  # there is a listener, something to send, or an end
        self._all_sent = trio.Event()

    async def receive(self) -> str | bytes:
        """Wait for the next message; only until somebody listens."""
        return await self._socket.receive()

    def listen(self, on_messages: OnMessages) -> None:
        """Call back with what :meth:`run` receives."""
        self._listener = on_messages
        self._tell_changed()

    def join(self, relay: SoundPath) -> bool:
        """Refuse: a socket that has to be waited for is no wire that a relay could use."""
        return False

    def leave(self, relay: SoundPath) -> None:
        """Do nothing: this socket cannot be joined to a relay."""

    def send(self, message: str | bytes) -> None:
        """Queue a text frame, or a binary one.

        Raises:
            StreamEnded: The socket is over.
        """
        if self._is_over:
            raise StreamEnded("the media socket is closed")
        if not self._unsent:
            self._all_sent = trio.Event()
        self._unsent.append(message)
        self._unsent_chars += len(message)
        if self._unsent_chars > MAX_UNSENT_CHARS:
            logger.warning("media socket given up: its peer has stopped reading")
            self._end()
        self._tell_changed()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Send what is queued, then close; the caller bounds how long that may take."""
        try:
            if self._unsent and self._runs and not self._is_over:
                await self._all_sent.wait()
        finally:
            self._is_over = True
        await self._socket.aclose(code, reason)

    def forget_unsent(self) -> None:
        """Drop what waits behind the message that is being written."""
        while len(self._unsent) > 1:
            self._unsent_chars -= len(self._unsent.pop())

    async def run(self) -> None:
        """Read and write the socket, until it is over or this is cancelled."""
        self._runs = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                await self._write()
                nursery.cancel_scope.cancel("the socket is over")
        finally:
            self._runs = False
            self._listener = None  # it knows the call, and the call knows this
            self._all_sent.set()

    async def _read(self) -> None:
        while self._listener is None:
            await self._changed.wait()
        try:
            while True:
                messages = [await self._socket.receive()]
                while len(messages) < MESSAGES_AT_ONCE:
                    if (message := self._next_nowait()) is None:
                        break
                    messages.append(message)
                if self._listener is None:
                    return  # it has been told of the end: the peer was given up
                self._listener(messages, False)
        except StreamEnded:
            self._end()

    def _next_nowait(self) -> str | bytes | None:
        try:
            return self._socket.receive_nowait()
        except StreamEnded:
            return None  # it is said again when it is waited for

    async def _write(self) -> None:
        while not self._is_over:
            # The event is made before looking, so that what comes while we send is seen.
            changed = self._changed
            while self._unsent:
                try:
                    await self._socket.send(self._unsent[0])
                except StreamEnded:
                    self._end()
                    return
                if self._unsent:  # the end may have come meanwhile
                    self._unsent_chars -= len(self._unsent.popleft())
            self._all_sent.set()
            await changed.wait()

    def _end(self) -> None:
        self._is_over = True
        self._unsent.clear()
        self._all_sent.set()
        self._tell_changed()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener([], True)

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class WireTransport:
    """A :class:`Transport` over a wire of the media plane."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def receive(self) -> str | bytes:
        """Wait for the next message; only until somebody listens.

        Raises:
            StreamEnded: The socket is closed and everything it sent has been received.
            CarrierProtocolError: It was given up; see :attr:`server.media.words.Wire.refusal`.
        """
        if (message := await self._wire.receive()) is None:
            if self._wire.refusal:
                raise CarrierProtocolError(self._wire.refusal)
            raise StreamEnded("the media socket is closed")
        return _read(*message)

    def listen(self, on_messages: OnMessages) -> None:
        """Call back with what each read brings, and whether that was the end."""
        self._wire.listen(
            lambda messages, ended: on_messages([_read(*each) for each in messages], ended)
        )

    def join(self, relay: SoundPath) -> bool:
        """Have the relay's path take caller audio, and send agent audio."""
        relay.join_phone(self._wire)
        return True

    def leave(self, relay: SoundPath) -> None:
        """Take the wire off the relay."""
        relay.leave_phone(self._wire)

    def send(self, message: str | bytes) -> None:
        """Send a text frame, or a binary one; what the peer does not read is kept, with a bound.

        Raises:
            StreamEnded: The socket is closed.
        """
        if not self._wire.websocket.is_open:
            raise StreamEnded("the media socket is closed")
        if isinstance(message, str):
            self._wire.send_text(message.encode())
        else:
            self._wire.send_binary(message)

    def forget_unsent(self) -> None:
        """Drop what waits behind the message that is being written, as the system keeps little."""
        self._wire.forget_unsent()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Send a WebSocket close; whoever accepted the socket waits for the answer."""
        self._wire.send_close(code, reason)


def _read(message: bytes, is_text: bool) -> str | bytes:
    # The WebSocket has checked that text is UTF-8 (RFC 6455 section 8.1).
    return message.decode() if is_text else message
