"""What follows from how likely it is that the caller speaks."""

from __future__ import annotations

import pytest

from codec.ear import SpeechEnded, SpeechStarted, Stop
from codec.hops import HOP_S
from server.voice.verdicts import (
    BACK_OFF_S,
    BEHIND_DB,
    BEHIND_FOR_S,
    FAR_DB,
    LOOSE,
    LOWER_DB,
    LOWER_S,
    STRICT,
    STRICT_IN_QUIET,
    Verdicts,
)


def verdicts(*, barge_in: bool = True, confirm_s: float = 0.8, agree_s: float = 1.0) -> Verdicts:
    return Verdicts(barge_in=barge_in, end_silence_s=0.5, confirm_s=confirm_s, agree_s=agree_s)


class Line:
    """A caller of whom only probabilities are known."""

    def __init__(self, judged: Verdicts, *, agent_heard: bool = False, is_quiet: bool = False):
        self.judged, self.agent_heard, self.is_quiet = judged, agent_heard, is_quiet
        self.now = 0.0
        self.agent_until = 0.0
        self.may_stop = True
        self.level_dbfs = -26.0

    def hear(self, probability: float, seconds: float, suspicious_s: float = 0.0) -> list[object]:
        """What is found, and when."""
        found = []
        for _ in range(round(seconds / HOP_S)):
            self.now += HOP_S
            found += self.judged.hop(
                probability,
                self.now,
                level_dbfs=self.level_dbfs,
                agent_heard=self.agent_heard,
                agent_until=self.now if self.agent_heard else self.agent_until,
                may_stop=self.may_stop,
                is_quiet=self.is_quiet,
                suspicious_s=suspicious_s,
            )
        return found


def test_a_turn_begins_with_certain_speech_and_ends_after_the_silence():
    line = Line(verdicts())

    found = line.hear(0.9, 0.64) + line.hear(0.0, 1.0)

    started, ended = found
    assert started == SpeechStarted(0.0)
    assert isinstance(ended, SpeechEnded)
    assert ended.at == pytest.approx(0.64)
    assert ended.speech_s == pytest.approx(0.64)
    assert 0.5 <= ended.known_at - ended.at < 0.5 + 2 * HOP_S


@pytest.mark.parametrize(("probability", "sure"), [(0.06, False), (0.45, False), (0.6, True)])
def test_a_turn_is_sure_in_which_a_voice_was_certain(probability, sure):
    line = Line(verdicts())

    *_, ended = line.hear(probability, 0.32, suspicious_s=0.2) + line.hear(0.0, 1.0)

    assert isinstance(ended, SpeechEnded)
    assert ended.sure is sure


def test_a_pause_within_a_turn_does_not_end_it():
    line = Line(verdicts())

    found = line.hear(0.9, 0.32) + line.hear(0.0, 0.4) + line.hear(0.4, 0.32)

    assert found == [SpeechStarted(0.0)]


def test_while_the_agent_is_silent_little_is_enough_for_a_turn_and_over_it_much_is_needed():
    silent, heard = Line(verdicts()), Line(verdicts(), agent_heard=True)

    assert len(silent.hear(LOOSE, 0.1)) == 1
    assert heard.hear(STRICT - 0.01, 1.0) == []
    assert heard.hear(STRICT, HOP_S)[-1] is Stop.HOLD


def test_on_a_quiet_line_less_is_needed_to_hold_the_agent():
    line = Line(verdicts(), agent_heard=True, is_quiet=True)

    assert line.hear(STRICT_IN_QUIET, HOP_S)[-1] is Stop.HOLD


def test_a_word_that_the_model_is_not_sure_of_begins_a_turn_where_the_detector_heard_it_too():
    line = Line(verdicts())

    assert line.hear(0.1, 0.2) == []
    assert line.hear(0.01, 0.2, suspicious_s=0.5) == []
    assert len(line.hear(0.1, HOP_S, suspicious_s=0.1)) == 1


def test_enough_voice_cuts_the_agent():
    line = Line(verdicts(confirm_s=0.2, agree_s=0.0), agent_heard=True)

    found = [one for one in line.hear(0.9, 0.5) if isinstance(one, Stop)]

    assert found[:2] == [Stop.HOLD, Stop.CUT]


