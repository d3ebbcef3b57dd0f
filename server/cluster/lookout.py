"""Who of the others is silent, and who is gone: when calls may be taken from one.

That a process says nothing is news, and news is old when we were held up, or the registry was away:
nothing follows from it until the others have been heard of again. That one of this machine has let
go of its lock is no news: it is so while one looks, and one that is only paused holds it still. So
whoever is held up again and again knows all the same who of its own machine has died.
"""

from __future__ import annotations

from math import inf

import trio

from server.cluster.choosing import ASK_TIMEOUT_S, ASKS, asked_from_s, seen_of, suspects
from server.cluster.cluster import Cluster
from server.cluster.directory.directory import Directory
from server.cluster.registry import Member
from server.hooks.trio_clock import missed_s

JUST_AFTER_S = 0.01
SETTLE_S = 4.0
"""After the registry was away, or we were: until then others have said again how they are."""
HELD_UP_S = 0.5
"""Whoever was away for so long may have lost calls meanwhile."""


class Absence:
    """Whether this process was away from the others, so that its calls may be theirs; no clock.

    Args:
        missed_s: How long the process has been held up since it began.
        is_away: Whether the registry cannot be asked.
    """

    def __init__(self, missed_s: float, *, is_away: bool) -> None:
        self._missed_s = missed_s
        self._was_away = is_away
        self._losses = 0

    def is_over(self, missed_s: float, *, is_away: bool, losses: int = 0) -> bool:
        """Whether the process has been away, and is back: it is true until :meth:`told`.

        Args:
            missed_s: How long it has been held up by now.
            is_away: Whether the registry cannot be asked.
            losses: How often that has lost what was in it, which is as if it had been away.
        """
        self._was_away = self._was_away or is_away or losses != self._losses
        self._losses = losses
        return not is_away and (self._was_away or missed_s - self._missed_s >= HELD_UP_S)

    def told(self, missed_s: float) -> None:
        """Its calls have been looked at."""
        self._missed_s = missed_s
        self._was_away = False


class Lookout:
    """What one process knows of the others that are silent.

    Args:
        cluster: This process among those of its server.
        lease_s: How long a process may be silent until it is asked whether it is there.
    """

    def __init__(self, cluster: Cluster, *, lease_s: float) -> None:
        self._cluster = cluster
        self._lease_s = lease_s
        self._absence = Absence(missed_s(), is_away=True)
        self._may_act_at = inf
        self._left_alone: dict[Member, float] = {}
        self._told: set[Member] = set()

    def has_settled(self) -> bool:
        """Whether it is known well enough how the others are: we have not just been away from them,
        nor has the registry.
        """
        registry, now = self._cluster.registry, trio.current_time()
        is_away, losses = registry.is_away, registry.losses
        if self._absence.is_over(missed_s(), is_away=is_away, losses=losses):
            self._absence.told(missed_s())
            self._may_act_at = now + SETTLE_S
        return now >= self._may_act_at and not is_away

    def is_gone(self, member: Member) -> bool:
        """Whether a process is known to be gone; of one of another machine that is not known just
        after we were away, or the registry was.
        """
        is_sibling = self._cluster.sibling_number(member.name) is not None
        return self._cluster.is_gone(member) and (is_sibling or self.has_settled())

    def suspects(self) -> dict[str, Member]:
        """Those that are to be asked whether they are there, by name, the longest silent first."""
        others, now = self._cluster.registry.others(), trio.current_time()
        silent = {
            seen.member for seen in others.values() if seen.age_s >= asked_from_s(self._lease_s)
        }
        for member in [*self._left_alone.keys() - silent]:
            del self._left_alone[member]  # heard of again, or forgotten
        self._told &= silent
        has_settled = self.has_settled()
        names = suspects(others, self._left_alone, lease_s=self._lease_s, now=now)
        found = {name: others[name].member for name in names}
        return {name: one for name, one in found.items() if has_settled or self.is_gone(one)}

    def leave_alone(self, member: Member, *, for_good: bool = False) -> None:
        """One is not to be asked again while a lease lasts, or, unless it is heard of, for good."""
        self._left_alone[member] = inf if for_good else trio.current_time() + self._lease_s

    async def answers(self, name: str) -> bool:
        """The second proof: one that is cut off from the registry only is well, and says so."""
        answers, me = self._cluster.peers.answers, self._cluster.me.name
        for _ in range(ASKS):
            if await answers(name, by=me, timeout_s=ASK_TIMEOUT_S):
                return True
        return False

    async def lease_is_over(self, member: Member) -> bool:
        """Wait for the rest of a lease; False if its process is heard of meanwhile, or has left."""
        registry = self._cluster.registry
        while (seen := seen_of(registry.others(), member)) is not None:
            if seen.age_s >= self._lease_s:
                return True
            if seen.age_s < asked_from_s(self._lease_s):
                break
            await trio.sleep(max(self._lease_s - seen.age_s, JUST_AFTER_S))
        return False

    async def may_take_from(self, member: Member) -> bool:
        """Whether one that does not answer is to lose its calls, now that its lease is over."""
        if not await self.lease_is_over(member):
            return False
        return self.has_settled() or self.is_gone(member)

    async def left_to_us(self) -> set[Member]:
        """Those that are gone, and whose calls nobody can take over when this process has left: of
        one machine, as the registry of many outlives its processes.

        Raises:
            RegistryAway: It is not known.
        """
        registry = self._cluster.registry
        return await registry.left_to_us() if isinstance(registry, Directory) else set()

    def is_news(self, member: Member) -> bool:
        """Whether nobody has been told here that a process is gone, since it was last heard of."""
        is_news = member not in self._told
        self._told.add(member)
        return is_news
