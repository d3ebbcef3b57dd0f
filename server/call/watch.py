"""Seeing to it that somebody speaks: the greeting, the watchdog, the silent caller, the end.

:class:`~server.dialogue.turns.Turns` decides; this waits for its times and does what it says. The
call starts :meth:`Watch.run` when the model is there.
"""

from __future__ import annotations

from dataclasses import replace

import trio

from server.agent import phrases
from server.agent.agent import Agent
from server.call.conversation import Conversation, Stage
from server.call.farewell import Farewell
from server.call.hearing import Telling
from server.call.machine import Machine
from server.dialogue.endings import EndReason
from server.dialogue.remedies import (
    NEVER,
    AskIfThere,
    Awaited,
    Decision,
    GiveUpCaller,
    Recover,
    Rung,
    TimeIsUp,
    WrapUp,
)
from server.model import Way

NUDGES = {
    Awaited.ANSWER: phrases.NUDGE_TO_ANSWER,
    Awaited.CONTINUATION: phrases.NUDGE_TO_CONTINUE,
    Awaited.QUESTION: phrases.NUDGE_TO_ASK,
}
"""What a model that has not answered is asked; for the greeting, that is the greeting once more."""


def greeting_of(agent: Agent) -> str:
    """The instruction that makes the model speak first; empty if it does not have to."""
    if agent.greeting_audio:
        return ""
    if agent.greeting_text:
        return phrases.verbatim(agent.greeting_text)
    return agent.greeting


def briefed(agent: Agent) -> Agent:
    """The agent as the model is to know it: what a recording has said for it, it has said."""
    if not agent.greeting_audio:
        return agent
    said = phrases.already_greeted(agent.greeting_text)
    return replace(agent, prompt=f"{agent.prompt}\n\n{said}")


class Watch:
    """Carries out what the turns of a call demand.

    Args:
        conversation: The call.
        telling: Tells the model of the caller's turns, where it has to be told.
        farewell: How it ends politely.
        machine: May find that a machine has the call; None if nothing is done about machines.
        first_words: What the model is told first in a call that goes on, empty for nothing; None
            to have it greet.
    """

    def __init__(
        self,
        conversation: Conversation,
        telling: Telling,
        farewell: Farewell,
        machine: Machine | None,
        first_words: str | None = None,
    ) -> None:
        self._conversation = conversation
        self._telling = telling
        self._farewell = farewell
        self._machine = machine
        self._first_words = first_words

    async def run(self) -> None:
        """See to it that somebody speaks: first the agent, then whoever's turn it is."""
        c = self._conversation
        if self._first_words is not None:
            if self._first_words:
                c.turns.ask(Awaited.CONTINUATION, trio.current_time())
                c.session.send_text(self._first_words)
        elif greeting := greeting_of(c.party.agent):
            c.turns.ask(Awaited.GREETING, trio.current_time())
            c.session.send_text(greeting)
        c.begun.set()
        while True:
            # The event is made before asking, so that news that come while we act are seen.
            changed = c.turn_changed.next()
            c.passing.collect()
            now = trio.current_time()
            agent_until = c.playout.audible_until(now)
            if c.hint:
                hint, c.hint = c.hint, ""
                c.session.send_note(hint)
            elif c.is_lost:
                await changed.wait()
            elif c.stage is Stage.FAREWELL:
                await self._see_goodbye_whole(changed)
            elif not c.is_talk:
                await changed.wait()
            elif self._machine is not None and now < self._machine.silent_until:
                with trio.move_on_at(self._machine.silent_until):
                    await changed.wait()
            elif (decision := self._decide(now, agent_until)) is not None:
                await self._carry_out(decision)
            else:
                with trio.move_on_at(c.turns.next_due(agent_until)):
                    await changed.wait()

    async def _see_goodbye_whole(self, changed: trio.Event) -> None:
        """Ask for the rest of a goodbye that the model broke off; nothing else is owed any more."""
        turns, now = self._conversation.turns, trio.current_time()
        if turns.caller_speaking:
            await changed.wait()  # to be answered before all else
            return
        if now >= turns.rest_due:
            turns.rest_due = NEVER
            if turns.has_more_to_come(now, by_itself=False):
                self._conversation.session.send_text(NUDGES[Awaited.CONTINUATION])
        with trio.move_on_at(turns.rest_due):
            await changed.wait()

    def _decide(self, now: float, agent_until: float) -> Decision | None:
        c = self._conversation
        was_speaking = c.turns.caller_speaking
        decision = c.turns.decide(now, agent_until=agent_until)
        if not c.turns.caller_speaking and (was_speaking or decision is not None):
            self._telling.disbelieve()  # nobody answers in the middle of a turn of the caller's
        return decision

    async def _carry_out(self, decision: Decision) -> None:
        c, now = self._conversation, trio.current_time()
        match decision:
            case Recover():
                await self._recover(decision)
            case AskIfThere(times=times):
                c.notes.note("caller silent", times=times)
                c.turns.ask(Awaited.QUESTION, now)
                c.session.send_text(phrases.STILL_THERE)
            case GiveUpCaller():
                self._farewell.begin(EndReason.CALLER_SILENT)
            case WrapUp(left_s=left_s):
                c.notes.note("time running out", left_s=round(left_s, 1))
                c.turns.ask(Awaited.ANSWER, now)
                c.session.send_text(phrases.WRAP_UP.format(seconds=left_s))
            case TimeIsUp():
                self._farewell.begin(EndReason.MAX_DURATION)

    async def _recover(self, recover: Recover) -> None:
        """The model owes something and does not give it: climb one rung."""
        c, rung, fault = self._conversation, recover.rung, recover.fault
        awaited = recover.awaited.value
        c.notes.note_trouble(f"watchdog {rung.value}", fault=fault.value, awaited=awaited)
        c.metrics.watchdog.labels(rung.value, fault.value).inc()
        if rung is Rung.APOLOGY:
            c.end(EndReason.MODEL_SILENT, fault.value)
        elif rung is Rung.NUDGE:
            c.session.send_text(NUDGES.get(recover.awaited) or greeting_of(c.party.agent))
        elif not await c.session.reconnect(Way(rung.value), fault.value):
            c.turns.unavailable(fault, trio.current_time())
