"""The routes: what clients, the carrier and whoever runs the server may ask."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx2
import structlog
import trio
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from quart import Response, g, request, websocket
from quart_schema import (
    RequestSchemaValidationError,
    document_headers,
    document_response,
    hide,
    validate_querystring,
    validate_request,
)
from werkzeug.exceptions import BadRequest, HTTPException

from server.cluster.board import Member
from server.cluster.workers import GIVEN, PASSED_ON, WorkerLost
from server.dialogue.endings import EndReason
from server.errors import CallRefused, CarrierError, StreamEnded
from server.headers import lines_of, single
from server.logs import Sparing, log_stranger
from server.metrics import merged
from server.records.words import RecordsUnavailable, StoredRequest
from server.switchboard.calls import Page
from server.switchboard.strangers import client_address
from server.web.api import (
    CallList,
    CallMade,
    CallRecord,
    Drain,
    ErrorBody,
    ListCalls,
    MakeCall,
    MakeCallHeaders,
    Ready,
    error_body,
    field_errors,
)
from server.web.cross_origin import allow_origins
from server.web.idempotency import MAX_KEY_CHARS, Answer, fingerprint_of, key_reused
from server.web.keys import UNNAMED
from server.web.webhooks import Webhooks, target_of

if TYPE_CHECKING:
    from server.app import OffhookApp

_Handler = TypeVar("_Handler", bound=Callable[..., Any])

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


HEALTH = frozenset({"/healthz", "/readyz"})
METRICS = frozenset({"/metrics"})
DOCS = frozenset({"/docs", "/openapi.json"})
NOTHING_THERE = frozenset({404, 405})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""In the log; others are of a client's own invention."""
RECORDING_PIECE_BYTES = 64 * 1024
IDEMPOTENCY_KEY = "Idempotency-Key"
FINAL = "X-Offhook-Final"
"""Between processes: to ask for this call again could ring a phone twice."""
PASSED_BACK = (
    "Content-Type",
    "Location",
    "Retry-After",
    "WWW-Authenticate",
    "Idempotent-Replayed",
)
REPLAYED = {"Idempotent-Replayed": "true"}
RECORDS_PAUSE_S = 5
"""When to come back after the database did not answer."""
WORKER_PAUSE_S = 2
"""When another process will be in the place of one that is gone."""
CARRIER_PAUSE_S = 5.0
"""When to come back after the carrier had too many requests, if it has not said for how long."""


def add_routes(app: OffhookApp) -> None:
    """Give the app every route of the contract, and JSON for every error."""
    others = Others(app)
    before = _paths(app)
    _add_api(app, others)
    earlier = _paths(app)
    webhooks = Webhooks(app)
    _add_webhooks(app, others, webhooks)
    signed_paths = _paths(app) - earlier
    _log_requests(app, quiet_paths=HEALTH | METRICS | signed_paths)
    app.before_request(webhooks.find_astray)
    allow_origins(app, app.settings.allowed_origins, earlier - before)
    _guard(app, signed_paths=signed_paths)
    _check_bodies(app)  # after the guard: strangers are told nothing about bodies
    _learn_address(app)
    _add_health(app, others)
    _add_errors(app)


def _paths(app: OffhookApp) -> frozenset[str]:
    return frozenset(rule.rule for rule in app.url_map.iter_rules())


def _guard(app: OffhookApp, *, signed_paths: frozenset[str]) -> None:
    """Ask for a key wherever neither a signature does that nor a setting says otherwise."""
    open_paths = HEALTH | signed_paths
    if app.settings.public_metrics:
        open_paths |= METRICS
    if app.settings.public_docs:
        open_paths |= DOCS

    @app.before_request
    async def check_key() -> Any:
        # What is not open needs a key, so that a new route is never open by oversight.
        g.client, g.is_stranger = UNNAMED, app.keys.any_wanted
        if not app.keys.any_wanted or request.path in open_paths:
            return None
        client = app.keys.identify(request.headers)
        if client is not None:
            g.client, g.is_stranger = client, False
            return None
        app.metrics.strangers_refused.labels("key").inc()
        body = error_body("unauthorized", "show the API key as Authorization: Bearer or X-API-Key")
        return body, 401, {"WWW-Authenticate": "Bearer"}


