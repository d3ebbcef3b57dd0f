"""How a call begins: when the greeting is played, and what the model hears until it has been.

People say "hello?" as they pick up, and a model takes that for an interruption and drops its
greeting. So at the beginning caller audio can be held: the model is given silence in its place, and
gets it, in order and complete, when the greeting has been heard or as soon as it is clear that the
caller means to say more than hello.
"""

from __future__ import annotations

from enum import StrEnum

from codec.line import SILENCE
from server.dialogue.remedies import NEVER

LONGEST_HOLD_S = 12.0
"""Whatever happens, the model is not kept deaf for longer."""
FIRST_WORDS_S = 5.0
"""So long a caller's first words may last before the agent begins all the same: it may be noise."""


class GreetingWhen(StrEnum):
    """When the agent speaks first."""

    AT_ONCE = "at-once"
    """The agent is talking when the phone leaves the hook."""
    AFTER_CALLER = "after-caller"
    """The agent lets the caller say a first word, and does not wait for ever."""


class Opening:
    """The first seconds of a call.

    Args:
        greets: Whether the agent speaks first at all; if not, nothing is held and nothing waits.
        when: At once, or after the caller's first word.
        deadline_s: How long it waits for that word to begin, after the answer.
        protect_s: From the first sound of the greeting, how long any speech of the caller's is
            held; 0 holds nothing.
        hello_s: Speech that goes on for longer is no mere hello.
    """

    def __init__(
        self,
        *,
        greets: bool,
        when: GreetingWhen = GreetingWhen.AT_ONCE,
        deadline_s: float = 3.0,
        protect_s: float = 2.0,
        hello_s: float = 1.5,
    ) -> None:
        self._when = when
        self._deadline_s = deadline_s
        self._protect_s = protect_s
        self._hello_s = hello_s
        self.open_until = NEVER
        """Any speech that begins up to here is held."""
        self._held = bytearray()
        self._held_since = 0.0
        self._began = False
        self._speech_held = False
        self._speaking_since: float | None = None
        self.holding = greets and protect_s > 0
        self.plays_at = NEVER if greets else -NEVER
        """From when on the agent may be heard."""

    def answered(self, now: float) -> None:
        """The caller is on the line."""
        if self.plays_at == NEVER:
            waits = self._when is GreetingWhen.AFTER_CALLER
            self.plays_at = now + self._deadline_s if waits else now
        self._held_since = now
        self.open_until = max(self.plays_at, now) + self._protect_s

    def greeting_began(self, now: float) -> None:
        """The first of the greeting is on its way to the caller."""
        self._began = True
        self.open_until = now + self._protect_s

    def greeting_over(self) -> None:
        """The greeting was heard to its end, or will not be."""
        self.holding = False

    def speech_started(self, at: float) -> None:
        """The caller has begun to speak."""
        self._speaking_since = at
        waits = self._when is GreetingWhen.AFTER_CALLER and not self._began
        if waits and at <= self.plays_at < NEVER:
            self.plays_at = max(self.plays_at, at + FIRST_WORDS_S)  # or as soon as they have ended
            self.open_until = max(self.open_until, self.plays_at + self._protect_s)
        if at > self.open_until:
            self.holding = False  # more than a hello: they have something to say
        self._speech_held = True

    def speech_ended(self, now: float) -> None:
        """The caller has stopped; if the agent was waiting for that, it may begin."""
        self._speaking_since = None
        self.plays_at = min(self.plays_at, now)

    def was_echo(self) -> None:
        """What seemed to be speech was our own greeting, come back: the model is spared it."""
        self._speaking_since = None
        self._speech_held = False
        self._held[:] = SILENCE * len(self._held)

    def hear(self, payload: bytes, now: float) -> bytes:
        """Take caller audio; what comes back is what the model is to hear in its place.

        While holding that is silence of the same length. Once it is over, everything held comes
        first, and all later audio comes back as it is.
        """
        if not self.holding and not self._held:
            return payload
        if self.holding and self._is_over(now):
            self.holding = False
        self._held += payload
        if self.holding:
            return SILENCE * len(payload)
        released = bytes(self._held)
        self._held.clear()
        return released

    @property
    def has_heard_speech(self) -> bool:
        """Whether the caller has spoken in what was held, or is now."""
        return self._speech_held

    @property
    def is_over(self) -> bool:
        """Whether the model hears everything as it comes, from now on."""
        return not self.holding and not self._held

    def _is_over(self, now: float) -> bool:
        speaking = self._speaking_since is not None
        if speaking and now - (self._speaking_since or 0.0) > self._hello_s:
            return True
        if now > self.open_until and not (self._speech_held and self._began):
            return True
        return now - self._held_since > LONGEST_HOLD_S
