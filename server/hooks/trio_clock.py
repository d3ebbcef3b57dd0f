"""A clock that stands while our own loop is late: our pause is nobody else's silence.

A process is stopped, frozen, starved of its processor or swapped out, and all that came meanwhile
waits unread. A deadline that stands for somebody's silence (the carrier's, the model's, a client's)
would be judged by the clock alone, and take our own absence for theirs. So trio's clock itself
counts no more of a pass of its loop than was planned: the sleep, and a step of :data:`STEP_S`. What
goes beyond is missed, for good, and no deadline has to know of it.

::

    sleep, planned until D │ late: it is D + 6 s ─▶ the clock stands just before D
                           │ passes without a sleep: whatever waits is read, and handled
                           └▶ the clock goes on from D + STEP_S

First what waits is read, then time goes on: :data:`PASSES` passes are as many turns for each layer
between a socket and whoever waits with a deadline, and for each 128 sockets of the media plane's.

Where one late pass follows another there is no pause but a load, and time has to go on: what is too
late for the carrier is too late, however much there is to do. While it lasts a pass may be twice as
late as the latest before it until the clock stands, so that of passes of half a second all counts,
and a pause is still told from them.

Real time is ``time.perf_counter()``; :func:`missed_s` is what trio's time lacks of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from math import inf
from time import perf_counter
from typing import Any

import structlog
import trio
from trio._core import _run
from trio.abc import Clock, Instrument

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

STEP_S = 0.1
"""Lateness of one pass that counts as time: work of ours, or a busy machine, and no pause."""
PASSES = 16
"""Through which the clock stands after a pause: a few layers deep, and 2048 sockets of the plane's.
Where nothing waits they take a third of a millisecond."""
LONGEST_S = 0.5
"""Or until so much work is done in fewer of them, each counted for no more than a step."""
LOAD_S = 2.0
"""Two late passes within this time are a load, which is over so long after its last late one."""
LOADED_STEP_S = 1.0
"""Under a load no more than this lateness of one pass counts as time, whatever came before."""
JUST_BEFORE_S = 1e-6
TELL_EVERY_S = 2.0
TOLD_FROM_S = 0.5
"""What is missed of less than this in that time is counted, but no line of the log."""


class PausingClock(Clock, Instrument):
    """trio's own clock, less the time in which the loop was held up; see the module.

    It is told by trio when a pass begins and ends its wait, as an instrument.

    Args:
        offset_s: Of trio's clock, from the real one.
        read_real_s: Real time in seconds.

    Attributes:
        users: Who wants it; the last one takes it out again.
        on_pause: Called when time begins to stand; see :func:`told_of_pauses`.
    """

    # Everybody asks for the time, and slots are found sooner.
    __slots__ = (
        *("users", "_offset_s", "_read_real_s", "_missed_s", "_told", "_ceiling", "_just_before"),
        *("on_pause", "_stands", "_passes", "_worked_s", "_passed_at_s", "_step_s", "_late_at_s"),
    )

    def __init__(
        self, offset_s: float = 0.0, *, read_real_s: Callable[[], float] = perf_counter
    ) -> None:
        self.users = 0
        self.on_pause: list[Callable[[], None]] = []
        self._offset_s = offset_s
        self._read_real_s = read_real_s
        self._missed_s = 0.0
        self._told = -inf  # the latest time that anybody has been told
        self._ceiling = inf  # how far time may go in this pass; nowhere while it stands
        self._just_before = -inf  # the end of the sleep that was planned
        self._stands = False
        self._passes = 0
        self._worked_s = 0.0
        self._passed_at_s = 0.0
        self._step_s = STEP_S  # more under a load
        self._late_at_s = -inf  # in real time

    def start_clock(self) -> None:
        """Do nothing: the clock runs when it is put in."""

    def current_time(self) -> float:
        """The time, which stands while what waits is read."""
        now = self._read_real_s() + self._offset_s
        if now > self._ceiling:
            return self._stand(now)
        self._told = now
        return now

    def _stand(self, now: float) -> float:
        """The loop is late: time stands until what waits is read."""
        if not self._stands:
            self._stands = True
            self._ceiling = -inf
            self._passes, self._worked_s = 0, 0.0
            self._passed_at_s = now
            self._told = max(self._told, self._just_before)
            for tell in self.on_pause:
                try:
                    tell()
                except Exception:  # whoever has asked for the time is to get it
                    logger.exception("a pause not told of by a bug of ours")
        return self._told

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How long to sleep; not at all while something may wait to be read."""
        now = self.current_time()
        return 0.0 if self._stands else deadline - now

    def before_io_wait(self, timeout: float) -> None:
        """A pass is about to sleep for so long, if nothing comes."""
        try:
            now = self.current_time()
            if not self._stands:
                self._see_load(now)
                self._just_before = now + timeout - JUST_BEFORE_S
                self._ceiling = now + timeout + self._step_s
        except BaseException:
            self._let_go()
            raise

    def after_io_wait(self, timeout: float) -> None:
        """The sleep is over, and the deadlines are about to be looked at."""
        try:
            stood, now = self._stands, self.current_time()
            if not self._stands:
                self._see_load(now)
                self._just_before, self._ceiling = now, now + self._step_s
            elif stood:
                self._count_pass()
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        """Run on as trio's own: it asks an instrument that has failed no more."""
        self._stands, self._ceiling = False, inf

    def _note_late(self, now: float, late_s: float) -> None:
        """A pass was late: with one that was so shortly before, this is a load."""
        real_s = now - self._offset_s
        if real_s - self._late_at_s < LOAD_S:
            self._step_s = min(max(self._step_s, 2 * late_s), LOADED_STEP_S)
        self._late_at_s = real_s

    def _see_load(self, now: float) -> None:
        """A pass, or its sleep, has ended in time; under a load, see whether that goes on."""
        if self._step_s == STEP_S:
            return
        if (late_s := now - self._just_before) > STEP_S:
            self._note_late(now, late_s)
        elif now - self._offset_s - self._late_at_s > LOAD_S:
            self._step_s = STEP_S

    def _count_pass(self) -> None:
        """One more pass has read what waited; after the last one time goes on."""
        real = self._read_real_s() + self._offset_s
        worked_s, self._passed_at_s = real - self._passed_at_s, real
        self._passes += 1
        self._worked_s += min(worked_s, STEP_S)
        late_s = real - self._just_before if self._passes == 1 else worked_s
        if late_s > STEP_S:
            self._note_late(real, late_s)
        if self._passes < PASSES and self._worked_s < LONGEST_S:
            return
        self._told = max(self._told, min(self._just_before + self._step_s, real))
        self._just_before = self._told
        self._missed_s += real - self._told
        self._offset_s -= real - self._told
        self._stands = False
        self._ceiling = self._told + self._step_s

    @property
    def stands(self) -> bool:
        """Whether time stands, so that what waits is read first."""
        return self._stands

    @property
    def missed_s(self) -> float:
        """What has been left out so far."""
        return self._missed_s + self._standing_s()

    @property
    def offset_s(self) -> float:
        """How far this time is from the real one."""
        return self._offset_s - self._standing_s()

    def _standing_s(self) -> float:
        if not self._stands:
            return 0.0
        return self._read_real_s() + self._offset_s - self._told


