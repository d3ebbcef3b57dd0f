"""What is read from the database of records, and written to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from server.records.database import statements
from server.records.database.connecting import Connections
from server.records.database.errors import is_about_data, is_there_already
from server.records.database.tables import KEPT_AT, NOT_WHOLE, SUMMARY, storable
from server.records.words import Cursor, StoredRequest, Wanted


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that the database does not take as it is."""

    record: Mapping[str, Any]
    error: Exception
    is_there: bool
    """Whether its summary is."""


class Database(Connections):
    """The records, with the answers to idempotency keys, in one database.

    Everything here may block, and raise ``SQLAlchemyError``.
    """

    def write(
        self, records: Sequence[Mapping[str, Any]], is_late: Callable[[], bool] = lambda: False
    ) -> None:
        """Write records, in the place of any with the same CallSid.

        What a later owner of the call has written stays, and so does what was written whole.

        Args:
            records: Which.
            is_late: Whether nobody waits for this any more. What its owner has kept since may be
                there already: then what is newer by when it was kept stays, too. Otherwise who
                writes last is right, as that may be another machine, with a clock of its own.
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
                is_late,
            )

    def write_each(
        self, records: Sequence[Mapping[str, Any]], is_late: Callable[[], bool] = lambda: False
    ) -> list[Refused]:
        """Write records; if one of them is never taken, all others and as much of it as is.

        Args:
            records: Which.
            is_late: See :meth:`write`.

        Returns:
            Those that were not taken whole.
        """
        return self._each(records, lambda some: self.write(some, is_late))

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
            _was_kept_later,
        )

    def _replace(
        self,
        records: Mapping[str, Mapping[str, Any]],
        look: sql.Select[Any],
        is_newer: Callable[[Mapping[str, Any], Any], bool],
        is_late: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write records in the place of those that are older, as far as there are any.

        Not an upsert: that is spelt differently in every database.
        """

        def look_and_write(connection: sql.Connection) -> None:
            self._lock(connection)
            newer = dict(records)
            older: list[str] = []
            names = {"names": list(newer)}
            found, is_better = connection.execute(look, names).all(), is_newer
            # Asked behind the lock: who takes up what was put aside after this comes after us.
            if is_late():
                found = connection.execute(statements.THERE, names).all()
                is_better = _was_kept_later
            for there in found:
                ours = newer[there.call_sid]
                if is_better(ours, there) and not _is_of_another(ours, there):
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
                if again and is_there_already(error):
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
        return None if row is None else StoredRequest(*row)

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
                    "created_at": request.created_at,
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


def _was_kept_later(record: Mapping[str, Any], there: sql.Row[Any]) -> bool:
    """Whether a record is better than what a database has, or as good and newer."""
    ours = (*_rank(record), record.get(KEPT_AT, 0.0))
    return ours > (*_rank_there(there), there.details.get(KEPT_AT, 0.0))


def _is_of_another(record: Mapping[str, Any], there: sql.Row[Any]) -> bool:
    """Whether a record is of a call that was begun a second time by the name of an older one."""
    same = _generation(record) == int(there.generation)
    return same and float(record["created_at"]) != float(there.created_at)
