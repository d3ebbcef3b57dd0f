"""Keeping the server's helpers going: one that fails is told of, and begun again after a pause.

What writes recordings, watches the loop or asks MCP servers is beside the calls: a bug there, or
something outside that nobody has thought of, is not worth ending a single one of them. What a
helper knows how to bear it bears itself; this is for the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog
import trio

from server.pace import Backoff

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PAUSE_S = (0.5, 30.0)
"""Before a helper that has failed is begun again: at first, and at most."""
STEADY_S = 60.0
"""A helper that has gone on for so long works: what it failed with before is forgotten."""


RESTART_PAUSE_S = (0.2, 30.0)
"""Before a process that died is replaced: at first, and at most; doubled while they die soon."""
MAX_SOON_DEATHS = 10
"""So many processes in a row that died soon, which takes about two minutes, and no more."""


class Restarts:
    """Whether and when a process that ended by itself is replaced; no clock.

    One that has lived for :data:`STEADY_S` works, and what became of those before it is forgotten.
    """

    def __init__(self) -> None:
        self._backoff = Backoff(*RESTART_PAUSE_S)
        self._shortage = Backoff(*RESTART_PAUSE_S)
        self._soon_deaths = 0

    def not_started(self) -> float:
        """No process has come to serve: returns the pause before the next try.

        It is never given up: the processes that there are have calls, and need nothing of what this
        one lacks, be it the system's, or in a file, or the database's that a later version uses.
        """
        return self._shortage.next_s()

    def after(self, lived_s: float) -> float | None:
        """A process has ended: returns the pause before another is started, None to give up.

        Args:
            lived_s: For how long it has served.
        """
        self._shortage.reset()
        if lived_s >= STEADY_S:
            self._soon_deaths = 0
            self._backoff.reset()
        self._soon_deaths += 1
        return None if self._soon_deaths > MAX_SOON_DEATHS else self._backoff.next_s()


class Helper(Protocol):
    """Goes on until it is cancelled; says when it has begun."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[None]:
        """Run the helper."""
        ...


class Start:
    """A task's ``task_status`` that can be asked whether it has started, and told so again."""

    def __init__(self, task_status: trio.TaskStatus[Any]) -> None:
        self._task_status = task_status
        self.is_over = False

    def started(self, value: Any = None) -> None:
        """The task has started; only the first word of it goes on to whoever waits."""
        if not self.is_over:
            self.is_over = True
            self._task_status.started(value)


async def keep_going(
    name: str,
    helper: Helper,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a helper, and run it again when it fails, until it returns or is cancelled.

    Args:
        name: What the log calls it.
        helper: May be run several times, one after the other.
        task_status: Told when the helper has started for the first time.

    Raises:
        Exception: What the helper failed with before it had started.
    """
    start = Start(task_status)
    backoff = Backoff(*PAUSE_S)
    while True:
        began_at = trio.current_time()
        try:
            await helper(task_status=start)
        except Exception:
            if not start.is_over:
                raise
            if trio.current_time() - began_at >= STEADY_S:
                backoff.reset()
            pause_s = backoff.next_s()
            logger.exception("helper failed and is begun again", helper=name, pause_s=pause_s)
            await trio.sleep(pause_s)
        else:
            return


def without_start(run: Callable[[], Awaitable[None]]) -> Helper:
    """A helper that has started as soon as it is called."""

    async def helper(*, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started()
        await run()

    return helper


async def first_of(*waits: Callable[[], Awaitable[Any]]) -> None:
    """Wait until one of these returns, and leave the others."""
    async with trio.open_nursery() as nursery:

        async def wait(until: Callable[[], Awaitable[Any]]) -> None:
            await until()
            nursery.cancel_scope.cancel("another has come first")

        for each in waits:
            nursery.start_soon(wait, each)
