"""A thread of one's own that has less right to the processor than the one that carries audio.

Trio's threads are shared, and what a thread has given up of its right it cannot have back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
NICER = 5
"""By so many steps: a third of the processor's time where another wants it, too. Not by all there
are: now and then it holds the interpreter's lock, for which the audio waits then."""


class LowThread:
    """Has things done one after the other; see :func:`low_thread`."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    async def run_sync(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Have something done, and wait for it, whoever cancels meanwhile."""
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        doing = self._thread.submit(work, *args)
        doing.add_done_callback(lambda _: token.run_sync_soon(done.set))
        with trio.CancelScope(shield=True):
            await done.wait()
        return doing.result()


@contextmanager
def low_thread(name: str) -> Generator[LowThread]:
    """Have such a thread until the block ends.

    Args:
        name: What it is called.
    """
    with ThreadPoolExecutor(1, thread_name_prefix=name, initializer=give_way) as thread:
        yield LowThread(thread)


def give_way() -> None:
    """Have the calling thread come after the others of its process, where the system knows how."""
    if sys.platform != "linux":
        return
    linux: Any = os
    with suppress(OSError):
        # In a process that is preferred to all others it would be preferred to the audio as well;
        # and who computes has no hurry to begin.
        linux.sched_setscheduler(0, linux.SCHED_BATCH, linux.sched_param(0))
    with suppress(OSError):
        os.nice(NICER)  # each of Linux's threads has its own
