"""How the tables of earlier versions of this program come to be what they are today."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import sqlalchemy as sql
import structlog
from sqlalchemy.exc import DBAPIError, NoSuchTableError

from server.carrier import MAX_CALL_SID_CHARS
from server.records.database.tables import calls, events

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TURN_TIMEOUT_S = 2.0
"""How long a change of the tables may wait for those who use them, such as a dump: whoever comes
after it, of other nodes as well, waits behind it."""
WIDEN_TURN_TIMEOUT_S, WIDEN_AGAIN_S = 0.2, 60.0
"""How long one that is not needed at once may wait, and when it is tried again."""
_NEVER = ("42501", "0A000")
"""The tables are another user's; a view of somebody's shows them (PostgreSQL's ``insufficient_
privilege`` and ``feature_not_supported``)."""


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


MIGRATIONS: Mapping[int, Callable[[sql.Connection], None]] = {
    1: _nothing_to_change,
    2: _add_generation,
    3: _add_agent,
    4: _nothing_to_change,
    5: _add_outcome,
    6: _add_trouble,
    7: _nothing_to_change,
}
"""From this version to the next one, in one transaction; version 1 is the first."""


def counted(version: int | None) -> int | None:
    """The version as this program counts: what programs in development called 8 is 7 with longer
    names of calls, which need no version of their own (:class:`Widening`). The next one is 9.
    """
    return 7 if version == 8 else version


def bound_waits(connection: sql.Connection) -> None:
    """Let changes of the tables take long, which may be large, but not wait long for their turn."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(1000 * TURN_TIMEOUT_S)}")


class Widening:
    """Gives calls' names the room in tables of earlier programs that they have in new ones.

    Those programs can use what is wider, and this one what is narrower, but for calls with names of
    more than 64 characters: so nobody has to wait for this, or to do without the database.
    """

    def __init__(self) -> None:
        self._next_at = 0.0

    def go_on(self, engine: sql.Engine) -> None:
        """Do it if it is not done, and nobody uses the tables for long at this moment."""
        if (now := time.monotonic()) >= self._next_at:
            self._next_at = now + WIDEN_AGAIN_S  # whatever comes of it
            if _widen(engine):
                self._next_at = inf


def _widen(engine: sql.Engine) -> bool:
    """Returns whether it is done, or cannot be done at all; else somebody uses the tables."""
    if engine.dialect.name != "postgresql":
        return True  # SQLite takes text of any length, whatever its tables say
    try:
        for table in (calls, events):  # each by itself, or who uses both might wait for us in turn
            with engine.begin() as connection:
                columns = sql.inspect(connection).get_columns(table.name)
                if any(each["name"] == "call_sid" and _is_narrow(each["type"]) for each in columns):
                    wait_ms = int(1000 * WIDEN_TURN_TIMEOUT_S)
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {wait_ms}")
                    wide = f"ALTER COLUMN call_sid TYPE VARCHAR({MAX_CALL_SID_CHARS})"
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} {wide}")
    except NoSuchTableError:
        return False  # another database has come in the place of ours: whoever uses it finds out
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if error.connection_invalidated or state is None:
            raise
        if state not in _NEVER:
            return False  # it is not our turn, or nothing can be written there for now
        logger.warning("the database has no room for calls' longest names", sqlstate=state)
    return True


def _is_narrow(kind: Any) -> bool:
    return getattr(kind, "length", None) in range(1, MAX_CALL_SID_CHARS)
