"""Turns of connections: in a burst of one kind of request the others do not wait behind it."""

from __future__ import annotations

import math
import time
from collections import Counter

import pytest
import trio
from trio.lowlevel import checkpoint
from trio.testing import MockClock

from server.hooks import turns as turns_module
from server.hooks.trio_clock import pausing_clock
from server.hooks.turns import MAX_TURN_S, REMEMBERED, Kind, Turns

HEAD = b"Host: here\r\n"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GET /stream HTTP/1.1\r\n" + HEAD + b"Upgrade: websocket\r\n\r\n", Kind.UPGRADE),
        (b"GET /stream HTTP/1.1\r\n" + HEAD + b"UPGRADE: websocket\r\n\r\n", Kind.UPGRADE),
        (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n", Kind.LOOK),
        (b"HEAD /healthz HTTP/1.1\r\n" + HEAD + b"\r\n", Kind.LOOK),
        (b"POST /twiml HTTP/1.1\r\n" + HEAD + b"\r\n", Kind.ACT),
        (b"CallSid=CA1&From=%2B1", Kind.REST),
        (b"G", Kind.REST),
    ],
)
def test_what_a_read_has_brought_is_told_by_its_beginning(data, kind):
    assert Kind.of(bytearray(data)) is kind


async def in_turn(turns: Turns, *kinds: Kind) -> list[Kind]:
    """The order in which those that have come all at once have their turns."""
    order: list[Kind] = []

    async def take(kind: Kind) -> None:
        await turns.take(kind)
        order.append(kind)

    async with trio.open_nursery() as nursery:
        for kind in kinds:
            nursery.start_soon(take, kind)
            await checkpoint()
    return order


async def test_one_after_the_other_and_a_kind_does_not_wait_behind_another():
    turns = Turns()

    order = await in_turn(turns, *[Kind.ACT] * 20, Kind.UPGRADE, Kind.LOOK)

    assert order.count(Kind.ACT) == 20
    assert order.index(Kind.UPGRADE) < 15  # not behind all that have come before it
    assert order.index(Kind.LOOK) < 17
    assert turns.wait_s(Kind.ACT) == 0.0  # nobody waits


async def test_whoever_leaves_gives_the_turn_on():
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.take, Kind.ACT)
        nursery.start_soon(turns.take, Kind.ACT)
        await checkpoint()
        nursery.cancel_scope.cancel()

    with trio.fail_after(1):
        await turns.take(Kind.LOOK)


def hold_up(seconds: float) -> None:
    """Do what SIGSTOP does to the loop."""
    time.sleep(seconds)


class Crowd:
    """Many that wait for a turn at once, and what became of each."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.turns = Turns()
        self.had: Counter[tuple[str, bool]] = Counter()

    async def come(self, name: str, kind: Kind, count: int = 1) -> None:
        """Let some come, of whom the first few have had their turn when this returns."""
        for _ in range(count):
            self.nursery.start_soon(self._take, name, kind)
        for _ in range(2):
            await checkpoint()

    async def _take(self, name: str, kind: Kind) -> None:
        self.had[name, await self.turns.take(kind)] += 1


async def test_what_has_waited_too_long_is_left_for_what_has_not(mock_clock: MockClock):
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        await crowd.come("early", Kind.ACT, 40)
        await crowd.come("stream", Kind.UPGRADE, 5)
        mock_clock.jump(MAX_TURN_S + 0.1)
        await crowd.come("late", Kind.ACT)

    assert crowd.had["early", False] > 20
    assert crowd.had["late", True] == 1
    assert crowd.had["stream", True] == 5


async def test_a_pause_of_ours_is_time_that_the_carrier_has_waited(monkeypatch):
    monkeypatch.setattr(turns_module, "MAX_TURN_S", 0.5)
    with pausing_clock():
        async with trio.open_nursery() as nursery:
            crowd = Crowd(nursery)
            await crowd.come("early", Kind.ACT, 40)
            hold_up(2.0)

    assert crowd.had["early", False] > 20


async def test_the_wait_for_a_turn_is_what_the_last_ones_have_waited(mock_clock: MockClock):
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery)
        await crowd.come("early", Kind.ACT, 4 * REMEMBERED)
        began, had = trio.current_time(), crowd.had.total()
        for _ in range(4 * REMEMBERED):
            mock_clock.jump(0.1)
            await checkpoint()
        apart_s = (trio.current_time() - began) / (crowd.had.total() - had)
        ahead = 4 * REMEMBERED - crowd.had.total()
        wait_s, streams_wait_s = crowd.turns.wait_s(Kind.ACT), crowd.turns.wait_s(Kind.UPGRADE)

    assert ahead > REMEMBERED
    assert 0.5 * ahead * apart_s < wait_s < 1.5 * ahead * apart_s
    assert streams_wait_s == 0.0


async def test_a_pause_of_ours_does_not_make_the_next_turns_seem_slow():
    with pausing_clock():
        async with trio.open_nursery() as nursery:
            crowd = Crowd(nursery)
            await crowd.come("early", Kind.ACT, 4)
            hold_up(2.0)
            await crowd.come("late", Kind.ACT, 200)
            ahead = 204 - crowd.had.total()
            wait_s = crowd.turns.wait_s(Kind.ACT)

    assert ahead > 100
    assert wait_s < MAX_TURN_S  # at the pause's pace it would be more than ten seconds
    assert crowd.had["early", True] + crowd.had["late", True] == 204


async def test_it_is_known_how_long_ago_a_request_had_to_wait_for_its_turn(autojump_clock, nursery):
    turns = Turns()
    before = turns.since_behind_s()
    turns._is_taken = True
    nursery.start_soon(turns.take, Kind.REST)  # more of a request is none
    nursery.start_soon(turns.take, Kind.UPGRADE)
    await trio.sleep(0.9)
    soon = turns.since_behind_s()
    await trio.sleep(0.2)
    behind = turns.since_behind_s()
    turns._give_on()
    await trio.sleep(3.0)

    assert (before, soon, behind) == (math.inf, math.inf, 0.0)
    assert turns.since_behind_s() == pytest.approx(3.0)
