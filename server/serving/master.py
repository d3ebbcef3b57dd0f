"""``python -m server --workers N``: a parent that listens, starts N processes, and never serves.

The processes are spawned, as the ``hypercorn`` command does it, so that they share a secret (see
:func:`server.cluster.directory.meeting.shared_secret`). One that dies takes its own calls with it
and nothing else: another is started in its place, unless one after another dies soon. To stop is to
have each of them drain.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import structlog
import trio

from server import logs
from server.app import create_app
from server.cluster.directory.meeting import AVAILABLE
from server.errors import ConfigurationError
from server.hooks.hypercorn_worker import FAILED_STATUS
from server.hooks.sockets import raise_file_limit
from server.hooks.stopping import StopSignals, signals_held_back
from server.logs import output
from server.serving.single import listen, serve
from server.settings.settings import Settings
from server.supervision import Restarts

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

READY = b"ready"
STOP = (signal.SIGTERM, signal.SIGINT)


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
        signals: What stops it; a second one, later, kills the processes.
    """

    def __init__(
        self,
        settings: Settings,
        overrides: Mapping[str, Any],
        count: int,
        signals: StopSignals | None = None,
    ) -> None:
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
        self._signals = signals or master_signals()
        self._has_served = False
        self._gave_up = False

    async def run(self) -> int:
        """Keep the processes running until a signal says stop; the value is the exit status.

        Raises:
            CannotListen: The address is taken, or not ours to listen on.
        """
        listener = listen(self._settings.host, self._settings.port)
        resource_tracker.ensure_running()  # or a start would, and let signals through as it does
        status = 0
        with listener, self._signals.told(self._stopping, self._kill):
            try:
                async with trio.open_nursery() as keepers:
                    for _ in range(self._count):
                        keepers.start_soon(self._keep_one, listener)
            except* _NeverStarted as failures:
                status = max(_statuses(failures))
        return FAILED_STATUS if self._gave_up else status

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    async def _keep_one(self, listener: socket.socket) -> None:
        restarts = Restarts()
        while not self._stopping.is_set():
            lived_s, status = await self._run_one(listener)
            if self._stopping.is_set():
                return
            if not self._has_served:
                raise _NeverStarted(max(status, 1))
            logger.error("a process of this server ended, and its calls with it", status=status)
            if (pause_s := restarts.after(lived_s)) is None:
                logger.error("one process after another died soon: the whole server stops")
                self._gave_up = True
                self._stopping.set()
                return
            with trio.move_on_after(pause_s):
                await self._stopping.wait()

    async def _run_one(self, listener: socket.socket) -> tuple[float, int]:
        """Start a process and wait for its end: how long it has served, and its exit status."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(listener, self._overrides, self._count, theirs)
        )
        with signals_held_back(*STOP):
            process.start()
        theirs.close()
        self._processes.add(process)
        lived_s = 0.0
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_one, process)
                await trio.lowlevel.wait_readable(ours.fileno())  # it is ready, or gone
                with suppress(EOFError):
                    self._has_served |= ours.recv_bytes() == READY
                serves_from = trio.current_time()
                await trio.lowlevel.wait_readable(process.sentinel)
                lived_s = trio.current_time() - serves_from
                nursery.cancel_scope.cancel("it has ended")
        finally:
            # Cancelled only when another one never started: then nothing may be left behind.
            if process.exitcode is None:
                process.kill()
            process.join()
            self._processes.discard(process)
            ours.close()
        return lived_s, process.exitcode or 0

    async def _stop_one(self, process: BaseProcess) -> None:
        await self._stopping.wait()
        process.terminate()


def master_signals() -> StopSignals:
    """What stops a server of several processes."""
    return StopSignals(dict.fromkeys(STOP, True))


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
    # A service manager or a terminal tells every process, and the parent tells them again: once is
    # enough. They have been held back since before this process began.
    signals = StopSignals(dict.fromkeys(STOP, False))
    signals.install()
    output.take_over()
    try:
        settings = Settings.load(**overrides)
        logs.configure(level=settings.log_level, json=settings.log_json)
        raise_file_limit()
        status = trio.run(_serve, settings, listener, count, master, signals)
    except ConfigurationError as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        status = 2
    sys.exit(status)


async def _serve(
    settings: Settings,
    listener: socket.socket,
    count: int,
    master: Connection,
    signals: StopSignals,
) -> int:
    app = create_app(settings)
    app.service.cluster.join(count)
    stop = trio.Event()

    async def serve_until_stopped(task_status: trio.TaskStatus[None]) -> None:
        await serve(app, listener, stop=stop, task_status=task_status)
        nursery.cancel_scope.cancel("the calls have ended")

    with signals.told(stop):
        async with trio.open_nursery() as nursery:
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
