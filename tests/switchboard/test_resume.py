"""How a call goes on whose stream has ended: the answers to the carrier's question, bounded."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent import phrases
from server.agent.agent import Agent
from server.call.conversation import Stage
from server.call.options import CallOptions
from server.carrier import CallStatus, StatusUpdate, StreamStopped, TransferUpdate
from server.carrier.webhooks import ConnectStream, EndCall, SayAndEndCall
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.errors import CarrierError, ModelError
from server.switchboard.tickets import MAX_STREAMS_PER_MIN
from tests.support.fakes import MemoryMedia
from tests.support.switchboards import NUMBER, make_calls, serve_stream, started

AGENT = Agent(greeting="", language="de-DE")
BUSY = TransferUpdate("CA1", CallStatus.BUSY, wants_document=True)
LOST = ModelError("gone", code=1006, reason="", retryable=True)


@pytest.fixture
async def calls(nursery):
    options = CallOptions(
        media_timeout_s=600.0, line_lost_timeout_s=60.0, patience=Patience(silence_timeout_s=0.0)
    )
    calls = make_calls(options=options)
    await nursery.start(calls.run)
    return calls


@pytest.fixture
async def talking(calls, nursery):
    """A call on the line, and its stream."""
    call = await calls.place(NUMBER, AGENT)
    media = MemoryMedia()
    started(calls, media)
    nursery.start_soon(serve_stream, calls, media)
    await wait_all_tasks_blocked()
    yield call, media
    call.end(EndReason.HUNG_UP)


async def away(nursery, call, media):
    """The carrier takes the caller away, to somebody else; returns what comes of it."""
    outcomes = []

    async def transfer():
        outcomes.append(await call.transfer("sales", "+15005550123"))

    nursery.start_soon(transfer)
    await wait_all_tasks_blocked()
    media.hang_up()
    await wait_all_tasks_blocked()
    return outcomes


async def speak(media: MemoryMedia) -> None:
    while True:
        media.say(bytes(160))
        await trio.sleep(0.02)


async def lose(media: MemoryMedia) -> None:
    media.event(StreamStopped(said=False))
    await wait_all_tasks_blocked()


async def come_back(calls, nursery, reply, call_sid="CA1") -> MemoryMedia:
    assert isinstance(reply, ConnectStream)
    media = MemoryMedia()
    media.event(media.start(call_sid, reply.ticket))
    nursery.start_soon(serve_stream, calls, media)
    await wait_all_tasks_blocked()
    return media


async def test_a_call_whose_line_is_lost_gets_another_stream(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    await lose(media)
    again = await come_back(calls, nursery, await calls.resume("CA1", AGENT))
    again.say(bytes(160))
    await wait_all_tasks_blocked()

    assert not call.conversation.is_lost
    assert len(calls.model.session.heard) == 640


async def test_the_question_may_come_before_the_end_of_the_stream(
    autojump_clock, calls, talking, nursery
):
    _, media = talking
    replies = []

    async def ask():
        replies.append(await calls.resume("CA1", AGENT))

    media.say(bytes(160))
    nursery.start_soon(ask)
    await trio.sleep(0.2)
    early = list(replies)
    await lose(media)

    assert early == []
    assert isinstance(replies[0], ConnectStream)


async def test_a_stream_whose_end_nobody_has_told_us_is_over_when_nothing_comes(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    media.say(bytes(160))
    again = await come_back(calls, nursery, await calls.resume("CA1", AGENT))

    assert media.closed is not None
    assert again.closed is None
    assert call.end_reason is None


async def test_a_stream_that_is_heard_is_not_over_whoever_says_so(
    autojump_clock, calls, talking, nursery
):
    call, media = talking

    nursery.start_soon(speak, media)
    reply = await calls.resume("CA1", AGENT)
    nursery.cancel_scope.cancel()

    assert reply == EndCall()
    assert call.end_reason is None
    assert media.closed is None


async def test_a_call_that_is_over_or_unknown_is_ended_and_never_given_a_stream(
    autojump_clock, calls, talking
):
    call, _ = talking
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()
    await wait_all_tasks_blocked()

    assert await calls.resume("CA1", AGENT) == EndCall()
    assert await calls.resume("CA2", AGENT) == EndCall()
    assert calls.tickets.of(call) == []


async def test_a_call_that_is_about_to_end_is_not_given_a_stream(autojump_clock, calls, talking):
    call, media = talking
    await lose(media)
    call.end(EndReason.MAX_DURATION)

    assert await calls.resume("CA1", AGENT) == EndCall()


async def test_the_callers_of_a_process_that_is_gone_are_told_so(autojump_clock, calls):
    reply = await calls.resume("CA9", AGENT, is_orphan=True)

    assert reply == SayAndEndCall(*phrases.apology_of(AGENT))
    assert calls.live_count == 0


async def test_a_caller_who_asks_after_the_model_was_lost_is_told(autojump_clock, calls, talking):
    call, media = talking
    await lose(media)
    calls.model.session.event(LOST)
    call.end(EndReason.MODEL_LOST)
    reply = await calls.resume("CA1", AGENT)

    assert reply == SayAndEndCall(*phrases.apology_of(AGENT))


async def test_an_apology_that_the_carrier_would_not_take_is_given_when_it_asks(
    autojump_clock, calls, talking
):
    call, _ = talking

    async def refuse(call_sid, text, language):
        raise CarrierError("no", status=400, code=20001)

    calls.carrier.say_and_hang_up = refuse
    calls.model.session.event(LOST)
    await call.finished.wait()
    await wait_all_tasks_blocked()
    reply = await calls.resume("CA1", AGENT)

    assert call.end_reason is EndReason.MODEL_LOST
    assert isinstance(reply, SayAndEndCall)


async def test_a_stream_that_was_never_reached_is_tried_again(autojump_clock, calls, nursery):
    call = await calls.place(NUMBER, AGENT)
    calls.update_status(StatusUpdate("CA1", CallStatus.IN_PROGRESS, 2))
    await come_back(calls, nursery, await calls.resume("CA1", AGENT))

    assert call.conversation.answered_at is not None
    call.end(EndReason.HUNG_UP)


async def test_the_streams_of_one_call_are_bounded_and_then_it_ends(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    for _ in range(MAX_STREAMS_PER_MIN):
        await lose(media)
        media = await come_back(calls, nursery, await calls.resume("CA1", AGENT))
    await lose(media)
    reply = await calls.resume("CA1", AGENT)
    await call.finished.wait()

    assert reply == EndCall()
    assert call.end_reason is EndReason.CALLER_GONE
    assert call.record().detail == "its stream was lost again and again"
    assert calls.carrier.hung_up == ["CA1"]


async def test_a_question_that_is_repeated_is_one_stream(autojump_clock, calls, talking, nursery):
    call, media = talking
    await lose(media)
    replies = [await calls.resume("CA1", AGENT) for _ in range(2 * MAX_STREAMS_PER_MIN)]
    await come_back(calls, nursery, replies[-1])

    assert len(set(replies)) == 1
    assert call.end_reason is None
    assert not call.conversation.is_lost


async def test_a_caller_whom_the_carrier_has_taken_away_gets_no_stream_before_it_says_how_that_went(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    outcomes = await away(nursery, call, media)
    reply = await calls.resume("CA1", AGENT)
    await come_back(calls, nursery, await calls.update_transfer(BUSY, AGENT))

    assert reply == EndCall()
    assert outcomes == [CallStatus.BUSY]
    assert call.conversation.stage is Stage.TALK


async def test_a_caller_on_the_way_back_gets_a_stream_as_often_as_the_carrier_asks(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    await away(nursery, call, media)
    await calls.update_transfer(BUSY, AGENT)
    again = await come_back(calls, nursery, await calls.update_transfer(BUSY, AGENT))

    assert again.closed is None
    assert call.conversation.stage is Stage.TALK


async def test_a_request_kept_from_a_transfer_does_not_take_the_line_of_a_caller_who_is_back(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    await away(nursery, call, media)
    again = await come_back(calls, nursery, await calls.update_transfer(BUSY, AGENT))

    nursery.start_soon(speak, again)
    reply = await calls.update_transfer(BUSY, AGENT)
    nursery.cancel_scope.cancel()

    assert reply == EndCall()
    assert calls.tickets.of(call) == []
    assert call.end_reason is None
    assert again.closed is None


async def test_who_repeats_a_transfers_end_gets_no_more_streams_than_any_who_asks(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    await away(nursery, call, media)
    media = await come_back(calls, nursery, await calls.update_transfer(BUSY, AGENT))
    for _ in range(MAX_STREAMS_PER_MIN):
        await lose(media)
        media = await come_back(calls, nursery, await calls.update_transfer(BUSY, AGENT))
    await lose(media)

    assert await calls.update_transfer(BUSY, AGENT) == EndCall()
    assert call.end_reason is EndReason.CALLER_GONE


async def test_now_and_then_a_call_may_lose_its_line_for_ever(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    for _ in range(3 * MAX_STREAMS_PER_MIN):
        await trio.sleep(60.0 / MAX_STREAMS_PER_MIN)
        await lose(media)
        media = await come_back(calls, nursery, await calls.resume("CA1", AGENT))

    assert call.end_reason is None


async def test_the_tickets_of_a_lost_stream_open_nothing(autojump_clock, calls, talking, nursery):
    call, media = talking
    await lose(media)
    first = await calls.resume("CA1", AGENT)
    second = await calls.resume("CA1", AGENT)
    again = await come_back(calls, nursery, second)
    strays = [await come_back(calls, nursery, reply) for reply in (first, second)]

    assert [stray.closed and stray.closed[0] for stray in strays] == [1008, 1008]
    assert again.closed is None
    assert call.end_reason is None


async def test_a_ticket_for_another_stream_is_that_calls_alone(
    autojump_clock, calls, talking, nursery
):
    call, media = talking
    await lose(media)
    stray = await come_back(calls, nursery, await calls.resume("CA1", AGENT), call_sid="CA2")

    assert stray.closed is not None
    assert stray.closed[0] == 1008
    assert call.conversation.is_lost


async def test_a_voice_webhook_does_not_bring_a_lost_line_back(autojump_clock, calls, talking):
    _, media = talking
    await lose(media)

    assert await calls.answer("CA1", NUMBER, AGENT) == EndCall()


async def test_a_call_that_has_ended_leaves_nothing_behind(autojump_clock, calls, talking, nursery):
    call, media = talking
    await lose(media)
    await calls.resume("CA1", AGENT)
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()
    await wait_all_tasks_blocked()

    assert (calls.tickets._tickets, calls.tickets._again) == ({}, {})
