"""What is owed to a caller who was told to wait for a function, on a clock that is a number."""

from __future__ import annotations

import pytest

from server.dialogue.remedies import NEVER, AskIfThere, Awaited, Fault, Recover, Rung
from server.dialogue.turns import at_work_since
from tests.support.talks import PATIENCE, Talk, talk

NUDGED = Recover(Rung.NUDGE, Fault.NO_REPLY, Awaited.ANSWER)


def told_to_wait(
    text: str = "One moment.",
    *,
    words_follow: bool | None = None,
    is_over: bool = True,
    ends_turn: bool = False,
    seconds: float = 2.0,
) -> Talk:
    """The agent has said something to a caller's question, and calls a function then.

    Args:
        text: What it has said.
        words_follow: Whether it has to speak when it has the answer.
        is_over: Whether the model has said that its turn is over before the answer.
        ends_turn: Whether it always ends its turn at a call.
        seconds: How long that takes to say.
    """
    conversation = talk()
    conversation.caller_says()
    conversation.turn = 1
    conversation.turns.agent_text(1, text)
    conversation.hear(seconds)
    conversation.turns.tools_called(["f1"], 1, words_follow=words_follow, ends_turn=ends_turn)
    if is_over:
        conversation.turns.agent_completed(1, None, conversation.now)
    return conversation


def answer(conversation: Talk, *, after_s: float) -> None:
    """Answer the function, so long after it was called."""
    conversation.now += after_s
    conversation.turns.tools_answered(["f1"], conversation.now, owed_from=conversation.agent_until)


@pytest.mark.parametrize(
    ("is_over", "words_follow"),
    [(True, True), (True, None), (False, True)],
    ids=["turn over, surely", "turn over", "turn open, surely"],
)
def test_a_caller_who_was_told_to_wait_is_owed_the_answer_from_the_result_on(is_over, words_follow):
    conversation = told_to_wait(is_over=is_over, words_follow=words_follow)
    answer(conversation, after_s=20.0)
    answered_at = conversation.now

    assert conversation.wait() == NUDGED
    assert conversation.now == answered_at + PATIENCE.reply_timeout_s


def test_what_was_said_before_a_function_is_heard_before_its_answer_is_waited_for():
    conversation = told_to_wait(seconds=9.0)
    answer(conversation, after_s=0.1)

    assert conversation.wait() == NUDGED
    assert conversation.now == conversation.agent_until + PATIENCE.reply_timeout_s


@pytest.mark.parametrize("is_over", [True, False], ids=["next turn", "same turn"])
def test_the_answer_to_a_function_settles_what_was_owed_for_it(is_over):
    conversation = told_to_wait(is_over=is_over)
    answer(conversation, after_s=20.0)
    conversation.now += 5.0
    if is_over:
        conversation.agent_says()
    else:
        conversation.hear(2.0)
        conversation.turns.agent_generated(1)
        conversation.turns.agent_completed(1, None, conversation.now)

    assert isinstance(conversation.wait(), AskIfThere)


def test_the_end_of_a_turn_that_always_ends_at_a_call_says_nothing_of_its_function_however_late():
    conversation = told_to_wait(is_over=False, ends_turn=True)
    answer(conversation, after_s=0.1)
    conversation.turns.agent_generated(1)
    conversation.turns.agent_completed(1, None, conversation.now)

    assert conversation.turns.is_busy
    assert conversation.wait() == NUDGED
    assert conversation.now == conversation.agent_until + PATIENCE.reply_timeout_s


def test_a_turn_that_ends_without_another_word_after_its_function_says_that_all_was_said():
    conversation = told_to_wait("Your table is booked.", is_over=False)
    answer(conversation, after_s=0.5)
    conversation.turns.agent_generated(1)
    conversation.turns.agent_completed(1, None, conversation.now)

    assert not conversation.turns.is_busy
    assert isinstance(conversation.wait(), AskIfThere)


def test_silence_in_the_turn_that_called_is_no_answer_whatever_it_said_before():
    conversation = told_to_wait(is_over=False, words_follow=True)
    answer(conversation, after_s=5.0)
    conversation.hear(0.5, audible=False)

    assert conversation.wait() == NUDGED


def test_an_answer_with_words_before_another_function_is_owed_again():
    conversation = told_to_wait()
    answer(conversation, after_s=5.0)
    conversation.turn = 2
    conversation.hear(2.0)
    conversation.turns.tools_called(["f2"], 2)
    conversation.turns.agent_completed(2, None, conversation.now)
    conversation.now += 20.0
    conversation.turns.tools_answered(["f2"], conversation.now, owed_from=conversation.now)
    answered_at = conversation.now

    assert conversation.wait() == NUDGED
    assert conversation.now == answered_at + PATIENCE.reply_timeout_s


