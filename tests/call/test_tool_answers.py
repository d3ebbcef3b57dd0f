"""What the model is told of a function: whatever comes of it, something that can be sent."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from trio.testing import wait_all_tasks_blocked

from server.agent.tool import ToolError, tool
from server.model import ToolCall
from tests.support.toolboxes import echo


async def test_an_error_with_half_a_character_is_told_without_it(autojump_clock, bench):
    @tool
    async def refuse() -> None:
        """Refuse."""
        raise ToolError("no \ud83d today")

    at_work = bench(refuse, echo)
    at_work.ask("refuse")
    await wait_all_tasks_blocked()
    at_work.ask("echo", value=1)
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"error": "no ? today"}, {"output": 1}]


class Broken(Exception):
    """A bug of a function's."""


class Refused(ToolError):
    """What the model is to know."""


@pytest.mark.parametrize("kind", [Broken, Refused])
async def test_a_function_that_has_failed_leaves_nothing_behind(autojump_clock, bench, kind):
    raised: list[weakref.ref[Exception]] = []

    @tool
    async def fails() -> None:
        """Fail."""
        error = kind("no")
        raised.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    at_work = bench(fails, echo)
    gc.disable()  # what only it could free would stay while there are calls
    try:
        at_work.ask("fails")
        await wait_all_tasks_blocked()
        left = [each() for each in raised]
    finally:
        gc.enable()

    assert left == [None]
    assert "error" in at_work.responses[0]


async def test_what_a_function_does_to_its_arguments_is_nothing_to_its_answer(
    autojump_clock, bench
):
    @tool
    async def adds(order: Any) -> str:
        """Add to it."""
        order["made"] = object()
        return "added"

    at_work = bench(adds, echo)
    for _ in range(2):  # it is asked again, as after a connection that was lost
        at_work.box.request((ToolCall("a", "adds", {"order": {"pizza": 1}}),))
        await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": "added"}] * 2
    assert at_work.count("adds", "ok") == 1
