"""When the caller speaks, judged here from the telephone's own audio: no network, no model.

Three pure parts, fed a frame (20 ms of mu-law) at a time. :class:`VoiceActivity` says where speech
begins and ends; :class:`Echo` tells an echo of what we are playing from somebody speaking;
:class:`BargeIn` decides whether the agent has to stop for it: hold first, then cut or go on.

Loudness is measured in mu-law's own steps, which are nearly logarithmic: 16 steps are 6 dB, and no
code has to be expanded for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import accumulate
from operator import itemgetter, mul

import webrtcvad

from codec import decode_mulaw

FRAME_BYTES = 160
FRAME_S = 0.02
LINE_RATE_HZ = 8_000

_MAGNITUDES = bytes(~code & 0x7F for code in range(256))
_SIGNS = bytes(code >> 7 for code in range(256))

LOUD = 14.0
"""Mean magnitude from which a frame can be speech: about -50 dBFS. A quiet caller is at -40, and
most quiet frames of a telephone line are below -60, so that few of them ever reach the detector."""
AGGRESSIVENESS = 2
"""Of the detector, 0 to 3: 3 misses beginnings, 1 calls line noise speech (tried on recordings)."""
START_FRAMES = 3
"""Speech in a row that begins a turn: a click is shorter, and 60 ms is not yet a delay."""


def loudness(frame: bytes) -> float:
    """Mean magnitude of a frame, 0 to 127, in mu-law's steps: 16 of them are 6 dB."""
    return sum(frame.translate(_MAGNITUDES)) / len(frame)


def is_voiced(frame: bytes) -> bool:
    """Whether a frame of speech sounds like a vowel: it crosses zero seldom.

    The breath of a cough and the hiss of a line cross zero at two or three kilohertz, a voice
    below one.
    """
    signs = frame.translate(_SIGNS)
    crossings = signs.count(b"\0\1") + signs.count(b"\1\0")
    return crossings <= 40  # 1 kHz in 20 ms


# ------------------------------------------------------------------------------------------
# Speech


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The caller has begun to speak."""

    at: float
    """When the first frame of it was spoken, on the clock given to ``hear``."""


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The caller has been silent long enough for the turn to be over."""

    at: float
    """When the last frame of speech was over."""
    speech_s: float
    """Speech in it, pauses left out."""


@dataclass(slots=True)
class Frame:
    """What was found out about 20 ms of caller audio.

    Not frozen: one is made for every frame of every call, and that would double what it costs.
    """

    payload: bytes
    at: float
    """When it was over."""
    loudness: float
    speech: bool


class VoiceActivity:
    """Finds speech in one direction of one call.

    The detector (WebRTC's, a Gaussian mixture over six bands) runs only on frames that are loud
    enough to matter; the others are silence whatever it would say.

    Args:
        end_silence_s: Silence after which a turn is over.
    """

    def __init__(self, *, end_silence_s: float = 0.5) -> None:
        self._detector = webrtcvad.Vad(AGGRESSIVENESS)
        self._end_silence_frames = max(1, round(end_silence_s / FRAME_S))
        self._partial = b""
        self._speech_in_a_row = 0
        self._speech_frames = 0
        self._silent_frames = 0
        self._last_speech_at = 0.0
        self.speaking = False

    def frames(self, payload: bytes, heard_at: float) -> list[Frame]:
        """Cut payload into frames, and judge each.

        Args:
            payload: Mu-law at 8 kHz, any length; what does not fill a frame waits for the next.
            heard_at: When its last sample was received.
        """
        data = self._partial + payload
        whole = len(data) - len(data) % FRAME_BYTES
        self._partial = data[whole:]
        frames = []
        for start in range(0, whole, FRAME_BYTES):
            frame = data[start : start + FRAME_BYTES]
            at = heard_at - (whole - start - FRAME_BYTES) / LINE_RATE_HZ
            level = loudness(frame)
            speech = level >= LOUD and self._detector.is_speech(decode_mulaw(frame), LINE_RATE_HZ)
            frames.append(Frame(frame, at, level, speech))
        return frames

    def hear(self, frame: Frame, *, echo: bool = False) -> SpeechStarted | SpeechEnded | None:
        """Take a frame; echoes of the agent are nobody's speech."""
        if frame.speech and not echo:
            self._speech_in_a_row += 1
            self._speech_frames += 1
            self._silent_frames = 0
            self._last_speech_at = frame.at
            if not self.speaking and self._speech_in_a_row >= START_FRAMES:
                self.speaking = True
                return SpeechStarted(frame.at - START_FRAMES * FRAME_S)
            return None
        self._speech_in_a_row = 0
        if not self.speaking:
            self._speech_frames = 0
            return None
        self._silent_frames += 1
        if self._silent_frames < self._end_silence_frames:
            return None
        ended = SpeechEnded(self._last_speech_at, self._speech_frames * FRAME_S)
        self.forget()
        return ended

    def forget(self) -> None:
        """What was taken for speech was none: nobody is speaking."""
        self.speaking = False
        self._speech_in_a_row = self._speech_frames = 0


