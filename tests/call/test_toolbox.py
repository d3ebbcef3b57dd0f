"""Functions that the model asks for: checked, run, and every one answered."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from trio.testing import wait_all_tasks_blocked

from server.agent.builtin import hang_up
from server.agent.tool import MAX_RESULT_BYTES, LiveCall, ToolError, tool
from server.call.toolbox import LoopBreaker
from server.model import ToolCall, ToolResult
from tests.support.inputs import inputs
from tests.support.toolboxes import Bench, clean_up_badly, echo, slowly


@tool
async def broken() -> str:
    """Fail."""
    said = str(41 * 100 + 11)
    raise RuntimeError(said)


@tool
async def untidy() -> None:
    """Fail when it is cancelled."""
    await clean_up_badly(str(41 * 100 + 11))


class Room(BaseModel):
    number: int = Field(serialization_alias="roomNumber")


class Address(BaseModel):
    street: str
    number: int = 1


async def test_an_async_function_is_run_and_its_value_told(autojump_clock, bench):
    at_work = bench(echo)
    identity = at_work.ask("echo", value={"a": [1, 2.5, None, "x"]})
    await wait_all_tasks_blocked()

    ((_, (result,)),) = at_work.answers
    assert result == ToolResult(identity, "echo", {"output": {"a": [1, 2.5, None, "x"]}})


async def test_a_plain_function_runs_in_a_thread(bench):
    @tool
    def which() -> bool:
        """Say where this runs."""
        return threading.current_thread() is threading.main_thread()

    at_work = bench(which)
    at_work.ask("which")
    await at_work.wait_answers(1)

    assert at_work.responses == [{"output": False}]


async def test_a_plain_function_that_hangs_is_left_behind_at_its_deadline(bench):
    release = threading.Event()

    @tool(timeout_s=0.05)
    def hang() -> None:
        """Wait for something that does not come."""
        release.wait(10)

    at_work = bench(hang)
    at_work.ask("hang")
    try:
        await at_work.wait_answers(1)
    finally:
        release.set()

    assert "0.05 seconds" in at_work.responses[0]["error"]


async def test_the_call_is_given_to_a_function_that_wants_it(autojump_clock, bench):
    @tool
    async def who(call: LiveCall) -> str:
        """Say who is calling."""
        return call.call_sid

    at_work = bench(who)
    at_work.ask("who")
    await wait_all_tasks_blocked()

    assert who.parameters["properties"] == {}
    assert at_work.responses == [{"output": "CA1"}]


async def test_calls_that_come_together_run_together_and_are_answered_together(
    autojump_clock, bench
):
    at_work = bench(slowly, echo)
    began = trio.current_time()
    at_work.box.request(
        (
            ToolCall("a", "slowly", {"seconds": 3}),
            ToolCall("b", "echo", {"value": 1}),
            ToolCall("c", "slowly", {"seconds": 2}),
        )
    )
    await trio.sleep(4)

    ((at, results),) = at_work.answers
    assert at - began == pytest.approx(3.0)
    assert [result.id for result in results] == ["a", "b", "c"]


async def test_calls_that_come_apart_do_not_wait_for_each_other(autojump_clock, bench):
    at_work = bench(slowly, echo)
    slow = at_work.ask("slowly", seconds=3)
    quick = at_work.ask("echo", value=1)
    await trio.sleep(4)

    assert at_work.ids == [quick, slow]


@pytest.mark.parametrize("value", [None, {}, ""])
async def test_nothing_is_told_as_success(autojump_clock, bench, value):
    at_work = bench(echo)
    at_work.ask("echo", value=value)
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": {"status": "ok"}}]


@pytest.mark.parametrize("value", [[], 0, False, [None]])
async def test_little_is_told_as_it_is(autojump_clock, bench, value):
    at_work = bench(echo)
    at_work.ask("echo", value=value)
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": value}]


async def test_models_and_dataclasses_are_written_as_json(autojump_clock, bench):
    @tool
    async def where() -> Address:
        """Say where."""
        return Address(street="Elm")

    at_work = bench(where)
    at_work.ask("where")
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": {"street": "Elm", "number": 1}}]


async def test_a_field_with_another_name_on_the_wire_is_written_under_that(autojump_clock, bench):
    @tool
    async def book() -> Room:
        """Book a room."""
        return Room(number=7)

    at_work = bench(book)
    at_work.ask("book")
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": {"roomNumber": 7}}]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (object(), "cannot be read"),
        (b"\xff", "cannot be read"),
        ("\ud800", "cannot be read"),
        ("x" * MAX_RESULT_BYTES, "too long"),
    ],
)
async def test_what_cannot_be_told_is_told_as_an_error(autojump_clock, bench, value, told):
    @tool
    async def give() -> Any:
        """Give it."""
        return value

    at_work = bench(give)
    at_work.ask("give")
    await wait_all_tasks_blocked()

    assert told in at_work.responses[0]["error"]


async def test_a_function_there_is_not_is_answered_with_those_there_are(autojump_clock, bench):
    at_work = bench(echo, slowly)
    at_work.ask("fly")
    await wait_all_tasks_blocked()

    assert "echo, slowly" in at_work.responses[0]["error"]
    assert at_work.count("unknown", "unknown") == 1


@pytest.mark.parametrize(
    "arguments", [{}, {"seconds": "soon"}, {"seconds": 1, "colour": "red"}, {"seconds": None}]
)
async def test_wrong_arguments_are_answered_with_what_is_wrong(autojump_clock, bench, arguments):
    at_work = bench(slowly)
    at_work.ask("slowly", **arguments)
    await wait_all_tasks_blocked()

    error = at_work.responses[0]["error"]
    assert error.startswith("wrong arguments: ")
    assert "seconds" in error or "colour" in error


@pytest.mark.parametrize("arguments", [{"reason": "done"}, {"colour": "red", "x": [1]}])
async def test_a_function_without_parameters_takes_no_offence_at_any(
    autojump_clock, bench, arguments
):
    at_work = bench(hang_up)
    at_work.ask("hang_up", **arguments)
    await wait_all_tasks_blocked()

    assert "output" in at_work.responses[0]
    assert at_work.call.hang_ups == 1


async def test_a_remark_beside_the_arguments_is_left_out(autojump_clock, bench):
    at_work = bench(slowly)
    at_work.ask("slowly", seconds=1, reason="the caller asked for it")
    await trio.sleep(2)

    assert at_work.responses == [{"output": "after 1"}]


async def test_a_remark_is_an_argument_where_there_is_one_of_that_name(autojump_clock, bench):
    @tool
    async def complain(reason: str) -> str:
        """Complain."""
        return reason

    at_work = bench(complain)
    at_work.ask("complain", reason="noise")
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": "noise"}]


async def test_a_number_sent_as_text_is_taken_for_a_number(autojump_clock, bench):
    at_work = bench(slowly)
    at_work.ask("slowly", seconds="2")
    await trio.sleep(3)

    assert at_work.responses == [{"output": "after 2"}]


async def test_a_bug_in_a_tool_is_answered_and_its_words_go_nowhere(autojump_clock, bench, capsys):
    at_work = bench(broken, echo)
    at_work.ask("broken")
    await wait_all_tasks_blocked()
    at_work.ask("echo", value=1)
    await wait_all_tasks_blocked()

    assert "failed" in at_work.responses[0]["error"]
    assert "4111" not in str(at_work.responses) + "".join(capsys.readouterr())
    assert at_work.responses[1] == {"output": 1}
    assert at_work.count("broken", "failed") == 1


async def test_a_tool_that_wants_to_exit_ends_nothing(autojump_clock, bench):
    @tool
    async def exits() -> str:
        """Exit."""
        sys.exit(1)

    at_work = bench(exits)
    at_work.ask("exits")
    await wait_all_tasks_blocked()

    assert "the function failed" in str(at_work.responses)


async def test_a_tool_that_fails_as_it_is_taken_back_ends_nothing(autojump_clock, bench, capsys):
    at_work = bench(untidy, echo)
    identity = at_work.ask("untidy")
    await wait_all_tasks_blocked()
    at_work.box.cancel((identity,))
    await wait_all_tasks_blocked()
    at_work.ask("echo", value=1)
    await wait_all_tasks_blocked()

    said = "".join(capsys.readouterr())
    assert at_work.responses == [{"output": 1}]
    assert at_work.count("untidy", "cancelled") == 1
    assert "RuntimeError" in said
    assert "in work" in said
    assert "4111" not in said


async def test_a_tool_that_fails_at_its_deadline_is_answered(autojump_clock, bench):
    at_work = bench(untidy, timeout_s=4.0)
    at_work.ask("untidy")
    await trio.sleep(5)

    assert "the function failed" in str(at_work.responses)


async def test_a_tool_that_fails_as_its_call_ends_is_no_fault_of_the_calls(autojump_clock, capsys):
    at_work = Bench([untidy], timeout_s=4.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at_work.box.run, at_work.answer)
        at_work.ask("untidy")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert "RuntimeError" in "".join(capsys.readouterr())


async def test_what_a_task_of_a_tools_does_is_what_the_tool_does(autojump_clock, bench):
    async def refuse() -> None:
        raise ToolError("the shop is closed")

    async def leave() -> None:
        sys.exit(1)

    @tool
    async def divided(leaves: bool) -> None:
        """Do it in a task."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave if leaves else refuse)

    at_work = bench(divided)
    at_work.ask("divided", leaves=False)
    await wait_all_tasks_blocked()
    at_work.ask("divided", leaves=True)
    await wait_all_tasks_blocked()

    assert at_work.responses[0] == {"error": "the shop is closed"}
    assert "the function failed" in at_work.responses[1]["error"]


