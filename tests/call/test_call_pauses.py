"""A call whose process was held up: the world has gone on, and its record says so."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from codec.line import BYTES_PER_S, SILENCE
from codec.path import WebSocket
from server.call import call, hearing, passing, playing
from server.call.report import report
from server.carrier import StreamStopped
from server.carrier.twilio.messages import audio_messages
from server.dialogue.endings import EndReason
from server.model.gemini.messages import AUDIO_MESSAGES
from server.records.recording import Recorder
from tests.support.calls_on_a_rig import SECOND_PCM, Rig
from tests.support.path_messages import SID, audio
from tests.support.websocket_oracle import Frame, Opcode, write_frames

PAUSE_S = 6.0


@pytest.fixture
async def ringing(nursery):
    rig = Rig()
    nursery.start_soon(rig.call.run)
    await wait_all_tasks_blocked()
    yield rig
    rig.call.end(EndReason.HUNG_UP)


@pytest.fixture
def pause(monkeypatch):
    """Have the world go on for a while without us."""

    def pause() -> None:
        for module in (call, hearing, passing, playing, report):
            monkeypatch.setattr(module, "missed_s", lambda: PAUSE_S)

    return pause


async def test_the_time_on_the_line_is_the_worlds(autojump_clock, talking, pause):
    await trio.sleep(1.0)
    pause()
    await trio.sleep(1.0)
    live_s = talking.call.duration_s
    talking.call.end(EndReason.HUNG_UP)
    await talking.call.finished.wait()

    assert live_s == pytest.approx(2.0 + PAUSE_S)
    assert talking.call.record().duration_s == pytest.approx(2.0 + PAUSE_S)


async def test_what_the_agent_says_after_a_pause_is_recorded_behind_it(
    autojump_clock, talking, pause
):
    began_at = trio.current_time()
    recorder = Recorder("CA1", began_at)
    talking.call.conversation.passing.record(recorder, lambda reason: None)
    await trio.sleep(1.0)
    pause()

    talking.audio(SECOND_PCM, turn=1)
    await trio.sleep(1.0)
    recorder.end(trio.current_time() + PAUSE_S)
    _, agent = recorder.take(recorder.ended_at)

    quiet = agent[: round((1.0 + PAUSE_S) * BYTES_PER_S)]
    assert quiet == SILENCE * len(quiet)
    assert agent[len(quiet) :] != SILENCE * (len(agent) - len(quiet))


async def test_what_is_passed_on_of_a_turn_after_a_pause_is_recorded_behind_it(
    autojump_clock, talking, pause
):
    account = talking.call.conversation.passing
    path = account.path
    path.phone = WebSocket(is_client=False, max_message_bytes=1 << 16)
    path.join_model(WebSocket(is_client=True, max_message_bytes=1 << 20), AUDIO_MESSAGES)
    path.start(SID, audio_messages(SID))

    def pass_on(pcm: bytes) -> None:
        account.follow(1, trio.current_time())
        path.model.receive(write_frames([Frame(Opcode.TEXT, audio(pcm))], masked=False))
        assert path.next_from_model(trio.current_time()) is None
        account.collect()

    recorder = Recorder("CA1", trio.current_time())
    account.record(recorder, lambda reason: None)
    talking.audio(SECOND_PCM * 2, turn=1)
    await trio.sleep(1.0)
    short = SECOND_PCM[: len(SECOND_PCM) // 5]
    pass_on(short)
    pause()
    recorder.on_take()  # as all are asked after a pause, before anything is read

    pass_on(short)
    await trio.sleep(1.0)
    recorder.end(trio.current_time() + PAUSE_S)
    _, agent = recorder.take(recorder.ended_at)

    heard, behind = round(2.2 * BYTES_PER_S), round((1.0 + PAUSE_S) * BYTES_PER_S)
    assert SILENCE not in agent[1_000 : heard - 200]
    assert agent[heard:behind] == SILENCE * (behind - heard)
    assert SILENCE not in agent[behind + 200 : behind + round(0.2 * BYTES_PER_S) - 200]


async def test_what_was_heard_before_a_line_was_lost_stays_in_the_recording(
    autojump_clock, talking, pause
):
    recorder = Recorder("CA1", trio.current_time())
    talking.call.conversation.passing.record(recorder, lambda reason: None)
    pause()
    talking.audio(SECOND_PCM * 4, turn=1)
    await trio.sleep(2.0)

    talking.media.say(SILENCE)
    talking.media.event(StreamStopped(said=False))
    await wait_all_tasks_blocked()
    await trio.sleep(1.0)
    recorder.end(trio.current_time() + PAUSE_S)
    _, agent = recorder.take(recorder.ended_at)

    begins, ends = round(PAUSE_S * BYTES_PER_S), round((PAUSE_S + 2.0) * BYTES_PER_S)
    assert agent[:begins] == SILENCE * begins
    assert SILENCE not in agent[begins + 1_000 : ends]
    assert agent[ends:] == SILENCE * (len(agent) - ends)
