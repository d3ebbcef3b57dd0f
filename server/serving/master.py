"""``python -m server --workers N``: a parent that listens, starts N processes, and never serves.

The processes are spawned, as the ``hypercorn`` command does it, so that they share a secret (see
:func:`server.cluster.meeting.shared_secret`). One that dies takes its own calls with it and nothing
else: another is started in its place. To stop is to have each of them drain.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import structlog
import trio

from server import logs
from server.app import create_app
from server.cluster.meeting import AVAILABLE
from server.errors import ConfigurationError
from server.hooks.hypercorn_worker import FAILED_STATUS, stop_on_signals
from server.hooks.sockets import raise_file_limit
from server.logs import output
from server.pace import Backoff
from server.serving.single import listen, serve
from server.settings.settings import Settings

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

READY = b"ready"
RESTART_PAUSE_S = (0.2, 30.0)
"""Before one that died is replaced: at first, and at most; doubled while it dies again at once."""


class _NeverStarted(Exception):
    """A process of ours that has never served ended by itself: the next one would, too."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a process ended with status {status} before it served")
        self.status = status


class Master:
    """The parent.

    Args:
        settings: Where to listen, and how to log.
        overrides: Settings given on the command line, for the processes.
        count: How many processes.
    """

    def __init__(self, settings: Settings, overrides: Mapping[str, Any], count: int) -> None:
        if not AVAILABLE:
            raise ConfigurationError(
                "--workers needs Unix sockets, which this system does not have"
            )
        self._settings = settings
        self._overrides = dict(overrides)
        self._count = count
        self._context = multiprocessing.get_context("spawn")
        self._processes: set[BaseProcess] = set()
        self._stopping = trio.Event()
        self._has_served = False

    async def run(self) -> int:
        """Keep the processes running until a signal says stop; the value is the exit status.

        Raises:
            CannotListen: The address is taken, or not ours to listen on.
        """
        listener = listen(self._settings.host, self._settings.port)
        status = 0
        with listener:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._stop_on_signal)
                    async with trio.open_nursery() as keepers:
                        for _ in range(self._count):
                            keepers.start_soon(self._keep_one, listener)
                    nursery.cancel_scope.cancel("every process has ended")
            except* _NeverStarted as failures:
                status = max(_statuses(failures))
        return status

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if self._stopping.is_set():
                    for process in self._processes:
                        process.kill()
                self._stopping.set()

    async def _keep_one(self, listener: socket.socket) -> None:
        backoff = Backoff(*RESTART_PAUSE_S)
        while not self._stopping.is_set():
            served, status = await self._run_one(listener)
            if self._stopping.is_set():
                return
            if not served and not self._has_served:
                raise _NeverStarted(max(status, 1))
            logger.error("a process of this server ended, and its calls with it", status=status)
            if served:
                backoff.reset()
            else:
                backoff.double()
            with trio.move_on_after(backoff.pause_s):
                await self._stopping.wait()

    async def _run_one(self, listener: socket.socket) -> tuple[bool, int]:
        """Start a process and wait for its end: whether it has served, and its exit status."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(listener, self._overrides, self._count, theirs)
        )
        process.start()
        theirs.close()
        self._processes.add(process)
        served = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_one, process)
                await trio.lowlevel.wait_readable(ours.fileno())  # it is ready, or gone
                try:
                    served = ours.recv_bytes() == READY
                except EOFError:
                    served = False
                self._has_served |= served
                await trio.lowlevel.wait_readable(process.sentinel)
                nursery.cancel_scope.cancel("it has ended")
        finally:
            # Cancelled only when another one never started: then nothing may be left behind.
            if process.exitcode is None:
                process.kill()
            process.join()
            self._processes.discard(process)
            ours.close()
        return served, process.exitcode or 0

    async def _stop_one(self, process: BaseProcess) -> None:
        await self._stopping.wait()
        process.terminate()


def _statuses(failures: BaseExceptionGroup[_NeverStarted]) -> list[int]:
    found: list[int] = []
    for failure in failures.exceptions:
        if isinstance(failure, BaseExceptionGroup):
            found += _statuses(failure)
        else:
            found.append(failure.status)
    return found


# ------------------------------------------------------------------------------------------
# In the process


def work(
    listener: socket.socket, overrides: Mapping[str, Any], count: int, master: Connection
) -> None:
    """What a process of several does: serve, until it or its parent is told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent, which passes it on
    output.take_over()
    try:
        settings = Settings.load(**overrides)
        logs.configure(level=settings.log_level, json=settings.log_json)
        raise_file_limit()
        status = trio.run(_serve, settings, listener, count, master)
    except ConfigurationError as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        status = 2
    sys.exit(status)


async def _serve(
    settings: Settings, listener: socket.socket, count: int, master: Connection
) -> int:
    app = create_app(settings)
    app.service.workers.join(count)
    stop = trio.Event()

    async def serve_until_stopped(task_status: trio.TaskStatus[None]) -> None:
        await serve(app, listener, stop=stop, task_status=task_status)
        nursery.cancel_scope.cancel("the calls have ended")

    async with trio.open_nursery() as nursery:
        # A service manager tells every process, and the parent tells them again: once is enough.
        nursery.start_soon(stop_on_signals, stop, {signal.SIGTERM: False})
        nursery.start_soon(_stop_with_parent, stop)
        await nursery.start(serve_until_stopped)
        with suppress(OSError):  # the parent has gone already
            master.send_bytes(READY)
    return FAILED_STATUS if app.service.failed.is_set() else 0


async def _stop_with_parent(stop: trio.Event) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    await trio.lowlevel.wait_readable(parent.sentinel)
    stop.set()
