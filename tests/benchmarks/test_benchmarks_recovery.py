"""The recovery benchmark's own figures, on a shorter call and fewer outages."""

from __future__ import annotations

import pytest

from benchmarks.lines import holds
from benchmarks.recovery import FAULTS, break_connections, long_call

SOON = {"p50": 50.0, "p95": 90.0, "max": 100.0}
LATE = {"p50": 50.0, "p95": 4_000.0, "max": 5_000.0}
CUT = {
    **{"cut": 40, "lived": 40, "heard": 40},
    **{"stream_ms": SOON, "heard_ms": SOON, "stream_real_ms": SOON, "heard_real_ms": SOON},
}


@pytest.mark.parametrize(
    ("outcome", "held"),
    [
        (CUT, True),
        (CUT | {"heard": 39}, False),
        (CUT | {"lived": 39}, False),
        (CUT | {"heard": 0, "stream_ms": {}, "heard_ms": {}}, False),
        (CUT | {"cut": 0, "lived": 0, "heard": 0, "stream_ms": {}, "heard_ms": {}}, False),
        (CUT | {"stream_ms": LATE}, False),
        (CUT | {"heard_ms": LATE}, False),
        (CUT | {"heard_real_ms": LATE}, True),
    ],
    ids=[
        *("all is well", "one was never heard again", "one did not live", "nobody was heard"),
        *("nothing was cut", "a new stream was late", "the agent was late", "of another clock"),
    ],
)
def test_cut_lines_hold_only_if_every_call_is_heard_again_in_time(outcome, held):
    assert holds(outcome) is held


def test_cut_lines_are_judged_by_the_clock_that_is_asked_for():
    assert not holds(CUT | {"heard_real_ms": LATE}, "_real")


@pytest.mark.sockets
@pytest.mark.slow
async def test_a_call_over_many_connections_loses_nothing_and_cuts_nothing(autojump_clock):
    outcome = await long_call(200.0, 30.0)

    assert outcome["end"] == "caller-hung-up"
    reasons = [one["reason"] for one in outcome["rotations"]]
    assert reasons == ["go-away"] * len(reasons)
    assert len(reasons) in (5, 6)  # as the moments that are drawn for them fall
    assert outcome["caller_samples_lost"] == 0
    assert outcome["caller_audio_identical"]
    assert outcome["agent_cut_ms"] == 0
    assert outcome["agent_turns"] > 15
    assert outcome["still_open"] == 0


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.parametrize("call_s", [27.9, 28.1])  # it would end while a connection is replaced
async def test_a_call_is_not_ended_between_two_connections(autojump_clock, call_s):
    outcome = await long_call(call_s, 30.0)

    assert len(outcome["rotations"]) == 1
    assert outcome["caller_samples_lost"] == 0
    assert outcome["caller_audio_identical"]


@pytest.mark.sockets
@pytest.mark.slow
async def test_every_broken_connection_is_replaced_within_a_second(autojump_clock):
    for fault in FAULTS.values():
        outcome = await break_connections(fault, 3)

        assert outcome["count"] == 3
        assert outcome["gap_ms"]["max"] < 1_000
        assert outcome["lost_s"] == 0
