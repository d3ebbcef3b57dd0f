from __future__ import annotations

import pytest

from server.transcript import SpokenTurn, Transcript


def test_pieces_of_one_turn_are_joined():
    transcript = Transcript()
    transcript.agent_said("Hello", 1, 0.0)
    transcript.agent_said(" there", 1, 0.4)
    transcript.caller_said("Hi", 1.0)
    transcript.caller_said("!", 1.1)

    assert [(t["speaker"], t["text"]) for t in transcript.as_list()] == [
        ("agent", "Hello there"),
        ("caller", "Hi!"),
    ]


def test_agent_text_that_comes_after_the_caller_spoke_joins_its_own_turn():
    transcript = Transcript()
    transcript.agent_said("Hello", 1, 0.0)
    transcript.caller_said("Hi", 1.0)
    transcript.agent_said(" there", 1, 1.1)

    assert [t["text"] for t in transcript.as_list()] == ["Hello there", "Hi"]


@pytest.mark.parametrize(
    ("heard_s", "text"),
    [(0.0, ""), (1.0, ""), (2.0, "Good"), (4.9, "Good morning"), (5.0, "Good morning dear")],
)
def test_a_cut_falls_on_the_word_boundary_before_it(heard_s, text):
    turn = SpokenTurn("agent", 0.0, "Good morning dear", 1, heard_s=heard_s, sent_s=5.0, cut=True)

    assert turn.heard_text == text


def test_what_is_recognised_once_more_takes_its_own_place():
    transcript = Transcript()
    transcript.caller_said("I would", 0.0)
    transcript.agent_said("Well", 1, 1.0)
    transcript.caller_repeats()
    transcript.caller_said("I would like", 2.0)
    transcript.caller_said(" a room", 2.1)
    transcript.agent_said("Which one?", 2, 3.0)
    transcript.caller_said("The blue one", 4.0)

    texts = [turn["text"] for turn in transcript.as_list()]
    assert texts == ["I would like a room", "Well", "Which one?", "The blue one"]
