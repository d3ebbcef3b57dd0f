"""Whose a call is, when several processes want it at once, die with it, or leave together."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import trio
from quart import Response
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.cluster.cluster import Cluster
from server.cluster.directory.meeting import AVAILABLE
from server.cluster.passing_on import WorkerLost
from server.cluster.registry import Holding, Load, Member, RegistryAway, Seized
from server.dialogue.endings import EndReason
from server.settings.settings import Settings
from server.switchboard.rescue import Rescue
from server.web.elsewhere import Elsewhere
from tests.support.call_names import CALL_NAMES
from tests.support.limits import at_most, no_threads
from tests.support.nodes import Talk
from tests.support.redis_servers import until
from tests.support.switchboards import make_calls

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Unix sockets")

if AVAILABLE:
    import fcntl

    from server.cluster.directory.claims import GATE_TIMEOUT_S, Claims, Gate

ROOT = Path(__file__).parents[2]
OURS, THEIRS, GONE = Member("0", 7), Member("1", 8), Member("2", 9)


class Clock:
    """Stands in for the module ``time``: nobody waits, and how long one would have is known."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Died(BaseException):
    """A process is killed here: it does nothing more, and its locks are free."""


@pytest.fixture
def claims(tmp_path):
    gate = Gate(tmp_path / "gate")
    yield Claims(tmp_path, gate, "a secret of these processes")
    gate.close()


def calls_of(claims: Claims, member: Member) -> dict[str, Holding]:
    return dict(each for some in claims.of(member) for each in some)


def test_the_first_claim_counts(claims):
    assert claims.owner("CA1") is None
    assert claims.make("CA1", OURS) == Holding(OURS, 1)
    assert claims.make("CA1", THEIRS) == Holding(OURS, 1)
    assert claims.owner("CA1") == Holding(OURS, 1)


def test_a_call_whose_owner_is_gone_is_taken_over_with_what_was_kept(claims):
    holding = claims.make("CA1", GONE)
    claims.keep("CA1", 1, b"older")
    claims.keep("CA1", 1, b"state")

    assert claims.seize("CA1", holding, OURS) == Seized(2, b"state")
    assert claims.make("CA1", THEIRS) == Holding(OURS, 2)


def test_of_two_who_take_a_call_over_one_does(claims):
    holding = claims.make("CA1", GONE)

    assert claims.seize("CA1", holding, OURS) == Seized(2, b"")
    assert claims.seize("CA1", holding, THEIRS) is None
    assert claims.owner("CA1") == Holding(OURS, 2)


def test_what_one_that_has_lost_a_call_keeps_of_it_is_not_what_its_next_owner_keeps(claims):
    holding = claims.make("CA1", GONE)
    claims.seize("CA1", holding, OURS)
    claims.keep("CA1", 2, b"newer")
    claims.keep("CA1", 1, b"late")

    assert claims.seize("CA1", Holding(OURS, 2), THEIRS) == Seized(3, b"newer")


def test_a_call_that_was_taken_over_is_not_given_back_by_its_first_owner(claims):
    holding = claims.make("CA1", GONE)
    claims.seize("CA1", holding, OURS)

    claims.release("CA1", holding)

    assert claims.owner("CA1") == Holding(OURS, 2)


def test_a_call_is_announced_again_unless_another_has_taken_it_over(claims):
    claims.announce("CA1", Holding(OURS, 2))
    claims.announce("CA1", Holding(GONE, 1))
    kept = claims.owner("CA1")
    claims.announce("CA1", Holding(THEIRS, 3))

    assert kept == Holding(OURS, 2)
    assert claims.owner("CA1") == Holding(THEIRS, 3)


def test_who_has_a_name_anew_has_none_of_its_calls(claims):
    claims.make("CA1", OURS)
    claims.make("CA2", THEIRS)

    claims.release_old(OURS.name, older_than_s=3600.0)
    young = claims.owner("CA1")
    claims.release_old(OURS.name, older_than_s=-3600.0)

    assert young == Holding(OURS, 1)
    assert claims.owner("CA1") is None
    assert claims.owner("CA2") == Holding(THEIRS, 1)


