"""What the agent can do besides talk: functions the model may call.

Write a function, put ``@tool`` above it, and it is offered to the model: here, or in a module of
your own named in ``TOOLS``. The model is told what the docstring says; the signature becomes the
JSON schema that its arguments are checked against::

    @tool
    async def opening_hours(branch: Literal["north", "south"], call: LiveCall) -> str:
        \"\"\"Say when a branch is open.

        Args:
            branch: Which of the two.
        \"\"\"
        return HOURS[branch]

An ``async`` function runs on the event loop, a plain one in a worker thread. A parameter named
``call`` is given the call itself and is not the model's business. What is returned is told to the
model, if it can be written as JSON; a :class:`ToolError` is told as its message, any other
exception only as "failed".

Top to bottom: what a tool is, made from a function; the tools that are built in; finding the
user's own; and the :class:`Toolbox` in which one call's model has its functions run.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from typing import Annotated, Any, Literal, NotRequired, Protocol, TypeAlias, overload

import msgspec
import structlog
import trio
from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypedDict

from server.carrier import CallStatus
from server.carrier.keypad import KEYS, MAX_KEYS
from server.errors import CarrierError, ConfigurationError
from server.metrics import Metrics
from server.model import ToolCall, ToolResult

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_THREADS = 8
"""Plain functions one call may have running; one that never ends cannot starve other calls."""
MAX_RESULT_BYTES = 32 * 1024
"""The whole context is billed again with every turn, and nobody listens to more than this."""
MAX_ERROR = 2_000
"""Characters of what the model is told about a failure."""
MAX_PROBLEMS = 10
"""Arguments that are told apart in it; whoever gets more wrong has misread the whole function."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}")  # as the Live API wants it


class ToolError(Exception):
    """Something the model should know about: the message is told to it, and to nobody else."""


class LiveCall(Protocol):
    """What a tool may know about its call, and do to it; only from the event loop."""

    @property
    def call_sid(self) -> str:
        """The carrier's name for the call."""
        ...

    @property
    def direction(self) -> Literal["inbound", "outbound"]:
        """Who dialled."""
        ...

    @property
    def number(self) -> str:
        """The other party's number, in full: not for logs."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The labels that ``POST /make-call`` was given."""
        ...

    def note(self, what: str, **facts: Any) -> None:
        """Add a line to the call's timeline; nothing anybody said, and no argument."""
        ...

    def hang_up_when_heard(self) -> bool:
        """End the call when the agent's farewell has been heard; False if it ends already."""
        ...

    async def transfer(self, destination: str, number: str) -> CallStatus:
        """Connect the caller with somebody else; returns when they are back, and why."""
        ...

    def report_voicemail(self) -> bool:
        """A machine has picked up; False if nothing is done about that on this call."""
        ...

    async def press_keys(self, keys: str) -> None:
        """Play the tones of telephone keys to the other party, to their end."""
        ...


