"""Lost lines among several processes: each comes back to its own; see ``test_rescue.py``, too."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from server.cluster.cluster import Cluster
from server.cluster.directory.meeting import AVAILABLE
from server.cluster.registry import Holding, Seized
from server.simulators.phone import SimulatedPhone
from tests.support.processes import TWO_PROCESSES, server_process

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason="needs Unix sockets"),
    pytest.mark.sockets,
]


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # No socket is made here.
    monkeypatch.setattr("server.cluster.directory.meeting.MAX_PATH_BYTES", 190)
    clusters = [Cluster() for _ in range(2)]
    with ExitStack() as stack:
        for each in clusters:
            each.join(2, where="offhook-lines")
            stack.callback(each.leave)
        yield clusters


def died(cluster: Cluster) -> None:
    """What is left of a process that was killed: its lock is free, and nothing is put in order."""
    directory, cluster._directory = cluster._directory, None
    assert directory is not None
    os.close(directory._lock)
    directory._gate.close()


async def is_orphan(cluster: Cluster, call_sid: str) -> bool:
    """Whether a call was a process's that is gone, as ``/resume`` asks."""
    holding = await cluster.registry.owner(call_sid)
    return holding is not None and cluster.is_gone(holding.member)


async def test_a_call_of_a_process_that_has_died_is_an_orphan(two):
    ours, theirs = two
    await theirs.registry.claim("CA1")
    before = await is_orphan(ours, "CA1")
    died(theirs)

    assert not before
    assert await is_orphan(ours, "CA1")
    assert not await is_orphan(ours, "CA2")


async def test_it_still_is_one_when_another_process_is_in_that_ones_place(two):
    ours, theirs = two
    await theirs.registry.claim("CA1")
    dead = theirs.me
    died(theirs)
    next_one = Cluster()
    next_one.join(2, where="offhook-lines")
    known = (await is_orphan(ours, "CA1"), await is_orphan(next_one, "CA1"))
    holding = await ours.registry.owner("CA1")
    next_one.hold("CA2", 1)
    own = await is_orphan(ours, "CA2")
    next_one.leave()

    assert next_one.me.name == dead.name
    assert known == (True, True)
    assert holding == Holding(dead, 1)
    assert not own


async def test_whoever_is_in_a_dead_ones_place_sees_it_until_its_calls_are_taken_over(two):
    ours, theirs = two
    theirs.publish()
    await theirs.registry.claim("CA1")
    dead = theirs.me
    died(theirs)
    silent = ours.registry.others()[dead.name].member
    next_one = Cluster()
    next_one.join(2, where="offhook-lines")
    others = next_one.registry.others()
    seized = await next_one.registry.seize("CA1", Holding(dead, 1))
    next_one.leave()

    assert silent == dead
    assert others[str(dead)].member == dead
    assert others[str(dead)].address == ""
    assert seized == Seized(2, b"")


async def test_a_call_that_is_our_own_is_no_orphan_and_alone_there_are_none(two):
    ours, _ = two
    await ours.registry.claim("CA1")

    assert not await is_orphan(ours, "CA1")
    assert not await is_orphan(Cluster(), "CA1")


async def test_what_a_dead_process_had_long_ago_is_forgotten(two, monkeypatch):
    ours, theirs = two
    await theirs.registry.claim("CA1")
    died(theirs)
    monkeypatch.setattr("server.cluster.directory.directory.ORPHANED_S", 0.0)
    next_one = Cluster()
    next_one.join(2, where="offhook-lines")
    orphan = await is_orphan(ours, "CA1")
    next_one.leave()

    assert not orphan


# ------------------------------------------------------------------------------------------
# Whole servers

PATIENT = {"calls_per_s": 1000, "line_lost_timeout_s": 60}


async def heard_again(phone) -> SimulatedPhone:
    await phone.wait_streams(2)
    await phone.phone.sounded.wait()
    return phone.phone


@pytest.mark.slow
@pytest.mark.parametrize("command", TWO_PROCESSES)
@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_a_lost_line_comes_back_to_its_own_process(
    tmp_path, command, media_path, kept_output
):
    settings = {**PATIENT, "media_path": media_path, "output": kept_output.fileno()}
    async with server_process(tmp_path, command, **settings) as server:
        phones = [await server.talking_call() for _ in range(4)]
        for phone in phones:
            await phone.phone.cut()
        for phone in phones:
            await heard_again(phone)
        records = [(await server.http.get(f"/calls/{phone.call_sid}")).json() for phone in phones]

    # One that does not say in time that it is there loses its calls, as on a machine that is slow.
    kept_output.seek(0)
    silences = kept_output.read().count("a process does not answer for its call")
    for record in records:
        noted = [moment["what"] for moment in record["timeline"]]
        taken = noted.count("taken up from another process")
        silences -= taken
        assert record["state"] == "live"
        assert noted.count("line back") == 1
        assert taken + noted.count("line lost") == 1
    assert silences >= 0