def _check_bodies(app: OffhookApp) -> None:
    @app.before_request
    async def check_body() -> Any:
        if request.path != "/make-call" or request.method != "POST":
            return None
        fields = field_errors(None)
        try:
            if isinstance(await request.get_json(), dict):
                return None
        except BadRequest as error:
            fields = {"": f"the body {error.description}"}
        return error_body("invalid", "the request is not valid", fields=fields), 400


def _learn_address(app: OffhookApp) -> None:
    @app.before_request
    async def learn_address() -> None:
        app.note_address(request.scope["scheme"], request.scope.get("server"))


def _log_requests(app: OffhookApp, *, quiet_paths: frozenset[str]) -> None:
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


def _refused(app: OffhookApp, refusal: CallRefused) -> Answer:
    app.metrics.calls_refused.labels(refusal.reason).inc()
    facts = {} if refusal.position is None else {"position": refusal.position}
    return Answer(
        error_body(refusal.reason, str(refusal), **facts),
        refusal.status,
        _retry_after(refusal.retry_after_s),
    )


def _retry_after(wait_s: float | None) -> dict[str, str]:
    return {} if wait_s is None else {"Retry-After": str(max(1, math.ceil(wait_s)))}


def _respond(answer: Answer, **headers: str) -> Any:
    return dict(answer.body), answer.status, {**answer.headers, **headers}


# ------------------------------------------------------------------------------------------
# What another process of this server has to answer


class Others:
    """The request at hand, and the other processes; a request that one of them has passed on stays.

    Whole requests are passed on, and checked again where they are answered.
    """

    def __init__(self, app: OffhookApp) -> None:
        self._app = app
        # The longest is a dial: its turn, and the carrier asked several times.
        self._timeout_s = app.settings.max_dial_wait_s + 5 * app.settings.carrier_timeout_s

    @property
    def may_be_asked(self) -> bool:
        """Whether there are others, and this request is not from one of them."""
        return self._app.workers.are_several and PASSED_ON not in request.scope

    async def owner(self, call_sid: str) -> Response | None:
        """The answer of the process that has this call; None if that is this one, or nobody."""
        if not self.may_be_asked:
            return None
        number = self._app.workers.owner(call_sid)
        if number is None or number == self._app.workers.number:
            return None
        try:
            return _response(await self._ask(number))
        except WorkerLost:
            logger.warning("a process is gone, and its calls with it", worker=number)
            return None

    async def everyone(self) -> list[httpx2.Response]:
        """The answers of all others that are there."""
        answers: list[httpx2.Response] = []

        async def ask(number: int) -> None:
            with suppress(WorkerLost):
                answers.append(await self._ask(number))

        if self.may_be_asked:
            async with trio.open_nursery() as nursery:
                for number in self._app.workers.others():
                    nursery.start_soon(ask, number)
        return answers

    async def keeper(self, client: str, key: str) -> Response | None:
        """The answer of the process that knows this idempotency key; None if it is this one.

        Raises:
            WorkerLost: It is gone; what it knew may not be known to the next in its place.
        """
        number = self._app.workers.of_key(client, key)
        if not self.may_be_asked or number == self._app.workers.number:
            return None
        return _response(await self._ask(number))

    async def taker(self) -> httpx2.Response | None:
        """The answer of the process that is to have a new call; None if that is this one.

        Raises:
            WorkerLost: It may have placed the call before it was gone.
        """
        workers, gone = self._app.workers, frozenset[int]()
        if not workers.are_several or self.is_given:
            return None
        body = await self._body()
        while (number := workers.choose(gone)) != workers.number:
            try:
                return await self._give(number, body)
            except WorkerLost as lost:
                if lost.reached:
                    raise
                gone |= {number}
        return None

    async def taker_of(self, call_sid: str) -> Response | None:
        """The same for a call that the carrier has named, once and for all."""
        workers, gone = self._app.workers, frozenset[Member]()
        if not self.may_be_asked:
            return None
        body = await self._body()
        for _ in range(workers.count):
            chosen = workers.choose(frozenset(member.number for member in gone))
            number = workers.claim(call_sid, chosen, gone=gone)
            if number == workers.number:
                return None
            asked = workers.member(number)
            try:
                return _response(await self._give(number, body))
            except WorkerLost as lost:
                if lost.reached and workers.is_alive(asked):
                    error = json.dumps(_worker_lost(lost).body)  # it may have the call by now
                    return Response(error, 502, content_type="application/json")
                gone |= {asked}
        workers.claim(call_sid, gone=gone)
        return None

    @property
    def is_given(self) -> bool:
        """Whether another process has chosen this one for a new call."""
        return bool(request.scope.get(GIVEN))

    async def _ask(self, number: int) -> httpx2.Response:
        self._app.metrics.passed_on.labels("request").inc()
        body = await self._body()
        return await self._app.workers.pass_on(
            number, request.scope, body, timeout_s=self._timeout_s
        )

    async def _give(self, number: int, body: bytes) -> httpx2.Response:
        # Nothing may wait between the choice of a process and this: it is counted from here on.
        self._app.metrics.passed_on.labels("new-call").inc()
        return await self._app.workers.give_call(
            number, request.scope, body, timeout_s=self._timeout_s
        )

    async def _body(self) -> bytes:
        return cast(bytes, await request.get_data())


