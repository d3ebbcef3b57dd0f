"""What was said: both sides' turns as the caller heard them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Speaker = Literal["caller", "agent"]

MAX_TURNS = 1_000
"""A bound for a call that never ends; the oldest turns go first."""
MAX_TURN_CHARACTERS = 20_000
"""Of one turn: some twenty minutes of speech without a pause. What would go beyond is left out."""
MAX_CHARACTERS = 500_000
"""Of all turns together: nine hours of speech. The oldest turns go first."""
SAME_S = 0.05
"""Marks are not more exact than that, and no word is shorter."""
USUAL_CHARS_PER_S = 15.0
"""How fast people speak, letters and spaces, until we have heard this agent for a while."""
ENOUGH_S = 5.0
"""Speech after which its own rate is known."""
LONGEST_WORD = 40
"""Characters. Where there is no space among so many, none is to be expected."""
_BESIDE_A_BREAK = re.compile(
    # White space; what is written without: Thai, Lao; Burmese; Khmer; Chinese and Japanese with
    # their marks, and what is as wide.
    r"[\s\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u3190-\u9fff\uf900-\ufaff\uff00-\uffef"
    r"\U00020000-\U0003ffff]"
)
_NEVER_LAST = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4\u200d")
"""Vowels of Thai and Lao that are written before their consonant, and what joins characters."""
_NEVER_FIRST = frozenset("\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3\u200d")
"""Vowels of theirs that are written behind it."""


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
    """What the caller has heard of an agent turn; None until anything of it was on its way."""
    made_s: float = 0.0
    """All audio of it that has come."""
    complete: bool = False
    """All text of the turn has come."""
    cut: bool = False

    @property
    def is_ahead(self) -> bool:
        """Whether its text has come, and nothing of its audio is on its way yet."""
        return self.speaker == "agent" and self.heard_s is None

    def heard_text(self, chars_per_s: float) -> str:
        """The text up to the word that the caller has heard last.

        The service gives no word times, so a turn breaks where the heard share of the audio falls
        in the text, on a word boundary at or before it: between any two characters where words are
        written without spaces. The text of a turn that is still coming is
        ahead of its audio, by seconds: how long that would have taken is estimated.

        Args:
            chars_per_s: How fast the agent speaks.
        """
        if self.heard_s is None:
            return self.text
        whole_s = self.made_s
        if not self.complete or not self.made_s:  # or no audio of it ever came
            whole_s = max(self.made_s, len(self.text) / chars_per_s)
        if self.heard_s >= whole_s - SAME_S:
            return self.text
        at = int(len(self.text) * self.heard_s / whole_s)
        return self.text[: _break_before(self.text, at)].rstrip()


def _break_before(text: str, at: int) -> int:
    """Find the last place at or before this one where a text can be broken off.

    Args:
        text: The text.
        at: A place in it, before its end.

    Returns:
        How many characters are before the break.
    """
    first = max(0, at - LONGEST_WORD)
    places = [place for place in range(at, first, -1) if _may_break(*text[place - 1 : place + 1])]
    for place in places:
        if _BESIDE_A_BREAK.search(text, place - 1, place + 1):
            return place
    return 0 if first == 0 else next(iter(places), first)


def _may_break(one: str, other: str) -> bool:
    """Whether two characters are not part of the same one to whoever reads them."""
    is_mark = unicodedata.category(other).startswith("M")
    return not (is_mark or one in _NEVER_LAST or other in _NEVER_FIRST)


class Transcript:
    """The turns of a call, in the order in which they began."""

    def __init__(self) -> None:
        self.turns: list[SpokenTurn] = []
        self.inherited = 0
        """How many of the call's turns were said while another process had it."""
        self._by_number: dict[int, SpokenTurn] = {}
        self._characters = 0
        self._dropped = self._told = 0
        self._repeated: SpokenTurn | None = None  # is being recognised once more
        self._is_fresh = False  # and nothing of it has come again yet
        self._repeated_after = 0  # the agent's turn before

    def agent_said(self, text: str, turn: int, at_s: float) -> None:
        """Add a piece of the agent's words to its turn."""
        if not self._is_fresh:
            self._repeated = None
        self._add(self._agent_turn(turn, at_s), text)

    def caller_said(self, text: str, at_s: float) -> None:
        """Add a piece of the caller's words to the turn that is open, or begin one."""
        turn = self._repeated
        if turn is None:
            if not self.turns or self.turns[-1].speaker != "caller":
                self._begin(SpokenTurn("caller", at_s))
            turn = self.turns[-1]
        elif self._is_fresh:
            self._characters -= len(turn.text)
            turn.text = ""
            self._is_fresh = False
        self._add(turn, text)

    def reconnected(self, agent_turn: int, *, words_repeated: bool) -> None:
        """The model hears the caller over another connection.

        Args:
            agent_turn: The agent's turn before, whatever of it was said or heard.
            words_repeated: What the caller said last is being recognised once more, all of it: it
                takes its own place. Else what comes is added to what there is.
        """
        callers = (turn for turn in reversed(self.turns) if turn.speaker == "caller")
        self._repeated = next(callers, None) if words_repeated else None
        self._is_fresh = self._repeated is not None
        self._repeated_after = agent_turn

    def caller_started(self, agent_turn: int) -> None:
        """The caller begins to speak, while the agent says this turn, or after it.

        If that answers what was to be recognised once more, whatever is recognised from now on is
        new. The answer alone does not say so: words may be told late, long after its end. Where
        they never are, what was recognised before stays as it is.
        """
        if agent_turn > self._repeated_after:
            self._repeated, self._is_fresh = None, False

    def agent_heard(self, turn: int, *, heard_s: float, made_s: float, cut: bool) -> None:
        """Say how much of an agent turn the caller has heard, and how much there was."""
        if (spoken := self._by_number.get(turn)) is not None:
            spoken.heard_s, spoken.made_s, spoken.cut = heard_s, made_s, cut

    def agent_complete(self, turn: int) -> None:
        """The model has sent all of this agent turn."""
        if (spoken := self._by_number.get(turn)) is not None:
            spoken.complete = True

    def over(self) -> None:
        """The call is over: the caller has heard nothing of a turn of which no audio has come."""
        for turn in self.turns:
            # Of another process's turns it is not known how much there was.
            if turn.number is not None and not turn.made_s:
                turn.heard_s, turn.cut = 0.0, True

    def heard_text(self, turn: SpokenTurn) -> str:
        """What the caller has heard of it; all that was said, if it is the caller's own."""
        is_estimated = turn.heard_s is not None and not turn.complete
        rate = self._chars_per_s() if is_estimated else USUAL_CHARS_PER_S
        return turn.heard_text(rate).strip()

    def agent_heard_text(self, number: int) -> str:
        """What the caller has heard of an agent turn, "" if there is no such turn."""
        turn = self._by_number.get(number)
        return "" if turn is None else self.heard_text(turn)

    @property
    def counts(self) -> tuple[int, int]:
        """How many turns there were until now, and of how many of them was told."""
        return self._dropped + len(self.turns), self._told

    def go_on(self, turns: Iterable[SpokenTurn], *, before: int, told: int) -> None:
        """These turns were before all others: another process has heard them.

        Args:
            turns: The last of them.
            before: How many there were before these.
            told: Of how many in all it has told.
        """
        self._dropped, self._told = before, told
        for turn in turns:
            self._begin(turn)
            self._characters += len(turn.text)
        self.inherited = self._dropped + len(self.turns)

    def settled(self, heard: int | None, *, words: bool) -> list[tuple[int, dict[str, object]]]:
        """The turns of which nothing more is to come, each of them once, and as the API shows it.

        Args:
            heard: An agent turn that was heard or cut: it, and what was before it, is settled. None
                when the call is over: all are.
            words: Whether what was said is shown, and not only who spoke and when.

        Returns:
            How many turns there were before each, and the turn.
        """
        last = len(self.turns)
        if heard is not None:
            spoken = self._by_number.get(heard)
            while last and self.turns[last - 1] is not spoken:
                last -= 1
        first = max(0, self._told - self._dropped)
        self._told = max(self._told, self._dropped + last)
        chars_per_s = self._chars_per_s() if first < last else USUAL_CHARS_PER_S
        return [
            (self._dropped + place, self._as_dict(self.turns[place], words, chars_per_s))
            for place in range(first, last)
        ]

    def _chars_per_s(self) -> float:
        """How fast this agent speaks, by the turns that were generated to their ends."""
        chars = seconds = 0.0
        for turn in self.turns:
            if turn.complete and turn.text and turn.made_s:
                chars += len(turn.text)
                seconds += turn.made_s
        return chars / seconds if seconds > ENOUGH_S else USUAL_CHARS_PER_S

    def _agent_turn(self, turn: int, at_s: float) -> SpokenTurn:
        spoken = self._by_number.get(turn)
        if spoken is None:
            spoken = self._by_number[turn] = SpokenTurn("agent", at_s, number=turn)
            self._begin(spoken)
        return spoken

    def _add(self, turn: SpokenTurn, text: str) -> None:
        text = text[: MAX_TURN_CHARACTERS - len(turn.text)]
        turn.text += text
        self._characters += len(text)
        while self._characters > MAX_CHARACTERS and len(self.turns) > 1:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self.turns.pop(0)
        self._dropped += 1
        self._characters -= len(oldest.text)
        if oldest.number is not None:
            del self._by_number[oldest.number]
        if oldest is self._repeated:
            self._repeated, self._is_fresh = None, False

    def _begin(self, turn: SpokenTurn) -> None:
        self.turns.append(turn)
        while len(self.turns) > MAX_TURNS:
            self._drop_oldest()

    def as_list(self, *, words: bool = True) -> list[dict[str, object]]:
        """The turns as the API shows them; without words, who spoke and when."""
        chars_per_s = self._chars_per_s()
        return [self._as_dict(turn, words, chars_per_s) for turn in self.turns]

    def _as_dict(self, turn: SpokenTurn, words: bool, chars_per_s: float) -> dict[str, object]:
        heard = turn.heard_text(chars_per_s).strip()
        shown: dict[str, object] = {
            "speaker": turn.speaker,
            "at_s": round(turn.started_s, 3),
            "text": heard if words else None,
            "heard_s": None if turn.heard_s is None else round(turn.heard_s, 3),
            "cut": turn.cut,
        }
        if turn.cut:
            # The model has these in its memory as if it had said them.
            shown["unheard"] = turn.text.strip()[len(heard) :].strip() if words else None
        return shown
