"""Asterisk's REST interface (ARI): the requests that calls need, and what must be there for them.

One small request each; no client package of it runs on trio.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Annotated, Self, TypeVar
from urllib.parse import quote, urlencode

import httpx2
import msgspec
import structlog
import trio
from msgspec import Meta, Struct
from websockets.trio.client import connect

from server.carrier.patience import timeouts
from server.errors import CarrierError, ConfigurationError

logger = structlog.get_logger(__name__)
T = TypeVar("T")

MODULES = ("chan_websocket.so", "res_websocket_client.so", "res_stasis.so")
OLDEST = {20: 18, 22: 8, 23: 2}
"""The oldest minor version of each major one that can do it: marks, JSON control, variables in
``MEDIA_START``, and no hang-up when a media socket is pinged (Asterisk's changes of 2026-01)."""
REFUSED = (
    "Asterisk refuses ASTERISK_USER and ASTERISK_SECRET: they must be a user of ari.conf that is "
    "not read_only"
)
MAX_ANSWER_BYTES = 1024 * 1024
CONNECT_TIMEOUT_S = 5.0
PING_S = 5.0
"""How often an event connection is tried; a dead one is noticed within twice as long."""
MAX_EVENT_BYTES = 256 * 1024
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")
_Text = Annotated[str, Meta(max_length=256)]


class _System(Struct):
    version: _Text


class _Info(Struct):
    system: _System


class _Module(Struct):
    status: _Text


class AppState(Struct):
    """What an app has in its hands."""

    channel_ids: list[str]
    bridge_ids: list[str]


class _Refusal(Struct):
    message: str = ""
    error: str = ""


class Ari:
    """Makes ARI's requests; an async context manager that owns the connections.

    Args:
        url: Of Asterisk's HTTP server, ``http://host:8088``.
        user: ARI's.
        secret: The user's.
        timeout_s: How long any one request may take.

    Attributes:
        version: Asterisk's, as :meth:`check` has found it; empty before.
    """

    def __init__(self, url: str, user: str, secret: str, *, timeout_s: float) -> None:
        self._url = f"{url.rstrip('/')}/ari"
        self._timeout_s = timeout_s
        self.version = ""
        self.authorization = f"Basic {b64encode(f'{user}:{secret}'.encode()).decode()}"
        self._pool = httpx2.AsyncHTTPTransport(
            trust_env=False,
            verify=httpx2.create_ssl_context() if url.startswith("https") else False,
        )

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

    def events(self, app: str) -> connect:
        """A connection that is told the events of an app; whoever heard them before is not."""
        return connect(
            f"ws{self._url.removeprefix('http')}/events?{urlencode({'app': app})}",
            additional_headers={"Authorization": self.authorization},
            compression=None,
            proxy=None,
            open_timeout=CONNECT_TIMEOUT_S,
            close_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            max_size=MAX_EVENT_BYTES,
        )

    async def post(
        self,
        *path: str,
        variables: Mapping[str, str] | None = None,
        **query: str | int,
    ) -> None:
        """Do something.

        Args:
            path: Its parts, as they are.
            variables: Of the channel that is made.
            query: Its arguments.

        Raises:
            CarrierError: Refused or not reached.
        """
        await self._request("POST", path, query, {"variables": variables} if variables else None)

    async def delete(self, *path: str, **query: str | int) -> bool:
        """Take something away; False if it was not there.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            await self._request("DELETE", path, query, None)
        except CarrierError as error:
            if error.status != 404:
                raise
            return False
        return True

    async def allow_events(self, app: str, kinds: Iterable[str]) -> None:
        """Have an app told of these kinds of events alone.

        Raises:
            CarrierError: Refused or not reached.
        """
        body = {"allowed": [{"type": kind} for kind in kinds]}
        await self._request("PUT", ("applications", app, "eventFilter"), {}, body)

    async def get(self, kind: type[T], *path: str, **query: str) -> T:
        """Ask for something.

        Raises:
            CarrierError: Refused, not reached, or answered with something else.
        """
        content = await self._request("GET", path, query, None)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise CarrierError("the answer is not ARI's: is ASTERISK_URL right?") from error

    async def check(self) -> None:
        """Check that this Asterisk can do what calls need.

        Raises:
            ConfigurationError: It cannot, with what to do.
            CarrierError: It was not reached, or does not answer like one that is there.
        """
        try:
            version = (await self.get(_Info, "asterisk", "info")).system.version
        except CarrierError as error:
            if error.status in (401, 403):
                raise ConfigurationError(error.message) from None
            if error.status == 404:
                raise ConfigurationError(
                    "there is no ARI at ASTERISK_URL: it needs enabled = yes in http.conf and "
                    "ari.conf"
                ) from None
            raise
        if (problem := too_old(version)) is not None:
            raise ConfigurationError(problem)
        for module in MODULES:
            try:
                is_running = (await self.get(_Module, "asterisk", "modules", module)).status
            except CarrierError as error:
                if error.status not in (404, 409):
                    raise
                is_running = "not loaded"
            if is_running != "Running":
                raise ConfigurationError(f"Asterisk's module {module} is needed: {is_running}")
        if version != self.version:
            self.version = version
            logger.info("asterisk found", version=version)

    async def _request(
        self, method: str, path: tuple[str, ...], query: Mapping[str, object], body: object
    ) -> bytes:
        url = "/".join((self._url, *(quote(part, safe="") for part in path)))
        if query:
            url = f"{url}?{urlencode(query)}"
        headers = {"Authorization": self.authorization}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = msgspec.json.encode(body)
        request = httpx2.Request(method, url, headers=headers, content=content)
        status, answer = await self._ask(request)
        if 200 <= status < 300:
            return answer
        raise CarrierError(
            REFUSED
            if status in (401, 403)
            else _message_of(answer) or f"Asterisk answered with status {status}",
            status=status,
            outcome_unknown=status >= 500,
        )

    async def _ask(self, request: httpx2.Request) -> tuple[int, bytes]:
        """Make a request, and say what goes wrong on the way as a :class:`CarrierError`."""
        request.extensions = {"timeout": timeouts(self._timeout_s)}
        try:
            with trio.fail_after(self._timeout_s):
                answer = await self._pool.handle_async_request(request)
                try:
                    content = b""
                    async for part in answer.aiter_bytes():
                        content += part
                        if len(content) > MAX_ANSWER_BYTES:
                            raise CarrierError("ARI's answer is too long", outcome_unknown=True)
                finally:
                    await answer.aclose()
        except trio.TooSlowError as error:
            message = f"Asterisk did not answer within {self._timeout_s:g} s"
            raise CarrierError(message, outcome_unknown=True) from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            name = type(error).__name__
            raise CarrierError(f"Asterisk was not reached: {error or name}") from error
        except httpx2.HTTPError as error:
            message = f"Asterisk was lost: {error or type(error).__name__}"
            raise CarrierError(message, outcome_unknown=True) from error
        return answer.status_code, content


def too_old(version: str) -> str | None:
    """What is wrong with a version of Asterisk, in words; None for one that will do.

    Args:
        version: As ARI tells it, ``22.10.1+dfsg``; one that has no number is somebody's own build.
    """
    found = _VERSION.search(version)
    if found is None or int(found[1]) > max(OLDEST):
        return None
    major, minor = int(found[1]), int(found[2])
    if major in OLDEST and minor >= OLDEST[major]:
        return None
    wanted = ", ".join(f"{known}.{oldest}" for known, oldest in OLDEST.items())
    return (
        f"Asterisk {major}.{minor} is too old: its WebSocket channel needs {wanted} or later, "
        "and the newest of each is best"
    )


def _message_of(answer: bytes) -> str:
    """ARI's own words for a refusal, if they are any."""
    try:
        refusal = msgspec.json.decode(answer, type=_Refusal)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
    return (refusal.message or refusal.error)[:200]
