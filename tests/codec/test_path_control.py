"""What Python decides about the media path: gates, allowance, clear, a new model, levels, taps."""

from __future__ import annotations

import base64
import json
import math
import random
import tracemalloc
from collections.abc import Iterator

import pytest
from websockets.frames import Frame, Opcode

import codec
from codec.ear import Ear, Played
from codec.path import Gate, MediaPath
from tests.support.path_messages import SID, audio, media
from tests.support.path_reference import texts
from tests.support.websocket_oracle import write_frames

CHUNK = bytes(range(160))
"""20 ms of caller audio."""
SPEECH = bytes(960)
"""20 ms of agent audio."""


@pytest.fixture
def path() -> MediaPath:
    """A path whose stream has started and whose model is ready."""
    path = MediaPath()
    path.start(SID)
    path.caller_gate = Gate.PASS
    return path


def hear(path: MediaPath, *chunks: bytes, first: int = 1) -> list[bytes]:
    """The phone sends these chunks; returns what Python is given."""
    messages = [Frame(Opcode.TEXT, media(chunk, n)) for n, chunk in enumerate(chunks, start=first)]
    path.phone.receive(write_frames(messages, masked=True))
    return list(iter(path.next_from_phone, None))


def say(path: MediaPath, *chunks: bytes) -> list[bytes]:
    """The model sends these chunks; returns what Python is given."""
    messages = [Frame(Opcode.TEXT, audio(chunk)) for chunk in chunks]
    path.model.receive(write_frames(messages, masked=False))
    return list(iter(path.next_from_model, None))


def messages_to_model(path: MediaPath) -> list[bytes]:
    """The pcm of each message that was written for the model since the last time."""
    messages = texts(path.model.take_output(), masked=True)
    return [base64.b64decode(json.loads(m)["realtimeInput"]["audio"]["data"]) for m in messages]


def to_model(path: MediaPath) -> bytes:
    """All the pcm that was written for the model since the last time."""
    return b"".join(messages_to_model(path))


def to_phone(path: MediaPath) -> list[str | int]:
    """What was written for the phone since the last time: bytes of audio, and other events."""
    out: list[str | int] = []
    for text in texts(path.phone.take_output(), masked=False):
        message = json.loads(text)
        assert message["streamSid"] == SID
        match message["event"]:
            case "media":
                out.append(len(base64.b64decode(message["media"]["payload"])))
            case "mark":
                out.append(f"mark {message['mark']['name']}")
            case event:
                out.append(event)
    return out


# --- The caller's gate ----------------------------------------------------------------------------


def test_holds_the_caller_until_the_model_is_ready_and_loses_nothing() -> None:
    path = MediaPath()
    path.start(SID)

    hear(path, *[CHUNK] * 8)
    before = to_model(path), path.caller_held_bytes
    path.caller_gate = Gate.PASS

    assert before == (b"", 8 * 160)
    assert to_model(path) == codec.MulawDecoder(16_000).decode(CHUNK * 8)
    assert (path.caller_held_bytes, path.caller_sent_bytes) == (0, 8 * 160)


def test_what_was_held_goes_out_in_messages_of_a_tenth_of_a_second() -> None:
    path = MediaPath()
    path.start(SID)

    hear(path, *[CHUNK] * 11)
    path.caller_gate = Gate.PASS

    messages = texts(path.model.take_output(), masked=True)
    sizes = [
        len(base64.b64decode(json.loads(m)["realtimeInput"]["audio"]["data"])) for m in messages
    ]
    assert sizes == [3200, 3200, 640]


def test_the_oldest_audio_is_dropped_beyond_the_holds_limit() -> None:
    path = MediaPath(caller_hold_limit_bytes=400)
    path.start(SID)

    hear(path, b"\x01" * 160, b"\x02" * 160, b"\x03" * 160)
    path.caller_gate = Gate.PASS

    assert path.caller_dropped_bytes == 80
    kept = b"\x01" * 80 + b"\x02" * 160 + b"\x03" * 160
    assert to_model(path) == codec.MulawDecoder(16_000).decode(kept)


def test_drops_the_caller_while_told_to(path: MediaPath) -> None:
    path.caller_gate = Gate.DROP
    hear(path, CHUNK)
    path.caller_gate = Gate.PASS
    hear(path, CHUNK)

    assert (path.caller_bytes, path.caller_dropped_bytes, path.caller_sent_bytes) == (320, 160, 160)
    assert to_model(path) == codec.MulawDecoder(16_000).decode(CHUNK)


