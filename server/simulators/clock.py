"""A clock that waits for the program: time in which the machine was busy does not count.

Where both ends of a call live in one process (demonstrations, tests and long runs over real
sockets), a machine that is busy with something else makes everybody late at once, and lateness
sounds like a fault: a phone that hears nothing for a second takes the agent's turn for over. Under
this clock such a call is in slow motion instead, and what comes of it is what would have come of it
on a machine of its own. It is no clock for a server whose callers live in the world.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from trio.abc import Clock

PATIENCE_S = 0.02
"""Work that counts between two rests: no phone is ever later than one frame of audio."""


class PatientClock(Clock):
    """Real time, less the time in which the program could not keep up with it.

    Waiting counts in full, up to the moment that was waited for. Work counts, too, but only
    ``patience_s`` of it until everything that was due has been done and there was time to rest.

    Args:
        speed: How many seconds pass in one real second. The faster, the more work falls into each:
            at a speed that the machine cannot reach, it runs as fast as it can.
        patience_s: See above, in seconds of this clock.
        read_real_s: Real time in seconds, from any moment on.

    Attributes:
        withheld_s: Seconds of this clock that would have passed, but for its patience.
    """

    def __init__(
        self,
        *,
        speed: float = 1.0,
        patience_s: float = PATIENCE_S,
        read_real_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.withheld_s = 0.0
        self._speed = speed
        self._patience_s = patience_s
        self._read_real_s = read_real_s
        self._read_at_s = 0.0
        self._now_s = 0.0
        self._work_left_s = patience_s
        self._waits_until_s: float | None = None

    def start_clock(self) -> None:
        """Begin to count; trio calls it."""
        self._read_at_s = self._read_real_s()

    def current_time(self) -> float:
        """Seconds since the clock was started."""
        real_s = self._read_real_s()
        passed_s = (real_s - self._read_at_s) * self._speed
        self._read_at_s = real_s
        if self._waits_until_s is not None:
            # The first look at the clock after a wait. One that something else has ended was no
            # rest: what ended it may be work of our own that is still on its way.
            until_s, self._waits_until_s = self._waits_until_s, None
            left_s = until_s - self._now_s
            if passed_s < left_s:
                self._now_s += passed_s
                return self._now_s
            if left_s > 0:
                self._work_left_s = self._patience_s
            self._now_s = until_s
            passed_s -= left_s
        worked_s = min(passed_s, self._work_left_s)
        self._work_left_s -= worked_s
        self._now_s += worked_s
        self.withheld_s += passed_s - worked_s
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How long to wait for something else; trio asks when no task has anything to do."""
        now_s = self.current_time()
        self._waits_until_s = max(now_s, deadline)
        return (deadline - now_s) / self._speed