def _passed_back(answer: httpx2.Response) -> dict[str, str]:
    return {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}


def _response(answer: httpx2.Response) -> Response:
    return Response(answer.content, answer.status_code, _passed_back(answer))


def _worker_lost(lost: WorkerLost) -> Answer:
    if lost.reached:  # to ask again might ring a phone twice
        return Answer(error_body("worker-lost", f"{lost}; what it did is not known"), 502)
    return Answer(error_body("worker-lost", str(lost)), 503, _retry_after(WORKER_PAUSE_S))


# ------------------------------------------------------------------------------------------
# For clients of ours


def may_fail(*statuses: int) -> Callable[[_Handler], _Handler]:
    """Say in the API's description which errors a route may answer with."""

    def documented(handler: _Handler) -> _Handler:
        for status in statuses:
            handler = document_response(ErrorBody, status)(handler)
        return handler

    return documented


def _add_api(app: OffhookApp, others: Others) -> None:
    @app.post("/make-call")
    @validate_request(MakeCall)
    @document_headers(MakeCallHeaders)
    @document_response(CallMade, 201)
    @may_fail(400, 401, 403, 409, 413, 422, 429, 502, 503)
    async def make_call(data: MakeCall) -> Any:
        """Ring a phone; the agent is ready to speak by the time it is answered."""
        if (forbidden := app.destinations.refusal(data.destination_number)) is not None:
            app.metrics.calls_refused.labels("destination").inc()
            fields = {"destination_number": forbidden}
            message = "this number may not be called from here"
            return error_body("destination-not-allowed", message, fields=fields), 403
        keys = lines_of(request.headers, IDEMPOTENCY_KEY)
        if not keys:
            answer, is_final = await place(data)
            between_us = {FINAL: "yes"} if is_final and others.is_given else {}
            return _respond(answer, **between_us)
        key = keys[0]
        if len(keys) > 1 or not 1 <= len(key) <= MAX_KEY_CHARS:
            fields = {IDEMPOTENCY_KEY: f"must be there once, with 1 to {MAX_KEY_CHARS} characters"}
            return error_body("invalid", "the request is not valid", fields=fields), 422
        try:
            if (theirs := await others.keeper(g.client, key)) is not None:
                return theirs
        except WorkerLost as lost:
            return _respond(_worker_lost(lost))
        try:
            content = data.model_dump_json().encode()
            earlier = app.idempotency.begin(g.client, key, content, trio.current_time())
        except CallRefused as refusal:
            return _respond(_refused(app, refusal))
        if earlier is not None:
            return _respond(earlier, **REPLAYED)
        kept: Answer | None = None
        try:
            fingerprint = fingerprint_of(content).hex()
            if (kept := await recall(key, fingerprint)) is not None:
                return _respond(kept, **REPLAYED)
            answer, kept = await place_once(key, fingerprint, data)
            return _respond(answer)
        except CallRefused as refusal:
            return _respond(_refused(app, refusal))
        finally:
            app.idempotency.end(g.client, key, kept)

    async def place_once(
        key: str, fingerprint: str, data: MakeCall
    ) -> tuple[Answer, Answer | None]:
        """Place a call, and keep the answer: it, and what of it is to be given again."""
        await app.records.write_request(g.client, key, StoredRequest(fingerprint))
        kept: StoredRequest | None = None
        try:
            answer, is_final = await place(data)
            if is_final:
                kept = StoredRequest(fingerprint, answer.as_dict())
            return answer, answer if is_final else None
        finally:
            # Whoever went away before it was dialled may ask again.
            await app.records.write_request(g.client, key, kept)

    async def recall(key: str, fingerprint: str) -> Answer | None:
        """The answer that an earlier process has given to this request, if the database knows.

        Raises:
            CallRefused: It was another request, or that process ended while it worked on it.
        """
        try:
            stored = await app.records.find_request(g.client, key)
        except RecordsUnavailable:
            return None  # a call does not wait for the database; this process's own are known
        if stored is None:
            return None
        if stored.fingerprint != fingerprint:
            raise key_reused()
        if stored.answer is None:
            raise CallRefused(
                "the server ended while it worked on the first request with this Idempotency-Key: "
                "a phone may have rung; see GET /calls, and ask again with another key",
                reason="outcome-unknown",
                status=409,
            )
        return Answer(**stored.answer)

    async def place(data: MakeCall) -> tuple[Answer, bool]:
        """Place a call, here or in another process.

        With the answer, whether asking again could ring a phone twice.
        """
        try:
            theirs = await others.taker()
        except WorkerLost as lost:
            return _worker_lost(lost), True
        if theirs is not None:
            kept = _passed_back(theirs)
            return Answer(theirs.json(), theirs.status_code, kept), FINAL in theirs.headers
        app.workers.take_call(request.scope)
        try:
            return await place_here(data)
        finally:
            app.workers.answered()

    async def place_here(data: MakeCall) -> tuple[Answer, bool]:
        try:
            call = await app.calls.place(
                data.destination_number,
                data.agent(app.agent),
                client=g.client,
                max_duration_s=data.max_duration_s,
                metadata=data.metadata,
            )
            call.report.traceparent = single(request.headers, "traceparent") or ""
        except CallRefused as refusal:
            return _refused(app, refusal), False
        except CarrierError as error:
            logger.warning("dial refused by the carrier", code=error.code, status=error.status)
            body = error_body(
                "carrier",
                error.message,
                carrier=app.carrier.name,
                carrier_code=error.code,
                carrier_status=error.status,
            )
            wait_s = error.retry_after_s
            if wait_s is None and error.status == 429:
                wait_s = CARRIER_PAUSE_S
            headers = _retry_after(wait_s)
            return Answer(body, 502, headers), error.outcome_unknown
        made = {
            "call_sid": call.call_sid,
            "status": call.progress.status.value,
            "carrier": app.carrier.name,
        }
        return Answer(made, 201, {"Location": f"/calls/{call.call_sid}"}), True

    @app.get("/calls")
    @validate_querystring(ListCalls)
    @document_response(CallList)
    @may_fail(401, 422, 503)
    async def list_calls(query_args: ListCalls) -> Any:
        """Calls, live and ended, newest first; ``next`` is the next page's ``before``."""
        page = await app.calls.page(query_args.limit, query_args.cursor)
        for answer in await others.everyone():
            theirs = answer.json()
            known = Page(theirs["calls"], theirs["next"] is not None, theirs["complete"])
            page = page.joined(known, query_args.limit)
        return {
            "calls": page.rows,
            "next": None if page.next is None else str(page.next),
            "complete": page.is_complete,
        }

    @app.get("/calls/<call_sid>")
    @document_response(CallRecord)
    @may_fail(401, 404, 503)
    async def get_call(call_sid: str) -> Any:
        """One call: state, reason, timings, transcript, tokens, cost, timeline."""
        if (theirs := await others.owner(call_sid)) is not None:
            return theirs
        return await app.calls.record(call_sid) or _unknown_call()

    @app.get("/calls/<call_sid>/recording")
    @may_fail(401, 404, 416)
    async def get_recording(call_sid: str) -> Any:
        """A call's recording, as far as it has come: WAV, left the caller, right the agent."""
        path = None
        if app.recordings is not None:
            path = await trio.to_thread.run_sync(app.recordings.path, call_sid)
        if path is None:
            return error_body("not-found", "there is no recording of this call"), 404
        body = app.response_class.file_body_class(path, buffer_size=RECORDING_PIECE_BYTES)
        response = app.response_class(body, mimetype="audio/wav")
        response.timeout = None  # it takes as long as the client's line does
        response.content_length = body.size
        response.accept_ranges = "bytes"
        response.cache_control.no_store = True  # what people said is kept in one place only
        return await response.make_conditional(
            request, accept_ranges=True, complete_length=body.size
        )

    @app.post("/calls/<call_sid>/hang-up")
    @document_response(CallRecord)
    @may_fail(401, 404, 503)
    async def hang_up(call_sid: str) -> Any:
        """End a call; one that is already over stays as it ended."""
        if (theirs := await others.owner(call_sid)) is not None:
            return theirs
        call = app.calls.get(call_sid)
        if call is None:  # long over, or never heard of
            return await app.calls.record(call_sid) or _unknown_call()
        call.end(EndReason.HUNG_UP)
        with trio.move_on_after(2 * app.settings.close_timeout_s):
            await call.finished.wait()
        return call.record(full=False).as_dict()

    @app.post("/drain")
    @document_response(Drain, 202)
    @may_fail(401)
    async def drain() -> Any:
        """Refuse new calls, let live ones finish, end what is left at the deadline; then stay."""
        app.begin_drain()
        live = app.calls.live_count
        live += sum(answer.json()["live_calls"] for answer in await others.everyone())
        return {"draining": True, "live_calls": live}, 202

    def _unknown_call() -> tuple[dict[str, Any], int]:
        return error_body("not-found", "no call has this call_sid"), 404