def test_a_sound_without_a_word_lets_the_agent_go_on_and_does_not_deafen_for_long():
    line = Line(verdicts(), agent_heard=True)

    assert line.hear(0.9, HOP_S)[-1] is Stop.HOLD
    assert line.hear(0.0, 0.25) == [Stop.RESUME]
    assert line.judged.holding is False
    assert Stop.HOLD not in line.hear(0.9, BACK_OFF_S - 0.2)
    assert Stop.HOLD in line.hear(0.9, 0.4)


def test_after_a_word_the_agent_waits_for_somebody_else_to_call_it_an_interruption():
    line = Line(verdicts(), agent_heard=True)
    line.hear(0.97, 0.2)

    assert Stop.RESUME not in line.hear(0.0, 0.9)
    assert Stop.RESUME in line.hear(0.0, 0.4)


@pytest.mark.parametrize(("is_quiet", "waits"), [(True, True), (False, False)])
def test_in_a_room_a_sound_that_was_never_quite_a_voice_is_no_word_to_wait_for(is_quiet, waits):
    line = Line(verdicts(), agent_heard=True, is_quiet=is_quiet)
    held = line.hear(0.9, 0.3)

    after = line.hear(0.0, 0.4)

    assert Stop.HOLD in held
    assert (Stop.RESUME not in after) is waits


def test_sound_that_is_no_word_and_does_not_end_lets_the_agent_go_on():
    line = Line(verdicts(), agent_heard=True)
    line.hear(0.9, HOP_S)

    assert Stop.RESUME in line.hear(0.4, 1.0)


def test_nothing_is_held_where_that_is_not_wanted_or_not_allowed():
    unwanted = Line(verdicts(barge_in=False), agent_heard=True)
    early = Line(verdicts(), agent_heard=True)
    early.may_stop = False

    for line in (unwanted, early):
        assert not any(isinstance(one, Stop) for one in line.hear(0.9, 1.0))


def test_a_cut_by_somebody_else_ends_the_hold():
    line = Line(verdicts(), agent_heard=True)
    line.hear(0.9, 0.1)

    line.judged.agent_cut()

    assert not line.judged.holding
    assert Stop.RESUME not in line.hear(0.0, 2.0)


def test_it_is_open_until_what_was_begun_is_ended():
    line = Line(verdicts())
    line.hear(0.9, 0.1)
    assert line.judged.is_open

    line.hear(0.0, 1.0)

    assert not line.judged.is_open


def test_what_was_an_echo_was_nobodys_turn_and_holds_nobody():
    line = Line(verdicts(), agent_heard=True)
    line.hear(0.9, 0.1)

    ended, resumed = line.judged.was_echo(line.now)

    assert isinstance(ended, SpeechEnded)
    assert ended.speech_s == 0.0
    assert resumed is Stop.RESUME
    assert not line.judged.is_open
    assert line.judged.last_at < 0.0
    assert line.judged.was_echo(line.now) == []


# --- Somebody else in the room
def known(line: Line) -> Line:
    """A caller who has said something that was understood."""
    line.agent_heard = False
    line.hear(0.9, 0.64)
    line.judged.understood()
    line.hear(0.0, 1.0)
    line.agent_heard = True
    return line


def test_a_voice_that_is_far_under_the_callers_holds_nobody():
    line = known(Line(verdicts()))

    line.level_dbfs -= FAR_DB + 1
    assert line.hear(0.99, 3.0) == []
    line.level_dbfs += FAR_DB + 1
    assert Stop.HOLD in line.hear(0.99, HOP_S)


def test_as_long_as_nobody_was_understood_every_voice_may_be_the_callers():
    line = Line(verdicts(), agent_heard=True)
    line.hear(0.9, 0.64)
    line.hear(0.0, 3.0)
    line.level_dbfs -= 40.0

    assert Stop.HOLD in line.hear(0.9, HOP_S)


def test_while_the_agent_is_silent_a_low_voice_is_the_callers():
    line = known(Line(verdicts()))
    line.agent_heard = False
    line.level_dbfs -= 40.0

    assert len(line.hear(0.5, HOP_S)) == 1


def asked_in_front_of_a_television() -> tuple[Line, list[object]]:
    """A caller who has asked something, and what is found while a television goes on behind."""
    line = Line(verdicts())
    line.hear(0.95, 1.28)
    line.level_dbfs -= LOWER_DB + 2
    return line, line.hear(0.9, 3.2)


