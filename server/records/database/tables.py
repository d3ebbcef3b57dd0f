"""The tables of records, and records as these take them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sql

from server.carrier import MAX_CALL_SID_CHARS

MAX_NUMBER = 2.0**63
"""No number in a record is anywhere near it."""
MAX_DEPTH = 100
"""Nor is anything in it so deep; Python and databases give up somewhere beyond."""
SCHEMA_VERSION = 7
"""Goes up with every change of the tables; ``migrations.py`` says how to get there."""
tables = sql.MetaData()
schema = sql.Table("offhook_schema", tables, sql.Column("version", sql.Integer, nullable=False))
calls = sql.Table(
    "offhook_calls",
    tables,
    sql.Column("call_sid", sql.String(MAX_CALL_SID_CHARS), primary_key=True),
    sql.Column("direction", sql.String(16), nullable=False),
    sql.Column("number", sql.String(32), nullable=False),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column("status", sql.String(16), nullable=False),
    sql.Column("reason", sql.String(64)),
    sql.Column("detail", sql.Text, nullable=False),
    # Double precision wherever the database makes a difference: seconds since 1970.
    sql.Column("created_at", sql.Double, nullable=False),
    sql.Column("duration_s", sql.Double, nullable=False),
    sql.Column("agent_heard_s", sql.Double, nullable=False),
    sql.Column("agent", sql.String(64), nullable=False, server_default="default"),
    # For the how-manieth time the call was somebody's when this was written.
    sql.Column("generation", sql.Integer, nullable=False, server_default="1"),
    # Whether what its agent wants to know is; NULL for one that wants nothing.
    sql.Column("outcome_complete", sql.Boolean),
    # Whether something went wrong; NULL where nobody had told that yet.
    sql.Column("had_trouble", sql.Boolean),
    sql.Column("metadata", sql.JSON, nullable=False),
    sql.Column("details", sql.JSON, nullable=False),
    sql.Index("offhook_calls_newest", "created_at", "call_sid"),
    # By what few of many calls are looked for.
    sql.Index("offhook_calls_of_agent", "agent", "created_at", "call_sid"),
    sql.Index("offhook_calls_of_number", "number", "created_at", "call_sid"),
    sql.Index("offhook_calls_of_reason", "reason", "created_at", "call_sid"),
)
HAD_TROUBLE = calls.c.had_trouble == sql.true()
"""In the very words of the index: by others, such as IS TRUE, no database finds it."""
sql.Index(
    "offhook_calls_with_trouble",
    calls.c.had_trouble,
    calls.c.created_at,
    calls.c.call_sid,
    sqlite_where=HAD_TROUBLE,
    postgresql_where=HAD_TROUBLE,
)
requests = sql.Table(
    "offhook_requests",
    tables,
    sql.Column("client", sql.String(64), primary_key=True),
    sql.Column("key", sql.String(255), primary_key=True),
    sql.Column("fingerprint", sql.String(64), nullable=False),
    sql.Column("created_at", sql.Double, nullable=False, index=True),
    # SQL's NULL until there is one.
    sql.Column("answer", sql.JSON(none_as_null=True)),
)
events = sql.Table(
    "offhook_events",
    tables,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("call_sid", sql.String(MAX_CALL_SID_CHARS), nullable=False),
    sql.Column("generation", sql.Integer, nullable=False),
    sql.Column("at", sql.Double, nullable=False),
    sql.Column("type", sql.String(32), nullable=False),
    sql.Column("target", sql.String(300), nullable=False),
    sql.Column("url", sql.String(2_000), nullable=False),
    sql.Column("payload", sql.Text, nullable=False),
    sql.Column("is_last", sql.Boolean, nullable=False),
    sql.Column("attempts", sql.Integer, nullable=False, default=0),
    sql.Column("next_at", sql.Double, nullable=False),
    sql.Column("since", sql.Double, nullable=False),
    sql.Column("leased_until", sql.Double, nullable=False, default=0.0),
    sql.Column("lease", sql.String(64)),
    sql.Column("dead_at", sql.Double),
    sql.Column("error", sql.String(200), nullable=False, default=""),
    sql.Index("offhook_events_of_call", "call_sid", "generation", "at"),
    sql.Index("offhook_events_due", "dead_at", "next_at"),
)

SUMMARY = tuple(column.name for column in calls.c if column is not calls.c.details)
"""The fields of a record that lists show; the rest is one column of details."""
DEFAULT_AGENT = "default"
"""Of records from before there were several."""
FIRST_GENERATION = 1
"""Of a call that only one process has ever had, and of records from before that was told."""
SINCE: Mapping[str, Any] = {
    "agent": DEFAULT_AGENT,
    "generation": FIRST_GENERATION,
    "outcome_complete": None,
    "had_trouble": None,
}
"""What records of earlier versions of this program lack, and what is true of them."""
FOUND_OVER = 0
"""Of a record by a process that took a call over and found it over: any owner's that talked is
right, whichever is written first."""
KEPT_AT = "_kept_at"
"""Among the details: when this version of the record was made. It is not shown."""
NOT_WHOLE = "not_whole"
"""Among the details of a record of which only the summary could be kept."""
EVENTS = "_events"
"""Beside a record in a file: the events of its call that the database did not take either."""


def fitted(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as its table takes it and gives it back, whatever came from outside.

    Text is cut to its column's length and has no NUL and no half of a surrogate pair in it, for
    some database takes neither; numbers that are none are null, or 0 where there has to be one;
    what is in JSON is what JSON can say. What is no mistake of a stranger's but a bug of ours, such
    as a column without a value, is left as it is. A record that is fitted stays the same.
    """
    return {
        name: _fitted_column(calls.c[name], value) if name in SUMMARY else _fitted_json(value)
        for name, value in record.items()
    }


