"""The registry where Redis is several: a primary with sentinels, and a cluster of shards."""

from __future__ import annotations

import gc
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from benchmarks.ports import free_ports
from server.cluster.redis import writing
from server.cluster.registry import Holding, RegistryAway, Seized
from tests.support.redis_servers import (
    IGNORES_UNCLOSED,
    RedisServer,
    Sentinel,
    member,
    surely,
    until,
)

pytestmark = [pytest.mark.sockets, pytest.mark.slow, *IGNORES_UNCLOSED]


@pytest.fixture
def started():
    """Starts servers, and ends them after the test."""
    with (
        tempfile.TemporaryDirectory(prefix="offhook-") as directory,
        ExitStack() as stack,
    ):

        def start(make, *arguments, **named):
            server = make(Path(directory), *arguments, **named)
            stack.callback(server.kill)
            server.start()
            return server

        yield start
    gc.collect()


async def test_a_primary_that_is_killed_is_replaced_and_told_all_of_it(started):
    primary_port, replica_port, *sentinel_ports = free_ports(5)
    primary = started(RedisServer, port=primary_port)
    replica = started(RedisServer, "--replicaof", f"127.0.0.1 {primary_port}", port=replica_port)
    sentinels = [started(Sentinel, port, primary_port, 1_000) for port in sentinel_ports]
    await until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))
    for each in sentinels:
        await until(lambda each=each: b"slaves=1,sentinels=3" in each.ask("INFO", "sentinel"))
    hosts = ",".join(f"127.0.0.1:{port}" for port in sentinel_ports)
    url = f"redis+sentinel://{hosts}/offhook"
    async with member(url, "n0") as first, member(url, "n1") as second:
        await first.claim("CA1")
        first.keep("CA1", 1, b"state")
        await until(lambda: first._writing._ours.unsaid == 0)

        primary.kill()
        await until(lambda: first.is_away and second.is_away)
        first.announce("CA2", 1)
        await until(lambda: not (first.is_away or second.is_away))
        await until(lambda: first._writing._ours.unsaid == 0)

        assert await second.owner("CA2") == Holding(first.me, 1)
        assert await second.seize("CA1", Holding(first.me, 1)) == Seized(2, b"state")
        assert b"role:master" in replica.ask("INFO", "replication")


async def test_one_server_that_turns_out_to_be_a_clusters_does(started):
    (port,), (bus_port,) = free_ports(1), free_ports(1)
    alone = started(
        RedisServer,
        *("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf"),
        *("--cluster-port", str(bus_port)),
        port=port,
    )
    assert alone.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == b"+OK\r\n"
    await until(lambda: b"cluster_state:ok" in alone.ask("CLUSTER", "INFO"))

    async with member(f"redis://127.0.0.1:{port}", "n0") as one:
        for number in range(20):
            one.announce(f"CA{number}", 1)
            one.keep(f"CA{number}", 1, b"state")
        await until(lambda: one._writing._ours.unsaid == 0)

        assert len(await surely(partial(one.calls_of, one.me))) == 20


async def shards_of_a_cluster(started) -> tuple[str, list[RedisServer]]:
    """Start a cluster of two shards: its address, and both."""
    ports, bus_ports = free_ports(2), free_ports(2)
    shards = [
        started(
            RedisServer,
            *("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf"),
            *("--cluster-port", str(bus_port)),
            port=port,
        )
        for port, bus_port in zip(ports, bus_ports, strict=True)
    ]
    first, second = shards
    assert first.ask("CLUSTER", "ADDSLOTSRANGE", "0", "8191") == b"+OK\r\n"
    assert second.ask("CLUSTER", "ADDSLOTSRANGE", "8192", "16383") == b"+OK\r\n"
    first.ask("CLUSTER", "MEET", "127.0.0.1", str(second.port), str(bus_ports[1]))
    for each in shards:
        await until(lambda each=each: b"cluster_state:ok" in each.ask("CLUSTER", "INFO"))
        await until(lambda each=each: each.ask("CLUSTER", "SHARDS").count(b"online") == 2)
    return f"redis+cluster://127.0.0.1:{first.port}", shards


