"""Who asks a model of voices, for all calls of a process."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from codec.ear import Ear, Played, Suspected
from codec.hops import HOP_S, HOP_SAMPLES
from server.metrics import VoiceMetrics
from server.simulators.phone import load_speech
from server.voice.judge import GONE_S, MAX_CALLS, WITHOUT_S, Judge
from tests.support.sounds import quiet

FRAME = 160


@dataclass
class Loudness:
    """A model that takes whatever is loud for a voice."""

    asked: list[list[int]] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    fails: bool = False

    def rows(self, count):
        return [memoryview(array("f", bytes(4 * HOP_SAMPLES))) for _ in range(count)]

    def forget(self, place):
        self.begun.append(place)

    def probabilities(self, places, rows):
        if self.fails:
            raise RuntimeError("the model is broken")
        self.asked.append(list(places))
        return [float(max(row) > 0.02) for row in rows]


class Caller:
    """A call that writes down what it is told."""

    def __init__(self, judge: Judge) -> None:
        played = Played(remember=True)
        self.judge = judge
        self.ear = Ear(played, barge_in=True)
        assert self.ear.rely_on_judge()
        self.hops: list[tuple[float, float]] = []
        self.is_open = False
        self.is_without = self.is_gone = False
        self.was_judged = trio.Event()

    def hop(self, probability, at, level_dbfs):
        assert -96.4 < level_dbfs <= 0.0
        self.hops.append((probability, at))
        self.was_judged.set()

    def gone(self):
        self.is_gone, self.is_open = True, False

    def do_without(self):
        self.is_without = True
        self.ear.rely_on_detector(
            speaking=False, holding=False, speech_s=0.0, last_at=0.0, voiced_s=0.0
        )

    def rely_again(self):
        self.is_without = not self.ear.rely_on_judge()
        return not self.is_without

    def say(self, payload: bytes, now: float) -> None:
        """One frame or more, the last of which ends now."""
        first = now - len(payload) / 8_000
        for at in range(0, len(payload), FRAME):
            self.ear.hear(payload[at : at + FRAME], first + (at + FRAME) / 8_000)
            for found in self.ear.take_found():
                if isinstance(found, Suspected):
                    self.judge.watch(self.ear, self)


class Room:
    """A judge on a clock that is just a number."""

    def __init__(self, **options) -> None:
        self.now = 0.0
        self.model = Loudness()
        self.registry = CollectorRegistry()
        self.judge = Judge(
            self.model, VoiceMetrics(self.registry), now=lambda: self.now, in_thread=False
        )
        self.judge.judge_now()

    def count(self, name: str) -> float:
        return self.registry.get_sample_value(f"offhook_voice_{name}_total") or 0.0

    def talk(self, *said: tuple[Caller, bytes]) -> None:
        """All say what they have to say, at once, and are judged frame by frame."""
        for at in range(0, max(len(payload) for _, payload in said), FRAME):
            self.now += 0.02
            for caller, payload in said:
                if frame := payload[at : at + FRAME]:
                    caller.say(frame, self.now)
            self.judge.judge_now()


SPEECH = load_speech("question")[: FRAME * 100]


def test_a_quiet_line_costs_nothing():
    room = Room()
    room.talk((Caller(room.judge), quiet(10.0)))

    assert room.model.asked == []


def test_a_suspicion_is_judged_from_before_it_and_then_hop_by_hop():
    room = Room()
    caller = Caller(room.judge)
    room.talk((caller, quiet(1.0) + SPEECH))

    ats = [at for _, at in caller.hops]
    assert 1.0 < ats[0] < 1.3
    assert all(b - a == pytest.approx(HOP_S) for a, b in pairwise(ats))
    assert max(probability for probability, _ in caller.hops[:3]) == 1.0
    assert room.now - ats[-1] < HOP_S + 0.02
    assert len(room.model.asked) == len(ats) + 8  # two of the ten before counted


def test_it_ends_soon_after_the_last_suspicion_unless_something_is_open():
    for is_open in (False, True):
        room = Room()
        caller = Caller(room.judge)
        caller.is_open = is_open
        room.talk((caller, SPEECH + quiet(4.0)))

        judged_for_s = caller.hops[-1][1] - 2.0
        assert (judged_for_s > 3.9) is is_open
        assert is_open or judged_for_s < 0.7


def test_calls_that_are_due_at_once_are_asked_about_at_once():
    room = Room()
    callers = [Caller(room.judge) for _ in range(3)]
    room.talk(*((caller, SPEECH) for caller in callers))

    assert all(len(set(places)) == 3 for places in room.model.asked)
    assert room.count("hops") == sum(len(places) for places in room.model.asked)


def test_what_the_model_remembers_is_kept_for_the_next_suspicion():
    room = Room()
    caller = Caller(room.judge)
    room.talk((caller, SPEECH + quiet(3.0) + SPEECH))

    assert room.count("suspicions") == 2
    assert len(room.model.begun) == 1


def test_a_place_is_anothers_when_the_call_is_over():
    room = Room()
    for _ in range(MAX_CALLS + 1):
        caller = Caller(room.judge)
        room.talk((caller, SPEECH[: FRAME * 20]))
        room.judge.let_go(caller.ear, caller)

        assert not caller.is_without


def test_whoever_finds_no_place_goes_by_the_detector():
    room = Room()
    callers = [Caller(room.judge) for _ in range(MAX_CALLS + 1)]
    room.talk(*((caller, SPEECH[: FRAME * 20]) for caller in callers))

    assert [caller.is_without for caller in callers] == [False] * MAX_CALLS + [True]


def test_a_call_that_is_judged_too_late_goes_by_the_detector_for_a_while():
    room = Room()
    caller = Caller(room.judge)
    room.talk((caller, SPEECH[: FRAME * 30]))
    room.now += 0.1
    caller.say(SPEECH[FRAME * 30 : FRAME * 36], room.now)
    room.judge.judge_now()
    assert caller.is_without
    assert room.count("late") == 1

    room.talk((caller, quiet(WITHOUT_S + 1.0)))

    assert not caller.is_without


@pytest.mark.parametrize("frames", [5, 10, 40])
def test_audio_that_comes_late_and_all_at_once_is_judged_all_the_same(frames):
    room = Room()
    caller = Caller(room.judge)
    speech = SPEECH * 2
    room.talk((caller, speech[: FRAME * 30]))
    room.now += frames * 0.02
    for number in range(30, 30 + frames):
        caller.ear.hear(speech[FRAME * number : FRAME * (number + 1)], room.now)
    room.judge.judge_now()

    assert not caller.is_without
    assert room.count("late") == 0
    assert room.now - caller.hops[-1][1] < HOP_S


def test_a_hop_is_late_when_nobody_has_judged_it_in_time_however_little_waits():
    room = Room()
    caller = Caller(room.judge)
    room.talk((caller, SPEECH[: FRAME * 30]))
    room.now += 0.04
    for number in (30, 31):
        caller.ear.hear(SPEECH[FRAME * number : FRAME * (number + 1)], room.now)
    room.now += 0.05
    room.judge.judge_now()

    assert caller.is_without


def test_what_was_said_while_nobody_judged_is_not_joined_to_what_comes_after():
    room = Room()
    caller = Caller(room.judge)
    room.talk((caller, SPEECH[: FRAME * 30]))
    room.judge._watched.clear()
    caller.do_without()
    room.talk((caller, quiet(3.0)))
    assert caller.rely_again()
    room.model.asked.clear()
    caller.hops.clear()

    room.talk((caller, SPEECH[: FRAME * 4]))
    judged = len(room.model.asked)

    assert 0 < judged <= FRAME * 4 // 256


def test_nobody_is_taken_back_in_the_middle_of_a_word():
    room = Room()
    caller = Caller(room.judge)
    room.talk((caller, SPEECH[: FRAME * 30]))
    caller.do_without()
    room.judge._give_up(caller, room.now)

    room.talk((caller, SPEECH * 2))
    assert caller.is_without
    room.talk((caller, quiet(2 * WITHOUT_S + 1.0)))

    assert not caller.is_without


def test_a_line_on_which_nothing_comes_any_more_is_told_so_and_not_looked_at_for_ever():
    room = Room()
    caller = Caller(room.judge)
    caller.is_open = True
    room.talk((caller, SPEECH[: FRAME * 30]))
    assert room.judge.is_busy

    room.now += GONE_S + 0.1
    room.judge.judge_now()

    assert caller.is_gone
    assert not room.judge.is_busy


@pytest.mark.parametrize("hole_s", [0.9, 0.98, 1.02, 1.1, 1.14, 1.26, 1.5, 30.0])
def test_who_goes_on_speaking_after_a_hole_in_the_network_is_judged_on(hole_s):
    room = Room()
    caller = Caller(room.judge)
    caller.is_open = True
    room.talk((caller, SPEECH[: FRAME * 90]))
    for _ in range(round(hole_s / 0.02)):
        room.now += 0.02
        room.judge.judge_now()
    caller.hops.clear()

    room.talk((caller, SPEECH[FRAME * 40 :]))

    assert len(caller.hops) > 25
    assert caller.is_gone is (hole_s > GONE_S)


async def test_it_runs_by_itself_and_asks_in_a_thread(nursery):
    registry = CollectorRegistry()
    judge = Judge(Loudness(), VoiceMetrics(registry))
    caller = Caller(judge)
    nursery.start_soon(judge.run)
    await trio.testing.wait_all_tasks_blocked()

    caller.say(SPEECH[: FRAME * 40], trio.current_time())
    with trio.fail_after(60):
        await caller.was_judged.wait()

    assert caller.hops[-1][0] in (0.0, 1.0)
    assert 0.0 < registry.get_sample_value("offhook_voice_judge_cpu_seconds_total") < 60.0


async def test_whoever_finds_no_place_is_counted_and_judged_when_there_is_one(
    autojump_clock, nursery
):
    registry = CollectorRegistry()
    judge = Judge(Loudness(), VoiceMetrics(registry), in_thread=False)
    nursery.start_soon(judge.run)
    await trio.testing.wait_all_tasks_blocked()
    callers = [Caller(judge) for _ in range(MAX_CALLS + 1)]
    for caller in callers:
        caller.say(SPEECH[: FRAME * 10], trio.current_time())
    *placed, late = callers
    late.say(quiet(1.0), trio.current_time() + 1.0)
    await trio.sleep(10.0)
    assert registry.get_sample_value("offhook_voice_refusals_total") == 1.0
    assert not judge.is_busy
    assert not late.is_without

    for caller in placed:
        judge.let_go(caller.ear, caller)
    await trio.testing.wait_all_tasks_blocked()
    late.say(SPEECH[: FRAME * 10], trio.current_time())

    assert judge.is_busy
    assert not late.is_without


async def test_without_anybody_who_runs_it_calls_go_by_the_detector(autojump_clock, nursery):
    judge = Judge(Loudness(), VoiceMetrics(CollectorRegistry()), in_thread=False)
    caller = Caller(judge)

    caller.say(SPEECH[: FRAME * 40], trio.current_time())
    assert caller.is_without
    nursery.start_soon(judge.run)
    caller.say(quiet(1.0), trio.current_time() + 1.0)
    await trio.sleep(WITHOUT_S + 0.1)

    assert not caller.is_without


async def test_a_model_that_fails_leaves_calls_to_the_detector_and_is_counted(autojump_clock):
    model, registry = Loudness(fails=True), CollectorRegistry()
    judge = Judge(model, VoiceMetrics(registry), in_thread=False)
    caller = Caller(judge)

    with pytest.raises(BaseExceptionGroup):  # noqa: PT012
        async with trio.open_nursery() as nursery:
            nursery.start_soon(judge.run)
            await trio.testing.wait_all_tasks_blocked()
            caller.say(SPEECH[: FRAME * 40], trio.current_time())
            await trio.sleep(1.0)

    assert caller.is_without
    assert registry.get_sample_value("offhook_voice_failures_total") == 1.0
    assert registry.get_sample_value("offhook_voice_judge_available") == 0.0
