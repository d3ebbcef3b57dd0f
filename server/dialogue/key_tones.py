"""Tones of telephone keys on their way to the caller: alone and whole, never cut."""

from __future__ import annotations

MAX_PIECE_BYTES = 8_000
"""One second a message; the carrier documents no limit, so we keep well below any."""
LOST_MARK_S = 3.0
"""So long after the keys must have sounded, their mark is not waited for any more."""


class KeyTones:
    """Keys that wait, and those that sound; no I/O and no clock.

    They wait until the carrier's buffer is empty, and until they have been heard nothing else is
    sent: so there is no clear that could take them away.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[str, bytes]] = []
        self._sounding: str | None = None
        self._lost: list[str] = []
        self._pushed = 0

    def __bool__(self) -> bool:
        """True if any keys have still to be heard."""
        return self._sounding is not None or len(self._waiting) > 0

    @property
    def are_sounding(self) -> bool:
        """True if the carrier has keys: then it has nothing else."""
        return self._sounding is not None

    def push(self, payload: bytes) -> str:
        """Play these tones before all that is queued.

        Returns:
            A name for :meth:`is_pending`, :meth:`were_lost` and :meth:`withdraw`.
        """
        self._pushed += 1
        name = f"keys:{self._pushed}"
        for piece in in_pieces(payload):
            self._waiting.append((name, piece))
        return name

    def withdraw(self, name: str) -> None:
        """Do not play what has not been sent of these keys: nobody asks about them any more."""
        self._waiting = [item for item in self._waiting if item[0] != name]
        self._lost = [lost for lost in self._lost if lost != name]

    def is_pending(self, name: str) -> bool:
        """True if these keys have still to be heard."""
        return self._sounding == name or any(item[0] == name for item in self._waiting)

    def were_lost(self, name: str) -> bool:
        """True if their stream was over before these keys were known to have been heard."""
        return name in self._lost

    def forget(self) -> None:
        """The stream is over: what has not been heard is lost."""
        self._lost.extend({name for name, _ in self._waiting} - {self._sounding})
        if self._sounding is not None:
            self._lost.append(self._sounding)
        self._sounding = None
        self._waiting.clear()

    def mark_reached(self, name: str) -> None:
        """The carrier echoed a mark: if it is these keys', they have been heard."""
        if name == self._sounding:
            self._sounding = None

    def give_up_lost_mark(self, play_end: float, now: float) -> None:
        """Take keys for heard whose mark does not come back.

        Args:
            play_end: When they must have sounded.
            now: The time.
        """
        if self.are_sounding and now >= play_end + LOST_MARK_S:
            self._sounding = None

    def next_due(self, play_end: float, *, marks_are_out: bool) -> float:
        """When to ask for the next piece."""
        if self.are_sounding:
            return play_end + LOST_MARK_S
        return float("inf") if marks_are_out else play_end

    def next_piece(self, *, is_playing: bool) -> tuple[bytes, str | None] | None:
        """The next tones to send, and the name of the mark that follows them.

        Args:
            is_playing: Whether the carrier has something to play; then keys wait.
        """
        if self._sounding is None:
            if is_playing:
                return None
            self._sounding = self._waiting[0][0]
        if not (self._waiting and self._waiting[0][0] == self._sounding):
            return None
        _, payload = self._waiting.pop(0)
        goes_on = bool(self._waiting) and self._waiting[0][0] == self._sounding
        return payload, None if goes_on else self._sounding


def in_pieces(payload: bytes) -> list[bytes]:
    """Audio, cut for messages to the carrier."""
    return [
        payload[start : start + MAX_PIECE_BYTES]
        for start in range(0, len(payload), MAX_PIECE_BYTES)
    ]
