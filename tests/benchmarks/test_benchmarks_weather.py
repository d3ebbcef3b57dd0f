"""When a piece of a stream comes out of a bad network."""

from __future__ import annotations

import random

import pytest

from benchmarks.chaos.weather import CLEAR, RTO_S, SEGMENT_BYTES, Passage, Weather


def passage(seed: int = 1) -> Passage:
    return Passage(random.Random(seed))


def test_a_clear_network_takes_no_time():
    assert passage().due(CLEAR, 1000, 5.0) == 5.0


def test_a_piece_never_overtakes_one_that_went_in_before_it():
    way, jittery = passage(), Weather(delay_s=0.08, jitter_s=0.02)

    dues = [way.due(jittery, 100, 0.001 * number) for number in range(1000)]

    assert dues == sorted(dues)
    assert all(0.08 <= due - 0.001 * number <= 0.1 + 1e-9 for number, due in enumerate(dues))


def test_a_lost_segment_is_a_stall_and_then_a_burst_of_all_behind_it():
    way, lossy = passage(), Weather(loss=0.02)

    dues = [way.due(lossy, 100, 0.02 * number) for number in range(500)]
    late_s = [due - 0.02 * number for number, due in enumerate(dues)]

    stalled = [number for number, late in enumerate(late_s) if late > RTO_S - 0.001]
    assert stalled
    first = stalled[0]
    assert late_s[first - 1] < 0.001
    assert dues[first : first + 9] == pytest.approx([dues[first]] * 9)


def test_a_piece_of_many_segments_is_lost_more_often():
    single, many = passage(), passage()
    lossy = Weather(loss=0.05)

    short = sum(single.due(lossy, 100, 1000.0 * number) > 1000.0 * number for number in range(300))
    long = sum(
        many.due(lossy, 10 * SEGMENT_BYTES, 1000.0 * number) > 1000.0 * number
        for number in range(300)
    )

    assert 3 * short < long


def test_a_narrow_line_takes_its_time_for_every_byte():
    way, narrow = passage(), Weather(bytes_per_s=1000.0)

    dues = [way.due(narrow, 100, 0.0) for _ in range(10)]

    assert dues == pytest.approx([0.1 * number for number in range(1, 11)])


def test_the_same_seed_is_the_same_network():
    bad = Weather(delay_s=0.05, jitter_s=0.05, loss=0.1)
    one, same, other = passage(7), passage(7), passage(8)

    assert [one.due(bad, 100, float(n)) for n in range(50)] == [
        same.due(bad, 100, float(n)) for n in range(50)
    ]
    assert one.due(bad, 100, 50.0) != other.due(bad, 100, 50.0)


@pytest.mark.parametrize(
    "facts",
    [{"delay_s": -1.0}, {"jitter_s": 1e9}, {"loss": 1.0}, {"bytes_per_s": 0}, {"buffer_bytes": 0}],
    ids=lambda facts: next(iter(facts)),
)
def test_what_no_network_can_be_is_refused(facts):
    with pytest.raises(ValueError, match=next(iter(facts))):
        CLEAR.changed(facts)
