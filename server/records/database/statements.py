"""What is asked of the database, made once.

A statement that is made for each use costs as much as what it does, and what it is made of leads
back to itself, which only the garbage collector takes away.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sql

from server.records.database.tables import HAD_TROUBLE, SUMMARY, calls, events, requests, storable
from server.records.words import Wanted


def _piece_of(table: sql.Table, since: sql.Column[float], *, is_sorted: bool = True) -> sql.Delete:
    """Delete so many rows of what is older than a time.

    Args:
        table: Whose rows.
        since: The column that says how old one is.
        is_sorted: Whether the oldest are found by an index; else any are taken, and none sorted.
    """
    key = table.primary_key.columns
    old = (
        sql.select(*key)
        .where(since < sql.bindparam("before"))
        .order_by(*[since] if is_sorted else [])
        .limit(sql.bindparam("most", type_=sql.Integer))
        # All processes sweep: each takes what no other is at, and none waits for another.
        .with_for_update(skip_locked=True)
        # Within the statement that begins with DELETE, by which Python knows that it is one.
        .cte("old", nesting=True)
    )
    return sql.delete(table).where(sql.tuple_(*key).in_(sql.select(old)))


DELETE = sql.delete(calls).where(calls.c.call_sid.in_(sql.bindparam("names", expanding=True)))
INSERT = sql.insert(calls)
GET = sql.select(calls).where(calls.c.call_sid == sql.bindparam("name"))
OLD_CALLS = _piece_of(calls, calls.c.created_at)
OLD_REQUESTS = _piece_of(requests, requests.c.created_at)
OLD_EVENTS = _piece_of(events, events.c.at, is_sorted=False)
_ONE_REQUEST = (
    requests.c.client == sql.bindparam("of_client"),
    requests.c.key == sql.bindparam("of_key"),
)
FIND_REQUEST = sql.select(requests.c.fingerprint, requests.c.answer, requests.c.created_at).where(
    *_ONE_REQUEST, requests.c.created_at > sql.bindparam("since")
)
DELETE_REQUEST = sql.delete(requests).where(*_ONE_REQUEST)
INSERT_REQUEST = sql.insert(requests)
PAGE = (
    sql.select(*(calls.c[name] for name in SUMMARY))
    .order_by(calls.c.created_at.desc(), calls.c.call_sid.desc())
    .limit(sql.bindparam("most", type_=sql.Integer))
)
PAGE_BEFORE = PAGE.where(
    sql.or_(
        calls.c.created_at < sql.bindparam("before"),
        sql.and_(
            calls.c.created_at == sql.bindparam("before"),
            calls.c.call_sid < sql.bindparam("before_sid"),
        ),
    )
)
OUTCOME = calls.c.details["outcome"].label("outcome")
"""What a call has brought, which is none of the summary's: it may be long."""
GENERATIONS = (
    sql.select(calls.c.call_sid, calls.c.generation, calls.c.created_at)
    .where(calls.c.call_sid.in_(sql.bindparam("names", expanding=True)))
    .order_by(calls.c.call_sid)
    .with_for_update()
)
THERE = (
    sql.select(calls.c.call_sid, calls.c.generation, calls.c.created_at, calls.c.details)
    .where(calls.c.call_sid.in_(sql.bindparam("names", expanding=True)))
    .order_by(calls.c.call_sid)
    .with_for_update()
)
"""They stay as they are until the transaction is over, where a database knows how to do that."""

TIMINGS = (
    sql.select(
        calls.c.call_sid,
        calls.c.created_at,
        calls.c.agent,
        calls.c.details["model"].label("model"),
        calls.c.details["timings"].label("timings"),
        calls.c.details["replies"].label("replies"),
    )
    .where(calls.c.duration_s > 0)
    .order_by(calls.c.created_at.desc(), calls.c.call_sid.desc())
    .limit(sql.bindparam("most", type_=sql.Integer))
)


def wanted_only(query: sql.Select[Any], wanted: Wanted) -> sql.Select[Any]:
    """A page of those records alone that are wanted; made for each use, which people ask for."""
    columns = calls.c
    if wanted.since is not None:
        query = query.where(columns.created_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(columns.created_at < wanted.until)
    if wanted.min_duration_s is not None:
        query = query.where(columns.duration_s >= wanted.min_duration_s)
    if wanted.max_duration_s is not None:
        query = query.where(columns.duration_s <= wanted.max_duration_s)
    cost_usd = columns.details["cost"]["known_usd"].as_float()
    if wanted.min_cost_usd is not None:
        query = query.where(cost_usd >= wanted.min_cost_usd)
    if wanted.max_cost_usd is not None:
        query = query.where(cost_usd <= wanted.max_cost_usd)
    if wanted.troubles:
        by_end = columns.reason.in_(wanted.troubles)
        query = query.where(sql.or_(HAD_TROUBLE, by_end))  # an index for each
    for name, values in wanted.one_of.items():
        fitted = [storable(value) if isinstance(value, str) else value for value in values]
        query = query.where(columns[name].in_(fitted))
    return query
