"""A sound in the silence while the agent is at work: no I/O and no clock.

It is the user's own, far under the agent's voice, and no word of anybody's: no mark follows it, and
it counts as nothing that was said or heard. Only echoes of it are known for what they are.
"""

from __future__ import annotations

from array import array
from math import inf

from codec import decode_mulaw, encode_mulaw
from codec.ear import Played
from codec.line import BYTES_PER_S

BACKGROUND = -1
"""The turn of audio that is in none."""
LEAD_S = 0.2
"""So much is sent ahead: the less, the sooner it is over where nothing can be cleared."""
PIECE_BYTES = BYTES_PER_S // 10
FADE_BYTES = BYTES_PER_S // 25
"""40 ms in which it comes and goes."""


class ThinkingSound:
    """What is sent of a sound that goes round and round, as long as it is wanted.

    Args:
        loop: Mu-law at 8 kHz, as loud as it is to be heard; empty for no sound.

    Attributes:
        wanted: Whether it is to be heard while nothing else is.
        is_on: Whether the carrier has got some of it, and has not been told to leave the rest.
    """

    def __init__(self, loop: bytes) -> None:
        self.wanted = self.is_on = False
        self._loop = loop
        self._at = 0

    def next_due(self, timeline: Played) -> float:
        """When to ask for the next piece; infinity while none is wanted."""
        if not self.wanted or not self._loop or timeline.marks_out:
            return inf
        return timeline.background_end - LEAD_S if self.is_on else timeline.play_end

    def next_piece(self, now: float, timeline: Played) -> bytes:
        """What is to be sent now, which the timeline knows then; nothing if none is due."""
        if now < self.next_due(timeline) or timeline.is_playing(now):
            return b""
        piece = self._take(PIECE_BYTES)
        if not self.is_on:
            piece = faded(piece[:FADE_BYTES], up=True) + piece[FADE_BYTES:]
        self.is_on = True
        timeline.passed(now)
        timeline.background(piece, max(now, timeline.background_end))
        return piece

    def stop(self, now: float, timeline: Played) -> bytes:
        """It has to be over.

        Returns:
            What it dies away with, to be sent after a clear; nothing if it is not heard any more.
        """
        self.is_on = False
        unheard = round((timeline.background_end - now) * BYTES_PER_S)
        if unheard <= 0:
            return b""
        self._at = (self._at - unheard) % len(self._loop)
        timeline.forget_background(now)
        tail = faded(self._take(FADE_BYTES), up=False)
        timeline.background(tail, now)
        return tail

    def forget(self) -> None:
        """The stream is over."""
        self.wanted = self.is_on = False

    def _take(self, size: int) -> bytes:
        loop, at = self._loop, self._at
        self._at = (at + size) % len(loop)
        if at + size <= len(loop):
            return loop[at : at + size]
        return (loop[at:] + loop * (1 + size // len(loop)))[:size]


def faded(payload: bytes, *, up: bool) -> bytes:
    """The same, but louder and louder from silence on, or the other way round."""
    samples = array("h", decode_mulaw(payload))
    count = len(samples)
    for at in range(count):
        samples[at] = samples[at] * (at if up else count - 1 - at) // count
    return encode_mulaw(samples.tobytes())
