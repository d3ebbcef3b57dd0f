from __future__ import annotations

import pytest
from pydantic import ValidationError

from server.agent.agent import Agent
from server.carrier import MAX_CALL_SID_CHARS
from server.records.words import Cursor
from server.web.api import ListCalls, MakeCall, e164, field_errors


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("+584125551234", "+584125551234"),
        (" +1 (500) 555-0006 ", "+15005550006"),
        ("+442079460000", "+442079460000"),
    ],
)
def test_numbers_are_written_in_e164(given, wanted):
    assert e164(given) == wanted


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("04125551234", "country code first"),
        ("", "country code first"),
        ("+", "not a phone number"),
        ("+1555", "too short"),
        ("+1555123456789", "too long"),
        ("+9990000000", "not a phone number"),
        ("+15005550006;ext=3", "extension"),
        ("+abc", "not a phone number"),
        ("+1500555" + " " * 300 + "0006", "too long for a phone number: 312 characters"),
    ],
)
def test_a_wrong_number_says_what_is_wrong_with_it(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        e164(given)


def test_errors_name_their_fields():
    with pytest.raises(ValidationError) as caught:
        MakeCall.model_validate({"destination_number": "12", "max_duration_s": -1, "colour": "red"})

    assert set(field_errors(caught.value)) == {"destination_number", "max_duration_s", "colour"}


@pytest.mark.parametrize("name", ["voice", "language"])
def test_a_voice_or_a_language_has_a_name(name):
    with pytest.raises(ValidationError) as caught:
        MakeCall.model_validate({"destination_number": "+15005550006", name: ""})

    assert set(field_errors(caught.value)) == {name}


def test_a_call_changes_only_what_it_says():
    call = MakeCall.model_validate({"destination_number": "+15005550006", "voice": "Puck"})

    changed = call.of_this_call(Agent(prompt="p", greeting="g", farewell="f"))
    assert changed == Agent(prompt="p", greeting="g", farewell="f", voice="Puck")


def test_the_page_after_a_call_with_the_longest_name_can_be_asked_for():
    cursor = Cursor(1_790_000_000.125, "x" * MAX_CALL_SID_CHARS)

    assert ListCalls(before=str(cursor)).cursor == cursor
