"""Admission, tickets and the registry of calls, on the mock clock."""

from __future__ import annotations

from inspect import signature

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.options import CallOptions
from server.carrier import CallStatus, StatusUpdate, StreamStopped, VoiceRequest
from server.carrier.webhooks import ConnectStream, EndCall, Reply
from server.dialogue.endings import EndReason
from server.dialogue.voicemail import VoicemailPolicy
from server.errors import CallRefused, CarrierError, ModelSetupRefused
from server.settings.settings import Settings
from server.switchboard.calls import Calls
from tests.support.fakes import MemoryCarrier, MemoryMedia
from tests.support.switchboards import NUMBER, make_calls, serve_stream, started


@pytest.fixture
async def calls(nursery):
    calls = make_calls()
    await nursery.start(calls.run)
    return calls


def ticket_in(reply: Reply) -> str:
    assert isinstance(reply, ConnectStream)
    return reply.ticket


async def test_the_model_is_opened_when_the_carrier_has_accepted(autojump_clock, calls):
    call = await calls.place(NUMBER, Agent(prompt="p"))
    await wait_all_tasks_blocked()

    assert call.call_sid == "CA1"
    assert calls.model.agents == [Agent(prompt="p")]


async def test_a_refused_dial_opens_nothing_and_keeps_no_line(autojump_clock, nursery):
    calls = make_calls(
        carrier=MemoryCarrier(failure=CarrierError("no", status=400, code=21211)),
        limits={"max_calls": 1},
    )
    await nursery.start(calls.run)
    for _ in range(2):
        with pytest.raises(CarrierError):
            await calls.place(NUMBER, Agent())
    await wait_all_tasks_blocked()

    assert not any(session.connects for session in calls.model.sessions)
    assert calls.live_count == 0


async def test_the_stream_with_the_ticket_gets_its_call(autojump_clock, calls, nursery):
    call = await calls.place(NUMBER, Agent())
    media = MemoryMedia()
    started(calls, media)
    nursery.start_soon(serve_stream, calls, media)
    await wait_all_tasks_blocked()

    assert [what for _, what, _ in call.conversation.notes.timeline].count("answered") == 1
    media.hang_up()
    await call.finished.wait()
    assert calls.register.get_recent("CA1").end_reason is call.end_reason
    assert calls.live_count == 0


@pytest.mark.parametrize("ticket", ["", "guess"])
async def test_a_wrong_ticket_is_refused_with_1008(autojump_clock, calls, ticket):
    await calls.place(NUMBER, Agent())
    media = MemoryMedia()
    media.event(media.start("CA1", ticket))
    await serve_stream(calls, media)

    assert media.closed is not None
    assert media.closed[0] == 1008


async def test_a_ticket_is_good_once_and_the_first_call_goes_on(autojump_clock, calls, nursery):
    call = await calls.place(NUMBER, Agent())
    first, second = MemoryMedia(), MemoryMedia()
    started(calls, first)
    nursery.start_soon(serve_stream, calls, first)
    await wait_all_tasks_blocked()
    started(calls, second)
    await serve_stream(calls, second)

    assert second.closed is not None
    assert second.closed[0] == 1008
    assert first.closed is None
    assert not call.is_over


async def test_a_ticket_belongs_to_its_call_sid(autojump_clock, calls):
    await calls.place(NUMBER, Agent())
    media = MemoryMedia()
    started(calls, media, call_sid="CA999")
    await serve_stream(calls, media)

    assert media.closed is not None


async def test_a_ticket_expires(autojump_clock, nursery):
    calls = make_calls(ticket_ttl_s=5.0)
    await nursery.start(calls.run)
    await calls.place(NUMBER, Agent())
    await trio.sleep(6.0)
    media = MemoryMedia()
    started(calls, media)
    await serve_stream(calls, media)

    assert media.closed is not None


