"""The burst benchmark, small: two calls talk, a few more come in at once, and all are heard."""

from __future__ import annotations

import pytest

from benchmarks.burst import faults, measure


def outcome(came_of_it: dict[str, int], **facts: object) -> dict[str, object]:
    return {"came_of_it": came_of_it, "calls_lost": 0, "faults": {}} | facts


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (outcome({"admitted": 3, "heard": 3}), []),
        (outcome({"admitted": 3, "heard": 3, "refused": 9}), []),
        (outcome({"admitted": 3, "heard": 2}), ["heard 2 of 3"]),
        (outcome({"no webhook in time": 1}), ["1 x no webhook in time"]),
        (outcome({}, calls_lost=2), ["2 running calls were lost"]),
        (outcome({}, faults={"bug of ours": 1}), ["1 x bug of ours in the log"]),
    ],
)
def test_a_call_may_be_refused_but_not_lost(found, said):
    assert faults(found) == said


@pytest.mark.sockets
@pytest.mark.slow
def test_a_small_burst_is_heard_and_takes_no_running_call():
    found = measure(2, 8, quiet_s=0.5, burst_s=1.0, warm_s=0.5)

    assert faults(found) == []
    assert found["came_of_it"]["heard"] + found["came_of_it"].get("refused", 0) == 8
    assert found["came_of_it"]["heard"] > 0
