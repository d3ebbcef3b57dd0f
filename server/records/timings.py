"""How long callers waited, call by call: what is read of many records at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.records.database import statements
from server.records.database.database import Database
from server.records.words import Wanted

MAX_REPLIES = 40
"""Of one call; more tell nothing new of it."""


def timings_of(database: Database, limit: int, wanted: Wanted) -> list[dict[str, Any]]:
    """Read the waits of the newest calls that are wanted and have talked; blocks.

    Args:
        database: Where the records are.
        limit: How many calls at most.
        wanted: Which of them.

    Returns:
        For each call its name, time, agent and model, and in milliseconds: from the answer to the
        agent's first word, from the caller's last word to each answer, and the longest from an
        interruption that was seen to the order that silences the agent.
    """
    query = statements.wanted_only(statements.TIMINGS, wanted)
    with database.transaction(alone=False) as connection:
        rows = connection.execute(query, {"most": limit}).mappings().all()
    return [_waits(dict(row)) for row in rows]


def _waits(row: Mapping[str, Any]) -> dict[str, Any]:
    timings, replies = row["timings"] or {}, row["replies"] or []
    cuts = timings.get("interrupt_to_clear") or {}
    return {
        "call_sid": row["call_sid"],
        "created_at": row["created_at"],
        "agent": row["agent"],
        "model": row["model"],
        "answer_ms": timings.get("answer_to_first_audio_ms"),
        "replies_ms": [reply["total_ms"] for reply in replies[:MAX_REPLIES] if "total_ms" in reply],
        "slowest_clear_ms": cuts.get("max_ms") if cuts.get("count") else None,
    }
