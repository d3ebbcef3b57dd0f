"""Events that were told of, until the outbox has them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import structlog

from server.metrics import RecordMetrics
from server.records.database.tables import EVENTS
from server.records.outbox import OutboxEvent

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_TOLD, MAX_TOLD_BYTES = 50_000, 64 * 1024 * 1024
"""Events that may wait for the database, and what they come to; then the oldest are given up."""


class Told:
    """Events in memory, in the order in which they were told of.

    Args:
        metrics: What becomes of records.
    """

    def __init__(self, metrics: RecordMetrics) -> None:
        self._metrics = metrics
        self._events: OrderedDict[str, OutboxEvent] = OrderedDict()
        self._bytes = 0

    @property
    def are_many(self) -> bool:
        """Whether there is no room for as many again."""
        return len(self._events) > MAX_TOLD // 2 or self._bytes > MAX_TOLD_BYTES // 2

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[OutboxEvent]:
        return iter(list(self._events.values()))

    def oldest(self, count: int) -> list[OutboxEvent]:
        """Those that have waited longest, so many at most."""
        return list(islice(self._events.values(), count))

    def add(self, event: OutboxEvent) -> None:
        """Something has happened; never fails."""
        if event.id in self._events:
            return
        self._events[event.id] = event
        self._bytes += len(event.payload)
        while len(self._events) > MAX_TOLD or self._bytes > MAX_TOLD_BYTES:
            lost = next(iter(self._events.values()))
            self.forget([lost])
            self.give_up([lost], "too many wait for the database")

    def forget(self, events: Iterable[OutboxEvent]) -> None:
        """These events are where they belong."""
        for event in events:
            if (known := self._events.pop(event.id, None)) is not None:
                self._bytes -= len(known.payload)

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


def events_beside(line: dict[str, Any]) -> tuple[list[OutboxEvent], int]:
    """Take the events out of a line of a file.

    Returns:
        The events, and how many there were that are none.
    """
    found = line.pop(EVENTS, [])
    if not isinstance(found, list):
        return [], 1
    events: list[OutboxEvent] = []
    for one in found:
        with suppress(ValueError):
            events.append(OutboxEvent.of_dict(one))
    return events, len(found) - len(events)
