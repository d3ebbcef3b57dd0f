"""The Quart-Trio app: the service behind its routes."""

from __future__ import annotations

import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response
from quart_schema import (
    APIKeySecurityScheme,
    HttpSecurityScheme,
    Info,
    OpenAPIProvider,
    QuartSchema,
)
from quart_trio import QuartTrio

from server.cluster.doors import ProvedDoor
from server.console import pages as console
from server.hooks.bounded_frames import bound_frames
from server.hooks.http_connection import HttpConnection
from server.hooks.hypercorn_worker import HOW_TO_SERVE, Served, install, refuse_other_servers
from server.hooks.media_socket import (
    MediaWebsocket,
    MediaWebsocketConnection,
    refuse_compression,
)
from server.hooks.routes import Routes
from server.hooks.sockets import say_no_thread_is_the_systems, translate_errors_without_rings
from server.service import Service
from server.settings.settings import Settings
from server.web.browser.page_calls import add_page_calls
from server.web.browser.words import RESUME
from server.web.calls_api import add_calls_api
from server.web.cross_origin import allow_origins
from server.web.elsewhere import Elsewhere, answer_when_away
from server.web.guard import (
    HEALTH,
    METRICS,
    ask_for_keys,
    check_bodies,
    learn_address,
    log_requests,
)
from server.web.health import add_health
from server.web.http_request import LONGEST_BODIES, MAX_BODY_BYTES, HttpRequest
from server.web.kept.events_api import add_events_api
from server.web.kept.exports import add_exports
from server.web.keys import Keys
from server.web.media_door import PAGES, MediaDoor, add_stream
from server.web.once import Once
from server.web.path_prefix import prefix_of, without_name, without_prefix
from server.web.problems import answer_problems
from server.web.static.files import add_pages
from server.web.webhooks import add_webhooks


class _Description(OpenAPIProvider):
    """The description of the API, made once: routes do not change while they are served."""

    _made: dict[str, Any] | None = None

    def schema(self) -> dict[str, Any]:
        """Describe every route."""
        if self._made is None:
            self._made = super().schema()
        return self._made


