"""The signals that ask this process to stop, caught from the moment it can until it has ended.

A stop is rarely one signal: a service manager tells every process of a service, a parent tells its
children once more, a terminal and a wrapper both pass a Ctrl+C on, and any of them may come while
the process is late, or before it serves, or when it is all but over. So a handler that was put in
place is never taken away, there is no moment at which a signal does what it does by default, and
however often the first wish is said, it is one. Only who asks again later means it otherwise: later
for the event loop, as what comes late because all of us were held up was said with the first.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

import trio

from server.logs import output

AGAIN_AFTER_S = 1.0
"""What comes sooner after the first signal is the same wish, told by somebody else, too."""
INSISTED = 6
"""So often it is asked by somebody who means it, however late the loop is or whether it hangs; what
comes while a process is stopped is one of each kind."""


def hang_up() -> tuple[signal.Signals, ...]:
    """SIGHUP, which a terminal that closes sends, unless whoever started us has it ignored.

    ``nohup`` does, and what it starts is to outlive the terminal.
    """
    if sys.platform == "win32" or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return ()
    return (signal.SIGHUP,)


def has_terminal() -> bool:
    """Whether a terminal started this process, and will send SIGHUP when it closes."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class StopSignals:
    """The wish to stop, of which an event loop is told when there is one.

    Args:
        signals: Which are caught, and whether one that comes later than :data:`AGAIN_AFTER_S`
            after the first of all ends the process at once.

    Attributes:
        asked: Whether any of them has come.
        came: Which of them have come.
        on_reload: Called in the event loop for each signal of :meth:`reload_by`.
        again: The number of the first that was to end the process at once; 0 if none was.
    """

    def __init__(self, signals: Mapping[signal.Signals, bool]) -> None:
        self._signals = dict(signals)
        self._times = 0
        self._first_at = 0.0
        self._token: trio.lowlevel.TrioToken | None = None
        self._on_first: Callable[[], object] = lambda: None
        self._on_again: Callable[[], object] | None = None
        self._reloads: frozenset[signal.Signals] = frozenset()
        self.on_reload: Callable[[], object] = lambda: None
        self._was_long_ago = False  # as the event loop sees it
        self.asked = False
        self.came: set[int] = set()
        self.again = 0

    def install(self) -> None:
        """Catch the signals from now on; only the main thread may do so."""
        for number in self._signals:
            signal.signal(number, self._handle)
        if sys.platform != "win32":
            # Whoever has started us may have held them back until somebody is here to take them.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
            # An interpreter at its end lets go of handlers before the process has ended, and any
            # thread that is left would take a signal as the end of it all.
            atexit.register(self._ignore)

    def _ignore(self) -> None:
        for number in self._signals:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def told(
        self, stop: trio.Event, on_again: Callable[[], object] | None = None
    ) -> Generator[None]:
        """Within the block, in an event loop, the event is set when the process is asked to stop.

        Args:
            stop: Set at once if it has been asked already.
            on_again: Called in the event loop instead of ending the process at once;
                :attr:`again` says which signal asks for it.
        """
        self._on_first, self._on_again = stop.set, on_again
        self._token = trio.lowlevel.current_trio_token()
        if self.asked:
            self._begin()
        try:
            yield
        finally:
            self._token, self._on_again = None, None

    def reload_by(self, signals: Iterable[signal.Signals]) -> None:
        """From now on these of the signals do not stop: something is to be read again."""
        self._reloads = frozenset(signals)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Between any two instructions of the main thread: it must not log.
        if number in self._reloads:
            self._tell(lambda: self.on_reload())
            return
        now = time.monotonic()
        self._times += 1
        self.came.add(number)
        if not self.asked:
            self.asked, self._first_at = True, now
            self._tell(self._begin)
        elif self._signals[signal.Signals(number)] and self._is_later(now):
            if self._on_again is not None:
                self.again = self.again or number
                self._tell(self._on_again)
            elif not self.again:  # else it is ending, and what it has yet to clear away is little
                output.drain()
                os._exit(128 + number)  # as a process that dies of it

    def _is_later(self, now: float) -> bool:
        is_late = now - self._first_at >= AGAIN_AFTER_S
        if self._token is None:
            return is_late
        return self._was_long_ago or (is_late and self._times >= INSISTED)

    def _begin(self) -> None:
        self._on_first()
        if self._token is not None:  # or the loop is at its end, and takes no more tasks
            trio.lowlevel.spawn_system_task(self._wait_long)

    async def _wait_long(self) -> None:
        # A clock would not do: what was sent meanwhile to a process that stood is handled first
        # when it goes on, and only then does the loop see that time has passed.
        await trio.sleep(AGAIN_AFTER_S)
        self._was_long_ago = True

    def _tell(self, what: Callable[[], object]) -> None:
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(what)


def in_main_thread() -> bool:
    """Whether signals can be caught here."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def signals_held_back(*numbers: signal.Signals) -> Generator[None]:
    """Within the block these signals wait; a process that is started there begins like that, too.

    It takes them when it has called :meth:`StopSignals.install`.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
