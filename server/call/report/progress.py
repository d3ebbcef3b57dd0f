"""How far a call has come, as the carrier reports it."""

from __future__ import annotations

import trio

from server.carrier import CallStatus, StatusUpdate
from server.signal import Once


class Progress:
    """The newest of the carrier's reports: they come twice and in any order.

    Attributes:
        status: What counts.
        told_at: When the last status callback came.
        number: Of the newest status callback; -1 before the first.
        settled: Set when the carrier has said its last word, which may be after the call's end.
    """

    def __init__(self) -> None:
        self.status = CallStatus.QUEUED
        self.told_at: float | None = None
        self.settled = Once()
        self.number = -1

    def go_on(self, status: CallStatus, number: int) -> None:
        """So far another process had been told."""
        self.status, self.number = status, number
        if status.is_final:
            self.settled.set()

    def update(self, update: StatusUpdate) -> bool:
        """Take a report, by a status callback or because the carrier was asked; True if it is news.

        It is idempotent, and a call never goes back.
        """
        number, is_back = update.sequence_number, update.status.progress < self.status.progress
        if number is None:  # asked for, so it is news only if it is further on
            stale = is_back or update.status is self.status
        else:
            self.told_at = trio.current_time()
            stale = is_back or number <= self.number
        if (stale and not update.status.is_final) or self.status.is_final:
            return False
        if number is not None:
            self.number = number
        self.status = update.status
        if update.status.is_final:
            self.settled.set()
        return True
