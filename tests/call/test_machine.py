"""What a call makes of signs of an answering machine while silence is none: nobody could speak."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.frames import Frame, Opcode

import codec
from codec.ear import SpeechStarted
from codec.line import FRAME_BYTES, FRAME_S, SILENCE
from codec.path import WebSocket
from server.agent import phrases
from server.agent.agent import Agent
from server.agent.builtin import voicemail_reached
from server.agent.tool import tool
from server.call.conversation import Stage
from server.call.machine import START_S
from server.carrier import AnsweredBy, CallStatus, DigitPressed, MachineVerdict
from server.carrier.twilio.messages import audio_messages
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.dialogue.voicemail import AnsweringMachine, VoicemailPolicy
from server.model import (
    GenerationComplete,
    Reconnected,
    ToolCall,
    ToolCallsRequested,
    TurnComplete,
    Way,
    Working,
)
from server.simulators.phone import Beep, act, load_speech
from tests.codec.test_path_control import to_model
from tests.support.calls_on_a_rig import SECOND_PCM, Rig
from tests.support.fakes import MemoryMedia
from tests.support.path_messages import AUDIO_MESSAGES, SID, media
from tests.support.sounds import noise
from tests.support.websocket_oracle import write_frames

QUIET_S = AnsweringMachine.QUIET_S
SALES = "+15005550123"
FUNCTION_S = 8.0
BEEP = b"".join(deed for deed in act((Beep(),)) if isinstance(deed, bytes)).rstrip(SILENCE)


@tool(timeout_s=10.0)
async def look_up() -> str:
    """Look something up, which takes a while."""
    await trio.sleep(FUNCTION_S)
    return "found"


class Taken(Rig):
    """A call that the carrier takes for a machine's, and that is to be hung up then."""

    def __init__(self, nursery: trio.Nursery, **options) -> None:
        defaults = {
            "agent": Agent(greeting=""),
            "media_timeout_s": 600.0,
            "patience": Patience(silence_timeout_s=0.0),
            "voicemail": VoicemailPolicy.HANG_UP,
        }
        super().__init__(**defaults | options)
        self.nursery = nursery

    def is_called_a_machine(self) -> None:
        verdict = MachineVerdict("CA1", AnsweredBy.MACHINE_END_SILENCE, 5.0)
        self.call.report_machine(verdict)

    async def connect(self) -> None:
        self.media = MemoryMedia()
        self.nursery.start_soon(self.call.serve, self.media, self.media.start())
        await wait_all_tasks_blocked()

    async def ask_for_transfer(self) -> None:
        self.nursery.start_soon(self.call.transfer, "sales", SALES)
        await wait_all_tasks_blocked()

    async def hears(self, payload: bytes) -> None:
        for at in range(0, len(payload), FRAME_BYTES):
            self.media.say(payload[at : at + FRAME_BYTES])
            await trio.sleep(FRAME_S)

    async def is_asked_by_what_is_called_a_machine(self) -> None:
        """A question, after which the agent owes an answer, and then the carrier's word."""
        await self.begin(self.nursery)
        await self.hears(load_speech("question") + SILENCE * round(0.8 / FRAME_S) * FRAME_BYTES)
        assert self.call.conversation.turns.is_busy
        self.is_called_a_machine()

    def says(self, seconds: int, turn: int) -> None:
        self.audio(SECOND_PCM * seconds, turn)
        self.session.event(GenerationComplete(turn))
        self.session.event(TurnComplete(turn, None))

    async def presses(self, keys: str) -> None:
        for key in keys:
            self.media.event(DigitPressed(key))
        await wait_all_tasks_blocked()

    @property
    def told(self) -> list[str]:
        """What the model was told in words."""
        return [text for _, text in self.session.texts]

    async def silent_for(self, seconds: float) -> EndReason | None:
        """Nobody speaks for so long; how the call has ended by then."""
        await trio.sleep(seconds)
        await wait_all_tasks_blocked()
        return self.call.end_reason


@pytest.fixture
async def taken(nursery):
    taken = Taken(nursery)
    yield taken
    taken.call.end(EndReason.HUNG_UP)


async def test_nobody_is_hung_up_on_while_their_transfer_rings(autojump_clock, nursery, taken):
    await taken.begin(nursery)
    await taken.ask_for_transfer()
    taken.media.hang_up()
    await wait_all_tasks_blocked()
    taken.is_called_a_machine()
    rings = await taken.silent_for(20.0)
    stage = taken.call.conversation.stage
    taken.call.handover.report(CallStatus.NO_ANSWER)
    await taken.connect()
    back = await taken.silent_for(QUIET_S - 0.1)
    silent = await taken.silent_for(0.2)

    assert (rings, stage) == (None, Stage.AWAY)
    assert (back, silent) == (None, EndReason.VOICEMAIL)


