"""Twilio's REST API: placing calls and steering live ones."""

from __future__ import annotations

import logging
import math
import random
from base64 import b64encode
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlencode

import httpx2
import msgspec
import structlog
import trio
from twilio.base.exceptions import TwilioException, TwilioRestException, TwilioServiceException
from twilio.http import AsyncHttpClient
from twilio.http.response import Response
from twilio.rest import Client

from server.carrier import CallStatus, PlacedCall, StatusUpdate
from server.carrier.patience import timeouts
from server.carrier.protocol import UNREADABLE
from server.carrier.twilio.documents import dial_twiml, say_twiml
from server.carrier.twilio.numbers import TwilioNumbers
from server.carrier.twilio.reports import check_call_sid, is_count
from server.carrier.twilio.webhooks import MACHINE, STATUS, TRANSFER, TwilioWebhooks
from server.carrier.webhooks import ConnectStream
from server.errors import (
    CallNotInProgress,
    CarrierError,
    CarrierProtocolError,
)
from server.headers import read_retry_after
from server.settings.values import LONGEST_CALL_S

logger = structlog.get_logger(__name__)
T = TypeVar("T")
OVERTIME_S = 60.0
"""Twilio itself ends a call that lasts so much longer than it may, should nobody here do it: it
counts from the answer, and we from the stream, and without our own pauses."""
MAX_RETRY_AFTER_S = 300.0
"""We come back after this, whatever was asked: one mistake may not stop a day's calls."""


class _TrioHttp(AsyncHttpClient):
    """The HTTP client the twilio package asks for, on trio. (Its own one needs asyncio.)

    It asks the connection pool itself: what an HTTP client adds to that (redirects, cookies, ways
    to sign in) no request here uses, and placing a call would pay for it.
    """

    def __init__(
        self, pool: httpx2.AsyncHTTPTransport, timeout_s: float, on_wait: Callable[[float], None]
    ) -> None:
        super().__init__(logging.getLogger(__name__), is_async=True)
        self._pool = pool
        self._extensions = {"timeout": timeouts(timeout_s)}
        self._on_wait = on_wait

    async def request(  # type: ignore[override]  # as the package's own async client does
        self,
        method: str,
        uri: str,
        params: Mapping[str, object] | None = None,
        data: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        """Make one request; the carrier's deadline stands around it."""
        given = dict(headers or {})
        if auth is not None:
            given["Authorization"] = f"Basic {b64encode(':'.join(auth).encode()).decode()}"
        request = httpx2.Request(
            method,
            f"{uri}?{urlencode(params, doseq=True)}" if params else uri,
            headers=given,
            content=urlencode(data, doseq=True).encode() if data else None,
            extensions=self._extensions,
        )
        answer = await self._pool.handle_async_request(request)
        try:
            content = await answer.aread()  # and the connection is the pool's again
        except BaseException:
            await answer.aclose()
            raise
        if answer.status_code in (429, 503):
            asked, now = answer.headers.get("Retry-After"), datetime.now(UTC)
            wait_s = read_retry_after(asked, now, longest_s=MAX_RETRY_AFTER_S)
            if wait_s is not None:
                # The package's errors have no place for it.
                _asked_to_wait_s.set(wait_s)
                self._on_wait(wait_s)
        if answer.is_success and not _is_json_object(content):
            raise CarrierError(
                "the answer is not Twilio's: is the API's address right?",
                status=answer.status_code,
                outcome_unknown=True,
            )
        return Response(answer.status_code, answer.text, answer.headers)


_asked_to_wait_s: ContextVar[float | None] = ContextVar("_asked_to_wait_s", default=None)
"""What the answer to the request that this task makes has said about when to come back."""


def _is_json_object(content: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(content), dict)
    except UNREADABLE:
        return False


@contextmanager
def _carrier_errors(timeout_s: float) -> Generator[None]:
    """Bound the wait and say every failure of the REST API as a :class:`CarrierError`."""
    _asked_to_wait_s.set(None)
    try:
        with trio.fail_after(timeout_s):
            yield
    except TwilioRestException as error:
        # Without a code of Twilio's, the package puts the HTTP status there.
        code = error.code if error.code != error.status else None
        raise CarrierError(
            error.msg,
            status=error.status,
            code=code,
            outcome_unknown=error.status >= 500,
            retry_after_s=_asked_to_wait_s.get(),
        ) from error
    except TwilioServiceException as error:
        raise CarrierError(
            error.detail or error.title,
            status=error.status,
            code=error.code,
            outcome_unknown=error.status >= 500,
            retry_after_s=_asked_to_wait_s.get(),
        ) from error
    except TwilioException as error:
        raise CarrierError(str(error), outcome_unknown=True) from error
    except trio.TooSlowError as error:
        message = f"Twilio did not answer within {timeout_s:g} s"
        raise CarrierError(message, outcome_unknown=True) from error
    except _NEVER_SENT as error:
        raise CarrierError(f"Twilio was not reached: {error or type(error).__name__}") from error
    except httpx2.HTTPError as error:
        message = f"Twilio was lost: {error or type(error).__name__}"
        raise CarrierError(message, outcome_unknown=True) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The package takes it for granted that every field is what it should be.
        raise CarrierError("Twilio's answer cannot be read", outcome_unknown=True) from error


# The request has not left this machine.
_NEVER_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.ProxyError,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
    httpx2.InvalidURL,
)
_TRY_AGAIN_WITHIN_S = (0.5, 1.0, 2.0)
"""The longest wait before each further try; Twilio asks for back-off with jitter after a 429."""
_MAX_WAITS_S = 10.0
"""All waits of one request together: a client of ours waits, too; better to say when to ask."""
# The call is over, or never was (another Region's calls look like that too): there is nothing
# left to hang up. Codes from Twilio's error dictionary.
_NOT_IN_PROGRESS = 21220
_NOT_FOUND = 20404


