"""trio's clock stands while our loop is late: first what waits is read, then time goes on."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest
import structlog
import trio
import trio.testing
from trio.abc import Clock
from trio.lowlevel import checkpoint, current_clock

from codec.path import WebSocket
from codec.pump import READY_PER_PASS
from server.hooks import trio_clock
from server.hooks.trio_clock import (
    PASSES,
    STEP_S,
    PausingClock,
    missed_s,
    pausing_clock,
    steady_time,
    tell_of_pauses,
    told_of_pauses,
)
from server.media import plane as plane_module
from server.media.plane import Plane
from server.media.words import Messages

LATE_S = STEP_S + 0.2


def hold_up(seconds: float) -> None:
    """Do what SIGSTOP does to the loop."""
    time.sleep(seconds)


class Loop:
    """What trio does with a clock, and a real time that only the test moves."""

    def __init__(self) -> None:
        self.real_s = 100.0
        self.clock = PausingClock(read_real_s=lambda: self.real_s)

    def sleep(self, planned_s: float, real_s: float) -> float:
        """Go through one pass's wait; returns the time by which deadlines are judged."""
        self.clock.before_io_wait(planned_s)
        self.real_s += real_s
        self.clock.after_io_wait(planned_s)
        return self.clock.current_time()

    def read_what_waits(self, passes: int = PASSES, each_s: float = 0.001) -> float:
        """Go through the passes in which the clock stands."""
        for _ in range(passes):
            assert self.clock.deadline_to_sleep_time(1e9) == 0.0, "it would sleep before it reads"
            self.sleep(0.0, each_s)
        return self.clock.current_time()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_time_is_real_as_long_as_the_loop_keeps_up(loop):
    for planned_s, real_s in ((1.0, 1.0), (1.0, 0.2), (0.0, 0.01), (1.0, 1.0 + STEP_S / 2)):
        assert loop.sleep(planned_s, real_s) == loop.real_s

    loop.real_s += STEP_S / 2  # work
    assert loop.clock.current_time() == loop.real_s
    assert loop.clock.missed_s == 0.0


def test_a_pause_in_a_sleep_counts_for_no_more_than_the_sleep_and_a_step(loop):
    deadline = loop.real_s + 1.0

    assert loop.sleep(1.0, 7.0) < deadline
    assert loop.read_what_waits() == pytest.approx(deadline + STEP_S)
    assert loop.clock.missed_s == pytest.approx(6.0 - STEP_S + PASSES * 0.001)


def test_no_deadline_is_reached_before_what_waits_was_read(loop):
    deadline = loop.real_s + 1.0
    loop.sleep(1.0, 7.0)

    assert loop.read_what_waits(PASSES - 1) < deadline
    assert loop.read_what_waits(1) > deadline


def test_what_is_read_after_a_pause_has_come_after_the_sleep_and_not_before(loop):
    began = loop.real_s

    heard_at = loop.sleep(3.9, 10.0)

    assert heard_at == pytest.approx(began + 3.9)
    assert loop.read_what_waits() - heard_at == pytest.approx(STEP_S, abs=1e-5)


def test_a_pause_in_the_middle_of_work_counts_for_nothing_until_what_waits_was_read(loop):
    loop.sleep(0.0, 0.0)
    judged_at = loop.clock.current_time()

    loop.real_s += 6.0

    assert loop.clock.current_time() == judged_at
    assert loop.clock.deadline_to_sleep_time(judged_at + 5.0) == 0.0
    assert loop.read_what_waits(PASSES - 1) == judged_at
    assert loop.read_what_waits(1) == pytest.approx(judged_at + STEP_S)


def test_a_pause_while_what_waits_is_read_is_missed_like_any_other(loop):
    loop.sleep(1.0, 7.0)
    before = loop.clock.current_time()

    assert loop.read_what_waits(3, each_s=5.0) == before
    assert loop.read_what_waits(2, each_s=5.0) == pytest.approx(before + STEP_S, abs=1e-5)


def test_time_goes_on_however_late_every_pass_is(loop):
    before = loop.clock.current_time()

    for _ in range(1000):
        loop.sleep(0.01, 10.0)

    assert loop.clock.current_time() - before > 10.0


@pytest.mark.parametrize("pass_s", [0.11, 0.15, 0.3, 0.5, 0.9])
def test_under_a_lasting_load_time_goes_on_as_the_work_does(loop, pass_s):
    began, real_began = loop.clock.current_time(), loop.real_s

    while loop.real_s - real_began < 30.0:
        loop.sleep(0.0, pass_s)

    assert loop.clock.current_time() - began > 0.85 * (loop.real_s - real_began)


