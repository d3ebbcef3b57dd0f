"""Events in Python: functions of the user's that are called when something happens to a call.

They are called in the process that has the call, once, and not again if they fail or the process
dies: what must not be lost goes to a receiver (``EVENTS_URL``).
"""

from __future__ import annotations

import importlib
import inspect
import json
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog
import trio

from server.errors import ConfigurationError, innermost
from server.events.event import KINDS, Kind
from server.logs.authors import place_of, watched
from server.metrics import Metrics
from server.signal import Signal

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Function: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[object]]
AT_ONCE = 8
"""Calls whose events are handled at the same time; those of one call come one after the other."""
MAX_WAITING, MAX_WAITING_BYTES = 250, 4 * 1024 * 1024
"""Events that wait for each of these, and what they come to; beyond that they are left out, counted
and logged."""
TIMEOUT_S = 10.0
"""How long a function may take for one event."""
FINISH_TIMEOUT_S = 5.0
"""How long a server that stops waits for functions with what has happened."""


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
        # Whatever a module of the user's may do when it is imported.
        except (Exception, SystemExit) as error:
            raise ConfigurationError(
                f"EVENT_HANDLERS: {name} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        found = [one for one in vars(module).values() if isinstance(one, Handler)]
        if not found:
            raise ConfigurationError(f"EVENT_HANDLERS: {name} has no function with @on above it")
        handlers += found
    return tuple(dict.fromkeys(handlers))


class _Lane:
    """Events that wait, of some calls: in the order in which they happened."""

    def __init__(self) -> None:
        self._events: deque[tuple[Kind, str]] = deque()
        self.bytes = 0
        self.changed = Signal()

    def __len__(self) -> int:
        return len(self._events)

    def put(self, kind: Kind, payload: str) -> bool:
        """Have an event wait, if there is room for it."""
        is_full = len(self._events) >= MAX_WAITING
        if is_full or self.bytes + len(payload) > MAX_WAITING_BYTES:
            return False
        self._events.append((kind, payload))
        self.bytes += len(payload)
        self.changed.set()
        return True

    async def wait_empty(self) -> None:
        """Wait until none waits any more."""
        await self.changed.until(lambda: not self._events)

    async def first(self) -> tuple[Kind, str]:
        """Wait for the one that has waited longest; it stays until :meth:`done`."""
        await self.changed.until(lambda: bool(self._events))
        return self._events[0]

    def done(self) -> None:
        """The first one waits no more."""
        _, payload = self._events.popleft()
        self.bytes -= len(payload)
        self.changed.set()


class Handling:
    """Calls handlers, beside the calls: nobody waits for them.

    Args:
        handlers: The user's.
        metrics: The process's metrics.
    """

    def __init__(self, handlers: Sequence[Handler], metrics: Metrics) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._lanes = [_Lane() for _ in range(AT_ONCE if handlers else 0)]
        self._is_behind = False

    def wants(self, kind: Kind) -> bool:
        """Whether there is any handler for events of this kind."""
        return any(kind in handler.kinds for handler in self._handlers)

    def tell(self, kind: Kind, call_sid: str, payload: str) -> None:
        """Have the handlers called with an event; returns at once, never fails.

        Args:
            kind: What has happened.
            call_sid: To which call.
            payload: What receivers are told of it.
        """
        if not self.wants(kind):
            return
        if self._lanes[zlib.crc32(call_sid.encode()) % AT_ONCE].put(kind, payload):
            self._is_behind = False
            return
        self._metrics.records.events.handled.labels("left-out").inc()
        if not self._is_behind:
            logger.warning("events left out: their functions are too slow", waiting=MAX_WAITING)
        self._is_behind = True

    async def run(self) -> None:
        """Call the handlers until cancelled."""
        async with trio.open_nursery() as nursery:
            for lane in self._lanes:
                nursery.start_soon(self._work, lane)

    async def finish(self) -> None:
        """Wait until the handlers have been called with everything, for as long as that may take.

        Nothing happens any more; :meth:`run` goes on.
        """
        with trio.move_on_after(FINISH_TIMEOUT_S):
            for lane in self._lanes:
                await lane.wait_empty()
        if left := sum(map(len, self._lanes)):
            self._metrics.records.events.handled.labels("left-out").inc(left)
            logger.warning("events left out: the server stops", events=left)

    async def _work(self, lane: _Lane) -> None:
        while True:
            kind, payload = await lane.first()
            for handler in self._handlers:
                if kind in handler.kinds:
                    # Each has its own: what one does to it is nothing to the others.
                    await self._call(handler, json.loads(payload))
            lane.done()

    async def _call(self, handler: Handler, content: Mapping[str, Any]) -> None:
        outcome = "late"
        try:
            with trio.move_on_after(TIMEOUT_S):
                await handler.function(content)
                outcome = "ok"
        # Whatever a function of the user's may do; by except*, as it may while it is cancelled.
        except* (Exception, SystemExit) as errors:
            outcome = "error"
            _log_failure(handler.name, content["type"], innermost(errors))
        if outcome == "late":
            logger.warning("event handler took too long", handler=handler.name, limit_s=TIMEOUT_S)
        self._metrics.records.events.handled.labels(outcome).inc()


def _log_failure(name: str, event_type: str, error: BaseException) -> None:
    """A function has failed: its message may hold what somebody said."""
    logger.error(
        "event handler failed",
        handler=name,
        event_type=event_type,
        error=type(error).__name__,
        where=place_of(error),
    )
