"""A loop that stands still is seen, counted and told of: with real steps, real threads, real time.

A busy machine takes the core away from whoever is tested, which is a cause of its own. So a step
here goes on until it was seen, and the numbers are held against what the step itself has measured.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from codec.beat import AVAILABLE, LATE_S, Beat
from server.logs import authors
from server.logs.authors import HELD_S, Held
from server.metrics import StallMetrics
from server.stalls import cause as cause_module
from server.stalls.cause import Cause, Stall, cause_of
from server.stalls.watch import Watch

CAUSES = [cause.value for cause in cause_module.Cause]
ROOT = Path(__file__).parents[2]
ROOM = 256
"""Late steps that a beat keeps until somebody takes them."""

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Linux")


@contextmanager
def beating() -> Generator[tuple[Beat, list[int]]]:
    """A beat of this thread, and the steps that its watching thread finds late."""
    beat, late = Beat(), list[int]()

    def look() -> None:
        while (step := beat.watch()) >= 0:
            late.append(step)

    beat.begin()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield beat, late
    finally:
        beat.close()
        thread.join()


def taken(beat: Beat, last: int) -> dict[int, list[float]]:
    """What is known of late steps, by number, once that is all of it for this one."""
    found: dict[int, list[float]] = {}
    while last not in found:
        found |= {step: rest for step, *rest in beat.take()}
        time.sleep(0.001)
    return found


def test_a_step_that_runs_is_late_and_what_it_ran_is_counted():
    with beating() as (beat, late):
        beat.after_task_step(None)
        step, began, ran = beat.step, time.perf_counter(), time.thread_time()
        while step not in late:
            sum(range(1_000))
        ran_s = time.thread_time() - ran
        took_s = time.perf_counter() - began
        beat.after_task_step(None)
        found = taken(beat, step)

    late_s, counted_s, waited_s, _, collected_s = found[step]
    assert late_s >= took_s >= LATE_S
    assert counted_s >= ran_s
    assert waited_s >= 0.0
    assert collected_s == 0.0


def test_a_step_that_waits_is_looked_at_again_while_it_goes_on():
    with beating() as (beat, late):
        beat.after_task_step(None)
        step = beat.step
        while late.count(step) < 3:
            time.sleep(0.01)

        assert late.count(step) == 3
        assert late[-1] == step


def test_a_wait_is_late_from_when_it_was_to_end():
    with beating() as (beat, _):
        began = time.perf_counter()
        beat.before_io_wait(0.1)
        step = beat.step
        time.sleep(0.2)
        beat.after_io_wait(0.0)
        took_s = time.perf_counter() - began
        found = taken(beat, step)

    assert LATE_S <= found[step][0] <= took_s - 0.1


def test_a_wait_that_something_ends_before_its_time_is_not_late():
    with beating() as (beat, late):
        beat.before_io_wait(3_600.0)
        step = beat.step
        time.sleep(0.05)
        beat.after_io_wait(0.0)
        beat.before_io_wait(3_600.0)

    assert step not in late
    assert step not in [number for number, *_ in beat.take()]


def test_what_was_collected_in_a_step_is_its_own():
    with beating() as (beat, _):
        beat.after_task_step(None)
        beat.collects("start", {})
        time.sleep(0.02)
        beat.collects("stop", {})
        first = beat.step
        beat.after_task_step(None)
        time.sleep(0.02)
        second = beat.step
        beat.after_task_step(None)
        found = taken(beat, second)

    assert found[first][-1] >= 0.02
    assert found[second][-1] == 0.0


def test_of_late_steps_that_nobody_takes_the_first_are_kept():
    with beating() as (beat, _):
        for _ in range(ROOM + 20):
            beat.after_task_step(None)
            time.sleep(LATE_S)
        beat.after_task_step(None)
        numbers: list[int] = []
        while len(numbers) < ROOM:
            numbers += [step for step, *_ in beat.take()]
            time.sleep(0.001)

        time.sleep(LATE_S)
        last = beat.step
        beat.after_task_step(None)
        after = taken(beat, last)

    assert numbers == sorted(set(numbers))
    assert len(numbers) == ROOM
    assert list(after) == [last]


def test_a_beat_that_nobody_has_begun_counts_nothing():
    beat = Beat()
    beat.before_io_wait(1.0)
    beat.after_io_wait(1.0)
    beat.after_task_step(None)

    assert (beat.step, beat.take()) == (0, [])


def test_the_garbage_collector_tells_a_beat():
    rings: list[list] = [[] for _ in range(100_000)]
    for ring in rings:
        ring.append(ring)
    with beating() as (beat, late):
        gc.callbacks.append(beat.collects)
        try:
            beat.after_task_step(None)
            step, ran = beat.step, time.thread_time()
            while step not in late:
                gc.collect()
            ran_s = time.thread_time() - ran
            beat.after_task_step(None)
        finally:
            gc.callbacks.remove(beat.collects)
        found = taken(beat, step)

    assert found[step][-1] >= ran_s / 2
    assert len(rings) == 100_000


AWAKES_AND_IS_STOPPED = """
import json, os, signal, sys, threading, time
from codec.beat import LATE_S, Beat

