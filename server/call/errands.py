"""What a call seldom has to do besides talking: a task for it is begun when it is first wanted.

Keys are pressed, functions are called, callers are transferred in few calls, and a task that only
waits for that costs every call about 3 KiB. Part of a :class:`~server.call.call.Call`, whose end is
waited for by the same task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from server.signal import Signal


class Errands:
    """Tasks of one call that are begun on demand, each once."""

    def __init__(self) -> None:
        self._begun: list[Callable[..., Awaitable[Any]]] = []
        self._wanted: list[Callable[[], Awaitable[Any]]] = []
        self._news = Signal()
        self._is_over = False

    def begin(self, errand: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Have this run as a task of the call's; when it has been begun before, nothing happens."""
        if errand not in self._begun:
            self._begun.append(errand)
            self._wanted.append(partial(errand, *args))
            self._news.set()

    def end(self) -> None:
        """The call is to end: nothing is begun any more."""
        self._is_over = True
        self._news.set()

    def let_go(self) -> None:
        """The call is over: forget what was begun, which knows the call."""
        self._begun.clear()
        self._wanted.clear()

    async def run(self, nursery: trio.Nursery) -> None:
        """Begin what is wanted, in the call's nursery; returns when the call is to end."""
        while not self._is_over:
            # The event is made before asking, so that what is wanted meanwhile is seen.
            news = self._news.next()
            wanted, self._wanted = self._wanted, []
            for errand in wanted:
                nursery.start_soon(errand)
            await news.wait()
