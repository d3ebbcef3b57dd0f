"""What the agent can do besides talk: functions the model may call.

Write a function, put ``@tool`` above it, and it is offered to the model: in a module of your own
named in ``TOOLS``, or in ``builtin.py``. The model is told what the docstring says; the signature
becomes the JSON schema that its arguments are checked against::

    @tool
    async def opening_hours(branch: Literal["north", "south"], call: LiveCall) -> str:
        \"\"\"Say when a branch is open.

        Args:
            branch: Which of the two.
        \"\"\"
        return HOURS[branch]

An ``async`` function runs on the event loop, which is trio's and not asyncio's, a plain one in a
worker thread, where it may wait and use asyncio as it likes. A parameter named
``call`` is given the call itself and is not the model's business. What is returned is told to the
model, if it can be written as JSON of 32 KiB at most, a generator as a list; a
:class:`ToolError` is told as its message, any other exception only as "failed".
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NotRequired, Protocol, TypeVar, overload

import trio
from docstring_parser import parse
from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError
from typing_extensions import TypedDict

from server.agent.results import MAX_RESULT_BYTES as MAX_RESULT_BYTES
from server.agent.results import Result, written
from server.agent.results import ToolError as ToolError
from server.carrier import CallStatus
from server.logs.authors import FromThread, Held

T = TypeVar("T")
MAX_ERROR = 2_000
"""Characters of what the model is told about a failure."""
MAX_PROBLEMS = 10
"""Wrong arguments that are told one by one; whoever gets more wrong has misread the function."""
MAX_FILLER = 200
"""Characters of what the agent says before a function that takes long."""
_FILLER = 'It takes a while. Just before you call it, say "{}", and nothing after that.'
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}")  # as the Live API wants it


class LiveCall(Protocol):
    """What a tool may know about its call, and do to it.

    A plain function, which runs in a thread, has all of it but what has to be awaited.
    """

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

    def report_voicemail(self) -> Literal["silence", "message"] | None:
        """A machine has picked up; returns what is wanted of the agent now: to say nothing, or to
        go on with the message that it is leaving. None if nothing is done about machines (any more)
        on this call.
        """
        ...

    def fill_outcome(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Write down part of what the call was for; returns what of it is still missing.

        Raises:
            ValueError: It does not fit the agent's schema, or there is none; nothing is kept.
        """
        ...

    async def press_keys(self, keys: str) -> None:
        """Play the tones of telephone keys to the other party, to their end.

        Raises:
            StreamEnded: The line was lost before it was known that they were heard.
        """
        ...


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

    Returns:
        What is to be told, as a :class:`Result` where that took work.

    Raises:
        ToolError: The arguments are wrong, or whatever else the model should be told.
    """
    timeout_s: float | None = None
    """How long it may take; None for the setting."""
    function: Callable[..., Any] | None = None
    """What ``@tool`` was put above."""
    filler: str = ""
    """What the agent says before it calls a function that takes long; empty for nothing."""

    @property
    def told(self) -> str:
        """The description as the model is told it.

        The filler has to be said before the call: from then on the model is silent until the
        answer, and would take a word of ours in between for the caller's, who has other wishes.
        """
        if not self.filler:
            return self.description
        return f"{self.description}\n\n{_FILLER.format(self.filler)}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as if nothing had been put above it, in a test for instance."""
        if self.function is None:
            raise TypeError(f"{self.name} is not a function of this program")
        return self.function(*args, **kwargs)


@overload
def tool(
    function: Callable[..., Any],
    /,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    filler: str = "",
) -> Tool: ...


