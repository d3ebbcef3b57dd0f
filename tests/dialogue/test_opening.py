"""How a call begins, on a clock that is just a number."""

from __future__ import annotations

import pytest

from server.dialogue.opening import FIRST_WORDS_S, GreetingWhen, Opening

FRAME = bytes(range(160))
SILENT = b"\xff" * 160


def begun(**settings) -> Opening:
    opening = Opening(greets=True, **settings)
    opening.answered(10.0)
    opening.greeting_began(10.0)
    return opening


def hear(opening: Opening, seconds: float, start: float) -> list[bytes]:
    return [opening.hear(FRAME, start + n * 0.02) for n in range(1, round(seconds / 0.02) + 1)]


def test_a_hello_waits_until_the_greeting_has_been_heard():
    opening = begun()
    opening.speech_started(10.3)
    passed = hear(opening, 0.6, 10.2)
    opening.speech_ended(11.1)
    passed += hear(opening, 3.0, 10.8)

    assert set(passed) == {SILENT}
    opening.greeting_over()
    assert opening.hear(FRAME, 13.9) == FRAME * (len(passed) + 1)
    assert opening.is_over
    assert opening.hear(FRAME, 13.92) == FRAME


def test_silence_passes_as_soon_as_the_time_for_a_hello_is_over():
    opening = begun(protect_s=2.0)

    passed = hear(opening, 3.0, 10.0)
    assert passed[:100] == [SILENT] * 100
    assert passed[100] == FRAME * 101
    assert set(passed[101:]) == {FRAME}


def test_speech_that_goes_on_is_more_than_a_hello():
    opening = begun(hello_s=1.5)
    opening.speech_started(10.5)

    passed = hear(opening, 2.5, 10.0)
    first = next(n for n, payload in enumerate(passed) if payload != SILENT)
    assert 10.0 + 0.02 * (first + 1) == pytest.approx(12.0, abs=0.03)
    assert passed[first] == FRAME * (first + 1)


def test_whoever_speaks_again_after_their_hello_means_to_interrupt():
    opening = begun(protect_s=2.0)
    opening.speech_started(10.2)
    opening.speech_ended(11.0)
    assert set(hear(opening, 3.0, 10.0)) == {SILENT}

    opening.speech_started(13.1)
    assert opening.hear(FRAME, 13.2) == FRAME * 151


def test_an_echo_of_the_greeting_is_kept_from_the_model():
    opening = begun()
    opening.speech_started(10.2)
    hear(opening, 1.0, 10.0)
    opening.was_echo()
    opening.greeting_over()

    assert opening.hear(FRAME, 11.02) == b"\xff" * 160 * 50 + FRAME


def test_a_greeting_that_does_not_come_holds_nothing_back_for_long():
    opening = Opening(greets=True, protect_s=2.0)
    opening.answered(10.0)
    opening.speech_started(10.5)
    opening.speech_ended(11.2)

    passed = hear(opening, 3.0, 10.0)
    assert passed[100] == FRAME * 101


def test_nobody_is_kept_from_the_model_for_ever():
    opening = begun()
    opening.speech_started(10.2)
    opening.speech_ended(10.8)

    passed = hear(opening, 14.0, 10.0)
    assert 500 < next(n for n, payload in enumerate(passed) if payload != SILENT) < 650


@pytest.mark.parametrize("settings", [{"greets": False}, {"greets": True, "protect_s": 0.0}])
def test_without_a_greeting_or_its_protection_everything_passes(settings):
    opening = Opening(**settings)
    opening.answered(10.0)

    assert set(hear(opening, 1.0, 10.0)) == {FRAME}


def test_at_once_means_at_the_answer():
    opening = Opening(greets=True)
    assert opening.plays_at == float("inf")
    opening.answered(10.0)

    assert opening.plays_at == 10.0


def test_after_the_caller_means_after_their_first_word_or_the_deadline():
    opening = Opening(greets=True, when=GreetingWhen.AFTER_CALLER, deadline_s=3.0)
    opening.answered(10.0)
    assert opening.plays_at == 13.0
    opening.speech_started(10.4)
    opening.speech_ended(11.2)

    assert opening.plays_at == 11.2


def test_an_agent_that_does_not_greet_may_be_heard_whenever_it_speaks():
    assert Opening(greets=False).plays_at < 0


def test_who_has_begun_their_first_word_before_the_deadline_is_let_finish():
    opening = Opening(greets=True, when=GreetingWhen.AFTER_CALLER, deadline_s=3.0)
    opening.answered(10.0)
    opening.speech_started(12.5)
    speaking, protected_until = opening.plays_at, opening.open_until
    opening.speech_ended(14.6)

    assert speaking == 12.5 + FIRST_WORDS_S
    assert protected_until == speaking + 2.0
    assert opening.plays_at == 14.6


def test_noise_puts_the_greeting_off_for_a_few_seconds_and_no_earlier_than_without_it():
    opening = Opening(greets=True, when=GreetingWhen.AFTER_CALLER, deadline_s=8.0)
    opening.answered(10.0)
    opening.speech_started(10.3)
    soon = opening.plays_at
    opening.speech_started(17.0)

    assert soon == 18.0
    assert opening.plays_at == 17.0 + FIRST_WORDS_S


@pytest.mark.parametrize("when", GreetingWhen)
def test_speech_puts_off_no_greeting_that_is_due_or_waits_for_nobody(when):
    opening = Opening(greets=True, when=when, deadline_s=3.0)
    opening.speech_started(9.0)
    opening.answered(10.0)
    due = opening.plays_at
    opening.speech_started(due + 0.1)

    assert opening.plays_at == due
    assert due == (13.0 if when is GreetingWhen.AFTER_CALLER else 10.0)


def test_speech_puts_off_no_greeting_that_has_begun():
    opening = Opening(greets=True, when=GreetingWhen.AFTER_CALLER, deadline_s=3.0)
    opening.answered(10.0)
    opening.greeting_began(13.0)
    opening.speech_started(13.0)

    assert opening.plays_at == 13.0
