"""Which process is to have a new call: a choice among rows of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Candidate(NamedTuple):
    """A process that could have the next call, as far as is known here."""

    name: str
    accepts: bool
    calls: float
    """Those that run there, those that are being answered, and those on their way."""
    dial_wait_s: float
    """How long a call would have to wait for its turn there."""
    is_other: bool = True
    order: int = 0
    """Decides where nothing else does."""


def choose(candidates: Iterable[Candidate]) -> str | None:
    """The one that can dial soonest, of these the one with the fewest calls, and rather ourselves
    than another; None if nobody takes calls.
    """
    takers = [each for each in candidates if each.accepts]
    return min(takers, key=_burden).name if takers else None


def _burden(one: Candidate) -> tuple[float, float, bool, int, str]:
    # A tenth of a second later is no later: it must not outweigh the number of calls.
    return round(one.dial_wait_s, 1), one.calls, one.is_other, one.order, one.name
