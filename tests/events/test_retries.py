"""When an event is sent again: decisions without a clock."""

from __future__ import annotations

import math

import pytest

from server.events.retries import (
    GIVE_UP_S,
    LONGEST_PAUSE_S,
    Attempt,
    next_at,
    retry_after_s,
)

DOWN = Attempt(error="ConnectError")


def pause_s(attempts: int, attempt: Attempt = DOWN, jitter: float = 1.0) -> float:
    return next_at(attempt, attempts, since=0.0, now=100.0, jitter=jitter) - 100.0


def test_each_pause_is_twice_the_one_before_up_to_an_hour():
    assert [pause_s(attempts) for attempts in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 8.0]
    assert pause_s(30) == LONGEST_PAUSE_S


def test_events_that_failed_together_are_not_sent_together():
    assert (pause_s(5, jitter=0.0), pause_s(5, jitter=1.0)) == (8.0, 16.0)


def test_a_receiver_may_ask_for_a_longer_pause_but_not_for_a_day():
    assert pause_s(1, Attempt(503, retry_after_s=120.0)) == 120.0
    assert pause_s(1, Attempt(503, retry_after_s=1e9)) == LONGEST_PAUSE_S


def test_it_is_given_up_after_a_day_and_at_once_by_a_receiver_that_is_gone():
    late = next_at(DOWN, 3, since=0.0, now=GIVE_UP_S, jitter=0.0)
    gone = next_at(Attempt(410), 1, since=0.0, now=1.0, jitter=0.0)

    assert (late, gone) == (math.inf, math.inf)


@pytest.mark.parametrize("status", [199, 301, 302, 400, 404, 500])
def test_only_success_counts_as_taken(status):
    assert not Attempt(status).is_taken
    assert Attempt(204).is_taken


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (b"30", 30.0),
        (b"Thu, 01 Jan 1970 00:02:30 GMT", 50.0),
        (b"Thu, 01 Jan 1970 00:00:30 GMT", 0.0),
        (b"Thu, 01 Jan 2070 00:00:00 GMT", LONGEST_PAUSE_S),
        (b"-1", 0.0),
        (b"\xff\0", 0.0),
    ],
)
def test_a_receiver_asks_for_seconds_or_names_a_date(value, wait_s):
    assert retry_after_s(value, now=100.0) == wait_s
