"""The one place that reaches into trio: while it would sleep, the media plane is served.

A plane that is an ordinary task costs a pass of trio's scheduler for each time that audio comes:
wake a task, register its socket again, look through the timers. That is more than all the rest of
a frame. Here the order is turned round: trio's own wait is a socket among the plane's sockets, so
audio is served where trio sleeps, and trio wakes when it has something to do itself.

::

    trio: nothing to run until t ──▶ wait in the plane's epoll: media sockets, and trio's own epoll
                                         │ media: served at once, then on with the wait
                                         '─▶ trio's epoll is ready, a task can run, or it is t

And where trio does not get to sleep, since hundreds of tasks want to run in one pass (calls that
come in all at once), audio does not wait for the end of the pass: between two steps of tasks it is
served when that has not been done for :data:`BETWEEN_S`.

trio has no public way for this. What is used of it are the two methods of its Linux I/O manager
that stand between "nothing to run" and "run", and tests/hooks/test_trio_hook.py fails loudly when a
version of trio goes another way. Where it does not fit, :func:`serving_while_trio_sleeps` says so
and the plane is an ordinary task.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

import trio
from trio._core import _run

BETWEEN_S = 0.002
"""A tenth of a frame: what is asked of the system more often costs more than it is worth."""


class SleepsWell(Protocol):
    """What serves sockets while trio sleeps."""

    def serve_until(self, timeout_s: float, wakes_at: int, has_work: Callable[[], bool]) -> bool:
        """Serve until this file number is readable, there is work, or the time is over.

        Returns:
            False if the time is over.
        """
        ...

    def serve_now(self) -> None:
        """Serve what is ready, without a wait; never raises."""
        ...


class _Between(trio.abc.Instrument):
    """Serves between two steps of tasks in a long pass."""

    def __init__(self, server: SleepsWell) -> None:
        self._serve = server.serve_now
        self.served_at = perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if perf_counter() - self.served_at > BETWEEN_S:
            self._serve()
            self.served_at = perf_counter()


class _Served(list[Any]):
    """No events for trio, and yet not the end of its patience: something has happened."""

    def __bool__(self) -> bool:
        return True


@contextmanager
def serving_while_trio_sleeps(server: SleepsWell) -> Generator[int | None]:
    """Have this served within the block; the value is the number of trio's own epoll.

    None, and nothing changed, if this trio is not as expected, or serves somebody already.
    """
    runner: Any = getattr(_run.GLOBAL_RUN_CONTEXT, "runner", None)
    manager: Any = getattr(runner, "io_manager", None)
    ordinary: Any = type(manager)
    if ordinary.__name__ != "EpollIOManager" or not hasattr(manager, "_epoll"):
        yield None
        return
    wait, trios = ordinary.get_events, manager._epoll.fileno()
    runnable, deadlines = runner.runq, runner.deadlines
    between = _Between(server)

    class EpollIOManagerServing(ordinary):  # type: ignore[misc]
        __slots__ = ()

        def get_events(self, timeout: float) -> Any:
            sleeps_until = deadlines.next_deadline()

            def has_work() -> bool:
                return bool(runnable) or deadlines.next_deadline() < sleeps_until

            is_over = not server.serve_until(timeout, trios, has_work)
            between.served_at = perf_counter()
            return [] if is_over else wait(self, 0) or _Served()

    manager.__class__ = EpollIOManagerServing
    trio.lowlevel.add_instrument(between)
    try:
        yield trios
    finally:
        trio.lowlevel.remove_instrument(between)
        manager.__class__ = ordinary
