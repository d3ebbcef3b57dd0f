"""Audio that knows its own number: what the load benchmark recognises, and what it counts."""

from __future__ import annotations

import json
import random
from array import array
from base64 import b64decode, b64encode

import pytest

from benchmarks.load.call import Heard, LoadCall, Talk, Words
from benchmarks.load.sockets import Websockets
from benchmarks.load.trail import (
    AGENT_CHUNK_S,
    AGENT_LEVELS,
    AGENT_PAYLOADS,
    CALLER_FRAME_S,
    CALLER_LEVELS,
    CALLER_PAYLOADS,
    NO_LEVEL,
    SAMPLES,
    Trail,
    stretches_of_mulaw,
    stretches_of_pcm,
)
from benchmarks.load.wheel import Wheel
from codec import MulawDecoder, MulawEncoder


def message(data: bytes) -> bytes:
    return b'{"data":"' + b64encode(data) + b'"}'


START = len(b'{"data":"')


@pytest.fixture
def latencies() -> array[float]:
    return array("d")


@pytest.fixture
def trail(latencies) -> Trail:
    return Trail(CALLER_FRAME_S, len(CALLER_LEVELS), 0, latencies)


def test_every_caller_level_survives_the_codec():
    decoder = MulawDecoder(16_000)
    sent = list(range(len(CALLER_LEVELS))) * 2

    heard = [
        stretches_of_pcm(message(decoder.decode(b64decode(CALLER_PAYLOADS[level]))), START)
        for level in sent
    ]

    assert heard == [[(level, SAMPLES)] for level in sent]


def test_every_agent_level_survives_the_codec():
    encoder = MulawEncoder(24_000)
    sent = list(range(len(AGENT_LEVELS))) * 2

    heard = [
        stretches_of_mulaw(message(encoder.encode(b64decode(AGENT_PAYLOADS[level]))), START)
        for level in sent
    ]

    assert heard == [[(level, SAMPLES)] for level in sent]


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_several_pieces_in_one_message_are_told_apart(pieces):
    decoder = MulawDecoder(16_000)
    pcm = b"".join(decoder.decode(b64decode(CALLER_PAYLOADS[level])) for level in range(pieces))

    assert stretches_of_pcm(message(pcm), START) == [(level, SAMPLES) for level in range(pieces)]


def test_what_is_no_level_is_none():
    noise = random.Random(1).randbytes(2)

    assert stretches_of_pcm(message(b"\x00\x60" * SAMPLES), START) == [(NO_LEVEL, SAMPLES)]
    assert stretches_of_mulaw(message(b""), START) == []
    assert len(stretches_of_pcm(message(noise), START)) == 1


def test_the_way_of_every_piece_is_timed(trail, latencies):
    for number in range(100):
        level = trail.send(float(number))
        trail.arrive(level, SAMPLES, number + 0.25)

    assert list(latencies) == [0.25] * 100
    assert trail.missing(trail.sent) == 0


def test_a_piece_left_out_is_lost(trail, latencies):
    levels = [trail.send(0.0) for _ in range(5)]

    for level in [*levels[:2], *levels[3:]]:
        trail.arrive(level, SAMPLES, 1.0)

    assert (trail.lost, trail.doubled, len(latencies)) == (SAMPLES, 0, 4)
    assert trail.in_ms(trail.lost) == pytest.approx(20.0)


def test_a_piece_that_never_came_is_missing(trail):
    levels = [trail.send(0.0) for _ in range(5)]

    for level in levels[:3]:
        trail.arrive(level, SAMPLES, 1.0)

    assert trail.missing(5) == 2 * SAMPLES
    assert trail.missing(4) == SAMPLES
    assert trail.missing(2) == 0


def test_a_repeated_piece_is_doubled(trail, latencies):
    levels = [trail.send(0.0) for _ in range(3)]

    for level in [levels[0], levels[0], *levels[1:]]:
        trail.arrive(level, SAMPLES, 1.0)

    assert (trail.lost, trail.doubled, len(latencies)) == (0, SAMPLES, 3)


def test_a_sample_short_in_every_piece_is_lost_and_nothing_else(trail, latencies):
    for _ in range(50):
        trail.arrive(trail.send(0.0), SAMPLES - 1, 1.0)

    assert (trail.lost, trail.doubled, len(latencies)) == (50, 0, 50)


