"""Calls whose model is told of the caller's turns, and what it is owed to answer."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.frames import Frame, Opcode

import codec
from codec.ear import SpeechEnded, SpeechStarted
from codec.line import FRAME_BYTES, FRAME_S, SILENCE
from codec.path import WebSocket
from server.agent.agent import Agent
from server.call.conversation import Conversation
from server.carrier import StreamStopped
from server.carrier.twilio.messages import audio_messages
from server.dialogue.endings import EndReason
from server.dialogue.remedies import BELIEVED_S, Patience
from server.model.lasting.model import LastingModel
from server.simulators.phone import load_speech
from server.voice.told import AGAIN_S, BEFORE_S, LOWER_S, MAX_TURN_S
from tests.model.test_told_turns import Changing
from tests.support.calls_on_a_rig import SECOND_PCM, Rig
from tests.support.fakes import MemoryMedia
from tests.support.path_messages import SID, media
from tests.support.sounds import noise
from tests.support.websocket_oracle import write_frames

VOWELS = load_speech("question")[4_000:8_000]
"""Half a second without a pause."""
QUIET = Patience(silence_timeout_s=0.0)


class Told(Rig):
    """A call that was answered, whose model is told of turns."""

    async def hears(self, seconds: float, payload: bytes = VOWELS) -> None:
        for number in range(round(seconds / FRAME_S)):
            at = number * FRAME_BYTES % len(payload)
            self.media.say(payload[at : at + FRAME_BYTES])
            await trio.sleep(FRAME_S)

    async def hears_until_told(self, count: int, within_s: float = 60.0) -> None:
        """Speak without a pause until the model has been told so often."""
        for _ in range(round(within_s / FRAME_S)):
            if len(self.session.told) >= count:
                return
            await self.hears(FRAME_S)
        raise AssertionError(f"told only {self.session.told}")

    @property
    def conversation(self) -> Conversation:
        return self.call.conversation

    @property
    def told(self) -> list[str]:
        return [what for _, what in self.session.told]


@pytest.fixture
async def call(nursery):
    call = Told(agent=Agent(greeting="", turn_end="local"), patience=QUIET, media_timeout_s=600.0)
    nursery.start_soon(call.call.run)
    nursery.start_soon(call.call.serve, call.media, call.media.start())
    await wait_all_tasks_blocked()
    await call.hears(0.5, SILENCE * FRAME_BYTES)
    yield call
    call.call.end(EndReason.HUNG_UP)


def keep_believing(call: Told) -> None:
    call.conversation.turns.caller_active(trio.current_time())


async def test_who_speaks_on_for_longer_than_a_turn_may_last_is_heard_in_another(
    autojump_clock, call
):
    for _ in range(3):
        await call.hears(MAX_TURN_S / 3 - 0.5)
        keep_believing(call)
    await call.hears_until_told(3)
    await call.hears(1.0, SILENCE * FRAME_BYTES)

    assert call.told == ["begins", "ends", "begins", "ends"]
    (begun, _), (ended, _), (again, _), _ = call.session.told
    assert ended - begun == pytest.approx(MAX_TURN_S, abs=0.1)
    assert again - ended == pytest.approx(AGAIN_S, abs=0.1)


async def test_who_speaks_on_over_the_answer_is_heard_when_they_interrupt_it(autojump_clock, call):
    for _ in range(3):
        await call.hears(MAX_TURN_S / 3 - 0.5)
        keep_believing(call)
    await call.hears_until_told(2)
    call.audio(SECOND_PCM * 3, turn=1)
    await call.hears_until_told(3)

    assert call.noted.count("barge-in") == 1
    assert call.told == ["begins", "ends", "begins"]


async def test_the_model_is_not_asked_to_answer_while_the_caller_is_told_to_speak(
    autojump_clock, call
):
    while not call.session.texts:
        await call.hears(0.5)
        assert trio.current_time() < 60.0

    (asked_at, _), *_ = call.session.texts
    (begun_at, _), (ended_at, _) = call.session.told
    assert call.told == ["begins", "ends"]
    assert BELIEVED_S - 0.5 < ended_at - begun_at < BELIEVED_S + 0.5
    assert ended_at + QUIET.reply_timeout_s <= asked_at + 0.1


async def test_who_speaks_on_when_the_line_is_back_is_heard(autojump_clock, call):
    await call.hears(2.0)
    call.media.event(StreamStopped(said=False))
    await wait_all_tasks_blocked()
    told_of_loss = list(call.told)
    assert call.conversation.turns.caller_speaking
    await trio.sleep(0.3)
    call.media = MemoryMedia()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.call.serve, call.media, call.media.start())
        await wait_all_tasks_blocked()
        await call.hears(AGAIN_S + 0.2)
        told_of_more = list(call.told)
        await call.hears(1.0, SILENCE * FRAME_BYTES)
        is_owed = call.conversation.turns.is_busy
        call.call.end(EndReason.HUNG_UP)

    assert told_of_loss == ["begins", "ends"]
    assert told_of_more == ["begins", "ends", "begins"]
    assert call.told == ["begins", "ends", "begins", "ends"]
    assert is_owed


async def test_a_question_that_the_line_was_lost_with_is_owed_an_answer(autojump_clock, call):
    await call.hears(2.0)
    call.media.event(StreamStopped(said=False))
    await wait_all_tasks_blocked()
    await trio.sleep(0.3)
    call.media = MemoryMedia()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.call.serve, call.media, call.media.start())
        await wait_all_tasks_blocked()
        await call.hears(1.0, SILENCE * FRAME_BYTES)
        told, is_owed = list(call.told), call.conversation.turns.is_busy
        call.call.end(EndReason.HUNG_UP)

    assert told == ["begins", "ends"]
    assert is_owed


async def test_nothing_is_owed_for_what_the_model_was_not_told(autojump_clock, call):
    call.audio(SECOND_PCM * 20, turn=1)
    await call.hears(0.5, SILENCE * FRAME_BYTES)
    began_at = trio.current_time()
    call.conversation.ear.on_found((SpeechStarted(began_at),))
    await call.hears(2.0, SILENCE * FRAME_BYTES)
    now = trio.current_time()
    call.conversation.ear.on_found((SpeechEnded(began_at + 1.4, 1.3, now, True),))

    assert call.told == []
    assert not call.conversation.turns.is_busy


async def test_a_word_over_the_last_one_of_the_agents_is_told_and_owed_an_answer(
    autojump_clock, call
):
    call.audio(SECOND_PCM, turn=1)
    began_at = trio.current_time()
    await call.hears(0.5, SILENCE * FRAME_BYTES)
    call.conversation.ear.on_found((SpeechStarted(began_at + 0.4),))
    await call.hears(1.0, SILENCE * FRAME_BYTES)
    now = trio.current_time()
    call.conversation.ear.on_found((SpeechEnded(began_at + 0.8, 0.3, now, True),))

    assert call.told == ["begins", "ends"]
    assert call.conversation.turns.is_busy


def judged(call: Told, *found: SpeechStarted | SpeechEnded) -> None:
    """A judge of voices has found this."""
    call.conversation.ear.on_found(found)


def gone_on_low(now: float) -> SpeechEnded:
    return SpeechEnded(now - 0.7, 1.3, now, sure=True, goes_on=True)


async def test_the_model_answers_nobody_who_goes_on_lower(autojump_clock, call):
    judged(call, SpeechStarted(trio.current_time()))
    await trio.sleep(2.0)
    judged(call, gone_on_low(trio.current_time()))
    await trio.sleep(1.9)
    judged(call, SpeechStarted(trio.current_time()))  # it is the caller, who is lower now
    await trio.sleep(5.0)

    assert call.told == ["begins"]
    assert call.session.texts == []


async def test_a_television_ends_the_callers_turn_when_it_is_sure_not_to_be_them(
    autojump_clock, call
):
    judged(call, SpeechStarted(trio.current_time()))
    await trio.sleep(2.0)
    ended_at = trio.current_time() - 0.7
    judged(call, gone_on_low(trio.current_time()))
    await trio.sleep(20.0)

    (_, _), (told_at, _) = call.session.told
    assert call.told == ["begins", "ends"]
    assert told_at == pytest.approx(ended_at + LOWER_S)
    (asked_at, _), *_ = call.session.texts
    assert asked_at == pytest.approx(told_at + QUIET.reply_timeout_s)


class ByPath(Told):
    """A call whose caller is heard by the compiled path."""

    def join(self) -> None:
        self.said = b""
        path = self.conversation.passing.path
        path.phone = WebSocket(is_client=False, max_message_bytes=64 * 1024)
        path.start(SID, audio_messages(SID))
        path.caller_passes = True

    async def hears(self, seconds: float, payload: bytes = VOWELS) -> None:
        path, relay = self.conversation.passing.path, self.conversation.passing.relay
        for number in range(round(seconds / FRAME_S)):
            at = number * FRAME_BYTES % len(payload)
            self.said += payload[at : at + FRAME_BYTES]
            message = media(self.said[-FRAME_BYTES:], len(self.said) // FRAME_BYTES)
            path.phone.receive(write_frames([Frame(Opcode.TEXT, message)], masked=True))
            assert path.next_from_phone(trio.current_time()) is None
            if path.has_caller_news():
                relay.on_caller()
            await trio.sleep(FRAME_S)


async def test_by_the_path_the_model_hears_each_turn_from_just_before_it_on_and_in_order(
    autojump_clock, nursery
):
    service = Changing(True)
    call = ByPath(
        agent=Agent(greeting="", turn_end="local"), model=LastingModel(service), patience=QUIET
    )
    await call.begin(nursery)
    call.join()
    for seed in range(2):
        await call.hears(3.0, noise(3.0, 8.0, seed))
        await call.hears(0.5)
    await call.hears(1.0, noise(1.0, 8.0))
    call.call.end(EndReason.HUNG_UP)

    (heard,) = service.heard
    edges = [at for at, one in enumerate(heard) if one in (b"begins", b"ends")]
    assert [heard[at] for at in edges] == [b"begins", b"ends"] * 2
    whole = codec.MulawDecoder(16_000).decode(call.said)
    for number, spoke_at in enumerate((3.0, 6.5)):
        turn = b"".join(heard[edges[2 * number] + 1 : edges[2 * number + 1]])
        assert whole.find(turn) / 32_000 == pytest.approx(spoke_at - BEFORE_S, abs=0.05)
        assert BEFORE_S + 0.5 < len(turn) / 32_000 < BEFORE_S + 1.1


async def test_what_comes_beside_the_path_is_behind_what_that_has_kept(autojump_clock, nursery):
    service = Changing(True)
    call = ByPath(
        agent=Agent(greeting="", turn_end="local"), model=LastingModel(service), patience=QUIET
    )
    await call.begin(nursery)
    call.join()
    await call.hears(1.0, noise(1.0, 8.0))
    beside = noise(FRAME_S, 8.0, 5)
    call.call.hearing._pass_on(beside, trio.current_time())
    call.said += beside
    await call.hears(0.5)
    await call.hears(1.0, noise(1.0, 8.0))
    call.call.end(EndReason.HUNG_UP)

    (heard,) = service.heard
    begins, ends = (heard.index(one) for one in (b"begins", b"ends"))
    turn = b"".join(heard[begins + 1 : ends])
    assert codec.MulawDecoder(16_000).decode(call.said).find(turn) > 0
