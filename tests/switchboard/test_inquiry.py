"""Asking the carrier how a call stands, on the mock clock."""

from __future__ import annotations

import math

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.call import Call
from server.carrier import CallStatus, StatusUpdate
from server.carrier.webhooks import SayAndEndCall
from server.cluster.registry import RegistryAway
from server.dialogue.endings import EndReason
from server.errors import CarrierError
from server.switchboard.calls import Calls
from server.switchboard.inquiry import MAX_HANG_UP_PAUSE_S, MAX_HANG_UPS, MAX_PAUSE_S, Patience
from tests.support.fakes import MemoryCarrier, MemoryMedia
from tests.support.switchboards import NUMBER, make_calls, serve_stream, started

SILENT = Agent(greeting="")  # nobody minds that the model says nothing


@pytest.fixture
async def calls(nursery):
    calls = make_calls(callback_wait_s=5.0)
    await nursery.start(calls.run)
    return calls


async def dialled(calls: Calls):
    began_at = trio.current_time()
    return await calls.place(NUMBER, SILENT), began_at


def asked_s(calls: Calls, began_at: float) -> list[float]:
    return [round(at - began_at, 3) for at, _ in calls.carrier.asked]


# ------------------------------------------------------------------------------------------
# When


def test_the_pauses_grow_and_are_bounded():
    patience = Patience(5.0)

    assert [patience.pause_s(asked, was_told=False) for asked in range(6)] == [
        *(5.0, 10.0, 20.0, 40.0),
        *(60.0, 60.0),
    ]
    assert patience.pause_s(10**9, was_told=False) == MAX_PAUSE_S


def test_where_callbacks_come_they_may_take_as_long_as_a_phone_rings():
    assert Patience(5.0).pause_s(0, was_told=True) == MAX_PAUSE_S


async def test_a_call_that_nothing_is_heard_of_is_asked_about_ever_more_seldom(
    autojump_clock, calls
):
    _, began_at = await dialled(calls)
    await trio.sleep(100.0)

    assert asked_s(calls, began_at) == [5.0, 15.0, 35.0, 75.0]


async def test_a_call_that_callbacks_tell_of_is_not_asked_about(autojump_clock, calls):
    call, began_at = await dialled(calls)
    calls.update_status(StatusUpdate(call.call_sid, CallStatus.RINGING, 1))
    await trio.sleep(55.0)
    calls.update_status(StatusUpdate(call.call_sid, CallStatus.BUSY, 2))
    await call.finished.wait()
    await trio.sleep(600.0)

    assert asked_s(calls, began_at) == []


async def test_a_callback_that_is_lost_after_others_came_is_asked_for(autojump_clock, calls):
    call, began_at = await dialled(calls)
    await trio.sleep(1.0)
    calls.update_status(StatusUpdate(call.call_sid, CallStatus.RINGING, 1))
    calls.carrier.status = CallStatus.BUSY
    await call.finished.wait()

    assert asked_s(calls, began_at) == [61.0]
    assert call.end_reason is EndReason.BUSY


async def test_a_call_with_a_stream_is_asked_about_when_it_is_over(autojump_clock, calls, nursery):
    call, began_at = await dialled(calls)
    media = MemoryMedia()
    started(calls, media)
    nursery.start_soon(serve_stream, calls, media)
    await wait_all_tasks_blocked()
    media.hang_up()
    await call.finished.wait()
    calls.carrier.status = CallStatus.COMPLETED
    assert asked_s(calls, began_at) == []
    await trio.sleep(600.0)

    assert asked_s(calls, began_at) == [5.0]
    assert call.progress.status is CallStatus.COMPLETED
    assert call.end_reason is EndReason.CALLER_HUNG_UP


async def test_a_call_that_is_over_is_asked_about_no_more_than_a_few_times(autojump_clock, calls):
    call, _ = await dialled(calls)
    call.end(EndReason.HUNG_UP)
    await trio.sleep(3_600.0)

    assert len(calls.carrier.asked) == 3


async def test_nobody_is_asked_where_that_is_not_wanted(autojump_clock, nursery):
    calls = make_calls(callback_wait_s=math.inf)
    await nursery.start(calls.run)
    call, _ = await dialled(calls)
    await call.finished.wait()

    assert calls.carrier.asked == []


async def test_inbound_calls_are_not_asked_about(autojump_clock, calls):
    await calls.answer("CA7", NUMBER, SILENT)
    await trio.sleep(100.0)

    assert calls.carrier.asked == []