async def test_whoever_takes_somebody_over_whom_the_carrier_takes_for_a_machine_has_them(
    autojump_clock, nursery, taken
):
    await taken.begin(nursery)
    await taken.ask_for_transfer()
    taken.media.hang_up()
    await wait_all_tasks_blocked()
    taken.is_called_a_machine()
    await taken.silent_for(20.0)
    taken.call.handover.report(CallStatus.IN_PROGRESS)
    await taken.call.finished.wait()

    assert taken.call.end_reason is EndReason.TRANSFERRED
    assert taken.carrier.hung_up == []


async def test_nobody_is_hung_up_on_while_the_carrier_is_told_of_their_transfer(
    autojump_clock, nursery, taken
):
    async def slowly(call_sid, number, *, ring_timeout_s):
        await trio.sleep(9.0)

    taken.carrier.transfer = slowly
    await taken.begin(nursery)
    await taken.ask_for_transfer()
    taken.is_called_a_machine()

    assert await taken.silent_for(8.0) is None
    assert taken.call.conversation.stage is Stage.AWAY


async def test_that_nobody_speaks_before_there_is_a_line_is_no_sign(autojump_clock, nursery, taken):
    nursery.start_soon(taken.call.run)
    await wait_all_tasks_blocked()
    taken.is_called_a_machine()
    before = await taken.silent_for(10.0)
    await taken.connect()
    answered = await taken.silent_for(QUIET_S - 0.1)
    silent = await taken.silent_for(0.2)

    assert (before, answered, silent) == (None, None, EndReason.VOICEMAIL)


async def test_whoever_waits_for_an_answer_is_not_hung_up_on_for_being_silent(
    autojump_clock, taken
):
    await taken.is_asked_by_what_is_called_a_machine()
    waiting = await taken.silent_for(QUIET_S + 2.0)
    taken.says(2, turn=1)
    answered = await taken.silent_for(2.0 + QUIET_S - 0.1)
    silent = await taken.silent_for(0.2)

    assert (waiting, answered, silent) == (None, None, EndReason.VOICEMAIL)


async def test_whoever_waits_for_a_function_is_not_hung_up_on_for_being_silent(
    autojump_clock, nursery
):
    taken = Taken(nursery, agent=Agent(greeting="", tools=(look_up,)))
    await taken.is_asked_by_what_is_called_a_machine()
    taken.audio(SECOND_PCM, turn=1)  # "one moment"
    taken.session.event(ToolCallsRequested((ToolCall("1", "look_up", {}),), 1))
    running = await taken.silent_for(FUNCTION_S - 0.1)
    results = len(taken.session.results)
    found = await taken.silent_for(1.0)
    taken.says(2, turn=2)
    answered = await taken.silent_for(2.0 + QUIET_S - 0.1)
    silent = await taken.silent_for(0.2)

    assert (running, results, found, answered) == (None, 0, None, None)
    assert silent is EndReason.VOICEMAIL


@pytest.mark.parametrize("comes", [True, False])
async def test_whoever_waits_for_a_model_at_work_is_not_hung_up_on_for_being_silent(
    autojump_clock, nursery, comes
):
    patience = Patience(silence_timeout_s=0.0, thinking_timeout_s=8.0)
    taken = Taken(nursery, patience=patience)
    await taken.is_asked_by_what_is_called_a_machine()
    taken.session.event(Working(is_on=True))
    taken.audio(SECOND_PCM, turn=1)  # "one moment"
    taken.session.event(GenerationComplete(1))
    at_work = await taken.silent_for(7.9)
    if comes:
        taken.says(1, turn=2)
    over = await taken.silent_for(QUIET_S - 0.1)
    silent = await taken.silent_for(2.0)  # a second of it is said, or passes until it is looked

    assert (at_work, over, silent) == (None, None, EndReason.VOICEMAIL)


async def test_a_beep_is_one_though_an_answer_is_owed(autojump_clock, taken):
    await taken.is_asked_by_what_is_called_a_machine()
    owed = await taken.silent_for(QUIET_S + 1.0)
    await taken.hears(BEEP + SILENCE * 5 * FRAME_BYTES)

    assert (owed, taken.call.end_reason) == (None, EndReason.VOICEMAIL)
    assert taken.call.conversation.turns.is_busy


