"""What is known of a model's turns and tool calls when its connection goes: no socket, no clock."""

from __future__ import annotations

import pytest

from server.agent import phrases
from server.dialogue.turns import CONNECTION_LOST
from server.model import (
    AgentAudio,
    AgentTranscript,
    GenerationComplete,
    Interrupted,
    SessionEvent,
    ToolCall,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Working,
)
from server.model.lasting.heard import MAX_CALLS_KEPT, AgentSide, ToolCallsMade

AUDIO = AgentAudio(bytes(960), 1, 0.0)
TEXT = AgentTranscript("Good morning.", 1)
WHOLE, OVER = GenerationComplete(1), TurnComplete(1, None)
MORE = TurnComplete(1, None, more=True)


def after(*events: SessionEvent) -> AgentSide:
    side = AgentSide()
    for event in events:
        side.note(event)
    return side


# --- Turns


@pytest.mark.parametrize(
    ("events", "busy"),
    [
        ((), False),
        ((AUDIO,), True),
        ((TEXT,), True),
        ((AUDIO, WHOLE), True),
        ((AUDIO, OVER), False),
        ((AUDIO, MORE), True),
        ((AUDIO, MORE, AUDIO, OVER), False),
        ((Working(True),), True),
        ((Working(True), Working(False)), False),
    ],
)
def test_a_model_is_busy_in_a_turn_and_while_another_is_to_come(events, busy):
    assert after(*events).is_busy is busy


@pytest.mark.parametrize("begun", [AUDIO, TEXT])
def test_a_turn_that_was_under_way_ends_with_its_connection(begun):
    side = after(begun)

    assert side.connection_lost() == TurnComplete(1, CONNECTION_LOST)
    assert side.was_cut_off
    assert not side.is_busy
    assert side.connection_lost() is None


@pytest.mark.parametrize("event", [WHOLE, Interrupted(1, 0.0)])
def test_a_turn_of_which_no_more_would_have_come_was_not_cut_off(event):
    side = after(AUDIO, event)

    assert side.connection_lost() == TurnComplete(1, CONNECTION_LOST)
    assert not side.was_cut_off


def test_between_turns_nothing_ends_and_nothing_was_cut_off():
    side = after(AUDIO, WHOLE, OVER)

    assert side.connection_lost() is None
    assert not side.was_cut_off


def test_what_a_model_was_still_at_work_on_was_cut_off():
    side = after(AUDIO, WHOLE, MORE)

    assert side.connection_lost() is None
    assert side.was_cut_off
    assert not side.is_busy


def test_a_turn_begins_anew_with_its_number():
    side = after(AUDIO, WHOLE, Interrupted(1, 0.0), AgentAudio(bytes(960), 2, 0.0))

    assert (side.turn, side.is_speaking, side.is_cut) == (2, True, False)
    side.connection_lost()
    assert side.was_cut_off


def test_a_turn_that_has_only_called_functions_is_the_newest_one():
    side = after(AUDIO, WHOLE, OVER, ToolCallsRequested((call("a"),), 2))

    assert (side.turn, side.is_busy) == (2, False)
    assert side.connection_lost() is None


def test_a_function_called_in_a_turn_that_speaks_changes_nothing_of_it():
    side = after(AUDIO, ToolCallsRequested((call("a"),), 1))

    assert (side.turn, side.is_speaking, side.is_busy) == (1, True, True)


def test_a_call_after_a_turn_that_was_cut_and_never_completed_is_of_a_turn_not_cut():
    side = after(AUDIO, Interrupted(1, 0.0), ToolCallsRequested((call("a"),), 2))
    assert (side.turn, side.is_cut) == (2, False)

    side.note(AgentAudio(bytes(960), 2, 0.0))
    assert (side.turn, side.is_speaking) == (2, True)
    side.connection_lost()
    assert side.was_cut_off


def test_text_before_its_audio_is_a_turn_in_which_nothing_was_said_yet():
    side = after(TEXT)
    assert (side.turn, side.is_speaking) == (1, False)

    side.note(AUDIO)
    side.note(AgentTranscript(" And welcome.", 1))
    assert side.is_speaking


# --- Tool calls


def call(identity: str) -> ToolCall:
    return ToolCall(identity, "look_up", {"order": 7})


def result(identity: str) -> ToolResult:
    return ToolResult(identity, "look_up", {"output": "blue"})


def test_the_connection_that_has_called_is_answered_once():
    calls = ToolCallsMade()
    calls.requested([call("a"), call("b")], opens=1)

    assert calls.answered([result("a")], opens=1) == ((result("a"),), [])
    assert calls.are_open
    assert calls.answered([result("a"), result("b")], opens=1) == ((result("b"),), [])
    assert not calls.are_open


def test_another_connection_is_told_in_words_of_answered_calls_too():
    calls = ToolCallsMade()
    calls.requested([call("a"), call("b")], opens=1)
    calls.answered([result("a")], opens=1)

    known, in_words = calls.answered([result("a"), result("b")], opens=2)

    assert known == ()
    assert in_words == 2 * [phrases.was_called("look_up", '{"order":7}', '{"output":"blue"}')]
    assert not calls.are_open


def test_a_call_that_was_taken_back_is_answered_nobody():
    calls = ToolCallsMade()
    calls.requested([call("a")], opens=1)
    calls.cancelled(["a", "never called"])

    assert not calls.are_open
    assert calls.answered([result("a")], opens=1) == ((), [])
    assert calls.answered([result("a")], opens=2) == ((), [])


def test_of_answered_calls_the_oldest_are_forgotten_and_of_open_ones_none():
    calls = ToolCallsMade()
    calls.requested([call("open")], opens=1)
    answered = [f"c{number}" for number in range(MAX_CALLS_KEPT)]
    for identity in answered:
        calls.requested([call(identity)], opens=1)
        calls.answered([result(identity)], opens=1)
    calls.requested([call("newest")], opens=1)

    _, in_words = calls.answered([result(one) for one in ("open", *answered, "newest")], opens=2)

    assert len(in_words) == MAX_CALLS_KEPT
    assert calls.answered([result("c0")], opens=2) == ((), [])
