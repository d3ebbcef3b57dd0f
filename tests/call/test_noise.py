"""Calls out of rooms that are never silent, with a model that is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from server.agent.agent import Agent
from server.dialogue.remedies import BELIEVED_S, Patience
from server.metrics import VoiceMetrics
from server.simulators.phone import load_speech
from server.simulators.phone.steps import PhoneScript, SayFrames
from server.voice.judge import Judge
from tests.support.noises import NOISES, frames_of, linear, room
from tests.support.rig import calling
from tests.support.sounds import quiet
from tests.voice.test_judge import Loudness

GREETED_S = 8.0
PATIENT_S = 1.0
"""What a mock clock's twentieths of a second and the ear's half second of silence come to."""


class Asking:
    """Somebody who asks one thing in a room, when the greeting is over, and then waits."""

    def __init__(self, name: str) -> None:
        self.asked_at = 0.0
        samples = room(name, 60.0)
        question = linear(load_speech("question"))
        begins = round(GREETED_S * 8_000)
        samples[begins : begins + len(question)] += question
        self._frames = frames_of(samples)
        self._last = (begins + len(question)) // 160

    def frames(self) -> Iterator[bytes]:
        for number, frame in enumerate(self._frames):
            if number == self._last:
                self.asked_at = trio.current_time()
            yield frame

    @property
    def script(self) -> PhoneScript:
        return PhoneScript("asks in a room", (SayFrames(self.frames()),))


@pytest.mark.parametrize("name", NOISES)
async def test_a_silent_model_is_noticed_in_any_room(autojump_clock, name):
    asking = Asking(name)

    async with calling(callee=asking.script, script="deaf-model") as rig:
        await rig.noted_s("watchdog nudge")
        noticed_s = trio.current_time() - asking.asked_at

    assert 0.0 < noticed_s < BELIEVED_S + PATIENT_S


class Quieter(Loudness):
    """A model that takes for a voice what is louder than the room of these calls."""

    def probabilities(self, places, rows):
        super().probabilities(places, rows)
        return [float(max(row) > 0.1) for row in rows]


@pytest.mark.parametrize("name", NOISES)
async def test_with_a_judge_a_silent_model_is_noticed_as_soon_as_on_a_quiet_line(
    autojump_clock, nursery, name
):
    asking = Asking(name)
    judge = Judge(Quieter(), VoiceMetrics(CollectorRegistry()), in_thread=False)
    nursery.start_soon(judge.run)
    await trio.testing.wait_all_tasks_blocked()

    async with calling(callee=asking.script, script="deaf-model", voices=judge) as rig:
        await rig.noted_s("watchdog nudge")
        noticed_s = trio.current_time() - asking.asked_at

    assert 0.0 < noticed_s < Patience().reply_timeout_s + PATIENT_S


async def test_with_a_judge_the_room_does_not_hold_the_agent_and_the_caller_does(
    autojump_clock, nursery
):
    judge = Judge(Quieter(), VoiceMetrics(CollectorRegistry()), in_thread=False)
    nursery.start_soon(judge.run)
    await trio.testing.wait_all_tasks_blocked()
    samples = room("clatter", 20.0)
    word = linear(load_speech("interrupt"))
    samples[24_000 : 24_000 + len(word)] += word
    script = PhoneScript("interrupts in a room", (SayFrames(iter(frames_of(samples))),))

    async with calling(callee=script, script="hard-of-hearing", voices=judge) as rig:
        held_s = await rig.noted_s("agent held")

    assert rig.noted.count("agent held") == 1
    answered_s = next(
        at for at, what, _ in rig.call.conversation.notes.timeline if what == "answered"
    )
    assert 3.0 <= held_s - answered_s < 3.3


class Word:
    """Somebody who says one short word when the greeting is over."""

    def __init__(self) -> None:
        self.said_at = 0.0

    def frames(self) -> Iterator[bytes]:
        word = load_speech("hello")[: 160 * 15]
        spoken = quiet(GREETED_S) + word
        said = len(spoken) // 160
        payload = spoken + quiet(20.0)
        for number, at in enumerate(range(0, len(payload), 160)):
            if number == said:
                self.said_at = trio.current_time()
            yield payload[at : at + 160]


@pytest.mark.parametrize(("script", "is_nudged"), [("deaf-model", True), ("answers", False)])
async def test_a_short_word_that_the_service_ignores_is_asked_about_soon(
    autojump_clock, nursery, script, is_nudged
):
    judge = Judge(Loudness(), VoiceMetrics(CollectorRegistry()), in_thread=False)
    nursery.start_soon(judge.run)
    await trio.testing.wait_all_tasks_blocked()
    word = Word()
    callee = PhoneScript("says yes", (SayFrames(word.frames()),))

    async with calling(callee=callee, script=script, voices=judge) as rig:
        if is_nudged:
            await rig.noted_s("watchdog nudge")
            nudged_s = trio.current_time() - word.said_at
            assert 0.5 < nudged_s < 0.5 + Patience().short_answer_timeout_s + 0.2
        else:
            await trio.sleep(GREETED_S + 8.0)
            assert 0.0 < word.said_at < trio.current_time() - 5.0

    assert rig.noted.count("watchdog nudge") == is_nudged
    assert rig.noted.count("agent turn") == 1 + (not is_nudged)


async def test_a_model_that_text_interrupts_is_not_asked_about_a_short_word_in_haste(
    autojump_clock, nursery
):
    judge = Judge(Loudness(), VoiceMetrics(CollectorRegistry()), in_thread=False)
    nursery.start_soon(judge.run)
    await trio.testing.wait_all_tasks_blocked()
    word = Word()
    callee = PhoneScript("says yes", (SayFrames(word.frames()),))
    agent = Agent(model="gemini-2.5-flash-native-audio-latest")

    async with calling(callee=callee, script="deaf-model", voices=judge, agent=agent) as rig:
        await rig.noted_s("watchdog nudge")
        nudged_s = trio.current_time() - word.said_at

    timeout_s = Patience().reply_timeout_s
    assert timeout_s < nudged_s < timeout_s + PATIENT_S


async def test_who_was_understood_is_known_by_how_loud_they_are(autojump_clock, nursery):
    judge = Judge(Loudness(), VoiceMetrics(CollectorRegistry()), in_thread=False)
    nursery.start_soon(judge.run)
    await trio.testing.wait_all_tasks_blocked()
    question = load_speech("question")
    payload = quiet(GREETED_S) + question + quiet(6.0)
    frames = (payload[at : at + 160] for at in range(0, len(payload), 160))
    callee = PhoneScript("asks", (SayFrames(frames),))

    async with calling(callee=callee, voices=judge) as rig:
        await trio.sleep(GREETED_S + len(question) / 8_000 + 5.0)
        known = rig.call.conversation.ear._verdicts.caller_dbfs

    samples = linear(question) / 32_768
    loud_dbfs = 10 * numpy.log10((samples**2).mean())
    assert known is not None
    assert loud_dbfs - 1.0 < known < loud_dbfs + 6.0
