"""stdout and stderr as this process writes them: from a thread, so that no reader holds it up.

A pipe whose reader hangs, a terminal after Ctrl+S and a disk that stalls block whoever writes. In
the event loop that would be every call at once, so what is written goes into a queue with a bound,
and a thread takes it from there to the file. When the queue is full, lines are dropped, counted,
and said in their place as soon as there is room.

A file descriptor is not made non-blocking: that would be everybody's who shares it, the shell's and
other processes' too. What C code or a child process writes by itself does not come through here.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from logging import Handler, StreamHandler, getLogger, root
from queue import SimpleQueue
from typing import Any, TextIO

MAX_QUEUED_BYTES = 2 * 1024 * 1024
"""Some six thousand lines, for a reader that is slow for a while."""
ROOM_AGAIN_BYTES = MAX_QUEUED_BYTES // 2
"""Lines are taken again when no more than this is left, or a slow reader would see one line out of
two, each with a word about the other."""
LINE_BYTES = 64
"""What a line takes in memory beside its text."""
WRITE_BYTES = getattr(select, "PIPE_BUF", 512)
"""Written at once: as much as a pipe takes in one piece, so that the lines of several processes
that share it do not mix."""
EXIT_TIMEOUT_S = 2.0
"""How long a process that ends waits for what is still queued."""


def _say_dropped(lines: int) -> str:
    return f"offhook: {lines} lines of output dropped\n"


class Queue:
    """What waits to be written to one file, and the thread that writes it.

    Any thread may put, also while it is in the middle of doing so (a signal's handler, a
    finalizer): what is put is taken whole or not at all.

    Attributes:
        dropped: Lines that found no room, and lines that the file did not take.
        say_dropped: Makes the line that says how many have been dropped; called in the thread.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self.say_dropped: Callable[[int], str] = _say_dropped
        self.begin()

    def begin(self) -> None:
        """Begin with nothing queued and without a thread, as a forked process has none."""
        self._items: SimpleQueue[_Item] = SimpleQueue()
        self._lock = threading.RLock()
        self._put_bytes = 0  # under the lock, as all that follows but for what is the thread's
        self._taken_bytes = 0
        self._is_full = False
        self._no_room_lines = 0  # not yet said
        self._refused_lines = 0  # by the file, and not yet said; the thread's
        self._is_closed = self._hangs = False
        self._thread: threading.Thread | None = None

    # -- whoever writes --------------------------------------------------------------------

    def put(self, fd: int, data: bytes) -> None:
        """Have this written to a file descriptor, after all that was put before; never waits."""
        with self._lock:
            if self._is_closed:
                self._write_without_thread(fd, data)
                return
            size = len(data) + LINE_BYTES
            queued = self._put_bytes - self._taken_bytes
            if queued + size > (ROOM_AGAIN_BYTES if self._is_full else MAX_QUEUED_BYTES):
                self._is_full = True
                self._no_room_lines += _lines_of(data)
                self.dropped += _lines_of(data)
                return
            if self._is_full:
                self._is_full = False
                self._items.put(_Dropped(fd, self._take_no_room_lines()))
            self._put_bytes += size
            self._items.put((fd, data))
            if self._thread is None:
                self._start()

    def mark(self) -> threading.Event:
        """Return what is set when all that was put before is written."""
        done = threading.Event()
        with self._lock:
            if self._thread is None:
                done.set()
            else:
                self._items.put(done)
        return done

    def close(self, *, hangs: bool) -> None:
        """Use the thread no more; if it hangs in a write, what comes from now on is dropped."""
        with self._lock:
            self._is_closed, self._hangs = True, hangs

    def _take_no_room_lines(self) -> int:
        lines, self._no_room_lines = self._no_room_lines, 0
        return lines

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # there are no threads any more: the interpreter ends
            self._thread, self._is_closed = None, True

    def _write_without_thread(self, fd: int, data: bytes) -> None:
        """Write where that cannot block."""
        if self._hangs or not write_if_taken(fd, data):
            self.dropped += _lines_of(data)

    # -- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        items, following = self._items, None
        while True:
            item = items.get() if following is None else following
            following = None
            match item:
                case threading.Event():
                    item.set()
                case _Dropped(fd, lines):
                    self._say(fd, lines)
                case (fd, data):
                    # As many lines as a pipe takes in one piece; the first that does not fit
                    # begins the next piece.
                    pieces, length = [data], len(data)
                    while not items.empty():
                        following = items.get()
                        if (
                            not isinstance(following, tuple)
                            or following[0] != fd
                            or length + len(following[1]) > WRITE_BYTES
                        ):
                            break
                        pieces.append(following[1])
                        length += len(following[1])
                        following = None
                    size = length + LINE_BYTES * len(pieces)
                    self._write(fd, b"".join(pieces), size, is_last=following is None)

    def _write(self, fd: int, data: bytes, size: int, *, is_last: bool) -> None:
        is_written = _write(fd, data)
        with self._lock:
            self._taken_bytes += size
            if not is_written:
                self.dropped += _lines_of(data)
                self._refused_lines += _lines_of(data)
                return
            lines, self._refused_lines = self._refused_lines, 0
            if is_last and self._items.empty():
                # Nobody may have more to write for long, so it is said now.
                self._is_full = False
                lines += self._take_no_room_lines()
        if lines:
            self._say(fd, lines)

    def _say(self, fd: int, lines: int) -> None:
        try:
            line = self.say_dropped(lines)
        except Exception:  # of a formatter's; without this thread there is no more output
            line = _say_dropped(lines)
        if not _write(fd, line.encode("utf-8", "backslashreplace")):
            self._refused_lines += lines


