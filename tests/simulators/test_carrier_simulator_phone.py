"""The simulated phone on the mock clock: pacing, marks, clear and the people who hold it."""

import json
import struct
from dataclasses import replace
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.carrier import (
    CallerAudio,
    Clear,
    DigitPressed,
    MarkReached,
    SendAudio,
    SendMark,
    StreamStopped,
)
from server.simulators.phone import (
    BUFFER_BYTES,
    BYTES_PER_S,
    FRAME_BYTES,
    PHONE_SCRIPTS,
    SILENCE,
    Drop,
    Earpiece,
    HangUp,
    HearPause,
    HearSpeech,
    PhoneScript,
    Press,
    Say,
    SayFrames,
    SimulatedPhone,
    StreamEnd,
    Wait,
    find_script,
    is_loud,
    load_speech,
    memory_transports,
    two_channel_wav,
)
from tests.support import streams

LOUD = bytes([0x00, 0x80]) * (FRAME_BYTES // 2)  # Full scale, both signs.
LOUD_S = LOUD * 50


async def call(nursery, *steps, script=None):
    """A phone that follows a script and the stream our side has with it."""
    phone = SimulatedPhone(script or PhoneScript("test", steps), parameters={"ticket": "t1"})
    ours, carriers = memory_transports()
    nursery.start_soon(phone.run, carriers)
    stream = await streams.start(nursery, ours)
    return phone, stream, stream.started


async def events_until_stop(stream):
    events = await stream.until_stop()
    await wait_all_tasks_blocked()
    return events


async def test_a_stream_begins_and_ends_as_twilio_does(nursery, autojump_clock):
    phone, stream, started = await call(nursery, Wait(0.1), HangUp())

    events = await events_until_stop(stream)

    assert (started.call_sid, started.stream_sid) == (phone.call_sid, phone.stream_sid)
    assert started.parameters == {"ticket": "t1"}
    assert [type(event) for event in events] == [CallerAudio] * 5 + [StreamStopped]
    assert events[-1] == StreamStopped(said=True)
    assert phone.end is StreamEnd.HUNG_UP
    assert stream.counts.missing_chunks == stream.counts.timestamp_jumps == 0


async def test_every_message_is_written_as_twilio_documents_it(nursery, autojump_clock):
    phone = SimulatedPhone(PhoneScript("test", (Press("5"), HangUp())), parameters={"ticket": "t1"})
    ours, carriers = memory_transports()
    nursery.start_soon(phone.run, carriers)

    messages = [json.loads(await ours.receive()) for _ in range(14)]

    sid, call_sid, account = phone.stream_sid, phone.call_sid, phone.account_sid
    assert messages[0] == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    assert messages[1] == {
        "event": "start",
        "sequenceNumber": "1",
        "streamSid": sid,
        "start": {
            "accountSid": account,
            "streamSid": sid,
            "callSid": call_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"ticket": "t1"},
        },
    }
    assert messages[2] == {
        "event": "dtmf",
        "streamSid": sid,
        "sequenceNumber": "2",
        "dtmf": {"track": "inbound_track", "digit": "5"},
    }
    payload = messages[3]["media"].pop("payload")
    assert len(payload) == 216
    assert messages[4]["media"].pop("payload") == payload
    assert messages[3:5] == [
        {
            "event": "media",
            "sequenceNumber": str(number + 2),
            "streamSid": sid,
            "media": {
                "track": "inbound",
                "chunk": str(number),
                "timestamp": str(20 * (number - 1)),
            },
        }
        for number in (1, 2)
    ]
    assert messages[13] == {
        "event": "stop",
        "sequenceNumber": "13",
        "streamSid": sid,
        "stop": {"accountSid": account, "callSid": call_sid},
    }


