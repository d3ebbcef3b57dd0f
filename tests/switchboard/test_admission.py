from __future__ import annotations

import math
import time

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from trio.lowlevel import checkpoint
from trio.testing import wait_all_tasks_blocked

from server.errors import CallRefused
from server.headroom import MemoryState
from server.hooks.trio_clock import pausing_clock
from server.metrics import Metrics
from server.refusal import Kind
from server.settings.settings import Settings
from server.switchboard import admission as admission_module
from server.switchboard.admission import Admission, DialQueue, LagMeter, Limits
from server.switchboard.capacity import SetUp


def make_queue(*, per_s: float = 1.0, max_wait_s: float = 100.0, max_waiting: int = 100):
    return DialQueue(per_s=per_s, max_wait_s=max_wait_s, max_waiting=max_waiting)


def make_admission(**limits) -> Admission:
    return Admission(Limits(**limits), Metrics(CollectorRegistry()))


# ------------------------------------------------------------------------------------------
# The queue, without a clock


def test_the_first_place_is_due_at_once_and_the_next_after_the_interval():
    queue = make_queue(per_s=2.0)
    first = queue.join("a", now=10.0)
    second = queue.join("a", now=10.0)

    assert queue.due_at(first, now=10.0) == 10.0
    assert queue.due_at(second, now=10.0) == 10.5
    queue.take(first, now=10.1)
    assert queue.due_at(second, now=10.1) == 10.6


def test_clients_take_turns():
    queue = make_queue()
    greedy = [queue.join("greedy", 0.0) for _ in range(5)]
    modest = queue.join("modest", 0.0)

    assert [queue.position(place) for place in greedy] == [1, 3, 4, 5, 6]
    assert queue.position(modest) == 2
    queue.take(greedy[0], 0.0)
    again = queue.join("modest", 0.0)
    assert queue.position(modest) == 1
    assert queue.position(again) == 3


def test_a_client_that_asks_for_much_does_not_shut_another_one_out():
    queue = make_queue(max_wait_s=10.0)
    for _ in range(11):
        queue.join("greedy", 0.0)

    with pytest.raises(CallRefused) as refused:
        queue.join("greedy", 0.0)
    assert refused.value.status == 429
    assert refused.value.position == 12
    assert refused.value.retry_after_s == 1.0
    assert queue.position(queue.join("modest", 0.0)) == 2


def test_only_so_many_may_wait():
    queue = make_queue(per_s=1000.0, max_waiting=3)
    for _ in range(3):
        queue.join("a", 0.0)

    with pytest.raises(CallRefused):
        queue.join("b", 0.0)
    assert len(queue) == 3


def test_without_a_rate_everybody_is_due_at_once():
    queue = make_queue(per_s=math.inf)
    places = [queue.join("a", 5.0) for _ in range(100)]

    assert {queue.due_at(place, 5.0) for place in places} == {5.0}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["join", "leave", "take"]))))
