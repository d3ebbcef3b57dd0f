"""For clients: to place calls, look at them and end them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, TypeVar

import httpx2
import structlog
import trio
from quart import Quart, Request, g, request
from quart_schema import (
    document_headers,
    document_response,
    validate_querystring,
    validate_request,
)
from quart_trio.wrappers.response import TrioFileBody
from werkzeug.exceptions import RequestedRangeNotSatisfiable

from server.agent.agent import Agent
from server.agent.roster.agents import NewCall, VariablesWrong, filled, wanted_by
from server.cluster.passing_on import FINAL, PASSED_ON, WorkerLost
from server.cluster.registry import Holding, RegistryAway
from server.dialogue.endings import EndReason
from server.errors import CallRefused, CarrierError, ConfigurationError, ServerError
from server.headers import lines_of, single
from server.records.recording import CLOSE_TIMEOUT_S, Recordings
from server.service import Service
from server.switchboard.register import Page
from server.web.api import (
    MAKE_CALL,
    AgentList,
    AgentsRead,
    Answer,
    CallList,
    CallMade,
    CallRecord,
    Drain,
    Draw,
    ErrorBody,
    ListCalls,
    MakeCall,
    MakeCallHeaders,
    Waveform,
    error_body,
    invalid,
    refusal,
    retry_after,
)
from server.web.elsewhere import LOOK_UP_S, Elsewhere, worker_lost
from server.web.once import MAX_KEY_CHARS, Once
from server.web.path_prefix import call_path

_T = TypeVar("_T")
_Handler = TypeVar("_Handler", bound=Callable[..., Any])

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SHORT_PAGE = 100
"""Rows that take no longer to write than calls may wait."""
DATABASE_S, DATABASE_ASKED_S = 5.0, 1.5
"""For the database to give a page of a list, which has an answer without it; and where another
process asks for the list, which waits for live calls hardly longer (``LIST_TIMEOUT_S``)."""
PARTS = frozenset(map(str, range(1, 100)))
"""Of a recording: each process that has had the call makes its own."""
IDEMPOTENCY_KEY = "Idempotency-Key"
REPLAYED = {"Idempotent-Replayed": "true"}
MADE_KNOWN_S = 5.0
"""For a call to be known to the registry before its client knows it; it is told in any case."""
CARRIER_PAUSE_S = 5.0
"""When to come back after the carrier had too many requests, if it has not said for how long."""


class RecordingBody(TrioFileBody):
    """A recording as an answer, read in the threads that recordings have for that.

    Made in one of them, too: the disk is asked how much there is. One that hangs holds up nobody
    who stops: the thread is left to itself then.

    Args:
        path: Where it is.
        threads: Those.
    """

    buffer_size = 64 * 1024

    def __init__(self, path: Path, threads: trio.CapacityLimiter) -> None:
        super().__init__(path)
        self._path = path
        self._threads = threads
        self._opened: BinaryIO | None = None
        self._is_left = False

    async def __aenter__(self) -> Self:
        """Open it."""
        try:
            await self._in_thread(self._open)
        except trio.Cancelled:
            self._is_left = True
            self._close_if_left()
            raise
        return self

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(
            function, abandon_on_cancel=True, limiter=self._threads
        )

    async def make_conditional(
        self, begin: int, end: int | None, max_partial_size: int | None = None
    ) -> int:
        """Cut the answer to a range of what there is: a negative begin counts from the end.

        Raises:
            RequestedRangeNotSatisfiable: None of the range is there.
        """
        if begin < 0:
            begin = max(0, self.size + begin)
        end = self.size if end is None else min(end, self.size)
        if begin >= end:
            raise RequestedRangeNotSatisfiable(self.size)
        return await super().make_conditional(begin, end, max_partial_size)

    def _open(self) -> None:
        self._opened = self._path.open("rb")
        if self.begin:
            self._opened.seek(self.begin)
        self._close_if_left()

    def _close_if_left(self) -> None:
        """Close what was opened though the client has gone; whoever is later of the two does."""
        if self._is_left and self._opened is not None:
            self._opened.close()

    async def __aexit__(self, *_: object) -> None:
        """Close it, though the client has left."""
        assert self._opened is not None
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True) as patience:
            await self._in_thread(self._opened.close)
        self._is_left = patience.cancelled_caught  # whoever reads yet closes it

    async def __anext__(self) -> bytes:
        """Read the next piece."""
        if piece := await self._in_thread(self._read):
            return piece
        raise StopAsyncIteration

    def _read(self) -> bytes:
        assert self._opened is not None
        try:
            return self._opened.read(min(self.buffer_size, self.end - self._opened.tell()))
        finally:
            self._close_if_left()


class NoSuchAgent(ServerError):
    """A request asks for an agent that cannot be had.

    Attributes:
        field: What in it is wrong.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def may_fail(*statuses: int) -> Callable[[_Handler], _Handler]:
    """Say in the API's description which errors a route may answer with."""

    def documented(handler: _Handler) -> _Handler:
        for status in statuses:
            handler = document_response(ErrorBody, status)(handler)
        return handler

    return documented


