"""What a service manager is told, and how a server is begun that outlives the command for it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import structlog

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_PID_DIGITS = 20


def tell_manager_ready(pid: int) -> None:
    """Say to systemd that this process serves, and is the one to watch from now on.

    See sd_notify(3). A unit that is reloaded by a server that takes over has to say
    ``NotifyAccess=exec``: systemd then believes the main process and the command of the reload,
    which is why that one says it, and none of the programs that a server starts.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            said = f"READY=1\nMAINPID={pid}\n"
            manager.sendto(said.encode(), address.replace("@", "\0", 1))
    except OSError as error:
        logger.warning("service manager not told that this server is ready", error=str(error))


class Detached:
    """A server that was begun by a command which waits until it is ready, and no longer.

    Attributes:
        status: In the command: its exit status. None in the server.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.status: int | None = None
        self._pipe: int | None = None
        if wanted:
            self._begin()

    def _begin(self) -> None:
        # Nobody has started a thread yet. Of two forks the second is nobody's child: whoever
        # watches orphans, as systemd does, is its parent before it says that it is ready.
        ours, theirs = os.pipe()
        if (child := os.fork()) == 0:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
            os.close(ours)
            self._pipe = theirs
            return
        os.close(theirs)
        os.waitpid(child, 0)
        with os.fdopen(ours, "rb") as said:
            pid = said.read(MAX_PID_DIGITS)
        self.status = 0 if pid else 1
        if pid:
            tell_manager_ready(int(pid))

    def tell_ready(self) -> None:
        """This process serves: say so to the service manager, or the command, which then ends."""
        if self._pipe is None:
            tell_manager_ready(os.getpid())
            return
        pipe, self._pipe = self._pipe, None
        with suppress(OSError):
            os.write(pipe, b"%d" % os.getpid())
        os.close(pipe)
