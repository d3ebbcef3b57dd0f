"""The database of records: its tables, its migrations, and every statement."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.pool import StaticPool

from server.errors import ConfigurationError, ServerError
from server.records.words import SUMMARY, Cursor, StoredRequest

T = TypeVar("T")
MAX_NUMBER = 2.0**63
"""No number in a record is anywhere near it."""
LOCK_TIMEOUT_S = 5.0
"""How long SQLite may wait for another process's lock, and PostgreSQL for a connection."""
STEPS_UNASKED = 100_000
"""Of SQLite's own machine, after which a query stops if the database was closed meanwhile."""
OPEN_TIMEOUT_S = 10.0
UNHEARD_TIMEOUT_S = 10.0
"""How long a database on the network may leave us without a sign of life."""
DAY_S = 86_400.0

SCHEMA_VERSION = 2
"""Goes up with every change of the tables; ``_MIGRATIONS`` says how to get there."""
_tables = sql.MetaData()
_schema = sql.Table("offhook_schema", _tables, sql.Column("version", sql.Integer, nullable=False))
_calls = sql.Table(
    "offhook_calls",
    _tables,
    sql.Column("call_sid", sql.String(64), primary_key=True),
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
    sql.Column("metadata", sql.JSON, nullable=False),
    sql.Column("details", sql.JSON, nullable=False),
    sql.Index("offhook_calls_newest", "created_at", "call_sid"),
)
_requests = sql.Table(
    "offhook_requests",
    _tables,
    sql.Column("client", sql.String(64), primary_key=True),
    sql.Column("key", sql.String(255), primary_key=True),
    sql.Column("fingerprint", sql.String(64), nullable=False),
    sql.Column("created_at", sql.Double, nullable=False, index=True),
    # SQL's NULL until there is one.
    sql.Column("answer", sql.JSON(none_as_null=True)),
)

# Statements are made once: one that is made for each use costs as much as what it does, and what it
# is made of leads back to itself.
_DELETE = sql.delete(_calls).where(_calls.c.call_sid.in_(sql.bindparam("names", expanding=True)))
_INSERT = sql.insert(_calls)
_GET = sql.select(_calls).where(_calls.c.call_sid == sql.bindparam("name"))
_DELETE_BEFORE = sql.delete(_calls).where(_calls.c.created_at < sql.bindparam("before"))
_ONE_REQUEST = (
    _requests.c.client == sql.bindparam("of_client"),
    _requests.c.key == sql.bindparam("of_key"),
)
_FIND_REQUEST = sql.select(_requests.c.fingerprint, _requests.c.answer).where(
    *_ONE_REQUEST, _requests.c.created_at > sql.bindparam("since")
)
_DELETE_REQUEST = sql.delete(_requests).where(*_ONE_REQUEST)
_INSERT_REQUEST = sql.insert(_requests)
_DELETE_REQUESTS = sql.delete(_requests).where(_requests.c.created_at < sql.bindparam("before"))
_PAGE = (
    sql.select(*(_calls.c[name] for name in SUMMARY))
    .order_by(_calls.c.created_at.desc(), _calls.c.call_sid.desc())
    .limit(sql.bindparam("most", type_=sql.Integer))
)
_PAGE_BEFORE = _PAGE.where(
    sql.or_(
        _calls.c.created_at < sql.bindparam("before"),
        sql.and_(
            _calls.c.created_at == sql.bindparam("before"),
            _calls.c.call_sid < sql.bindparam("before_sid"),
        ),
    )
)

_ALONE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(6334785)"}
"""What makes other processes wait until the transaction is over; any number that is ours."""


def _nothing_to_change(connection: sql.Connection) -> None:
    """New tables are made anyway."""


_MIGRATIONS: Mapping[int, Callable[[sql.Connection], None]] = {1: _nothing_to_change}
"""From this version to the next one, in one transaction; version 1 is the first."""


class SchemaTooNew(ServerError):
    """The database was written by a later version of this program."""


THEIRS = (SQLAlchemyError, SchemaTooNew)
"""What a database that is locked, gone, full or of another version raises; all else is a bug."""


def is_about_data(error: Exception) -> bool:
    """Whether a database, or its driver, will never take what it was given."""
    if isinstance(error, StatementError):
        # What is no driver's error was raised on the way to it, by one of the values.
        return isinstance(error, DataError | IntegrityError) or not isinstance(error, DBAPIError)
    return isinstance(error, ValueError | TypeError | OverflowError)