def test_an_answer_is_owed_when_only_a_voice_far_behind_the_caller_goes_on():
    _, (ended,) = asked_in_front_of_a_television()

    assert isinstance(ended, SpeechEnded)
    assert ended.sure
    assert ended.goes_on  # which may be the caller's, for all that is known by then
    assert ended.at == pytest.approx(1.28, abs=0.2)
    assert ended.known_at - 1.28 <= 0.9


def test_a_caller_who_goes_on_as_loud_as_before_begins_another_turn():
    line, _ = asked_in_front_of_a_television()
    line.level_dbfs += LOWER_DB + 2

    assert isinstance(line.hear(0.9, 0.064)[0], SpeechStarted)


@pytest.mark.parametrize("after", ["the answer", "long"])
def test_who_speaks_low_is_meant_once_they_were_answered_or_have_been_silent_for_long(after):
    line, _ = asked_in_front_of_a_television()

    if after == "long":
        line.hear(0.0, BEHIND_FOR_S)
    else:
        line.agent_until = line.now

    assert isinstance(line.hear(0.5, HOP_S)[0], SpeechStarted)


@pytest.mark.parametrize("pauses_s", [0.0, 0.3, 0.8])
def test_a_caller_who_calls_out_and_goes_on_lower_is_heard_again_soon_and_stays_heard(pauses_s):
    line = Line(verdicts())
    line.level_dbfs = -20.0
    line.hear(0.95, 1.28)
    line.level_dbfs = -29.0
    found: list[object] = []
    for _ in range(4):
        found += line.hear(0.95, 1.0) + line.hear(0.0, pauses_s)

    begun = [one.at for one in found if isinstance(one, SpeechStarted)]
    assert begun[0] <= 1.28 + LOWER_S + pauses_s + 0.3
    ended = [one for one in found if isinstance(one, SpeechEnded)]
    assert not any(one.goes_on for one in ended if one.at > begun[0])
    assert line.judged.speaking or pauses_s > 0.5  # a pause that ends any turn


def test_a_caller_who_speaks_lower_from_now_on_can_interrupt_the_agent():
    line = known(Line(verdicts()))
    line.agent_heard = False
    line.hear(0.95, 0.64)
    line.level_dbfs -= BEHIND_DB + 1
    line.hear(0.95, LOWER_S + 0.3)
    line.hear(0.0, 1.0)
    line.agent_heard = True

    assert Stop.HOLD in line.hear(0.95, HOP_S)


def test_the_low_end_of_a_sentence_is_no_voice_that_goes_on():
    line = Line(verdicts())
    line.hear(0.95, 1.28)
    line.level_dbfs -= BEHIND_DB + 2
    line.hear(0.5, 0.3)

    (ended,) = line.hear(0.0, 1.0)

    assert isinstance(ended, SpeechEnded)
    assert not ended.goes_on


@pytest.mark.parametrize("end", ["echo", "gone"])
def test_nobody_is_compared_with_what_was_an_echo_or_was_said_before_a_hole(end):
    line = Line(verdicts())
    line.level_dbfs = -15.0
    line.hear(0.95, 0.64)
    line.agent_until = -1.0
    forget = line.judged.was_echo if end == "echo" else line.judged.gone
    forget(line.now)
    line.level_dbfs = -26.0

    assert isinstance(line.hear(0.9, 0.3)[0], SpeechStarted)


def test_the_loudest_who_is_understood_is_the_caller_and_who_moves_is_followed():
    line = known(Line(verdicts()))
    assert line.judged.caller_dbfs == pytest.approx(-26.0)

    line.level_dbfs = -46.0  # a television, which the model transcribes, too
    known(line)
    assert line.judged.caller_dbfs == pytest.approx(-26.0)
    line.level_dbfs = -30.0
    known(line)
    assert line.judged.caller_dbfs == pytest.approx(-27.2)
    line.level_dbfs = -20.0
    known(line)
    assert line.judged.caller_dbfs == pytest.approx(-20.0)


def test_a_sound_that_was_understood_but_is_too_short_tells_nothing_of_loudness():
    line = Line(verdicts())
    line.hear(0.9, 0.1)
    line.judged.understood()

    assert line.judged.caller_dbfs is None
