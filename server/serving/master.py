"""``python -m server --workers N``: a parent that listens, starts N processes, and never serves.

The processes are spawned, as the ``hypercorn`` command does it, so that they share a secret (see
:func:`server.cluster.directory.meeting.shared_secret`). One that dies takes its own calls with it
and nothing else: another is started in its place, unless one after another dies soon. To stop is to
have each of them drain. The parent tells each when to take calls, which is at once, unless they are
to take over from another server: then it is when all of them can.

It imports nothing of what serves, which would be 100 MB and a second of the processor's time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import structlog
import trio

from server import logs
from server.cluster.directory.directory import clear_away_after
from server.cluster.directory.meeting import AVAILABLE
from server.errors import CannotListen, ConfigurationError
from server.garbage import imported_for_good
from server.hooks.keeper import FAILED_STATUS, SIGNALLED_STATUS
from server.hooks.stopping import StopSignals, hang_up, signals_held_back
from server.serving.listening import listen
from server.serving.notify import Detached
from server.serving.stops import STOP
from server.serving.succession import MAX_TOLD_CHARS, Predecessor, Succession
from server.serving.words import READ_AGENTS, READY, STEP_ASIDE, STEP_IN
from server.settings.settings import Settings
from server.supervision import Restarts, first_of

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TRIED_END_S = 5.0
"""So long what has read the agents may take to end by itself."""


def work(*told: Any) -> None:
    """What is started, once for each process; see :func:`server.serving.member.work`."""
    with imported_for_good():
        from server.serving import member

    member.work(*told)


def try_agents(settings: Settings, master: Connection) -> None:
    """What is started to read the agents once, and to say what is wrong with them, if anything."""
    logs.configure(level=settings.log_level, json=settings.log_json)
    # Held back while it was started. SIGHUP stays so: it may be no more than a wish to read again.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from server.agent.roster.files import read_agents

    wrong = ""
    try:
        read_agents(settings)
    except ConfigurationError as error:
        wrong = str(error)[:MAX_TOLD_CHARS]
    master.send_bytes(wrong.encode(errors="backslashreplace"))


def _end_with_parent() -> None:
    """End this process, whatever it is at, when its parent has gone, as nobody else would."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(FAILED_STATUS)


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
        detached: Told when they serve.
        takes_over: Whether they take over from the server that has their address.
    """

    def __init__(
        self,
        settings: Settings,
        overrides: Mapping[str, Any],
        count: int,
        signals: StopSignals,
        detached: Detached,
        *,
        takes_over: bool = False,
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
        self._wires: set[Connection] = set()
        self._stopping = trio.Event()
        self._signals = signals
        self._detached = detached
        self._takes_over = takes_over
        self._ready: set[int] = set()
        self._serving: set[int] = set()
        self._all_ready, self._begun, self._relieved = trio.Event(), trio.Event(), trio.Event()
        self._refusal: CannotListen | None = None
        self._has_served = False
        self._gave_up = False

    async def run(self) -> int:
        """Keep the processes running until a signal says stop; the value is the exit status.

        Raises:
            CannotListen: The address is taken, not ours to listen on, or not given to us.
        """
        host, port = self._settings.host, self._settings.port
        predecessor = await Predecessor.ask(host, port) if self._takes_over else None
        listener = predecessor.listener if predecessor else listen(host, port)
        with signals_held_back(*hang_up()):  # or it would die of it; the others it ignores
            resource_tracker.ensure_running()  # or a start would, and let signals through
        status = 0
        self._signals.on_reload = self._tell_read_agents
        try:
            with listener, self._signals.told(self._stopping, self._kill):
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._begin, predecessor, listener)
                        async with trio.open_nursery() as keepers:
                            for index in range(self._count):
                                keepers.start_soon(self._keep_one, listener, index)
                        nursery.cancel_scope.cancel("the last process has ended")
                except* _NeverStarted as failures:
                    status = max(_statuses(failures))
        finally:
            if predecessor is not None:
                predecessor.close()
        if self._refusal is not None:
            raise self._refusal
        clear_away_after()
        if self._signals.again:
            return SIGNALLED_STATUS + self._signals.again
        return FAILED_STATUS if self._gave_up else status

    async def _begin(self, predecessor: Predecessor | None, listener: socket.socket) -> None:
        """Let the processes take calls, and wait until another server takes over from them."""
        if predecessor is None:
            self._begun.set()
        await first_of(self._all_ready.wait, self._stopping.wait)
        if self._stopping.is_set():  # before all could serve: whoever serves here goes on
            return
        if predecessor is not None:
            try:
                await predecessor.relieve()
            except CannotListen as error:
                self._refusal = error
                self._stopping.set()
                return
            self._has_served = True
            self._begun.set()
        port = listener.getsockname()[1]
        host, is_ending = self._settings.host, self._stopping.is_set
        succession = Succession(listener, host, port, self._read_agents, is_ending)
        async with trio.open_nursery() as waiting:
            await waiting.start(succession.run)
            self._detached.tell_ready()
        self._relieved.set()
        listener.close()  # or nobody could listen there if the other server ended before this one

    def _tell_read_agents(self) -> None:
        for wire in self._wires:
            with suppress(OSError):  # it has just ended
                wire.send_bytes(READ_AGENTS)

    async def _read_agents(self) -> str:
        """Have each process read its agents; what is wrong is found before, in one that ends.

        Raises:
            ConfigurationError: They are wrong, or could not be read there.
        """
        # Not in this process: it would find what is on disk by now, perhaps of another version,
        # and have it in its memory from then on.
        try:
            process, ours = self._start(try_agents, self._settings)
        except OSError as error:
            raise ConfigurationError(
                f"AGENTS: nothing can be started to read them: {error}"
            ) from error
        try:
            if not (wrong := await _what_is_wrong(process, ours)):
                self._tell_read_agents()
            told = len(self._wires)
            # What its modules clean up at the end they may. Shielded: what came of it is known, and
            # is told though the time for the reading is over meanwhile.
            with trio.move_on_after(TRIED_END_S, shield=True):
                await trio.lowlevel.wait_readable(process.sentinel)
        finally:
            process.kill()
            process.join()
            ours.close()
        if wrong:
            raise ConfigurationError(wrong)
        return f"{told} processes read their agents; the log says what came of it"

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    async def _keep_one(self, listener: socket.socket, index: int) -> None:
        restarts = Restarts()
        while not self._is_ending:
            try:
                lived_s, status = await self._run_one(listener, index)
            except OSError as error:
                logger.error("a process of this server cannot be started", error=str(error))  # noqa: TRY400
                if not self._has_served:
                    raise _NeverStarted(1) from error
                # The others have calls, and need nothing of what is short just now.
                await self._pause(restarts.not_started())
                continue
            if self._is_ending:
                return
            if not self._has_served:
                raise _NeverStarted(max(status, 1))
            if lived_s is None and self._serving:
                again_s = restarts.not_started()
                logger.error(
                    "a process of this server ended before it served, and is tried again",
                    status=status,
                    pause_s=again_s,
                )
                await self._pause(again_s)
                continue
            logger.error("a process of this server ended", status=status)
            if (pause_s := restarts.after(lived_s or 0.0)) is None:
                logger.error("one process after another died soon: the whole server stops")
                self._gave_up = True
                self._stopping.set()
                return
            await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> None:
        """Wait so long, or until no process is started any more."""
        with trio.move_on_after(pause_s):
            await first_of(self._stopping.wait, self._relieved.wait)

    @property
    def _is_ending(self) -> bool:
        return self._stopping.is_set() or self._relieved.is_set()

    async def _run_one(self, listener: socket.socket, index: int) -> tuple[float | None, int]:
        """Start a process and wait for its end: how long it has served, None if it never did, and
        its exit status.

        Raises:
            OSError: The system has nothing to start one with.
        """
        process, ours = self._start(work, listener, self._overrides, self._count, index)
        self._processes.add(process)
        self._wires.add(ours)
        lived_s = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_one, process)
                nursery.start_soon(self._tell_one, ours)
                await trio.lowlevel.wait_readable(ours.fileno())  # it is ready, or gone
                # Whoever dies without having read what it was told leaves a reset, and no end.
                with suppress(EOFError, ConnectionResetError):
                    if ours.recv_bytes() == READY:
                        self._has_served |= self._begun.is_set()
                        self._ready.add(index)
                        self._serving.add(index)
                        if len(self._ready) == self._count:
                            self._all_ready.set()
                serves_from = trio.current_time()
                await trio.lowlevel.wait_readable(process.sentinel)
                if index in self._serving:
                    lived_s = trio.current_time() - serves_from
                nursery.cancel_scope.cancel("it has ended")
        finally:
            # Cancelled only when another one never started: then nothing may be left behind.
            if process.exitcode is None:
                process.kill()
            process.join()
            self._processes.discard(process)
            self._serving.discard(index)
            self._wires.discard(ours)
            ours.close()
        return lived_s, process.exitcode or 0

    def _start(self, target: Callable[..., None], *facts: object) -> tuple[BaseProcess, Connection]:
        """Start a process; what it is told, and tells us, goes through the connection."""
        ours, theirs = self._context.Pipe()
        with theirs:
            process = self._context.Process(target=target, args=(*facts, theirs))
            try:
                with signals_held_back(*STOP):
                    process.start()
            except BaseException:
                ours.close()
                raise
        return process, ours

    async def _stop_one(self, process: BaseProcess) -> None:
        await self._stopping.wait()
        process.terminate()

    async def _tell_one(self, process: Connection) -> None:
        for event, word in ((self._begun, STEP_IN), (self._relieved, STEP_ASIDE)):
            await event.wait()
            with suppress(OSError):  # it has just ended
                process.send_bytes(word)


async def _what_is_wrong(reader: BaseProcess, ours: Connection) -> str:
    """Wait for what a process that reads agents says of them; nothing if they are right."""
    try:
        await trio.lowlevel.wait_readable(ours.fileno())
        return ours.recv_bytes().decode()
    except (EOFError, ConnectionResetError):
        await trio.lowlevel.wait_readable(reader.sentinel)
        reader.join()
        return (
            f"AGENTS: what was to read them ended with status {reader.exitcode}, and the log "
            "may say why; if another version has been installed meanwhile, have that take over"
        )


def _statuses(failures: BaseExceptionGroup[_NeverStarted]) -> list[int]:
    found: list[int] = []
    for failure in failures.exceptions:
        if isinstance(failure, BaseExceptionGroup):
            found += _statuses(failure)
        else:
            found.append(failure.status)
    return found
