"""Under ``hypercorn -w N``: each worker's death is its own, for a keeper starts another.

hypercorn takes the death of one worker for the end: all others are told to stop. So the process
that hypercorn starts does not serve. When it has imported everything it forks, and waits:

::

    hypercorn ──▶ keeper ──▶ worker, which serves: killed? another is forked, in milliseconds
              └─▶ keeper ──▶ worker …

A worker hears from hypercorn itself when it is to stop, and what hypercorn sends to a keeper is
passed on. hypercorn waits for the end of a pipe that both hold: a keeper that is killed leaves a
worker that serves as before, unkept. A keeper has no thread, no event loop and no logger, so
forking is safe; what it shares with its worker costs no memory. Linux only: elsewhere, and with
one worker, hypercorn's own child serves. Where the system has nothing to fork with, or a worker
cannot serve for now, the keeper waits, and tries again, as long as others serve: they have calls.
"""

from __future__ import annotations

import gc
import hmac
import multiprocessing
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from server.hooks.stopping import hang_up, in_main_thread
from server.logs.output import write_if_taken
from server.supervision import Restarts

FAILED_STATUS = 70
"""The exit status of a process whose inside has failed: EX_SOFTWARE of sysexits.h."""
SIGNALLED_STATUS = 128
"""Plus its number: the status of a process that a signal has ended, as a shell has it."""
CANNOT_START = b"offhook: a process of this server cannot be started: %s\n"
ENDED_YOUNG = b"offhook: a worker ended before it served, and is tried again: status %d\n"
GAVE_UP = b"offhook: one worker after another died soon: the whole server is to stop\n"
_TIME = struct.Struct("d")
_SOCKETS = Path("/proc/net/unix")


@dataclass(slots=True)
class Kept:
    """What a worker knows of its keeper.

    Attributes:
        pipe: Where the keeper is told that the worker serves; None: nobody keeps this process.
        replaces: The status of the worker before this one; None for the first.
        mark: What the keepers of the others see of it while it serves.
    """

    pipe: int | None = None
    replaces: int | None = None
    mark: socket.socket | None = None

    def serves(self) -> None:
        """Tell the keeper that this process serves: from now on it is worth replacing."""
        if self.pipe is not None:
            with suppress(OSError):  # without one, the others are not believed to serve by it
                self.mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self.mark.bind(f"\0{_mark()}-{os.getpid()}")
            with suppress(OSError):  # the keeper has been killed
                os.write(self.pipe, _TIME.pack(time.monotonic()))
            os.close(self.pipe)
            self.pipe = None


kept = Kept()
"""This process's own."""


def workers_under_command() -> int | None:
    """How many workers the ``hypercorn`` command was asked for; None: it does not import us now.

    An app is told nothing of it, so it is read where hypercorn has it.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "hypercorn.trio.run":
            config = frame.f_locals.get("config")
            return None if config is None else int(config.workers)
        frame = frame.f_back
    return None


def keep_worker(count: int) -> None:
    """Return in a process that is to serve; the one that has called is its keeper to the end.

    Called where everything is imported, and nothing has been started.

    Args:
        count: How many workers there are.
    """
    is_child = multiprocessing.parent_process() is not None
    if sys.platform != "linux" or count < 2 or not is_child or not in_main_thread():
        return
    stops = (signal.SIGTERM, *hang_up())
    signal.pthread_sigmask(signal.SIG_BLOCK, (*stops, signal.SIGINT, signal.SIGCHLD))
    gc.collect()
    gc.freeze()  # or the first collection in a worker would copy every page
    restarts, has_served = Restarts(), False
    while True:
        try:
            worker, ours, theirs = _fork()
        except OSError as error:
            if not has_served:
                raise
            write_if_taken(sys.stderr.fileno(), CANNOT_START % str(error).encode())
            if signal.sigtimedwait(stops, restarts.not_started()) is not None:
                os._exit(0)
            continue
        if worker == 0:
            os.close(ours)
            kept.pipe = theirs
            # The others wait until somebody is here to take them: StopSignals.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD,))
            return
        os.close(theirs)
        status, is_told = _wait_end(worker)
        served_from = os.read(ours, _TIME.size)
        os.close(ours)
        has_served |= bool(served_from)
        if status == 0 or is_told or not has_served:
            os._exit(status)
        lived_s = time.monotonic() - _TIME.unpack(served_from)[0] if served_from else None
        if lived_s is None:
            write_if_taken(sys.stderr.fileno(), ENDED_YOUNG % status)
        pause_s = _pause_after(lived_s, restarts)
        if pause_s is None:
            write_if_taken(sys.stderr.fileno(), GAVE_UP)
            os._exit(status)
        if signal.sigtimedwait(stops, pause_s) is not None:
            os._exit(0)
        kept.replaces = status


def _pause_after(lived_s: float | None, restarts: Restarts) -> float | None:
    """The pause after a worker that has served for so long, or never did; None to give up."""
    if lived_s is None and does_any_serve():
        return restarts.not_started()
    return restarts.after(lived_s or 0.0)


def does_any_serve() -> bool:
    """Whether any kept worker of this server serves."""
    try:
        return f" @{_mark()}-" in _SOCKETS.read_text(errors="replace")
    except OSError:  # the system does not show it
        return False


def _mark() -> str:
    """How the sockets of workers that serve begin: only processes of this server know it before."""
    key = bytes(multiprocessing.current_process().authkey)
    return f"offhook-serves-{hmac.digest(key, b'offhook serves', 'sha256').hex()[:32]}"


def _fork() -> tuple[int, int, int]:
    """Fork: the child's number, 0 in the child, and the two ends of a pipe to it.

    Raises:
        OSError: The system has nothing to do it with.
    """
    ours, theirs = os.pipe()
    try:
        return os.fork(), ours, theirs
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise


def _wait_end(worker: int) -> tuple[int, bool]:
    """Wait until a worker has ended: its status, and whether it was told to stop."""
    is_told = False
    while True:
        ended, how = os.waitpid(worker, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(how)
            return (status if status >= 0 else SIGNALLED_STATUS - status), is_told
        # One that is held back comes as soon as it is waited for: nothing is missed in between.
        number = signal.sigwait((signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, *hang_up()))
        is_told |= number != signal.SIGCHLD
        if number == signal.SIGTERM:  # a Ctrl+C or SIGHUP comes to everybody by itself
            os.kill(worker, number)
