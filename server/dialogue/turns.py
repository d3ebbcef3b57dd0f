"""Whose turn it is, and what to do when nobody takes it: no I/O and no clock.

Every turn of the caller's must get agent audio that can be heard. A model that goes silent with its
socket open is the most common failure there is, and no error says so: only the outcome does. So
:class:`Turns` is told what both sides do and keeps the times by which something must have happened;
``decide`` says what to do when it has not. Each remedy is a rung of a ladder, tried only when the
one before was in vain. Callers gone quiet, and calls about to be too long, are noticed likewise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from server.dialogue.remedies import (
    AUDIBLE_S,
    LADDER,
    NEVER,
    SHORT_ANSWER_S,
    SHORTEST_ANSWERABLE_S,
    SLOW_TURNS,
    SPOKEN_OVER_S,
    AgentTurn,
    AskIfThere,
    Awaited,
    Belief,
    Decision,
    Fault,
    GiveUpCaller,
    Haste,
    Patience,
    Recover,
    Rung,
)
from server.dialogue.time_left import TimeLeft

CONNECTION_LOST = "CONNECTION_LOST"
"""Our own reason for the end of a turn of which no more will come."""


@dataclass(slots=True)
class Turns:
    """The state of the conversation. One owner: the call that tells it what happens; long because
    it has a method for everything that both sides can do."""

    patience: Patience = field(default_factory=Patience)

    caller_speaking: bool = False
    tools_open: dict[str, int] = field(default_factory=dict)
    """The functions that the model waits for: by the id of each the turn in which it was called."""
    rest_due: float = NEVER
    """When the caller has heard what came of a turn that the model broke off for nobody, and may
    wait for the rest; or waits for too long for that of a goodbye."""
    audible_turn: int = -1
    """The agent's newest turn that can be heard; -1 before there is one."""
    spoke_at: float = -NEVER
    """When the caller had last said something that is more than a sound, or pressed a key."""
    recovering: bool = False
    """A reconnect is under way: nothing can be expected meanwhile."""

    _awaited: Awaited | None = None
    _owed_since: float = -NEVER
    """When what is awaited began to be, or the caller had last spoken."""
    _deadline: float = NEVER
    """When what is awaited is too late."""
    _timeout_s: float = 0.0
    _haste: Haste = field(default_factory=Haste)
    _fault: Fault | None = None
    """What has already gone wrong: no need to wait for the deadline."""
    _rung: int = 0
    """The rung to try next."""
    _aided: bool = False
    """Whether what is awaited now has needed a rung."""
    _may_be_said: bool = False
    """Whether what is awaited may have been said before a function: then an empty turn says so."""
    _working_until: float = -NEVER
    """Until when a model that says it is at work on more is believed."""
    _turn: AgentTurn = field(default_factory=lambda: AgentTurn(0, over=True))
    _cut_up_to: int = 0
    _has_stopped_agent: bool = False
    """Whether the caller has with what they say now: an answer is owed, however little it was."""
    _slow_turns: int = 0
    _quiet_since: float = NEVER
    """Since when the caller has said nothing; NEVER before the call is answered."""
    _belief: Belief = field(default_factory=Belief)
    _prompts: int = 0
    _time_left: TimeLeft = field(default_factory=TimeLeft)

    @property
    def is_busy(self) -> bool:
        """Whether the caller speaks or is owed a word, or the model waits for a function."""
        return self.caller_speaking or self._awaited is not None or bool(self.tools_open)

    def has_more_to_come(self, now: float, *, by_itself: bool = True) -> bool:
        """Whether more of what the agent says comes by itself: the model has said that it is at
        work on it, and may still be believed, or a connection was lost in the middle of it. Or else
        whether more of it is owed, though it may have to be asked for.
        """
        is_due = self._awaited is Awaited.CONTINUATION and (not by_itself or self._fault is None)
        return is_due or now < self._working_until

    def is_content_with(self, turn: int) -> bool:
        """Whether this turn can be heard, and nothing is awaited: more of it changes nothing."""
        return self._awaited is None and turn == self._turn.number == self.audible_turn

    # -- what happens ----------------------------------------------------------------------

    def answered(self, now: float, *, ends_at: float = NEVER, again: bool = False) -> None:
        """The caller is on the line: what was expected before has its whole time from now on.

        Args:
            now: The time.
            ends_at: Until when they may stay, at the longest.
            again: They were before, until their line was lost: that time stands.
        """
        self._quiet_since = now
        if again:
            self._prompts = 0
            self._turn.last_audio_at = max(self._turn.last_audio_at, now)
        else:
            self._time_left.answered(now, ends_at, self.patience)
        if self._awaited is not None:
            self._deadline = max(self._deadline, now + self._timeout_s)
            self.rest_due = self._deadline if self.rest_due < NEVER else NEVER

    def ask(self, awaited: Awaited, now: float) -> None:
        """The agent owes the caller something from now on."""
        greeting = awaited is Awaited.GREETING
        timeout_s = self.patience.greeting_retry_s if greeting else self.patience.reply_timeout_s
        self._expect(awaited, now, timeout_s)
        self.rest_due = now + timeout_s if awaited is Awaited.CONTINUATION else NEVER
        self._belief.sign(now)
        self._aided = False

    def caller_started(self, now: float) -> None:
        """The caller has begun to speak: what they are owed waits until they have ended."""
        self.caller_speaking = True
        self._prompts = 0
        self._belief.begin()
        if self._awaited is None:
            self._belief.sign(now)

    def caller_ended(
        self,
        ended_at: float,
        now: float,
        *,
        speech_s: float,
        agent_until: float,
        sure: bool | None = None,
        may_hasten: bool = True,
    ) -> None:
        """The caller's turn is over: what they were owed is settled by it, and an answer is owed.

        What is too short to be answered, or was perhaps none, settles nothing; and no speech puts
        off what is owed for longer than it is believed: a room, or a television, would do so for
        ever.

        Args:
            ended_at: When they stopped.
            now: When that was certain.
            speech_s: How much of it was speech.
            agent_until: Until when the agent is heard: short words over it demand no answer.
            sure: Whether a judge of voices was sure of it; None where none was asked.
            may_hasten: Whether the model may be asked sooner than usual: no answer is cut by that.
        """
        self.caller_speaking = False
        self._quiet_since = self._owed_since = now
        has_stopped, self._has_stopped_agent = self._has_stopped_agent, False
        if self._belief.ended():
            return  # it was counted as over long ago
        if speech_s >= SHORTEST_ANSWERABLE_S or has_stopped:
            self.spoke_at = now
        over_agent = agent_until > now
        shortest_s = SPOKEN_OVER_S if over_agent else SHORTEST_ANSWERABLE_S
        if speech_s < shortest_s and not has_stopped:
            return
        if not self._turn.over and self._turn.began_at >= ended_at:
            return  # the model was certain of it sooner, and answers already
        if self._awaited is Awaited.GREETING:
            return
        asked_at = max(now, agent_until) if over_agent else now
        if self._awaited is None:
            self.ask(Awaited.ANSWER, asked_at)
            in_silence = agent_until <= ended_at - speech_s and self._turn.over
            soon_s = self.patience.short_answer_timeout_s
            is_short = sure and in_silence and speech_s <= SHORT_ANSWER_S
            if is_short and may_hasten and soon_s and not has_stopped:
                self._deadline = self._haste.begin(self._deadline, now + soon_s)
            return
        if sure is False:
            return
        latest = max(self._deadline, self._belief.until())
        self._awaited, self._fault, self._may_be_said = Awaited.ANSWER, None, False
        self._deadline = min(max(self._deadline, asked_at + self._timeout_s), latest)

    def caller_active(self, now: float) -> None:
        """The caller has given a sign of life that no detector of ours has found: a key, a word
        that was recognised, or an interruption that the model has noticed."""
        self._prompts = 0
        self._deadline = self._haste.sign(self._deadline)
        self._belief.sign(now)
        self._quiet_since = max(self._quiet_since, now) if self._quiet_since < NEVER else NEVER

    def agent_audio(self, turn: int, seconds: float, *, audible: bool, now: float) -> bool:
        """A piece of what the agent says has come.

        Args:
            turn: Its turn.
            seconds: How long it is.
            audible: Whether a caller could hear it.
            now: When it came.

        Returns:
            Whether what was awaited has come with it.
        """
        if turn <= self._cut_up_to:
            return False
        self._deadline = self._haste.sign(self._deadline)
        agent_turn = self._begin(turn)
        if agent_turn.audio_s == 0 and audible:
            agent_turn.began_at = now
        agent_turn.last_audio_at = now
        agent_turn.audio_s += seconds
        agent_turn.audible_s += seconds if audible else 0.0
        if agent_turn.audible_s >= AUDIBLE_S:
            self.audible_turn = turn
        if audible:
            self._belief.sign(now)
        if audible and not self.tools_open:
            # Only Gemini 3.8 ends its turn at a call; others go on with it, and this is the answer.
            agent_turn.called_tools = False
        if audible and self._working_until > -NEVER:
            self._working_until = now + self.patience.thinking_timeout_s
        is_owed = self._awaited is not None or self._has_stopped_agent
        if not is_owed or not agent_turn.is_audible:
            return False
        if not self._aided:
            self._rung = 0  # it works again, by itself
        self._settle()
        return True

    def agent_text(self, turn: int, text: str) -> None:
        """A piece of the text of a turn has come."""
        if turn > self._cut_up_to and (stripped := text.rstrip()):
            self._deadline = self._haste.sign(self._deadline)
            agent_turn = self._begin(turn)
            agent_turn.text_chars += len(text)
            agent_turn.text_end = stripped[-1]

    def agent_generated(self, turn: int) -> None:
        """All audio of this turn has come."""
        if turn == self._turn.number:
            self._turn.generated = True

    def agent_completed(
        self,
        turn: int,
        reason: str | None,
        now: float,
        *,
        starved_s: float = 0.0,
        more: bool = False,
    ) -> None:
        """The model takes this turn for over.

        Args:
            turn: The turn.
            reason: The service's word for an unusual end.
            now: The time.
            starved_s: How long it left the caller in silence, because it came too slowly.
            more: It is still at work on its answer, which comes by itself.
        """
        if more and reason != CONNECTION_LOST:
            if turn > self._cut_up_to:
                self._begin(turn).over = True
            self.agent_working(now)
            return
        self._working_until = -NEVER
        if turn <= self._cut_up_to:
            return
        agent_turn = self._begin(turn)
        agent_turn.over = True
        if reason == CONNECTION_LOST:
            if self._awaited is None and agent_turn.audio_s > 0 and not agent_turn.generated:
                # The session itself asks for the rest, once it has another connection.
                self._expect(Awaited.CONTINUATION, now, self.patience.reply_timeout_s)
            return
        if agent_turn.called_tools or self.tools_open:
            return  # the answer is the turn after the results
        if reason == "NEED_MORE_INPUT":
            return  # it means to wait; the deadline says for how long it may
        if agent_turn.audible_s < AUDIBLE_S:
            if self._may_be_said and reason is None:
                self._settle()
            elif self._awaited is not None:
                self._fault = agent_turn.why_unheard
            return
        slow = agent_turn.was_slow(starved_s)
        self._slow_turns = self._slow_turns + 1 if slow else 0
        if agent_turn.is_broken_off and not self.caller_speaking:
            self._expect(Awaited.CONTINUATION, now, self.patience.reply_timeout_s)
            self._fault = Fault.BROKEN_OFF

    def agent_working(self, now: float) -> None:
        """The model says that it is at work on more: it owes that, and has its own time for it,
        which saying so again does not make any longer; being heard does."""
        self._deadline = self._haste.sign(self._deadline)
        if self._working_until == -NEVER:
            self._working_until = now + self.patience.thinking_timeout_s
        if self._awaited is None:
            self._expect(Awaited.ANSWER, now, self.patience.reply_timeout_s)
        elif now < self._working_until:
            self._deadline = max(self._deadline, self._working_until)
            self._fault = None

    def agent_idle(self, now: float) -> None:
        """The model says that it is at work on nothing; what it still owes, it owes at once."""
        if self._working_until == -NEVER:
            return
        self._working_until = -NEVER
        if self._awaited is not None and self._fault is None:
            self._expect(self._awaited, now, self.patience.reply_timeout_s)

    def agent_cut(self, turn: int, *, starved_s: float = 0.0, owed_from: float = NEVER) -> None:
        """The caller has interrupted this turn.

        Args:
            turn: The turn.
            starved_s: How long it had left the caller in silence, because it came too slowly: who
                hears nothing in the middle of a sentence takes it for the end, and speaks.
            owed_from: From when on they are owed an answer, however little they said; from its end
                on where they still speak. NEVER where that is told by what they say.
        """
        was_cut, self._cut_up_to = turn <= self._cut_up_to, max(self._cut_up_to, turn)
        if self._turn.number == turn and not self._turn.over and self._turn.was_slow(starved_s):
            self._slow_turns += 1
        was_live = not was_cut and self._turn.number == turn and self._turn.is_audible
        if self._turn.number <= turn:
            self._turn.over = True
            # The rest of one that a lost line has cut may be asked for by now, and is yet to begin.
            if self._awaited is Awaited.CONTINUATION and (owed_from < NEVER or was_live):
                self._settle()
        if owed_from < NEVER:
            self.spoke_at = owed_from
        if owed_from < NEVER and self._awaited is None:
            self._has_stopped_agent = self.caller_speaking
            if not self.caller_speaking:
                self.ask(Awaited.ANSWER, owed_from)

    def agent_cut_for_nothing(
        self, turn: int, now: float, *, heard_until: float | None = None
    ) -> None:
        """The model has interrupted itself, and nobody was heard to speak: it owes the rest.

        Args:
            turn: The turn.
            now: The time.
            heard_until: Until when the caller hears what has come of it; None if that is cut, too.
        """
        self.agent_cut(turn)
        its = self._turn
        was_under_way = its.number == turn and its.audio_s > 0 and not its.generated
        if heard_until is None or (was_under_way and self._awaited is not Awaited.CONTINUATION):
            since = now if heard_until is None else max(now, heard_until)
            self._expect(Awaited.CONTINUATION, since, self.patience.rung_timeout_s)
            # If it was believed, somebody may have spoken whom only the model has heard.
            patience_s = self.patience.rung_timeout_s if heard_until is None else 0.0
            self.rest_due = since + patience_s

    def tools_called(
        self,
        ids: Iterable[str],
        turn: int,
        *,
        words_follow: bool | None = None,
        ends_turn: bool = False,
    ) -> None:
        """The model waits for functions: nothing can be expected of it until they are answered.

        Args:
            ids: The calls.
            turn: The turn they are of.
            words_follow: Whether the agent speaks when it has the answers: surely where all it says
                before is "one moment", never where they tell it nothing; None if not known.
            ends_turn: Whether that turn ends with the calls, and the answer is the next one.
        """
        self._deadline = self._haste.sign(self._deadline)
        if turn > self._cut_up_to:
            its = self._begin(turn)
            its.called_tools, its.ends_at_call = True, ends_turn
            if words_follow is not False and not its.words_follow:
                its.words_follow = words_follow
        self.tools_open.update(dict.fromkeys(ids, turn))

    def tools_answered(self, ids: Iterable[str], now: float, *, owed_from: float = NEVER) -> None:
        """Functions were answered, or called off. What the agent said before it called them may
        have been no answer: then that is still owed.

        Args:
            ids: The calls.
            now: The time.
            owed_from: From when on: when all that it said is heard. NEVER if they were called off.
        """
        for identity in ids:
            self.tools_open.pop(identity, None)
        its = self._turn
        its.last_audio_at = max(its.last_audio_at, now)
        self._belief.sign(now)
        if self.tools_open:
            return
        words_follow, its.words_follow = its.words_follow, False
        if self._awaited is not None:
            self._deadline = max(self._deadline, now + self._timeout_s)
        if self._quiet_since == NEVER:
            return
        self._quiet_since = max(self._quiet_since, now)
        may_be_owed = words_follow is None and its.may_want_words
        is_owed = words_follow or (may_be_owed and its.is_audible)
        if is_owed and self._awaited is None and owed_from < NEVER:
            self._expect(Awaited.ANSWER, max(now, owed_from), self.patience.reply_timeout_s)
            self._may_be_said = words_follow is None
            its.audible_before_s = its.audible_s

    def unavailable(self, fault: Fault, now: float) -> None:
        """The rung that was to be climbed does not exist for this session: go on to the next."""
        self.recovering = False
        if fault is not Fault.SLOW:
            self._deadline = now
            self._fault = fault

    def recovered(self, now: float) -> None:
        """A rung has been carried out: it has its own time to bear fruit."""
        self.recovering = False
        self._working_until = -NEVER  # what a connection was at work on has gone with it
        self._turn.over = True
        self._slow_turns = 0
        if self._awaited is not None:
            self._expect(self._awaited, now, self.patience.rung_timeout_s)
            self.rest_due = self._deadline if self._awaited is Awaited.CONTINUATION else NEVER

    # -- what to do ------------------------------------------------------------------------

    def decide(self, now: float, *, agent_until: float) -> Decision | None:
        """What has to be done now, or None: then ask again at :meth:`next_due`, or after news.

        Args:
            now: The time.
            agent_until: Until when the caller hears the agent, as far as is known.
        """
        if self.recovering:
            return None
        if self.caller_speaking and now >= self._belief.until(agent_until):
            # Whatever a detector says: the caller's turn is over, if there was one.
            self.caller_speaking = False
            self._belief.end()
            self._quiet_since = now
            if self._awaited is None and not self.tools_open:
                # It is no sign of anything: what goes on is not believed again.
                self._expect(Awaited.ANSWER, now, self.patience.reply_timeout_s)
                self._aided = False
        if self._fault is None:
            self._fault = self._find_fault(now, agent_until)
        if self._fault is not None and not self.caller_speaking:
            return self._climb(self._fault, now)
        is_silent = now >= agent_until and self._turn.over and not self.is_busy
        if self._slow_turns >= SLOW_TURNS and is_silent:
            return self._climb(Fault.SLOW, now)
        if (ending := self._time_left.decide(now, self._wrap_up_due(agent_until))) is not None:
            return ending
        if now >= self._silence_due(agent_until):
            self._quiet_since = now
            if self._prompts >= self.patience.silence_prompts:
                return GiveUpCaller()
            self._prompts += 1
            return AskIfThere(self._prompts)
        return None

    def next_due(self, agent_until: float) -> float:
        """When to ask :meth:`decide` again if nothing happens before."""
        if self.recovering:
            return NEVER
        if self._fault is not None and not self.caller_speaking:
            return 0.0
        dues = [
            self._time_left.next_due(self._wrap_up_due(agent_until)),
            self._silence_due(agent_until),
        ]
        if self.caller_speaking:
            dues.append(self._belief.until(agent_until))
        if not self.tools_open and not self.caller_speaking:
            dues.append(self._deadline)
            dues.append(self._stall_due(agent_until))
        if self._slow_turns >= SLOW_TURNS and self._turn.over and not self.is_busy:
            dues.append(agent_until)
        return min(dues)

    # -- the parts of it -------------------------------------------------------------------

    def _expect(self, awaited: Awaited, now: float, timeout_s: float) -> None:
        if self._awaited is None:
            self._owed_since = now
        self._awaited, self._timeout_s = awaited, timeout_s
        self._deadline = max(now + timeout_s, self._working_until)
        self._haste.over()
        self._fault, self._may_be_said, self._has_stopped_agent = None, False, False
        self.rest_due = NEVER

    def _settle(self) -> None:
        self._awaited, self._aided = None, False
        self._deadline = self.rest_due = NEVER
        self._haste.over()
        self._fault, self._may_be_said, self._has_stopped_agent = None, False, False

    def _begin(self, turn: int) -> AgentTurn:
        self._turn = self._turn.followed_by(turn, is_at_work=bool(self.tools_open))
        return self._turn

    def _find_fault(self, now: float, agent_until: float) -> Fault | None:
        if self.tools_open or self.caller_speaking:
            return None
        if now >= self._deadline:
            return Fault.NO_REPLY
        if now >= self._stall_due(agent_until):
            self._turn.over = True
            self._expect(Awaited.CONTINUATION, now, self.patience.reply_timeout_s)
            return Fault.STALLED
        return None

    def _stall_due(self, agent_until: float) -> float:
        turn = self._turn
        if turn.over or turn.generated or not turn.is_begun or self._quiet_since == NEVER:
            return NEVER
        patience_s = self.patience.stall_timeout_s
        if turn.called_tools:  # what comes now is an answer, if anything does
            if self._awaited is not None:
                return NEVER
            patience_s = max(patience_s, self.patience.reply_timeout_s)
        stalled_at = max(turn.last_audio_at, agent_until) + patience_s
        return max(stalled_at, self._working_until)

    def _climb(self, fault: Fault, now: float) -> Recover:
        awaited = self._awaited or Awaited.ANSWER
        if fault is Fault.SLOW:
            # Nothing is owed, and asking does not make it faster.
            gentlest, last = LADDER.index(Rung.RESUME), LADDER.index(Rung.FALLBACK)
            self._rung = min(max(self._rung, gentlest), last)
            self._slow_turns = 0
        else:
            self._aided = True
            # One that was asked sooner than usual is not taken for broken sooner.
            self._deadline = max(now + self.patience.rung_timeout_s, self._haste.sign(now))
            self._timeout_s = self.patience.rung_timeout_s
        self._fault = None
        rung = LADDER[self._rung]
        self._rung = min(self._rung + 1, len(LADDER) - 1)
        self.recovering = rung is not Rung.NUDGE
        return Recover(rung, fault, awaited)

    def _wrap_up_due(self, agent_until: float) -> float:
        is_someones_turn = self.caller_speaking or not self._turn.over
        return self._time_left.wrap_up_due(agent_until, is_someones_turn=is_someones_turn)

    def _silence_due(self, agent_until: float) -> float:
        generating = self._turn.audio_s > 0 and not self._turn.over and not self._turn.generated
        never = not self.patience.silence_timeout_s or self._quiet_since == NEVER
        if never or self.is_busy or generating:
            return NEVER
        return max(self._quiet_since, agent_until) + self.patience.silence_timeout_s


def at_work_since(turns: Turns, agent_until: float) -> float:
    """Since when the caller has waited in silence for an answer, or a function; NEVER if not.

    Args:
        turns: Whose turn it is.
        agent_until: Until when the agent is heard.
    """
    if turns.caller_speaking or turns._quiet_since == NEVER:
        return NEVER
    is_owed = turns._awaited in (Awaited.ANSWER, Awaited.CONTINUATION)
    if not (is_owed or turns.tools_open):
        return NEVER
    return max(turns._owed_since, turns._turn.last_audio_at, agent_until)


def caller_until(turns: Turns, now: float, agent_until: float) -> float:
    """Until when the caller has said, or says, what is still to be answered, as far as a detector
    is believed; -NEVER if there is nothing of it.

    Args:
        turns: Whose turn it is.
        now: The time.
        agent_until: Until when the agent is heard.
    """
    if not turns.caller_speaking and turns._awaited is None:
        return -NEVER
    said_until = now if turns.caller_speaking else turns._owed_since
    return min(said_until, turns._belief.until(agent_until))
