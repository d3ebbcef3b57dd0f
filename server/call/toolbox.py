"""The functions of one call's agent, run when its model asks for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeAlias

import msgspec
import structlog
import trio

from server.agent.builtin import send_dtmf, voicemail_reached
from server.agent.outcome import TOOL_NAME
from server.agent.results import Result, ToolError, written
from server.agent.tool import MAX_ERROR, LiveCall, Tool
from server.errors import innermost
from server.logs.authors import hint_of, place_of
from server.metrics import Metrics
from server.model import ToolCall, ToolResult

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
MAX_THREADS = 8
"""Plain functions one call may have running; one that never ends cannot starve other calls."""
SILENT = frozenset({TOOL_NAME, send_dtmf.name, voicemail_reached.name})
"""Functions whose answers tell the agent nothing to speak of."""


class LoopBreaker:
    """Notices a model that calls the same function over and over; takes ``now``, waits never.

    Seen in the field: 337 times, each at the price of the whole context.
    """

    WINDOW_S = 30.0
    MAX_SAME = 5
    """Calls of one function with the same arguments within the window."""
    MAX_CALLS = 40
    """Calls of whatever kind within the window."""
    REFUSAL_DELAY_S = 1.0
    """How long a refusal is held back: it is what the loop turns on."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, str, bytes]] = []  # when, what, digest of the arguments

    def allows(self, call: ToolCall, now: float) -> bool:
        """Whether this call may be run; those that are refused count, too."""
        recent = [one for one in self._calls if one[0] > now - self.WINDOW_S]
        arguments = sha256(msgspec.json.encode(call.arguments, order="deterministic")).digest()
        self._calls = [*recent[-self.MAX_CALLS :], (now, call.name, arguments)]
        same = sum(one[1:] == (call.name, arguments) for one in self._calls)
        return same <= self.MAX_SAME and len(self._calls) <= self.MAX_CALLS


@dataclass(frozen=True, slots=True)
class _Answered:
    name: str
    arguments: Mapping[str, Any]
    response: Mapping[str, Any]
    size_bytes: int


_Batch: TypeAlias = tuple[tuple[ToolCall, trio.CancelScope], ...]
"""Calls that came in one message; whatever of it has a refusal is answered with that."""
_Requests: TypeAlias = tuple[trio.MemorySendChannel[_Batch], trio.MemoryReceiveChannel[_Batch]]


