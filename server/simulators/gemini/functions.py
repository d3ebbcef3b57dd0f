"""The functions that a simulated model calls, and the answers that it gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import trio

from server.simulators.gemini.scripts import FunctionCall, ModelScript


class FunctionCalls:
    """The function calls of one session.

    Args:
        new_id: Makes up an id for a call.

    Attributes:
        made: How many there were.
        taken_back: How many of them need no answer any more.
        results: Answers by the call's id.
        awaited: The ids of calls that are to be answered yet.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self.made = 0
        self.taken_back = 0
        self.results: dict[str, Mapping[str, Any]] = {}
        self.awaited: set[str] = set()
        self._new_id = new_id
        self._declared: list[Mapping[str, Any]] = []
        self._has_filled = False
        self._answered = trio.Event()

    def declare(self, tools: Iterable[Mapping[str, Any]]) -> None:
        """Know the functions of a set-up's tools."""
        self._declared = [
            function for tool in tools for function in tool.get("functionDeclarations", ())
        ]

    def due(self, script: ModelScript, turn: int) -> list[FunctionCall]:
        """The functions that the script wants called in this turn."""
        filled = [] if self._has_filled else [
            _made_up(function) for function in self._declared if function["name"] in script.fills
        ]  # fmt: skip
        self._has_filled = True
        if script.function_turns and turn not in script.function_turns:
            return filled
        others = [one for one in self._declared if one["name"] not in script.fills]
        calls = [_made_up(function) for function, _ in zip(cycle(others), range(script.tool_calls))]
        return [*filled, *calls, *script.functions]

    def call(self, functions: Sequence[FunctionCall]) -> list[dict[str, Any]]:
        """Make the calls of a ``toolCall`` message; all of them are awaited from now on."""
        calls = []
        for function in functions:
            self.made += 1
            identity = self._new_id()
            calls.append({"id": identity, "name": function.name, "args": function.arguments})
            self.awaited.add(identity)
        self._answered = trio.Event()
        return calls

    async def wait_answered(self) -> None:
        """Wait until no answer is awaited, or until none is waited for any more."""
        if self.awaited:
            await self._answered.wait()

    def stop_waiting(self) -> None:
        """The caller has interrupted: whoever waits for answers goes on without them."""
        self._answered.set()

    def take_back(self, ids: Sequence[str]) -> None:
        """Await no answers to these calls any more."""
        self.taken_back += len(ids)
        self.awaited.difference_update(ids)

    def receive_result(self, result: Mapping[str, Any]) -> str | None:
        """The client has answered a call; returns what is wrong with the answer, or None."""
        identity = result.get("id", "")
        if identity not in self.awaited:
            return f"answer to a tool call that is not open: {identity!r}"
        self.awaited.remove(identity)
        self.results[identity] = result.get("response") or {}
        if not self.awaited:
            self._answered.set()
        if not isinstance(result.get("response"), dict) or not result["response"]:
            return f"empty answer to the tool call {identity!r}"
        return None


def _made_up(function: Mapping[str, Any]) -> FunctionCall:
    """A call of a declared function, with arguments of the declared types."""
    schema = function.get("parametersJsonSchema", function.get("parameters"))
    if not isinstance(schema, dict):
        return FunctionCall(function["name"])
    sampled = _sample(schema, schema.get("$defs", {}))
    return FunctionCall(function["name"], sampled if isinstance(sampled, dict) else {})


MAX_DEPTH = 10


def _sample(schema: Any, defs: Mapping[str, Any], depth: int = 0) -> Any:
    """Make up a value that a schema takes, as far as it is a plain one."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return None
    if isinstance(schema.get("$ref"), str):
        return _sample(defs.get(schema["$ref"].rpartition("/")[2]), defs, depth + 1)
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if schema.get("examples"):
        return schema["examples"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _sample(schema[name][0], defs, depth + 1)
    kind = schema.get("type")
    match str(kind[0] if isinstance(kind, list) else kind).lower():
        case "string":
            least, most = schema.get("minLength", 0), schema.get("maxLength", 1_000)
            return "something".ljust(least, ".")[:most]
        case "integer":
            return math.ceil(_number(schema, 1))
        case "number":
            return _number(schema, 1.5)
        case "boolean":
            return True
        case "array":
            item = _sample(schema.get("items"), defs, depth + 1)
            return [item] * schema.get("minItems", 0)
        case "object":
            properties = schema.get("properties", {})
            return {name: _sample(one, defs, depth + 1) for name, one in properties.items()}
    return None


def _number(schema: Mapping[str, Any], usual: float) -> float:
    least: float = schema.get("minimum", schema.get("exclusiveMinimum", usual - 1) + 1)
    most: float = schema.get("maximum", max(usual, least))
    return min(max(usual, least), most)
