"""How a call ends when something goes wrong at the same time, and what is left of it."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.carrier import CallStatus, DigitPressed, MarkReached, SendMark, StatusUpdate
from server.dialogue.endings import EndReason
from server.errors import ModelError, StreamEnded
from server.model import AgentTranscript, GenerationComplete
from tests.support.calls_on_a_rig import SECOND_PCM, Rig

LOST = ModelError("gone", code=1006, reason="", retryable=True)
FRAME = bytes(range(160))


@pytest.fixture
async def ringing(nursery):
    rig = Rig(agent=Agent(greeting=""))  # nobody minds that the model says nothing
    nursery.start_soon(rig.call.run)
    await wait_all_tasks_blocked()
    yield rig
    rig.call.end(EndReason.HUNG_UP)


async def test_a_phone_that_was_answered_without_a_stream_is_the_carriers_failure(
    autojump_clock, ringing
):
    ringing.status(CallStatus.IN_PROGRESS)
    await ringing.call.finished.wait()

    assert ringing.call.end_reason is EndReason.CARRIER_FAILED
    assert ringing.call.record().detail == "it was answered, but its stream never came"


async def test_a_phone_that_may_still_ring_is_told_to_stop(autojump_clock, ringing):
    ringing.status(CallStatus.RINGING)
    await ringing.call.finished.wait()

    assert ringing.call.end_reason is EndReason.NO_ANSWER
    assert ringing.carrier.hung_up == ["CA1"]


async def test_a_stream_that_comes_after_the_end_is_not_kept_waiting(autojump_clock, ringing):
    ringing.call.end(EndReason.HUNG_UP)
    await ringing.call.finished.wait()

    with trio.fail_after(60):
        await ringing.call.serve(ringing.media, ringing.media.start())
    assert ringing.noted.count("answered") == 0


async def test_whoever_serves_the_stream_is_let_go_when_the_call_has_ended(
    autojump_clock, ringing, nursery
):
    with trio.fail_after(60):
        async with trio.open_nursery() as handlers:
            handlers.start_soon(ringing.call.serve, ringing.media, ringing.media.start())
            await wait_all_tasks_blocked()
            ringing.call.end(EndReason.HUNG_UP)

    assert ringing.call.is_over


async def test_a_socket_that_is_torn_down_is_a_lost_line(autojump_clock, ringing):
    began = trio.current_time()
    with trio.move_on_after(1.0):
        await ringing.call.serve(ringing.media, ringing.media.start())
    await ringing.call.finished.wait()

    assert ringing.call.end_reason is EndReason.CALLER_GONE
    assert ringing.call.record().detail == "the media socket was torn down"
    assert trio.current_time() - began == pytest.approx(1.0 + 5.0)


async def test_what_comes_after_the_carriers_last_word_is_waited_for_but_not_for_ever(
    autojump_clock, talking
):
    began = trio.current_time()
    talking.status(CallStatus.COMPLETED, 3)
    await wait_all_tasks_blocked()
    assert not talking.call.is_over

    await talking.call.finished.wait()
    assert talking.call.end_reason is EndReason.CALLER_HUNG_UP
    assert trio.current_time() - began == pytest.approx(3.0)


@pytest.mark.parametrize(
    "sign",
    [None, MarkReached("0:1000", 0.0), DigitPressed("1"), MarkReached("nobody's", 0.0)],
    ids=str,
)
async def test_a_stream_that_is_silent_is_given_up_and_only_audio_is_a_sign_of_life(
    autojump_clock, talking, sign
):
    for _ in range(3):
        await trio.sleep(4.0)
        talking.media.say(FRAME)
    spoke_at = trio.current_time()
    if sign is not None:
        await trio.sleep(4.0)
        talking.media.event(sign)
    await talking.call.finished.wait()

    lost_s = next(
        at for at, what, _ in talking.call.conversation.notes.timeline if what == "line lost"
    )
    assert talking.call.record().detail == "no audio from the carrier"
    assert talking.call.conversation.notes.began_at + lost_s - spoke_at == pytest.approx(5.0)


async def test_a_model_that_is_lost_during_the_goodbye_is_why_the_call_ends_and_the_caller_is_told(
    autojump_clock, talking
):
    talking.call.farewell.begin(EndReason.COST_CAP)
    await wait_all_tasks_blocked()
    talking.session.event(LOST)
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.MODEL_LOST
    assert len(talking.carrier.said) == 1


async def test_what_was_heard_of_the_last_turn_is_in_the_record(autojump_clock, talking):
    talking.session.event(AgentTranscript("one two three four five six seven eight nine ten", 1))
    talking.audio(SECOND_PCM * 10, turn=1)
    talking.session.event(GenerationComplete(1))
    await trio.sleep(4.0)
    talking.media.hang_up()
    await talking.call.finished.wait()
    (turn,) = talking.call.record().as_dict()["transcript"]

    assert turn["heard_s"] == pytest.approx(4.0, abs=0.05)
    assert turn["text"].startswith("one two three")
    assert "ten" not in turn["text"]


@pytest.mark.parametrize("is_complete", [False, True])
async def test_words_of_which_no_audio_came_before_the_end_are_in_the_record_as_unheard(
    autojump_clock, talking, is_complete
):
    talking.audio(SECOND_PCM, turn=1)
    talking.session.event(AgentTranscript("Good morning.", 1))
    talking.session.event(GenerationComplete(1))
    await trio.sleep(2.0)
    talking.session.event(AgentTranscript("One moment, please.", 2))
    if is_complete:
        talking.session.event(GenerationComplete(2))
    await trio.sleep(0.5)
    talking.media.hang_up()
    await talking.call.finished.wait()
    heard, ahead = talking.call.record().as_dict()["transcript"]

    assert (heard["text"], heard["cut"]) == ("Good morning.", False)
    assert (ahead["text"], ahead["heard_s"], ahead["cut"]) == ("", 0.0, True)
    assert ahead["unheard"] == "One moment, please."


async def test_what_is_being_heard_is_in_the_record_while_the_call_lasts(autojump_clock, talking):
    talking.audio(SECOND_PCM * 10, turn=1)
    talking.session.event(AgentTranscript("one two three four", 1))
    await trio.sleep(2.0)
    (turn,) = talking.call.record().as_dict()["transcript"]

    assert turn["heard_s"] == pytest.approx(2.0, abs=0.05)


async def test_a_line_that_takes_nothing_more_is_written_to_no_more(autojump_clock, talking):
    refused = []

    def send(command: object) -> None:
        refused.append(command)
        raise StreamEnded("closed")

    talking.media.send = send
    talking.audio(SECOND_PCM, turn=1)
    talking.audio(SECOND_PCM, turn=1)
    await wait_all_tasks_blocked()

    assert len(refused) == 1
    assert talking.call.end_reason is None  # whoever hears the line says what its end means


async def test_a_recorded_greeting_is_heard_out_without_the_model(nursery, autojump_clock):
    greeting = bytes([0x10, 0x90]) * 4_000
    rig = Rig(agent=Agent(greeting_audio=greeting, greeting_text="Good morning."))
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    await trio.sleep(1.0)
    marks = [command for command in rig.media.commands if isinstance(command, SendMark)]
    rig.media.echo_marks()
    await wait_all_tasks_blocked()
    (turn,) = rig.call.record().as_dict()["transcript"]
    rig.call.end(EndReason.HUNG_UP)

    assert rig.media.payload == greeting
    assert marks
    assert rig.call.conversation.playout.all_heard
    assert (turn["text"], turn["heard_s"], turn["cut"]) == ("Good morning.", 1.0, False)


async def test_a_status_that_comes_twice_is_told_once_and_the_last_word_has_the_minutes(
    autojump_clock, talking
):
    for _ in range(2):
        talking.status(CallStatus.IN_PROGRESS, 2)
    told_at = talking.call.progress.told_at
    await trio.sleep(1.0)
    talking.call.update_status(StatusUpdate("CA1", CallStatus.IN_PROGRESS, None, {"asked": "yes"}))

    assert talking.noted.count("in-progress") == 1
    assert talking.call.progress.told_at == told_at  # it was asked, and has not reported
    assert told_at is not None


@pytest.mark.parametrize(
    ("is_answered", "is_unknown", "reason"),
    [
        (False, True, EndReason.FAILED),
        (False, False, EndReason.CALLER_HUNG_UP),  # the carrier knows
        (True, True, EndReason.CALLER_HUNG_UP),
    ],
)
async def test_a_phone_that_the_carrier_knows_nothing_of_any_more_has_hung_up_if_it_was_answered(
    autojump_clock, ringing, is_answered, is_unknown, reason
):
    ringing.status(CallStatus.RINGING)
    if is_answered:
        ringing.status(CallStatus.IN_PROGRESS, 2)
    over = StatusUpdate("CA1", CallStatus.COMPLETED, None, {"asked": "yes"}, is_unknown=is_unknown)
    ringing.call.update_status(over)
    await ringing.call.finished.wait()

    assert ringing.call.end_reason is reason


async def test_what_the_model_says_of_a_failure_is_in_the_record_and_not_in_the_log(
    autojump_clock, talking
):
    said = "the caller's name is Gwendolyn"
    with structlog.testing.capture_logs() as logged:
        talking.session.event(
            ModelError(said, code=1007, reason=said, retryable=False, loggable="closed with 1007")
        )
        await talking.call.finished.wait()

    assert said in talking.call.record().detail
    assert "Gwendolyn" not in str(logged)
    assert [entry["event"] for entry in logged if entry["log_level"] == "warning"] == [
        "call failed"
    ]


async def test_what_was_made_before_the_answer_is_not_measured_as_late(
    autojump_clock, ringing, nursery
):
    ringing.audio(SECOND_PCM, turn=1)
    await trio.sleep(7.0)
    nursery.start_soon(ringing.call.serve, ringing.media, ringing.media.start())
    await wait_all_tasks_blocked()
    before = ringing.call.conversation.notes.timings.agent_chunks.count
    await trio.sleep(0.1)
    ringing.audio(SECOND_PCM, turn=1)
    await wait_all_tasks_blocked()

    assert before == 0
    assert ringing.call.conversation.notes.timings.agent_chunks.count > 0
