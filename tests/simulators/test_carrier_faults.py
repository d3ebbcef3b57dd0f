"""A carrier that is late, repeats itself, or fails for a while: what the server makes of it."""

from __future__ import annotations

import pytest
import trio

from server.carrier import CallStatus
from server.simulators.twilio import Faults
from tests.support.serving import serving

pytestmark = pytest.mark.sockets


async def test_late_callbacks_do_not_hold_a_call_and_still_reach_its_record(fast_clock):
    async with serving(simulated_carrier="late-callbacks") as server:
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        call = server.service.calls.register.get(call_sid)
        with trio.fail_after(60):
            await call.finished.wait()
            at_the_end = call.progress.status
            record = await server.finished(call_sid)

    assert at_the_end is not CallStatus.COMPLETED
    assert record["reason"] == "caller-hung-up"
    assert record["status"] == "completed"
    assert record["cost"]["billed_minutes"] == 1


async def test_callbacks_that_come_again_change_nothing(fast_clock):
    async with serving(simulated_carrier="duplicate-callbacks") as server:
        call_sid = (await server.make_call("5550104")).json()["call_sid"]
        with trio.fail_after(60):
            record = await server.finished(call_sid)
        reports = server.twilio.calls[call_sid].reports

    noted = [moment["what"] for moment in record["timeline"]]
    assert [noted.count(status) for status in ("initiated", "ringing", "busy")] == [1, 1, 1]
    assert record["status"] == "busy"
    assert len(reports) == 12
    assert {answer for _, answer in reports} == {204}


@pytest.mark.parametrize(
    ("number", "reason"), [("5550104", "busy"), ("5550109", "failed"), ("5550105", "no-answer")]
)
async def test_a_call_whose_callbacks_never_come_ends_as_it_ended(number, reason, fast_clock):
    settings = {"simulated_carrier": "no-callbacks", "callback_wait_s": 0.5, "ring_timeout_s": 5}
    async with serving(**settings) as server:
        call_sid = (await server.make_call(number)).json()["call_sid"]
        with trio.fail_after(60):
            record = await server.finished(call_sid)
        phone = server.twilio.calls[call_sid]

    assert (record["reason"], record["status"]) == (reason, reason)
    assert record["duration_s"] == 0
    assert phone.reports == []


async def test_a_talk_whose_callbacks_never_come_has_its_minutes_all_the_same(fast_clock):
    async with serving(simulated_carrier="no-callbacks", callback_wait_s=0.5) as server:
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        call = server.service.calls.register.get(call_sid)
        with trio.fail_after(60):
            await call.progress.settled.wait()
            record = await server.finished(call_sid)

    assert (record["reason"], record["status"]) == ("caller-hung-up", "completed")
    assert record["cost"]["billed_minutes"] == 1


async def test_a_dial_that_was_too_much_is_made_when_twilio_wants(fast_clock):
    async with serving(simulated_carrier="too-many-requests") as server:
        made = await server.make_call("5550104")
        asked = server.twilio.account.dial_requests

    assert made.status_code == 201
    assert asked == 2


async def test_a_dial_that_twilio_fails_is_told_and_never_made_again_by_us(fast_clock):
    async with serving(simulated_carrier="twilio-5xx-dial") as server:
        failed = await server.make_call("5550104")
        placed = len(server.twilio.calls)
        live = server.service.calls.live_count
        taken = await server.make_call("5550104")

    assert failed.status_code == 502
    assert failed.json()["carrier_status"] == 503
    assert (placed, live) == (0, 0)
    assert taken.status_code == 201


@pytest.mark.parametrize("failures", [2, 1_000])
async def test_a_hang_up_that_twilio_fails_still_ends_the_call(failures, fast_clock):
    async with serving() as server:
        twilio = server.twilio
        call_sid = (await server.make_call("5550108")).json()["call_sid"]
        twilio.account.misbehave(Faults(failed_updates=failures))
        phone = twilio.calls[call_sid]
        with trio.fail_after(60):
            await phone.wait_stream()
            await server.http.post(f"/calls/{call_sid}/hang-up")
            await phone.wait_ended()
            record = await server.finished(call_sid)

    # If not over REST, then by the end of the stream: nothing follows it in our TwiML.
    assert record["reason"] == "hung-up"
    assert phone.status is CallStatus.COMPLETED
