"""A model that says it is still at work on its answer is left alone, for a while."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.dialogue.endings import EndReason
from server.dialogue.remedies import (
    AskIfThere,
    Awaited,
    Fault,
    Recover,
    Rung,
)
from server.dialogue.turns import Turns
from server.model import AgentAudio, TurnComplete, Working
from server.model.gemini.protocol import GeminiProtocol
from server.model.lasting.model import LastingModel
from server.simulators.gemini import ModelScript
from tests.support.calls_on_a_rig import SECOND_PCM, Rig
from tests.support.gemini_messages import PCM, audio
from tests.support.rig import calling
from tests.support.talks import PATIENCE, Talk, talk

THINKING_S = PATIENCE.thinking_timeout_s


# --- What the service says


@pytest.mark.parametrize(
    "message",
    [
        {"serverContent": {"turnComplete": True, "interactionStatus": "IN_PROGRESS"}},
        {"serverContent": {"turnComplete": True}, "interactionStatus": "IN_PROGRESS"},
        {"server_content": {"turn_complete": True, "interaction_status": "IN_PROGRESS"}},
        {"serverContent": {"turnComplete": True, "interactionStatus": "REQUIRES_ACTION"}},
    ],
)
def test_a_turns_end_says_that_more_is_coming(message):
    events = GeminiProtocol().receive(json.dumps(message), 0.0)

    assert events == [TurnComplete(1, None, more=True)]


@pytest.mark.parametrize(
    "message",
    [
        {"serverContent": {"turnComplete": True, "interactionStatus": "IDLE"}},
        {"serverContent": {"turnComplete": True}, "interactionStatus": "IDLE"},
        {"serverContent": {"turnComplete": True}},
        {"serverContent": {"turnComplete": True, "interactionStatus": 7}},
    ],
)
def test_a_turns_end_is_the_end_without_that(message):
    events = GeminiProtocol().receive(json.dumps(message), 0.0)

    assert events == [TurnComplete(1, None, more=False)]


@pytest.mark.parametrize(
    ("message", "is_on"),
    [
        ({"interactionStatus": "IN_PROGRESS"}, True),
        ({"interactionStatus": "IDLE"}, False),
        ({"serverContent": {"interactionStatus": "IN_PROGRESS"}}, True),
    ],
)
def test_the_status_may_come_without_a_turns_end(message, is_on):
    assert GeminiProtocol().receive(json.dumps(message), 0.0) == [Working(is_on)]


def test_the_status_may_come_with_audio():
    events = GeminiProtocol().receive(audio(interactionStatus="IN_PROGRESS"), 1.0)

    assert events == [AgentAudio(PCM, 1, 1.0), Working(True)]


# --- What the call makes of it


def told_to_wait(**answered: float) -> Talk:
    """The caller has asked, and the agent has said that it will have a look."""
    talking = talk(**answered)
    talking.caller_says()
    says_that_more_is_coming(talking)
    return talking


def says_that_more_is_coming(talking: Talk, seconds: float = 1.0) -> None:
    talking.turn += 1
    if seconds:
        talking.hear(seconds)
        talking.turns.agent_generated(talking.turn)
    talking.turns.agent_completed(talking.turn, None, talking.now, more=True)


def test_neither_silence_prompt_nor_rung_comes_while_a_model_is_at_work():
    talking = told_to_wait()

    assert talking.wait(until=talking.now + THINKING_S - 0.1) is None
    assert talking.turns.is_busy


def test_a_model_at_work_without_a_sound_is_noticed_in_time():
    talking = told_to_wait()
    began_at = talking.now

    assert talking.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert talking.now == began_at + THINKING_S


def test_saying_again_that_it_is_at_work_does_not_put_that_off():
    talking = told_to_wait()
    began_at = talking.now

    while (decision := talking.wait(until=talking.now + 1.0)) is None:
        talking.turns.agent_working(talking.now)
        says_that_more_is_coming(talking, seconds=0)

    assert decision == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert talking.now <= began_at + THINKING_S + PATIENCE.reply_timeout_s


def test_being_heard_puts_it_off():
    talking = told_to_wait()

    for _ in range(5):
        assert talking.wait(until=talking.now + THINKING_S - 1.0) is None
        says_that_more_is_coming(talking)

    assert talking.wait(until=talking.now + THINKING_S - 1.0) is None


def test_the_answer_ends_it_and_a_silent_caller_is_asked_in_the_end():
    talking = told_to_wait()
    talking.wait(until=talking.now + 20.0)

    talking.agent_says(2.0)

    assert talking.wait() == AskIfThere(1)
    assert talking.now == talking.agent_until + PATIENCE.silence_timeout_s


def test_a_model_that_is_idle_without_an_answer_has_the_time_of_any_other():
    talking = told_to_wait()
    talking.wait(until=talking.now + 5.0)

    talking.turns.agent_idle(talking.now)
    idle_at = talking.now

    assert talking.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert talking.now == idle_at + PATIENCE.reply_timeout_s


def test_a_model_that_says_so_before_its_first_word_is_not_nudged():
    talking = talk()
    talking.caller_says()
    talking.turns.agent_working(talking.now)

    assert talking.wait(until=talking.now + THINKING_S - 0.1) is None


def test_an_empty_turn_with_more_to_come_is_no_fault():
    talking = talk()
    talking.caller_says()
    says_that_more_is_coming(talking, seconds=0)

    assert talking.decide() is None


def test_a_cough_does_not_end_the_waiting():
    talking = told_to_wait()
    began_at = talking.now
    talking.now += 2.0

    talking.caller_says(0.1)

    assert isinstance(talking.wait(), Recover)
    assert talking.now == began_at + THINKING_S


def test_a_word_of_the_callers_does_not_make_it_shorter():
    talking = told_to_wait()
    talking.now += 2.0

    talking.caller_says(1.0)

    assert talking.wait(until=talking.now + PATIENCE.reply_timeout_s + 5.0) is None


def test_a_new_connection_is_at_work_on_nothing():
    talking = told_to_wait()
    talking.turns.recovered(talking.now)

    assert isinstance(talking.wait(), Recover)
    assert talking.now <= PATIENCE.rung_timeout_s + 2.0


def test_a_lost_connection_is_not_at_work():
    turns = Turns(PATIENCE)
    turns.answered(0.0)
    turns.agent_audio(1, 1.0, audible=True, now=0.0)
    turns.agent_completed(1, "CONNECTION_LOST", 1.0, more=True)

    assert turns.next_due(1.0) <= 1.0 + PATIENCE.reply_timeout_s


# --- Whole calls


THINKS = ModelScript(thinking_turns=frozenset({2}), thinking_s=25.0)
CALLEE = "asks-and-is-told-to-wait"


async def test_a_call_waits_for_a_model_that_thinks(autojump_clock):
    async with calling(callee=CALLEE, script=THINKS) as rig:
        await rig.over()

    (session,) = rig.sessions
    assert rig.record["reason"] == "caller-hung-up"
    assert any(moment.what == "thinks on" for moment in session.timeline)
    assert not any(what.startswith("watchdog") or what == "caller silent" for what in rig.noted)
    assert len(session.texts) == 1  # the greeting was all that it was asked for
    assert rig.record["transcript"][-1]["heard_s"] > 1.0


async def test_a_connection_is_not_replaced_while_its_model_thinks(autojump_clock):
    rotating = partial(LastingModel, connection_age_s=12.0)
    async with calling(callee=CALLEE, script=THINKS, make_model=rotating) as rig:
        await rig.over()

    first = rig.sessions[0]
    thought = [moment.at_s for moment in first.timeline if moment.what == "thinks on"]
    left = [moment.at_s for moment in first.timeline if "closed by the client" in moment.what]
    assert left[0] > thought[0] + 25.0


async def test_a_call_notices_a_model_that_has_forgotten_what_it_was_thinking_about(
    autojump_clock,
):
    forgets = ModelScript(thinking_turns=frozenset({2}), forgets=True)
    async with calling(callee=CALLEE, script=forgets) as rig:
        nudged_s = await rig.noted_s("watchdog nudge")
        await rig.over()

    (session,) = rig.sessions
    thought_s = next(moment.at_s for moment in session.timeline if moment.what == "thinks on")
    assert THINKING_S - 2.0 <= nudged_s - thought_s <= THINKING_S + 2.0
    assert rig.record["reason"] == "caller-hung-up"


@pytest.mark.parametrize("more", [True, False])
async def test_one_moment_is_no_goodbye(autojump_clock, nursery, more):
    rig = Rig(media_timeout_s=60.0)
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    await wait_all_tasks_blocked()

    rig.call.farewell.begin(EndReason.DRAINED)
    await wait_all_tasks_blocked()
    rig.audio(SECOND_PCM, turn=1)
    rig.session.event(TurnComplete(1, None, more=more))
    await trio.sleep(1.1)
    rig.media.echo_marks()
    await wait_all_tasks_blocked()
    over_after_the_first = rig.call.is_over
    rig.audio(SECOND_PCM, turn=2)
    rig.session.event(TurnComplete(2, None))
    await trio.sleep(1.1)
    rig.media.echo_marks()
    await wait_all_tasks_blocked()

    assert over_after_the_first is not more
    assert rig.call.is_over
