"""Google's access tokens for Vertex AI: fetched ahead of time, in a thread, by one task a process.

google-auth knows every way to them (service accounts, workload identity, the metadata server), and
blocks. So it is asked in a thread, before the token that is used has ended; whoever connects reads
what is there, and never waits for it.
"""

from __future__ import annotations

import json
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any

import google.auth
import google.auth.transport
import httpx2
import structlog
import trio
from google.auth import (
    aws,
    exceptions,
    external_account_authorized_user,
    identity_pool,
    impersonated_credentials,
    pluggable,
)
from google.auth.credentials import Credentials as GoogleCredentials
from google.oauth2 import credentials as user
from google.oauth2 import service_account

from server.errors import ConfigurationError, ModelError
from server.model.gemini.faults import account_refused
from server.pace import Backoff
from server.refusal import Kind
from server.signal import Signal

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
AHEAD_S = 300.0
"""So long before it ends a token is replaced, or after half its life; Google's own is 225 s."""
LEAST_PAUSE_S = 1.0
"""Between two fetches, whoever asks for one."""
TRY_AGAIN_S = (1.0, 60.0)
REQUEST_TIMEOUT_S = 10.0
FETCH_TIMEOUT_S = 30.0
"""For finding the credentials, or one token with all of its requests."""
TOKENS_HIDDEN = 4
"""As many are still hidden, if an error quotes one: connections last ten minutes."""
UNKNOWN_LIFE_S = 600.0
_SAME_AGAIN = "another was fetched, and was the same"


class GoogleTokens:
    """The token of one account; a :class:`server.model.gemini.endpoint.Credentials`.

    Args:
        file: A service account's key, or whatever else google-auth reads; None for the credentials
            that the machine has (application default credentials).
        name: The setting that names the account.
        proxy: An HTTP proxy on the way to Google's token service.
        load: Finds the credentials; None for google-auth's own way.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        name: str = "VERTEX_PROJECT",
        proxy: str | None = None,
        load: Callable[[], GoogleCredentials] | None = None,
    ) -> None:
        self.name = name
        self._file = file
        self._load = load or self._find
        self._request = _Request(proxy)
        self._credentials: GoogleCredentials | None = None
        self._token, self._ends_at = "", 0.0
        self._doubted, self._problem = "", ""
        self._recent: deque[str] = deque(maxlen=TOKENS_HIDDEN)
        self._wanted = Signal()
        self._one_at_a_time = trio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<GoogleTokens of {self.name}>"

    def headers(self) -> Mapping[str, str]:
        """The token of this moment, in its header.

        Raises:
            ModelError: There is none; it is being fetched.
            ModelSetupRefused: There is none, and none will be given: somebody has to see to it.
        """
        if not self._token or time.time() >= self._ends_at:
            self._wanted.set()
            told, reason = "Google has given no access token", "no token"
            if self._problem:
                told += f": {self._problem}"
                raise account_refused(Kind.KEY, told, code=None, reason=reason)
            raise ModelError(told, code=None, reason=reason, retryable=True)
        headers = {"Authorization": f"Bearer {self._token}"}
        if (quota := getattr(self._credentials, "quota_project_id", None)) is not None:
            headers["x-goog-user-project"] = quota
        return headers

    @property
    def token(self) -> str:
        """The token of this moment; empty if there is none."""
        return self._token

    def secrets(self) -> tuple[str, ...]:
        """The last few tokens."""
        return tuple(self._recent)

    def refused(self, headers: Mapping[str, str]) -> bool:
        """The service did not take the token of these headers: fetch another soon.

        Returns:
            Whether another may help. One that has come in a refused one's place and is refused,
            too, is not to blame: then the account is. So it is where none is given any more.
        """
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token != self._token:
            return True  # it has been replaced meanwhile
        self._wanted.set()
        self._doubted = self._doubted or token
        return token == self._doubted and not self._problem

    async def run(
        self,
        *,
        is_needed: bool = True,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep a token that is good, until cancelled; has started when the first one was asked for.

        Args:
            is_needed: Whether there is nothing to be done without one; else whoever wants one is
                told what is wrong.

        Raises:
            ConfigurationError: There are no credentials, or Google refuses them, and one is needed.
        """
        has_started, backoff = False, Backoff(*TRY_AGAIN_S, jitter=random.random)
        while True:
            wanted = self._wanted.next()
            try:
                lasts_s = await self._fetch()
            except (exceptions.GoogleAuthError, trio.TooSlowError, OSError) as error:
                self._problem = self._problem_of(error)
                if self._problem and is_needed and not has_started:
                    logger.critical("these credentials will not do", problem=self._problem)
                    raise ConfigurationError(self._problem) from error
                pause_s = backoff.next_s()
                logger.warning(
                    "no access token from Google",
                    error=type(error.__cause__ or error).__name__,
                    problem=self._problem,
                    pause_s=pause_s,
                )
            else:
                backoff.reset()
                self._problem = ""
                wanted = self._wanted.next()  # whoever asked meanwhile has got one
                pause_s = lasts_s - min(AHEAD_S, lasts_s / 2) * random.uniform(0.9, 1.0)
            if not has_started:
                has_started = True
                task_status.started()
            await trio.sleep(min(LEAST_PAUSE_S, pause_s))
            with trio.move_on_after(max(0.0, pause_s - LEAST_PAUSE_S)) as waiting:
                await wanted.wait()
            if waiting.cancelled_caught:
                self._doubted = ""  # nobody has refused the one that lasted until now

    async def _fetch(self) -> float:
        """Fetch a token, in a thread; returns how long it lasts."""
        with trio.fail_after(FETCH_TIMEOUT_S):
            token, ends_at = await trio.to_thread.run_sync(
                self._fetch_blocking, abandon_on_cancel=True, limiter=self._one_at_a_time
            )
        self._token, self._ends_at = token, ends_at
        if token == self._doubted:  # as a metadata server has it, which keeps them
            self._doubted = _SAME_AGAIN
        if token not in self._recent:
            self._recent.append(token)
        return max(LEAST_PAUSE_S, ends_at - time.time())

    def _fetch_blocking(self) -> tuple[str, float]:
        try:
            if self._credentials is None:
                self._credentials = self._load()
            credentials = self._credentials
            credentials.refresh(self._request)
        except (exceptions.GoogleAuthError, OSError):
            raise
        except Exception as error:
            # google-auth lets out what others raise: a program that is run for the token and takes
            # too long, an answer that is no JSON. None of it says that there will be no token.
            raise exceptions.RefreshError(type(error).__name__, retryable=True) from error
        ends_at = time.time() + UNKNOWN_LIFE_S
        if credentials.expiry is not None:  # a naive time of UTC
            ends_at = credentials.expiry.replace(tzinfo=UTC).timestamp()
        if not credentials.token:
            raise exceptions.RefreshError("no token came")
        return str(credentials.token), ends_at

    def _find(self) -> GoogleCredentials:
        if self._file is not None:
            return _read(self._file)
        found, _ = google.auth.default(scopes=[SCOPE], request=self._request)
        return found

    def _problem_of(self, error: Exception) -> str:
        """What somebody has to see to; empty for what may pass by itself."""
        match error:
            case exceptions.DefaultCredentialsError():
                what = "there are none"
            case exceptions.RefreshError(retryable=False):
                what = "they are refused"
            case _:
                return ""
        return (
            f"{self.name} needs Google's credentials, and {what} ({type(error).__name__}): set "
            "GOOGLE_APPLICATION_CREDENTIALS to a service account's file, or run where the machine "
            "has an account of its own"
        )


