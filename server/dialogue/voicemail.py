"""Whether an answering machine has taken the call, decided from more than one sign.

Detection by the carrier errs: somebody who answers with a long sentence is taken for a machine. So
its verdict is a hint, and a second sign is asked for before anything is done that would offend a
person: a beep, heard here in the caller audio, or nobody answering when the agent has finished; or
the model, which understands what is said, tells us itself. No I/O and no clock.
"""

from __future__ import annotations

import math
from enum import Enum, StrEnum, auto
from operator import mul

from codec import decode_mulaw
from codec.line import FRAME_BYTES, LINE_RATE_HZ
from server.carrier import AnsweredBy
from server.dialogue.remedies import NEVER


class VoicemailPolicy(StrEnum):
    """What to do when a machine has answered."""

    IGNORE = "ignore"
    """Nothing; the carrier is not even asked to listen for one, which costs."""
    HANG_UP = "hang-up"
    LEAVE_MESSAGE = "leave-message"


# ------------------------------------------------------------------------------------------
# The beep


def tone_hz(frame: bytes) -> float | None:
    """The frequency of a frame that is a single tone, and nothing else to speak of.

    Args:
        frame: 20 ms of mu-law.

    Returns:
        Hertz, within a few; None for silence, speech, noise, and for the two tones of a key.
    """
    samples = memoryview(decode_mulaw(frame)).cast("h").tolist()
    count = len(samples)
    energy = sum(map(mul, samples, samples)) / count
    if energy < BeepDetector.QUIETEST_RMS**2:
        return None
    # Of a sine in white noise, neighbours correlate as cos(w), and next neighbours as cos(2w):
    # the noise is in neither, so their ratio gives w whatever there is of it (Pisarenko).
    near = sum(map(mul, samples, samples[1:])) / (count - 1)
    far = sum(map(mul, samples, samples[2:])) / (count - 2)
    root = math.sqrt(far * far + 8 * near * near)
    cosine = (far + root) / (4 * near) if near else 0.0
    if not BeepDetector.COSINES[0] <= cosine <= BeepDetector.COSINES[1]:
        return None
    # The share of the energy at that frequency (Goertzel's recurrence).
    before = last = 0.0
    for sample in samples:
        before, last = last, sample + 2 * cosine * last - before
    power = before * before + last * last - 2 * cosine * before * last
    if 2 * power / count < BeepDetector.PUREST_SHARE * count * energy:
        return None
    return math.acos(cosine) * LINE_RATE_HZ / (2 * math.pi)


class BeepDetector:
    """Finds the beep after which a machine records, in one direction of one call."""

    QUIETEST_RMS = 300.0
    """About -40 dBFS: a beep is as loud as the announcement before it."""
    COSINES = (
        math.cos(2 * math.pi * 2_400 / LINE_RATE_HZ),
        math.cos(2 * math.pi * 600 / LINE_RATE_HZ),
    )
    """Beeps are between 600 and 2400 Hz; a voice's own strongest tone is lower."""
    PUREST_SHARE = 0.85
    """Of a tone's energy, what is in one frequency; a vowel has several."""
    SHORTEST_FRAMES = 5
    LONGEST_FRAMES = 150
    """A tone of three seconds is no beep: a fax, or the network's own."""
    SAME_PITCH = 0.03

    def __init__(self) -> None:
        self._partial = b""
        self._hz = 0.0
        self._frames = 0

    @property
    def sounding(self) -> bool:
        """Whether there is a tone now that may turn out to be a beep."""
        return self._frames > 1

    def hear(self, payload: bytes) -> bool:
        """Take caller audio, any length; True if a beep ended in it."""
        data = self._partial + payload
        whole = len(data) - len(data) % FRAME_BYTES
        self._partial = data[whole:]
        ended = False
        for start in range(0, whole, FRAME_BYTES):
            ended = self._hear_frame(data[start : start + FRAME_BYTES]) or ended
        return ended

    def _hear_frame(self, frame: bytes) -> bool:
        hz = tone_hz(frame)
        if hz is not None and self._frames and abs(hz - self._hz) <= self.SAME_PITCH * self._hz:
            self._frames += 1
            return False
        was_beep = self.SHORTEST_FRAMES <= self._frames <= self.LONGEST_FRAMES
        self._frames = 0 if hz is None else 1
        self._hz = hz or 0.0
        return was_beep


# ------------------------------------------------------------------------------------------
# The decision


class Finding(Enum):
    """What the signs come to; said once."""

    MACHINE = auto()
    FAX = auto()
    """A machine to which nothing can be said."""
    PERSON = auto()
    """The carrier was wrong."""


