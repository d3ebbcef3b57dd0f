"""A media path between a carrier and a model that it has never heard of: shapes are data."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

import codec
from codec.ear import Played
from codec.path import MediaPath, WebSocket
from codec.shapes import AudioMessages, Maybe, Part, Shape
from tests.support.path_messages import FOR_EVER
from tests.support.path_reference import texts
from tests.support.websocket_oracle import write_frames

CHUNK = bytes(range(160))
SPEECH = bytes(960)

CARRIER = AudioMessages(
    received=Shape(
        {
            "event": "media",
            "sequence_number": Maybe(Part.TEXT),
            "media": {
                "track": ("inbound", "inbound_track"),
                "chunk": Maybe(Part.CHUNK_NUMBER),
                "timestamp": Part.TIMESTAMP_MS,
                "payload": Part.AUDIO,
            },
            "stream_id": Part.STREAM,
        },
        ignores_others=True,
    ),
    head=b'{"event":"media","media":{"payload":"',
    tail=b'"}}',
)
"""Much as Telnyx does it: what it is sent names no stream."""
MODEL = AudioMessages(
    received=Shape(
        {
            "type": "response.output_audio.delta",
            "event_id": Maybe(Part.TEXT),
            "response_id": Part.TEXT,
            "output": [[{"content": {"delta": Part.AUDIO}}]],
        },
        ignores_others=False,
    ),
    head=b'{"type":"input_audio_buffer.append","audio":"',
    tail=b'"}',
)
"""With the audio at the bottom of lists, beside fields of the same level."""


def joined(carrier: AudioMessages = CARRIER, stream: str = "s-1") -> MediaPath:
    """A path between the two, by which everything may pass."""
    path = MediaPath()
    path.phone = WebSocket(is_client=False, max_message_bytes=65536)
    path.join_model(WebSocket(is_client=True, max_message_bytes=65536), MODEL)
    path.start(stream, carrier)
    path.caller_passes = True
    path.played = Played()
    path.played.play_end = float("inf")
    path.follow(limit_bytes=FOR_EVER)
    return path


def media(**other: Any) -> dict[str, Any]:
    """A chunk as the carrier writes it; ``other`` replaces members of its ``media``."""
    inner = {"payload": base64.b64encode(CHUNK).decode(), "track": "inbound", "timestamp": "20"}
    return {"stream_id": "s-1", "media": inner | other, "event": "media", "version": 2}


def delta(**other: Any) -> dict[str, Any]:
    """A piece of speech as the model writes it; ``other`` replaces members."""
    content = {"content": {"delta": base64.b64encode(SPEECH).decode()}}
    message = {"output": [[content]], "type": "response.output_audio.delta", "response_id": "r"}
    return message | other


def hear(path: MediaPath, message: object) -> bytes | None:
    """The phone sends this; returns what Python is given."""
    assert path.phone is not None
    frame = Frame(Opcode.TEXT, json.dumps(message).encode())
    path.phone.receive(write_frames([frame], masked=True))
    return path.next_from_phone()


def say(path: MediaPath, message: object) -> bytes | None:
    """The model sends this; returns what Python is given."""
    assert path.model is not None
    frame = Frame(Opcode.TEXT, json.dumps(message).encode())
    path.model.receive(write_frames([frame], masked=False))
    return path.next_from_model()


def test_the_callers_way_is_written_as_the_other_two_do():
    path = joined()

    assert hear(path, media(chunk="3")) is None

    pcm = base64.b64encode(codec.MulawDecoder(16_000).decode(CHUNK)).decode()
    [sent] = texts(path.model.take_output(), masked=True)
    assert json.loads(sent) == {"type": "input_audio_buffer.append", "audio": pcm}
    assert (path.last_chunk, path.timestamp_ms) == (3, 40)


def test_the_agents_way_is_written_as_the_other_two_do():
    path = joined()

    assert say(path, delta(event_id="e")) is None

    payload = base64.b64encode(codec.MulawEncoder(24_000).encode(SPEECH)).decode()
    [sent] = texts(path.phone.take_output(), masked=False)
    assert json.loads(sent) == {"event": "media", "media": {"payload": payload}}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(media(track="outbound"), id="another word"),
        pytest.param(media() | {"stream_id": "s-2"}, id="another stream"),
        pytest.param(media(chunk="x"), id="no number"),
        pytest.param(media(note=None), id="neither text nor number"),
        pytest.param(media() | {"event": "stop"}, id="another event"),
        pytest.param({k: v for k, v in media().items() if k != "stream_id"}, id="no stream"),
        pytest.param(media() | {"media": [media()["media"]]}, id="a list"),
        pytest.param([media()], id="in a list"),
        pytest.param(
            {"event": "media", "streamSid": "s-1", "media": {"payload": "AAAA", "timestamp": "0"}},
            id="Twilio's",
        ),
    ],
)
def test_a_callers_message_of_another_shape_is_handed_up(message):
    path = joined()

    assert hear(path, message) == json.dumps(message).encode()
    assert (path.counts(), path.model.output_bytes) == ((0, 0, 0, 0), 0)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(delta(usage=1), id="a member more"),
        pytest.param(delta(response_id=1), id="no text"),
        pytest.param(delta(output=[]), id="an empty list"),
        pytest.param(delta(output=[delta()["output"][0]] * 2), id="two items"),
        pytest.param(delta(output=[[{"content": {}}]]), id="no audio"),
        pytest.param(
            {"serverContent": {"modelTurn": {"parts": [{"inlineData": {"data": "AAAA"}}]}}},
            id="Gemini's",
        ),
    ],
)
def test_a_models_message_of_another_shape_is_handed_up(message):
    path = joined()

    assert say(path, message) == json.dumps(message).encode()
    assert path.phone.output_bytes == 0


def test_audio_without_a_stream_or_a_clock_follows_what_came_before():
    bare = AudioMessages(Shape({"sound": Part.AUDIO}, ignores_others=False), b"<", b">")
    path = joined(bare, stream="")
    path.recording = True

    for _ in range(3):
        assert hear(path, {"sound": base64.b64encode(CHUNK).decode()}) is None
    say(path, delta())

    assert path.take_recording()[0] == CHUNK * 3
    assert (path.counts(), path.timestamp_ms) == ((3, 0, 0, 0), 60)
    [sent] = texts(path.phone.take_output(), masked=False)
    assert (sent[:1], sent[-1:]) == (b"<", b">")


def test_another_stream_may_have_another_shape():
    path = joined()
    path.stop()
    path.start("s-2", AudioMessages(Shape({"a": Part.AUDIO}, ignores_others=False), b"", b""))

    assert hear(path, media()) is not None
    assert hear(path, {"a": "AAAA"}) is None


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({}, ValueError),
        ({"a": "b"}, ValueError),
        ({"a": Part.AUDIO, "b": {"c": Part.AUDIO}}, ValueError),
        ({"a": Part.AUDIO, "b": {}}, ValueError),
        ({"a": [Part.AUDIO, Part.TEXT]}, ValueError),
        ({"a": Part.AUDIO, "b": []}, ValueError),
        ({"a": [[[[[[[[[Part.AUDIO]]]]]]]]]}, ValueError),
        ({str(n): Part.TEXT for n in range(32)} | {"a": Part.AUDIO}, ValueError),
        ({"a": Part.AUDIO, "b": None}, TypeError),
        ({"a": Part.AUDIO, "b": [Maybe("c")]}, TypeError),
        ({"a": Part.AUDIO, "b": ("c", 1)}, TypeError),
        ({"a": Part.AUDIO, 1: "c"}, TypeError),
        ([Part.AUDIO], TypeError),
    ],
)
def test_what_is_no_shape_is_refused(message, error):
    with pytest.raises(error):
        Shape(message, ignores_others=True)


def test_a_message_without_audio_is_handed_up_though_its_shape_need_not_have_any():
    shape = Shape({"event": "media", "media": Maybe({"payload": Part.AUDIO})}, ignores_others=True)
    path = joined(AudioMessages(shape, b"", b""))

    assert hear(path, {"event": "media"}) is not None
    assert path.counts() == (0, 0, 0, 0)
    assert hear(path, {"event": "media", "media": {"payload": "////"}}) is None


@pytest.mark.parametrize(
    "messages",
    [
        AudioMessages("", b"", b""),  # type: ignore[arg-type]
        AudioMessages(CARRIER.received, "", b""),  # type: ignore[arg-type]
        AudioMessages(CARRIER.received, b"", None),  # type: ignore[arg-type]
    ],
)
def test_a_path_takes_no_half_description(messages):
    path = joined()

    with pytest.raises(TypeError):
        path.start("s-2", messages)
    with pytest.raises(TypeError):
        path.join_model(path.model, messages)
    with pytest.raises(TypeError):
        CARRIER.received.__init__({"a": Part.AUDIO}, ignores_others=True)


def test_a_shape_gives_its_memory_back():
    tracemalloc.start()
    try:
        Shape({"a": {"b": Part.AUDIO}}, ignores_others=True)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1_000):
            Shape({"a": {"b": Part.AUDIO}, "c": ("d", "e")}, ignores_others=True)
            with pytest.raises(TypeError):
                Shape({"a": {"b": Part.AUDIO}, "c": ("d", 1)}, ignores_others=True)

        assert tracemalloc.get_traced_memory()[0] - before < 64 * 1024
    finally:
        tracemalloc.stop()