def wants_part(request: Request) -> bool:
    """Whether a request's range is one to be answered; whoever asks with any other gets all.

    Ranges are for GET alone, a unit that is unknown is to be ignored, and so may several ranges be
    (RFC 9110 section 14.2). One that cannot be read is answered, too: by a refusal.
    """
    if request.method != "GET" or (asked := request.headers.get("Range")) is None:
        return False
    unit, is_said, _ = asked.partition("=")
    if is_said and unit.strip().lower() != "bytes":
        return False
    return "," not in asked


def _joined(page: Page, answers: Sequence[httpx2.Response], limit: int) -> Page:
    """A page with what other processes have answered to the same request.

    A thousand rows of eight processes take more than 50 ms to read and to join.
    """
    for answer in answers:
        theirs = answer.json()
        known = Page(theirs["calls"], theirs["next"] is not None, theirs["complete"])
        page = page.joined(known, limit)
    return page


async def who_speaks(
    service: Service, data: MakeCall, direction: Literal["inbound", "outbound"]
) -> Agent:
    """The agent of a call that is asked for.

    Raises:
        NoSuchAgent: There is none of this name, or it needs more variables.
    """
    variables = data.variables or {}
    try:
        if data.agent is None and service.roster.agents.route is not None:
            call = NewCall(
                direction,
                data.destination_number,
                metadata=data.metadata or {},
                variables=variables,
            )
            return data.of_this_call(await service.choose_agent(call))
        agent = service.agent if data.agent is None else service.find_agent(data.agent)
        if agent is None:
            raise NoSuchAgent("agent", "there is no agent of this name")
        return data.of_this_call(filled(agent, variables))
    except VariablesWrong as error:
        raise NoSuchAgent("variables", str(error)) from None


async def make_known(service: Service, call_sid: str) -> None:
    """Have a call that the request at hand has begun here be found, by traces and other nodes.

    The call is there: its request is answered, though whoever has asked goes away meanwhile.
    """
    if (call := service.calls.register.get_live(call_sid)) is not None:
        call.report.traceparent = single(request.headers, "traceparent") or ""
    if service.cluster.has_nodes:
        # Whoever is told of it may look for it elsewhere.
        with trio.move_on_after(MADE_KNOWN_S, shield=True), suppress(RegistryAway):
            await service.cluster.claim(call_sid, service.cluster.me.name)