async def test_a_cluster_of_shards_does(started):
    url, shards = await shards_of_a_cluster(started)

    async with member(url, "n0") as one, member(url, "n1") as other:
        for number in range(40):
            assert await one.claim(f"CA{number}") == Holding(one.me, 1)
            one.keep(f"CA{number}", 1, b"state")
        await until(lambda: one._writing._ours.unsaid == 0)
        await until(lambda: "n1" in one.others())

        assert len(await other.calls_of(one.me)) == 40
        assert await other.seize("CA7", Holding(one.me, 1)) == Seized(2, b"state")
        assert await other.dial_turn("AC1", 1.0, 1.0) == 0.0
        with pytest.raises(RegistryAway):
            await other.owner("CA-never")  # it is too young to be sure
        assert await surely(partial(one.is_current, "CA8", 1))
    assert {len(each.keys()) > 5 for each in shards} == {True}


def without_members(shards: list[RedisServer]) -> RedisServer:
    """The shard that has not the members."""
    (shard,) = [each for each in shards if "{nodes}" not in "".join(each.keys())]
    return shard


async def begun_anew(shards: list[RedisServer]) -> None:
    """Kill the shard that has not the members, and start it empty."""
    shard = without_members(shards)
    shard.kill()
    shard.start()
    for each in shards:
        await until(lambda each=each: b"cluster_state:ok" in each.ask("CLUSTER", "INFO"))


async def have_calls(one, other, count: int) -> None:
    """Have either member so many calls that are written, and the other know of it."""
    for each, name in ((one, "CA"), (other, "CB")):
        for number in range(count):
            await each.claim(f"{name}{number}")
            each.keep(f"{name}{number}", 1, b"state")
        await until(lambda each=each: each._writing._ours.unsaid == 0)
    await until(lambda: "n1" in one.others() and "n0" in other.others())


@pytest.mark.parametrize("is_quiet", [False, True])
async def test_a_shard_that_has_lost_its_keys_is_told_all_of_them_again(
    started, monkeypatch, is_quiet
):
    monkeypatch.setattr(writing, "SAY_AGAIN_S", 2.0 if is_quiet else 3_600.0)
    url, shards = await shards_of_a_cluster(started)
    async with member(url, "n0") as one, member(url, "n1") as other:
        await have_calls(one, other, 20)
        await begun_anew(shards)

        if not is_quiet:
            for number in range(20):
                one.keep(f"CA{number}", 1, b"state")
        await until(lambda: one.losses > 0 and other.losses > 0)
        await until(lambda: one._writing._ours.unsaid == other._writing._ours.unsaid == 0)

        assert len(await surely(partial(other.calls_of, one.me))) == 20
        assert len(await surely(partial(one.calls_of, other.me))) == 20
        assert await surely(partial(other.seize, "CA7", Holding(one.me, 1))) == Seized(2, b"state")


async def test_a_call_that_a_shard_has_lost_may_be_anothers_until_all_have_told_theirs(
    started, monkeypatch
):
    monkeypatch.setattr(writing, "SAY_AGAIN_S", 3_600.0)
    url, shards = await shards_of_a_cluster(started)
    async with member(url, "n0") as one, member(url, "n1") as other:
        await have_calls(one, other, 20)
        for number in range(20):
            assert await surely(partial(one.is_current, f"CA{number}", 1))
        assert without_members(shards).ask("FLUSHALL") == b"+OK\r\n"

        not_sure = 0
        for number in range(20):
            try:
                assert await one.is_current(f"CA{number}", 1)
            except RegistryAway:
                not_sure += 1

        assert not_sure > 0
        await until(lambda: one.losses > 0)  # with its next beat