def test_hands_the_callers_audio_up_while_told_to(path: MediaPath) -> None:
    path.caller_gate = Gate.HAND_UP

    assert hear(path, CHUNK) == [media(CHUNK, 1)]
    assert path.caller_bytes == 0


def test_audio_before_the_stream_has_a_name_is_handed_up() -> None:
    assert hear(MediaPath(), CHUNK) == [media(CHUNK, 1)]


def test_holds_the_caller_while_the_model_is_gone_and_plays_it_to_the_next(
    path: MediaPath,
) -> None:
    hear(path, CHUNK)
    to_model(path)
    path.model.receive_eof()

    hear(path, CHUNK, CHUNK)
    path.caller_gate = Gate.HOLD
    old, new = path.model, path.replace_model()
    hear(path, CHUNK)
    held = path.caller_held_bytes
    path.caller_gate = Gate.PASS

    assert old.take_output() == b""
    assert new is path.model
    assert held == 480
    # The decoder goes on where it was: no click where the connection changed.
    assert to_model(path) == codec.MulawDecoder(16_000).decode(CHUNK * 4)[-4 * 480 :]


# --- The agent's gate and allowance ---------------------------------------------------------------


def test_keeps_what_the_agent_says_before_the_phone_is_there() -> None:
    path = MediaPath()

    say(path, SPEECH, SPEECH)
    before = to_phone(path), path.agent_held_bytes
    path.start(SID)

    assert before == ([], 320)
    assert to_phone(path) == [320]


def test_holds_the_agent_until_told_otherwise(path: MediaPath) -> None:
    path.agent_gate = Gate.HOLD

    say(path, SPEECH, SPEECH)
    before = to_phone(path)
    path.agent_gate = Gate.PASS

    assert before == []
    assert to_phone(path) == [320]


def test_drops_the_agent_while_told_to(path: MediaPath) -> None:
    path.agent_gate = Gate.DROP
    say(path, SPEECH)
    path.agent_gate = Gate.PASS
    say(path, SPEECH)

    assert to_phone(path) == [160]
    assert (path.agent_bytes, path.agent_dropped_bytes, path.agent_sent_bytes) == (320, 160, 160)


def test_hands_the_agents_audio_up_while_told_to(path: MediaPath) -> None:
    path.agent_gate = Gate.HAND_UP

    assert say(path, SPEECH) == [audio(SPEECH)]
    assert path.agent_bytes == 0
    path.say(SPEECH)
    assert path.agent_held_bytes == 160  # handed up means that nothing is sent without Python


def test_sends_what_the_allowance_lets_and_holds_the_rest(path: MediaPath) -> None:
    path.agent_allowance_bytes = 400

    say(path, SPEECH, SPEECH, SPEECH)
    first = to_phone(path)
    held, left = path.agent_held_bytes, path.agent_allowance_bytes
    path.agent_allowance_bytes = 8000

    assert first == [160, 160, 80]
    assert (held, left) == (80, 0)
    assert to_phone(path) == [80]
    assert path.agent_allowance_bytes == 7920


def test_a_mark_can_be_put_where_the_allowance_stopped(path: MediaPath) -> None:
    path.agent_allowance_bytes = 8000

    say(path, 75 * SPEECH)
    path.mark("1:1000")
    path.agent_allowance_bytes = 8000

    assert to_phone(path) == [8000, "mark 1:1000", 4000]


def test_an_allowance_is_not_negative(path: MediaPath) -> None:
    with pytest.raises(ValueError, match="negative"):
        path.agent_allowance_bytes = -1


def test_a_message_to_the_phone_is_a_second_at_most(path: MediaPath) -> None:
    say(path, 125 * SPEECH)

    assert to_phone(path) == [8000, 8000, 4000]


# --- Barge-in -------------------------------------------------------------------------------------


def test_clear_drops_what_is_held_and_tells_the_phone(path: MediaPath) -> None:
    path.agent_allowance_bytes = 160
    say(path, SPEECH, SPEECH, SPEECH)

    dropped = path.clear()
    path.agent_allowance_bytes = 8000

    assert dropped == path.agent_dropped_bytes == 320
    assert to_phone(path) == [160, "clear"]


