"""Garbage is collected between calls, not in the middle of them; memory is given back meanwhile."""

from __future__ import annotations

import gc
import platform
import weakref
from functools import partial

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from server import garbage
from tests.support.kept_garbage import garbage_kept
from tests.support.processes import printed_by


class Ring:
    """Something that only the collector frees."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def pythons_own_way():
    gc.collect()
    assert gc.isenabled()
    yield
    assert gc.isenabled()


async def test_nothing_is_looked_through_while_calls_go_on(
    pythons_own_way, autojump_clock, nursery
):
    ran: list[str] = []
    nursery.start_soon(garbage.collect, lambda: 5, lambda: 1_000)
    await wait_all_tasks_blocked()
    gc.callbacks.append(lambda phase, info: ran.append(phase))
    try:
        rings = [Ring() for _ in range(100_000)]
        await trio.sleep(3_600.0)
    finally:
        gc.callbacks.pop()

    assert len(rings) == 100_000
    assert ran == []
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("rings", "within_s"),
    [(1, garbage.QUIET_EVERY_S + 1.0), (garbage.QUIET_OBJECTS, 2 * garbage.EVERY_S)],
    ids=["a few", "many"],
)
async def test_everything_is_looked_through_when_no_call_is_live(
    pythons_own_way, autojump_clock, nursery, rings, within_s
):
    calls = 5
    nursery.start_soon(garbage.collect, lambda: calls, lambda: 1_000)
    await trio.sleep(0.01)
    found = weakref.ref([Ring() for _ in range(rings)][-1])
    await trio.sleep(10 * garbage.QUIET_EVERY_S)
    assert found() is not None

    calls = 0
    await trio.sleep(within_s)

    assert found() is None
    nursery.cancel_scope.cancel()


async def test_memory_that_grows_beyond_what_calls_need_is_looked_through_and_that_is_said(
    pythons_own_way, autojump_clock, nursery
):
    calls, blocks = 5, 1_000
    nursery.start_soon(garbage.collect, lambda: calls, lambda: blocks)
    await trio.sleep(0.01)
    found = weakref.ref(Ring())

    blocks += garbage.GROWTH_BLOCKS + calls * garbage.CALL_BLOCKS
    await trio.sleep(2 * garbage.GROWTH_EVERY_S)
    assert found() is not None
    with capture_logs() as lines:
        blocks += 1
        await trio.sleep(10 * garbage.GROWTH_EVERY_S)

    assert found() is None
    assert [line["event"] for line in lines] == ["memory has grown: garbage collected among calls"]
    nursery.cancel_scope.cancel()


async def test_memory_is_given_back_again_and_again_whether_or_not_there_are_calls(
    pythons_own_way, autojump_clock, nursery
):
    calls, given = 0, list[float]()
    nursery.start_soon(
        garbage.collect, lambda: calls, lambda: 1_000, lambda: given.append(trio.current_time())
    )
    await trio.sleep(6 * garbage.GIVE_BACK_EVERY_S)
    calls, idle = 5, len(given)
    await trio.sleep(6 * garbage.GIVE_BACK_EVERY_S)

    assert idle >= 4
    assert len(given) - idle >= 4
    nursery.cancel_scope.cancel()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator, which cannot")
def test_what_has_become_free_between_what_stays_is_given_back(tmp_path):
    script = (
        "from server.garbage import give_back\n"
        "def resident_kib(): return next(\n"
        "    int(line.split()[1]) for line in open('/proc/self/status') if 'VmRSS' in line)\n"
        "pieces = [b'x' * 10_000 for _ in range(10_000)]\n"
        "stay = pieces[::50]; del pieces\n"
        "kept_kib = resident_kib(); give_back(); print(kept_kib - resident_kib())"
    )

    assert int(printed_by(script, tmp_path)) > 40_000


def test_giving_memory_back_leaves_nothing_to_the_collector():
    with garbage_kept() as left:
        for _ in range(3):
            garbage.give_back()

    assert left == []


async def test_two_servers_of_one_process_do_not_take_it_from_each_other(pythons_own_way):
    collect = partial(garbage.collect, lambda: 0)
    async with trio.open_nursery() as outer:
        outer.start_soon(collect)
        async with trio.open_nursery() as inner:
            inner.start_soon(collect)
            await wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        assert not gc.isenabled()
        outer.cancel_scope.cancel()


SERVES = {
    "the command": (
        "from server.__main__ import main; from server.commands import serve\n"
        "serve.trio.run = lambda run: 0; main([])"
    ),
    "one of several": (
        "import server.__main__; from server.serving import master\n"
        "master.trio.run = lambda *facts: 0\n"  # which is what member.work comes to
        "try: master.work(None, {}, 2, 0, None)\n"
        "except SystemExit: pass"
    ),
    "hypercorn": "import server.asgi",
}


@pytest.mark.parametrize("start", SERVES.values(), ids=SERVES)
def test_what_a_process_imports_is_never_looked_through(start, tmp_path):
    script = (
        f"import gc; full = gc.get_stats()[2]['collections']; {start}\n"
        "print(gc.get_stats()[2]['collections'] - full, gc.isenabled(), gc.get_freeze_count())"
    )
    collections, is_enabled, frozen = printed_by(script, tmp_path).split()

    assert is_enabled == "True"
    assert int(collections) == 0
    assert int(frozen) > 100_000