def checked(record: Any) -> dict[str, Any]:
    """A record that another process has written, as its table takes it.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: It is none, or not whole.
    """
    if not (isinstance(record["call_sid"], str) and record["call_sid"]):
        raise ValueError("no call")
    record = {**SINCE, KEPT_AT: 0.0, **record}
    numbers = (record[KEPT_AT], record["created_at"], record["generation"])
    if not all(type(number) in (int, float) and abs(number) < MAX_NUMBER for number in numbers):
        raise ValueError("no time")
    if set(SUMMARY) - set(record):
        raise ValueError("not whole")
    return fitted(record)


def storable(text: str) -> str:
    """Text without what some database does not take: NUL, and half of a surrogate pair."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _fitted_column(column: sql.Column[Any], value: Any) -> Any:
    match column.type, value:
        case sql.JSON(), _:
            return _fitted_json(value)
        case sql.String(), str():
            return storable(value)[: column.type.length]
        case sql.Double(), int() | float() if not -MAX_NUMBER < value < MAX_NUMBER:
            return None if column.nullable else 0.0
    return value


def _fitted_json(value: Any, depth: int = 0) -> Any:
    kind = type(value)  # a long call's record has some thousand values, and calls go on meanwhile
    if kind is str:
        return value if value.isascii() and "\0" not in value else storable(value)
    if value is None or kind is bool:
        return value
    if kind is int or kind is float:
        return value if -MAX_NUMBER < value < MAX_NUMBER else None
    match value:
        case dict() | list() | tuple() | deque() if depth == MAX_DEPTH:
            return None
        case dict():
            return {
                name if type(name) is str and name.isidentifier() and name.isascii()
                else _fitted_name(name): _fitted_json(of, depth + 1)
                for name, of in value.items()
            }  # fmt: skip
        case list() | tuple() | deque():
            return [_fitted_json(each, depth + 1) for each in value]
        case str():
            return storable(value)
        case int() | float() if not -MAX_NUMBER < value < MAX_NUMBER:
            return None
    return value


def _fitted_name(name: Any) -> str:
    """The name of a member as JSON has it; one of another type is named as Python shows it."""
    if isinstance(name, str):
        return storable(name)
    return json.dumps(name) if isinstance(name, int | float | None) else storable(shown(name))


def shown(value: object) -> str:
    """What Python shows of a value; of one that cannot be shown, its type. Never fails."""
    try:
        return repr(value)
    except Exception:  # of a value's own
        return f"<{type(value).__name__}>"


def writable(value: Any) -> Any:
    """A value as it is if JSON can say it, else what Python shows of it."""
    if value is None or isinstance(value, (str, int, float)):
        return value  # as nearly all are
    try:
        json.dumps(value)
    except (ValueError, TypeError, RecursionError):
        return shown(value)
    return value
