"""What pages send and are sent, without a socket."""

from __future__ import annotations

import base64
import json
import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

import codec
from server.carrier import (
    CallerAudio,
    Clear,
    DigitPressed,
    MarkReached,
    SendAudio,
    SendMark,
    StreamStarted,
    StreamStopped,
)
from server.carrier.browser.messages import (
    KEYS_AT_ONCE,
    KEYS_PER_S,
    MAX_AHEAD_S,
    MAX_BEFORE_START,
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_CHARS,
    BrowserProtocol,
)
from server.carrier.protocol import MAX_MALFORMED
from server.errors import CarrierProtocolError, StreamEnded

CALL_SID = "BR" + "0a" * 16
NARROW = {"encoding": "audio/x-mulaw", "sampleRate": 8_000, "channels": 1}
WIDE = {"encoding": "audio/l16", "sampleRate": 16_000, "channels": 1}


def start(call_sid: str = CALL_SID, media_format: dict = NARROW, **more) -> str:
    facts = {
        "callSid": call_sid,
        "mediaFormat": media_format,
        "customParameters": {"ticket": "t1"},
    } | more
    return json.dumps({"event": "start", "streamSid": "MZ1", "start": facts})


def message(event: str, stream_sid: str = "MZ1", **facts) -> str:
    return json.dumps({"event": event, "streamSid": stream_sid, event: facts})


def media(payload: bytes, at_ms: int = 0, chunk: int = 1) -> str:
    text = base64.b64encode(payload).decode()
    return message("media", chunk=str(chunk), timestamp=str(at_ms), payload=text)


def started(media_format: dict = NARROW) -> BrowserProtocol:
    protocol = BrowserProtocol()
    protocol.receive(start(media_format=media_format), 0.0)
    return protocol


def tone(hz: float, rate_hz: int, seconds: float) -> bytes:
    count = round(seconds * rate_hz)
    return array(
        "h", (round(8_000 * math.sin(2 * math.pi * hz * n / rate_hz)) for n in range(count))
    ).tobytes()


def test_a_start_says_whose_stream_it_is():
    event = BrowserProtocol().receive(start(), 1.5)

    assert event == StreamStarted("MZ1", CALL_SID, {"ticket": "t1"}, 1.5)


@pytest.mark.parametrize(
    "text",
    [
        start(call_sid="CA" + "1" * 32),
        start(call_sid=CALL_SID + "0"),
        start(media_format=WIDE | {"sampleRate": 48_000}),
        start(media_format=NARROW | {"channels": 2}),
        start(customParameters=None),
        start().replace("MZ1", 'M\\"Z'),
        '{"event":"start"}',
    ],
)
def test_a_start_of_no_use_ends_the_stream(text):
    with pytest.raises(CarrierProtocolError):
        BrowserProtocol().receive(text, 0.0)


def test_too_much_before_a_start_ends_the_stream():
    protocol = BrowserProtocol()
    for _ in range(MAX_BEFORE_START):
        protocol.receive(message("mark", name="x"), 0.0)

    with pytest.raises(CarrierProtocolError):
        protocol.receive(message("mark", name="x"), 0.0)


def test_what_a_page_tells_is_read():
    protocol = started()

    assert protocol.receive(media(b"\x01" * 160, 40, 3), 2.0) == CallerAudio(b"\x01" * 160, 40, 2.0)
    assert protocol.receive(message("mark", name="1:20"), 2.0) == MarkReached("1:20", 2.0)
    assert protocol.receive(message("dtmf", digit="#"), 2.0) == DigitPressed("#")
    assert protocol.receive('{"event":"stop","streamSid":"MZ1"}', 2.0) == StreamStopped(said=True)
    with pytest.raises(StreamEnded):
        protocol.send(Clear())


def test_what_a_page_is_told_is_written():
    protocol = started()

    assert json.loads(protocol.send(SendAudio(b"\x01\x02"))) == {
        "event": "media",
        "streamSid": "MZ1",
        "media": {"payload": "AQI="},
    }
    assert json.loads(protocol.send(SendMark('a"b'))) == {
        "event": "mark",
        "streamSid": "MZ1",
        "mark": {"name": 'a"b'},
    }
    assert json.loads(protocol.send(Clear())) == {"event": "clear", "streamSid": "MZ1"}
    assert json.loads(protocol.say("Sorry.", "en"))["say"] == {"text": "Sorry.", "language": "en"}


def test_nothing_is_sent_before_a_start():
    with pytest.raises(StreamEnded):
        BrowserProtocol().send(SendAudio(b"\xff"))