def test_whoever_leaves_gives_back_its_own_and_leaves_what_a_dead_namesake_had(claims):
    dead = Member(OURS.name, OURS.born + 1)
    for call_sid, member in [("CA1", OURS), ("CA2", dead)]:
        claims.make(call_sid, member)
        claims.keep(call_sid, 1, b"state")

    claims.release_all(OURS)

    assert claims.owner("CA1") is None
    assert calls_of(claims, dead) == {"CA2": Holding(dead, 1)}
    assert claims.seize("CA2", Holding(dead, 1), THEIRS) == Seized(2, b"state")


def test_nobody_is_held_up_while_all_links_are_looked_through(claims, tmp_path, monkeypatch):
    other, readlink, free = Gate(tmp_path / "gate"), Path.readlink, 0

    def count_free(link: Path) -> Path:
        nonlocal free
        with other.held(0.0) as alone:
            free += alone
        return readlink(link)

    for number in range(100):
        claims.make(f"CA{number}", OURS if number % 2 else GONE)
    monkeypatch.setattr(Path, "readlink", count_free)
    claims.namesakes(OURS)
    claims.release_old(GONE.name, older_than_s=-3600.0)
    claims.release_all(OURS)
    other.close()

    # Looked at once each, by all three; and once more behind the gate, twenty at a time.
    assert free == 100 + 100 + 50
    assert list((tmp_path / "calls").iterdir()) == []


def test_a_call_that_cannot_be_given_back_at_once_is_given_back_later(claims, tmp_path):
    holding = claims.make("CA1", OURS)
    other = Gate(tmp_path / "gate")

    with other.held():
        claims.release("CA1", holding)
        busy = claims.owner("CA1")
    other.close()
    claims.release_rest()

    assert busy == holding
    assert claims.owner("CA1") is None


@pytest.mark.parametrize("way", ["claimed", "announced"])
def test_a_call_that_is_had_again_is_not_given_back_later(claims, tmp_path, way):
    holding = claims.make("CA1", OURS)
    other = Gate(tmp_path / "gate")
    with other.held():
        claims.release("CA1", holding)
        if way == "claimed":
            again = claims.make("CA1", OURS)
        else:
            again = holding
            claims.announce("CA1", again)
    other.close()
    claims.release_rest()

    assert claims.owner("CA1") == again == holding


def test_what_is_kept_of_a_call_can_be_read_by_its_own_processes_only(claims, tmp_path):
    holding = claims.make("CA1", GONE)
    claims.keep("CA1", 1, b"what they said")
    (file,) = (tmp_path / "kept").iterdir()
    stranger = Claims(tmp_path, Gate(tmp_path / "gate"), "another secret")

    assert b"what they said" not in file.read_bytes()
    assert stranger.seize("CA1", holding, THEIRS) == Seized(2, b"")
    assert claims.seize("CA1", Holding(THEIRS, 2), OURS) == Seized(3, b"what they said")


def test_the_calls_of_a_process_can_be_told_by_whoever_takes_them_over(claims):
    for call_sid, member in [
        ("CA1", GONE),
        ("CA2", THEIRS),
        ("CA3", GONE),
        ("../x", GONE),
        ("..", GONE),
    ]:
        claims.make(call_sid, member)
        claims.keep(call_sid, 1, b"state")
    claims.make("CA4", GONE)  # which has not said yet how anybody could go on
    claims.make("CA5", GONE)
    claims.keep("CA5", 1, b"")  # and one that has ended

    assert calls_of(claims, GONE) == {"CA1": Holding(GONE, 1), "CA3": Holding(GONE, 1)}


@pytest.mark.parametrize("call_sid", CALL_NAMES.values(), ids=CALL_NAMES.keys())
def test_the_calls_of_every_carrier_can_be_told_and_taken_over(claims, call_sid):
    claims.make(call_sid, GONE)
    claims.make(f"{call_sid}1", THEIRS)
    claims.keep(call_sid, 1, b"state")

    assert calls_of(claims, GONE) == {call_sid: Holding(GONE, 1)}
    assert claims.seize(call_sid, Holding(GONE, 1), OURS) == Seized(2, b"state")
    assert calls_of(claims, OURS) == {call_sid: Holding(OURS, 2)}
    claims.release(call_sid, Holding(OURS, 2))
    assert calls_of(claims, OURS) == {}


