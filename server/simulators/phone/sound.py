"""The telephone's sound: frames of mu-law, what is loud, recorded sentences and tones."""

from __future__ import annotations

import math
from array import array
from functools import cache
from importlib import resources

from codec import decode_mulaw, encode_mulaw, line
from codec.line import BYTES_PER_S, FRAME_BYTES, FRAME_S
from server.media.wav import data_of, stereo_head, stereo_of_mulaw

SILENCE = line.SILENCE * FRAME_BYTES
"""A frame of it."""

_LINEAR = array("h", decode_mulaw(bytes(range(256))))
_LOUD_SAMPLE = 500  # About -36 dBFS: over a line's noise, under the quietest vowel.
_LOUD_SAMPLES_PER_FRAME = 8
_QUIET_CODES = bytes(code for code, sample in enumerate(_LINEAR) if abs(sample) < _LOUD_SAMPLE)


def is_loud(frame: bytes) -> bool:
    """Whether somebody can be heard in 20 ms of mu-law."""
    return len(frame.translate(None, _QUIET_CODES)) > _LOUD_SAMPLES_PER_FRAME


@cache
def load_speech(clip: str) -> bytes:
    """Mu-law of a recorded sentence: ``server/speech/caller-<clip>.wav``."""
    wav = resources.files("server").joinpath("speech", f"caller-{clip}.wav").read_bytes()
    return data_of(wav)


def frames(duration_s: float) -> range:
    """Count the frames that last so long."""
    return range(round(duration_s / FRAME_S))


@cache
def tone(hz: float, duration_s: float) -> bytes:
    """Mu-law of a sine at -10 dBFS, in whole frames."""
    wave = (
        round(10_000 * math.sin(2 * math.pi * hz * n / BYTES_PER_S))
        for n in range(len(frames(duration_s)) * FRAME_BYTES)
    )
    return encode_mulaw(array("h", wave).tobytes())


def mix(own: bytes, echo: bytes, gain: float) -> bytes:
    """Add mu-law that was played, times ``gain``, to as much of it that is said."""
    mixed = (
        max(-32_768, min(32_767, _LINEAR[said] + round(_LINEAR[played] * gain)))
        for said, played in zip(own, echo, strict=True)
    )
    return encode_mulaw(array("h", mixed).tobytes())


def two_channel_wav(left: bytes, right: bytes) -> bytes:
    """Put two mu-law recordings side by side, the shorter one ending in silence.

    Returns:
        A WAV file's content: 8 kHz, 16-bit, two channels.
    """
    length = max(len(left), len(right))
    sides = (side.ljust(length, line.SILENCE) for side in (left, right))
    return stereo_head(length, BYTES_PER_S) + stereo_of_mulaw(*sides)
