"""What an agent owes whose model tells of an interruption, by what the caller was heard to say."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from codec.line import FRAME_BYTES, FRAME_S, SILENCE
from server.agent import phrases
from server.agent.agent import Agent
from server.dialogue.ear import BargeInMode
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.model import Interrupted, TurnComplete
from server.simulators.phone import load_speech
from tests.support.calls_on_a_rig import SECOND_PCM, Rig

PATIENCE = Patience(reply_timeout_s=6.0, silence_timeout_s=15.0)
NO_STOP = load_speech("question")[4_000:7_200]
"""0.4 s without a pause."""
CLIPPED_NO = NO_STOP[:960]
"""0.12 s of it."""


class Interrupting(Rig):
    """A call whose agent is interrupted."""

    def __init__(self, mode: BargeInMode, agent: Agent, **options) -> None:
        super().__init__(
            agent=agent, barge_in=mode, patience=PATIENCE, media_timeout_s=600.0, **options
        )

    async def hears(self, payload: bytes) -> None:
        for at in range(0, len(payload), FRAME_BYTES):
            self.media.say(payload[at : at + FRAME_BYTES])
            await trio.sleep(FRAME_S)

    async def is_quiet_for(self, seconds: float) -> None:
        await self.hears(SILENCE * round(seconds / FRAME_S) * FRAME_BYTES)

    def model_is_interrupted(self, turn: int) -> None:
        self.session.event(Interrupted(turn, trio.current_time()))
        self.session.event(TurnComplete(turn, None))

    async def texts_after(self, seconds: float) -> list[str]:
        await self.is_quiet_for(seconds)
        await wait_all_tasks_blocked()
        return [text for _, text in self.session.texts]


@pytest.fixture(params=[BargeInMode.BOTH, BargeInMode.MODEL])
async def call(request, nursery):
    call = Interrupting(request.param, Agent(greeting=""))
    await call.begin(nursery)
    yield call
    call.call.end(EndReason.HUNG_UP)


async def stops_the_agent(call: Interrupting, sound: bytes) -> tuple[bool, list[str], list[str]]:
    """Stop the agent with a sound that the model notices before the caller is heard to be silent.

    Returns:
        Whether they were heard to speak then, and what the model was asked for in 5.9 s from when
        they were not, and in 0.2 s more.
    """
    call.audio(SECOND_PCM * 5, turn=1)
    await call.is_quiet_for(1.0)
    await call.hears(sound)
    await call.is_quiet_for(0.1)
    turns = call.call.conversation.turns
    spoke = turns.caller_speaking
    if call.call.conversation.options.barge_in is not BargeInMode.LOCAL:
        call.model_is_interrupted(1)
    while turns.caller_speaking:
        await call.hears(SILENCE * FRAME_BYTES)
    return spoke, await call.texts_after(5.9), await call.texts_after(0.2)


async def test_who_stops_the_agent_with_a_clipped_word_is_owed_an_answer(autojump_clock, call):
    spoke, waits, asked = await stops_the_agent(call, CLIPPED_NO)

    assert spoke
    assert call.noted.count("barge-in") == 1
    assert (waits, asked) == ([], [phrases.NUDGE_TO_ANSWER])


async def test_who_stops_the_agent_by_our_own_judgement_is_owed_an_answer_however_little_it_takes(
    autojump_clock, nursery
):
    call = Interrupting(BargeInMode.LOCAL, Agent(greeting=""), barge_in_confirm_s=0.06)
    await call.begin(nursery)
    spoke, waits, asked = await stops_the_agent(call, CLIPPED_NO)
    call.call.end(EndReason.HUNG_UP)

    assert spoke
    assert call.noted.count("barge-in") == 1
    assert (waits, asked) == ([], [phrases.NUDGE_TO_ANSWER])


async def test_who_stops_the_agent_with_what_the_model_is_not_told_of_is_owed_an_answer(
    autojump_clock, nursery
):
    call = Interrupting(BargeInMode.BOTH, Agent(greeting="", turn_end="local"))
    await call.begin(nursery)
    spoke, waits, asked = await stops_the_agent(call, CLIPPED_NO)
    call.call.end(EndReason.HUNG_UP)

    assert spoke
    assert call.noted.count("barge-in") == 1
    assert call.session.told == []
    assert (waits, asked) == ([], [phrases.NUDGE_TO_ANSWER])


async def test_who_stops_the_agent_with_a_word_is_owed_an_answer(autojump_clock, call):
    call.audio(SECOND_PCM * 5, turn=1)
    await call.is_quiet_for(1.0)
    await call.hears(NO_STOP)
    await call.is_quiet_for(0.6)
    owed_for_the_word = call.call.conversation.turns.is_busy
    call.model_is_interrupted(1)
    waits = await call.texts_after(5.9)
    asked = await call.texts_after(0.2)

    assert not owed_for_the_word
    assert "barge-in" in call.noted
    assert (waits, asked) == ([], [phrases.NUDGE_TO_ANSWER])


async def test_a_model_that_takes_the_question_for_an_interruption_of_its_answer_owes_that(
    autojump_clock, call
):
    await call.hears(load_speech("question"))
    await call.is_quiet_for(0.6)
    call.audio(SECOND_PCM * 2, turn=1)
    await call.is_quiet_for(0.3)
    answered = not call.call.conversation.turns.is_busy
    call.model_is_interrupted(1)
    waits = await call.texts_after(5.9)
    asked = await call.texts_after(0.2)

    assert answered
    assert (waits, asked) == ([], [phrases.NUDGE_TO_ANSWER])


async def test_an_answer_to_an_interruption_is_asked_for_of_no_model_that_gives_it(
    autojump_clock, call
):
    call.audio(SECOND_PCM * 5, turn=1)
    await call.is_quiet_for(1.0)
    await call.hears(NO_STOP)
    await call.is_quiet_for(0.6)
    call.model_is_interrupted(1)
    await call.is_quiet_for(1.0)
    call.audio(SECOND_PCM, turn=2)
    call.session.event(TurnComplete(2, None))

    assert await call.texts_after(9.0) == []


@pytest.mark.parametrize("call", [BargeInMode.LOCAL], indirect=True)
async def test_a_turn_that_is_broken_off_for_nobody_is_over_when_the_next_has_begun(
    autojump_clock, call
):
    call.audio(SECOND_PCM * 2, turn=1)
    await trio.sleep(0.5)
    call.session.event(Interrupted(1, trio.current_time()))  # and no more is told of it
    await trio.sleep(3.0)
    call.audio(SECOND_PCM, turn=2)
    call.session.event(TurnComplete(2, None))
    await trio.sleep(1.1)
    call.media.echo_marks()
    await wait_all_tasks_blocked()

    assert "interruption not believed" in call.noted
    assert "barge-in" not in call.noted
    assert call.call.conversation.is_heard_out
