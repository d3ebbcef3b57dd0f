"""Cross-origin requests: which web pages may use the API from a browser (Fetch's CORS).

Off unless ``ALLOWED_ORIGINS`` names some, and for the API's routes only: webhooks, media streams,
health and documentation are no page's business. Credentials are never allowed: a page has to have
a key of its own, and cookies there are none.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from quart import Quart, Response, request

from server.headers import Headers, lines_of, single
from server.settings.values import is_private_name
from server.web.api import error_body

ALL = "*"
_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Traceparent, X-API-Key"
_RESPONSE_HEADERS = "Idempotent-Replayed, Location, Retry-After, WWW-Authenticate"
_PREFLIGHT_LASTS_S = 600


def allow_origins(app: Quart, origins: Collection[str], paths: Collection[str]) -> None:
    """Answer browsers for these origins; call it before what asks for a key.

    Args:
        app: Gets a step before each request and one after it.
        origins: As browsers write them, or ``*`` for all; with none, nothing is done.
        paths: The rules of the routes that may be used from other origins.
    """
    if not origins:
        return

    def is_ours() -> bool:
        return request.url_rule is not None and request.url_rule.rule in paths

    def allowed() -> str | None:
        if ALL in origins:
            return ALL
        given = single(request.headers, "Origin")
        return given if given in origins else None

    @app.before_request
    async def answer_preflight() -> Any:
        # It has no key, and cannot have one.
        if (
            request.method != "OPTIONS"
            or "Access-Control-Request-Method" not in request.headers
            or not is_ours()
        ):
            return None
        if allowed() is None:
            return error_body("forbidden", "ALLOWED_ORIGINS does not name this origin"), 403
        rule = request.url_rule
        methods = sorted(((rule and rule.methods) or set()) - {"HEAD", "OPTIONS"})
        headers = {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": _REQUEST_HEADERS,
            "Access-Control-Max-Age": str(_PREFLIGHT_LASTS_S),
        }
        return "", 204, headers

    @app.after_request
    async def tell_origin(response: Response) -> Response:
        if not is_ours():
            return response
        if ALL not in origins:
            response.vary.add("Origin")
        if "Origin" in request.headers and (origin := allowed()) is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _RESPONSE_HEADERS
        return response


def parts_of(origin: str) -> SplitResult:
    """An origin as a browser writes it, taken apart; all parts are empty of what is no address."""
    try:
        return urlsplit(origin)
    except ValueError:
        return urlsplit("")


def host_of(origin: str) -> str:
    """The host and port of an origin as a browser writes it; empty of what is no address."""
    return parts_of(origin).netloc.lower()


def is_own_page(headers: Headers, public_url: str, origins: Collection[str]) -> bool:
    """Whether a page of this server's asks, or one of an origin that is allowed, or no page at all.

    Browsers keep no page from opening sockets to whomever it likes, or from sending requests whose
    answers it may not read, but each says where it is from. What is no browser says nothing.

    Args:
        headers: Of the upgrade, or of a request that changes something.
        public_url: This server's address.
        origins: Those allowed beside it.
    """
    if not (given := lines_of(headers, "Origin")):
        return True
    origin = given[0].lower()
    if len(given) > 1:
        return False
    own = urlsplit(public_url)
    is_ours = host_of(origin) == (single(headers, "Host") or "-").lower()
    return is_ours or origin in {f"{own.scheme}://{own.netloc}".lower(), *origins} or ALL in origins


def is_own_name(
    headers: Headers, public_url: str, origins: Collection[str], listens_at: str = ""
) -> bool:
    """Whether a request calls this server by a name that nobody else can have made up.

    A site may say that its name is at 127.0.0.1, and a browser then takes its pages for this
    server's own (DNS rebinding). Names that no site can have are an address, this server's own,
    one of an origin that is allowed, and those that the public DNS does not know: for these only
    this network answers (mDNS, a router, a resolver of one's own), which is trusted here.

    Args:
        headers: Of the request.
        public_url: This server's address.
        origins: Those allowed beside it.
        listens_at: The address, or the name, that it was told to listen at.
    """
    host = _name_of(f"//{single(headers, 'Host') or ''}")
    if not host:
        return False
    if is_private_name(host) or _is_address(host):
        return True
    return host in {listens_at.lower().rstrip("."), *map(_name_of, (public_url, *origins))}


def _name_of(url: str) -> str:
    """The host of an address, without its port; empty of what is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
