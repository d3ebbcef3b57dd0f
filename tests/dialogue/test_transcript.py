from __future__ import annotations

import pytest

from server.dialogue import transcript as transcript_module
from server.dialogue.transcript import SpokenTurn, Transcript


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
    turn = SpokenTurn("agent", 0.0, "Good morning dear", 1, heard_s, made_s=5.0, complete=True)

    assert turn.heard_text(15.0) == text


@pytest.mark.parametrize(
    ("text", "heard_s", "heard"),
    [
        ("ご予約は明日の九時です。", 5.0, "ご予約は明日"),
        ("您的预订是明天上午九点。", 2.5, "您的预"),
        ("I sent it to 田中さん today", 7.6, "I sent it to 田中さん"),
        ("I sent it to 田中さん today", 6.6, "I sent it to 田中"),
        ("Windowsの設定です", 4.0, ""),
        ("พรุ่งนี้เก้าโมงเช้า", 5.0, "พรุ่งนี้"),  # no vowel without its consonant
        ("น้ำ" * 4, 4.5, "น้ำ"),
        ("a" * 100, 5.0, "a" * 50),
        ("e\u0301" * 50, 5.1, "e\u0301" * 25),
        ("one two " + "a" * 30, 5.0, "one two"),
    ],
)
def test_a_cut_is_found_where_words_are_written_without_spaces(text, heard_s, heard):
    turn = SpokenTurn("agent", 0.0, text, 1, heard_s, made_s=10.0, complete=True)

    assert turn.heard_text(15.0) == heard


def test_what_was_not_heard_of_a_language_without_spaces_is_shown_apart():
    transcript = Transcript()
    transcript.agent_said("ご予約は明日の九時です", 1, 0.0)
    transcript.agent_complete(1)
    transcript.agent_heard(1, heard_s=4.0, made_s=11.0, cut=True)

    (turn,) = transcript.as_list()
    assert (turn["text"], turn["unheard"]) == ("ご予約は", "明日の九時です")


def test_text_that_is_ahead_of_its_audio_was_not_heard_with_it():
    # Two seconds of audio have come and were heard, but the text is already much longer.
    text = "one two three four five six seven eight nine ten eleven twelve"
    turn = SpokenTurn("agent", 0.0, text, 1, heard_s=2.0, made_s=2.0)

    assert turn.heard_text(15.0) == "one two three four five six"


def test_what_was_not_heard_is_shown_apart():
    transcript = Transcript()
    transcript.agent_said("Good morning dear", 1, 0.0)
    transcript.agent_complete(1)
    transcript.agent_heard(1, heard_s=2.0, made_s=5.0, cut=True)

    (turn,) = transcript.as_list()
    assert (turn["text"], turn["cut"], turn["unheard"]) == ("Good", True, "morning dear")
    (secret,) = transcript.as_list(words=False)
    assert (secret["text"], secret["unheard"]) == (None, None)


def test_the_agents_own_rate_counts_once_it_is_known():
    transcript = Transcript()
    transcript.agent_said("a" * 300, 1, 0.0)
    transcript.agent_complete(1)
    transcript.agent_heard(1, heard_s=10.0, made_s=10.0, cut=False)
    transcript.agent_said("one two three four five", 2, 11.0)
    transcript.agent_heard(2, heard_s=0.3, made_s=0.3, cut=True)

    assert transcript.agent_heard_text(2) == "one two"
    assert transcript.agent_heard_text(9) == ""


def test_a_turn_of_which_nothing_was_heard_has_no_text():
    transcript = Transcript()
    transcript.agent_said("Never mind", 1, 0.0)
    transcript.agent_heard(1, heard_s=0.0, made_s=1.0, cut=True)

    (turn,) = transcript.as_list()
    assert (turn["text"], turn["unheard"]) == ("", "Never mind")


@pytest.mark.parametrize("is_complete", [False, True])
def test_a_turn_of_which_no_audio_ever_came_was_not_heard(is_complete):
    transcript = Transcript()
    transcript.caller_said("Hello?", 0.0)
    transcript.agent_said("One moment, please.", 1, 1.0)
    if is_complete:
        transcript.agent_complete(1)
    before = transcript.as_list()[1]["cut"]
    transcript.over()

    caller, turn = transcript.as_list()
    assert (before, caller["cut"]) == (False, False)
    assert (turn["text"], turn["heard_s"], turn["cut"]) == ("", 0.0, True)
    assert turn["unheard"] == "One moment, please."


def test_a_turn_without_audio_says_nothing_of_how_fast_the_agent_speaks():
    transcript = Transcript()
    transcript.agent_said("a" * 100, 1, 0.0)
    transcript.agent_complete(1)
    transcript.agent_heard(1, heard_s=10.0, made_s=10.0, cut=False)
    transcript.agent_said("b" * 1000, 2, 10.0)
    transcript.agent_complete(2)
    transcript.agent_said("one two three four five", 3, 11.0)
    transcript.agent_heard(3, heard_s=1.0, made_s=1.0, cut=True)

    assert transcript.agent_heard_text(3) == "one two"


def test_of_a_turn_that_another_process_has_had_it_stays_as_that_has_left_it():
    transcript = Transcript()
    transcript.go_on([SpokenTurn("agent", 0.0, "Good morning.")], before=0, told=0)
    transcript.over()

    (turn,) = transcript.as_list()
    assert (turn["text"], turn["cut"]) == ("Good morning.", False)


