"""Turns of connections: in a burst of one kind of request the others do not wait behind it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

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
            await trio.lowlevel.checkpoint()
    return order


async def test_one_after_the_other_and_a_kind_does_not_wait_behind_another():
    turns = Turns()

    order = await in_turn(turns, *[Kind.ACT] * 20, Kind.UPGRADE, Kind.LOOK)

    assert order.count(Kind.ACT) == 20
    assert order.index(Kind.UPGRADE) < 15  # not behind all that have come before it
    assert order.index(Kind.LOOK) < 17
    assert not len(turns._waiting[Kind.ACT])


async def test_whoever_leaves_gives_the_turn_on():
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.take, Kind.ACT)
        nursery.start_soon(turns.take, Kind.ACT)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()

    with trio.fail_after(1):
        await turns.take(Kind.LOOK)


async def test_what_has_waited_too_long_is_left_for_what_has_not(autojump_clock):
    turns, came = Turns(), []

    async def take(kind: Kind) -> None:
        came.append((kind, await turns.take(kind)))

    turns._is_taken = True
    async with trio.open_nursery() as nursery:
        for kind in (Kind.ACT, Kind.UPGRADE):
            nursery.start_soon(take, kind)
        await trio.sleep(MAX_TURN_S + 0.1)
        nursery.start_soon(take, Kind.ACT)
        await wait_all_tasks_blocked()
        turns._give_on()

    assert sorted(came, key=str) == [
        (Kind.ACT, False),
        (Kind.ACT, True),
        (Kind.UPGRADE, True),
    ]


async def test_the_wait_for_a_turn_is_what_the_last_ones_have_waited(nursery, autojump_clock):
    turns = Turns()
    turns._is_taken = True
    for _ in range(2 * REMEMBERED):
        nursery.start_soon(turns.take, Kind.ACT)
    await wait_all_tasks_blocked()

    for _ in range(REMEMBERED):
        await trio.sleep(0.5)
        turns._note(Kind.ACT, trio.current_time())

    assert 5.0 < turns.wait_s(Kind.ACT) < 2 * REMEMBERED * 0.5
    assert turns.wait_s(Kind.UPGRADE) == 0.0
    nursery.cancel_scope.cancel()
