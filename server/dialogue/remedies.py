"""What may go wrong with a conversation, how long to wait for it, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NEVER = float("inf")
"""When nothing is due."""
BELIEVED_S = 12.0
"""Speech of which nothing but a detector tells: no transcript, no interruption, no answer."""
SHORTEST_ANSWERABLE_S = 0.2
"""Speech of a caller's turn that demands an answer: "yes" has a quarter of a second."""
SPOKEN_OVER_S = 1.0
"""Speech over the agent's own that demands an answer: less is "uh-huh", which is well ignored."""
SHORT_ANSWER_S = 1.0
"""Speech up to which a turn is a short one, which services are reported to take no notice of."""
AUDIBLE_S = 0.1
"""Audible agent audio that counts as an answer: a word is longer, a click is not."""
QUIET_TURN_S = 0.3
"""A turn with this much audio of which nothing is audible was near-silent, not empty."""
SLOW_TURNS = 2
"""Slow turns in a row after which another connection is worth its while."""
SLOW_SHARE = 0.1
SLOW_S = 0.4
"""A turn whose gaps are longer than both this and that share of it came slower than real time."""
FASTEST_CHARS_PER_S = 30.0
"""Twice as fast as anybody speaks: a text that is longer than its audio allows was broken off."""
SENTENCE_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f\u061f\u0964\"'\u00bb\u201d)")
"""Full stops and their kin, also of Chinese, Arabic and Hindi, and what may close after them."""
QUESTION_MARKS = frozenset("?\uff1f\u061f")


class Rung(StrEnum):
    """What to do about a model that does not answer, the gentlest first."""

    NUDGE = "nudge"
    """Ask it, by text."""
    RESUME = "resume"
    """Go on with the same session over a new connection."""
    FRESH = "fresh"
    """A new session that is told what has been said."""
    FALLBACK = "fallback"
    """A new session with another model, key or region."""
    APOLOGY = "apology"
    """The carrier speaks to the caller in our stead, and hangs up."""


LADDER = tuple(Rung)


class Fault(StrEnum):
    """What was wrong with the model's answer."""

    NO_REPLY = "no-reply"
    EMPTY_TURN = "empty-turn"
    QUIET_TURN = "quiet-turn"
    STALLED = "stalled"
    """The model sent nothing more in the middle of a turn."""
    BROKEN_OFF = "broken-off"
    """The turn was said to be complete in the middle of a sentence."""
    SLOW = "slow"
    """Turn after turn came slower than it is spoken."""


class Awaited(StrEnum):
    """What the agent has been asked for."""

    GREETING = "greeting"
    ANSWER = "answer"
    """To what the caller said, or to a key pressed."""
    CONTINUATION = "continuation"
    """The rest of a turn."""
    QUESTION = "question"
    """Whether the caller is still there."""


@dataclass(frozen=True, slots=True)
class Recover:
    """Try this rung of the ladder."""

    rung: Rung
    fault: Fault
    awaited: Awaited


@dataclass(frozen=True, slots=True)
class AskIfThere:
    """The caller has been silent for long: have the agent ask whether they are still there."""

    times: int
    """How often it will have asked, with this."""


@dataclass(frozen=True, slots=True)
class GiveUpCaller:
    """The caller does not answer any more: say goodbye and hang up."""


@dataclass(frozen=True, slots=True)
class WrapUp:
    """The call will reach its longest duration soon: have the agent bring it to an end."""

    left_s: float


@dataclass(frozen=True, slots=True)
class TimeIsUp:
    """There is just time enough left to say goodbye and hang up."""


Decision = Recover | AskIfThere | GiveUpCaller | WrapUp | TimeIsUp