# ------------------------------------------------------------------------------------------
# What a tool is


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str
    """What it does and when to use it: all that the model knows about it."""
    parameters: Mapping[str, Any]
    """JSON schema of its arguments, an object."""
    run: Callable[[Mapping[str, Any], LiveCall, trio.CapacityLimiter], Awaitable[object]]
    """Checks the arguments and runs it; a function that blocks, in a thread of the limiter.

    Raises:
        ToolError: The arguments are wrong, or whatever else the model should be told.
    """
    timeout_s: float | None = None
    """How long it may take; None for the setting."""
    function: Callable[..., Any] | None = None
    """What ``@tool`` was put above."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as if nothing had been put above it, in a test for instance."""
        if self.function is None:
            raise TypeError(f"{self.name} is not a function of this program")
        return self.function(*args, **kwargs)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, timeout_s: float | None = None
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function callable by the model: ``@tool``, or ``@tool(timeout_s=30)``.

    Args:
        function: A typed function with a docstring; parameters are described by its ``Args:``
            section, or by ``Annotated[…, Field(description=…)]``.
        name: What the model calls it; its own name by default.
        timeout_s: How long it may take; ``TOOL_TIMEOUT_S`` by default.

    Raises:
        TypeError: The model could not be told what it is, or how to call it.
    """
    if function is None:
        return lambda function: _tool_of(function, name, timeout_s)
    return _tool_of(function, None, None)


def _tool_of(function: Callable[..., Any], name: str | None, timeout_s: float | None) -> Tool:
    name = name or function.__name__
    if not _NAME.fullmatch(name):
        raise TypeError(f"tool {name!r}: letters, digits and _ only, and at most 128 of them")
    description, described = _read_docstring(_docstring(function))
    if not description:
        raise TypeError(f"tool {name}: the docstring is what the model is told, and there is none")
    wants_call = False
    fields: dict[str, Any] = {}
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, AttributeError) as error:
        raise TypeError(f"tool {name}: {error}") from error
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: {parameter} cannot be passed by name")
        if parameter.name == "call":
            wants_call = True
            continue
        if parameter.annotation is parameter.empty:
            raise TypeError(f"tool {name}: {parameter.name} has no type")
        hint: Any = parameter.annotation
        if parameter.name in described:
            hint = Annotated[hint, Field(description=described[parameter.name])]
        fields[parameter.name] = hint if parameter.default is parameter.empty else NotRequired[hint]
    # A typed dictionary, not a model: its keys may be any name, and the function's own defaults
    # are left to the function.
    make_dictionary: Any = TypedDict
    arguments = make_dictionary("arguments", fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(arguments)
        parameters = _plain(adapter.json_schema())
    except PydanticUserError as error:
        raise TypeError(f"tool {name}: {error.message}") from error
    parameters.pop("additionalProperties", None)  # said in vain, and refused in older fields

    async def run(
        given: Mapping[str, Any], call: LiveCall, threads: trio.CapacityLimiter
    ) -> object:
        try:
            checked = adapter.validate_python(without_extra(given, fields))
        except ValidationError as error:
            raise ToolError(f"wrong arguments: {_problems(error)}") from None
        if wants_call:
            checked = checked | {"call": call}
        if inspect.iscoroutinefunction(function):
            return await function(**checked)
        return await trio.to_thread.run_sync(
            partial(function, **checked), abandon_on_cancel=True, limiter=threads
        )

    return Tool(name, description, parameters, run, timeout_s, function)


_REMARKS = frozenset({"reason", "explanation", "rationale", "thought", "thoughts", "comment"})
"""What models like to add to the arguments of whatever function they call."""


def without_extra(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Arguments without those that do no harm to a function that does not have them.

    For a function without parameters that is all of them; for one with parameters, remarks. Any
    other may be one of its own misspelt, and stays to be complained about.
    """
    return {
        name: value
        for name, value in given.items()
        if name in known or (known and name not in _REMARKS)
    }


_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^\s+\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s+(.*)$")


def _docstring(function: Callable[..., Any]) -> str:
    """What is written below a function's head, also where ``python -OO`` has thrown it away."""
    if function.__doc__ is not None or sys.flags.optimize < 2:
        return function.__doc__ or ""
    try:
        source = textwrap.dedent(inspect.getsource(function))
        definition = ast.parse(source).body[0]
    except (OSError, SyntaxError, IndexError):
        return ""
    if isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return ast.get_docstring(definition) or ""
    return ""


def _read_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """What a docstring says about the function, and about each argument in ``Args:``."""
    told: list[str] = []
    described: dict[str, str] = {}
    section, argument = "", ""
    for line in inspect.cleandoc(docstring).splitlines():
        if heading := _SECTION.match(line):
            section = heading[1]
        elif not section:
            told.append(line)
        elif section in ("Args", "Arguments", "Parameters"):
            if found := _ARGUMENT.match(line):
                argument = found[1]
                described[argument] = found[2].strip()
            elif line.strip() and argument:
                described[argument] += " " + line.strip()
    return "\n".join(told).strip(), described


