"""The compiled media path gives what the readable protocols give, byte for byte."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from codec import _base64
from tests.support.inputs import inputs
from tests.support.path_messages import SID, audio, media, open_path, pcm
from tests.support.path_reference import DrivenPath, ReferencePath, pieces, texts
from tests.support.websocket_oracle import write_frames

START = json.dumps(
    {
        "event": "start",
        "sequenceNumber": "1",
        "streamSid": SID,
        "start": {
            "accountSid": "AC00",
            "streamSid": SID,
            "callSid": "CA" + "0" * 32,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"ticket": "é"},
        },
    },
    ensure_ascii=False,
).encode()

mulaw = st.one_of(
    st.just(bytes(range(160))),
    st.binary(max_size=8),
    st.integers(0, 2500).map(lambda size: random.Random(size).randbytes(size)),
)
numbers: st.SearchStrategy[object] = st.one_of(
    st.integers(0, 10**17),
    st.integers(0, 10**17).map(str),
    st.sampled_from([None, "", "-1", "1.5", " 7", "007", True, "0", 0, -0.0, "1e3", [], 2**70]),
)
separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")])


def respelt(
    draw: st.DrawFn, value: dict[str, Any], *, spoil: bool, depth: int = 0
) -> dict[str, Any]:
    """The same object with its members in another order, and now and then one more or less."""
    members = list(value.items())
    draw(st.randoms(use_true_random=False)).shuffle(members)
    if spoil and draw(st.integers(0, 3)) == 0:
        extra = draw(
            st.sampled_from(
                [None, True, 1, -5, 0.5, "x", 'q"\\', "é\u2028", [1, []], {"payload": ""}]
            )
        )
        members.insert(draw(st.integers(0, len(members))), ("extra", extra))
    if spoil and members and draw(st.integers(0, 5)) == 0:
        del members[draw(st.integers(0, len(members) - 1))]
    return {
        name: respelt(draw, inner, spoil=spoil, depth=depth + 1)
        if isinstance(inner, dict)
        else inner
        for name, inner in members
    }


@st.composite
def written(draw: st.DrawFn, value: dict[str, Any]) -> bytes:
    """An object as JSON in one of its spellings, perhaps spoilt."""
    spoil = draw(st.booleans())
    text = json.dumps(
        respelt(draw, value, spoil=spoil),
        separators=draw(separators),
        ensure_ascii=draw(st.booleans()),
    )
    if spoil:
        match draw(st.integers(0, 9)):
            case 0:  # a member twice: which one counts?
                text = text.replace("{", '{"event":"stop",', 1)
            case 1:
                text = text.replace("/", "\\/")
            case 2:
                text = text.replace("}", ',"payload":"AAAA"}', 1)
            case 3:
                text = text.replace("+", "-").replace("/", "_")
            case 4:
                text = text.replace("=", "")
            case 5:
                text = text.replace("}", ",}", 1)
            case 6:
                text = " \n" + text + draw(st.sampled_from([" ", "\r\n", "x", "\0", "{}", "\x0b"]))
            case 7:
                text = text[: draw(st.integers(0, len(text)))]
    return text.encode()


caller_media = st.builds(
    lambda payload, number, timestamp, sid, track: {
        "event": "media",
        "sequenceNumber": "3",
        "streamSid": sid,
        "media": {
            "track": track,
            "chunk": number,
            "timestamp": timestamp,
            "payload": base64.b64encode(payload).decode(),
        },
    },
    mulaw,
    numbers,
    numbers,
    st.sampled_from([SID, SID, SID, "MZother", ""]),
    st.sampled_from(["inbound"] * 4 + ["outbound", "", None, 1]),
)
regular_media = st.builds(media, mulaw, st.integers(1, 50))
carrier_messages = st.one_of(
    regular_media,
    regular_media,
    regular_media,
    caller_media.flatmap(written),
    st.builds(
        lambda name: json.dumps(
            {"event": "mark", "streamSid": SID, "mark": {"name": name}}
        ).encode(),
        st.text(max_size=6),
    ),
    st.just(b'{"event":"dtmf","streamSid":"%s","dtmf":{"digit":"#"}}' % SID.encode()),
    st.just(b'{"event":"connected","protocol":"Call","version":"1.0.0"}'),
    st.just(b'{"event":"stop","streamSid":"%s","stop":{"callSid":"CA00"}}' % SID.encode()),
    st.just(b'{"event":"news","media":{"payload":"AAAA"}}'),
    st.text(max_size=10).map(str.encode),
)
mime_types = st.sampled_from(
    ["audio/pcm;rate=24000"] * 5
    + ["audio/pcm", "audio/pcm;rate=16000", "audio/pcm; rate=24000", "audio/opus", "", None, 5]
)
agent_audio = st.builds(
    lambda said, mime_type: {
        "serverContent": {
            "modelTurn": {
                "parts": [
                    {"inlineData": {"mimeType": mime_type, "data": base64.b64encode(said).decode()}}
                ],
                "role": "model",
            }
        }
    },
    pcm,
    mime_types,
)
regular_audio = st.builds(audio, pcm)
model_messages = st.one_of(
    regular_audio,
    regular_audio,
    regular_audio,
    agent_audio.flatmap(written),
    st.builds(audio, pcm, outputTranscription=st.just({"text": "grüß dich"})),
    st.builds(audio, pcm, turnComplete=st.just(True)),
    st.sampled_from(
        [
            b'{"serverContent":{"interrupted":true}}',
            b'{"serverContent":{"turnComplete":true},"usageMetadata":{"totalTokenCount":5}}',
            b'{"serverContent":{"modelTurn":{"parts":[{"text":"thought"}]}}}',
            b'{"serverContent":{"modelTurn":{"parts":[]}}}',
            b'{"server_content":{"model_turn":{"parts":[{"inline_data":'
            b'{"mime_type":"audio/pcm;rate=24000","data":"AAAA"}}]}}}',
            b'{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm","data":'
            b'"AAAA"}},{"inlineData":{"mimeType":"audio/pcm","data":"AAAA"}}]}}}',
            b'{"goAway":{"timeLeft":"50s"}}',
            b"{}",
            b"",
        ]
    ),
)


@st.composite
def framed(draw: st.DrawFn, message: bytes, *, masked: bool, text: bool = True) -> bytes:
    """A message in one frame or several, with a ping or pong between them now and then."""
    cuts = draw(st.lists(st.integers(0, len(message)), max_size=2))
    parts = list(pieces(message, cuts))
    frames = []
    for index, part in enumerate(parts):
        opcode = Opcode.CONT if index else (Opcode.TEXT if text else Opcode.BINARY)
        frames.append(Frame(opcode, part, fin=index == len(parts) - 1))
        if draw(st.integers(0, 9)) == 0:
            frames.append(Frame(draw(st.sampled_from([Opcode.PING, Opcode.PONG])), b"beat"))
    return write_frames(frames, masked=masked)


def feed(receive: Callable[[bytes], None], data: bytes, cuts: Sequence[int] | None = None) -> None:
    """Give a path its bytes in these pieces, or one by one."""
    split = [data[at : at + 1] for at in range(len(data))] if cuts is None else pieces(data, cuts)
    for piece in split:
        receive(piece)


cut_places = st.one_of(
    st.none(), st.lists(st.integers(0, 20_000), max_size=8), st.just(range(0, 40_000, 1460))
)


@settings(max_examples=inputs(150))
@given(st.lists(carrier_messages, max_size=8), cut_places, st.data())
def test_the_callers_way_is_the_readable_one(
    messages: list[bytes], cuts: Sequence[int] | None, data: st.DataObject
) -> None:
    reference, driven = ReferencePath(), DrivenPath()
    stream = b"".join(data.draw(framed(m, masked=True)) for m in [START, *messages])

    for message in [START, *messages]:
        reference.from_phone(message.decode())
    feed(driven.from_phone, stream, cuts)

    driven.count()
    assert driven.out == reference.out
    assert driven.twilio.counts == reference.twilio.counts
    assert not driven.path.has_caller_news()


@settings(max_examples=inputs(150))
@given(st.lists(model_messages, max_size=8), cut_places, st.data())
@pytest.mark.slow
def test_the_agents_way_is_the_readable_one(
    messages: list[bytes], cuts: Sequence[int] | None, data: st.DataObject
) -> None:
    reference, driven = ReferencePath(), DrivenPath()
    is_text = data.draw(st.booleans())
    stream = b"".join(data.draw(framed(m, masked=False, text=is_text)) for m in messages)
    start = write_frames([Frame(Opcode.TEXT, START)], masked=True)

    reference.from_phone(START.decode())
    driven.from_phone(start)
    for message in messages:
        reference.from_model(message)
    feed(driven.from_model, stream, cuts)

    assert driven.out == reference.out


def test_audio_of_another_rate_goes_on_alike_after_some_that_has_never_reached_python() -> None:
    reference, driven = ReferencePath(), DrivenPath()
    call = random.Random(1)
    odd = [audio(call.randbytes(size)).replace(b"24000", b"16000") for size in (446, 2)]
    messages = [odd[0], audio(bytes(960)), odd[1]]

    reference.from_phone(START.decode())
    driven.from_phone(write_frames([Frame(Opcode.TEXT, START)], masked=True))
    for message in messages:
        reference.from_model(message)
        driven.from_model(write_frames([Frame(Opcode.BINARY, message)], masked=False))

    assert len(reference.out.to_phone) == 3
    assert driven.out.to_phone == reference.out.to_phone


def test_ordinary_audio_never_reaches_python() -> None:
    driven = DrivenPath()
    call = random.Random(1)
    chunks = [call.randbytes(160) for _ in range(100)]
    spoken = [call.randbytes(1920) for _ in range(100)]

    driven.from_phone(write_frames([Frame(Opcode.TEXT, START)], masked=True))
    for number, (heard, said) in enumerate(zip(chunks, spoken, strict=True), start=1):
        driven.from_phone(write_frames([Frame(Opcode.TEXT, media(heard, number))], masked=True))
        driven.from_model(write_frames([Frame(Opcode.BINARY, audio(said))], masked=False))

    assert driven.handed_up == 1  # start
    assert (len(driven.out.to_model), len(driven.out.to_phone)) == (1 + 100, 100)


def test_audio_pretty_printed_as_google_does_it_is_ordinary() -> None:
    driven = DrivenPath()
    message = json.dumps(json.loads(audio(bytes(1920))), indent=2).encode() + b"\n"

    driven.from_phone(write_frames([Frame(Opcode.TEXT, START)], masked=True))
    driven.from_model(write_frames([Frame(Opcode.BINARY, message)], masked=False))

    assert driven.handed_up == 1
    assert len(driven.out.to_phone) == 1


@pytest.mark.parametrize(
    "numbers",
    [
        [1, 2, 3],
        [1, 2, 5, 6],  # two were dropped by the carrier
        [1, 2, 2, 3, 1],  # late, and twice
        [7, 8],  # a stream that does not begin with 1
        [1, 0, 2],
        [1, 9_000, 10**12],  # another count, not audio that was lost
    ],
)
def test_counts_chunks_as_the_readable_protocol_does(numbers: list[int]) -> None:
    reference, driven = ReferencePath(), DrivenPath()
    messages = [START, *(media(bytes(160), number) for number in numbers)]

    for message in messages:
        reference.from_phone(message.decode())
        driven.from_phone(write_frames([Frame(Opcode.TEXT, message)], masked=True))

    counts = reference.twilio.counts
    assert driven.path.counts() == (
        *(counts.media, counts.missing_chunks, counts.repeated_chunks, counts.timestamp_jumps),
    )
    assert driven.path.timestamp_ms == 20 * numbers[-1]


def test_an_unusual_chunk_given_back_is_counted_in_its_place() -> None:
    driven = DrivenPath()
    escaped = media(b"\xff" * 160, 2).replace(b"/", b"\\/")

    for message in (START, media(bytes(160), 1), escaped, media(bytes(160), 3)):
        driven.from_phone(write_frames([Frame(Opcode.TEXT, message)], masked=True))

    driven.count()
    counts = driven.twilio.counts
    assert (driven.handed_up, driven.path.counts()[0]) == (2, 2)
    assert (counts.media, counts.missing_chunks, counts.timestamp_jumps) == (3, 0, 0)


@given(st.binary(max_size=200))
def test_base64_both_ways_is_the_standard_librarys(data: bytes) -> None:
    text = base64.b64encode(data)

    assert _base64.encode(data) == text
    assert _base64.decode(text) == data


@given(st.binary(min_size=3, max_size=30), st.integers(0, 39), st.integers(0, 255))
def test_base64_with_a_character_changed_is_the_standard_librarys_or_refused(
    data: bytes, place: int, character: int
) -> None:
    text = bytearray(base64.b64encode(data))
    text[place % len(text)] = character

    decoded = _base64.decode(text)

    if decoded is not None:
        assert decoded == base64.b64decode(text, validate=True)


@pytest.mark.parametrize(
    "text",
    [b"A", b"AA", b"AAA", b"=", b"====", b"A===", b"AA=A", b"AA==AAAA", b"AAA=AAAA", b"AA A"],
)
def test_what_is_not_one_run_of_padded_base64_is_refused(text: bytes) -> None:
    assert _base64.decode(text) is None


def test_every_byte_outside_the_alphabet_is_refused_in_every_place() -> None:
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for group in range(2):
        for place in range(4):
            for character in set(range(256)) - set(alphabet):
                text = bytearray(b"AAAAAAAA")
                text[4 * group + place] = character
                padding = (group, place, character) == (1, 3, ord("="))
                assert (_base64.decode(text) is None) is not padding


def test_sixteen_mebibytes_of_agent_audio_pass_in_messages_of_a_second() -> None:
    path = open_path()
    message = audio(os.urandom(3 * 2**20))

    path.model.receive(write_frames([Frame(Opcode.TEXT, message)], masked=False))

    assert path.next_from_model() is None
    assert path.take_run()[0] == 2**20 // 2
    messages = [json.loads(text) for text in texts(path.phone.take_output(), masked=False)]
    sizes = {len(base64.b64decode(each["media"]["payload"])) for each in messages[:-1]}
    assert (sizes, len(messages)) == ({8_000}, 66)


RECORDED_CALL = Path(__file__).parents[1] / "data" / "recorded_call.jsonl.gz"
"""Messages as they came during a call between the two simulators: greeting, barge-in, turns, stop.