async def test_a_socket_that_never_starts_is_closed_at_a_deadline(autojump_clock, calls):
    media = MemoryMedia()
    before = trio.current_time()
    await serve_stream(calls, media)

    assert trio.current_time() - before == pytest.approx(10.0)
    assert media.closed == (1008, "no start message in time")


async def test_a_socket_that_closes_before_it_starts_is_forgotten(autojump_clock, calls):
    media = MemoryMedia()
    media.event(StreamStopped(said=False))
    await serve_stream(calls, media)

    assert media.closed is None


async def test_a_phone_that_is_answered_before_the_dial_request_is(autojump_clock, nursery):
    calls = make_calls(carrier=MemoryCarrier(answer_s=2.0))
    await nursery.start(calls.run)
    nursery.start_soon(calls.place, NUMBER, Agent())
    await trio.sleep(1.0)
    media = MemoryMedia()
    started(calls, media)
    nursery.start_soon(serve_stream, calls, media)
    await trio.sleep(2.0)

    assert media.closed is None
    call = calls.register.get("CA1")
    assert call is not None
    assert "answered" in [what for _, what, _ in call.conversation.notes.timeline]


async def test_callbacks_that_overtake_the_dial_request_are_kept_in_order(autojump_clock, nursery):
    calls = make_calls(carrier=MemoryCarrier(answer_s=2.0))
    await nursery.start(calls.run)
    nursery.start_soon(calls.place, NUMBER, Agent())
    await trio.sleep(1.0)
    calls.update_status(StatusUpdate("CA1", CallStatus.RINGING, 1))
    calls.update_status(StatusUpdate("CA1", CallStatus.INITIATED, 0))
    await trio.sleep(1.5)

    call = calls.register.get("CA1")
    assert call is not None
    assert call.progress.status is CallStatus.RINGING


async def test_callbacks_for_strangers_are_bounded(autojump_clock, calls):
    for number in range(5_000):
        calls.update_status(StatusUpdate(f"CAx{number}", CallStatus.RINGING, 1))
        calls.update_status(StatusUpdate("CAx", CallStatus.RINGING, number))

    assert len(calls._early) <= 1_000


def test_as_many_ended_calls_stay_in_memory_as_the_setting_says():
    default = signature(Calls).parameters["recent_calls"].default

    assert default == Settings.model_fields["recent_calls"].default


async def test_a_call_that_is_over_gets_no_early_callbacks(autojump_clock, nursery):
    calls = make_calls(recent_calls=0)
    await nursery.start(calls.run)
    call = await calls.place(NUMBER, Agent())
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()
    await wait_all_tasks_blocked()
    calls.update_status(StatusUpdate(call.call_sid, CallStatus.COMPLETED, 3))

    assert len(calls._early) == 0


async def test_a_dial_that_the_carrier_wants_later_pauses_all_dialling(autojump_clock, nursery):
    busy = CarrierError("too many", status=429, code=20429, retry_after_s=90.0)
    calls = make_calls(carrier=MemoryCarrier(failure=busy))
    await nursery.start(calls.run)
    with pytest.raises(CarrierError):
        await calls.place(NUMBER, Agent(), client="one")
    calls.carrier.failure = None

    with pytest.raises(CallRefused) as refused:
        await calls.place(NUMBER, Agent(), client="another")
    assert refused.value.retry_after_s == pytest.approx(90.0)
    assert await calls.answer("CA7", NUMBER, Agent())  # whoever calls us is answered
    await trio.sleep(90.0)
    assert await calls.place(NUMBER, Agent(), client="another")


def asking(call_sid: str, report: StatusUpdate | None = None) -> VoiceRequest:
    return VoiceRequest(call_sid, NUMBER, begins=False, report=report)


async def test_a_voice_webhook_of_nobodys_call_begins_none(autojump_clock, calls):
    assert await calls.go_on(asking("CA8"), Agent()) == EndCall()
    assert calls.live_count == 0
    assert calls.model.sessions == []


