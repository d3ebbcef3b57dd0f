"""The functions that a simulated model calls, and the answers that it gets."""

from __future__ import annotations

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
        self._answered = trio.Event()

    def declare(self, tools: Iterable[Mapping[str, Any]]) -> None:
        """Know the functions of a set-up's tools."""
        self._declared = [
            function for tool in tools for function in tool.get("functionDeclarations", ())
        ]

    def due(self, script: ModelScript, turn: int) -> list[FunctionCall]:
        """The functions that the script wants called in this turn."""
        if script.function_turns and turn not in script.function_turns:
            return []
        calls = [
            FunctionCall(
                function["name"],
                _sample(function.get("parametersJsonSchema", function.get("parameters"))),
            )
            for function, _ in zip(cycle(self._declared), range(script.tool_calls))
        ]
        return [*calls, *script.functions]

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


_SAMPLES: Mapping[str, Any] = {
    "string": "something",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
}


def _sample(schema: Any) -> dict[str, Any]:
    """Make up arguments of the declared types."""
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return {
        name: one["enum"][0] if one.get("enum") else _SAMPLES.get(str(one.get("type")).lower())
        for name, one in properties.items()
    }
