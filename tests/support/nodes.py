"""Two machines of one server in this process, and a registry that both are told to use."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio

from server.cluster.alone import Alone
from server.cluster.cluster import Cluster
from server.cluster.redis.registry import RedisRegistry
from server.cluster.registry import Holding, Load, Member, RegistryAway, Seen, Seized, State, made
from server.metrics import RegistryMetrics
from server.service import Service
from server.settings.cluster import registry_address
from server.settings.settings import Settings
from tests.support.redis_servers import SECRET, RedisServer, until
from tests.support.serving import Server, serving

PATIENT: dict[str, Any] = {"max_loop_lag_s": 60.0, "simulated_ring_s": 60.0}
"""The machine may be busy; phones that nobody answers ring for longer than a test takes."""


@dataclass
class Talk:
    """A call whose state is what has been said by the time that it is made."""

    said: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def state(self) -> bytes:
        self.made.append(" ".join(self.said))
        return self.made[-1].encode()


class Store:
    """What two machines share."""

    def __init__(self) -> None:
        self.is_away = False
        self.asked = trio.Event()
        self.seen: dict[str, Seen] = {}
        self.calls: dict[str, Holding] = {}
        self.states: dict[str, bytes] = {}
        self.ended: set[str] = set()
        """Those of which the state is what is left."""


class Shared(Alone):
    """One machine's view of the store."""

    def __init__(self, store: Store, me: Member) -> None:
        super().__init__(me)
        self.store = store
        self.address = ""

    @property
    def is_away(self) -> bool:
        return self.store.is_away

    def publish(self, load: Load) -> None:
        self.store.seen[self.me.name] = Seen(self.me, load, 0.0, self.address)

    def others(self) -> Mapping[str, Seen]:
        return {name: seen for name, seen in self.store.seen.items() if name != self.me.name}

    async def _ask(self) -> dict[str, Holding]:
        await trio.lowlevel.checkpoint()
        self.store.asked.set()
        if self.store.is_away:
            raise RegistryAway("it is away")
        return self.store.calls

    async def claim(self, call_sid: str, member: Member | None = None) -> Holding:
        return (await self._ask()).setdefault(call_sid, Holding(member or self.me, 1))

    async def owner(self, call_sid: str) -> Holding | None:
        return (await self._ask()).get(call_sid)

    async def seize(self, call_sid: str, holding: Holding) -> Seized | None:
        calls = await self._ask()
        if calls.get(call_sid) != holding:
            return None
        calls[call_sid] = Holding(self.me, holding.generation + 1)
        state = self.store.states.get(call_sid)
        has_ended = state == b"" or call_sid in self.store.ended
        return Seized(holding.generation + 1, state or b"", has_ended=has_ended)

    async def is_current(self, call_sid: str, generation: int) -> bool:
        return (await self._ask()).get(call_sid) == Holding(self.me, generation)

    async def calls_of(self, member: Member, *, ended: bool = False) -> Mapping[str, Holding]:
        calls = await self._ask()
        return {
            sid: holding
            for sid, holding in calls.items()
            if holding.member == member
            and self.store.states.get(sid)
            and (sid in self.store.ended) == ended
        }

    def keep(
        self,
        call_sid: str,
        generation: int,
        state: State,
        *,
        in_haste: bool = False,
        has_ended: bool = False,
    ) -> None:
        if self.store.is_away:
            return
        if self.store.calls.get(call_sid) == Holding(self.me, generation):
            if (content := made(state)) is not None:
                self.store.states[call_sid] = content
            if has_ended:
                self.store.ended.add(call_sid)

    def announce(self, call_sid: str, generation: int) -> None:
        ours, theirs = Holding(self.me, generation), self.store.calls.get(call_sid)
        if not self.store.is_away and (theirs is None or theirs.generation <= generation):
            self.store.calls[call_sid] = ours

    def release(self, call_sid: str, generation: int, *, has_begun: bool = True) -> None:
        if self.store.calls.get(call_sid) == Holding(self.me, generation):
            del self.store.calls[call_sid]


@asynccontextmanager
async def nodes_with_redis(
    monkeypatch: pytest.MonkeyPatch,
    redis: RedisServer,
    names: Sequence[str] = ("a", "b"),
    **settings,
) -> AsyncGenerator[list[Server]]:
    """Servers of one that share a Redis; their simulators are their own."""

    def open_cluster(name: str, service: Service, settings: Settings) -> Cluster:
        metrics = RegistryMetrics(service.metrics.registry)

        def make(me: Member) -> RedisRegistry:
            address = registry_address(redis.url)
            return RedisRegistry(address, me, settings.public_url or "", [SECRET], metrics, 5.0)

        return Cluster(node=name, secrets=[SECRET], make_registry=make)

    async with AsyncExitStack() as stack:
        servers = []
        for name in names:
            opening = partial(open_cluster, name)
            monkeypatch.setattr(
                Service, "_open_cluster", lambda self, settings, o=opening: o(self, settings)
            )
            options = PATIENT | settings
            servers.append(await stack.enter_async_context(serving(**options)))
        for server in servers:
            others = {*names} - {server.service.cluster.me.name}
            await until(lambda s=server, o=others: o <= {*s.service.cluster.there()})
        yield servers


@asynccontextmanager
async def two_nodes(
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    *,
    secrets: tuple[str, str] = (SECRET, SECRET),
    **settings,
) -> AsyncGenerator[tuple[Server, Server]]:
    """Two servers of one, ``a`` and ``b``; their simulators are their own."""

    def node(name: str, secret: str) -> None:
        cluster = partial(
            Cluster, node=name, secrets=[secret], make_registry=partial(Shared, store)
        )
        monkeypatch.setattr("server.service.Cluster", cluster)

    node("a", secrets[0])
    async with serving(**PATIENT | settings) as first:
        node("b", secrets[1])
        async with serving(**PATIENT | settings) as second:
            for server in (first, second):
                registry = server.service.cluster.registry
                assert isinstance(registry, Shared)
                registry.address = server.url
                server.service.cluster.publish()
            yield first, second
