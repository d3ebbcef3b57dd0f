"""An ear that is told what is a voice."""

from __future__ import annotations

from array import array

import pytest
from prometheus_client import CollectorRegistry

import codec
from codec.ear import SpeechEnded, SpeechStarted, Stop
from server.dialogue.ear import BargeInMode, Ear
from server.dialogue.opening import Opening
from server.dialogue.playout import Playout
from server.metrics import VoiceMetrics
from server.simulators.gemini import GREETING, load_agent_speech
from server.simulators.phone import load_speech
from server.voice.judge import GONE_S, Judge
from tests.support.sounds import cough, quiet
from tests.voice.test_judge import Loudness

FRAME = 160


class Nothing(Loudness):
    """A model that takes nothing for a voice."""

    def probabilities(self, places, rows):
        return [0.0 for _ in super().probabilities(places, rows)]


class Line:
    """A caller, while the agent is heard or not."""

    def __init__(self, model: Loudness, *, agent_heard: bool, **opening) -> None:
        self.now = 0.0
        self.judge = Judge(
            model, VoiceMetrics(CollectorRegistry()), now=lambda: self.now, in_thread=False
        )
        self.judge.judge_now()
        self.opening = Opening(**{"greets": False, **opening})
        playout = Playout(remember=True)
        self.ear = Ear(playout, self.opening, mode=BargeInMode.BOTH, voices=self.judge)
        self.ear.judge.played.open = True
        self.ear.judge.played.marks_out = int(agent_heard)
        self.found: list[object] = []
        self.ear.on_found = self.found.extend

    def hear(self, payload: bytes) -> list[object]:
        self.found.clear()
        for at in range(0, len(payload), FRAME):
            self.now += 0.02
            self.found += self.ear.hear(payload[at : at + FRAME], self.now).found
            self.judge.judge_now()
        return list(self.found)

    def lose_judge(self) -> None:
        """Nobody judges the caller any more."""
        self.judge.leave(self.ear.judge)
        self.ear.do_without()


def test_speech_begins_and_ends_a_turn():
    line = Line(Loudness(), agent_heard=False)

    started, ended = line.hear(quiet(1.0) + load_speech("hello") + quiet(1.5))

    assert isinstance(started, SpeechStarted)
    assert isinstance(ended, SpeechEnded)
    assert ended.sure
    assert not line.ear.caller_speaks
    assert line.ear.spoke_since(started.at)


def test_speech_over_the_agent_holds_it_and_is_known_while_it_lasts():
    line = Line(Loudness(), agent_heard=True)

    found = line.hear(quiet(1.0) + load_speech("interrupt")[: FRAME * 30])

    assert Stop.HOLD in found
    assert line.ear.caller_speaks
    assert line.ear.is_open
    line.ear.agent_cut()
    line.ear.judge.played.marks_out = 0  # it is cleared
    assert Stop.RESUME not in line.hear(quiet(3.0))


def test_what_is_no_voice_holds_nobody_however_much_the_detector_suspects_it():
    line = Line(Nothing(), agent_heard=True)

    assert line.hear(quiet(1.0) + cough(1) + load_speech("question") + quiet(1.0)) == []


def test_an_ear_that_is_not_judged_any_more_goes_on_by_the_detector():
    line = Line(Loudness(), agent_heard=True)
    line.hear(quiet(1.0) + load_speech("interrupt")[: FRAME * 30])

    line.ear.do_without()
    found = line.hear(quiet(2.0))

    assert {type(one) for one in found} == {SpeechEnded, Stop}
    assert line.ear.rely_again()


def test_a_detector_goes_on_with_all_that_was_said_before_it_had_to():
    line = Line(Loudness(), agent_heard=False)
    line.hear(quiet(1.0) + load_speech("question")[: FRAME * 30] + quiet(0.3))

    line.lose_judge()
    (ended,) = line.hear(quiet(0.5))

    assert isinstance(ended, SpeechEnded)
    assert ended.speech_s > 0.5
    assert ended.at == pytest.approx(1.7, abs=0.1)
    assert ended.known_at == pytest.approx(ended.at + 0.5, abs=0.03)


