"""What a model is told of the caller's turns."""

from __future__ import annotations

import pytest

from server.voice.told import BEFORE_S, MAX_TURN_S, NEVER, CallerTurns, TurnBegins, TurnEnds


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
    assert told.ends_by == NEVER
    told.started(1.0, 1.0, agent_heard=False)

    assert told.ends_by == 1.0 + MAX_TURN_S
    assert told.close() == (TurnEnds(),)
    assert told.ends_by == NEVER
    assert told.ended(40.0, 40.5, speech_s=39.0, agent_until=0.0) == ()


def test_what_was_held_is_a_turn_of_its_own_unless_one_is_told_already():
    told = turns()

    assert told.released(3.0) == (TurnBegins(0.0),)
    assert told.released(3.1) == ()
    assert told.close() == (TurnEnds(),)
