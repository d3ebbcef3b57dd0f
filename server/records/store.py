"""Keeping records without holding a call up: written in batches, from a thread."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import structlog
import trio
from sqlalchemy.exc import (
    SQLAlchemyError,
)

from server.metrics import Metrics
from server.pace import Backoff
from server.records.database import (
    DAY_S,
    OPEN_TIMEOUT_S,
    THEIRS,
    Database,
    SchemaTooNew,
    check_database,
    database_url,
    is_about_data,
)
from server.records.words import SUMMARY, Cursor, RecordsUnavailable, StoredRequest

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
T = TypeVar("T")
MAX_UNSAVED = 10_000
"""About 100 MB of long calls; then the oldest are given up, counted and logged."""
BATCH = 100
GATHER_S = 0.2
"""How long the first record waits for others: a thread and a transaction cost more than a row."""
FLUSH_TIMEOUT_S = 10.0
"""How long a server that stops may take to write what is left."""
CLOSE_TIMEOUT_S = 5.0
"""How long it then waits for threads that are still at it."""
RETRY_S = (0.5, 30.0)
"""The first and the longest pause before trying again."""
REQUEST_TIMEOUT_S = 1.0
"""How long a request with an ``Idempotency-Key`` may wait for the database, each time."""
SWEEP_EVERY_S = 3_600.0


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
        check_database(url)
        self._requests_ttl_s = requests_ttl_s
        self._database = Database(database_url(url))
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
            self._metrics.records.failures.labels("given-up").inc()
            logger.error("record given up: too many wait for the database", call_sid=lost)
        self._metrics.records.unsaved.set(len(self._unsaved))
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
                self._metrics.records.failures.labels("request").inc()
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
        backoff = Backoff(*RETRY_S)
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
                        await trio.sleep(GATHER_S)
            except Exception as error:
                # Whatever it was, calls go on, and what they leave waits for the next attempt.
                self._failed("write", error)
                await trio.sleep(backoff.next_s())
            else:
                backoff.reset()

    async def _write(self) -> None:
        batch = list(islice(self._unsaved.values(), BATCH))
        try:
            await self._in_thread(lambda: self._database.write(batch), self._writing)
        except Exception as error:
            if not is_about_data(error):
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
        self._metrics.records.unsaved.set(len(self._unsaved))
        self._written.set()
        self._written = trio.Event()

    async def _write_alone(self, record: dict[str, Any]) -> None:
        """Write a record, or as much of it as the database takes."""
        bare = {name: record[name] for name in SUMMARY} | {"metadata": {}}
        for part in (record, bare):
            try:
                await self._in_thread(partial(self._database.write, [part]), self._writing)
            except Exception as error:
                if not is_about_data(error):
                    raise
                self._metrics.records.failures.labels("record").inc()
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
                self._metrics.records.failures.labels("given-up").inc()
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
        except THEIRS as error:
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
