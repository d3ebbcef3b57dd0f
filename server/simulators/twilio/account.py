"""The account: its number, its calls, and the requests that place and change them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import trio
from werkzeug.datastructures import MultiDict

from server.simulators.phone import PhoneScript, find_script, new_sid
from server.simulators.twilio.call import (
    MAX_CALL_S,
    CallRequest,
    EndCall,
    GoOn,
    MachineDetection,
    SimulatedCall,
)
from server.simulators.twilio.documents import redirect_to
from server.simulators.twilio.faults import Faults, RequestFaults
from server.simulators.twilio.numbers import SimulatedNumbers
from server.simulators.twilio.people import People
from server.simulators.twilio.refusals import (
    ApiRefusal,
    check_numbers,
    is_http_url,
    read_seconds,
)

MAX_REQUESTS = 10_000
MAX_TWIML_CHARS = 4000  # Of the Twiml parameter; "Call resource".


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request of the REST API, whatever came of it."""

    at: float
    """``trio.current_time()``"""
    asked_at: str
    """The host and port that it names: who of several has been given which address is known."""
    what: str
    """``create``, ``update`` or ``fetch`` a call, or something else of the account."""
    call_sid: str
    """Which call it is about; "" for a new one."""
    status: int
    """What it was answered with."""


class SimulatedAccount:
    """One Twilio account with one phone number.

    Args:
        account_sid: What a client must show, with ``auth_token``.
        auth_token: Also signs webhooks and upgrades.
        phone_number: The account's number, E.164.
        people: Who answers.
        faults: What goes wrong.

    Attributes:
        calls: Every call by its sid, the oldest first.
        numbers: Those that calls come in by: its own one, and more if there are.
        status: How it stands, as Twilio puts it; with ``kind``, ``Full`` or ``Trial``.
        new_calls: Gives each call that has been placed, once, to whoever leads it.
        requests: The REST API's, the oldest first, and not more than some thousands.
        dial_requests: How many requests there were to place a call, without those answered 503.
    """

    def __init__(
        self, account_sid: str, auth_token: str, phone_number: str, people: People, faults: Faults
    ) -> None:
        self.account_sid = account_sid
        self.auth_token = auth_token
        self.phone_number = phone_number
        self.people = people
        self.numbers = SimulatedNumbers(account_sid)
        self.numbers.add(phone_number)
        self.status, self.kind = "active", "Full"
        self.calls: dict[str, SimulatedCall] = {}
        self.faults = faults
        self.requests: deque[ApiRequest] = deque(maxlen=MAX_REQUESTS)
        self._request_faults = RequestFaults(faults)
        # Unbounded: a REST request hands its call over and is answered at once.
        self._to_new_calls, self.new_calls = trio.open_memory_channel[SimulatedCall](math.inf)

    @property
    def dial_requests(self) -> int:
        """How many requests there were to place a call, without those answered 503."""
        return self._request_faults.dial_requests

    def misbehave(self, faults: Faults) -> None:
        """Have these faults from now on; what they fail is counted anew."""
        self.faults = faults
        self._request_faults = RequestFaults(faults)

    def may_ask(self, username: str | None, password: str | None) -> bool:
        """True if these are the account's credentials."""
        return username == self.account_sid and password == self.auth_token

    def dial_in(
        self,
        voice_url: str,
        *,
        from_number: str,
        to_number: str | None = None,
        script: str | PhoneScript | None = None,
        status_url: str | None = None,
    ) -> SimulatedCall:
        """Let somebody call the account's number.

        Args:
            voice_url: The number's voice webhook.
            from_number: Who calls.
            to_number: Another of the account's numbers.
            script: What they do when answered; without one, as if they had been called.
            status_url: The number's status callback; it is told of the call's end only.

        Raises:
            ValueError: There is no such script.
        """
        call = SimulatedCall(
            call_sid=new_sid("CA"),
            account_sid=self.account_sid,
            to=to_number or self.phone_number,
            from_number=from_number,
            direction="inbound",
            script=find_script(script) if script is not None else self.people.at(from_number),
            request=CallRequest(voice_url=voice_url, status_url=status_url),
        )
        self._begin(call)
        return call

    def ring(self, number: str, *, from_number: str, script: str | None = None) -> SimulatedCall:
        """Let somebody call one of the account's numbers, as its webhooks are set."""
        called = self.numbers.get(number)
        return self.dial_in(
            called.voice_url,
            from_number=from_number,
            to_number=number,
            script=script,
            status_url=called.status_url or None,
        )

    def create_call(self, form: MultiDict[str, str]) -> SimulatedCall:
        """Place a call.

        Raises:
            ApiRefusal: What is asked for is refused, with Twilio's code.
        """
        faults = self._request_faults
        faults.check_dial()
        to, from_number = form.get("To", ""), form.get("From", "")
        check_numbers(to, from_number, self.phone_number)
        call = SimulatedCall(
            call_sid=new_sid("CA"),
            account_sid=self.account_sid,
            to=to,
            from_number=from_number,
            direction="outbound-api",
            script=self.people.at(to),
            request=_read_request(form),
        )
        if faults.has_been_busy:
            call.note(f"placed at request {faults.dial_requests}")
        self._begin(call)
        return call

    def update_call(self, call_sid: str, form: MultiDict[str, str]) -> SimulatedCall:
        """End a call or let it go on with another document, and change how long it may last.

        Raises:
            ApiRefusal: There is no such call, it is over, or nothing sensible is asked for.
        """
        call = self.find_call(call_sid)
        try:
            self._request_faults.check_update()
        except ApiRefusal as refusal:
            call.note(f"update answered with {refusal.status}")
            raise
        if call.status.is_final:
            raise ApiRefusal(400, 21220, "Call is not in-progress. Cannot redirect.")
        status, twiml, url = form.get("Status"), form.get("Twiml"), form.get("Url")
        longest_s = call.request.time_limit_s
        longest_s = read_seconds(form, "TimeLimit", longest_s, maximum=MAX_CALL_S)
        if status == "completed":
            call.order(EndCall())
        elif status == "canceled":
            if call.answered_at is None:
                call.order(EndCall())
        elif status is not None:
            raise ApiRefusal(400, 20001, "Status must be completed or canceled.")
        elif (twiml is None) == (url is None) or not (twiml or is_http_url(url)):
            raise ApiRefusal(400, 20001, "Give one of Status, Twiml and Url.")
        elif call.answered_at is None:
            raise ApiRefusal(400, 21220, "Call is not in-progress. Cannot redirect.")
        elif twiml is not None:
            call.order(GoOn(twiml, ""))
        elif url is not None:
            call.order(GoOn(redirect_to(url), url))
        call.limit(longest_s)
        return call

    def find_call(self, call_sid: str) -> SimulatedCall:
        """Look a call up by its sid.

        Raises:
            ApiRefusal: There is none.
        """
        if call_sid not in self.calls:
            raise ApiRefusal(404, 20404, f"The requested resource {call_sid} was not found")
        return self.calls[call_sid]

    def _begin(self, call: SimulatedCall) -> None:
        self.calls[call.call_sid] = call
        self._to_new_calls.send_nowait(call)