def test_whoever_comes_finds_those_that_had_its_name_and_whose_calls_are_here(claims):
    earlier, other = Member(OURS.name, OURS.born + 1), Member(OURS.name, OURS.born + 2)
    for call_sid, member in [("CA1", earlier), ("CA2", OURS), ("CA3", THEIRS), ("CA4", other)]:
        claims.make(call_sid, member)

    assert claims.namesakes(OURS) == {earlier, other}


def test_links_that_vanish_while_they_are_looked_through_are_nobodys(claims, tmp_path, monkeypatch):
    for number in range(20):
        claims.make(f"CA{number}", OURS)
    readlink = Path.readlink

    def remove_and_read(link: Path) -> Path:
        if hash(link) % 2:
            link.unlink()  # another process, at this moment
        return readlink(link)

    monkeypatch.setattr(Path, "readlink", remove_and_read)
    claims.release_all(OURS)

    assert list((tmp_path / "calls").iterdir()) == []


def test_a_gate_that_another_process_holds_is_given_up_in_time(tmp_path):
    first, second = Gate(tmp_path / "gate"), Gate(tmp_path / "gate")
    with first.held() as got, second.held(0.01) as got_too:
        assert (got, got_too) == (True, False)
    with second.held(0.01) as got_too:
        assert got_too
    first.close()
    second.close()


def test_a_gate_that_stays_held_holds_a_process_up_once(claims, tmp_path, monkeypatch):
    clock, other = Clock(), Gate(tmp_path / "gate")
    monkeypatch.setattr("server.cluster.directory.claims.time", clock)
    holdings = {f"CA{number}": claims.make(f"CA{number}", GONE) for number in range(300)}
    began_at = clock.now
    with other.held():
        for call_sid, holding in holdings.items():
            with pytest.raises(TimeoutError):
                claims.seize(call_sid, holding, OURS)
        held_up_s = clock.now - began_at
    taken = claims.seize("CA0", holdings["CA0"], OURS)
    with other.held(), pytest.raises(TimeoutError):
        claims.seize("CA1", holdings["CA1"], OURS)
    other.close()

    assert held_up_s == pytest.approx(GATE_TIMEOUT_S, abs=0.01)
    assert taken == Seized(2, b"")
    # It was had again, so it is waited for again.
    assert clock.now - began_at == pytest.approx(2 * GATE_TIMEOUT_S, abs=0.02)


@pytest.mark.parametrize("is_own", [True, False])
def test_whoever_dies_while_it_takes_a_call_over_has_lost_nothing_of_it(
    claims, monkeypatch, is_own
):
    died_before = 0
    while True:
        call_sid = f"CA{died_before}"
        had = claims.make(call_sid, OURS if is_own else GONE)
        claims.keep(call_sid, 1, b"state")
        with monkeypatch.context() as patch:
            dies_before(died_before, patch)
            try:
                if is_own:
                    claims.announce(call_sid, Holding(OURS, 2))
                else:
                    claims.seize(call_sid, had, OURS)
                break
            except Died:
                died_before += 1
        left = claims.owner(call_sid)
        assert calls_of(claims, left.member).get(call_sid) == left
        assert claims.seize(call_sid, left, THEIRS) == Seized(left.generation + 1, b"state")
    assert died_before >= 4