async def test_frames_come_every_20_ms_on_absolute_deadlines(nursery, autojump_clock):
    _, stream, started = await call(nursery, Wait(2.0), HangUp())

    events = (await events_until_stop(stream))[:-1]

    offsets = [event.received_at - started.received_at for event in events]
    assert offsets == pytest.approx([0.02 * number for number in range(1, 101)])


async def test_speech_is_said_and_silence_between(nursery, autojump_clock):
    phone, stream, _ = await call(nursery, Wait(0.2), Say("hello"), Wait(0.2), HangUp())

    heard = b"".join(event.payload for event in (await events_until_stop(stream))[:-1])

    speech = load_speech("hello")
    assert heard[: 10 * FRAME_BYTES] == SILENCE * 10
    assert heard[10 * FRAME_BYTES :][: len(speech)] == speech
    assert heard.endswith(SILENCE * 10)
    assert heard == bytes(phone.said)
    (utterance,) = phone.utterances
    assert utterance.clip == "hello"
    assert utterance.ended_s - utterance.began_s == pytest.approx(len(speech) / 8000, abs=0.021)


async def test_what_is_sent_is_heard_at_its_place_and_at_its_pace(nursery, autojump_clock):
    phone, stream, started = await call(nursery, Wait(3.0), HangUp())

    await trio.sleep_until(started.received_at + 0.99)
    stream.send(SendAudio(LOUD_S))
    await events_until_stop(stream)

    # Sent within the 50th frame, so it is played from that frame on.
    assert phone.heard == SILENCE * 49 + LOUD_S + SILENCE * 51
    assert len(phone.heard) == len(phone.said)
    assert phone.received[0][0] == pytest.approx(0.99)
    assert phone.first_sound_s == pytest.approx(1.0)


async def test_a_mark_returns_when_the_audio_before_it_was_played(nursery, autojump_clock):
    phone, stream, started = await call(nursery, Wait(3.0), HangUp())

    stream.send(SendMark("empty"))
    stream.send(SendAudio(LOUD_S))
    stream.send(SendMark("one"))
    stream.send(SendAudio(LOUD * 5 + LOUD[:40]))
    stream.send(SendMark("two"))
    events = await events_until_stop(stream)

    marks = [
        (event.name, round(event.received_at - started.received_at, 3))
        for event in events
        if isinstance(event, MarkReached)
    ]
    assert marks == [("empty", 0.0), ("one", 1.0), ("two", 1.12)]
    assert [(mark.name, mark.cleared) for mark in phone.marks] == [
        ("empty", False),
        ("one", False),
        ("two", False),
    ]


async def test_clear_drops_what_was_not_played_and_returns_every_mark_at_once(
    nursery, autojump_clock
):
    phone, stream, started = await call(nursery, Wait(3.0), HangUp())

    for name in ("t1:1", "t1:2"):
        stream.send(SendAudio(LOUD_S))
        stream.send(SendMark(name))
    await trio.sleep_until(started.received_at + 0.51)
    stream.send(Clear())
    events = await events_until_stop(stream)

    marks = [
        (event.name, round(event.received_at - started.received_at, 3))
        for event in events
        if isinstance(event, MarkReached)
    ]
    assert marks == [("t1:1", 0.51), ("t1:2", 0.51)]
    assert phone.heard == LOUD * 25 + SILENCE * 125
    (clear,) = phone.clears
    assert clear.at_s == pytest.approx(0.51)
    assert clear.dropped_bytes == 1.5 * BYTES_PER_S
    assert [mark.cleared for mark in phone.marks] == [True, True]


async def test_leftovers_of_a_cut_turn_are_told_from_the_next_turn(nursery, autojump_clock):
    phone, stream, started = await call(nursery, Wait(0.1), Say("hello"), Wait(3.0), HangUp())

    stream.send(SendAudio(LOUD_S))
    await trio.sleep_until(started.received_at + 0.5)
    stream.send(Clear())
    stream.send(SendAudio(LOUD))
    await trio.sleep_until(started.received_at + 3.0)
    stream.send(SendAudio(LOUD_S))
    await events_until_stop(stream)

    assert phone.bytes_after_clear == len(LOUD)