@pytest.mark.parametrize("seconds", [2.0, 0.0], ids=["talked on", "about to"])
def test_an_answer_that_was_promised_is_owed_though_the_model_talks_on_while_the_function_runs(
    seconds,
):
    conversation = told_to_wait(words_follow=True)
    conversation.now += 10.0
    conversation.turn = 2
    conversation.turns.agent_text(2, "Still looking.")
    if seconds:
        conversation.hear(seconds)
        conversation.turns.agent_completed(2, None, conversation.now)
    answer(conversation, after_s=5.0)
    answered_at = conversation.now

    assert conversation.wait() == NUDGED
    assert conversation.now == answered_at + PATIENCE.reply_timeout_s


def test_what_was_not_promised_is_not_owed_when_the_model_has_talked_on():
    conversation = told_to_wait()
    conversation.now += 5.0
    conversation.agent_says()
    answer(conversation, after_s=5.0)

    assert isinstance(conversation.wait(), AskIfThere)


def test_what_was_promised_is_owed_once():
    conversation = told_to_wait(words_follow=True)
    answer(conversation, after_s=5.0)
    conversation.agent_says()
    conversation.turns.tools_called(["f2"], conversation.turn, words_follow=False)
    conversation.now += 5.0
    conversation.turns.tools_answered(["f2"], conversation.now, owed_from=conversation.now)

    assert isinstance(conversation.wait(), AskIfThere)


def test_a_caller_is_not_taken_for_silent_while_a_function_ran():
    conversation = told_to_wait("And your name?")  # theirs is the next word
    answer(conversation, after_s=20.0)
    answered_at = conversation.now

    assert conversation.wait() == AskIfThere(1)
    assert conversation.now == answered_at + PATIENCE.silence_timeout_s


@pytest.mark.parametrize(
    ("text", "words_follow"), [("Got it.", False), ("Noted. And your name?", None)]
)
@pytest.mark.parametrize("is_over", [True, False], ids=["turn over", "turn open"])
def test_nothing_is_owed_after_a_function_of_which_there_is_nothing_to_say(
    text, words_follow, is_over
):
    conversation = told_to_wait(text, words_follow=words_follow, is_over=is_over)
    answer(conversation, after_s=0.1)
    conversation.now = conversation.agent_until + 2.5
    assert conversation.decide() is None
    conversation.turns.agent_generated(1)
    conversation.turns.agent_completed(1, None, conversation.now)

    assert isinstance(conversation.wait(), AskIfThere)


def test_an_empty_turn_after_a_function_says_that_all_was_said_before_it():
    conversation = told_to_wait("Your table is booked.")
    answer(conversation, after_s=0.1)
    conversation.agent_says(0.0)

    assert isinstance(conversation.wait(), AskIfThere)


def test_an_empty_turn_is_no_answer_to_a_function_that_the_caller_was_asked_to_wait_for():
    conversation = told_to_wait(words_follow=True)
    answer(conversation, after_s=5.0)
    conversation.agent_says(0.0)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.EMPTY_TURN, Awaited.ANSWER)


def test_an_empty_turn_is_no_answer_to_a_caller_who_has_spoken_since():
    conversation = told_to_wait()
    answer(conversation, after_s=5.0)
    conversation.caller_says()
    conversation.agent_says(0.0)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.EMPTY_TURN, Awaited.ANSWER)


def test_an_empty_turn_that_the_service_calls_unusual_says_nothing_of_what_was_said():
    conversation = told_to_wait()
    answer(conversation, after_s=5.0)
    conversation.turns.agent_completed(2, "MALFORMED_FUNCTION_CALL", conversation.now)

    assert conversation.decide() == Recover(Rung.NUDGE, Fault.EMPTY_TURN, Awaited.ANSWER)


def test_a_function_that_was_called_off_leaves_nothing_owed():
    conversation = told_to_wait()
    conversation.now += 5.0
    conversation.turns.tools_answered(["f1"], conversation.now)

    assert isinstance(conversation.wait(), AskIfThere)


def test_one_of_several_functions_is_enough_to_have_something_to_say():
    conversation = told_to_wait(words_follow=False)
    conversation.turns.tools_called(["f2"], 1, words_follow=True)
    conversation.turns.tools_called(["f3"], 1, words_follow=False)
    answer(conversation, after_s=5.0)
    assert conversation.wait(until=conversation.now + 60.0) is None
    conversation.turns.tools_answered(["f2", "f3"], conversation.now, owed_from=conversation.now)

    assert conversation.wait() == NUDGED


def test_who_was_told_to_wait_still_waits_between_the_result_and_the_answer():
    conversation = told_to_wait()
    answer(conversation, after_s=5.0)
    assert at_work_since(conversation.turns, conversation.agent_until) == conversation.now
    conversation.agent_says()

    assert at_work_since(conversation.turns, conversation.agent_until) == NEVER


def test_a_model_that_falls_silent_between_the_text_and_the_sound_of_its_answer_is_asked_for_it():
    conversation = told_to_wait(is_over=False)
    answer(conversation, after_s=5.0)
    answered_at = conversation.now
    conversation.turns.agent_generated(1)
    conversation.turns.agent_text(2, "It is")

    assert conversation.wait() == Recover(Rung.NUDGE, Fault.STALLED, Awaited.CONTINUATION)
    assert conversation.now == answered_at + PATIENCE.reply_timeout_s
