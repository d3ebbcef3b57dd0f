"""Which process is to have a call: a choice among rows of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from server.cluster.registry import Member, Seen

QUIET_S = 2.0
"""Of a process of another machine something is heard more often, even if both are late."""
ASK_TIMEOUT_S = 0.5
ASKS = 2
"""So often one that is silent is asked itself, before it counts as gone."""
ASKED_BEFORE_S = ASKS * ASK_TIMEOUT_S
"""So long before its lease has run out, but not in the first half of it."""


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


def seen_of(others: Mapping[str, Seen], member: Member) -> Seen | None:
    """What was last heard of a process, though another may have its name by now."""
    found = (others.get(member.name), others.get(str(member)))
    return next((seen for seen in found if seen is not None and seen.member == member), None)


def asked_from_s(lease_s: float) -> float:
    """From when on one that is silent is asked, so that no time is lost when its lease is over."""
    return max(lease_s - ASKED_BEFORE_S, lease_s / 2)


def suspects(
    others: Mapping[str, Seen], left_alone: Mapping[Member, float], *, lease_s: float, now: float
) -> list[str]:
    """The names of those that are to be asked whether they are there, the longest silent first.

    Args:
        others: What was last heard of them.
        left_alone: Until when those need not be asked that have answered, or have no calls left.
        lease_s: How long one may be silent.
        now: The time.
    """
    silent = [
        name
        for name, seen in others.items()
        if seen.age_s >= asked_from_s(lease_s) and left_alone.get(seen.member, -inf) <= now
    ]
    return sorted(silent, key=lambda name: -others[name].age_s)


def takers(others: Mapping[str, Seen], but: Member) -> list[str]:
    """Those that may go on with a call whose process is gone, by name: all that have been heard of
    lately and do not drain, whether or not they take new calls; rather those with room, and of
    these the ones with the fewest calls.

    Args:
        others: The processes beside this one, by name; those whose name another has are left out.
        but: The one that is gone.
    """
    fresh = [
        seen
        for name, seen in others.items()
        if seen.age_s < QUIET_S
        and not seen.load.draining
        and seen.member.name == name
        and seen.member != but
    ]
    fresh.sort(key=lambda seen: (not seen.load.accepts, seen.load.live, seen.member))
    return [seen.member.name for seen in fresh]
