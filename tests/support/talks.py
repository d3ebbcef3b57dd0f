"""A talk that turns are told of."""

from __future__ import annotations

from dataclasses import dataclass

from server.dialogue.remedies import Decision, Patience
from server.dialogue.turns import Turns

PATIENCE = Patience(
    reply_timeout_s=6.0,
    rung_timeout_s=4.0,
    stall_timeout_s=2.0,
    silence_timeout_s=15.0,
    silence_prompts=2,
    wrap_up_s=30.0,
    farewell_timeout_s=10.0,
)


@dataclass
class Talk:
    """A conversation in which every agent turn is heard as fast as it comes."""

    turns: Turns
    now: float = 0.0
    agent_until: float = 0.0
    turn: int = 0

    def caller_says(self, seconds: float = 1.0) -> None:
        self.turns.caller_started(self.now)
        self.now += seconds
        self.turns.caller_ended(self.now, self.now, speech_s=seconds, agent_until=self.agent_until)

    def agent_says(self, seconds: float = 2.0, *, audible: bool = True, text: str = "") -> None:
        self.turn += 1
        self.turns.agent_text(self.turn, text)
        self.hear(seconds, audible=audible)
        self.turns.agent_generated(self.turn)
        self.turns.agent_completed(self.turn, None, self.now)

    def hear(self, seconds: float, *, audible: bool = True) -> None:
        self.turns.agent_audio(self.turn, seconds, audible=audible, now=self.now)
        self.agent_until = max(self.agent_until, self.now) + seconds

    def decide(self) -> Decision | None:
        return self.turns.decide(self.now, agent_until=self.agent_until)

    def wait(self, until: float = 1_000.0) -> Decision | None:
        """Let time pass to the next decision; None if there is none before that time."""
        while True:
            if (decision := self.decide()) is not None:
                return decision
            due = max(self.now, self.turns.next_due(self.agent_until))
            if due > until:
                self.now = until
                return None
            assert due > self.now, "due, and nothing to do"
            self.now = due


def talk(**answered: float) -> Talk:
    turns = Turns(PATIENCE)
    turns.answered(0.0, **answered)
    return Talk(turns)
