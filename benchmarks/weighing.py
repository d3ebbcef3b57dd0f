"""Whether memory stays the same, by what it was from time to time; no process is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SETTLED_S = 300.0
"""How long a server that is kept full takes to have every pool and cache that it will have."""
FLAT_S = 600.0
"""How long a run has to last to say whether memory grows after that."""
FLAT = 0.05
"""How much more memory is still the same: what calls hold varies."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """What memory the server's processes had at one moment."""

    at: float
    pids: tuple[int, ...]
    rss_bytes: int


def settled_rss(weighed: Sequence[Weighed], began: float) -> tuple[float, float] | None:
    """The median memory of the first and of the last third of a run, once it has settled.

    None if the run was too short to say, or a process has another's place since: a new one has
    pools and caches to fill.
    """
    settled = [one for one in weighed if one.at >= began + SETTLED_S]
    if not settled or settled[-1].at - began < FLAT_S:
        return None
    if any(one.pids != settled[0].pids for one in settled):
        return None
    third = max(len(settled) // 3, 1)
    first, last = settled[:third], settled[-third:]
    return median(one.rss_bytes for one in first), median(one.rss_bytes for one in last)


def said(weighed: Sequence[Weighed], began: float) -> str:
    """What memory there was from time to time, ten times or so, and how much more at last."""
    sizes = ", ".join(
        f"{one.rss_bytes / 2**20:.0f}" for one in weighed[:: max(len(weighed) // 10, 1)]
    )
    grown = settled_rss(weighed, began)
    more = "" if grown is None else f"; after five minutes {grown[1] / grown[0] - 1:+.1%}"
    return f"memory of the server, MiB: {sizes}{more}"


def growth(weighed: Sequence[Weighed], began: float) -> str:
    """By how much memory has grown; empty if it has not."""
    if (found := settled_rss(weighed, began)) is None:
        return ""
    first, last = found
    if last <= first * (1 + FLAT):
        return ""
    return f"{first / 2**20:.0f} MiB, then {last / 2**20:.0f}"
