"""Garbage is collected between calls, not in the middle of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server import garbage


class Ring:
    """Something that only the collector frees."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def pythons_own_way():
    gc.collect()
    before = gc.get_threshold()
    yield before
    assert gc.get_threshold() == before


async def test_cycles_are_found_while_calls_go_on(pythons_own_way, autojump_clock, nursery):
    nursery.start_soon(garbage.collect, lambda: 5)
    await trio.sleep(0.01)
    found = weakref.ref(Ring())
    gc.collect(0)  # as Python does; it is so young that it may be found right here
    kept = Ring()
    gc.collect(0)
    passed_on = weakref.ref(kept)
    del kept

    await trio.sleep(2 * garbage.YOUNG_EVERY_S)

    assert found() is None
    assert passed_on() is None
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("live_count", "within_s"),
    [
        (lambda: 0, 4 * garbage.FULL_AFTER * garbage.YOUNG_EVERY_S),
        (lambda: 5, garbage.FULL_EVERY_S + 1.0),
    ],
    ids=["no calls", "calls"],
)
async def test_old_cycles_are_found_when_no_call_is_held_up_or_at_last(
    pythons_own_way, autojump_clock, nursery, live_count: Callable[[], int], within_s: float
):
    nursery.start_soon(garbage.collect, live_count)
    await trio.sleep(0.01)
    old = Ring()
    gc.collect(0)
    gc.collect(1)
    found = weakref.ref(old)
    del old

    async def work() -> None:  # something young is there to be looked through, all the time
        while True:
            gc.collect(0)
            await trio.sleep(garbage.YOUNG_EVERY_S / 2)

    nursery.start_soon(work)
    if live_count():
        await trio.sleep(within_s / 2)
        assert found() is not None
    await trio.sleep(within_s)

    assert found() is None
    nursery.cancel_scope.cancel()


async def test_python_never_goes_through_the_whole_heap_by_itself(pythons_own_way, nursery):
    ran: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            ran.append(info["generation"])

    nursery.start_soon(garbage.collect, lambda: 5)
    await wait_all_tasks_blocked()
    gc.callbacks.append(note)
    try:
        rings = [Ring() for _ in range(100_000)]
    finally:
        gc.callbacks.remove(note)

    assert len(rings) == 100_000
    assert set(ran) == {0}
    nursery.cancel_scope.cancel()


async def test_two_servers_of_one_process_do_not_take_it_from_each_other(pythons_own_way):
    async with trio.open_nursery() as outer:
        outer.start_soon(garbage.collect, lambda: 0)
        async with trio.open_nursery() as inner:
            inner.start_soon(garbage.collect, lambda: 0)
            await wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        assert gc.get_threshold()[1] == garbage.NOT_BY_ITSELF
        outer.cancel_scope.cancel()
