"""A goodbye that the caller speaks into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from codec.ear import SpeechEnded, SpeechStarted, Stop
from server.agent.agent import Agent
from server.call.conversation import Stage
from server.call.farewell import PAUSE_S
from server.carrier import DigitPressed, MarkReached, SendMark
from server.dialogue.ear import BargeInMode
from server.dialogue.endings import EndReason
from server.dialogue.remedies import BELIEVED_S, Patience
from server.dialogue.turns import CONNECTION_LOST
from server.model import (
    CallerTranscript,
    GenerationComplete,
    Interrupted,
    Reconnected,
    TurnComplete,
    Way,
)
from tests.support.calls_on_a_rig import SECOND_PCM, Rig

TIMEOUT_S = 4.0
NO_HURRY = Patience(silence_timeout_s=0.0)
SILENT_S = 5.0


class Goodbye(Rig):
    """A call whose agent is taking its leave."""

    def __init__(
        self, patience: Patience = NO_HURRY, mode: BargeInMode = BargeInMode.LOCAL
    ) -> None:
        super().__init__(
            agent=Agent(greeting=""),
            barge_in=mode,
            farewell_timeout_s=TIMEOUT_S,
            media_timeout_s=600.0,
            patience=patience,
        )

    def says(self, seconds: int, turn: int) -> None:
        self.audio(SECOND_PCM * seconds, turn)
        self.session.event(GenerationComplete(turn))
        self.session.event(TurnComplete(turn, None))

    async def was_heard(self) -> None:
        """The carrier has played all that it was sent."""
        self.media.echo_marks()
        await wait_all_tasks_blocked()

    def caller_begins(self) -> None:
        self.call.conversation.ear.on_found((SpeechStarted(trio.current_time()),))

    def caller_ends(self, speech_s: float) -> None:
        now = trio.current_time()
        self.call.conversation.ear.on_found((SpeechEnded(now, speech_s, now),))

    async def caller_interrupts(self) -> None:
        """They speak into what the agent has said a second of."""
        await trio.sleep(1.0)
        self.caller_begins()
        self.call.conversation.ear.on_found((Stop.CUT,))

    async def takes_leave_beside(self, go_on: Callable[[], Awaitable[None]]) -> float:
        """How long the call still lasts, whatever goes on meanwhile."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            await self.call.finished.wait()
            nursery.cancel_scope.cancel()
        return trio.current_time() - began


@pytest.fixture
async def goodbye(nursery):
    goodbye = Goodbye()
    await goodbye.begin(nursery)
    goodbye.says(3, turn=1)
    goodbye.call.hang_up_when_heard()
    await wait_all_tasks_blocked()
    yield goodbye
    goodbye.call.end(EndReason.HUNG_UP)


async def test_who_speaks_into_the_goodbye_for_long_is_heard_to_the_end_and_answered(
    autojump_clock, goodbye
):
    await goodbye.caller_interrupts()
    await trio.sleep(3 * TIMEOUT_S)
    goodbye.session.event(CallerTranscript("one more thing"))
    await trio.sleep(TIMEOUT_S)
    in_their_midst = goodbye.call.end_reason
    goodbye.caller_ends(4 * TIMEOUT_S)
    await trio.sleep(TIMEOUT_S - 0.5)
    goodbye.says(1, turn=2)
    await trio.sleep(1.0)
    unheard = goodbye.call.end_reason
    await goodbye.was_heard()

    assert (in_their_midst, unheard) == (None, None)
    assert goodbye.call.end_reason is EndReason.AGENT_HUNG_UP


async def test_an_answer_that_never_comes_to_who_spoke_into_the_goodbye_is_not_waited_for(
    autojump_clock, goodbye
):
    await goodbye.caller_interrupts()
    await trio.sleep(6.0)
    goodbye.caller_ends(6.0)
    spoke_until = trio.current_time()
    await goodbye.call.finished.wait()

    assert trio.current_time() - spoke_until == pytest.approx(TIMEOUT_S)
    assert goodbye.call.end_reason is EndReason.AGENT_HUNG_UP


@pytest.mark.parametrize("is_broken", [False, True])
async def test_a_television_keeps_nobody_on_the_line_for_ever(autojump_clock, goodbye, is_broken):
    async def speak() -> None:
        while is_broken:
            await trio.sleep(2.0)
            goodbye.caller_ends(2.0)
            await trio.sleep(1.0)
            goodbye.caller_begins()

    await goodbye.caller_interrupts()
    took_s = await goodbye.takes_leave_beside(speak)

    # Belief begins anew with the first answer that is owed.
    assert took_s <= 3.0 + BELIEVED_S + TIMEOUT_S
    assert goodbye.call.end_reason is EndReason.AGENT_HUNG_UP


