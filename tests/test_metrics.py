from __future__ import annotations

import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.registry import DuplicateTimeseries

from codec import latency
from server.metrics import AgentMetrics, CountedInC, LatencySummary, Metrics

BOUNDS = (0.001, 0.0025, 0.01, 0.1, 1.0)


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
    assert summary.sum_s == pytest.approx(math.fsum(durations))


@given(st.floats(min_value=-1e9, max_value=1e9) | st.sampled_from([math.inf, -math.inf, math.nan]))
def test_any_duration_is_taken(duration):
    summary = LatencySummary()
    summary.record(duration)

    assert summary.count == 1
    assert summary.percentile(50) == summary.max_s
    assert summary.sum_s == summary.max_s == (duration if duration > 0 else 0.0)


def test_a_call_pays_for_what_it_measures():
    def bytes_of(durations: list[float]) -> int:
        tracemalloc.start()
        summary = LatencySummary()
        for duration in durations:
            summary.record(duration)
        del duration
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert summary.count == len(durations)
        return size

    ordinary = [1e-5 * 1.01**step for step in range(700)]  # 10 us to 10 ms
    everything = [1e-7 * 1.1**step for step in range(250)]  # and to an hour

    assert bytes_of(ordinary) < 1000
    assert bytes_of(everything) < 2100


def observed(kind: type[Histogram | CountedInC], durations: list[float]) -> str:
    registry = CollectorRegistry()
    histogram = kind("took_seconds", "How long.", ["way"], buckets=BOUNDS, registry=registry)
    histogram.labels("silent")
    for duration in durations:
        histogram.labels('he "said"').observe(duration)
    text = generate_latest(registry).decode()
    return "\n".join(
        line.rsplit(" ", 1)[0] if line.startswith("took_seconds_created{") else line
        for line in text.splitlines()
    )


@given(st.lists(st.sampled_from([*BOUNDS, -1.0, math.inf]) | st.floats(0.0, 2.0)))
def test_a_scrape_shows_what_the_library_s_own_histogram_would(durations):
    assert observed(CountedInC, durations) == observed(Histogram, durations)


def test_the_series_that_tell_when_they_began_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("PROMETHEUS_DISABLE_CREATED_SERIES", "True")

    assert "_created" not in observed(CountedInC, [1.0])


def test_a_histogram_s_name_is_taken():
    registry = CollectorRegistry()
    Metrics(registry)

    with pytest.raises(DuplicateTimeseries):
        Metrics(registry)


def test_labels_must_be_those_of_the_histogram():
    with pytest.raises(ValueError, match="direction"):
        Metrics(CollectorRegistry()).chunk_latency.labels("caller", "agent")


@pytest.mark.parametrize(
    "bounds", [[], [math.inf], [2.0, 1.0], [1.0, 1.0], [math.nan], [math.inf, 1.0]]
)
def test_bounds_that_make_no_buckets_are_refused(bounds):
    with pytest.raises(ValueError, match="bound"):
        latency.Histogram(bounds)


def test_a_bound_belongs_to_what_it_bounds():
    histogram = latency.Histogram(BOUNDS)
    for bound in (*BOUNDS, 7.0):
        histogram.observe(bound)

    assert histogram.bounds == [*BOUNDS, math.inf]
    assert histogram.counts == [1] * 6
    assert histogram.sum_s == sum(BOUNDS) + 7.0


def test_agents_beyond_a_number_are_counted_together():
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    for number in range(AgentMetrics.MAX_AGENTS + 10):
        metrics.agents.call_ended(f"agent-{number}", "caller-hung-up")
    metrics.agents.call_ended("agent-0", "caller-hung-up")

    def count(agent: str) -> float | None:
        labels = {"agent": agent, "reason": "caller-hung-up"}
        return registry.get_sample_value("offhook_agent_calls_ended_total", labels)

    assert (count("agent-0"), count("other"), count("agent-59")) == (2, 10, None)