async def test_what_a_tool_wants_said_is_said(autojump_clock, bench):
    @tool
    async def refuse() -> None:
        """Refuse."""
        raise ToolError("the shop is closed")

    at_work = bench(refuse)
    at_work.ask("refuse")
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"error": "the shop is closed"}]


async def test_a_function_that_takes_too_long_is_cancelled_and_answered(autojump_clock, bench):
    cleaned_up = False

    @tool
    async def forever() -> None:
        """Never end."""
        nonlocal cleaned_up
        try:
            await trio.sleep_forever()
        finally:
            cleaned_up = True

    at_work = bench(forever, timeout_s=4.0)
    began = trio.current_time()
    at_work.ask("forever")
    await trio.sleep(5)

    assert at_work.answers[0][0] - began == pytest.approx(4.0)
    assert "4 seconds" in at_work.responses[0]["error"]
    assert cleaned_up


async def test_a_tools_own_timeout_error_is_a_failure_of_the_tool(autojump_clock, bench):
    @tool
    async def late() -> None:
        """Be late."""
        with trio.fail_after(1):
            await trio.sleep(2)

    at_work = bench(late)
    at_work.ask("late")
    await trio.sleep(3)

    assert at_work.count("late", "failed") == 1


async def test_a_call_that_is_taken_back_is_cancelled_and_not_answered(autojump_clock, bench):
    at_work = bench(slowly)
    at_work.box.request(
        (ToolCall("a", "slowly", {"seconds": 5}), ToolCall("b", "slowly", {"seconds": 2}))
    )
    await trio.sleep(1)
    at_work.box.cancel(("a", "never heard of"))
    await trio.sleep(9)

    assert at_work.ids == ["b"]
    assert not at_work.is_busy
    assert at_work.count("slowly", "cancelled") == 1


