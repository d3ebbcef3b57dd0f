"""Who is signed in to the console: a cookie that the server has signed, and proof against forgery.

A browser shows its API key once, and gets a cookie in its place that no script can read. The cookie
says whose key it was and until when it counts, signed with a secret that all processes of the
server have; nothing is kept of it here, so any of them believes it, and nothing that a visitor
brings along is ever taken for a session of theirs. A cookie is sent by itself, whichever page asks:
so what changes anything has to bring a token as well, which only a page of ours can read.
"""

from __future__ import annotations

import hmac
import json
import math
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from quart import Quart, Response, g, request
from quart_schema import hide

from server.cluster.directory.meeting import shared_secret
from server.headers import Headers, cookie_of, lines_of, single
from server.service import Service
from server.settings.settings import Settings
from server.switchboard.strangers import came_by_https
from server.web.api import error_body
from server.web.cross_origin import host_of
from server.web.guard import SAFE_METHODS, ForgedRequest
from server.web.keys import UNNAMED, Keys

SESSION_S = 12 * 3600
"""A working day. What has to end sooner ends with its key."""
PATH = "/console/session"
COOKIE, SECURE_COOKIE = "offhook-console", "__Host-offhook-console"
"""The second wherever the page came by https: no other host of the domain can set that one."""
TOKEN_HEADER = "X-Console-Token"
"""Not ``X-Offhook-``: balancers take from a client's request what nodes say to each other."""
MAX_KEY_CHARS = 300
_FORM = re.compile(r"([a-z0-9][a-z0-9_-]{0,31})\.([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in."""

    name: str
    """Of the key that it has shown."""
    token: str
    """What it has to bring along with whatever changes something."""


class Sessions:
    """Makes sessions and knows them again.

    Args:
        keys: Who may use the API.
        secrets: The first one signs, and any is believed.
        wall_time: The world's time.
    """

    def __init__(
        self, keys: Keys, secrets: Sequence[str], wall_time: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._secrets = [secret.encode() for secret in secrets]
        self._wall_time = wall_time

    @classmethod
    def of(cls, settings: Settings, keys: Keys) -> Sessions:
        """The sessions of a server: of all its nodes, or all processes of this one."""
        common = [secret.get_secret_value() for secret in settings.cluster_secret]
        return cls(keys, common or [shared_secret("console session")])

    def begin(self, name: str) -> str:
        """The cookie for whoever has shown the key of this name."""
        until = math.ceil(self._wall_time() + SESSION_S)
        said = f"{name}.{until}.{secrets.token_hex(16)}"
        return f"{said}.{self._signature(self._secrets[0], name, said)}"

    def find(self, cookie: str) -> Session | None:
        """The session that a cookie stands for; None if it is none of ours, or too old."""
        if (parts := _FORM.fullmatch(cookie)) is None:
            return None
        name, until, chance, signature = parts.groups()
        said = f"{name}.{until}.{chance}"
        for secret in self._secrets:
            if hmac.compare_digest(self._signature(secret, name, said), signature):
                if self._wall_time() < int(until) and self._keys.has(name):
                    return Session(name, self._sign(secret, "token", cookie)[:32])
                return None
        return None

    def _signature(self, secret: bytes, name: str, said: str) -> str:
        # With another key of the same name it is another signature: a lost key ends its sessions.
        return self._sign(secret, "session", f"{said} {(self._keys.digest(name) or b'').hex()}")

    def _sign(self, secret: bytes, purpose: str, text: str) -> str:
        return hmac.digest(secret, f"offhook console {purpose} {text}".encode(), "sha256").hex()


def is_from_here(headers: Headers, hosts: frozenset[str]) -> bool:
    """Whether a browser says that a page of ours asks, or says nothing of it.

    Args:
        headers: The request's.
        hosts: Ours, as addresses name them, with the port.
    """
    sites, origins = lines_of(headers, "Sec-Fetch-Site"), lines_of(headers, "Origin")
    if not all(site in ("same-origin", "none") for site in sites):
        return False
    return all(host_of(origin) in hosts for origin in origins)


class Door:
    """Signs browsers in and out, and says who the one is that asks.

    Args:
        service: This process's.
        keys: Who may use the API.
    """

    def __init__(self, service: Service, keys: Keys) -> None:
        self._service = service
        self._keys = keys
        self._sessions = Sessions.of(service.settings, keys)
        public = urlsplit(service.settings.public_url or "")
        self._public = public.netloc.lower()
        self._is_public_secure = public.scheme == "https"

    def by_session(self) -> str | None:
        """The name of the key that the request's browser was signed in with; None for none.

        Raises:
            ForgedRequest: Another page than ours asks in its name.
        """
        if (session := self._session()) is None:
            return None
        if not is_from_here(request.headers, self._hosts()):
            raise ForgedRequest("this session is for the console's own page")
        if request.method not in SAFE_METHODS:
            shown = single(request.headers, TOKEN_HEADER) or ""
            if not hmac.compare_digest(shown.encode(), session.token.encode()):
                raise ForgedRequest(f"show the session's token as {TOKEN_HEADER}")
        g.by_session = True
        return session.name

    def _session(self) -> Session | None:
        shown = cookie_of(request.headers, self._cookie_name())
        return None if shown is None else self._sessions.find(shown)

    def _hosts(self) -> frozenset[str]:
        return frozenset({(single(request.headers, "Host") or "").lower(), self._public} - {""})

    def _is_secure(self) -> bool:
        """Whether the page came by https, to us or to what stands before us."""
        host = (single(request.headers, "Host") or "").lower()
        peer = (request.scope.get("client") or ("",))[0]
        return (
            request.scheme == "https"
            or (self._is_public_secure and host == self._public)
            or came_by_https(peer, request.headers, self._service.settings.trusted_proxies)
        )

    def _cookie_name(self) -> str:
        return SECURE_COOKIE if self._is_secure() else COOKIE

    async def sign_in(self) -> Any:
        """Take a key, and give a session for it."""
        if not is_from_here(request.headers, self._hosts()):
            return error_body("forged", "sign in on the console's own page"), 403
        asked = await request.get_json()
        key = asked.get("key") if isinstance(asked, dict) else None
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_CHARS:
            return error_body("invalid", 'send the key as JSON: {"key": …}'), 422
        name = self._keys.named(key.strip())
        if name is None:
            self._service.metrics.strangers_refused.labels("key").inc()
            return error_body("unauthorized", "there is no such key"), 401
        g.is_stranger = False
        begun = self._sessions.begin(name)
        session = self._sessions.find(begun)
        assert session is not None
        response = self._told(session)
        is_secure = self._is_secure()
        response.set_cookie(
            self._cookie_name(),
            begun,
            max_age=SESSION_S,
            path="/",
            secure=is_secure,
            httponly=True,
            samesite="Strict",
        )
        return response

    async def tell(self) -> Any:
        """Say who is signed in, and what the page has to bring along with what changes things."""
        if not is_from_here(request.headers, self._hosts()):
            return error_body("forged", "this is for the console's own page"), 403
        return self._told(self._session())

    async def sign_out(self) -> Any:
        """Have the browser forget its session."""
        if not is_from_here(request.headers, self._hosts()):
            return error_body("forged", "sign out on the console's own page"), 403
        response = self._told(None)
        response.delete_cookie(
            self._cookie_name(),
            path="/",
            secure=self._is_secure(),
            httponly=True,
            samesite="Strict",
        )
        return response

    def _told(self, session: Session | None) -> Response:
        is_open = not self._keys.any_wanted
        name = UNNAMED if session is None else session.name
        response: Response = Response(
            json.dumps(
                {
                    "signed_in": is_open or session is not None,
                    "needs_key": not is_open,
                    "name": None if session is None else name,
                    "may_change": not self._keys.may_only_look(name),
                    "token": "" if session is None else session.token,
                }
            ),
            content_type="application/json",
        )
        response.cache_control.no_store = True
        return response


def add_sessions(app: Quart, door: Door) -> None:
    """Add the routes by which browsers sign in and out, and keep answers to them out of caches."""

    @app.get(PATH)
    @hide
    async def session() -> Any:
        return await door.tell()

    @app.post(PATH)
    @hide
    async def sign_in() -> Any:
        return await door.sign_in()

    @app.delete(PATH)
    @hide
    async def sign_out() -> Any:
        return await door.sign_out()

    @app.after_request
    async def keep_private(response: Response) -> Response:
        if g.get("by_session", False) and "Cache-Control" not in response.headers:
            response.cache_control.no_store = True
        return response
