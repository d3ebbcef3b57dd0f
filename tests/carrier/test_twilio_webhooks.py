"""Whose webhook is it: signatures, with the twilio package as the other opinion; status callbacks.

The first vector was made with the twilio package's own RequestValidator and checked by hand
against the recipe of "Webhooks Security": the URL, then each sorted name and its value, HMAC-SHA1.
"""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import Headers, MultiDict

from server.carrier import CallStatus, StatusUpdate
from server.carrier.twilio.reports import MAX_FACT_CHARS, parse_status
from server.carrier.twilio.signature import WebhookVerifier
from server.carrier.twilio.webhooks import TwilioWebhooks
from server.errors import CarrierProtocolError

TOKEN = "12345"
ORIGIN = "https://example.com"
FORM = {"CallSid": "CA1", "From": "+1"}
SIGNATURE = "UDY9odppBwsudisfz40wd7vwYwc="


def sign(url, form=None, token=TOKEN):
    return {"X-Twilio-Signature": RequestValidator(token).compute_signature(url, form or {})}


def test_the_published_vector():
    verifier = WebhookVerifier(TOKEN, ORIGIN)

    assert verifier.verify_signature("/myapp?foo=1&bar=2", {"X-Twilio-Signature": SIGNATURE}, FORM)


@pytest.mark.parametrize(
    ("target", "headers", "form"),
    [
        ("/myapp?foo=1&bar=2", {}, FORM),
        ("/myapp?foo=1&bar=2", {"X-Twilio-Signature": ""}, FORM),
        ("/myapp?foo=1&bar=2", {"X-Twilio-Signature": SIGNATURE[:-2]}, FORM),
        ("/myapp?foo=1&bar=2", {"X-Twilio-Signature": "é" * 28}, FORM),
        ("/myapp?foo=1&bar=2", {"X-Twilio-Signature": SIGNATURE}, {**FORM, "To": "+2"}),
        ("/myapp?foo=1&bar=2", {"X-Twilio-Signature": SIGNATURE}, {**FORM, "From": "\ud800"}),
        ("/myapp?foo=1&bar=2", {"X-Twilio-Signature": SIGNATURE}, None),
        ("/myapp?bar=2&foo=1", {"X-Twilio-Signature": SIGNATURE}, FORM),
        ("/other?foo=1&bar=2", {"X-Twilio-Signature": SIGNATURE}, FORM),
        (".evil.example/myapp", {"X-Twilio-Signature": SIGNATURE}, FORM),
        ("", {"X-Twilio-Signature": SIGNATURE}, FORM),
    ],
)
def test_anything_else_is_not_genuine(target, headers, form):
    assert not WebhookVerifier(TOKEN, ORIGIN).verify_signature(target, headers, form)


def test_a_wrong_token_is_not_genuine():
    headers = {"X-Twilio-Signature": SIGNATURE}

    assert not WebhookVerifier("54321", ORIGIN).verify_signature(
        "/myapp?foo=1&bar=2", headers, FORM
    )


def test_the_host_header_has_no_say():
    headers = {**sign("https://attacker.example/twiml", FORM), "Host": "attacker.example"}

    assert not WebhookVerifier(TOKEN, ORIGIN).verify_signature("/twiml", headers, FORM)


@pytest.mark.parametrize("name", ["x-twilio-signature", "X-TWILIO-SIGNATURE"])
@pytest.mark.parametrize("kind", [dict, Headers])
def test_the_headers_case_does_not_matter(name, kind):
    headers = kind({name: SIGNATURE})

    assert WebhookVerifier(TOKEN, ORIGIN).verify_signature("/myapp?foo=1&bar=2", headers, FORM)


@pytest.mark.parametrize("other", ["a forgery", SIGNATURE])
@pytest.mark.parametrize("first", [True, False])
def test_two_signatures_are_none(other, first):
    values = [SIGNATURE, other] if first else [other, SIGNATURE]
    headers = Headers([("X-Twilio-Signature", value) for value in values])

    assert not WebhookVerifier(TOKEN, ORIGIN).verify_signature("/myapp?foo=1&bar=2", headers, FORM)


def test_two_settings_of_a_signature_are_none():
    settings = [
        ("X-Twilio-Webhooks-Signature-Settings", f"key={key},algorithm=HMAC_SHA256")
        for key in ("webhooks_sharedkey_1", "webhooks_sharedkey_2")
    ]
    signature = shared_headers()["X-Twilio-Signature"]
    headers = Headers([("X-Twilio-Signature", signature), *settings])
    verifier = WebhookVerifier(TOKEN, ORIGIN, shared_keys=SHARED)

    assert not verifier.verify_signature("/call-status", headers, FORM)


