"""Calls that come and go, small: what is judged of it, and that it runs."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from benchmarks.turnover import Outcome, broken, measure
from benchmarks.weighing import Weighed


def outcome(**facts) -> Outcome:
    return Outcome(0.0, **facts)


def weighed(*mib: float) -> list[Weighed]:
    """Memory over 20 minutes, so much from time to time."""
    every_s = 1200.0 / len(mib)
    return [Weighed((n + 1) * every_s, (1,), round(one * 2**20)) for n, one in enumerate(mib)]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (outcome(records={"CA1": 1, "CA2": 1}), []),
        (outcome(lost=["cut", "cut"]), ["2 x cut"]),
        (outcome(records={"CA1": 0, "CA2": 1}), ["1 records are missing"]),
        (outcome(weighed=weighed(*[100] * 12)), []),
        (outcome(weighed=weighed(50, 60, 80, *[100] * 17)), []),
        (
            outcome(weighed=weighed(*range(100, 120))),
            ["memory has grown after five minutes: 106 MiB, then 117"],
        ),
        (outcome(faults={"Traceback": 3}), ["3 x Traceback in the log"]),
    ],
)
def test_memory_may_not_grow_and_no_call_or_record_be_lost(found, said):
    assert broken(found) == said


@pytest.mark.sockets
@pytest.mark.slow
def test_a_few_calls_come_and_go_and_every_record_is_there():
    found = measure(3, 4.0, call_s=(0.3, 0.6), weigh_every_s=1.0, warm_s=0.5)

    assert broken(found) == []
    assert found.ended_calls > 0
    assert len(found.records) == found.ended_calls
    assert json.loads(json.dumps(asdict(found)))["weighed"]