async def test_a_person_waits_for_speech_and_for_its_end(nursery, autojump_clock):
    _, stream, started = await call(nursery, HearSpeech(), HearPause(0.5), Press("1"), HangUp())

    await trio.sleep_until(started.received_at + 0.99)
    stream.send(SendAudio(LOUD_S))
    events = await events_until_stop(stream)

    # One second silent, one of speech, half of pause: then the key, 200 ms later the end.
    frames = [isinstance(event, DigitPressed) for event in events].index(True)
    assert frames == pytest.approx(125, abs=1)


async def test_a_person_does_not_wait_for_ever(nursery, autojump_clock):
    _, stream, _ = await call(nursery, HearSpeech(timeout_s=1.0), HangUp())

    assert len(await events_until_stop(stream)) == 51


async def test_frames_go_on_in_the_next_stream_where_the_last_one_broke_off(
    nursery, autojump_clock
):
    said = [bytes([code]) * FRAME_BYTES for code in range(6)]
    frames = iter(said)
    first, *_ = await call(nursery, SayFrames(frames))
    await trio.sleep(0.07)
    first.stop()
    await trio.sleep(0.1)

    second, stream, _ = await call(nursery, SayFrames(frames), HangUp())
    await events_until_stop(stream)

    # The frame that was to come when the line broke off is nobody's.
    assert bytes(first.said) == b"".join(said[:3])
    assert bytes(second.said) == b"".join(said[4:])
    assert second.end is StreamEnd.HUNG_UP


async def test_a_dropped_line_says_no_stop(nursery, autojump_clock):
    phone, stream, _ = await call(nursery, Wait(0.04), Drop())

    events = await events_until_stop(stream)

    assert [type(event) for event in events] == [CallerAudio, CallerAudio, StreamStopped]
    assert events[-1] == StreamStopped(said=False)
    assert phone.end is StreamEnd.DROPPED


async def test_the_server_may_close_the_stream(nursery, autojump_clock):
    phone, stream, started = await call(nursery)
    ours_closed_at = started.received_at + 1.0

    await trio.sleep_until(ours_closed_at)
    await stream.aclose(1008, "bad ticket")
    await trio.sleep(0.1)

    assert phone.end is StreamEnd.CLOSED
    assert len(phone.said) == pytest.approx(BYTES_PER_S, abs=FRAME_BYTES)


async def test_the_carrier_may_stop_the_stream(nursery, autojump_clock):
    phone, stream, started = await call(nursery)

    await trio.sleep_until(started.received_at + 1.0)
    phone.stop()
    events = await events_until_stop(stream)

    assert events[-1] == StreamStopped(said=True)
    assert phone.end is StreamEnd.STOPPED


async def test_bad_messages_are_counted_and_the_call_goes_on(nursery, autojump_clock):
    phone = SimulatedPhone(PhoneScript("test", (Wait(1.0), HangUp())))
    ours, carriers = memory_transports()
    nursery.start_soon(phone.run, carriers)
    sid = phone.stream_sid
    good = {"event": "media", "streamSid": sid, "media": {"payload": "AAAA"}}

    for bad in (
        "{",
        "[" * 50_000,
        "\ud800",
        json.dumps({**good, "event": "weather"}),
        json.dumps({**good, "streamSid": "MZother"}),
        json.dumps({**good, "media": {"payload": "A"}}),
        json.dumps({**good, "media": {"payload": "AAAA", "track": "outbound"}}),
        json.dumps({**good, "extra": 1}),
        json.dumps({"event": "mark", "streamSid": sid}),
    ):
        await ours.send(bad)
    await ours.send(b"binary")
    await ours.send(json.dumps(good))
    await events_until_stop(await streams.start(nursery, ours))

    assert (phone.warnings.invalid_31951, phone.warnings.binary_31950) == (9, 1)
    assert [length for _, length in phone.received] == [3]


