"""What the peer of a media socket may have of this process: one that is known, or anybody."""

from __future__ import annotations

import math
from dataclasses import dataclass

READ_BYTES = 64 * 1024
"""Read at most in a pass from one socket, so that one busy call cannot hold up the others."""
MAX_INBOX = 256
"""Messages nobody has taken yet; then the socket is no longer read, and TCP holds the peer back."""
MAX_BACKLOG_BYTES = 4 * 1024 * 1024
"""Bytes a peer has not read; beyond it has stalled, and its connection is given up."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one peer may have.

    Attributes:
        read_bytes: Read at once.
        inbox: Messages that wait; see :data:`MAX_INBOX`.
        backlog_bytes: What it has not read; see :data:`MAX_BACKLOG_BYTES`.
        total_bytes: What it may send in all.
        frames: How many frames that may be, control frames and fragments included.
    """

    read_bytes: int
    inbox: int
    backlog_bytes: int
    total_bytes: float = math.inf
    frames: float = math.inf


KNOWN = Bounds(READ_BYTES, MAX_INBOX, MAX_BACKLOG_BYTES)
"""A peer that we have chosen, or that has shown the ticket of a call."""
STRANGER = Bounds(4 * 1024, 1, 4 * 1024, total_bytes=16 * 1024, frames=64)
"""Anybody. Twilio sends ``connected`` and ``start``, some 1.5 KiB; what one read brings with them,
and one more before the ticket has been looked at, is the first of a call's audio."""