def _read_request(form: MultiDict[str, str]) -> CallRequest:
    """How the call is to be led that a form asks for; raises ApiRefusal."""
    twiml, url = form.get("Twiml"), form.get("Url")
    if not twiml and not is_http_url(url):
        raise ApiRefusal(400, 21205, "Url is not a valid URL, and there is no Twiml.")
    if twiml and len(twiml) > MAX_TWIML_CHARS:
        raise ApiRefusal(400, 20001, f"Twiml is longer than {MAX_TWIML_CHARS} characters.")
    status_url = form.get("StatusCallback")
    if status_url and not is_http_url(status_url):
        raise ApiRefusal(400, 21609, "Invalid 'StatusCallback' URL.")
    return CallRequest(
        twiml=twiml,
        voice_url=url,
        status_url=status_url,
        status_events=frozenset(form.getlist("StatusCallbackEvent") or ["completed"]),
        detection=_read_detection(form),
        ring_timeout_s=read_seconds(form, "Timeout", 60.0, maximum=600.0),
        time_limit_s=read_seconds(form, "TimeLimit", MAX_CALL_S, maximum=MAX_CALL_S),
    )


def _read_detection(form: MultiDict[str, str]) -> MachineDetection | None:
    url, mode = form.get("AsyncAmdStatusCallback"), form.get("MachineDetection", "")
    if mode not in ("", "Enable", "DetectMessageEnd"):
        raise ApiRefusal(400, 20001, "MachineDetection must be Enable or DetectMessageEnd.")
    if mode and form.get("AsyncAmd") != "true":
        raise ApiRefusal(400, 20001, "Only asynchronous AMD is simulated.")
    if url and not is_http_url(url):
        raise ApiRefusal(400, 21609, "Invalid 'AsyncAmdStatusCallback' URL.")
    timeout_s = read_seconds(form, "MachineDetectionTimeout", 30.0, maximum=59.0)
    return MachineDetection(url, mode, timeout_s) if mode and url is not None else None
