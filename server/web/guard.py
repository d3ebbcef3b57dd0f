"""What every request goes through: it is logged, asked for a key, and its body looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import structlog
import trio
from quart import Quart, Response, g, request
from werkzeug.exceptions import BadRequest

from server.cluster.passing_on import CLIENT, PASSED_ON
from server.errors import ServerError
from server.logs import Sparing
from server.service import Service
from server.web.api import MAX_MEMBERS, error_body, field_errors, has_too_many_members, invalid
from server.web.cross_origin import is_own_name, is_own_page
from server.web.http_request import LONGEST_BODIES
from server.web.keys import UNNAMED, Keys
from server.web.static import files as static

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

HEALTH = frozenset({"/healthz", "/readyz"})
METRICS = frozenset({"/metrics"})
DESCRIPTION = frozenset({"/openapi.json"})
NOTHING_THERE = frozenset({404, 405})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""In the log; others are of a client's own invention."""


SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""What a key that may only look is for."""


class ForgedRequest(ServerError):
    """A browser that is signed in was made to ask for something by another page than ours."""


def ask_for_keys(
    app: Quart,
    service: Service,
    keys: Keys,
    *,
    signed_paths: frozenset[str],
    by_session: Callable[[], str | None] = lambda: None,
) -> None:
    """Ask for a key wherever neither a signature does that nor a setting says otherwise.

    Args:
        app: Gets a step before each request.
        service: This process's.
        keys: Who may use the API.
        signed_paths: Rules and paths that see to that themselves, by signature or otherwise.
        by_session: The name of the key that the request's browser was signed in with, or None;
            raises :class:`ForgedRequest`.
    """
    open_paths = HEALTH | static.PATHS | signed_paths
    if service.settings.public_metrics:
        open_paths |= METRICS
    if service.settings.public_docs:
        open_paths |= DESCRIPTION

    @app.before_request
    async def check_key() -> Any:
        # What is not open needs a key, so that a new route is never open by oversight.
        g.client, g.is_stranger = UNNAMED, keys.any_wanted
        if request.path in open_paths or request.path.startswith(static.BELOW):
            return None
        if not keys.any_wanted:
            return refuse_other_sites()
        # What is passed on by one of ours comes without the key, which is nobody else's business,
        # but with the name of it. Nobody else can say one: no client writes in a scope.
        scope = cast("dict[str, Any]", request.scope)
        try:
            is_ours = PASSED_ON in scope
            client = scope.get(CLIENT) if is_ours else keys.identify(request.headers)
            if client is None and not is_ours:
                client = by_session()
        except ForgedRequest as error:
            service.metrics.strangers_refused.labels("key").inc()
            return error_body("forged", str(error)), 403
        if client is not None and keys.has(client):
            g.client, g.is_stranger = client, False
            scope[CLIENT] = client
            if request.method not in SAFE_METHODS and keys.may_only_look(client):
                return error_body("read-only", "this key may only look"), 403
            return None
        service.metrics.strangers_refused.labels("key").inc()
        body = error_body("unauthorized", "show the API key as Authorization: Bearer or X-API-Key")
        return body, 401, {"WWW-Authenticate": "Bearer"}

    def refuse_other_sites() -> Any:
        # Who needs no key needs no answer either: any page that the developer's browser shows could
        # have it place and end calls here.
        if PASSED_ON in request.scope:
            return None
        own = service.accounts.public_url, service.settings.allowed_origins
        if not is_own_name(request.headers, *own, service.settings.host):
            message = "any site can say that this host is its own: set PUBLIC_URL to it, or API_KEY"
        elif request.method in SAFE_METHODS or is_own_page(request.headers, *own):
            return None
        else:
            message = "no other site's page changes anything here: see ALLOWED_ORIGINS"
        g.is_stranger = True
        service.metrics.strangers_refused.labels("key").inc()
        return error_body("forged", message), 403


def check_bodies(app: Quart) -> None:
    """Refuse requests for a call whose body is no JSON object, or one of far too many members."""

    @app.before_request
    async def check_body() -> Any:
        if request.path not in LONGEST_BODIES or request.method != "POST":
            return None
        fields = field_errors(None)
        try:
            if isinstance(body := await request.get_json(), dict):
                if not has_too_many_members(body):
                    return None
                fields = {"": f"no object in it may have more than {MAX_MEMBERS} members"}
        except BadRequest as error:
            fields = {"": f"the body {error.description}"}
        return invalid(fields, 400).response()


def learn_address(app: Quart, service: Service) -> None:
    """Have simulators reach this server where requests do."""

    @app.before_request
    async def learn() -> None:
        service.accounts.note_address(request.scope["scheme"], request.scope.get("server"))


def log_requests(app: Quart, *, quiet_paths: frozenset[str]) -> None:
    """One line for each request: by its route, as a path may have anything in it.

    Of what nobody has vouched for, be it without a key or for nothing that there is, one line is
    logged now and then: a stranger must not be able to fill a disk.
    """
    strangers = Sparing()

    @app.before_request
    async def begin() -> None:
        g.began_at = trio.current_time()

    @app.after_request
    async def log(response: Response) -> Response:
        rule = request.url_rule
        route = "none" if rule is None else rule.rule
        is_told_elsewhere = PASSED_ON in request.scope
        is_quiet = route in quiet_paths or is_told_elsewhere
        facts = {}
        # A request that failed early has not come to the guard.
        if not is_quiet and (g.get("is_stranger", True) or response.status_code in NOTHING_THERE):
            if not strangers.may_log(trio.current_time()):
                return response
            facts["unlogged"] = strangers.take_unlogged()
        (logger.debug if is_quiet else logger.info)(
            "request",
            method=request.method if request.method in METHODS else "other",
            route=route,
            status=response.status_code,
            client=g.get("client"),
            took_ms=round((trio.current_time() - g.get("began_at", trio.current_time())) * 1000, 1),
            **facts,
        )
        return response
