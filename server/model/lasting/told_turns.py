"""Turns of the caller's that connections are told of: audio outside of them is sent to nobody."""

from __future__ import annotations

from collections.abc import Iterator

from server.model.lasting.connection import Connection
from server.model.lasting.unanswered import PCM_BYTES_PER_S, Edge, Input, audio_bytes

MAX_BEFORE_S = 2.0
"""What is kept of the audio between turns: as much as may turn out to be the beginning of one."""
MAX_BEFORE_BYTES = int(MAX_BEFORE_S * PCM_BYTES_PER_S)


class ToldTurns:
    """Whether the caller is in a turn, and what the connection in use has been told of that.

    Args:
        are_wanted: Whether connections are to be told at all, as far as they can be.

    Attributes:
        is_on: Whether the caller is in a turn, whatever the connection in use makes of it.
    """

    def __init__(self, *, are_wanted: bool) -> None:
        self.is_on = False
        self._are_wanted = are_wanted
        self._is_told = False
        self._has_ended = False  # the turn that it was told of last
        self._before = bytearray()

    def opened(self, connection: Connection) -> None:
        """Another connection is used, which has been told nothing."""
        self._is_told = self._has_ended = False
        if not connection.takes_turns:
            self._before.clear()  # what comes now is not kept, and does not follow on it

    def holds_back(self, connection: Connection | None) -> bool:
        """Whether caller audio is to be kept here now."""
        bears_it = connection is None or connection.takes_turns
        return self._are_wanted and bears_it and not self.is_on

    def begin(self) -> bool:
        """The caller's turn has begun; False if it had before, or nobody is to be told."""
        begins, self.is_on = self._are_wanted and not self.is_on, self._are_wanted
        return begins

    def keep(self, pcm: bytes) -> None:
        """Keep audio that is in no turn, for one that may have begun with it."""
        self._before += pcm
        del self._before[:-MAX_BEFORE_BYTES]

    def take(self, seconds: float) -> bytes:
        """Take so much of what was kept last, and forget the rest."""
        size = min(int(seconds * PCM_BYTES_PER_S) // 2 * 2, len(self._before))
        taken = bytes(self._before[len(self._before) - size :])
        self._before.clear()
        return taken

    def leaves_out(self, connection: Connection, content: Input) -> bool:
        """Whether this is audio between two turns, for a connection that is told of them.

        There is such where an earlier connection was not told, and heard it all.
        """
        return connection.takes_turns and self._has_ended and audio_bytes(content) > 0

    def messages(self, connection: Connection, content: Input) -> Iterator[bytes]:
        """What a connection has to be told before it may be told this.

        What is repeated to another connection may begin in the middle of a turn; what comes behind
        the end of one is in none until the next begins, and would begin one that nothing ends.
        """
        if not connection.takes_turns:
            return
        wanted = self._is_told
        if isinstance(content, Edge):
            wanted = content is Edge.BEGINS
        elif audio_bytes(content):
            wanted = True
        if wanted is not self._is_told:
            self._is_told, self._has_ended = wanted, not wanted
            yield connection.turn_message(begins=wanted)
