"""Where the caller's turns begin and end, for a model that is told: no I/O and no clock.

A model that is told takes every turn for an interruption. So one that begins over the agent is told
only when it certainly is one, and one that was nothing but a sound over it is not told at all.
"""

from __future__ import annotations

from dataclasses import dataclass

BEFORE_S = 0.3
"""Audio before the first sound that belongs to a turn: the service adds none by itself."""
MAX_TURN_S = 30.0
"""After so long a turn is over, whatever the ear says: the model would never answer."""
AGAIN_S = 1.5
"""So long the model has to begin its answer to a turn that was closed while the caller went on;
then what goes on is another turn. With :data:`BEFORE_S` it is less than is kept of the audio."""
LOWER_S = 3.0
"""So long after what was said it is certain whether a lower voice that goes on is the caller's: the
ear takes 2.5 s, and people make pauses."""
SHORTEST_S = 0.2
"""Speech that is worth a turn when it is over before it was told."""
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class TurnBegins:
    """A turn of the caller's has begun, with the audio from so long ago on."""

    before_s: float


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """The caller's turn is over."""


Told = tuple[TurnBegins | TurnEnds, ...]


class CallerTurns:
    """What the model is to be told of the caller's turns.

    Args:
        wait_for_cut: Whether the ear says when speech over the agent is an interruption.
    """

    def __init__(self, *, wait_for_cut: bool) -> None:
        self._wait_for_cut = wait_for_cut
        self._began_at: float | None = None  # speech that is not told yet
        self._told_at: float | None = None
        self._again_at = NEVER
        self._over_at = NEVER  # the turn, if nothing more is heard of it
        self._is_known = False  # what is being said, or a part of it

    @property
    def is_on(self) -> bool:
        """Whether the model has been told of a turn that is not over."""
        return self._told_at is not None

    def next_due(self, agent_until: float) -> float:
        """When a turn is to be closed, or told of again: ask :meth:`is_over` or :meth:`again`.

        Args:
            agent_until: Until when the agent is heard: what goes on over it is not told again.
        """
        if self._told_at is not None:
            return min(self._told_at + MAX_TURN_S, self._over_at)
        return max(self._again_at, agent_until) if self._again_at < NEVER else NEVER

    def is_over(self, now: float) -> bool:
        """Whether the turn has lasted for longer than any, or its end was waited for in vain."""
        return self._told_at is not None and now >= min(self._told_at + MAX_TURN_S, self._over_at)

    def overdue(self, now: float) -> Told:
        """The turn has lasted for longer than any: what goes on of it is another."""
        told = self.close()
        self.goes_on(now)
        self._is_known = False
        return told

    def take_known(self) -> bool:
        """Whether the model was told of what has now ended, or a part of it, and owes an answer."""
        is_known, self._is_known = self._is_known, False
        return is_known

    def goes_on(self, now: float, *, is_believed: bool = True) -> None:
        """The caller speaks on though their turn was closed: it is another, not told yet.

        Args:
            now: Since when it is another.
            is_believed: Whether it is to be told when the agent is silent; if not, only if it turns
                out to have been an interruption, or when it has ended.
        """
        self._began_at = now
        self._again_at = now + AGAIN_S if is_believed else NEVER

    def again(self, now: float, *, agent_until: float) -> Told:
        """Tell of what goes on, if the model has had its time to answer and says nothing."""
        return self._begin(now) if now >= max(self._again_at, agent_until) else ()

    def started(self, at: float, now: float, *, agent_heard: bool) -> Told:
        """The caller has begun to speak at this time."""
        self._began_at = at
        if agent_heard and self._wait_for_cut:
            return ()
        self._over_at = NEVER
        return self._begin(now)

    def cut(self, now: float) -> Told:
        """The agent has been interrupted by what the caller says."""
        self._over_at = NEVER
        return self._begin(now)

    def may_go_on(self, at: float) -> bool:
        """The caller has stopped at this time, or speaks lower: their turn is not over yet.

        Returns:
            Whether it is waited for which it is; not where the model was told of no turn.
        """
        self._over_at = at + LOWER_S if self.is_on else NEVER
        return self.is_on

    def ended(self, at: float, now: float, *, speech_s: float, agent_until: float) -> Told:
        """The caller has stopped at this time, which is certain now.

        It is told if the agent is not heard any more: they may have gone on when it had ended.
        """
        told: Told = ()
        # Of what was closed while it went on, only the rest is another turn.
        began_at = at if self._began_at is None else self._began_at
        if min(speech_s, at - began_at) >= SHORTEST_S and agent_until <= now:
            told = self._begin(now)
        self._began_at, self._again_at = None, NEVER
        return told + self.close()

    def released(self, now: float) -> Told:
        """What was kept from the model, with speech in it, is about to be given to it at once."""
        if self._told_at is not None:
            return ()
        self._told_at, self._began_at, self._again_at = now, None, NEVER
        self._is_known = True
        return (TurnBegins(0.0),)

    def close(self) -> Told:
        """Whatever the caller does, they are in no turn any more."""
        self._over_at = NEVER
        if self._told_at is None:
            return ()
        self._told_at = None
        return (TurnEnds(),)

    def _begin(self, now: float) -> Told:
        began_at, self._began_at = self._began_at, None
        self._again_at = NEVER
        if self._told_at is not None or began_at is None:
            return ()
        self._told_at, self._is_known = now, True
        return (TurnBegins(now - began_at + BEFORE_S),)
