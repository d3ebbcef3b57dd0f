from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.call.errands import Errands


async def test_what_was_wanted_before_and_while_it_ran_is_begun(nursery):
    done: list[str] = []
    errands = Errands()

    async def errand(name: str) -> None:
        done.append(name)
        if name == "early":
            errands.begin(another, "from another")

    async def another(name: str) -> None:
        done.append(name)

    async def third() -> None:
        done.append("late")

    errands.begin(errand, "early")
    nursery.start_soon(errands.run, nursery)
    await wait_all_tasks_blocked()
    errands.begin(third)
    await wait_all_tasks_blocked()

    assert done == ["early", "from another", "late"]


async def test_an_errand_is_begun_once(nursery):
    class Part:
        runs = 0

        async def run(self) -> None:
            self.runs += 1

    one, other = Part(), Part()
    errands = Errands()
    nursery.start_soon(errands.run, nursery)
    for _ in range(3):
        errands.begin(one.run)
        await wait_all_tasks_blocked()
    errands.begin(other.run)
    await wait_all_tasks_blocked()

    assert (one.runs, other.runs) == (1, 1)


async def test_what_an_errand_raises_is_the_call_s():
    async def fails() -> None:
        raise ValueError("a bug")

    errands = Errands()
    errands.begin(fails)

    with pytest.raises(ExceptionGroup) as failures, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await errands.run(nursery)
    assert failures.group_contains(ValueError, match="a bug")


async def test_nothing_is_begun_any_more_once_the_call_is_to_end(nursery):
    done: list[str] = []
    errands, returned = Errands(), trio.Event()

    async def errand() -> None:
        done.append("begun")

    async def run() -> None:
        await errands.run(nursery)
        returned.set()

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    errands.end()
    errands.begin(errand)
    with trio.fail_after(5):
        await returned.wait()
    await wait_all_tasks_blocked()

    assert done == []
