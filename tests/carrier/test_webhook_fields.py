"""What a voice webhook asks, and fields that were cut apart elsewhere than where Twilio's begin."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.carrier import CallStatus
from server.carrier.twilio.reports import (
    MAX_FACT_CHARS,
    MAX_SIP_HEADERS,
    check_fields,
    is_of_account,
    parse_voice,
)
from server.carrier.twilio.signature import other_addresses
from server.errors import CarrierProtocolError

ACCOUNT = "AC" + "a" * 32
CALL = "CA0123456789abcdef0123456789abcdef"
OTHER = "CA" + "f" * 32
VOICE = {
    "AccountSid": ACCOUNT,
    "ApiVersion": "2010-04-01",
    "CallSid": CALL,
    "CallStatus": "ringing",
    "Called": "+15005550006",
    "CallerName": "ACME ROCKETS",
    "Direction": "inbound",
    "From": "+13105551234",
    "FromCity": "LOS ANGELES",
    "To": "+15005550006",
}

# ------------------------------------------------------------------------------------------
# The voice webhook


def test_a_call_that_comes_in_begins_here():
    request = parse_voice(VOICE)

    assert (request.call_sid, request.number) == (CALL, "+13105551234")
    assert request.begins
    assert request.report is None


@pytest.mark.parametrize("status", ["queued", "initiated", "ringing", "in-progress"])
def test_a_call_that_is_not_over_may_begin(status):
    assert parse_voice({**VOICE, "CallStatus": status}).begins


@pytest.mark.parametrize("status", ["completed", "busy", "failed", "no-answer", "canceled"])
def test_a_call_that_is_over_begins_nowhere_and_is_a_report(status):
    request = parse_voice({**VOICE, "CallStatus": status, "CallDuration": "7"})

    assert not request.begins
    assert request.report is not None
    assert request.report.status is CallStatus(status)


@pytest.mark.parametrize(
    "changes",
    [
        {"Direction": "outbound-api"},
        {"Direction": "outbound-dial"},
        {"Direction": "trunking-originating"},
        {"Direction": "inbound" + "From+13105551234"},
        {"Direction": ""},
        {"CallStatus": "answered"},
        {"CallStatus": ""},
        {"CallbackSource": "call-progress-events"},
        {"SequenceNumber": "0"},
    ],
)
def test_anything_else_begins_no_call(changes):
    assert not parse_voice({**VOICE, **changes}).begins


@pytest.mark.parametrize("field", ["CallbackSource", "SequenceNumber"])
def test_a_status_callback_in_the_wrong_place_is_a_report_though_the_call_goes_on(field):
    request = parse_voice({**VOICE, "CallStatus": "in-progress", field: "1"})

    assert request.report is not None
    assert request.report.status is CallStatus.IN_PROGRESS


@pytest.mark.parametrize("call_sid", ["", "CA1", CALL + "0", CALL + "\n", "CA" + "g" * 32])
def test_a_voice_webhook_without_a_calls_sid_is_none(call_sid):
    with pytest.raises(CarrierProtocolError, match="CA and 32 hexadecimal digits"):
        parse_voice({**VOICE, "CallSid": call_sid})


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("+13105551234", "+13105551234"),
        ("+266696687", "+266696687"),
        ("sip:alice@example.com", "sip:alice@example.com"),
        ("client:alice", "client:alice"),
        ("anonymous", "anonymous"),
        ("12345", "12345"),
        ("+13105551234FromCityLOS ANGELES", ""),
        ("+1310555\n1234", ""),
        ("x" * 10_000, ""),
        ("", ""),
    ],
)
def test_who_calls_is_a_number_or_a_name_or_nobody(given, number):
    assert parse_voice({**VOICE, "From": given}).number == number


# ------------------------------------------------------------------------------------------
# Fields that were merged


@pytest.mark.parametrize(
    ("given", "called"),
    [
        ("+584125550001", "+584125550001"),
        ("sip:desk@example.sip.twilio.com", "sip:desk@example.sip.twilio.com"),
        ("a number with spaces", ""),
    ],
)
def test_which_of_our_numbers_is_called_is_told(given, called):
    assert parse_voice({**VOICE, "To": given}).called == called


def test_headers_of_a_sip_leg_are_passed_on_as_far_as_they_are_few_and_short():
    many = {f"SipHeader_X-{number}": "x" * 1_000 for number in range(100)}

    headers = parse_voice({**VOICE, "SipHeader_X-Customer": "17", **many}).headers

    assert headers["X-Customer"] == "17"
    assert len(headers) == MAX_SIP_HEADERS
    assert max(map(len, headers.values())) == MAX_FACT_CHARS


def cut(fields: dict[str, str], *cuts: tuple[str, str]) -> list[tuple[str, str]]:
    """Twilio's fields with others in place of some: each a pair of a name and a value."""
    return sorted([*((n, v) for n, v in fields.items() if n not in dict(cuts)), *cuts])


