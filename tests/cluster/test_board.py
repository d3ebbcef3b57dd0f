"""Whether a process is there, by its row and by what we have seen of it ourselves."""

from __future__ import annotations

import sys

import pytest

from server.cluster.directory import board as board_module
from server.cluster.directory.board import SILENT_S, Board
from server.cluster.registry import Load


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


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that says what it has given")
def test_what_is_shared_has_its_room_on_the_disk_before_it_is_used(tmp_path):
    path = tmp_path / "board"
    path.write_bytes(bytes(5_000))  # of one who found no room for the rest

    Board(path, number=0, count=2).close()

    facts = path.stat()
    assert facts.st_blocks * 512 >= facts.st_size > 5_000
