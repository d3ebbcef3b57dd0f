"""Twilio's webhooks as the server sees them: where each is, what it says, and the TwiML back."""

from __future__ import annotations

import pytest
from werkzeug.datastructures import Headers, MultiDict

from server.carrier import CallStatus, MachineVerdict, StatusUpdate, TransferUpdate, VoiceRequest
from server.carrier.twilio.webhooks import MACHINE, RESUME, STATUS, TRANSFER, VOICE, TwilioWebhooks
from server.carrier.webhooks import (
    ConnectStream,
    Document,
    EndCall,
    RefuseCall,
    SayAndEndCall,
)
from server.errors import CarrierProtocolError
from server.settings.values import WEBHOOK_PATHS

ACCOUNT = "AC" + "a" * 32
CALL = "CA" + "1" * 32
XML = '<?xml version="1.0" encoding="UTF-8"?>'


@pytest.fixture
def webhooks() -> TwilioWebhooks:
    return TwilioWebhooks(ACCOUNT, "secret", "https://phone.example/agents/")


@pytest.mark.parametrize(
    ("reply", "twiml"),
    [
        (
            ConnectStream("t1"),
            '<Connect><Stream url="wss://phone.example/agents/stream">'
            '<Parameter name="ticket" value="t1" /></Stream></Connect>'
            '<Redirect method="POST">https://phone.example/agents/resume'
            "#rc=5&amp;rp=ct,rt,5xx&amp;ct=2000&amp;rt=3000</Redirect>",
        ),
        (RefuseCall(), '<Reject reason="busy" />'),
        (EndCall(), "<Hangup />"),
        (SayAndEndCall("Bye & on", "en-GB"), '<Say language="en-GB">Bye &amp; on</Say><Hangup />'),
    ],
)
def test_a_reply_is_written_as_twilio_reads_it(webhooks, reply, twiml):
    assert webhooks.write(reply) == Document(f"{XML}<Response>{twiml}</Response>", "text/xml")


def test_the_addresses_about_a_call_of_one_process_of_several_name_it():
    webhooks = TwilioWebhooks(ACCOUNT, "s", "https://phone.example", at="/n/3")

    assert webhooks.stream_url == "wss://phone.example/n/3/stream"
    assert [webhooks.url_of(path) for path in (STATUS, MACHINE, TRANSFER)] == [
        f"https://phone.example/n/3{path}" for path in (STATUS, MACHINE, TRANSFER)
    ]


def test_what_is_asked_about_a_call_whose_process_may_be_gone_names_nobody():
    webhooks = TwilioWebhooks(ACCOUNT, "s", "https://phone.example", at="/n/3")

    assert webhooks.url_of(RESUME) == "https://phone.example/resume"
    assert webhooks.url_of(VOICE) == "https://phone.example/twiml"
    assert "https://phone.example/resume#" in webhooks.twiml(ConnectStream("ticket"))


@pytest.mark.parametrize("wanted", [False, True])
def test_twilio_filters_noise_before_the_stream_where_that_is_wanted(wanted):
    webhooks = TwilioWebhooks(ACCOUNT, "s", "https://phone.example", filters_noise=wanted)

    twiml = webhooks.twiml(ConnectStream("t1"))

    asked = '<Response><Start><MediaFilter filterType="noise" /></Start><Connect><Stream '
    assert (asked in twiml) is wanted


def test_another_address_counts_from_the_next_call_on(webhooks):
    webhooks.reach_at("https://other.example/")

    assert webhooks.url_of(STATUS) == "https://other.example/call-status"
    assert webhooks.stream_url == "wss://other.example/stream"


@pytest.mark.parametrize(
    ("path", "fields", "kind"),
    [
        (VOICE, {"CallStatus": "ringing"}, VoiceRequest),
        (STATUS, {"CallStatus": "ringing"}, StatusUpdate),
        (MACHINE, {"AnsweredBy": "human"}, MachineVerdict),
        (TRANSFER, {"DialCallStatus": "busy"}, TransferUpdate),
    ],
)
def test_each_path_has_its_own_reading(webhooks, path, fields, kind):
    assert type(webhooks.read(path, {"CallSid": CALL, **fields})) is kind
    assert path in webhooks.paths


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"CallStatus": "ringing"}, VOICE),
        ({"CallStatus": "ringing", "SequenceNumber": "1"}, STATUS),
        ({"CallStatus": "completed", "CallDuration": "5"}, STATUS),
        ({"CallStatus": "ringing", "CallbackSource": "call-progress-events"}, STATUS),
        ({"CallStatus": "in-progress", "DialCallStatus": "busy"}, TRANSFER),
        ({"CallStatus": "ringing", "ParentCallSid": CALL, "SequenceNumber": "1"}, TRANSFER),
        ({"AnsweredBy": "human", "MachineDetectionDuration": "2000"}, MACHINE),
    ],
)
def test_the_path_that_was_meant_is_told_by_what_a_request_says(webhooks, fields, path):
    assert webhooks.path_for({"CallSid": CALL, **fields}) == path


@pytest.mark.parametrize(
    ("headers", "is_signed"),
    [
        ([], False),
        ([("X-Twilio-Signature", "a")], True),
        ([("X-Twilio-Signature", "a"), ("X-Twilio-Signature", "b")], False),
    ],
)
def test_a_request_with_one_signature_claims_to_be_twilios(webhooks, headers, is_signed):
    assert webhooks.is_signed(Headers(headers)) is is_signed


def test_fields_are_checked_with_all_their_values(webhooks):
    webhooks.check(MultiDict([("CallSid", CALL), ("CallSid", CALL)]))

    with pytest.raises(CarrierProtocolError):
        webhooks.check(MultiDict([("CallSid", CALL), ("CallSid", "CA" + "2" * 32)]))


def test_a_webhook_of_another_account_is_not_ours(webhooks):
    assert webhooks.is_ours({"AccountSid": ACCOUNT})
    assert not webhooks.is_ours({"AccountSid": "AC" + "b" * 32})


@pytest.mark.parametrize(
    ("fields", "update"),
    [
        (
            {"CallSid": CALL, "DialCallStatus": "answered"},
            TransferUpdate(CALL, CallStatus.COMPLETED, wants_document=True),
        ),
        (
            {"CallSid": CALL, "DialCallStatus": "busy", "DialCallSid": "CA" + "2" * 32},
            TransferUpdate(CALL, CallStatus.BUSY, wants_document=True, leg="CA" + "2" * 32),
        ),
        (
            {"CallSid": "CA" + "2" * 32, "ParentCallSid": CALL, "CallStatus": "in-progress"},
            TransferUpdate(CALL, CallStatus.IN_PROGRESS, wants_document=False, leg="CA" + "2" * 32),
        ),
    ],
)
def test_a_transfer_is_of_the_callers_own_call(webhooks, fields, update):
    assert webhooks.read(TRANSFER, fields) == update


@pytest.mark.parametrize(
    ("took_ms", "took_s"), [("2400", 2.4), ("", 0.0), ("-5", 0.0), ("9" * 400, 0.0)]
)
def test_how_long_machine_detection_took_is_read_in_seconds(webhooks, took_ms, took_s):
    fields = {"CallSid": CALL, "AnsweredBy": "machine_start", "MachineDetectionDuration": took_ms}

    assert webhooks.read(MACHINE, fields) == MachineVerdict(CALL, "machine_start", took_s)


def test_a_public_address_that_ends_like_a_webhook_is_known_for_a_mistake():
    assert {*TwilioWebhooks.paths} <= {*WEBHOOK_PATHS}
