"""One call on the mock clock, its peers replaced by memory channels."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import codec
from codec.line import SILENCE
from server.agent import phrases
from server.agent.agent import Agent
from server.call.farewell import PAUSE_S
from server.call.report.costs import Prices
from server.carrier import CallStatus, Clear, DigitPressed, SendAudio, StatusUpdate, StreamStopped
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.errors import CarrierProtocolError, ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.model import (
    AgentTranscript,
    CallerTranscript,
    GenerationComplete,
    Interrupted,
    ToolCall,
    ToolCallsRequested,
    TurnComplete,
    Usage,
)
from tests.support.calls_on_a_rig import SECOND_PCM, Rig
from tests.support.fakes import MemoryModel

FRAME = bytes(range(160))


@pytest.fixture
async def ringing(nursery):
    rig = Rig()
    nursery.start_soon(rig.call.run)
    await wait_all_tasks_blocked()
    yield rig
    rig.call.end(EndReason.HUNG_UP)


async def test_the_greeting_is_made_while_it_rings_and_sent_at_the_answer(
    autojump_clock, ringing, nursery
):
    ringing.audio(SECOND_PCM, turn=1)
    await trio.sleep(7.0)

    assert [text for _, text in ringing.session.texts] == [Agent().greeting]
    assert ringing.media.sent == []

    answered_at = trio.current_time()
    nursery.start_soon(ringing.call.serve, ringing.media, ringing.media.start())
    await wait_all_tasks_blocked()

    sent_at, first = ringing.media.sent[0]
    assert isinstance(first, SendAudio)
    assert sent_at == answered_at
    assert ringing.call.conversation.notes.timings.answer_to_first_audio_s == 0.0


async def test_without_prewarm_the_session_waits_for_the_answer(nursery, autojump_clock):
    rig = Rig(prewarm=False)
    nursery.start_soon(rig.call.run)
    await wait_all_tasks_blocked()
    assert not rig.model.session.connects

    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    await wait_all_tasks_blocked()
    assert rig.model.session.connects
    rig.call.end(EndReason.HUNG_UP)


async def test_the_greeting_is_asked_for_once_more_when_nothing_is_heard(autojump_clock, ringing):
    await trio.sleep(10.0)

    times = [at for at, _ in ringing.session.texts]
    assert len(times) == 2
    assert times[1] - times[0] == pytest.approx(3.0)


async def test_an_agent_without_a_greeting_waits_for_the_caller(nursery, autojump_clock):
    rig = Rig(agent=Agent(greeting=""))
    nursery.start_soon(rig.call.run)
    await trio.sleep(10.0)

    assert rig.session.texts == []
    rig.call.end(EndReason.HUNG_UP)


async def test_every_caller_sample_reaches_the_model_once_and_in_order(autojump_clock, talking):
    frames = [bytes([n]) * 160 for n in range(200)]
    for frame in frames:
        talking.media.say(frame)
        if frame[0] % 7 == 0:
            await trio.sleep(0.02)
    await wait_all_tasks_blocked()

    assert bytes(talking.session.heard) == codec.MulawDecoder(16_000).decode(b"".join(frames))


async def test_caller_audio_waits_for_a_session_that_is_still_opening(nursery, autojump_clock):
    rig = Rig(model=MemoryModel(connect_s=4.0))
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    for _ in range(250):
        rig.media.say(FRAME)
        await trio.sleep(0.02)

    assert len(rig.session.heard) == 250 * 640
    assert rig.call.conversation.session.lost_s == 0
    rig.call.end(EndReason.HUNG_UP)


async def test_agent_audio_reaches_the_caller_encoded(autojump_clock, talking):
    talking.audio(SECOND_PCM, turn=1)
    talking.session.event(GenerationComplete(1))
    await wait_all_tasks_blocked()

    encoder = codec.MulawEncoder(24_000)
    assert talking.media.payload == encoder.encode(SECOND_PCM) + encoder.flush()


async def test_barge_in_stops_the_agent_dead(autojump_clock, talking):
    talking.audio(SECOND_PCM * 5, turn=1)
    await trio.sleep(1.5)
    talking.session.event(Interrupted(1, trio.current_time()))
    talking.audio(SECOND_PCM, turn=1)  # late audio of the turn that was cut
    await wait_all_tasks_blocked()

    assert talking.media.audio_after_clear() == b""
    assert talking.media.commands.count(Clear()) == 1
    assert talking.call.record().as_dict()["agent_heard_s"] == pytest.approx(1.5, abs=0.01)

    talking.session.event(TurnComplete(1, None))
    talking.audio(SECOND_PCM, turn=2)
    await wait_all_tasks_blocked()
    assert len(talking.media.audio_after_clear()) == pytest.approx(8_000, abs=40)


async def test_the_transcript_is_cut_where_the_caller_barged_in(autojump_clock, talking):
    talking.session.event(AgentTranscript("one two three four five six seven eight nine ten", 1))
    talking.audio(SECOND_PCM * 10, turn=1)
    await trio.sleep(4.0)
    talking.session.event(Interrupted(1, trio.current_time()))
    talking.session.event(CallerTranscript("wait"))
    await wait_all_tasks_blocked()

    agent, caller = talking.call.record().as_dict()["transcript"]
    assert agent["cut"]
    assert agent["heard_s"] == pytest.approx(4.0, abs=0.01)
    assert agent["text"] == "one two three four"
    assert caller["text"] == "wait"


@pytest.mark.parametrize("second_s", [3, 0])
async def test_all_turns_that_are_cut_at_once_are_told_as_they_were_heard(
    autojump_clock, talking, second_s
):
    told = []
    notes = talking.call.conversation.notes
    notes.on_heard = lambda turn: told.extend(notes.transcript.settled(turn, words=True))
    talking.session.event(AgentTranscript("one two three four", 1))
    talking.audio(SECOND_PCM * 2, turn=1)
    talking.session.event(GenerationComplete(1))
    talking.session.event(TurnComplete(1, None))
    talking.session.event(AgentTranscript("five six seven", 2))
    if second_s:
        talking.audio(SECOND_PCM * second_s, turn=2)
    await trio.sleep(1.0)
    talking.session.event(Interrupted(2, trio.current_time()))
    await wait_all_tasks_blocked()
    if not second_s:
        talking.audio(SECOND_PCM, turn=3)
        await wait_all_tasks_blocked()

    shown = talking.call.record().as_dict()["transcript"][:2]
    assert [(one["text"], one["cut"], one["heard_s"]) for one in shown] == [
        ("one two", True, pytest.approx(1.0, abs=0.01)),
        ("", True, 0.0),
    ]
    assert [turn for _, turn in told] == shown[: len(told)]
    assert len(told) == (2 if second_s else 1)


async def test_stop_ends_the_call_and_closes_both_sides(autojump_clock, talking):
    talking.media.hang_up()
    await talking.call.finished.wait()

    assert talking.call.end_reason == "caller-hung-up"
    assert talking.session.closed
    assert talking.media.closed is not None
    assert talking.carrier.hung_up == []


async def test_a_socket_that_closes_without_stop_ends_the_call_if_no_other_comes(
    autojump_clock, talking
):
    before = trio.current_time()
    talking.media.event(StreamStopped(said=False))
    await talking.call.finished.wait()

    assert talking.call.end_reason == "caller-gone"
    assert talking.carrier.hung_up == ["CA1"]
    assert trio.current_time() - before == pytest.approx(5.0)


async def test_a_caller_who_left_is_noticed_by_the_silence_of_the_stream(autojump_clock, talking):
    before = trio.current_time()
    await talking.call.finished.wait()

    assert talking.call.end_reason == "caller-gone"
    assert trio.current_time() - before == pytest.approx(10.0)


@pytest.mark.parametrize("status", ["busy", "no-answer", "failed", "canceled"])
async def test_a_call_that_is_not_answered_ends_the_session(autojump_clock, ringing, status):
    ringing.status(CallStatus(status))
    await ringing.call.finished.wait()

    assert ringing.call.end_reason == status
    assert ringing.session.closed
    assert ringing.carrier.hung_up == []


async def test_a_ring_that_nobody_reports_on_ends_at_its_deadline(autojump_clock):
    rig = Rig(agent=Agent(greeting=""))
    await rig.call.run()

    assert rig.call.end_reason == "no-answer"


async def test_older_and_repeated_status_callbacks_change_nothing(autojump_clock, ringing):
    ringing.status(CallStatus.IN_PROGRESS, 2)
    ringing.status(CallStatus.RINGING, 1)
    ringing.status(CallStatus.IN_PROGRESS, 2)

    assert ringing.call.progress.status is CallStatus.IN_PROGRESS
    assert ringing.noted.count("in-progress") == 1
    assert "ringing" not in ringing.noted


async def test_a_final_status_without_a_number_still_counts(autojump_clock, ringing):
    ringing.status(CallStatus.IN_PROGRESS, 2)
    ringing.status(CallStatus.BUSY, 0)

    assert ringing.call.progress.status is CallStatus.BUSY


async def test_a_completed_callback_that_overtakes_the_stream_loses_no_audio(
    autojump_clock, talking
):
    talking.status(CallStatus.COMPLETED, 3)
    await wait_all_tasks_blocked()
    assert not talking.call.is_over
    talking.media.say(FRAME)
    talking.media.hang_up()
    await talking.call.finished.wait()

    assert len(talking.session.heard) == 640
    assert talking.call.end_reason == "caller-hung-up"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ModelSetupRefused("no", code=1007, reason="bad", retryable=False), "model-unavailable"),
        (ModelQuotaExceeded("no", code=1011, reason="quota", retryable=False), "model-quota"),
    ],
)
async def test_a_model_that_cannot_be_opened_ends_the_call(autojump_clock, failure, reason):
    rig = Rig(model=MemoryModel(failure=failure))
    await rig.call.run()

    assert rig.call.end_reason == reason
    assert rig.carrier.hung_up == ["CA1"]


async def test_a_model_that_is_lost_in_mid_call_ends_it(autojump_clock, talking):
    talking.session.event(ModelError("gone", code=1006, reason="", retryable=True))
    await talking.call.finished.wait()

    assert talking.call.end_reason == "model-lost"
    assert [language for _, language in talking.carrier.said] == ["en-US"]
    assert talking.carrier.hung_up == []  # the carrier does that, when it has said sorry
    assert talking.media.closed is not None


async def test_a_broken_carrier_closes_the_stream_with_1008(autojump_clock, talking):
    talking.media.event(CarrierProtocolError("fifty malformed messages"))
    await talking.call.finished.wait()

    assert talking.call.end_reason == "carrier-protocol-error"
    assert talking.media.closed is not None
    assert talking.media.closed[0] == 1008


async def test_a_bug_of_ours_ends_one_call_only_and_is_logged(autojump_clock, talking, caplog):
    talking.session.event("not an event")
    talking.audio(b"odd", turn=1)
    await talking.call.finished.wait()

    assert talking.call.end_reason == "error"
    assert talking.media.closed is not None
    assert talking.media.closed[0] == 1011


async def test_hanging_up_tells_the_carrier_before_the_socket_is_closed(autojump_clock, talking):
    talking.call.end(EndReason.HUNG_UP)
    await talking.call.finished.wait()

    assert talking.carrier.hung_up == ["CA1"]


async def test_a_call_ends_at_its_maximum_duration(nursery, autojump_clock):
    # A greeting that never comes is waited for: nothing else is to end this call.
    rig = Rig(max_duration_s=30.0, patience=Patience(greeting_retry_s=60.0))
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    while not rig.call.is_over:
        rig.media.say(FRAME)
        await trio.sleep(0.5)

    assert rig.call.end_reason == "max-duration"
    assert rig.call.duration_s == pytest.approx(30.0)


async def test_every_tool_call_is_answered(autojump_clock, talking):
    talking.session.event(ToolCallsRequested((ToolCall("a", "x", {}), ToolCall("b", "y", {})), 1))
    await wait_all_tasks_blocked()

    assert [result.id for result in talking.session.results] == ["a", "b"]
    assert all("error" in result.response for result in talking.session.results)


async def test_the_line_is_cut_when_the_farewell_before_the_hang_up_has_been_heard(
    autojump_clock, talking
):
    talking.audio(SECOND_PCM * 2, turn=1)
    await wait_all_tasks_blocked()
    assert talking.call.hang_up_when_heard()
    assert not talking.call.hang_up_when_heard()
    talking.session.event(GenerationComplete(1))
    await trio.sleep(2.0)
    assert talking.call.end_reason is None

    talking.media.echo_marks()
    await talking.call.finished.wait()
    assert talking.call.end_reason == "agent-hung-up"
    assert talking.carrier.hung_up == ["CA1"]


async def test_the_line_is_cut_when_the_farewell_after_the_hang_up_has_been_heard(
    autojump_clock, talking
):
    talking.call.hang_up_when_heard()
    await trio.sleep(2.0)
    talking.audio(SECOND_PCM * 2, turn=1)
    talking.session.event(GenerationComplete(1))
    await trio.sleep(2.0)
    assert talking.call.end_reason is None

    before = trio.current_time()
    talking.media.echo_marks()
    await talking.call.finished.wait()
    assert talking.call.end_reason == "agent-hung-up"
    assert trio.current_time() == before


async def test_an_agent_that_says_one_moment_before_goodbye_is_heard_out(autojump_clock, talking):
    talking.audio(SECOND_PCM, turn=1)
    talking.session.event(GenerationComplete(1))
    await wait_all_tasks_blocked()
    talking.call.hang_up_when_heard()
    talking.media.echo_marks()
    await trio.sleep(1.0)
    talking.audio(SECOND_PCM, turn=2)
    await trio.sleep(2.0)
    assert talking.call.end_reason is None

    talking.session.event(GenerationComplete(2))
    await wait_all_tasks_blocked()
    talking.media.echo_marks()
    await wait_all_tasks_blocked()
    assert talking.call.end_reason == "agent-hung-up"


async def test_a_caller_who_speaks_over_the_farewell_is_answered_first(autojump_clock, talking):
    talking.audio(SECOND_PCM * 3, turn=1)
    await wait_all_tasks_blocked()
    talking.call.hang_up_when_heard()
    await trio.sleep(1.0)
    talking.session.event(Interrupted(1, trio.current_time()))
    talking.session.event(TurnComplete(1, None))
    await trio.sleep(1.0)
    talking.audio(SECOND_PCM, turn=2)
    talking.session.event(GenerationComplete(2))
    await wait_all_tasks_blocked()
    assert talking.call.end_reason is None

    talking.media.echo_marks()
    await wait_all_tasks_blocked()
    assert talking.call.end_reason == "agent-hung-up"


async def test_an_agent_that_hangs_up_and_says_nothing_is_cut_at_the_deadline(
    nursery, autojump_clock
):
    rig = Rig(farewell_timeout_s=4.0)
    await rig.begin(nursery)
    rig.call.hang_up_when_heard()
    await rig.call.finished.wait()

    assert rig.call.end_reason == "agent-hung-up"
    assert rig.call.duration_s == pytest.approx(4.0)


async def test_a_farewell_longer_than_its_timeout_is_heard_to_its_end(nursery, autojump_clock):
    rig = Rig(farewell_timeout_s=4.0, media_timeout_s=60.0)
    await rig.begin(nursery)
    rig.audio(SECOND_PCM * 12, turn=1)
    rig.session.event(GenerationComplete(1))
    rig.call.hang_up_when_heard()
    await trio.sleep(12.0)
    assert rig.call.end_reason is None

    rig.media.echo_marks()
    await rig.call.finished.wait()
    assert rig.call.end_reason == "agent-hung-up"
    assert rig.call.duration_s == pytest.approx(12.0 + PAUSE_S)


async def test_a_farewell_of_which_no_end_is_told_is_cut_after_it_must_have_been_heard(
    nursery, autojump_clock
):
    rig = Rig(farewell_timeout_s=4.0, media_timeout_s=60.0)
    await rig.begin(nursery)
    rig.audio(SECOND_PCM * 12, turn=1)
    rig.session.event(GenerationComplete(1))
    rig.call.hang_up_when_heard()
    await rig.call.finished.wait()

    assert rig.call.end_reason == "agent-hung-up"
    assert rig.call.duration_s == pytest.approx(16.0, abs=0.5)


async def test_an_answer_to_who_speaks_over_the_farewell_has_time_of_its_own(
    nursery, autojump_clock
):
    rig = Rig(farewell_timeout_s=4.0, media_timeout_s=60.0)
    await rig.begin(nursery)
    rig.audio(SECOND_PCM * 6, turn=1)
    rig.call.hang_up_when_heard()
    await trio.sleep(3.0)
    rig.session.event(Interrupted(1, trio.current_time()))
    rig.session.event(TurnComplete(1, None))
    await trio.sleep(3.0)
    rig.audio(SECOND_PCM * 6, turn=2)
    rig.session.event(GenerationComplete(2))
    await trio.sleep(6.0)
    assert rig.call.end_reason is None

    rig.media.echo_marks()
    await rig.call.finished.wait()
    assert rig.call.end_reason == "agent-hung-up"


async def test_keys_pressed_in_one_go_are_told_to_the_model_in_one_go(autojump_clock, talking):
    for digit in "123":
        talking.media.event(DigitPressed(digit))
        await trio.sleep(1.0)
    talking.media.say(SILENCE * 160)
    await trio.sleep(3.0)
    talking.media.event(DigitPressed("9"))
    await trio.sleep(1.6)

    told = [text for _, text in talking.session.texts if "keypad" in text]
    assert told == [phrases.keys_pressed("123"), phrases.keys_pressed("9")]


async def test_a_hash_key_ends_what_is_typed_in(autojump_clock, talking):
    for digit in "42#":
        talking.media.event(DigitPressed(digit))
    await wait_all_tasks_blocked()

    assert talking.session.texts[-1][1] == phrases.keys_pressed("42#")


async def test_keys_pressed_before_there_is_a_session_are_told_when_there_is(
    nursery, autojump_clock
):
    rig = Rig(model=MemoryModel(connect_s=4.0), media_timeout_s=60.0)
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    rig.media.event(DigitPressed("7"))
    await trio.sleep(6.0)

    assert "7" in rig.session.texts[-1][1]
    rig.call.end(EndReason.HUNG_UP)


async def test_a_call_that_has_to_end_says_goodbye_and_ends_when_that_was_heard(
    autojump_clock, talking
):
    talking.audio(SECOND_PCM, turn=1)
    await wait_all_tasks_blocked()
    talking.call.farewell.begin(EndReason.DRAINED)
    await wait_all_tasks_blocked()
    talking.session.event(GenerationComplete(1))  # what it was saying is not the goodbye
    await wait_all_tasks_blocked()
    talking.media.echo_marks()
    await wait_all_tasks_blocked()

    assert talking.session.texts[-1][1] == phrases.aside(Agent().farewell)
    assert not talking.call.is_over

    talking.audio(SECOND_PCM, turn=2)
    talking.session.event(GenerationComplete(2))
    await trio.sleep(1.0)
    talking.media.echo_marks()
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.DRAINED
    assert talking.carrier.hung_up == ["CA1"]


async def test_a_goodbye_that_never_comes_is_waited_for_only_so_long(nursery, autojump_clock):
    rig = Rig(farewell_timeout_s=2.0)
    await rig.begin(nursery)
    began = trio.current_time()
    rig.call.farewell.begin(EndReason.DRAINED)
    rig.call.farewell.begin(EndReason.HUNG_UP)
    await rig.call.finished.wait()

    assert trio.current_time() - began == pytest.approx(2.0)
    assert rig.call.end_reason is EndReason.DRAINED


async def test_a_call_that_still_rings_has_nobody_to_say_goodbye_to(autojump_clock, ringing):
    began = trio.current_time()
    ringing.call.farewell.begin(EndReason.DRAINED)
    await ringing.call.finished.wait()

    assert trio.current_time() == began
    assert not any(Agent().farewell in text for _, text in ringing.session.texts)


def rig_of_two_minutes() -> Rig:
    """A call whose third minute would cost more than it may."""
    return Rig(
        prices=Prices(carrier_minute_usd=0.1),
        max_cost_usd=0.25,
        farewell_timeout_s=10.0,
        media_timeout_s=1_000.0,
        agent=Agent(greeting=""),
        patience=Patience(silence_timeout_s=0.0),
    )


async def test_a_call_says_goodbye_before_it_costs_more_than_it_may(nursery, autojump_clock):
    rig = rig_of_two_minutes()
    nursery.start_soon(rig.call.run)
    await trio.sleep(100.0)  # ringing costs nothing
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    await rig.call.finished.wait()
    record = rig.call.record().as_dict()

    assert record["reason"] == "cost-cap"
    assert rig.session.texts[-1][1] == phrases.aside(Agent().farewell)
    # The third minute would have been one too many.
    assert 105.0 < record["duration_s"] <= 120.0
    assert record["cost"]["billed_minutes"] == 2
    assert record["cost"]["known_usd"] == 0.2


@pytest.mark.parametrize("interrupts", [True, False])
async def test_a_goodbye_of_the_agents_own_takes_a_call_no_further_than_it_may_cost(
    nursery, autojump_clock, interrupts
):
    rig = rig_of_two_minutes()
    await rig.begin(nursery)
    await trio.sleep(80.0)
    rig.call.hang_up_when_heard()
    turn = 0
    while rig.call.end_reason is None and turn < 100:
        turn += 1
        rig.audio(SECOND_PCM * 12, turn)
        await trio.sleep(3.0 if interrupts else 12.0)
        if interrupts:
            rig.session.event(Interrupted(turn, trio.current_time()))
            rig.session.event(TurnComplete(turn, None))
    await rig.call.finished.wait()
    record = rig.call.record().as_dict()

    assert record["reason"] == "cost-cap"
    assert 105.0 < record["duration_s"] <= 120.0
    assert record["cost"]["known_usd"] == 0.2


async def test_tokens_are_in_the_record_and_the_carriers_last_word_counts(autojump_clock, talking):
    talking.session.event(Usage({"AUDIO": 1_000}, {"AUDIO": 100}, 1_100, 1))
    talking.session.event(Usage({"AUDIO": 1_000}, {"AUDIO": 250}, 1_250, 1))
    await wait_all_tasks_blocked()
    talking.media.hang_up()
    await talking.call.finished.wait()
    talking.call.update_status(StatusUpdate("CA1", CallStatus.COMPLETED, 3, {"duration_s": "61"}))
    record = talking.call.record().as_dict()

    assert record["tokens"] == {"prompt": {"AUDIO": 1_000}, "response": {"AUDIO": 250}, "other": 0}
    assert record["cost"]["billed_minutes"] == 2
    assert record["status"] == "completed"
    assert talking.call.progress.settled.is_set()
