"""Whole calls in memory, on the mock clock: a person's phone at one end, the model at the other."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from server.model.lasting.model import LastingModel
from server.model.lasting.unanswered import MAX_WAITING_S
from tests.support.rig import calling


class SlowToConnect:
    """A service whose connections take so long to come about."""

    def __init__(self, service, connect_s: float) -> None:
        self._service = service
        self._connect_s = connect_s
        self.name, self.key_name = service.name, service.key_name

    @asynccontextmanager
    async def open_connection(self, *args, **kwargs):
        await trio.sleep(self._connect_s)
        async with self._service.open_connection(*args, **kwargs) as connection:
            yield connection


async def test_a_person_is_greeted_answered_and_hangs_up(autojump_clock):
    async with calling(callee="talks") as rig:
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert rig.call.conversation.session.lost_s == 0
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


async def test_caller_audio_that_waits_too_long_is_bounded_and_counted(autojump_clock):
    async with calling(
        callee="never-hangs-up",
        ring_s=0.5,
        make_model=lambda gemini: LastingModel(SlowToConnect(gemini, 14.0)),
        greeting_protect_s=0.0,
    ) as rig:
        ready_s = await rig.noted_s("model ready")
        await trio.sleep(1.0)
        rig.phone.stop()
        await rig.over()

    kept_s = rig.sessions[0].heard_samples / 16_000
    said_s = len(rig.phone.said) / 8_000
    lost_s = rig.record["timings"]["caller_audio_lost_s"]
    assert lost_s == pytest.approx(ready_s - 0.5 - MAX_WAITING_S, abs=0.05)
    assert lost_s + kept_s == pytest.approx(said_s, abs=0.05)
    assert rig.metrics.streams.lost_frames.labels("server")._value.get() == pytest.approx(
        50 * lost_s
    )
