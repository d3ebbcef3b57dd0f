"""The tools that come with the server: hanging up, transferring, pressing keys."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.builtin import hang_up, send_dtmf, transfer_tool
from server.carrier import CallStatus
from server.errors import CarrierError


async def test_hanging_up_may_be_asked_for_many_times(autojump_clock, bench):
    at_work = bench(hang_up)
    for _ in range(3):
        at_work.ask("hang_up")
    await wait_all_tasks_blocked()

    first, *others = at_work.responses
    assert "goodbye" in first["output"]
    assert all("already" in other["output"] for other in others)


@pytest.mark.parametrize("destination", ["+19005551234", "Sales", "", "sales\n"])
async def test_no_other_number_is_ever_dialled(autojump_clock, bench, destination):
    at_work = bench(transfer_tool({"sales": "+15005550123"}))
    at_work.ask("transfer", destination=destination)
    await trio.sleep(60)

    assert "wrong arguments" in at_work.responses[0]["error"]
    assert at_work.call.transferred == []


async def test_a_transfer_takes_as_long_as_it_takes(autojump_clock, bench):
    at_work = bench(transfer_tool({"sales": "+15005550123"}), timeout_s=1.0)
    at_work.ask("transfer", destination="sales")
    await trio.sleep(60)

    assert at_work.call.transferred == [("sales", "+15005550123")]
    assert at_work.responses == [{"output": "The caller has been connected."}]


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (CallStatus.NO_ANSWER, "back on the line"),
        (CarrierError("no"), "still here"),
        (ValueError("the caller cannot be transferred now"), "cannot be transferred"),
    ],
)
async def test_a_transfer_that_failed_is_told_as_an_error(autojump_clock, bench, outcome, told):
    at_work = bench(transfer_tool({"sales": "+15005550123"}))
    at_work.call.transfer_outcome = outcome
    at_work.ask("transfer", destination="sales")
    await trio.sleep(60)

    assert told in at_work.responses[0]["error"]


async def test_keys_are_pressed(autojump_clock, bench):
    at_work = bench(send_dtmf)
    at_work.ask("send_dtmf", digits="12w#")
    await trio.sleep(10)

    assert at_work.call.keys == "12w#"
    assert "pressed" in at_work.responses[0]["output"]


@pytest.mark.parametrize("digits", ["", "1 2", "12x", "1" * 33, "E"])
async def test_keys_there_are_not_are_not_pressed(autojump_clock, bench, digits):
    at_work = bench(send_dtmf)
    at_work.ask("send_dtmf", digits=digits)
    await wait_all_tasks_blocked()

    assert "wrong arguments" in at_work.responses[0]["error"]
