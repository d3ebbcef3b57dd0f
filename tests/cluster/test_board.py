"""Whether a process is there, by its row and by what we have seen of it ourselves."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.cluster.directory import board as board_module
from server.cluster.directory.board import SILENT_S, Board
from server.cluster.new_calls import NewCalls
from server.cluster.passing_on import PASSED_ON, Hop
from server.cluster.registry import Load, Member


class World:
    """The time of two processes; each writes its row when the test says so."""

    def __init__(self, path) -> None:
        self.now = 1_000.0
        self.ours, self.other = (Board(path, number=number, count=2) for number in (0, 1))

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path / "board")
    monkeypatch.setattr(board_module, "time", world)
    for board in (world.ours, world.other):
        board.write(Load(live=3))
    yield world
    world.ours.close()
    world.other.close()


def test_a_process_that_has_not_written_for_long_is_not_there(world):
    while world.now < 1_000.0 + SILENT_S:
        assert world.ours.others() == [1]
        world.now += 0.1
        world.ours.write(Load())

    assert world.ours.others() == []


def test_nobodys_silence_counts_while_we_were_held_up_ourselves(world):
    world.now += 10 * SILENT_S  # both were

    assert world.ours.live_elsewhere() == 3
    world.ours.write(Load())
    world.now += SILENT_S / 2
    world.ours.write(Load())
    assert world.ours.others() == [1]

    while world.now < 1_000.0 + 12 * SILENT_S:  # and the other does not come back
        world.now += 0.1
        world.ours.write(Load())
    assert world.ours.others() == []


def test_a_process_that_was_gone_before_we_were_held_up_is_gone_still(world):
    for _ in range(round(SILENT_S / 0.1) + 1):
        world.now += 0.1
        world.ours.write(Load())
    assert world.ours.others() == []

    world.now += 10.0

    assert world.ours.others() == []


# -- new calls on their way --------------------------------------------------------------------


class Giving:
    """Gives new calls from one of the two to the other, which answers when it is told to."""

    def __init__(self, world: World) -> None:
        self._board = world.ours
        self._taker = self._new_calls(world.other, 1)
        self._giver = self._new_calls(world.ours, 0)
        self.may_answer = trio.Event()

    def _new_calls(self, board: Board, number: int) -> NewCalls:
        directory = SimpleNamespace(board=board, number=number, number_of=int, name_of=str)
        return NewCalls(Member(str(number), 1), directory, lambda: iter(()), self, Load)

    @property
    def calls(self) -> float:
        """How many calls the other has, or is about to have, as we see it."""
        return self._board.candidate(1, "1").calls

    async def ask(self, *asked: object, timeout_s: float) -> None:
        await self.may_answer.wait()

    async def give(self) -> None:
        await self._giver.give("1", {}, b"", timeout_s=60.0)

    def take(self) -> None:
        """The other reads the request."""
        self._taker.take({PASSED_ON: Hop("0", given=True)})


async def test_a_call_whose_client_leaves_before_it_is_taken_counts_no_more(world):
    giving = Giving(world)
    async with trio.open_nursery() as clients:
        for _ in range(3):
            clients.start_soon(giving.give)
        await wait_all_tasks_blocked()
        on_their_way = giving.calls
        giving.take()
        clients.cancel_scope.cancel()

    assert on_their_way == 3
    assert giving.calls == 1  # which is the other's to say from now on


async def test_a_call_that_is_taken_after_its_client_has_left_counts_once(world):
    giving = Giving(world)
    async with trio.open_nursery() as clients:
        clients.start_soon(giving.give)
        await wait_all_tasks_blocked()
        clients.cancel_scope.cancel()
    giving.take()
    late = giving.calls

    async with trio.open_nursery() as clients:
        clients.start_soon(giving.give)
        await wait_all_tasks_blocked()
        with_the_next = giving.calls
        giving.take()
        giving.may_answer.set()

    assert (late, with_the_next, giving.calls) == (1, 2, 2)


async def test_calls_that_are_on_their_way_count_while_the_client_of_another_leaves(world):
    giving = Giving(world)
    async with trio.open_nursery() as clients:
        clients.start_soon(giving.give)
        async with trio.open_nursery() as leaving:
            leaving.start_soon(giving.give)
            await wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        left = giving.calls
        clients.cancel_scope.cancel()

    assert left == 1


def test_calls_that_a_process_was_giving_when_it_was_killed_count_no_more(world):
    for _ in range(3):
        world.other.give(0)
    while_it_lives = world.ours.candidate(0, "0").calls
    for _ in range(round(SILENT_S / 0.1) + 1):
        world.now += 0.1
        world.ours.write(Load())

    once_it_is_gone = world.ours.candidate(0, "0").calls

    assert (while_it_lives, once_it_is_gone) == (3, 0)


def test_calls_that_we_give_ourselves_count_though_we_were_held_up(world):
    world.ours.give(1)
    world.now += 10 * SILENT_S

    assert world.ours.candidate(1, "1").calls == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that says what it has given")
def test_what_is_shared_has_its_room_on_the_disk_before_it_is_used(tmp_path):
    path = tmp_path / "board"
    path.write_bytes(bytes(5_000))  # of one who found no room for the rest

    Board(path, number=0, count=2).close()

    facts = path.stat()
    assert facts.st_blocks * 512 >= facts.st_size > 5_000
