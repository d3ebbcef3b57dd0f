"""Seeing to it that somebody speaks: the greeting, the watchdog, the silent caller, the end.

:class:`~server.dialogue.turns.Turns` decides; this waits for its times and does what it says. Part
of a :class:`~server.call.call.Call`, which starts :meth:`Watch.run` when the model is there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from server.agent import phrases
from server.agent.agent import Agent
from server.dialogue.endings import EndReason
from server.dialogue.turns import (
    AskIfThere,
    Awaited,
    Decision,
    GiveUpCaller,
    Recover,
    Rung,
    TimeIsUp,
    WrapUp,
)
from server.model import Session, Way

if TYPE_CHECKING:
    from server.call.call import Call


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
    """Carries out what the turns of a call demand."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._changed = trio.Event()
        self._hint = ""

    def reconsider(self) -> None:
        """Something has happened: it may be another's turn, or sooner."""
        self._changed.set()

    def hint(self, text: str) -> None:
        """Tell the model this, now or never."""
        self._hint = text
        self.reconsider()

    async def run(self, session: Session) -> None:
        """See to it that somebody speaks: first the agent, then whoever's turn it is."""
        call = self._call
        if greeting := greeting_of(call.agent):
            call.turns.ask(Awaited.GREETING, trio.current_time())
            await session.send_text(greeting)
        while True:
            # The event is made before asking, so that news that come while we act are seen.
            changed = self._changed = trio.Event()
            now = trio.current_time()
            agent_until = call.playout.audible_until(now)
            if self._hint:
                hint, self._hint = self._hint, ""
                await session.send_note(hint)
            elif not call.is_talk:
                await changed.wait()
            elif (decision := call.turns.decide(now, agent_until=agent_until)) is not None:
                await self._carry_out(decision, session)
            else:
                with trio.move_on_at(call.turns.next_due(agent_until)):
                    await changed.wait()

    async def _carry_out(self, decision: Decision, session: Session) -> None:
        call, now = self._call, trio.current_time()
        match decision:
            case Recover():
                await self._recover(decision, session)
            case AskIfThere(times=times):
                call.note("caller silent", times=times)
                call.turns.ask(Awaited.QUESTION, now)
                await session.send_text(phrases.STILL_THERE)
            case GiveUpCaller():
                call.wrap_up(EndReason.CALLER_SILENT)
            case WrapUp(left_s=left_s):
                call.note("time running out", left_s=round(left_s, 1))
                call.turns.ask(Awaited.ANSWER, now)
                await session.send_text(phrases.WRAP_UP.format(seconds=left_s))
            case TimeIsUp():
                call.wrap_up(EndReason.MAX_DURATION)

    async def _recover(self, recover: Recover, session: Session) -> None:
        """The model owes something and does not give it: climb one rung."""
        call, rung, fault = self._call, recover.rung, recover.fault
        call.note(f"watchdog {rung.value}", fault=fault.value, awaited=recover.awaited.value)
        call.metrics.watchdog.labels(rung.value, fault.value).inc()
        if rung is Rung.APOLOGY:
            call.end(EndReason.MODEL_SILENT, fault.value)
        elif rung is Rung.NUDGE:
            await session.send_text(phrases.NUDGES.get(recover.awaited) or greeting_of(call.agent))
        elif not await session.reconnect(Way(rung.value), fault.value):
            call.turns.unavailable(fault, trio.current_time())
