"""The database of records: its tables, its migrations, and every statement."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.pool import StaticPool

from server.errors import ConfigurationError, ServerError
from server.records import statements
from server.records.migrations import MIGRATIONS
from server.records.tables import (
    KEPT_AT,
    NOT_WHOLE,
    SCHEMA_VERSION,
    SUMMARY,
    schema,
    storable,
    tables,
)
from server.records.words import Cursor, StoredRequest, Wanted

T = TypeVar("T")
LOCK_TIMEOUT_S = 5.0
"""How long SQLite may wait for another process's lock, and PostgreSQL for a connection."""
STEPS_UNASKED = 100_000
"""Of SQLite's own machine, after which a query stops if the database was closed meanwhile."""
OPEN_TIMEOUT_S = 10.0
UNHEARD_TIMEOUT_S = 10.0
"""How long a database on the network may leave us without a sign of life."""
DAY_S = 86_400.0

_ALONE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(6334785)"}
"""What makes other processes wait until the transaction is over; any number that is ours."""


class DatabaseClosed(SQLAlchemyError):
    """The server stops, and the database was closed before."""


class SchemaTooNew(ServerError):
    """The database was written by a later version of this program."""


THEIRS = (SQLAlchemyError, SchemaTooNew, OSError)
"""What a database that is locked, gone, full or of another version raises, or the system, if it has
no thread to ask it in; all else is a bug."""


def is_about_data(error: Exception) -> bool:
    """Whether a database, or its driver, will never take what it was given."""
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        return (
            isinstance(error, DataError)
            or (isinstance(error, IntegrityError) and not _is_there_already(error))
            # The driver itself does not know what to do with a value's type, or the row or its
            # index entry is too large (PostgreSQL, "Appendix A. Error Codes", class 54).
            or (isinstance(error, ProgrammingError | InterfaceError) and _is_binding(error))
            or (state or "").startswith("54")
        )
    # What is no driver's error was raised on the way to it, by one of the values.
    return isinstance(
        error, StatementError | ValueError | TypeError | OverflowError | RecursionError
    )


def _is_there_already(error: DBAPIError) -> bool:
    """Whether somebody else has written the same row meanwhile; a later attempt replaces it."""
    return getattr(error.orig, "sqlstate", None) == "23505"


def _lacks_tables(error: DBAPIError) -> bool:
    """Whether the database is empty: another has come in the place of the one that had them."""
    state = getattr(error.orig, "sqlstate", None)
    return state == "42P01" or "no such table" in str(error.orig)


