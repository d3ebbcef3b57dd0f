"""For clients: the events that were given up, and to send them again."""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import BaseModel, Field
from quart import Quart
from quart_schema import document_response, validate_querystring

from server.service import Service
from server.web.api import error_body
from server.web.calls_api import may_fail


class ListDead(BaseModel):
    """What ``GET /events/dead`` takes."""

    limit: Annotated[int, Field(ge=1, le=1_000)] = 100


class DeadEvent(BaseModel):
    """An event that its receiver has not taken."""

    id: str
    """Its ``webhook-id``."""
    type: str
    call_sid: str
    target: str
    """Scheme, host and port of the receiver."""
    at: float
    """When it happened, in seconds since 1970."""
    dead_at: float
    """When it was given up."""
    attempts: int
    error: str
    """What was wrong the last time."""


class DeadEvents(BaseModel):
    """The events that were given up last."""

    events: list[DeadEvent]


class Replayed(BaseModel):
    """How many events are sent again."""

    replayed: int


def add_events_api(app: Quart, service: Service) -> None:
    """Add the routes to look at events that were given up, and to send them again."""

    @app.get("/events/dead")
    @validate_querystring(ListDead)
    @document_response(DeadEvents)
    @may_fail(401, 422, 503)
    async def list_dead_events(query_args: ListDead) -> Any:
        """Events that no receiver has taken within a day, the last ones first."""
        limit = query_args.limit
        return {"events": await service.records.with_outbox(lambda outbox: outbox.dead(limit))}

    @app.post("/events/dead/replay")
    @document_response(Replayed, 202)
    @may_fail(401, 503)
    async def replay_dead_events() -> Any:
        """Send events again that were given up, up to a thousand of them."""
        now = time.time()
        count = await service.records.with_outbox(lambda outbox: outbox.replay_all(now))
        service.records.outbox_changed.set()
        return {"replayed": count}, 202

    @app.post("/events/<event_id>/replay")
    @document_response(Replayed, 202)
    @may_fail(401, 404, 503)
    async def replay_event(event_id: str) -> Any:
        """Send an event again that was given up; it keeps its id."""
        now = time.time()
        if not await service.records.with_outbox(lambda outbox: outbox.replay(event_id, now)):
            return error_body("not-found", "no event that was given up has this id"), 404
        service.records.outbox_changed.set()
        return {"replayed": 1}, 202