# ------------------------------------------------------------------------------------------
# For the carrier


def _add_webhooks(app: OffhookApp, others: Others, webhooks: Webhooks) -> None:
    def _forbidden() -> tuple[dict[str, Any], int]:
        return error_body("forbidden", "not signed by the carrier"), 403

    @app.route("/twiml", methods=["GET", "POST"])
    @hide
    async def answer() -> Any:
        """Twilio's voice webhook: answer the call with a media stream."""
        asked = app.carrier.read_voice(await webhooks.read())
        if not asked.begins:
            if (theirs := await others.owner(asked.call_sid)) is not None:
                return theirs
            return Response(await app.calls.go_on(asked, app.agent), content_type="text/xml")
        if (theirs := await others.taker_of(asked.call_sid)) is not None:
            return theirs
        app.workers.take_call(request.scope)
        try:
            twiml = await app.calls.answer(asked.call_sid, asked.number, app.agent)
        except CallRefused as refusal:
            app.metrics.calls_refused.labels(refusal.reason).inc()
            log_stranger(logger.warning, "inbound call refused", reason=refusal.reason)
            twiml = app.calls.refuse(refusal, app.agent)
        finally:
            app.workers.answered()
        return Response(twiml, content_type="text/xml")

    @app.route("/call-status", methods=["GET", "POST"])
    @hide
    async def call_status() -> Any:
        """Twilio's status callback."""
        update = app.carrier.read_status(await webhooks.read())
        if app.workers.owner(update.call_sid) is None:
            # It can overtake the answer to a dial request, and any process may have made that.
            await others.everyone()
        elif (theirs := await others.owner(update.call_sid)) is not None:
            return theirs
        app.calls.update_status(update)
        return "", 204

    @app.route("/amd-status", methods=["GET", "POST"])
    @hide
    async def amd_status() -> Any:
        """Twilio's verdict on who or what has answered an outbound call."""
        verdict = app.carrier.read_machine_verdict(await webhooks.read())
        if (theirs := await others.owner(verdict.call_sid)) is not None:
            return theirs
        app.calls.update_machine(verdict)
        return "", 204

    @app.route("/transfer-status", methods=["GET", "POST"])
    @hide
    async def transfer_status() -> Any:
        """What became of a transfer; if nobody answered, the caller comes back to the agent."""
        update = app.carrier.read_transfer(await webhooks.read())
        if (theirs := await others.owner(update.call_sid)) is not None:
            return theirs
        twiml = app.calls.update_transfer(update)
        if not update.wants_document:
            return "", 204
        return Response(twiml, content_type="text/xml")

    @app.websocket("/stream")
    @app.websocket("/stream/<int:worker>")
    async def stream(worker: int | None = None) -> Any:
        """Twilio Media Streams: one call's audio, both ways; the path says whose call it is."""
        if worker is not None and worker >= app.workers.count:
            app.metrics.strangers_refused.labels("stream-worker").inc()
            return error_body("not-found", "there is no such process"), 404
        headers = websocket.headers
        address = ""
        if not app.verifier.verify_upgrade(target_of(websocket.scope), headers):
            if app.settings.strict_stream_signature:
                app.metrics.strangers_refused.labels("stream-signature").inc()
                return _forbidden()
            # A reason to look twice, not to hang up: the ticket is what lets a stream in.
            peer = (websocket.scope.get("client") or ("",))[0]
            address = client_address(peer, headers, app.settings.trusted_proxies)
        socket = cast(Any, websocket)._get_current_object()
        try:
            if worker in (None, app.workers.number) or PASSED_ON in websocket.scope:
                await app.serve_media(socket, address)
            else:
                await app.hand_media_over(socket, worker, {"address": address})
        except WorkerLost as lost:
            log_stranger(logger.warning, "media stream refused: its process is gone", worker=worker)
            return None if lost.reached else (_worker_lost(lost).body, 503)
        except StreamEnded as error:  # as a rule nobody is there any more to be told
            return error_body("unavailable", str(error)), 503
        return None