async def test_a_call_taken_back_after_it_is_done_but_before_it_is_answered_is_not_answered(
    autojump_clock, bench
):
    at_work = bench(slowly, echo)
    at_work.box.request(
        (ToolCall("a", "echo", {"value": 1}), ToolCall("b", "slowly", {"seconds": 2}))
    )
    await trio.sleep(1)
    at_work.box.cancel(("a",))
    await trio.sleep(2)

    assert at_work.ids == ["b"]


async def test_a_batch_that_is_taken_back_altogether_is_not_answered(autojump_clock, bench):
    at_work = bench(slowly)
    identity = at_work.ask("slowly", seconds=5)
    at_work.box.cancel((identity,))
    await trio.sleep(9)

    assert at_work.answers == []


async def test_an_id_that_comes_twice_while_it_runs_is_answered_once(autojump_clock, bench):
    at_work = bench(slowly)
    call = ToolCall("a", "slowly", {"seconds": 2})
    at_work.box.request((call, call))
    await trio.sleep(1)
    at_work.box.request((call,))
    await trio.sleep(5)

    assert at_work.ids == ["a"]


async def test_what_was_done_once_is_answered_again_and_not_done_again(autojump_clock, bench):
    done = 0

    @tool
    async def pay(amount: int) -> str:
        """Pay."""
        nonlocal done
        done += 1
        return f"paid {amount}"

    at_work = bench(pay)
    for amount in (5, 5, 6):
        at_work.box.request((ToolCall("a", "pay", {"amount": amount}),))
        await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": "paid 5"}, {"output": "paid 5"}, {"output": "paid 6"}]
    assert done == 2


