"""When Python looks for garbage, and gives memory back: when no call is held up by it.

Reference counts free nearly everything at once; the collector is there for cycles, and what calls,
requests and sockets leave has none (tests/serving/test_no_garbage.py). They may still come of a
tool's own code, or of an error on its way. It would run where the next new object happens to be
made, on all calls' time, and what it costs is what it walks, which no threshold bounds: those count
what is made less what is freed, so that three hundred talking calls are 7 ms at a time in the
youngest generation alone, and everything there is 0.1 s.

So it is off, and everything is looked through when no call is live. Should calls never end, what
cycles there are stay; memory that has grown by more than calls account for is looked through all
the same, once, and it is said.

What set-ups have freed lies in pieces between what stays, some 50 KiB for each call of a burst, and
glibc keeps it until it is asked.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import structlog
import trio

from server.pace import next_tick

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EVERY_S = 0.25
QUIET_EVERY_S = 120.0
QUIET_OBJECTS = 10_000
"""With no call, everything is looked through this often, or when there are so many more objects."""
GROWTH_EVERY_S = 10.0
"""To count what is in use takes 0.2 ms."""
GROWTH_BLOCKS = 1_000_000
CALL_BLOCKS = 3_000
"""What memory may grow by, in Python's blocks of some 70 bytes, and by how much for each live call,
before it is looked through although there are calls. A call has some 1,000."""
GIVE_BACK_EVERY_S = 5.0
"""To ask for memory back takes 0.6 ms with 300 calls, and 4 ms after their set-ups in one burst."""

# Of a library that is open anyway, on every system: another one would be a ring with what is asked
# of it.
_trim: Callable[[int], int] | None = getattr(ctypes.pythonapi, "malloc_trim", None)
_users = 0  # of this process: the demo has a server for each of its scripts


@contextmanager
def imported_for_good() -> Generator[None]:
    """Import what stays: to walk it again and again would be a quarter of a process's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def give_back() -> None:
    """Give the system the pages in which nothing is left, where the allocator can be asked to."""
    if _trim is not None:
        _trim(0)


async def collect(
    live_count: Callable[[], int],
    blocks_in_use: Callable[[], int] = sys.getallocatedblocks,
    give_back: Callable[[], None] = give_back,
) -> None:
    """Collect until cancelled; whoever shares the process then has Python's own way again.

    Args:
        live_count: How many calls would notice a pause.
        blocks_in_use: How much memory there is in use, in blocks of Python's.
        give_back: Gives the system what is not in use.
    """
    global _users
    _users += 1
    gc.disable()
    kept_blocks = blocks_in_use()
    next_at = trio.current_time() + GROWTH_EVERY_S
    give_back_at = trio.current_time() + GIVE_BACK_EVERY_S
    try:
        while True:
            await trio.sleep_until(next_tick(trio.current_time(), EVERY_S))
            calls, now = live_count(), trio.current_time()
            if now >= give_back_at:
                give_back_at = now + GIVE_BACK_EVERY_S
                give_back()
            if now < next_at and (calls or gc.get_count()[0] < QUIET_OBJECTS):
                continue
            next_at = now + (GROWTH_EVERY_S if calls else QUIET_EVERY_S)
            if not calls:
                gc.collect()
            elif blocks_in_use() - kept_blocks > GROWTH_BLOCKS + calls * CALL_BLOCKS:
                _collect_aloud()
            else:
                continue
            kept_blocks = blocks_in_use()
    finally:
        _users -= 1
        if not _users:
            gc.enable()


def _collect_aloud() -> None:
    began = time.perf_counter()
    found = gc.collect()
    took_ms = round(1_000 * (time.perf_counter() - began), 1)
    logger.warning("memory has grown: garbage collected among calls", objects=found, ms=took_ms)