def test_under_a_load_whose_passes_differ_it_does_too(loop):
    began, real_began = loop.clock.current_time(), loop.real_s

    for pass_s in (0.12, 0.2, 0.35, 0.5, 0.7, 0.3) * 20:
        loop.sleep(0.0, pass_s)

    assert loop.clock.current_time() - began > 0.85 * (loop.real_s - real_began)


@pytest.mark.parametrize("quick", [1, PASSES - 1, PASSES + 1, 4 * PASSES])
def test_a_load_that_is_in_some_of_the_passes_alone_is_one_too(loop, quick):
    began, real_began = loop.clock.current_time(), loop.real_s

    while loop.real_s - real_began < 30.0:
        loop.sleep(0.0, 0.15)
        for _ in range(quick):
            loop.sleep(0.0, 0.01)

    assert loop.clock.current_time() - began > 0.85 * (loop.real_s - real_began)


def test_what_waits_after_a_pause_under_a_load_is_read_first_as_well(loop):
    for _ in range(20):
        loop.sleep(0.0, 0.15)
    before = loop.clock.current_time()

    assert loop.sleep(1.0, 7.0) < before + 1.0
    assert loop.read_what_waits(4, each_s=0.15) < before + 1.0
    assert loop.read_what_waits(1, each_s=0.15) < before + 1.5


def test_a_pause_of_less_than_a_second_is_told_from_a_load_of_shorter_passes(loop):
    for _ in range(20):
        loop.sleep(0.0, 0.15)

    loop.sleep(0.0, 0.5)

    assert loop.clock.stands


def test_a_load_that_is_over_is_forgotten(loop):
    for _ in range(20):
        loop.sleep(0.0, 0.15)
    for _ in range(30):
        loop.sleep(0.1, 0.1)
    before = loop.clock.current_time()

    loop.sleep(0.0, 0.3)

    assert loop.clock.stands
    assert loop.read_what_waits() == pytest.approx(before + STEP_S, abs=1e-5)


@pytest.mark.parametrize(("runs_s", "stops_s"), [(0.3, 0.3), (0.01, 0.3), (0.1, 0.9), (0.2, 8.0)])
def test_however_often_it_stops_time_is_never_faster_than_real_and_never_goes_back(
    loop, runs_s, stops_s
):
    began, told = loop.real_s, loop.clock.current_time()
    stops_at = loop.real_s + runs_s

    for _ in range(5000):
        real_s = 0.002
        if loop.real_s >= stops_at:
            real_s += stops_s
            stops_at = loop.real_s + real_s + runs_s
        loop.sleep(0.001, real_s)
        now = loop.clock.current_time()
        assert told <= now <= loop.real_s
        told = now

    passed_s = loop.clock.current_time() - began
    assert passed_s + loop.clock.missed_s == pytest.approx(
        loop.real_s - began, abs=2 * (stops_s + STEP_S)
    )


def test_whoever_wants_to_know_is_told_of_each_pause_once_before_anything_is_read(loop):
    told: list[float] = []
    loop.clock.on_pause.append(lambda: told.append(loop.clock.current_time()))
    judged_at = loop.sleep(1.0, 1.0)

    loop.real_s += 7.0

    assert loop.clock.current_time() == judged_at
    assert told == [judged_at]
    loop.read_what_waits()
    assert told == [judged_at]
    loop.sleep(1.0, 7.0)
    assert len(told) == 2


def test_who_fails_at_being_told_of_a_pause_fails_nobody_who_asks_for_the_time(loop):
    told: list[str] = []
    loop.clock.on_pause += [lambda: 1 // 0, lambda: told.append("told")]

    with structlog.testing.capture_logs() as lines:
        loop.sleep(1.0, 7.0)

    assert told == ["told"]
    assert [line["log_level"] for line in lines] == ["error"]


def test_a_deadline_set_for_the_past_meanwhile_is_judged_at_once(loop):
    loop.sleep(1.0, 7.0)

    assert loop.clock.deadline_to_sleep_time(loop.clock.current_time()) <= 0.0


# -- in trio -------------------------------------------------------------------------------


async def test_this_trio_takes_the_clock_and_gets_its_own_back_without_a_jump():
    ordinary = current_clock()
    with pausing_clock() as clock:
        assert clock is not None, "not the trio that trio_clock.py was written for"
        assert current_clock() is clock
        await checkpoint()
        hold_up(LATE_S)
        await checkpoint()
        before = trio.current_time()

    assert type(current_clock()) is type(ordinary)
    assert trio.current_time() - before < LATE_S
    with trio.fail_after(60):
        await trio.sleep(0.001)


async def test_what_came_during_a_pause_is_read_before_any_deadline():
    with pausing_clock():
        ours, theirs = trio.socket.socketpair()
        send, receive = trio.open_memory_channel[bytes](0)

        async def read() -> None:  # what passes it on is a layer of its own
            await send.send(await ours.recv(10))

        with ours, theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                await theirs.send(b"here")
                hold_up(LATE_S + 0.2)
                with trio.fail_after(STEP_S / 100):
                    # Its time had been over long before, by any other clock.
                    hold_up(LATE_S)
                    assert await receive.receive() == b"here"

        await trio.sleep(STEP_S)
        assert missed_s() > 0.0


async def test_who_no_longer_wants_to_be_told_of_pauses_is_not():
    told: list[float] = []

    with pausing_clock():
        with told_of_pauses(lambda: told.append(missed_s())):
            await checkpoint()
            hold_up(LATE_S)
            await checkpoint()
            for _ in range(PASSES + 1):
                await checkpoint()
        hold_up(LATE_S)
        await checkpoint()

    assert len(told) == 1
    assert told[0] > 0.0


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(300)]
    for ours, _ in made:
        ours.setblocking(False)
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