def test_a_piece_may_come_in_halves(trail, latencies):
    for now in range(10):
        level = trail.send(float(now))
        trail.arrive(level, SAMPLES // 2, now + 0.1)
        trail.arrive(level, SAMPLES // 2, now + 0.2)

    assert list(latencies) == pytest.approx([0.2] * 10)
    assert (trail.lost, trail.doubled) == (0, 0)


def test_a_resamplers_tail_is_no_piece(trail, latencies):
    trail.arrive(trail.send(0.0), SAMPLES, 1.0)
    trail.arrive(0, 39, 1.0)

    assert (trail.lost, trail.doubled, trail.strange, len(latencies)) == (0, 0, 0, 1)


def test_silence_in_between_is_neither_lost_nor_new(trail, latencies):
    first = trail.send(0.0)
    silent = MulawDecoder(16_000).decode(b"\xff" * 160)

    for level, samples in stretches_of_pcm(message(silent), START):
        trail.arrive(level, samples, 1.0)
    trail.arrive(first, SAMPLES, 2.0)

    assert (trail.silence, trail.lost, trail.doubled, trail.strange) == (SAMPLES, 0, 0, 0)
    assert list(latencies) == [2.0]


def test_audio_after_a_clear_is_stale_until_the_next_turn():
    latencies = array("d")
    trail = Trail(AGENT_CHUNK_S, len(AGENT_LEVELS), 7, latencies)
    levels = [trail.send(0.0) for _ in range(10)]
    for level in levels[:6]:
        trail.arrive(level, SAMPLES, 1.0)

    trail.cut(10)
    trail.arrive(levels[6], SAMPLES, 2.0)
    trail.arrive(trail.send(3.0), SAMPLES, 3.5)

    assert trail.dropped == 4 * SAMPLES
    assert trail.in_ms(trail.stale) == pytest.approx(40.0)
    assert (trail.lost, trail.doubled, trail.missing(11)) == (0, 0, 0)
    assert latencies[-1] == 0.5


class Line:
    """A socket that takes everything."""

    def send(self, text: bytes) -> None: ...

    def send_bare(self, content: bytes) -> None: ...

    def send_prepared(self, message: bytes) -> None: ...

    def close(self) -> None: ...


def media(piece: int) -> bytes:
    code = AGENT_LEVELS.codes[piece % len(AGENT_LEVELS)]
    return b'{"event":"media","media":{"payload":"%b"}}' % b64encode(bytes([code]) * SAMPLES)


def test_the_first_chunk_of_every_turn_that_arrives_is_timed_by_itself():
    heard = Heard()
    call = LoadCall(
        0,
        account_sid="AC1",
        wheel=Wheel(),
        words=Words(Websockets()),
        heard=heard,
        talk=Talk(turn_s=3 * AGENT_CHUNK_S),
    )
    call.session_opened(Line())

    def say_turn() -> None:
        call._begin_turn()
        for _ in range(3):
            call._say_chunk()

    say_turn()
    for piece in (0, 1, 2):
        call.received(media(piece))
    say_turn()  # is cut before any of it arrives
    call._interrupt()
    call.received(b'{"event":"clear"}')
    say_turn()
    for piece in (6, 7):
        call.received(media(piece))

    assert len(heard.agent) == 5
    assert list(heard.openings) == [heard.agent[0], heard.agent[3]]


def test_a_line_with_a_room_on_it_says_the_room_over_and_over_and_is_not_timed():
    said: list[bytes] = []

    class Kept(Line):
        def send(self, text: bytes) -> None:
            said.append(text)

    heard = Heard()
    room = bytes(range(160)) + bytes(range(1, 161))
    call = LoadCall(
        3,
        account_sid="AC1",
        wheel=Wheel(),
        words=Words(Websockets()),
        heard=heard,
        talk=Talk(),
        room=room,
    )
    call.opened(Kept())

    for _ in range(4):
        call._say_frame()
    call.model_hears(message(bytes(2 * SAMPLES)))

    frames = [b64decode(json.loads(text)["media"]["payload"]) for text in said]
    assert set(frames) == {room[:160], room[160:]}
    assert frames[:2] == frames[2:]
    assert len(heard.caller) == call.caller.sent == 0
