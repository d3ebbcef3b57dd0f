"""The messages of Asterisk's media stream, without a socket."""

from __future__ import annotations

import json

import pytest

from codec.shapes import ALAW
from server.carrier import (
    CallerAudio,
    Clear,
    DigitPressed,
    MarkReached,
    SendAudio,
    SendMark,
    StreamStarted,
)
from server.carrier.asterisk.messages import (
    MAX_BEFORE_START,
    MAX_MESSAGE_CHARS,
    AsteriskProtocol,
)
from server.carrier.protocol import MAX_MALFORMED
from server.errors import CarrierProtocolError, StreamEnded

FRAME = bytes(range(160))


def start(media_format: str = "ulaw", **other: object) -> str:
    """``MEDIA_START`` as Asterisk 22.10.1 writes it."""
    variables = {
        "OFFHOOK_CALL": "offhook-1",
        "OFFHOOK_TICKET": "tick",
        "MEDIA_WEBSOCKET_CONNECTION_ID": "offhook",
        "MEDIA_WEBSOCKET_OPTIMAL_FRAME_SIZE": "160",
    }
    message = {
        "event": "MEDIA_START",
        "connection_id": "offhook",
        "channel": "WebSocket/offhook/0x7f642001a9e0",
        "channel_id": "offhook.media.1.offhook-1",
        "format": media_format,
        "optimal_frame_size": 160,
        "ptime": 20,
        "channel_variables": variables,
    }
    return json.dumps(message | other)


def started(media_format: str = "ulaw", now: float = 10.0) -> AsteriskProtocol:
    protocol = AsteriskProtocol()
    protocol.receive(start(media_format), now)
    return protocol


def test_the_start_names_the_call_and_shows_its_ticket():
    protocol = AsteriskProtocol()

    event = protocol.receive(start(), 10.0)

    assert event == StreamStarted(
        "offhook.media.1.offhook-1", "offhook-1", {"ticket": "tick"}, 10.0
    )
    assert protocol.stream_sid == "offhook.media.1.offhook-1"


def test_a_start_without_our_variables_is_nobodys():
    event = AsteriskProtocol().receive(start(channel_variables={}), 10.0)

    assert isinstance(event, StreamStarted)
    assert (event.call_sid, event.parameters) == ("", {"ticket": ""})


@pytest.mark.parametrize("media_format", ["slin16", "opus", ""])
def test_another_format_is_refused(media_format):
    with pytest.raises(CarrierProtocolError, match="only ulaw and alaw"):
        AsteriskProtocol().receive(start(media_format), 10.0)


def test_a_start_that_cannot_be_read_ends_the_stream():
    with pytest.raises(CarrierProtocolError, match="unreadable MEDIA_START"):
        AsteriskProtocol().receive('{"event":"MEDIA_START","channel_id":7}', 10.0)


def test_a_second_start_is_ignored():
    protocol = started()

    assert protocol.receive(start("slin16"), 11.0) is None
    assert protocol.counts.misplaced == 1


def test_frames_follow_each_other_until_the_caller_pauses():
    protocol = started(now=10.0)

    heard = [protocol.receive(FRAME, at) for at in (10.02, 10.045, 10.06, 12.0, 12.02)]

    assert all(isinstance(one, CallerAudio) and one.payload == FRAME for one in heard)
    assert [one.timestamp_ms for one in heard] == [20, 40, 60, 2_000, 2_020]
    assert protocol.counts.media == 5


def test_the_clock_goes_on_from_where_somebody_else_has_got_to():
    protocol = started(now=10.0)
    protocol.receive(FRAME, 10.0)

    protocol.count_elsewhere(3, timestamp_ms=80, heard_at=10.08)

    assert protocol.receive(FRAME, 10.1).timestamp_ms == 80
    assert protocol.counts.media == 5


def test_a_law_is_changed_to_mu_law_and_back():
    protocol = started("alaw")

    heard = protocol.receive(FRAME, 10.02)

    assert heard.payload == FRAME.translate(ALAW.to_mulaw)
    assert protocol.send(SendAudio(FRAME)) == [FRAME.translate(ALAW.of_mulaw)]
    assert protocol.audio_messages().law is ALAW


def test_audio_before_the_start_is_dropped_and_too_much_of_it_refused():
    protocol = AsteriskProtocol()

    for _ in range(MAX_BEFORE_START):
        assert protocol.receive(FRAME, 10.0) is None

    assert protocol.counts.misplaced == MAX_BEFORE_START
    with pytest.raises(CarrierProtocolError, match="before MEDIA_START"):
        protocol.receive(FRAME, 10.0)


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"event": "MEDIA_MARK_PROCESSED", "correlation_id": "3:20"}, MarkReached("3:20", 10.5)),
        ({"event": "DTMF_END", "digit": "#"}, DigitPressed("#")),
        ({"event": "STATUS", "queue_length": 4}, None),
        ({"event": "MEDIA_XOFF"}, None),
        ({"event": "SOMETHING_NEW", "x": [1]}, None),
    ],
)
def test_what_a_message_says(message, event):
    protocol = started()

    assert protocol.receive(json.dumps(message), 10.5) == event
    assert protocol.counts.malformed == 0
    assert protocol.counts.unknown == (message["event"] == "SOMETHING_NEW")


@pytest.mark.parametrize(
    "message",
    [
        '{"event":"DTMF_END","digit":"42"}',
        '{"event":"MEDIA_MARK_PROCESSED"}',
        "[]",
        "\ud800",
        "{" * 5_000,
        "x" * (MAX_MESSAGE_CHARS + 1),
    ],
)
def test_what_cannot_be_read_is_counted_until_it_is_too_much(message):
    protocol = started()

    for _ in range(MAX_MALFORMED - 1):
        assert protocol.receive(message, 10.5) is None

    with pytest.raises(CarrierProtocolError, match="malformed"):
        protocol.receive(message, 10.5)


def test_nothing_but_a_start_counts_before_the_start():
    protocol = AsteriskProtocol()

    assert protocol.receive('{"event":"DTMF_END","digit":"4"}', 10.0) is None
    with pytest.raises(StreamEnded):
        protocol.send(Clear())


def test_what_is_sent():
    protocol = started()

    assert protocol.begin() == '{"command":"START_MEDIA_BUFFERING"}'
    assert protocol.send(SendAudio(b"\0\xff")) == [b"\0\xff"]
    assert protocol.send(SendMark("3:20")) == ['{"command":"MARK_MEDIA","correlation_id":"3:20"}']
    # Asterisk forgets with the queue that it was to take audio of any length.
    assert protocol.send(Clear()) == [
        '{"command":"FLUSH_MEDIA"}',
        '{"command":"START_MEDIA_BUFFERING"}',
    ]


def test_a_mark_that_asterisk_would_ignore_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="ignored"):
        started().send(SendMark("x" * 100))
