"""How many more calls a process can take: decisions, without a clock."""

from __future__ import annotations

import math

import pytest

from server.errors import CallRefused
from server.switchboard.capacity import (
    CALL_BYTES,
    DESCRIPTORS_PER_SETUP,
    LOOKS,
    OURS_FOR_S,
    RESERVED_BYTES,
    TAKEOVER_RESERVED_BYTES,
    USUAL_CALL_BYTES,
    USUAL_PER_S,
    Room,
    SetUp,
    SetUps,
    fitting_calls,
)

MIB = 1024 * 1024


class Loop:
    """An event loop that is busy, and calls whose set-up ends when it is told to."""

    def __init__(self, max_wait_s: float = 4.0) -> None:
        self.setups = SetUps(max_wait_s)
        self.now = self.busy_s = 100.0
        self.setting_up: list[list[SetUp]] = []
        self.setups.look(self.now, self.busy_s)

    def begin(self, count: int) -> None:
        for _ in range(count):
            state = [SetUp.GOES_ON]
            self.setting_up.append(state)
            self.setups.begin(lambda state=state: state[0], self.now)

    def goes_on(
        self, seconds: float, *, done: int = 0, share: float = 1.0, become: SetUp = SetUp.DONE
    ) -> None:
        for state in self.setting_up[:done]:
            state[0] = become
        del self.setting_up[:done]
        self.now += seconds
        self.busy_s += seconds * share
        self.setups.look(self.now, self.busy_s)


def test_calls_come_in_as_long_as_the_next_would_not_wait_long():
    loop = Loop(max_wait_s=4.0)
    loop.begin(199)
    loop.goes_on(0.001)

    assert loop.setups.per_s == pytest.approx(USUAL_PER_S, rel=0.01)
    loop.setups.check()
    loop.begin(2)
    with pytest.raises(CallRefused, match="201 calls are being set up") as refused:
        loop.setups.check()

    assert refused.value.reason == "burst"
    assert refused.value.status == 503
    assert refused.value.retry_after_s >= 1.0


def test_a_slow_machine_takes_fewer():
    loop = Loop()
    loop.begin(80)
    for _ in range(50):
        loop.goes_on(0.1, done=1)
        loop.begin(1)

    assert 8.0 < loop.setups.per_s < 20.0  # ten a second
    with pytest.raises(CallRefused):
        loop.setups.check()


def test_a_fast_one_takes_more():
    loop = Loop()
    loop.begin(250)
    for _ in range(50):
        loop.goes_on(0.1, done=20)
        loop.begin(20)

    assert loop.setups.per_s > 130.0
    loop.setups.check()


def test_what_waits_for_somebody_else_is_no_reason_to_refuse():
    loop = Loop()
    loop.begin(1_000)
    loop.goes_on(0.1, share=0.5)

    loop.setups.check()
    assert loop.setups.wait_s == 0.0
    assert len(loop.setups) == 1_000


def test_what_was_measured_is_forgotten_in_time():
    loop = Loop()
    loop.begin(500)
    for _ in range(50):
        loop.goes_on(0.1, done=1)
    assert loop.setups.per_s < 20.0

    loop.goes_on(60.0, share=0.1)

    assert loop.setups.per_s == pytest.approx(USUAL_PER_S, rel=0.01)


def test_calls_that_left_before_they_were_set_up_do_not_make_us_look_fast():
    loop = Loop()
    loop.begin(250)
    for _ in range(50):
        loop.goes_on(0.1, done=20, become=SetUp.LEFT)
        loop.begin(20)

    assert loop.setups.per_s < 10.0
    with pytest.raises(CallRefused):
        loop.setups.check()


def test_calls_that_are_set_up_for_too_long_do_not_either():
    loop = Loop()
    loop.begin(1_000)
    for _ in range(int(OURS_FOR_S / 0.1) + 1):
        loop.goes_on(0.1)

    assert len(loop.setups) == 0
    assert loop.setups.per_s < USUAL_PER_S / 2


def test_a_call_whose_stream_never_comes_is_counted_no_longer():
    loop = Loop()
    loop.begin(1)
    loop.goes_on(OURS_FOR_S - 0.1)
    assert len(loop.setups) == 1

    loop.goes_on(0.1)

    assert len(loop.setups) == 0


# ------------------------------------------------------------------------------------------
# What calls need


def test_calls_fit_into_the_descriptors_there_are():
    assert fitting_calls(None, 40, records_calls=True) == math.inf
    assert fitting_calls(192, 46, records_calls=False) == 70
    assert fitting_calls(192, 46, records_calls=True) == 46
    assert fitting_calls(10, 46, records_calls=True) == 1


def test_a_call_is_refused_before_descriptors_run_out():
    room = Room(100)
    for _ in range(LOOKS):
        room.see_descriptors(100 - DESCRIPTORS_PER_SETUP)
    room.check(0)

    with pytest.raises(CallRefused, match="ulimit -n") as refused:
        room.check(1)  # another one has not opened all that it needs
    assert refused.value.reason == "descriptors"

    for _ in range(LOOKS):
        room.see_descriptors(None)
    with pytest.raises(CallRefused):
        room.check(0)


def test_descriptors_that_are_short_for_a_moment_refuse_nobody():
    room = Room(100)
    for _ in range(2 * LOOKS):
        room.see_descriptors(10)
    for _ in range(LOOKS - 1):
        room.see_descriptors(None)

    room.check(0)


def test_a_call_is_refused_before_memory_runs_out():
    room = Room()
    room.see_memory(RESERVED_BYTES + 2 * USUAL_CALL_BYTES, 50 * MIB, "cgroup", 0)
    room.check(0)
    room.check(1)

    with pytest.raises(CallRefused, match="the cgroup's limit") as refused:
        room.check(2)
    assert refused.value.reason == "memory"


def test_a_call_that_has_lost_its_process_has_room_where_a_new_one_has_none():
    room = Room()
    room.see_memory(TAKEOVER_RESERVED_BYTES + USUAL_CALL_BYTES, 50 * MIB, "cgroup", 0)
    with pytest.raises(CallRefused):
        room.check(0)
    room.check(0, reserved_bytes=TAKEOVER_RESERVED_BYTES)

    with pytest.raises(CallRefused):
        room.check(1, reserved_bytes=TAKEOVER_RESERVED_BYTES)


def call_bytes(room: Room) -> int:
    """What one call is taken to need."""
    return room._call_bytes


def test_what_a_call_needs_is_measured():
    room = Room()
    room.see_memory(1_000 * MIB, 50 * MIB, "system", 0)
    room.see_memory(1_000 * MIB, 90 * MIB, "system", 10)
    assert call_bytes(room) == USUAL_CALL_BYTES  # too few to tell

    room.see_memory(1_000 * MIB, 250 * MIB, "system", 100)
    assert call_bytes(room) == 2 * MIB

    room.see_memory(1_000 * MIB, 51 * MIB, "system", 100)
    assert call_bytes(room) == CALL_BYTES[0]


def test_memory_that_ended_calls_have_left_behind_is_not_what_those_who_stay_need():
    room = Room()
    room.see_memory(1_000 * MIB, 50 * MIB, "system", 0)
    room.see_memory(1_000 * MIB, 350 * MIB, "system", 300)
    at_most = call_bytes(room)

    room.see_memory(1_000 * MIB, 350 * MIB, "system", 20)
    assert call_bytes(room) == at_most == MIB

    room.see_memory(1_000 * MIB, 80 * MIB, "system", 20)
    assert call_bytes(room) == at_most


def test_where_nothing_is_known_nobody_is_refused():
    Room().check(1_000)
