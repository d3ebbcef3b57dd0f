"""When a session leaves a connection, and how it goes on: no socket, no clock."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from server.errors import ModelError
from server.model import Way
from server.model.gemini.faults import account_refused
from server.model.lasting.plan import (
    FIRST_PATIENCE_S,
    LONGEST_SPREAD_S,
    MAX_DELAY_S,
    REDIALS_AT_ONCE,
    ConnectionPlan,
    State,
    new_redials,
)
from server.refusal import Kind
from tests.support.lasting_inputs import (
    DROPPED,
    INTERNAL,
    QUOTA,
    REFUSED,
    UNREADABLE,
    USED_UP,
    closed_with,
)


def yes() -> bool:
    return True


def no() -> bool:
    return False


def opened_plan(handle: str | None = "h1", **options: Any) -> ConnectionPlan:
    """A plan whose first connection is open since 0, and works."""
    plan = ConnectionPlan(0.0, **({"jitter": lambda: 0.5} | options))
    plan.begin()
    plan.opened(0.0)
    plan.note_answer()
    plan.note_handle(handle)
    return plan


# --- Leaving


def test_a_connection_is_left_at_about_its_age_and_in_a_silence() -> None:
    plan = opened_plan(connection_age_s=540.0)
    assert plan.wakes_at(0.0) == pytest.approx(513.0)  # halfway between nine tenths of it and all

    plan.tick(512.9, yes)
    assert plan.state is State.OPEN
    plan.tick(513.1, no)
    assert plan.state is State.DUE
    assert plan.wakes_at(540.0) == pytest.approx(540.1)
    plan.tick(900.0, no)
    assert plan.is_open
    plan.tick(900.1, yes)

    assert (plan.state, plan.way, plan.reason) == (State.LEAVING, Way.RESUME, "age")


def test_connections_that_began_together_are_not_left_together() -> None:
    jitter = random.Random(1).random
    aged = [opened_plan(connection_age_s=540.0, jitter=jitter) for _ in range(100)]
    told = [opened_plan(jitter=jitter) for _ in range(100)]
    for plan in told:
        plan.going_away(60.0, 100.0)

    ages = sorted(plan.wakes_at(0.0) for plan in aged)
    looks = sorted(plan.wakes_at(100.0) for plan in told)

    assert 486.0 <= ages[0] < 492.0
    assert 534.0 < ages[-1] <= 540.0
    assert 100.0 <= looks[0] < 100.1
    assert 101.9 < looks[-1] <= 102.0


def test_a_service_that_goes_away_is_left_in_the_next_silence() -> None:
    plan = opened_plan()

    plan.going_away(50.0, 100.0)
    plan.tick(101.0, no)
    plan.tick(107.3, yes)

    assert (plan.state, plan.reason) == (State.LEAVING, "go-away")


def test_ten_seconds_before_the_service_closes_there_is_no_more_waiting() -> None:
    plan = opened_plan()

    plan.going_away(50.0, 100.0)
    plan.tick(139.9, no)
    assert plan.is_open
    assert plan.wakes_at(139.95) == 140.0
    plan.tick(140.0, no)

    assert plan.state is State.LEAVING


def test_half_of_a_short_notice_is_left_for_a_silence() -> None:
    plan = opened_plan()

    plan.going_away(8.0, 100.0)
    plan.tick(103.9, no)
    assert plan.is_open
    plan.tick(104.0, no)

    assert plan.state is State.LEAVING


def test_a_long_notice_is_no_reason_to_leave_at_once() -> None:
    plan = opened_plan()

    plan.going_away(300.0, 1.0)
    plan.tick(200.0, yes)
    assert plan.state is State.OPEN
    assert plan.wakes_at(200.0) == 232.0
    plan.tick(232.0, yes)

    assert plan.state is State.LEAVING


def test_silence_is_looked_for_only_while_a_rotation_is_due() -> None:
    plan = opened_plan()

    def never_asked() -> bool:
        raise AssertionError

    plan.tick(100.0, never_asked)


def test_the_age_counts_from_each_connection() -> None:
    plan = opened_plan(connection_age_s=100.0)
    plan.tick(105.0, yes)
    plan.closed(105.0)
    plan.begin()
    plan.opened(105.5)

    assert plan.wakes_at(106.0) == 200.5


# --- Coming back


def test_sessions_that_are_dropped_at_once_dial_one_after_the_other_within_a_bound() -> None:
    redials = new_redials()
    plans = [opened_plan(redials=redials) for _ in range(300)]

    for plan in plans:
        plan.lost(DROPPED, 20.0)
        plan.closed(20.0)
    delays = sorted(plan.open_at - 20.0 for plan in plans)

    assert delays[:REDIALS_AT_ONCE] == [0.0] * REDIALS_AT_ONCE
    assert 1.9 < delays[-1] <= LONGEST_SPREAD_S
    for tenth in range(20):
        assert sum(tenth <= delay * 10 < tenth + 1 for delay in delays) <= 35  # 15, evenly


def test_who_is_dropped_alone_dials_at_once() -> None:
    redials = new_redials()
    plans = [opened_plan(redials=redials) for _ in range(10)]

    for number, plan in enumerate(plans):
        plan.lost(DROPPED, 20.0 + number)
        plan.closed(20.0 + number)

    assert [plan.open_at for plan in plans] == [20.0 + number for number in range(10)]


def test_sessions_that_turn_to_the_fallback_at_once_do_so_one_after_the_other() -> None:
    redials = new_redials()
    plans = [opened_plan(has_fallback=True, redials=redials) for _ in range(100)]

    for plan in plans:
        plan.lost(QUOTA, 20.0)
        plan.closed(20.0)
    delays = sorted(plan.open_at - 20.0 for plan in plans)

    assert {plan.way for plan in plans} == {Way.FALLBACK}
    assert delays[0] == 0.0
    assert 1.8 < delays[-1] <= LONGEST_SPREAD_S


def test_a_drop_is_answered_at_once_by_resuming() -> None:
    plan = opened_plan("h7")

    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    attempt = plan.begin()

    assert plan.open_at == 20.0
    assert (attempt.way, attempt.handle, attempt.give_up_at) == (Way.RESUME, "h7", 50.0)
    assert plan.reason == "closed-1006"


def test_a_handle_that_says_not_now_does_not_replace_the_one_before() -> None:
    plan = opened_plan("h1")
    plan.note_handle(None)

    plan.lost(INTERNAL, 20.0)
    plan.closed(20.0)

    assert plan.begin().handle == "h1"


def test_without_any_handle_a_fresh_session_is_begun() -> None:
    plan = opened_plan(None)

    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)

    assert plan.begin().way is Way.FRESH


def test_attempts_come_less_and_less_often_until_the_budget_is_used_up() -> None:
    plan = opened_plan(None)
    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    times = []
    while plan.state is not State.ENDED:
        times.append(plan.open_at)
        plan.begin()
        plan.failed(UNREADABLE, plan.open_at)

    delays = [round(later - earlier, 3) for earlier, later in pairwise(times)]
    assert delays[:6] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert max(delays) == MAX_DELAY_S
    assert times[-1] < 50.0
    assert plan.error is UNREADABLE


def test_delays_are_spread_so_that_calls_do_not_come_back_in_step() -> None:
    def first_delay(jitter: float) -> float:
        plan = ConnectionPlan(0.0, jitter=lambda: jitter)
        plan.begin()
        plan.failed(DROPPED, 0.0)
        return plan.open_at

    assert [first_delay(jitter) for jitter in (0.0, 0.5, 1.0)] == [0.125, 0.25, 0.375]


def test_a_connection_that_does_not_last_does_not_renew_the_budget() -> None:
    plan = opened_plan()
    now = 20.0
    plan.lost(DROPPED, now)
    for _ in range(50):
        plan.closed(now)
        if plan.state is State.ENDED:
            break
        now = plan.open_at
        plan.begin()
        plan.opened(now)
        plan.lost(DROPPED, now + 0.1)
        now += 0.1

    assert plan.state is State.ENDED
    assert 40.0 < now <= 50.5


def test_a_connection_that_has_lasted_renews_the_budget() -> None:
    plan = opened_plan()
    for now in range(20, 2_000, 20):
        plan.lost(DROPPED, now)
        plan.closed(now)
        assert plan.begin().give_up_at == now + 30.0
        assert plan.open_at == now
        plan.opened(now)


def test_a_refused_set_up_is_never_tried_again() -> None:
    plan = ConnectionPlan(0.0)
    plan.begin()

    plan.failed(REFUSED, 0.3)

    assert (plan.state, plan.error) == (State.ENDED, REFUSED)


def test_a_refused_handle_is_replaced_at_once_by_a_fresh_session() -> None:
    plan = opened_plan()
    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    plan.begin()

    plan.failed(REFUSED, 20.3)

    assert (plan.open_at, plan.begin().way) == (20.3, Way.FRESH)


def test_a_handle_that_only_leads_to_failures_is_given_up() -> None:
    plan = opened_plan()
    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    ways = []
    for _ in range(4):
        ways.append(plan.begin().way)
        plan.failed(INTERNAL, plan.open_at)

    assert ways == [Way.RESUME, Way.RESUME, Way.RESUME, Way.FRESH]


def test_a_session_that_its_last_process_holds_open_is_begun_anew_without_another_wait() -> None:
    plan = ConnectionPlan(0.0, jitter=lambda: 0.5)
    plan.go_on("h1", on_fallback=False)
    plan.start(20.0)
    begun = []
    for _ in range(5):
        begun.append((plan.open_at, plan.begin().way))
        plan.failed(INTERNAL, plan.open_at)

    assert [way for _, way in begun] == [Way.RESUME] * 3 + [Way.FRESH] * 2
    waits = [after - before for (before, _), (after, _) in pairwise(begun)]
    assert waits == [0.25, 0.5, 0.0, 2.0]  # a service that is down is not called more often


def test_a_session_that_breaks_as_soon_as_it_is_resumed_is_given_up() -> None:
    plan = opened_plan()
    ways = []
    now = 20.0
    for _ in range(4):
        plan.lost(closed_with(1008), now)
        plan.closed(now)
        now = plan.open_at
        ways.append(plan.begin().way)
        plan.opened(now)

    assert ways == [Way.RESUME, Way.RESUME, Way.RESUME, Way.FRESH]


def test_a_used_up_context_gets_one_fresh_session() -> None:
    plan = opened_plan()

    plan.lost(USED_UP, 100.0)
    plan.closed(100.0)
    assert plan.begin().way is Way.FRESH
    plan.opened(100.3)
    plan.lost(USED_UP, 101.0)
    plan.closed(101.0)

    assert (plan.state, plan.error) == (State.ENDED, USED_UP)


EXPIRED = account_refused(Kind.KEY, "no", code=1007, reason="API key expired.")
BUSY = account_refused(Kind.BUSY, "no", code=1011, reason="overloaded")
RATE = account_refused(Kind.RATE, "no", code=1011, reason="Too many requests.")


@pytest.mark.parametrize("refusal", [QUOTA, EXPIRED])
@pytest.mark.parametrize("during", ["call", "reconnect"])
def test_neither_quota_nor_a_refusal_that_needs_a_person_is_retried(
    during: str, refusal: ModelError
) -> None:
    plan = opened_plan()
    if during == "call":
        plan.lost(refusal, 20.0)
        plan.closed(20.0)
    else:
        plan.lost(DROPPED, 20.0)
        plan.closed(20.0)
        plan.begin()
        plan.failed(refusal, 20.3)

    assert (plan.state, plan.error) == (State.ENDED, refusal)


@pytest.mark.parametrize("refusal", [BUSY, RATE])
def test_a_refusal_that_passes_by_itself_is_retried_in_mid_call_within_the_budget(
    refusal: ModelError,
) -> None:
    plan = opened_plan(budget_s=30.0)
    plan.lost(refusal, 20.0)
    plan.closed(20.0)
    attempts = []
    while plan.error is None:
        attempts.append(plan.begin())
        plan.failed(refusal, plan.open_at)

    assert len(attempts) > 5
    assert plan.open_at == pytest.approx(50.0, abs=MAX_DELAY_S)
    assert {attempt.handle for attempt in attempts} == {"h1"}  # it is not the handle's fault


def test_a_call_that_has_not_begun_is_told_of_a_rate_limit_at_once() -> None:
    plan = ConnectionPlan(0.0)
    plan.begin()
    plan.failed(RATE, 0.3)

    assert plan.error is RATE


def test_a_call_that_has_not_begun_waits_a_little_for_a_service_that_is_overloaded() -> None:
    plan = ConnectionPlan(0.0, jitter=lambda: 0.5)
    attempts = 0
    while plan.error is None:
        attempts += 1
        plan.begin()
        plan.failed(BUSY, plan.open_at)

    assert attempts >= 4
    assert plan.error is BUSY
    assert plan.open_at < FIRST_PATIENCE_S + MAX_DELAY_S


# --- Turning to another model


@pytest.mark.parametrize("failure", [QUOTA, REFUSED, EXPIRED, RATE])
def test_what_cannot_be_retried_is_left_for_the_fallback(failure: ModelError) -> None:
    plan = ConnectionPlan(0.0, has_fallback=True)
    plan.begin()
    plan.failed(failure, 0.3)

    attempt = plan.begin()

    assert (attempt.way, attempt.on_fallback, attempt.handle) == (Way.FALLBACK, True, None)
    assert attempt.give_up_at == 30.3


def test_a_call_stays_with_the_fallback_and_has_no_other() -> None:
    plan = opened_plan(has_fallback=True)
    plan.lost(QUOTA, 20.0)
    plan.closed(20.0)
    plan.begin()
    plan.opened(20.3)
    plan.note_answer()
    plan.note_handle("other")

    plan.lost(DROPPED, 60.0)
    plan.closed(60.0)
    attempt = plan.begin()
    assert (attempt.way, attempt.handle, attempt.on_fallback) == (Way.RESUME, "other", True)
    plan.failed(QUOTA, 60.3)

    assert plan.state is State.ENDED


def test_each_way_can_be_asked_for_where_there_is_one() -> None:
    assert not opened_plan(None).ask(Way.RESUME, "no-reply", 20.0)
    assert not opened_plan().ask(Way.FALLBACK, "no-reply", 20.0)
    for way in Way:
        plan = opened_plan(has_fallback=True)
        assert plan.ask(way, "no-reply", 20.0)
        plan.closed(20.0)
        attempt = plan.begin()
        assert (attempt.way, attempt.on_fallback) == (way, way is Way.FALLBACK)
        assert (attempt.handle is None) == (way is not Way.RESUME)


def test_the_fallback_cannot_be_asked_for_twice() -> None:
    plan = opened_plan(has_fallback=True)
    plan.ask(Way.FALLBACK, "no-reply", 20.0)
    plan.closed(20.0)
    plan.begin()
    plan.opened(20.3)

    assert not plan.ask(Way.FALLBACK, "no-reply", 30.0)
    assert plan.ask(Way.FRESH, "no-reply", 30.0)


def test_the_fallback_that_is_asked_for_between_connections_is_the_next() -> None:
    leaving, waiting = (opened_plan(has_fallback=True) for _ in range(2))
    leaving.lost(DROPPED, 20.0)
    waiting.lost(DROPPED, 20.0)
    waiting.closed(20.0)
    waiting.begin()
    waiting.failed(INTERNAL, 20.1)

    assert leaving.ask(Way.FALLBACK, "no-reply", 21.0)
    assert waiting.ask(Way.FALLBACK, "no-reply", 21.0)
    assert waiting.open_at == 21.0
    leaving.closed(21.0)

    for plan in (leaving, waiting):
        attempt = plan.begin()
        assert (attempt.way, attempt.on_fallback, attempt.handle) == (Way.FALLBACK, True, None)
        assert attempt.give_up_at == 51.0


def test_the_fallback_that_is_asked_for_while_another_connection_is_made_comes_after_it() -> None:
    plan = opened_plan(has_fallback=True)
    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    plan.begin()

    assert plan.ask(Way.FALLBACK, "no-reply", 21.0)
    assert plan.unwanted
    plan.failed(INTERNAL, 21.1)
    attempt = plan.begin()

    assert (attempt.way, attempt.on_fallback, plan.unwanted) == (Way.FALLBACK, True, False)


def test_a_fallback_that_is_on_its_way_need_not_be_asked_for_and_is_there() -> None:
    plan = opened_plan(has_fallback=True)
    plan.lost(QUOTA, 20.0)

    assert plan.ask(Way.FALLBACK, "no-reply", 20.0)
    plan.closed(20.0)
    plan.begin()
    assert plan.ask(Way.FALLBACK, "no-reply", 20.1)
    assert not plan.unwanted
    plan.opened(20.3)

    assert not plan.ask(Way.FALLBACK, "no-reply", 30.0)