async def test_an_id_taken_back_may_be_asked_for_again(autojump_clock, bench):
    at_work = bench(slowly)
    call = ToolCall("a", "slowly", {"seconds": 2})
    at_work.box.request((call,))
    await trio.sleep(1)
    at_work.box.cancel(("a",))
    at_work.box.request((call,))
    await trio.sleep(5)

    assert at_work.ids == ["a"]


async def test_a_storm_is_answered_to_the_last_id(autojump_clock, bench):
    at_work = bench(slowly, echo, broken)
    names = ["slowly", "echo", "broken", "unheard_of"]
    calls = [ToolCall(f"c{n}", names[n % 4], {"seconds": n % 3, "n": n}) for n in range(400)]
    for start in range(0, 400, 40):
        at_work.box.request(calls[start : start + 40])
        at_work.box.cancel(call.id for call in calls[start : start + 40 : 5])
        await trio.sleep(0.5)
    await trio.sleep(20)

    assert sorted(at_work.ids) == sorted(call.id for n, call in enumerate(calls) if n % 5)
    assert not at_work.is_busy


async def test_the_same_call_over_and_over_is_refused_slowly(autojump_clock, bench):
    at_work = bench(echo)
    began = trio.current_time()
    for count in range(LoopBreaker.MAX_SAME + 3):
        at_work.ask("echo", value="again")
        await at_work.wait_answers(count + 1)

    assert at_work.count("echo", "ok") == LoopBreaker.MAX_SAME
    assert at_work.count("echo", "refused") == 3
    assert "Do not call it again" in at_work.responses[-1]["error"]
    assert trio.current_time() - began >= 3 * LoopBreaker.REFUSAL_DELAY_S


def test_the_same_call_now_and_then_is_no_loop():
    breaker = LoopBreaker()
    call = ToolCall("a", "weather", {"city": "Caracas"})

    assert all(breaker.allows(call, now=10.0 * n) for n in range(50))


def test_different_calls_are_no_loop_until_they_are_many():
    breaker = LoopBreaker()
    allowed = [breaker.allows(ToolCall("a", "look", {"page": n}), now=0.0) for n in range(60)]

    assert allowed == [True] * LoopBreaker.MAX_CALLS + [False] * 20


def test_a_loop_is_refused_for_as_long_as_it_goes_on_and_forgiven_when_it_has_stopped():
    breaker = LoopBreaker()
    call = ToolCall("a", "hang_up", {})
    allowed = [breaker.allows(call, now=float(n)) for n in range(200)]

    assert sum(allowed) == LoopBreaker.MAX_SAME
    assert breaker.allows(call, now=300.0)


@st.composite
def storms(draw):
    """Requests and withdrawals at any time: ids may come twice, and be taken back at any moment."""
    ids = [f"id-{n}" for n in range(draw(st.integers(1, 12)))]
    steps = st.one_of(
        st.tuples(
            st.just("request"),
            st.lists(st.tuples(st.sampled_from(ids), st.sampled_from((0, 1, 2, 3))), max_size=6),
        ),
        st.tuples(st.just("cancel"), st.lists(st.sampled_from(ids), max_size=3)),
        st.tuples(st.just("wait"), st.sampled_from((0.0, 0.5, 1.0, 2.5))),
    )
    return draw(st.lists(steps, max_size=20))


@tool
async def lasting(seconds: float, at: float) -> float:
    """Take a while; no two calls are alike."""
    await trio.sleep(seconds)
    return at


@settings(max_examples=inputs(150))
@given(storms())
def test_every_id_is_answered_as_often_as_it_was_asked_for_and_not_taken_back(storm):
    async def run() -> None:
        at_work = Bench([lasting], timeout_s=2.2)
        open_now: set[str] = set()
        due: list[str] = []  # ids in the order in which their answers must have been given
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at_work.box.run, at_work.answer)
            for kind, what in storm:
                answered = at_work.ids
                open_now -= set(answered[len(due) :])
                due = answered
                if kind == "wait":
                    await trio.sleep(what)
                    await wait_all_tasks_blocked()
                elif kind == "cancel":
                    at_work.box.cancel(what)
                    open_now -= set(what)
                else:
                    at_work.box.request(
                        ToolCall(
                            identity, "lasting", {"seconds": seconds, "at": trio.current_time()}
                        )
                        for identity, seconds in what
                    )
                    open_now |= {identity for identity, _ in what}
            before = len(at_work.ids)
            open_now -= set(at_work.ids[len(due) :])
            await trio.sleep(200)

            assert sorted(at_work.ids[before:]) == sorted(open_now)
            assert not at_work.is_busy
            nursery.cancel_scope.cancel()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
