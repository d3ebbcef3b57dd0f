"""The account and the webhooks of its numbers, against the simulated Twilio."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest

from server.carrier.account import TRUNK, AccountState, NumberHooks
from server.carrier.twilio.numbers import APPLICATION
from server.carrier.twilio.rest import TwilioCarrier
from server.carrier.twilio.webhooks import TwilioWebhooks
from server.errors import CarrierError
from server.simulators.twilio import TwilioSimulator
from tests.carrier.test_twilio_rest import FakeApi, api  # noqa: F401 - a fixture

pytestmark = pytest.mark.sockets

ACCOUNT = "AC0123456789abcdef0123456789abcdef"
NUMBER = "+15005550006"
OURS = NumberHooks("https://example.com/twiml", "https://example.com/call-status")


@pytest.fixture
async def twilio(nursery):
    simulator = TwilioSimulator(account_sid=ACCOUNT, auth_token="secret", phone_number=NUMBER)
    await nursery.start(simulator.run)
    return simulator


@asynccontextmanager
async def opened(api_url: str, token: str = "secret", **changes: object):
    webhooks = TwilioWebhooks(ACCOUNT, token, "https://example.com", at="/n/1")
    async with TwilioCarrier(
        account_sid=ACCOUNT,
        auth_token=token,
        phone_number=NUMBER,
        webhooks=webhooks,
        api_url=api_url,
        **changes,
    ) as carrier:
        yield carrier.numbers


async def test_a_number_is_set_to_addresses_that_name_no_process(twilio):
    async with opened(twilio.api_url) as numbers:
        before = await numbers.find(NUMBER)
        after = await numbers.set_hooks(before, numbers.ours)
        seen = await numbers.find(NUMBER)

    assert before.hooks == NumberHooks("", "")
    assert numbers.ours == OURS
    assert after == seen
    assert seen.hooks == OURS
    assert twilio.account.numbers.get(NUMBER).voice_url == OURS.voice_url


async def test_how_a_number_asks_is_set_back_as_it_was(twilio):
    number = twilio.account.numbers.get(NUMBER)
    number.voice_url, number.status_url = "https://a.example/", "https://b.example/"
    number.voice_method = number.status_method = "GET"

    async with opened(twilio.api_url) as numbers:
        before = await numbers.find(NUMBER)
        ours = await numbers.set_hooks(before, numbers.ours)
        within = number.voice_method, number.status_method
        after = await numbers.set_hooks(ours, before.hooks)

    assert within == ("POST", "POST")
    assert after == before
    assert (number.voice_method, number.status_method) == ("GET", "GET")


async def test_a_number_that_is_like_another_is_not_it(twilio):
    twilio.account.numbers.add(f"{NUMBER}7")
    async with opened(twilio.api_url) as numbers:
        assert (await numbers.find(NUMBER)).number == NUMBER
        assert (await numbers.find(f"{NUMBER}7")).number == f"{NUMBER}7"
        assert await numbers.find("+15005550111") is None


async def test_who_else_answers_a_number_is_told_and_an_application_taken_off(twilio):
    number = twilio.account.numbers.get(NUMBER)
    async with opened(twilio.api_url) as numbers:
        number.trunk_sid = "TK1"
        on_trunk = await numbers.find(NUMBER)
        number.trunk_sid, number.voice_application_sid, number.takes_calls = "", "AP1", False
        of_application = await numbers.find(NUMBER)
        after = await numbers.set_hooks(of_application, numbers.ours)

    assert on_trunk.answered_by == TRUNK
    assert of_application.answered_by == APPLICATION
    assert not of_application.takes_calls
    assert after.answered_by == ""


async def test_an_account_says_how_it_stands(twilio):
    async with opened(twilio.api_url) as numbers:
        active = await numbers.describe()
        twilio.account.kind = "Trial"
        trial = await numbers.describe()
        twilio.account.status = "suspended"
        suspended = await numbers.describe()

    assert active == AccountState("the account is active")
    assert "verified numbers only" in trial.doubt
    assert "suspended" in suspended.found
    assert suspended.advice


async def test_a_wrong_token_is_refused_with_its_status(twilio):
    async with opened(twilio.api_url, token="wrong") as numbers:
        with pytest.raises(CarrierError) as lookup:
            await numbers.find(NUMBER)
        with pytest.raises(CarrierError) as account:
            await numbers.describe()

    assert (lookup.value.status, lookup.value.code) == (401, 20003)
    assert account.value.status == 401


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"incoming_phone_numbers": 5},
        {"incoming_phone_numbers": ["x"]},
        {"incoming_phone_numbers": [{"phone_number": NUMBER, "sid": 7}]},
    ],
)
async def test_an_answer_that_is_none_is_an_error_of_the_carrier(api, body):  # noqa: F811
    api.status, api.body = 200, json.dumps(body)
    async with opened(api.url) as numbers:
        with pytest.raises(CarrierError, match="cannot be read"):
            await numbers.find(NUMBER)


async def test_an_api_key_that_may_not_ask_for_the_account_is_tried_otherwise(api):  # noqa: F811
    refusal = 401, json.dumps({"code": 20003, "message": "Authenticate", "status": 401})
    api.status, api.body = 200, json.dumps({"incoming_phone_numbers": []})
    key = "SK" + "1" * 32, "the key's"
    async with opened(api.url, api_key=key) as numbers:
        api.refusals = [refusal]
        taken = await numbers.describe()
        api.refusals = [refusal, refusal]
        with pytest.raises(CarrierError, match="Authenticate"):
            await numbers.describe()
    async with opened(api.url) as numbers:
        api.refusals = [refusal]
        with pytest.raises(CarrierError, match="Authenticate"):
            await numbers.describe()

    assert taken.found.startswith("it takes the API key")