@given(
    form=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=6),
    path=st.text(alphabet="abc/%20-_.~", max_size=20),
    query=st.text(alphabet="abc/%20-_.~?&=+", max_size=20).map(lambda text: text and f"?{text}"),
)
def test_what_the_twilio_package_signs_is_genuine(form, path, query):
    target = f"/{path}{query if query != '?' else ''}"
    fields = MultiDict(form)
    headers = sign(ORIGIN + target, fields)

    assert WebhookVerifier(TOKEN, ORIGIN + "/").verify_signature(target, headers, fields)


def test_a_get_is_signed_by_its_url_alone():
    headers = sign(f"{ORIGIN}/twiml?CallSid=CA1&From=%2B1")

    assert WebhookVerifier(TOKEN, ORIGIN).verify_signature("/twiml?CallSid=CA1&From=%2B1", headers)


@pytest.mark.parametrize("signed", ["https://example.com:443/x", "https://example.com/x"])
def test_the_port_may_be_signed_or_not(signed):
    assert WebhookVerifier(TOKEN, ORIGIN).verify_signature("/x", sign(signed))


SHARED = {"webhooks_sharedkey_1": "secret"}


def shared_headers(algorithm="HMAC_SHA256", key="webhooks_sharedkey_1", secret="secret"):
    url = f"{ORIGIN}/call-status"
    signature = RequestValidator(secret).compute_signature(url, FORM, algorithm)
    return {
        "X-Twilio-Signature": signature,
        "X-Twilio-Webhooks-Signature-Settings": f"key={key},algorithm={algorithm}",
    }


def test_a_shared_key_signs_with_its_own_secret():
    verifier = WebhookVerifier(TOKEN, ORIGIN, shared_keys=SHARED)
    by_hand = base64.b64encode(
        hmac.digest(b"secret", f"{ORIGIN}/call-statusCallSidCA1From+1".encode(), hashlib.sha256)
    ).decode()

    headers = shared_headers()

    assert headers["X-Twilio-Signature"] == by_hand
    assert verifier.verify_signature("/call-status", headers, FORM)


@pytest.mark.parametrize(
    "headers",
    [
        shared_headers(key="unknown"),
        shared_headers(secret="other"),
        shared_headers(secret=TOKEN),
        {**shared_headers(), "X-Twilio-Webhooks-Signature-Settings": "algorithm=HMAC_SHA256"},
        {**shared_headers(), "X-Twilio-Webhooks-Signature-Settings": "key=webhooks_sharedkey_1"},
        {
            **shared_headers(),
            "X-Twilio-Webhooks-Signature-Settings": "key=webhooks_sharedkey_1,algorithm=ROT13",
        },
    ],
)
def test_a_shared_key_that_does_not_fit_is_not_genuine(headers):
    verifier = WebhookVerifier(TOKEN, ORIGIN, shared_keys=SHARED)

    assert not verifier.verify_signature("/call-status", headers, FORM)


@pytest.mark.parametrize("algorithm", ["HMAC_SHA1", "hmac_sha1", "HMAC_SHA256", "Hmac_Sha256"])
def test_an_algorithm_may_be_written_in_any_case(algorithm):
    verifier = WebhookVerifier(TOKEN, ORIGIN, shared_keys=SHARED)

    assert verifier.verify_signature("/call-status", shared_headers(algorithm), FORM)


def test_an_algorithm_that_there_is_not_is_no_line_of_the_log(caplog):
    verifier = WebhookVerifier(TOKEN, ORIGIN, shared_keys=SHARED)
    settings = "key=webhooks_sharedkey_1,algorithm=" + "x" * 8_000
    headers = {**shared_headers(), "X-Twilio-Webhooks-Signature-Settings": settings}

    assert not verifier.verify_upgrade("/stream", headers)
    assert not verifier.verify_signature("/call-status", headers, FORM)
    assert verifier.signed_for("/call-status", headers, FORM) is None
    assert caplog.records == []


@pytest.mark.parametrize(
    "signed",
    [
        "wss://example.com/stream",
        "wss://example.com/stream/",
        "https://example.com/stream",
        "https://example.com/stream/",
    ],
)
def test_every_form_of_the_streams_url_seen_in_the_field_is_genuine(signed):
    assert WebhookVerifier(TOKEN, ORIGIN).verify_upgrade("/stream", sign(signed))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        sign("ws://example.com/stream"),
        sign("wss://other.example/stream"),
        sign("wss://example.com/other"),
        sign("wss://example.com/stream", token="other"),
    ],
)
def test_any_other_upgrade_is_not_genuine(headers):
    assert not WebhookVerifier(TOKEN, ORIGIN).verify_upgrade("/stream", headers)


