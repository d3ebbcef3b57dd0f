"""How long a detector is believed that hears the caller speak.

A room is never silent, and its noise is speech to a detector most of the time; to a judge of
voices, somebody else's talk and a television are. A model that has fallen silent would not be
noticed there.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.dialogue.remedies import NEVER

BELIEVED_S = 12.0
"""Speech of which nothing but a detector tells: no transcript, no interruption, no answer."""


@dataclass(slots=True)
class Belief:
    """Whether what a detector takes for the caller's speech still counts as that."""

    _sign_at: float = -NEVER
    _is_over: bool = False

    def sign(self, now: float) -> None:
        """Something else than a detector tells that the caller is heard; or all begins anew."""
        self._sign_at = max(self._sign_at, now)

    def until(self, agent_until: float = -NEVER) -> float:
        """Until when a detector is believed, if there is no other sign before."""
        return max(self._sign_at, agent_until) + BELIEVED_S

    def end(self) -> None:
        """What goes on counts as silence from now on."""
        self._is_over = True

    def begin(self) -> None:
        """Speech has begun."""
        self._is_over = False

    def ended(self) -> bool:
        """Speech has ended; says whether it had been given up before."""
        was_over, self._is_over = self._is_over, False
        return was_over
