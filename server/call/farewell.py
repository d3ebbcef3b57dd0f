"""How a call ends politely: with a goodbye that is heard before the line is cut.

Part of a :class:`~server.call.call.Call`, which starts :meth:`Farewell.run` with its other loops.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from server.dialogue.endings import EndReason
from server.dialogue.playout import HeardTurn
from server.errors import ModelError

if TYPE_CHECKING:
    from server.call.call import Call

PAUSE_S = 1.5
"""Silence after which what was said before ``hang_up`` has been the farewell."""


class Farewell:
    """The end of a call that we have decided on: the first reason counts."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._is_wanted = False
        self._reason = EndReason.ERROR
        self._detail = ""
        self._agents_own = False  # nobody has to nudge it
        self._after_turn = 0
        self._heard = trio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether the call is being brought to its end."""
        return self._is_wanted

    def begin(self, reason: EndReason, detail: str = "") -> None:
        """Have the agent say goodbye, then end the call.

        The line is cut when the caller has heard the goodbye, at the latest after
        ``farewell_timeout_s``; at once if there is nobody to say it, or to hear it.
        """
        if self.has_begun or self._call.end_reason is not None:
            return
        self._reason, self._detail = reason, detail
        self._call.note("wrapping up", reason=reason.value)
        self._is_wanted = True
        self._call.errands.begin(self.run)

    def leave_it_to_the_agent(self, reason: EndReason) -> bool:
        """End the call when the agent's own farewell was heard; False if it ends already."""
        if self.has_begun or self._call.end_reason is not None:
            return False
        self._agents_own = True
        self.begin(reason)
        return True

    def turn_heard(self, heard: HeardTurn) -> None:
        """A turn was heard to its end, or to where it was cut."""
        goes_on = self._call.turns.is_working(trio.current_time())
        if self.has_begun and heard.turn > self._after_turn and not heard.cut and not goes_on:
            self._heard.set()

    async def run(self) -> None:
        """End the call when the goodbye has been heard; begun when it is wanted."""
        call = self._call
        timeout = trio.move_on_after(call.options.farewell_timeout_s)
        if self._agents_own:
            with timeout:
                await self._hear_out()
        elif call.line is not None and call.session is not None and call.agent.farewell:
            # What the agent is saying now is not the goodbye: that is a turn of its own.
            self._after_turn = call.agent_turn
            # A session that is lost meanwhile ends the call for the reason it had.
            with timeout, contextlib.suppress(ModelError):
                await call.session.send_text(call.agent.farewell)
                await self._heard.wait()
        call.end(self._reason, self._detail)

    async def _hear_out(self) -> None:
        """Wait for what is being said now, else for what the agent says next."""
        call = self._call
        turn = call.agent_turn
        if turn > call.finished_turn or not call.playout.all_heard:
            await call.until(lambda: call.playout.all_heard)
            # It may have been no more than "one moment": leave it time for a goodbye.
            with trio.move_on_after(PAUSE_S):
                await self._agent_speaks_after(turn)
            if call.agent_turn == turn and not self._is_cut(turn):
                return
        while True:
            await self._agent_speaks_after(turn)
            await call.until(lambda: call.playout.all_heard)
            turn = call.agent_turn
            if not self._is_cut(turn):
                return
            # The caller had something to say: the agent answers before it goes.

    async def _agent_speaks_after(self, turn: int) -> None:
        await self._call.until(lambda: self._call.agent_turn > turn)

    def _is_cut(self, turn: int) -> bool:
        heard = self._call.playout.turn_heard(turn, trio.current_time())
        return heard is not None and heard.cut
