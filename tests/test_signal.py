"""Waiting for what happens once, or again and again."""

from __future__ import annotations

import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from server.signal import Once, Signal


async def test_everybody_who_waits_for_what_happens_once_is_woken(nursery):
    once, woken = Once(), []

    async def wait(number: int) -> None:
        await once.wait()
        woken.append(number)

    for number in range(3):
        nursery.start_soon(wait, number)
    await wait_all_tasks_blocked()
    assert (woken, once.is_set()) == ([], False)
    once.set()
    once.set()
    await wait_all_tasks_blocked()

    assert (sorted(woken), once.is_set()) == ([0, 1, 2], True)


async def test_what_has_happened_is_not_waited_for_but_others_have_their_turn():
    once = Once()
    once.set()

    with trio.fail_after(5), assert_checkpoints():
        await once.wait()


async def test_whoever_asked_before_a_signal_sees_it_and_whoever_asks_after_it_does_not():
    signal = Signal()
    before = signal.next()
    signal.set()

    assert before.is_set()
    assert not signal.next().is_set()
