"""Media Streams without a socket: what each message means and what is done with a bad one."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

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
from server.carrier.protocol import MAX_MALFORMED
from server.carrier.twilio.messages import (
    MAX_BEFORE_START,
    MAX_CHARS_BEFORE_START,
    MAX_MESSAGE_CHARS,
    StreamState,
    TwilioProtocol,
)
from server.errors import CarrierProtocolError, StreamEnded
from tests.support.twilio_messages import CALL, CONNECTED, FRAME, STOP, STREAM, media, start


def streaming() -> TwilioProtocol:
    protocol = TwilioProtocol()
    protocol.receive_text(CONNECTED, 0.0)
    protocol.receive_text(start(), 0.0)
    return protocol


def test_a_stream_from_connected_to_stop():
    protocol = TwilioProtocol()
    mark = json.dumps({"event": "mark", "streamSid": STREAM, "mark": {"name": "t7:42"}})
    dtmf = json.dumps(
        {"event": "dtmf", "streamSid": STREAM, "dtmf": {"track": "inbound_track", "digit": "#"}}
    )

    events = [
        protocol.receive_text(text, now)
        for now, text in enumerate([CONNECTED, start(), media(), mark, dtmf, STOP])
    ]

    assert events == [
        None,
        StreamStarted(STREAM, CALL, {"ticket": "t1"}, 1),
        CallerAudio(FRAME, 0, 2),
        MarkReached("t7:42", 3),
        DigitPressed("#"),
        StreamStopped(said=True),
    ]
    assert protocol.state is StreamState.STOPPED
    assert protocol.stream_sid == STREAM


def test_commands_are_written_as_twilio_reads_them():
    protocol = streaming()

    sent = [
        json.loads(protocol.send(command))
        for command in (SendAudio(FRAME), SendMark('a "b" ñ'), Clear())
    ]

    payload = base64.b64encode(FRAME).decode()
    assert sent == [
        {"event": "media", "streamSid": STREAM, "media": {"payload": payload}},
        {"event": "mark", "streamSid": STREAM, "mark": {"name": 'a "b" ñ'}},
        {"event": "clear", "streamSid": STREAM},
    ]


def test_nothing_can_be_sent_before_start():
    with pytest.raises(ValueError, match="before the stream has started"):
        TwilioProtocol().send(Clear())


def test_nothing_can_be_sent_after_stop():
    protocol = streaming()
    protocol.receive_text(STOP, 0.0)

    with pytest.raises(StreamEnded):
        protocol.send(Clear())


@pytest.mark.parametrize("parameters", [{"customParameters": {}}, {"customParameters": None}])
def test_a_start_may_carry_no_parameters(parameters):
    event = TwilioProtocol().receive_text(start(**parameters), 0.0)

    assert isinstance(event, StreamStarted)
    assert event.parameters == {}


def test_a_start_may_lack_its_parameters():
    message = json.loads(start())
    del message["start"]["customParameters"]

    event = TwilioProtocol().receive_text(json.dumps(message), 0.0)

    assert isinstance(event, StreamStarted)
    assert event.parameters == {}


@pytest.mark.parametrize(
    "media_format",
    [
        {"encoding": "audio/x-mulaw", "sampleRate": 16000, "channels": 1},
        {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 2},
        {"encoding": "audio/l16", "sampleRate": 8000, "channels": 1},
    ],
)
def test_another_media_format_is_refused(media_format):
    with pytest.raises(CarrierProtocolError, match="media format is") as failure:
        TwilioProtocol().receive_text(start(mediaFormat=media_format), 0.0)

    assert failure.value.stream_sid == STREAM


@pytest.mark.parametrize("changes", [{"callSid": None}, {"callSid": ""}, {"mediaFormat": "mulaw"}])
def test_a_start_that_cannot_be_read_is_refused(changes):
    with pytest.raises(CarrierProtocolError, match="unreadable start"):
        TwilioProtocol().receive_text(start(**changes), 0.0)


def test_media_before_start_and_after_stop_is_ignored_and_counted():
    protocol = TwilioProtocol()

    before = protocol.receive_text(media(), 0.0)
    protocol.receive_text(start(), 0.0)
    protocol.receive_text(STOP, 0.0)
    after = [protocol.receive_text(text, 0.0) for text in (media(), STOP, start())]

    assert (before, after) == (None, [None] * 3)
    assert protocol.counts.misplaced == 4


def test_a_second_start_does_not_rename_the_stream():
    protocol = streaming()

    event = protocol.receive_text(start().replace(STREAM, "MZother"), 0.0)

    assert event is None
    assert protocol.stream_sid == STREAM
    assert protocol.counts.misplaced == 1


@pytest.mark.parametrize("text", [media(), STOP])
def test_another_streams_message_is_ignored_and_counted(text):
    protocol = streaming()

    assert protocol.receive_text(text.replace(STREAM, "MZother"), 0.0) is None
    assert protocol.counts.foreign == 1
    assert protocol.state is StreamState.STREAMING


def test_a_track_that_is_not_the_callers_is_ignored_and_counted():
    protocol = streaming()

    assert protocol.receive_text(media(track="outbound"), 0.0) is None
    assert protocol.counts.foreign == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"event":7}',
        "\ud800",
        "[" * 50_000,
        '{"event":"media","x":' + "[" * 50_000,
        " " * (MAX_MESSAGE_CHARS + 1),
        media(payload="bm9wZQ"),  # no padding
        media(payload="_-8="),  # the other alphabet
        media(payload="no+J hoa"),
        media(payload=None),
        media(timestamp=-1),
        json.dumps({"event": "media", "streamSid": STREAM}),
        json.dumps({"event": "mark", "streamSid": STREAM, "mark": {}}),
        json.dumps({"event": "dtmf", "streamSid": STREAM, "dtmf": {"digit": "12"}}),
    ],
)
def test_a_malformed_message_is_ignored_and_counted(text):
    protocol = streaming()

    assert protocol.receive_text(text, 0.0) is None
    assert protocol.counts.malformed == 1
    assert protocol.receive_text(media(), 1.0) == CallerAudio(FRAME, 0, 1.0)


BEFORE_START = {
    "connected": CONNECTED,
    "empty": "",
    "media": media(1),
    "stop": STOP,
    "binary": b"\0",
    "unknown kind": '{"event":"never-heard-of"}',
    "no JSON": "{",
}


@pytest.mark.parametrize("text", BEFORE_START.values(), ids=BEFORE_START)
def test_not_much_may_come_before_a_start_whatever_it_is(text):
    protocol = TwilioProtocol()
    with capture_logs() as lines:
        for _ in range(MAX_BEFORE_START):
            assert protocol.receive_text(text, 0.0) is None

        with pytest.raises(CarrierProtocolError, match="before a start"):
            protocol.receive_text(text, 0.0)

    assert lines == []  # it may be anybody


@pytest.mark.parametrize("text", ['{"event":"x"}', "{"])
def test_few_long_messages_before_a_start_are_too_much_as_well(text):
    protocol = TwilioProtocol()
    protocol.receive_text(text.ljust(MAX_CHARS_BEFORE_START), 0.0)

    with pytest.raises(CarrierProtocolError, match="before a start"):
        protocol.receive_text(text, 0.0)


def test_a_call_whose_messages_are_odd_says_so_and_goes_on():
    protocol = streaming()
    with capture_logs() as lines:
        for _ in range(MAX_BEFORE_START + 1):
            protocol.receive_text('{"event":"never-heard-of"}', 0.0)
            protocol.receive_text("x" * (MAX_MESSAGE_CHARS + 1), 0.0)

    assert protocol.receive_text(media(1), 0.0) is not None
    assert len(lines) == 2


def test_a_stream_of_malformed_messages_is_given_up():
    protocol = streaming()
    for _ in range(MAX_MALFORMED - 1):
        protocol.receive_text("{", 0.0)

    with pytest.raises(CarrierProtocolError, match="50 malformed messages"):
        protocol.receive_text("{", 0.0)


def test_unknown_kinds_are_ignored_for_ever_and_logged_once_each(capsys):
    protocol = streaming()

    for _ in range(2 * MAX_MALFORMED):
        assert protocol.receive_text('{"event":"weather","streamSid":"MZ1"}', 0.0) is None
        assert protocol.receive_text('{"event":"tide"}', 0.0) is None

    assert protocol.counts.unknown == 4 * MAX_MALFORMED
    output = capsys.readouterr().out
    assert (output.count("weather"), output.count("tide")) == (1, 1)


def test_binary_frames_are_ignored_and_counted():
    protocol = streaming()

    assert protocol.receive_text(media().encode(), 0.0) is None
    assert protocol.counts.binary == 1


def test_numbers_may_come_as_numbers():
    protocol = streaming()

    event = protocol.receive_text(media(timestamp=40).replace('"40"', "40"), 0.0)

    assert event == CallerAudio(FRAME, 40, 0.0)


def test_gaps_and_repeats_are_counted_and_their_audio_is_delivered_as_it_came():
    protocol = streaming()

    # Real streams may begin at any chunk and at 5 ms or so; then 3 chunks are lost, one is late.
    events = [
        protocol.receive_text(media(chunk, timestamp), 0.0)
        for chunk, timestamp in [(2, 5), (3, 25), (7, 105), (6, 85), (7, 105)]
    ]

    assert [event.timestamp_ms for event in events] == [5, 25, 105, 85, 105]
    assert protocol.counts.media == 5
    assert protocol.counts.missing_chunks == 3
    assert protocol.counts.repeated_chunks == 2
    assert protocol.counts.timestamp_jumps == 2


@pytest.mark.parametrize("digits", [16, 19, 20, 400, 4_299, 4_301])
@pytest.mark.parametrize("quoted", [True, False])
def test_a_number_that_no_stream_has_makes_its_message_malformed(digits, quoted):
    protocol = streaming()
    written = f'"{"9" * digits}"' if quoted else "9" * digits

    for message in (media(timestamp=7_777), media(7_777, timestamp=0)):
        assert protocol.receive_text(message.replace('"7777"', written), 0.0) is None

    assert protocol.counts.malformed == 2
    assert protocol.receive_text(media(1, 0), 0.0) == CallerAudio(FRAME, 0, 0.0)


def test_chunk_numbers_a_minute_apart_are_no_hour_of_lost_audio():
    protocol = streaming()

    protocol.receive_text(media(1, 0), 0.0)
    protocol.receive_text(media(10**14, 20), 0.0)

    assert protocol.counts.missing_chunks == 3_000


@pytest.mark.parametrize("field", ["sampleRate", "channels"])
def test_an_endless_number_in_a_media_format_is_no_format(field):
    media_format = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    endless = start(mediaFormat=media_format | {field: int("9" * 400)})

    with pytest.raises(CarrierProtocolError) as refused:
        TwilioProtocol().receive_text(endless, 0.0)

    assert len(str(refused.value)) < 300


def test_a_chunk_without_samples_says_nothing():
    protocol = streaming()

    assert protocol.receive_text(media(payload=""), 0.0) is None
    assert (protocol.counts.media, protocol.counts.malformed) == (0, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children),
    max_leaves=12,
)
KINDS = st.sampled_from(["connected", "start", "media", "dtmf", "mark", "stop", "weather"])
NEAR_MESSAGES = st.fixed_dictionaries(
    {"event": KINDS | JSON},
    optional={
        "streamSid": st.just(STREAM) | JSON,
        "sequenceNumber": JSON,
        "start": JSON | st.dictionaries(st.sampled_from(["callSid", "mediaFormat"]), JSON),
        "media": JSON
        | st.fixed_dictionaries(
            {"payload": st.just("AAAA") | JSON, "timestamp": st.just("20") | JSON},
            optional={"chunk": st.integers() | st.text(), "track": st.just("inbound") | JSON},
        ),
        "dtmf": JSON | st.fixed_dictionaries({"digit": JSON}),
        "mark": JSON | st.fixed_dictionaries({"name": JSON}),
    },
).map(json.dumps)


@given(
    texts=st.lists(
        st.one_of(
            st.text(),
            st.binary(),
            JSON.map(json.dumps),
            NEAR_MESSAGES,
            st.sampled_from([CONNECTED, start(), media(), STOP]),
        ),
        max_size=30,
    )
)
def test_whatever_comes_only_protocol_errors_are_raised(texts):
    protocol = TwilioProtocol()

    for text in texts:
        with contextlib.suppress(CarrierProtocolError):
            protocol.receive_text(text, 0.0)


@given(payload=st.binary(min_size=1, max_size=2000))
def test_any_payload_survives_the_wire_both_ways(payload):
    protocol = streaming()

    heard = protocol.receive_text(media(payload=base64.b64encode(payload).decode()), 0.0)
    sent = json.loads(protocol.send(SendAudio(payload)))

    assert isinstance(heard, CallerAudio)
    assert heard.payload == payload
    assert base64.b64decode(sent["media"]["payload"], validate=True) == payload
