"""A media path to a carrier whose audio is binary frames, in mu-law or in A-law."""

from __future__ import annotations

import base64
import json
import random

import pytest
from websockets.frames import Frame, Opcode

import codec
import codec.shapes
from codec.ear import Played
from codec.path import MediaPath, WebSocket
from codec.shapes import ALAW, AudioMessages, Law
from server.model.gemini.messages import AUDIO_MESSAGES
from tests.support.path_messages import FOR_EVER, audio
from tests.support.websocket_oracle import write_frames

MULAW_FRAMES = AudioMessages(received=None)
ALAW_FRAMES = AudioMessages(received=None, law=ALAW)
CHUNK = random.Random(5).randbytes(160)
SPEECH = random.Random(6).randbytes(3840)


def joined(carrier: AudioMessages = MULAW_FRAMES) -> MediaPath:
    """A path by which everything may pass, whose stream has begun at time 1."""
    path = MediaPath()
    path.phone = WebSocket(is_client=False, max_message_bytes=65536)
    path.join_model(WebSocket(is_client=True, max_message_bytes=65536), AUDIO_MESSAGES)
    path.next_from_phone(1.0)
    path.start("", carrier)
    path.resume(last_chunk=0, timestamp_ms=0)
    path.caller_passes = True
    path.played = Played()
    path.played.play_end = float("inf")
    path.follow(limit_bytes=FOR_EVER)
    return path


def received(path: MediaPath, payload: bytes, now: float = 1.02, opcode=Opcode.BINARY):
    path.phone.receive(write_frames([Frame(opcode, payload)], masked=True))
    return path.next_from_phone(now)


def frames_of(output: bytes) -> list[tuple[bytes, bool]]:
    """Messages that we have sent to the phone, and whether each is text."""
    reader, found = WebSocket(is_client=True, max_message_bytes=65536), []
    reader.receive(output)
    while (message := reader.next_message()) is not None:
        found.append((message, reader.is_text))
    return found


def told_model(path: MediaPath) -> bytes:
    """The samples that the model has been sent."""
    reader, said = WebSocket(is_client=False, max_message_bytes=65536), b""
    reader.receive(path.model.take_output())
    while (message := reader.next_message()) is not None:
        said += base64.b64decode(json.loads(message)["realtimeInput"]["audio"]["data"])
    return said


@pytest.mark.parametrize("carrier", [MULAW_FRAMES, ALAW_FRAMES], ids=["mu-law", "A-law"])
def test_a_binary_frame_goes_to_the_model(carrier):
    path = joined(carrier)
    payload = CHUNK if carrier.law is None else CHUNK.translate(ALAW.of_mulaw)

    assert received(path, payload) is None

    heard = CHUNK if carrier.law is None else payload.translate(ALAW.to_mulaw)
    assert told_model(path) == codec.MulawDecoder(16_000).decode(heard)
    assert path.counts() == (1, 0, 0, 0)
    assert path.timestamp_ms == 20


@pytest.mark.parametrize("carrier", [MULAW_FRAMES, ALAW_FRAMES], ids=["mu-law", "A-law"])
def test_what_the_agent_says_is_sent_as_a_binary_frame(carrier):
    path = joined(carrier)
    path.recording = True
    path.model.receive(write_frames([Frame(Opcode.TEXT, audio(SPEECH))], masked=False))

    assert path.next_from_model(1.0) is None

    said = codec.MulawEncoder(24_000).encode(SPEECH)
    sent = said if carrier.law is None else said.translate(ALAW.of_mulaw)
    assert frames_of(path.phone.take_output()) == [(sent, False)]
    assert path.take_recording() == (b"", said)


def test_text_comes_out_whole_with_the_audio_around_it_in_order():
    path = joined()
    frames = [Frame(Opcode.BINARY, CHUNK), Frame(Opcode.TEXT, b"{}"), Frame(Opcode.BINARY, CHUNK)]
    path.phone.receive(write_frames(frames, masked=True))

    assert path.next_from_phone(1.02) == b"{}"
    assert path.phone.is_text
    assert path.counts()[0] == 1
    assert path.next_from_phone(1.02) is None
    assert path.counts()[0] == 2


def test_after_a_pause_python_says_what_time_it_is():
    path = joined()
    received(path, CHUNK, now=1.02)

    late = received(path, CHUNK, now=1.5)
    path.resume(last_chunk=0, timestamp_ms=500)
    next_one = received(path, CHUNK, now=1.52)

    assert late == CHUNK
    assert not path.phone.is_text
    assert next_one is None
    assert path.timestamp_ms == 520


@pytest.mark.parametrize("words", [1, 2])
def test_a_pause_is_one_whatever_is_said_in_text_meanwhile(words):
    path = joined()
    received(path, CHUNK, now=1.02)
    for word in range(words):
        assert received(path, b"{}", now=4.9 + word / 100, opcode=Opcode.TEXT) == b"{}"
        path.resume(last_chunk=0, timestamp_ms=20)

    assert received(path, CHUNK, now=5.0) == CHUNK


def test_a_late_frame_is_no_pause():
    path = joined()
    received(path, CHUNK, now=1.02)

    assert received(path, CHUNK, now=1.19) is None
    assert path.timestamp_ms == 40


def test_a_frame_before_anybody_knows_the_time_comes_out():
    path = joined()
    path.resume(last_chunk=0, timestamp_ms=None)

    assert received(path, CHUNK) == CHUNK


def test_an_empty_frame_comes_out():
    assert received(joined(), b"") == b""


def test_a_model_has_no_binary_audio():
    path = MediaPath()
    websocket = WebSocket(is_client=True, max_message_bytes=65536)

    with pytest.raises(ValueError, match="base64"):
        path.join_model(websocket, MULAW_FRAMES)


def test_a_law_with_too_few_codes_is_refused():
    with pytest.raises(ValueError, match="256"):
        joined(AudioMessages(None, law=Law(b"\0", b"\0")))


def test_a_law_changes_base64_too():
    path = MediaPath()
    path.phone = WebSocket(is_client=False, max_message_bytes=65536)
    path.join_model(WebSocket(is_client=True, max_message_bytes=65536), AUDIO_MESSAGES)
    shape = codec.shapes.Shape({"audio": codec.shapes.Part.AUDIO}, ignores_others=False)
    path.start("", AudioMessages(shape, b'{"audio":"', b'"}', law=ALAW))
    path.recording = True
    message = json.dumps({"audio": base64.b64encode(CHUNK).decode()}).encode()

    received(path, message, opcode=Opcode.TEXT)

    assert path.take_recording()[0] == CHUNK.translate(ALAW.to_mulaw)


def test_each_code_of_a_law_becomes_the_nearest_of_mu_law():
    values = memoryview(codec.decode_alaw(bytes(range(256)))).cast("h")
    turned = memoryview(codec.decode_mulaw(ALAW.to_mulaw)).cast("h")
    steps = memoryview(codec.decode_mulaw(bytes(range(256)))).cast("h")

    for value, code in zip(values, turned, strict=True):
        # No more than the mu-law quantiser itself errs.
        assert abs(value - code) <= min(abs(value - step) for step in steps) + 132


def test_a_binary_message_may_be_sent_alone():
    path = joined()

    path.phone.send_binary(b"\x00\xff")
    path.phone.send_close()

    assert frames_of(path.phone.take_output()) == [(b"\x00\xff", False)]
    with pytest.raises(ValueError, match="closed"):
        path.phone.send_binary(b"")
