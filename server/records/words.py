"""What a record is asked for, and asked with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import ServerError

SUMMARY = (
    "call_sid",
    "direction",
    "number",
    "state",
    "status",
    "reason",
    "detail",
    "created_at",
    "duration_s",
    "agent_heard_s",
    "metadata",
)
"""The fields of a record that lists show; the rest is one column of details."""


class RecordsUnavailable(ServerError):
    """The database cannot be read just now."""


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the list of calls, newest first: just after this call."""

    created_at: float
    call_sid: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Cursor:
        """The place of a record."""
        return cls(record["created_at"], record["call_sid"])

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read what :meth:`__str__` has written.

        Raises:
            ValueError: It is something else.
        """
        created_at, _, call_sid = text.partition("-")
        if not call_sid or not math.isfinite(float(created_at)):
            raise ValueError(f"not a place in the list: {text!r}")
        return cls(float(created_at), call_sid)

    def __str__(self) -> str:
        return f"{self.created_at:.3f}-{self.call_sid}"


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request with an ``Idempotency-Key``, as it outlives the process."""

    fingerprint: str
    answer: dict[str, Any] | None = None
    """None while it is being worked on."""
