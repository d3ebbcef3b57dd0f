"""The clock that waits for the program, on a real time that is just a number."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio

from server.simulators.clock import PatientClock


@dataclass
class Loop:
    """What trio's loop asks of its clock, and what passes meanwhile."""

    speed: float = 1.0
    real_s: float = 1_000.0
    clock: PatientClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = PatientClock(
            speed=self.speed, patience_s=0.02, read_real_s=lambda: self.real_s
        )
        self.clock.start_clock()

    def work(self, seconds: float) -> float:
        self.real_s += seconds
        return self.clock.current_time()

    def wait(self, deadline: float, *, for_s: float | None = None) -> float:
        """Wait until the deadline, or for so long: something else has ended it, or come between."""
        timeout_s = self.clock.deadline_to_sleep_time(deadline)
        self.real_s += max(0.0, timeout_s) if for_s is None else for_s
        return self.clock.current_time()


def test_on_a_machine_of_its_own_all_time_counts():
    loop = Loop()

    for n in range(100):
        assert loop.wait(0.05 * n + 0.04) == pytest.approx(0.05 * n + 0.04)
        assert loop.work(0.01) == pytest.approx(0.05 * (n + 1))

    assert loop.clock.withheld_s == pytest.approx(0, abs=1e-6)


def test_work_counts_only_so_long_until_there_was_time_to_rest():
    loop = Loop()

    assert loop.work(0.015) == pytest.approx(0.015)
    assert loop.work(3.0) == pytest.approx(0.02)
    assert loop.work(3.0) == pytest.approx(0.02)
    assert loop.clock.withheld_s == pytest.approx(5.995)

    assert loop.wait(0.1) == pytest.approx(0.1)
    assert loop.work(3.0) == pytest.approx(0.12)


def test_a_wait_that_ends_early_counts_but_was_no_rest():
    loop = Loop()
    loop.work(1.0)

    assert loop.wait(5.0, for_s=0.5) == pytest.approx(0.52)
    assert loop.work(1.0) == pytest.approx(0.52)


def test_a_deadline_that_has_passed_is_no_rest():
    loop = Loop()
    loop.work(1.0)

    assert loop.wait(0.01, for_s=0.0) == pytest.approx(0.02)
    assert loop.work(1.0) == pytest.approx(0.02)


def test_whoever_is_woken_late_is_no_later_than_that():
    loop = Loop()

    assert loop.wait(0.1, for_s=2.0) == pytest.approx(0.12)


def test_a_wait_for_something_else_alone_counts():
    loop = Loop()

    assert loop.wait(float("inf"), for_s=3.0) == pytest.approx(3.0)


def test_a_faster_clock_is_patient_in_its_own_seconds():
    loop = Loop(speed=10.0)

    assert loop.clock.deadline_to_sleep_time(5.0) == pytest.approx(0.5)
    assert loop.wait(5.0) == pytest.approx(5.0)
    assert loop.work(1.0) == pytest.approx(5.02)


def test_nobody_is_late_because_of_others_work():
    worked = 0

    async def work() -> None:
        nonlocal worked
        with trio.fail_after(1.0):  # a microsecond
            for _ in range(1_000):
                await trio.lowlevel.checkpoint()
                worked += 1

    trio.run(work, clock=PatientClock(speed=1e6))

    assert worked == 1_000
