"""What the model is told of a function: whatever comes of it, something that can be sent."""

from __future__ import annotations

from typing import Any

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
