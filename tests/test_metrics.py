from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.metrics import LatencySummary


def test_an_empty_summary_has_no_percentiles():
    assert LatencySummary().percentile(50) is None
    assert LatencySummary().as_dict()["p99_ms"] is None


@given(st.lists(st.floats(1e-6, 100.0), min_size=1, max_size=300), st.sampled_from([50, 90, 99]))
def test_percentiles_are_within_a_bucket_of_the_exact_ones(durations, percent):
    summary = LatencySummary()
    for duration in durations:
        summary.record(duration)

    exact = sorted(durations)[-(-len(durations) * percent // 100) - 1]
    assert summary.percentile(percent) == pytest.approx(exact, rel=0.045)
    assert summary.max_s == max(durations)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9))
def test_any_duration_is_taken(duration):
    summary = LatencySummary()
    summary.record(duration)

    assert summary.count == 1