async def test_noises_that_are_no_speech_keep_nobody_on_the_line(autojump_clock, goodbye):
    async def make_noises() -> None:
        while True:
            await trio.sleep(0.5)
            goodbye.caller_ends(0.1)
            await trio.sleep(1.0)
            goodbye.caller_begins()

    await goodbye.caller_interrupts()

    assert await goodbye.takes_leave_beside(make_noises) <= 2 * TIMEOUT_S
    assert goodbye.call.end_reason is EndReason.AGENT_HUNG_UP


async def test_a_goodbye_is_heard_to_its_end_though_a_function_was_called_in_the_middle_of_it(
    autojump_clock, nursery
):
    goodbye = Goodbye()
    await goodbye.begin(nursery)
    goodbye.call.farewell.begin(EndReason.HUNG_UP)
    await wait_all_tasks_blocked()
    goodbye.audio(SECOND_PCM, 1)
    goodbye.session.event(GenerationComplete(1))
    goodbye.audio(SECOND_PCM * 2, 2)
    await trio.sleep(1.0)
    for command in goodbye.media.commands:
        if isinstance(command, SendMark) and command.name.startswith("1:"):
            goodbye.media.event(MarkReached(command.name, trio.current_time()))
    await wait_all_tasks_blocked()
    in_its_middle = goodbye.call.end_reason
    goodbye.session.event(GenerationComplete(2))
    goodbye.session.event(TurnComplete(2, None))
    await trio.sleep(2.0)
    await goodbye.was_heard()

    assert in_its_middle is None
    assert goodbye.call.end_reason is EndReason.HUNG_UP


async def gives_up(nursery: trio.Nursery, mode: BargeInMode = BargeInMode.LOCAL) -> Goodbye:
    """Nobody has said anything, and the agent has been told to say goodbye."""
    goodbye = Goodbye(Patience(silence_timeout_s=SILENT_S, silence_prompts=0), mode)
    await goodbye.begin(nursery)
    await trio.sleep(SILENT_S)
    await wait_all_tasks_blocked()
    assert goodbye.call.conversation.stage is Stage.FAREWELL
    return goodbye


@pytest.fixture
async def given_up(nursery):
    goodbye = await gives_up(nursery)
    yield goodbye
    goodbye.call.end(EndReason.HUNG_UP)


async def is_heard(goodbye: Goodbye, seconds: int, turn: int) -> None:
    goodbye.says(seconds, turn)
    await trio.sleep(seconds + 0.1)
    await goodbye.was_heard()


def lives_on(goodbye: Goodbye) -> bool:
    return goodbye.call.end_reason is None and goodbye.call.conversation.stage is Stage.TALK


async def test_who_says_something_into_the_goodbye_for_their_silence_is_not_hung_up_on(
    autojump_clock, given_up
):
    given_up.says(2, turn=1)
    await given_up.caller_interrupts()
    await trio.sleep(1.0)
    given_up.caller_ends(1.0)
    await wait_all_tasks_blocked()
    spoke = lives_on(given_up)
    await is_heard(given_up, 1, turn=2)
    await trio.sleep(SILENT_S - 0.5)
    answered = lives_on(given_up)
    await trio.sleep(0.5)
    await is_heard(given_up, 1, turn=3)

    assert spoke
    assert answered
    assert given_up.noted.count("wrapping up") == 2
    assert given_up.call.end_reason is EndReason.CALLER_SILENT


async def test_who_is_answered_before_it_is_certain_that_they_have_ended_is_not_hung_up_on(
    autojump_clock, given_up
):
    await trio.sleep(0.5)
    given_up.caller_begins()
    await trio.sleep(1.0)
    ended_at = trio.current_time()
    given_up.says(1, turn=1)
    now = trio.current_time() + 0.5
    await trio.sleep(0.5)
    given_up.call.conversation.ear.on_found((SpeechEnded(ended_at, 1.0, now),))
    await trio.sleep(0.6)
    await given_up.was_heard()

    assert lives_on(given_up)


async def test_who_is_still_speaking_when_the_goodbye_was_heard_is_heard_out(
    autojump_clock, given_up
):
    given_up.says(1, turn=1)
    await trio.sleep(0.9)
    given_up.caller_begins()
    await trio.sleep(0.2)
    given_up.media.echo_marks()
    await trio.sleep(2.0)
    in_their_midst = given_up.call.end_reason
    given_up.caller_ends(2.2)
    await wait_all_tasks_blocked()

    assert in_their_midst is None
    assert lives_on(given_up)


