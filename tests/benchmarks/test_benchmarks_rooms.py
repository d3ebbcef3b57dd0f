"""Mixes of the benchmark of the ear, and what it makes of an ear's findings."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pytest
from rich.console import Console

import codec
from benchmarks import ear_goals, ear_in_rooms, listening, rooms
from benchmarks.listening import Soon
from benchmarks.rooms import Mix, Package, Utterance
from codec.ear import Ear, Played, SpeechEnded, SpeechStarted, Stop
from codec.line import FRAME_BYTES, SILENCE
from server.simulators.phone import load_speech
from server.voice.judge import TICK_S
from tests.voice.test_judge import Loudness

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


# --- What must be shown
NAMES = ("city", "office", "forest")


@dataclass
class Measured:
    """An ear that reaches everything, but for what a test says."""

    holds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    holds_at_5_db: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 4.0))
    coughs: float = 0.02
    sentences: dict[str, Soon] = field(
        default_factory=lambda: {
            "quiet line": Soon(60, 100, 0.0, 100),
            "20 dB": Soon(70, 100, 0.02, 100),
            "15 dB": Soon(80, 100, 0.03, 100),
        }
    )
    turns: dict[str, Soon] = field(
        default_factory=lambda: {
            level: Soon(60, 100, 0.02, 100) for level in ("quiet line", "20 dB", "15 dB")
        }
    )
    ends: dict[str, Soon] = field(
        default_factory=lambda: {level: Soon(600, 800, 0.01, 100) for level in ("15 dB", "10 dB")}
    )
    noticed_s: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(NAMES, 6.6))


def missed(measured: Measured) -> int:
    return sum(not goal.is_met for goal in ear_goals.goals(measured, NAMES))


def test_an_ear_that_reaches_everything_misses_nothing():
    assert missed(Measured()) == 0


@pytest.mark.parametrize(
    "measured",
    [
        Measured(holds={"city": 6.0, "office": 0.0, "forest": 0.0}),
        Measured(holds=dict.fromkeys(NAMES, 1.0)),
        Measured(holds_at_5_db={"city": 0.0, "office": 5.5, "forest": 0.0}),
        Measured(coughs=0.06),
        Measured(noticed_s={"city": 6.6, "office": None, "forest": 6.6}),
        Measured(noticed_s={"city": 6.6, "office": 7.1, "forest": 6.6}),
        Measured(ends={"15 dB": Soon(600, 950, 0.0, 9), "10 dB": Soon(600, 800, 0.03, 9)}),
    ],
)
def test_each_figure_that_is_not_reached_is_told(measured):
    assert missed(measured) == 1


def test_a_hold_or_two_are_borne_in_some_rooms_and_what_was_not_measured_is_not_reached():
    assert missed(Measured(holds={"city": 5.0, "office": 5.0, "forest": 0.0})) == 0
    assert missed(Measured(sentences=dict.fromkeys(Measured().sentences, Soon.of([], 0)))) == 2


def test_what_the_judge_costs_is_what_it_adds():
    costs = {
        "ear, rooms": {100: 0.7},
        "before, rooms": {100: 0.2},
        "ear, quiet lines": {100: 0.08},
        "before, quiet lines": {100: 0.05},
    }

    rooms_alone, quiet = ear_goals.cost_goals(costs, "ear", "before")

    assert rooms_alone.is_met
    assert not quiet.is_met


def test_the_table_says_which_figures_were_missed():
    page = Console(file=io.StringIO(), width=200)

    page.print(ear_goals.table_of({"ear": ear_goals.goals(Measured(coughs=0.5), NAMES)}))

    assert page.file.getvalue().count("(missed)") == 1


def test_a_judge_is_measured_with_the_tick_for_which_callers_wait_at_a_server():
    payload = SILENCE * FRAME_BYTES * 50 + load_speech("interrupt")[: FRAME_BYTES * 20]
    frames = rooms.frames(payload)
    detector, model = Ear(Played(remember=True), barge_in=True), Loudness()
    assert detector.rely_on_judge()
    hear = ear_in_rooms._judged(model, agent_heard=True)
    suspected, asked = [], []
    for number, frame in enumerate(frames):
        at = (number + 1) * TICK_S
        detector.hear(frame, at)
        suspected.append(detector.has_news)
        hear(frame, at)
        asked.append(bool(model.asked))

    assert asked.index(True) == suspected.index(True) + 1
