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

    @property
    def ends_by(self) -> float:
        """When the turn is to end at the latest; infinity outside of one."""
        return NEVER if self._told_at is None else self._told_at + MAX_TURN_S

    def started(self, at: float, now: float, *, agent_heard: bool) -> Told:
        """The caller has begun to speak at this time."""
        self._began_at = at
        return () if agent_heard and self._wait_for_cut else self._begin(now)

    def cut(self, now: float) -> Told:
        """The agent has been interrupted by what the caller says."""
        return self._begin(now)

    def ended(self, at: float, now: float, *, speech_s: float, agent_until: float) -> Told:
        """The caller has stopped at this time; they may have gone on when the agent had ended."""
        told: Told = ()
        if speech_s >= SHORTEST_S and agent_until <= at:
            told = self._begin(now)
        self._began_at = None
        return told + self.close()

    def released(self, now: float) -> Told:
        """What was kept from the model, with speech in it, is about to be given to it at once."""
        if self._told_at is not None:
            return ()
        self._told_at, self._began_at = now, None
        return (TurnBegins(0.0),)

    def close(self) -> Told:
        """Whatever the caller does, they are in no turn any more."""
        if self._told_at is None:
            return ()
        self._told_at = None
        return (TurnEnds(),)

    def _begin(self, now: float) -> Told:
        began_at, self._began_at = self._began_at, None
        if self._told_at is not None or began_at is None:
            return ()
        self._told_at = now
        return (TurnBegins(now - began_at + BEFORE_S),)