# ------------------------------------------------------------------------------------------
# What comes of it


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("busy", "busy"),
        ("no-answer", "no-answer"),
        ("failed", "failed"),
        ("canceled", "canceled"),
        ("completed", "caller-hung-up"),
    ],
)
async def test_a_call_that_is_over_ends_as_the_carrier_says(autojump_clock, calls, status, reason):
    call, began_at = await dialled(calls)
    calls.carrier.status = CallStatus(status)
    await call.finished.wait()

    assert (call.end_reason, call.progress.status) == (reason, status)
    assert trio.current_time() - began_at == pytest.approx(5.0)
    assert calls.carrier.hung_up == []


async def test_a_call_that_was_answered_goes_on_waiting_for_its_stream_and_then_says_so(
    autojump_clock, calls
):
    call, began_at = await dialled(calls)
    calls.carrier.status = CallStatus.IN_PROGRESS
    await trio.sleep(60.0)
    assert not call.is_over
    await call.finished.wait()

    assert call.end_reason is EndReason.CARRIER_FAILED
    assert "stream never came" in call.conversation.end_detail
    assert trio.current_time() - began_at <= 125.0
    assert calls.carrier.hung_up == [call.call_sid]


async def test_a_phone_that_may_still_ring_is_hung_up_when_its_time_is_over(autojump_clock, calls):
    call, _ = await dialled(calls)
    await call.finished.wait()

    assert call.end_reason is EndReason.NO_ANSWER
    assert calls.carrier.hung_up == [call.call_sid]


async def test_what_was_asked_for_never_takes_a_call_back(autojump_clock, calls):
    call, _ = await dialled(calls)
    calls.carrier.status = CallStatus.IN_PROGRESS
    await trio.sleep(6.0)
    calls.update_status(StatusUpdate(call.call_sid, CallStatus.RINGING, 1))  # it was late
    calls.carrier.status = CallStatus.QUEUED
    await trio.sleep(70.0)

    assert call.progress.status is CallStatus.IN_PROGRESS
    assert len(calls.carrier.asked) == 2


async def test_what_is_asked_for_again_is_noted_once(autojump_clock, calls):
    call, _ = await dialled(calls)
    calls.carrier.status = CallStatus.RINGING
    await trio.sleep(80.0)

    assert [what for _, what, _ in call.conversation.notes.timeline].count("ringing") == 1


# ------------------------------------------------------------------------------------------
# A carrier that does not answer


async def test_a_carrier_that_does_not_want_to_be_asked_is_left_alone(autojump_clock, calls):
    calls.carrier.fetch_failures = [CarrierError("no", status=401, code=20003)] * 100
    call, _ = await dialled(calls)
    await call.finished.wait()
    await trio.sleep(3_600.0)

    assert len(calls.carrier.asked) == 3
    assert call.end_reason is EndReason.NO_ANSWER


async def test_a_carrier_that_fails_is_asked_again(autojump_clock, calls):
    calls.carrier.fetch_failures = [
        CarrierError("down", status=503, outcome_unknown=True),
        CarrierError("not reached"),
    ]
    calls.carrier.status = CallStatus.BUSY
    call, began_at = await dialled(calls)
    await call.finished.wait()

    assert asked_s(calls, began_at) == [5.0, 15.0, 35.0]
    assert call.end_reason is EndReason.BUSY


async def test_a_carrier_that_asks_for_a_pause_has_it_from_all_calls(autojump_clock, calls):
    calls.carrier.fetch_failures = [CarrierError("busy", status=429, retry_after_s=30.0)]
    began_at = trio.current_time()
    for _ in range(3):
        await calls.place(NUMBER, SILENT)
    await trio.sleep(34.0)
    assert asked_s(calls, began_at)[2:] == []  # two at once, and the pause begins
    await trio.sleep(10.0)

    assert len(calls.carrier.asked) > 3


async def test_few_questions_are_under_way_at_once(autojump_clock, nursery):
    class Slow(MemoryCarrier):
        now, most = 0, 0

        async def fetch_status(self, call_sid: str) -> StatusUpdate:
            self.now += 1
            self.most = max(self.most, self.now)
            await trio.sleep(1.0)
            self.now -= 1
            return await super().fetch_status(call_sid)

    calls = make_calls(callback_wait_s=5.0, carrier=Slow())
    await nursery.start(calls.run)
    for _ in range(20):
        await calls.place(NUMBER, SILENT)
    await trio.sleep(16.0)

    assert calls.carrier.most == 2
    assert len(calls.carrier.asked) == 20


