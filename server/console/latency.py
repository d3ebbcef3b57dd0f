"""``GET /latency``: how long callers waited, call by call, for whoever draws it."""

from __future__ import annotations

from typing import Annotated, Any

import trio
from pydantic import BaseModel, Field
from quart import Quart
from quart_schema import document_response, validate_querystring

from server.records.timings import timings_of
from server.service import Service
from server.web.api import WhichCalls
from server.web.calls_api import may_fail

MOST = 1_000


class AskLatency(WhichCalls):
    """What ``GET /latency`` takes: which calls, and how many of them."""

    limit: Annotated[int, Field(ge=1, le=MOST)] = MOST


class Waits(BaseModel):
    """How long the caller of one call waited, in milliseconds; null for what did not happen."""

    call_sid: str
    created_at: float
    agent: str
    model: str | None
    answer_ms: float | None
    """From the answer to the agent's first word."""
    replies_ms: list[float]
    """From the caller's last word to the agent's first, each time."""
    slowest_clear_ms: float | None
    """From an interruption that was seen to the order that silences the agent: the longest."""


class Latency(BaseModel):
    """The newest calls that talked."""

    calls: list[Waits]


def add_latency(app: Quart, service: Service) -> None:
    """Add the route that tells of many calls how long their callers waited."""

    @app.get("/latency")
    @validate_querystring(AskLatency)
    @document_response(Latency)
    @may_fail(401, 422, 503)
    async def latency(query_args: AskLatency) -> Any:
        """How long callers waited in the newest ended calls; filtered as ``GET /calls`` is."""
        limit, wanted = query_args.limit, query_args.wanted
        rows = await service.records.read(lambda database: timings_of(database, limit, wanted))
        # Calls go on meanwhile: a thousand rows take tens of milliseconds to write.
        body = await trio.to_thread.run_sync(app.json.dumps, {"calls": rows})
        return app.response_class(body, mimetype="application/json")
