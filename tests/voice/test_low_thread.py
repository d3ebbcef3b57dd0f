"""The thread that comes after the others."""

from __future__ import annotations

import os
import sys
import threading

import pytest
import trio

from server.voice.low_thread import NICER, low_thread


def facts() -> tuple[int, int, int]:
    thread = threading.get_native_id()
    return thread, os.getpriority(os.PRIO_PROCESS, thread), os.sched_getscheduler(0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has its process's")
async def test_one_thread_does_all_and_only_it_gives_way():
    before = facts()
    with low_thread("low") as low:
        found = [await low.run_sync(facts) for _ in range(3)]

    assert found == [found[0]] * 3
    assert found[0][0] != before[0]
    assert found[0][1] == min(before[1] + NICER, 19)
    assert found[0][2] == os.SCHED_BATCH
    assert facts() == before


async def test_the_loop_goes_on_meanwhile():
    may_end, began = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def work(value: int) -> int:
        token.run_sync_soon(began.set)
        assert may_end.wait(60)
        return value + 1

    async def let_it_end():
        await began.wait()
        may_end.set()

    with low_thread("low") as low:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_it_end)
            assert await low.run_sync(work, 1) == 2


async def test_what_goes_wrong_there_goes_wrong_here_and_the_next_is_done_all_the_same():
    with low_thread("low") as low:
        with pytest.raises(ValueError, match="invalid literal"):
            await low.run_sync(int, "no number")

        assert await low.run_sync(int, "1") == 1


async def test_what_was_begun_is_seen_through_whoever_cancels():
    seen = []
    with low_thread("low") as low:
        with trio.CancelScope() as scope:
            scope.cancel()
            await low.run_sync(seen.append, 1)

        assert seen == [1]
