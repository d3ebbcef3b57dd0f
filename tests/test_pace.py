"""How often something may happen, and how long to wait before it is tried again."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.pace import Backoff, Pace, Spread, doubled_s, next_tick


def test_a_pace_allows_so_many_at_once_and_so_many_a_second():
    pace = Pace(per_s=2, at_once=3)

    at_once = [pace.allows(10.0) for _ in range(4)]
    later = [pace.allows(at) for at in (10.4, 10.5, 10.6, 11.0)]

    assert at_once == [True, True, True, False]
    assert later == [False, True, False, True]


def test_each_pause_is_twice_the_one_before_up_to_the_longest():
    backoff = Backoff(0.5, 3.0)

    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_after_a_success_the_first_pause_comes_again():
    backoff = Backoff(0.5, 3.0)
    backoff.next_s()
    backoff.double()
    backoff.reset()

    assert [backoff.next_s() for _ in range(2)] == [0.5, 1.0]


def test_a_pause_that_was_doubled_for_ever_is_the_longest():
    assert doubled_s(0.25, 4.0, 0) == 0.25
    assert doubled_s(0.25, 4.0, 3) == 2.0
    assert doubled_s(0.25, 4.0, 10**9) == 4.0


def test_a_few_have_their_turn_at_once_and_the_others_one_after_the_other():
    spread = Spread(per_s=10, at_once=2, longest_s=60, jitter=lambda: 0.0)

    at_once = [spread.delay_s(5.0) for _ in range(5)]
    later = spread.delay_s(5.25)
    after_a_pause = [spread.delay_s(50.0) for _ in range(3)]

    assert at_once == pytest.approx([0, 0, 0.1, 0.2, 0.3])
    assert later == pytest.approx(0.15)
    assert after_a_pause == pytest.approx([0, 0, 0.1])


def test_nobody_waits_longer_than_the_bound_and_the_rest_is_spread_over_the_whole_of_it():
    spread = Spread(per_s=10, at_once=1, longest_s=1, jitter=lambda: 0.25)

    delays = [spread.delay_s(5.0) for _ in range(100)]

    assert max(delays) <= 1.0
    assert delays[11:] == pytest.approx([0.25] * 89)


def test_turns_are_taken_a_little_sooner_by_chance():
    chances = iter([0.0, 0.5, 0.9])
    spread = Spread(per_s=10, at_once=1, longest_s=60, jitter=lambda: next(chances))

    assert [spread.delay_s(5.0) for _ in range(4)] == pytest.approx([0, 0.1, 0.15, 0.21])


@given(st.floats(0.0, 1e7), st.sampled_from((0.1, 0.25, 0.5)))
@example(0.9, 0.1)
def test_what_happens_every_so_often_happens_soon_and_at_a_multiple_of_that_time(now, every_s):
    at = next_tick(now, every_s)
    after = next_tick(at, every_s)

    assert now < at <= now + 1.001 * every_s
    assert at / every_s == pytest.approx(round(at / every_s), abs=1e-6)
    assert after == pytest.approx(at + every_s, abs=1e-6)


def test_those_who_fail_together_come_back_one_by_one_and_none_of_them_later():
    chances = iter([0.0, 1.0, 0.5, 0.5, 0.0])
    backoff = Backoff(0.5, 3.0, jitter=lambda: next(chances))

    assert [backoff.next_s() for _ in range(4)] == [0.5, 0.5, 1.5, 2.25]
    backoff.reset()
    assert backoff.next_s() == 0.5
