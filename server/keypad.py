"""The telephone's keypad: the tones of its keys, and the keys a caller presses.

Tones are ITU-T Q.23: a key is one low and one high frequency at once. Levels and times are within
what ETSI ES 201 235-2 and ITU-T Q.24 let every exchange and every automatic menu understand.
"""

from __future__ import annotations

import math
from array import array
from functools import cache

import codec

KEYS = "0-9A-D*#"
"""The keys there are, for a character class."""
MAX_KEYS = 32
"""As many as the carrier takes when it dials (twilio: ``SendDigits``)."""

KEY_S = 0.1
"""How long a tone sounds, and how long the silence after it; 40 ms is what must be understood."""
PAUSE_S = 0.5
"""A ``w``, as in the carrier's ``SendDigits``."""
LOW_DBM0, HIGH_DBM0 = -9.0, -7.0
"""Levels: the higher tone is the louder one, for lines weaken it more."""

RATE_HZ = 8_000
FULL_SCALE_DBM0 = 3.17
"""A sine at mu-law's largest code (ITU-T G.711)."""
FULL_SCALE = 32_124
"""That code as a 16-bit sample."""

_SILENCE = b"\xff"
_LOW_HZ = {"1": 697, "4": 770, "7": 852, "*": 941}
_ROWS = ("123A", "456B", "789C", "*0#D")
_COLUMNS_HZ = (1209, 1336, 1477, 1633)


def frequencies_hz(key: str) -> tuple[int, int]:
    """The two tones of a key.

    Raises:
        ValueError: There is no such key.
    """
    for row in _ROWS:
        if len(key) == 1 and key in row:
            return _LOW_HZ[row[0]], _COLUMNS_HZ[row.index(key)]
    raise ValueError(f"no key {key!r} on a telephone")


@cache
def key_tone(key: str) -> bytes:
    """Mu-law of one key: 100 ms of its tones, 100 ms of silence."""
    low_hz, high_hz = frequencies_hz(key)
    samples = round(KEY_S * RATE_HZ)
    pcm = array("h", bytes(2 * samples))
    for hz, level_dbm0 in ((low_hz, LOW_DBM0), (high_hz, HIGH_DBM0)):
        peak = FULL_SCALE * 10 ** ((level_dbm0 - FULL_SCALE_DBM0) / 20)
        for n in range(samples):
            pcm[n] += round(peak * math.sin(2 * math.pi * hz * n / RATE_HZ))
    return codec.encode_mulaw(pcm.tobytes()) + _SILENCE * samples


def tones(keys: str) -> bytes:
    """Mu-law of keys pressed one after the other; ``w`` waits for half a second.

    Raises:
        ValueError: There is no such key.
    """
    return b"".join(
        _SILENCE * round(PAUSE_S * RATE_HZ) if key in "wW" else key_tone(key) for key in keys
    )
