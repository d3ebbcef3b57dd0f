"""What comes in the very pass of trio's in which the wait for it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio._core import _run
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.handover import REPORT_S, TAKEN_S, _is_taken
from server.call.hearing import STREAM_OVER_S
from server.carrier import CallStatus
from server.carrier.keypad import PressedKeys
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.dialogue.voicemail import VoicemailPolicy
from tests.call.test_machine import QUIET_S, Taken
from tests.call.test_transfer import Order
from tests.support.calls_on_a_rig import Rig
from tests.support.fakes import MemoryMedia

ANSWER_S, LONGEST_S = 10.0, 30.0


class Late(Rig):
    """A call of which something comes at the last moment."""

    def __init__(self) -> None:
        super().__init__(
            agent=Agent(greeting=""),
            patience=Patience(silence_timeout_s=0.0, wrap_up_s=0.0, farewell_timeout_s=0.0),
            media_timeout_s=600.0,
            answer_timeout_s=ANSWER_S,
            max_duration_s=LONGEST_S,
        )


async def in_either_order(
    monkeypatch: pytest.MonkeyPatch, scenario: Callable[[trio.Nursery], Awaitable[Any]]
) -> list[Any]:
    """Play it with the tasks of each pass in either order.

    Args:
        monkeypatch: What arranges that.
        scenario: Returns what came of it, as a rule whether what it does came too late: its task
            was the later one.
    """
    came_of_it = []
    for is_reversed in (False, True):
        monkeypatch.setattr(_run, "_r", Order(is_reversed=is_reversed))
        async with trio.open_nursery() as nursery:
            came_of_it.append(await scenario(nursery))
            nursery.cancel_scope.cancel()
    return sorted(came_of_it)


async def test_a_phone_that_is_answered_at_the_last_moment_has_all_its_time(
    autojump_clock, monkeypatch
):
    async def scenario(nursery: trio.Nursery) -> bool:
        late = Late()
        nursery.start_soon(late.call.run)
        await trio.sleep(ANSWER_S)
        was_late = late.call.end_reason is not None
        await late.call.serve(late.media, late.media.start())
        if not was_late:
            assert late.call.end_reason is EndReason.MAX_DURATION
            assert late.call.duration_s == pytest.approx(LONGEST_S)
        return was_late

    assert await in_either_order(monkeypatch, scenario) == [False, True]


async def test_a_line_that_comes_back_at_the_last_moment_is_there(autojump_clock, monkeypatch):
    async def scenario(nursery: trio.Nursery) -> bool:
        conversation = Late().call.conversation
        came: list[bool] = []

        async def wait() -> None:
            came.append(await conversation.comes_back())

        nursery.start_soon(wait)
        await trio.sleep(conversation.options.line_lost_timeout_s)
        was_late = bool(came)
        conversation.connected.set()
        await wait_all_tasks_blocked()
        assert came == [not was_late]
        return was_late

    assert await in_either_order(monkeypatch, scenario) == [False, True]


async def test_a_caller_who_comes_back_from_a_transfer_at_the_last_moment_is_back(
    autojump_clock, monkeypatch
):
    async def scenario(nursery: trio.Nursery) -> bool:
        late = Late()
        await late.begin(nursery)
        nursery.start_soon(late.call.transfer, "sales", "+15005550123")
        await wait_all_tasks_blocked()
        late.media.hang_up()
        await wait_all_tasks_blocked()
        late.call.handover.report(CallStatus.BUSY)
        were_late: list[bool] = []

        async def come_back() -> None:
            await trio.sleep(REPORT_S)
            were_late.append(late.call.end_reason is not None)
            again = MemoryMedia()
            await late.call.serve(again, again.start())

        nursery.start_soon(come_back)
        await trio.sleep(REPORT_S + 1.0)
        (was_late,) = were_late
        assert late.call.end_reason is (EndReason.CALLER_GONE if was_late else None)
        return was_late

    assert await in_either_order(monkeypatch, scenario) == [False, True]


async def test_a_stream_whose_end_comes_at_the_last_moment_is_over(autojump_clock, monkeypatch):
    async def scenario(nursery: trio.Nursery) -> bool:
        late = Late()
        await late.begin(nursery)
        line = late.call.conversation.line
        assert line is not None
        is_over: list[bool] = []

        async def wait() -> None:
            is_over.append(await late.call.hearing.wait_line_over())

        nursery.start_soon(wait)
        await trio.sleep(STREAM_OVER_S / 2)
        late.media.say(b"\x10" * 160)
        await trio.sleep(STREAM_OVER_S / 2)
        was_late = bool(is_over)
        line.over.set()
        await wait_all_tasks_blocked()
        assert is_over == [not was_late]
        return was_late

    assert await in_either_order(monkeypatch, scenario) == [False, True]


async def test_a_stream_that_ends_at_the_last_moment_was_taken_by_a_transfer(
    autojump_clock, monkeypatch
):
    async def scenario(nursery: trio.Nursery) -> bool:
        line: Any = SimpleNamespace(over=trio.Event())
        taken: list[bool] = []

        async def wait() -> None:
            taken.append(await _is_taken(line))

        nursery.start_soon(wait)
        await trio.sleep(TAKEN_S)
        was_late = bool(taken)
        line.over.set()
        await wait_all_tasks_blocked()
        assert taken == [not was_late]
        return was_late

    assert await in_either_order(monkeypatch, scenario) == [False, True]


async def test_a_key_that_is_pressed_when_a_pause_ends_is_told_once_and_nothing_after_it(
    autojump_clock, monkeypatch
):
    async def scenario(nursery: trio.Nursery) -> list[str]:
        keys, told = PressedKeys(1.0), list[str]()

        async def tell(pressed: str) -> None:
            told.append(pressed)

        nursery.start_soon(keys.run, tell)
        await wait_all_tasks_blocked()
        keys.press("1")
        await wait_all_tasks_blocked()
        await trio.sleep(1.0)
        keys.press("2")
        await trio.sleep(5.0)
        return told

    assert await in_either_order(monkeypatch, scenario) == [["12"], ["12"]]


async def test_a_message_that_is_heard_at_the_last_moment_is_left(autojump_clock, monkeypatch):
    async def scenario(nursery: trio.Nursery) -> bool:
        call = Taken(nursery, voicemail=VoicemailPolicy.LEAVE_MESSAGE, voicemail_timeout_s=60.0)
        await call.begin(nursery)
        call.is_called_a_machine()
        await call.silent_for(QUIET_S + 0.1)
        ((asked_at, _),) = call.session.texts
        call.says(2, turn=1)
        await call.silent_for(50.0)
        await trio.sleep_until(asked_at + 60.0)
        was_late = call.call.end_reason is not None
        call.media.echo_marks()
        await call.call.finished.wait()
        detail = call.call.conversation.end_detail
        assert detail == ("no message left" if was_late else "message left")
        return was_late

    assert await in_either_order(monkeypatch, scenario) == [False, True]
