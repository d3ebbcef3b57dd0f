"""Signed webhooks: what Twilio asks of the server, and tells it ("Webhooks Security")."""

from __future__ import annotations

import base64
import hmac
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import httpx2
import trio

from server.settings.values import is_loopback
from server.simulators.twilio.call import SimulatedCall
from server.simulators.twilio.socket import client_context

WEBHOOK_TIMEOUT_S = 15.0  # "Webhooks: connection overrides": what Twilio waits in total.


RETRY_PAUSE_S = 0.1
"""What Twilio waits before it asks again is documented nowhere."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """How often and how patiently a webhook is asked ("Webhooks: connection overrides")."""

    retries: int = 1
    reasons: frozenset[str] = frozenset({"ct"})
    """What is tried again: ``ct rt 4xx 5xx``, or ``all`` of them."""
    connect_s: float = 5.0
    read_s: float = WEBHOOK_TIMEOUT_S
    total_s: float = WEBHOOK_TIMEOUT_S

    @classmethod
    def of(cls, fragment: str) -> Overrides:
        """Read the fragment of an address, which is never sent."""
        words = dict(parse_qsl(fragment))
        return cls(
            retries=min(int(words.get("rc", "1")), 5),
            reasons=frozenset(words.get("rp", "ct").split(",")),
            connect_s=int(words.get("ct", "5000")) / 1000,
            read_s=int(words.get("rt", "15000")) / 1000,
            total_s=min(int(words.get("tt", "15000")) / 1000, WEBHOOK_TIMEOUT_S),
        )

    @property
    def timeout(self) -> httpx2.Timeout:
        """The bounds of one attempt."""
        return httpx2.Timeout(self.read_s, connect=self.connect_s)

    def retries_after(self, failure: str) -> bool:
        """Whether it is tried again after this; "" when nothing was wrong."""
        return failure != "" and bool(self.reasons & {failure, "all"})


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


class Webhooks:
    """Asks webhooks and posts callbacks, with the account's signature."""

    def __init__(
        self, auth_token: str, http: httpx2.AsyncClient, http_here: httpx2.AsyncClient
    ) -> None:
        self._auth_token = auth_token
        self._http = http
        self._http_here = http_here

    def sign_upgrade(self, url: str) -> str:
        """Make the signature of a media stream's handshake."""
        return sign(url, self._auth_token)

    async def fetch(
        self, call: SimulatedCall, url: str, more: Mapping[str, str] | None = None
    ) -> str | None:
        """Ask a voice webhook for its document; None if it has none to give."""
        answer = await self.post(call, url, {**call_fields(call), **(more or {})})
        if answer is None or not answer.is_success:
            what = "did not answer" if answer is None else f"answered {answer.status_code}"
            call.note(f"error 11200: {urlsplit(url).path} {what}")
            return None
        return answer.text

    async def post(
        self, call: SimulatedCall, url: str, fields: Mapping[str, str]
    ) -> httpx2.Response | None:
        """Post a signed form, and again as often as the address's overrides say."""
        signature = sign(url, self._auth_token, {name: [fields[name]] for name in fields})
        headers = {"X-Twilio-Signature": signature, "User-Agent": "TwilioProxy/1.1"}
        http = self._http_here if is_loopback(url) else self._http
        target, _, fragment = url.partition("#")
        overrides = Overrides.of(fragment)
        answer: httpx2.Response | None = None
        with trio.move_on_after(overrides.total_s):
            for attempt in range(1 + overrides.retries):
                if attempt:
                    await trio.sleep(RETRY_PAUSE_S)
                answer, failure = await self._try(
                    http, target, dict(fields), headers, overrides.timeout
                )
                if not overrides.retries_after(failure):
                    break
        if answer is None:
            call.note(f"error 11205: {urlsplit(url).path} was not reached")
        return answer

    async def _try(
        self,
        http: httpx2.AsyncClient,
        target: str,
        fields: dict[str, str],
        headers: dict[str, str],
        timeout: httpx2.Timeout,
    ) -> tuple[httpx2.Response | None, str]:
        """Post once: the answer, if there is one, and what was wrong, in the overrides' words."""
        try:
            answer = await http.post(target, data=fields, headers=headers, timeout=timeout)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            return None, "ct"
        except httpx2.InvalidURL:
            return None, ""
        except httpx2.HTTPError:
            return None, "rt"
        return answer, f"{answer.status_code // 100}xx" if answer.status_code >= 400 else ""


@asynccontextmanager
async def open_webhooks(auth_token: str) -> AsyncGenerator[Webhooks]:
    """Have what webhooks are asked with; closed when the block ends."""
    async with _client(is_here=False) as http, _client(is_here=True) as http_here:
        yield Webhooks(auth_token, http, http_here)


def _client(*, is_here: bool) -> httpx2.AsyncClient:
    """A client that makes a connection for each webhook.

    An idle one may be closed just as it is used again.
    """
    return httpx2.AsyncClient(
        timeout=WEBHOOK_TIMEOUT_S,
        trust_env=False,
        verify=client_context(is_here=is_here),
        limits=httpx2.Limits(max_keepalive_connections=0),
    )


def call_fields(call: SimulatedCall) -> dict[str, str]:
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