@pytest.mark.parametrize(
    "fields",
    [
        VOICE,
        {**VOICE, "ParentCallSid": OTHER, "DialCallSid": OTHER, "DialCallStatus": "completed"},
        {**VOICE, "AddOns": '{"status":"successful","results":{}}', "StirVerstat": "TN-A"},
        {**VOICE, "SipHeader_X-Original-CallSid": OTHER, "my_Direction": "inbound"},
        {**VOICE, "SomethingNew": "", "AnotherNewSid": "XX" + "0" * 32, "Empty": ""},
        {"CallSid": CALL, "From": "+13105551234", "CallStatus": "ringing"},
        {},
    ],
)
def test_twilios_own_fields_are_taken(fields):
    check_fields(fields.items())


@pytest.mark.parametrize(
    "fields",
    [
        cut({}, ("CallSid", CALL + "CallStatusringingCalled+15005550006")),
        cut({}, ("CallSi", f"d{CALL}CallStatusringing")),
        cut({}, (f"CallSid{CALL}", "")),
        cut({"CallSid": CALL}, ("CallStat", "uscompleted")),
        cut({"CallSid": CALL}, ("CallStatuscomple", "ted")),
        cut({"CallSid": CALL}, ("Dir", "ectionoutbound-apiFrom+1")),
        cut({"CallSid": OTHER}, ("Call", f"Sid{CALL}CallStatusringing")),
        cut({"CallSid": OTHER, "ApiVersion": "2010-04-01"}, ("ApiVersion2010-04-01CallSid", CALL)),
        cut({"CallSid": CALL}, ("Account", f"Sid{ACCOUNT}")),
        [("CallSid", CALL), ("CallSid", OTHER)],
        [("From", "+1"), ("From", "+2"), ("CallSid", CALL)],
        [("AccountSid", ACCOUNT), ("AccountSid", "AC" + "b" * 32)],
    ],
)
def test_fields_that_were_merged_or_are_there_twice_are_refused(fields):
    with pytest.raises(CarrierProtocolError, match="webhook"):
        check_fields(fields)


def test_a_field_that_says_the_same_twice_says_it_once():
    check_fields([("CallSid", CALL), ("CallSid", CALL)])


# A caller over SIP may write fields of another call into a header of their own.
WRITTEN = {**VOICE, "SipHeader_X-Note": f"CallSid{OTHER}CallStatusringingDirectioninboundTo"}
TEXT = "".join(name + value for name, value in sorted(VOICE.items()))
WRITTEN_TEXT = "".join(name + value for name, value in sorted(WRITTEN.items()))


@st.composite
def recut(draw, text: str) -> list[tuple[str, str]]:
    """The signed text as other fields: rightly signed, if their names are in order."""
    known = [text.find(name, at) for name in ("CallSid", "CallStatus", "Direction", "From")
             for at in (0, text.rfind(name))]  # fmt: skip
    places = st.sampled_from(
        sorted({place + length for place in known for length in (0, 4, 7, 9, 10, 41) if place >= 0})
    ) | st.integers(0, len(text))
    ends = sorted({0, len(text), *draw(st.lists(places, max_size=14))})
    pieces = [text[a:b] for a, b in pairwise(ends)]
    pieces += [""] * (len(pieces) % 2)
    return list(zip(pieces[::2], pieces[1::2], strict=True))


