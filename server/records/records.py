"""The records of ended calls, kept in a database that no call ever waits for.

A record is handed over in an instant and written by one task through a thread. While the database
is locked or gone, records stay in memory, are shown from there, and are written when it is back; a
call neither notices nor fails. SQLite is the default; any database that SQLAlchemy knows will do,
and PostgreSQL is tested.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sql
import structlog
import trio
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
from server.metrics import Metrics

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_UNSAVED = 10_000
"""About 100 MB of long calls; then the oldest are given up, counted and logged."""
BATCH = 100
MAX_NUMBER = 2.0**63
"""No number in a record is anywhere near it."""
LOCK_TIMEOUT_S = 5.0
"""How long SQLite may wait for another process's lock, and PostgreSQL for a connection."""
STEPS_UNASKED = 100_000
"""Of SQLite's own machine, after which a query stops if the database was closed meanwhile."""
OPEN_TIMEOUT_S = 10.0
FLUSH_TIMEOUT_S = 10.0
"""How long a server that stops may take to write what is left."""
CLOSE_TIMEOUT_S = 5.0
"""How long it then waits for threads that are still at it."""
UNHEARD_TIMEOUT_S = 10.0
"""How long a database on the network may leave us without a sign of life."""
RETRY_S = (0.5, 30.0)
"""The first and the longest pause before trying again."""
REQUEST_TIMEOUT_S = 1.0
"""How long a request with an ``Idempotency-Key`` may wait for the database, each time."""
SWEEP_EVERY_S = 3_600.0
DAY_S = 86_400.0

SUMMARY = (
    "call_sid",
    "direction",
    "number",
    "state",
    "status",
    "reason",
    "detail",
    "created_at",
    "duration_s",
    "agent_heard_s",
    "metadata",
)
"""The fields of a record that lists show; the rest is one column of details."""

# ------------------------------------------------------------------------------------------
# The schema

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


_ALONE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(6334785)"}
"""What makes other processes wait until the transaction is over; any number that is ours."""


def _nothing_to_change(connection: sql.Connection) -> None:
    """New tables are made anyway."""


_MIGRATIONS: Mapping[int, Callable[[sql.Connection], None]] = {1: _nothing_to_change}
"""From this version to the next one, in one transaction; version 1 is the first."""


class RecordsUnavailable(ServerError):
    """The database cannot be read just now."""


class SchemaTooNew(ServerError):
    """The database was written by a later version of this program."""


_THEIRS = (SQLAlchemyError, SchemaTooNew)
"""What a database that is locked, gone, full or of another version raises; all else is a bug."""


def _is_about_data(error: Exception) -> bool:
    """Whether a database, or its driver, will never take what it was given."""
    if isinstance(error, StatementError):
        # What is no driver's error was raised on the way to it, by one of the values.
        return isinstance(error, DataError | IntegrityError) or not isinstance(error, DBAPIError)
    return isinstance(error, ValueError | TypeError | OverflowError)


# ------------------------------------------------------------------------------------------
# Pages of a list


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
class StoredRequest:
    """A request with an ``Idempotency-Key``, as it outlives the process."""

    fingerprint: str
    answer: dict[str, Any] | None = None
    """None while it is being worked on."""


# ------------------------------------------------------------------------------------------
# The database, from a thread


