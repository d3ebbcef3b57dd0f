"""The REST API as Twilio sees our requests, and what becomes of its answers."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import hypercorn.trio
import pytest
import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.datastructures import MultiDict

from server.carrier import CallStatus, PlacedCall, StatusUpdate
from server.carrier.twilio.rest import TwilioCarrier
from server.carrier.twilio.webhooks import TwilioWebhooks
from server.carrier.webhooks import ConnectStream
from server.errors import CallNotInProgress, CarrierError
from server.hooks.hypercorn_worker import make_config

pytestmark = pytest.mark.sockets

ACCOUNT = "AC0123456789abcdef0123456789abcdef"
CALL = "CA0123456789abcdef0123456789abcdef"
CALLS_PATH = f"/2010-04-01/Accounts/{ACCOUNT}/Calls.json"
CALL_PATH = f"/2010-04-01/Accounts/{ACCOUNT}/Calls/{CALL}.json"
PLACED = {"sid": CALL, "status": "queued"}


@dataclass
class FakeApi:
    """Answers every request alike and remembers what was asked."""

    status: int = 201
    body: str = json.dumps(PLACED)
    refusals: list[tuple[int, str]] = field(default_factory=list)
    """Answers given first, one for each request."""
    retry_after: str | None = None
    """What refusals say about when to come back."""
    asked_at: list[float] = field(default_factory=list)
    never: bool = False
    asked: list[tuple[str, str, MultiDict]] = field(default_factory=list)
    credentials: object = None
    url: str = ""

    async def answer(self, path: str) -> Response:
        self.asked.append((request.method, request.path, await request.form))
        self.asked_at.append(trio.current_time())
        self.credentials = request.authorization
        if self.never:
            await trio.sleep_forever()
        refused = bool(self.refusals)
        status, body = self.refusals.pop(0) if refused else (self.status, self.body)
        response = Response(body, status=status, content_type="application/json")
        if refused and self.retry_after is not None:
            response.headers["Retry-After"] = self.retry_after
        return response


@pytest.fixture
async def api(nursery):
    fake = FakeApi()
    app = QuartTrio(__name__)
    app.add_url_rule("/<path:path>", view_func=fake.answer, methods=["GET", "POST"])
    config = make_config("127.0.0.1:0", graceful_timeout=0.1)
    binds = await nursery.start(
        partial(hypercorn.trio.serve, app, config, shutdown_trigger=trio.sleep_forever)
    )
    fake.url = binds[0]
    return fake


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr("server.carrier.twilio.rest._TRY_AGAIN_WITHIN_S", (0.002, 0.002))


def webhooks(public_url: str = "https://example.com") -> TwilioWebhooks:
    return TwilioWebhooks(ACCOUNT, "secret", public_url)


def carrier(api_url: str, **changes: object) -> TwilioCarrier:
    settings = {
        "account_sid": ACCOUNT,
        "auth_token": "secret",
        "phone_number": "+15005550006",
        "webhooks": webhooks(),
        "api_url": api_url,
        **changes,
    }
    return TwilioCarrier(**settings)


async def test_a_call_is_placed_as_the_documentation_asks(api):
    async with carrier(api.url, ring_timeout_s=25.0) as twilio:
        placed = await twilio.place_call("+584121234567", ticket="t1", max_duration_s=599.5)

    assert placed == PlacedCall(CALL, CallStatus.QUEUED)
    assert (api.credentials.username, api.credentials.password) == (ACCOUNT, "secret")
    ((method, path, form),) = api.asked
    assert (method, path) == ("POST", CALLS_PATH)
    assert form.to_dict(flat=False) == {
        "To": ["+584121234567"],
        "From": ["+15005550006"],
        "Twiml": [
            '<?xml version="1.0" encoding="UTF-8"?><Response><Connect>'
            '<Stream url="wss://example.com/stream"><Parameter name="ticket" value="t1" /></Stream>'
            '</Connect><Redirect method="POST">https://example.com/resume'
            "#rc=5&amp;rp=ct,rt,5xx&amp;ct=2000&amp;rt=3000</Redirect></Response>"
        ],
        "StatusCallback": ["https://example.com/call-status"],
        "StatusCallbackEvent": ["initiated", "ringing", "answered", "completed"],
        "StatusCallbackMethod": ["POST"],
        "Timeout": ["25"],
        "TimeLimit": ["660"],  # a minute more: it is ours to end the call, with a goodbye
    }


async def test_twilio_is_asked_for_no_longer_call_than_it_has(api):
    async with carrier(api.url) as twilio:
        await twilio.place_call("+584121234567", ticket="t1", max_duration_s=14_400.0)

    ((_, _, form),) = api.asked
    assert form["TimeLimit"] == "14400"


async def test_an_api_key_asks_in_the_tokens_place(api):
    async with carrier(api.url, api_key=("SK" + "1" * 32, "the key's")) as twilio:
        await twilio.place_call("+584121234567", ticket="t1", max_duration_s=600)

    assert (api.credentials.username, api.credentials.password) == ("SK" + "1" * 32, "the key's")
    ((method, path, _),) = api.asked
    assert (method, path) == ("POST", CALLS_PATH)


async def test_machine_detection_is_asked_for_beside_the_call_and_not_before_it(api):
    async with carrier(api.url) as twilio:
        await twilio.place_call(
            "+584121234567", ticket="t1", max_duration_s=600, detect_machine=True
        )

    ((_, _, form),) = api.asked
    assert form["MachineDetection"] == "DetectMessageEnd"
    assert form["AsyncAmd"] == "true"
    assert form["AsyncAmdStatusCallback"] == "https://example.com/amd-status"
    assert form["AsyncAmdStatusCallbackMethod"] == "POST"


async def test_a_live_call_is_transferred(api):
    async with carrier(api.url) as twilio:
        await twilio.transfer(CALL, "+15005550123", ring_timeout_s=20)

    ((method, path, form),) = api.asked
    assert (method, path) == ("POST", CALL_PATH)
    assert form.keys() == {"Twiml", "TimeLimit"}
    assert form["TimeLimit"] == "14400"  # not what the agent's part of it was limited to
    assert '<Dial action="https://example.com/transfer-status#rc=5&amp;' in form["Twiml"]


async def test_a_live_call_is_hung_up(api):
    async with carrier(api.url) as twilio:
        await twilio.hang_up(CALL)

    ((method, path, form),) = api.asked
    assert (method, path, form.to_dict()) == ("POST", CALL_PATH, {"Status": "completed"})


@pytest.mark.parametrize(("status", "code"), [(400, 21220), (404, 20404), (404, None)])
async def test_hanging_up_a_call_that_is_over_is_success(api, status, code):
    api.status = status
    api.body = json.dumps({"code": code, "message": "no", "status": status} if code else {})

    async with carrier(api.url) as twilio:
        await twilio.hang_up(CALL)

    assert [path for _, path, _ in api.asked] == [CALL_PATH]  # and not asked again


async def test_a_hang_up_that_is_refused_says_so(api):
    api.status, api.body = 401, json.dumps({"code": 20003, "message": "Authenticate"})

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError, match="Authenticate") as failure:
            await twilio.hang_up(CALL)

    assert (failure.value.status, failure.value.code) == (401, 20003)


async def test_a_live_call_is_given_another_document(api):
    async with carrier(api.url) as twilio:
        await twilio.update_call(CALL, twiml="<Response><Hangup/></Response>")

    ((_, path, form),) = api.asked
    assert (path, form.to_dict()) == (CALL_PATH, {"Twiml": "<Response><Hangup/></Response>"})


@pytest.mark.parametrize(
    ("language", "spoken"),
    [("es-VE", "es-MX"), ("en-GB", "en-GB"), ("PT", "pt-BR"), ("tlh", "en-US")],
)
async def test_twilio_itself_says_something_in_the_nearest_language_it_has(api, language, spoken):
    async with carrier(api.url) as twilio:
        await twilio.say_and_hang_up(CALL, "Sorry & goodbye", language)

    ((_, path, form),) = api.asked
    assert path == CALL_PATH
    assert form.to_dict() == {
        "Twiml": '<?xml version="1.0" encoding="UTF-8"?><Response>'
        f'<Say language="{spoken}">Sorry &amp; goodbye</Say><Hangup /></Response>'
    }


REFUSALS = {
    "the 2010 form": (
        400,
        {"code": 21211, "message": "The number is not valid.", "status": 400},
        21211,
        "The number is not valid.",
    ),
    "the RFC 9457 form": (
        429,
        {"type": "t", "title": "Too many", "status": 429, "code": 20429, "detail": "Slow down."},
        20429,
        "Slow down.",
    ),
    "no words at all": (503, {}, None, "Unable to create record"),
}


@pytest.mark.parametrize(("status", "body", "code", "words"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_carries_twilios_code_and_message(api, no_waits, status, body, code, words):
    api.status, api.body = status, json.dumps(body)

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError) as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert (failure.value.status, failure.value.code) == (status, code)
    assert words in failure.value.message


@pytest.mark.parametrize("body", ["<html>Welcome</html>", "[]", "", '{"status":"queued"}'])
async def test_an_answer_that_is_not_twilios_is_the_carriers_error(api, body):
    api.body = body

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError):
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)


async def test_a_new_word_for_a_status_does_not_disown_the_call(api):
    api.body = json.dumps({**PLACED, "status": "pondering"})

    async with carrier(api.url) as twilio:
        placed = await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert placed == PlacedCall(CALL, CallStatus.QUEUED)


async def test_an_answer_that_never_comes_is_waited_for_no_longer_than_told(api):
    api.never = True

    async with carrier(api.url, request_timeout_s=0.05) as twilio:
        with pytest.raises(CarrierError, match="did not answer within") as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert failure.value.status is None


async def test_an_api_that_is_not_there_is_the_carriers_error(no_waits):
    async with carrier("http://127.0.0.1:1") as twilio:
        with pytest.raises(CarrierError, match="was not reached") as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert failure.value.status is None


async def test_an_api_whose_name_is_looked_up_in_vain_was_not_asked(autojump_clock, silent_names):
    async with carrier("https://api.example") as twilio:
        with pytest.raises(CarrierError, match="was not reached") as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert (failure.value.status, failure.value.outcome_unknown) == (None, False)
    assert trio.current_time() < 20.0  # four tries


async def test_an_api_that_takes_connections_and_is_silent_was_not_asked(nursery, no_waits):
    async def say_nothing(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    (silent,) = await nursery.start(partial(trio.serve_tcp, say_nothing, 0, host="127.0.0.1"))
    port = silent.socket.getsockname()[1]

    async with carrier(f"https://127.0.0.1:{port}", request_timeout_s=1.0) as twilio:
        with pytest.raises(CarrierError, match="was not reached") as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert not failure.value.outcome_unknown


async def test_the_environment_does_not_redirect_requests(api, monkeypatch):
    monkeypatch.setenv("TWILIO_EDGE", "dublin")
    monkeypatch.setenv("TWILIO_REGION", "ie1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    async with carrier(api.url) as twilio:
        await twilio.hang_up(CALL)

    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("public_url", "stream_url"),
    [
        ("https://example.com", "wss://example.com/stream"),
        ("https://example.com/", "wss://example.com/stream"),
        ("https://example.com/agents", "wss://example.com/agents/stream"),
        ("http://example.com", "wss://example.com/stream"),
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/stream"),
        ("http://localhost:8080", "ws://localhost:8080/stream"),
        ("https://127.0.0.1:8443", "wss://127.0.0.1:8443/stream"),
    ],
)
def test_the_streams_url_follows_the_public_one(public_url, stream_url):
    assert webhooks(public_url).stream_url == stream_url


def test_a_ticket_cannot_break_out_of_the_document():
    twiml = webhooks().twiml(ConnectStream('"/><Hangup/>'))

    assert "<Hangup" not in twiml


TOO_MANY = (429, json.dumps({"code": 20429, "message": "Too many", "status": 429}))
BROKEN = (503, "{}")


async def test_a_dial_that_was_too_much_is_made_again(api, no_waits):
    api.refusals = [TOO_MANY, TOO_MANY]

    async with carrier(api.url) as twilio:
        placed = await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert placed.call_sid == CALL
    assert len(api.asked) == 3


async def test_a_dial_that_stays_too_much_is_given_up(api, no_waits):
    api.refusals = [TOO_MANY] * 10

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError) as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert (failure.value.status, failure.value.outcome_unknown) == (429, False)
    assert len(api.asked) == 3


async def test_a_dial_that_may_have_rung_a_phone_is_never_made_again(api, no_waits):
    api.refusals = [BROKEN]

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError) as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert failure.value.outcome_unknown
    assert len(api.asked) == 1


async def test_a_dial_that_was_not_answered_in_time_is_never_made_again(api, no_waits):
    api.never = True

    async with carrier(api.url, request_timeout_s=0.2) as twilio:
        with pytest.raises(CarrierError) as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert failure.value.outcome_unknown
    assert len(api.asked) == 1


async def test_a_dial_that_reached_nobody_is_known_to_have_done_nothing(no_waits):
    async with carrier("http://127.0.0.1:9") as twilio:
        with pytest.raises(CarrierError) as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert not failure.value.outcome_unknown


async def test_a_hang_up_is_made_again_after_any_failure(api, no_waits):
    api.refusals = [BROKEN, TOO_MANY]

    async with carrier(api.url) as twilio:
        await twilio.hang_up(CALL)

    assert len(api.asked) == 3


@pytest.mark.parametrize("refusal", [TOO_MANY, (429, "{}"), (429, "slow down")])
async def test_a_dial_is_not_made_again_sooner_than_twilio_wants(api, no_waits, refusal):
    api.refusals, api.retry_after = [refusal], "1"
    pauses: list[float] = []

    async with carrier(api.url) as twilio:
        twilio.on_wait = pauses.append
        placed = await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert placed.call_sid == CALL
    assert api.asked_at[1] - api.asked_at[0] >= 1.0
    assert pauses == [1.0]


async def test_a_pause_in_the_form_of_a_date_is_obeyed(api, no_waits):
    later = datetime.now(UTC) + timedelta(seconds=2)
    api.refusals, api.retry_after = [TOO_MANY], format_datetime(later, usegmt=True)

    pauses: list[float] = []

    async with carrier(api.url) as twilio:
        twilio.on_wait = pauses.append
        await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)
    asked_again = datetime.now(UTC) - timedelta(seconds=trio.current_time() - api.asked_at[1])

    # However late the answer was, on a busy machine; a tenth of a second for two clocks.
    assert asked_again > later.replace(microsecond=0) - timedelta(seconds=0.1)
    assert all(pause_s <= 2.0 for pause_s in pauses)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_pause_that_is_too_long_to_wait_is_told_at_once(api, no_waits, status):
    api.refusals, api.retry_after = [(status, TOO_MANY[1])] * 9, "120"
    pauses: list[float] = []

    async with carrier(api.url) as twilio:
        twilio.on_wait = pauses.append
        with pytest.raises(CarrierError) as failure:
            await twilio.place_call("+15005550001", ticket="t1", max_duration_s=60)

    assert (failure.value.status, failure.value.retry_after_s) == (status, 120.0)
    assert len(api.asked) == 1
    assert pauses == [120.0]


async def test_a_pause_of_one_request_is_not_taken_for_anothers(api, no_waits):
    api.refusals, api.retry_after = [TOO_MANY], "120"

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError):
            await twilio.hang_up(CALL)
        api.refusals, api.retry_after = [(400, "{}")], None
        with pytest.raises(CarrierError) as failure:
            await twilio.hang_up(CALL)

    assert failure.value.retry_after_s is None


async def test_a_pause_that_nobody_has_the_time_for_is_told_instead_of_waited_for(api, no_waits):
    api.refusals, api.retry_after = [BROKEN] * 9, "9"

    async with carrier(api.url) as twilio:
        with trio.fail_after(8), pytest.raises(CarrierError):  # as the end of a call is bounded
            await twilio.hang_up(CALL)

    assert len(api.asked) == 1


async def test_a_call_is_given_another_stream_that_is_asked_about_when_it_has_ended(api):
    api.status = 200

    async with carrier(api.url) as twilio:
        await twilio.reconnect(CALL, "t2")

    ((method, path, form),) = api.asked
    assert (method, path) == ("POST", CALL_PATH)
    assert form["Twiml"] == webhooks().twiml(ConnectStream("t2"))
    assert "/resume#" in form["Twiml"].partition("</Connect>")[2]


async def test_a_transfer_that_was_too_much_is_asked_for_again(api, no_waits):
    api.refusals = [TOO_MANY, TOO_MANY]

    async with carrier(api.url) as twilio:
        await twilio.transfer(CALL, "+15005550123", ring_timeout_s=20.0)

    documents = [form["Twiml"] for _, _, form in api.asked]
    assert len(documents) == 3
    assert len(set(documents)) == 1
    assert "+15005550123" in documents[0]


async def test_a_transfer_that_may_ring_a_phone_already_is_not_asked_for_again(api, no_waits):
    api.refusals = [BROKEN]

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError) as failure:
            await twilio.transfer(CALL, "+15005550123", ring_timeout_s=20.0)

    assert failure.value.outcome_unknown
    assert len(api.asked) == 1


async def test_whether_an_apology_is_said_again_is_left_to_whoever_owes_it(api, no_waits):
    api.refusals = [TOO_MANY]

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError) as failure:
            await twilio.say_and_hang_up(CALL, "Sorry", "en-US")

    assert failure.value.status == 429
    assert len(api.asked) == 1


async def test_a_ticket_that_may_have_been_used_is_not_given_again(api, no_waits):
    api.refusals = [BROKEN]

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError):
            await twilio.reconnect(CALL, "t2")

    assert len(api.asked) == 1


async def test_a_call_that_is_over_is_given_no_other_stream(api):
    api.status, api.body = 400, json.dumps({"code": 21220, "message": "not in-progress"})

    async with carrier(api.url) as twilio:
        with pytest.raises(CallNotInProgress):
            await twilio.reconnect(CALL, "t2")


async def test_twilio_is_asked_how_a_call_stands(api):
    api.status = 200
    api.body = json.dumps({"sid": CALL, "status": "completed", "duration": "61"})

    async with carrier(api.url) as twilio:
        update = await twilio.fetch_status(CALL)

    ((method, path, _),) = api.asked
    assert (method, path) == ("GET", CALL_PATH)
    facts = {"asked": "yes", "duration_s": "61"}
    assert update == StatusUpdate(CALL, CallStatus.COMPLETED, None, facts)


@pytest.mark.parametrize("duration", [None, "", "-1", "9" * 400, 61.5])
async def test_a_duration_that_is_none_is_left_out(api, duration):
    api.status = 200
    api.body = json.dumps({"sid": CALL, "status": "completed", "duration": duration})

    async with carrier(api.url) as twilio:
        update = await twilio.fetch_status(CALL)

    assert "duration_s" not in update.facts


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, {"status": "dancing"}), (200, {}), (404, {"code": 20404}), (401, {}), (503, {})],
)
async def test_an_answer_that_says_nothing_about_a_call_is_the_carriers_error(api, status, body):
    api.status, api.body = status, json.dumps(body)

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError):
            await twilio.fetch_status(CALL)

    assert len(api.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {**PLACED, "date_created": 5},
        {**PLACED, "sid": ["a"]},
        {**PLACED, "sid": 5},
        {**PLACED, "sid": "CA1"},
        {**PLACED, "sid": "x" * 100_000},
        {"status": "queued"},
        [],
        "CA",
    ],
)
async def test_an_answer_that_is_none_leaves_the_outcome_of_a_dial_unknown(api, answer):
    api.body = json.dumps(answer)

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError) as failed:
            await twilio.place_call("+15005550101", ticket="t", max_duration_s=60)

    assert failed.value.outcome_unknown
    assert len(api.asked) == 1
    assert len(str(failed.value)) < 300


async def test_an_answer_about_a_call_that_is_none_is_an_error_of_the_carriers(api):
    api.status = 200
    api.body = json.dumps({**PLACED, "date_created": 5})

    async with carrier(api.url) as twilio:
        with pytest.raises(CarrierError):
            await twilio.fetch_status(CALL)
