"""What carriers and models need of the media plane, as Protocols: nothing here means Linux.

``plane.py`` and ``relay.py`` have what is behind these words; whoever composes a server makes them
and hands them on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from codec.path import MediaPath, WebSocket
from codec.pump import Descriptor, Pump
from codec.shapes import AudioMessages

Messages = list[tuple[bytes, bool]]
"""Complete messages, and whether each is text."""


class MediaSocket(Protocol):
    """What a wire needs of a socket: a plain one is, and so is one behind TLS."""

    def fileno(self) -> int:
        """Its number, as long as it is open."""
        ...

    def recv(self, size: int, /) -> bytes:
        """Read at most so many bytes of those that are there."""
        ...

    def send(self, data: bytes, /) -> int:
        """Write as much as goes; returns how much that was."""
        ...

    def shutdown(self, how: int, /) -> None:
        """Say that nothing more comes."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class Wire(Protocol):
    """One WebSocket that is read and written by itself: sending never waits.

    Attributes:
        websocket: Its protocol.
        refusal: Why the socket of a peer that nobody knows yet was given up, or empty.
        descriptor: Its socket, as a pump knows it.
    """

    websocket: WebSocket
    refusal: str
    descriptor: Descriptor

    async def receive(self) -> tuple[bytes, bool] | None:
        """Wait for a message and whether it is text; None when the connection has ended."""
        ...

    def listen(self, listener: Callable[[Messages, bool], None]) -> None:
        """Call back with what each read brought, and whether that was the end, instead."""
        ...

    @property
    def has_inbox(self) -> bool:
        """Whether something has come that nobody has taken."""
        ...

    def send_text(self, data: bytes) -> None:
        """Send a text message; dropped when the connection is closing."""
        ...

    def send_binary(self, data: bytes) -> None:
        """Send a binary message; dropped when the connection is closing."""
        ...

    def flush(self) -> None:
        """Write what the WebSocket has for the socket; what does not go stays with it."""
        ...

    def forget_unsent(self) -> None:
        """Drop every message of which the socket has taken nothing, as far as that can be."""
        ...

    def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye; the peer is to answer, and the socket stays open for that."""
        ...

    async def wait_ended(self, *, timeout_s: float) -> None:
        """Wait until the peer has said goodbye, too, or is gone; for a bounded time."""
        ...

    def close(self) -> None:
        """Close the socket now; closing again does nothing."""
        ...

    def read_through(
        self,
        next_message: Callable[[], bytes | None],
        pump: Pump | None = None,
        flush_sink: Callable[[], None] | None = None,
    ) -> None:
        """Ask this for the next message from now on; it sees all that the WebSocket has.

        Args:
            next_message: Gives it, or None.
            pump: Is asked before, whenever the socket is readable; what it leaves goes that way.
            flush_sink: Writes what the pump has made for its other socket and could not write.
        """
        ...


class Plane(Protocol):
    """Serves wires."""

    def new_wire(self, sock: MediaSocket, websocket: WebSocket, early: bytes = b"") -> Wire:
        """Serve this socket until the wire is closed.

        Args:
            sock: A connected socket whose opening handshake is done; not blocking. Owned from now
                on.
            websocket: Its protocol.
            early: What was already read beyond the handshake.
        """
        ...


class SoundPath(Protocol):
    """A call's way for sound, which a wire of the phone's and one of the model's may join."""

    @property
    def path(self) -> MediaPath:
        """What takes the audio out of messages, and puts it into others."""
        ...

    def join_phone(self, wire: Wire) -> None:
        """Have caller audio go through the path from now on; the wire's inbox must be empty."""
        ...

    def leave_phone(self, wire: Wire) -> None:
        """Have whoever listens to the wire read what else comes: the stream is over."""
        ...

    def join_model(self, wire: Wire, messages: AudioMessages) -> None:
        """Have caller audio go out on this wire from now on, and agent audio come in by it.

        Args:
            wire: The model's connection.
            messages: How the model writes audio.
        """
        ...

    def leave_model(self, wire: Wire) -> None:
        """Take a connection off the path that is of no use any more."""
        ...
