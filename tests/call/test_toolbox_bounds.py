"""How much a model may ask of a toolbox: bounded, and every call answered all the same."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.tool import MAX_ERROR, ToolError, tool
from server.call.toolbox import LoopBreaker, Toolbox
from server.model import ToolCall
from tests.support.toolboxes import echo, slowly


def named(count: int, prefix: str = "c") -> list[str]:
    return [f"{prefix}{index}" for index in range(count)]


async def test_of_thousands_of_calls_few_are_run_and_every_one_is_answered(autojump_clock, bench):
    ran = 0

    @tool
    async def count() -> int:
        """Count."""
        nonlocal ran
        ran += 1
        return ran

    at_work = bench(count)
    at_work.box.request(ToolCall(one, "count", {}) for one in named(5_000))
    await at_work.wait_answers(1)

    assert sorted(at_work.ids) == sorted(named(5_000))
    assert ran == LoopBreaker.MAX_SAME
    refused = [one for one in at_work.responses if "at once" in one.get("error", "")]
    assert len(refused) == 5_000 - Toolbox.MAX_AT_ONCE
    assert not at_work.is_busy


async def test_calls_in_message_after_message_are_bounded_together(autojump_clock, bench):
    at_work = bench(slowly)
    for index in range(20):
        at_work.box.request(
            ToolCall(one, "slowly", {"seconds": 5}) for one in named(10, f"m{index}-")
        )
    await wait_all_tasks_blocked()
    await trio.sleep(20)

    assert len(set(at_work.ids)) == len(at_work.ids) == 200
    refused = [one for one in at_work.responses if "at once" in one.get("error", "")]
    assert len(refused) >= 200 - Toolbox.MAX_OPEN


async def test_a_call_that_may_not_be_run_is_answered_with_the_reason(autojump_clock, bench):
    at_work = bench(echo)
    at_work.box.request((ToolCall("c1", "echo", {}, "its arguments are too long"),))
    at_work.ask("echo", value=1)
    await at_work.wait_answers(2)

    assert {"error": "its arguments are too long"} in at_work.responses
    assert {"output": 1} in at_work.responses
    assert at_work.call.notes[0] == ("tools refused", {"count": 1})


async def test_a_refused_call_that_is_taken_back_is_not_answered(autojump_clock, bench):
    at_work = bench(echo)
    at_work.box.request((ToolCall("c1", "echo", {}, "no"), ToolCall("c2", "echo", {}, "no")))
    at_work.box.cancel(["c1"])
    await at_work.wait_answers(1)

    assert at_work.ids == ["c2"]


async def test_answers_are_remembered_up_to_a_size(autojump_clock, bench):
    @tool
    async def read() -> str:
        """Read a lot."""
        return "x" * 30_000

    at_work = bench(read)
    for _ in range(LoopBreaker.MAX_SAME):
        at_work.ask("read")
    await at_work.wait_answers(LoopBreaker.MAX_SAME)
    box = at_work.box
    for index in range(50):
        box._remember(ToolCall(f"r{index}", "read", {}), {"output": "x" * 30_000})

    held = sum(len(str(one.response)) for one in box._answered.values())
    assert held <= Toolbox.MAX_ANSWERED_BYTES
    assert box._answered_bytes <= Toolbox.MAX_ANSWERED_BYTES


async def test_answers_that_are_too_long_together_are_told_so(autojump_clock, bench):
    @tool
    async def read(page: int) -> str:
        """Read a page."""
        return "x" * 30_000

    at_work = bench(read)
    at_work.box.request(ToolCall(one, "read", {"page": i}) for i, one in enumerate(named(20)))
    await at_work.wait_answers(1)

    assert len(at_work.ids) == 20
    assert len(str(at_work.responses)) < Toolbox.MAX_ANSWERED_BYTES + 10_000


async def test_what_is_told_of_a_failure_is_bounded(autojump_clock, bench):
    @tool
    async def fail() -> None:
        """Fail at length."""
        raise ToolError("x" * 1_000_000)

    at_work = bench(fail)
    at_work.ask("fail")
    await at_work.wait_answers(1)

    assert len(at_work.responses[0]["error"]) == MAX_ERROR


async def test_thousands_of_wrong_arguments_are_counted_and_not_told_one_by_one(
    autojump_clock, bench
):
    @tool
    async def add(numbers: list[int]) -> int:
        """Add up."""
        return sum(numbers)

    at_work = bench(add)
    at_work.ask("add", numbers=["x"] * 10_000)
    await at_work.wait_answers(1)

    assert at_work.responses[0]["error"] == "wrong arguments: 10000 of them"
