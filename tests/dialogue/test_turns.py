"""Whose turn it is, on a clock that is just a number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dialogue.remedies import (
    BELIEVED_S,
    LADDER,
    NEVER,
    AskIfThere,
    Awaited,
    Fault,
    GiveUpCaller,
    Patience,
    Recover,
    Rung,
    TimeIsUp,
    WrapUp,
)
from server.dialogue.turns import Turns
from tests.support.talks import PATIENCE, Talk, talk


# --- Every turn of the caller's gets an answer
def test_an_answer_in_time_needs_no_help():
    conversation = talk()
    conversation.caller_says()
    conversation.now += 5.9
    assert conversation.decide() is None
    conversation.agent_says()

    assert conversation.wait(until=10.0) is None


def test_no_answer_climbs_the_ladder_rung_by_rung():
    conversation = talk()
    conversation.caller_says()

    found = []
    while len(found) < len(LADDER):
        decision = conversation.wait()
        assert isinstance(decision, Recover)
        found.append((decision.rung, decision.fault, conversation.now))
        conversation.now += 0.5 * (decision.rung is not Rung.NUDGE)  # a reconnect takes time
        if decision.rung is not Rung.NUDGE:
            assert conversation.decide() is None
            conversation.turns.recovered(conversation.now)

    assert found == [
        (Rung.NUDGE, Fault.NO_REPLY, 7.0),
        (Rung.RESUME, Fault.NO_REPLY, 11.0),
        (Rung.FRESH, Fault.NO_REPLY, 15.5),
        (Rung.FALLBACK, Fault.NO_REPLY, 20.0),
        (Rung.APOLOGY, Fault.NO_REPLY, 24.5),
    ]


def test_a_rung_that_is_not_there_is_stepped_over_at_once():
    conversation = talk()
    conversation.caller_says()
    conversation.wait()
    second = conversation.wait()
    assert isinstance(second, Recover)
    conversation.turns.unavailable(second.fault, conversation.now)

    third = conversation.decide()
    assert isinstance(third, Recover)
    assert (second.rung, third.rung) == (Rung.RESUME, Rung.FRESH)


def test_help_that_helped_once_is_not_tried_first_again_until_it_went_well_without():
    conversation = talk()
    conversation.caller_says()
    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    conversation.agent_says()
    conversation.now = conversation.agent_until
    conversation.caller_says()
    assert conversation.wait() == Recover(Rung.RESUME, Fault.NO_REPLY, Awaited.ANSWER)
    conversation.turns.recovered(conversation.now)
    conversation.agent_says()

    conversation.now = conversation.agent_until
    conversation.caller_says()
    conversation.agent_says()
    conversation.now = conversation.agent_until
    conversation.caller_says()
    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)


def test_a_turn_without_audio_is_no_answer_and_is_not_waited_for():
    conversation = talk()
    conversation.caller_says()
    conversation.now += 0.4
    conversation.agent_says(0.0)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.EMPTY_TURN, Awaited.ANSWER)


def test_near_silence_is_no_answer():
    conversation = talk()
    conversation.caller_says()
    conversation.agent_says(3.0, audible=False)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.QUIET_TURN, Awaited.ANSWER)


def test_an_empty_turn_that_nobody_waits_for_means_nothing():
    conversation = talk()
    conversation.agent_says(0.0)

    assert conversation.wait(until=10.0) is None


def test_a_cut_turn_that_completes_empty_means_nothing():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.agent_cut(1)
    conversation.agent_says(0.0)

    assert conversation.decide() is None


def test_a_model_that_means_to_wait_is_left_in_peace_for_a_while():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.agent_completed(1, "NEED_MORE_INPUT", conversation.now)

    assert conversation.decide() is None
    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == pytest.approx(7.0)


def test_nothing_is_expected_while_a_tool_runs():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.tools_called(["a", "b"], 1)
    conversation.turn = 1
    conversation.turns.agent_completed(1, None, conversation.now)
    assert conversation.wait(until=60.0) is None
    conversation.turns.tools_answered(["a"], conversation.now)
    assert conversation.wait(until=70.0) is None
    conversation.turns.tools_answered(["b"], conversation.now)

    assert isinstance(conversation.wait(), Recover)
    assert conversation.now == pytest.approx(76.0)


def test_an_answer_that_is_sooner_than_our_own_detector_is_an_answer():
    conversation = talk()
    conversation.turns.caller_started(0.0)
    conversation.now = 1.3
    conversation.turn = 1
    conversation.hear(4.0)
    conversation.turns.agent_generated(1)
    conversation.turns.caller_ended(1.0, 1.5, speech_s=1.0, agent_until=5.3)

    assert conversation.wait(until=15.0) is None


def test_a_caller_who_speaks_on_is_owed_only_one_answer():
    conversation = talk()
    conversation.caller_says()
    conversation.now += 5.0
    conversation.turns.caller_started(conversation.now)
    for _ in range(4):
        conversation.now += 5.0
        conversation.turns.caller_active(conversation.now)
        assert conversation.decide() is None
    now = conversation.now
    conversation.turns.caller_ended(now, now, speech_s=15.0, agent_until=0.0)

    assert isinstance(conversation.wait(), Recover)
    assert conversation.now == pytest.approx(26.0 + 6.0)


@pytest.mark.parametrize(("speech_s", "owed"), [(0.1, False), (0.25, True)])
def test_a_click_demands_no_answer_but_a_yes_does(speech_s, owed):
    conversation = talk()
    conversation.caller_says(speech_s)

    assert isinstance(conversation.wait(until=10.0), Recover) is owed


@pytest.mark.parametrize(("speech_s", "owed"), [(0.5, False), (1.2, True)])
def test_short_words_over_the_agent_demand_no_answer(speech_s, owed):
    conversation = talk()
    conversation.agent_says(8.0)
    conversation.caller_says(speech_s)

    decision = conversation.wait(until=20.0)
    assert isinstance(decision, Recover) is owed
    if owed:
        assert conversation.now == pytest.approx(8.0 + 6.0)  # once the agent has finished


# --- Turns that go wrong in the middle
def test_a_turn_that_stalls_is_asked_to_go_on():
    conversation = talk()
    conversation.caller_says()
    conversation.turn = 1
    conversation.hear(1.5)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.STALLED, Awaited.CONTINUATION)
    assert conversation.now == pytest.approx(1.0 + 1.5 + 2.0)


def test_a_turn_that_is_complete_in_mid_sentence_is_asked_to_go_on():
    conversation = talk()
    conversation.caller_says()
    conversation.turn = 1
    conversation.turns.agent_text(1, "The train leaves at")
    conversation.hear(1.2)
    conversation.turns.agent_completed(1, None, conversation.now)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.BROKEN_OFF, Awaited.CONTINUATION)


def test_text_that_is_longer_than_its_audio_was_broken_off():
    conversation = talk()
    conversation.caller_says()
    conversation.turn = 1
    conversation.turns.agent_text(1, "This whole sentence cannot be said in under a second at all.")
    conversation.hear(0.8)
    conversation.turns.agent_completed(1, None, conversation.now)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.BROKEN_OFF, Awaited.CONTINUATION)


@pytest.mark.parametrize("text", ["", "It leaves at nine.", "¿A qué hora?", "Ja!"])
def test_a_finished_sentence_is_finished_whatever_flags_are_missing(text):
    conversation = talk()
    conversation.caller_says()
    conversation.turn = 1
    conversation.turns.agent_text(1, text)
    conversation.hear(2.0)
    conversation.turns.agent_completed(1, None, conversation.now)

    assert conversation.wait(until=10.0) is None


def test_turns_that_come_slower_than_they_are_spoken_change_the_connection_in_a_silence():
    conversation = talk()
    for _ in range(2):
        conversation.caller_says()
        conversation.turn += 1
        for _ in range(10):
            conversation.hear(0.2)
            conversation.now += 0.3
        conversation.turns.agent_generated(conversation.turn)
        conversation.turns.agent_completed(conversation.turn, None, conversation.now, starved_s=0.9)

    decision = conversation.wait()
    assert decision == Recover(Rung.RESUME, Fault.SLOW, Awaited.ANSWER)
    assert conversation.now >= conversation.agent_until


def test_a_caller_who_speaks_into_a_gap_does_not_hide_that_the_turn_was_slow():
    conversation = talk()
    for _ in range(2):
        conversation.caller_says()
        conversation.turn += 1
        for _ in range(10):
            conversation.hear(0.2)
            conversation.now += 0.3
        conversation.turns.caller_started(conversation.now)
        # Both our own ear and the model may say so.
        conversation.turns.agent_cut(conversation.turn, starved_s=0.9)
        conversation.turns.agent_cut(conversation.turn, starved_s=0.9)
        conversation.turns.agent_completed(conversation.turn, None, conversation.now, starved_s=0.9)
    conversation.caller_says()
    assert conversation.decide() is None  # not while they are owed an answer
    conversation.turn += 1
    conversation.hear(0.5)
    conversation.turns.agent_completed(conversation.turn, None, conversation.now, starved_s=0.9)

    assert conversation.wait() == Recover(Rung.RESUME, Fault.SLOW, Awaited.ANSWER)


def test_a_turn_that_is_interrupted_at_its_usual_speed_was_not_slow():
    conversation = talk()
    for _ in range(3):
        conversation.caller_says()
        conversation.turn += 1
        conversation.hear(2.0)
        conversation.turns.caller_started(conversation.now)
        conversation.turns.agent_cut(conversation.turn, starved_s=0.1)
    conversation.caller_says()
    conversation.agent_says()

    assert conversation.wait(until=15.0) is None


def test_one_slow_turn_is_forgiven():
    conversation = talk()
    conversation.caller_says()
    conversation.turn = 1
    for _ in range(10):
        conversation.hear(0.2)
        conversation.now += 0.3
    conversation.turns.agent_completed(1, None, conversation.now, starved_s=0.9)
    conversation.caller_says()
    conversation.agent_says()

    assert conversation.wait(until=15.0) is None


# --- What may be speech, and may be the noise of a room
def test_noise_after_the_callers_turn_does_not_settle_what_they_are_owed():
    conversation = talk()
    conversation.caller_says()
    conversation.now += 0.5
    conversation.turns.caller_started(conversation.now)
    conversation.now += 2.0
    ended_at = conversation.now
    conversation.turns.caller_ended(ended_at, ended_at, speech_s=0.1, agent_until=0.0)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == 7.0


def test_noise_that_never_ends_is_believed_for_so_long_and_no_longer():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.caller_started(conversation.now + 0.1)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == 1.0 + BELIEVED_S


def test_noise_that_comes_and_goes_does_not_put_off_what_is_owed_for_ever():
    conversation = talk()
    conversation.caller_says()
    asked_at = conversation.now
    decision = None
    while decision is None and conversation.now < 60.0:
        conversation.turns.caller_started(conversation.now)
        decision = conversation.wait(until=conversation.now + 2.0)
        ended_at = conversation.now
        conversation.turns.caller_ended(ended_at, ended_at, speech_s=2.0, agent_until=0.0)
        decision = decision or conversation.wait(until=conversation.now + 1.0)

    assert decision == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now <= asked_at + BELIEVED_S


def test_a_question_in_noise_that_never_ends_is_owed_an_answer():
    conversation = talk()
    conversation.turns.caller_started(0.0)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == BELIEVED_S + PATIENCE.reply_timeout_s


@pytest.mark.parametrize("sign", ["word or interruption", "answer"])
def test_a_caller_who_speaks_on_is_believed_as_long_as_anything_tells_of_it(sign):
    conversation = talk()
    conversation.turns.caller_started(0.0)
    for _ in range(6):
        assert conversation.wait(until=conversation.now + 10.0) is None
        match sign:
            case "word or interruption":
                conversation.turns.caller_active(conversation.now)
            case "answer":
                conversation.turns.agent_audio(1, 0.2, audible=True, now=conversation.now)

    assert conversation.turns.caller_speaking


def test_speech_that_never_ends_is_believed_from_the_last_sign_of_another_kind():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.caller_started(2.0)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == 1.0 + BELIEVED_S


@pytest.mark.parametrize("pauses_s", [0.6, 3.0])
def test_a_television_does_not_put_off_what_is_owed_for_ever(pauses_s):
    conversation = talk()
    conversation.caller_says()
    asked_at, decision = conversation.now, None
    while decision is None and conversation.now < 120.0:
        conversation.turns.caller_started(conversation.now)
        decision = conversation.wait(until=conversation.now + 2.5)
        ended_at = conversation.now
        conversation.turns.caller_ended(ended_at, ended_at, speech_s=2.5, agent_until=0.0)
        decision = decision or conversation.wait(until=conversation.now + pauses_s)

    assert decision == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now <= asked_at + BELIEVED_S


def test_somebody_else_who_goes_on_after_they_are_not_believed_hides_no_silent_model():
    conversation, decision = talk(), None
    while decision is None and conversation.now < 120.0:
        conversation.turns.caller_started(conversation.now)
        decision = conversation.wait(until=conversation.now + 14.0)
        ended_at = conversation.now
        conversation.turns.caller_ended(ended_at, ended_at, speech_s=14.0, agent_until=0.0)

    assert decision == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now <= BELIEVED_S + PATIENCE.reply_timeout_s + 2.0


@pytest.mark.parametrize("turns_before", [0, 1])
def test_a_turn_that_only_called_a_function_owes_no_word_however_soon_that_was_answered(
    turns_before,
):
    conversation = talk()
    for _ in range(turns_before):
        conversation.agent_says()
        conversation.now = conversation.agent_until
    conversation.caller_says()
    turn = conversation.turn + 1
    conversation.turns.tools_called(["f1"], turn)
    conversation.turns.tools_answered(["f1"], conversation.now)
    conversation.turns.agent_completed(turn, None, conversation.now)
    assert conversation.decide() is None

    conversation.turn = turn
    conversation.agent_says(0.0)  # the answer is the next turn, and this one has none

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.EMPTY_TURN, Awaited.ANSWER)


def call_functions(conversation: Talk, shape: str, turn: int) -> None:
    """The model calls functions, in one of the shapes that this takes, and has the answers."""
    turns, now = conversation.turns, conversation.now
    if shape == "words before":
        turns.agent_audio(turn, 1.0, audible=True, now=now)
    turns.tools_called(["f1", "f2"] if shape == "parallel" else ["f1"], turn)
    if shape == "words meanwhile":
        turns.agent_audio(turn, 1.0, audible=True, now=now)
    turns.tools_answered(["f1"], now)
    if shape == "parallel":
        turns.agent_audio(turn, 1.0, audible=True, now=now)
        turns.tools_answered(["f2"], now)
    if shape == "one after the other":
        turns.tools_called(["f2"], turn)
        turns.tools_answered(["f2"], now)


SHAPES = ("no words", "words before", "words meanwhile", "parallel", "one after the other")


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_that_breaks_off_in_the_turn_that_called_functions_is_asked_to_go_on(shape):
    conversation = talk()
    conversation.caller_says()
    call_functions(conversation, shape, turn=1)
    conversation.turns.agent_audio(1, 2.0, audible=True, now=conversation.now)
    conversation.turns.agent_text(1, "Your order has been sent and will")
    conversation.turns.agent_completed(1, None, conversation.now)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.BROKEN_OFF, Awaited.CONTINUATION)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_turn_that_ends_at_its_call_owes_no_end_of_what_it_said_before(shape):
    conversation = talk()
    conversation.caller_says()
    conversation.turns.agent_text(1, "One moment")
    call_functions(conversation, shape, turn=1)
    conversation.turns.agent_completed(1, None, conversation.now)

    assert conversation.decide() is None


def test_answers_that_come_too_slowly_count_as_that_in_turns_that_called_functions():
    conversation = talk()
    for turn in (1, 2):
        conversation.caller_says()
        call_functions(conversation, "no words", turn)
        conversation.turn = turn
        conversation.hear(2.0)
        conversation.turns.agent_generated(turn)
        conversation.turns.agent_completed(turn, None, conversation.now, starved_s=1.0)
        conversation.now = conversation.agent_until

    decision = conversation.decide()
    assert isinstance(decision, Recover)
    assert decision.fault is Fault.SLOW


def test_a_function_that_a_turn_wanted_before_it_was_cut_excuses_no_other_turn():
    conversation = talk()
    conversation.agent_says()
    conversation.turns.agent_cut(1)
    conversation.turns.tools_called(["f1"], 1)
    conversation.turns.tools_answered(["f1"], conversation.now)
    conversation.caller_says()
    conversation.agent_says(0.0)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.EMPTY_TURN, Awaited.ANSWER)


def test_a_caller_is_asked_whether_they_are_there_though_a_turn_without_a_word_never_ended():
    conversation = talk()
    conversation.agent_says()
    conversation.turns.tools_called(["f1"], 2)
    conversation.turns.tools_answered(["f1"], conversation.now)

    assert isinstance(conversation.wait(), AskIfThere)


def test_the_rest_of_a_turn_that_the_model_broke_off_is_asked_for_when_the_rest_was_heard():
    conversation = talk()
    conversation.turns.agent_audio(1, 3.0, audible=True, now=conversation.now)
    until = conversation.now + 3.0
    conversation.turns.agent_cut_for_nothing(1, conversation.now, heard_until=until)
    conversation.turns.agent_completed(1, None, conversation.now)

    assert conversation.turns.has_more_to_come(conversation.now)
    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.CONTINUATION)
    assert conversation.now == pytest.approx(3.0 + PATIENCE.rung_timeout_s)


def test_a_turn_that_is_cut_when_the_caller_has_spoken_owes_an_answer_however_little_that_was():
    conversation = talk()
    turns = conversation.turns
    turns.agent_audio(1, 3.0, audible=True, now=0.0)
    turns.caller_started(1.0)
    turns.caller_ended(1.4, 1.9, speech_s=0.4, agent_until=3.0)
    conversation.now = 2.0
    turns.agent_cut(1, owed_from=2.0)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == 2.0 + PATIENCE.reply_timeout_s


@pytest.mark.parametrize("speech_s", [0.0, 0.1, 0.5, 4.0, 11.0])
def test_a_turn_that_is_cut_while_the_caller_speaks_owes_an_answer_from_their_end_on(speech_s):
    conversation = talk()
    turns = conversation.turns
    turns.agent_audio(1, 3.0, audible=True, now=0.0)
    turns.caller_started(1.0)
    turns.caller_active(1.4)
    turns.agent_cut(1, owed_from=1.4)
    ended_at = conversation.now = 1.0 + speech_s + 0.5
    turns.caller_ended(1.0 + speech_s, ended_at, speech_s=speech_s, agent_until=1.4)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == ended_at + PATIENCE.reply_timeout_s


@pytest.mark.parametrize(
    ("owed_from", "awaited", "since"),
    [(NEVER, Awaited.CONTINUATION, 2.0), (3.0, Awaited.ANSWER, 3.0)],
)
def test_a_turn_that_is_cut_again_owes_its_rest_unless_it_is_the_caller_who_stops_it(
    owed_from, awaited, since
):
    conversation = talk()
    turns = conversation.turns
    turns.agent_audio(1, 5.0, audible=True, now=0.0)
    turns.agent_cut(1)
    turns.ask(Awaited.CONTINUATION, 2.0)
    turns.agent_cut(1, owed_from=owed_from)
    conversation.now = 3.0

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, awaited)
    assert conversation.now == since + PATIENCE.reply_timeout_s


@pytest.mark.parametrize("spoken_s", [0.0, 0.1])
def test_an_interruption_before_the_rest_of_a_turn_has_begun_does_not_forgive_it(spoken_s):
    conversation = talk()
    turns = conversation.turns
    turns.agent_audio(1, 5.0, audible=True, now=0.0)
    turns.agent_cut(1)
    turns.ask(Awaited.CONTINUATION, 2.0)
    if spoken_s:
        turns.caller_started(2.5)
        turns.caller_ended(2.6, 3.0, speech_s=spoken_s, agent_until=2.0)
    turns.agent_cut(2)
    conversation.now = 3.0

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.CONTINUATION)
    assert conversation.now == 2.0 + PATIENCE.reply_timeout_s


@pytest.mark.parametrize("is_audible", [False, True])
def test_the_rest_of_a_turn_is_owed_though_it_is_cut_unless_something_of_it_was_to_be_heard(
    is_audible,
):
    conversation = talk()
    turns = conversation.turns
    turns.agent_audio(1, 5.0, audible=True, now=0.0)
    turns.agent_cut(1)
    turns.ask(Awaited.CONTINUATION, 2.0)
    turns.agent_audio(2, 0.2, audible=is_audible, now=2.5)
    turns.agent_cut(2)
    conversation.now = 3.0

    owed = Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.CONTINUATION)
    assert conversation.wait(until=10.0) == (None if is_audible else owed)


def test_nobody_is_content_with_what_cannot_be_heard():
    turns = talk().turns
    content = [turns.is_content_with(0)]
    for turn, audible in ((1, False), (2, True), (3, False)):
        turns.agent_audio(turn, 1.0, audible=audible, now=0.0)
        content.append(turns.is_content_with(turn))

    assert content == [False, False, True, False]
    assert turns.audible_turn == 2


def test_what_stopped_the_agent_is_asked_about_no_sooner_than_usual_however_short_it_was():
    conversation = talk()
    turns = conversation.turns
    turns.agent_audio(1, 3.0, audible=True, now=0.0)
    turns.caller_started(1.0)
    turns.agent_cut(1, owed_from=1.0)
    conversation.now = 1.6
    turns.caller_ended(1.1, 1.6, speech_s=0.1, agent_until=0.9, sure=True)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == 1.6 + PATIENCE.reply_timeout_s


@pytest.mark.parametrize("is_whole", [True, False])
def test_who_is_answered_before_it_is_certain_that_they_have_ended_is_owed_nothing_more(is_whole):
    conversation = talk()
    turns = conversation.turns
    turns.agent_audio(1, 3.0, audible=True, now=0.0)
    turns.caller_started(1.0)
    turns.agent_cut(1, owed_from=1.1)
    turns.agent_audio(2, 2.0, audible=True, now=1.3)
    turns.agent_generated(2)
    if is_whole:
        turns.agent_completed(2, None, 1.4)
    conversation.now, conversation.agent_until = 1.6, 3.3
    turns.caller_ended(1.1, 1.6, speech_s=0.1, agent_until=3.3)

    assert conversation.wait(until=15.0) is None


def test_what_stopped_the_agent_once_makes_the_next_sound_no_longer():
    conversation = talk()
    turns = conversation.turns
    turns.agent_audio(1, 3.0, audible=True, now=0.0)
    turns.caller_started(1.0)
    turns.agent_cut(1, owed_from=1.1)
    turns.caller_ended(1.1, 1.6, speech_s=0.1, agent_until=1.1)
    conversation.now = 2.0
    conversation.turn = 1
    conversation.agent_says()
    conversation.now = conversation.agent_until
    conversation.caller_says(0.1)

    assert conversation.wait(until=conversation.now + 10.0) is None


def test_a_cut_changes_nothing_of_what_is_owed_already():
    conversation = talk()
    conversation.caller_says()
    asked_at = conversation.now
    conversation.turns.agent_cut(1, owed_from=asked_at + 3.0)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == asked_at + PATIENCE.reply_timeout_s


@pytest.mark.parametrize("what", ["all of it had come", "none of it had", "it was another"])
def test_nothing_is_asked_for_of_a_turn_that_is_whole_or_never_began(what):
    conversation = talk()
    turns = conversation.turns
    if what != "none of it had":
        turns.agent_audio(1, 3.0, audible=True, now=conversation.now)
    if what == "all of it had come":
        turns.agent_generated(1)
    turn = 2 if what == "it was another" else 1
    turns.agent_cut_for_nothing(turn, conversation.now, heard_until=conversation.now)

    assert not turns.has_more_to_come(conversation.now)


def test_a_function_that_was_waited_for_is_a_sign_that_the_caller_is_heard():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.tools_called(["f1"], 1)
    conversation.now += 20.0
    conversation.turns.tools_answered(["f1"], conversation.now)
    answered_at = conversation.now
    conversation.turns.caller_started(answered_at + 1.0)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == answered_at + BELIEVED_S


def test_what_a_judge_was_never_sure_of_does_not_put_off_what_is_owed():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.caller_started(2.0)
    conversation.now = 4.0
    conversation.turns.caller_ended(3.5, 4.0, speech_s=1.5, agent_until=0.0, sure=False)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == 7.0


def short_word(conversation: Talk, *, sure: bool | None = True, seconds: float = 0.3) -> None:
    """A word, and half a second in which it was known that there is no more of it."""
    conversation.turns.caller_started(conversation.now)
    ended_at = conversation.now + seconds
    conversation.now = ended_at + 0.5
    conversation.turns.caller_ended(
        ended_at,
        conversation.now,
        speech_s=seconds,
        agent_until=conversation.agent_until,
        sure=sure,
    )


def test_a_short_word_of_which_the_service_gives_no_sign_is_asked_about_soon():
    conversation = talk()
    short_word(conversation)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == pytest.approx(0.8 + PATIENCE.short_answer_timeout_s)
    assert conversation.wait() == Recover(Rung.RESUME, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == pytest.approx(0.8 + PATIENCE.reply_timeout_s)


@pytest.mark.parametrize("sign", ["word", "silent audio", "text", "thought", "function"])
def test_a_short_word_of_which_the_service_gives_any_sign_has_the_usual_time(sign):
    conversation = talk()
    short_word(conversation)
    conversation.now += 1.0
    turns, now = conversation.turns, conversation.now
    match sign:
        case "word":
            turns.caller_active(now)
        case "silent audio":
            turns.agent_audio(1, 0.04, audible=False, now=now)
        case "text":
            turns.agent_text(1, "Well")
        case "thought":
            turns.agent_working(now)
            turns.agent_idle(now)
        case "function":
            turns.tools_called(["f1"], 1)
            turns.tools_answered(["f1"], now)

    decision = conversation.wait()

    assert isinstance(decision, Recover)
    assert decision.rung is Rung.NUDGE
    assert conversation.now >= 0.8 + min(PATIENCE.reply_timeout_s, PATIENCE.stall_timeout_s + 0.9)


@pytest.mark.parametrize(
    ("sure", "seconds", "agent_until"),
    [(None, 0.3, 0.0), (False, 0.3, 0.0), (True, 1.5, 0.0), (True, 0.3, 0.2)],
    ids=["no judge", "not sure", "a sentence", "over the agent"],
)
def test_other_turns_of_the_callers_have_the_usual_time(sure, seconds, agent_until):
    conversation = talk()
    conversation.agent_until = agent_until
    short_word(conversation, sure=sure, seconds=seconds)
    ended_at = conversation.now

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == pytest.approx(ended_at + PATIENCE.reply_timeout_s)


def test_short_words_are_asked_about_no_sooner_where_that_is_not_wanted():
    turns = Turns(replace(PATIENCE, short_answer_timeout_s=0.0))
    turns.answered(0.0)
    conversation = Talk(turns)
    short_word(conversation)

    assert isinstance(conversation.wait(), Recover)
    assert conversation.now == pytest.approx(0.8 + PATIENCE.reply_timeout_s)


def test_a_word_that_a_judge_was_never_sure_of_is_owed_an_answer_where_none_is_awaited():
    conversation = talk()
    conversation.turns.caller_started(0.0)
    conversation.now = 1.0
    conversation.turns.caller_ended(0.5, 1.0, speech_s=0.3, agent_until=0.0, sure=False)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)


def test_a_sound_that_is_too_short_for_a_word_settles_nothing():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.caller_started(1.5)
    conversation.now = 1.6
    conversation.turns.caller_ended(1.6, 1.6, speech_s=0.1, agent_until=0.0)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == 7.0


def test_speech_begins_the_wait_for_an_answer_anew_as_long_as_anything_else_tells_of_it():
    conversation = talk()
    for _ in range(4):
        conversation.caller_says(5.0)
        conversation.turns.caller_active(conversation.now)
        assert conversation.decide() is None
        conversation.now += 0.6

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == pytest.approx(4 * 5.6 - 0.6 + PATIENCE.reply_timeout_s)


def test_the_end_of_speech_that_is_not_believed_any_more_begins_no_new_wait():
    conversation = talk()
    conversation.turns.caller_started(0.0)
    conversation.wait(until=BELIEVED_S + 3.0)
    ended_at = conversation.now
    conversation.turns.caller_ended(ended_at, ended_at, speech_s=9.0, agent_until=0.0)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)
    assert conversation.now == BELIEVED_S + PATIENCE.reply_timeout_s


def test_noise_under_the_agents_own_words_is_no_reason_to_ask_it_for_more():
    conversation = talk()
    conversation.caller_says()
    conversation.turns.caller_started(1.0)
    conversation.now = 1.5
    conversation.agent_says(40.0)

    assert conversation.wait(until=41.5 + BELIEVED_S - 0.1) is None


# --- The greeting
def test_a_greeting_that_does_not_come_is_asked_for_again_even_while_it_rings():
    turns = Turns(PATIENCE)
    turns.ask(Awaited.GREETING, 0.0)
    conversation = Talk(turns)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.GREETING)
    assert conversation.now == 3.0
    conversation.agent_says()
    assert conversation.wait(until=500.0) is None  # nobody has answered: no silence to mind


def test_the_callees_hello_does_not_make_the_greeting_unnecessary():
    conversation = talk()
    conversation.turns.ask(Awaited.GREETING, 0.0)
    conversation.caller_says(0.5)

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.GREETING)


# --- A caller who says nothing
def test_a_silent_caller_is_asked_twice_and_then_given_up():
    conversation = talk()
    conversation.caller_says()
    conversation.agent_says(2.0)
    found = []
    for _ in range(2):
        decision = conversation.wait()
        found.append((decision, conversation.now))
        conversation.turns.ask(Awaited.QUESTION, conversation.now)
        conversation.now += 0.5
        conversation.agent_says(1.0)
    found.append((conversation.wait(), conversation.now))

    assert found == [
        (AskIfThere(1), 3.0 + 15.0),
        (AskIfThere(2), 19.5 + 15.0),
        (GiveUpCaller(), 36.0 + 15.0),
    ]


def test_a_caller_who_speaks_or_presses_a_key_starts_the_count_anew():
    conversation = talk()
    conversation.caller_says()
    conversation.agent_says()
    assert conversation.wait() == AskIfThere(1)
    conversation.turns.caller_active(conversation.now)
    assert conversation.wait() == AskIfThere(1)
    conversation.caller_says()
    conversation.agent_says()
    assert conversation.wait() == AskIfThere(1)


def test_silence_can_be_allowed_for_ever():
    turns = Turns(Patience(silence_timeout_s=0.0))
    turns.answered(0.0)

    assert Talk(turns).wait(until=10_000.0) is None


# --- The longest duration
def test_the_call_is_brought_to_an_end_before_its_time_is_up():
    conversation = talk(ends_at=100.0)
    found = []
    while len(found) < 2:
        decision = conversation.wait()
        if isinstance(decision, WrapUp | TimeIsUp):
            found.append((decision, conversation.now))

    assert found == [(WrapUp(30.0), 70.0), (TimeIsUp(), 90.0)]


def test_bringing_it_to_an_end_waits_for_a_silence_but_not_too_long():
    conversation = talk(ends_at=100.0)
    conversation.now = 68.0
    conversation.agent_says(6.0)
    assert conversation.wait() == WrapUp(pytest.approx(26.0))

    endless = talk(ends_at=100.0)
    endless.now = 69.0
    endless.turns.caller_started(69.0)
    assert endless.wait() == WrapUp(pytest.approx(20.0))


def test_a_very_short_call_just_ends():
    assert talk(ends_at=12.0).wait(until=12.0) is None


# --- Whatever happens
EVENTS = (
    *("caller", "answer", "empty", "quiet", "cut", "tool", "result", "key", "wait"),
    *("recovered", "unavailable"),
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENTS),
            st.floats(0.05, 8.0),
        ),
        max_size=40,
    )
)
def test_in_any_order_of_events_an_unanswered_caller_ends_in_an_apology(events):
    conversation = talk()
    for event, seconds in events:
        match event:
            case "caller":
                conversation.caller_says(seconds)
            case "answer":
                conversation.agent_says(seconds)
            case "empty":
                conversation.agent_says(0.0)
            case "quiet":
                conversation.agent_says(seconds, audible=False)
            case "cut":
                conversation.turns.agent_cut(conversation.turn)
            case "tool":
                conversation.turns.tools_called([str(conversation.now)], conversation.turn)
            case "result":
                answered = list(conversation.turns.tools_open)[:1]
                conversation.turns.tools_answered(answered, conversation.now)
            case "key":
                conversation.turns.caller_active(conversation.now)
            case "wait":
                conversation.now += seconds
            case "recovered":
                conversation.turns.recovered(conversation.now)
            case "unavailable" if conversation.turns.recovering:
                conversation.turns.unavailable(Fault.NO_REPLY, conversation.now)
        if not conversation.turns.recovering:
            conversation.decide()

    conversation.turns.recovered(conversation.now)
    conversation.turns.tools_answered(list(conversation.turns.tools_open), conversation.now)
    conversation.now = max(conversation.now, conversation.agent_until)
    conversation.caller_says(2.0)
    rungs = []
    while Rung.APOLOGY not in rungs:
        decision = conversation.wait(until=conversation.now + 100.0)
        assert isinstance(decision, Recover)
        rungs.append(decision.rung)
        if decision.rung is not Rung.NUDGE:
            conversation.turns.recovered(conversation.now)
    assert len(rungs) <= len(LADDER) + 1


def test_what_is_asked_for_while_it_rings_is_waited_for_from_the_answer():
    turns = Turns(PATIENCE)
    turns.ask(Awaited.GREETING, 0.0)
    turns.answered(20.0)

    assert turns.decide(20.0, agent_until=20.0) is None
    assert turns.next_due(agent_until=20.0) == 20.0 + PATIENCE.greeting_retry_s