async def test_a_call_of_ours_that_asks_for_its_document_gets_a_ticket(autojump_clock, calls):
    call = await calls.place(NUMBER, Agent())
    reply = await calls.go_on(asking(call.call_sid), Agent())
    media = MemoryMedia()
    media.event(media.start(call.call_sid, ticket_in(reply)))
    claim = await calls.claim(media)

    assert claim is not None
    assert claim.call is call


async def test_a_report_in_the_place_of_a_question_counts_for_a_call_that_is_known(
    autojump_clock, calls
):
    call = await calls.place(NUMBER, Agent())
    report = StatusUpdate(call.call_sid, CallStatus.BUSY, 1)
    assert await calls.go_on(asking(call.call_sid, report), Agent()) == EndCall()
    await call.finished.wait()

    assert call.end_reason is EndReason.BUSY


async def test_a_report_on_nobodys_call_is_nothing(autojump_clock, calls):
    report = StatusUpdate("CA8", CallStatus.COMPLETED, 1)
    assert await calls.go_on(asking("CA8", report), Agent()) == EndCall()

    assert calls.live_count == 0
    assert len(calls._early) == 0


async def test_no_more_calls_than_lines(autojump_clock, nursery):
    calls = make_calls(limits={"max_calls": 2})
    await nursery.start(calls.run)
    await calls.place(NUMBER, Agent())
    await calls.place(NUMBER, Agent())

    with pytest.raises(CallRefused) as refused:
        await calls.place(NUMBER, Agent())
    assert refused.value.status == 503
    assert refused.value.retry_after_s is not None


async def test_an_inbound_call_gets_a_ticket_and_its_repeat_another(autojump_clock, calls, nursery):
    first = await calls.answer("CA7", NUMBER, Agent())
    second = await calls.answer("CA7", NUMBER, Agent())
    await wait_all_tasks_blocked()

    assert first != second
    assert len(calls.model.sessions) == 1


async def test_a_repeat_after_the_stream_has_begun_gets_no_ticket(autojump_clock, calls, nursery):
    first, second = [await calls.answer("CA7", NUMBER, Agent()) for _ in range(2)]
    media, other = MemoryMedia(), MemoryMedia()
    media.event(media.start("CA7", ticket_in(first)))
    nursery.start_soon(serve_stream, calls, media)
    await wait_all_tasks_blocked()

    assert await calls.answer("CA7", NUMBER, Agent()) == EndCall()
    other.event(other.start("CA7", ticket_in(second)))
    await serve_stream(calls, other)
    assert other.closed is not None
    assert other.closed[0] == 1008

    call = calls.register.get("CA7")
    media.hang_up()
    await call.finished.wait()
    await wait_all_tasks_blocked()
    assert await calls.answer("CA7", NUMBER, Agent()) == EndCall()
    assert calls.live_count == 0
    assert len(calls.model.sessions) == 1


async def test_a_call_that_is_over_does_not_begin_again_when_it_is_long_forgotten(
    autojump_clock, nursery
):
    calls = make_calls(recent_calls=0)
    await nursery.start(calls.run)
    await calls.answer("CA7", NUMBER, Agent())
    calls.register.get("CA7").end(EndReason.HUNG_UP)
    await wait_all_tasks_blocked()
    await trio.sleep(60)
    assert calls.register.get("CA7") is None

    await calls.answer("CA7", NUMBER, Agent())

    assert calls.live_count == 0
    assert len(calls.model.sessions) == 1


async def test_however_often_it_is_asked_a_call_has_few_tickets(autojump_clock, calls):
    replies = [await calls.answer("CA7", NUMBER, Agent()) for _ in range(50)]

    assert len(set(replies)) == 5
    assert len(calls.tickets._tickets) == 5


