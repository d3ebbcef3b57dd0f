"""Numbered audio: which piece of sound is this, how late is it, and what is missing?

Every piece (a 20 ms frame of the caller's, a 40 ms chunk of the agent's) is one constant level, and
some thirty levels follow each other in a fixed order. A level survives mu-law, filters and rate
changes in the middle of its piece, so what arrives says by itself which piece it is: nothing is
assumed of how the server under test cuts its messages, except that it does not mix two pieces.

The caller's levels lie below what any detector takes for speech, because a server that hears an
interruption in them would rightly hold the agent's audio back.
"""

from __future__ import annotations

from array import array
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence

from codec import decode_mulaw

CALLER_FRAME_S = 0.02
AGENT_CHUNK_S = 0.04
SAMPLES = 320
"""Samples of a piece where it arrives: 20 ms at 16 kHz, and 40 ms at 8 kHz."""
TAIL_SAMPLES = 80
"""A message shorter than this is what a resampler still held at the end of a turn."""
NO_LEVEL = 255
SILENCE = 254
"""A server may give the model silence instead of the caller, and the caller later."""


class Levels:
    """A set of levels in the order they are sent.

    Args:
        magnitudes: Mu-law magnitudes, 0 to 127; each is used in both signs, one after the other,
            so that neighbours are far apart and their mean is nothing.
        reach: How far from a level a sample may be and still be taken for it.
    """

    def __init__(self, magnitudes: Sequence[int], reach: Sequence[int]) -> None:
        self.codes = [~(sign | m) & 0xFF for m in magnitudes for sign in (0, 0x80)]
        self.values = _linear(bytes(self.codes))
        self.of_sample = bytearray([NO_LEVEL]) * 65_536
        """By a 16-bit sample, as an unsigned number."""
        for near in range(-3, 4):
            self.of_sample[near & 0xFFFF] = SILENCE
        for index, value in enumerate(self.values):
            for near in range(value - reach[index // 2], value + reach[index // 2] + 1):
                self.of_sample[near & 0xFFFF] = index
        self.of_code = bytes(self.of_sample[value & 0xFFFF] for value in _linear(bytes(range(256))))
        """By a mu-law code."""

    def __len__(self) -> int:
        return len(self.codes)


def _linear(codes: bytes) -> list[int]:
    return list(array("h", decode_mulaw(codes)))


# The lowest steps of mu-law are eight apart, in samples; filters are off by one or two at most.
CALLER_LEVELS = Levels((1, 8, 2, 9, 3, 10, 4, 11, 5, 12, 6, 13, 7), [3] * 13)
# Four steps in each of five segments, at least 15 % apart; 7 % of each is its own.
_AGENT_MAGNITUDES = [segment << 4 | m for m in (2, 6, 10, 14) for segment in range(2, 7)]
AGENT_LEVELS = Levels(
    _AGENT_MAGNITUDES,
    [_linear(bytes([~m & 0xFF]))[0] * 7 // 100 for m in _AGENT_MAGNITUDES],
)

CALLER_CODES = [bytes([code]) * 160 for code in CALLER_LEVELS.codes]
"""Each level's 20 ms frame: mu-law at 8 kHz."""
CALLER_PAYLOADS = [b2a_base64(frame, newline=False) for frame in CALLER_CODES]
"""Base64 of each level's 20 ms frame: mu-law at 8 kHz."""
AGENT_PAYLOADS = [
    b2a_base64(value.to_bytes(2, "little", signed=True) * 960, newline=False)
    for value in AGENT_LEVELS.values
]
"""Base64 of each level's 40 ms chunk: pcm at 24 kHz."""


class Trail:
    """One direction of one call: pieces are sent in order, and recognised where they arrive.

    A gap of more than half the levels (0.26 s of caller audio) cannot be told from a repetition.

    Args:
        piece_s: How long a piece sounds.
        levels: How many levels there are.
        first: Level of the first piece; different for each call, so that two calls cannot be
            taken for each other.
        latencies: Where the way of each piece is noted, in seconds.
    """

    __slots__ = (
        "_after_cut",
        "_append",
        "_arrived",
        "_first",
        "_levels",
        "_run",
        "_sent_at",
        "doubled",
        "dropped",
        "lost",
        "piece_s",
        "silence",
        "stale",
        "strange",
    )

    def __init__(self, piece_s: float, levels: int, first: int, latencies: array[float]) -> None:
        self.piece_s = piece_s
        self.lost = 0
        """Samples that never arrived, though later ones did."""
        self.doubled = 0
        """Samples that arrived again, or in the wrong order."""
        self.stale = 0
        """Samples of a cut turn that arrived after the clear."""
        self.dropped = 0
        """Samples that a clear overtook: rightly not sent."""
        self.silence = 0
        """Samples of silence, in addition to what was sent."""
        self.strange = 0
        """Samples that are no level of ours."""
        self._levels = levels
        self._first = first % levels
        self._append = latencies.append
        self._sent_at = array("d")
        self._arrived = 0  # number of the piece that must come next
        self._run = 0  # samples of it that have come already
        self._after_cut = False  # whether nothing has arrived since the last cut

    @property
    def sent(self) -> int:
        """Pieces sent so far; also the number of the next one."""
        return len(self._sent_at)

    @property
    def arrived(self) -> int:
        """Pieces that have arrived, or been lost or cut."""
        return self._arrived

    def sent_at(self, piece: int) -> float:
        """When this piece was sent."""
        return self._sent_at[piece]

    def send(self, now: float) -> int:
        """Take the next piece: the index of its level."""
        sent_at = self._sent_at
        level = (self._first + len(sent_at)) % self._levels
        sent_at.append(now)
        return level

    def arrive(self, level: int, samples: int, now: float) -> None:
        """Note a stretch of one level."""
        arrived = self._arrived
        if (
            samples == SAMPLES
            and not self._run
            and level == (self._first + arrived) % self._levels
            and arrived < len(self._sent_at)
        ):
            self._append(now - self._sent_at[arrived])
            self._arrived = arrived + 1
            self._after_cut = False
        else:
            self._puzzle(level, samples, now)

    def _puzzle(self, level: int, samples: int, now: float) -> None:
        """Anything but the whole piece that was to come next."""
        if samples < TAIL_SAMPLES and not self._run:
            return
        if level == SILENCE:
            self.silence += samples
            return
        if level == NO_LEVEL:
            self.strange += samples
            return
        ahead = (level - self._first - self._arrived) % self._levels
        if ahead > self._levels // 2 or self._arrived + ahead >= self.sent:
            # Half the circle lies behind, and nothing can come that was not sent.
            if self._after_cut:
                self.stale += samples
            else:
                self.doubled += samples
            return
        if ahead:
            self.lost += ahead * SAMPLES - self._run
            self._arrived += ahead
            self._run = 0
        self._after_cut = False
        self._run += samples
        if self._run >= SAMPLES - SAMPLES // 16:
            self._append(now - self._sent_at[self._arrived])
            self.lost += max(0, SAMPLES - self._run)
            # A turn's last piece may bring along what the resampler still held.
            self.doubled += self._run - SAMPLES if self._run > SAMPLES + TAIL_SAMPLES else 0
            self._arrived += 1
            self._run = 0

    def cut(self, piece: int) -> None:
        """A clear has come for every piece before this one."""
        if piece > self._arrived:
            self.dropped += (piece - self._arrived) * SAMPLES - self._run
            self._arrived = piece
            self._run = 0
        self._after_cut = True

    def missing(self, sent: int) -> int:
        """Samples of the first ``sent`` pieces that have not arrived yet."""
        return max(0, (sent - self._arrived) * SAMPLES - self._run)

    def in_ms(self, samples: int) -> float:
        """How long so many samples sound."""
        return samples / SAMPLES * self.piece_s * 1000


_CALLER_LEVEL = bytes(CALLER_LEVELS.of_sample)
_AGENT_LEVEL = AGENT_LEVELS.of_code


def stretches_of_pcm(message: bytes, start: int) -> list[tuple[int, int]]:
    """Recognise caller audio in a model message: base64 of pcm at 16 kHz, from ``start`` on.

    Returns:
        Pairs of level and number of samples, one for each piece.
    """
    end = message.index(b'"', start)
    chars = end - start
    samples = (chars // 4 * 3 - message.count(b"=", end - 2, end)) // 2
    if samples == SAMPLES:
        # Eight characters are six bytes, so a sample begins at every multiple of eight.
        middle = start + 424
        low, high, _ = a2b_base64(message[middle : middle + 4])
        return [(_CALLER_LEVEL[low | high << 8], SAMPLES)]
    stretches = []
    for middle, length in _pieces(chars, samples, 8):
        triple = a2b_base64(message[start + middle : start + middle + 4])
        stretches.append((_CALLER_LEVEL[int.from_bytes(triple[:2], "little")], length))
    return stretches


def stretches_of_mulaw(message: bytes, start: int) -> list[tuple[int, int]]:
    """Recognise agent audio in a media message: base64 of mu-law, from ``start`` on.

    Returns:
        Pairs of level and number of samples, one for each piece.
    """
    end = message.index(b'"', start)
    chars = end - start
    samples = chars // 4 * 3 - message.count(b"=", end - 2, end)
    stretches = []
    for middle, length in _pieces(chars, samples, 4):
        code = a2b_base64(message[start + middle : start + middle + 4])
        stretches.append((_AGENT_LEVEL[code[0]], length))
    return stretches


def stretches_of_bare(message: bytes) -> list[tuple[int, int]]:
    """Recognise agent audio in a message of nothing but mu-law.

    Returns:
        Pairs of level and number of samples, one for each piece.
    """
    samples = len(message)
    return [
        (_AGENT_LEVEL[message[middle]], length) for middle, length in _pieces(samples, samples, 1)
    ]


def _pieces(chars: int, samples: int, step: int) -> list[tuple[int, int]]:
    """Cut a message into pieces: where in the base64 the middle of each is, and its samples."""
    if not samples:
        return []
    count = (samples + SAMPLES // 2) // SAMPLES or 1
    pieces = [
        ((2 * piece + 1) * chars // (2 * count) // step * step, samples // count)
        for piece in range(count)
    ]
    middle, length = pieces[-1]
    pieces[-1] = (middle, length + samples % count)
    return pieces
