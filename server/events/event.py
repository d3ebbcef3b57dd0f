"""What an event says: made of a call's record, and bounded. No clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote

from server.events.targets import target_of
from server.records.outbox import OutboxEvent
from server.records.tables import FIRST_GENERATION

Kind: TypeAlias = Literal[
    "call.started", "call.answered", "call.failed", "call.recording", "call.ended", "call.outcome"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TELL_THE_END = frozenset({"call.failed", "call.recording", "call.ended", "call.outcome"})
MAX_PAYLOAD_BYTES = 256 * 1024
LONG_PARTS = ("timeline", "replies", "transcript", "metadata")
"""Of a record, the first to be left out of an event that would be too large."""


def content_of(
    kind: Kind, record: Mapping[str, Any], *, at: float, public_url: str = ""
) -> dict[str, Any]:
    """What an event says.

    Args:
        kind: What has happened.
        record: The call as ``GET /calls/{call_sid}`` shows it.
        at: When it happened: seconds since 1970.
        public_url: What links begin with.
    """
    call = f"{public_url}/calls/{quote(record['call_sid'], safe='')}"
    links = {"call": call}
    if record.get("recording"):
        links["recording"] = f"{call}/recording"
    happened = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return {
        "type": kind,
        "timestamp": happened.replace("+00:00", "Z"),
        "data": {"call": dict(record), "links": links},
    }


def outbox_event(content: Mapping[str, Any], *, at: float, url: str) -> OutboxEvent:
    """An event as it is kept until its receiver has it.

    Its id is made of what has happened, so that it is the same whoever tells it: how a call begins
    and is answered is one event for all that have had it, and how it ends one for each owner.
    """
    kind, call = content["type"], content["data"]["call"]
    generation = call.get("generation", FIRST_GENERATION)
    is_last = kind in _TELL_THE_END
    name = f"{call['call_sid']} {call['created_at'] if is_last else ''} {kind}"
    if is_last:
        name += f" {generation}"
    return OutboxEvent(
        id=f"msg_{hashlib.sha256(name.encode()).hexdigest()[:32]}",
        call_sid=call["call_sid"],
        generation=generation,
        at=at,
        type=kind,
        target=target_of(url),
        url=url,
        payload=payload_of(content),
        is_last=is_last,
    )


def payload_of(content: Mapping[str, Any]) -> str:
    """An event as JSON in ASCII; one that is too large says which parts it lacks."""
    payload = _json(content)
    if len(payload) <= MAX_PAYLOAD_BYTES:
        return payload
    call, missing = dict(content["data"]["call"]), []
    for part in LONG_PARTS:
        if part in call:
            del call[part]
            missing.append(part)
        data = content["data"] | {"call": call, "left_out": missing}
        payload = _json({**content, "data": data})
        if len(payload) <= MAX_PAYLOAD_BYTES:
            break
    return payload


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))