def _is_binding(error: DBAPIError) -> bool:
    words = str(error.orig)
    return "cannot adapt" in words or "binding parameter" in words


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that the database does not take as it is."""

    record: Mapping[str, Any]
    error: Exception
    is_there: bool
    """Whether its summary is."""


class Database:
    """What is done in threads: everything here may block, and raise ``SQLAlchemyError``.

    A thread may be abandoned, and the database closed while it is still at it: it goes through
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
        self._generation, self._ready = 0, False
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
                self._ready = self._ready and not _lacks_tables(error)
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

    def _open(self) -> None:
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            _make_private(self._url.database)
        with self._engine.begin() as connection:
            # All processes of a server begin at the same moment: one makes the tables.
            if lock := _ALONE.get(self._url.get_backend_name()):
                connection.exec_driver_sql(lock)
            tables.create_all(connection)
            version = connection.scalar(sql.select(schema.c.version))
            if version is None:
                connection.execute(sql.insert(schema).values(version=SCHEMA_VERSION))
                version = SCHEMA_VERSION
            if version > SCHEMA_VERSION:
                raise SchemaTooNew(
                    f"the database has schema {version}, this program knows {SCHEMA_VERSION}"
                )
            if version < SCHEMA_VERSION and self._url.get_backend_name() == "postgresql":
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # it may be large
            for step in range(version, SCHEMA_VERSION):
                MIGRATIONS[step](connection)
                connection.execute(sql.update(schema).values(version=step + 1))

    def version(self) -> int | None:
        """The version of the tables that are there; None if there are none. Nothing is changed."""
        with self._engine.connect() as connection:
            if not sql.inspect(connection).has_table(schema.name):
                return None
            return connection.scalar(sql.select(schema.c.version))

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

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records, in the place of any with the same CallSid.

        What a later owner of the call has written stays, and so does what was written whole.
        """
        self.open()
        if records:
            are_whole = not any(NOT_WHOLE in record for record in records)
            self._replace(
                {record["call_sid"]: record for record in records},
                statements.GENERATIONS if are_whole else statements.THERE,
                lambda record, there: (
                    _generation(record) >= there.generation
                    if are_whole
                    else _rank(record) >= _rank_there(there)
                ),
            )

    def write_each(self, records: Sequence[Mapping[str, Any]]) -> list[Refused]:
        """Write records; if one of them is never taken, all others and as much of it as is.

        Returns:
            Those that were not taken whole.
        """
        return self._each(records, self.write)

    def write_newer(self, records: Sequence[Mapping[str, Any]]) -> list[Refused]:
        """Write those of the records that are newer than what is there; see :meth:`write_each`."""
        newest: dict[str, Mapping[str, Any]] = {}
        for record in sorted(records, key=lambda one: (_generation(one), float(one[KEPT_AT]))):
            newest[record["call_sid"]] = record
        self.open()
        return self._each(list(newest.values()), self._write_newer) if newest else []

    def _write_newer(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._replace(
            {record["call_sid"]: record for record in records},
            statements.THERE,
            lambda record, there: (
                (*_rank(record), record[KEPT_AT])
                > (*_rank_there(there), there.details.get(KEPT_AT, 0.0))
            ),
        )

    def _replace(
        self,
        records: Mapping[str, Mapping[str, Any]],
        look: sql.Select[Any],
        is_newer: Callable[[Mapping[str, Any], Any], bool],
    ) -> None:
        """Write records in the place of those that are older, as far as there are any.

        Not an upsert: that is spelt differently in every database.
        """

        def look_and_write(connection: sql.Connection) -> None:
            self._lock(connection)
            newer = dict(records)
            older: list[str] = []
            for there in connection.execute(look, {"names": list(newer)}):
                ours = newer[there.call_sid]
                if is_newer(ours, there) and not _is_of_another(ours, there):
                    older.append(there.call_sid)
                else:
                    del newer[there.call_sid]
            # Only what was seen is deleted: what has come since is in the way of ours, as it ought.
            if older:
                connection.execute(statements.DELETE, {"names": older})
            if newer:
                connection.execute(statements.INSERT, [_row(each) for each in newer.values()])

        self._write_again(look_and_write)

    def _write_again(self, write: Callable[[sql.Connection], None]) -> None:
        """Write in one transaction, and in another if somebody wrote the same call meanwhile."""
        for again in (True, False):
            try:
                with self._engine.begin() as connection:
                    write(connection)
            except IntegrityError as error:
                if again and _is_there_already(error):
                    continue
                raise
            return

    def _each(
        self,
        records: Sequence[Mapping[str, Any]],
        write: Callable[[Sequence[Mapping[str, Any]]], None],
    ) -> list[Refused]:
        try:
            write(records)
        except Exception as error:
            if not is_about_data(error):
                raise
            if len(records) == 1:
                return [Refused(records[0], error, self._write_summary(records[0], write))]
            middle = len(records) // 2
            return self._each(records[:middle], write) + self._each(records[middle:], write)
        return []

    def _write_summary(
        self,
        record: Mapping[str, Any],
        write: Callable[[Sequence[Mapping[str, Any]]], None],
    ) -> bool:
        """Write what lists show of a record, if that is taken."""
        part = _summary(record) | {"metadata": {}}
        part[KEPT_AT] = record.get(KEPT_AT, 0.0)
        try:
            write([part | {NOT_WHOLE: "the database did not take the rest of this record"}])
        except Exception as error:
            if not is_about_data(error):
                raise
            return False
        return True

    def get(self, call_sid: str) -> dict[str, Any] | None:
        """Read one record; None if there is none."""
        if storable(call_sid) != call_sid:
            return None  # no call is called that, and not every database may be asked for it
        self.open()
        with self._engine.connect() as connection:
            row = connection.execute(statements.GET, {"name": call_sid}).first()
        if row is None:
            return None
        record = dict(row._mapping)
        details: dict[str, Any] = record.pop("details")
        details.pop(KEPT_AT, None)
        return record | details

    def page(
        self,
        limit: int,
        before: Cursor | None,
        wanted: Wanted | None = None,
        *,
        with_outcome: bool = False,
    ) -> list[dict[str, Any]]:
        """Read the newest summaries that are older than the cursor, and wanted."""
        self.open()
        query = statements.PAGE
        facts: dict[str, Any] = {"most": limit}
        if before is not None:
            query = statements.PAGE_BEFORE
            facts |= {"before": before.created_at, "before_sid": storable(before.call_sid)}
        if wanted is not None and not wanted.is_all:
            query = statements.wanted_only(query, wanted)
        if with_outcome:
            query = query.add_columns(statements.OUTCOME)
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query, facts)]

    def delete_before(self, created_at: float, most: int) -> int:
        """Delete so many of the older records; returns how many that were."""
        return self.delete_piece(statements.OLD_CALLS, created_at, most)

    def forget_deleted(self) -> None:
        """See to it that what was deleted, of records as of events, is nowhere any more."""
        if self._url.get_backend_name() == "sqlite":
            # It is overwritten in the file, but still stands in the log beside it.
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def find_request(self, client: str, key: str, since: float) -> StoredRequest | None:
        """Read what a client was answered to an idempotency key since then."""
        self.open()
        facts = {"of_client": client, "of_key": key, "since": since}
        with self._engine.connect() as connection:
            row = connection.execute(statements.FIND_REQUEST, facts).first()
        return None if row is None else StoredRequest(row.fingerprint, row.answer)

    def write_request(self, client: str, key: str, request: StoredRequest | None) -> None:
        """Keep what a client was answered to an idempotency key, or forget it."""
        self.open()
        with self._engine.begin() as connection:
            connection.execute(statements.DELETE_REQUEST, {"of_client": client, "of_key": key})
            if request is not None:
                kept = {
                    "client": client,
                    "key": key,
                    "fingerprint": request.fingerprint,
                    "created_at": time.time(),
                    "answer": request.answer,
                }
                connection.execute(statements.INSERT_REQUEST, kept)

    def delete_requests_before(self, created_at: float, most: int) -> int:
        """Delete so many of the answers to idempotency keys older than this; returns how many."""
        return self.delete_piece(statements.OLD_REQUESTS, created_at, most)

    def delete_piece(self, statement: sql.Delete, before: float, most: int) -> int:
        """Delete so much at most, in one transaction; less is all that there is for us."""
        self.open()
        with self._engine.begin() as connection:
            return connection.execute(statement, {"before": before, "most": most}).rowcount


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    return _summary(record) | {
        "details": {name: record[name] for name in record if name not in SUMMARY}
    }


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """What lists show of a record; a column that is missing is for the database to refuse."""
    return {name: record[name] for name in SUMMARY if name in record}


def _generation(record: Mapping[str, Any]) -> int:
    return int(record["generation"])


def _rank(record: Mapping[str, Any]) -> tuple[int, bool]:
    """Which of two records of a call is the better one: the later owner's, and then the whole."""
    return _generation(record), NOT_WHOLE not in record


def _rank_there(there: sql.Row[Any]) -> tuple[int, bool]:
    """The rank of what a database has of a call."""
    return there.generation, NOT_WHOLE not in there.details


def _is_of_another(record: Mapping[str, Any], there: sql.Row[Any]) -> bool:
    """Whether a record is of a call that was begun a second time by the name of an older one."""
    same = _generation(record) == int(there.generation)
    return same and float(record["created_at"]) != float(there.created_at)


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
