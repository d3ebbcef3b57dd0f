"""Whose a call is, when several processes want it at once, die with it, or leave together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import trio

from server.cluster.board import Load, Member
from server.cluster.meeting import AVAILABLE
from server.cluster.passing_on import WorkerLost
from server.cluster.workers import Workers
from server.web.elsewhere import Elsewhere

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Unix sockets")

if AVAILABLE:
    from server.cluster.claims import Claims, Gate

ROOT = Path(__file__).parents[2]
OURS, THEIRS, GONE = Member(0, 7), Member(1, 8), Member(2, 9)


def is_there(member: Member) -> bool:
    return member != GONE


@pytest.fixture
def claims(tmp_path):
    (tmp_path / "calls").mkdir()
    gate = Gate(tmp_path / "gate")
    yield Claims(tmp_path / "calls", gate)
    gate.close()


def test_the_first_claim_counts_while_its_owner_is_there(claims):
    assert claims.owner("CA1") is None
    assert claims.make("CA1", OURS, is_there=is_there) == OURS
    assert claims.make("CA1", THEIRS, is_there=is_there) == OURS
    assert claims.owner("CA1") == OURS


def test_a_call_whose_owner_is_gone_is_taken_over(claims):
    claims.make("CA1", GONE, is_there=is_there)

    assert claims.make("CA1", OURS, is_there=is_there) == OURS
    assert claims.make("CA1", THEIRS, is_there=is_there) == OURS


def test_a_call_that_was_taken_over_is_not_given_back_by_its_first_owner(claims):
    claims.make("CA1", GONE, is_there=is_there)
    claims.make("CA1", OURS, is_there=is_there)

    claims.release("CA1", GONE)

    assert claims.owner("CA1") == OURS


def test_who_has_a_number_anew_has_none_of_its_calls(claims):
    claims.make("CA1", OURS, is_there=is_there)
    claims.make("CA2", THEIRS, is_there=is_there)

    claims.release_all(OURS.number)

    assert claims.owner("CA1") is None
    assert claims.owner("CA2") == THEIRS


def test_links_that_vanish_while_they_are_looked_through_are_nobodys(claims, tmp_path, monkeypatch):
    for number in range(20):
        claims.make(f"CA{number}", OURS, is_there=is_there)
    readlink = Path.readlink

    def remove_and_read(link: Path) -> Path:
        if hash(link) % 2:
            link.unlink()  # another process, at this moment
        return readlink(link)

    monkeypatch.setattr(Path, "readlink", remove_and_read)
    claims.release_all(OURS.number)

    assert list((tmp_path / "calls").iterdir()) == []


def test_a_gate_that_another_process_holds_is_given_up_in_time(tmp_path):
    first, second = Gate(tmp_path / "gate"), Gate(tmp_path / "gate")
    with first.held() as got, second.held(0.01) as got_too:
        assert (got, got_too) == (True, False)
    with second.held(0.01) as got_too:
        assert got_too
    first.close()
    second.close()


def test_a_directory_that_somebody_has_removed_ends_no_call(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("server.cluster.meeting.MAX_PATH_BYTES", 190)
    workers = Workers()
    workers.join(2, where="offhook-here")
    (tmp_path / "offhook-here" / "calls").rename(tmp_path / "elsewhere")

    assert workers.claim("CA1") == workers.number
    assert workers.owner("CA1") is None
    workers.release("CA1")
    workers.leave()


# -- who takes an inbound call ---------------------------------------------------------------


class Asking(Elsewhere):
    """Asks the other processes; those that are named here are not reached."""

    may_be_asked = True

    def __init__(self, workers: Workers, gone: set[int], *, reached: bool = False) -> None:
        self._service = SimpleNamespace(workers=workers)
        self._gone = gone
        self._reached = reached
        self.given: list[int] = []

    async def _body(self) -> bytes:
        return b""

    async def _give(self, number: int, body: bytes) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        self.given.append(number)
        if number in self._gone:
            raise WorkerLost(number, reached=self._reached)
        return httpx2.Response(200, content=b"theirs")


@pytest.fixture
def three(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("server.cluster.meeting.MAX_PATH_BYTES", 190)  # no socket is made here
    with ExitStack() as stack:
        three = [Workers() for _ in range(3)]
        for each in three:
            each.join(3, where="offhook-here")
            stack.callback(each.leave)
            each.report = lambda: Load(accepts=True)
            each.publish()
        yield three


async def test_a_call_goes_to_the_one_that_has_it(three):
    first, second, third = three
    first.claim("CA1", 2)

    assert await Asking(third, set()).for_named_call("CA1") is None
    for asked in (first, second):
        asking = Asking(asked, set())
        assert (await asking.for_named_call("CA1")) is not None
        assert asking.given == [2]


async def test_a_call_whose_process_cannot_be_reached_is_taken_by_one_that_can(three):
    first, second, _ = three
    first.claim("CA1", 2)
    asking = Asking(first, {2})

    await asking.for_named_call("CA1")

    assert asking.given[0] == 2
    assert first.owner("CA1") == second.owner("CA1") in (0, 1)


async def test_a_call_that_all_others_cannot_take_stays(three):
    first, _, _ = three
    first.claim("CA1", 2)

    assert await Asking(first, {1, 2}).for_named_call("CA1") is None
    assert first.owner("CA1") == 0


async def test_of_many_who_are_asked_for_the_same_call_one_takes_it(three):
    for number in range(200):
        taken: list[int] = []

        async def ask(workers: Workers, call_sid: str, taken: list[int]) -> None:
            if await Asking(workers, set()).for_named_call(call_sid) is None:
                taken.append(workers.number)

        async with trio.open_nursery() as nursery:
            for workers in three:
                workers.publish()
                nursery.start_soon(ask, workers, f"CA{number}", taken)
        assert len(taken) <= 1
        assert three[0].owner(f"CA{number}") in (taken or [0, 1, 2])


async def test_a_process_that_is_only_slow_keeps_its_calls(three, monkeypatch):
    first, second, third = three
    third.claim("CA1")
    monkeypatch.setattr(
        "server.cluster.board.SILENT_S", 0.0
    )  # nobody has said anything for so long

    assert first.claim("CA1") == second.claim("CA1") == 2
    third.leave()
    assert first.claim("CA1") == second.claim("CA1") == 0


async def test_a_call_that_a_slow_process_was_given_is_not_taken_by_another(three):
    first, _, _ = three
    first.claim("CA1", 2)
    asking = Asking(first, {2}, reached=True)

    answer = await asking.for_named_call("CA1")

    assert answer.status_code == 502
    assert asking.given == [2]
    assert first.owner("CA1") == 2


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


def test_calls_that_are_given_back_and_died_with_have_one_owner_at_a_time(tmp_path, short_path):
    for name in ("calls", "dead", "held"):
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
