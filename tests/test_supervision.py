"""Helpers that fail and go on, on the mock clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
import structlog.testing
import trio

from server.supervision import (
    MAX_SOON_DEATHS,
    PAUSE_S,
    RESTART_PAUSE_S,
    STEADY_S,
    Restarts,
    keep_going,
    without_start,
)


class Helper:
    """Works for so long, and then fails, as often as there are times."""

    def __init__(self, *works_s: float, starts: bool = True) -> None:
        self._works_s = list(works_s)
        self._starts = starts
        self.began_at: list[float] = []

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.began_at.append(trio.current_time())
        if self._starts:
            task_status.started()
        if not self._works_s:
            await trio.sleep_forever()
        await trio.sleep(self._works_s.pop(0))
        raise OSError("gone")


async def test_a_helper_that_fails_is_begun_again_after_growing_pauses(autojump_clock, nursery):
    helper = Helper(*[0.0] * 9)

    with structlog.testing.capture_logs() as logged:
        await nursery.start(keep_going, "helper", helper)
        await trio.sleep(1_000)

    pauses = [after - before for before, after in pairwise(helper.began_at)]
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])
    assert len(logged) == 9
    assert all(entry["exc_info"] for entry in logged)


async def test_a_helper_that_has_worked_for_long_begins_again_at_once(autojump_clock, nursery):
    helper = Helper(0.0, 0.0, STEADY_S, 0.0)

    await nursery.start(keep_going, "helper", helper)
    await trio.sleep(1_000)

    last_pause_s = helper.began_at[3] - helper.began_at[2] - STEADY_S
    assert last_pause_s == pytest.approx(PAUSE_S[0])


async def test_a_helper_that_fails_before_it_has_started_is_not_begun_again(autojump_clock):
    helper = Helper(0.0, starts=False)

    with pytest.raises(ExceptionGroup) as raised:
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_going, "helper", helper)

    assert raised.group_contains(OSError)
    assert len(helper.began_at) == 1


async def test_a_helper_that_is_cancelled_or_returns_is_over(autojump_clock):
    async def return_at_once() -> None:
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        await nursery.start(keep_going, "stays", Helper())
        await keep_going("returns", without_start(return_at_once))
        nursery.cancel_scope.cancel()


def test_processes_that_die_one_after_another_are_given_up_after_growing_pauses():
    restarts = Restarts()

    pauses = [restarts.after(lived_s=1.0) for _ in range(MAX_SOON_DEATHS + 1)]

    assert pauses[:3] == pytest.approx([0.2, 0.4, 0.8])
    assert pauses[-2] == RESTART_PAUSE_S[1]
    assert pauses[-1] is None


def test_a_process_that_has_served_for_long_is_replaced_soon_and_forgives_those_before():
    restarts = Restarts()
    for _ in range(MAX_SOON_DEATHS):
        restarts.after(lived_s=0.0)

    pauses = [restarts.after(lived_s) for lived_s in (STEADY_S, 0.0)]

    assert pauses == pytest.approx([0.2, 0.4])


def test_a_process_that_cannot_be_started_is_tried_again_for_ever():
    restarts = Restarts()

    pauses = [restarts.not_started() for _ in range(3 * MAX_SOON_DEATHS)]
    restarts.after(lived_s=STEADY_S)

    assert pauses[:3] == pytest.approx([0.2, 0.4, 0.8])
    assert pauses[-1] == RESTART_PAUSE_S[1]
    assert restarts.not_started() == RESTART_PAUSE_S[0]