def test_python_acts_between_a_message_and_the_audio_after_it(path: MediaPath) -> None:
    interrupted = b'{"serverContent":{"interrupted":true}}'
    messages = [audio(SPEECH), interrupted, audio(2 * SPEECH)]
    path.model.receive(
        write_frames([Frame(Opcode.TEXT, message) for message in messages], masked=False)
    )

    assert path.next_from_model() == interrupted
    path.clear()
    assert path.next_from_model() is None

    assert to_phone(path) == [160, "clear", 320]


def test_the_next_turn_starts_with_a_fresh_encoder(path: MediaPath) -> None:
    loud = b"\xff\x7f" * 480
    say(path, loud)
    path.clear()
    path.phone.take_output()

    say(path, SPEECH)

    [text] = texts(path.phone.take_output(), masked=False)
    payload = base64.b64decode(json.loads(text)["media"]["payload"])
    assert payload == codec.MulawEncoder(24_000).encode(SPEECH)


def test_what_is_held_can_be_dropped_without_telling_anyone() -> None:
    path = MediaPath()
    say(path, SPEECH)

    assert path.drop_held_agent_audio() == 160
    path.start(SID)

    assert to_phone(path) == []


@pytest.mark.parametrize("act", [MediaPath.clear, lambda path: path.mark("1:0")])
def test_marks_and_clear_need_a_stream_that_is_open(act: object) -> None:
    path = MediaPath()
    assert callable(act)

    with pytest.raises(ValueError, match="no stream"):
        act(path)
    path.start(SID)
    path.stop()
    with pytest.raises(ValueError, match="no stream"):
        act(path)
    path.start(SID)
    path.phone.send_close(1000)
    with pytest.raises(ValueError, match="closed for sending"):
        act(path)


def test_after_stop_nothing_is_sent_and_late_audio_is_handed_up(path: MediaPath) -> None:
    path.stop()

    assert hear(path, CHUNK) == [media(CHUNK, 1)]
    say(path, SPEECH)
    assert path.phone.take_output() == b""


def test_agent_audio_is_kept_back_once_the_phone_is_closed(path: MediaPath) -> None:
    path.phone.send_close(1000)
    path.phone.take_output()

    say(path, SPEECH)

    assert path.phone.take_output() == b""
    assert path.agent_held_bytes == 160


def test_names_are_escaped() -> None:
    path = MediaPath()
    path.start('MZ"\\é')

    path.mark('a "name"\n')

    [text] = texts(path.phone.take_output(), masked=False)
    assert json.loads(text) == {
        "event": "mark",
        "streamSid": 'MZ"\\é',
        "mark": {"name": 'a "name"\n'},
    }


def test_half_a_sample_is_refused(path: MediaPath) -> None:
    with pytest.raises(ValueError, match="3 bytes of pcm"):
        path.say(b"abc")


# --- A broken side --------------------------------------------------------------------------------


def test_a_broken_rule_on_one_side_ends_that_side_only(path: MediaPath) -> None:
    path.phone.receive(b"\xc1\x80\x00\x00\x00\x00")

    assert path.next_from_phone() is None
    assert (path.phone.ended, path.phone.failure) == (True, "reserved bits")
    assert path.phone.take_output() == b"\x88\x0f\x03\xeareserved bits"
    assert not path.model.ended
    assert say(path, b"") == [audio(b"")]


def test_a_message_over_the_phones_limit_closes_with_1009(path: MediaPath) -> None:
    path.phone.receive(b"\x81\xff" + (2**20).to_bytes(8, "big"))

    assert path.next_from_phone() is None
    assert path.phone.close_code_sent == 1009


def test_pings_of_both_sides_are_answered(path: MediaPath) -> None:
    path.phone.receive(write_frames([Frame(Opcode.PING, b"p")], masked=True))
    path.model.receive(write_frames([Frame(Opcode.PING, b"m")], masked=False))

    assert (path.next_from_phone(), path.next_from_model()) == (None, None)
    assert path.phone.take_output() == b"\x8a\x01p"
    assert len(path.model.take_output()) == 7


# --- Memory ---------------------------------------------------------------------------------------


def memory_bytes() -> int:
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
def test_a_call_costs_few_kibibytes_and_gives_them_back() -> None:
    before = memory_bytes()
    paths = [MediaPath() for _ in range(10)]
    for path in paths:
        path.start(SID)
        path.caller_gate = Gate.PASS
        hear(path, CHUNK)
        say(path, SPEECH)
        path.model.take_output()
        path.phone.take_output()
    each = (memory_bytes() - before) / len(paths)
    del path
    paths.clear()

    assert each < 24 * 1024
    assert memory_bytes() - before < each / 2