async def test_a_model_that_has_understood_the_announcement_owes_it_no_answer(
    autojump_clock, taken
):
    await taken.is_asked_by_what_is_called_a_machine()
    taken.call.report_voicemail()

    assert await taken.silent_for(QUIET_S + 0.1) is EndReason.VOICEMAIL


async def test_a_model_that_is_silent_after_the_announcement_is_asked_for_the_message_only(
    autojump_clock, nursery
):
    taken = Taken(nursery, voicemail=VoicemailPolicy.LEAVE_MESSAGE)
    await taken.is_asked_by_what_is_called_a_machine()
    taken.call.report_voicemail()
    taken.session.event(TurnComplete(1, None))
    for _ in range(4):  # the announcement goes on, for longer than an answer may take
        await taken.hears(load_speech("question") + SILENCE * round(0.8 / FRAME_S) * FRAME_BYTES)
    before = list(taken.session.texts)
    await taken.hears(BEEP + SILENCE * 5 * FRAME_BYTES)
    texts = [text for _, text in taken.session.texts]
    taken.call.end(EndReason.HUNG_UP)

    assert (before, texts) == ([], [phrases.leave_message("")])


async def test_a_model_is_asked_to_speak_again_where_nothing_decides_that_it_is_a_machine(
    autojump_clock, taken
):
    await taken.begin(taken.nursery)
    await taken.hears(load_speech("question") + SILENCE * round(0.8 / FRAME_S) * FRAME_BYTES)
    taken.call.report_voicemail()
    taken.call.conversation.ear.on_found((SpeechStarted(trio.current_time()),))
    await taken.silent_for(AnsweringMachine.LISTENS_S - 0.1)
    before = list(taken.session.texts)
    await taken.silent_for(0.2)

    assert before == []
    assert [text for _, text in taken.session.texts] == [phrases.NUDGE_TO_ANSWER]


async def test_a_model_that_tells_of_a_machine_where_a_person_was_found_learns_that_nothing_is_done(
    autojump_clock, taken
):
    await taken.begin(taken.nursery)
    taken.is_called_a_machine()
    before = taken.call.conversation.passing.path.caller_passes
    await taken.hears(load_speech("question") + SILENCE * round(0.8 / FRAME_S) * FRAME_BYTES)

    assert "a person after all" in taken.noted
    assert taken.call.report_voicemail() is None
    assert taken.call.conversation.passing.path.caller_passes == before


# ------------------------------------------------------------------------------------------
# Keys, from somebody who says nothing


@pytest.mark.parametrize("policy", [VoicemailPolicy.HANG_UP, VoicemailPolicy.LEAVE_MESSAGE])
async def test_whoever_answers_with_a_key_is_a_person_and_has_their_answer(
    autojump_clock, nursery, policy
):
    taken = Taken(nursery, voicemail=policy)
    await taken.begin(nursery)
    taken.is_called_a_machine()
    taken.says(2, turn=1)  # "press 1 to confirm"
    await taken.silent_for(2.0 + QUIET_S - 1.0)
    await taken.presses("1")
    await taken.silent_for(2.0)
    taken.says(2, turn=2)
    ended = await taken.silent_for(2.0 + 2 * QUIET_S)
    told = taken.told
    taken.call.end(EndReason.HUNG_UP)

    assert ended is None
    assert told == [phrases.keys_pressed("1")]
    assert "a person after all" in taken.noted


async def test_a_key_in_an_announcement_is_not_told_in_the_message(autojump_clock, nursery):
    taken = Taken(nursery, voicemail=VoicemailPolicy.LEAVE_MESSAGE)
    await taken.begin(nursery)
    taken.call.report_voicemail()
    await taken.presses("1")
    await taken.hears(BEEP + SILENCE * 5 * FRAME_BYTES)
    taken.says(4, turn=1)
    await taken.silent_for(3.9)
    in_message = taken.told
    taken.media.echo_marks()
    await taken.call.finished.wait()

    assert in_message == taken.told == [phrases.leave_message("")]
    assert taken.call.conversation.end_detail == "message left"


