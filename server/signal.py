"""Waking whoever waits for something to happen.

Nobody waits for most of what may happen to a call at a given moment, and an event of trio's takes
280 bytes: here it is made when somebody waits.
"""

from __future__ import annotations

from collections.abc import Callable

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