@dataclass(slots=True)
class AgentTurn:
    """A turn of the agent's as far as it has come, and what may be wrong with it."""

    number: int
    audio_s: float = 0.0
    audible_s: float = 0.0
    began_at: float = -NEVER
    """When its first audible audio came, if it began with that."""
    text_chars: int = 0
    text_end: str = "."
    last_audio_at: float = 0.0
    called_tools: bool = False
    """And has not been heard since they were answered: its words may be the next turn's."""
    words_follow: bool | None = False
    """Whether there is something to say then; None if not known."""
    ends_at_call: bool = False
    """Whether it ends with a call, so that its end says nothing of the answer."""
    audible_before_s: float = 0.0
    """What of it was heard when an answer came to be owed all the same: it is none."""
    goes_on: bool = False
    """Whether it is, to the model, still the turn before, in which it called functions."""
    generated: bool = False
    over: bool = False

    def followed_by(self, number: int, *, is_at_work: bool) -> AgentTurn:
        """The turn of this number: this one, or the next, with what this one still owes.

        Args:
            number: Its number.
            is_at_work: Whether a function still runs: the model may talk on meanwhile, and owes
                what it has surely promised.
        """
        if number == self.number:
            return self
        following = AgentTurn(number, words_follow=is_at_work and self.words_follow is True)
        if self.called_tools and not self.over:  # which the model has not ended
            following.last_audio_at, following.called_tools = self.last_audio_at, True
            following.goes_on = True
        return following

    @property
    def is_begun(self) -> bool:
        """Whether the caller may wait for more of it."""
        return self.audio_s > 0 or self.goes_on

    @property
    def is_audible(self) -> bool:
        """Whether enough of it can be heard to be an answer."""
        return self.audible_s - self.audible_before_s >= AUDIBLE_S

    @property
    def why_unheard(self) -> Fault:
        """What was wrong with it, where nothing of it can be heard."""
        return Fault.QUIET_TURN if self.audio_s >= QUIET_TURN_S else Fault.EMPTY_TURN

    @property
    def may_want_words(self) -> bool:
        """Whether something is perhaps to be said when its functions have been answered.

        It has asked nothing, and a model that goes on in the same turn tells by its end of that.
        """
        return (self.over or self.ends_at_call) and self.text_end not in QUESTION_MARKS

    @property
    def is_broken_off(self) -> bool:
        """Whether a turn that is said to be complete is not.

        The service sends ``generationComplete`` before the end of every turn that was not
        interrupted. Its absence alone is not enough: the text must be unfinished, too.
        """
        if self.generated or self.text_chars == 0:
            return False
        is_too_long = self.text_chars > FASTEST_CHARS_PER_S * self.audio_s
        return is_too_long or self.text_end not in SENTENCE_ENDS

    def was_slow(self, starved_s: float) -> bool:
        """Whether it came slower than it is spoken, having left the caller so long in silence."""
        return starved_s > SLOW_S and starved_s > SLOW_SHARE * self.audio_s


@dataclass(slots=True)
class Belief:
    """Whether what a detector takes for the caller's speech still counts as that.

    A room is never silent, and its noise is speech to a detector most of the time; to a judge of
    voices, somebody else's talk and a television are. A model that has fallen silent would not be
    noticed there.
    """

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


@dataclass(slots=True)
class Haste:
    """What is owed is asked for sooner than usual, unless its debtor shows that it knows of it."""

    due_else: float = NEVER
    """When it would be due otherwise; NEVER where there is no haste."""

    def begin(self, due: float, sooner: float) -> float:
        """It is due sooner; returns when."""
        self.due_else = due
        return min(due, sooner)

    def sign(self, due: float) -> float:
        """The debtor has given a sign, whatever it is: returns when it is due now."""
        due, self.due_else = (due if self.due_else == NEVER else self.due_else), NEVER
        return due

    def over(self) -> None:
        """Something else is due, or nothing."""
        self.due_else = NEVER


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds."""

    reply_timeout_s: float = 6.0
    """After the caller's turn, for audible agent audio."""
    short_answer_timeout_s: float = 1.2
    """The same after a word or two in a silence of the agent's, of which a judge of voices is sure,
    for any sign of the service's; 0 makes no difference between short and long."""
    rung_timeout_s: float = 4.0
    """After each rung of the ladder, for the same."""
    greeting_retry_s: float = 3.0
    """For the first word of all."""
    thinking_timeout_s: float = 30.0
    """For a model that says it is at work on more, from when the caller last heard anything; then
    it counts as one that says nothing."""
    stall_timeout_s: float = 2.0
    """In the middle of an agent turn, from when the caller hears nothing more."""
    silence_timeout_s: float = 15.0
    """For a caller who says nothing; 0 waits for ever."""
    silence_prompts: int = 2
    """How often the agent asks whether they are still there before it gives up."""
    wrap_up_s: float = 30.0
    """Before the longest duration, to bring the call to an end; 0 leaves that out."""
    farewell_timeout_s: float = 10.0
    """Before the longest duration, to say goodbye; 0 ends the call without a word."""
