"""Time for many calls: a wheel that turns once in 20 ms, and appointments.

An event loop's own timers are a millisecond apart, which would put a hundred calls into twenty
bunches; this one ticks every quarter of one, by a timer of the kernel where there is one.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import sys
import time
from array import array
from collections.abc import Callable
from itertools import count

TICK_S = 250e-6
FRAME_TICKS = 80  # 20 ms
CHUNK_TICKS = 40  # 10 ms: 40 ms of agent audio at four times real time
MAX_LATE_S = 0.25
"""Further behind than this, ticks are left out: a second's frames at once prove nothing."""

clock = time.perf_counter
_Action = Callable[[], None]


class Wheel:
    """Calls actions on time; a late tick is made up for, unless it is later than ``MAX_LATE_S``.

    Attributes:
        lags: How late each turn of the wheel was, in seconds: the generator's own fault.
    """

    def __init__(self) -> None:
        self.lags = array("d")
        self._rings: list[tuple[int, list[list[_Action]]]] = [
            (ticks, [[] for _ in range(ticks)]) for ticks in (FRAME_TICKS, CHUNK_TICKS)
        ]
        self._appointments: list[tuple[float, int, _Action]] = []
        self._numbers = count()
        self._began = 0.0
        self._done = 0
        self._timer: int | None = None
        self._stopped = False

    def every(self, ticks: int, phase: int, action: _Action) -> None:
        """Do something every ``FRAME_TICKS`` or ``CHUNK_TICKS``, from ``phase`` on."""
        self._ring(ticks)[phase % ticks].append(action)

    def no_more(self, ticks: int, phase: int, action: _Action) -> None:
        """Call this function no more."""
        self._ring(ticks)[phase % ticks].remove(action)

    def at(self, when: float, action: _Action) -> None:
        """Do something once, at a time of :data:`clock`."""
        heapq.heappush(self._appointments, (when, next(self._numbers), action))

    def start(self) -> None:
        """Turn, on the running event loop."""
        loop = asyncio.get_running_loop()
        self._timer = _open_timer()
        self._began = clock() - TICK_S / 10  # so that the timer is never early
        if self._timer is None:
            loop.call_later(0.001, self._turn_by_loop, loop)
        else:
            loop.add_reader(self._timer, self._turn_by_timer, self._timer)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)

    def _turn_by_timer(self, timer: int) -> None:
        os.read(timer, 8)
        self._turn()

    def _turn_by_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._stopped:
            loop.call_later(0.001, self._turn_by_loop, loop)
            self._turn()

    def _turn(self) -> None:
        now = clock()
        due = int((now - self._began) / TICK_S)
        if due == self._done:
            return
        late_s = now - self._began - (self._done + 1) * TICK_S
        self.lags.append(late_s)
        if late_s > MAX_LATE_S:
            self._done = due - 1
        for tick in range(self._done + 1, due + 1):
            for ticks, ring in self._rings:
                for action in ring[tick % ticks]:
                    action()
        self._done = due
        appointments = self._appointments
        while appointments and appointments[0][0] <= now:
            heapq.heappop(appointments)[2]()

    def _ring(self, ticks: int) -> list[list[_Action]]:
        return next(ring for length, ring in self._rings if length == ticks)


def _open_timer() -> int | None:
    """A descriptor that becomes readable every tick; None where the system has no such thing."""
    if sys.platform != "linux":
        return None
    create, clock_monotonic = 0o2004000, 1  # TFD_CLOEXEC | TFD_NONBLOCK
    libc = ctypes.CDLL(None, use_errno=True)
    timer: int = libc.timerfd_create(clock_monotonic, create)
    nanoseconds = int(TICK_S * 1e9)
    # struct itimerspec: the interval and the first expiry, each seconds and nanoseconds
    spec = (ctypes.c_long * 4)(0, nanoseconds, 0, nanoseconds)
    if timer < 0 or libc.timerfd_settime(timer, 0, ctypes.byref(spec), None) < 0:
        return None
    return timer