def look():
    # It gets the core when the loop's thread leaves it, and not as soon as it is rung for.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    while beat.watch() >= 0:
        pass

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
beat = Beat()
beat.begin()
thread = threading.Thread(target=look)
thread.start()
for _ in range(int(sys.argv[1])):
    beat.before_io_wait(3_600.0)
    time.sleep(10 * LATE_S)  # until the thread sleeps, too
    beat.after_io_wait(0.0)
    step = beat.step
    os.kill(os.getpid(), signal.SIGSTOP)
    beat.after_task_step(None)
    found = {}
    while step not in found:
        found |= {number: rest for number, *rest in beat.take()}
        time.sleep(0.001)
    print(json.dumps(found[step]))
beat.close()
thread.join()
"""


def stopped_as_it_awakes(times: int) -> list[Stall]:
    """What is known of steps at whose very beginning the whole process was stopped for a while."""
    command = [sys.executable, "-c", AWAKES_AND_IS_STOPPED, str(times)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            while os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1]):
                time.sleep(10 * LATE_S)
                process.send_signal(signal.SIGCONT)
        finally:
            process.kill()
        said, _ = process.communicate()
    return [Stall(*json.loads(line)) for line in said.splitlines()]


@pytest.mark.slow
def test_a_pause_that_begins_as_the_loop_awakes_is_nobodys_code():
    stalls = stopped_as_it_awakes(15)

    # On a busy machine the thread may be on its way to a look, and then knows nothing of a pause.
    assert len(stalls) == 15
    assert Cause.STARVED in map(cause_of, stalls)


class Watched:
    """A watch, and what it has counted."""

    def __init__(self) -> None:
        self.metrics = StallMetrics(CollectorRegistry())
        self.watch = Watch(self.metrics, say_every_s=0.0)  # others may be late, too

    def seconds(self, *causes: str) -> float:
        """How many seconds of stalls with these causes there were."""
        return sum(self.metrics.seconds.labels(cause)._value.get() for cause in causes)

    def until_seen(self, go_on: Callable[[], object]) -> list[str]:
        """Go on within one step of the loop until it was seen here; returns where."""
        step = self.watch.beat.step
        while "until_seen" not in str(self.watch.at(step)):
            go_on()
        return self.watch.at(step)

    async def wait_counted(self, *causes: str, least_s: float = LATE_S) -> None:
        """Wait until so many seconds were counted for these causes."""
        while self.seconds(*causes) < least_s:  # noqa: ASYNC110 - counted once a second
            await trio.sleep(0.05)


@pytest.fixture
async def watched(nursery):
    watched = Watched()
    nursery.start_soon(watched.watch.run, lambda: 1)
    await wait_all_tasks_blocked()
    return watched


def burn() -> int:
    return sum(range(10_000))


def sit() -> None:
    time.sleep(0.05)


@pytest.mark.parametrize("go_on", [burn, sit, gc.collect])
async def test_what_keeps_the_loop_is_seen_and_counted(watched, go_on):
    began = time.perf_counter()
    at = watched.until_seen(go_on)
    took_s = time.perf_counter() - began

    await watched.wait_counted(*CAUSES, least_s=took_s)
    assert any(place.startswith("stalls/test_watch.py:") for place in at)


async def test_a_call_that_blocks_is_not_taken_for_code(watched):
    began = time.perf_counter()
    watched.until_seen(sit)
    took_s = time.perf_counter() - began

    await watched.wait_counted("blocked", "starved", least_s=took_s)


async def test_the_log_says_where_the_loop_stood(watched, monkeypatch):
    monkeypatch.setattr(cause_module, "SAY_FROM_S", 0.02)

    def told() -> list[dict]:
        return [line for line in lines if "until_seen" in str(line.get("at"))]

    with capture_logs() as lines:
        while not told():  # one that had no core is no line
            watched.until_seen(sit)
            await trio.sleep(0.2)

    line = told()[0]
    assert (line["event"], line["log_level"]) == ("the event loop stood still", "warning")
    assert line["cause"] in CAUSES
    assert line["late_ms"] >= 20
    assert line["unlogged"] == 0


async def test_a_stack_is_not_looked_at_where_its_thread_could_go_on_meanwhile(
    watched, monkeypatch
):
    asked: list[bool] = []

    def is_gil_enabled() -> bool:
        asked.append(False)
        return False

    monkeypatch.setattr(sys, "_is_gil_enabled", is_gil_enabled, raising=False)
    step = watched.watch.beat.step
    while len(asked) < 2:  # after the first look it has had time for a second
        sit()

    assert watched.watch.at(step) == []
    await watched.wait_counted(*CAUSES)


async def test_without_calls_nobody_is_told(nursery, monkeypatch):
    monkeypatch.setattr(cause_module, "SAY_FROM_S", 0.0)
    watched = Watched()
    nursery.start_soon(watched.watch.run, lambda: 0)
    await wait_all_tasks_blocked()

    with capture_logs() as lines:
        watched.until_seen(sit)
        await watched.wait_counted(*CAUSES)

    assert lines == []


async def test_an_author_is_told_where_the_function_stood_and_the_log_no_second_time(
    watched, monkeypatch
):
    monkeypatch.setattr(cause_module, "SAY_FROM_S", 0.0)

    async def look_up() -> None:
        time.sleep(HELD_S)  # noqa: ASYNC251 - the very thing
        watched.until_seen(sit)

    with capture_logs() as lines:
        await trio.lowlevel.checkpoint()
        step = watched.watch.beat.step
        await Held("look_up").watch(look_up())
        assert watched.watch.beat.step == step  # one step, of which there could be two lines
        await watched.wait_counted("blocked", "starved", least_s=HELD_S)

    told = [line["event"] for line in lines if "look_up" in str(line.get("at"))]
    assert told == ["a function held up every call"]


def watching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "offhook-stalls"]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nothing_is_left_of_a_watch():
    gc.collect()
    callbacks, descriptors = list(gc.callbacks), open_descriptors()
    watched = Watched()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.watch.run, lambda: 1)
        await wait_all_tasks_blocked()
        assert len(gc.callbacks) == len(callbacks) + 1
        (thread,) = watching_threads()
        nursery.cancel_scope.cancel()

    assert not thread.is_alive()
    assert gc.callbacks == callbacks
    assert authors.where is None
    del watched
    gc.collect()
    assert open_descriptors() == descriptors


async def test_servers_of_one_process_watch_its_loop_one_after_the_other(nursery):
    first, second = Watched(), Watched()
    async with trio.open_nursery() as earlier:
        earlier.start_soon(first.watch.run, lambda: 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(second.watch.run, lambda: 1)
        first.until_seen(sit)
        await first.wait_counted(*CAUSES)
        assert second.seconds(*CAUSES) == 0.0
        assert len(watching_threads()) == 1
        earlier.cancel_scope.cancel()

    while not second.watch.beat.step:  # noqa: ASYNC110 - it looks once a second
        await trio.sleep(0.05)
    second.until_seen(sit)
    await second.wait_counted(*CAUSES)


async def test_a_watch_whose_thread_has_ended_says_so_and_can_begin_again(nursery):
    watched = Watched()
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="the thread has ended")):
        async with trio.open_nursery() as failing:
            failing.start_soon(watched.watch.run, lambda: 1)
            await wait_all_tasks_blocked()
            watched.watch.beat.close()

    nursery.start_soon(watched.watch.run, lambda: 1)
    await wait_all_tasks_blocked()
    watched.until_seen(sit)
    await watched.wait_counted(*CAUSES)
