"""What the system is asked for about sockets: how many, whose, and how long for a deaf peer; and
what trio makes of its refusals, of threads too: whoever asks for a name needs one.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
import trio
from trio import _highlevel_socket, _threads

from server.logs import Sparing

if sys.platform != "win32":
    import resource

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BACKLOG = 4096
"""Connections that may wait to be accepted: seconds of a burst of calls, each with a webhook and a
media socket. Of more than net.core.somaxconn the system makes that (4096, or 128 of old)."""
MOST_RESERVED = 2048
"""Descriptors kept back; a quarter of all where there are few."""
LISTENING = "0A"
"""The state of a listening socket in Linux' tables."""
UNREAD_TIMEOUT_S = 20.0
"""A peer that takes nothing of what it was sent for so long is gone."""

SHORT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why nobody can be accepted just now; whoever waits is accepted a little later."""
SHORT_PAUSE_S = 0.05

CLOSED_HERE = frozenset({errno.EBADF, errno.ENOTSOCK})
"""What the systems say of a socket that this process has closed."""
KEEPALIVE_EVERY_S = 2
"""Between the questions to a silent peer whether it is there."""


class StreamErrors:
    """What trio's streams make of a socket's error, in a block, without a generator.

    trio's own is one, and from Python 3.13 on the frame of contextlib that throws an error into it
    is led to by that error's traceback, and leads to the error: some fifteen objects for each
    connection that is reset or closed while it is used, until the garbage collector comes.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say what a stream says.

        Raises:
            ClosedResourceError: This side has closed the socket.
            BrokenResourceError: It is of no use any more.
        """
        if isinstance(error, OSError):
            if error.errno in CLOSED_HERE:
                raise trio.ClosedResourceError("this socket was already closed") from None
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error


class OwnListener(trio.abc.Listener[trio.SocketStream]):
    """Where our own processes come, which goes on when descriptors have run out, and says so.

    trio's own way is to log the error with its traceback each time, as if it were a bug.

    Args:
        sock: Listens.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self._short = Sparing()

    async def accept(self) -> trio.SocketStream:
        """Wait for one of ours."""
        while True:
            try:
                return await self._listener.accept()
            except OSError as error:
                if error.errno not in SHORT_OF_DESCRIPTORS:
                    raise
                message = "processes of this machine wait: descriptors are short (raise ulimit -n)"
                self._short.log(trio.current_time(), logger.warning, message)
            await trio.sleep(SHORT_PAUSE_S)

    async def aclose(self) -> None:
        """Listen no more."""
        await self._listener.aclose()


def translate_errors_without_rings() -> None:
    """Have trio's streams use :class:`StreamErrors`; doing it again does nothing.

    trio has no setting for this. tests/hooks/test_sockets.py fails when its streams ask elsewhere.
    """
    module: Any = _highlevel_socket
    module._translate_socket_errors_to_stream_errors = StreamErrors


class NoThread(OSError, RuntimeError):
    """The system has no thread for us at this moment."""


def say_no_thread_is_the_systems() -> None:
    """Have trio raise :class:`NoThread` where the system refuses a thread; again does nothing.

    Python says ``RuntimeError``, which stands for a bug: a call whose model is to be connected to,
    by name, would end by it, where a refused socket is tried again.
    """
    module: Any = _threads
    module.start_thread_soon = _start_thread_soon


def _start_thread_soon(
    work: Callable[[], Any], deliver: Callable[[Any], object], name: str | None = None
) -> None:
    try:
        trio.lowlevel.start_thread_soon(work, deliver, name)
    except RuntimeError as error:
        raise NoThread(errno.EAGAIN, f"the system has no thread for us: {error}") from None


def raise_file_limit() -> None:
    """Let the process open as many sockets as the system allows it at most.

    Every call needs two, and systems give a process about a thousand if it does not ask.
    """
    if sys.platform != "win32":
        before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS says "unlimited" and means less
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            if before != most:
                logger.info("descriptor limit raised", before=before, now=most)


def file_limit() -> int | None:
    """How many files and sockets this process may have open; None where the system does not say."""
    if sys.platform == "win32":
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else most


def descriptors_for_all() -> int | None:
    """How many of them connections and calls may have; None where the system does not say.

    The rest is kept for what calls open while connections take what they can: the model's sockets,
    recordings, and the duplicates of media sockets that show their tickets.
    """
    most = file_limit()
    return None if most is None else most - min(MOST_RESERVED, most // 4)


def descriptors_for_calls() -> int | None:
    """How many there may be when another call is taken; None where the system does not say.

    More than connections may take by themselves: an idle one is closed for whoever has something
    to ask, and is no reason to refuse a call.
    """
    most = file_limit()
    return None if most is None else most - min(MOST_RESERVED, most // 4) // 2


def is_readable(descriptor: int) -> bool:
    """Whether a socket has something that has not been read, be it its end; False if it is closed.

    Args:
        descriptor: Its number.
    """
    if descriptor < 0:
        return False
    if not hasattr(select, "poll"):
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def limit_unread(
    connection: socket.socket | trio.socket.SocketType, timeout_s: float | None = None
) -> None:
    """Let the system end connections whose peer is gone or reads no more; where it can: Linux.

    A peer that acknowledges nothing of what it was sent is found without us, who may only write;
    one that is sent nothing is asked for a sign of life. hypercorn shields its writes, so no
    deadline of ours ends one that waits for such a peer. A listening socket passes the options on
    to the connections it accepts.

    Args:
        connection: A TCP socket; a Unix socket is left alone.
        timeout_s: How long nothing may be acknowledged, and when a silent peer is first asked; None
            for :data:`UNREAD_TIMEOUT_S`. One that is sent nothing is ended at the latest after
            twice as long and a probe's pause.
    """
    timeout_s = UNREAD_TIMEOUT_S if timeout_s is None else timeout_s
    if hasattr(socket, "TCP_USER_TIMEOUT") and connection.family != socket.AF_UNIX:
        timeout_ms = round(timeout_s * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(timeout_s)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_EVERY_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def holder_of(port: int) -> str | None:
    """The process that listens on a TCP port of this machine, in words; None: it cannot be told.

    Linux only, and only of processes that this user may look into.
    """
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(link.readlink()) in inodes for link in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                return f"process {process.name} ({command.decode(errors='replace').strip()[:80]})"
    return None
