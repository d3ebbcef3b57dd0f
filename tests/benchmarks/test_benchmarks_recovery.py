"""The recovery benchmark's own figures, on a shorter call and fewer outages."""

from __future__ import annotations

import pytest

from benchmarks.recovery import FAULTS, break_connections, long_call

pytestmark = [pytest.mark.sockets, pytest.mark.slow]


async def test_a_call_over_many_connections_loses_nothing_and_cuts_nothing(autojump_clock):
    outcome = await long_call(170.0, 30.0)

    assert outcome["end"] == "caller-hung-up"
    assert [one["reason"] for one in outcome["rotations"]] == ["go-away"] * 5
    assert outcome["caller_samples_lost"] == 0
    assert outcome["caller_audio_identical"]
    assert outcome["agent_cut_ms"] == 0
    assert outcome["agent_turns"] > 15
    assert outcome["still_open"] == 0


async def test_every_broken_connection_is_replaced_within_a_second(autojump_clock):
    for fault in FAULTS.values():
        outcome = await break_connections(fault, 3)

        assert outcome["count"] == 3
        assert outcome["gap_ms"]["max"] < 1_000
        assert outcome["lost_s"] == 0