def test_positions_are_always_one_to_n_and_every_clients_own_in_order(steps):
    queue = make_queue(max_wait_s=1e9, max_waiting=1_000)
    places = []
    for client, step in steps:
        if step == "join":
            places.append(queue.join(client, 0.0))
        elif places and step == "leave":
            queue.leave(places.pop(len(places) // 2))
        elif places:
            places.remove(first := min(places, key=queue.position))
            queue.take(first, 0.0)

        assert sorted(queue.position(place) for place in places) == list(range(1, len(places) + 1))
        for name in "abc":
            own = [queue.position(place) for place in places if place.client == name]
            assert own == sorted(own)


# ------------------------------------------------------------------------------------------
# Waiting


class Clients:
    """What became of calls that asked for a turn, in order: whose, and after how long."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.began_at = trio.current_time()
        self.turns: list[tuple[str, float]] = []
        self.refused: list[tuple[str, float]] = []

    async def call(self, client: str, scope: trio.CancelScope | None = None) -> None:
        with scope or trio.CancelScope():
            try:
                await self.admission.wait_turn(client)
                self.turns.append((client, round(trio.current_time() - self.began_at, 3)))
            except CallRefused:
                self.refused.append((client, round(trio.current_time() - self.began_at, 3)))


async def test_calls_are_dialled_at_the_carriers_rate(autojump_clock, nursery):
    clients = Clients(make_admission(calls_per_s=2.0))
    for _ in range(4):
        nursery.start_soon(clients.call, "a")
    await trio.sleep(5.0)

    assert clients.turns == [("a", 0.0), ("a", 0.5), ("a", 1.0), ("a", 1.5)]
    assert clients.admission.waiting_count == 0


async def test_a_client_that_goes_away_leaves_its_place_to_the_next(autojump_clock, nursery):
    clients = Clients(make_admission(calls_per_s=1.0))
    await clients.call("first")
    gone = trio.CancelScope()
    nursery.start_soon(clients.call, "gone", gone)
    await wait_all_tasks_blocked()
    nursery.start_soon(clients.call, "next")
    await trio.sleep(0.5)
    gone.cancel()
    await trio.sleep(5.0)

    assert clients.turns == [("first", 0.0), ("next", 1.0)]


async def test_a_wait_that_others_have_made_too_long_ends(autojump_clock, nursery):
    clients = Clients(make_admission(calls_per_s=1.0, max_dial_wait_s=3.0))
    await clients.call("first")
    for client in ("greedy", "greedy", "greedy", "b", "c", "d"):
        nursery.start_soon(clients.call, client)
        await wait_all_tasks_blocked()
    await trio.sleep(10.0)

    assert clients.turns == [("first", 0.0), ("greedy", 1.0), ("b", 2.0), ("c", 3.0)]
    assert clients.refused == [("d", 0.0), ("greedy", 3.0), ("greedy", 3.0)]


# ------------------------------------------------------------------------------------------
# The gates


def refusal(admission: Admission, calls: int = 0, now: float = 0.0) -> str | None:
    try:
        admission.check(calls, now)
    except CallRefused as refused:
        return refused.reason
    return None


def test_lines_and_model_sessions_are_limits_of_their_own():
    admission = make_admission(max_calls=5, max_model_sessions=3)

    assert [refusal(admission, calls) for calls in (2, 3, 4, 5)] == [
        None,
        "model-sessions",
        "model-sessions",
        "full",
    ]


def test_one_slow_step_is_a_hiccup_and_half_of_them_are_a_load():
    meter = LagMeter(samples=5)
    meter.record(2.0)
    meter.record(2.0)
    assert meter.lag_s == 0.0

    meter.record(2.0)
    assert meter.lag_s == 2.0


async def test_an_event_loop_that_is_late_takes_no_more_calls():
    admission = make_admission(max_loop_lag_s=0.05)
    for _ in range(20):
        admission._lag.record(0.2)

    assert refusal(admission) == "overloaded"


async def test_a_pause_is_measured_but_only_lateness_that_stays_is_a_load(nursery):
    registry = CollectorRegistry()
    admission = Admission(Limits(max_loop_lag_s=0.25), Metrics(registry))
    with pausing_clock():
        nursery.start_soon(admission.watch_loop, lambda: 0)
        await measured(registry, 0.0)
        block(1.0)
        await measured(registry, 0.9)
        admission.check(0, trio.current_time())

        with pytest.raises(CallRefused, match="ms late"):
            await overload(admission)


async def overload(admission: Admission) -> None:
    """Be late in every pass until a call is refused for it, or for a minute."""
    with trio.fail_after(60):
        while True:
            block(0.4)
            await checkpoint()
            admission.check(0, trio.current_time())


async def measured(registry: CollectorRegistry, least_s: float) -> None:
    """Wait until the loop was found to be so late in all."""
    while not registry.get_sample_value("offhook_loop_lag_seconds_count") or (  # noqa: ASYNC110
        registry.get_sample_value("offhook_loop_lag_seconds_sum") < least_s
    ):
        await trio.sleep(0.01)


def block(seconds: float) -> None:
    """Hold the loop up, as a task does that computes."""
    time.sleep(seconds)


async def test_the_lag_is_measured(autojump_clock, nursery):
    registry = CollectorRegistry()
    admission = Admission(Limits(), Metrics(registry))
    nursery.start_soon(admission.watch_loop, lambda: 0)
    await trio.sleep(5.0)

    assert registry.get_sample_value("offhook_loop_lag_seconds_count") > 10
    assert registry.get_sample_value("offhook_loop_lag_seconds_sum") == pytest.approx(0.0, abs=1e-6)


def test_after_a_used_up_quota_nothing_is_placed_until_the_model_takes_a_session():
    admission = make_admission(quota_pause_s=60.0)
    admission.account_pause.refused(Kind.QUOTA, now=100.0)

    assert refusal(admission, now=159.0) == "model-quota"
    admission.account_pause.accepted(now=161.0)
    assert refusal(admission, now=161.0) is None


# ------------------------------------------------------------------------------------------
# A carrier that asks to be left alone


async def test_calls_wait_until_the_carrier_takes_them_again(autojump_clock, nursery):
    clients = Clients(make_admission(calls_per_s=1.0))
    clients.admission.pause_dialling(trio.current_time() + 7.0)
    for client in ("a", "b"):
        nursery.start_soon(clients.call, client)
        await wait_all_tasks_blocked()
    await trio.sleep(20.0)

    assert clients.turns == [("a", 7.0), ("b", 8.0)]


async def test_calls_that_wait_already_wait_on(autojump_clock, nursery):
    clients = Clients(make_admission(calls_per_s=1.0))
    await clients.call("first")
    nursery.start_soon(clients.call, "next")
    await trio.sleep(0.5)
    clients.admission.pause_dialling(trio.current_time() + 5.0)
    await trio.sleep(20.0)

    assert clients.turns == [("first", 0.0), ("next", 5.5)]


async def test_calls_that_would_wait_too_long_for_the_carrier_are_told_when_to_come(
    autojump_clock, nursery
):
    admission = make_admission(max_dial_wait_s=3.0, calls_per_s=1.0)
    clients = Clients(admission)
    await clients.call("first")
    nursery.start_soon(clients.call, "next")
    await wait_all_tasks_blocked()
    admission.pause_dialling(trio.current_time() + 60.0)
    with pytest.raises(CallRefused) as refused:
        await admission.wait_turn("another")
    await wait_all_tasks_blocked()

    assert (refused.value.reason, refused.value.status) == ("carrier-busy", 503)
    assert refused.value.retry_after_s == pytest.approx(60.0)
    assert clients.refused == [("next", 0.0)]
    assert admission.waiting_count == 0


async def test_calls_that_come_in_are_taken_meanwhile(autojump_clock):
    admission = make_admission()
    admission.pause_dialling(trio.current_time() + 60.0)

    assert refusal(admission, now=trio.current_time()) is None


async def test_a_shorter_pause_does_not_end_a_longer_one(autojump_clock):
    admission = make_admission(calls_per_s=1.0)
    admission.pause_dialling(trio.current_time() + 10.0)
    admission.pause_dialling(trio.current_time() + 1.0)

    assert admission.dials_in_s(trio.current_time()) == pytest.approx(10.0)


# ------------------------------------------------------------------------------------------
# What there is room for


async def test_a_burst_is_refused_by_how_fast_calls_are_set_up(
    nursery, autojump_clock, monkeypatch
):
    """The loop has no rest: it has worked, or waited for a core, all the time."""
    monkeypatch.setattr("server.switchboard.admission.busy_s", trio.current_time)
    admission = make_admission(max_setup_wait_s=1.0)
    nursery.start_soon(admission.watch_loop, lambda: 0)
    over = []
    for _ in range(60):
        admission.setups.begin(lambda: SetUp.DONE if over else SetUp.GOES_ON, trio.current_time())
    await trio.sleep(0.5)

    with pytest.raises(CallRefused) as refused:
        admission.check(60, trio.current_time())
    over.append(True)
    await trio.sleep(0.2)
    admission.check(0, trio.current_time())

    assert refused.value.reason == "burst"
    assert refused.value.retry_after_s > 0


async def test_how_fast_calls_are_set_up_is_measured_by_the_time_in_the_world(
    nursery, autojump_clock, monkeypatch
):
    """Of ten seconds nine are left out of trio's time, and the loop works all the while."""
    monkeypatch.setattr(admission_module, "missed_s", lambda: 9 * trio.current_time())
    monkeypatch.setattr(admission_module, "busy_s", lambda: 10 * trio.current_time())
    admission = make_admission()
    nursery.start_soon(admission.watch_loop, lambda: 0)
    done: list[bool] = []
    for place in range(500):
        admission.setups.begin(
            lambda place=place: SetUp.DONE if place < len(done) else SetUp.GOES_ON,
            10 * trio.current_time(),
        )
    for _ in range(19):
        await trio.sleep(0.1)
        done += [True] * 20

    assert 15.0 < admission.setups.per_s < 30.0  # twenty a second


@pytest.mark.parametrize("short_of", ["descriptors", "memory"])
async def test_what_the_system_has_not_left_is_a_reason_to_refuse(
    nursery, autojump_clock, monkeypatch, short_of
):
    state = MemoryState(left_bytes=0, used_bytes=0, limit="cgroup")
    if short_of == "memory":
        monkeypatch.setattr("server.switchboard.admission.memory_state", lambda: state)
    else:
        monkeypatch.setattr("server.switchboard.admission.lowest_free_descriptor", lambda: None)
    admission = make_admission(descriptors=192)
    admission.check(0, trio.current_time())
    nursery.start_soon(admission.watch_loop, lambda: 0)
    await trio.sleep(0.5)

    with pytest.raises(CallRefused) as refused:
        admission.check(0, trio.current_time())

    assert refused.value.reason == short_of


def test_no_more_calls_are_taken_than_there_are_descriptors_for(monkeypatch):
    monkeypatch.setattr("server.switchboard.admission.descriptors_for_all", lambda: 192)
    monkeypatch.setattr("server.switchboard.admission.lowest_free_descriptor", lambda: 46)
    few, many = Settings(None, max_calls=20), Settings(None, max_calls=100)

    assert Limits.of(few, is_simulated=True, processes=1).max_calls == 20
    assert Limits.of(many, is_simulated=True, processes=1).max_calls == 70
    assert Limits.of(many, is_simulated=True, processes=2).max_calls == 100


def test_with_other_machines_lines_and_rate_are_the_whole_servers(monkeypatch):
    monkeypatch.setattr("server.switchboard.admission.descriptors_for_all", lambda: 192)
    monkeypatch.setattr("server.switchboard.admission.lowest_free_descriptor", lambda: 46)
    settings = Settings(None, max_calls=1000, calls_per_s=5.0)

    limits = Limits.of(settings, is_simulated=False, processes=2, has_nodes=True)

    assert (limits.max_calls, limits.calls_per_s) == (1000, 5.0)
    assert Limits.of(settings, is_simulated=False, processes=2).calls_per_s == 2.5
