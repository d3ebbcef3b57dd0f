"""How long a call may still go on, and when it is brought to an end."""

from __future__ import annotations

from dataclasses import dataclass

from server.dialogue.remedies import NEVER, Patience, TimeIsUp, WrapUp


@dataclass(slots=True)
class TimeLeft:
    """The end of the longest call, with time before it to come to an end and to say goodbye."""

    _wrap_up_at: float = NEVER
    _farewell_at: float = NEVER
    _ends_at: float = NEVER

    def answered(self, now: float, ends_at: float, patience: Patience) -> None:
        """The caller is on the line, until ``ends_at`` at the longest."""
        self._ends_at = ends_at
        # A short call has no time for either: the last third of it at most is for ending it.
        farewell_s, wrap_up_s = patience.farewell_timeout_s, patience.wrap_up_s
        if 0 < farewell_s <= (ends_at - now) / 3:
            self._farewell_at = ends_at - farewell_s
        if farewell_s < wrap_up_s <= (ends_at - now) / 3:
            self._wrap_up_at = ends_at - wrap_up_s

    def decide(self, now: float, wrap_up_due: float) -> WrapUp | TimeIsUp | None:
        """What has to be done now, each thing once.

        Args:
            now: The time.
            wrap_up_due: See :meth:`wrap_up_due`.
        """
        if now >= self._farewell_at:
            self._farewell_at = NEVER
            return TimeIsUp()
        if now >= wrap_up_due:
            self._wrap_up_at = NEVER
            return WrapUp(max(0.0, self._ends_at - now))
        return None

    def next_due(self, wrap_up_due: float) -> float:
        """When something has to be done."""
        return min(self._farewell_at, wrap_up_due)

    def wrap_up_due(self, agent_until: float, *, is_someones_turn: bool) -> float:
        """In a silence after its time; at the latest when two thirds of what is left are left.

        Args:
            agent_until: Until when the caller hears the agent, as far as is known.
            is_someones_turn: Whether the caller speaks, or more of the agent's turn is to come.
        """
        if self._wrap_up_at == NEVER:
            return NEVER
        latest = self._wrap_up_at + (self._ends_at - self._wrap_up_at) / 3
        if is_someones_turn:
            return latest
        return min(latest, max(self._wrap_up_at, agent_until))
