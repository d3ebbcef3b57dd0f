"""Whole calls in memory, on the mock clock: a person's phone at one end, the model at the other."""

from __future__ import annotations

import pytest

from tests.support.rig import calling


async def test_a_person_is_greeted_answered_and_hangs_up(autojump_clock):
    async with calling(callee="talks") as rig:
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert rig.call.conversation.notes.timings.caller_audio_lost_s == 0
    first = rig.phone.first_sound_s
    assert first is not None
    assert first < 0.2
    assert len([turn for turn in rig.record["transcript"] if turn["speaker"] == "agent"]) >= 2
    assert rig.sessions[0].closed_by_client == 1000


async def test_what_is_said_to_have_been_heard_is_what_the_phone_played(autojump_clock):
    async with calling(callee="interrupts") as rig:
        await rig.over()

    assert rig.phone.bytes_after_clear == 0
    played_s = sum(length for _, length in rig.phone.received) / 8_000
    dropped_s = sum(clear.dropped_bytes for clear in rig.phone.clears) / 8_000
    assert rig.record["agent_heard_s"] == pytest.approx(played_s - dropped_s, abs=0.05)


async def test_an_unanswered_phone_leaves_nothing_open(autojump_clock):
    async with calling(callee="busy") as rig:
        await rig.over()

    assert rig.call.end_reason == "busy"
    assert rig.sessions[0].closed_by_client == 1000


async def test_leaving_early_hangs_up(autojump_clock):
    async with calling(callee="never-hangs-up") as rig:
        await rig.noted_s("first audio")

    assert rig.call.end_reason == "hung-up"
    assert rig.carrier.hung_up == [rig.call.call_sid]