def _plain(schema: Any) -> Any:
    """A schema without the titles that pydantic makes of names, and with ``enum`` for ``const``."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("properties", "$defs"):  # their keys are names: a property may be called title
            plain[name] = {key: _plain(one) for key, one in value.items()}
        elif name == "const":
            plain["enum"] = [value]
        elif name != "title":
            plain[name] = _plain(value)
    return plain


def _problems(error: ValidationError) -> str:
    if error.error_count() > MAX_PROBLEMS:
        return f"{error.error_count()} of them"
    return "; ".join(
        f"{'.'.join(str(part) for part in issue['loc'])}: {issue['msg']}"
        for issue in error.errors(include_url=False, include_context=False, include_input=False)
    )


# ------------------------------------------------------------------------------------------
# Built in


@tool
async def hang_up(call: LiveCall) -> str:
    """End the telephone call.

    Use it when the conversation is over: when both sides have said goodbye, or when the caller asks
    you to hang up. Say goodbye in the same breath; the line is cut when the caller has heard it.
    """
    if call.hang_up_when_heard():
        return "If you have not said goodbye yet, do it now, in one short sentence."
    return "The call is already being ended. Say no more than goodbye."


@tool(timeout_s=60.0)
async def send_dtmf(
    digits: Annotated[str, Field(pattern=f"^[{KEYS}w]{{1,{MAX_KEYS}}}$")], call: LiveCall
) -> str:
    """Press keys of the telephone, for instance to choose from an automatic menu.

    Args:
        digits: The keys in order: digits, * and #; a w waits for half a second.
    """
    await call.press_keys(digits)
    return "The keys have been pressed."


@tool
async def voicemail_reached(call: LiveCall) -> str:
    """Report that voicemail or an answering machine has picked up, and not a person.

    Use it as soon as you hear a recorded announcement that asks to leave a message, then say
    nothing more: what happens next is taken care of.
    """
    if call.report_voicemail():
        return "Understood. Say nothing now."
    raise ToolError("Nothing can be left here. If nobody is there, hang up.")


def transfer_tool(targets: Mapping[str, str]) -> Tool:
    """Make the tool that hands the caller over to one of these.

    Args:
        targets: Numbers by the name the model knows them under. No other number is ever dialled,
            whatever anybody on the line makes the model ask for.
    """

    async def transfer(destination: str, call: LiveCall) -> str:
        """Connect the caller with somebody else, and leave the call.

        Tell the caller first, in one short sentence, whom you connect them with. If nobody answers
        there, the caller comes back to you.

        Args:
            destination: With whom.
        """
        try:
            status = await call.transfer(destination, targets[destination])
        except CarrierError:
            raise ToolError(
                "The transfer was not possible. The caller is still here: tell them."
            ) from None
        except ValueError as error:
            raise ToolError(str(error)) from None
        if status is CallStatus.COMPLETED:
            return "The caller has been connected."
        raise ToolError(
            f"Nobody took the call ({status.value}). The caller is back on the line with you: "
            "tell them, and ask how to go on."
        )

    transfer.__annotations__["destination"] = Literal[tuple(targets)]
    # It rings for as long as it rings; the call itself sees to it that this ends.
    return _tool_of(transfer, None, float("inf"))


# ------------------------------------------------------------------------------------------
# The user's own


def load_tools(modules: Iterable[str]) -> tuple[Tool, ...]:
    """Import modules, and take every tool that stands in them, in order.

    Raises:
        ConfigurationError: A module cannot be imported or has no tools; ``TOOLS`` is named.
    """
    tools: list[Tool] = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # whatever a module of the user's may do when it is imported
            raise ConfigurationError(
                f"TOOLS: {name} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        found = [one for one in vars(module).values() if isinstance(one, Tool)]
        if not found:
            raise ConfigurationError(f"TOOLS: {name} has no function with @tool above it")
        tools += found
    return tuple(tools)


def check_names(tools: Iterable[Tool]) -> tuple[Tool, ...]:
    """The same tools, once each.

    Raises:
        ConfigurationError: Two different ones have the same name.
    """
    by_name: dict[str, Tool] = {}
    for one in tools:
        if by_name.setdefault(one.name, one) is not one:
            raise ConfigurationError(f"TOOLS: there are two tools called {one.name}")
    return tuple(by_name.values())


# ------------------------------------------------------------------------------------------
# One call's tools at work


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
    """

    MAX_ANSWERED = 64
    """Answers that are remembered, for a model that lost its connection and asks again."""
    MAX_ANSWERED_BYTES = 256 * 1024
    """The same in bytes of JSON, arguments included; also of what is answered in one message."""
    MAX_AT_ONCE = 32
    """Functions run of those that one message has called."""
    MAX_OPEN = 64
    """Functions running or waiting to be answered, whenever they were called."""

    def __init__(
        self, tools: Iterable[Tool], call: LiveCall, *, metrics: Metrics, timeout_s: float
    ) -> None:
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

    @property
    def is_busy(self) -> bool:
        """Whether the model waits for an answer."""
        return bool(self._open)

    def request(self, calls: Iterable[ToolCall]) -> None:
        """The model wants these run; an id that is being run already is left at that."""
        fresh: list[tuple[ToolCall, trio.CancelScope]] = []
        room, running, refused = self.MAX_OPEN - len(self._open), 0, 0
        for call in calls:
            if call.id in self._open:
                continue
            if not call.refusal and running >= min(room, self.MAX_AT_ONCE):
                call = replace(call, refusal=_TOO_MANY)
            running += not call.refusal
            refused += bool(call.refusal)
            scope = self._open[call.id] = trio.CancelScope()
            fresh.append((call, scope))
        if refused:
            self._metrics.tool_calls.labels("unknown", "refused").inc(refused)
            self._call.note("tools refused", count=refused)
            if not self._refusal_logged:
                self._refusal_logged = True
                logger.warning("functions were not run", refused=refused, called=len(fresh))
        if fresh:
            self._requests[0].send_nowait(tuple(fresh))

    def cancel(self, ids: Iterable[str]) -> None:
        """The model has taken these back: they are cancelled, and must not be answered."""
        for identity in ids:
            if (scope := self._open.pop(identity, None)) is not None:
                scope.cancel("taken back by the model")

    async def run(self, answer: Callable[[tuple[ToolResult, ...]], Awaitable[None]]) -> None:
        """Run what is requested until cancelled; ``answer`` sends results to the model."""
        async with trio.open_nursery() as nursery:
            async for batch in self._requests[1]:
                nursery.start_soon(self._run_batch, batch, answer)

    async def _run_batch(
        self,
        batch: _Batch,
        answer: Callable[[tuple[ToolResult, ...]], Awaitable[None]],
    ) -> None:
        responses: dict[str, Mapping[str, Any]] = {}
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
            await answer(tuple(results))

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
        self._metrics.tool_calls.labels(name, outcome).inc()
        self._metrics.tool_seconds.labels(name).observe(took_s)
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
        if wanted is None:
            known = ", ".join(self._tools) or "none at all"
            return "unknown", _error(f"there is no function of this name; there are: {known}")
        timeout_s = self._timeout_s if wanted.timeout_s is None else wanted.timeout_s
        try:
            with trio.move_on_after(timeout_s):
                return "ok", _response(await wanted.run(call.arguments, self._call, self._threads))
        except ToolError as error:
            return "error", _error(str(error))
        except Exception as error:
            # A bug in a tool is no reason to lose a call. Its message may hold what somebody said,
            # so only its kind and its place are told.
            frames = traceback.format_tb(error.__traceback__)
            logger.error(  # noqa: TRY400
                "tool failed", tool=wanted.name, error=type(error).__name__, where="".join(frames)
            )
            return "failed", _error("the function failed; calling it again will not help")
        return "timeout", _error(
            f"no answer within {timeout_s:g} seconds. Tell the caller that it did not work."
        )

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


def _error(message: str) -> Mapping[str, Any]:
    return {"error": message[:MAX_ERROR]}


def _response(value: object) -> Mapping[str, Any]:
    """What the model is told: never nothing, for it takes nothing for a failure.

    Raises:
        ToolError: It cannot be told.
    """
    try:
        output = to_jsonable_python(value, by_alias=True)
        if output is None or output == {} or output == "":
            output = {"status": "ok"}
        response = {"output": output}
        size = len(msgspec.json.encode(response))
    except (
        PydanticSerializationError,
        UnicodeError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        logger.error(  # noqa: TRY400
            "tool result cannot be written as JSON",
            result=type(value).__name__,
            error=type(error).__name__,
        )
        raise ToolError("the function was run, but what it returned cannot be read") from None
    if size > MAX_RESULT_BYTES:
        logger.error("tool result is too long", size_bytes=size, limit_bytes=MAX_RESULT_BYTES)
        raise ToolError("the function was run, but what it returned is too long to be read")
    return response
