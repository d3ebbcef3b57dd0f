"""Waking whoever waits for something to happen.

Nobody waits for most of what may happen to a call at a given moment, and an event of trio's takes
280 bytes: here it is made when somebody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from math import inf

import trio


class Once:
    """Something that happens once, for good."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._event: trio.Event | None = None  # as long as nobody has waited for it
        self._is_set = False

    def set(self) -> None:
        """It has happened: wake everybody who waits."""
        self._is_set = True
        if self._event is not None:
            self._event.set()
            self._event = None

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    async def wait(self) -> None:
        """Wait until it happens, or has happened."""
        if self._is_set:
            await trio.lowlevel.checkpoint()
            return
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()


class Presence:
    """Whether something is there that comes, may go, and comes again."""

    __slots__ = ("_come", "_coming", "_was_coming_at")

    def __init__(self) -> None:
        self._come = Once()
        self._coming = 0
        self._was_coming_at = -inf

    def set(self) -> None:
        """It is there: wake everybody who waits."""
        self._come.set()

    def gone(self) -> None:
        """It has gone."""
        self._come = Once()

    def is_set(self) -> bool:
        """Whether it is there."""
        return self._come.is_set()

    async def wait(self) -> None:
        """Wait until it is there."""
        await self._come.wait()

    @contextmanager
    def coming(self) -> Generator[None]:
        """It is on its way, for as long as the block lasts."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._was_coming_at = trio.current_time()

    def since_coming_s(self) -> float:
        """How long ago it last was on its way: 0 while it is, infinity if it never was."""
        return 0.0 if self._coming else trio.current_time() - self._was_coming_at


class Signal:
    """Something that happens again and again.

    Whoever waits for it asks :meth:`next` for an event before looking at what may have changed, so
    that what happens while they act is seen.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None  # as long as nobody has asked for it

    def set(self) -> None:
        """Wake everybody who waits."""
        if self._event is not None:
            self._event.set()
            self._event = None

    def next(self) -> trio.Event:
        """The event of the next time."""
        if self._event is None:
            self._event = trio.Event()
        return self._event

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is asked now, and whenever this happens."""
        while not condition():
            await self.next().wait()
