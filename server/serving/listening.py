"""A listening socket, and what to do where there is none to have."""

from __future__ import annotations

import errno
import socket

from server.errors import CannotListen
from server.hooks.sockets import BACKLOG, holder_of, limit_unread


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        CannotListen: The address is taken, or not ours to listen on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        limit_unread(listener)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {_remedy(error, port)}") from error
    return listener


def _remedy(error: OSError, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            holder = holder_of(port) or "another process"
            return f"{holder} has it; stop that, or choose another port (--port or PORT)"
        case errno.EACCES:
            return "ports below 1024 are for the system's administrator; choose another (PORT)"
        case errno.EADDRNOTAVAIL:
            return "no network interface of this machine has that address (--host or HOST)"
        case _:
            return f"{error.strerror or error} (--host or HOST, --port or PORT)"
