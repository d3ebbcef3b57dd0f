"""The speech the codec is judged on: two voices, generated with espeak-ng and committed.

One WAV file of mu-law at 24 kHz, the widest band any direction needs; at 8 kHz the same speech is
the caller's. Synthetic voices rank resamplers; they do not promise a score with real ones.
"""

from __future__ import annotations

import struct
from importlib import resources

import codec

RATE_HZ = 24000
MULAW_FORMAT_TAG = 7


def speech() -> bytes:
    """About 4 s of 16-bit PCM at 24 kHz."""
    data = (resources.files("benchmarks") / "speech" / "two-voices.wav").read_bytes()
    return codec.decode_mulaw(_mulaw_of_wav(data))


def _mulaw_of_wav(data: bytes) -> bytes:
    """The samples of a mono mu-law WAV file, which the standard library does not read."""
    at = 12
    while at < len(data):
        chunk, size = struct.unpack_from("<4sI", data, at)
        if chunk == b"fmt ":
            tag, channels, rate_hz = struct.unpack_from("<HHI", data, at + 8)
            assert (tag, channels, rate_hz) == (MULAW_FORMAT_TAG, 1, RATE_HZ)
        elif chunk == b"data":
            return data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    raise ValueError("a WAV file without a data chunk")
