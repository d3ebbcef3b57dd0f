"""What follows from how likely it is that the caller speaks, 32 ms at a time: no I/O and no clock.

How sure one has to be depends on who is heard. While the agent is, a false alarm is a stutter;
while it is silent, nothing is lost by one, and a "yes" that is not noticed may cost the call.
"""

from __future__ import annotations

import math

from codec.ear import SpeechEnded, SpeechStarted, Stop
from codec.hops import HOP_S

STRICT = 0.8
"""Probability from which the caller speaks over the agent. At 0.7 an office 5 dB under the caller
held it twice as often, and callers only 3 ms sooner."""
STRICT_IN_QUIET = 0.5
"""The same where the line is quiet otherwise: there is nothing to be taken for a voice."""
LOOSE = 0.3
"""Probability from which they begin to speak while the agent is silent; below, they have ended."""
LIKELY = 0.05
LIKELY_S = 0.1
"""Nor is it lost what the model is not sure of, if it has been suspicious to the detector, too."""
VOICED = 0.5
"""Probability of what counts towards an interruption that needs nobody's consent."""
SURE_HOPS = 2
"""So much voice in a turn, and it was certainly somebody who spoke."""
WORD_S = 0.1
"""So much voice is a word, on which the model may have its say."""
CERTAIN = 0.95
"""Probability that a word reaches in a room; what was less at its best lets the agent go on."""
FAR_DB = 6.0
"""So far under the caller's own level it is somebody else: a television, another desk. The caller's
own loudest sounds are above it even when they speak 9 dB lower than before."""
NEAR_DB = 10.0
"""What is no further under it may be the caller, who has moved."""
BEHIND_DB = 8.0
"""So far under what was just said, and is not answered yet, it may be somebody else who goes on,
and an answer is owed: with a television the caller would speak for ever, and none ever would be."""
BEHIND_HOPS = 6
"""The mean of so many, 0.2 s: single sounds of anybody are louder, or lower, than that."""
BEHIND_S = 0.2
"""So much longer than silence it takes until it is: some end their sentences low."""
BEHIND_FOR_S = 8.0
"""So long after what was said; by then the model is asked for its answer."""
LOW_PAUSE_S = 0.3
"""A low voice that has paused for so long by then was the end of a sentence."""
LOWER_DB = 11.0
"""What goes on no further under it, on the average, is the caller, who speaks lower now: they may
have called out, or turned away. At 10 dB, some who spoke 11 dB lower were not heard for 7 s in the
place of 2; at 12 dB, a television 15 dB under them was taken for them twice in twenty questions."""
LOWER_S = 2.5
"""That is known so long after what was louder, ..."""
LOWER_VOICE_S = 1.5
"""... from so much voice: after 1.0 one loud passage of that television in twenty was enough."""
LEARNT_S = 0.3
"""So much voice in a turn tells how loud its speaker is."""
LEARNS = 0.3
QUIET_S = 0.2
"""Silence after which a hold was a false alarm, or waits for the model's word."""
UNCERTAIN_S = 0.8
"""After so much without a word it was none."""
BACK_OFF_S = 1.0
"""After a false alarm; longer, and a caller who does interrupt then is not heard."""