async def test_three_hundred_tasks_hear_what_waited_before_their_deadlines(pairs):
    heard = 0

    async def hear(sock: socket.socket) -> None:
        nonlocal heard
        with trio.fail_after(1.0):
            await trio.lowlevel.wait_readable(sock)
            sock.recv(10)
            await checkpoint()
        heard += 1

    with pausing_clock():
        async with trio.open_nursery() as nursery:
            for ours, _ in pairs:
                nursery.start_soon(hear, ours)
            await trio.testing.wait_all_tasks_blocked()
            for _, theirs in pairs:
                theirs.send(b"x")
            hold_up(1.2)

    assert heard == len(pairs)


@pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll")
async def test_more_sockets_than_a_pass_of_the_plane_serves_are_read_before_any_deadline(pairs):
    heard = 0

    def hear(messages: Messages, ended: bool) -> None:
        nonlocal heard
        heard += len(messages)

    plane = Plane()
    with pausing_clock():
        async with trio.open_nursery() as nursery:
            await nursery.start(plane.run)
            for ours, theirs in pairs:
                wire = plane.new_wire(ours, WebSocket(is_client=False, max_message_bytes=1024))
                wire.listen(hear)
                theirs.send(b"\x81\x81\0\0\0\0x")
            with trio.move_on_after(0.5):
                hold_up(1.0)
                await trio.sleep_forever()
            heard_in_time = heard
            nursery.cancel_scope.cancel()

    assert len(pairs) > READY_PER_PASS
    assert heard_in_time == len(pairs)


async def test_a_deadline_whose_time_was_slept_through_comes_as_ever():
    with pausing_clock():
        with trio.move_on_after(0.01) as scope:
            await trio.sleep_forever()

        assert scope.cancelled_caught
        assert missed_s() == 0.0


async def test_the_world_s_time_is_told_from_a_clock_of_the_tests():
    with pausing_clock() as clock:
        assert clock is not None
        await checkpoint()
        hold_up(LATE_S)
        stands = steady_time()

    assert stands is None
    assert steady_time() is not None


async def test_servers_of_one_process_share_it_and_the_last_one_takes_it_out():
    with pausing_clock() as first:
        with pausing_clock() as second:
            assert second is first
        assert current_clock() is first

    assert current_clock() is not first


async def test_a_clock_of_the_tests_is_left_alone(autojump_clock):
    with pausing_clock() as clock:
        await trio.sleep(3600)

        assert clock is None
        assert current_clock() is autojump_clock
        assert missed_s() == 0.0
        assert steady_time() is None


class NobodyKnows(Clock):
    """What another trio might have for its own clock."""

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return time.perf_counter()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()


def test_where_trio_is_not_as_expected_that_is_said_and_all_goes_on(monkeypatch):
    async def main() -> None:
        monkeypatch.setattr(trio_clock._run, "SystemClock", NobodyKnows)
        with structlog.testing.capture_logs() as logs, pausing_clock() as clock:
            await trio.sleep(0.001)
        assert clock is None
        assert [line["log_level"] for line in logs] == ["warning"]

    trio.run(main, clock=NobodyKnows())


async def test_pauses_are_counted_and_said_once_for_a_while(nursery, monkeypatch):
    monkeypatch.setattr(trio_clock, "TELL_EVERY_S", 0.05)
    monkeypatch.setattr(trio_clock, "TOLD_FROM_S", 0.5)
    counted: list[float] = []
    told = trio.Event()

    def count(paused_s: float) -> None:
        counted.append(paused_s)
        told.set()

    with structlog.testing.capture_logs() as logs, pausing_clock():
        nursery.start_soon(partial(tell_of_pauses, count))
        await trio.testing.wait_all_tasks_blocked()
        hold_up(STEP_S + 1.0)
        with trio.fail_after(60):
            await told.wait()
        nursery.cancel_scope.cancel()

    assert counted[0] == pytest.approx(1.0, abs=0.5)
    assert [line["event"] for line in logs] == ["the process was held up"]
