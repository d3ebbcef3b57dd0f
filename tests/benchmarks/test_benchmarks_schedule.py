"""What happens when in a run of chaos."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.schedule import FIRST_S, LAST_S, Kind, schedule

KINDS = (
    Kind("cut", (0.0, 0.0), {"how": ("rst", "fin"), "share": (0.2, 1.0)}),
    Kind("pause", (0.3, 8.0)),
    Kind("lock", (1.0, 3.0)),
)


def test_a_seed_is_a_schedule():
    assert schedule(7, 600.0, KINDS) == schedule(7, 600.0, KINDS)
    assert schedule(7, 600.0, KINDS) != schedule(8, 600.0, KINDS)


def test_a_longer_run_begins_like_a_shorter_one():
    short, long = schedule(3, 120.0, KINDS), schedule(3, 1_200.0, KINDS)

    assert long[: len(short)] == short


def test_every_kind_comes_once_before_any_comes_again():
    names = [one.name for one in schedule(1, 600.0, KINDS)]

    for start in range(0, len(names) - 2, 3):
        assert sorted(names[start : start + 3]) == ["cut", "lock", "pause"]


def test_everything_is_well_at_first_and_at_last():
    planned = schedule(5, 300.0, KINDS)

    assert planned[0].at_s == FIRST_S
    assert max(one.at_s + one.lasts_s for one in planned) <= 300.0 - LAST_S


def test_what_is_drawn_is_within_its_bounds():
    for one in schedule(2, 3_600.0, KINDS):
        if one.name == "cut":
            assert one.facts["how"] in ("rst", "fin")
            assert 0.2 <= one.facts["share"] <= 1.0
        if one.name == "pause":
            assert 0.3 <= one.lasts_s <= 8.0


def test_some_faults_come_together():
    planned = schedule(4, 3_600.0, KINDS)

    together = [
        (one, following)
        for one, following in itertools.pairwise(planned)
        if following.at_s < one.at_s + one.lasts_s
    ]
    assert together


def test_an_hour_has_every_fault_there_is_many_times():
    counts = Counter(one.name for one in schedule(1, 3_600.0, [each.kind for each in FAULTS]))

    assert set(counts) == {fault.kind.name for fault in FAULTS}
    assert min(counts.values()) >= 5


def test_a_schedule_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        schedule(1, 60.0, ())