def dies_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """Have this process die before it changes anything on the disk for the how-manieth time."""
    left = step

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def change_or_die(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Died
            left -= 1
            return change(*arguments, **options)

        return change_or_die

    for name in ("hardlink_to", "replace", "symlink_to", "unlink"):
        patch.setattr(Path, name, counted(getattr(Path, name)))


def test_nothing_is_done_where_what_was_kept_cannot_be_read(claims, tmp_path, monkeypatch):
    holding = claims.make("CA1", GONE)
    claims.keep("CA1", 1, b"state")

    def no_descriptor(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", no_descriptor)
        with pytest.raises(OSError, match="Too many"):
            claims.seize("CA1", holding, OURS)

    assert claims.owner("CA1") == holding
    assert claims.seize("CA1", holding, OURS) == Seized(2, b"state")
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["CA1.2"]


async def test_a_directory_that_somebody_has_removed_ends_no_call(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("server.cluster.directory.meeting.MAX_PATH_BYTES", 190)
    cluster = Cluster()
    cluster.join(2, where="offhook-here")
    (tmp_path / "offhook-here" / "calls").rename(tmp_path / "elsewhere")

    with pytest.raises(RegistryAway):
        await cluster.registry.claim("CA1")
    assert await Asking(cluster, set()).for_named_call("CA1") == 2  # it stays where it came
    assert await cluster.registry.owner("CA1") is None
    cluster.hold("CA1", 1)
    cluster.release("CA1")
    cluster.leave()


# -- what is kept of calls -------------------------------------------------------------------


@pytest.fixture
async def two(tmp_path, monkeypatch, nursery):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("server.cluster.directory.meeting.MAX_PATH_BYTES", 190)
    two = [Cluster() for _ in range(2)]
    for each in two:
        each.join(2, where="offhook-here")
        await nursery.start(each.registry.run)
    yield two
    nursery.cancel_scope.cancel()
    for each in two:
        each.leave()


async def written(directory) -> None:
    """All that calls have said so far is on the disk."""
    keeper = directory._keeper
    await until(lambda: not keeper._new and not keeper._writing)


async def test_the_newest_that_is_kept_of_a_call_goes_to_whoever_takes_it_over(two):
    ours, theirs = (each.registry for each in two)
    holding = await theirs.claim("CA1")
    for number in range(100):
        theirs.keep("CA1", 1, str(number).encode())
    await written(theirs)

    seized = await ours.seize("CA1", holding)

    assert seized == Seized(2, b"99")
    assert await theirs.seize("CA1", holding) is None
    assert await ours.is_current("CA1", 2)
    assert not await theirs.is_current("CA1", 1)


@pytest.mark.parametrize("is_written", [True, False], ids=["written", "not written yet"])
async def test_what_is_kept_goes_along_with_a_call_that_is_ours_once_more(
    two, tmp_path, is_written
):
    ours, theirs = (each.registry for each in two)
    holding = await theirs.claim("CA1")
    await theirs.seize("CA1", holding)
    theirs.keep("CA1", 2, b"state")
    if is_written:
        await written(theirs)
    theirs.announce("CA1", 3)
    await written(theirs)
    files = sorted(each.name for each in tmp_path.glob("*/kept/*"))
    seized = await ours.seize("CA1", Holding(theirs.me, 3))
    ours.release("CA1", 4)

    assert files == ["CA1.3"]
    assert seized == Seized(4, b"state")
    assert [*tmp_path.glob("*/kept/*")] == []


async def test_what_is_in_haste_is_on_the_disk_at_once(two):
    ours, theirs = (each.registry for each in two)
    one, other = await theirs.claim("CA1"), await theirs.claim("CA2")

    theirs.keep("CA1", 1, b"before a transfer", in_haste=True)
    theirs.keep("CA2", 1, b"state", in_haste=True)
    theirs.keep("CA2", 1, b"")
    can_go_on = await ours.calls_of(theirs.me)

    assert can_go_on == {"CA1": one}
    assert await ours.seize("CA1", one) == Seized(2, b"before a transfer")
    assert await ours.seize("CA2", other) == Seized(2, b"", has_ended=True)


async def test_what_is_left_of_a_call_that_has_ended_is_for_whoever_takes_it_over(two):
    ours, theirs = (each.registry for each in two)
    talks, ended = await theirs.claim("CA1"), await theirs.claim("CA2")
    for sid in ("CA1", "CA2"):
        theirs.keep(sid, 1, b"a state", in_haste=True)
    theirs.keep("CA2", 1, b"a record", in_haste=True, has_ended=True)

    assert await ours.calls_of(theirs.me) == {"CA1": talks}
    assert await ours.calls_of(theirs.me, ended=True) == {"CA2": ended}
    assert await ours.seize("CA2", ended) == Seized(2, b"a record", has_ended=True)


async def test_what_is_kept_is_written_though_the_system_has_no_thread_for_it(two):
    ours, theirs = (each.registry for each in two)
    holding = await theirs.claim("CA1")
    theirs.keep("CA1", 1, b"first")
    with no_threads():
        theirs.keep("CA1", 1, b"second")
        await written(theirs)

    assert await ours.seize("CA1", holding) == Seized(2, b"second")


async def test_what_is_kept_is_written_though_all_other_work_waits_for_threads(two):
    ours, theirs = (each.registry for each in two)
    holding = await theirs.claim("CA1")
    theirs.keep("CA1", 1, b"first")
    threads = trio.to_thread.current_default_thread_limiter()
    with ExitStack() as hanging:
        for _ in range(int(threads.total_tokens)):
            name = object()
            await threads.acquire_on_behalf_of(name)
            hanging.callback(threads.release_on_behalf_of, name)
        theirs.keep("CA1", 1, b"second")
        await written(theirs)

    assert await ours.seize("CA1", holding) == Seized(2, b"second")


@asynccontextmanager
async def being_written(directory, call_sid, monkeypatch):
    """A call of this directory's is being written by the thread, until the value is set."""
    directory.keep(call_sid, 1, b"first")
    is_at_it, may_go_on, keep = threading.Event(), threading.Event(), directory._claims.keep

    def slow(*args, **facts):
        if threading.current_thread() is not threading.main_thread():
            is_at_it.set()
            may_go_on.wait(60.0)
        keep(*args, **facts)

    monkeypatch.setattr(directory._claims, "keep", slow)
    directory.keep(call_sid, 1, b"second")
    await until(is_at_it.is_set)
    try:
        yield may_go_on
    finally:
        may_go_on.set()


async def test_whose_a_call_is_cannot_be_said_while_it_is_written_and_that_takes_too_long(
    two, monkeypatch
):
    ours = two[0].registry
    monkeypatch.setattr("server.cluster.directory.keeper.WRITTEN_TIMEOUT_S", 0.01)
    await ours.claim("CA1")
    async with being_written(ours, "CA1", monkeypatch):
        is_ours = await ours.is_current("CA1", 1)
        ours.keep("CA1", 1, b"in haste", in_haste=True)
        with pytest.raises(RegistryAway, match="not written"):
            await ours.is_current("CA1", 1)

    assert is_ours


async def test_what_is_kept_in_haste_is_there_before_the_call_is_said_to_be_ours(two, monkeypatch):
    ours, theirs = (each.registry for each in two)
    holding = await ours.claim("CA1")
    async with (
        being_written(ours, "CA1", monkeypatch) as may_go_on,
        trio.open_nursery() as nursery,
    ):
        ours.keep("CA1", 1, b"in haste", in_haste=True)
        answers: list[bool] = []

        async def ask() -> None:
            answers.append(await ours.is_current("CA1", 1))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        before = answers[:]
        may_go_on.set()

    assert (before, answers) == ([], [True])
    assert await theirs.seize("CA1", holding) == Seized(2, b"in haste")


async def test_a_call_that_is_over_is_not_held_by_what_was_written_last(two):
    ours, _ = (each.registry for each in two)

    class Call:
        def state(self) -> bytes:
            return b"state"

    call = Call()
    await ours.claim("CA1")
    for _ in range(2):
        ours.keep("CA1", 1, call.state)
    await written(ours)
    ours.release("CA1", 1)
    left = weakref.ref(call)
    del call

    await until(lambda: left() is None)


async def test_what_is_kept_first_of_a_call_is_there_at_once(two):
    ours, theirs = (each.registry for each in two)
    holding = await ours.claim("CA1")

    ours.keep("CA1", 1, lambda: b"has begun")

    assert await theirs.seize("CA1", holding) == Seized(2, b"has begun")


async def test_changes_that_come_together_are_one_state_of_the_call_as_it_is_then(two):
    ours, theirs = (each.registry for each in two)
    talk = Talk()
    holding = await ours.claim("CA1")
    other = await ours.claim("CA2")
    ours.keep("CA1", 1, b"has begun")
    ours.keep("CA2", 1, b"before")
    ours.keep("CA2", 1, lambda: None)  # nothing that could be kept
    for word in ("good", "morning"):
        talk.said.append(word)
        ours.keep("CA1", 1, talk.state)
    await written(ours)

    assert talk.made == ["good morning"]
    assert await theirs.seize("CA1", holding) == Seized(2, b"good morning")
    assert await theirs.seize("CA2", other) == Seized(2, b"before")


async def test_a_call_that_is_ours_again_is_not_forgotten_by_what_lost_it_before(two):
    ours, theirs = (each.registry for each in two)
    first = await ours.claim("CA1")
    ours.keep("CA1", 1, b"state", in_haste=True)
    second = await theirs.seize("CA1", first)
    await ours.seize("CA1", Holding(theirs.me, second.generation))

    ours.keep("CA1", 1, b"late")
    ours.release("CA1", 1)

    assert await theirs.seize("CA1", Holding(ours.me, 3)) == Seized(4, b"state")


async def test_a_release_that_finds_the_gate_busy_is_done_at_the_next_beat(two, tmp_path):
    ours, _ = (each.registry for each in two)
    holding = await ours.claim("CA1")
    gate = Gate(tmp_path / "offhook-here" / "gate")

    with gate.held():
        ours.release("CA1", 1)
        two[0].publish()
        busy = await ours.owner("CA1")
    gate.close()
    two[0].publish()

    assert busy == holding
    assert await ours.owner("CA1") is None


async def test_nothing_of_a_call_that_is_over_is_left(two, tmp_path):
    ours, _ = (each.registry for each in two)
    for number in range(50):
        ours.announce(f"CA{number}", 1)
        ours.keep(f"CA{number}", 1, b"state")
        if number % 3 == 0:
            await trio.lowlevel.checkpoint()  # be it on its way, or waiting
        elif number % 3 == 1:
            await written(ours)
        ours.release(f"CA{number}", 1)
    ours.announce("CA50", 1)
    ours.keep("CA50", 1, b"last")
    await written(ours)
    names = [
        path.name
        for folder in ("calls", "kept")
        for path in (tmp_path / "offhook-here" / folder).iterdir()
    ]

    assert sorted(names) == ["CA50", "CA50.1"]


# -- who takes an inbound call ---------------------------------------------------------------


CARRIER_WAITS_S = 15.0


class Asking(Elsewhere):
    """Asks the other processes; those that are named here are not reached, or do not answer."""

    may_be_asked = True

    def __init__(
        self,
        cluster: Cluster,
        gone: set[str],
        *,
        reached: bool = False,
        answers_late: bool = False,
        said_s_ago: float = 0.0,
    ) -> None:
        calls = make_calls(cluster=cluster)
        rescue = Rescue(calls, cluster, Agent, lease_s=3.0)
        service = SimpleNamespace(
            cluster=cluster, calls=calls, rescue=rescue, settings=Settings(_env_file=None)
        )
        super().__init__(service)
        self._gone = gone
        self._reached = reached
        self._answers_late = answers_late
        self._said_s_ago = said_s_ago
        self.given: list[str] = []

    async def _body(self) -> bytes:
        return b""

    def _age_s(self, member: Member) -> float:
        return self._said_s_ago

    async def _give(
        self, name: str, body: bytes, generation: int = 1, timeout_s: float | None = None
    ) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        self.given.append(name)
        if self._answers_late:
            await trio.sleep(timeout_s)
        if name in self._gone:
            raise WorkerLost(name, reached=self._reached)
        return httpx2.Response(200, content=b"theirs")


async def owner(cluster: Cluster, call_sid: str) -> str | None:
    holding = await cluster.registry.owner(call_sid)
    return None if holding is None else holding.member.name


@pytest.fixture
def three(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # No socket is made here.
    monkeypatch.setattr("server.cluster.directory.meeting.MAX_PATH_BYTES", 190)
    with ExitStack() as stack:
        three = [Cluster() for _ in range(3)]
        for each in three:
            each.join(3, where="offhook-here")
            stack.callback(each.leave)
            each.report = lambda: Load(accepts=True)
            each.publish()
        yield three


async def test_a_call_goes_to_the_one_that_has_it(three):
    first, second, third = three
    await first.claim("CA1", "2")

    assert await Asking(third, set()).for_named_call("CA1") == 1
    for asked in (first, second):
        asking = Asking(asked, set())
        assert isinstance(await asking.for_named_call("CA1"), Response)
        assert asking.given == ["2"]


async def test_a_call_whose_process_cannot_be_reached_is_taken_by_one_that_can(three):
    first, second, _ = three
    await first.claim("CA1", "2")
    asking = Asking(first, {"2"})

    generation = await asking.for_named_call("CA1")

    assert asking.given[0] == "2"
    assert generation == 2
    assert await owner(first, "CA1") == await owner(second, "CA1") == "0"


async def test_a_call_that_all_others_cannot_take_stays(three):
    first, _, _ = three
    await first.claim("CA1", "2")

    assert await Asking(first, {"1", "2"}).for_named_call("CA1") == 2
    assert await owner(first, "CA1") == "0"


@pytest.mark.slow
async def test_of_many_who_are_asked_for_the_same_call_one_takes_it(three):
    for number in range(200):
        taken: list[str] = []

        async def ask(cluster: Cluster, call_sid: str, taken: list[str]) -> None:
            if isinstance(await Asking(cluster, set()).for_named_call(call_sid), int):
                taken.append(cluster.me.name)

        async with trio.open_nursery() as nursery:
            for cluster in three:
                cluster.publish()
                nursery.start_soon(ask, cluster, f"CA{number}", taken)
        assert len(taken) <= 1
        assert await owner(three[0], f"CA{number}") in (taken or ["0", "1", "2"])


@pytest.mark.slow
async def test_of_many_who_cannot_reach_the_owner_of_a_call_one_takes_it_over(three):
    for number in range(200):
        call_sid = f"CA{number}"
        await three[0].registry.claim(call_sid, GONE)
        taken: list[str] = []

        async def ask(cluster: Cluster, call_sid: str, taken: list[str]) -> None:
            if isinstance(await Asking(cluster, set()).for_named_call(call_sid), int):
                taken.append(cluster.me.name)

        async with trio.open_nursery() as nursery:
            for cluster in three:
                nursery.start_soon(ask, cluster, call_sid, taken)
        assert len(taken) == 1
        assert await three[0].registry.owner(call_sid) == Holding(three[int(taken[0])].me, 2)


async def test_a_process_that_is_only_slow_keeps_its_calls(three, monkeypatch):
    first, second, third = three
    await third.registry.claim("CA1")
    slow = third.me
    # Nobody has said anything for so long.
    monkeypatch.setattr("server.cluster.directory.board.SILENT_S", 0.0)
    known = [first.is_gone(slow), second.is_gone(slow)]
    third.leave()

    assert known == [False, False]
    assert first.is_gone(slow)
    assert second.is_gone(slow)


async def test_nobody_is_gone_for_whoever_has_no_descriptor_to_look_with(three):
    first, _, third = three
    dead = third.me
    third.leave()
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    with at_most("NOFILE", lowest_free):
        meanwhile = first.is_gone(dead)

    assert (meanwhile, first.is_gone(dead)) == (False, True)


async def test_a_call_that_a_slow_process_was_given_is_not_taken_by_another(three):
    first, _, _ = three
    await first.claim("CA1", "2")
    asking = Asking(first, {"2"}, reached=True)

    answer = await asking.for_named_call("CA1")

    assert answer.status_code == 502
    assert asking.given == ["2"]
    assert await owner(first, "CA1") == "2"


@pytest.mark.parametrize("said_s_ago", [60.0, 4.9], ids=["before", "when it was asked"])
async def test_a_call_that_was_given_to_a_process_which_was_just_stopped_is_begun_in_time(
    autojump_clock, three, said_s_ago
):
    first, _, _ = three
    await first.claim("CA1", "2")
    asking = Asking(first, {"2"}, reached=True, answers_late=True, said_s_ago=said_s_ago)
    asked_at = trio.current_time()

    generation = await asking.for_named_call("CA1")

    assert generation == 2
    assert asking.given == ["2"]
    assert await owner(first, "CA1") == "0"
    assert trio.current_time() - asked_at <= CARRIER_WAITS_S / 2


async def test_a_call_stays_with_a_process_that_is_slow_and_there(autojump_clock, three):
    first, _, _ = three
    await first.claim("CA1", "2")
    asking = Asking(first, {"2"}, reached=True, answers_late=True)
    asked_at = trio.current_time()

    answer = await asking.for_named_call("CA1")

    assert answer.status_code == 502
    assert asking.given == ["2", "2"]
    assert await owner(first, "CA1") == "2"
    assert trio.current_time() - asked_at <= CARRIER_WAITS_S


async def test_a_process_that_begins_a_call_too_late_does_nothing_to_whoever_has_it(two, nursery):
    ours, theirs = two
    calls = make_calls(
        cluster=theirs, is_current=theirs.registry.is_current, keep=theirs.registry.keep
    )
    await nursery.start(calls.run)
    holding = await ours.claim("CA1", theirs.me.name)
    await ours.registry.seize("CA1", holding)
    ours.hold("CA1", 2)
    await calls.answer("CA1", "+15005550001", Agent(), generation=1, answer_timeout_s=0.05)
    (call,) = calls.register.live
    await call.finished.wait()
    await until(lambda: not calls.register.live)

    assert call.end_reason is EndReason.MOVED
    assert calls.carrier.hung_up == calls.carrier.said == []
    assert await ours.registry.owner("CA1") == Holding(ours.me, 2)
    assert await ours.registry.is_current("CA1", 2)


# -- real processes --------------------------------------------------------------------------

PATIENCE_S = 60.0


class Claimants:
    """Processes that do what they are told, all at the same time; each by its number."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self.processes = {self._answer(process): process for process in processes}

    def tell(self, *words: object) -> dict[int, Any]:
        for process in self.processes.values():
            process.stdin.write(" ".join(map(str, words)) + "\n")
            process.stdin.flush()
        return {number: self._answer(process) for number, process in self.processes.items()}

    def kill(self, number: int) -> None:
        process = self.processes.pop(number)
        process.kill()
        process.wait()

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> Any:
        return json.loads(process.stdout.readline())


@contextmanager
def claimants(count: int, directory: str) -> Generator[Claimants]:
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.claimant", "offhook-claims", str(count)],
                    cwd=ROOT,
                    env=os.environ | {"TMPDIR": directory},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            timer = threading.Timer(PATIENCE_S, process.kill)  # then its answer is the end
            timer.start()
            stack.callback(timer.cancel)
            processes.append(process)
        yield Claimants(processes)


@pytest.fixture
def short_path():
    """A directory whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="offhook-") as directory:
        yield directory


def test_of_thousands_of_contended_calls_each_has_one_owner(short_path):
    with claimants(4, short_path) as processes:
        first = processes.tell("claim", 3_000)
        dead = 3
        processes.kill(dead)
        second = processes.tell("claim", 4_000, dead)

    assert len({tuple(owners) for owners in first.values()}) == 1
    assert len({tuple(owners) for owners in second.values()}) == 1
    before, after = first[0], second[0]
    assert dead not in after
    assert [was for was, now in zip(before, after, strict=False) if was != now] == [
        dead
    ] * before.count(dead)


@pytest.mark.slow
def test_calls_that_are_given_back_and_died_with_have_one_owner_at_a_time(tmp_path, short_path):
    for name in ("dead", "held"):
        (tmp_path / name).mkdir()

    with claimants(3, short_path) as processes:
        told = processes.tell("take-turns", tmp_path, 3_000)

    assert [each["doubles"] for each in told.values()] == [0, 0, 0]
    assert sum(each["turns"] for each in told.values()) > 1_000
    assert sum(each["deaths"] for each in told.values()) > 100


def test_processes_that_leave_together_leave_nothing_behind(short_path):
    with claimants(4, short_path) as processes:
        for _ in range(20):
            processes.tell("claim", 100)
            assert set(processes.tell("leave").values()) == {"left"}
            assert list(Path(short_path).iterdir()) == []
            assert set(processes.tell("join").values()) == {0, 1, 2, 3}


def test_the_last_to_leave_clears_away_what_one_that_was_killed_has_left(short_path):
    with claimants(3, short_path) as processes:
        processes.tell("claim", 100)
        processes.kill(2)
        processes.tell("leave")

    assert list(Path(short_path).iterdir()) == []


def test_what_was_left_when_all_were_killed_is_cleared_away_by_the_next_to_start(short_path):
    left, other = (Path(short_path) / f"offhook-{n * 32}" for n in "ab")
    for directory in (left, other):
        for name in ("calls", "kept"):
            (directory / name).mkdir(parents=True)
        for name in ("gate", "0.lock", "1.lock", "board"):
            (directory / name).touch()
        (directory / "kept" / "CA1.1").write_bytes(b"state")

    with (other / "1.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with claimants(2, short_path) as processes:
            found = sorted(path.name for path in Path(short_path).iterdir())
            processes.tell("leave")

    assert found == [other.name, "offhook-claims"]


def test_processes_come_and_go_at_once(short_path):
    with claimants(3, short_path) as processes:
        stays = processes.processes.pop(0)
        for _ in range(100):
            assert set(processes.tell("leave").values()) == {"left"}
            assert set(processes.tell("join").values()) <= {1, 2}
        processes.tell("leave")
        processes.processes = {0: stays}
        assert processes.tell("claim", 10) == {0: [0] * 10}
        processes.tell("leave")

    assert list(Path(short_path).iterdir()) == []
