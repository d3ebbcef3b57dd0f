"""A small Twilio on loopback: REST, signed webhooks, TwiML, media streams, people who answer.

The server talks to it with the same client code as to the real one and is called back over real
HTTP and WebSocket connections. What it says follows Twilio's public documentation; whom it calls
is a script of ``phone.py``.
"""

from __future__ import annotations

import base64
import hmac
import math
import re
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import httpx2
import trio
from hypercorn.config import Config
from hypercorn.utils import wrap_app
from quart import Response, jsonify, request
from quart_trio import QuartTrio
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.trio.client import ClientConnection, connect
from werkzeug.datastructures import MultiDict

from server.carrier import CallStatus
from server.errors import StreamEnded
from server.hooks.hypercorn_worker import serve_worker
from server.settings.values import is_loopback
from server.simulators.phone import (
    Script,
    SimulatedPhone,
    StreamEnd,
    find_script,
    new_sid,
    two_channel_wav,
)

SCRIPT_NUMBERS = {
    "5550101": "talks",
    "5550102": "interrupts",
    "5550103": "hangs-up",
    "5550104": "busy",
    "5550105": "no-answer",
    "5550106": "drops",
    "5550107": "garbage",
    "5550108": "never-hangs-up",
    "5550109": "fails",
    "5550110": "silent",
    "5550111": "oversized",
    "5550112": "vanishes",
    "5550113": "says-hello",
    "5550114": "coughs",
    "5550115": "echoing-speakerphone",
    "5550116": "asks-and-waits",
    "5550117": "asks-once",
    "5550118": "voicemail",
    "5550119": "taken-for-a-machine",
    "5550120": "asks-patiently",
}
"""Who answers a number that ends like this: 555-0100 to 555-0199 are kept free for fiction."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on Twilio's side; by default nothing."""

    callback_delay_s: float = 0.0
    """How much later than what they tell status callbacks come."""
    callback_copies: int = 1
    """How often each is posted; with more than one, all come once more at the end, last first."""
    callbacks: bool = True
    """Whether status callbacks are posted at all."""
    busy_for_s: float | None = None
    """From the first request to place a call on, all are answered 429 for so long, with the rest of
    it in ``Retry-After``."""
    failed_dials: int = 0
    """Requests to place a call that are answered 503 before one is taken."""
    failed_updates: int = 0
    """The same of requests to end a call or to send it another document."""


FAULTS: Mapping[str, Faults] = {
    "healthy": Faults(),
    "late-callbacks": Faults(callback_delay_s=3.0),
    "duplicate-callbacks": Faults(callback_copies=3),
    "no-callbacks": Faults(callbacks=False),
    "too-many-requests": Faults(busy_for_s=2.0),
    "twilio-5xx": Faults(failed_updates=2),
    "twilio-5xx-dial": Faults(failed_dials=1),
}
"""By the name the settings know them under."""

WEBHOOK_TIMEOUT_S = 15.0  # "Webhooks: connection overrides": what Twilio waits in total.
CONNECT_TIMEOUT_S = 5.0
MAX_TWIML_CHARS = 4000  # Of the Twiml parameter; "Call resource".
AMD_AFTER_BEEP_S = 0.4
"""How long after the beep the verdict comes."""
MAX_CALL_S = 14_400.0  # Twilio's default TimeLimit, four hours.
_E164 = re.compile(r"\+[1-9]\d{6,14}")

# ------------------------------------------------------------------------------------------
# Signatures ("Webhooks Security")


def sign(url: str, auth_token: str, fields: Mapping[str, Sequence[str]] | None = None) -> str:
    """Make the ``X-Twilio-Signature`` of a request.

    Args:
        url: As it was configured; a fragment is not sent and not signed.
        auth_token: The account's secret.
        fields: The form of a POST, every value of every name; None for a GET or an upgrade.
    """
    text = url.partition("#")[0] + "".join(
        name + value
        for name, values in sorted((fields or {}).items())
        for value in sorted(set(values))
    )
    digest = hmac.digest(auth_token.encode(), text.encode(), "sha1")
    return base64.b64encode(digest).decode()


# ------------------------------------------------------------------------------------------
# Calls


@dataclass(frozen=True, slots=True)
class _GoOn:
    """Told over REST: leave what you are doing and do this document instead."""

    document: str
    base_url: str


@dataclass(frozen=True, slots=True)
class _EndCall:
    """Told over REST, or by the clock: hang up."""


