"""What is wrong with a network, and when a piece of a stream comes out of it: no sockets, no clock.

What TCP makes of a bad network is late, never out of order and never missing: a lost segment is a
stall until it is sent again, and then a burst of all that waited behind it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

SEGMENT_BYTES = 1448
READ_BYTES = 16_384
READ_S = 0.05
RTO_S = 0.2
"""How long a lost segment is missed before it is sent again; Linux's least."""
BUFFER_BYTES = 1 << 20
MAX_DELAY_S = 60.0
MAX_RETRANSMISSIONS = 6


@dataclass(frozen=True, slots=True)
class Weather:
    """The state of one direction of a connection; as it is made, all is well."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Up to so much more, for each piece."""
    loss: float = 0.0
    """Chance of each segment to be lost; each time in a row it takes twice as long to notice."""
    rto_s: float = RTO_S
    bytes_per_s: float = math.inf
    buffer_bytes: int = BUFFER_BYTES
    """How much may be on its way; then nothing more is read, and the sender notices."""
    is_held: bool = False
    """Nothing passes, and nothing is lost: it comes when this is over, if anybody is there then."""

    def __post_init__(self) -> None:
        """Raise ValueError for what no network can be."""
        for name in ("delay_s", "jitter_s", "rto_s"):
            if not 0 <= getattr(self, name) <= MAX_DELAY_S:
                raise ValueError(f"{name} is between 0 and {MAX_DELAY_S:g}")
        if not 0 <= self.loss < 1:
            raise ValueError("loss is at least 0 and less than 1")
        if not self.bytes_per_s > 0 or self.buffer_bytes < 1:
            raise ValueError("bytes_per_s and buffer_bytes are more than 0")

    @property
    def read_bytes(self) -> int:
        """How much may be taken in at once: on a slow line little, so that it drips."""
        return int(max(1, min(READ_BYTES, self.buffer_bytes, READ_S * self.bytes_per_s)))

    def changed(self, facts: dict[str, Any]) -> Weather:
        """The same with some of it different.

        Raises:
            TypeError, ValueError: It cannot be.
        """
        return replace(self, **facts)


CLEAR = Weather()


class Passage:
    """When each piece of one direction of one connection comes out.

    Args:
        dice: Decides what is lost, and how late the rest is.
    """

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._sent_at = -math.inf
        self._due = -math.inf

    def due(self, weather: Weather, size: int, now: float) -> float:
        """When a piece that goes in now comes out: never before one that went in earlier."""
        begins = max(now, self._sent_at)
        self._sent_at = begins + size / weather.bytes_per_s
        late_s = weather.delay_s + weather.jitter_s * self._dice.random()
        if weather.loss:
            segments = -(-size // SEGMENT_BYTES)
            late_s += max((self._stall_s(weather) for _ in range(segments)), default=0.0)
        self._due = max(self._due, self._sent_at + late_s)
        return self._due

    def _stall_s(self, weather: Weather) -> float:
        stall_s, rto_s = 0.0, weather.rto_s
        for _ in range(MAX_RETRANSMISSIONS):
            if self._dice.random() >= weather.loss:
                break
            stall_s, rto_s = stall_s + rto_s, 2 * rto_s
        return stall_s