async def test_a_bug_in_asking_costs_no_call(autojump_clock, nursery):
    class Broken(MemoryCarrier):
        async def fetch_status(self, call_sid: str) -> StatusUpdate:
            raise ZeroDivisionError

    calls = make_calls(callback_wait_s=5.0, carrier=Broken())
    await nursery.start(calls.run)
    call, _ = await dialled(calls)
    await trio.sleep(50.0)

    assert not call.is_over
    assert calls.live_count == 1


async def test_a_server_that_stops_waits_for_no_answer(autojump_clock, nursery):
    calls = make_calls(callback_wait_s=5.0)
    await nursery.start(calls.run)
    call, began_at = await dialled(calls)
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()
    await calls.aclose()
    await wait_all_tasks_blocked()

    assert trio.current_time() - began_at < 1.0
    assert len(nursery.child_tasks) == 0


# ------------------------------------------------------------------------------------------
# A registry that cannot be asked, and what the carrier could not be told


class Whose:
    """Says whose calls are; it is away until the time that it is given."""

    def __init__(self) -> None:
        self.back_at = -math.inf
        self.asked = 0
        self.generation = 1

    async def is_current(self, call_sid: str, generation: int) -> bool:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self.back_at:
            raise RegistryAway("gone")
        return generation == self.generation

    def is_away_for(self, seconds: float) -> None:
        self.back_at = trio.current_time() + seconds


@pytest.fixture
def whose():
    return Whose()


@pytest.fixture
async def shared(nursery, whose):
    """The calls of a server of several processes."""
    calls = make_calls(callback_wait_s=5.0, is_current=whose.is_current)
    await nursery.start(calls.run)
    return calls


async def ended(call: Call, reason: EndReason = EndReason.HUNG_UP) -> None:
    call.end(reason)
    await call.finished.wait()
    await wait_all_tasks_blocked()


async def test_a_call_of_which_nobody_can_say_whose_it_is_is_asked_about_the_next_time(
    autojump_clock, shared, whose
):
    call, began_at = await dialled(shared)
    await ended(call)
    shared.carrier.status = CallStatus.COMPLETED
    whose.is_away_for(6.0)
    await trio.sleep(60.0)

    assert asked_s(shared, began_at) == [15.0]
    assert call.progress.status is CallStatus.COMPLETED


async def test_a_call_that_is_anothers_is_asked_about_no_more(autojump_clock, shared, whose):
    call, began_at = await dialled(shared)
    await ended(call)
    whose.generation = 2
    await trio.sleep(600.0)

    assert asked_s(shared, began_at) == []
    assert shared.carrier.hung_up == [call.call_sid]


async def test_a_phone_that_rings_is_hung_up_by_its_call_though_a_registry_is_slow(
    autojump_clock, shared, whose
):
    call, _ = await dialled(shared)
    whose.is_away_for(0.7)
    await ended(call)

    assert shared.carrier.hung_up == [call.call_sid]
    assert not call.is_unended


@pytest.mark.parametrize("away_s", [2.0, 30.0, 100.0])
@pytest.mark.parametrize("direction", ["outbound", "inbound"])
async def test_a_call_without_a_stream_is_hung_up_when_it_is_known_whose_it_is(
    autojump_clock, shared, whose, away_s, direction
):
    if direction == "outbound":
        call, _ = await dialled(shared)
    else:
        await shared.answer("CA1", NUMBER, SILENT)
        call = shared.register.get_live("CA1")
        await wait_all_tasks_blocked()
    whose.is_away_for(away_s)
    await ended(call)
    was_told = list(shared.carrier.hung_up)
    await trio.sleep(away_s + MAX_HANG_UP_PAUSE_S)

    assert was_told == []
    assert shared.carrier.hung_up == [call.call_sid]


