"""Audio that says whose it is and where in it we are: made, recognised and compared.

As in :mod:`benchmarks.load.trail` each 20 ms are one constant level, which survives the codec, and
the caller's levels lie below what any detector takes for speech. Here seven of them are a group:
a level that means "a group begins", three digits for the number of who speaks, and three for the
number of the group. Whatever was lost between two groups, and however much, is known by them.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.load.trail import AGENT_LEVELS, CALLER_LEVELS, NO_LEVEL, SILENCE, Levels
from codec.line import FRAME_BYTES

FRAME_S = 0.02
BASE = 12
BEGINS = BASE
GROUP = 7
NUMBERS = BASE**3
"""How many speakers can be told apart, and how many groups of one of them."""
MAX_S = NUMBERS * GROUP * FRAME_S
CALLER_FRAME_SAMPLES = 320
"""Of 20 ms of the caller's at the model: pcm at 16 kHz."""
AGENT_FRAME_SAMPLES = 480
"""Of 20 ms of the agent's at the model: pcm at 24 kHz."""


def level_at(number: int, position: int) -> int:
    """The level of one frame of speaker ``number``; neighbours differ in their sign."""
    group, slot = divmod(position, GROUP)
    value = number if slot < 4 else group
    digit = BEGINS if slot == 0 else value // BASE ** ((3 - slot) % 3) % BASE
    return 2 * digit + (position & 1)


def levels_of(number: int, frames: int) -> bytes:
    """The first frames of a speaker."""
    return bytes(level_at(number, position) for position in range(frames))


def caller_frames(number: int, frames: int) -> Iterator[bytes]:
    """What a telephone says: mu-law at 8 kHz, 20 ms each."""
    for position in range(frames):
        yield bytes([CALLER_LEVELS.codes[level_at(number, position)]]) * FRAME_BYTES


def agent_pcm(number: int, frames: int) -> bytes:
    """What a model says: pcm at 24 kHz."""
    return b"".join(
        AGENT_LEVELS.values[level].to_bytes(2, "little", signed=True) * AGENT_FRAME_SAMPLES
        for level in levels_of(number, frames)
    )


