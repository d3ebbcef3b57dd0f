"""Records that were kept, until the database has them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import structlog

from server.metrics import RecordMetrics

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_UNSAVED, MAX_UNSAVED_BYTES = 10_000, 256 * 1024 * 1024
"""Records that may wait, and what they take about; then the oldest are given up, counted and
logged. Before it comes to that, the older ones are put aside."""
RECORD_BYTES, PART_BYTES = 4_000, 600
"""What a record takes, and each turn, line or reply in it, without the words."""


class Unsaved:
    """Records in memory, those that have waited longest first; of each call one.

    Args:
        metrics: What becomes of records.
    """

    def __init__(self, metrics: RecordMetrics) -> None:
        self._metrics = metrics
        self._records: OrderedDict[str, tuple[dict[str, Any], int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (record for record, _ in self._records.values())

    @property
    def are_many(self) -> bool:
        """Whether there is no room for as many again."""
        return len(self._records) > MAX_UNSAVED // 2 or self._bytes > MAX_UNSAVED_BYTES // 2

    def get(self, call_sid: str) -> dict[str, Any] | None:
        """The record of a call; None if none waits."""
        found = self._records.get(call_sid)
        return None if found is None else found[0]

    def oldest(self, count: int) -> list[dict[str, Any]]:
        """Those that have waited longest, so many at most."""
        return list(islice(self, count))

    def put(self, record: dict[str, Any]) -> None:
        """Have a record wait, in the place of an earlier version."""
        call_sid = record["call_sid"]
        self._remove(call_sid)
        size_bytes = bytes_of(record)
        self._records[call_sid] = record, size_bytes
        self._bytes += size_bytes
        while len(self._records) > MAX_UNSAVED or self._bytes > MAX_UNSAVED_BYTES:
            lost = next(iter(self._records))
            self._remove(lost)
            self._metrics.failures.labels("given-up").inc()
            logger.error("record given up: too many wait for the database", call_sid=lost)
        self._metrics.unsaved.set(len(self._records))

    def forget(self, record: Mapping[str, Any]) -> None:
        """A record is where it belongs; one that is newer goes on waiting."""
        if self.get(record["call_sid"]) is record:
            self._remove(record["call_sid"])
        self._metrics.unsaved.set(len(self._records))

    def _remove(self, call_sid: str) -> None:
        if (found := self._records.pop(call_sid, None)) is not None:
            self._bytes -= found[1]


def bytes_of(record: Mapping[str, Any]) -> int:
    """What a record takes in memory, about: told by its parts, and by the words in them."""
    size = RECORD_BYTES
    for part in record.values():
        if not isinstance(part, list | dict):
            continue
        size += PART_BYTES * len(part)
        for each in part if isinstance(part, list) else (part,):
            if isinstance(each, dict):
                size += sum(len(value) for value in each.values() if isinstance(value, str))
    return size
