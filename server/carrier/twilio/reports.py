"""Twilio's webhooks, read: whose call, what is asked or reported, and whether it is said just once.

The signature is of the address and then of every name and value, sorted, with nothing in between
("Webhooks Security"). So a request may be cut into other fields than Twilio's and is rightly signed
all the same: a call's sid goes on with the fields that followed, a status that Twilio has sent is
hidden at the end of a name. What can be told by its form is therefore held to it, and what has such
a form must be a field's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from server.carrier import (
    MAX_CALL_SID_CHARS,
    AnsweredBy,
    CallStatus,
    MachineVerdict,
    ResumeRequest,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.errors import CarrierProtocolError

_HEX = "[0-9a-fA-F]{32}"
_CALL_SID = re.compile(f"CA{_HEX}")
_ACCOUNT_SID = re.compile(f"AC{_HEX}")
MAX_FACT_CHARS = 200
"""What else a status callback says is cut here; Twilio's error messages are shorter."""
MAX_SIP_HEADERS = 32
_SIP_HEADER = "SipHeader_"

# ------------------------------------------------------------------------------------------
# Fields


def check_call_sid(call_sid: str, of: str) -> str:
    """The sid of a call, if it is one.

    Args:
        call_sid: What was given for it.
        of: What it was given in, for the message.

    Raises:
        CarrierProtocolError: It is not ``CA`` and 32 hexadecimal digits, exactly.
    """
    if _CALL_SID.fullmatch(call_sid):
        return call_sid
    got = f"{call_sid[:40]!r}, of {len(call_sid)} characters" if call_sid else "nothing"
    raise CarrierProtocolError(
        f"{of} without a call's sid: it must be CA and 32 hexadecimal digits, and was {got}"
    )


# What Twilio says in fields that decide, by its form: nobody's name or city looks like that.
_TELLING = re.compile(
    f"(CallSid)(CA{_HEX})|(AccountSid)(AC{_HEX})|(CallStatus)({'|'.join(CallStatus)})"
    "|(Direction)(inbound|outbound)"
)
_NAME = re.compile(r"[A-Za-z_]{1,64}|SipHeader_[\x21-\x7e]{1,200}")
_DECIDING = frozenset(
    {
        *("AccountSid", "CallSid", "ParentCallSid", "CallStatus", "DialCallStatus", "Direction"),
        *("From", "To", "SequenceNumber", "CallbackSource", "CallDuration", "AnsweredBy"),
    }
)


