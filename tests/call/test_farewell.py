"""A goodbye that the caller speaks into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from codec.ear import SpeechEnded, SpeechStarted, Stop
from server.agent.agent import Agent
from server.carrier import MarkReached, SendMark
from server.dialogue.ear import BargeInMode
from server.dialogue.endings import EndReason
from server.dialogue.remedies import BELIEVED_S, Patience
from server.model import CallerTranscript, GenerationComplete, TurnComplete
from tests.support.calls_on_a_rig import SECOND_PCM, Rig

TIMEOUT_S = 4.0


class Goodbye(Rig):
    """A call whose agent has hung up, and is taking its leave."""

    def __init__(self) -> None:
        super().__init__(
            agent=Agent(greeting=""),
            barge_in=BargeInMode.LOCAL,
            farewell_timeout_s=TIMEOUT_S,
            media_timeout_s=600.0,
            patience=Patience(silence_timeout_s=0.0),
        )

    def says(self, seconds: int, turn: int) -> None:
        self.audio(SECOND_PCM * seconds, turn)
        self.session.event(GenerationComplete(turn))
        self.session.event(TurnComplete(turn, None))

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
    goodbye.media.echo_marks()
    await wait_all_tasks_blocked()

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
    goodbye.media.echo_marks()
    await wait_all_tasks_blocked()

    assert in_its_middle is None
    assert goodbye.call.end_reason is EndReason.HUNG_UP
