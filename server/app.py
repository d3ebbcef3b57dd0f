"""The Quart-Trio app: routes, lifespan, and the only place that names a carrier and a model."""

from __future__ import annotations

import gc
import math
import socket
import sys
from collections.abc import Generator, Mapping
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from quart_schema import APIKeySecurityScheme, HttpSecurityScheme, Info, QuartSchema
from quart_trio import QuartTrio

from codec.path import WebSocket
from server import garbage
from server.agent.agent import DEFAULT_GREETING, DEFAULT_PROMPT, Agent
from server.agent.builtin import hang_up, send_dtmf, transfer_tool, voicemail_reached
from server.agent.greeting import read_greeting
from server.agent.loading import check_names, load_tools
from server.agent.mcp_servers import McpServers, read_servers
from server.agent.tool import Tool
from server.call.costs import Prices
from server.call.options import CallOptions
from server.carrier.transport import QueuedTransport, WireTransport
from server.carrier.twilio.documents import check_sayable
from server.carrier.twilio.messages import StreamCounts
from server.carrier.twilio.rest import TwilioCarrier
from server.carrier.twilio.signature import WebhookVerifier
from server.carrier.twilio.stream import TwilioMediaStream
from server.cluster.workers import Workers, hand_over, shared_secret
from server.dialogue.decisions import Patience
from server.dialogue.ear import BargeInMode
from server.dialogue.opening import GreetingWhen
from server.dialogue.voicemail import VoicemailPolicy
from server.errors import ConfigurationError
from server.hooks.bounded_frames import bound_frames
from server.hooks.detach import detachable
from server.hooks.http_connection import HttpConnection
from server.hooks.hypercorn_worker import HOW_TO_SERVE, Served, install, refuse_other_servers
from server.hooks.media_socket import (
    AcceptedSocket,
    MediaWebsocket,
    MediaWebsocketConnection,
    refuse_compression,
)
from server.media import plane
from server.media.plane import STRANGER, Plane, Wire
from server.metrics import Metrics, add
from server.model.gemini.model import DEFAULT_URL, GeminiModel
from server.model.lasting.model import LastingModel
from server.records.database import check_database
from server.records.recording import Recordings, check_directory
from server.records.store import Records
from server.records.traces import open_traces
from server.settings.settings import Account, Settings
from server.simulators.gemini import SCRIPTS as MODEL_SCRIPTS
from server.simulators.gemini import GeminiSimulator
from server.simulators.phone import find_script
from server.simulators.twilio import FAULTS as CARRIER_FAULTS
from server.simulators.twilio import TwilioSimulator
from server.sockets import file_limit
from server.supervision import Start, keep_going, without_start
from server.switchboard.admission import Admission, Limits
from server.switchboard.calls import Calls, Claim
from server.switchboard.destinations import Destinations
from server.switchboard.strangers import Strangers, most_strangers
from server.web.http_request import MAX_BODY_BYTES, HttpRequest
from server.web.idempotency import Idempotency
from server.web.keys import UNNAMED, Keys, hash_key, made_key
from server.web.pass_on import relay_media
from server.web.path_prefix import prefix_of, without_prefix
from server.web.routes import add_routes

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TWILIO_CALLS_PER_S = 1.0
"""What Twilio dials for an account that has not asked for more."""
SIMULATED_NUMBER = "+15005550006"
"""Twilio's own magic number that is always a valid caller (test credentials)."""


@dataclass(frozen=True, slots=True)
class _ClaimedWire:
    """A media socket on the plane, with the call it belongs to."""

    wire: Wire
    media: TwilioMediaStream
    claim: Claim


