"""The telephone's keypad: the tones of its keys, and the keys a caller presses.

Tones are ITU-T Q.23: a key is one low and one high frequency at once. Levels and times are within
what ETSI ES 201 235-2 and ITU-T Q.24 let every exchange and every automatic menu understand.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Awaitable, Callable
from functools import cache

import trio

import codec
from codec.line import LINE_RATE_HZ, SILENCE
from server.signal import Once

KEYS = "0-9A-D*#"
"""The keys there are, for a character class."""
MAX_KEYS = 32
"""As many as the carrier takes when it dials (twilio: ``SendDigits``)."""

MAX_PRESSED = 64
"""Pressed without a pause; more than any number one types in. What comes beyond is not kept."""
TOLD_EVERY_S = 0.5
"""Each telling is a turn to the model, and costs its tokens: nobody means two of them in less."""

KEY_S = 0.1
"""How long a tone sounds, and how long the silence after it; 40 ms is what must be understood."""
PAUSE_S = 0.5
"""A ``w``, as in the carrier's ``SendDigits``."""
LOW_DBM0, HIGH_DBM0 = -9.0, -7.0
"""Levels: the higher tone is the louder one, for lines weaken it more."""

FULL_SCALE_DBM0 = 3.17
"""A sine at mu-law's largest code (ITU-T G.711)."""
FULL_SCALE = 32_124
"""Mu-law's largest code as a 16-bit sample."""

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
    samples = round(KEY_S * LINE_RATE_HZ)
    pcm = array("h", bytes(2 * samples))
    for hz, level_dbm0 in ((low_hz, LOW_DBM0), (high_hz, HIGH_DBM0)):
        peak = FULL_SCALE * 10 ** ((level_dbm0 - FULL_SCALE_DBM0) / 20)
        for n in range(samples):
            pcm[n] += round(peak * math.sin(2 * math.pi * hz * n / LINE_RATE_HZ))
    return codec.encode_mulaw(pcm.tobytes()) + SILENCE * samples


def tones(keys: str) -> bytes:
    """Mu-law of keys pressed one after the other; ``w`` waits for half a second.

    Raises:
        ValueError: There is no such key.
    """
    return b"".join(
        SILENCE * round(PAUSE_S * LINE_RATE_HZ) if key in "wW" else key_tone(key) for key in keys
    )


# ------------------------------------------------------------------------------------------
# The part that waits


class PressedKeys:
    """Keys the caller presses, for the model: in one go what was pressed in one go."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._keys = ""  # pressed, and not yet told to the model
        self._pressed = Once()

    def press(self, key: str) -> None:
        """The caller has pressed a key."""
        if len(self._keys) < MAX_PRESSED:
            self._keys += key
            self._pressed.set()

    async def run(
        self,
        tell: Callable[[str], Awaitable[None]],
        wait_free: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """Give what was pressed without a pause, or up to a ``#``, to ``tell``.

        Args:
            tell: Tells the model.
            wait_free: Waits until the model may be told; what is pressed meanwhile goes along.
        """
        told_at = -math.inf
        while True:
            await self._wait()
            paused = False
            while not (paused or self._keys.endswith("#") or len(self._keys) >= MAX_PRESSED):
                with trio.move_on_after(self._pause_s) as pause:
                    await self._wait()
                paused = pause.cancelled_caught
            await trio.sleep_until(told_at + TOLD_EVERY_S)  # what is pressed meanwhile goes along
            await wait_free()
            keys, self._keys, self._pressed = self._keys, "", Once()
            told_at = trio.current_time()
            await tell(keys)

    async def _wait(self) -> None:
        await self._pressed.wait()
        self._pressed = Once()
