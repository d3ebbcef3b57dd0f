"""Mixes of the benchmark of the ear, and what it makes of an ear's findings."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy
import pytest

import codec
from benchmarks import listening, rooms
from benchmarks.rooms import Mix, Package, Utterance
from codec.ear import SpeechEnded, SpeechStarted, Stop
from codec.line import FRAME_BYTES, SILENCE

TONE = Utterance(numpy.sqrt(2) * numpy.sin(numpy.arange(4_000) * 0.8))


def level_dbfs(payload: bytes) -> float:
    samples = numpy.frombuffer(codec.decode_mulaw(payload), "<i2") / 32_768
    return float(10 * numpy.log10((samples**2).mean()))


def test_a_caller_has_the_level_asked_for_and_the_room_is_under_it():
    mix = rooms.said_in(TONE, "white", 15.0, seed=3)

    began, ended = (round(at * rooms.RATE_HZ) for at in (mix.began_s, mix.ended_s))
    assert level_dbfs(mix.payload[began:ended]) == pytest.approx(-26, abs=0.5)
    assert level_dbfs(mix.payload[: began - 160]) == pytest.approx(-41, abs=0.5)


def test_a_mix_follows_from_its_seed():
    assert rooms.said_in(TONE, "car", 10.0, seed=3) == rooms.said_in(TONE, "car", 10.0, seed=3)
    assert rooms.said_in(TONE, "car", 10.0, seed=3) != rooms.said_in(TONE, "car", 10.0, seed=4)


def test_the_silence_around_what_was_said_is_taken_away(tmp_path: Path):
    quiet = numpy.zeros(8_000)
    pcm = numpy.concatenate([quiet, TONE.samples / 4, quiet])
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes((pcm * 32_767).astype("<i2").tobytes())

    said = rooms._said(tmp_path / "said.wav")

    assert said is not None
    assert said.length_s == pytest.approx(0.5, abs=0.05)


def test_a_package_that_is_not_there_is_named_with_its_way_to_be():
    package = Package("no-such-package", "apt-get install no-such-package", "CC0", "/no/such/place")
    module = Package("no-such-module", "pip install no-such-module", "MIT", "no/such/folder")

    assert package.path is None
    assert module.path is None
    assert all(each.install and each.licence for each in (*rooms.PROMPTS, rooms.AMBIENCES))


def test_lost_frames_are_silence_and_about_as_many_as_asked_for():
    payload = b"\x10" * FRAME_BYTES * 5_000

    lost = [
        frame == SILENCE * FRAME_BYTES for frame in rooms.frames(rooms.dropped(payload, 0.08, 1))
    ]

    assert 0.05 < sum(lost) / len(lost) < 0.11


# --- What is made of an ear's findings
MIX = Mix(SILENCE * 8_000 * 6, 1.0, 2.0)


def finding(found: dict[float, list[object]]):
    """An ear that finds this at these times."""
    return lambda agent_heard: lambda frame, at: found.get(round(at, 2), [])


def test_the_time_to_the_hold_counts_from_the_first_sound():
    soon = listening.held(finding({1.08: [Stop.HOLD]}), [MIX])

    assert soon.p50_ms == pytest.approx(80)
    assert (soon.missed, soon.count) == (0, 1)


def test_an_utterance_that_holds_nobody_is_missed():
    assert listening.held(finding({}), [MIX]).missed == 1.0


def test_a_hold_that_the_room_brought_about_says_nothing_of_the_caller():
    assert listening.held(finding({0.9: [Stop.HOLD]}), [MIX]).count == 0
    assert listening.held(finding({0.7: [Stop.HOLD], 0.8: [Stop.RESUME]}), [MIX]).missed == 1.0


def test_an_ear_that_is_always_on_has_an_alarm_every_second():
    payload = SILENCE * 8_000 * 60

    assert listening.false_holds(finding({0.5: [Stop.HOLD]}), payload) == pytest.approx(600, abs=10)
    assert listening.false_holds(
        finding({0.5: [Stop.HOLD], 0.7: [Stop.RESUME]}), payload
    ) == pytest.approx(10)


def test_a_turn_that_never_ends_is_told_from_one_that_never_began():
    started = {1.1: [SpeechStarted(1.0)]}
    ended = started | {2.5: [SpeechEnded(2.0, 1.0, 2.5)]}

    assert listening.ended(finding(started), [MIX]).missed == 1.0
    assert listening.ended(finding({}), [MIX]).count == 0
    assert listening.ended(finding(ended), [MIX]).p50_ms == pytest.approx(500)


def test_a_silent_model_is_noticed_when_its_time_is_up():
    found = {1.1: [SpeechStarted(1.0)], 2.5: [SpeechEnded(2.0, 1.0, 2.5)]}

    noticed_s = listening.noticed_s(finding(found), MIX, SILENCE * 8_000 * 60)

    assert noticed_s == pytest.approx(6.5)