class Database:
    """What is done in threads: everything here may block, and raise ``SQLAlchemyError``.

    A thread may be abandoned, and the database closed while it is still at it: it goes through
    :meth:`use`, so that whoever is the last to leave closes the connections.
    """

    def __init__(self, url: URL) -> None:
        self.is_shared = True
        """Whether several threads may use it at the same time."""
        arguments: dict[str, Any] = {}
        options: dict[str, Any] = {}
        if url.get_backend_name() == "sqlite":
            arguments["timeout"] = LOCK_TIMEOUT_S
            if url.database in (None, "", ":memory:"):
                # One connection, or every thread would have an empty database of its own.
                self.is_shared = False
                options["poolclass"] = StaticPool
                arguments["check_same_thread"] = False
        elif url.get_backend_name() == "postgresql":
            arguments["connect_timeout"] = int(LOCK_TIMEOUT_S)
            arguments["options"] = f"-c statement_timeout={int(1000 * OPEN_TIMEOUT_S)}"
            # A server that has gone without a word does not keep a thread for hours (libpq,
            # "Connection Parameters").
            arguments |= {"tcp_user_timeout": int(1000 * UNHEARD_TIMEOUT_S)}
            arguments |= {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
            options["pool_pre_ping"] = True
        self._url = url
        self._engine = sql.create_engine(
            url, connect_args=arguments, hide_parameters=True, json_serializer=_to_json, **options
        )
        self._ready = False
        self._opening = threading.Lock()
        self._counting = threading.Lock()
        self._users = 0
        self._closed = False
        self._checked_out: set[Any] = set()  # the drivers' own connections
        sql.event.listen(self._engine, "checkout", self._checked_out_one)
        for event in ("checkin", "close"):
            sql.event.listen(self._engine, event, self._checked_in_one)
        if url.get_backend_name() == "sqlite":
            sql.event.listen(self._engine, "connect", self._set_up_sqlite)

    def use(self, function: Callable[[], T]) -> T:
        """Do this with the database.

        Raises:
            SQLAlchemyError: It was closed before this began.
        """
        with self._counting:
            if self._closed:
                raise SQLAlchemyError("the database is closed")
            self._users += 1
        try:
            return function()
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

    def _open(self) -> None:
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            _make_private(self._url.database)
        with self._engine.begin() as connection:
            # All processes of a server begin at the same moment: one makes the tables.
            if lock := _ALONE.get(self._url.get_backend_name()):
                connection.exec_driver_sql(lock)
            _tables.create_all(connection)
            version = connection.scalar(sql.select(_schema.c.version))
            if version is None:
                connection.execute(sql.insert(_schema).values(version=SCHEMA_VERSION))
                version = SCHEMA_VERSION
            if version > SCHEMA_VERSION:
                raise SchemaTooNew(
                    f"the database has schema {version}, this program knows {SCHEMA_VERSION}"
                )
            for step in range(version, SCHEMA_VERSION):
                _MIGRATIONS[step](connection)
                connection.execute(sql.update(_schema).values(version=step + 1))

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records, in the place of any with the same CallSid."""
        self.open()
        rows = [_row(record) for record in records]
        names = [row["call_sid"] for row in rows]
        with self._engine.begin() as connection:
            # Not an upsert: that is spelt differently in every database.
            connection.execute(_DELETE, {"names": names})
            connection.execute(_INSERT, rows)

    def get(self, call_sid: str) -> dict[str, Any] | None:
        """Read one record; None if there is none."""
        if _storable(call_sid) != call_sid:
            return None  # no call is called that, and not every database may be asked for it
        self.open()
        with self._engine.connect() as connection:
            row = connection.execute(_GET, {"name": call_sid}).first()
        if row is None:
            return None
        record = dict(row._mapping)
        details: dict[str, Any] = record.pop("details")
        return record | details

    def page(self, limit: int, before: Cursor | None) -> list[dict[str, Any]]:
        """Read the newest summaries that are older than the cursor."""
        self.open()
        query = _PAGE
        facts: dict[str, Any] = {"most": limit}
        if before is not None:
            query = _PAGE_BEFORE
            facts |= {"before": before.created_at, "before_sid": before.call_sid}
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query, facts)]

    def delete_before(self, created_at: float) -> int:
        """Delete records older than this; returns how many there were."""
        self.open()
        with self._engine.begin() as connection:
            done = connection.execute(_DELETE_BEFORE, {"before": created_at})
        if done.rowcount and self._url.get_backend_name() == "sqlite":
            # What is deleted is overwritten in the file, but still stands in the log beside it.
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return done.rowcount

    def find_request(self, client: str, key: str, since: float) -> StoredRequest | None:
        """Read what a client was answered to an idempotency key since then."""
        self.open()
        facts = {"of_client": client, "of_key": key, "since": since}
        with self._engine.connect() as connection:
            row = connection.execute(_FIND_REQUEST, facts).first()
        return None if row is None else StoredRequest(row.fingerprint, row.answer)

    def write_request(self, client: str, key: str, request: StoredRequest | None) -> None:
        """Keep what a client was answered to an idempotency key, or forget it."""
        self.open()
        with self._engine.begin() as connection:
            connection.execute(_DELETE_REQUEST, {"of_client": client, "of_key": key})
            if request is not None:
                kept = {
                    "client": client,
                    "key": key,
                    "fingerprint": request.fingerprint,
                    "created_at": time.time(),
                    "answer": request.answer,
                }
                connection.execute(_INSERT_REQUEST, kept)

    def delete_requests_before(self, created_at: float) -> None:
        """Delete answers to idempotency keys older than this."""
        self.open()
        with self._engine.begin() as connection:
            connection.execute(_DELETE_REQUESTS, {"before": created_at})


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as its table takes it: whatever a stranger's text was, it fits its column."""
    row: dict[str, Any] = {name: record[name] for name in SUMMARY}
    for name, value in row.items():
        if isinstance(value, str):
            row[name] = _storable(value)[: getattr(_calls.c[name].type, "length", None)]
    return row | {"details": {name: record[name] for name in record if name not in SUMMARY}}


def _storable(text: str) -> str:
    """Text without what some database does not take: NUL, and half of a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _to_json(value: Any) -> str:
    """JSON as every database reads it, which is without ``Infinity`` and ``NaN``."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(each) for name, each in value.items()}
        case list() | tuple() | deque():
            return [_finite(each) for each in value]
        case int() | float() if not -MAX_NUMBER < value < MAX_NUMBER:
            return None
        case _:
            return value


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


def database_url(text: str) -> URL:
    """Read ``DATABASE_URL``."""
    try:
        url = make_url(text)
        if url.drivername in ("postgres", "postgresql"):
            url = url.set(drivername="postgresql+psycopg")
        dialect = url.get_dialect()
        dialect.import_dbapi()
        dialect().create_connect_args(url)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigurationError(f"DATABASE_URL: {_first_sentence(error)}") from None
    except (TypeError, ValueError):  # whose text may have the password in it
        raise ConfigurationError(
            "DATABASE_URL: a part of it is not what it has to be, as a port or a number behind "
            "the question mark; like sqlite:///offhook.db or postgresql://user:password@host/name"
        ) from None
    except ModuleNotFoundError as error:
        hint = "; pip install 'offhook[postgres]'" if error.name == "psycopg" else ""
        raise ConfigurationError(f"DATABASE_URL: {error.name} is not installed{hint}") from None
    return url


def _first_sentence(error: Exception) -> str:
    return str(error).splitlines()[0]


def check_database(text: str) -> None:
    """Find out before the first call whether records can ever be kept where a setting says.

    A database that is not there just now is waited for, a file as well as a server; something else
    in its place stays what it is.

    Raises:
        ConfigurationError: It is a folder, or a file of another program.
    """
    url = database_url(text)
    if url.get_backend_name() != "sqlite" or not url.database or url.query.get("uri"):
        return
    path = Path(url.database)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise ConfigurationError(f"DATABASE_URL: {error.strerror}: {str(path)[:80]}") from None
    if is_folder:
        raise ConfigurationError(f"DATABASE_URL: {path} is a folder; name a file in it")
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            start = file.read(len(_SQLITE_START))
    except OSError:
        return
    if start and start != _SQLITE_START:
        raise ConfigurationError(f"DATABASE_URL: {path} is a file of something else than SQLite")


_SQLITE_START = b"SQLite format 3\0"
"""How every such file begins that is not empty (SQLite's "Database File Format", 1.3)."""
