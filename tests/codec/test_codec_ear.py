"""The ear in C finds what the same logic finds in plain Python, and keeps no more than it needs."""

from __future__ import annotations

import math
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.ear import Ear, EchoFound, Played, SpeechEnded, SpeechStarted, Stop
from codec.ear import loudness as loudness_in_c
from server.simulators.phone import load_speech
from tests.support.ear_reference import (
    AGENT_KINDS,
    CALLER_KINDS,
    ReferencePlayed,
    Scene,
    random_scene,
    same_in_both,
    sound,
)
from tests.support.inputs import inputs
from tests.support.sounds import CLIPS, cough, echo_of, mixed, quiet
from tests.support.sounds import noise as line_noise

MORE = 1 << 30
"""Bytes, so many as nothing remembers."""


def stretches(kinds: tuple[str, ...]):
    return st.lists(
        st.tuples(st.sampled_from(kinds), st.integers(1, 150), st.integers(0, 8)),
        min_size=1,
        max_size=6,
    )


SCENES = st.builds(
    Scene,
    agent=stretches(AGENT_KINDS),
    caller=stretches(CALLER_KINDS),
    delay=st.integers(0, 33),
    loss=st.integers(0, 63),
    chunk_bytes=st.just([160]) | st.lists(st.integers(1, 1_700), min_size=1, max_size=5),
    late_s=st.just([0.0]) | st.lists(st.floats(-0.1, 1.5), min_size=1, max_size=9),
    piece_bytes=st.integers(7, 8_000),
    judged_from=st.just(0) | st.integers(0, 100),
    judges_after=st.just(math.inf) | st.floats(0.0, 3.0),
    cut_every=st.integers(0, 40),
    settings=st.fixed_dictionaries(
        {
            "barge_in": st.sampled_from([True, True, True, False]),
            "end_silence_s": st.floats(0.0, 1.0),
            "confirm_s": st.floats(0.0, 1.0),
            "agree_s": st.floats(0.0, 1.0),
        }
    ),
)


@given(scene=SCENES)
@settings(max_examples=inputs(40))
def test_what_is_found_is_what_the_readable_ear_finds(scene):
    same_in_both(scene)


def test_the_scenes_have_everything_in_them():
    found = [
        event for seed in range(30) for event in same_in_both(random_scene(random.Random(seed)))
    ]

    assert {type(event) for event in found} == {SpeechStarted, SpeechEnded, EchoFound, Stop}
    assert set(Stop) <= {event for event in found if isinstance(event, Stop)}


@pytest.mark.parametrize("size", [160, 320, 100])
def test_recordings_are_judged_as_the_readable_ear_does(size):
    said = b"".join(load_speech(clip) + quiet(0.7) for clip in CLIPS)
    said += cough(1) + quiet(1.0) + cough(2) + line_noise(2.0, 800)
    scene = Scene([("agent", 1_200, 0)], [], chunk_bytes=[size], late_s=[0.0, 0.06, 0.01])

    found = same_in_both(scene, said)

    assert {type(event) for event in found} == {SpeechStarted, SpeechEnded, Stop}


@pytest.mark.parametrize("size", [160, 320, 100])
@pytest.mark.parametrize("gain_db", [-6, -20])
def test_an_echo_is_found_as_the_readable_ear_does(gain_db, size):
    heard = mixed(echo_of(sound("agent", 500, 0), 0.2, gain_db), load_speech("interrupt"), 6.5)
    scene = Scene([("agent", 500, 0)], [], chunk_bytes=[size], late_s=[0.0, 0.06, 0.01])

    found = same_in_both(scene, heard)

    assert any(isinstance(event, EchoFound) for event in found)


def test_short_words_are_judged_as_the_readable_ear_does():
    settings = {"barge_in": True, "confirm_s": 0.4, "agree_s": 0.6}
    found = []
    for clip in CLIPS:
        for frames in range(4, 40, 5):
            said = quiet(0.3) + load_speech(clip)[: frames * 160] + quiet(1.5) + cough(frames)
            scene = Scene([("mark", 1, 0)], [], settings=settings)
            found += same_in_both(scene, said + quiet(0.5))

    assert set(Stop) <= {event for event in found if isinstance(event, Stop)}


# --- What is played


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "send", "play", "play", "before", "late", "forget", "tail"]),
            st.integers(0, 4_000),
            st.integers(0, 2),
        ),
        max_size=60,
    )
)
def test_what_is_played_is_what_the_readable_one_plays(steps):
    played, reference = Played(remember=True), ReferencePlayed()
    now, sent = 0.0, 0
    for step, number, turn in steps:
        match step:
            case "send":
                payload = bytes((sent + n) * 7 % 251 for n in range(number))
                sent += number
                for one in (played, reference):
                    one.turn = turn
                    one.sent(payload, max(now, one.play_end))
            case "play":
                now += number / 8_000
                assert played.played(now, number) == reference.played(now, number)
            case "before":
                then = now - number / 4_000
                assert played.played(then, 160) == reference.played(then, 160)
            case "late":
                now += number / 1_000
                for one in (played, reference):
                    one.passed(now)
            case "forget":
                for one in (played, reference):
                    one.forget(now - turn * 0.1)  # by a clock that has read less than the last
            case "tail":
                assert played.tail(number) == reference.tail(number)
                assert played.tail(number, turn) == reference.tail(number, turn)
        assert played.play_end == reference.play_end
        assert len(played.tail(MORE)) == sum(len(piece.payload) for piece in reference.pieces)