class KeptToken:
    """What the official SDK asks for a token: the one that is kept, and never a new one."""

    expired = False
    quota_project_id = None

    def __init__(self, tokens: GoogleTokens) -> None:
        self._tokens = tokens

    @property
    def token(self) -> str:
        """The token of this moment."""
        return self._tokens.token

    def refresh(self, request: object) -> None:
        """Do nothing: somebody else sees to it."""


def _read(file: Path) -> GoogleCredentials:
    """The credentials in a file, of whichever kind it says it is.

    Raises:
        DefaultCredentialsError: It cannot be read, or is of a kind that is not known.
    """
    try:
        facts = json.loads(file.read_bytes())
        kind = facts["type"]
        if kind == "external_account":
            kind = _kind_of_external(facts)
        found: GoogleCredentials = _KINDS[kind](facts, scopes=[SCOPE])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise exceptions.DefaultCredentialsError(type(error).__name__) from None
    return found


def _kind_of_external(facts: Mapping[str, Any]) -> str:
    if "aws" in str(facts.get("subject_token_type")):
        return "aws"
    source = facts.get("credential_source") or {}
    return "executable" if "executable" in source else "external_account"


_KINDS: Mapping[str, Callable[..., Any]] = {
    "service_account": service_account.Credentials.from_service_account_info,
    "authorized_user": user.Credentials.from_authorized_user_info,
    "impersonated_service_account": (
        impersonated_credentials.Credentials.from_impersonated_service_account_info
    ),
    "external_account": identity_pool.Credentials.from_info,
    "aws": aws.Credentials.from_info,
    "executable": pluggable.Credentials.from_info,
    "external_account_authorized_user": lambda facts, scopes: (
        external_account_authorized_user.Credentials.from_info(facts | {"scopes": scopes})
    ),
}
"""By the ``type`` in the file; ``aws`` and ``executable`` are external accounts, too. google-auth
has one function for all kinds, and warns of it."""


class _Response(google.auth.transport.Response):
    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer

    @property
    def status(self) -> int:
        return int(self._answer.status_code)

    @property
    def headers(self) -> Mapping[str, str]:
        return dict(self._answer.headers)

    @property
    def data(self) -> bytes:
        return bytes(self._answer.content)


class _Request(google.auth.transport.Request):
    """Makes google-auth's requests, in its thread; through a proxy only what is encrypted."""

    def __init__(self, proxy: str | None) -> None:
        self._proxy = proxy

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> _Response:
        is_secret = url.startswith("https")
        try:
            with httpx2.Client(
                trust_env=False,
                proxy=self._proxy if is_secret else None,
                verify=is_secret,
                timeout=min(timeout or REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_S),
            ) as client:
                return _Response(client.request(method, url, content=body, headers=headers))
        except httpx2.HTTPError as error:
            raise exceptions.TransportError(type(error).__name__) from error
