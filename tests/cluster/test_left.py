"""Calls of a process that has died, where all of its machine is held up, or is told to stop."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.report.drawing import Drawing
from server.carrier import CallStatus, StatusUpdate
from server.cluster.cluster import Cluster
from server.cluster.directory.board import BEAT_S
from server.cluster.directory.meeting import AVAILABLE
from server.cluster.registry import Holding, Member
from server.dialogue.endings import EndReason
from server.errors import CarrierError
from server.service import Service
from server.settings.settings import Settings
from server.switchboard.rescue import CARRIER_TIMEOUT_S, Rescue
from tests.call.test_call_state import state
from tests.call.test_ended_call import ended
from tests.cluster.test_claims import Clock
from tests.cluster.test_lines import died
from tests.support.fakes import KeptRecords, MemoryCarrier, MemoryModel
from tests.support.switchboards import make_calls
from tests.switchboard.test_rescue import LEASE_S, OPTIONS, Peers

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Unix sockets")

if AVAILABLE:
    from server.cluster.directory.claims import LOOKED_AT_ONCE, Gate

LIVE, ENDED = "CA" + "1" * 32, "CA" + f"{1:032x}"
RUNS_S, STANDS_S = 3.0, 2.0
"""How long a machine runs that is held up again and again, and how long it then stands."""


class Machine:
    """Its time goes on while its processes stand still; by trio's, which they live by."""

    is_held_up = False

    def missed_s(self) -> float:
        return STANDS_S * (trio.current_time() // RUNS_S) if self.is_held_up else 0.0

    def monotonic(self) -> float:
        return 1_000.0 + trio.current_time() + self.missed_s()


class Process:
    """One of a machine's, without its HTTP."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.cluster.join(3, where="offhook-left")
        self.carrier, self.records = MemoryCarrier(), KeptRecords()
        registry = self.cluster.registry
        self.calls = make_calls(
            carrier=self.carrier,
            model=MemoryModel(connect_s=1.0),
            cluster=self.cluster,
            options=OPTIONS,
            records=self.records,
            is_current=registry.is_current,
            keep=registry.keep,
        )
        self.cluster.peers = Peers()  # type: ignore[assignment]
        self.cluster.report = self.calls.load
        self.rescue = Rescue(self.calls, self.cluster, Agent, lease_s=LEASE_S)

    @property
    def reasons(self) -> dict[str, str]:
        """Why calls have ended, by the records that were kept here."""
        return {kept["call_sid"]: kept["reason"] for kept in self.records.kept}

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.calls.run)
            self.cluster.publish()
            task_status.started()
            while True:
                await trio.sleep(BEAT_S)
                self.cluster.publish()

    async def owner(self, call_sid: str) -> Member | None:
        holding = await self.cluster.registry.owner(call_sid)
        return None if holding is None else holding.member

    def tear_down(self) -> None:
        for call in self.calls.register.live:
            call.end(EndReason.HUNG_UP)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    one = Machine()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # No socket is made here.
    monkeypatch.setattr("server.cluster.directory.meeting.MAX_PATH_BYTES", 190)
    for where in ("board", "directory"):
        monkeypatch.setattr(f"server.cluster.directory.{where}.time", one)
    for where in ("server.cluster.lookout", "server.switchboard.rescue"):
        monkeypatch.setattr(f"{where}.missed_s", one.missed_s)
    return one


@pytest.fixture
async def begin(machine, nursery):
    """Begins a process of the machine."""
    begun: list[Process] = []

    async def begin_one() -> Process:
        begun.append(Process())
        await nursery.start(begun[-1].run)
        return begun[-1]

    yield begin_one
    for each in begun:
        each.tear_down()
    await wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()
    for each in begun:
        each.cluster.leave()


@pytest.fixture
async def ours(begin):
    return await begin()


@pytest.fixture
async def theirs(ours):
    """A process that has a call that goes on, and one that has ended and is not written."""
    cluster = Cluster()
    cluster.join(3, where="offhook-left")
    cluster.publish()
    registry, now = cluster.registry, time.time()
    talks = msgspec.structs.replace(
        state(), kept_at=now, created_at=now, answered_at=now, began_at=now,
        ends_at=now + 3600.0, away=None, machine=None, tools=(),
    )  # fmt: skip
    for call_sid in (LIVE, ENDED):
        registry.announce(call_sid, 1)
    registry.keep(LIVE, 1, talks.encode(), in_haste=True)
    registry.keep(ENDED, 1, ended().handed_on(None), in_haste=True, has_ended=True)
    yield cluster
    cluster.leave()


# -- held up ---------------------------------------------------------------------------------


async def test_calls_of_a_dead_process_are_taken_over_however_often_its_machine_is_held_up(
    autojump_clock, machine, ours, theirs, nursery
):
    machine.is_held_up = True
    died(theirs)
    nursery.start_soon(ours.rescue.run)
    await trio.sleep(10 * RUNS_S)

    assert not ours.rescue.lookout.has_settled()
    assert [call_sid for call_sid, _ in ours.carrier.reconnected] == [LIVE]
    assert ours.reasons == {ENDED: "caller-hung-up"}


async def test_a_call_is_not_given_up_while_the_carrier_is_still_told_to_bring_its_stream(
    autojump_clock, monkeypatch, ours, theirs, nursery
):
    told_at: list[float] = []

    async def reconnect(call_sid: str, ticket: str) -> None:  # eight requests of a slow Asterisk's
        await trio.sleep(OPTIONS.line_lost_timeout_s + 5.0)
        told_at.append(trio.current_time())

    monkeypatch.setattr(ours.carrier, "reconnect", reconnect)
    died(theirs)
    nursery.start_soon(ours.rescue.run)
    while not told_at:  # noqa: ASYNC110
        await trio.sleep(0.5)
    (call,) = ours.calls.register.live
    is_on = call.end_reason is None
    await call.finished.wait()

    assert is_on
    assert ours.reasons[LIVE] == "caller-gone"


async def test_whoever_is_in_a_dead_ones_place_takes_its_calls_over_though_all_are_held_up(
    autojump_clock, machine, begin, ours, theirs, nursery
):
    machine.is_held_up = True
    dead = theirs.me
    died(theirs)
    newcomer = await begin()
    for each in (ours, newcomer):
        nursery.start_soon(each.rescue.run)
    await trio.sleep(10 * RUNS_S)

    assert newcomer.cluster.me.name == dead.name
    assert await ours.owner(LIVE) == newcomer.cluster.me
    assert newcomer.reasons == {ENDED: "caller-hung-up"}


async def test_a_process_that_is_only_paused_keeps_its_calls_where_all_are_held_up(
    autojump_clock, machine, ours, theirs, nursery
):
    machine.is_held_up = True
    nursery.start_soon(ours.rescue.run)
    await trio.sleep(20 * RUNS_S)

    assert theirs.me.name not in ours.cluster.siblings()
    assert await ours.owner(LIVE) == await ours.owner(ENDED) == theirs.me
    assert ours.carrier.reconnected == ours.records.kept == []


# -- while calls go on ----------------------------------------------------------------------


@asynccontextmanager
async def another_task() -> AsyncGenerator[Callable[[], int]]:
    """How many turns another task has had by now."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        yield lambda: turns
        nursery.cancel_scope.cancel()


async def test_our_own_calls_have_their_turn_while_records_of_a_dead_process_are_taken(
    autojump_clock, ours, theirs, monkeypatch
):
    registry, keep = theirs.registry, ours.records.keep
    for number in range(2, 20):
        registry.announce(call_sid := f"CA{number:032x}", 1)
        left = ended(call_sid=call_sid).handed_on(None)
        registry.keep(call_sid, 1, left, in_haste=True, has_ended=True)
    died(theirs)
    await trio.sleep(2 * LEASE_S)
    async with another_task() as turns:
        at: list[int] = []
        monkeypatch.setattr(ours.records, "keep", lambda kept: (at.append(turns()), keep(kept)))
        await ours.rescue._inherit_from(theirs.me)

    assert len(at) == 19
    assert len({*at}) >= len(at) / 2  # in a pass of the loop, either may be the first


async def test_our_own_calls_have_their_turn_while_many_links_are_looked_through(
    autojump_clock, ours, theirs
):
    for number in range(5 * LOOKED_AT_ONCE):
        await theirs.registry.claim(f"CA{number}")
    async with another_task() as turns:
        before = turns()
        found = await ours.cluster.registry.calls_of(theirs.me)
        passed = turns() - before

    assert found == {LIVE: Holding(theirs.me, 1)}
    assert passed >= 5


async def test_a_call_that_cannot_be_announced_stays_ours_until_it_can(
    autojump_clock, ours, tmp_path
):
    registry, links = ours.cluster.registry, tmp_path / "offhook-left" / "calls"
    links.rename(tmp_path / "elsewhere")
    registry.announce(LIVE, 1)
    registry.announce(ENDED, 1)
    registry.release(ENDED, 1)
    meanwhile = [await registry.is_current(LIVE, each) for each in (1, 2)]
    (tmp_path / "elsewhere").rename(links)
    ours.cluster.publish()

    assert meanwhile == [True, False]
    assert await registry.owner(LIVE) == Holding(ours.cluster.me, 1)
    assert await registry.owner(ENDED) is None


async def test_a_call_that_could_not_be_announced_has_its_record(autojump_clock, ours, tmp_path):
    links = tmp_path / "offhook-left" / "calls"
    links.rename(tmp_path / "elsewhere")
    call = await ours.calls.place("+15005550006", Agent())
    call.end(EndReason.HUNG_UP)
    await ours.calls.wait_empty()
    (tmp_path / "elsewhere").rename(links)

    assert ours.reasons == {call.call_sid: "hung-up"}
    assert ours.carrier.hung_up == [call.call_sid]


# -- stopped ---------------------------------------------------------------------------------


async def test_each_call_of_a_process_that_has_just_died_leaves_a_record_at_a_stop(
    autojump_clock, ours, theirs
):
    died(theirs)
    await ours.calls.drain(0.0)
    found = await ours.rescue.end_left()
    await ours.calls.wait_empty()

    assert found
    assert ours.reasons == {LIVE: "drained", ENDED: "caller-hung-up"}
    assert len(ours.carrier.said) == 1  # who was talking is not left without a word
    assert ours.carrier.reconnected == []
    assert not await ours.rescue.end_left()


async def test_a_call_that_is_over_at_its_carrier_is_recorded_as_that_says(
    autojump_clock, ours, theirs
):
    ours.carrier.status = CallStatus.COMPLETED
    died(theirs)
    await ours.calls.drain(0.0)
    await ours.rescue.end_left()
    await ours.calls.wait_empty()

    assert ours.reasons[LIVE] == "caller-hung-up"
    assert ours.carrier.said == ours.carrier.hung_up == []


async def refusing(call_sid: str) -> StatusUpdate:
    await trio.lowlevel.checkpoint()
    raise CarrierError("it answers with 500")


async def hanging(call_sid: str) -> StatusUpdate:
    await trio.sleep_forever()
    raise AssertionError("unreachable")


async def failing(call_sid: str) -> StatusUpdate:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError


@pytest.mark.parametrize("fetch_status", [refusing, hanging, failing])
async def test_a_record_does_not_wait_for_a_carrier_that_cannot_say_how_a_call_stands(
    autojump_clock, ours, theirs, fetch_status: Callable[[str], Awaitable[StatusUpdate]]
):
    ours.carrier.fetch_status = fetch_status
    died(theirs)
    await ours.calls.drain(0.0)
    await ours.rescue.end_left()
    await ours.calls.wait_empty()

    assert ours.reasons == {LIVE: "drained", ENDED: "caller-hung-up"}


async def test_while_another_process_stays_it_has_the_calls_of_dead_ones(
    autojump_clock, begin, ours, theirs
):
    dead, stays = theirs.me, await begin()
    died(theirs)
    await ours.calls.drain(0.0)
    found = [await ours.rescue.end_left()]
    owner = await ours.owner(LIVE)
    await stays.calls.drain(0.0)
    found.append(await stays.rescue.end_left())
    await stays.calls.wait_empty()

    assert found == [False, True]
    assert owner == dead
    assert ours.reasons == {}
    assert stays.reasons == {LIVE: "drained", ENDED: "caller-hung-up"}


async def test_of_those_that_stop_at_once_one_leaves_a_calls_record(
    autojump_clock, begin, ours, theirs
):
    other = await begin()
    died(theirs)
    both = (ours, other)
    for each in both:
        await each.calls.drain(0.0)
    async with trio.open_nursery() as nursery:
        for each in both:
            nursery.start_soon(each.rescue.end_left)
    for each in both:
        await each.calls.wait_empty()

    kept = [record["call_sid"] for each in both for record in each.records.kept]
    assert sorted(kept) == sorted([LIVE, ENDED])


async def test_what_one_leaves_that_is_killed_while_it_ends_calls_is_ended_by_another(
    autojump_clock, begin, ours, theirs
):
    other, dead = await begin(), theirs.me

    async def too_late(call_sid: str) -> StatusUpdate:
        """The other has taken the call over by now, and is killed at once."""
        ours.carrier.fetch_status = nobody_said
        assert await other.cluster.registry.seize(LIVE, Holding(dead, 1)) is not None
        died(other.cluster)
        return await nobody_said(call_sid)

    nobody_said = ours.carrier.fetch_status
    ours.carrier.fetch_status = too_late
    died(theirs)
    await other.calls.drain(0.0)
    await wound_up(ours)

    assert other.reasons == {}
    assert ours.reasons == {LIVE: "drained", ENDED: "caller-hung-up"}


async def wound_up(process: Process) -> None:
    """A server stops that has these calls."""
    plain = {"database_url": "sqlite://", "media_path": "ordinary", "voice_judge": "off"}
    service = Service(Settings.load(_env_file=None, drain_timeout_s=0.0, **plain))
    service.calls, service.rescue = process.calls, process.rescue
    service._drawing = Drawing(None, timeout_s=1.0, metrics=service.metrics)
    await service.wind_up()


async def test_the_calls_of_all_dead_processes_are_ended_at_once(autojump_clock, ours, theirs):
    heir, dead = Cluster(), theirs.me
    heir.join(3, where="offhook-left")
    other = "CA" + "2" * 32
    seized = await heir.registry.seize(LIVE, Holding(dead, 1))
    assert seized is not None
    theirs.registry.announce(other, 1)
    theirs.registry.keep(other, 1, seized.state, in_haste=True)
    died(heir)
    died(theirs)
    ours.carrier.fetch_status = hanging
    await ours.calls.drain(0.0)
    began_at = trio.current_time()
    await ours.rescue.end_left()
    took_s = trio.current_time() - began_at
    await ours.calls.wait_empty()

    assert took_s < 2 * CARRIER_TIMEOUT_S
    assert ours.reasons == {LIVE: "drained", other: "drained", ENDED: "caller-hung-up"}


async def test_a_gate_that_somebody_holds_holds_up_nobody_who_stops(
    autojump_clock, ours, theirs, tmp_path, monkeypatch
):
    clock = Clock()
    monkeypatch.setattr("server.cluster.directory.claims.time", clock)
    died(theirs)
    await ours.calls.drain(0.0)
    stopped, began_at = Gate(tmp_path / "offhook-left" / "gate"), clock.now
    with stopped.held():
        found = await ours.rescue.end_left()
        held_up_s = clock.now - began_at
    stopped.close()

    assert not found
    assert held_up_s == 0.0  # our loop has gone on all the time
    assert await ours.owner(LIVE) == theirs.me
    assert await ours.rescue.end_left()


async def test_a_call_that_is_being_taken_over_when_its_server_stops_ends_with_it(
    autojump_clock, ours, theirs, tmp_path, nursery
):
    dead = Holding(theirs.me, 1)
    died(theirs)
    busy = Gate(tmp_path / "offhook-left" / "gate")
    with busy.held():
        nursery.start_soon(ours.rescue._rescue, LIVE, dead)
        await wait_all_tasks_blocked()
        await ours.calls.drain(0.0)
        nursery.start_soon(ours.rescue.end_left)
        await wait_all_tasks_blocked()
    busy.close()
    await trio.sleep(1.0)
    await ours.calls.wait_empty()

    assert ours.reasons == {LIVE: "drained", ENDED: "caller-hung-up"}
    assert ours.carrier.reconnected == []


async def test_the_calls_of_a_process_that_lives_are_its_own_though_others_stop(
    autojump_clock, ours, theirs
):
    await trio.sleep(20.0)  # in which it says nothing
    await ours.calls.drain(0.0)
    found = await ours.rescue.end_left()

    assert not found
    assert await ours.cluster.registry.owner(LIVE) == Holding(theirs.me, 1)
    assert ours.reasons == {}
