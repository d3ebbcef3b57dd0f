"""The way to one database: its connections, and its tables made and brought up to date."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sql
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from server.records.database.errors import (
    DatabaseClosed,
    SchemaTooNew,
    is_about_data,
    lacks_tables,
)
from server.records.database.migrations import MIGRATIONS, Widening, bound_waits, counted
from server.records.database.tables import SCHEMA_VERSION, schema, tables

T = TypeVar("T")
LOCK_TIMEOUT_S = 5.0
"""How long SQLite may wait for another process's lock, and PostgreSQL for a connection."""
STEPS_UNASKED = 100_000
"""Of SQLite's own machine, after which a query stops if the database was closed meanwhile."""
OPEN_TIMEOUT_S = 10.0
UNHEARD_TIMEOUT_S = 10.0
"""How long a database on the network may leave us without a sign of life."""

_ALONE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(6334785)"}
"""What makes other processes wait until the transaction is over; any number that is ours."""


class Connections:
    """The connections to one database, whose tables are made, or brought up to date, before use.

    What is done here is done in threads: all of it may block, and raise ``SQLAlchemyError``. A
    thread may be abandoned, and the database closed while it is still at it: it goes through
    :meth:`use`, so that whoever is the last to leave closes the connections.
    """

    def __init__(self, url: URL) -> None:
        self.is_shared = True
        """Whether several threads may use it at the same time."""
        arguments, options = dict[str, Any](), dict[str, Any]()
        if url.get_backend_name() == "sqlite":
            arguments["timeout"] = LOCK_TIMEOUT_S
            if url.database in (None, "", ":memory:"):
                # One connection, or every thread would have an empty database of its own.
                self.is_shared = False
                options["poolclass"] = StaticPool
                arguments["check_same_thread"] = False
        elif url.get_backend_name() == "postgresql":
            arguments["connect_timeout"] = int(LOCK_TIMEOUT_S)
            # A server that has gone without a word does not keep a thread for hours.
            arguments |= {"tcp_user_timeout": int(1000 * UNHEARD_TIMEOUT_S)}
            arguments |= {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
            options["pool_pre_ping"] = True
        # SQLAlchemy would put ours in the place of what the URL says.
        arguments = {name: arguments[name] for name in arguments if name not in url.query}
        if url.get_backend_name() == "postgresql":
            timeout = f"-c statement_timeout={int(1000 * OPEN_TIMEOUT_S)}"
            # Of one setting that is there twice the later counts: theirs.
            arguments["options"] = " ".join((timeout, *url.normalized_query.get("options", ())))
        self._url = url
        options |= {"connect_args": arguments, "hide_parameters": True}
        self._engine = sql.create_engine(url, **options)
        self._generation, self._ready, self._widening = 0, False, Widening()
        self._opening, self._counting = threading.Lock(), threading.Lock()
        self._users = 0
        self._closed = False
        self._checked_out: set[Any] = set()  # the drivers' own connections
        if url.get_backend_name() != "sqlite":
            sql.event.listen(self._engine, "connect", self._note_generation)
            sql.event.listen(self._engine, "checkout", self._replace_old)
        sql.event.listen(self._engine, "checkout", self._checked_out_one)
        for event in ("checkin", "close"):
            sql.event.listen(self._engine, event, self._checked_in_one)
        if url.get_backend_name() == "sqlite":
            sql.event.listen(self._engine, "connect", self._set_up_sqlite)

    def use(self, function: Callable[[], T]) -> T:
        """Do this with the database.

        Raises:
            DatabaseClosed: It was closed before this began.
        """
        with self._counting:
            if self._closed:
                raise DatabaseClosed("the database is closed")
            self._users += 1
        try:
            return function()
        except DBAPIError as error:
            if not is_about_data(error):
                # After a failover the connections that there are lead to what is a standby now.
                self._generation += 1
                self._ready = self._ready and not lacks_tables(error)
            raise
        finally:
            with self._counting:
                self._users -= 1
                is_last = self._closed and not self._users
            if is_last:
                self._engine.dispose()

    def close(self) -> None:
        """Close every connection. One that a thread uses is closed by that thread, soon."""
        with self._counting:
            was_closed, self._closed = self._closed, True
            is_last = not was_closed and not self._users
            for connection in self._checked_out:
                _hang_up(connection)
        if is_last:
            self._engine.dispose()

    def _note_generation(self, connection: Any, record: Any) -> None:
        record.info["generation"] = self._generation

    def _replace_old(self, connection: Any, record: Any, *_: object) -> None:
        if record.info.get("generation") != self._generation:
            raise DisconnectionError("made before the last failure")  # the pool makes a new one

    def _checked_out_one(self, connection: Any, *_: object) -> None:
        with self._counting:
            self._checked_out.add(connection)

    def _checked_in_one(self, connection: Any, *_: object) -> None:
        with self._counting:
            self._checked_out.discard(connection)

    def _set_up_sqlite(self, connection: Any, _: object) -> None:
        # Readers and the writer do not wait for each other; a crash of the machine (not of this
        # process) may cost the last records, never the file; what is deleted is overwritten.
        try:
            connection.set_progress_handler(lambda: self._closed, STEPS_UNASKED)
            _use_wal(connection)
            for pragma in ("synchronous=NORMAL", "secure_delete=ON"):
                connection.execute(f"PRAGMA {pragma}").close()
        except BaseException:
            connection.close()  # nobody has it yet who would
            raise

    def open(self) -> None:
        """Make the tables, or bring those that are there up to date.

        Raises:
            SchemaTooNew: They are of a later version than this program.
        """
        with self._opening:
            if not self._ready:
                self._open()
                self._ready = True
            self._widening.go_on(self._engine)

    def _open(self) -> None:
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            _make_private(self._url.database)
        with self._engine.begin() as connection:
            # All processes of a server begin at the same moment: one makes the tables.
            if lock := _ALONE.get(self._url.get_backend_name()):
                connection.exec_driver_sql(lock)
            tables.create_all(connection)
            version = counted(connection.scalar(sql.select(schema.c.version)))
            if version is None:
                connection.execute(sql.insert(schema).values(version=SCHEMA_VERSION))
                version = SCHEMA_VERSION
            if version > SCHEMA_VERSION:
                raise SchemaTooNew(
                    f"the database has schema {version}, this program knows {SCHEMA_VERSION}"
                )
            for step in range(version, SCHEMA_VERSION):
                bound_waits(connection)
                MIGRATIONS[step](connection)
                connection.execute(sql.update(schema).values(version=step + 1))

    def version(self) -> int | None:
        """The version of the tables that are there; None if there are none. Nothing is changed."""
        with self._engine.connect() as connection:
            if not sql.inspect(connection).has_table(schema.name):
                return None
            return counted(connection.scalar(sql.select(schema.c.version)))

    @contextmanager
    def transaction(self, *, alone: bool = True) -> Iterator[sql.Connection]:
        """Do several things at once, or none of them.

        Args:
            alone: What is looked at stays as it is until the end: rows have to be locked for that,
                and SQLite, which cannot, locks all.
        """
        self.open()
        with self._engine.begin() as connection:
            if alone:
                self._lock(connection)
            yield connection

    def _lock(self, connection: sql.Connection) -> None:
        if self._url.get_backend_name() == "sqlite":
            connection.exec_driver_sql(_ALONE["sqlite"])  # it has no locks of rows


def _hang_up(connection: Any) -> None:
    """Let a thread that waits for a server fail at once, as far as its driver can do that."""
    # It may be over at this moment, and its driver any.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def _use_wal(connection: Any) -> None:
    # SQLite waits for any lock but this one, which processes that begin together all want.
    give_up_at = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError:
            if time.monotonic() >= give_up_at:
                raise
            time.sleep(0.01)
        else:
            return


def _make_private(path: str) -> None:
    """Make the file, so that only its owner may read what people said."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise SQLAlchemyError(f"cannot open {path}: {error.strerror}") from error
