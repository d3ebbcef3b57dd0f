"""What follows from each answer, without asking anybody."""

from __future__ import annotations

import pytest

from server.carrier.account import TRUNK, AccountState, NumberHooks, OwnNumber
from server.checkup import Finding, State, all_is_well, findings
from server.errors import CarrierError, ConfigurationError, ModelError
from server.refusal import Kind

NUMBER = "+584125550001"
OURS = NumberHooks("https://calls.example.com/twiml", "https://calls.example.com/call-status")


def number(hooks: NumberHooks = OURS, **facts) -> OwnNumber:
    return OwnNumber("PN1", NUMBER, hooks, **facts)


def test_a_number_whose_webhooks_are_ours_is_well():
    found = findings.of_number(NUMBER, "order-desk", number(), OURS)

    assert found == Finding(
        "number +58********01 (order-desk)", State.OK, "its voice and status webhooks are ours"
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (number(NumberHooks("", "")), "nobody answers it"),
        (
            number(NumberHooks("https://demo.twilio.com/x?k=1", "")),
            "to https://demo.twilio.com:443",
        ),
        (number(NumberHooks("https://calls.example.com/other", "")), "another path of this server"),
        (number(answered_by="a TwiML application"), "a TwiML application answers"),
    ],
)
def test_a_number_that_leads_elsewhere_says_where_and_what_to_do(answer, said):
    found = findings.of_number(NUMBER, "order-desk", answer, OURS)

    assert found.state is State.FAILED
    assert said in found.found
    assert found.todo == "offhook number +58********01 --agent order-desk"
    assert "k=1" not in found.found


def test_the_number_that_calls_come_from_need_not_be_answered_here():
    elsewhere = number(NumberHooks("https://demo.twilio.com/x", ""))

    assert findings.of_number(NUMBER, None, elsewhere, OURS).state is State.DOUBT
    assert findings.of_number(NUMBER, None, None, OURS).state is State.DOUBT
    assert "verified caller" in findings.of_number(NUMBER, None, None, OURS).todo


def test_a_number_that_cannot_be_called_fails():
    on_trunk = findings.of_number(NUMBER, "desk", number(answered_by=TRUNK), OURS)

    assert findings.of_number(NUMBER, "desk", None, OURS).state is State.FAILED
    assert findings.of_number(NUMBER, "desk", number(takes_calls=False), OURS).state is State.FAILED
    assert "Console" in on_trunk.todo


def test_a_status_callback_that_is_not_ours_is_a_doubt():
    found = findings.of_number(NUMBER, "desk", number(NumberHooks(OURS.voice_url, "")), OURS)

    assert (found.state, "status callback" in found.found) == (State.DOUBT, True)


def test_what_a_carrier_refuses_is_told_without_numbers():
    error = CarrierError(f"{NUMBER} is not\n valid, token=abc", status=401)

    found = findings.of_carrier("twilio", error)

    assert found.found == "+58********01 is not valid, token=***"
    assert "TWILIO_AUTH_TOKEN" in found.todo


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (AccountState("the account is active"), State.OK),
        (AccountState("the account is active", doubt="it is a trial"), State.DOUBT),
        (AccountState("the account is suspended", advice="see to it"), State.FAILED),
        (CarrierError("Twilio was not reached"), State.FAILED),
        (CarrierError("busy", status=503), State.FAILED),
    ],
)
def test_an_account_is_as_its_carrier_says(answer, state):
    assert findings.of_carrier("twilio", answer).state is state


def test_a_model_that_refuses_the_key_says_what_to_do():
    error = ModelError("no", code=1007, reason="no", retryable=False, refusal=Kind.KEY)

    found = findings.of_model("gemini-3.8-live", "GEMINI_API_KEY", ["default"], error)

    assert (found.state, found.todo) == (State.FAILED, Kind.KEY.advice)
    assert findings.of_model("m", "K", ["a", "b"], 0.4).found.endswith("closed: a, b")


@pytest.mark.parametrize(
    ("version", "state"), [(None, State.OK), (3, State.OK), (5, State.OK), (6, State.FAILED)]
)
def test_a_database_of_a_later_version_fails(version, state):
    assert findings.of_database("offhook.db", version, 5).state is state


def test_a_database_that_cannot_be_made_fails():
    assert findings.of_new_database("a/b.db", is_writable=True).state is State.OK
    assert findings.of_new_database("a/b.db", is_writable=False).state is State.FAILED


@pytest.mark.parametrize(
    ("answer", "is_ours", "state"),
    [
        (200, True, State.OK),
        (200, False, State.FAILED),
        (502, False, State.FAILED),
        (OSError("no such name"), False, State.FAILED),
    ],
)
def test_a_public_address_has_to_lead_here(answer, is_ours, state):
    url = "https://calls.example.com/phone?secret=1"

    found = findings.of_public_url(url, answer, is_ours=is_ours, listens="127.0.0.1:8000")

    assert found.state is state
    assert found.subject == "PUBLIC_URL https://calls.example.com:443"
    assert ("127.0.0.1:8000" in found.todo) is not is_ours


def test_doubts_are_no_failure():
    doubt = Finding("settings", State.DOUBT, "may be a mistake")

    assert all_is_well([doubt])
    assert not all_is_well([doubt, findings.late("database", 20.0)])


def test_every_wrong_setting_is_named_and_somebody_elses_flood_of_words_is_cut():
    wrong = "; ".join(f"SETTING_{number}: must be a number" for number in range(30))

    assert findings.failed("settings", ConfigurationError(wrong)).found == wrong
    assert findings.failed("carrier", CarrierError("x" * 1_000)).found == "x" * 299 + "…"


def test_an_error_without_a_word_says_what_is_behind_it():
    error = OSError()
    error.__cause__ = RuntimeError()
    error.__cause__.__context__ = ValueError("certificate verify failed")

    assert findings.failed("events", error).found == "certificate verify failed"
    assert findings.failed("events", OSError()).found == "OSError"
