"""What the phone plays: the carrier's buffer of agent audio, and the ear behind it."""

from __future__ import annotations

from collections import deque

from codec.line import BYTES_PER_S, FRAME_BYTES
from server.simulators.phone.sound import SILENCE

BUFFER_BYTES = 600 * BYTES_PER_S
"""What Twilio holds for playing before it throws audio away: ten minutes (warning 31931)."""


class Earpiece:
    """Twilio's playing buffer and the ear behind it: a frame at a time, no clock.

    Attributes:
        heard: Everything played since the stream's start, silence where there was nothing.
        discarded_bytes: What came while the buffer was full.
    """

    def __init__(self) -> None:
        self.heard = bytearray()
        self.discarded_bytes = 0
        self._buffer = bytearray()
        self._end = 0  # Position in all audio ever taken where the buffer ends.
        self._marks: deque[tuple[int, str]] = deque()

    def push(self, payload: bytes) -> None:
        """Play this after everything before; beyond ten minutes it is thrown away."""
        room = BUFFER_BYTES - len(self._buffer)
        self._buffer += payload[:room]
        self._end += min(room, len(payload))
        self.discarded_bytes += max(0, len(payload) - room)

    def mark(self, name: str) -> list[str]:
        """Remember a mark; it is returned at once if nothing is left to play before it."""
        if not self._buffer:
            return [name]
        self._marks.append((self._end, name))
        return []

    def clear(self) -> tuple[int, list[str]]:
        """Drop everything that has not been played.

        Returns:
            Bytes dropped, and the names of all marks that were waiting.
        """
        dropped = len(self._buffer)
        self._buffer.clear()
        self._end -= dropped
        names = [name for _, name in self._marks]
        self._marks.clear()
        return dropped, names

    def play(self) -> tuple[bytes, list[str]]:
        """Play 20 ms.

        Returns:
            The frame, and the marks that were reached with it.
        """
        buffer = self._buffer
        if not buffer:
            self.heard += SILENCE
            return SILENCE, []
        frame = bytes(buffer[:FRAME_BYTES])
        del buffer[:FRAME_BYTES]
        if len(frame) < FRAME_BYTES:
            frame = frame.ljust(FRAME_BYTES, b"\xff")
        self.heard += frame
        names = []
        played = self._end - len(buffer)
        while self._marks and self._marks[0][0] <= played:
            names.append(self._marks.popleft()[1])
        return frame, names