def _clock() -> PausingClock | None:
    """The clock of the running trio, if it is one of these."""
    clock = _trios_clock()
    return clock if isinstance(clock, PausingClock) else None


def _trios_clock() -> Any:
    return getattr(getattr(_run.GLOBAL_RUN_CONTEXT, "runner", None), "clock", None)


@contextmanager
def pausing_clock() -> Generator[PausingClock | None]:
    """Have trio's clock stand within the block while the loop is late; servers share one.

    None, and nothing changed, under any clock but trio's own: one for tests knows no pauses. If
    this trio is not as expected, that is said, and deadlines count our own lateness.
    """
    runner: Any = _run.GLOBAL_RUN_CONTEXT.runner
    system: Any = getattr(_run, "SystemClock", None)
    ordinary: Any = getattr(runner, "clock", None)
    clock = _clock()
    if clock is None:
        if system is not None and ordinary is not None and type(ordinary) is not system:
            yield None
            return
        if not isinstance(getattr(ordinary, "offset", None), float):
            logger.warning("this trio's clock is not as expected: our pauses count as silence")
            yield None
            return
        clock = PausingClock(ordinary.offset)
        runner.clock = clock
        trio.lowlevel.add_instrument(clock)
    clock.users += 1
    try:
        yield clock
    finally:
        clock.users -= 1
        if not clock.users:
            with suppress(KeyError):  # it has failed
                trio.lowlevel.remove_instrument(clock)
            runner.clock = system(offset=clock.offset_s)


def steady_time() -> float | None:
    """The time, if it goes on as the world's does: not while it stands, nor by a clock for tests,
    for which every look at it may count.
    """
    clock = _trios_clock()
    if isinstance(clock, PausingClock):
        now = clock.current_time()
        return None if clock._stands else now
    is_trios = clock is not None and type(clock) is getattr(_run, "SystemClock", None)
    return clock.current_time() if is_trios else None


def missed_s() -> float:
    """How many seconds trio's time has left out: what it lacks of the time in the world.

    ``trio.current_time() + missed_s()`` is for what goes on out there though we are held up: what
    the carrier plays and bills.
    """
    clock = _clock()
    return 0.0 if clock is None else clock.missed_s


@contextmanager
def told_of_pauses(tell: Callable[[], None]) -> Generator[None]:
    """Call this within the block whenever the process has been held up, before anything is read
    that came meanwhile.

    Whoever asks for the time finds that out, so it is called in the middle of other work: it is to
    wait for nothing, and to do little. Under a clock for tests there are no pauses.
    """
    clock = _clock()
    if clock is not None:
        clock.on_pause.append(tell)
    try:
        yield
    finally:
        if clock is not None:
            clock.on_pause.remove(tell)


def is_standing() -> bool:
    """Whether the process has been held up, and what waited meanwhile is being read."""
    clock = _clock()
    return clock is not None and clock.stands


async def tell_of_pauses(count: Callable[[float], None]) -> None:
    """Count what the process has missed, in seconds, and say so in the log, until cancelled."""
    told_s = missed_s()
    while True:
        await trio.sleep(TELL_EVERY_S)
        paused_s = missed_s() - told_s
        told_s += paused_s
        if paused_s > 0.0:
            count(paused_s)
        if paused_s >= TOLD_FROM_S:
            logger.warning("the process was held up", paused_s=round(paused_s, 1))
