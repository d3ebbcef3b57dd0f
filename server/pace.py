"""How often something may happen, and how long to wait before it is tried again: no clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

_JUST_NOW = 1e-6
"""A multiple of a time that cannot be written exactly may seem to be yet to come."""


def next_tick(now: float, every_s: float) -> float:
    """When something that happens every so often is to happen next: at a multiple of that time.

    So all that does happens together: to be woken costs more than most of what is done then.
    """
    return (math.floor(now / every_s + _JUST_NOW) + 1) * every_s


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


class Spread:
    """When each of those who want the same at once may have it: a few now, the others in turn.

    Nobody waits longer than a bound: where there are more than fit into it, the others are spread
    over the whole of it by chance. No clock.

    Args:
        per_s: In the long run.
        at_once: After a pause, without waiting.
        longest_s: The bound.
        jitter: Gives numbers between 0 and 1: other processes take turns of their own.
    """

    def __init__(
        self,
        per_s: float,
        at_once: int,
        longest_s: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._every_s = 1.0 / per_s
        self._at_once_s = at_once / per_s
        self._longest_s = longest_s
        self._jitter = jitter
        self._next_at = -math.inf

    def delay_s(self, now: float) -> float:
        """Take a turn: returns how long from now it is until then."""
        turn_at = max(self._next_at, now - self._at_once_s) + self._every_s
        if turn_at <= now:
            self._next_at = turn_at
            return 0.0
        if turn_at - now > self._longest_s:
            return self._longest_s * self._jitter()
        self._next_at = turn_at
        return turn_at - now - self._every_s * self._jitter()


def doubled_s(first_s: float, longest_s: float, times: int) -> float:
    """A pause that has been doubled so many times, from the first one up to the longest."""
    pause_s: float = first_s * 2.0 ** min(times, 64)  # beyond any longest one, and not infinite
    return min(pause_s, longest_s)


class Backoff:
    """The pauses before further attempts: each is twice the one before, up to the longest.

    Args:
        first_s: The pause after the first failure.
        longest_s: No pause is longer.
        jitter: Gives numbers between 0 and 1, by which up to half of each pause is left out: so
            that those who were cut off by the same failure do not all come back at once.

    Attributes:
        pause_s: The pause that is next, in full.
    """

    def __init__(
        self, first_s: float, longest_s: float, jitter: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.pause_s = self._first_s = first_s
        self._longest_s = longest_s
        self._jitter = jitter

    def next_s(self) -> float:
        """An attempt has failed: returns the pause before the next one, and doubles it."""
        pause_s = self.pause_s
        self.double()
        return pause_s * (1.0 - self._jitter() / 2)

    def double(self) -> None:
        """The next pause is twice as long, up to the longest."""
        self.pause_s = doubled_s(self.pause_s, self._longest_s, 1)

    def reset(self) -> None:
        """An attempt has succeeded: the next pause is the first one again."""
        self.pause_s = self._first_s