@pytest.mark.usefixtures("_traced")
def test_the_memory_of_a_huge_message_is_given_back(path: MediaPath) -> None:
    before = memory_bytes()

    say(path, bytes(3_000_000))
    path.phone.take_output()

    assert memory_bytes() - before < 64 * 1024


# --- Levels and recording -------------------------------------------------------------------------


def test_measures_the_caller_and_the_agent(path: MediaPath) -> None:
    tone = [round(8000 * math.sin(2 * math.pi * 500 * i / 8000)) for i in range(160)]
    payload = codec.encode_mulaw(b"".join(s.to_bytes(2, "little", signed=True) for s in tone))

    hear(path, payload)
    level = path.take_caller_level()

    assert level.samples == 160
    assert level.rms == pytest.approx(8000 / math.sqrt(2), rel=0.02)
    assert level.peak == pytest.approx(8000, rel=0.03)
    assert level.full_scale_samples == 0
    assert path.take_agent_level().samples == 0


def test_a_level_is_what_came_since_the_last_one(path: MediaPath) -> None:
    hear(path, b"\x00" * 100 + b"\xff" * 50 + b"\x80" * 10)
    loud = path.take_caller_level()
    hear(path, b"\xff" * 160)
    silent = path.take_caller_level()
    none = path.take_caller_level()

    assert (loud.peak, loud.full_scale_samples) == (32124, 110)
    assert loud.rms == pytest.approx(32124 * math.sqrt(110 / 160))
    assert (silent.samples, silent.rms, silent.peak, silent.full_scale_samples) == (160, 0, 0, 0)
    assert (none.samples, none.rms, none.peak) == (0, 0, 0)


def test_levels_are_of_what_was_said_even_when_it_is_dropped(path: MediaPath) -> None:
    path.agent_gate = Gate.DROP

    say(path, b"\xff\x7f" * 480)

    assert path.take_agent_level().peak > 30_000


def test_records_both_sides_while_told_to(path: MediaPath) -> None:
    hear(path, CHUNK)
    path.recording = True
    hear(path, CHUNK[::-1], first=2)
    path.agent_allowance_bytes = 100
    say(path, SPEECH)

    caller, agent = path.take_recording()

    assert (caller, path.recorded_ms) == (CHUNK[::-1], 40)
    assert agent == codec.MulawEncoder(24_000).encode(SPEECH)[:100]
    assert path.take_recording() == (b"", b"")


def test_a_recording_is_one_stretch_and_what_begins_elsewhere_is_handed_up(path: MediaPath) -> None:
    path.recording = True
    handed_up = hear(path, CHUNK) + hear(path, CHUNK, first=9) + hear(path, CHUNK, first=2)

    assert handed_up == [media(CHUNK, 9)]
    assert (path.take_recording()[0], path.recorded_ms) == (CHUNK * 2, 40)


def test_an_echo_is_recorded_although_the_model_does_not_hear_it(path: MediaPath) -> None:
    played = Played(remember=True)
    path.ear = Ear(played, barge_in=True)
    path.recording = True
    said = random.Random(1)
    played.open = True
    heard = b""
    for number in range(200):
        frame = bytes([0x80 | said.randrange(0, 128)] * 160 if number % 7 else [0xFF] * 160)
        played.sent(frame, 0.02 * number)
        messages = [Frame(Opcode.TEXT, media(frame, number + 1))]
        path.phone.receive(write_frames(messages, masked=True))
        assert path.next_from_phone(0.02 * (number + 1)) is None
        heard += frame

    assert path.ear.echo_frames > 0
    assert path.take_recording()[0] == heard
    assert to_model(path) != codec.MulawDecoder(16_000).decode(heard)


# --- What a call asks of it besides --------------------------------------------------------------


def test_a_connection_that_is_not_ready_holds_what_may_pass(path: MediaPath) -> None:
    path.model_ready = False
    hear(path, CHUNK)
    held = to_model(path), path.caller_held_bytes, path.has_caller_news()
    path.model_ready = True

    assert held == (b"", 160, True)
    assert to_model(path) == codec.MulawDecoder(16_000).decode(CHUNK)
    assert not path.has_caller_news()