def test_what_nobody_has_judged_any_more_goes_on_as_speech():
    line = Line(Loudness(), agent_heard=False)
    speech = load_speech("question")
    line.hear(quiet(1.0) + speech[: FRAME * 20])
    for at in range(FRAME * 20, FRAME * 60, FRAME):  # the judge is busy with others
        line.now += 0.02
        line.ear.hear(speech[at : at + FRAME], line.now)

    line.judge.judge_now()  # it is late
    assert not line.ear.judge.judged

    assert line.hear(quiet(0.3)) == []
    assert line.ear.caller_speaks


def test_a_word_that_holds_the_agent_is_left_to_the_model_though_the_judge_is_lost():
    line = Line(Loudness(), agent_heard=True)
    found = line.hear(quiet(1.0) + load_speech("goodbye")[: FRAME * 12] + quiet(0.1))
    assert found[-1] is Stop.HOLD

    line.lose_judge()

    assert Stop.RESUME not in line.hear(quiet(0.7))
    assert Stop.RESUME in line.hear(quiet(0.6))


def test_an_echo_that_was_taken_for_the_caller_holds_nobody_and_was_nobodys_turn():
    line = Line(Loudness(), agent_heard=True)
    echoes = load_agent_speech(*GREETING)
    payload = codec.MulawEncoder(24_000).encode(echoes.pcm) * 2
    played = line.ear.judge.played
    played.sent(payload, line.now)
    late = quiet(0.2) + codec.encode_mulaw(
        array("h", (each // 4 for each in array("h", codec.decode_mulaw(payload)))).tobytes()
    )

    found = line.hear(late[: FRAME * 300])

    assert line.ear.has_echo
    assert Stop.HOLD in found
    known = next(at for at, one in enumerate(found) if isinstance(one, SpeechEnded))
    ended, resumed = found[known : known + 2]
    assert isinstance(ended, SpeechEnded)
    assert ended.speech_s == 0.0
    assert resumed is Stop.RESUME


@pytest.mark.parametrize("hole_s", [0.5, 1.0, 1.5, 5.0])
def test_a_hole_in_the_network_holds_nobody_for_longer_than_it_lasts(hole_s):
    line = Line(Loudness(), agent_heard=True)
    found = line.hear(quiet(1.0) + load_speech("interrupt")[: FRAME * 15])
    assert found[-1] is Stop.HOLD

    line.found.clear()
    for _ in range(round(hole_s / 0.02)):
        line.now += 0.02
        line.judge.judge_now()
    if hole_s > GONE_S:
        assert not line.ear.is_open
    found = list(line.found)
    found += line.hear(quiet(3.0))

    (ended,) = (one for one in found if isinstance(one, SpeechEnded))
    assert ended.speech_s > 0.0
    assert found.count(Stop.RESUME) == 1
    assert not line.ear.is_open
    assert line.hear(load_speech("interrupt")).count(Stop.HOLD) >= 1


def test_what_was_going_on_ends_with_the_line_and_the_next_line_is_judged_anew():
    line = Line(Loudness(), agent_heard=True)
    line.hear(quiet(1.0) + load_speech("interrupt")[: FRAME * 15])

    ended, resumed = line.ear.line_over()

    assert isinstance(ended, SpeechEnded)
    assert resumed is Stop.RESUME
    assert not line.judge.is_busy
    line.now += 0.2
    started, held, *_ = line.hear(load_speech("interrupt"))
    assert isinstance(started, SpeechStarted)
    assert held is Stop.HOLD


def test_a_call_that_is_over_is_judged_no_more():
    model = Loudness()
    line = Line(model, agent_heard=False)
    line.hear(quiet(1.0) + load_speech("hello")[: FRAME * 30])
    line.ear.close()
    asked = len(model.asked)

    line.hear(quiet(0.5))

    assert len(model.asked) == asked
