"""One connection to the simulated service, with a list of what happened on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import trio
from websockets.frames import Close

from server.simulators.gemini.sockets import ServerSocket


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened in a session."""

    at_s: float
    """Seconds since the connection was opened."""
    what: str


class Connection:
    """The service's end of a connection.

    Attributes:
        timeline: What happened, oldest first; per turn, never per chunk.
        is_open: False as soon as either side has closed.
        opened_at: ``trio.current_time()`` when it was opened.
    """

    def __init__(self, socket: ServerSocket) -> None:
        self.timeline: deque[Moment] = deque(maxlen=1_000)
        self.is_open = True
        self._socket = socket
        self.opened_at = trio.current_time()

    def note(self, what: str) -> None:
        """Add a moment to the timeline."""
        self.timeline.append(Moment(trio.current_time() - self.opened_at, what))

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; raises ``ConnectionClosed``."""
        # Google's own browser sample reads binary frames, so some of ours are.
        binary = "sessionResumptionUpdate" in message
        await self._socket.send(msgspec.json.encode(message), text=not binary)

    async def receive(self) -> bytes:
        """Wait for the client's next message; raises ``ConnectionClosed``."""
        return await self._socket.recv(decode=False)

    async def close(self, close: Close) -> None:
        """Close with a close frame, or, with code 1006, by cutting the connection."""
        self.note(f"closed with {close.code}: {close.reason}")
        self.is_open = False
        if close.code == 1006:
            await self._socket.drop()
        else:
            await self._socket.aclose(close.code, close.reason)