async def test_keys_pressed_while_a_message_is_left_are_told_when_it_was_heard(
    autojump_clock, nursery
):
    taken = Taken(nursery, voicemail=VoicemailPolicy.LEAVE_MESSAGE)
    await taken.begin(nursery)
    taken.is_called_a_machine()
    await taken.silent_for(QUIET_S + 0.1)
    taken.says(10, turn=1)
    for key in "12":
        await taken.silent_for(3.0)
        await taken.presses(key)
    await taken.silent_for(3.0)
    in_message = taken.told
    await taken.silent_for(1.0)
    taken.media.echo_marks()
    await taken.silent_for(3.0)
    after, stage, ended = taken.told, taken.call.conversation.stage, taken.call.end_reason
    taken.call.end(EndReason.HUNG_UP)

    assert in_message == [phrases.leave_message("")]
    assert after[1:] == [phrases.NOT_A_MACHINE, phrases.keys_pressed("12")]
    assert (stage, ended) == (Stage.TALK, None)


# ------------------------------------------------------------------------------------------
# A message, while the model's connection comes and goes


BACK = Reconnected("closed-1011", Way.FRESH, "memory", gap_s=10.0, lost_s=0.0, repeated_s=0.0)


@pytest.fixture
async def recorded(nursery):
    """A call whose machine records, and whose model has just been asked for the message."""
    call = Taken(nursery, voicemail=VoicemailPolicy.LEAVE_MESSAGE, voicemail_timeout_s=60.0)
    await call.begin(nursery)
    call.is_called_a_machine()
    await call.silent_for(QUIET_S + 0.1)
    assert len(call.session.texts) == 1
    yield call
    call.call.end(EndReason.HUNG_UP)


async def test_a_model_that_tells_of_the_machine_it_is_to_speak_to_is_told_to_go_on(
    autojump_clock, nursery
):
    agent = Agent(greeting="", tools=(voicemail_reached,))
    taken = Taken(nursery, agent=agent, voicemail=VoicemailPolicy.LEAVE_MESSAGE)
    await taken.begin(nursery)
    for turn in (1, 2):
        told = ToolCall(f"id-{turn}", voicemail_reached.name, {})
        taken.session.event(ToolCallsRequested((told,), turn))
        await wait_all_tasks_blocked()
        if turn == 1:
            taken.is_called_a_machine()
            await taken.silent_for(QUIET_S + 0.1)
    answers = [result.response["output"] for result in taken.session.results]
    taken.call.end(EndReason.HUNG_UP)

    assert [text for _, text in taken.session.texts] == [phrases.leave_message("")]
    assert "Say nothing now" in answers[0]
    assert "go on with the message" in answers[1]


async def test_a_model_that_is_away_for_a_while_leaves_the_message_when_it_is_back(
    autojump_clock, recorded
):
    recorded.session.is_away = True
    away = await recorded.silent_for(20.0)
    recorded.session.is_away = False
    recorded.session.event(BACK)
    back = await recorded.silent_for(START_S - 0.5)
    recorded.says(2, turn=1)
    await recorded.silent_for(2.0)
    recorded.media.echo_marks()
    await recorded.call.finished.wait()

    assert (away, back) == (None, None)
    assert recorded.call.conversation.end_detail == "message left"
    assert len(recorded.session.texts) == 1


async def test_a_model_that_is_back_has_its_whole_time_for_the_message(autojump_clock, recorded):
    await recorded.silent_for(START_S - 1.0)
    recorded.session.event(BACK)  # it was away for less than anybody looks
    await recorded.silent_for(START_S - 0.5)
    asked = len(recorded.session.texts)
    await recorded.silent_for(1.0)

    assert (asked, len(recorded.session.texts)) == (1, 2)


async def test_a_model_that_is_back_and_silent_is_asked_once_more_and_then_no_more(
    autojump_clock, recorded
):
    recorded.session.is_away = True
    await recorded.silent_for(20.0)
    recorded.session.is_away = False
    recorded.session.event(BACK)
    back_at = trio.current_time()
    await recorded.call.finished.wait()

    assert trio.current_time() - back_at == pytest.approx(2 * START_S, abs=0.1)
    assert recorded.call.conversation.end_detail == "no message left"
    assert len(recorded.session.texts) == 2


async def test_a_model_that_stays_away_is_waited_for_no_longer_than_a_message_may_take(
    autojump_clock, recorded
):
    recorded.session.is_away = True
    asked_at = trio.current_time()
    await recorded.call.finished.wait()

    assert trio.current_time() - asked_at == pytest.approx(60.0, abs=0.5)
    assert recorded.call.conversation.end_detail == "no message left"


# ------------------------------------------------------------------------------------------
# Caller audio that nobody has to look at any more