class OffhookApp(QuartTrio):
    """The server: an ASGI app whose start and end are the service's.

    Args:
        settings: The process's.

    Attributes:
        service: What lives as long as the server.
        keys: Who may use the API.
    """

    asgi_http_class = HttpConnection
    asgi_websocket_class = MediaWebsocketConnection
    request_class = HttpRequest
    websocket_class = MediaWebsocket
    url_map_class = Routes

    def __init__(self, settings: Settings) -> None:
        super().__init__("server", static_folder=None)
        self.service = Service(settings)
        self.keys = Keys.of(settings)
        self._door = MediaDoor(self.service)
        self._console = console.Console(self.service, self.keys)
        self._path_prefix = prefix_of(settings.public_url)
        self._named_paths = frozenset((*self.service.accounts.webhook_paths, "/stream", PAGES))
        self._proved_door: ProvedDoor | None = None
        self.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
        self.config["BODY_TIMEOUT"] = settings.body_timeout_s
        # An answer takes as long as the client's line does: each piece of it has a bound of its own
        # (server/hooks/connections.py), and one that goes on and on ends itself.
        self.config["RESPONSE_TIMEOUT"] = None
        # Calls end within this of a shutdown: their own clean-up, with a little air.
        self.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = settings.close_timeout_s + 2.0
        self.before_serving(self._start)
        self.after_request(self._part_from)
        # What still lives when BACKGROUND_TASK_SHUTDOWN_TIMEOUT has passed is cancelled.
        self.after_serving(self.service.aclose)
        self._add_routes()

    def _add_routes(self) -> None:
        """Give the app every route of the contract, and JSON for every error."""
        service, settings = self.service, self.service.settings
        elsewhere, once = (
            Elsewhere(service),
            Once(service.records, service.cluster, ttl_s=settings.idempotency_ttl_s),
        )
        before = self._paths()
        add_calls_api(self, service, elsewhere, once)
        add_events_api(self, service)
        add_exports(self, service)
        add_page_calls(self, service, elsewhere)
        earlier = self._paths()
        streams = frozenset(("/stream", "/stream/<int:worker>", PAGES))
        signed = streams | frozenset(service.accounts.webhook_paths)
        log_requests(self, quiet_paths=HEALTH | METRICS | signed)
        add_webhooks(self, service, elsewhere)
        add_stream(self, service, self._door)
        allow_origins(self, settings.allowed_origins, earlier - before)
        ask_for_keys(
            self,
            service,
            self.keys,
            signed_paths=signed | {RESUME} | console.OPEN_PATHS,
            by_session=self._console.door.by_session,
        )
        check_bodies(self)  # after the guard: strangers are told nothing about bodies
        learn_address(self, service)
        add_health(self, service, elsewhere)
        add_pages(self, settings.stream_url)
        self._console.add_routes(self)
        answer_problems(self)
        answer_when_away(self)

    def _paths(self) -> frozenset[str]:
        return frozenset(rule.rule for rule in self.url_map.iter_rules())

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve a request, or the server's start and end; under trio only."""
        if scope["type"] == "lifespan" and not trio.lowlevel.in_trio_run():
            await receive()
            message = f"offhook needs trio: {HOW_TO_SERVE}"
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        await super().__call__(scope, receive, send)

    async def asgi_app(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve a request at its path below the public address, or below a process's name."""
        door = self._proved_door
        if door is not None and door.concerns(scope):
            if not await door.answer(self._serve_request, scope, receive, send):
                self.service.metrics.strangers_refused.labels("peer").inc()
            return
        await self._serve_request(scope, receive, send)

    async def _serve_request(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        scope = without_name(without_prefix(scope, self._path_prefix), self._named_paths)
        await super().asgi_app(scope, receive, send)

    async def _part_from(self, response: Response) -> Response:
        # Whoever keeps a connection open is to reach the server that has taken over.
        if self.service.cluster.stands_aside:
            response.headers["Connection"] = "close"
        return response

    async def _start(self) -> None:
        cluster = self.service.cluster
        if self.keys.made is not None and cluster.speaks_for_all:
            # Said once, and not through the log: a key is never in a log line.
            print(  # noqa: T201
                f"offhook: no API_KEY is set; for this run it is {self.keys.made}", file=sys.stderr
            )
        self._proved_door = cluster.proved_door(max_body_bytes=max(LONGEST_BODIES.values()))
        passed_on = partial(cluster.serve, self, self._door.take, max_message_bytes=MAX_BODY_BYTES)
        await self.nursery.start(self.service.run, self._door, passed_on)
        self._console.begin()


def _version() -> str:
    """The version that is installed; a checkout may serve that is not."""
    try:
        return version("offhook")
    except PackageNotFoundError:
        return "not installed"


def create_app(settings: Settings) -> OffhookApp:
    """The ASGI app for these settings; nothing is opened before the server starts it."""
    refuse_other_servers()
    refuse_compression()
    bound_frames()
    translate_errors_without_rings()
    say_no_thread_is_the_systems()
    app = OffhookApp(settings)
    QuartSchema(
        app,
        openapi_provider_class=_Description,
        info=Info(title="Offhook", version=_version()),
        swagger_ui_path=None,
        redoc_ui_path=None,
        scalar_ui_path=None,
        conversion_preference="pydantic",
        security_schemes={
            "bearer": HttpSecurityScheme(scheme="bearer"),
            "key": APIKeySecurityScheme(in_="header", name="X-API-Key"),
        },
        security=[{"bearer": []}, {"key": []}] if app.keys.any_wanted else [],
    )
    service = app.service
    install(app, Served(service.wind_up, service.cluster.join, service.failed))
    return app