class Toolbox:
    """Runs the functions that one call's model asks for, and answers every id exactly once.

    Calls that come together run in parallel and are answered together: the model waits for all of
    them. One that the model takes back is cancelled and not answered. One beyond the bounds is not
    run, and is answered with a refusal.

    Args:
        tools: What there is to call.
        call: Given to the functions that want it.
        metrics: The process's metrics.
        timeout_s: How long a function may take that does not say so itself.
        interrupted: Ids of calls that another process had begun to run: they are never run again.
        may_run: Awaited before anything is run: False if that is another process's to do.
        on_run: Told of each function that was run and is answered: the call, what the function has
            returned or raised, and what the model is told of it.
    """

    MAX_ANSWERED = 64
    """Answers that are remembered, for a model that lost its connection and asks again."""
    MAX_ANSWERED_BYTES = 256 * 1024
    """Bytes of JSON of remembered answers, arguments included; also of one message's answers."""
    MAX_AT_ONCE = 32
    """Functions run of those that one message has called."""
    MAX_OPEN = 64
    """Functions running or waiting to be answered, whenever they were called."""

    def __init__(
        self,
        tools: Iterable[Tool],
        call: LiveCall,
        *,
        metrics: Metrics,
        timeout_s: float,
        interrupted: Iterable[str] = (),
        may_run: Callable[[], Awaitable[bool]] | None = None,
        on_run: Callable[[ToolCall, object, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._may_run = may_run
        self._on_run = on_run
        self._interrupted = tuple(interrupted)
        self._tools = {one.name: one for one in tools}
        self._call = call
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._loop_breaker = LoopBreaker()
        self._open: dict[str, trio.CancelScope] = {}
        self._answered: dict[str, _Answered] = {}
        self._answered_bytes = 0
        self._refusal_logged = False  # one line is enough for a call

    # These are made when they are first wanted: most calls never do, and they cost 4 KiB.

    @cached_property
    def _threads(self) -> trio.CapacityLimiter:
        return trio.CapacityLimiter(MAX_THREADS)

    @cached_property
    def _requests(self) -> _Requests:
        # Unbounded: whatever is asked for is begun at once, and the loop breaker is the bound.
        return trio.open_memory_channel[_Batch](float("inf"))

    def request(self, calls: Iterable[ToolCall]) -> None:
        """The model wants these run; an id that is being run already is left at that."""
        fresh: list[tuple[ToolCall, trio.CancelScope]] = []
        room, running, refused = self.MAX_OPEN - len(self._open), 0, 0
        for call in calls:
            if call.id in self._open:
                continue
            if not call.refusal and running >= min(room, self.MAX_AT_ONCE):
                call = msgspec.structs.replace(call, refusal=_TOO_MANY)
            running += not call.refusal
            refused += bool(call.refusal)
            scope = self._open[call.id] = trio.CancelScope()
            fresh.append((call, scope))
        if refused:
            self._metrics.agents.tool_calls.labels("unknown", "refused").inc(refused)
            self._call.note("tools refused", count=refused)
            if not self._refusal_logged:
                self._refusal_logged = True
                logger.warning("functions were not run", refused=refused, called=len(fresh))
        if fresh:
            self._requests[0].send_nowait(tuple(fresh))

    def words_follow(self, calls: Iterable[ToolCall]) -> bool | None:
        """Whether the agent has to speak about what comes of these; None if that is not known.

        Surely where it has told the caller to wait for it.
        """
        names = {call.name for call in calls}
        if any(name in self._tools and self._tools[name].filler for name in names):
            return True
        return False if names <= SILENT else None

    def cancel(self, ids: Iterable[str]) -> None:
        """The model has taken these back: they are cancelled, and must not be answered."""
        for identity in ids:
            if (scope := self._open.pop(identity, None)) is not None:
                scope.cancel("taken back by the model")

    async def run(self, answer: Callable[[tuple[ToolResult, ...]], None]) -> None:
        """Run what is requested until cancelled; ``answer`` sends results to the model."""
        async with trio.open_nursery() as nursery:
            async for batch in self._requests[1]:
                nursery.start_soon(self._run_batch, batch, answer)

    async def _run_batch(
        self,
        batch: _Batch,
        answer: Callable[[tuple[ToolResult, ...]], None],
    ) -> None:
        responses: dict[str, Mapping[str, Any]] = {}
        if self._may_run is not None and not await self._may_run():
            return
        async with trio.open_nursery() as nursery:
            for call, scope in batch:
                if not call.refusal:
                    nursery.start_soon(self._run_call, call, scope, responses)
            if any(call.refusal for call, _ in batch):
                await trio.sleep(LoopBreaker.REFUSAL_DELAY_S)
        results = []
        size_bytes = 0
        for call, scope in batch:
            if self._open.get(call.id) is not scope:
                continue  # taken back, perhaps while it waited for the others
            del self._open[call.id]
            if call.refusal:
                results.append(ToolResult(call.id, call.name, _error(call.refusal)))
                continue
            response = responses[call.id]
            size_bytes += self._remember(call, response)
            if size_bytes > self.MAX_ANSWERED_BYTES:
                response = _error("it was run, but all answers together are too long to be read")
            results.append(ToolResult(call.id, call.name, response))
        if results:
            answer(tuple(results))

    async def _run_call(
        self, call: ToolCall, scope: trio.CancelScope, responses: dict[str, Mapping[str, Any]]
    ) -> None:
        known = self._answered.get(call.id)
        if known and (known.name, known.arguments) == (call.name, call.arguments):
            # Asked again, because the connection was lost before the answer arrived: what has been
            # done once is not done again.
            responses[call.id] = known.response
            return
        began = trio.current_time()
        outcome = "cancelled"
        with scope:
            outcome, responses[call.id] = await self._respond(call)
        took_s = trio.current_time() - began
        # The model makes names up; ours are few.
        name = call.name if call.name in self._tools else "unknown"
        self._metrics.agents.tool_calls.labels(name, outcome).inc()
        self._metrics.agents.tool_seconds.labels(name).observe(took_s)
        self._call.note("tool", name=name, outcome=outcome, took_ms=round(took_s * 1000, 1))

    async def _respond(self, call: ToolCall) -> tuple[str, Mapping[str, Any]]:
        """Run one function; whatever happens is told as an outcome and a response."""
        wanted = self._tools.get(call.name)
        if not self._loop_breaker.allows(call, trio.current_time()):
            await trio.sleep(LoopBreaker.REFUSAL_DELAY_S)
            return "refused", _error(
                "this function has been called too often. Do not call it again: go on with what "
                "you know, or tell the caller that it does not work."
            )
        if call.id in self._interrupted:
            return "refused", _error(
                "this call was interrupted before; its outcome is not known. Ask the caller before "
                "you try it again."
            )
        if wanted is None:
            known = ", ".join(self._tools) or "none at all"
            return "unknown", _error(f"there is no function of this name; there are: {known}")
        timeout_s = self._timeout_s if wanted.timeout_s is None else wanted.timeout_s
        told = (
            "timeout",
            _error(
                f"no answer within {timeout_s:g} seconds. Tell the caller that it did not work."
            ),
        )
        came: object = None
        # By except*, for a function with a nursery of its own may fail while it is cancelled: what
        # went wrong ends here, and Cancelled alone goes on to whoever has cancelled it.
        try:
            with trio.move_on_after(timeout_s):
                # Its own: what it does to them is nothing to what is remembered of the call.
                arguments = msgspec.json.decode(msgspec.json.encode(call.arguments))
                came = await wanted.run(arguments, self._call, self._threads)
                told = "ok", _response(came)
        except* ToolError as errors:
            told = "error", self._tell(call, innermost(errors), _error(str(innermost(errors))))
        except* (Exception, SystemExit) as errors:
            _log_failure(wanted.name, innermost(errors))
            response = _error("the function failed; calling it again will not help")
            told = "failed", self._tell(call, innermost(errors), response)
        else:
            self._tell(call, came, told[1])
        return told

    def _tell(self, call: ToolCall, came: object, response: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say that a function was run; an exception is not to stay in the frame that it ends in."""
        if self._on_run is not None:
            self._on_run(call, came, response)
        return response

    def _remember(self, call: ToolCall, response: Mapping[str, Any]) -> int:
        """Keep an answer, and let go of the oldest ones; returns its size in bytes."""
        size_bytes = len(msgspec.json.encode((call.arguments, response)))
        self._forget(call.id)
        self._answered[call.id] = _Answered(call.name, call.arguments, response, size_bytes)
        self._answered_bytes += size_bytes
        while (
            len(self._answered) > self.MAX_ANSWERED
            or self._answered_bytes > self.MAX_ANSWERED_BYTES
        ):
            self._forget(next(iter(self._answered)))
        return size_bytes

    def _forget(self, identity: str) -> None:
        if (known := self._answered.pop(identity, None)) is not None:
            self._answered_bytes -= known.size_bytes


_TOO_MANY = (
    "too many functions were called at once, and this one was not run. Call one at a time, and "
    "only what you need."
)


def _log_failure(name: str, error: BaseException) -> None:
    """A tool has a bug, which is no reason to lose a call.

    Its message may hold what somebody said, so only its kind and its place are told.
    """
    hint = {"hint": found} if (found := hint_of(error)) else {}
    logger.error(
        "tool failed",
        tool=name,
        error=type(error).__name__,
        where=place_of(error),
        **hint,
    )


def _error(message: str) -> Mapping[str, Any]:
    # Half of a surrogate pair, as of text that was cut, could not be sent.
    return {"error": message[:MAX_ERROR].encode("utf-8", "replace").decode()}


def _response(value: object) -> Mapping[str, Any]:
    """What the model is told: never nothing, for it takes nothing for a failure.

    Raises:
        ToolError: It cannot be told.
    """
    output = (value if isinstance(value, Result) else written(value)).output
    if output is None or output == {} or output == "":
        output = {"status": "ok"}
    return {"output": output}