def test_a_wide_stream_brings_its_samples_and_a_telephones_version_of_them():
    protocol = started(WIDE)
    pcm = tone(6_000, 16_000, 0.1)

    event = protocol.receive(media(pcm), 1.0)

    assert isinstance(event, CallerAudio)
    assert event.wide == pcm
    assert len(event.payload) == len(pcm) // 4
    heard = memoryview(codec.decode_mulaw(event.payload)).cast("h")
    assert max(heard[80:]) < 100  # nobody on a telephone hears 6 kHz


def test_a_wide_stream_is_sent_what_is_kept_beside_the_mulaw():
    protocol = started(WIDE)

    sent = json.loads(protocol.send(SendAudio(b"\x00" * 10, wide=b"\x01\x02" * 30)))

    assert base64.b64decode(sent["media"]["payload"]) == b"\x01\x02" * 30


def test_a_wide_stream_is_sent_mulaw_at_its_rate_where_there_is_no_more():
    protocol = started(WIDE)

    sent = json.loads(protocol.send(SendAudio(b"\x00" * 160)))

    assert len(base64.b64decode(sent["media"]["payload"])) == 960


def test_more_audio_than_time_has_passed_ends_the_stream():
    protocol, second = started(), bytes(MAX_CHUNK_BYTES)
    chunks = round(MAX_AHEAD_S * 8_000 / MAX_CHUNK_BYTES)
    for number in range(chunks):
        protocol.receive(media(second, chunk=number + 1), 0.0)

    protocol.receive(media(second, chunk=chunks + 1), 1.0)
    with pytest.raises(CarrierProtocolError):
        protocol.receive(media(second, chunk=chunks + 2), 1.0)


def test_keys_faster_than_anybody_presses_them_are_ignored_and_counted():
    protocol, key = started(), message("dtmf", digit="#")

    at_once = [protocol.receive(key, 0.0) for _ in range(1_000)]
    later = [protocol.receive(key, 1.0) for _ in range(1_000)]

    assert at_once == [DigitPressed("#")] * KEYS_AT_ONCE + [None] * (1_000 - KEYS_AT_ONCE)
    assert later.count(DigitPressed("#")) == KEYS_PER_S
    assert protocol.counts.hasty == 2_000 - KEYS_AT_ONCE - KEYS_PER_S


def test_keys_as_fast_as_they_can_be_pressed_are_all_read():
    protocol, key = started(), message("dtmf", digit="1")

    read = [protocol.receive(key, n / 15) for n in range(500)]

    assert read == [DigitPressed("1")] * 500


def test_audio_that_is_none_is_ignored_until_it_is_too_much():
    protocol = started(WIDE)
    odd = media(b"\x01" * 641)
    for _ in range(MAX_MALFORMED - 1):
        assert protocol.receive(odd, 0.0) is None

    with pytest.raises(CarrierProtocolError):
        protocol.receive(odd, 0.0)


def test_gaps_repeats_and_jumps_are_counted():
    protocol = started()
    for chunk, at_ms in ((1, 0), (4, 20), (4, 100)):
        protocol.receive(media(b"\x01" * 160, at_ms, chunk), 1.0)

    counts = protocol.counts
    assert (counts.missing_chunks, counts.repeated_chunks, counts.timestamp_jumps) == (2, 1, 1)
    assert (protocol.last_chunk, protocol.timestamp_ms) == (4, 120)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
EVENTS = st.sampled_from(["start", "media", "mark", "dtmf", "stop", "connected", "say", ""])
MESSAGES = st.one_of(
    st.text(max_size=200),
    st.binary(max_size=200),
    st.just("x" * (MAX_MESSAGE_CHARS + 1)),
    st.builds(
        json.dumps,
        st.fixed_dictionaries({"event": EVENTS}, optional={"streamSid": st.just("MZ1") | JSON}),
    ),
    st.builds(
        lambda event, facts: json.dumps({"event": event, "streamSid": "MZ1", event: facts}),
        EVENTS,
        JSON | st.fixed_dictionaries({"payload": JSON, "timestamp": JSON, "chunk": JSON}),
    ),
    st.builds(media, st.binary(max_size=400), st.integers(0, 10**15), st.integers(0, 10**15)),
    st.just(start()),
)


@given(st.lists(MESSAGES, max_size=30), st.sampled_from([None, NARROW, WIDE]))
def test_whatever_a_page_sends_is_read_ignored_or_refused(texts, media_format):
    protocol = BrowserProtocol() if media_format is None else started(media_format)

    try:
        events = [protocol.receive(text, 1.0) for text in texts]
    except CarrierProtocolError:
        return

    for event in events:
        if isinstance(event, CallerAudio):
            assert 0 < len(event.payload) <= MAX_CHUNK_BYTES
            assert 0 <= event.timestamp_ms < 10**16
