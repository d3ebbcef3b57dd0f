"""Events in Python: functions of the user's that are called when something happens to a call.

They are called in the process that has the call, once, and not again if they fail or the process
dies: what must not be lost goes to a receiver (``EVENTS_URL``).
"""

from __future__ import annotations

import importlib
import inspect
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog
import trio

from server.errors import ConfigurationError
from server.events.event import KINDS, Kind
from server.logs.authors import watched
from server.metrics import Metrics

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Function: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[object]]
AT_ONCE = 8
"""Calls whose events are handled at the same time; those of one call come one after the other."""
MAX_WAITING = 250
"""Events that wait for each of these; beyond that they are left out, counted and logged."""
TIMEOUT_S = 10.0
"""How long a function may take for one event."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A function of the user's, and what it is called for."""

    kinds: tuple[Kind, ...]
    function: Function

    @property
    def name(self) -> str:
        """What the log calls it."""
        return getattr(self.function, "__qualname__", "a function")


def on(*kinds: Kind) -> Callable[[Function], Handler]:
    """Have an async function called with each event of these kinds; all if none is named.

    Raises:
        TypeError: There is no such event, or the function is not ``async def``.
    """
    if unknown := [str(kind) for kind in kinds if kind not in KINDS]:
        raise TypeError(f"@on: there is no event {', '.join(unknown)}; there are {KINDS}")

    def handler(function: Function) -> Handler:
        if not inspect.iscoroutinefunction(function):
            raise TypeError("@on: the function must be async def, and wait with trio")
        return Handler(kinds or KINDS, watched(function, "event handler"))

    return handler


def load_handlers(modules: Iterable[str]) -> tuple[Handler, ...]:
    """Import modules, and take every function with ``@on`` that stands in them, in order.

    Raises:
        ConfigurationError: A module cannot be imported or has none.
    """
    handlers: list[Handler] = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # whatever a module of the user's may do when it is imported
            raise ConfigurationError(
                f"EVENT_HANDLERS: {name} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        found = [one for one in vars(module).values() if isinstance(one, Handler)]
        if not found:
            raise ConfigurationError(f"EVENT_HANDLERS: {name} has no function with @on above it")
        handlers += found
    return tuple(dict.fromkeys(handlers))


class Handling:
    """Calls handlers, beside the calls: nobody waits for them.

    Args:
        handlers: The user's.
        metrics: The process's metrics.
    """

    def __init__(self, handlers: Sequence[Handler], metrics: Metrics) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._lanes = [
            trio.open_memory_channel[Mapping[str, Any]](MAX_WAITING)
            for _ in range(AT_ONCE if handlers else 0)
        ]
        self._is_behind = False

    def tell(self, content: Mapping[str, Any]) -> None:
        """Have the handlers called with an event; returns at once, never fails."""
        if not any(content["type"] in handler.kinds for handler in self._handlers):
            return
        call_sid = content["data"]["call"]["call_sid"]
        lane, _ = self._lanes[zlib.crc32(call_sid.encode()) % AT_ONCE]
        try:
            lane.send_nowait(content)
            self._is_behind = False
        except trio.WouldBlock:
            self._metrics.records.events.handled.labels("left-out").inc()
            if not self._is_behind:
                logger.warning("events left out: their functions are too slow", waiting=MAX_WAITING)
            self._is_behind = True

    async def run(self) -> None:
        """Call the handlers until cancelled."""
        async with trio.open_nursery() as nursery:
            for _, lane in self._lanes:
                nursery.start_soon(self._work, lane)

    async def _work(self, lane: trio.MemoryReceiveChannel[Mapping[str, Any]]) -> None:
        async for content in lane:
            for handler in self._handlers:
                if content["type"] in handler.kinds:
                    await self._call(handler, content)

    async def _call(self, handler: Handler, content: Mapping[str, Any]) -> None:
        outcome = "late"
        try:
            with trio.move_on_after(TIMEOUT_S):
                await handler.function(content)
                outcome = "ok"
        except Exception:
            outcome = "error"
            logger.exception(
                "event handler failed", handler=handler.name, event_type=content["type"]
            )
        if outcome == "late":
            logger.warning("event handler took too long", handler=handler.name, limit_s=TIMEOUT_S)
        self._metrics.records.events.handled.labels(outcome).inc()
