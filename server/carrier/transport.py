"""What carries a media stream's messages: the socket as a carrier's protocol wants to see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from server.media.relay import Relay


class TextTransport(Protocol):
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

    async def send(self, text: str) -> None:
        """Send a text frame.

        Raises:
            StreamEnded: The socket is over.
        """
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with a WebSocket close code; closing again does nothing."""
        ...


@runtime_checkable
class PushTransport(Protocol):
    """A transport that can also call back, and send without waiting."""

    def listen(self, on_messages: Callable[[Sequence[str | bytes], bool], None]) -> None:
        """Call back with what each read brought, and whether that was the end, from now on."""
        ...

    def join(self, relay: Relay) -> bool:
        """Have the relay's path take the audio; False if it cannot."""
        ...

    def leave(self, relay: Relay) -> None:
        """Undo that."""
        ...

    def send_nowait(self, text: str) -> None:
        """Send a text frame.

        Raises:
            StreamEnded: The socket is over.
        """
        ...
