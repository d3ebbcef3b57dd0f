"""How often something may happen, and how long to wait before it is tried again."""

from __future__ import annotations

from server.pace import Backoff, Pace, doubled_s


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
