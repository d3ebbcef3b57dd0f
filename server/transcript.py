"""What was said: both sides' turns as the caller heard them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

Speaker = Literal["caller", "agent"]

MAX_TURNS = 1_000
"""A bound for a call that never ends; the oldest turns go first."""


@dataclass(slots=True)
class SpokenTurn:
    """One side's turn."""

    speaker: Speaker
    started_s: float
    """Seconds since the call was answered (negative: prepared while it rang)."""
    text: str = ""
    number: int | None = None
    """The agent turn's number; None for the caller."""
    heard_s: float | None = None
    sent_s: float | None = None
    cut: bool = False

    @property
    def heard_text(self) -> str:
        """The text up to the word where the turn was cut.

        The service gives no word times, so the cut falls where the heard share of the audio falls
        in the text, on a word boundary at or before it.
        """
        if not self.cut or not self.sent_s or self.heard_s is None:
            return self.text
        at = int(len(self.text) * min(1.0, self.heard_s / self.sent_s))
        if at >= len(self.text):
            return self.text
        return self.text[: self.text.rfind(" ", 0, at + 1) + 1].rstrip()


class Transcript:
    """The turns of a call, in the order in which they began."""

    def __init__(self) -> None:
        self.turns: deque[SpokenTurn] = deque(maxlen=MAX_TURNS)
        self._repeated: SpokenTurn | None = None  # is being recognised once more
        self._is_fresh = False  # and nothing of it has come again yet

    def agent_said(self, text: str, turn: int, at_s: float) -> None:
        """Add a piece of the agent's words to its turn."""
        if not self._is_fresh:
            self._repeated = None
        self._agent_turn(turn, at_s).text += text

    def caller_said(self, text: str, at_s: float) -> None:
        """Add a piece of the caller's words to the turn that is open, or begin one."""
        turn = self._repeated
        if turn is None:
            if not self.turns or self.turns[-1].speaker != "caller":
                self.turns.append(SpokenTurn("caller", at_s))
            turn = self.turns[-1]
        elif self._is_fresh:
            turn.text = ""
            self._is_fresh = False
        turn.text += text

    def caller_repeats(self) -> None:
        """What the caller said last is being recognised once more: it takes its own place."""
        callers = (turn for turn in reversed(self.turns) if turn.speaker == "caller")
        self._repeated = next(callers, None)
        self._is_fresh = self._repeated is not None

    def agent_heard(self, turn: int, *, heard_s: float, sent_s: float, cut: bool) -> None:
        """Say how much of an agent turn the caller has heard."""
        for spoken in self.turns:
            if spoken.number == turn:
                spoken.heard_s, spoken.sent_s, spoken.cut = heard_s, sent_s, cut

    def _agent_turn(self, turn: int, at_s: float) -> SpokenTurn:
        for spoken in reversed(self.turns):
            if spoken.number == turn:
                return spoken
        spoken = SpokenTurn("agent", at_s, number=turn)
        self.turns.append(spoken)
        return spoken

    def as_list(self, *, words: bool = True) -> list[dict[str, object]]:
        """The turns as the API shows them; without words, who spoke and when."""
        return [
            {
                "speaker": turn.speaker,
                "at_s": round(turn.started_s, 3),
                "text": turn.heard_text.strip() if words else None,
                "heard_s": None if turn.heard_s is None else round(turn.heard_s, 3),
                "cut": turn.cut,
            }
            for turn in self.turns
        ]