class _Database:
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
        self.open()
        rows = [_row(record) for record in records]
        names = [row["call_sid"] for row in rows]
        with self._engine.begin() as connection:
            # Not an upsert: that is spelt differently in every database.
            connection.execute(sql.delete(_calls).where(_calls.c.call_sid.in_(names)))
            connection.execute(sql.insert(_calls), rows)

    def get(self, call_sid: str) -> dict[str, Any] | None:
        if _storable(call_sid) != call_sid:
            return None  # no call is called that, and not every database may be asked for it
        self.open()
        with self._engine.connect() as connection:
            row = connection.execute(
                sql.select(_calls).where(_calls.c.call_sid == call_sid)
            ).first()
        if row is None:
            return None
        record = dict(row._mapping)
        details: dict[str, Any] = record.pop("details")
        return record | details

    def page(self, limit: int, before: Cursor | None) -> list[dict[str, Any]]:
        self.open()
        query = (
            sql.select(*(_calls.c[name] for name in SUMMARY))
            .order_by(_calls.c.created_at.desc(), _calls.c.call_sid.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(
                sql.or_(
                    _calls.c.created_at < before.created_at,
                    sql.and_(
                        _calls.c.created_at == before.created_at,
                        _calls.c.call_sid < before.call_sid,
                    ),
                )
            )
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def delete_before(self, created_at: float) -> int:
        self.open()
        with self._engine.begin() as connection:
            done = connection.execute(sql.delete(_calls).where(_calls.c.created_at < created_at))
        if done.rowcount and self._url.get_backend_name() == "sqlite":
            # What is deleted is overwritten in the file, but still stands in the log beside it.
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return done.rowcount

    def find_request(self, client: str, key: str, since: float) -> StoredRequest | None:
        self.open()
        query = sql.select(_requests.c.fingerprint, _requests.c.answer).where(
            _requests.c.client == client, _requests.c.key == key, _requests.c.created_at > since
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else StoredRequest(row.fingerprint, row.answer)

    def write_request(self, client: str, key: str, request: StoredRequest | None) -> None:
        self.open()
        one = (_requests.c.client == client, _requests.c.key == key)
        with self._engine.begin() as connection:
            connection.execute(sql.delete(_requests).where(*one))
            if request is not None:
                connection.execute(
                    sql.insert(_requests).values(
                        client=client,
                        key=key,
                        fingerprint=request.fingerprint,
                        created_at=time.time(),
                        answer=request.answer,
                    )
                )

    def delete_requests_before(self, created_at: float) -> None:
        self.open()
        with self._engine.begin() as connection:
            connection.execute(sql.delete(_requests).where(_requests.c.created_at < created_at))


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


def _database_url(text: str) -> URL:
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
    url = _database_url(text)
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


# ------------------------------------------------------------------------------------------
# The records


class Records:
    """Ended calls: kept at once, written soon, read from memory or the database.

    Args:
        url: SQLAlchemy's, such as ``sqlite:///offhook.db`` or ``postgresql://user@host/name``.
        metrics: The process's metrics.
        retention_days: Older records are deleted; None keeps them for ever.
        requests_ttl_s: How long requests are found again.

    Raises:
        ConfigurationError: The URL is none, or its driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        metrics: Metrics,
        retention_days: float | None = None,
        requests_ttl_s: float = DAY_S,
    ) -> None:
        self._requests_ttl_s = requests_ttl_s
        self._database = _Database(_database_url(url))
        self._metrics = metrics
        self._retention_days = retention_days
        self._unsaved: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._changed = trio.Event()
        self._written = trio.Event()
        self._works = True
        # Threads of our own: a database that hangs takes no other work's.
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(4) if self._database.is_shared else self._writing

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write and delete until cancelled, and then write what is left.

        Raises:
            SchemaTooNew: The database is not for this version; only while starting.
        """
        try:
            try:
                await self._open()
            except SchemaTooNew as error:
                # What starts us only says that the start has failed.
                logger.critical("database refused", reason=str(error))
                raise
            task_status.started()
            await self._work()
        finally:
            with trio.move_on_after(FLUSH_TIMEOUT_S, shield=True):
                await self._flush()
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self._close()

    # -- what calls and the API do ---------------------------------------------------------

    def keep(self, record: dict[str, Any]) -> None:
        """Take a finished record, or a newer version of one; returns at once, never fails."""
        call_sid = record["call_sid"]
        self._unsaved[call_sid] = record
        self._unsaved.move_to_end(call_sid)
        if len(self._unsaved) > MAX_UNSAVED:
            lost, _ = self._unsaved.popitem(last=False)
            self._metrics.record_failures.labels("given-up").inc()
            logger.error("record given up: too many wait for the database", call_sid=lost)
        self._metrics.records_unsaved.set(len(self._unsaved))
        self._changed.set()

    async def get(self, call_sid: str) -> dict[str, Any] | None:
        """One call's record, or None if there is none.

        Raises:
            RecordsUnavailable: It is not in memory, and the database cannot be asked.
        """
        if call_sid in self._unsaved:
            return self._unsaved[call_sid]
        return await self._read(lambda: self._database.get(call_sid))

    async def page(self, limit: int, before: Cursor | None) -> list[dict[str, Any]]:
        """The newest records after a place in the list, summaries only, newest first.

        Raises:
            RecordsUnavailable: The database cannot be asked; :meth:`unsaved` still answers.
        """
        return await self._read(lambda: self._database.page(limit, before))

    def unsaved(self) -> Iterator[dict[str, Any]]:
        """Summaries of what waits for the database."""
        for record in self._unsaved.values():
            yield {name: record[name] for name in SUMMARY}

    async def find_request(self, client: str, key: str) -> StoredRequest | None:
        """A request that came before, to this process or an earlier one.

        Raises:
            RecordsUnavailable: The database cannot be asked, or not soon enough.
        """
        since = time.time() - self._requests_ttl_s
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            return await self._read(lambda: self._database.find_request(client, key, since))
        raise RecordsUnavailable("the database does not answer")

    async def write_request(self, client: str, key: str, request: StoredRequest | None) -> None:
        """Keep a request, or with None forget it; a database that does not take it is told of.

        It is seen through, whoever goes away: within :data:`REQUEST_TIMEOUT_S`.
        """
        try:
            with trio.move_on_after(REQUEST_TIMEOUT_S, shield=True) as waiting:
                await self._in_thread(
                    lambda: self._database.write_request(client, key, request), self._writing
                )
            if waiting.cancelled_caught:
                self._metrics.record_failures.labels("request").inc()
        except Exception as error:
            self._failed("request", error)

    async def wait_saved(self) -> None:
        """Wait until everything that was kept is in the database."""
        while self._unsaved:
            await self._written.wait()

    # -- the one task that writes ----------------------------------------------------------

    async def _open(self) -> None:
        try:
            with trio.move_on_after(OPEN_TIMEOUT_S):
                await self._in_thread(self._database.open, self._writing)
        except SchemaTooNew:
            raise
        except Exception as error:
            self._failed("open", error)

    async def _work(self) -> None:
        retry_s, longest_s = RETRY_S
        pause_s = retry_s
        sweep_at = trio.current_time()
        while True:
            changed = self._changed = trio.Event()
            try:
                if self._unsaved:
                    await self._write()
                elif trio.current_time() >= sweep_at:
                    await self._sweep()
                    sweep_at = trio.current_time() + SWEEP_EVERY_S
                else:
                    with trio.move_on_at(sweep_at):
                        await changed.wait()
            except Exception as error:
                # Whatever it was, calls go on, and what they leave waits for the next attempt.
                self._failed("write", error)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)
            else:
                pause_s = retry_s

    async def _write(self) -> None:
        batch = list(islice(self._unsaved.values(), BATCH))
        try:
            await self._in_thread(lambda: self._database.write(batch), self._writing)
        except Exception as error:
            if not _is_about_data(error):
                raise
            for record in batch:  # one of them is not to hold the others up
                await self._write_alone(record)
        for record in batch:
            # A newer version may have come while this one was written.
            if self._unsaved.get(record["call_sid"]) is record:
                del self._unsaved[record["call_sid"]]
        if not self._works:
            self._works = True
            logger.info("database works again", unsaved=len(self._unsaved))
        self._metrics.records_unsaved.set(len(self._unsaved))
        self._written.set()
        self._written = trio.Event()

    async def _write_alone(self, record: dict[str, Any]) -> None:
        """Write a record, or as much of it as the database takes."""
        bare = {name: record[name] for name in SUMMARY} | {"metadata": {}}
        for part in (record, bare):
            try:
                await self._in_thread(partial(self._database.write, [part]), self._writing)
            except Exception as error:
                if not _is_about_data(error):
                    raise
                self._metrics.record_failures.labels("record").inc()
                logger.error(  # noqa: TRY400 - a database's own words quote what people said
                    "record not taken by the database",
                    call_sid=record["call_sid"],
                    error=_first_line(error),
                    given_up=part is bare,
                    exc_info=not isinstance(error, SQLAlchemyError),
                )
            else:
                return

    async def _sweep(self) -> None:
        since = time.time() - self._requests_ttl_s
        await self._in_thread(lambda: self._database.delete_requests_before(since), self._writing)
        if self._retention_days is None:
            return
        oldest_kept = time.time() - self._retention_days * DAY_S
        deleted = await self._in_thread(
            lambda: self._database.delete_before(oldest_kept), self._writing
        )
        if deleted:
            logger.info("old records deleted", records=deleted)

    async def _flush(self) -> None:
        try:
            while self._unsaved:
                await self._write()
        except Exception as error:
            self._failed("write", error)
        finally:
            for call_sid in self._unsaved:
                self._metrics.record_failures.labels("given-up").inc()
                logger.error("record lost: the database did not take it", call_sid=call_sid)

    async def _close(self) -> None:
        """Close the database, and wait until no thread is left that uses it."""
        await trio.to_thread.run_sync(self._database.close, abandon_on_cancel=True)
        with ExitStack() as places:
            for limiter in {self._writing, self._reading}:
                for _ in range(int(limiter.total_tokens)):  # an abandoned thread still has its own
                    place = object()
                    await limiter.acquire_on_behalf_of(place)
                    places.callback(limiter.release_on_behalf_of, place)

    # -- threads ---------------------------------------------------------------------------

    async def _read(self, function: Callable[[], T]) -> T:
        try:
            return await self._in_thread(function, self._reading)
        except _THEIRS as error:
            self._failed("read", error)
            raise RecordsUnavailable("the database does not answer") from error

    async def _in_thread(self, function: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        # Abandoned on a cancellation: a server that stops does not wait for a hanging database.
        # One in memory cannot hang, and its only connection must not be closed under a thread.
        return await trio.to_thread.run_sync(
            self._database.use,
            function,
            abandon_on_cancel=self._database.is_shared,
            limiter=limiter,
        )

    def _failed(self, what: str, error: Exception) -> None:
        self._metrics.record_failures.labels(what).inc()
        if self._works:
            self._works = False
            logger.warning(
                "database fails; records wait in memory",
                what=what,
                error=_first_line(error),
                exc_info=not isinstance(error, _THEIRS),
            )


def _first_line(error: Exception) -> str:
    """What went wrong; what follows quotes the rows, and they say what people said."""
    return str(error).partition("\n")[0][:200]
