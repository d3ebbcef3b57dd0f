"""How a call ends politely: with a goodbye that is heard before the line is cut.

It runs as an errand of the call, begun when it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from server.agent import phrases
from server.call.conversation import Conversation, Stage
from server.call.handover import Handover
from server.call.report.report import Report
from server.dialogue.endings import EndReason
from server.dialogue.remedies import NEVER
from server.dialogue.turns import caller_until

COST_CHECK_S = 1.0
PAUSE_S = 1.5
"""Silence after which what was said before ``hang_up`` has been the farewell."""


class Farewell:
    """The end of a call that we have decided on: the first reason counts.

    Args:
        conversation: The call.
        handover: Who may have the caller, or be about to.
    """

    def __init__(self, conversation: Conversation, handover: Handover) -> None:
        self._conversation = conversation
        self._handover = handover
        self._reason = EndReason.ERROR
        self._detail = ""
        self._agents_own = False  # nobody has to nudge it
        self._is_wanted = False
        self._began_at = NEVER

    def begin(self, reason: EndReason, detail: str = "") -> None:
        """Have the agent say goodbye, then end the call.

        The line is cut when the caller has heard the goodbye, at the latest after
        ``farewell_timeout_s``; at once if there is nobody to say it, or to hear it. A caller who
        was given up for saying nothing, and says something, is not hung up on.
        """
        c = self._conversation
        if c.end_reason is not None:
            return
        if self._is_wanted:
            if self._is_for_silence:  # which would be over if they spoke: this is not
                self._reason, self._detail = reason, detail
            return
        self._is_wanted, self._began_at = True, trio.current_time()
        self._reason, self._detail = reason, detail
        c.turns.rest_due = NEVER  # what was broken off before it is no part of the goodbye
        c.notes.note("wrapping up", reason=reason.value)
        if c.may("goodbye"):
            c.move("goodbye")
        c.errands.begin(self._run)
        c.changed.set()  # it may have been begun before

    @property
    def is_the_agents(self) -> bool:
        """Whether the agent says its own, and the call ends when that was heard."""
        return self._agents_own

    def leave_it_to_the_agent(self, reason: EndReason) -> bool:
        """End the call when the agent's own farewell was heard; False if it ends already.

        Where the caller is being connected with somebody else the agent takes its leave by that:
        should nobody answer there, it is told, and they are its own again.
        """
        c = self._conversation
        if self._is_wanted or c.end_reason is not None:
            return False
        if self._handover.is_under_way:
            return True
        self._agents_own = True
        self.begin(reason)
        return True

    async def keep_to_budget(self, report: Report, max_cost_usd: float) -> None:
        """Wrap up before the call, goodbye included, costs more than it may.

        The goodbye may be under way, and be the agent's own, which is heard out however long it is:
        from then on it has no more time than one of ours.
        """
        options = self._conversation.options
        ending_s = COST_CHECK_S + options.farewell_timeout_s + options.close_timeout_s
        while True:
            if report.known_usd(trio.current_time(), ahead_s=ending_s) > max_cost_usd:
                break
            await trio.sleep(COST_CHECK_S)
        self.begin(EndReason.COST_CAP)
        await trio.sleep(options.farewell_timeout_s)
        self._conversation.end(EndReason.COST_CAP)

    async def _run(self) -> None:
        """End the call when the goodbye has been heard."""
        c = self._conversation
        while True:
            await (self._hear_out() if self._agents_own else self._say_goodbye())
            if not self._is_caller_back():
                break
            c.notes.note("caller back", after="goodbye")
            self._is_wanted = False
            c.move("spoke")
            await c.changed.until(lambda: self._is_wanted)
        c.end(self._reason, self._detail)

    def _is_caller_back(self) -> bool:
        """Whether whoever was given up for their silence has broken it, and is to be answered."""
        c = self._conversation
        has_spoken = c.turns.spoke_at > self._began_at and not c.turns.caller_speaking
        return self._is_for_silence and has_spoken and c.may("spoke")

    @property
    def _is_for_silence(self) -> bool:
        return self._reason is EndReason.CALLER_SILENT

    async def _say_goodbye(self) -> None:
        """Have the model say it, and wait until it was heard; or until the caller says something,
        if it is for their silence."""
        c = self._conversation
        with trio.move_on_after(c.options.farewell_timeout_s):
            if c.is_lost:
                await c.changed.until(lambda: not c.is_lost)
            if c.line is not None and c.session.is_ready and c.party.agent.farewell:
                # What the agent is saying now is not the goodbye: that is a turn of its own.
                turn = c.agent_turn
                c.session.send_text(phrases.aside(c.party.agent.farewell))
                await c.changed.until(lambda: self._is_caller_back() or self._is_said(turn))
        if self._is_for_silence:
            with trio.move_on_after(c.options.farewell_timeout_s):
                await c.changed.until(lambda: not c.turns.caller_speaking)

    def _is_said(self, turn: int) -> bool:
        c = self._conversation
        return c.heard_out > turn and c.playout.all_heard

    async def _hear_out(self) -> None:
        """Wait for what is being said now, else for what the agent says next."""
        c = self._conversation
        if not await self._comes_true(lambda: not c.is_lost):
            return
        c.passing.collect()
        turn = c.agent_turn
        if turn > c.finished_turn or not c.is_heard_out:
            if not await self._comes_true(lambda: c.is_heard_out):
                return
            # It may have been no more than "one moment": leave it time for a goodbye.
            with trio.move_on_after(PAUSE_S):
                await c.changed.until(lambda: c.agent_turn > turn)
            if c.agent_turn == turn and self._is_whole(turn):
                return
        while await self._comes_true(partial(self._is_heard_after, turn)):
            turn = c.agent_turn
            if self._is_whole(turn):
                return
            # The caller had something to say: the agent answers before it goes.

    def _is_whole(self, turn: int) -> bool:
        """Whether the agent has said all of this turn that it has to, or would be asked for."""
        c = self._conversation
        is_more_due = c.stage is Stage.FAREWELL and c.turns.rest_due < NEVER
        return not c.was_cut(turn) and not is_more_due

    def _is_heard_after(self, turn: int) -> bool:
        """Whether the agent has said more than this turn, and all of it was heard."""
        c = self._conversation
        return c.agent_turn > turn and c.is_heard_out

    async def _comes_true(self, predicate: Callable[[], bool]) -> bool:
        """Wait for something; False if that takes too long with nothing of the agent's heard, and
        nothing of the caller's that it has to answer."""
        c = self._conversation
        heard_until = trio.current_time()
        while not predicate():
            changed = c.changed.next()
            now = trio.current_time()
            agent_until = c.playout.audible_until(now)
            if c.line is not None:
                heard_until = max(heard_until, agent_until)
            # Not kept: what is taken for speech may turn out to be too short to be answered.
            said_until = caller_until(c.turns, now, agent_until)
            give_up_at = max(heard_until, said_until) + c.options.farewell_timeout_s
            if now >= give_up_at:
                return False
            with trio.move_on_at(give_up_at):
                await changed.wait()
        return True
