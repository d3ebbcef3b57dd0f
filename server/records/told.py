"""Events that were told of, until the outbox has them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from server.metrics import RecordMetrics
from server.records.outbox import OutboxEvent
from server.records.tables import EVENTS

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_TOLD = 50_000
"""Events that may wait for the database: some of each call; then the oldest are given up."""


class Told:
    """Events in memory, in the order in which they were told of.

    Args:
        metrics: What becomes of records.
    """

    def __init__(self, metrics: RecordMetrics) -> None:
        self._metrics = metrics
        self._events: OrderedDict[str, OutboxEvent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[OutboxEvent]:
        return iter(list(self._events.values()))

    def add(self, event: OutboxEvent) -> None:
        """Something has happened; never fails."""
        self._events.setdefault(event.id, event)
        if len(self._events) > MAX_TOLD:
            _, lost = self._events.popitem(last=False)
            self.give_up([lost], "too many wait for the database")

    def forget(self, events: Iterable[OutboxEvent]) -> None:
        """These events are where they belong."""
        for event in events:
            self._events.pop(event.id, None)

    def give_up(self, events: Iterable[OutboxEvent], reason: str) -> None:
        """These events are lost: it is counted and logged."""
        for event in events:
            self._metrics.failures.labels("event").inc()
            logger.error("event given up", type=event.type, call_sid=event.call_sid, reason=reason)


def beside(
    records: Sequence[dict[str, Any]], events: Iterable[OutboxEvent]
) -> tuple[list[dict[str, Any]], list[OutboxEvent]]:
    """Records as they stand in a file, each with the events of its call.

    Returns:
        The records, and the events that are in them.
    """
    of_calls: Mapping[str, list[OutboxEvent]] = {record["call_sid"]: [] for record in records}
    found = [event for event in events if event.call_sid in of_calls]
    for event in found:
        of_calls[event.call_sid].append(event)
    with_events = [
        record | {EVENTS: [event.as_dict() for event in of_calls[record["call_sid"]]]}
        for record in records
    ]
    return with_events, found


def events_beside(record: dict[str, Any]) -> list[OutboxEvent]:
    """Take the events out of a record from a file; what is none is left out."""
    events: list[OutboxEvent] = []
    found = record.pop(EVENTS, ())
    for one in found if isinstance(found, list) else ():
        with suppress(ValueError):
            events.append(OutboxEvent.of_dict(one))
    return events
