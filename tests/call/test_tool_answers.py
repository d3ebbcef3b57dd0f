"""What the model is told of a function: whatever comes of it, something that can be sent."""

from __future__ import annotations

from trio.testing import wait_all_tasks_blocked

from server.agent.tool import ToolError, tool
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