@dataclass(slots=True)
class SimulatedCall:
    """One call as this Twilio sees it; everything stays readable after its end."""

    call_sid: str
    account_sid: str
    to: str
    from_number: str
    direction: str
    script: Script
    status: CallStatus = CallStatus.QUEUED
    phones: list[SimulatedPhone] = field(default_factory=list, repr=False)
    """One for each media stream the call had, usually one."""
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """What happened besides speech, in seconds from the call's creation, for people to read."""
    reports: list[tuple[CallStatus, int | None]] = field(default_factory=list)
    """Status callbacks in order, each with the HTTP status it was answered with."""
    recording_path: Path | None = None
    created_at: float = field(default_factory=trio.current_time)
    answered_at: float | None = None
    """``trio.current_time()`` when the callee picked up."""
    ended_at: float | None = None

    _ended: trio.Event = field(default_factory=trio.Event)
    _changed: trio.Event = field(default_factory=trio.Event)
    _order: _GoOn | _EndCall | None = None
    _ordered: trio.Event = field(default_factory=trio.Event)
    _status_url: str | None = None
    _status_events: frozenset[str] = frozenset({"completed"})
    _ring_timeout_s: float = 60.0
    _time_limit_s: float = MAX_CALL_S
    answered_by: str | None = None
    """What answering machine detection has said, if it was asked for."""
    _amd_url: str | None = None
    _amd_mode: str = ""
    _amd_timeout_s: float = 30.0
    _twiml: str | None = None
    _voice_url: str | None = None
    _created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def phone(self) -> SimulatedPhone:
        """The callee's phone on the latest stream.

        Raises:
            LookupError: No stream was opened (yet).
        """
        if not self.phones:
            raise LookupError(f"call {self.call_sid} has no media stream")
        return self.phones[-1]

    @property
    def said(self) -> bytes:
        """Mu-law the callee said on the latest stream, from its start."""
        return bytes(self.phone.said)

    @property
    def heard(self) -> bytes:
        """Mu-law the callee heard on the latest stream, from its start."""
        return self.phone.heard

    @property
    def bytes_after_clear(self) -> int:
        """Agent audio of cut turns, sent after their clear, on all streams."""
        return sum(phone.bytes_after_clear for phone in self.phones)

    @property
    def duration_s(self) -> float:
        """From answer to end, 0 if it was not answered; up to now if it is not over."""
        if self.answered_at is None:
            return 0.0
        return (self.ended_at or trio.current_time()) - self.answered_at

    async def wait_ended(self) -> None:
        """Wait until the call is over, its last status is reported and its recording written."""
        await self._ended.wait()

    async def wait_status(self, *statuses: CallStatus) -> CallStatus:
        """Wait until the call has one of these statuses, or is over; returns its status."""
        while self.status not in statuses and not self.status.is_final:
            await self._changed.wait()
        return self.status

    async def wait_stream(self) -> SimulatedPhone:
        """Wait until a media stream is open.

        Raises:
            LookupError: The call ended without one.
        """
        while not self.phones and not self.status.is_final:
            await self._changed.wait()
        return self.phone

    def note(self, what: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append((trio.current_time() - self.created_at, what))

    def _set_status(self, status: CallStatus) -> None:
        self.status = status
        self.note(status.value)
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _tell(self, order: _GoOn | _EndCall) -> None:
        if isinstance(self._order, _EndCall):
            return
        self._order = order
        self._ordered.set()
        if self.phones:
            self.phone.stop()

    def _take_document(self) -> _GoOn | None:
        """The document told over REST, once; a call told to end stays told."""
        if isinstance(self._order, _GoOn):
            order, self._order, self._ordered = self._order, None, trio.Event()
            return order
        return None

    async def _pause(self, duration_s: float) -> None:
        """Let time pass unless told something over REST."""
        with trio.move_on_after(duration_s):
            await self._ordered.wait()


class _Leave(Exception):
    """Leave the document: the call is over, or goes on with another one."""


# ------------------------------------------------------------------------------------------
# The WebSocket


class WebSocketTransport:
    """A :class:`server.simulators.phone.PhoneTransport` over a WebSocket this side has opened."""

    def __init__(
        self, websocket: ClientConnection, inbox: trio.MemoryReceiveChannel[str | bytes]
    ) -> None:
        self._websocket = websocket
        self._inbox = inbox

    @property
    def closed_by_peer(self) -> tuple[int, str] | None:
        """Close code and reason of the other side, 1006 if it just went; None while open."""
        if self._websocket.close_code is None:
            return None
        return self._websocket.close_code, self._websocket.close_reason or ""

    async def receive(self) -> str | bytes:
        """Wait for the next message; raises StreamEnded after the last one."""
        try:
            return await self._inbox.receive()
        except trio.EndOfChannel:
            raise StreamEnded("the socket is closed") from None

    def receive_nowait(self) -> str | bytes | None:
        """The next message if it is already here; raises StreamEnded after the last one."""
        try:
            return self._inbox.receive_nowait()
        except trio.WouldBlock:
            return None
        except trio.EndOfChannel:
            raise StreamEnded("the socket is closed") from None

    async def send(self, text: str | bytes) -> None:
        """Send a text or binary frame; raises StreamEnded when the socket is closed."""
        try:
            await self._websocket.send(text)
        except ConnectionClosed as error:
            raise StreamEnded("the socket is closed") from error

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket; closing again does nothing."""
        await self._websocket.aclose(code, reason)

    async def abort(self) -> None:
        """Let the TCP connection go without a close frame."""
        await trio.aclose_forcefully(self._websocket.stream)


@cache
def _tls(*, is_here: bool) -> ssl.SSLContext:
    """What a server's certificate is verified by.

    A server on this machine need not have one that anybody vouches for: it is our own. To read
    all the certificates there are takes as long as a call.
    """
    if not is_here:
        return httpx2.create_ssl_context(trust_env=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _webhook_client(*, is_here: bool) -> httpx2.AsyncClient:
    """A client that makes a connection for each webhook.

    An idle one may be closed just as it is used again.
    """
    return httpx2.AsyncClient(
        timeout=WEBHOOK_TIMEOUT_S,
        trust_env=False,
        verify=_tls(is_here=is_here),
        limits=httpx2.Limits(max_keepalive_connections=0),
    )


@asynccontextmanager
async def open_websocket(url: str, signature: str) -> AsyncGenerator[WebSocketTransport]:
    """Connect to a media stream server as Twilio does.

    Raises:
        OSError, InvalidHandshake, InvalidURI, TimeoutError: It cannot be reached or says no.
    """
    async with connect(
        url,
        ssl=_tls(is_here=is_loopback(url)) if urlsplit(url).scheme == "wss" else None,
        additional_headers={"X-Twilio-Signature": signature},
        user_agent_header="Twilio.TmeWs/1.0",
        compression=None,
        proxy=None,
        open_timeout=CONNECT_TIMEOUT_S,
        close_timeout=1.0,
        ping_interval=None,
        max_size=16 * 2**20,
    ) as websocket:
        # A task of its own takes messages off the socket, because only then can one ask
        # whether something has come. The bound is what a burst of the server's may be ahead.
        to_inbox, inbox = trio.open_memory_channel[str | bytes](1024)

        async def read() -> None:
            with to_inbox, suppress(ConnectionClosed):
                while True:  # no generator, which a cancelled task would leave behind
                    await to_inbox.send(await websocket.recv())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            yield WebSocketTransport(websocket, inbox)
            nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------
# The simulator


class TwilioSimulator:
    """One Twilio account with one phone number, on loopback.

    Args:
        account_sid: What a client must show, with ``auth_token``.
        auth_token: Also signs webhooks and upgrades.
        phone_number: The account's number, E.164.
        script: Who answers if the number called does not say: a script or its name.
        scripts_by_ending: Who answers numbers with these last digits.
        ring_s: How long phones ring, instead of what their scripts say.
        recordings_dir: Where a two-channel WAV of each call is written (left said, right heard);
            None writes none.
        dial_s: How long the two sides of a ``<Dial>`` talk.
        faults: What goes wrong.

    Attributes:
        calls: Every call by its sid, the oldest first.
        api_url: Base URL of the REST API, once it runs.

    Raises:
        ValueError: There is no such script.
    """

    def __init__(
        self,
        *,
        account_sid: str,
        auth_token: str,
        phone_number: str,
        script: str | Script = "talks",
        scripts_by_ending: Mapping[str, str | Script] = SCRIPT_NUMBERS,
        ring_s: float | None = None,
        recordings_dir: Path | None = None,
        dial_s: float = 2.0,
        faults: Faults = FAULTS["healthy"],
    ) -> None:
        self.account_sid = account_sid
        self.phone_number = phone_number
        self.calls: dict[str, SimulatedCall] = {}
        self.api_url = ""
        self._auth_token = auth_token
        self._script = find_script(script)
        self._scripts_by_ending = {
            ending: find_script(named) for ending, named in scripts_by_ending.items()
        }
        self._ring_s = ring_s
        self._recordings_dir = recordings_dir
        self._dial_s = dial_s
        self._faults = faults
        self._failed_dials = self._failed_updates = 0
        self._dial_requests = 0
        self._busy_until: float | None = None
        # Unbounded: a REST request hands its call over and is answered at once.
        self._to_new_calls, self._new_calls = trio.open_memory_channel[SimulatedCall](math.inf)

    async def run(
        self,
        *,
        port: int = 0,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; ``nursery.start`` returns the API's base URL.

        Raises:
            OSError: The port is taken.
        """
        config = Config()
        config.bind = [f"127.0.0.1:{port}"]
        config.errorlog = None
        config.graceful_timeout = 0.1
        api = wrap_app(_make_api(self), config.wsgi_max_body_size, "asgi")
        async with (
            _webhook_client(is_here=False) as self._http,
            _webhook_client(is_here=True) as self._http_here,
            trio.open_nursery() as nursery,
        ):
            (self.api_url,) = await nursery.start(serve_worker, api, config)
            task_status.started(self.api_url)
            async for call in self._new_calls:
                nursery.start_soon(self._live, call)

    def dial_in(
        self,
        voice_url: str,
        *,
        from_number: str,
        script: str | Script | None = None,
        status_url: str | None = None,
    ) -> SimulatedCall:
        """Let somebody call the account's number.

        Args:
            voice_url: The number's voice webhook.
            from_number: Who calls.
            script: What they do when answered; without one, as if they had been called.
            status_url: The number's status callback; it is told of the call's end only.

        Raises:
            ValueError: There is no such script.
        """
        call = SimulatedCall(
            call_sid=new_sid("CA"),
            account_sid=self.account_sid,
            to=self.phone_number,
            from_number=from_number,
            direction="inbound",
            script=find_script(script) if script is not None else self._script_of(from_number),
            _voice_url=voice_url,
            _status_url=status_url,
        )
        self._begin(call)
        return call

    # Requests of the REST API; the routes are at the end of the file.

    def create_call(self, form: MultiDict[str, str]) -> SimulatedCall:
        """Place a call.

        Raises:
            ApiRefusal: What is asked for is refused, with Twilio's code.
        """
        if self._failed_dials < self._faults.failed_dials:
            self._failed_dials += 1
            raise ApiRefusal(503, 20503, "Service unavailable")
        self._dial_requests += 1
        if self._faults.busy_for_s is not None:
            now = trio.current_time()
            if self._busy_until is None:
                self._busy_until = now + self._faults.busy_for_s
            if now < self._busy_until:
                wait_s = math.ceil(self._busy_until - now)
                raise ApiRefusal(429, 20429, "Too many requests", retry_after_s=wait_s)
        to, from_number = form.get("To", ""), form.get("From", "")
        self._check_numbers(to, from_number)
        twiml, url = form.get("Twiml"), form.get("Url")
        if not twiml and not _is_http_url(url):
            raise ApiRefusal(400, 21205, "Url is not a valid URL, and there is no Twiml.")
        if twiml and len(twiml) > MAX_TWIML_CHARS:
            raise ApiRefusal(400, 20001, f"Twiml is longer than {MAX_TWIML_CHARS} characters.")
        status_url = form.get("StatusCallback")
        if status_url and not _is_http_url(status_url):
            raise ApiRefusal(400, 21609, "Invalid 'StatusCallback' URL.")
        amd_url, amd_mode = form.get("AsyncAmdStatusCallback"), form.get("MachineDetection", "")
        if amd_mode not in ("", "Enable", "DetectMessageEnd"):
            raise ApiRefusal(400, 20001, "MachineDetection must be Enable or DetectMessageEnd.")
        if amd_mode and form.get("AsyncAmd") != "true":
            raise ApiRefusal(400, 20001, "Only asynchronous AMD is simulated.")
        if amd_url and not _is_http_url(amd_url):
            raise ApiRefusal(400, 21609, "Invalid 'AsyncAmdStatusCallback' URL.")
        call = SimulatedCall(
            call_sid=new_sid("CA"),
            account_sid=self.account_sid,
            to=to,
            from_number=from_number,
            direction="outbound-api",
            script=self._script_of(to),
            _twiml=twiml,
            _voice_url=url,
            _status_url=status_url,
            _status_events=frozenset(form.getlist("StatusCallbackEvent") or ["completed"]),
            _amd_url=amd_url if amd_mode else None,
            _amd_mode=amd_mode,
            _amd_timeout_s=_seconds(form, "MachineDetectionTimeout", 30.0, maximum=59.0),
            _ring_timeout_s=_seconds(form, "Timeout", 60.0, maximum=600.0),
            _time_limit_s=_seconds(form, "TimeLimit", MAX_CALL_S, maximum=MAX_CALL_S),
        )
        if self._busy_until is not None:
            call.note(f"placed at request {self._dial_requests}")
        self._begin(call)
        return call

    def update_call(self, call_sid: str, form: MultiDict[str, str]) -> SimulatedCall:
        """End a call or let it go on with another document.

        Raises:
            ApiRefusal: There is no such call, it is over, or nothing sensible is asked for.
        """
        call = self.find_call(call_sid)
        if self._failed_updates < self._faults.failed_updates:
            self._failed_updates += 1
            call.note("update answered with 503")
            raise ApiRefusal(503, 20503, "Service unavailable")
        if call.status.is_final:
            raise ApiRefusal(400, 21220, "Call is not in-progress. Cannot redirect.")
        status, twiml, url = form.get("Status"), form.get("Twiml"), form.get("Url")
        if status == "completed":
            call._tell(_EndCall())
        elif status == "canceled":
            if call.answered_at is None:
                call._tell(_EndCall())
        elif status is not None:
            raise ApiRefusal(400, 20001, "Status must be completed or canceled.")
        elif (twiml is None) == (url is None) or not (twiml or _is_http_url(url)):
            raise ApiRefusal(400, 20001, "Give one of Status, Twiml and Url.")
        elif call.answered_at is None:
            raise ApiRefusal(400, 21220, "Call is not in-progress. Cannot redirect.")
        elif twiml is not None:
            call._tell(_GoOn(twiml, ""))
        elif url is not None:
            call._tell(_GoOn(_redirect_to(url), url))
        return call

    def find_call(self, call_sid: str) -> SimulatedCall:
        """A call by its sid.

        Raises:
            ApiRefusal: There is none.
        """
        if call_sid not in self.calls:
            raise ApiRefusal(404, 20404, f"The requested resource {call_sid} was not found")
        return self.calls[call_sid]

    def may_ask(self, username: str | None, password: str | None) -> bool:
        """Whether these are the account's credentials."""
        return username == self.account_sid and password == self._auth_token

    def _check_numbers(self, to: str, from_number: str) -> None:
        if not to:
            raise ApiRefusal(400, 21201, "No 'To' number is specified")
        if not from_number:
            raise ApiRefusal(400, 21213, "No 'From' number is specified")
        if from_number == "+15005550001":
            raise ApiRefusal(400, 21212, "The 'From' number is not a valid phone number.")
        if from_number != self.phone_number:
            raise ApiRefusal(400, 21210, "The 'From' number is not verified for your account.")
        if to in _MAGIC_NUMBERS:
            raise ApiRefusal(400, *_MAGIC_NUMBERS[to])
        if not _E164.fullmatch(to):
            raise ApiRefusal(400, 21211, f"The phone number you are calling, {to}, is not valid.")

    def _script_of(self, number: str) -> Script:
        for ending, script in self._scripts_by_ending.items():
            if number.endswith(ending):
                return script
        return self._script

    def _begin(self, call: SimulatedCall) -> None:
        self.calls[call.call_sid] = call
        self._to_new_calls.send_nowait(call)

    # One call.

    async def _live(self, call: SimulatedCall) -> None:
        """One call from ringing to its recording."""
        # Unbounded: a slow webhook delays the reports after it, never the call.
        to_reports, reports = trio.open_memory_channel[_Report](math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._post_reports, call, reports)
            with to_reports:
                reporter = _Reporter(call, to_reports)
                final = await (
                    self._take_in(call)
                    if call.direction == "inbound"
                    else self._ring_out(call, reporter)
                )
                call.ended_at = trio.current_time()
                reporter.report(final, "completed")
        await self._record(call)
        call._ended.set()

    async def _ring_out(self, call: SimulatedCall, reporter: _Reporter) -> CallStatus:
        reporter.report(CallStatus.INITIATED, "initiated")
        reporter.report(CallStatus.RINGING, "ringing")
        rings_s = call.script.ring_s if self._ring_s is None else self._ring_s
        await call._pause(min(rings_s, call._ring_timeout_s))
        if isinstance(call._order, _EndCall):
            return CallStatus.CANCELED
        if rings_s > call._ring_timeout_s:
            return CallStatus.NO_ANSWER
        if call.script.outcome is not CallStatus.IN_PROGRESS:
            return call.script.outcome
        call.answered_at = trio.current_time()
        reporter.report(CallStatus.IN_PROGRESS, "answered")
        if call._twiml:
            await self._follow(call, call._twiml, "")
        else:
            assert call._voice_url is not None  # create_call wants one of the two
            await self._follow(call, _redirect_to(call._voice_url), call._voice_url)
        return CallStatus.COMPLETED

    async def _take_in(self, call: SimulatedCall) -> CallStatus:
        assert call._voice_url is not None  # dial_in wants one
        call._set_status(CallStatus.RINGING)
        document = await self._fetch(call, call._voice_url)
        if document is None:
            return CallStatus.FAILED
        verbs = _parse_twiml(document)
        if verbs and verbs[0].tag == "Reject":
            call.note("rejected")
            busy = verbs[0].get("reason") == "busy"
            return CallStatus.BUSY if busy else CallStatus.NO_ANSWER
        if isinstance(call._order, _EndCall):
            return CallStatus.CANCELED
        call.answered_at = trio.current_time()
        call._set_status(CallStatus.IN_PROGRESS)
        await self._follow(call, document, call._voice_url)
        return CallStatus.COMPLETED

    async def _follow(self, call: SimulatedCall, document: str, base_url: str) -> None:
        """Follow a document and those that REST sends after it, until the call is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time_limit, call)
            if call._amd_url is not None:
                nursery.start_soon(self._detect_machine, call, call._amd_url)
            while True:
                with suppress(_Leave):
                    await self._follow_verbs(call, document, base_url)
                order = call._take_document()
                if order is None:
                    break
                call.note("redirected over REST")
                document, base_url = order.document, order.base_url
            nursery.cancel_scope.cancel()

    async def _keep_time_limit(self, call: SimulatedCall) -> None:
        await trio.sleep(call._time_limit_s)
        call.note("time limit")
        call._tell(_EndCall())

    async def _detect_machine(self, call: SimulatedCall, url: str) -> None:
        """Asynchronous answering machine detection: one verdict, while the call goes on."""
        script, began = call.script, trio.current_time()
        verdict = "unknown"
        with trio.move_on_after(call._amd_timeout_s):
            if call._amd_mode == "Enable" and script.answered_by.startswith("machine"):
                await trio.sleep(3.0)
                verdict = "machine_start"
            elif script.verdict_s is not None:
                await trio.sleep(script.verdict_s)
                verdict = script.answered_by
            else:
                phone = await call.wait_stream()
                await phone.beeped.wait()
                await trio.sleep(AMD_AFTER_BEEP_S)
                verdict = script.answered_by
        call.answered_by = verdict
        call.note(f"machine detection says: {verdict}")
        took_ms = round((trio.current_time() - began) * 1000)
        fields = {
            "CallSid": call.call_sid,
            "AccountSid": call.account_sid,
            "AnsweredBy": verdict,
            "MachineDetectionDuration": str(took_ms),
        }
        await self._post(call, url, fields)

    async def _follow_verbs(self, call: SimulatedCall, document: str, base_url: str) -> None:
        """Do one document's verbs in order.

        Raises:
            _Leave: Something in it, or told over REST, ends it early.
        """
        verbs = _parse_twiml(document)
        if verbs is None:
            call.note("error 12100: document parse failure")
            return
        for verb in verbs:
            if call._order is not None:
                raise _Leave
            match verb.tag:
                case "Connect":
                    await self._connect(call, verb)
                case "Say":
                    text = "".join(verb.itertext()).strip()
                    call.note(f"says: {text}")
                    await call._pause(0.06 * len(text))  # About 150 words a minute.
                case "Play":
                    call.note(f"plays: {(verb.text or '').strip()}")
                    await call._pause(1.0)
                case "Pause":
                    await call._pause(float(verb.get("length") or 1))
                case "Hangup" | "Reject":
                    call.note("hangs up")
                    raise _Leave
                case "Redirect":
                    url = urljoin(base_url, (verb.text or "").strip())
                    await self._go_to(call, url, {})
                case "Dial":
                    await self._dial(call, verb, base_url)
                case unknown:
                    call.note(f"warning 12200: verb {unknown} is not simulated")

    async def _go_to(self, call: SimulatedCall, url: str, more: Mapping[str, str]) -> None:
        """Fetch another document and follow it instead of the rest of this one."""
        document = await self._fetch(call, url, more)
        if document is not None:
            await self._follow_verbs(call, document, url)
        raise _Leave

    async def _connect(self, call: SimulatedCall, verb: ElementTree.Element) -> None:
        stream = verb.find("Stream")
        url = stream.get("url", "") if stream is not None else ""
        if stream is None or urlsplit(url).scheme not in ("ws", "wss") or urlsplit(url).query:
            call.note("error 31920: no stream with a wss address without a query")
            return
        parameters = {
            parameter.get("name", ""): parameter.get("value", "")
            for parameter in stream.findall("Parameter")
        }
        phone = SimulatedPhone(
            call.script,
            call_sid=call.call_sid,
            account_sid=call.account_sid,
            parameters=parameters,
        )
        try:
            async with open_websocket(url, sign(url, self._auth_token)) as transport:
                call.phones.append(phone)
                call.note("stream opened")
                call._tell_waiters()
                if call._order is not None:
                    phone.stop()
                end = await phone.run(transport)
                closed = transport.closed_by_peer
        except InvalidHandshake as error:
            call.note(f"error 31920: the handshake failed: {error}")
            return
        except (OSError, InvalidURI, TimeoutError) as error:
            call.note(f"error 31901: the server was not reached: {error}")
            return
        call.note(f"stream {end}" + (f" {closed}" if end is StreamEnd.CLOSED else ""))
        if end is not StreamEnd.CLOSED:
            raise _Leave

    async def _dial(self, call: SimulatedCall, verb: ElementTree.Element, base_url: str) -> None:
        """Call somebody else and let the two talk for a while."""
        number = "".join(verb.itertext()).strip()
        other = self._script_of(number)
        call.note(f"dials {number}")
        rings_s = other.ring_s if self._ring_s is None else self._ring_s
        ring_timeout_s = float(verb.get("timeout") or 30)
        await call._pause(min(rings_s, ring_timeout_s))
        outcome = other.outcome if rings_s <= ring_timeout_s else CallStatus.NO_ANSWER
        duration_s = 0.0
        if outcome is CallStatus.IN_PROGRESS and call._order is None:
            call.note("bridged")
            await self._report_answer(call, verb)
            outcome, duration_s = CallStatus.COMPLETED, self._dial_s
            await call._pause(duration_s)
        if call._order is not None:
            raise _Leave
        call.note(f"dialled: {outcome}")
        if action := verb.get("action"):
            more = {
                "DialCallStatus": outcome.value,
                "DialCallSid": new_sid("CA"),
                "DialCallDuration": str(math.ceil(duration_s)),
            }
            await self._go_to(call, urljoin(base_url, action), more)

    async def _report_answer(self, call: SimulatedCall, dial: ElementTree.Element) -> None:
        """Tell whoever asked to be told that the other number has answered."""
        number = dial.find("Number")
        if number is None or "answered" not in number.get("statusCallbackEvent", "").split():
            return
        if url := number.get("statusCallback"):
            leg = {
                "CallSid": new_sid("CA"),
                "ParentCallSid": call.call_sid,
                "To": "".join(number.itertext()).strip(),
                "Direction": "outbound-dial",
                "CallStatus": CallStatus.IN_PROGRESS.value,
            }
            await self._post(call, url, _call_fields(call) | leg)

    # Webhooks.

    async def _fetch(
        self, call: SimulatedCall, url: str, more: Mapping[str, str] | None = None
    ) -> str | None:
        """Ask a voice webhook for its document; None if it has none to give."""
        answer = await self._post(call, url, {**_call_fields(call), **(more or {})})
        if answer is None or not answer.is_success:
            what = "did not answer" if answer is None else f"answered {answer.status_code}"
            call.note(f"error 11200: {urlsplit(url).path} {what}")
            return None
        return answer.text

    async def _post_reports(
        self, call: SimulatedCall, reports: trio.MemoryReceiveChannel[_Report]
    ) -> None:
        """Post status callbacks one after the other, in order."""
        posted: list[tuple[CallStatus, dict[str, str]]] = []
        async for report in reports:
            if not self._faults.callbacks:
                continue
            await trio.sleep_until(report.happened_at + self._faults.callback_delay_s)
            fields = {
                **_call_fields(call),
                "CallStatus": report.status.value,
                "SequenceNumber": str(len(posted)),
                "Timestamp": report.timestamp,
                "CallbackSource": "call-progress-events",
            }
            if report.status.is_final:
                duration_s = math.ceil(call.duration_s)
                fields["CallDuration"] = str(duration_s)
                fields["Duration"] = str(math.ceil(duration_s / 60))
                fields["SipResponseCode"] = _SIP_CODES[report.status]
            posted.append((report.status, fields))
            for _ in range(self._faults.callback_copies):
                await self._post_report(call, report.status, fields)
        if self._faults.callback_copies > 1:
            for status, fields in reversed(posted):
                await self._post_report(call, status, fields)

    async def _post_report(
        self, call: SimulatedCall, status: CallStatus, fields: Mapping[str, str]
    ) -> None:
        assert call._status_url is not None  # otherwise nothing is reported
        answer = await self._post(call, call._status_url, fields)
        call.reports.append((status, answer.status_code if answer is not None else None))

    async def _post(
        self, call: SimulatedCall, url: str, fields: Mapping[str, str]
    ) -> httpx2.Response | None:
        """Post a signed form; once more if the connection failed, as Twilio does by default."""
        signature = sign(url, self._auth_token, {name: [fields[name]] for name in fields})
        headers = {"X-Twilio-Signature": signature, "User-Agent": "TwilioProxy/1.1"}
        http = self._http_here if is_loopback(url) else self._http
        with trio.move_on_after(WEBHOOK_TIMEOUT_S):
            for _ in range(2):
                try:
                    return await http.post(
                        url.partition("#")[0], data=dict(fields), headers=headers
                    )
                except httpx2.ConnectError:
                    continue
                except (httpx2.HTTPError, httpx2.InvalidURL):
                    break
        call.note(f"error 11205: {urlsplit(url).path} was not reached")
        return None

    async def _record(self, call: SimulatedCall) -> None:
        if self._recordings_dir is None or not call.phones:
            return
        path = self._recordings_dir / f"{call.call_sid}-phone.wav"
        await trio.Path(self._recordings_dir).mkdir(parents=True, exist_ok=True)
        await trio.Path(path).write_bytes(two_channel_wav(call.said, call.heard))
        call.recording_path = path


@dataclass(frozen=True, slots=True)
class _Report:
    """A status, and when the call had it."""

    status: CallStatus
    happened_at: float
    timestamp: str


class _Reporter:
    """Changes a call's status and has the server told, if it asked to be."""

    def __init__(self, call: SimulatedCall, to_reports: trio.MemorySendChannel[_Report]) -> None:
        self._call = call
        self._to_reports = to_reports

    def report(self, status: CallStatus, event: str) -> None:
        """The call has come to ``status``, which is told to those who asked for ``event``."""
        self._call._set_status(status)
        if self._call._status_url and event in self._call._status_events:
            timestamp = format_datetime(datetime.now(UTC))
            self._to_reports.send_nowait(_Report(status, trio.current_time(), timestamp))


_SIP_CODES = {
    CallStatus.COMPLETED: "200",
    CallStatus.BUSY: "486",
    CallStatus.NO_ANSWER: "487",
    CallStatus.CANCELED: "487",
    CallStatus.FAILED: "404",
}


def _call_fields(call: SimulatedCall) -> dict[str, str]:
    """What every webhook says about its call."""
    return {
        "CallSid": call.call_sid,
        "AccountSid": call.account_sid,
        "From": call.from_number,
        "Caller": call.from_number,
        "To": call.to,
        "Called": call.to,
        "CallStatus": call.status.value,
        "Direction": call.direction,
        "ApiVersion": "2010-04-01",
    }


def _parse_twiml(document: str) -> list[ElementTree.Element] | None:
    """The verbs of a document, or None if it is none."""
    try:
        root = ElementTree.fromstring(document)
    except ElementTree.ParseError:
        return None
    return list(root) if root.tag == "Response" else None


def _redirect_to(url: str) -> str:
    response = ElementTree.Element("Response")
    ElementTree.SubElement(response, "Redirect").text = url
    return ElementTree.tostring(response, encoding="unicode")


# ------------------------------------------------------------------------------------------
# The REST API


class ApiRefusal(Exception):
    """An error answer in the form of the 2010 API."""

    def __init__(
        self, status: int, code: int, message: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


# "Test credentials": numbers that are refused, and how.
_MAGIC_NUMBERS = {
    "+15005550001": (21217, "The phone number is not a valid phone number."),
    "+15005550002": (21214, "The phone number cannot be reached."),
    "+15005550003": (21215, "The account is not authorized to call this number."),
    "+15005550004": (21216, "The account is not allowed to call this number."),
}


def _is_http_url(url: str | None) -> bool:
    parts = urlsplit(url or "")
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _seconds(form: MultiDict[str, str], name: str, default: float, *, maximum: float) -> float:
    text = form.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise ApiRefusal(400, 20001, f"{name} must be a whole number of seconds.")
    return min(float(text), maximum)


def _resource(call: SimulatedCall) -> dict[str, Any]:
    """A call as the API shows it: every value a string or null."""
    path = f"/2010-04-01/Accounts/{call.account_sid}/Calls/{call.call_sid}"
    is_over = call.ended_at is not None
    # What webhooks call "initiated" is still "queued" or already "ringing" here.
    status = CallStatus.QUEUED if call.status is CallStatus.INITIATED else call.status
    return {
        "sid": call.call_sid,
        "account_sid": call.account_sid,
        "api_version": "2010-04-01",
        "status": status.value,
        "direction": call.direction,
        "from": call.from_number,
        "to": call.to,
        "from_formatted": call.from_number,
        "to_formatted": call.to,
        "phone_number_sid": None,
        "parent_call_sid": None,
        "forwarded_from": None,
        "caller_name": None,
        "group_sid": None,
        "trunk_sid": None,
        "answered_by": call.answered_by,
        "date_created": format_datetime(call._created),
        "date_updated": format_datetime(datetime.now(UTC)),
        "start_time": None,
        "end_time": None,
        "duration": str(math.ceil(call.duration_s)) if is_over else None,
        "price": None,
        "price_unit": "USD",
        "queue_time": "0",
        "uri": f"{path}.json",
        "subresource_uris": {
            name: f"{path}/{name.capitalize()}.json" for name in ("recordings", "streams", "events")
        },
    }


def _make_api(simulator: TwilioSimulator) -> QuartTrio:
    """The routes of the REST API: create, update and fetch a call."""
    app = QuartTrio(__name__)
    calls_path = "/2010-04-01/Accounts/<account_sid>/Calls"

    def check_credentials(account_sid: str) -> None:
        shown = request.authorization
        if shown is None or not simulator.may_ask(shown.username, shown.password):
            raise ApiRefusal(401, 20003, "Authenticate")
        if account_sid != simulator.account_sid:
            raise ApiRefusal(404, 20404, "The requested account was not found")

    @app.post(f"{calls_path}.json")
    async def create(account_sid: str) -> tuple[Response, int]:
        check_credentials(account_sid)
        return jsonify(_resource(simulator.create_call(await request.form))), 201

    @app.post(f"{calls_path}/<call_sid>.json")
    async def update(account_sid: str, call_sid: str) -> Response:
        check_credentials(account_sid)
        return jsonify(_resource(simulator.update_call(call_sid, await request.form)))

    @app.get(f"{calls_path}/<call_sid>.json")
    async def fetch(account_sid: str, call_sid: str) -> Response:
        check_credentials(account_sid)
        call = simulator.find_call(call_sid)
        call.note("status asked for over REST")
        return jsonify(_resource(call))

    @app.errorhandler(ApiRefusal)
    async def refuse(refusal: ApiRefusal) -> tuple[Response, int, dict[str, str]]:
        body = {
            "code": refusal.code,
            "message": refusal.message,
            "more_info": f"https://www.twilio.com/docs/errors/{refusal.code}",
            "status": refusal.status,
        }
        wait_s = refusal.retry_after_s
        headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
        return jsonify(body), refusal.status, headers

    return app
