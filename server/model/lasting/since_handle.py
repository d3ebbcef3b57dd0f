"""What has been answered since the last handle came: no socket, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.agent import phrases
from server.model import Conversation, PastTurn, spoken

MAX_SAID_CHARACTERS = 4_000
"""Of what was said since, newest first: many times as much as two say between two handles."""
MAX_DONE = 8
"""Functions that were run since; the oldest make room."""


class SinceHandle:
    """What a session that is resumed with the last handle does not know.

    A handle comes only when a turn is over, which is a playing time after all of it was generated,
    and what was answered by then is said again to nobody. So the next connection is told of it.

    Attributes:
        takes_notes: Whether the model can be told something that it is not to answer.
    """

    def __init__(self) -> None:
        self.takes_notes = True
        self._turn = 0  # the agent's, when the handle came
        self._is_any = False
        self._is_told = False  # to the connection in use, which has answered nothing yet
        self._untold = ""  # to a connection that takes no notes: it goes before the next text
        self._done: list[tuple[str, str]] = []
        self._interrupted: list[str] = []
        self._left: tuple[tuple[str, ...], tuple[str, ...]] = (), ()  # what no answer has covered

    @property
    def is_beyond_telling(self) -> bool:
        """Whether there is something that a resumed session could not be told."""
        return self._is_any and not self.takes_notes

    def go_on(
        self, *, done: tuple[str, ...], interrupted: tuple[str, ...], in_first_words: bool
    ) -> None:
        """Another process has had the session, and there are functions of its.

        Args:
            done: Names of those that it has run.
            interrupted: Names of those that were running.
            in_first_words: Whether the call tells the model of them: what has answered that may be
                forgotten like any other answer. Else they are told here, like those of one.
        """
        self._left = done, interrupted
        if (done or interrupted) and not in_first_words:
            self.answered([])

    def answered(self, done: Iterable[tuple[str, str]]) -> None:
        """The model has answered something: the results of these functions, too.

        Args:
            done: Each as it was called, and what it has returned.
        """
        self._is_any, self._is_told = True, bool(self._untold)
        (left, interrupted), self._left = self._left, ((), ())
        self._interrupted.extend(interrupted)
        self._done.extend((name, "") for name in left)
        self._done.extend(done)
        del self._interrupted[:-MAX_DONE], self._done[:-MAX_DONE]

    def handle_came(self, turn: int) -> None:
        """There is another handle, with the agent's turn of this number.

        One that comes before the first answer may be from before what was told.
        """
        if not self._is_told:
            self._turn, self._is_any = turn, False
            self._done.clear()
            self._interrupted.clear()

    def opened(
        self, conversation: Conversation, turn: int, *, resumed: bool, takes_notes: bool
    ) -> str:
        """Another connection is used, and the agent's newest turn has this number.

        Returns:
            What it has to be told by a note before all else; empty if it knows all, or its set-up
            has told it, or :meth:`before` will.
        """
        self.takes_notes, self._untold = takes_notes, ""
        self._is_told = self._is_any
        if not (resumed and self._is_any):
            return ""
        said = spoken(last_said(conversation.history(), turn - self._turn))
        if not (said or self._has_functions):
            return ""
        if takes_notes:
            return self._told(said)
        self._untold = self._told(said)  # only now it is known that another was to be begun
        return ""

    def before(self, text: str) -> str:
        """A text as the connection is sent it: after what this could not be told by a note."""
        untold, self._untold = self._untold, ""
        return f"{untold}\n{text}" if untold else text

    def story(self, conversation: Conversation) -> Conversation:
        """The conversation as a session is told it that is not resumed: with the functions."""
        if not self._has_functions:
            return conversation
        return _Story(conversation, PastTurn("caller", self._told("")))

    @property
    def _has_functions(self) -> bool:
        return bool(self._done or self._interrupted)

    def _told(self, said: str) -> str:
        return phrases.forgotten(said, done=self._done, interrupted=self._interrupted)


@dataclass(frozen=True, slots=True)
class _Story:
    """A conversation, and what else there is to know of it."""

    conversation: Conversation
    besides: PastTurn

    def is_quiet(self) -> bool:
        return self.conversation.is_quiet()

    def history(self) -> Sequence[PastTurn]:
        return [*self.conversation.history(), self.besides]


def last_said(history: Sequence[PastTurn], agent_turns: int) -> list[PastTurn]:
    """Take the end of a conversation: so many turns of the agent's, and what was said to them.

    What is too long is cut off at its beginning.
    """
    kept: deque[PastTurn] = deque()
    room = MAX_SAID_CHARACTERS
    for turn in reversed(history):
        agent_turns -= turn.speaker == "agent"
        if agent_turns < 0 or room <= 0:
            break
        kept.appendleft(PastTurn(turn.speaker, turn.text[-room:]))
        room -= len(turn.text)
    return list(kept)