class Verdicts:
    """What one call's caller does, judged from probabilities.

    Args:
        barge_in: Whether interruptions are looked for; if not, only speech is.
        end_silence_s: Silence after which a turn is over.
        confirm_s: Voice that makes an interruption certain.
        agree_s: How long after a word the agent still waits for the model to call it one.

    Attributes:
        caller_dbfs: How loud the caller is, on the average; None while that is not known.
        speaking: Whether the caller is in the middle of a turn.
        holding: Whether the agent is held just now.
        last_at: When the caller was last heard.
        speech_s: How much they have spoken in their turn, or did in their last.
        voiced_s: How much voice there has been since the agent is held, or was last.
    """

    def __init__(
        self, *, barge_in: bool, end_silence_s: float, confirm_s: float, agree_s: float
    ) -> None:
        self._barge_in = barge_in
        self._end_silence_s = end_silence_s
        self._confirm_s = confirm_s
        self._agree_s = agree_s
        self.speaking = self.holding = False
        self.last_at = float("-inf")
        self.speech_s = 0.0
        self._sure_hops = 0
        self._energy = 0.0  # of these, added up
        self.caller_dbfs: float | None = None
        self._energies = [0.0]  # of the newest
        self._said_dbfs = float("-inf")  # by whoever was surely heard last
        self._said_at = float("-inf")
        self._low_at = float("-inf")  # when a voice far under that was heard last
        self._low_hops = 0  # of it, since the caller was heard
        self._low_energy = 0.0
        self._held_s = self.voiced_s = self._quiet_s = 0.0
        self._is_certain = False  # that it was a voice for which the agent is held
        self._not_before = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether there is something that has to be followed to its end."""
        return self.speaking or self.holding

    def hop(
        self,
        probability: float,
        at: float,
        *,
        level_dbfs: float,
        agent_heard: bool,
        agent_until: float,
        may_stop: bool,
        is_quiet: bool,
        suspicious_s: float,
    ) -> list[SpeechStarted | SpeechEnded | Stop]:
        """Take 32 ms of the caller.

        Args:
            probability: That there is a voice in it.
            at: When it was over.
            level_dbfs: How loud it was.
            agent_heard: Whether the caller hears the agent just now.
            agent_until: Until when they do, or did last.
            may_stop: Whether they may interrupt it.
            is_quiet: Whether the line is quiet while nobody speaks.
            suspicious_s: For how long the detector has taken it for speech.
        """
        found: list[SpeechStarted | SpeechEnded | Stop] = []
        strict = STRICT_IN_QUIET if is_quiet else STRICT
        if agent_heard and self._is_far(level_dbfs):
            probability = 0.0  # where the agent is silent, a caller who speaks low may be meant
        self._energies.append(math.pow(10.0, level_dbfs / 10.0))
        del self._energies[:-BEHIND_HOPS]
        if not agent_heard and self._is_behind(at, agent_until):
            speaks = self._is_lower(probability, at)
        elif self.speaking:
            speaks = probability >= LOOSE
        elif agent_heard:
            speaks = probability >= strict
        else:
            likely = suspicious_s >= LIKELY_S and probability >= LIKELY
            speaks = probability >= LOOSE or likely
        if speaks:
            self.last_at = at
            self._low_hops, self._low_energy = 0, 0.0
            self.speech_s += HOP_S
            if not self.speaking:
                self.speaking = True
                self.speech_s = HOP_S
                self._sure_hops, self._energy = 0, 0.0
                found.append(SpeechStarted(at - HOP_S))
            if probability >= VOICED:
                self._sure_hops += 1
                self._energy += self._energies[-1]
                if self._sure_hops * HOP_S >= LEARNT_S:
                    self._said_dbfs, self._said_at = self._mean_dbfs(), at
        elif self.speaking and at - self.last_at >= self._end_s():
            self.speaking = False
            sure = self._sure_hops >= SURE_HOPS
            goes_on = at - self._low_at < LOW_PAUSE_S
            found.append(SpeechEnded(self.last_at, self.speech_s, at, sure, goes_on))
        may_hold = agent_heard and may_stop and probability >= strict
        certain = probability >= (strict if is_quiet else CERTAIN)
        if self._barge_in and (stop := self._stop(probability, at, may_hold, certain)):
            found.append(stop)
        return found

    def understood(self) -> None:
        """What was said last, or is being said, was the caller: that is how loud they are."""
        if self._sure_hops * HOP_S < LEARNT_S:
            return
        said = self._mean_dbfs()
        known = self.caller_dbfs
        if known is None or said > known:
            self.caller_dbfs = said  # nobody is nearer than the caller
        elif said > known - NEAR_DB:
            self.caller_dbfs = known + LEARNS * (said - known)

    def _mean_dbfs(self) -> float:
        """How loud what was surely said in this turn is, on the average."""
        return 10.0 * math.log10(self._energy / self._sure_hops)

    def _end_s(self) -> float:
        """How long the caller has not been heard when they have ended, or speak lower."""
        return self._end_silence_s + (BEHIND_S if self._low_at > self.last_at else 0.0)

    def _is_behind(self, at: float, agent_until: float) -> bool:
        """Whether what goes on is far under what was said last, and nobody has answered that."""
        if agent_until > self._said_at or at - self._said_at > BEHIND_FOR_S:
            return False
        mean = sum(self._energies) / len(self._energies)
        return mean < math.pow(10.0, (self._said_dbfs - BEHIND_DB) / 10.0)

    def _is_lower(self, probability: float, at: float) -> bool:
        """Whether what goes on low is, by now, the caller, whose level it is from now on."""
        if probability >= LOOSE:
            self._low_at = at
        if probability >= VOICED:
            self._low_hops += 1
            self._low_energy += self._energies[-1]
        is_enough = self._low_hops * HOP_S >= LOWER_VOICE_S and at - self.last_at >= LOWER_S
        if not is_enough or probability < VOICED:
            return False
        low_dbfs = 10.0 * math.log10(self._low_energy / self._low_hops)
        if low_dbfs < self._said_dbfs - LOWER_DB:
            return False
        self._said_dbfs, self._said_at = low_dbfs, at
        if self.caller_dbfs is not None:  # they are to be able to interrupt the agent, too
            self.caller_dbfs = min(self.caller_dbfs, low_dbfs)
        return True

    def _forget_said(self) -> None:
        """What was said last is nothing to compare a voice with."""
        self._said_dbfs = self._said_at = self._low_at = float("-inf")

    def _is_far(self, level_dbfs: float) -> bool:
        return self.caller_dbfs is not None and level_dbfs < self.caller_dbfs - FAR_DB

    def _stop(self, probability: float, at: float, may_hold: bool, certain: bool) -> Stop | None:
        if not self.holding:
            if not may_hold or at < self._not_before:
                return None
            self.holding = True
            self._held_s = self._quiet_s = 0.0
            self.voiced_s = HOP_S
            self._is_certain = certain
            return Stop.HOLD
        self._held_s += HOP_S
        self.voiced_s += HOP_S if probability >= VOICED else 0.0
        self._quiet_s = 0.0 if probability >= LOOSE else self._quiet_s + HOP_S
        if self.voiced_s >= self._confirm_s:
            self.agent_cut()
            return Stop.CUT
        self._is_certain = self._is_certain or certain
        is_word = self._is_certain and self.voiced_s >= WORD_S
        patience_s = QUIET_S + (self._agree_s if is_word else 0.0)
        if self._quiet_s < patience_s and (is_word or self._held_s < UNCERTAIN_S):
            return None
        self.holding = False
        if not is_word:
            self._not_before = at + BACK_OFF_S
        return Stop.RESUME

    def agent_cut(self) -> None:
        """The agent has been cut: it was an interruption, and nothing is held any more."""
        self.holding = False

    def gone(self, at: float) -> list[SpeechEnded | Stop]:
        """Nothing more is heard of the caller, not even silence: they are taken for silent.

        Returns:
            What ends with that: a turn with all that was said in it, and a hold.
        """
        found: list[SpeechEnded | Stop] = []
        if self.speaking:
            sure = self._sure_hops >= SURE_HOPS
            found.append(SpeechEnded(self.last_at, self.speech_s, at, sure))
        if self.holding:
            found.append(Stop.RESUME)
        self.speaking = self.holding = False
        self._forget_said()
        return found

    def was_echo(self, at: float) -> list[SpeechEnded | Stop]:
        """What was taken for speech was the agent, come back: nobody has spoken.

        Returns:
            What ends with that: a turn in which nothing was said, and a hold.
        """
        found: list[SpeechEnded | Stop] = []
        if self.speaking:
            found.append(SpeechEnded(at, 0.0, at, sure=False))
        if self.holding:
            found.append(Stop.RESUME)
        self.speaking = self.holding = False
        self.last_at = float("-inf")
        self._forget_said()
        return found
