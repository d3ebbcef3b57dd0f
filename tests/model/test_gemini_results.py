"""Which turn a model goes on with when it has the results of functions, without a socket."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from server.errors import ModelError
from server.model import (
    AgentAudio,
    AgentTranscript,
    GenerationComplete,
    Interrupted,
    ToolCallsRequested,
    TurnComplete,
    Usage,
)
from server.model.gemini.protocol import (
    ANSWER_S,
    LATE_AUDIO_S,
    MAX_CALLS,
    MAX_TEXT,
    GeminiProtocol,
)
from tests.support.gemini_messages import PCM, audio, content


def asked(*ids: str) -> bytes:
    calls = [{"id": one, "name": "look_up"} for one in ids]
    return json.dumps({"toolCall": {"functionCalls": calls}}).encode()


def told_to_wait(*, ends_turn: bool = False) -> GeminiProtocol:
    """A model has said something, called a function, and has its result at 10 s."""
    protocol = GeminiProtocol(ends_turn_at_call=ends_turn)
    protocol.receive(audio(), 0.0)
    protocol.receive(asked("c1"), 0.1)
    if ends_turn:
        protocol.receive(content(turnComplete=True), 0.2)
    protocol.calls_answered(10.0)
    return protocol


def test_what_is_said_about_results_is_another_turn_than_what_was_said_before() -> None:
    protocol = told_to_wait()

    answer = protocol.receive(audio(outputTranscription={"text": "Found."}), 10.5)
    more = protocol.receive(audio(), 10.6)
    over = protocol.receive(content(turnComplete=True), 11.0)
    following = protocol.receive(audio(), 12.0)

    assert answer == [
        GenerationComplete(1),
        AgentAudio(PCM, 2, 10.5),
        AgentTranscript("Found.", 2),
    ]
    assert more == [AgentAudio(PCM, 2, 10.6)]
    assert over == [TurnComplete(2, None)]
    assert following == [AgentAudio(PCM, 3, 12.0)]


def test_text_that_leads_its_audio_is_of_the_same_turn() -> None:
    protocol = told_to_wait()

    text = protocol.receive(content(outputTranscription={"text": "Found."}), 10.5)
    sound = protocol.receive(audio(), 11.5)

    assert text == []
    assert sound == [GenerationComplete(1), AgentTranscript("Found.", 2), AgentAudio(PCM, 2, 11.5)]


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"generationComplete": True}, GenerationComplete(1)),
        ({"turnComplete": True}, TurnComplete(1, None)),
        ({"interrupted": True}, Interrupted(1, 12.0)),
    ],
)
def test_words_that_come_late_and_are_followed_by_no_sound_are_of_the_turn_before(
    over, told
) -> None:
    protocol = told_to_wait()

    late = protocol.receive(content(outputTranscription={"text": " Good"}), 10.5)
    late += protocol.receive(content(outputTranscription={"text": "bye!"}), 11.0)

    assert late == []
    assert protocol.receive(content(**over), 12.0) == [AgentTranscript(" Goodbye!", 1), told]


def test_words_that_come_late_are_those_of_the_turn_that_calls_again() -> None:
    protocol = told_to_wait()
    protocol.receive(content(outputTranscription={"text": "Late."}), 10.5)

    words, again = protocol.receive(asked("c2"), 11.0)

    assert words == AgentTranscript("Late.", 1)
    assert isinstance(again, ToolCallsRequested)


def test_words_of_which_it_stays_open_whose_they_are_are_bounded() -> None:
    protocol = told_to_wait()
    for number in range(20):
        protocol.receive(content(outputTranscription={"text": "x" * MAX_TEXT}), 11.0 + number)

    words, _ = protocol.receive(content(turnComplete=True), 40.0)

    assert words == AgentTranscript("x" * MAX_TEXT, 1)


def test_what_was_on_its_way_when_results_were_sent_is_of_the_turn_before_them() -> None:
    protocol = told_to_wait()
    at = [10.0 + ANSWER_S * n * 0.9 for n in range(1, 5)]

    late = [event for now in at for event in protocol.receive(audio(), now)]
    answer = protocol.receive(audio(), at[-1] + ANSWER_S + 0.01)

    assert all(after - before < ANSWER_S for before, after in pairwise((10.0, *at)))
    assert late == [AgentAudio(PCM, 1, now) for now in at]
    assert answer == [GenerationComplete(1), AgentAudio(PCM, 2, at[-1] + ANSWER_S + 0.01)]


def test_a_turn_that_ends_without_a_word_about_results_is_the_one_that_asked_for_them() -> None:
    protocol = told_to_wait()

    assert protocol.receive(content(turnComplete=True), 11.0) == [TurnComplete(1, None)]
    assert protocol.receive(audio(), 12.0) == [AgentAudio(PCM, 2, 12.0)]


def test_a_model_that_has_said_nothing_before_it_called_says_all_in_one_turn() -> None:
    protocol = GeminiProtocol()
    protocol.receive(asked("c1"), 0.0)
    protocol.calls_answered(10.0)

    assert protocol.receive(audio(), 11.0) == [AgentAudio(PCM, 1, 11.0)]


def test_a_model_that_ends_its_turn_at_the_call_begins_the_next_one_itself() -> None:
    protocol = told_to_wait(ends_turn=True)

    assert protocol.receive(audio(), 10.5) == [AgentAudio(PCM, 2, 10.5)]


def test_the_late_end_of_a_turn_that_ends_at_its_call_makes_no_further_turn() -> None:
    protocol = GeminiProtocol(ends_turn_at_call=True)
    protocol.receive(audio(), 0.0)
    protocol.receive(asked("c1"), 0.1)
    protocol.calls_answered(0.2)

    assert protocol.receive(content(turnComplete=True), 1.0) == [TurnComplete(1, None)]
    assert protocol.receive(audio(), 2.0) == [AgentAudio(PCM, 2, 2.0)]


def test_results_that_come_in_a_later_turn_than_the_call_do_not_divide_that() -> None:
    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)
    protocol.receive(asked("c1"), 0.1)
    protocol.receive(content(turnComplete=True), 1.0)
    protocol.receive(audio(), 2.0)
    protocol.calls_answered(2.1)

    assert protocol.receive(audio(), 3.0) == [AgentAudio(PCM, 2, 3.0)]


def test_an_interruption_between_results_and_answer_cuts_what_is_said_about_them() -> None:
    protocol = told_to_wait()

    cut = protocol.receive(content(interrupted=True), 10.5)
    late = protocol.receive(audio(), 10.9)
    over = protocol.receive(content(turnComplete=True), 11.0)
    answer = protocol.receive(audio(), 11.1)

    assert cut == [Interrupted(1, 10.5)]
    assert late == [AgentAudio(PCM, 1, 10.9)]
    assert over == [TurnComplete(1, None)]
    assert answer == [AgentAudio(PCM, 2, 11.1)]


def test_results_of_a_turn_that_was_interrupted_make_no_turn_of_its_late_audio() -> None:
    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)
    protocol.receive(asked("c1"), 0.1)
    protocol.receive(content(interrupted=True), 1.0)
    protocol.calls_answered(1.1)

    late = protocol.receive(audio(), 1.0 + LATE_AUDIO_S)
    answer = protocol.receive(audio(), 1.1 + LATE_AUDIO_S)

    assert late == [AgentAudio(PCM, 1, 1.0 + LATE_AUDIO_S)]
    assert answer == [AgentAudio(PCM, 2, 1.1 + LATE_AUDIO_S)]


def test_results_that_are_sent_one_by_one_before_a_word_make_one_turn() -> None:
    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)
    protocol.receive(asked("c1", "c2"), 0.1)
    protocol.calls_answered(5.0)
    protocol.calls_answered(10.0)
    (again,) = protocol.receive(asked("c3"), 11.0)
    protocol.calls_answered(15.0)

    assert isinstance(again, ToolCallsRequested)
    assert again.turn == 1
    assert protocol.receive(audio(), 16.0) == [GenerationComplete(1), AgentAudio(PCM, 2, 16.0)]


def test_each_answer_of_a_model_that_calls_again_after_it_is_a_turn() -> None:
    protocol = told_to_wait()
    protocol.receive(audio(), 11.0)
    (again,) = protocol.receive(asked("c2"), 11.1)
    protocol.calls_answered(15.0)

    assert isinstance(again, ToolCallsRequested)
    assert again.turn == 2
    assert protocol.receive(audio(), 16.0) == [GenerationComplete(2), AgentAudio(PCM, 3, 16.0)]


def test_calls_are_counted_over_all_that_is_one_turn_to_the_model() -> None:
    protocol = GeminiProtocol()
    for number in range(MAX_CALLS):
        protocol.receive(audio(), number)
        protocol.receive(asked(f"c{number}"), number)
        protocol.calls_answered(number)

    with pytest.raises(ModelError):
        protocol.receive(asked("one more"), MAX_CALLS)


def test_tokens_of_what_is_one_turn_to_the_model_are_counted_as_one_turns() -> None:
    def counts(response: int) -> dict[str, int]:
        return {"promptTokenCount": 100, "responseTokenCount": response}

    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)
    events = protocol.receive(
        json.dumps(
            {"toolCall": json.loads(asked("c1"))["toolCall"], "usageMetadata": counts(10)}
        ).encode(),
        0.1,
    )
    protocol.calls_answered(10.0)
    events += protocol.receive(audio(), 10.5)
    over = {"serverContent": {"turnComplete": True}, "usageMetadata": counts(30)}
    events += protocol.receive(json.dumps(over).encode(), 11.0)
    events += protocol.receive(audio(), 12.0)
    over["usageMetadata"] = counts(20)
    events += protocol.receive(json.dumps(over).encode(), 13.0)

    assert [event.turn for event in events if isinstance(event, Usage)] == [1, 1, 3]


def test_nothing_is_passed_on_unseen_until_it_is_clear_whose_turn_it_is() -> None:
    protocol = told_to_wait()
    between = protocol.is_between_turns
    protocol.receive(audio(), 10.5)

    assert between
    assert not protocol.is_between_turns