class OffhookApp(QuartTrio):
    """The server. Everything that lives as long as it does hangs here."""

    asgi_http_class = HttpConnection
    asgi_websocket_class = MediaWebsocketConnection
    request_class = HttpRequest
    websocket_class = MediaWebsocket

    calls: Calls
    verifier: WebhookVerifier
    carrier: TwilioCarrier
    simulated_twilio: TwilioSimulator | None = None
    simulated_gemini: GeminiSimulator | None = None

    def __init__(self, settings: Settings) -> None:
        super().__init__("server", static_folder=None)
        _check_scripts(settings)
        if settings.apology is not None:
            check_sayable(settings.apology, "APOLOGY")
        self.settings = settings
        self.failed = trio.Event()
        """Set when the inside has ended by a fault: whoever serves this is to end the process."""
        self._stopping = False
        self._knows_address = settings.public_url is not None or settings.account is not None
        self.workers = Workers()
        self._path_prefix = prefix_of(settings.public_url)
        self.metrics = Metrics(CollectorRegistry())
        self._agent = Agent(
            prompt=settings.agent_prompt or DEFAULT_PROMPT,
            greeting=DEFAULT_GREETING
            if settings.agent_greeting is None
            else settings.agent_greeting,
            greeting_text=settings.greeting_text or "",
            greeting_audio=read_greeting(settings.greeting_wav) if settings.greeting_wav else b"",
            voicemail=settings.voicemail_message or "",
            apology=settings.apology or "",
            voice=settings.gemini_voice,
            language=settings.agent_language,
            tools=_tools(settings),
        )
        secret = settings.mcp_servers
        self.mcp_servers = McpServers(
            read_servers(secret.get_secret_value() if secret is not None else None),
            connect_timeout_s=settings.mcp_connect_timeout_s,
        )
        self.plane = Plane() if settings.media_path == "fast" and plane.AVAILABLE else None
        # Of any size: what comes is taken at once, and each was claimed by a call of its own.
        self._claimed_in, self._claimed_out = trio.open_memory_channel[_ClaimedWire](math.inf)
        self._made_key: str | None = None
        self.keys = Keys(self._key_hashes())
        self.traces = open_traces(wanted=settings.traces)
        self.idempotency = Idempotency(ttl_s=settings.idempotency_ttl_s)
        self.destinations = Destinations(
            settings.allowed_prefixes, refuse_costly=not self.is_simulated
        )
        check_database(settings.database_url.get_secret_value())
        self.records = Records(
            settings.database_url.get_secret_value(),
            metrics=self.metrics,
            retention_days=settings.retention_days or None,
            requests_ttl_s=settings.idempotency_ttl_s,
        )
        self.recordings: Recordings | None = None
        if settings.recordings_dir is not None:
            check_directory(settings.recordings_dir)
            self.recordings = Recordings(
                settings.recordings_dir,
                metrics=self.metrics,
                retention_days=settings.retention_days or None,
            )
        self.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
        self.config["BODY_TIMEOUT"] = settings.body_timeout_s
        # Calls end within this of a shutdown: their own clean-up, with a little air.
        self.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = settings.close_timeout_s + 2.0
        self.before_serving(self._start)
        self.after_serving(self._stop)

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
        """Serve a request at its path below the public address."""
        await super().asgi_app(without_prefix(scope, self._path_prefix), receive, send)

    @property
    def agent(self) -> Agent:
        """Who answers, with the tools there are at this moment."""
        if not (offered := self.mcp_servers.tools):
            return self._agent
        return replace(self._agent, tools=(*self._agent.tools, *offered))

    @property
    def is_simulated(self) -> bool:
        """Whether no account is set, so that the embedded helpers run."""
        return self.settings.account is None

    def note_address(self, scheme: str, server: tuple[str, int | None] | None) -> None:
        """Learn from a request where this server listens, if only helpers need to know.

        hypercorn does not tell an app its address, and ``-b`` on its command line changes it. A
        real carrier is only ever told ``PUBLIC_URL``.
        """
        if self._knows_address or server is None or not server[1]:
            return
        # Once: whoever reaches the server by another of its addresses is not to change what the
        # streams of calls are signed for.
        self._knows_address = True
        host, port = server
        url = _local_url("127.0.0.1" if host in ("0.0.0.0", "::") else host, port, scheme)
        if url != self.public_url:
            self._reach_at(url)

    def _reach_at(self, url: str) -> None:
        self.public_url = url
        self.carrier.reach_at(url)
        self.verifier = self._make_verifier(url)

    def _make_verifier(self, url: str) -> WebhookVerifier:
        keys = self.settings.twilio_shared_keys
        shared_keys = {key: secret.get_secret_value() for key, secret in keys.items()}
        return WebhookVerifier(self._auth_token, url, shared_keys=shared_keys)

    async def drain(self) -> None:
        """Refuse new calls and end the live ones, within ``drain_timeout_s`` and a goodbye."""
        await self.calls.drain(self.settings.drain_timeout_s)

    def begin_drain(self) -> None:
        """Drain without waiting for it."""
        self.calls.draining = True  # the next request already sees it
        self.workers.publish()
        self.add_background_task(self.drain)

    async def serve_media(self, websocket: MediaWebsocket, address: str = "") -> None:
        """Accept a media socket and serve its call; on the media plane where that can be.

        There, this returns as soon as the socket has shown its ticket: the request has done its
        part, and a call is not to hold what belongs to it (a quarter of its memory) for minutes.

        Args:
            websocket: Not accepted yet.
            address: Where it comes from if nothing has vouched for it yet.
        """
        connection = None if self.plane is None else detachable(websocket.scope)
        if self.plane is None or connection is None:
            self._note_path("ordinary")
            await websocket.accept()
            await self._serve_queued(QueuedTransport(AcceptedSocket(websocket)), address)
            return
        async with connection.detach() as lent:
            wire = self._wire(self.plane, lent)
            try:
                await websocket.accept()
                claimed = await self._claim(wire, address)
            except BaseException:
                wire.close()
                raise
            if claimed is not None:
                self._claimed_in.send_nowait(claimed)

    async def _serve_queued(self, transport: QueuedTransport, address: str) -> None:
        """Serve a media socket that is no wire; its tasks live here for as long as its call."""
        with self._counted(TwilioMediaStream(transport)) as media:
            claim = await self.calls.claim(media, address)
            if claim is None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transport.run)
                await claim.call.serve(media, claim.started)
                nursery.cancel_scope.cancel("its call is over")

    async def hand_media_over(
        self, websocket: MediaWebsocket, number: int, facts: Mapping[str, Any]
    ) -> None:
        """Give a media socket to the process whose call it belongs to.

        Where there is a media plane, the connection itself goes there as soon as it is accepted:
        what the carrier sends meanwhile waits in it. Elsewhere its messages are relayed.

        Raises:
            WorkerLost: That process is gone.
        """
        self.metrics.passed_on.labels("stream").inc()
        connection = None if self.plane is None else detachable(websocket.scope)
        if connection is None:
            stream = await self.workers.connect(number, "http")
            headers = self.workers.passed_on_headers(websocket.scope)
            await relay_media(
                websocket,
                stream,
                headers,
                number=number,
                max_message_bytes=MAX_BODY_BYTES,
                timeout_s=self.settings.close_timeout_s,
            )
            return
        stream = await self.workers.connect(number, "media")
        async with stream, connection.detach() as lent:
            with lent:
                await websocket.accept()
                await hand_over(stream, lent, facts)
                connection.give_away()

    async def _take_media(self, sock: socket.socket, facts: Mapping[str, Any]) -> None:
        """Serve a media socket that another process has accepted."""
        assert self.plane is not None
        wire = self._wire(self.plane, sock)
        try:
            claimed = await self._claim(wire, facts["address"])
        except BaseException:
            wire.close()
            raise
        if claimed is not None:
            self._claimed_in.send_nowait(claimed)

    def _wire(self, plane: Plane, sock: socket.socket) -> Wire:
        self._note_path("fast")
        websocket = WebSocket(is_client=False, max_message_bytes=MAX_BODY_BYTES)
        try:
            return Wire(plane, sock, websocket, bounds=STRANGER)
        except BaseException:
            sock.close()
            raise

    async def _claim(self, wire: Wire, address: str) -> _ClaimedWire | None:
        """Wait until a wire has shown its ticket; one that has none is closed, and None.

        What comes back is to be served without a wait in between, in which the call could end and
        its socket be nobody's.
        """
        media = TwilioMediaStream(WireTransport(wire))
        claim = await self.calls.claim(media, address)
        if claim is not None and not claim.call.is_over:
            wire.trust()
            return _ClaimedWire(wire, media, claim)
        await wire.wait_ended(timeout_s=self.settings.close_timeout_s)
        self._count(media.counts)
        wire.close()
        return None

    async def _serve_claimed(self) -> None:
        """Serve the calls' sockets that are on the plane, until the last of them is closed."""
        async with trio.open_nursery() as nursery:
            async for claimed in self._claimed_out:
                nursery.start_soon(self._serve_wire, claimed)

    async def _serve_wire(self, claimed: _ClaimedWire) -> None:
        try:
            with closing(claimed.wire):
                with self._counted(claimed.media) as media:
                    await claimed.claim.call.serve(media, claimed.claim.started)
                # The call has gone; only its socket waits here for the carrier's goodbye.
                await claimed.wire.wait_ended(timeout_s=self.settings.close_timeout_s)
        except* Exception as failures:
            # Of one call, not of others.
            logger.exception("media stream failed by a bug of ours", exc_info=failures)

    def _note_path(self, path: str) -> None:
        self.metrics.media_streams.labels(path).inc()
        logger.debug("media stream accepted", path=path)

    @contextmanager
    def _counted(self, media: TwilioMediaStream) -> Generator[TwilioMediaStream]:
        """Add what a stream has counted to the metrics when it is over."""
        try:
            yield media
        finally:
            self._count(media.counts)

    def _count(self, counts: StreamCounts) -> None:
        add(self.metrics.lost_frames.labels("carrier"), counts.missing_chunks)
        odd = {
            "malformed": counts.malformed,
            "unknown": counts.unknown,
            "misplaced": counts.misplaced,
            "foreign": counts.foreign,
            "binary": counts.binary,
            "repeated-chunk": counts.repeated_chunks,
            "timestamp-jump": counts.timestamp_jumps,
        }
        for what, count in odd.items():
            if count:
                self.metrics.odd_messages.labels(what).inc(count)

    def _key_hashes(self) -> dict[str, str]:
        settings = self.settings
        hashes = dict(settings.api_keys)
        if settings.api_key is not None:
            hashes[UNNAMED] = hash_key(settings.api_key.get_secret_value())
        if not hashes and not self.is_simulated:
            self._made_key = made_key(shared_secret("API key"))
            hashes[UNNAMED] = hash_key(self._made_key)
        return hashes

    def _tell_made_key(self) -> None:
        """Say it once, and not through the log: a key is never in a log line."""
        if self._made_key is not None and self.workers.number == 0:
            print(  # noqa: T201
                f"offhook: no API_KEY is set; for this run it is {self._made_key}", file=sys.stderr
            )

    async def _start(self) -> None:
        await self.nursery.start(self._run)

    async def _stop(self) -> None:
        self._stopping = True
        # What still lives when BACKGROUND_TASK_SHUTDOWN_TIMEOUT has passed is cancelled.
        await self.calls.aclose()

    async def _run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own what is inside, from start-up to shutdown, and say so if it ends in between.

        HTTP would go on without it, ready and of no use. What is raised before the start is over is
        left to whoever starts the app.
        """
        start = Start(task_status)
        try:
            await self._run_inside(start)
        except* Exception as failures:
            if not start.is_over:
                raise
            logger.critical("the inside of the server has failed", exc_info=failures)
        finally:
            if start.is_over and not self._stopping:
                self.failed.set()

    async def _run_inside(self, start: Start) -> None:
        settings = self.settings
        options = CallOptions(
            prewarm=settings.prewarm,
            lead_s=settings.lead_s,
            mark_every_s=settings.mark_every_s,
            greeting_when=GreetingWhen(settings.greeting_when),
            greeting_deadline_s=settings.greeting_deadline_s,
            greeting_protect_s=settings.greeting_protect_s,
            greeting_hello_s=settings.greeting_hello_s,
            barge_in=BargeInMode(settings.barge_in),
            barge_in_confirm_s=settings.barge_in_confirm_s,
            barge_in_hint=settings.barge_in_hint,
            speech_end_s=settings.speech_end_s,
            patience=Patience(
                reply_timeout_s=settings.reply_timeout_s,
                rung_timeout_s=settings.rung_timeout_s,
                greeting_retry_s=settings.greeting_retry_s,
                thinking_timeout_s=settings.thinking_timeout_s,
                stall_timeout_s=settings.stall_timeout_s,
                silence_timeout_s=settings.silence_timeout_s,
                silence_prompts=settings.silence_prompts,
                wrap_up_s=settings.wrap_up_s,
                farewell_timeout_s=settings.farewell_timeout_s,
            ),
            media_timeout_s=settings.media_timeout_s,
            answer_timeout_s=settings.ring_timeout_s + 60.0,
            max_duration_s=settings.max_call_duration_s,
            farewell_timeout_s=settings.farewell_timeout_s,
            transfer_ring_timeout_s=settings.transfer_ring_timeout_s,
            tool_timeout_s=settings.tool_timeout_s,
            dtmf_pause_s=settings.dtmf_pause_s,
            voicemail=VoicemailPolicy(settings.voicemail),
            voicemail_timeout_s=settings.voicemail_timeout_s,
            close_timeout_s=settings.close_timeout_s,
            max_cost_usd=settings.max_call_cost_usd,
            transcripts=settings.transcripts,
            full_numbers=settings.record_numbers == "full",
        )
        async with (
            AsyncExitStack() as stack,
            trio.open_nursery() as keepers,  # what calls need to the very end, even of a fault
            trio.open_nursery() as helpers,
        ):
            if self.plane is not None:
                await keepers.start(self.plane.run)
            stack.callback(self.workers.leave)
            self._tell_made_key()
            if settings.account is None:
                model = await self._simulate(keepers)
            else:
                model = self._use_accounts(settings.account)
            await keepers.start(self.records.run)
            await helpers.start(keep_going, "mcp servers", self.mcp_servers.run)
            if self.recordings is not None:
                await keepers.start(keep_going, "recordings", self.recordings.run)
            await stack.enter_async_context(self.carrier)
            if self.workers.are_several:
                self.carrier.stream_path = f"/stream/{self.workers.number}"
            admission = Admission(self._limits(), self.metrics)
            self.carrier.on_wait = lambda wait_s: admission.pause_dialling(
                trio.current_time() + wait_s
            )
            helpers.start_soon(keep_going, "loop lag", without_start(admission.watch_lag))
            self.calls = Calls(
                carrier=self.carrier,
                model=model,
                metrics=self.metrics,
                options=options,
                admission=admission,
                records=self.records,
                recordings=self.recordings,
                prices=Prices(settings.carrier_minute_usd, self.own_number),
                ticket_ttl_s=settings.ticket_ttl_s,
                start_timeout_s=settings.start_timeout_s,
                recent_calls=settings.recent_calls,
                traces=self.traces,
                strangers=Strangers(
                    per_address=settings.max_strangers_per_address,
                    in_all=most_strangers(file_limit()),
                ),
                workers=self.workers,
                callback_wait_s=settings.callback_wait_s or math.inf,
            )
            helpers.start_soon(keep_going, "model tries", without_start(self.calls.try_model))
            if self.workers.are_several:
                self.workers.report = self.calls.load
                serve = partial(
                    self.workers.serve, self, self._take_media, max_message_bytes=MAX_BODY_BYTES
                )
                await helpers.start(keep_going, "workers", serve)
            if settings.max_call_cost_usd is not None and Prices().of_model(model.name) is None:
                logger.warning("MAX_CALL_COST_USD caps the carrier's part only", model=model.name)
            if self.workers.number == 0:
                for warning in settings.warnings:
                    logger.warning("a setting may be a mistake", what=warning)
            logger.info(
                "offhook ready",
                carrier=self.carrier.name,
                model=model.name,
                public_url=self.public_url,
                simulated=self.is_simulated,
                worker=self.workers.number if self.workers.are_several else None,
            )
            # What start-up has made stays for good. To go through it again and again, a tenth of a
            # second at a time, would hold up every call at once.
            gc.collect()
            gc.freeze()
            collect = partial(garbage.collect, lambda: self.calls.live_count)
            helpers.start_soon(keep_going, "garbage", without_start(collect))
            async with trio.open_nursery() as streams:
                streams.start_soon(self._serve_claimed)
                await self.calls.run(start)
                await self._claimed_in.aclose()
            await self._close_traces()
            helpers.cancel_scope.cancel()
            keepers.cancel_scope.cancel()

    async def _close_traces(self) -> None:
        with trio.move_on_after(self.settings.close_timeout_s):
            try:
                await trio.to_thread.run_sync(self.traces.close, abandon_on_cancel=True)
            except Exception:
                logger.exception("traces not sent")  # somebody else's package, and all is over

    def _limits(self) -> Limits:
        settings = self.settings
        calls_per_s = settings.calls_per_s
        if calls_per_s is None:
            calls_per_s = math.inf if self.is_simulated else TWILIO_CALLS_PER_S
        # Lines and sessions are counted over all processes; of the carrier's rate each has a share.
        processes = self.workers.count
        return Limits(
            max_calls=settings.max_calls,
            max_model_sessions=settings.max_model_sessions,
            calls_per_s=calls_per_s / processes,
            max_dial_wait_s=settings.max_dial_wait_s,
            max_waiting_calls=math.ceil(settings.max_waiting_calls / processes),
            max_loop_lag_s=settings.max_loop_lag_s,
            quota_pause_s=settings.quota_pause_s,
        )

    async def _simulate(self, nursery: trio.Nursery) -> LastingModel:
        """Start a small Twilio and a small Gemini Live on loopback, and use those."""
        settings = self.settings
        # Another process may be asked to look at a webhook's signature.
        account_sid = f"AC{shared_secret('simulated account')}"
        auth_token = shared_secret("simulated token")
        api_key = shared_secret("simulated key")
        twilio = self.simulated_twilio = TwilioSimulator(
            account_sid=account_sid,
            auth_token=auth_token,
            phone_number=SIMULATED_NUMBER,
            script=settings.simulated_callee,
            faults=CARRIER_FAULTS[settings.simulated_carrier],
            ring_s=settings.simulated_ring_s,
            recordings_dir=settings.recordings_dir,
        )
        gemini = self.simulated_gemini = GeminiSimulator(
            api_key=api_key, script=MODEL_SCRIPTS[settings.simulated_model]
        )
        await nursery.start(twilio.run)
        await nursery.start(gemini.run)
        self._use_twilio(
            account_sid,
            auth_token,
            SIMULATED_NUMBER,
            public_url=settings.public_url or _local_url(settings.host, settings.port),
            api_url=twilio.api_url,
            name="simulator",
        )
        return self._gemini(api_key, gemini.url)

    def _use_accounts(self, account: Account) -> LastingModel:
        self._use_twilio(
            account.twilio_account_sid,
            account.twilio_auth_token,
            account.twilio_phone_number,
            public_url=account.public_url,
            api_url=self.settings.twilio_api_url,
            name="twilio",
            proxy=_text(self.settings.twilio_proxy),
            api_key=account.twilio_api_key,
        )
        return self._gemini(
            account.gemini_api_key,
            self.settings.gemini_url or DEFAULT_URL,
            proxy=_text(self.settings.gemini_proxy),
        )

    def _gemini(self, api_key: str, url: str, proxy: str | None = None) -> LastingModel:
        settings = self.settings
        timeout_s = settings.model_connect_timeout_s
        model = GeminiModel(
            api_key=api_key,
            model=settings.gemini_model,
            url=url,
            connect_timeout_s=timeout_s,
            plane=self.plane,
            proxy=proxy,
        )
        other_key = settings.fallback_gemini_api_key
        fallback = None
        if settings.fallback_gemini_model or settings.fallback_gemini_url or other_key:
            fallback = GeminiModel(
                api_key=other_key.get_secret_value() if other_key else api_key,
                model=settings.fallback_gemini_model or settings.gemini_model,
                url=settings.fallback_gemini_url or url,
                connect_timeout_s=timeout_s,
                plane=self.plane,
                proxy=proxy,
            )
        return LastingModel(
            model,
            fallback=fallback,
            connection_age_s=settings.model_connection_age_s,
            reconnect_budget_s=settings.model_reconnect_budget_s,
        )

    def _use_twilio(
        self,
        account_sid: str,
        auth_token: str,
        phone_number: str,
        *,
        public_url: str,
        api_url: str | None,
        name: str,
        proxy: str | None = None,
        api_key: tuple[str, str] | None = None,
    ) -> None:
        self.public_url = public_url
        self.own_number = phone_number
        self._auth_token = auth_token
        self.verifier = self._make_verifier(public_url)
        self.carrier = TwilioCarrier(
            account_sid=account_sid,
            auth_token=auth_token,
            phone_number=phone_number,
            public_url=public_url,
            api_url=api_url,
            name=name,
            ring_timeout_s=self.settings.ring_timeout_s,
            request_timeout_s=self.settings.carrier_timeout_s,
            proxy=proxy,
            api_key=api_key,
        )


def _tools(settings: Settings) -> tuple[Tool, ...]:
    """What the agent may call: ours, as far as they are wanted, and the user's."""
    unwanted = {hang_up.name, send_dtmf.name} - set(settings.built_in_tools)
    unwanted.add(voicemail_reached.name)
    ours = [tool for tool in load_tools(["server.agent.builtin"]) if tool.name not in unwanted]
    if settings.transfer_targets and "transfer" in settings.built_in_tools:
        ours.append(transfer_tool(settings.transfer_targets))
    if settings.voicemail != "ignore":
        ours.append(voicemail_reached)
    return check_names((*ours, *load_tools(settings.tools)))


