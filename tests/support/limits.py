"""Having less of something than there is: limits of this process, for a while."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from trio._core import _thread_cache

from server.hooks.sockets import say_no_thread_is_the_systems


@contextmanager
def at_most(name: str, soft: int) -> Generator[None]:
    """Have no more than this within the block.

    Args:
        name: As the module ``resource`` calls it, without ``RLIMIT_``; skips where there is none.
        soft: How much.
    """
    resource = pytest.importorskip("resource")
    limit = getattr(resource, f"RLIMIT_{name}")
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


class _NobodyIdle(dict[Any, None]):
    """Threads of trio's that have nothing to do, and get nothing."""

    def popitem(self) -> tuple[Any, None]:
        raise KeyError


@contextmanager
def no_threads() -> Generator[None]:
    """Have the system refuse each thread within the block, as a server meets that."""
    say_no_thread_is_the_systems()
    cache: Any = _thread_cache.THREAD_CACHE
    idle, nobody = cache._idle_workers, _NobodyIdle()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "_idle_workers", nobody)
        patch.setattr(threading.Thread, "start", refuse)
        yield
    idle.update(nobody)
