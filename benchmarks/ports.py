"""Ports for what benchmarks and tests start as processes of their own."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

CHOICE = range(15_000, 32_000)
"""Below those that systems give to whoever asks for any (on Linux from 32768 on): between the
choice of a port and the start of whoever is to listen there, a test beside this one would get it.
"""


def free_ports(number: int, kind: int = socket.SOCK_STREAM) -> list[int]:
    """Ports of the loopback that nobody has, nor is given who asks the system for any.

    Args:
        number: How many.
        kind: ``SOCK_STREAM``, or ``SOCK_DGRAM`` for UDP.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(CHOICE, 100 + number):
        if len(found) == number:
            break
        with socket.socket(type=kind) as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            found.append(port)
    assert len(found) == number
    return found


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """One port of the loopback that nobody has, nor is given who asks the system for any.

    Args:
        kind: ``SOCK_STREAM``, or ``SOCK_DGRAM`` for UDP.
    """
    return free_ports(1, kind)[0]
