"""How the tables of earlier versions of this program come to be what they are today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sql

from server.carrier import MAX_CALL_SID_CHARS
from server.records.database.tables import calls, events


def _nothing_to_change(connection: sql.Connection) -> None:
    """New tables are made anyway."""


def _add(connection: sql.Connection, column: sql.Column[Any], ddl: str) -> None:
    """Add a column, unless the table has just been made."""
    names = {there["name"] for there in sql.inspect(connection).get_columns(calls.name)}
    if column.name not in names:
        connection.exec_driver_sql(f"ALTER TABLE {calls.name} ADD COLUMN {column.name} {ddl}")


def _add_indexes(connection: sql.Connection, *names: str) -> None:
    """Add the indexes that begin with these columns, unless they are there."""
    for index in calls.indexes:
        if next(iter(index.columns)).name in names:
            index.create(connection, checkfirst=True)


def _add_generation(connection: sql.Connection) -> None:
    """What is there was written by the only process that had the call."""
    _add(connection, calls.c.generation, "INTEGER NOT NULL DEFAULT 1")


def _add_agent(connection: sql.Connection) -> None:
    """There was one, which had no name."""
    _add(connection, calls.c.agent, "VARCHAR(64) NOT NULL DEFAULT 'default'")


def _add_outcome(connection: sql.Connection) -> None:
    """What calls have brought stands among their details, and lists are looked through for more."""
    _add(connection, calls.c.outcome_complete, "BOOLEAN")
    _add_indexes(connection, "agent", "number", "reason")


def _add_trouble(connection: sql.Connection) -> None:
    """Only the ends of calls told of it."""
    _add(connection, calls.c.had_trouble, "BOOLEAN")
    _add_indexes(connection, "had_trouble")


def _widen_call_sids(connection: sql.Connection) -> None:
    """Asterisk's names were cut; SQLite takes text of any length, whatever its tables say."""
    if connection.dialect.name == "postgresql":  # which writes no row anew for it
        for name in (calls.name, events.name):
            wide = f"ALTER COLUMN call_sid TYPE VARCHAR({MAX_CALL_SID_CHARS})"
            connection.exec_driver_sql(f"ALTER TABLE {name} {wide}")


MIGRATIONS: Mapping[int, Callable[[sql.Connection], None]] = {
    1: _nothing_to_change,
    2: _add_generation,
    3: _add_agent,
    4: _nothing_to_change,
    5: _add_outcome,
    6: _add_trouble,
    7: _widen_call_sids,
}
"""From this version to the next one, in one transaction; version 1 is the first."""
