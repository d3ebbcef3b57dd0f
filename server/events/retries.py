"""When an event that was not taken is sent again, and when it is given up: no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from server.headers import read_retry_after
from server.pace import doubled_s

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 3_600.0
GIVE_UP_S = 86_400.0
"""So long after it happened, an event that nobody takes is put aside for people."""
GONE = 410
"""The receiver wants nothing more (Standard Webhooks, "Deliverability")."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending an event once."""

    status: int | None = None
    """The answer's; None if there was none."""
    error: str = ""
    """Why there was no answer, in words without the address."""
    retry_after_s: float = 0.0
    """How long the receiver asks us to wait."""

    @property
    def is_taken(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def problem(self) -> str:
        """What was wrong, for people."""
        return self.error or f"answered {self.status}"


def next_at(attempt: Attempt, attempts: int, *, since: float, now: float, jitter: float) -> float:
    """When an event is sent again that was not taken; infinite if it is given up.

    Args:
        attempt: The last one.
        attempts: How many there were, that one included.
        since: When the event happened, or was last asked for by a person.
        now: Of the same clock.
        jitter: From 0 to 1: events that failed together are not sent together.
    """
    if attempt.status == GONE or now - since >= GIVE_UP_S:
        return math.inf
    pause_s = doubled_s(FIRST_PAUSE_S, LONGEST_PAUSE_S, attempts - 1) * (0.5 + 0.5 * jitter)
    return now + max(pause_s, min(attempt.retry_after_s, LONGEST_PAUSE_S))


def retry_after_s(value: bytes, now: float) -> float:
    """Read ``Retry-After``, in seconds from now; 0 for what cannot be read."""
    text, at = value.decode("ascii", "replace"), datetime.fromtimestamp(now, UTC)
    return read_retry_after(text, at, longest_s=LONGEST_PAUSE_S) or 0.0
