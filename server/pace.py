"""How often something may happen: a bucket that fills with time."""

from __future__ import annotations


class Pace:
    """So many a second, and so many at once. No clock.

    Args:
        per_s: In the long run.
        at_once: After a pause.
    """

    def __init__(self, per_s: float, at_once: int) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._left = float(at_once)
        self._at: float | None = None

    def allows(self, now: float, count: int = 1) -> bool:
        """Whether so many more may happen now; if not, none of them counts."""
        if self._at is not None:
            earned = max(0.0, now - self._at) * self._per_s
            self._left = min(float(self._at_once), self._left + earned)
        self._at = now
        if self._left < count:
            return False
        self._left -= count
        return True
