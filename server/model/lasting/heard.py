"""What has come of the model, as far as another connection would have to know it: no socket."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import msgspec

from server.agent import phrases
from server.dialogue.turns import CONNECTION_LOST
from server.model import (
    AgentAudio,
    AgentTranscript,
    GenerationComplete,
    Interrupted,
    SessionEvent,
    ToolCall,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Working,
)

MAX_CALLS_KEPT = 64
"""Tool calls that are remembered after their answers, to tell a new connection of them in words."""

MAX_SHORT = 500
"""Characters of arguments, and of a response, that are told of a function that was run."""


class AgentSide:
    """Which turn the agent is in, and how far.

    Attributes:
        turn: The newest one.
        is_speaking: Audio of it has come.
        is_cut: The caller has interrupted it.
        answers_up_to: The input that it answers, as a position.
        was_cut_off: A connection was lost while the agent had more to say.
    """

    def __init__(self, turn: int = 0) -> None:
        self.turn = turn
        self.is_speaking = self.is_cut = self.was_cut_off = False
        self.answers_up_to = 0
        self._is_open = False
        self._is_generated = False  # all of it has come
        self._is_working = False  # the model has said that it is at work on more

    @property
    def is_busy(self) -> bool:
        """Whether a turn is under way, or another one comes by itself."""
        return self._is_open or self._is_working

    def note(self, event: SessionEvent) -> None:
        """An event has come."""
        match event:
            case AgentAudio(turn=turn):
                if not self.is_speaking or turn != self.turn:
                    self._begin(turn)
                    self.is_speaking = True
            case AgentTranscript(turn=turn):
                if not self._is_open or turn != self.turn:
                    self._begin(turn)
            case GenerationComplete():
                self._is_generated = True
            case Interrupted(turn=turn):
                self.turn = turn
                self.is_cut = True
            case ToolCallsRequested(turn=turn) if turn > self.turn:
                # The one before is over, and nothing has been said in this one.
                self.turn = turn
                self._is_open = self.is_cut = self.is_speaking = False
            case TurnComplete(turn=turn, more=more):
                self._is_working = more
                self.turn = turn
                self._is_open = self.is_cut = self.is_speaking = False
            case Working(is_on=is_on):
                self._is_working = is_on
            case _:
                pass

    def connection_lost(self) -> TurnComplete | None:
        """The connection has gone: what has come of the turn is all that will.

        Returns:
            The end of the turn that was under way, if there was one.
        """
        ended = None
        if self._is_open:
            ended = TurnComplete(self.turn, CONNECTION_LOST)
            self.was_cut_off = not (self._is_generated or self.is_cut)
            self._is_open = self.is_speaking = False
        if self._is_working:  # it has said that the rest is to come
            self._is_working, self.was_cut_off = False, True
        return ended

    def _begin(self, turn: int) -> None:
        self.turn = turn
        self._is_open = True
        self.is_cut = self.is_speaking = self._is_generated = False


class ToolCallsMade:
    """The functions that the model wants called, and over which connection it has said so."""

    def __init__(self) -> None:
        self._made: dict[str, _MadeCall] = {}
        self._open: set[str] = set()

    @property
    def are_open(self) -> bool:
        """Whether the model waits for an answer."""
        return bool(self._open)

    def requested(self, calls: Iterable[ToolCall], opens: int) -> None:
        """The model wants these, over the connection of this number."""
        for call in calls:
            self._made[call.id] = _MadeCall(call, opens)
            self._open.add(call.id)
        over = len(self._made) - MAX_CALLS_KEPT
        if over > 0:
            answered = (one for one in self._made if one not in self._open)
            for identity in list(islice(answered, over)):
                del self._made[identity]

    def cancelled(self, ids: Iterable[str]) -> None:
        """The model no longer wants these answers."""
        for identity in ids:
            self._open.discard(identity)
            self._made.pop(identity, None)

    def answered(
        self, results: Iterable[ToolResult], opens: int
    ) -> tuple[tuple[ToolResult, ...], list[str]]:
        """These answers are about to be sent over the connection of this number.

        Returns:
            Those that this connection waits for, and in words those that it knows nothing of.
        """
        known: list[ToolResult] = []
        in_words: list[str] = []
        for result in results:
            call = self._made.get(result.id)
            if call is None:
                continue  # taken back meanwhile
            if call.opens != opens:
                in_words.append(call.in_words(result))
            elif result.id in self._open:
                known.append(result)
            self._open.discard(result.id)
        return tuple(known), in_words

    def done(self, results: Iterable[ToolResult]) -> list[tuple[str, str]]:
        """Functions that were run, each as it was called, and what it has returned, if that can be
        told in a few words."""
        made = ((self._made.get(result.id), result) for result in results)
        return [call.in_short(result) for call, result in made if call is not None]


@dataclass(frozen=True, slots=True)
class _MadeCall:
    """A tool call, and the connection over which it came."""

    call: ToolCall
    opens: int

    def in_words(self, result: ToolResult) -> str:
        """Tell a model that does not remember having called what has come of it."""
        return phrases.was_called(self.call.name, *self._written(result))

    def in_short(self, result: ToolResult) -> tuple[str, str]:
        """The call, and what has come of it: without what is long."""
        arguments, response = self._written(result)
        return (
            self.call.name + (f"({arguments})" if len(arguments) <= MAX_SHORT else ""),
            response if len(response) <= MAX_SHORT else "",
        )

    def _written(self, result: ToolResult) -> tuple[str, str]:
        """The arguments, and what the function has returned, as JSON."""
        arguments, response = map(msgspec.json.encode, (self.call.arguments, result.response))
        return arguments.decode(), response.decode()