@dataclass(frozen=True, slots=True)
class _Dropped:
    """In the place of lines that found no room."""

    fd: int
    lines: int


_Item = tuple[int, bytes] | threading.Event | _Dropped


def _lines_of(data: bytes) -> int:
    return max(1, data.count(b"\n"))


def _write(fd: int, data: bytes) -> bool:
    """Write all of it, however long that takes; False where the file does not take it."""
    view = memoryview(data)
    try:
        while view:
            try:
                view = view[os.write(fd, view[:WRITE_BYTES]) :]
            except BlockingIOError:  # somebody has made it non-blocking: whoever shares it
                _takes_more(fd, None)
    except OSError:
        return False
    return True


def write_if_taken(fd: int, data: bytes) -> bool:
    """Write in this thread as much as is taken without a wait; False if that was not all of it."""
    with suppress(OSError):
        for start in range(0, len(data), WRITE_BYTES):
            if not _takes_more(fd, 0.0):
                return False
            os.write(fd, data[start : start + WRITE_BYTES])
        return True
    return False


def _takes_more(fd: int, timeout_s: float | None) -> bool:
    """Wait until a file descriptor takes something; True at once where that is not to be known."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(None if timeout_s is None else 1000 * timeout_s))


class _Raw(io.RawIOBase):
    """A standard stream's lowest layer: what is written is queued."""

    mode = "w"

    def __init__(self, queue: Queue, fd: int, name: str) -> None:
        self._queue = queue
        self._fd = fd
        self.name = name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any, /) -> int:
        copied = bytes(data)
        self._queue.put(self._fd, copied)
        return len(copied)


class QueuedStream(io.TextIOWrapper):
    """Text that goes into a queue, line by line, in place of ``sys.stdout`` or ``sys.stderr``."""

    def __init__(self, queue: Queue, fd: int, old: TextIO) -> None:
        self.queue = queue
        self._fd = fd
        raw: Any = _Raw(queue, fd, old.name)  # as Python's own stream under ``-u``: no buffer
        errors = old.errors or "backslashreplace"
        super().__init__(raw, encoding=old.encoding, errors=errors, line_buffering=True)

    def close(self) -> None:
        """Do nothing: a standard stream stays open as long as the process."""

    def write_line(self, line: str) -> None:
        """Write a whole line, for less than :meth:`write` takes."""
        self.queue.put(self._fd, f"{line}\n".encode(self.encoding, "backslashreplace"))


_taken_over: list[QueuedStream] = []
_originals: list[TextIO] = []  # kept: an object that is freed would flush, and so might wait


def take_over() -> None:
    """Have all that Python writes to stdout and stderr in this process go through a queue.

    Called by whatever serves calls, in each process and before anything is logged. Handlers of
    ``logging`` that have the streams already are given the new ones.
    """
    if _taken_over:
        return
    _open_closed_ones()
    queues: dict[object, Queue] = {}
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        try:
            fd = stream.fileno() if stream is not None else -1
            status = os.fstat(fd)
        except (OSError, ValueError):  # there is none, or it is something in memory
            continue
        assert stream is not None
        if _takes_more(fd, 0.0):
            with suppress(OSError, ValueError):
                stream.flush()
        # Where both are one file, what is printed and what is logged keep their order.
        queue = queues.setdefault((status.st_dev, status.st_ino), Queue())
        ours = QueuedStream(queue, fd, stream)
        _taken_over.append(ours)
        _originals.append(stream)
        _give_to_handlers(stream, ours)
        setattr(sys, name, ours)
        setattr(sys, f"__{name}__", ours)
    for queue in queues.values():
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=queue.begin)
    atexit.register(_close)


def _open_closed_ones() -> None:
    """Have /dev/null where nothing is: or a socket would be stdout, and get what is printed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  # for good


def _give_to_handlers(old: TextIO, new: TextIO) -> None:
    loggers = [root, *(getLogger(name) for name in list(root.manager.loggerDict))]
    handlers: set[Handler] = {handler for logger in loggers for handler in logger.handlers}
    for handler in handlers:
        if isinstance(handler, StreamHandler) and handler.stream is old:
            handler.stream = new  # not setStream(), which flushes the old one


def dropped() -> int:
    """How many lines of this process have been dropped so far."""
    return sum(queue.dropped for queue in _queues())


def say_dropped_by(say: Callable[[int], str]) -> None:
    """Have the line that tells of dropped ones be made by this function, in any thread."""
    for queue in _queues():
        queue.say_dropped = say


def drain(timeout_s: float | None = None) -> set[Queue]:
    """Wait until what was written has left the process, for :data:`EXIT_TIMEOUT_S` if not told.

    For whoever ends the process at once, past Python's own way out.

    Returns:
        The queues whose thread is still at it.
    """
    for stream in _taken_over:
        with suppress(OSError, ValueError):
            stream.flush()
    give_up_at = time.monotonic() + (EXIT_TIMEOUT_S if timeout_s is None else timeout_s)
    marks = {queue: queue.mark() for queue in _queues()}
    return {
        queue
        for queue, mark in marks.items()
        if not mark.wait(max(0.0, give_up_at - time.monotonic()))
    }


def _queues() -> set[Queue]:
    return {stream.queue for stream in _taken_over}


def _close() -> None:
    hanging = drain()
    for queue in _queues():
        queue.close(hangs=queue in hanging)
