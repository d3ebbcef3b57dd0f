"""A call on a carrier whose streams do not all that Twilio's do."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.carrier import SendAudio, StreamAbilities
from server.dialogue.turns import Patience
from tests.support.calls_on_a_rig import SECOND_PCM, Rig
from tests.support.sounds import noise


@pytest.fixture
async def rig(nursery):
    """A call that has just been answered on a stream that keeps little and is silent in silence."""
    rig = Rig(agent=Agent(greeting=""), patience=Patience(silence_timeout_s=0.0))
    rig.media.abilities = StreamAbilities(buffer_s=4.0, sends_silence=False)
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    await wait_all_tasks_blocked()
    return rig


async def test_a_caller_who_says_nothing_is_not_taken_for_gone(autojump_clock, rig):
    await trio.sleep(100.0)
    lived_on = rig.call.end_reason
    rig.media.hang_up()
    await rig.call.finished.wait()

    assert lived_on is None
    assert rig.call.end_reason == "caller-hung-up"


async def test_no_more_is_sent_ahead_than_the_carrier_keeps(autojump_clock, rig):
    began = trio.current_time()
    rig.audio(SECOND_PCM * 10, turn=1)
    await trio.sleep(20.0)
    rig.media.hang_up()
    await rig.call.finished.wait()

    sent_s, ahead_s = 0.0, []
    for at, command in rig.media.sent:
        if isinstance(command, SendAudio):
            sent_s += len(command.payload) / 8_000
            ahead_s.append(sent_s - (at - began))
    assert sent_s == pytest.approx(10.0, abs=0.01)
    assert 3.0 < max(ahead_s) <= 4.0 + 1e-6


async def speaks(rig, seconds: float) -> None:
    """The caller speaks, frame by frame; then the carrier sends nothing, as they are silent."""
    speech = noise(seconds, 4_000.0)
    for at in range(0, len(speech), 160):
        await trio.sleep(0.02)
        rig.media.say(speech[at : at + 160])


async def test_who_falls_silent_where_silence_sends_nothing_has_said_all_they_say(
    autojump_clock, rig
):
    await speaks(rig, 1.0)
    was_speaking = rig.call.conversation.turns.caller_speaking
    said = len(rig.session.heard)
    await trio.sleep(10.0)
    silence = bytes(rig.session.heard[said:])
    rig.media.hang_up()
    await rig.call.finished.wait()

    assert was_speaking
    assert not rig.call.conversation.turns.caller_speaking
    # Enough for any model, and no more: 16-bit samples at 16 kHz.
    assert 1.6 <= len(silence) / 32_000 <= 2.5
    assert max(memoryview(silence[3_200:]).cast("h")) <= 8


async def test_where_silence_is_sent_none_is_made_up(autojump_clock, rig):
    rig.media.abilities = StreamAbilities(buffer_s=4.0, sends_silence=True)
    await speaks(rig, 1.0)
    said = len(rig.session.heard)
    await trio.sleep(3.0)
    heard = len(rig.session.heard)
    rig.media.hang_up()
    await rig.call.finished.wait()

    assert heard == said