def check_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Whether a webhook's fields can only be the ones that Twilio has signed.

    Args:
        fields: All of them, repeated ones too.

    Raises:
        CarrierProtocolError: A field that decides has two values, or stands in the middle of
            another one.
    """
    values: dict[str, set[str]] = {}
    for name, value in fields:
        values.setdefault(name, set()).add(value)
    for name in _DECIDING & values.keys():
        if len(values[name]) > 1:
            raise CarrierProtocolError(f"webhook with {len(values[name])} values of {name}")
    text, begins = "", {}
    for name in sorted(values):
        for value in sorted(values[name]):
            text += name
            begins[len(text)] = name, value
            text += value
    for match in _TELLING.finditer(text):
        label, told = (part for part in match.groups() if part is not None)
        name, value = begins.get(match.start() + len(label), ("", ""))
        is_whole = value == told or not label.endswith("Sid")
        if not (_NAME.fullmatch(name) and name.endswith(label) and is_whole):
            raise CarrierProtocolError(
                f"webhook whose fields were cut apart elsewhere than where they begin: {label} "
                "stands in the middle of another one"
            )


def is_of_account(fields: Mapping[str, str], account_sid: str) -> bool:
    """Whether a webhook is about our account, as far as it says.

    A subaccount signs with a token of its own, so what our token has signed names our account; and
    about another one's calls our requests would be refused.
    """
    given = fields.get("AccountSid", "")
    if not given or not _ACCOUNT_SID.fullmatch(account_sid):
        return True
    return given.lower() == account_sid.lower()


# ------------------------------------------------------------------------------------------
# The voice webhook

_ENDS = frozenset(status for status in CallStatus if status.is_final)
_UNANSWERED_OR_TALKING = frozenset(CallStatus) - _ENDS
# An E.164 number, a short code, a SIP address, a client's name, or a word such as "anonymous".
_PARTY = re.compile(
    r"\+?[0-9*#]{1,20}|sips?:[\x21-\x7e]{1,250}|client:[\x20-\x7e]{1,250}|[A-Za-z]{1,20}"
)


def parse_voice(form: Mapping[str, str]) -> VoiceRequest:
    """Read what is posted to the voice webhook: a question how a call goes on, or only a report.

    Where "A call comes in" and "Call status changes" were given one address, status callbacks come
    there, too: those have an end, a ``SequenceNumber`` or a ``CallbackSource`` in them, and a
    question has none of these.

    Raises:
        CarrierProtocolError: No call's sid, or a report that cannot be read.
    """
    call_sid = check_call_sid(form.get("CallSid", ""), "voice webhook")
    word = form.get("CallStatus", CallStatus.RINGING.value)
    report = None
    if word in _ENDS or "SequenceNumber" in form or "CallbackSource" in form:
        report = parse_status(form)
    number, called = form.get("From", ""), form.get("To", "")
    return VoiceRequest(
        call_sid,
        number if _PARTY.fullmatch(number) else "",
        begins=(
            report is None
            and form.get("Direction", "inbound") == "inbound"
            and word in _UNANSWERED_OR_TALKING
        ),
        report=report,
        called=called if _PARTY.fullmatch(called) else "",
        headers=_sip_headers(form),
    )


def _sip_headers(form: Mapping[str, str]) -> dict[str, str]:
    """What the headers of a SIP leg say, as Twilio passes them on ("SIP Interface")."""
    names = [name for name in form if name.startswith(_SIP_HEADER)][:MAX_SIP_HEADERS]
    return {name.removeprefix(_SIP_HEADER): form[name][:MAX_FACT_CHARS] for name in names}


def parse_resume(form: Mapping[str, str]) -> ResumeRequest:
    """Read what is posted when the document has come to its end, and the stream with it.

    Raises:
        CarrierProtocolError: No call's sid.
    """
    return ResumeRequest(check_call_sid(form.get("CallSid", ""), "resume webhook"))


# ------------------------------------------------------------------------------------------
# Status callbacks

# What a status callback may add, and what we call it. Numbers and places are left where they are.
_STATUS_FACTS = {
    "CallDuration": "duration_s",
    "SipResponseCode": "sip_response_code",
    "AnsweredBy": "answered_by",
    "Timestamp": "timestamp",
    "ErrorCode": "error_code",
    "ErrorMessage": "error_message",
}


def parse_status(form: Mapping[str, str]) -> StatusUpdate:
    """Read a status callback; fields it does not know are left alone, long ones are cut.

    A callback without a ``SequenceNumber`` has the number 0: Twilio leaves it out where it
    reports a call's end only, and one report needs no order.

    Raises:
        CarrierProtocolError: No call sid, or a status or a number that is none.
    """
    call_sid = check_call_sid(form.get("CallSid", ""), "status callback")
    word = form.get("CallStatus", "")
    number = form.get("SequenceNumber", "0")
    try:
        status = CallStatus(word)
    except ValueError:
        raise CarrierProtocolError(f"status callback with CallStatus {word[:40]!r}") from None
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise CarrierProtocolError(f"status callback with SequenceNumber {number[:40]!r}")
    facts = {
        name: form[field_name][:MAX_FACT_CHARS]
        for field_name, name in _STATUS_FACTS.items()
        if form.get(field_name)
    }
    if not is_count(facts.get("duration_s", "")):
        facts.pop("duration_s", None)
    return StatusUpdate(call_sid, status, int(number), facts)


def is_count(text: str) -> bool:
    """Whether a text is a whole number of no more digits than a call's seconds can have.

    A call lasts at most a day; machine detection, in milliseconds, at most a minute.
    """
    return text.isascii() and text.isdecimal() and len(text) <= 6


# ------------------------------------------------------------------------------------------
# Transfers and answering machines


def parse_transfer(form: Mapping[str, str]) -> TransferUpdate:
    """Read what is posted about a ``<Dial>``: its action, or the other number's own status.

    Raises:
        CarrierProtocolError: No call sid, or a status that is none.
    """
    wants_document = "DialCallStatus" in form
    call_sid = form.get("CallSid" if wants_document else "ParentCallSid", "")
    word = form.get("DialCallStatus" if wants_document else "CallStatus", "")
    check_call_sid(call_sid, "transfer callback")
    if word == "answered":  # of an action: its own word for a call that was connected
        word = "completed"
    try:
        status = CallStatus(word)
    except ValueError:
        raise CarrierProtocolError(f"transfer callback with status {word[:40]!r}") from None
    leg = form.get("DialCallSid" if wants_document else "CallSid", "")
    return TransferUpdate(call_sid, status, wants_document, leg[:MAX_CALL_SID_CHARS])


def parse_machine_verdict(form: Mapping[str, str]) -> MachineVerdict:
    """Read what asynchronous answering machine detection posts; a new word of it is "unknown".

    Raises:
        CarrierProtocolError: No call sid, or no verdict.
    """
    call_sid = check_call_sid(form.get("CallSid", ""), "machine detection callback")
    word = form.get("AnsweredBy", "")
    if not word:
        raise CarrierProtocolError("machine detection callback without AnsweredBy")
    try:
        answered_by = AnsweredBy(word)
    except ValueError:
        answered_by = AnsweredBy.UNKNOWN
    took_ms = form.get("MachineDetectionDuration", "")
    took_s = int(took_ms) / 1000 if is_count(took_ms) else 0.0
    return MachineVerdict(call_sid, answered_by, took_s)