# ------------------------------------------------------------------------------------------
# For whoever runs it


def _add_health(app: OffhookApp, others: Others) -> None:
    @app.get("/healthz")
    async def healthz() -> Any:
        """The process serves requests."""
        return {"status": "ok"}

    @app.get("/readyz")
    @document_response(Ready)
    @document_response(Ready, 503)
    async def readyz() -> Any:
        """Whether the next call would be taken."""
        refusal = None
        try:
            app.calls.check_admission()
        except CallRefused as refused:
            if app.calls.has_failed or not app.workers.accepts_elsewhere:
                refusal = refused.reason
        body = {
            "ready": refusal is None,
            "reason": refusal,
            "carrier": app.carrier.name,
            "model": app.calls.model.name,
            "simulated": app.is_simulated,
            "live_calls": app.calls.live_count + app.workers.live_elsewhere,
            "waiting_calls": app.calls.admission.waiting_count + app.workers.waiting_elsewhere,
            "draining": app.calls.draining,
        }
        return body, 200 if refusal is None else 503

    @app.get("/metrics")
    @hide
    async def metrics() -> Any:
        """Prometheus text; where there are several processes, each has its own samples."""
        if not app.workers.are_several:
            text = generate_latest(app.metrics.registry)
        else:
            theirs = [answer.text for answer in await others.everyone()]
            text = merged(app.metrics.registry, theirs, worker=str(app.workers.number))
        return Response(text, content_type=CONTENT_TYPE_LATEST)


def _add_errors(app: OffhookApp) -> None:
    @app.errorhandler(RequestSchemaValidationError)
    async def invalid(error: RequestSchemaValidationError) -> Any:
        fields = field_errors(error.validation_error)
        return error_body("invalid", "the request is not valid", fields=fields), 422

    @app.errorhandler(RecordsUnavailable)
    async def no_records(error: RecordsUnavailable) -> Any:
        body = error_body("records-unavailable", str(error))
        return body, 503, {"Retry-After": str(RECORDS_PAUSE_S)}

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Any:
        name = (error.name or "error").lower().replace(" ", "-")
        return error_body(name, error.description or ""), error.code or 500

    bugs = Sparing()

    @app.errorhandler(Exception)
    async def bug(error: Exception) -> Any:
        now, message = trio.current_time(), "request failed by a bug of ours"
        bugs.log(now, logger.exception, message, exc_info=error)
        return error_body("internal", "something failed on our side"), 500