def test_streams_at_a_host_of_their_own_are_signed_for_that_one():
    webhooks = TwilioWebhooks(
        "AC1", TOKEN, ORIGIN, at="/n/n3", streams_at="wss://n3.calls.example.com"
    )

    assert webhooks.stream_url == "wss://n3.calls.example.com/n/n3/stream"
    for scheme in ("wss", "https"):
        signed = sign(f"{scheme}://n3.calls.example.com/n/n3/stream")
        assert webhooks.verify_upgrade("/n/n3/stream", signed)
    assert not webhooks.verify_upgrade("/n/n3/stream", sign(f"{ORIGIN}/n/n3/stream"))
    assert webhooks.url_of("/call-status") == f"{ORIGIN}/n/n3/call-status"


def test_a_simulation_on_this_machine_is_signed_without_tls():
    verifier = WebhookVerifier(TOKEN, "http://127.0.0.1:8080")

    assert verifier.verify_upgrade("/stream", sign("ws://127.0.0.1:8080/stream"))
    assert verifier.verify_signature(
        "/call-status", sign("http://127.0.0.1:8080/call-status", FORM), FORM
    )


CALL = "CA0123456789abcdef0123456789abcdef"
STATUS = {
    "CallSid": CALL,
    "AccountSid": "AC0123456789abcdef0123456789abcdef",
    "From": "+15550001111",
    "To": "+15550002222",
    "CallStatus": "completed",
    "SequenceNumber": "3",
    "CallDuration": "12",
    "Duration": "1",
    "SipResponseCode": "200",
    "Timestamp": "Mon, 16 Nov 2026 12:00:00 +0000",
    "CallbackSource": "call-progress-events",
    "SomethingNew": "x",
}


def test_a_status_callback_is_read():
    update = parse_status(STATUS)

    assert update == StatusUpdate(
        CALL,
        CallStatus.COMPLETED,
        3,
        {
            "duration_s": "12",
            "sip_response_code": "200",
            "timestamp": "Mon, 16 Nov 2026 12:00:00 +0000",
        },
    )


def test_a_status_callback_keeps_no_phone_number():
    assert "+1555" not in repr(parse_status(STATUS))


@pytest.mark.parametrize(
    "given",
    ["9" * 400, "9" * 5_000, "9999999", "-1", "1e9", "\N{ARABIC-INDIC DIGIT THREE}", "inf", "1.5"],
    ids=lambda given: given[:9],
)
def test_a_duration_that_is_none_is_left_out_and_the_status_counts(given):
    update = parse_status({**STATUS, "CallDuration": given})

    assert update.status is CallStatus(STATUS["CallStatus"])
    assert "duration_s" not in update.facts


def test_what_a_status_callback_adds_is_no_longer_than_it_may_be():
    update = parse_status({**STATUS, "ErrorMessage": "x" * 60_000})

    assert len(update.facts["error_message"]) == MAX_FACT_CHARS


def test_a_status_callback_without_a_number_is_the_only_one():
    assert parse_status({"CallSid": CALL, "CallStatus": "completed"}).sequence_number == 0


@pytest.mark.parametrize("status", list(CallStatus))
def test_every_status_is_understood(status):
    assert parse_status({**STATUS, "CallStatus": status.value}).status is status


@pytest.mark.parametrize(
    "changes",
    [
        {"CallSid": ""},
        {"CallSid": "C" * 65},
        {"CallSid": "CA1"},
        {"CallSid": CALL + "\n"},
        {"CallSid": CALL + "0"},
        {"CallSid": CALL[:-1] + "g"},
        {"CallSid": CALL[:-1] + "\u0661"},
        {"CallSid": "ca" + CALL[2:]},
        {"CallSid": CALL + "CallStatusringing"},
        {"CallStatus": ""},
        {"CallStatus": "answered"},
        {"SequenceNumber": ""},
        {"SequenceNumber": "-1"},
        {"SequenceNumber": "²"},
        {"SequenceNumber": "9" * 5000},
    ],
)
def test_a_status_callback_that_cannot_be_read_is_refused(changes):
    with pytest.raises(CarrierProtocolError, match="status callback"):
        parse_status({**STATUS, **changes})


def test_what_a_status_callback_adds_is_small_and_its_duration_a_number():
    update = parse_status({**STATUS, "ErrorMessage": "x" * 60_000, "CallDuration": "9" * 400})

    assert len(update.facts["error_message"]) <= 200
    assert "duration_s" not in update.facts


@given(st.dictionaries(st.sampled_from(sorted(STATUS)) | st.text(), st.text()))
def test_any_form_is_a_status_or_a_protocol_error(form):
    try:
        update = parse_status(form)
    except CarrierProtocolError:
        return
    assert update.call_sid == form["CallSid"]