async def test_a_call_whose_caller_is_with_somebody_else_is_hung_up_when_it_is_known_whose_it_is(
    autojump_clock, shared, whose, nursery
):
    call, media = (await dialled(shared))[0], MemoryMedia()
    started(shared, media)
    nursery.start_soon(serve_stream, shared, media)
    await wait_all_tasks_blocked()
    nursery.start_soon(call.transfer, "sales", "+15005550123")
    await wait_all_tasks_blocked()
    media.hang_up()
    await wait_all_tasks_blocked()
    assert call.handover.has_left
    await trio.sleep(1.0)  # what was known of it for the transfer's sake is old by then
    whose.is_away_for(4.0)
    await ended(call)
    was_told = list(shared.carrier.hung_up)
    await trio.sleep(10.0)

    assert was_told == []
    assert shared.carrier.hung_up == [call.call_sid]


async def test_a_call_that_another_has_taken_over_or_that_is_over_is_not_hung_up_late(
    autojump_clock, shared, whose
):
    for happens in ("taken over", "over"):
        whose.generation = 1
        call, _ = await dialled(shared)
        whose.is_away_for(5.0)
        await ended(call)
        assert call.is_unended
        if happens == "over":
            shared.update_status(StatusUpdate(call.call_sid, CallStatus.CANCELED, 3))
        else:
            whose.generation = 2
        await trio.sleep(300.0)

    assert shared.carrier.hung_up == []


async def test_a_call_is_not_hung_up_late_by_what_was_said_before_we_were_held_up(
    autojump_clock, shared, whose, monkeypatch
):
    missed, is_current = [0.0], whose.is_current
    monkeypatch.setattr("server.switchboard.inquiry.missed_s", lambda: missed[0])
    call, _ = await dialled(shared)
    whose.is_away_for(5.0)
    await ended(call)

    async def held_up(call_sid: str, generation: int) -> bool:
        was_ours = await is_current(call_sid, generation)
        if was_ours:
            missed[0] += 5.0
            whose.generation = 2
        return was_ours

    shared._inquiry._is_current = held_up
    await trio.sleep(300.0)

    assert whose.generation == 2
    assert shared.carrier.hung_up == []


class Deaf(MemoryCarrier):
    """Does not hear that it is to hang up, the first few times."""

    deaf_for = 1

    async def hang_up(self, call_sid: str) -> None:
        if self.deaf_for:
            self.deaf_for -= 1
            await trio.sleep(10.0)
            raise CarrierError("no answer", outcome_unknown=True)
        await super().hang_up(call_sid)


@pytest.mark.parametrize("deaf_for", [1, 3])
async def test_a_carrier_that_did_not_hear_that_it_is_to_hang_up_is_told_again(
    autojump_clock, nursery, deaf_for
):
    calls = make_calls(callback_wait_s=math.inf, carrier=Deaf())
    calls.carrier.deaf_for = deaf_for
    await nursery.start(calls.run)
    call, _ = await dialled(calls)
    await ended(call)
    was_told = list(calls.carrier.hung_up)
    await trio.sleep(60.0)

    assert was_told == []
    assert calls.carrier.hung_up == [call.call_sid]


async def test_a_carrier_that_never_hears_is_given_up_and_that_is_said_once(
    autojump_clock, nursery
):
    calls = make_calls(callback_wait_s=math.inf, carrier=Deaf())
    calls.carrier.deaf_for = 1_000
    await nursery.start(calls.run)
    call, _ = await dialled(calls)
    with capture_logs() as logs:
        await ended(call)
        await trio.sleep(3_600.0)

    told = [line for line in logs if "could not be told" in line["event"]]
    assert calls.carrier.deaf_for == 1_000 - 1 - MAX_HANG_UPS
    assert [(line["log_level"], line["call_sid"]) for line in told] == [("warning", call.call_sid)]


async def test_whoever_is_owed_an_apology_is_left_to_the_carrier_which_asks(
    autojump_clock, shared, whose
):
    await shared.answer("CA1", NUMBER, SILENT)
    call = shared.register.get_live("CA1")
    await wait_all_tasks_blocked()
    whose.is_away_for(5.0)
    await ended(call, EndReason.MODEL_LOST)
    await trio.sleep(300.0)

    assert isinstance(shared.register.end_of("CA1"), SayAndEndCall)
    assert shared.carrier.hung_up == []


async def test_a_server_that_stops_does_not_wait_until_a_call_can_be_hung_up(
    autojump_clock, nursery, shared, whose
):
    call, _ = await dialled(shared)
    whose.is_away_for(100.0)
    await ended(call)
    before = trio.current_time()
    await shared.aclose()
    await wait_all_tasks_blocked()

    assert trio.current_time() - before < 1.0
    assert len(nursery.child_tasks) == 0
