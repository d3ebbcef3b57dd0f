"""The percentiles that every benchmark shows."""

from __future__ import annotations

import pytest

from benchmarks.percentiles import percentiles


def test_a_percentile_is_one_of_the_values_whatever_their_order():
    found = percentiles(reversed(range(1, 101)), ("p50", "p95", "p99", "max"))

    assert found == {"p50": 51, "p95": 96, "p99": 100, "max": 100}


@pytest.mark.parametrize("names", [("p50",), ("p50", "p99", "p999", "max")])
def test_of_one_value_every_percentile_is_that_one(names):
    assert percentiles([2.5], names) == dict.fromkeys(names, 2.5)


def test_of_no_values_there_are_no_percentiles():
    assert percentiles([], ("p50", "max")) == {}


def test_a_percentile_is_told_in_its_unit_and_rounded():
    assert percentiles([0.0123456], ("max",), unit=1000, digits=1) == {"max": 12.3}
