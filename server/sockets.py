"""What the system is asked for about sockets: how many, and how long for a peer that is deaf."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

import trio

if sys.platform != "win32":
    import resource

UNREAD_TIMEOUT_S = 20.0
"""A peer that takes nothing of what it was sent for so long is gone."""


def raise_file_limit() -> None:
    """Let the process open as many sockets as the system allows it at most.

    Every call needs two, and systems give a process about a thousand if it does not ask.
    """
    if sys.platform != "win32":
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS says "unlimited" and means less
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def file_limit() -> int | None:
    """How many files and sockets this process may have open; None where the system does not say."""
    if sys.platform == "win32":
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else most


def limit_unread(connection: socket.socket | trio.socket.SocketType) -> None:
    """Let the system end connections whose peer has stopped reading; where it can, which is Linux.

    hypercorn shields its writes, so no deadline of ours ends one that waits for such a peer. A
    listening socket passes the option on to the connections it accepts.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT") and connection.family != socket.AF_UNIX:
        timeout_ms = round(UNREAD_TIMEOUT_S * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