@pytest.mark.parametrize("text", [TEXT, WRITTEN_TEXT], ids=["ordinary", "written by a caller"])
def test_no_way_to_cut_a_signed_text_makes_it_another_call(text):
    @given(recut(text))
    @example([(TEXT[: TEXT.index("CallSid")], ""), ("CallSid", TEXT[TEXT.index("CallSid") + 7 :])])
    def try_cut(fields):
        form = dict(fields)
        if [name for name, _ in fields] != sorted(form):
            return  # the signature would be another one
        try:
            check_fields(fields)
            request = parse_voice(form)
        except CarrierProtocolError:
            return
        assert request.call_sid == CALL
        assert request.begins
        assert form["CallStatus"] == "ringing"

    try_cut()


# ------------------------------------------------------------------------------------------
# Whose account


@pytest.mark.parametrize(
    ("given", "ours", "right"),
    [
        ({"AccountSid": ACCOUNT}, ACCOUNT, True),
        ({"AccountSid": ACCOUNT.upper()}, ACCOUNT, True),
        ({}, ACCOUNT, True),
        ({"AccountSid": "AC" + "b" * 32}, ACCOUNT, False),
        ({"AccountSid": "AC1"}, ACCOUNT, False),
        ({"AccountSid": ACCOUNT}, "SK" + "c" * 32, True),  # which account that is, nobody knows
    ],
)
def test_a_webhook_is_about_our_account(given, ours, right):
    assert is_of_account(given, ours) is right


# ------------------------------------------------------------------------------------------
# Other addresses


@pytest.mark.parametrize(
    ("public_url", "headers", "signed_for"),
    [
        ("https://example.com", {}, "http://example.com/twiml?a=1"),
        ("https://example.com", {}, "https://www.example.com/twiml?a=1"),
        ("https://www.example.com", {}, "https://example.com/twiml?a=1"),
        ("https://example.com", {}, "https://example.com:443/twiml?a=1"),
        ("https://example.com:8443", {}, "https://example.com/twiml?a=1"),
        ("https://example.com", {"Host": "example.com:8443"}, "https://example.com:8443/twiml?a=1"),
        ("https://example.com", {"Host": "x.ngrok.app"}, "https://x.ngrok.app/twiml?a=1"),
        ("https://a.b", {"X-Forwarded-Host": "c.d, e.f"}, "http://e.f/twiml?a=1"),
        ("https://example.com/agents", {}, "https://example.com/twiml?a=1"),
        ("https://example.com/agents", {}, "https://example.com/agents/twiml?a=1"),
        (
            "https://example.com",
            {"X-Forwarded-Prefix": "/agents"},
            "https://example.com/agents/twiml?a=1",
        ),
        ("https://example.com", {}, "https://example.com/twiml/?a=1"),
        ("https://10.0.0.1:1", {"Host": "[::1]:80"}, "http://[::1]/twiml?a=1"),
    ],
)
def test_the_address_a_request_was_sent_to_is_thought_of(public_url, headers, signed_for):
    found = other_addresses(public_url, "/twiml?a=1", headers, ("https", "http"))

    assert signed_for in found


@given(st.lists(st.text(max_size=300), max_size=5), st.text(max_size=300))
def test_whatever_a_stranger_writes_there_are_few_and_plain_addresses(hosts, prefix):
    headers = {"X-Forwarded-Host": ",".join(hosts), "X-Forwarded-Prefix": prefix, "Host": "\n"}
    found = other_addresses("https://example.com/agents", "/x", headers, ("https", "http"))

    assert len(found) <= 250
    assert all(url.isascii() and url.isprintable() and len(url) < 1_000 for url in found)
