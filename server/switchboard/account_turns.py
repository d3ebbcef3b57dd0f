"""Turns to dial that all nodes take together, as the carrier's account has one rate for all."""

from __future__ import annotations

import math
from collections.abc import Iterable

import trio

from server.cluster.registry import Registry, RegistryAway, Seen

ALIKE_S = 3.0
"""Members heard of within this of the last one were there when the registry went away."""


class AccountTurns:
    """Takes the turns of this process; while the registry is away, its share of them.

    Args:
        registry: Knows whose turn it is.
        account: The carrier's, by name.
        per_s: How many calls a second it may dial.
    """

    def __init__(self, registry: Registry, account: str, per_s: float) -> None:
        self._registry = registry
        self._account = account
        self._per_s = per_s
        self._last_at = -math.inf

    async def take(self, give_up_at: float) -> float | None:
        """Take the next turn.

        Args:
            give_up_at: By ``trio.current_time()``.

        Returns:
            When it is; None, and none is taken, if that is later.
        """
        now = trio.current_time()
        try:
            wait_s = await self._registry.dial_turn(self._account, self._per_s, give_up_at - now)
        except RegistryAway:
            now = trio.current_time()
            at = max(now, self._last_at + share_s(self._per_s, self._registry.others().values()))
        else:
            # Counted from when it was asked for: the answer's way is no reason to be late.
            at = math.inf if wait_s is None else now + wait_s
        if at > give_up_at:
            return None
        self._last_at = at
        return at


def share_s(per_s: float, others: Iterable[Seen]) -> float:
    """From one dial to the next where each process that was seen last has an equal share.

    Args:
        per_s: How many all of them may dial.
        others: All but this one.
    """
    ages_s = [seen.age_s for seen in others]
    there = sum(age_s < min(ages_s) + ALIKE_S for age_s in ages_s)
    return (1 + there) / per_s