async def test_a_clock_that_stood_still_is_caught_up_with(nursery, autojump_clock):
    phone, stream, started = await call(nursery, Wait(2.0), HangUp())

    autojump_clock.autojump_threshold = float("inf")
    stream.send(SendAudio(LOUD_S))
    stream.send(Clear())
    await wait_all_tasks_blocked()
    autojump_clock.jump(1.0)  # Nobody ran for a second.
    autojump_clock.autojump_threshold = 0
    events = await events_until_stop(stream)

    assert len(events) == 101
    assert events[49].received_at - started.received_at == pytest.approx(1.0)
    assert phone.heard == SILENCE * 100


GREETING = LOUD_S * 3


async def agent(stream):
    """Greets, answers whoever pauses, and stops when talked over: a model for these tests only."""
    greeting = SendAudio(GREETING)
    stream.send(greeting)
    busy_until = trio.current_time() + 3.0
    spoken = quiet = 0
    async with stream_closing(stream):
        while True:
            event = await stream.receive()
            if isinstance(event, StreamStopped):
                return event
            if not isinstance(event, CallerAudio):
                continue
            if is_loud(event.payload):
                spoken, quiet = spoken + 1, 0
                if spoken == 5 and event.received_at < busy_until:
                    stream.send(Clear())
                    busy_until = event.received_at
            else:
                quiet += 1
                if quiet == 30:
                    if spoken >= 10:
                        stream.send(SendAudio(LOUD_S))
                        busy_until = event.received_at + 1.0
                    spoken = 0


class stream_closing:
    def __init__(self, stream):
        self._stream = stream

    async def __aenter__(self):
        pass

    async def __aexit__(self, *_):
        await self._stream.aclose()


async def play_out(nursery, script):
    phone, stream, _ = await call(nursery, script=script)
    with trio.fail_after(120):
        last = await agent(stream)
    await wait_all_tasks_blocked()
    return phone, stream, last


async def test_script_talks(nursery, autojump_clock):
    phone, _, last = await play_out(nursery, PHONE_SCRIPTS["talks"])

    assert [utterance.clip for utterance in phone.utterances] == ["question", "goodbye"]
    assert last == StreamStopped(said=True)
    assert phone.end is StreamEnd.HUNG_UP
    assert phone.clears == []
    assert phone.heard.count(LOUD_S) == 5  # A greeting of three seconds and two answers.


async def test_script_interrupts(nursery, autojump_clock):
    phone, _, last = await play_out(nursery, PHONE_SCRIPTS["interrupts"])

    assert [utterance.clip for utterance in phone.utterances] == ["interrupt", "goodbye"]
    assert last == StreamStopped(said=True)
    (clear,) = phone.clears
    assert clear.dropped_bytes > 0
    assert phone.utterances[0].began_s < clear.at_s < phone.utterances[0].ended_s
    assert phone.bytes_after_clear == 0


async def test_script_hangs_up(nursery, autojump_clock):
    phone, _, last = await play_out(nursery, PHONE_SCRIPTS["hangs-up"])

    assert last == StreamStopped(said=True)
    assert phone.end is StreamEnd.HUNG_UP
    assert len(phone.said) < len(GREETING)  # In the middle of the greeting.


async def test_script_drops(nursery, autojump_clock):
    phone, _, last = await play_out(nursery, PHONE_SCRIPTS["drops"])

    assert last == StreamStopped(said=False)
    assert phone.end is StreamEnd.DROPPED


async def test_script_garbage(nursery, autojump_clock):
    phone, stream, last = await play_out(nursery, PHONE_SCRIPTS["garbage"])

    assert [utterance.clip for utterance in phone.utterances] == ["question"]
    assert last == StreamStopped(said=True)
    counts = stream.counts
    assert (counts.malformed, counts.unknown, counts.foreign, counts.binary) == (14, 2, 4, 2)
    assert counts.misplaced == 2
    assert counts.media * FRAME_BYTES == len(phone.said)


