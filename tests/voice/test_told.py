"""What a model is told of the caller's turns."""

from __future__ import annotations

import pytest

from server.model.lasting.told_turns import MAX_BEFORE_S
from server.voice.told import (
    AGAIN_S,
    BEFORE_S,
    LOWER_S,
    MAX_TURN_S,
    NEVER,
    CallerTurns,
    TurnBegins,
    TurnEnds,
)


def turns(*, wait_for_cut: bool = True) -> CallerTurns:
    return CallerTurns(wait_for_cut=wait_for_cut)


def test_a_turn_is_told_with_what_was_heard_before_its_first_sound():
    told = turns()

    (begins,) = told.started(1.0, 1.1, agent_heard=False)
    ends = told.ended(2.0, 2.5, speech_s=0.9, agent_until=0.0)

    assert begins.before_s == pytest.approx(0.1 + BEFORE_S)
    assert ends == (TurnEnds(),)
    assert told.close() == ()


def test_speech_over_the_agent_is_told_when_it_is_an_interruption():
    told = turns()

    assert told.started(1.0, 1.1, agent_heard=True) == ()
    (begins,) = told.cut(1.4)
    assert begins.before_s == pytest.approx(0.4 + BEFORE_S)
    assert told.cut(1.5) == ()


def test_speech_over_the_agent_is_told_at_once_where_nobody_else_decides():
    assert turns(wait_for_cut=False).started(1.0, 1.1, agent_heard=True) != ()


def test_a_sound_over_the_agent_that_interrupts_nobody_is_not_told():
    told = turns()
    told.started(1.0, 1.1, agent_heard=True)

    assert told.ended(1.4, 1.9, speech_s=0.3, agent_until=5.0) == ()


def test_who_goes_on_when_the_agent_has_ended_is_heard_in_the_end():
    told = turns()
    told.started(1.0, 1.1, agent_heard=True)

    begins, ends = told.ended(2.4, 2.9, speech_s=1.2, agent_until=1.5)

    assert begins == TurnBegins(pytest.approx(1.9 + BEFORE_S))
    assert ends == TurnEnds()


def test_no_turn_lasts_for_ever():
    told = turns()
    assert told.next_due(0.0) == NEVER
    told.started(1.0, 1.0, agent_heard=False)

    assert told.next_due(0.0) == 1.0 + MAX_TURN_S
    assert not told.is_over(0.9 + MAX_TURN_S)
    assert told.is_over(1.0 + MAX_TURN_S)
    assert told.close() == (TurnEnds(),)
    assert not told.is_on
    assert told.next_due(0.0) == NEVER


def gone_on(*, is_believed: bool = True) -> CallerTurns:
    """Turns of a caller who has spoken on when their turn was closed, at 31 s."""
    told = turns()
    told.started(1.0, 1.0, agent_heard=False)
    assert told.overdue(31.0) == (TurnEnds(),)
    if not is_believed:
        told.goes_on(31.0, is_believed=False)
    return told


def test_what_goes_on_when_its_turn_is_closed_is_told_when_the_model_has_had_time_to_answer():
    told = gone_on()

    assert told.next_due(0.0) == 31.0 + AGAIN_S
    assert told.again(31.4, agent_until=0.0) == ()
    (begins,) = told.again(31.0 + AGAIN_S, agent_until=0.0)
    assert begins.before_s == pytest.approx(AGAIN_S + BEFORE_S)
    assert begins.before_s <= MAX_BEFORE_S
    assert told.ended(40.0, 40.5, speech_s=39.0, agent_until=0.0) == (TurnEnds(),)


def test_what_goes_on_over_the_answer_is_told_when_the_agent_is_silent_or_interrupted():
    told = gone_on()
    assert told.next_due(36.0) == 36.0
    assert told.again(33.0, agent_until=36.0) == ()
    assert told.again(36.0, agent_until=36.0) != ()

    (begins,) = gone_on().cut(33.0)
    assert begins.before_s == pytest.approx(2.0 + BEFORE_S)


def test_only_what_was_said_after_a_turn_was_closed_is_another():
    assert gone_on().ended(30.9, 31.4, speech_s=29.9, agent_until=0.0) == ()
    assert gone_on().ended(31.1, 31.6, speech_s=30.1, agent_until=0.0) == ()
    assert gone_on().ended(31.3, 31.8, speech_s=30.3, agent_until=0.0) != ()


def test_an_answer_is_owed_to_what_was_told_and_has_not_been_counted_as_over():
    told = turns()
    told.started(1.0, 1.1, agent_heard=False)
    told.close()  # the line was lost
    told.goes_on(3.0)
    told.ended(2.0, 3.5, speech_s=1.0, agent_until=0.0)
    assert told.take_known()
    assert not told.take_known()

    told.started(4.0, 4.1, agent_heard=True)
    told.ended(5.0, 5.5, speech_s=1.0, agent_until=9.0)
    assert not told.take_known()

    again = gone_on()
    again.ended(31.1, 31.6, speech_s=30.1, agent_until=0.0)
    assert not again.take_known()


def test_what_is_not_believed_any_more_is_told_when_it_has_ended_or_interrupts():
    told = gone_on(is_believed=False)

    assert told.next_due(0.0) == NEVER
    assert told.again(90.0, agent_until=0.0) == ()
    assert told.cut(33.0) != ()
    assert gone_on(is_believed=False).ended(90.0, 90.5, speech_s=80.0, agent_until=0.0) != ()


def test_a_word_over_the_end_of_what_the_agent_says_is_told_as_soon_as_it_is_owed_an_answer():
    told = turns()
    told.started(1.0, 1.1, agent_heard=True)

    begins, ends = told.ended(1.4, 1.9, speech_s=0.4, agent_until=1.6)

    assert isinstance(begins, TurnBegins)
    assert ends == TurnEnds()


def test_what_was_held_is_a_turn_of_its_own_unless_one_is_told_already():
    told = turns()

    assert told.released(3.0) == (TurnBegins(0.0),)
    assert told.released(3.1) == ()
    assert told.close() == (TurnEnds(),)


def test_a_turn_after_which_a_lower_voice_goes_on_is_over_when_that_is_not_the_callers():
    told = turns()
    told.started(1.0, 1.1, agent_heard=False)

    assert told.may_go_on(2.0)
    assert told.next_due(0.0) == 2.0 + LOWER_S
    assert not told.is_over(2.0 + LOWER_S - 0.1)
    assert told.is_over(2.0 + LOWER_S)
    assert told.close() == (TurnEnds(),)
    assert told.next_due(0.0) == NEVER


def test_a_caller_who_goes_on_lower_is_in_the_same_turn():
    told = turns()
    told.started(1.0, 1.1, agent_heard=False)
    told.may_go_on(2.0)

    assert told.started(4.5, 4.6, agent_heard=False) == ()
    assert not told.is_over(2.0 + LOWER_S)
    assert told.ended(8.0, 8.5, speech_s=3.0, agent_until=0.0) == (TurnEnds(),)


def test_nobody_waits_for_the_end_of_what_was_not_told():
    told = turns()
    told.started(1.0, 1.1, agent_heard=True)

    assert not told.may_go_on(2.0)
    assert told.next_due(0.0) == NEVER
