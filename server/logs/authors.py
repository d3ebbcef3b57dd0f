"""What the author of a function is told that does not get along with the event loop."""

from __future__ import annotations

import inspect
import time
import traceback
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial, wraps
from typing import Any, TypeVar, cast

import structlog
import trio

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")
HELD_S = 0.1
"""A function that keeps the loop for longer is told of: five frames of every call are late."""
SAY_EVERY_S = 60.0
"""The same function is told of no more often."""
USES_ASYNCIO = (
    "the function uses asyncio, and the loop here is trio's: use trio and libraries that run on it "
    "(httpx, anyio), or write `def` instead of `async def`, and asyncio.run() inside"
)
BLOCKS = (
    "the function is `async def` and does not give way: every call on this process waits for it; "
    "await what it waits for, or have it run in a thread: a tool by `def`, anything else by "
    "trio.to_thread.run_sync"
)
where: Callable[[], list[str]] | None = None
"""Where a step of the loop that is still on was seen to stand, innermost first; whoever asks tells
its author. Set while somebody watches the loop."""
_OF_ASYNCIO = ("no running event loop", "no current event loop", "framework like asyncio")


def hint_of(error: BaseException) -> str | None:
    """What may help whoever wrote a function that has failed like this."""
    if isinstance(error, (RuntimeError, TypeError)) and any(
        words in str(error) for words in _OF_ASYNCIO
    ):
        return USES_ASYNCIO
    return None


def place_of(error: BaseException) -> str:
    """Where in its author's code an exception was raised, line by line.

    Its message is left out: what a function of the user's works with is what somebody has said.
    """
    return "".join(traceback.format_tb(error.__traceback__))


class FromThread:
    """A call as a plain function has it: what the function does to it is done on the event loop.

    Args:
        call: The call itself.
    """

    def __init__(self, call: object) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._call, name)
        if not callable(found):
            return found
        if inspect.iscoroutinefunction(found):
            raise TypeError(f"call.{name} has to be awaited: write `async def`, and await it")

        def on_the_loop(*args: Any, **kwargs: Any) -> Any:
            return trio.from_thread.run_sync(partial(found, *args, **kwargs))

        return on_the_loop


class Held:
    """Watches how long a function keeps the event loop at once.

    Args:
        name: What it is called.
        kind: What it is.
    """

    def __init__(self, name: str, kind: str = "tool") -> None:
        self._name = name
        self._kind = kind
        self._said_at: float | None = None

    @types.coroutine
    def watch(self, function: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Await a function's coroutine, and say so if a step of it is long."""
        step, value = function.send, None
        while True:
            began = time.perf_counter()
            try:
                wish = step(value)
            except StopIteration as ended:
                return ended.value
            finally:
                value = None  # an error leads back to this frame, and would keep all that is in it
                self._took(time.perf_counter() - began)
            try:
                step, value = function.send, (yield wish)
            except BaseException as error:  # whatever it is goes into the function
                step, value = function.throw, error

    def _took(self, held_s: float) -> None:
        if held_s < HELD_S:
            return
        at, now = where() if where is not None else [], time.perf_counter()
        if self._said_at is not None and now - self._said_at < SAY_EVERY_S:
            return
        self._said_at = now
        logger.warning(
            "a function held up every call",
            kind=self._kind,
            function=self._name,
            held_ms=round(1000 * held_s),
            at=at,
            hint=BLOCKS,
        )


def watched(function: Callable[..., Coroutine[Any, Any, T]], kind: str) -> Callable[..., Any]:
    """The same function, whose author is told if it keeps the loop or uses asyncio.

    Args:
        function: ``async def``.
        kind: What it is, for the log.
    """
    name = getattr(function, "__qualname__", "a function")
    held = Held(name, kind)

    @wraps(function)
    async def run(*args: Any, **kwargs: Any) -> T:
        try:
            return cast("T", await held.watch(function(*args, **kwargs)))
        except Exception as error:
            if (hint := hint_of(error)) is not None:
                logger.warning("a function needs another loop", kind=kind, function=name, hint=hint)
            raise

    return run