class ByPath(Taken):
    """A call whose caller is heard, and passed on to the model, by the compiled path."""

    def join(self) -> None:
        self.said = b""
        path = self.call.conversation.passing.path
        path.phone = WebSocket(is_client=False, max_message_bytes=64 * 1024)
        path.start(SID, audio_messages(SID))
        path.join_model(WebSocket(is_client=True, max_message_bytes=64 * 1024), AUDIO_MESSAGES)

    async def hears(self, payload: bytes) -> None:
        passing = self.call.conversation.passing
        path = passing.path
        for at in range(0, len(payload), FRAME_BYTES):
            self.said += payload[at : at + FRAME_BYTES]
            message = media(self.said[-FRAME_BYTES:], len(self.said) // FRAME_BYTES)
            path.phone.receive(write_frames([Frame(Opcode.TEXT, message)], masked=True))
            assert path.next_from_phone(trio.current_time()) is None
            if path.has_caller_news():
                passing.relay.on_caller()
            await trio.sleep(FRAME_S)

    @property
    def passed_bytes(self) -> int:
        """How much has gone by without anybody's looking."""
        return self.call.conversation.passing.path.caller_sent_bytes

    def model_has_heard(self) -> bytes:
        """What has come by the path since this was last asked, in the order of what has not."""
        taken, self.session.heard = bytes(self.session.heard), bytearray()
        return taken + to_model(self.call.conversation.passing.path)


SPOKEN = noise(1.0, 8.0)
LISTENS = round((AnsweringMachine.LISTENS_S + 1.0) / FRAME_S) * FRAME_BYTES


@pytest.fixture
async def by_path(nursery):
    call = ByPath(nursery)
    await call.begin(nursery)
    call.join()
    yield call
    call.call.end(EndReason.HUNG_UP)


async def test_once_no_beep_is_listened_for_caller_audio_passes_unseen_and_in_order(
    autojump_clock, by_path
):
    await by_path.hears((SPOKEN * 62)[:LISTENS])
    before = by_path.passed_bytes
    heard = by_path.model_has_heard()
    await by_path.hears(SPOKEN)
    after = by_path.passed_bytes
    heard += by_path.model_has_heard()

    assert after - before == len(SPOKEN)
    assert heard == codec.MulawDecoder(16_000).decode(by_path.said)


async def test_a_model_that_tells_of_a_machine_late_has_its_beep_listened_for(
    autojump_clock, by_path
):
    await by_path.hears((SPOKEN * 62)[:LISTENS])
    await by_path.hears(SPOKEN)
    heard = by_path.model_has_heard()
    passed = by_path.passed_bytes
    by_path.call.report_voicemail()
    await by_path.hears(SPOKEN + BEEP)
    unseen = by_path.passed_bytes - passed
    await by_path.hears(SILENCE * 5 * FRAME_BYTES)
    heard += by_path.model_has_heard()

    assert unseen == 0
    assert by_path.call.end_reason is EndReason.VOICEMAIL
    assert "beep" in by_path.noted
    assert codec.MulawDecoder(16_000).decode(by_path.said).startswith(heard)
    assert len(heard) >= 4 * (LISTENS + 2 * len(SPOKEN))


async def test_the_model_hears_nothing_of_a_machine_though_caller_audio_passed_unseen(
    autojump_clock, nursery
):
    call = ByPath(nursery, voicemail=VoicemailPolicy.LEAVE_MESSAGE)
    await call.begin(nursery)
    call.join()
    await call.hears((SPOKEN * 62)[:LISTENS])
    await call.hears(SILENCE * FRAME_BYTES)
    passed = call.passed_bytes
    call.is_called_a_machine()
    call.says(1, turn=1)
    await trio.sleep(1.0 + QUIET_S + 0.1)
    stage = call.call.conversation.stage
    call.model_has_heard()
    await call.hears(SPOKEN)
    heard = call.model_has_heard()
    call.call.end(EndReason.HUNG_UP)

    assert passed > 0
    assert stage is Stage.TO_MACHINE
    assert call.passed_bytes == passed
    assert heard == codec.MulawDecoder(16_000).decode(SILENCE * len(SPOKEN))


def test_a_tone_in_which_listening_ended_is_no_beep_when_it_begins_again():
    machine = AnsweringMachine()
    machine.hear(load_speech("hello"), 0.0)
    machine.hear(BEEP, AnsweringMachine.LISTENS_S)
    machine.told(AnsweringMachine.LISTENS_S + 30.0)

    assert not machine.hear(SILENCE * 200, AnsweringMachine.LISTENS_S + 31.0)