def test_a_clear_by_an_earlier_clock_leaves_what_comes_next_in_its_place():
    played = Played(remember=True)
    played.sent(b"a" * 800, 0.0)
    assert played.played(0.2, 160) == b"\xff" * 160  # by this clock all of it has been heard

    played.forget(0.05)
    played.sent(b"b" * 160, 0.05)

    assert played.played(0.07, 160) == b"b" * 160


def test_an_ear_on_a_late_line_hears_what_was_played_whoever_else_has_asked():
    agent = sound("agent", 500, 0)
    heard = echo_of(agent, 0.2, -12)
    found, echo_frames = [], []
    for is_watched in (False, True):
        played = Played(remember=True)
        played.open = True
        for at in range(0, len(agent), 800):
            played.sent(agent[at : at + 800], at / 8_000)
        ear = Ear(played, barge_in=True)
        for number in range(1, 501):
            if is_watched:
                played.played(number * 0.02 + 0.3, 800)
            ear.hear(heard[(number - 1) * 160 : number * 160], number * 0.02)
        found.append(ear.take_found())
        echo_frames.append(ear.echo_frames)

    assert echo_frames[0] > 100
    assert echo_frames[1] == echo_frames[0]
    assert found[1] == found[0]


def test_two_seconds_are_remembered_and_in_silence_nothing():
    played = Played(remember=True)
    most = 0
    for tick in range(3_000):
        played.passed(tick * 0.02)
        played.sent(bytes(160), max(tick * 0.02, played.play_end))
        most = max(most, len(played.tail(MORE)))

    assert 16_000 <= most <= 16_000 + 320
    played.passed(3_000 * 0.02 + 2.1)
    assert len(played.tail(MORE)) == 0


def test_an_ear_gives_the_memory_of_a_long_call_back():
    tracemalloc.start()
    try:
        played = Played(remember=True)
        ear = Ear(played, barge_in=True)
        before = tracemalloc.get_traced_memory()[0]
        played.sent(bytes(800_000), 0.0)
        assert tracemalloc.get_traced_memory()[0] - before > 700_000
        for tick in range(6_000):
            ear.hear(b"\xff" * 160, tick * 0.02)
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


def test_what_is_remembered_takes_little_more_than_its_own_room():
    tracemalloc.start()
    try:
        played, now = Played(remember=True), 0.0
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1_000):  # turns of two seconds that come at four times their speed
            now += 0.01 if number % 50 else 2.5
            played.passed(now)
            played.sent(bytes(320), max(now, played.play_end))
            held = tracemalloc.get_traced_memory()[0] - before
            assert held < 1.25 * len(played.tail(MORE)) + 3_000
    finally:
        tracemalloc.stop()


def test_without_a_memory_only_times_are_kept():
    played = Played()
    played.open = True
    played.sent(bytes(8_000), 1.0)

    assert (len(played.tail(MORE)), played.play_end) == (0, 2.0)
    assert played.is_playing(1.9)
    assert not played.is_playing(2.0)
    assert played.played(1.5, 160) == b"\xff" * 160


# --- Misuse


def test_a_callers_bytes_are_never_changed():
    played = Played(remember=True)
    played.open = True
    agent = sound("agent", 500, 0)
    played.sent(agent, 0.0)
    ear = Ear(played, barge_in=True)
    heard = echo_of(agent, 0.2, -12)
    original = bytes(bytearray(heard))
    chunks = [heard[at : at + 160] for at in range(0, len(heard), 160)]

    for number, chunk in enumerate(chunks, 1):
        ear.hear(chunk, number * 0.02)
    assert ear.echo_frames
    assert b"".join(chunks) == original
    for one in range(256):
        assert ear.hear(bytes([one]), 20.0) in (bytes([one]), b"\xff")
        assert bytes([one])[0] == one


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf, 1e9])
@pytest.mark.parametrize("name", ["end_silence_s", "confirm_s", "agree_s"])
def test_settings_that_are_no_durations_are_refused(name, seconds):
    with pytest.raises(ValueError, match="seconds"):
        Ear(Played(), barge_in=True, **{name: seconds})


def test_what_is_no_audio_is_refused():
    ear = Ear(Played(), barge_in=True)

    with pytest.raises(TypeError):
        ear.hear("text", 0.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Ear(None, barge_in=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing"):
        loudness_in_c(b"")


TIMES = (
    st.sampled_from([0.0, 1.0, -1.0, 1e300, -1e300, math.inf, -math.inf, math.nan]) | st.floats()
)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "play", "forget", "late", "hear", "end", "tail"]),
            TIMES,
            st.integers(0, 900),
        ),
        max_size=40,
    )
)
def test_no_time_leads_out_of_bounds(steps):
    played = Played(remember=True)
    played.open = True
    ear = Ear(played, barge_in=True)
    for step, at, size in steps:
        match step:
            case "send":
                played.sent(bytes(size), at)
            case "play":
                assert len(played.played(at, size)) == size
            case "forget":
                played.forget(at)
            case "late":
                played.passed(at)
            case "hear":
                assert len(ear.hear(bytes(size), at)) == size
            case "end":
                played.play_end = at
            case "tail":
                assert len(played.tail(size)) <= size