# ------------------------------------------------------------------------------------------
# Echo


class Echo:
    """Whether what comes from the caller is what we are playing, come back.

    A telephone on loudspeaker sends the agent's voice back, later and quieter, and nothing on a
    telephone line takes it out. Delay and loss are constant for a call, so they are found by
    correlating the loudness of both directions; from then on a caller frame that is no louder than
    the echo to be expected is an echo, and a louder one is somebody speaking over it.
    """

    WINDOW_FRAMES = 50
    """A second of both directions is compared."""
    MAX_DELAY_FRAMES = 30
    """600 ms: two mobile networks and a jitter buffer."""
    TAIL_FRAMES = 5
    """A room goes on sounding for 100 ms."""
    LEARN_EVERY_FRAMES = 5
    FOUND, LOST = 0.8, 0.5
    """Correlation from which there is an echo (recordings: 0.86 and more over a whole call, where
    somebody speaking over the agent stays below 0.75), and under which there is none any more."""
    CERTAIN_AFTER = 3
    """Verdicts in a row, 100 ms apart: a coincidence does not keep its delay."""
    MARGIN = 14.0
    """Five decibels above the expected echo is somebody's voice."""

    def __init__(self) -> None:
        length = self.WINDOW_FRAMES + self.MAX_DELAY_FRAMES + self.TAIL_FRAMES + 1
        self._played: deque[float] = deque(maxlen=length)
        self._caller: deque[float] = deque(maxlen=length)
        self._frames = 0
        self._candidate: int | None = None
        self._verdicts = 0
        self.delay_frames: int | None = None
        """None until an echo has been found."""
        self.loss = 0.0
        """How much quieter it comes back, in the steps of :func:`loudness`."""

    def hear(self, caller: float, played: float) -> bool:
        """Take the loudness of the same 20 ms in both directions, while the agent is heard.

        Returns:
            Whether the caller's frame is no more than an echo.
        """
        self._caller.append(caller)
        self._played.append(played)
        self._frames += 1
        if caller >= LOUD and self._frames % self.LEARN_EVERY_FRAMES == 0:
            self._learn()
        if self.delay_frames is None:
            return False
        newest = len(self._played) - 1 - self.delay_frames
        nearby = range(max(0, newest - self.TAIL_FRAMES), min(newest + 2, len(self._played)))
        expected = max((self._played[at] for at in nearby), default=0.0)
        return expected >= LOUD and caller <= expected - self.loss + self.MARGIN

    def pause(self) -> None:
        """The agent is silent: what comes next is another stretch of its speech.

        The beginning of one would correlate with anybody who begins to speak a moment later.
        """
        self._caller.clear()
        self._played.clear()

    def _learn(self) -> None:
        """Look for an echo in the last second, or for whether it is still there."""
        if self.delay_frames is not None:
            around = range(max(0, self.delay_frames - 2), self.delay_frames + 3)
            best = max((c for _, c in self._correlations(around)), default=1.0)
            self._verdicts = self._verdicts + 1 if best < self.LOST else 0
            if self._verdicts >= self.CERTAIN_AFTER:
                self.delay_frames, self._candidate, self._verdicts = None, None, 0
            return
        found = max(self._correlations(range(self.MAX_DELAY_FRAMES + 1)), key=_second, default=None)
        if found is None:
            return
        delay, best = found
        if best < self.FOUND:
            self._candidate, self._verdicts = None, 0
            return
        if self._candidate is None or abs(delay - self._candidate) > 1:
            self._verdicts = 0
        self._candidate = delay
        self._verdicts += 1
        if self._verdicts >= self.CERTAIN_AFTER:
            self._find_loss(delay)

    def _correlations(self, delays: Iterable[int]) -> Iterator[tuple[int, float]]:
        """Pearson's correlation of the last second with what was played so many frames before."""
        count = self.WINDOW_FRAMES
        caller, played = list(self._caller)[-count:], list(self._played)
        mean = sum(caller) / count
        deviations = [level - mean for level in caller]
        spread = sum(map(mul, deviations, deviations))
        if spread < 1.0:
            return
        # Sums of every stretch of what was played, as differences of sums from the beginning.
        sums = [0.0, *accumulate(played)]
        squares = [0.0, *accumulate(map(mul, played, played))]
        for delay in delays:
            end = len(played) - delay
            begin = end - count
            if begin < 0:
                return
            total = sums[end] - sums[begin]
            spread_played = squares[end] - squares[begin] - total * total / count
            if spread_played < 1.0:
                continue
            # The deviations add up to nothing, so what was played need not be centred.
            product = sum(map(mul, deviations, played[begin:end]))
            yield delay, product / math.sqrt(spread * spread_played)

    def _find_loss(self, delay: int) -> None:
        """How much quieter the echo is, from the frames in which both can be heard."""
        end = len(self._played) - delay
        then = list(self._played)[end - self.WINDOW_FRAMES : end]
        caller = list(self._caller)[-self.WINDOW_FRAMES :]
        losses = sorted(
            there - back
            for there, back in zip(then, caller, strict=True)
            if there >= LOUD and back >= LOUD
        )
        if losses:
            # Under the median: a room adds to the echo, never takes away.
            self.delay_frames, self.loss = delay, losses[len(losses) // 3]
            self._verdicts = 0


_second = itemgetter(1)


# ------------------------------------------------------------------------------------------
# Barge-in


class Stop(Enum):
    """What the agent has to do about a sound from the caller."""

    HOLD = auto()
    """Fall silent at once; it may go on in a moment."""
    CUT = auto()
    """The caller has the word."""
    RESUME = auto()
    """It was a cough, a click, an echo: go on where the caller's ear was."""


class BargeIn:
    """Whether the caller's sound over the agent is an interruption.

    60 ms of speech hold the agent; then there is time to be sure. Vowels make it an interruption, a
    silence before there were enough of them makes it a false alarm. After false alarms the agent is
    not held again for a while, twice as long after each: somebody has a cold, or the telephone is
    on loudspeaker and its echo is not known yet.

    Args:
        confirm_s: Vowels that make it certain.
        agree_s: How long after a word or two that were not enough the agent still waits for
            somebody else (the model) to call it an interruption.
    """

    SILENCE_FRAMES = 6
    """120 ms: longer than the stop of a consonant."""
    MIN_VOWEL_FRAMES = 5
    """100 ms of vowel are a word; a cough has less."""
    MAX_UNCERTAIN_FRAMES = 40
    """After 800 ms of sound without vowels it is noise."""
    BACK_OFF_S = 2.0
    MAX_BACK_OFF_S = 16.0

    def __init__(self, *, confirm_s: float = 0.2, agree_s: float = 0.0) -> None:
        self._confirm_frames = max(1, round(confirm_s / FRAME_S))
        self._agree_frames = round(agree_s / FRAME_S)
        self._in_a_row = 0
        self._frames = 0
        self._vowels = 0
        self._silence = 0
        self._false_alarms = 0
        self._not_before = 0.0
        self.holding = False

    def hear(self, frame: Frame, *, speech: bool, agent_heard: bool) -> Stop | None:
        """Take a caller frame.

        Args:
            frame: The frame.
            speech: Whether it is the caller's own speech (no echo).
            agent_heard: Whether the agent can be heard just now.
        """
        if self.holding:
            return self._decide(frame, speech)
        if not speech or not agent_heard:
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        if self._in_a_row < START_FRAMES or frame.at < self._not_before:
            return None
        self.holding = True
        self._frames = self._vowels = self._silence = 0
        return Stop.HOLD

    def settled(self) -> None:
        """Somebody else has cut the agent: it was an interruption."""
        self.holding = False
        self._in_a_row = 0
        self._false_alarms = 0

    def _decide(self, frame: Frame, speech: bool) -> Stop | None:
        self._frames += 1
        self._silence = 0 if speech else self._silence + 1
        self._vowels += speech and is_voiced(frame.payload)
        if self._vowels >= self._confirm_frames:
            self.settled()
            return Stop.CUT
        word = self._vowels >= self.MIN_VOWEL_FRAMES
        patience = self._agree_frames if word else 0
        noise = not word and self._frames >= self.MAX_UNCERTAIN_FRAMES
        if self._silence < self.SILENCE_FRAMES + patience and not noise:
            return None
        self.holding = False
        self._in_a_row = 0
        if not word:
            self._false_alarms += 1
            pause_s = self.BACK_OFF_S * 2 ** (self._false_alarms - 1)
            self._not_before = frame.at + min(self.MAX_BACK_OFF_S, pause_s)
        return Stop.RESUME