class AnsweringMachine:
    """Collects the signs and decides; everything takes ``now``."""

    LISTENS_S = 60.0
    """From the answer, as the carrier decides within 30 s; and from when the model tells of one."""
    BEEP_MEMORY_S = 10.0
    """The carrier's verdict may come this much later than the beep we heard."""
    QUIET_S = 3.0
    """Nobody answers for so long, after the agent has spoken: a machine that records."""
    PERSON_SPEECH_S = 0.3
    """Speech after a machine would have beeped that only a person can have uttered."""

    def __init__(self) -> None:
        self.answered_by: AnsweredBy | None = None
        """What the carrier said; the first word counts."""
        self._said_at: float | None = None  # when the carrier called it a machine
        self._told_at: float | None = None  # when the model did
        self._beep_at: float | None = None
        self._heard_at = -NEVER  # when somebody was last heard to speak
        self._began_at: float | None = None  # what is being said there now
        self._spoke_over_us_s = 0.0
        self._pressed_over_us = False
        self._is_person = False
        self._settled = False
        self._beeps = BeepDetector()
        self._listens_until: float | None = None

    # -- signs -----------------------------------------------------------------------------

    def verdict(self, answered_by: AnsweredBy, now: float) -> None:
        """The carrier says who has answered; once more changes nothing."""
        if self.answered_by is None:
            self.answered_by = answered_by
            if answered_by.is_machine:
                self._said_at = now

    def told(self, now: float) -> None:
        """The model has understood that it is a machine."""
        if self._told_at is None:
            self._told_at = now
            if not self.listens(now):
                self._beeps = BeepDetector()  # what it was in the middle of is long over
            if self._listens_until is not None:
                self._listens_until = max(self._listens_until, now + self.LISTENS_S)

    def listens(self, now: float) -> bool:
        """Whether a beep would be looked for in caller audio that came now."""
        return not self._settled and (self._listens_until is None or now <= self._listens_until)

    def hear(self, payload: bytes, now: float) -> bool:
        """Take caller audio; True if a beep ended in it.

        Only for as long as it may matter: finding a tone costs more than finding speech.
        """
        if self._listens_until is None:
            self._listens_until = now + self.LISTENS_S
        if not self.listens(now) or not self._beeps.hear(payload):
            return False
        self._beep_at = now
        return True

    def speech_started(self, now: float) -> None:
        """Somebody there has begun to speak."""
        self._began_at = None if self._beeps.sounding else now
        self._heard_at = now

    def silence_begins(self, now: float) -> None:
        """Nobody could be heard until now, or had anything to say: silence counts from here on."""
        self._heard_at = now

    def speech_ended(self, now: float, speech_s: float) -> None:
        """The other party has stopped speaking."""
        began_at, self._began_at = self._began_at, None
        self._heard_at = now
        if began_at is None or speech_s < self.PERSON_SPEECH_S:
            return
        if self._settled:
            self._spoke_over_us_s += speech_s
        if self._is_no_announcement(began_at):
            self._is_person = True

    def key_pressed(self, now: float) -> None:
        """A key was pressed there: a word from somebody who says none, and judged by when it comes.

        An announcement may have a key's tones in it, or sound like them.
        """
        said_since = now if self._began_at is None else self._began_at
        self._heard_at = now
        if self._settled:
            self._pressed_over_us = True
        if self._is_no_announcement(said_since):
            self._is_person = True

    def _is_no_announcement(self, began_at: float) -> bool:
        """Whether what began then is from a person: the carrier had said that the announcement is
        over.
        """
        is_over = self.answered_by is not None and self.answered_by.announcement_is_over
        return is_over and self._said_at is not None and began_at > self._said_at

    # -- the decision ----------------------------------------------------------------------

    def decide(self, now: float, *, agent_until: float) -> Finding | None:
        """What the signs come to by now, the first time they do.

        Args:
            now: The time.
            agent_until: When the agent will have been heard to the end of what it has said;
                ``NEVER`` while it owes a word, when only a beep decides.
        """
        sign_at = self._sign_at
        if self._settled or sign_at is None:
            return None
        if self._is_person and self._told_at is None:
            self._settled = True
            return Finding.PERSON
        beeped = self._beep_at is not None and self._beep_at >= sign_at - self.BEEP_MEMORY_S
        if beeped or now >= self.next_due(agent_until):
            self._settled = True
            self._began_at = None  # whatever is being said was begun by the machine
            return Finding.FAX if self.answered_by is AnsweredBy.FAX else Finding.MACHINE
        return None

    def decided(self) -> None:
        """It was decided elsewhere that it is a machine: who is heard from now on is somebody."""
        self._settled = True

    def next_due(self, agent_until: float) -> float:
        """When silence alone will have decided, if it lasts."""
        sign_at = self._sign_at
        if self._settled or sign_at is None or self._began_at is not None:
            return NEVER
        return max(sign_at, self._heard_at, agent_until) + self.QUIET_S

    @property
    def somebody_spoke(self) -> bool:
        """Whether, since the decision, somebody was heard as no machine is that records."""
        return self._pressed_over_us or self._spoke_over_us_s >= 2 * self.PERSON_SPEECH_S

    @property
    def was_told(self) -> bool:
        """Whether the model has said so: it has heard the announcement."""
        return self._told_at is not None

    @property
    def told_until(self) -> float:
        """Until when the model, which has said so, waits in silence for the decision; -NEVER if it
        does not wait for any.
        """
        if self._told_at is None or self._settled:
            return -NEVER
        return self._told_at + self.LISTENS_S

    @property
    def _sign_at(self) -> float | None:
        signs = [at for at in (self._said_at, self._told_at) if at is not None]
        return min(signs) if signs else None