def of_mulaw(audio: bytes | bytearray, levels: Levels) -> bytes:
    """The level in the middle of each 20 ms of mu-law at 8 kHz."""
    return bytes(audio[FRAME_BYTES // 2 :: FRAME_BYTES]).translate(levels.of_code)


def of_stream(audio: bytes | bytearray, levels: Levels) -> tuple[bytes, list[int]]:
    """The levels in mu-law at 8 kHz, wherever each begins, and in which of its 20 ms that is.

    What an ear gets may have been filled up with silence in the middle of a frame, when the rest of
    it had not come yet; such a frame is one all the same.
    """
    found, places = bytearray(), []
    last, heard_bytes, told = SILENCE, 0, 0
    for run in _RUN.finditer(bytes(audio).translate(levels.of_code)):
        level, length = run[1][0], len(run[0])
        if level == SILENCE:
            frames = length // FRAME_BYTES
        else:
            heard_bytes, told = (heard_bytes + length, told) if level == last else (length, 0)
            last = level
            frames = round(heard_bytes / FRAME_BYTES) - told
            told += frames
        found += bytes([level]) * frames
        places += [run.start() // FRAME_BYTES + frame for frame in range(frames)]
    return bytes(found), places


def of_pcm(pcm: bytes) -> bytes:
    """The level in the middle of each 20 ms of the caller's pcm at 16 kHz."""
    samples = memoryview(pcm).cast("H")[CALLER_FRAME_SAMPLES // 2 :: CALLER_FRAME_SAMPLES]
    return bytes(CALLER_LEVELS.of_sample[sample] for sample in samples)


def numbers_in(levels: bytes) -> list[int]:
    """Whose groups are whole in what arrived, in order, each change once."""
    found: list[int] = []
    for start in range(len(levels) - 3):
        symbols = [level // 2 for level in levels[start : start + 4]]
        if symbols[0] == BEGINS and max(symbols[1:]) < BASE:
            number = symbols[1] * BASE**2 + symbols[2] * BASE + symbols[3]
            if not found or found[-1] != number:
                found.append(number)
    return found


_RUN = re.compile(rb"(.)\1{39,}", re.DOTALL)
"""One level for longer than a filter takes from one to the next."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Frames that never arrived, though later ones did."""

    sent_at: int
    """Position of the first of them in what was sent."""
    frames: int
    arrived: int
    """How many levels had arrived before the gap was noticed."""
    after: int
    """How many had arrived up to the last frame before the gap."""


@dataclass(slots=True)
class Comparison:
    """What was sent beside what arrived; all in frames of 20 ms."""

    matched: int = 0
    gaps: list[Gap] = field(default_factory=list)
    doubled: int = 0
    strange: int = 0
    """No level of ours, or none that was sent."""
    unclear: int = 0
    """Ours, and too few together to say where they belong."""
    pauses: list[tuple[int, int]] = field(default_factory=list)
    """Silence between two frames that were sent without any: where it was in what was sent, and how
    long."""
    unheard: int = 0
    """At the end of what was sent, and never arrived."""
    arrived: int = 0
    """Levels up to the last that was recognised."""

    def take_odd(self, odd: int) -> None:
        """So many frames were nowhere together: a beginning that was cut at once, or another's."""
        if odd < WINDOW:
            self.unclear += odd
        else:
            self.strange += odd

    @property
    def lost(self) -> int:
        """Frames that never arrived, though later ones did."""
        return sum(gap.frames for gap in self.gaps)


WINDOW = 8
"""Frames that are nowhere else in what was sent: a group is among them, wherever they begin."""


def compare(sent: bytes, arrived: bytes, starts: Sequence[int] = ()) -> Comparison:
    """Find what arrived in what was sent; silence may have been put in anywhere.

    Args:
        sent: Levels, in order.
        arrived: The same, as far as they have come.
        starts: Where something new begins in ``sent``; after a gap it most likely goes on there.
    """
    found = Comparison()
    levels = arrived.replace(bytes([SILENCE]), b"")
    at = last = silence = odd = 0
    heard = -1
    for index, level in enumerate(arrived):
        if level == SILENCE:
            silence += 1
            continue
        heard += 1
        # Frames from behind a gap that fit by accident move it, by less than a group.
        if at >= len(sent) or level != sent[at]:
            window = arrived[index : index + WINDOW].partition(bytes([SILENCE]))[0]
            # What drips has a pause every few frames, and is known by what comes behind that.
            ahead = _find(sent, levels[heard : heard + WINDOW], at)
            if ahead < 0:
                ahead = _find(sent, window, at, starts)
            if ahead < 0:
                if len(window) < WINDOW and level != NO_LEVEL:
                    found.unclear += 1
                elif level != NO_LEVEL and 0 <= sent.find(window) < at:
                    found.doubled += 1
                elif level == NO_LEVEL:
                    found.strange += 1
                else:
                    odd += 1
                continue
            back = _back(sent, at, ahead, starts)
            if back and found.pauses and found.pauses[-1][0] == at - back:
                found.pauses.pop()  # it was before what is new
            found.gaps.append(Gap(at - back, ahead - at, index, last))
            at = ahead
            silence = 0
        if odd:
            found.take_odd(odd)
        if silence and at:
            found.pauses.append((at, silence))
        silence = odd = 0
        at += 1
        found.matched += 1
        last = index + 1
    found.take_odd(odd)
    found.unheard, found.arrived = len(sent) - at, last
    return found


def _find(sent: bytes, window: bytes, at: int, starts: Sequence[int] = ()) -> int:
    """Where what has arrived is in what was sent, from a position on; -1 if that is not clear."""
    if len(window) == WINDOW:
        return sent.find(window, at)
    return next(
        (start for start in starts if start >= at and sent.startswith(window, start)),
        -1,
    )


def _back(sent: bytes, at: int, ahead: int, starts: Sequence[int]) -> int:
    """How far a gap begins and ends earlier than it seems, if that is where something new began."""
    for back in range(1, min(GROUP, at + 1)):
        if ahead - back in starts and sent[at - back : at] == sent[ahead - back : ahead]:
            return back
    return 0


def times_of(gap: Gap, times: Sequence[float] | array[float]) -> tuple[float, float]:
    """From when to when a gap's frames should have arrived."""
    return times[max(0, gap.after - 1)], times[min(gap.arrived, len(times) - 1)]
