"""What an event says: made of a call's record, and bounded. No clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote

from server.events.targets import target_of
from server.records.database.tables import FIRST_GENERATION, shown
from server.records.outbox import OutboxEvent

Kind: TypeAlias = Literal[
    "call.started",
    "call.answered",
    "call.turn",
    "call.failed",
    "call.recording",
    "call.ended",
    "call.outcome",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TELL_THE_END = frozenset({"call.failed", "call.recording", "call.ended", "call.outcome"})
MAX_PAYLOAD_BYTES = 256 * 1024
LONG_PARTS = ("timeline", "replies", "transcript", "metadata")
"""Of a record, the first to be left out of an event that would be too large."""


class CallTold:
    """A call's record that events tell of, written as JSON once for all of them.

    Args:
        record: The call as ``GET /calls/{call_sid}`` shows it.
        turn: How many turns there were before the one that is told of, and that turn, if it is one.
    """

    def __init__(
        self, record: Mapping[str, Any], turn: tuple[int, Mapping[str, Any]] | None = None
    ) -> None:
        self.turn = turn
        self.call_sid: str = record["call_sid"]
        self.created_at: float = record["created_at"]
        self.generation: int = record.get("generation", FIRST_GENERATION)
        self.has_recording = bool(record.get("recording"))
        self._record = record

    @cached_property
    def parts(self) -> Mapping[str, str]:
        """Its parts as JSON, by name."""
        return {name: _json(value) for name, value in self._record.items()}


def payload_of(kind: Kind, told: CallTold, *, at: float, public_url: str = "") -> str:
    """What an event says, as JSON in ASCII; one that is too large says which parts it lacks.

    Args:
        kind: What has happened.
        told: To which call.
        at: When it happened: seconds since 1970.
        public_url: What links begin with.
    """
    call = f"{public_url}/calls/{quote(told.call_sid, safe='')}"
    links = {"call": call}
    if told.has_recording:
        links["recording"] = f"{call}/recording"
    happened = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    head = _json({"type": kind, "timestamp": happened.replace("+00:00", "Z")})
    parts = dict(told.parts)
    missing: list[str] = []
    for part in (None, *LONG_PARTS):
        if part in parts:
            del parts[part]
            missing.append(part)
        whole = ",".join(f"{_json(name)}:{value}" for name, value in parts.items())
        more: dict[str, Any] = {"links": links}
        if told.turn is not None:
            more["turn"] = {"number": told.turn[0], **told.turn[1]}
        if missing:
            more["left_out"] = missing
        payload = f'{head[:-1]},"data":{{"call":{{{whole}}},{_json(more)[1:]}}}'
        if len(payload) <= MAX_PAYLOAD_BYTES:
            break
    return payload


def outbox_event(kind: Kind, told: CallTold, payload: str, *, at: float, url: str) -> OutboxEvent:
    """An event as it is kept until its receiver has it.

    Its id is made of what has happened, so that it is the same whoever tells it: how a call begins
    and is answered is one event for all that have had it, and how it ends one for each owner; so is
    each of its turns.
    """
    is_last = kind in _TELL_THE_END
    name = f"{told.call_sid} {told.created_at if is_last else ''} {kind}"
    if is_last:
        name += f" {told.generation}"
    if told.turn is not None:
        name += f" {told.generation} {told.turn[0]}"
    return OutboxEvent(
        id=f"msg_{hashlib.sha256(name.encode()).hexdigest()[:32]}",
        call_sid=told.call_sid,
        generation=told.generation,
        at=at,
        type=kind,
        target=target_of(url),
        url=url,
        payload=payload,
        is_last=is_last,
    )


def _json(value: Any) -> str:
    """A value as JSON; what is none, as Python shows it: one odd fact is not worth an event."""
    return json.dumps(value, separators=(",", ":"), default=shown)