@pytest.mark.parametrize("is_stopped", [True, False], ids=["and stops it", "and is not heeded"])
@pytest.mark.parametrize("mode", [BargeInMode.BOTH, BargeInMode.MODEL])
async def test_who_says_a_short_word_into_the_goodbye_for_their_silence_is_not_hung_up_on(
    autojump_clock, nursery, mode, is_stopped
):
    goodbye = await gives_up(nursery, mode)
    goodbye.says(3, turn=1)
    await trio.sleep(1.0)
    goodbye.caller_begins()
    await trio.sleep(0.9)
    goodbye.caller_ends(0.5)
    if is_stopped:
        goodbye.session.event(Interrupted(1, trio.current_time()))
        goodbye.session.event(TurnComplete(1, None))
    await is_heard(goodbye, 1, turn=2)
    lives = lives_on(goodbye)
    goodbye.call.end(EndReason.HUNG_UP)

    assert lives


async def test_who_is_understood_by_the_model_alone_is_not_hung_up_on_for_their_silence(
    autojump_clock, given_up
):
    given_up.says(2, turn=1)
    await trio.sleep(1.0)
    given_up.session.event(CallerTranscript("I am here"))
    await trio.sleep(1.1)
    await given_up.was_heard()

    assert lives_on(given_up)


async def test_a_server_that_stops_does_so_though_a_silent_caller_speaks_into_the_goodbye(
    autojump_clock, given_up
):
    given_up.says(3, turn=1)
    await trio.sleep(0.5)
    given_up.call.farewell.begin(EndReason.DRAINED)
    await given_up.caller_interrupts()
    await trio.sleep(1.0)
    given_up.caller_ends(1.0)
    await is_heard(given_up, 1, turn=2)

    assert given_up.call.end_reason is EndReason.DRAINED


@pytest.mark.parametrize("at_s", [0.5, 2.9])
async def test_who_presses_a_key_into_the_goodbye_for_their_silence_is_not_hung_up_on(
    autojump_clock, given_up, at_s
):
    given_up.says(3, turn=1)
    await trio.sleep(at_s)
    given_up.media.event(DigitPressed("1"))
    await trio.sleep(3.1 - at_s)
    await given_up.was_heard()

    assert lives_on(given_up)


@pytest.mark.parametrize("speech_s", [None, 0.1], ids=["nothing", "a click"])
async def test_who_says_nothing_into_the_goodbye_for_their_silence_is_hung_up_on(
    autojump_clock, given_up, speech_s
):
    given_up.says(1, turn=1)
    await trio.sleep(0.3)
    if speech_s is not None:
        given_up.caller_begins()
        await trio.sleep(speech_s)
        given_up.caller_ends(speech_s)
    await trio.sleep(0.8)
    await given_up.was_heard()

    assert given_up.call.end_reason is EndReason.CALLER_SILENT


async def test_a_television_puts_the_end_off_by_no_more_than_the_time_for_a_goodbye(
    autojump_clock, given_up
):
    began = trio.current_time()
    given_up.says(1, turn=1)
    await trio.sleep(0.5)
    given_up.caller_begins()
    await trio.sleep(0.6)
    given_up.media.echo_marks()
    await given_up.call.finished.wait()

    assert given_up.call.end_reason is EndReason.CALLER_SILENT
    assert trio.current_time() - began == pytest.approx(1.1 + TIMEOUT_S, abs=0.1)


async def test_whoever_speaks_into_a_goodbye_for_another_reason_is_answered_and_hung_up_on(
    autojump_clock, nursery
):
    goodbye = Goodbye()
    await goodbye.begin(nursery)
    goodbye.call.farewell.begin(EndReason.MAX_DURATION)
    await wait_all_tasks_blocked()
    goodbye.says(2, turn=1)
    await goodbye.caller_interrupts()
    await trio.sleep(0.5)
    goodbye.caller_ends(0.5)
    await is_heard(goodbye, 1, turn=2)

    assert goodbye.call.end_reason is EndReason.MAX_DURATION


async def test_a_machine_is_not_kept_waiting_for_the_rest_of_a_goodbye_that_nobody_asks_for(
    autojump_clock, nursery
):
    goodbye = Goodbye()
    await goodbye.begin(nursery)
    goodbye.audio(SECOND_PCM, 1)
    goodbye.call.hang_up_when_heard()
    goodbye.call.conversation.move("machine")
    goodbye.session.event(TurnComplete(1, CONNECTION_LOST))
    await trio.sleep(1.1)
    goodbye.media.echo_marks()
    goodbye.session.event(Reconnected("closed-1011", Way.RESUME, "model", 0.2, 0.0))
    goodbye.session.event(TurnComplete(2, None))
    began = trio.current_time()
    await goodbye.call.finished.wait()

    assert goodbye.call.end_reason is EndReason.AGENT_HUNG_UP
    assert trio.current_time() - began == pytest.approx(PAUSE_S, abs=0.1)
