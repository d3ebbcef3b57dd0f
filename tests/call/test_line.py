"""A line that is lost in the middle of a call, and comes back, or does not."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio
from prometheus_client import CollectorRegistry
from trio.testing import wait_all_tasks_blocked

from codec.line import BYTES_PER_S, FRAME_BYTES, FRAME_S, SILENCE
from server.agent.agent import Agent
from server.agent.builtin import send_dtmf
from server.agent.tool import tool
from server.call.conversation import Stage
from server.call.watch import NUDGES
from server.carrier import AnsweredBy as By
from server.carrier import (
    CallStatus,
    Clear,
    DigitPressed,
    MachineVerdict,
    SendAudio,
    StreamStopped,
)
from server.carrier.twilio.stream import ABILITIES
from server.dialogue.ear import BargeInMode
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Awaited
from server.dialogue.turns import CONNECTION_LOST, Patience
from server.dialogue.voicemail import VoicemailPolicy
from server.errors import CarrierError
from server.hooks.turns import Kind, shared_turns
from server.metrics import VoiceMetrics
from server.model import (
    AgentAudio,
    AgentTranscript,
    GenerationComplete,
    Interrupted,
    Reconnected,
    ToolCall,
    ToolCallsRequested,
    TurnComplete,
    Way,
)
from server.records.recording import Recorder
from server.simulators.phone import load_speech
from server.voice.judge import Judge
from tests.support.calls_on_a_rig import SECOND_PCM, Rig
from tests.support.fakes import MemoryMedia
from tests.voice.test_judge import Loudness

QUIET = Patience(silence_timeout_s=0.0)
SOUND = b"\x10" * FRAME_BYTES


class Line(Rig):
    """A call on the line, which can be lost and come back."""

    def __init__(self, nursery: trio.Nursery, **options) -> None:
        super().__init__(**{"agent": Agent(greeting=""), "media_timeout_s": 600.0} | options)
        self.nursery = nursery

    async def answer(self) -> None:
        await self.begin(self.nursery)

    def connect(self) -> None:
        self.nursery.start_soon(self.call.serve, self.media, self.media.start())

    async def lose(self) -> None:
        """Break the stream off, which has brought frames to its end."""
        self.media.say(SILENCE * FRAME_BYTES)
        self.media.event(StreamStopped(said=False))
        await wait_all_tasks_blocked()

    async def come_back(self, *, joins_s: float = 0.0, is_joined: bool = True) -> None:
        self.media = MemoryMedia()
        self.media.joins_s, self.media.is_joined = joins_s, is_joined
        self.connect()
        await wait_all_tasks_blocked()

    def says(self, seconds: int, turn: int, text: str = "") -> None:
        if text:
            self.session.event(AgentTranscript(text, turn))
        self.session.event(AgentAudio(SECOND_PCM * seconds, turn, trio.current_time()))
        self.session.event(GenerationComplete(turn))
        self.session.event(TurnComplete(turn, None))

    async def loses_model(self, heard_s: int, turn: int) -> None:
        """So much of a turn comes and is heard, and no more of it will come."""
        self.session.event(AgentAudio(SECOND_PCM * heard_s, turn, trio.current_time()))
        self.session.event(TurnComplete(turn, CONNECTION_LOST))
        await trio.sleep(heard_s + 0.1)
        self.media.echo_marks()
        await wait_all_tasks_blocked()

    async def hears(self, payload: bytes) -> None:
        for at in range(0, len(payload), FRAME_BYTES):
            self.media.say(payload[at : at + FRAME_BYTES])
            await trio.sleep(FRAME_S)

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.session.texts]

    def facts(self, what: str) -> list[dict]:
        return [facts for _, noted, facts in self.call.conversation.notes.timeline if noted == what]

    def counted(self, event: str) -> float | None:
        registry = self.call.conversation.metrics.registry
        return registry.get_sample_value("offhook_lines_total", {"event": event})


@pytest.fixture
async def line(nursery):
    line = Line(nursery, patience=QUIET)
    await line.answer()
    yield line
    line.call.end(EndReason.HUNG_UP)


async def test_a_line_that_was_lost_in_silence_comes_back_without_a_word(autojump_clock, line):
    await line.lose()
    was_lost = line.call.conversation.is_lost
    had_trouble = line.call.record(full=False).had_trouble
    await trio.sleep(0.3)
    await line.come_back()
    line.media.say(SOUND)
    await trio.sleep(1.0)
    line.media.hang_up()
    await line.call.finished.wait()

    assert was_lost
    assert not line.call.conversation.is_lost
    assert (had_trouble, line.call.record(full=False).had_trouble) == (False, True)
    assert line.facts("line back") == [{"gap_s": 0.3}]
    assert line.noted.count("answered") == 1
    assert (line.texts, line.session.hints) == ([], [])
    assert len(line.model.sessions) == 1
    assert len(line.session.heard) == 2 * 4 * FRAME_BYTES  # the last before, the first after
    assert line.call.end_reason is EndReason.CALLER_HUNG_UP
    assert (line.counted("lost"), line.counted("back"), line.counted("not-back")) == (1, 1, 0)


async def test_an_interruption_that_both_notice_is_told_to_the_model_as_a_note(
    autojump_clock, line
):
    await line.lose()
    await trio.sleep(3.0)
    await line.come_back()

    assert line.texts == []
    (hint,) = line.session.hints
    assert "interrupted for 3 seconds" in hint


async def test_what_the_agent_had_said_into_a_lost_line_is_not_heard_and_it_goes_on(
    autojump_clock, line
):
    line.says(10, turn=1, text="one two three four five six seven eight nine ten")
    await trio.sleep(3.0)
    await line.lose()
    line.audio(SECOND_PCM, turn=1)
    await trio.sleep(0.5)
    await line.come_back()
    (text,) = line.texts
    (turn,) = line.call.record().as_dict()["transcript"]
    resumed = list(line.media.commands)
    line.says(2, turn=2)
    await wait_all_tasks_blocked()

    assert "one two" in text
    assert "ten" not in text.partition('"')[2].partition('"')[0]
    assert "without greeting" in text
    assert (turn["cut"], turn["heard_s"]) == (True, pytest.approx(3.0, abs=0.05))
    assert resumed == []
    assert len(line.media.payload) == pytest.approx(2 * BYTES_PER_S, abs=FRAME_BYTES)


async def test_an_answer_whose_rest_was_awaited_when_the_line_was_lost_is_gone_on_with(
    autojump_clock, line
):
    line.session.event(AgentTranscript("one two three", 1))
    line.audio(SECOND_PCM * 3, turn=1)
    await trio.sleep(3.0)
    line.media.echo_marks()
    await trio.sleep(0.3)
    await line.lose()
    line.says(5, turn=1, text=" four five six seven eight")
    await trio.sleep(0.5)
    await line.come_back()

    (text,) = line.texts
    (turn,) = line.call.record().as_dict()["transcript"]
    assert "one two three" in text
    assert "five" not in text
    assert (turn["cut"], turn["heard_s"]) == (True, pytest.approx(3.0, abs=0.05))
    assert line.call.conversation.playout.all_heard


@tool
async def look_up() -> str:
    """Take a second."""
    await trio.sleep(1.0)
    return "found"


LOST_MODEL = Reconnected("closed-1006", Way.RESUME, "a model", gap_s=0.3, lost_s=0.0)


@pytest.mark.parametrize("what", ["a function was answered", "the model was lost, too"])
async def test_what_the_agent_says_anew_while_the_line_is_lost_is_heard_once(
    autojump_clock, nursery, what
):
    line = Line(nursery, patience=QUIET, agent=Agent(greeting="", tools=(look_up,)))
    await line.answer()
    line.session.event(AgentTranscript("one two three four five", 1))
    line.audio(SECOND_PCM * 5, turn=1)
    await trio.sleep(3.0)
    if what == "a function was answered":
        line.session.event(ToolCallsRequested((ToolCall("1", "look_up", {}),), 1))
        line.session.event(TurnComplete(1, None))
        await line.lose()
        await trio.sleep(1.5)
    else:
        await line.lose()
        line.session.event(TurnComplete(1, CONNECTION_LOST))
        line.session.event(LOST_MODEL)
        await trio.sleep(1.5)
    line.says(2, turn=2, text="six seven")
    await trio.sleep(1.0)
    await line.come_back()
    await trio.sleep(8.0)
    line.media.echo_marks()
    await wait_all_tasks_blocked()

    (hint,) = line.session.hints
    cut, whole = line.call.record().as_dict()["transcript"]
    assert line.texts == []
    assert "interrupted for 2 seconds" in hint
    assert 'when it began the caller heard only this: "one two three" They hear' in hint
    assert (cut["cut"], cut["heard_s"]) == (True, pytest.approx(3.0, abs=0.05))
    assert (whole["cut"], whole["heard_s"]) == (False, pytest.approx(2.0, abs=0.05))
    assert len(line.media.payload) == pytest.approx(2 * BYTES_PER_S, abs=FRAME_BYTES)
    line.call.end(EndReason.HUNG_UP)


@pytest.mark.parametrize("gap_s", [0.3, 3.0])
async def test_a_model_that_goes_on_knows_what_was_lost_of_the_turn_before(
    autojump_clock, line, gap_s
):
    line.says(10, turn=1, text="one two three four five six seven eight nine ten")
    await trio.sleep(2.0)
    await line.lose()
    line.says(1, turn=2, text="Saved.")
    await trio.sleep(gap_s)
    await line.come_back()
    await trio.sleep(8.0)

    (hint,) = line.session.hints
    assert line.texts == []
    assert 'when it began the caller heard only this: "one two" They hear' in hint
    assert len(line.media.payload) == pytest.approx(BYTES_PER_S, abs=FRAME_BYTES)


async def test_a_short_gap_in_which_a_new_turn_came_is_not_told_where_nothing_was_missed(
    autojump_clock, line
):
    line.says(2, turn=1, text="one two")
    await trio.sleep(1.95)
    await line.lose()
    line.says(1, turn=2, text="three")
    await trio.sleep(0.3)
    await line.come_back()
    await trio.sleep(3.0)

    assert (line.texts, line.session.hints) == ([], [])
    assert len(line.media.payload) == pytest.approx(BYTES_PER_S, abs=FRAME_BYTES)


async def test_a_newer_turn_that_nobody_can_hear_is_not_the_rest_of_what_was_lost(
    autojump_clock, line
):
    line.says(5, turn=1, text="one two three four five")
    await trio.sleep(3.0)
    await line.lose()
    line.session.event(AgentAudio(bytes(len(SECOND_PCM)), 2, trio.current_time()))
    line.session.event(GenerationComplete(2))
    line.session.event(TurnComplete(2, None))
    await trio.sleep(0.5)
    await line.come_back()

    (text,) = line.texts
    assert 'what you said last the caller heard only this: "one two three"' in text
    assert line.session.hints == []


async def test_a_newer_turn_is_the_rest_of_what_was_lost_though_silence_comes_after_it(
    autojump_clock, line
):
    line.says(5, turn=1, text="one two three four five")
    await trio.sleep(3.0)
    await line.lose()
    line.says(1, turn=2, text="six")
    line.session.event(AgentAudio(bytes(len(SECOND_PCM)), 3, trio.current_time()))
    line.session.event(TurnComplete(3, None))
    await trio.sleep(0.5)
    await line.come_back()

    assert line.texts == []
    assert len(line.session.hints) == 1


async def test_the_rest_of_a_turn_is_asked_for_where_nobody_will_hear_the_newer_one(
    autojump_clock, line
):
    line.session.event(AgentTranscript("one two three four five", 1))
    line.audio(SECOND_PCM * 5, turn=1)
    await trio.sleep(3.0)
    await line.lose()
    line.session.event(TurnComplete(1, None))
    line.audio(SECOND_PCM, turn=2)
    line.session.event(Interrupted(2, trio.current_time()))
    await trio.sleep(0.5)
    await line.come_back()

    (text,) = line.texts
    assert "one two three" in text
    assert line.media.payload == b""


async def test_a_caller_who_interrupts_between_two_parts_of_an_answer_cuts_it(autojump_clock, line):
    line.audio(SECOND_PCM * 3, turn=1)
    await trio.sleep(3.0)
    line.media.echo_marks()
    await trio.sleep(0.3)
    line.session.event(Interrupted(1, trio.current_time()))
    line.says(5, turn=1)
    await wait_all_tasks_blocked()

    assert line.noted.count("barge-in") == 1
    assert Clear() not in line.media.commands
    assert len(line.media.payload) == pytest.approx(3 * BYTES_PER_S, abs=FRAME_BYTES)
    assert line.call.conversation.playout.all_heard


async def test_a_clear_is_timed_from_its_own_interruption(autojump_clock, line):
    line.audio(SECOND_PCM, turn=1)
    await trio.sleep(1.0)
    line.media.echo_marks()
    line.session.event(Interrupted(1, trio.current_time()))
    await trio.sleep(5.0)
    line.says(5, turn=2)
    await trio.sleep(1.0)
    line.session.event(Interrupted(2, trio.current_time()))
    await wait_all_tasks_blocked()

    timings = line.call.conversation.notes.timings.interrupt_to_clear
    assert Clear() in line.media.commands
    assert timings.as_dict()["max_ms"] == 0.0


async def test_what_waits_for_the_line_is_said_however_the_loss_met_the_loops(autojump_clock, line):
    said_s = []
    for turn in range(1, 21):
        line.call.conversation.unsent.set()  # playing looks for its line while hearing loses it
        await line.lose()
        line.says(1, turn)
        await line.come_back()
        said_s.append(round(len(line.media.payload) / BYTES_PER_S))
        await trio.sleep(1.0)
        line.media.echo_marks()

    assert said_s == [1] * 20


async def test_a_greeting_of_which_nothing_was_heard_is_said_again(autojump_clock, nursery):
    line = Line(nursery, patience=QUIET, agent=Agent(greeting="Greet them."))
    await line.answer()
    asked = len(line.texts)
    line.says(3, turn=1, text="Hello, this is the pharmacy.")
    await wait_all_tasks_blocked()
    await line.lose()
    await line.come_back()
    line.call.end(EndReason.HUNG_UP)

    assert asked == 1
    assert len(line.texts) == 2
    assert "Say it again" in line.texts[-1]


async def test_a_greeting_that_had_not_begun_waits_for_the_line(autojump_clock, nursery):
    line = Line(nursery, patience=QUIET, agent=Agent(greeting="Greet them."))
    await line.answer()
    await line.lose()
    line.says(2, turn=1)
    await trio.sleep(1.0)
    before = line.call.record().as_dict()["agent_heard_s"]
    await line.come_back()
    await trio.sleep(3.0)
    line.media.echo_marks()
    heard_s = line.call.record().as_dict()["agent_heard_s"]
    line.call.end(EndReason.HUNG_UP)

    assert before == 0.0
    assert len(line.texts) == 1
    assert heard_s == pytest.approx(2.0, abs=0.01)


async def test_the_last_moment_of_a_turn_is_nothing_to_be_said_again(autojump_clock, line):
    line.says(2, turn=1)
    await trio.sleep(1.9)
    await line.lose()
    await line.come_back()

    assert line.texts == []


async def test_a_caller_who_was_speaking_is_heard_out_and_then_answered(autojump_clock, nursery):
    line = Line(nursery, patience=replace(QUIET, reply_timeout_s=3.0))
    await line.answer()
    speech = load_speech("question")
    await line.hears(speech[: BYTES_PER_S // FRAME_BYTES * FRAME_BYTES])
    speaking = line.call.conversation.turns.caller_speaking
    await line.lose()
    await trio.sleep(4.0)
    in_gap = list(line.noted)
    await line.come_back()
    await line.hears(speech[BYTES_PER_S : 2 * BYTES_PER_S] + SILENCE * BYTES_PER_S)
    answered_in_time = not any(what.startswith("watchdog") for what in line.noted)
    await line.hears(SILENCE * 4 * BYTES_PER_S)
    line.call.end(EndReason.HUNG_UP)

    assert speaking
    assert not any(what.startswith("watchdog") for what in in_gap)
    assert answered_in_time
    assert "watchdog nudge" in line.noted  # they were owed an answer all the same
    assert len(line.session.hints) == 1


async def test_a_model_that_is_not_to_speak_yet_knows_what_was_missed_in_a_short_gap(
    autojump_clock, nursery
):
    line = Line(nursery, patience=QUIET, barge_in=BargeInMode.MODEL)
    await line.answer()
    line.says(20, turn=1, text=" ".join(f"word{number}" for number in range(20)))
    await trio.sleep(1.0)
    await line.hears(load_speech("question")[: BYTES_PER_S // FRAME_BYTES * FRAME_BYTES])
    speaking = line.call.conversation.turns.caller_speaking
    await line.lose()
    await trio.sleep(0.3)
    await line.come_back()

    (hint,) = line.session.hints
    assert speaking
    assert line.texts == []
    assert "interrupted for a moment" in hint
    assert "word1" in hint
    assert "word19" not in hint
    line.call.end(EndReason.HUNG_UP)


@tool
async def slow() -> str:
    """Take half a minute."""
    await trio.sleep(30.0)
    return "done"


async def test_a_model_that_waits_for_a_function_is_not_spoken_to(autojump_clock, nursery):
    line = Line(nursery, patience=QUIET, agent=Agent(greeting="", tools=(slow,)), tool_timeout_s=60)
    await line.answer()
    line.session.event(ToolCallsRequested((ToolCall("1", "slow", {}),), 1))
    line.says(3, turn=1)
    await trio.sleep(1.0)
    await line.lose()
    await trio.sleep(2.0)
    await line.come_back()

    await trio.sleep(30.0)
    line.call.end(EndReason.HUNG_UP)

    assert line.texts == []
    assert len(line.session.hints) == 1
    assert [result.response for result in line.session.results] == [{"output": "done"}]


async def test_nothing_is_expected_of_anybody_while_the_line_is_lost(autojump_clock, nursery):
    patience = Patience(silence_timeout_s=4.0, silence_prompts=2)
    line = Line(nursery, patience=patience, line_lost_timeout_s=60.0)
    await line.answer()
    await trio.sleep(3.0)
    await line.lose()
    await trio.sleep(50.0)
    in_gap = list(line.noted)
    await line.come_back()
    await trio.sleep(3.9)
    before = list(line.noted)
    await trio.sleep(0.2)
    line.call.end(EndReason.HUNG_UP)

    assert "caller silent" not in in_gap
    assert "caller silent" not in before
    assert line.noted.count("caller silent") == 1


async def test_keys_pressed_before_and_after_are_one_word(autojump_clock, line):
    line.media.event(DigitPressed("1"))
    await line.lose()
    await trio.sleep(0.3)
    await line.come_back()
    line.media.event(DigitPressed("2"))
    await trio.sleep(3.0)

    (text,) = line.texts
    assert "keys 1 2" in text


# ------------------------------------------------------------------------------------------
# The end of the waiting


async def test_nobody_who_comes_back_is_hung_up_on_at_the_carrier_too(autojump_clock, line):
    began = trio.current_time()
    await line.lose()
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_GONE
    assert trio.current_time() - began == pytest.approx(5.0)
    assert line.carrier.hung_up == ["CA1"]
    assert line.counted("not-back") == 1


@asynccontextmanager
async def requests_waiting():
    """Requests come faster than they have their turns here."""
    turns = shared_turns()
    turns._is_taken = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.take, Kind.ACT)
        try:
            yield
        finally:
            turns._give_on()


async def test_a_line_whose_request_waits_here_for_its_turn_is_waited_for(autojump_clock, line):
    await line.lose()
    async with requests_waiting():
        await trio.sleep(8.0)
        assert not line.call.finished.is_set()
        await line.come_back()
    await trio.sleep(30.0)

    assert not line.call.conversation.is_lost
    assert line.facts("line back") == [{"gap_s": 8.0}]


async def test_who_does_not_come_back_when_all_have_had_their_turn_is_waited_for_no_longer(
    autojump_clock, line
):
    began = trio.current_time()
    await line.lose()
    async with requests_waiting():
        await trio.sleep(8.0)
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_GONE
    assert trio.current_time() - began == pytest.approx(8.0 + 5.0)


async def test_a_line_is_not_waited_for_for_ever_while_requests_wait(autojump_clock, line):
    began = trio.current_time()
    await line.lose()
    async with requests_waiting():
        await line.call.finished.wait()

    assert trio.current_time() - began == pytest.approx(5.0 + 15.0)


@pytest.mark.parametrize("joins_s", [0.02, 3.0, 7.0, 15.0])
async def test_a_stream_that_is_here_is_waited_for_until_the_caller_hears_it(
    autojump_clock, line, joins_s
):
    await line.lose()
    await trio.sleep(4.0)
    await line.come_back(joins_s=joins_s)
    line.says(1, 1, "Hello?")
    await trio.sleep(joins_s - 0.01)
    sent_before = line.media.payload
    await trio.sleep(2.0)
    await line.hears(SOUND * 100)

    assert line.call.end_reason is None
    assert line.facts("line back") == [{"gap_s": 4.0 + joins_s}]
    assert sent_before == b""
    assert line.media.payload != b""


async def test_a_stream_that_the_caller_never_hears_is_not_waited_for_after_that(
    autojump_clock, line
):
    began = trio.current_time()
    await line.lose()
    await trio.sleep(4.0)
    await line.come_back(joins_s=3.0, is_joined=False)
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_GONE
    assert trio.current_time() - began == pytest.approx(4.0 + 3.0 + 5.0)


async def test_a_stream_is_not_waited_for_for_ever(autojump_clock, line):
    began = trio.current_time()
    await line.lose()
    await line.come_back(joins_s=100.0)
    await line.call.finished.wait()

    assert trio.current_time() - began == pytest.approx(5.0 + 15.0)


async def test_a_phone_is_answered_when_its_caller_hears_the_stream(autojump_clock, nursery):
    line = Line(nursery, patience=QUIET, agent=Agent(greeting="Greet the caller."))
    line.media.joins_s = 4.0
    nursery.start_soon(line.call.run)
    await wait_all_tasks_blocked()
    began = trio.current_time()
    line.connect()
    await trio.sleep(3.9)
    answered_before = line.call.conversation.answered_at
    await trio.sleep(0.2)

    assert answered_before is None
    assert line.call.conversation.answered_at == pytest.approx(began + 4.0)
    line.call.end(EndReason.HUNG_UP)
    await line.call.finished.wait()


async def test_a_stream_that_nobody_hears_answers_no_phone(autojump_clock, nursery):
    line = Line(nursery, patience=QUIET)
    line.media.joins_s, line.media.is_joined = 2.0, False
    nursery.start_soon(line.call.run)
    await wait_all_tasks_blocked()
    line.connect()
    await trio.sleep(5.0)
    answered_at = line.call.conversation.answered_at
    await line.come_back()

    assert answered_at is None
    assert line.call.conversation.answered_at == trio.current_time()
    line.call.end(EndReason.HUNG_UP)
    await line.call.finished.wait()


async def test_the_carriers_last_word_ends_the_waiting_at_once(autojump_clock, line):
    began = trio.current_time()
    await line.lose()
    line.status(CallStatus.COMPLETED, 9)
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_HUNG_UP
    assert trio.current_time() == began
    assert line.carrier.hung_up == []


async def test_a_stop_is_a_hang_up_and_nobody_waits(autojump_clock, line):
    line.media.hang_up()
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_HUNG_UP
    assert "line lost" not in line.noted


async def test_where_nobody_is_to_wait_the_call_ends_with_its_stream(autojump_clock, nursery):
    line = Line(nursery, patience=QUIET, line_lost_timeout_s=0.0)
    await line.answer()
    began = trio.current_time()
    await line.lose()
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_GONE
    assert trio.current_time() == began


async def test_a_carrier_that_gives_no_other_stream_ends_the_call_with_the_one(
    autojump_clock, nursery
):
    line = Line(nursery, patience=QUIET)
    line.media.abilities = replace(ABILITIES, comes_back=False)
    await line.answer()
    began = trio.current_time()
    await line.lose()
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_GONE
    assert trio.current_time() == began


async def test_a_line_may_be_lost_again(autojump_clock, line):
    for _ in range(3):
        await line.lose()
        await trio.sleep(4.0)
        await line.come_back()
    line.media.hang_up()
    await line.call.finished.wait()

    assert line.noted.count("line lost") == line.noted.count("line back") == 3
    assert line.call.end_reason is EndReason.CALLER_HUNG_UP


# ------------------------------------------------------------------------------------------
# Old streams and new ones


async def test_a_stream_that_fell_silent_is_closed_and_not_heard_if_it_comes_alive(
    autojump_clock, nursery
):
    line = Line(nursery, patience=QUIET, media_timeout_s=4.0)
    await line.answer()
    old = line.media
    line.says(10, turn=1, text="one two three four five six seven eight nine ten")
    await trio.sleep(1.0)
    old.say(SOUND)
    await trio.sleep(4.5)
    closed = old.closed
    await line.come_back()
    heard = len(line.session.heard)
    old.say(SOUND)
    old.hang_up()
    await wait_all_tasks_blocked()
    (turn,) = line.call.record().as_dict()["transcript"]
    ended = line.call.end_reason
    line.call.end(EndReason.HUNG_UP)

    assert closed is not None
    assert old.left
    assert len(line.session.heard) == heard
    assert ended is None
    # Nothing says that what was sent after its last sign of life was heard.
    assert turn["heard_s"] == pytest.approx(1.0, abs=0.05)


async def test_the_newest_stream_wins_while_the_old_one_seems_to_be_there(autojump_clock, line):
    old = line.media
    line.says(10, turn=1)
    await trio.sleep(2.0)
    await line.come_back()
    line.media.say(SOUND)
    old.say(SOUND)
    await wait_all_tasks_blocked()

    assert old.closed is not None
    assert line.media.closed is None
    assert len(line.session.heard) == 4 * FRAME_BYTES
    assert line.facts("line lost") == [{"detail": "another stream took its place"}]
    assert len(line.texts) == 1


async def test_of_many_streams_at_once_one_is_served(autojump_clock, line):
    others = [MemoryMedia() for _ in range(4)]
    for media in others:
        line.media = media
        line.connect()
    await wait_all_tasks_blocked()
    open_ones = [media for media in others if media.closed is None]
    open_ones[0].say(SOUND)
    await wait_all_tasks_blocked()

    assert len(open_ones) == 1
    assert len(line.session.heard) == 4 * FRAME_BYTES


async def test_the_gap_is_silence_in_the_recording(autojump_clock, line):
    recorder = Recorder("CA1", trio.current_time())
    line.call.conversation.passing.record(recorder, lambda reason: None)
    line.says(6, turn=1)
    await line.hears(SOUND * 50)
    await line.lose()
    await trio.sleep(1.0)
    await line.come_back()
    await line.hears(SOUND * 50)
    caller, agent = recorder.take(trio.current_time())

    assert len(caller) == len(agent) == pytest.approx(3 * BYTES_PER_S, abs=2 * FRAME_BYTES)
    assert set(caller[BYTES_PER_S + FRAME_BYTES : 2 * BYTES_PER_S - FRAME_BYTES]) == {SILENCE[0]}
    assert set(caller[2 * BYTES_PER_S + FRAME_BYTES : 3 * BYTES_PER_S - FRAME_BYTES]) == {SOUND[0]}
    assert set(agent[BYTES_PER_S + FRAME_BYTES :]) == {SILENCE[0]}


# ------------------------------------------------------------------------------------------
# In other stages


@pytest.mark.parametrize("had_begun", [True, False])
async def test_a_model_is_told_that_the_line_was_lost_before_its_keys_were_heard(
    autojump_clock, nursery, had_begun
):
    line = Line(nursery, patience=QUIET, agent=Agent(greeting="", tools=(send_dtmf,)))
    await line.answer()
    if not had_begun:
        line.says(4, turn=1)  # which they wait for
    calls = (ToolCall("a", "send_dtmf", {"digits": "123456789"}),)
    line.session.event(ToolCallsRequested(calls, 1))
    await trio.sleep(1.0)
    await line.lose()
    await line.come_back()
    (result,) = line.session.results

    assert "may not have been heard" in result.response["error"]
    assert not line.call.conversation.playout.keys
    line.call.end(EndReason.HUNG_UP)


async def test_keys_that_are_pressed_in_the_gap_wait_for_the_line(autojump_clock, nursery):
    line = Line(nursery, patience=QUIET, agent=Agent(greeting="", tools=(send_dtmf,)))
    await line.answer()
    await line.lose()
    line.session.event(ToolCallsRequested((ToolCall("a", "send_dtmf", {"digits": "1"}),), 1))
    await trio.sleep(1.0)
    await line.come_back()
    await trio.sleep(1.0)
    line.media.echo_marks()
    await wait_all_tasks_blocked()
    (result,) = line.session.results

    assert "have been pressed" in result.response["output"]
    line.call.end(EndReason.HUNG_UP)


async def test_a_goodbye_waits_for_the_line(autojump_clock, line):
    await line.lose()
    line.call.farewell.begin(EndReason.DRAINED)
    await trio.sleep(1.0)
    in_gap = line.call.end_reason
    await line.come_back()
    asked = len(line.texts)
    line.says(1, turn=1)
    await trio.sleep(1.2)
    line.media.echo_marks()
    await line.call.finished.wait()

    assert in_gap is None
    assert asked == 1
    assert line.call.end_reason is EndReason.DRAINED


async def test_a_goodbye_that_was_cut_off_is_said_to_its_end(autojump_clock, line):
    line.call.farewell.begin(EndReason.DRAINED)
    await wait_all_tasks_blocked()
    line.says(4, turn=1, text="Goodbye and have a very pleasant day, dear caller.")
    await trio.sleep(1.0)
    await line.lose()
    await line.come_back()
    assert line.call.end_reason is None
    line.says(1, turn=2)
    await trio.sleep(1.2)
    line.media.echo_marks()
    await line.call.finished.wait()

    assert "Go on from there" in line.texts[-1]
    assert line.call.end_reason is EndReason.DRAINED


async def test_nobody_can_be_taken_leave_of_on_a_line_that_stays_away(autojump_clock, line):
    await line.lose()
    line.call.farewell.begin(EndReason.DRAINED)
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_GONE


async def test_a_transfer_that_is_wanted_in_the_gap_waits_for_the_line(autojump_clock, line):
    await line.lose()
    line.nursery.start_soon(line.call.transfer, "sales", "+15005550123")
    await trio.sleep(1.0)
    in_gap = list(line.carrier.transferred)
    await line.come_back()

    assert in_gap == []
    assert line.carrier.transferred == [("CA1", "+15005550123")]
    assert line.call.conversation.stage is Stage.AWAY


async def test_a_line_that_is_lost_while_the_carrier_refuses_a_transfer_is_waited_for(
    autojump_clock, line
):
    async def slowly_refused(call_sid, number, *, ring_timeout_s):
        await trio.sleep(1.0)
        raise CarrierError("no", status=400, code=21211)

    line.carrier.transfer = slowly_refused
    outcome = []

    async def transfer():
        try:
            await line.call.transfer("sales", "+15005550123")
        except CarrierError as error:
            outcome.append(error)

    line.nursery.start_soon(transfer)
    await wait_all_tasks_blocked()
    await line.lose()
    await trio.sleep(2.0)
    in_gap = line.call.end_reason
    await line.come_back()
    line.media.say(SOUND)
    await wait_all_tasks_blocked()

    assert in_gap is None
    assert len(outcome) == 1
    assert line.call.conversation.stage is Stage.TALK
    assert len(line.session.heard) == 2 * 4 * FRAME_BYTES  # the last before, the first after


async def test_nobody_waits_for_another_line_after_a_refused_transfer_where_none_comes(
    autojump_clock, nursery
):
    line = Line(nursery, patience=QUIET)
    line.media.abilities = replace(ABILITIES, comes_back=False)
    await line.answer()

    async def slowly_refused(call_sid, number, *, ring_timeout_s):
        await trio.sleep(1.0)
        raise CarrierError("no", status=400, code=21211)

    async def transfer():
        with suppress(CarrierError):
            await line.call.transfer("sales", "+15005550123")

    line.carrier.transfer = slowly_refused
    line.nursery.start_soon(transfer)
    await wait_all_tasks_blocked()
    began = trio.current_time()
    await line.lose()
    await line.call.finished.wait()

    assert line.call.end_reason is EndReason.CALLER_GONE
    assert trio.current_time() - began == pytest.approx(1.0)


async def test_a_caller_who_is_away_may_be_away_for_as_long_as_it_rings(autojump_clock, line):
    line.nursery.start_soon(line.call.transfer, "sales", "+15005550123")
    await wait_all_tasks_blocked()
    await line.lose()
    await trio.sleep(20.0)

    assert line.call.end_reason is None
    assert not line.call.conversation.is_lost
    assert "line lost" not in line.noted


async def leaving_message(nursery: trio.Nursery) -> Line:
    """A call that a machine has taken, and whose agent has been asked for the message."""
    line = Line(
        nursery,
        patience=QUIET,
        voicemail=VoicemailPolicy.LEAVE_MESSAGE,
        agent=Agent(greeting="", voicemail="Call me."),
    )
    await line.answer()
    line.call.report_machine(MachineVerdict("CA1", By.MACHINE_END_BEEP, 3.0))
    await trio.sleep(3.1)
    return line


async def test_a_message_to_a_machine_that_was_cut_off_is_left_again(autojump_clock, nursery):
    line = await leaving_message(nursery)
    asked = len(line.texts)
    line.says(4, turn=1)
    await trio.sleep(1.0)
    await line.lose()
    await trio.sleep(2.0)
    stage, in_gap = line.call.conversation.stage, len(line.texts)
    await line.come_back()
    again = len(line.texts)
    line.says(4, turn=2)
    await trio.sleep(4.1)
    line.media.echo_marks()
    await line.call.finished.wait()

    assert (asked, in_gap, again) == (1, 1, 2)
    assert stage is Stage.TO_MACHINE
    assert line.texts[0] == line.texts[1]
    assert (line.call.end_reason, line.call.record().detail) == ("voicemail", "message left")


async def test_half_a_message_is_not_left_when_the_model_is_lost_in_the_middle_of_it(
    autojump_clock, nursery
):
    line = await leaving_message(nursery)
    await line.loses_model(heard_s=2, turn=1)
    await trio.sleep(5.0)
    half = line.call.end_reason
    line.says(2, turn=2)
    await trio.sleep(2.1)
    line.media.echo_marks()
    await line.call.finished.wait()

    assert half is None
    assert (line.call.end_reason, line.call.record().detail) == ("voicemail", "message left")


@pytest.mark.parametrize("whose", ["ours", "the agent's"])
async def test_a_goodbye_is_waited_for_when_the_model_is_lost_in_the_middle_of_it(
    autojump_clock, line, whose
):
    await takes_leave(line, whose)
    await line.loses_model(heard_s=2, turn=1)
    await trio.sleep(4.0)
    half = line.call.end_reason
    line.says(2, turn=2)
    await trio.sleep(2.1)
    line.media.echo_marks()
    await wait_all_tasks_blocked()

    assert half is None
    assert line.call.end_reason in (EndReason.DRAINED, EndReason.AGENT_HUNG_UP)


async def test_who_is_not_believed_to_have_interrupted_hears_the_rest(autojump_clock, nursery):
    line = Line(nursery, barge_in=BargeInMode.LOCAL)
    await line.answer()
    line.session.event(AgentAudio(SECOND_PCM * 3, 1, trio.current_time()))
    await trio.sleep(1.0)
    line.session.event(Interrupted(1, trio.current_time()))
    line.session.event(TurnComplete(1, None))
    await trio.sleep(2.0)
    line.media.echo_marks()
    before = list(line.texts)
    await trio.sleep(6.0)

    assert line.facts("interruption not believed")
    assert before == []
    assert line.texts == [NUDGES[Awaited.CONTINUATION]]
    line.call.end(EndReason.HUNG_UP)


async def breaks_off_its_goodbye(line: Line, whose: str) -> None:
    """The model interrupts itself in a goodbye, of which more was to come: 1 s of 3 is heard."""
    await takes_leave(line, whose)
    line.session.event(AgentAudio(SECOND_PCM * 3, 1, trio.current_time()))
    await trio.sleep(1.0)
    line.session.event(Interrupted(1, trio.current_time()))
    line.session.event(TurnComplete(1, None))
    await wait_all_tasks_blocked()


ASK_ON = NUDGES[Awaited.CONTINUATION]


@pytest.mark.parametrize(
    ("mode", "heard_in_s"), [(BargeInMode.LOCAL, 2.0), (BargeInMode.MODEL, 4.0)]
)
@pytest.mark.parametrize("whose", ["ours", "the agent's"])
async def test_a_goodbye_that_the_model_broke_off_for_nobody_is_said_to_its_end(
    autojump_clock, nursery, whose, mode, heard_in_s
):
    line = Line(nursery, barge_in=mode)
    await line.answer()
    await breaks_off_its_goodbye(line, whose)
    line.media.echo_marks()
    at_once = line.texts.count(ASK_ON)
    await trio.sleep(heard_in_s + 0.1)
    asked = line.texts.count(ASK_ON)
    line.says(2, turn=2)
    await trio.sleep(2.0)
    half = line.call.end_reason
    line.media.echo_marks()
    await wait_all_tasks_blocked()

    assert (at_once, asked) == (0, 1)
    assert half is None
    assert line.call.end_reason in (EndReason.DRAINED, EndReason.AGENT_HUNG_UP)


async def test_nobody_is_asked_to_go_on_with_a_goodbye_while_the_caller_speaks(
    autojump_clock, nursery
):
    line = Line(nursery, barge_in=BargeInMode.MODEL)
    await line.answer()
    await breaks_off_its_goodbye(line, "the agent's")
    line.call.conversation.turns.caller_started(trio.current_time())
    await trio.sleep(6.0)

    assert ASK_ON not in line.texts


async def test_a_model_that_goes_on_with_its_goodbye_by_itself_is_not_asked_to(
    autojump_clock, nursery
):
    line = Line(nursery, barge_in=BargeInMode.LOCAL)
    await line.answer()
    await breaks_off_its_goodbye(line, "ours")
    line.says(2, turn=2)
    await trio.sleep(4.0)
    line.media.echo_marks()
    await line.call.finished.wait()

    assert ASK_ON not in line.texts
    assert line.call.end_reason is EndReason.DRAINED


async def test_what_was_broken_off_before_the_goodbye_is_no_part_of_it(autojump_clock, nursery):
    line = Line(nursery, barge_in=BargeInMode.LOCAL)
    await line.answer()
    line.session.event(AgentAudio(SECOND_PCM * 3, 1, trio.current_time()))
    line.session.event(Interrupted(1, trio.current_time()))
    await trio.sleep(4.0)
    line.call.farewell.begin(EndReason.DRAINED)
    await trio.sleep(1.0)

    assert ASK_ON not in line.texts
    line.call.end(EndReason.HUNG_UP)


async def test_a_goodbye_that_was_broken_off_is_asked_for_once_when_the_line_is_back(
    autojump_clock, nursery
):
    line = Line(nursery, barge_in=BargeInMode.LOCAL)
    await line.answer()
    await breaks_off_its_goodbye(line, "ours")
    await line.lose()
    await trio.sleep(3.0)
    while_lost = list(line.texts)
    await line.come_back()
    await trio.sleep(1.0)

    assert ASK_ON not in line.texts
    assert len(line.texts) == len(while_lost) + 1
    line.call.end(EndReason.HUNG_UP)


async def is_interrupted_by_the_line(line: Line) -> None:
    """The line is lost in the middle of a turn, and the model interrupts that when it is back."""
    line.session.event(AgentTranscript("one two three four five", 1))
    line.audio(SECOND_PCM * 5, turn=1)
    await trio.sleep(3.0)
    await line.lose()
    await trio.sleep(0.3)
    await line.come_back()
    line.session.event(Interrupted(1, trio.current_time()))
    line.session.event(TurnComplete(1, None))


async def takes_leave(line: Line, whose: str) -> None:
    """The call is to end with a goodbye, which nobody has said yet."""
    if whose == "ours":
        line.call.farewell.begin(EndReason.DRAINED)
    else:
        line.call.hang_up_when_heard()
    await wait_all_tasks_blocked()


async def is_lost_in_a_turn(line: Line) -> None:
    """The line is lost in the middle of a turn, and is back: the rest of it is asked for."""
    line.says(5, turn=1, text="one two three four five")
    await trio.sleep(3.0)
    await line.lose()
    await trio.sleep(0.3)
    await line.come_back()


MODES = (BargeInMode.BOTH, BargeInMode.MODEL, BargeInMode.LOCAL)


@pytest.mark.parametrize("mode", MODES)
async def test_a_model_that_is_interrupted_by_being_asked_for_the_rest_still_owes_it(
    autojump_clock, nursery, mode
):
    line = Line(nursery, patience=QUIET, barge_in=mode)
    await line.answer()
    await is_interrupted_by_the_line(line)
    await trio.sleep(5.9)
    before = len(line.texts)
    await trio.sleep(0.2)
    line.call.end(EndReason.HUNG_UP)

    assert before == 1
    assert line.texts[1:] == [ASK_ON]


@pytest.mark.parametrize("mode", MODES)
async def test_a_click_before_the_rest_of_what_was_lost_has_begun_does_not_forgive_it(
    autojump_clock, nursery, mode
):
    line = Line(nursery, patience=QUIET, barge_in=mode)
    await line.answer()
    await is_lost_in_a_turn(line)
    line.session.event(Interrupted(2, trio.current_time()))
    await trio.sleep(6.1)
    line.call.end(EndReason.HUNG_UP)

    assert line.texts[1:] == [ASK_ON]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("whose", ["ours", "the agent's"])
async def test_a_goodbye_is_asked_for_once_where_that_interrupts_the_model(
    autojump_clock, nursery, whose, mode
):
    line = Line(nursery, patience=QUIET, barge_in=mode)
    await line.answer()
    await takes_leave(line, whose)
    asked = len(line.texts)
    await is_interrupted_by_the_line(line)
    await trio.sleep(2.0)
    more = line.texts[asked:]
    line.says(2, turn=2)
    await trio.sleep(2.0)
    half = line.call.end_reason
    line.media.echo_marks()
    await line.call.finished.wait()

    assert len(more) == 1
    assert "Go on from there" in more[0]
    assert half is None
    assert line.call.end_reason in (EndReason.DRAINED, EndReason.AGENT_HUNG_UP)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("whose", ["ours", "the agent's"])
@pytest.mark.parametrize("again", [0, 2], ids=["", "and by a click"])
async def test_a_model_that_falls_silent_in_a_goodbye_that_a_lost_line_has_cut_is_nudged_once(
    autojump_clock, nursery, whose, mode, again
):
    line = Line(nursery, patience=QUIET, barge_in=mode)
    await line.answer()
    await takes_leave(line, whose)
    await is_interrupted_by_the_line(line)
    if again:
        line.session.event(Interrupted(again, trio.current_time()))
        line.session.event(TurnComplete(again, None))
    await trio.sleep(5.9)
    before = line.texts.count(ASK_ON)
    await trio.sleep(0.2)
    asked, half = line.texts.count(ASK_ON), line.call.end_reason
    await line.call.finished.wait()

    assert (before, asked) == (0, 1)
    assert half is None
    assert line.texts.count(ASK_ON) == 1
    assert line.call.end_reason in (EndReason.DRAINED, EndReason.AGENT_HUNG_UP)


@pytest.mark.parametrize("whose", ["ours", "the agent's"])
async def test_an_empty_turn_is_not_the_rest_of_a_goodbye_that_a_lost_line_has_cut(
    autojump_clock, nursery, whose
):
    line = Line(nursery, patience=QUIET)
    await line.answer()
    await takes_leave(line, whose)
    await is_lost_in_a_turn(line)
    line.session.event(TurnComplete(2, None))
    await line.call.finished.wait()

    assert line.texts.count(ASK_ON) == 1


@pytest.mark.parametrize("whose", ["ours", "the agent's"])
async def test_the_rest_of_a_goodbye_is_asked_for_though_the_model_was_connected_anew_meanwhile(
    autojump_clock, nursery, whose
):
    line = Line(nursery, patience=QUIET)
    await line.answer()
    await takes_leave(line, whose)
    await is_lost_in_a_turn(line)
    await trio.sleep(1.0)
    line.session.event(Reconnected("connection lost", Way.RESUME, "model", 0.2, 0.0, 0.0))
    await trio.sleep(QUIET.rung_timeout_s - 0.1)
    before = line.texts.count(ASK_ON)
    await trio.sleep(0.2)
    asked, half = line.texts.count(ASK_ON), line.call.end_reason
    await line.call.finished.wait()

    assert half is None
    assert (before, asked) == (0, 1)
    assert line.texts.count(ASK_ON) == 1


@pytest.mark.parametrize("is_empty", [False, True], ids=["in silence", "with an empty turn"])
@pytest.mark.parametrize("whose", ["ours", "the agent's"])
async def test_a_model_that_is_back_and_does_not_say_the_rest_of_a_goodbye_is_asked_once_more(
    autojump_clock, nursery, whose, is_empty
):
    line = Line(nursery, patience=QUIET)
    await line.answer()
    await takes_leave(line, whose)
    await line.loses_model(1, turn=1)
    line.session.event(Reconnected("connection lost", Way.RESUME, "model", 0.2, 0.0, 0.0))
    if is_empty:
        line.session.event(TurnComplete(2, None))
    await line.call.finished.wait()

    assert line.texts.count(ASK_ON) == 1


async def test_a_phone_that_rings_has_no_line_to_lose(autojump_clock, nursery):
    line = Line(nursery)
    nursery.start_soon(line.call.run)
    await trio.sleep(10.0)

    assert not line.call.conversation.is_lost
    line.call.end(EndReason.HUNG_UP)


async def test_nothing_is_cleared_on_the_new_stream(autojump_clock, line):
    line.says(10, turn=1)
    await trio.sleep(1.0)
    await line.lose()
    await line.come_back()
    line.says(1, turn=2)
    await wait_all_tasks_blocked()

    assert Clear() not in line.media.commands
    assert isinstance(line.media.commands[0], SendAudio)


async def judged_by(nursery) -> Judge:
    judge = Judge(Loudness(), VoiceMetrics(CollectorRegistry()), in_thread=False)
    nursery.start_soon(judge.run)
    await wait_all_tasks_blocked()
    return judge


async def test_a_judged_caller_whose_line_was_lost_in_a_word_is_not_taken_to_go_on_speaking(
    autojump_clock, nursery
):
    line = Line(nursery, patience=QUIET, voices=await judged_by(nursery))
    await line.answer()
    await line.hears(load_speech("question")[: FRAME_BYTES * 40])
    turns, ear = line.call.conversation.turns, line.call.conversation.ear
    spoke = turns.caller_speaking
    await line.lose()

    assert spoke
    assert not turns.caller_speaking
    assert not ear.caller_speaks
    await trio.sleep(0.4)
    await line.come_back()
    await line.hears(load_speech("question")[: FRAME_BYTES * 40])
    assert turns.caller_speaking
    line.call.end(EndReason.HUNG_UP)


async def test_an_agent_that_was_held_when_the_network_paused_goes_on_and_is_heard(
    autojump_clock, nursery
):
    line = Line(nursery, patience=QUIET, voices=await judged_by(nursery))
    await line.answer()
    await line.hears(SILENCE * FRAME_BYTES * 50)
    line.says(10, turn=1)
    await line.hears(load_speech("interrupt")[: FRAME_BYTES * 12])
    playout, turns = line.call.conversation.playout, line.call.conversation.turns
    was_held = playout.is_held
    await trio.sleep(1.5)
    await line.hears(SILENCE * FRAME_BYTES * 10)

    assert was_held
    assert not playout.is_held
    assert not turns.caller_speaking
    assert len(line.media.audio_after_clear()) > 9 * BYTES_PER_S
    line.call.end(EndReason.HUNG_UP)
