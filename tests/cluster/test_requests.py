"""A request with an ``Idempotency-Key`` among the processes of one machine: one works on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import pytest
import trio
from prometheus_client import CollectorRegistry

from server.cluster.cluster import Cluster
from server.cluster.directory.meeting import AVAILABLE
from server.cluster.registry import Load, RegistryAway
from server.errors import CallRefused
from server.metrics import Metrics
from server.records.store import Records
from server.web.api import Answer
from server.web.once import Once

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Unix sockets")

MEETING = "offhook-requests"
MADE = Answer({"call_sid": "CA1"}, 201)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # No socket is made here.
    monkeypatch.setattr("server.cluster.directory.meeting.MAX_PATH_BYTES", 190)
    return tmp_path / MEETING


@pytest.fixture
def join(place):
    with ExitStack() as stack:

        def one() -> Cluster:
            cluster = Cluster()
            cluster.join(2, where=MEETING)
            stack.callback(cluster.leave)
            cluster.report = lambda: Load(accepts=True)
            cluster.publish()
            return cluster

        yield one


def died(cluster: Cluster) -> None:
    """What is left of a process that was killed: its lock is free, and nothing is put in order."""
    directory, cluster._directory = cluster._directory, None
    assert directory is not None
    os.close(directory._lock)
    directory._gate.close()


def links(place) -> list[str]:
    return [path.name for path in place.glob("*.request")]


# -- whose a request is ------------------------------------------------------------------------


async def test_a_request_is_of_the_process_that_began_it_until_it_ends_there(join, place):
    first, second = (join().registry for _ in range(2))
    begun = await first.begin_request("shop", "k", b"print 1")
    theirs = await second.begin_request("shop", "k", b"print 2")
    own = await first.begin_request("shop", "k", b"print 2")
    others = await second.begin_request("crm", "k", b"print 2")
    await second.end_request("shop", "k")  # which is not its own
    still = await second.begin_request("shop", "k", b"print 2")
    await first.end_request("shop", "k")
    after = await second.begin_request("shop", "k", b"print 2")
    await second.end_request("shop", "k")
    await second.end_request("crm", "k")

    assert (begun, theirs, own, others) == (None, b"print 1", b"print 1", None)
    assert (still, after) == (b"print 1", None)
    assert links(place) == []


async def test_a_request_of_a_process_that_is_gone_is_the_next_ones(join, place):
    ours, theirs = join(), join()
    await theirs.registry.begin_request("shop", "k", b"print")
    died(theirs)
    silent = await ours.registry.begin_request("shop", "k", b"print")
    await join().registry.begin_request("shop", "another", b"print")  # it is in its place
    after = await ours.registry.begin_request("shop", "k", b"print")

    assert silent == b"print"  # it may only be slow
    assert after is None
    assert len(links(place)) == 2


async def test_whoever_is_in_a_dead_ones_place_clears_its_requests_away(join, place):
    ours, theirs = join(), join()
    await ours.registry.begin_request("shop", "ours", b"print")
    await theirs.registry.begin_request("shop", "theirs", b"print")
    died(theirs)
    before = len(links(place))
    join()

    assert (before, len(links(place))) == (2, 1)
    assert await ours.registry.begin_request("shop", "ours", b"print") == b"print"


async def test_a_link_that_could_not_be_removed_holds_nobody_up_for_good(join, place, monkeypatch):
    ours, theirs = join(), join()
    await ours.registry.begin_request("shop", "k", b"print")
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", failing)
        with pytest.raises(RegistryAway):
            await ours.registry.end_request("shop", "k")
    left = links(place)
    again = await ours.registry.begin_request("shop", "k", b"another")
    meanwhile = await theirs.registry.begin_request("shop", "k", b"print")
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", failing)
        with pytest.raises(RegistryAway):
            await ours.registry.end_request("shop", "k")
    ours.publish()

    assert len(left) == 1
    assert (again, meanwhile) == (None, b"another")
    assert links(place) == []


def failing(*args: object, **options: object) -> None:
    raise OSError(5, "no such disk")


async def test_a_directory_that_cannot_be_used_leaves_requests_to_the_database(join, monkeypatch):
    ours = join()
    monkeypatch.setattr("pathlib.Path.symlink_to", failing)

    with pytest.raises(RegistryAway):
        await ours.registry.begin_request("shop", "k", b"print")


async def test_the_last_to_leave_clears_the_requests_of_the_killed_away(join, place):
    ours, theirs = join(), join()
    await theirs.registry.begin_request("shop", "k", b"print")
    died(theirs)
    ours.leave()

    assert not place.exists()


# -- what clients are told ---------------------------------------------------------------------


class Asked:
    """A request that is done for as long as the test likes, and how often that was begun."""

    def __init__(self) -> None:
        self.begun, self.may_end = trio.Event(), trio.Event()
        self.times = 0

    async def do(self, on_dial: Callable[[], None]) -> tuple[Answer, bool]:
        self.times += 1
        self.begun.set()
        if self.times == 1:
            await self.may_end.wait()
        on_dial()
        return MADE, True


@asynccontextmanager
async def machine(join: Callable[[], Cluster], count: int, url: str):
    """What answers requests in each of so many processes of one machine."""
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        each = []
        for _ in range(count):
            records = Records(url, metrics=Metrics(CollectorRegistry()))
            await nursery.start(records.run)
            each.append((cluster := join(), Once(records, cluster, ttl_s=60.0)))
        yield each
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("where", ["sqlite://", "sqlite:///{}/shared.db"])
@pytest.mark.parametrize("content", [b"body", b"another"])
async def test_a_key_that_moves_while_it_is_worked_on_rings_no_second_phone(
    join, tmp_path, where, content
):
    asked = Asked()
    async with (
        machine(join, 2, where.format(tmp_path)) as ((old, theirs), (new, ours)),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(theirs.answer, "shop", "k", b"body", asked.do)
        await asked.begun.wait()
        old.stands_aside = True  # for a server that takes over
        old.publish()
        moved_to = {cluster.of_key("shop", "k") for cluster in (old, new)}
        with pytest.raises(CallRefused) as refused:
            await ours.answer("shop", "k", content, asked.do)
        asked.may_end.set()

    assert moved_to == {new.me.name}
    expected = "in-flight" if content == b"body" else "idempotency-key-reused"
    assert refused.value.reason == expected
    assert asked.times == 1


async def test_a_key_that_has_moved_is_answered_as_before_when_its_request_is_done(join, tmp_path):
    asked = Asked()
    asked.may_end.set()
    url = f"sqlite:///{tmp_path}/shared.db"
    async with machine(join, 2, url) as ((_, theirs), (_, ours)):
        first = await theirs.answer("shop", "k", b"body", asked.do)
        again = await ours.answer("shop", "k", b"body", asked.do)

    assert (first, again) == ((MADE, False), (MADE, True))
    assert asked.times == 1