def test_what_is_recognised_once_more_takes_its_own_place():
    transcript = Transcript()
    transcript.caller_said("I would", 0.0)
    transcript.agent_said("Well", 1, 1.0)
    transcript.reconnected(1, words_repeated=True)
    transcript.caller_said("I would like", 2.0)
    transcript.caller_said(" a room", 2.1)
    transcript.agent_said("Which one?", 2, 3.0)
    transcript.caller_said("The blue one", 4.0)

    texts = [turn["text"] for turn in transcript.as_list()]
    assert texts == ["I would like a room", "Well", "Which one?", "The blue one"]


@pytest.mark.parametrize("ended", ["generated", "cut"])
@pytest.mark.parametrize("has_words", [True, False])
def test_what_is_not_recognised_once_more_stays_and_the_next_question_is_another(ended, has_words):
    transcript = Transcript()
    transcript.agent_said("Hello.", 1, 0.0)
    transcript.caller_said("A room, please", 1.0)
    transcript.reconnected(1, words_repeated=True)
    if has_words:
        transcript.agent_said("Which one?", 2, 3.0)
    if ended == "generated":
        transcript.agent_complete(2)
    transcript.caller_started(2)
    if ended == "cut":
        transcript.agent_heard(2, heard_s=0.5, made_s=2.0, cut=True)
    transcript.caller_said(" The blue one", 5.0)

    words = [turn.text.strip() for turn in transcript.turns if turn.speaker == "caller"]
    parts = ["A room, please", "The blue one"]
    assert words == (parts if has_words else [" ".join(parts)])


@pytest.mark.parametrize("ended", ["generated", "cut"])
def test_what_is_recognised_once_more_only_after_its_answer_still_takes_its_own_place(ended):
    transcript = Transcript()
    transcript.agent_said("Hello.", 1, 0.0)
    transcript.caller_said("A room", 1.0)
    transcript.reconnected(1, words_repeated=True)
    transcript.agent_said("Which one?", 2, 3.0)
    if ended == "generated":
        transcript.agent_complete(2)
    else:  # by nobody's speech, as where the line is lost
        transcript.agent_heard(2, heard_s=0.5, made_s=2.0, cut=True)
    transcript.caller_said("A room, please", 5.0)

    assert [turn.text for turn in transcript.turns] == ["Hello.", "A room, please", "Which one?"]


def test_whoever_speaks_on_before_the_answer_says_more_of_what_is_recognised_once_more():
    transcript = Transcript()
    transcript.caller_said("I would", 1.0)
    transcript.reconnected(2, words_repeated=True)  # the second was sound without a word
    transcript.agent_heard(2, heard_s=0.5, made_s=2.0, cut=True)
    transcript.caller_started(2)
    transcript.caller_said("I would like a room", 2.0)

    assert [turn.text for turn in transcript.turns] == ["I would like a room"]


def test_what_can_be_recognised_once_more_only_in_part_is_added_after_another_connection_too():
    transcript = Transcript()
    transcript.caller_said("I would like a room", 1.0)
    transcript.reconnected(1, words_repeated=True)
    transcript.reconnected(1, words_repeated=False)
    transcript.caller_said(" with a view", 4.0)

    assert [turn.text for turn in transcript.turns] == ["I would like a room with a view"]


def settled(transcript: Transcript, heard: int | None, *, words: bool = True):
    return [
        (number, turn["speaker"], turn["text"])
        for number, turn in transcript.settled(heard, words=words)
    ]


def test_what_was_before_an_agent_turn_is_settled_when_that_was_heard_and_once():
    transcript = Transcript()
    transcript.agent_said("Hello.", 1, 0.0)
    first = settled(transcript, 1)
    transcript.caller_said("Two hawaii", 2.0)
    transcript.caller_said(", please.", 2.5)
    transcript.agent_said("Of course.", 2, 4.0)
    transcript.caller_said("Thanks", 5.0)

    assert first == [(0, "agent", "Hello.")]
    assert settled(transcript, 2) == [
        (1, "caller", "Two hawaii, please."),
        (2, "agent", "Of course."),
    ]
    assert settled(transcript, 2) == settled(transcript, 1) == settled(transcript, 7) == []
    assert settled(transcript, None) == [(3, "caller", "Thanks")]
    assert settled(transcript, None) == []


def test_turns_without_words_are_settled_without():
    transcript = Transcript()
    transcript.caller_said("Two hawaii", 2.0)

    assert settled(transcript, None, words=False) == [(0, "caller", None)]


def test_what_another_process_has_told_of_is_not_settled_again():
    transcript = Transcript()
    transcript.go_on([SpokenTurn("caller", 0.0, "Two hawaii")], before=0, told=1)
    transcript.agent_said("Of course.", 1, 4.0)

    assert settled(transcript, None) == [(1, "agent", "Of course.")]


def test_turns_of_a_call_that_was_taken_over_keep_their_numbers_and_none_is_lost():
    transcript = Transcript()
    last = [SpokenTurn("caller", 0.0, "Two hawaii"), SpokenTurn("agent", 2.0, "Two?")]
    transcript.go_on(last, before=40, told=41)
    transcript.caller_said("Yes", 4.0)

    assert settled(transcript, None) == [(41, "agent", "Two?"), (42, "caller", "Yes")]
    assert transcript.counts == (43, 43)
    assert transcript.inherited == 42


def test_turns_keep_their_numbers_when_the_oldest_are_gone(monkeypatch):
    monkeypatch.setattr(transcript_module, "MAX_TURNS", 2)
    transcript = Transcript()

    for number in range(5):
        transcript.agent_said(f"{number}", number, float(number))

    assert settled(transcript, None) == [(3, "agent", "3"), (4, "agent", "4")]