class TwilioCarrier:
    """A :class:`server.carrier.Carrier` over Twilio's REST API.

    An async context manager: it owns the HTTP connections.

    Args:
        account_sid: ``AC…``.
        auth_token: The account's secret.
        phone_number: The number calls come from, E.164.
        webhooks: The account's; its addresses are told to Twilio with every call.
        api_url: Base URL of the REST API; None is Twilio's default. For another Region, such as
            ``https://api.dublin.ie1.twilio.com``, or a simulator.
        name: What answers and banners call this carrier.
        ring_timeout_s: How long a phone rings before the call is given up as no-answer.
        request_timeout_s: How long any one REST request may take.
        proxy: An HTTP proxy on the way to the REST API; the environment's are not used.
        api_key: SID (``SK…``) and secret of the API key to ask the REST API with, in the token's
            place.
    """

    def __init__(
        self,
        *,
        account_sid: str,
        auth_token: str,
        phone_number: str,
        webhooks: TwilioWebhooks,
        api_url: str | None = None,
        name: str = "twilio",
        ring_timeout_s: float = 30.0,
        request_timeout_s: float = 10.0,
        proxy: str | None = None,
        api_key: tuple[str, str] | None = None,
    ) -> None:
        self._name = name
        self._phone_number = phone_number
        self.webhooks = webhooks
        self.on_wait: Callable[[float], None] = lambda wait_s: None
        """Called when Twilio asks to be left alone for so many seconds."""
        self._ring_timeout_s = ring_timeout_s
        self._request_timeout_s = request_timeout_s
        # Of the environment only what is trusted (SSL_CERT_FILE): no hop that nobody asked for.
        self._pool = httpx2.AsyncHTTPTransport(
            trust_env=False, verify=httpx2.create_ssl_context(), proxy=proxy
        )
        self._client = Client(
            *(api_key or (account_sid, auth_token)),
            account_sid=account_sid,
            http_client=_TrioHttp(
                self._pool, request_timeout_s, lambda wait_s: self.on_wait(wait_s)
            ),
            # Otherwise TWILIO_EDGE and TWILIO_REGION of the environment change the address.
            environment={"TWILIO_ACCOUNT_SID": account_sid},
        )
        if api_url is not None:
            self._client.api.base_url = api_url.rstrip("/")
        self.numbers = TwilioNumbers(self._client, account_sid, self._request, webhooks)
        """The account beside its calls, asked over the same connections."""

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pool.__aexit__(exc_type, exc_value, traceback)

    @property
    def name(self) -> str:
        """What answers and banners call this carrier."""
        return self._name

    async def place_call(
        self,
        destination_number: str,
        *,
        ticket: str,
        max_duration_s: float,
        detect_machine: bool = False,
    ) -> PlacedCall:
        """Dial a number; when it is answered, Twilio opens a stream that shows the ticket.

        The TwiML goes with the request, which saves Twilio a webhook between the answer and the
        stream. Every change of the call's status is posted to ``/call-status``.

        Machine detection runs beside the call, not before it: the verdict goes to ``/amd-status``,
        for a machine when its announcement is over.

        Raises:
            CarrierError: Refused, not reached or not answered. In the last case its outcome is
                unknown: Twilio may have placed the call all the same; its stream will show a
                ticket nobody holds, and is refused.
        """
        detection = {}
        if detect_machine:
            detection = {
                "machine_detection": "DetectMessageEnd",
                "async_amd": "true",
                "async_amd_status_callback": self.webhooks.url_of(MACHINE),
                "async_amd_status_callback_method": "POST",
            }
        call = await self._request(
            lambda: self._client.calls.create_async(
                to=destination_number,
                from_=self._phone_number,
                twiml=self.webhooks.twiml(ConnectStream(ticket)),
                status_callback=self.webhooks.url_of(STATUS),
                status_callback_event=["initiated", "ringing", "answered", "completed"],
                status_callback_method="POST",
                timeout=math.ceil(self._ring_timeout_s),
                time_limit=math.ceil(min(max_duration_s + OVERTIME_S, LONGEST_CALL_S)),
                **detection,
            ),
            repeatable=False,
        )
        try:
            call_sid = check_call_sid(str(call.sid or ""), "call that was placed")
        except CarrierProtocolError as error:
            message = "Twilio accepted the call but did not name it"
            raise CarrierError(message, outcome_unknown=True) from error
        return PlacedCall(call_sid, _placed_status(call.status))

    async def hang_up(self, call_sid: str) -> None:
        """End a call in any state; a call that is already over is success.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            await self._request(
                lambda: self._client.calls(call_sid).update_async(status="completed"),
                repeatable=True,
            )
        except CarrierError as error:
            if error.code not in (_NOT_IN_PROGRESS, _NOT_FOUND) and error.status != 404:
                raise

    async def update_call(self, call_sid: str, *, twiml: str) -> None:
        """Let a live call go on with another document: its stream stops and is closed.

        It is asked for again only where Twilio has done nothing: a document is begun once.

        Raises:
            CarrierError: Refused (21220 when the call is over) or not reached.
        """
        await self._request(lambda: self._update_once(call_sid, twiml), repeatable=False)

    async def _update_once(self, call_sid: str, twiml: str, **changes: int) -> None:
        await self._client.calls(call_sid).update_async(twiml=twiml, **changes)

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        """Let a live call ring another number, which ends its stream; see :func:`dial_twiml`.

        The number shown is ours: the caller's own one may not be allowed from this account. What
        the call was limited to was the agent's time: those two may talk for as long as any may.

        Raises:
            CarrierError: Refused (21220 when the call is over) or not reached.
        """
        document = dial_twiml(
            number,
            caller_id=self._phone_number,
            ring_timeout_s=ring_timeout_s,
            status_url=self.webhooks.url_of(TRANSFER),
        )
        longest_s = math.ceil(LONGEST_CALL_S)
        await self._request(
            lambda: self._update_once(call_sid, document, time_limit=longest_s), repeatable=False
        )

    async def _request(self, request: Callable[[], Awaitable[T]], *, repeatable: bool) -> T:
        """Make a request, and make it again where that cannot do anything twice.

        Args:
            request: Makes it once.
            repeatable: Whether doing it twice does no harm. If it would, it is made again only
                when Twilio has said that it did nothing (429) or was never reached.

        When Twilio says how long to wait, it is not made again sooner; where there is not that
        much time, not at all.
        """
        left_s = _MAX_WAITS_S
        for wait_s in (*_TRY_AGAIN_WITHIN_S, None):
            try:
                with _carrier_errors(self._request_timeout_s):
                    return await request()
            except CarrierError as error:
                not_done = error.status in (None, 429) and not error.outcome_unknown
                again = not_done or (repeatable and error.outcome_unknown)
                if wait_s is None or not again:
                    raise
                pause_s = random.uniform(wait_s / 2, wait_s) + (error.retry_after_s or 0.0)
                left_s -= pause_s
                in_vain = trio.current_time() + pause_s >= trio.current_effective_deadline()
                if left_s < 0 or in_vain:
                    raise
                logger.debug("carrier request is made again", status=error.status, code=error.code)
            await trio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def fetch_status(self, call_sid: str) -> StatusUpdate:
        """Ask how a call stands; one request, which is not made again.

        Raises:
            CarrierError: Refused, not reached, or answered with a status that is none.
        """
        with _carrier_errors(self._request_timeout_s):
            call = await self._client.calls(call_sid).fetch_async()
        try:
            status = CallStatus(str(call.status))
        except ValueError:
            word = str(call.status)[:40]
            raise CarrierError(f"Twilio says that the call is {word!r}") from None
        facts = {"asked": "yes"}
        if status.is_final and is_count(duration := str(call.duration or "")):
            facts["duration_s"] = duration
        return StatusUpdate(call_sid, status, None, facts)

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        """Say something in Twilio's own voice and end the call; its stream stops at once.

        One request, which is not made again: whoever apologises does that, and sees before each
        try whether the words are still owed.

        Raises:
            CallNotInProgress: The call is over, or Twilio has not answered it yet (21220).
            CarrierError: Refused or not reached.
        """
        with _not_in_progress(), _carrier_errors(self._request_timeout_s):
            await self._update_once(call_sid, say_twiml(text, language))

    async def reconnect(self, call_sid: str, ticket: str) -> None:
        """Let a live call open another stream, which shows this ticket; one it has stops at once.

        Raises:
            CallNotInProgress: The call is over, or Twilio has not answered it yet (21220).
            CarrierError: Refused or not reached.
        """
        document = self.webhooks.twiml(ConnectStream(ticket))
        with _not_in_progress():
            await self.update_call(call_sid, twiml=document)


@contextmanager
def _not_in_progress() -> Generator[None]:
    """Give an update of a call that cannot be updated an error of its own."""
    try:
        yield
    except CarrierError as error:
        if error.code != _NOT_IN_PROGRESS:
            raise
        raise CallNotInProgress(error.message, status=error.status, code=error.code) from error


def _placed_status(word: object) -> CallStatus:
    try:
        return CallStatus(str(word))
    except ValueError:
        # A new word of Twilio's is no reason to disown a call that it has accepted.
        return CallStatus.QUEUED
