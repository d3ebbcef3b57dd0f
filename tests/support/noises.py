"""Rooms of our own making, which a detector takes for somebody who speaks: mu-law, by a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy

import codec
from codec.line import BYTES_PER_S, FRAME_BYTES

LEVEL = 200.0
"""About -44 dBFS, 15 dB and more under the recorded callers."""


def _modulated(wave: numpy.ndarray, hz: float) -> numpy.ndarray:
    at = numpy.arange(len(wave)) / BYTES_PER_S
    return wave * (0.15 + numpy.maximum(0, numpy.sin(2 * numpy.pi * hz * at)))


def voices(count: int, random: numpy.random.Generator) -> numpy.ndarray:
    """People at other tables: harmonics that come and go at the pace of syllables."""
    at = numpy.arange(count) / BYTES_PER_S
    sum_of_all = numpy.zeros(count)
    for pitch_hz, pace_hz in ((110, 3.1), (180, 4.3), (230, 2.7)):
        wobble = pitch_hz * (1 + 0.05 * numpy.sin(2 * numpy.pi * 0.7 * at))
        phase = 2 * numpy.pi * numpy.cumsum(wobble) / BYTES_PER_S
        tones = sum(numpy.sin(n * phase) / n for n in range(1, 15))
        sum_of_all += _modulated(tones, pace_hz)
    return sum_of_all


def rumble(count: int, random: numpy.random.Generator) -> numpy.ndarray:
    """Traffic: low noise that swells with each car."""
    steps = numpy.cumsum(random.normal(0, 1, count))
    low = steps - numpy.convolve(steps, numpy.ones(40) / 40, "same")
    return _modulated(low, 0.4)


def clatter(count: int, random: numpy.random.Generator) -> numpy.ndarray:
    """A keyboard, or a kitchen: bursts of a few milliseconds to a tenth of a second."""
    wave = numpy.zeros(count)
    for start in range(0, count - 1_000, 900):
        length = int(random.integers(100, 800))
        decay = numpy.exp(-4 * numpy.arange(length) / length)
        wave[start : start + length] += random.normal(0, 1, length) * decay
    return wave


def hiss(count: int, random: numpy.random.Generator) -> numpy.ndarray:
    """White noise, the only one that a detector learns in a second."""
    return random.normal(0, 1, count)


NOISES: dict[str, Callable[[int, numpy.random.Generator], numpy.ndarray]] = {
    each.__name__: each for each in (voices, rumble, clatter, hiss)
}


def room(name: str, seconds: float, level: float = LEVEL) -> numpy.ndarray:
    """So much of a room, in samples of 16 bits at this root mean square."""
    wave = NOISES[name](round(seconds * BYTES_PER_S), numpy.random.default_rng(5))
    return wave * level / numpy.sqrt((wave**2).mean())


def frames_of(samples: numpy.ndarray) -> list[bytes]:
    """Frames of mu-law."""
    payload = codec.encode_mulaw(numpy.clip(samples, -32_768, 32_767).astype("<i2").tobytes())
    whole = len(payload) - len(payload) % FRAME_BYTES
    return [payload[at : at + FRAME_BYTES] for at in range(0, whole, FRAME_BYTES)]


def linear(payload: bytes) -> numpy.ndarray:
    """Samples of mu-law."""
    return numpy.frombuffer(codec.decode_mulaw(payload), "<i2").astype(float)