@overload
def tool(
    *, name: str | None = None, timeout_s: float | None = None, filler: str = ""
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    filler: str = "",
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function callable by the model: ``@tool``, or ``@tool(timeout_s=30)``.

    Args:
        function: A typed function with a docstring; parameters are described there as Google,
            NumPy or Sphinx has it, or by ``Annotated[…, Field(description=…)]``.
        name: What the model calls it; its own name by default.
        timeout_s: How long it may take; ``TOOL_TIMEOUT_S`` by default.
        filler: Words for the agent to say before it calls a function that takes long, such as
            ``"One moment, I am looking that up."``, in the language of its calls.

    Raises:
        TypeError: The model could not be told what it is, or how to call it.
    """
    if function is None:
        return lambda function: tool_of(function, name, timeout_s, filler)
    return tool_of(function, name, timeout_s, filler)


def tool_of(
    function: Callable[..., Any], name: str | None, timeout_s: float | None, filler: str = ""
) -> Tool:
    """Make a tool of a function; see :func:`tool`."""
    name = name or getattr(function, "__name__", None)
    if name is None:
        raise TypeError(f"tool: a {type(function).__name__} has no name of its own; give it one")
    if len(filler) > MAX_FILLER or '"' in filler:
        raise TypeError(f"tool {name}: a filler has at most {MAX_FILLER} characters, and no quotes")
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
        parameters = plain_schema(adapter.json_schema())
    except PydanticUserError as error:
        raise TypeError(f"tool {name}: {error.message}") from error
    except (RuntimeError, TypeError, ValueError, SchemaError) as error:
        # A constraint that a type cannot have, or a type that cannot be.
        raise TypeError(f"tool {name}: {error}") from error
    parameters.pop("additionalProperties", None)  # said in vain, and refused in older fields

    held = Held(name)

    async def run(
        given: Mapping[str, Any], call: LiveCall, threads: trio.CapacityLimiter
    ) -> object:
        try:
            checked = read_as(adapter, without_extra(given, fields))
        except ValidationError as error:
            raise ToolError(f"wrong arguments: {_problems(error)}") from None
        if wants_call:
            is_async = inspect.iscoroutinefunction(function)
            checked = checked | {"call": call if is_async else FromThread(call)}
        if inspect.iscoroutinefunction(function):
            return await held.watch(_awaited(function(**checked)))
        return await trio.to_thread.run_sync(
            partial(_called, function, checked), abandon_on_cancel=True, limiter=threads
        )

    return Tool(name, description, parameters, run, timeout_s, function, filler)


def _called(function: Callable[..., object], arguments: Mapping[str, Any]) -> Result:
    return written(function(**arguments))


async def _awaited(running: Awaitable[object]) -> Result:
    return written(await running)


def read_as(adapter: TypeAdapter[T], given: Mapping[str, Any]) -> T:
    """What a model has given, as the types want it.

    Strict ones take a date, a tuple or a member of an enumeration only from JSON, as which it came.

    Raises:
        ValidationError: It does not fit.
    """
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        try:
            return adapter.validate_json(json.dumps(given))
        except ValidationError as of_json:
            issues = of_json.errors(include_url=False, include_context=False, include_input=False)
            if issues[0]["type"] == "json_invalid":  # half a character, say, of which it said more
                raise error from None
            raise of_json from None
        except (RecursionError, ValueError):
            raise error from None


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


_PARAMETERS_ELSEWHERE = (
    *("$ref", "allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas"),
    "patternProperties",
)
"""Where a schema has parameters that are not among its own ``properties``."""
_OTHERS = ("additionalProperties", "unevaluatedProperties")
"""Where a schema says what any others are like; ``{}`` is anything, as ``true`` is."""


def has_parameters_elsewhere(schema: Mapping[str, Any]) -> bool:
    """Whether a function's schema takes arguments that its own ``properties`` do not name."""
    takes_others = any(schema.get(key) not in (None, False) for key in _OTHERS)
    return takes_others or any(schema.get(key) for key in _PARAMETERS_ELSEWHERE)


def names_parameters(schema: Mapping[str, Any]) -> bool:
    """Whether a function's schema says by name what arguments it takes, which models want of it."""
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and len(properties) > 0:
        return True
    return any(schema.get(key) for key in ("anyOf", "oneOf", "allOf"))


def _docstring(function: Callable[..., Any]) -> str:
    """What is written below a function's head, also where ``python -OO`` has thrown it away.

    A partial's own docstring is of functools; it does what its function does.
    """
    if isinstance(function, partial):
        function = function.func
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
    """What a docstring says about the function, and about each argument, in any usual style."""
    read = parse(inspect.cleandoc(docstring))
    described = {
        one.arg_name.lstrip("*"): " ".join(one.description.split())
        for one in read.params
        if one.description
    }
    return (read.description or "").strip(), described


def plain_schema(schema: Any) -> Any:
    """A schema without the titles that pydantic makes of names, and with ``enum`` for ``const``."""
    if isinstance(schema, list):
        return [plain_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("properties", "$defs"):  # their keys are names: a property may be called title
            plain[name] = {key: plain_schema(one) for key, one in value.items()}
        elif name == "const":
            plain["enum"] = [value]
        elif name != "title":
            plain[name] = plain_schema(value)
    return plain


def _problems(error: ValidationError) -> str:
    if error.error_count() > MAX_PROBLEMS:
        return f"{error.error_count()} of them"
    return "; ".join(
        f"{'.'.join(str(part) for part in issue['loc'])}: {issue['msg']}"
        for issue in error.errors(include_url=False, include_context=False, include_input=False)
    )