Lines are ``["phone" or "model", message]`` in order; long runs of audio are thinned out.
"""


@pytest.mark.parametrize("segment_bytes", [1, 7, 1460, 65536])
def test_a_recorded_call_comes_out_the_same(segment_bytes: int) -> None:
    reference, driven = ReferencePath(), DrivenPath()
    with gzip.open(RECORDED_CALL, "rt", encoding="utf-8") as lines:
        messages = [(side, text) for side, text in map(json.loads, lines)]
    # The greeting was made while the phone rang, and the reference has nowhere to keep it.
    messages.sort(key=lambda line: line[1].find('{"event":"connected"') < 0)
    messages[1:] = sorted(messages[1:], key=lambda line: line[1].find('{"event":"start"') < 0)

    for side, text in messages:
        if side == "phone":
            reference.from_phone(text)
            frame = write_frames([Frame(Opcode.TEXT, text.encode())], masked=True)
            feed(driven.from_phone, frame, range(0, len(frame), segment_bytes))
        else:
            reference.from_model(text.encode())
            frame = write_frames([Frame(Opcode.BINARY, text.encode())], masked=False)
            feed(driven.from_model, frame, range(0, len(frame), segment_bytes))

    assert driven.out == reference.out
    driven.count()
    counts = driven.twilio.counts
    assert counts == reference.twilio.counts
    assert driven.path.counts()[0] > 100
    assert counts.missing_chunks > 0
    assert counts.timestamp_jumps > 0
    assert len(driven.out.session_events) > 10
