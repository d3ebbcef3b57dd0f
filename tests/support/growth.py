"""How what something costs grows with what it is given, whatever the machine."""

from __future__ import annotations

import time
from collections.abc import Callable

TIMES = 8
QUADRATIC = TIMES * TIMES
FEW = TIMES * 2.5
"""Work that is in proportion costs eight times as much at most, and the square of it 64 times."""


def growth(act: Callable[[int], object], size: int) -> float:
    """How many times as much of this thread's time ``act`` takes for eight times the size."""
    return _least_s(act, TIMES * size) / max(_least_s(act, size), 20e-6)


def _least_s(act: Callable[[int], object], size: int) -> float:
    least_s = float("inf")
    for _ in range(5):
        began_s = time.thread_time()
        act(size)
        least_s = min(least_s, time.thread_time() - began_s)
    return least_s