def add_calls_api(app: Quart, service: Service, elsewhere: Elsewhere, once: Once) -> None:
    """Add the routes for clients: to place calls, look at them and end them."""

    @app.post(MAKE_CALL)
    @validate_request(MakeCall)
    @document_headers(MakeCallHeaders)
    @document_response(CallMade, 201)
    @may_fail(400, 401, 403, 409, 413, 422, 429, 502, 503)
    async def make_call(data: MakeCall) -> Any:
        """Ring a phone; the agent is ready to speak by the time it is answered."""
        if (forbidden := service.destinations.refusal(data.destination_number)) is not None:
            service.metrics.calls_refused.labels("destination").inc()
            fields = {"destination_number": forbidden}
            message = "this number may not be called from here"
            return error_body("destination-not-allowed", message, fields=fields), 403
        if data.events_url is not None and (wrong := service.events.url_problem(data.events_url)):
            return invalid({"events_url": wrong}).response()
        keys = lines_of(request.headers, IDEMPOTENCY_KEY)
        if not keys:
            answer, is_final = await place(data, lambda: None)
            between_us = {FINAL: "yes"} if is_final and elsewhere.is_given else {}
            return answer.response(**between_us)
        key = keys[0]
        if len(keys) > 1 or not 1 <= len(key) <= MAX_KEY_CHARS:
            fields = {IDEMPOTENCY_KEY: f"must be there once, with 1 to {MAX_KEY_CHARS} characters"}
            return invalid(fields).response()
        try:
            if (theirs := await elsewhere.of_key(g.client, key)) is not None:
                return theirs
        except WorkerLost as lost:
            return worker_lost(lost).response()
        content = data.as_content()
        try:
            answer, is_replayed = await once.answer(g.client, key, content, partial(place, data))
        except CallRefused as refused:
            return refuse(refused).response()
        return answer.response(**(REPLAYED if is_replayed else {}))

    def refuse(refused: CallRefused) -> Answer:
        service.metrics.calls_refused.labels(refused.reason).inc()
        return refusal(refused)

    async def place(data: MakeCall, on_dial: Callable[[], None]) -> tuple[Answer, bool]:
        """Place a call, here or in another process; ``on_dial`` is told before a phone may ring.

        With the answer, whether asking again could ring a phone twice.
        """
        return await elsewhere.new_call(partial(place_here, data, on_dial), on_give=on_dial)

    async def place_here(data: MakeCall, on_dial: Callable[[], None]) -> tuple[Answer, bool]:
        try:
            agent = await who_speaks(service, data, "outbound")
        except NoSuchAgent as error:
            return invalid({error.field: str(error)}), False
        try:
            call = await service.calls.place(
                data.destination_number,
                agent,
                client=g.client,
                max_duration_s=data.max_duration_s,
                metadata=data.metadata,
                on_dial=on_dial,
            )
            await make_known(service, call.call_sid)
        except CallRefused as refused:
            return refuse(refused), False
        except CarrierError as error:
            logger.warning("dial refused by the carrier", code=error.code, status=error.status)
            body = error_body(
                "carrier",
                error.message,
                carrier=service.accounts.carrier.name,
                carrier_code=error.code,
                carrier_status=error.status,
            )
            wait_s = error.retry_after_s
            if wait_s is None and error.status == 429:
                wait_s = CARRIER_PAUSE_S
            headers = retry_after(wait_s)
            return Answer(body, 502, headers), error.outcome_unknown
        made = {
            "call_sid": call.call_sid,
            "status": call.progress.status.value,
            "carrier": service.accounts.carrier.name,
        }
        location = call_path(service.settings.public_url, call.call_sid)
        return Answer(made, 201, {"Location": location}), True

    @app.get("/agents")
    @document_response(AgentList)
    @may_fail(401)
    async def list_agents() -> Any:
        """Who may speak: the agents that there are now, by name."""
        names = sorted(service.roster.agents.by_name)
        found = [agent for name in names if (agent := service.find_agent(name)) is not None]
        return {
            "agents": [
                {
                    "name": agent.name,
                    "numbers": list(agent.numbers),
                    "language": agent.language,
                    "voice": agent.voice,
                    "model": agent.model or service.accounts.model.name,
                    "tools": [tool.name for tool in agent.tools],
                    "variables": sorted(wanted_by(agent)),
                    "outcome": dict(agent.outcome.schema) if agent.outcome else None,
                }
                for agent in found
            ]
        }

    @app.post("/agents/reload")
    @document_response(AgentsRead)
    @may_fail(401, 422)
    async def reload_agents() -> Any:
        """Read the agents again, in every process of this machine; live calls keep theirs."""
        try:
            agents = await service.roster.reload()
        except ConfigurationError as error:
            return error_body("agents", str(error)), 422
        for answer in await elsewhere.everyone():
            if answer.status_code != 200:
                return answer.json(), answer.status_code
        return {"agents": sorted(agents.by_name)}

    @app.get("/calls")
    @validate_querystring(ListCalls)
    @document_response(CallList)
    @may_fail(401, 422, 503)
    async def list_calls(query_args: ListCalls) -> Any:
        """Calls, live and ended, newest first; ``next`` is the next page's ``before``."""
        page = await service.calls.register.page(
            query_args.limit,
            query_args.cursor,
            query_args.wanted,
            patience_s=DATABASE_ASKED_S if PASSED_ON in request.scope else DATABASE_S,
        )
        answers, are_all = await elsewhere.of_all_machines()
        join = partial(_joined, page, answers, query_args.limit)
        is_long = answers and query_args.limit > SHORT_PAGE
        page = await trio.to_thread.run_sync(join) if is_long else join()
        page = replace(page, is_complete=page.is_complete and are_all)
        content = {
            "calls": page.rows,
            "next": None if page.next is None else str(page.next),
            "complete": page.is_complete,
        }
        if len(page.rows) <= SHORT_PAGE:
            return content
        # Calls go on meanwhile: a thousand rows with all their labels take a tenth of a second.
        body = await trio.to_thread.run_sync(app.json.dumps, content)
        return app.response_class(body, mimetype="application/json")

    @app.get("/calls/<call_sid>")
    @document_response(CallRecord)
    @may_fail(401, 404, 503)
    async def get_call(call_sid: str) -> Any:
        """One call: state, reason, timings, transcript, tokens, cost, timeline."""
        try:
            theirs, holding = await elsewhere.look_up(call_sid, timeout_s=LOOK_UP_S)
        except RegistryAway:
            if (record := await service.calls.register.record(call_sid)) is not None:
                return record  # it is over, wherever it was
            raise
        return theirs or await kept(call_sid, holding)

    async def kept(call_sid: str, holding: Holding | None) -> Any:
        """What is known of a call here, whosever it was; that it is unknown, if it is nobody's."""
        if (record := await service.calls.register.record(call_sid)) is not None:
            return record
        elsewhere.check_nobodys(call_sid, holding)
        return error_body("not-found", "no call has this call_sid"), 404

    @app.get("/calls/<call_sid>/recording")
    @may_fail(401, 404, 416)
    async def get_recording(call_sid: str) -> Any:
        """A call's recording, as far as it has come: WAV, left the caller, right the agent.

        ``part`` (1) is more than one for a call that several processes have had.
        """
        part, recordings, body = request.args.get("part", "1"), service.recordings, None

        def find(recordings: Recordings) -> RecordingBody | None:
            try:
                path = recordings.path(call_sid, int(part))
                return None if path is None else RecordingBody(path, recordings.reading)
            except FileNotFoundError:  # it was old, and has just been deleted
                return None

        if recordings is not None and part in PARTS:
            body = await trio.to_thread.run_sync(
                find, recordings, abandon_on_cancel=True, limiter=recordings.reading
            )
        if body is None:
            return error_body("not-found", "there is no recording of this call"), 404
        response = app.response_class(body, mimetype="audio/wav")
        response.content_length = body.size
        response.accept_ranges = "bytes"
        response.cache_control.no_store = True  # what people said is kept in one place only
        if not wants_part(request):
            return response
        return await response.make_conditional(
            request, accept_ranges=True, complete_length=body.size
        )

    @app.get("/calls/<call_sid>/waveform")
    @validate_querystring(Draw)
    @document_response(Waveform)
    @may_fail(401, 404, 422)
    async def get_waveform(call_sid: str, query_args: Draw) -> Any:
        """What a recording looks like, as far as it has come: how loud each side is when.

        ``data`` has four numbers for each point: the caller's lowest and highest sample of that
        time, and the agent's, from -128 to 127. Players that read audiowaveform's form draw it.
        """
        recordings, body = service.recordings, None

        def draw(recordings: Recordings) -> str | None:
            drawn = recordings.draw(call_sid, query_args.part, query_args.points)
            # Calls go on meanwhile: some ten thousand numbers take milliseconds to write.
            return None if drawn is None else app.json.dumps(drawn)

        if recordings is not None:
            body = await trio.to_thread.run_sync(
                draw, recordings, abandon_on_cancel=True, limiter=recordings.reading
            )
        if body is None:
            return error_body("not-found", "there is no recording of this call"), 404
        response = app.response_class(body, mimetype="application/json")
        response.cache_control.no_store = True
        return response

    @app.post("/calls/<call_sid>/hang-up")
    @document_response(CallRecord)
    @may_fail(401, 404, 503)
    async def hang_up(call_sid: str) -> Any:
        """End a call; one that is already over stays as it ended."""
        ends_s = 2 * service.settings.close_timeout_s
        theirs, holding = await elsewhere.look_up(call_sid, timeout_s=LOOK_UP_S + ends_s)
        if theirs is not None:
            return theirs
        register = service.calls.register
        call = register.get_live(call_sid)
        if call is None and (over := register.get_recent(call_sid)) is not None:
            return over.shown(full=False)
        if call is None:  # long over, or never heard of
            return await kept(call_sid, holding)
        call.end(EndReason.HUNG_UP)
        with trio.move_on_after(ends_s):
            await call.finished.wait()
        return call.record(full=False).as_dict()

    @app.post("/drain")
    @document_response(Drain, 202)
    @may_fail(401)
    async def drain() -> Any:
        """Refuse new calls, let live ones finish, end what is left at the deadline; then stay."""
        service.calls.draining = True  # the next request already sees it
        service.cluster.publish()
        app.add_background_task(service.drain)
        live = service.calls.live_count
        for answer in await elsewhere.everyone():
            if answer.status_code == 202:  # else it drains nothing: it may know other keys
                live += answer.json()["live_calls"]
        return {"draining": True, "live_calls": live}, 202