async def test_a_failing_call_leaves_the_others_alone(autojump_clock, nursery):
    calls = make_calls()
    await nursery.start(calls.run)
    good = await calls.place(NUMBER, Agent())
    await wait_all_tasks_blocked()
    calls.model.failure = ModelSetupRefused("no", code=1007, reason="", retryable=False)
    bad = await calls.place(NUMBER, Agent())
    await bad.finished.wait()

    assert bad.end_reason is EndReason.MODEL_UNAVAILABLE
    assert not good.is_over


async def test_a_drain_says_how_long_calls_may_go_on(autojump_clock, nursery):
    calls = make_calls()
    await nursery.start(calls.run)
    await calls.place(NUMBER, Agent())
    with capture_logs() as lines:
        await calls.drain(30.0)

    told = {"event": "draining", "live": 1, "goodbye_in_s": 30.0, "log_level": "info"}
    assert told in lines


async def test_only_so_many_records_are_kept(autojump_clock, nursery):
    calls = make_calls(recent_calls=3)
    await nursery.start(calls.run)
    for _ in range(5):
        call = await calls.place(NUMBER, Agent())
        call.end(EndReason.HUNG_UP)
        await call.finished.wait()
    await wait_all_tasks_blocked()

    assert [call.call_sid for call in calls.register.all()] == ["CA5", "CA4", "CA3"]


async def test_a_drain_refuses_new_calls_waits_for_live_ones_and_ends_the_rest(
    autojump_clock, calls, nursery
):
    silent = Agent(greeting="")  # nobody minds that the model says nothing
    short = await calls.place(NUMBER, silent)
    long = await calls.place(NUMBER, silent)
    before = trio.current_time()
    nursery.start_soon(calls.drain, 30.0)
    await trio.sleep(5.0)
    with pytest.raises(CallRefused, match="draining"):
        await calls.place(NUMBER, Agent())
    short.end(EndReason.HUNG_UP)
    await long.finished.wait()

    assert long.end_reason is EndReason.DRAINED
    assert trio.current_time() - before == pytest.approx(30.0)


async def test_shutting_down_ends_every_call_with_a_record(autojump_clock):
    calls = make_calls()
    async with trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        call = await calls.place(NUMBER, Agent())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert call.is_over
    assert call.end_reason is EndReason.CANCELED


async def test_a_closed_registry_ends_with_its_last_call(autojump_clock, nursery):
    calls = make_calls()
    ended = trio.Event()

    async def run(task_status):
        await calls.run(task_status)
        ended.set()

    await nursery.start(run)
    call = await calls.place(NUMBER, Agent())
    await calls.aclose()
    await wait_all_tasks_blocked()
    assert not ended.is_set()
    call.end(EndReason.HUNG_UP)
    await ended.wait()

    with pytest.raises(CallRefused):
        await calls.place(NUMBER, Agent())


async def test_machines_are_listened_for_only_where_something_is_done_about_them(nursery):
    detects = []
    for voicemail in VoicemailPolicy:
        calls = make_calls(options=CallOptions(voicemail=voicemail))
        await nursery.start(calls.run)
        call = await calls.place(NUMBER, Agent())
        detects.append(calls.carrier.detects_machine)
        call.end(EndReason.HUNG_UP)
        await call.finished.wait()
    nursery.cancel_scope.cancel()

    assert detects == [False, True, True]


async def test_a_call_is_being_set_up_until_its_stream_and_its_session_are_there(
    nursery, autojump_clock, calls
):
    setups = calls.admission.setups
    ticket = ticket_in(await calls.answer("CA1", NUMBER, Agent()))
    await wait_all_tasks_blocked()
    setups.look(trio.current_time(), 0.0)
    before = len(setups)
    media = MemoryMedia()
    media.event(media.start("CA1", ticket))
    nursery.start_soon(serve_stream, calls, media)
    await wait_all_tasks_blocked()
    setups.look(trio.current_time(), 0.0)

    assert (before, len(setups)) == (1, 0)
    nursery.cancel_scope.cancel()