def test_held_audio_can_be_taken_and_goes_through_the_same_filter(path: MediaPath) -> None:
    hear(path, CHUNK)
    path.caller_gate = Gate.HOLD
    hear(path, CHUNK)
    taken = path.take_caller()
    path.caller_gate = Gate.PASS
    by_hand = path.decoder.decode(taken)
    hear(path, CHUNK)

    first, last = messages_to_model(path)
    assert taken == CHUNK
    assert first + by_hand + last == codec.MulawDecoder(16_000).decode(CHUNK * 3)


def test_what_was_sent_can_be_written_down_and_asks_for_it_every_second(path: MediaPath) -> None:
    path.keep_sent = True
    hear(path, *[CHUNK] * 49)
    quiet = path.has_caller_news()
    hear(path, CHUNK)

    assert (quiet, path.has_caller_news()) == (False, True)
    assert path.take_sent() == CHUNK * 50
    assert (path.take_sent(), path.has_caller_news()) == (b"", False)


def test_counting_goes_on_where_somebody_else_has_got_to(path: MediaPath) -> None:
    path.resume(last_chunk=7, timestamp_ms=140)
    messages = [
        Frame(Opcode.TEXT, media(CHUNK, 8)),
        Frame(Opcode.TEXT, media(CHUNK, 11)),
        Frame(Opcode.TEXT, media(CHUNK, 11)),
    ]
    path.phone.receive(write_frames(messages, masked=True))

    assert path.next_from_phone() is None
    assert path.counts() == (3, 2, 1, 2)
    assert (path.last_chunk, path.timestamp_ms) == (11, 220)


@pytest.fixture
def followed(path: MediaPath) -> MediaPath:
    """A path whose caller hears a turn of the agent's for the next second."""
    path.played = Played()
    path.played.open = True
    path.played.play_end = 1.0
    path.agent_gate = Gate.HAND_UP
    return path


def test_a_turn_is_followed_and_its_books_are_told_when_asked_for(followed: MediaPath) -> None:
    path = followed
    path.follow(limit_bytes=8_000)
    loud = b"\x00\x40" * 480

    handed_up = say(path, loud, SPEECH, loud)

    assert handed_up == []
    assert to_phone(path) == [160, 160, 160]
    assert path.played.play_end == pytest.approx(1.06)
    assert path.has_run
    assert not path.run_is_over()
    assert path.take_run() == (480, 320, 0.0)
    assert path.agent_gate is Gate.HAND_UP
    assert not path.has_run


def test_following_ends_with_the_first_message_that_is_not_audio(followed: MediaPath) -> None:
    path = followed
    path.follow(limit_bytes=8_000)
    complete = b'{"serverContent":{"generationComplete":true}}'
    messages = [Frame(Opcode.TEXT, m) for m in (audio(SPEECH), complete, audio(SPEECH))]
    path.model.receive(write_frames(messages, masked=False))

    assert list(iter(path.next_from_model, None)) == [complete, audio(SPEECH)]
    assert to_phone(path) == [160]
    assert path.take_run()[0] == 160


def test_following_ends_at_its_limit_and_says_so(followed: MediaPath) -> None:
    path = followed
    path.follow(limit_bytes=200)

    assert say(path, SPEECH, SPEECH, SPEECH) == [audio(SPEECH)]
    assert path.run_is_over()
    assert to_phone(path) == [160, 160]


def test_a_chunk_that_comes_too_late_is_for_somebody_to_look_at(followed: MediaPath) -> None:
    path = followed
    path.follow(limit_bytes=8_000)
    path.model.receive(write_frames([Frame(Opcode.TEXT, audio(SPEECH))], masked=False))

    assert path.next_from_model(1.5) == audio(SPEECH)
    assert to_phone(path) == []


def test_nothing_is_followed_without_a_stream_or_without_knowing_what_is_played() -> None:
    path = MediaPath()
    with pytest.raises(ValueError, match="cannot be followed"):
        path.follow(limit_bytes=8_000)
    path.played = Played()
    path.played.play_end = 1.0
    path.follow(limit_bytes=8_000)

    assert say(path, SPEECH) == [audio(SPEECH)]


def test_the_gates_know_that_only_the_agent_can_be_followed(path: MediaPath) -> None:
    with pytest.raises(ValueError, match="follow"):
        path.caller_gate = Gate.FOLLOW
    with pytest.raises(ValueError, match="follow"):
        path.agent_gate = Gate.FOLLOW


def test_a_connection_cannot_be_nothing(path: MediaPath) -> None:
    with pytest.raises(TypeError):
        path.phone = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        path.model = None  # type: ignore[assignment]
