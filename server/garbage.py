"""When Python looks for garbage: in small pieces, and the whole heap when no call is held up.

Reference counts free nearly everything at once; the collector is there for cycles, which
connections, requests and ended calls leave behind. It runs where the hundredth new object happens
to be made, on all calls' time: with twenty calls and two hundred strangers' sockets its middle
generation takes 7 ms and the whole heap 26 ms, and a stranger who opens sockets makes it run.
So only the youngest generation (0.4 ms) is left to Python. What that has passed on is looked
through a few times a second, before there is much of it; and everything, when no call is live, or
else once in a while.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import trio

NOT_BY_ITSELF = 1_000_000_000
YOUNG_EVERY_S = 0.25
FULL_EVERY_S = 120.0
"""How long cycles may stay that have outlived the young generations, while there are calls."""
FULL_AFTER = 10
"""So many times the young ones were looked through: Python's own default."""


_thresholds = gc.get_threshold()
_users = 0  # of this process: the demo has a server for each of its scripts


async def collect(live_count: Callable[[], int]) -> None:
    """Collect until cancelled; whoever shares the process then has Python's own way again.

    Args:
        live_count: How many calls would notice a pause.
    """
    global _users
    _users += 1
    gc.set_threshold(_thresholds[0], NOT_BY_ITSELF, NOT_BY_ITSELF)
    full_at = trio.current_time() + FULL_EVERY_S
    try:
        while True:
            await trio.sleep(YOUNG_EVERY_S)
            _, young, old = gc.get_count()
            if old >= FULL_AFTER and (not live_count() or trio.current_time() >= full_at):
                gc.collect()
                full_at = trio.current_time() + FULL_EVERY_S
            elif young:
                gc.collect(1)
    finally:
        _users -= 1
        if not _users:
            gc.set_threshold(*_thresholds)
