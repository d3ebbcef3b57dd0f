"""A sound for the silence while the agent is at work, from a file of the user's."""

from __future__ import annotations

import math
from array import array
from functools import lru_cache
from pathlib import Path

from codec import decode_mulaw, encode_mulaw
from codec.line import BYTES_PER_S
from server.agent.greeting import read_greeting
from server.errors import ConfigurationError

SETTING = "THINKING_SOUND"
LEVEL_DBFS = -38.0
"""On the average: 18 dB under the agent, who speaks at about -20."""
PEAK_DBFS = -20.0
"""At its loudest, for sounds with much silence in them, such as a keyboard's."""
FULL_SCALE = 32_768
SHORTEST_S = 0.5
JOIN_S = 0.04
"""How long its end and its beginning are heard together, so that nobody hears where they meet."""
MAX_KEPT = 8
"""Sounds, of at most half a megabyte, that are not worked out again for the next agent."""


def read_thinking(path: Path) -> bytes:
    """Read a sound that can go round and round under a silence.

    Raises:
        ConfigurationError: It cannot be read, is no sound, or is too short.
    """
    return _looped(read_greeting(path, SETTING), path)


@lru_cache(maxsize=MAX_KEPT)
def _looped(sound: bytes, path: Path) -> bytes:
    """The sound, as quiet as it shall be, with its end led over into its beginning."""
    samples = array("h", decode_mulaw(sound))
    join = round(JOIN_S * BYTES_PER_S)
    if len(samples) < SHORTEST_S * BYTES_PER_S:
        raise ConfigurationError(f"{SETTING} {path}: it is shorter than {SHORTEST_S:g} s")
    mean_square = sum(sample * sample for sample in samples) / len(samples)
    peak = max(max(samples), -min(samples))
    if peak == 0:
        raise ConfigurationError(f"{SETTING} {path}: there is no sound in it")
    gain = min(_linear(LEVEL_DBFS) / math.sqrt(mean_square), _linear(PEAK_DBFS) / peak)
    end = len(samples) - join
    for at in range(join):
        samples[at] = (samples[at] * at + samples[end + at] * (join - at)) // join
    return encode_mulaw(array("h", (round(gain * one) for one in samples[:end])).tobytes())


def _linear(dbfs: float) -> float:
    return FULL_SCALE * math.pow(10.0, dbfs / 20)
