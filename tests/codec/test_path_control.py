"""What Python decides about the media path: what may pass, whom it joins, what it writes down."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from collections.abc import Iterator

import pytest
from websockets.frames import Frame, Opcode

import codec
from codec.ear import Ear, Played
from codec.path import MediaPath, WebSocket
from server.carrier.twilio.messages import audio_messages
from server.model.gemini.messages import AUDIO_MESSAGES
from tests.support.path_messages import SID, audio, joined_path, media, open_path
from tests.support.path_reference import texts
from tests.support.websocket_oracle import write_frames

CHUNK = bytes(range(160))
"""20 ms of caller audio."""
SPEECH = bytes(960)
"""20 ms of agent audio."""


@pytest.fixture
def path() -> MediaPath:
    """A path by which all audio may pass."""
    return open_path()


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


# --- What the caller says -------------------------------------------------------------------------


def test_holds_the_caller_until_the_model_is_ready_and_loses_nothing() -> None:
    path = joined_path()
    path.start(SID, audio_messages(SID))

    hear(path, *[CHUNK] * 8)
    before = to_model(path), path.has_caller_news()
    path.caller_passes = True

    assert before == (b"", True)
    assert to_model(path) == codec.MulawDecoder(16_000).decode(CHUNK * 8)
    assert (path.take_caller(), path.caller_sent_bytes) == (b"", 8 * 160)


def test_what_was_held_goes_out_in_messages_of_a_tenth_of_a_second() -> None:
    path = joined_path()
    path.start(SID, audio_messages(SID))

    hear(path, *[CHUNK] * 11)
    path.caller_passes = True

    messages = texts(path.model.take_output(), masked=True)
    sizes = [
        len(base64.b64decode(json.loads(m)["realtimeInput"]["audio"]["data"])) for m in messages
    ]
    assert sizes == [3200, 3200, 640]


def test_audio_that_comes_before_it_can_have_been_spoken_is_handed_up() -> None:
    path = joined_path()
    path.start(SID, audio_messages(SID))
    path.resume(last_chunk=0, timestamp_ms=None, due_at=-0.05)

    handed_up = hear(path, *[CHUNK] * 4)  # at 0, and 20 ms each

    assert handed_up == [media(CHUNK, 3), media(CHUNK, 4)]
    assert path.take_caller() == CHUNK * 2
    assert path.due_at == pytest.approx(-0.01)


def test_where_nobody_minds_audio_may_come_as_early_as_it_likes() -> None:
    path = joined_path()
    path.start(SID, audio_messages(SID))
    path.resume(last_chunk=0, timestamp_ms=None)

    assert hear(path, *[CHUNK] * 1_000) == []


def test_audio_before_the_stream_has_a_name_is_handed_up() -> None:
    assert hear(joined_path(), CHUNK) == [media(CHUNK, 1)]


def test_holds_the_caller_while_the_model_is_gone_and_plays_it_to_the_next(
    path: MediaPath,
) -> None:
    hear(path, CHUNK)
    to_model(path)
    path.model.receive_eof()

    hear(path, CHUNK, CHUNK)
    path.caller_passes = False
    old = path.model
    path.join_model(WebSocket(is_client=True, max_message_bytes=65536), AUDIO_MESSAGES)
    hear(path, CHUNK)
    path.caller_passes = True

    assert old.take_output() == b""
    # The decoder goes on where it was: no click where the connection changed.
    assert to_model(path) == codec.MulawDecoder(16_000).decode(CHUNK * 4)[-4 * 480 :]


# --- What the agent says --------------------------------------------------------------------------


def test_nothing_passes_while_there_is_nobody() -> None:
    path = MediaPath()

    path.caller_passes = path.model_ready = True

    assert (path.phone, path.model) == (None, None)
    assert (path.next_from_phone(), path.next_from_model()) == (None, None)


def test_a_message_to_the_phone_is_a_second_at_most(path: MediaPath) -> None:
    say(path, 125 * SPEECH)

    assert to_phone(path) == [8000, 8000, 4000]


def test_after_stop_nothing_is_sent_and_late_audio_is_handed_up(path: MediaPath) -> None:
    path.stop()

    assert hear(path, CHUNK) == [media(CHUNK, 1)]
    assert say(path, SPEECH) == [audio(SPEECH)]
    assert path.phone.take_output() == b""


def test_agent_audio_is_handed_up_once_the_phone_is_closed(path: MediaPath) -> None:
    path.phone.send_close(1000)
    path.phone.take_output()

    assert say(path, SPEECH) == [audio(SPEECH)]
    assert path.phone.take_output() == b""


def test_a_streams_name_is_escaped(path: MediaPath) -> None:
    path.start('MZ"\\é', audio_messages('MZ"\\é'))

    say(path, SPEECH)

    [text] = texts(path.phone.take_output(), masked=False)
    assert json.loads(text)["streamSid"] == 'MZ"\\é'


@pytest.mark.parametrize("said", [b"", b"abc"])
def test_what_is_not_whole_samples_is_handed_up(path: MediaPath, said: bytes) -> None:
    assert say(path, said) == [audio(said)]
    assert path.phone.take_output() == b""


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
    talk(open_path())  # whatever is made once is there then
    # Other threads may take some meanwhile; what is not given back is not, however often.
    each, left = min((cost_of(10) for _ in range(3)), key=lambda cost: cost[1])

    assert each < 6 * 1024
    assert left < each / 2


def cost_of(count: int) -> tuple[float, int]:
    """What each of so many calls takes, and what all of them leave behind."""
    before = memory_bytes()
    paths = [open_path() for _ in range(count)]
    for path in paths:
        talk(path)
    each = (memory_bytes() - before) / count
    del path
    paths.clear()
    return each, memory_bytes() - before


def talk(path: MediaPath) -> None:
    """Have both sides say something, and write all of it."""
    hear(path, CHUNK)
    say(path, SPEECH)
    path.model.take_output()
    path.phone.take_output()


@pytest.mark.usefixtures("_traced")
def test_the_memory_of_a_huge_message_is_given_back(path: MediaPath) -> None:
    before = memory_bytes()

    say(path, bytes(3_000_000))
    path.phone.take_output()

    assert memory_bytes() - before < 64 * 1024


# --- Recording ------------------------------------------------------------------------------------


def test_records_both_sides_while_told_to(path: MediaPath) -> None:
    hear(path, CHUNK)
    path.recording = True
    hear(path, CHUNK[::-1], first=2)
    say(path, SPEECH)

    caller, agent = path.take_recording()

    assert (caller, path.recorded_ms) == (CHUNK[::-1], 40)
    assert agent == codec.MulawEncoder(24_000).encode(SPEECH)
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
    held = to_model(path), path.has_caller_news()
    path.model_ready = True

    assert held == (b"", True)
    assert to_model(path) == codec.MulawDecoder(16_000).decode(CHUNK)
    assert not path.has_caller_news()


def test_of_what_only_waits_for_a_turn_the_newest_is_kept_and_nobody_is_told(
    path: MediaPath,
) -> None:
    path.keep_newest_bytes = 2 * len(CHUNK)
    path.model_ready = False
    for _ in range(10):
        hear(path, CHUNK)
        assert not path.has_caller_news()
        assert path.keeps_only

    assert to_model(path) == b""
    path.keep_newest_bytes = 0
    assert not path.keeps_only
    path.model_ready = True
    assert len(to_model(path)) == 4 * 2 * len(CHUNK)


def test_what_somebody_has_to_look_at_is_kept_whole_though_it_waits_for_a_turn(
    path: MediaPath,
) -> None:
    path.keep_newest_bytes = len(CHUNK)
    path.model_ready = path.caller_passes = False
    for _ in range(3):
        hear(path, CHUNK)

    assert path.has_caller_news()
    assert not path.keeps_only
    assert path.take_caller() == CHUNK * 3


def test_held_audio_can_be_taken_and_goes_through_the_same_filter(path: MediaPath) -> None:
    hear(path, CHUNK)
    path.caller_passes = False
    hear(path, CHUNK)
    taken = path.take_caller()
    path.caller_passes = True
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
    assert path.take_run() == (480, 320, 0.0, 0.0)
    assert not path.has_run
    assert say(path, loud) == [audio(loud)]


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


def test_a_chunk_that_comes_when_little_is_left_to_play_can_be_somebodys_to_look_at(
    followed: MediaPath,
) -> None:
    path = followed
    path.follow(limit_bytes=8_000, thin_s=0.2)
    frames = [Frame(Opcode.TEXT, audio(SPEECH))]

    path.model.receive(write_frames(frames, masked=False))
    assert path.next_from_model(0.75) is None

    path.model.receive(write_frames(frames, masked=False))
    assert path.next_from_model(0.83) == audio(SPEECH)


def test_how_late_the_latest_chunk_was_is_told_by_the_audio_before_it(followed: MediaPath) -> None:
    path = followed
    path.follow(limit_bytes=8_000)
    for at in (0.1, 0.3, 0.31):
        path.model.receive(write_frames([Frame(Opcode.TEXT, audio(SPEECH))], masked=False))
        assert path.next_from_model(at) is None

    assert path.take_run() == (480, 0, 0.31, pytest.approx(0.28))  # the second, after 20 ms


def test_nothing_is_followed_without_a_stream_or_without_knowing_what_is_played() -> None:
    path = joined_path()
    with pytest.raises(ValueError, match="cannot be followed"):
        path.follow(limit_bytes=8_000)
    path.played = Played()
    path.played.play_end = 1.0
    path.follow(limit_bytes=8_000)

    assert say(path, SPEECH) == [audio(SPEECH)]


def test_a_connection_cannot_be_nothing(path: MediaPath) -> None:
    with pytest.raises(TypeError):
        path.phone = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        path.join_model(None, AUDIO_MESSAGES)  # type: ignore[arg-type]