def _local_url(host: str, port: int | None, scheme: str = "http") -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _check_scripts(settings: Settings) -> None:
    try:
        find_script(settings.simulated_callee)
    except ValueError as error:
        raise ConfigurationError(f"SIMULATED_CALLEE: {error}") from None
    if settings.simulated_model not in MODEL_SCRIPTS:
        known = ", ".join(MODEL_SCRIPTS)
        raise ConfigurationError(f"SIMULATED_MODEL: there is no such script; there are {known}")
    if settings.simulated_carrier not in CARRIER_FAULTS:
        known = ", ".join(CARRIER_FAULTS)
        raise ConfigurationError(f"SIMULATED_CARRIER: there is no such script; there are {known}")


def create_app(settings: Settings) -> OffhookApp:
    """The ASGI app for these settings; nothing is opened before the server starts it."""
    refuse_other_servers()
    refuse_compression()
    bound_frames()
    app = OffhookApp(settings)
    QuartSchema(
        app,
        info=Info(title="Offhook", version="0.1.0"),
        redoc_ui_path=None,
        scalar_ui_path=None,
        conversion_preference="pydantic",
        security_schemes={
            "bearer": HttpSecurityScheme(scheme="bearer"),
            "key": APIKeySecurityScheme(in_="header", name="X-API-Key"),
        },
        security=[{"bearer": []}, {"key": []}] if app.keys.any_wanted else [],
    )
    add_routes(app)
    install(app, Served(app.drain, app.workers.join, app.failed))
    return app