async def test_script_never_hangs_up(nursery, autojump_clock):
    phone, stream, _ = await call(nursery, script=PHONE_SCRIPTS["never-hangs-up"])

    with trio.move_on_after(150):
        await agent(stream)
    await wait_all_tasks_blocked()

    assert phone.end is StreamEnd.CLOSED
    assert len(phone.utterances) > 12


@pytest.mark.parametrize("script", PHONE_SCRIPTS.values(), ids=PHONE_SCRIPTS)
def test_every_script_is_found_by_its_name(script):
    assert find_script(script.name) is script
    assert find_script(replace(script, ring_s=0.1)).ring_s == 0.1


def test_an_unknown_script_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no script 'sings'; there are talks, asks-once"):
        find_script("sings")


def test_the_buffer_holds_ten_minutes_and_no_more():
    earpiece = Earpiece()

    earpiece.push(bytes(BUFFER_BYTES - 100))
    earpiece.push(bytes(300))
    earpiece.mark("end")
    dropped, names = earpiece.clear()

    assert earpiece.discarded_bytes == 200
    assert (dropped, names) == (BUFFER_BYTES, ["end"])


def test_marks_of_one_name_and_marks_after_a_clear_keep_their_places():
    earpiece = Earpiece()
    earpiece.push(LOUD * 2)
    assert earpiece.mark("a") == []
    assert earpiece.play() == (LOUD, [])
    earpiece.clear()
    assert earpiece.mark("a") == ["a"]
    earpiece.push(LOUD)
    assert earpiece.mark("a") == []

    assert earpiece.play() == (LOUD, ["a"])
    assert earpiece.play() == (SILENCE, [])
    assert earpiece.heard == LOUD * 2 + SILENCE


@pytest.mark.parametrize("clip", ["hello", "question", "interrupt", "followup", "goodbye"])
def test_recorded_speech_sounds_like_a_caller(clip):
    speech = load_speech(clip)
    frames = [speech[start : start + FRAME_BYTES] for start in range(0, len(speech), FRAME_BYTES)]
    loud = [is_loud(frame) for frame in frames]

    assert 1.0 <= len(speech) / BYTES_PER_S <= 3.5
    assert sum(loud) > len(frames) / 2
    assert any(loud[:5])  # It begins at once,
    assert "".join("#" if frame else "." for frame in loud).count("." * 20) == 0  # without a gap.


def test_silence_is_not_loud():
    assert not is_loud(SILENCE)
    assert not is_loud(b"\x7f" * FRAME_BYTES)
    assert not is_loud(bytes([0xFF] * 152 + [0x00] * 8))
    assert is_loud(LOUD)


def test_a_recording_has_the_callee_left_and_the_agent_right():
    # Codes and their values from ITU-T G.711, table 2a: both ends and both zeros.
    wav = two_channel_wav(bytes([0x80, 0x00, 0xFF]), bytes([0x7F]))

    assert wav[:4] + wav[8:16] == b"RIFFWAVEfmt "
    assert struct.unpack("<IHHIIHH", wav[16:36]) == (16, 1, 2, 8000, 32000, 4, 16)
    assert int.from_bytes(wav[4:8], "little") == len(wav) - 8
    assert struct.unpack("<I6h", wav[40:]) == (12, 32124, 0, -32124, 0, 0, 0)


async def test_a_phone_that_is_cancelled_closes_its_transport(nursery, autojump_clock):
    phone = SimulatedPhone(PhoneScript("test"))
    ours, carriers = memory_transports()

    with trio.move_on_after(1.0):
        await partial(phone.run, carriers)()

    assert ours.closed_by_peer == (1000, "")
