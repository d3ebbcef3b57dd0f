"""The record of a call, and what records are asked for with."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from server.errors import ServerError
from server.records.database.tables import DEFAULT_AGENT, FIRST_GENERATION, fitted


@dataclass(frozen=True, slots=True)
class ReplyRecord:
    """How long the caller waited for one answer, stage by stage."""

    turn: int
    at_s: float
    """The caller's last sound, in seconds since the call began."""
    stages_s: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The reply as the API shows it: when, and how long each stage was in milliseconds."""
        return {"turn": self.turn, "at_s": round(self.at_s, 3)} | {
            f"{name}_ms": round(s * 1000, 1) for name, s in self.stages_s.items()
        }


def line_of(at_s: float, what: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a timeline as it is shown; facts that are called as its own parts give way."""
    line = {"at_s": round(at_s, 3), "what": what}
    return {**line, **facts, **line}


@dataclass(frozen=True, slots=True)
class CallDetails:
    """What a list does not show of a call; None for what could not be made."""

    timings: Mapping[str, Any] | None
    tokens: Mapping[str, Any] | None
    cost: Mapping[str, Any] | None
    replies: tuple[ReplyRecord, ...] | None
    recording: Mapping[str, Any] | None
    transcript: tuple[Mapping[str, Any], ...] | None
    timeline: tuple[tuple[float, str, Mapping[str, Any]], ...] | None
    """Seconds since the call began, what happened, and facts."""
    model: str | None = None
    """Whose voice it was at last."""
    outcome: Mapping[str, Any] | None = None
    """What the call was for, as data; None for an agent that wants none."""
    traceparent: str = field(default="", metadata={"hidden": True})
    """Whose trace the call belongs to: W3C Trace Context."""
    answered_s: float | None = field(default=None, metadata={"hidden": True})
    """When the phone left the hook, in seconds since the call began; None if it only rang."""

    def as_dict(self) -> dict[str, Any]:
        """As the API shows it."""
        shown = {one.name: getattr(self, one.name) for one in fields(self) if not one.metadata}
        if self.replies is not None:
            shown["replies"] = [reply.as_dict() for reply in self.replies]
        if self.transcript is not None:
            shown["transcript"] = list(self.transcript)
        if self.timeline is not None:
            shown["timeline"] = [line_of(at_s, what, facts) for at_s, what, facts in self.timeline]
        return shown


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What is known of a call: what the API shows, the database keeps and a trace is made of."""

    call_sid: str
    direction: str
    number: str
    state: str
    status: str
    reason: str | None
    detail: str
    created_at: float
    duration_s: float
    answered_by: str | None
    agent_heard_s: float | None
    metadata: Mapping[str, str]
    agent: str = DEFAULT_AGENT
    """Who spoke with them, by name."""
    generation: int = FIRST_GENERATION
    """For the how-manieth time the call is some process's."""
    outcome_complete: bool | None = None
    """Whether its agent knows all that it is to find out; None for one that wants nothing."""
    had_trouble: bool | None = None
    """Whether something went wrong, on the way or in the end; None where that was not told yet."""
    details: CallDetails | None = None
    """Left out in lists."""

    def with_details(self, details: CallDetails) -> CallRecord:
        """The whole record."""
        return replace(self, details=details)

    def as_dict(self) -> dict[str, Any]:
        """As the API shows it, from memory and later from the database: the same."""
        shown = {one.name: getattr(self, one.name) for one in fields(self)}
        details: CallDetails | None = shown.pop("details")
        return fitted(shown if details is None else shown | details.as_dict())


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
class Wanted:
    """Which records a list is to have; None for whatever there is."""

    since: float | None = None
    until: float | None = None
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    min_cost_usd: float | None = None
    max_cost_usd: float | None = None
    one_of: Mapping[str, tuple[str | bool, ...]] = field(default_factory=dict)
    """By column: what may stand there."""
    troubles: tuple[str, ...] = ()
    """Only those that had trouble, or ended for one of these reasons; all if it is empty."""

    @property
    def is_all(self) -> bool:
        """Whether it is every record."""
        return self == _ALL

    @property
    def is_live(self) -> bool:
        """Whether it is live calls alone, of which there are no records."""
        return self.one_of.get("state") == ("live",)

    @property
    def asks_cost(self) -> bool:
        """Whether it depends on what a call has cost, which only whole records say."""
        return self.min_cost_usd is not None or self.max_cost_usd is not None

    def takes(self, record: Mapping[str, Any]) -> bool:
        """Whether this is one of them; it says what it ``cost``, if that is asked."""
        created_at, duration_s = record["created_at"], record["duration_s"]
        return (
            (self.since is None or created_at >= self.since)
            and (self.until is None or created_at < self.until)
            and (self.min_duration_s is None or duration_s >= self.min_duration_s)
            and (self.max_duration_s is None or duration_s <= self.max_duration_s)
            and all(record[name] in values for name, values in self.one_of.items())
            and (not self.troubles or record["had_trouble"] or record["reason"] in self.troubles)
            and (not self.asks_cost or self._takes_cost(record["cost"]))
        )

    def _takes_cost(self, cost: Mapping[str, Any] | None) -> bool:
        if cost is None:
            return False  # nobody knows
        known_usd = cost["known_usd"]
        return (self.min_cost_usd is None or known_usd >= self.min_cost_usd) and (
            self.max_cost_usd is None or known_usd <= self.max_cost_usd
        )


_ALL = Wanted()


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request with an ``Idempotency-Key``, as it outlives the process."""

    fingerprint: str
    answer: dict[str, Any] | None = None
    """None while it is being worked on."""
    created_at: float = field(default_factory=time.time, compare=False)
    """When it was written, which tells it from what others have written of the same key."""
