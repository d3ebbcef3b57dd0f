"""Keeping records without holding a call up: written in batches, from a thread."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio
from sqlalchemy.exc import SQLAlchemyError

from server.hooks.sockets import NoThread
from server.metrics import Metrics, RecordFailure
from server.pace import Backoff
from server.records.aside import Aside, read_lines
from server.records.database.connecting import OPEN_TIMEOUT_S
from server.records.database.database import Database, Refused
from server.records.database.errors import (
    THEIRS,
    DatabaseClosed,
    DatabaseHangs,
    SchemaTooNew,
)
from server.records.database.tables import KEPT_AT, SINCE, SUMMARY, fitted
from server.records.database.url import check_database, database_url
from server.records.outbox import Outbox, OutboxEvent
from server.records.told import Told, beside, events_beside
from server.records.unsaved import Unsaved
from server.records.words import Cursor, RecordsUnavailable, StoredRequest, Wanted
from server.signal import Signal

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
T = TypeVar("T")
DAY_S = 86_400.0
PUT_ASIDE = 2_500
"""Records, or events of calls without one, that are put aside at once when many wait."""
BATCH = 100
GATHER_S = 0.2
"""How long the first record waits for others: a thread and a transaction cost more than a row."""
FLUSH_TIMEOUT_S = 10.0
"""How long a server that stops may take to write what is left."""
ASIDE_TIMEOUT_S = 5.0
"""How long records may take to be put aside, of a server that stops as of one that works."""
TAKE_UP_TIMEOUT_S = 10.0
"""How long what is written now may wait for what was put aside; the rest is taken up meanwhile."""
CLOSE_TIMEOUT_S = 5.0
"""How long it then waits for threads that are still at it."""
RETRY_S = (0.5, 30.0)
"""The first and the longest pause before trying again."""
LAST_RETRY_S = (0.1, 1.0)
"""The same while the server stops."""
WRITE_TIMEOUT_S = 60.0
"""How long what is written or deleted at once may take: a database that hangs, be it one of a
network that is there, says nothing. Its statements have 10 s, and a batch has few."""
READ_TIMEOUT_S = 12.0
"""How long what is read, or done with the outbox, may take, and wait for those before it: a little
more than a statement has, so that a database which only is slow says itself that it was."""
REQUEST_TIMEOUT_S = 1.0
"""How long a request with an ``Idempotency-Key`` may wait for the database, each time."""
SWEEP_EVERY_S = 3_600.0
PIECE = 500
"""Rows that are deleted at once. So long do others wait: 0.3 s in SQLite, which overwrites them (22
kB each, on a busy machine), and 0.02 s in PostgreSQL."""
PIECE_PAUSE_S = 0.2
"""Between two of them: whoever waits for SQLite's lock looks every 0.1 s whether it is free (its
``sqliteDefaultBusyCallback``)."""


def _nobody(told: str | float) -> None:
    """Nobody waits for it."""


class Records:
    """Ended calls: kept at once, written soon, read from memory or the database.

    Args:
        url: SQLAlchemy's, such as ``sqlite:///offhook.db`` or ``postgresql://user@host/name``.
        metrics: The process's metrics.
        retention_days: Older records are deleted; None keeps them for ever.
        requests_ttl_s: How long requests are found again.
        aside: The directory of files with what the database does not take; None beside SQLite's
            file, or where the server was started. For a database in memory there are none.

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
        aside: Path | None = None,
    ) -> None:
        check_database(url)
        self._requests_ttl_s = requests_ttl_s
        address = database_url(url)
        self._database = Database(address)
        self._aside: Aside | None = None
        if self._database.is_shared:
            is_file = address.get_backend_name() == "sqlite"
            beside = Path(str(address.database)).parent if is_file else Path()
            self._aside = Aside(beside if aside is None else aside, address)
        self._metrics = metrics
        self._retention_days = retention_days
        self._outbox = Outbox(self._database)
        self._unsaved = Unsaved(metrics.records)
        self.on_written: Callable[[str], None] = _nobody
        """Told which call's record, or what was known of it by then, outlives the process now."""
        self.on_sweep: Callable[[float], None] = _nobody
        """Told of when the oldest call began that is kept: nothing is to be known of others."""
        self._told = Told(metrics.records)
        self.outbox_changed = Signal()
        """Events of ours have come into the outbox."""
        self._changed = trio.Event()
        self._written = trio.Event()
        self._works, self._stops = True, False
        self._last_kept_at = 0.0
        self._sweep_at = -math.inf
        # Threads of our own: a database that hangs takes no other work's.
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(4) if self._database.is_shared else self._writing
        self._sending = trio.CapacityLimiter(1) if self._database.is_shared else self._writing
        # Nor does a directory that hangs, as one on a network may.
        self._setting_aside = trio.CapacityLimiter(1)
        self._taking_up = trio.CapacityLimiter(1)
        self._told_of: tuple[int, int] = (0, 0)

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
            await self._check_aside()
            task_status.started()
            await self._work()
        finally:
            self._stops = True
            await self._save_rest()
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self._close()

    # -- what calls and the API do ---------------------------------------------------------

    def keep(self, record: dict[str, Any]) -> None:
        """Take a finished record, or a newer version of one; returns at once, never fails."""
        # By this the newer version is known, whatever the clock does and wherever the two are.
        self._last_kept_at = max(time.time(), self._last_kept_at + 1e-6)
        record = {**SINCE, **fitted(record), KEPT_AT: self._last_kept_at}
        waiting = self._unsaved.get(record["call_sid"])
        if waiting is not None and waiting["generation"] > record["generation"]:
            return  # of an owner that has lost the call since
        self._unsaved.put(record)
        self._changed.set()

    def tell(self, event: OutboxEvent) -> None:
        """Take an event for the outbox; returns at once, never fails.

        It is there before the record of its call is, if it was told of before.
        """
        self._told.add(event)
        self._changed.set()

    async def with_outbox(self, function: Callable[[Outbox], T]) -> T:
        """Do something with the outbox, in a thread.

        Where the database does not answer in time it may yet be done.

        Raises:
            RecordsUnavailable: The database does not answer.
        """
        try:
            return await self._in_thread(lambda: function(self._outbox), self._sending)
        except DatabaseClosed as error:
            raise RecordsUnavailable("the database is closed") from error
        except THEIRS as error:
            self._failed("outbox", error)
            raise RecordsUnavailable("the database does not answer") from error

    async def get(self, call_sid: str) -> dict[str, Any] | None:
        """One call's record, or None if there is none.

        Raises:
            RecordsUnavailable: It is not in memory, and the database cannot be asked.
        """
        if (record := self._unsaved.get(call_sid)) is not None:
            return {name: value for name, value in record.items() if name != KEPT_AT}
        return await self.read(lambda database: database.get(call_sid))

    async def page(
        self,
        limit: int,
        before: Cursor | None,
        wanted: Wanted | None = None,
        *,
        with_outcome: bool = False,
    ) -> list[dict[str, Any]]:
        """The newest wanted records after a place in the list, summaries only, newest first.

        Args:
            limit: How many at most.
            before: Where the page before this one ended; None for the first.
            wanted: Which of them; None for all.
            with_outcome: Whether what calls have brought is to be there, too.

        Raises:
            RecordsUnavailable: The database cannot be asked; :meth:`unsaved` still answers.
        """
        return await self.read(
            lambda database: database.page(limit, before, wanted, with_outcome=with_outcome)
        )

    def unsaved(self, *details: str) -> Iterator[dict[str, Any]]:
        """Summaries of what waits for the database, with these of the details."""
        for record in self._unsaved:
            row = {name: record[name] for name in SUMMARY}
            yield row | {name: record.get(name) for name in details}

    async def find_request(self, client: str, key: str) -> StoredRequest | None:
        """A request that came before, to this process or an earlier one.

        Raises:
            RecordsUnavailable: The database cannot be asked, or not soon enough.
        """
        since = time.time() - self._requests_ttl_s
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            return await self.read(lambda database: database.find_request(client, key, since))
        raise RecordsUnavailable("the database does not answer")

    async def write_request(self, client: str, key: str, request: StoredRequest | None) -> bool:
        """Keep a request, or with None forget it; a database that does not take it is told of.

        It is seen through, whoever goes away: within :data:`REQUEST_TIMEOUT_S`. False if it was
        not done by then; it may be yet.
        """
        try:
            with trio.move_on_after(REQUEST_TIMEOUT_S, shield=True) as waiting:
                await self._in_thread(
                    lambda: self._database.write_request(client, key, request), self._writing
                )
            if not waiting.cancelled_caught:
                return True
            self._metrics.records.failures.labels("request").inc()
        except Exception as error:
            self._failed("request", error)
        return False

    async def wait_saved(self) -> None:
        """Wait until everything that was kept is in the database."""
        while self._unsaved or self._told:
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
        backoff = Backoff(*RETRY_S, jitter=random.random)
        while True:
            changed = self._changed = trio.Event()
            try:
                if self._unsaved or self._told:
                    await self._write()
                elif trio.current_time() >= self._sweep_at:
                    await self._take_up()
                    await self._sweep()
                    self._sweep_at = trio.current_time() + SWEEP_EVERY_S
                else:
                    with trio.move_on_at(self._sweep_at):
                        await changed.wait()
                        await trio.sleep(GATHER_S)
            except Exception as error:
                # Whatever it was, calls go on, and what they leave waits for the next attempt.
                self._failed("write", error)
                if self._unsaved.are_many or self._told.are_many:
                    # Events go with their calls' records; where there are none, the calls live.
                    events = [] if self._unsaved else self._told.oldest(PUT_ASIDE)
                    await self._set_aside(self._unsaved.oldest(PUT_ASIDE), events=events)
                await trio.sleep(backoff.next_s())
            else:
                backoff.reset()

    async def _write(self) -> None:
        batch = self._unsaved.oldest(BATCH)
        # Before the records: no call is over whose events are not there.
        events = list(self._told)
        for begin in range(0, len(events), BATCH):
            told = events[begin : begin + BATCH]
            lost = await self._in_thread(partial(self._outbox.put, told), self._writing)
            self._told.give_up(lost, "the database does not take it")
            self._told.forget(told)
            self.outbox_changed.set()
        is_over = threading.Event()
        try:
            refused = await self._in_thread(
                lambda: self._database.write_each(batch, is_over.is_set), self._writing
            )
        finally:
            is_over.set()  # a thread that was left to itself writes over nothing that is newer
        if refused:
            await self._set_refused_aside(refused)
        self._forget(batch)
        if not self._works:
            self._works = True
            logger.info("database works again", unsaved=len(self._unsaved))
            self._sweep_at = trio.current_time()  # something may have been put aside

    def _forget(self, batch: list[dict[str, Any]]) -> None:
        """These records are where they belong."""
        for record in batch:
            # A newer version may have come while this one was written.
            self._unsaved.forget(record)
            self.on_written(record["call_sid"])
        self._written.set()
        self._written = trio.Event()

    async def _sweep(self) -> None:
        """Delete what is old, piece by piece, and between them write what waits."""
        database, since = self._database, time.time() - self._requests_ttl_s
        deletes = {"requests": partial(database.delete_requests_before, since)}
        if (oldest_kept := self._oldest_kept()) is not None:
            self.on_sweep(oldest_kept)
            deletes["records"] = partial(database.delete_before, oldest_kept)
            deletes["events"] = partial(self._outbox.delete_before, oldest_kept)
        deleted = dict.fromkeys(deletes, 0)
        try:
            for what, delete in deletes.items():
                while True:
                    piece = await self._in_thread(partial(delete, PIECE), self._writing)
                    deleted[what] += piece
                    if piece < PIECE:
                        break
                    await trio.sleep(PIECE_PAUSE_S)
                    while self._unsaved or self._told:
                        await self._write()
            if oldest_kept is not None:
                await self._in_thread(database.forget_deleted, self._writing)
        finally:
            if records := deleted.get("records"):
                logger.info("old records deleted", records=records)

    def _oldest_kept(self) -> float | None:
        days = self._retention_days
        return None if days is None else time.time() - days * DAY_S

    async def _save_rest(self) -> None:
        """Have the database take what is left, or a file: no record is lost to a stop."""
        backoff = Backoff(*LAST_RETRY_S, jitter=random.random)
        with trio.move_on_after(FLUSH_TIMEOUT_S, shield=True):
            while self._unsaved or self._told:
                try:
                    await self._write()
                except Exception as error:
                    self._failed("write", error)
                    await trio.sleep(backoff.next_s())
        if self._unsaved or self._told:
            with trio.CancelScope(shield=True):  # it is timed itself
                await self._set_aside(list(self._unsaved), events=list(self._told))
        for record in self._unsaved:
            self._metrics.records.failures.labels("given-up").inc()
            logger.critical(
                "record lost: neither database nor file took it", call_sid=record["call_sid"]
            )
        self._told.give_up(self._told, "neither database nor file took it")

    # -- files beside the database ---------------------------------------------------------

    async def _check_aside(self) -> None:
        if (aside := self._aside) is None:
            return
        is_closed = True
        try:
            with trio.move_on_after(ASIDE_TIMEOUT_S):
                is_closed = await trio.to_thread.run_sync(
                    aside.is_closed_to_us, abandon_on_cancel=True, limiter=self._setting_aside
                )
        except NoThread:
            return  # nobody can look at this moment
        if is_closed:
            logger.warning(
                "UNSAVED_DIR cannot be written: what the database does not take would be lost",
                directory=str(aside.directory),
            )

    async def _set_aside(
        self, records: list[dict[str, Any]], *, events: Sequence[OutboxEvent] = ()
    ) -> None:
        """Put records into a file until the database works; they stay here if that fails.

        Args:
            records: Which; with them go the events of their calls.
            events: These go as well, whether or not there is a record of their calls.
        """
        if (aside := self._aside) is None:
            return
        with_events, found = beside(records, self._told)
        ids = {event.id for event in found}
        alone = [event.as_dict() for event in events if event.id not in ids]
        write = partial(aside.write, "unsaved", with_events, events=alone)
        if await self._in_file("kept", write, len(records)):
            self._forget(records)
            self._told.forget([*found, *events])

    async def _set_refused_aside(self, refused: list[Refused]) -> None:
        aside = self._aside
        for each in refused:
            self._metrics.records.failures.labels("record").inc()
            logger.error(  # a database's own words quote what people said
                "record not taken by the database",
                call_sid=each.record["call_sid"],
                error=_first_line(each.error),
                given_up=not each.is_there,
                exc_info=None if isinstance(each.error, SQLAlchemyError) else each.error,
            )
        if aside is not None:
            records, reason = [each.record for each in refused], _first_line(refused[0].error)
            await self._in_file(
                "refused", lambda: aside.write("refused", records, reason), len(records)
            )

    async def _in_file(self, what: str, write: Callable[[], Path], records: int) -> bool:
        path = None
        reason, bug = "the directory does not answer", None
        try:
            with trio.move_on_after(ASIDE_TIMEOUT_S):
                try:
                    path = await trio.to_thread.run_sync(
                        write, abandon_on_cancel=True, limiter=self._setting_aside
                    )
                except NoThread:
                    if not self._stops:
                        raise
                    path = write()  # here: nobody is left whom that holds up
        except Exception as error:
            # Whatever it was, what is in the records must not hold up those that come after.
            reason = str(error.strerror) if isinstance(error, OSError) else _first_line(error)
            bug = None if isinstance(error, OSError) else error
        if path is None:
            self._metrics.records.failures.labels("aside").inc()
            logger.critical(
                "records cannot be put aside", records=records, error=reason, exc_info=bug
            )
            return False
        self._metrics.records.aside.labels(what).inc(records)
        logger.error("records put aside in a file", what=what, records=records, file=str(path))
        return True

    async def _take_up(self) -> None:
        """Have the database take what an earlier process, or this one, has put aside."""
        if (aside := self._aside) is None:
            return
        oldest_kept = self._oldest_kept()
        with trio.move_on_after(TAKE_UP_TIMEOUT_S) as waiting:
            await self._in_thread(lambda: self._take_up_all(aside, oldest_kept), self._taking_up)
        if waiting.cancelled_caught:
            logger.warning("records put aside take long to be taken up")

    def _take_up_all(self, aside: Aside, oldest_kept: float | None) -> None:
        """Take up what there is, in a thread; a file with which something is wrong waits."""
        of_others = of_other_users = 0
        paths: list[Path] = []
        with self._telling():
            paths = aside.unsaved()
        for path in paths:
            with self._telling():
                self._take_up_one(aside, path, oldest_kept)
        with self._telling():
            if oldest_kept is not None and (deleted := aside.delete_before(oldest_kept)):
                logger.info("old files of records deleted", files=deleted)
        with self._telling():
            of_others, of_other_users = aside.of_others(), aside.of_other_users()
        if self._told_of != (of_others, of_other_users):
            self._told_of = of_others, of_other_users
            if of_others:
                logger.warning("files of records for another DATABASE_URL wait", files=of_others)
            if of_other_users:
                logger.warning("files of records belong to another user", files=of_other_users)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._metrics.records.failures.labels("aside").inc()
            logger.error("records put aside cannot be taken up", error=error.strerror)  # noqa: TRY400

    def _take_up_one(self, aside: Aside, path: Path, oldest_kept: float | None) -> None:
        """Take one file up, in a thread; it stays until all of it is in the database."""
        taken = odd = 0
        with aside.claimed(path) as file:
            if file is None:
                return
            lines = read_lines(file)
            while batch := list(islice(lines, BATCH)):
                found = [line for line in batch if line is not None]
                odd += len(batch) - len(found)
                events: list[OutboxEvent] = []
                for line in found:
                    some, wrong = events_beside(line)
                    events += some
                    odd += wrong
                lost = self._outbox.put(events)
                self._told.give_up(lost, "the database does not take it")
                odd += len(lost)
                records = [line for line in found if line]  # of an event alone nothing is left
                taken += len(records)
                if oldest_kept is not None:
                    records = [each for each in records if each["created_at"] >= oldest_kept]
                odd += len(self._database.write_newer(records))
            kept = aside.finish(path, file, is_whole=not odd)
        self._metrics.records.aside.labels("taken-up").inc(taken)
        logger.info("records taken up from a file", records=taken, file=path.name)
        if kept is not None:
            self._metrics.records.failures.labels("record").inc(odd)
            logger.error("a file of records has lines of no use", lines=odd, file=str(kept))

    async def _close(self) -> None:
        """Close the database, and wait until no thread is left that uses it."""
        try:
            await trio.to_thread.run_sync(self._database.close, abandon_on_cancel=True)
        except NoThread:
            self._database.close()
        with ExitStack() as places:
            for limiter in {self._writing, self._reading, self._sending, self._taking_up}:
                for _ in range(int(limiter.total_tokens)):  # an abandoned thread still has its own
                    place = object()
                    await limiter.acquire_on_behalf_of(place)
                    places.callback(limiter.release_on_behalf_of, place)

    # -- threads ---------------------------------------------------------------------------

    async def read(self, function: Callable[[Database], T]) -> T:
        """Read something of what the database has, in a thread.

        Raises:
            RecordsUnavailable: It cannot be asked.
        """
        try:
            return await self._in_thread(lambda: function(self._database), self._reading)
        except THEIRS as error:
            self._failed("read", error)
            raise RecordsUnavailable("the database does not answer") from error

    async def _in_thread(self, function: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        # Abandoned on a cancellation: a server that stops does not wait for a hanging database.
        # One in memory cannot hang, and its only connection must not be closed under a thread.
        may_hang = self._database.is_shared
        # A thread that is abandoned keeps its place until the database goes on; it may then write
        # what was put aside meanwhile. Who takes that up sees it: events by ids, records by when;
        # and so does the thread, should that have been taken up before. What was done with the
        # outbox may be done once more, and what is leased to nobody is free after its lease.
        is_read = limiter in (self._reading, self._sending)
        limit_s = READ_TIMEOUT_S if is_read else WRITE_TIMEOUT_S
        is_timed = may_hang and (is_read or limiter is self._writing)
        with trio.move_on_after(limit_s if is_timed else math.inf):
            return await trio.to_thread.run_sync(
                self._database.use, function, abandon_on_cancel=may_hang, limiter=limiter
            )
        raise DatabaseHangs("the database does not answer")

    def _failed(self, what: RecordFailure, error: Exception) -> None:
        self._metrics.records.failures.labels(what).inc()
        if self._works:
            self._works = False
            logger.warning(
                "database fails; records wait in memory",
                what=what,
                error=_first_line(error),
                exc_info=not isinstance(error, THEIRS),
            )


def _first_line(error: Exception) -> str:
    """What went wrong; what follows quotes the rows, and they say what people said."""
    return str(error).partition("\n")[0][:200]
