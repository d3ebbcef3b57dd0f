"""Records: kept at once, written when the database lets us, never lost while it does not."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing

import pytest
import sqlalchemy as sql
import structlog.testing
import trio
from prometheus_client import CollectorRegistry

from server.carrier import MAX_CALL_SID_CHARS
from server.errors import ConfigurationError
from server.metrics import Metrics
from server.records import store as store_module
from server.records import unsaved as unsaved_module
from server.records.database import connecting, statements
from server.records.database.database import Database
from server.records.database.errors import SchemaTooNew
from server.records.database.tables import KEPT_AT, NOT_WHOLE, calls, tables
from server.records.database.url import database_url
from server.records.outbox import OutboxEvent
from server.records.store import Records
from server.records.words import Cursor, RecordsUnavailable, StoredRequest, Wanted
from tests.support.databases import postgresql
from tests.support.limits import no_threads
from tests.support.serving import serving

pytestmark = pytest.mark.sockets

DAY_S = 86_400.0
BEGAN = 1_790_000_000.0


def record(number: int, *, created_at: float | None = None, **differences) -> dict:
    return {
        "call_sid": f"CA{number:032x}",
        "direction": "outbound",
        "number": "+1500*****01",
        "state": "ended",
        "status": "completed",
        "reason": "caller-hung-up",
        "detail": "",
        "created_at": BEGAN + number if created_at is None else created_at,
        "duration_s": 12.5,
        "agent_heard_s": 3.25,
        "metadata": {"order": "17 · ñandú"},
        "agent": "default",
        "generation": 1,
        "outcome_complete": None,
        "had_trouble": None,
        "timings": {"answer_to_first_audio_ms": None},
        "transcript": [{"speaker": "agent", "at_s": 0.0, "text": "¿Qué tal? \U0001f4de"}],
        **differences,
    }


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where files are put with what the database does not take
    monkeypatch.setattr(connecting, "LOCK_TIMEOUT_S", 0.02)
    monkeypatch.setattr(store_module, "RETRY_S", (0.01, 0.05))
    monkeypatch.setattr(store_module, "LAST_RETRY_S", (0.01, 0.05))
    monkeypatch.setattr(store_module, "FLUSH_TIMEOUT_S", 1.0)  # of all that is tried in vain
    monkeypatch.setattr(store_module, "PIECE_PAUSE_S", 0.0)


@pytest.fixture(scope="module")
def postgresql_url():
    with postgresql() as url:
        yield url


@pytest.fixture
def url_of_postgresql(postgresql_url):
    """Without our tables."""
    engine = sql.create_engine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(
            sql.text(
                "DROP TABLE IF EXISTS "
                "offhook_calls, offhook_events, offhook_requests, offhook_schema"
            )
        )
    engine.dispose()
    return postgresql_url


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def url(request, tmp_path):
    if request.param == "postgresql":
        return request.getfixturevalue("url_of_postgresql")
    return "sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/offhook.db"


@pytest.fixture
def file_url(tmp_path):
    return f"sqlite:///{tmp_path}/offhook.db"


@asynccontextmanager
async def running(url: str, **options):
    registry = CollectorRegistry()
    records = Records(url, metrics=Metrics(registry), **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(records.run)
        yield records
        nursery.cancel_scope.cancel()


async def until(condition) -> None:
    """Poll: what is waited for happens in a thread, or in another process's file."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


def failures(records: Records, what: str) -> float:
    return records._metrics.records.failures.labels(what)._value.get()


async def test_a_record_is_read_back_as_it_was_kept(url):
    kept = record(1)
    async with running(url) as records:
        records.keep(kept)
        assert await records.get(kept["call_sid"]) == kept
        with trio.fail_after(60):
            await records.wait_saved()
        assert await records.get(kept["call_sid"]) == kept
        assert await records.get("CAunknown") is None


async def test_a_newer_version_of_a_record_replaces_the_older_one(url):
    async with running(url) as records:
        records.keep(record(1, status="in-progress"))
        await records.wait_saved()
        records.keep(record(1, status="completed"))
        await records.wait_saved()

        assert (await records.get(record(1)["call_sid"]))["status"] == "completed"
        assert len(await records.page(10, None)) == 1


async def test_pages_show_every_call_once_and_the_newest_first(url):
    # Some of them begin in the same millisecond.
    everything = [record(number, created_at=BEGAN + number // 3) for number in range(25)]
    async with running(url) as records:
        for each in everything:
            records.keep(each)
        await records.wait_saved()
        seen, before = [], None
        while page := await records.page(10, before):
            seen += page
            before = Cursor.parse(str(Cursor.of(page[-1])))

    assert [each["call_sid"] for each in seen] == [each["call_sid"] for each in everything[::-1]]
    assert "transcript" not in seen[0]


async def test_records_are_there_after_a_restart(file_url):
    async with running(file_url) as records:
        for number in range(300):
            records.keep(record(number))
        # Cancelled at once: what is left is written on the way out.
    async with running(file_url) as records:
        assert len(await records.page(1_000, None)) == 300


def test_processes_that_begin_together_make_one_database(file_url, tmp_path, monkeypatch):
    monkeypatch.setattr(connecting, "LOCK_TIMEOUT_S", 5.0)
    together = threading.Barrier(8)

    def begin(number: int) -> None:
        database = Database(database_url(file_url))
        together.wait()
        database.write([record(number)])
        database.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(begin, range(8)))

    with closing(sqlite3.connect(tmp_path / "offhook.db")) as other:
        assert other.execute("SELECT version FROM offhook_schema").fetchall() == [
            (connecting.SCHEMA_VERSION,)
        ]
        assert other.execute("SELECT count(*) FROM offhook_calls").fetchall() == [(8,)]


async def test_a_locked_database_delays_records_and_loses_none(file_url, tmp_path):
    async with running(file_url) as records:
        with closing(sqlite3.connect(tmp_path / "offhook.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            records.keep(record(1))
            await until(lambda: failures(records, "write"))
            assert await records.get(record(1)["call_sid"]) == record(1)
            assert [each["call_sid"] for each in records.unsaved()] == [record(1)["call_sid"]]
            other.execute("ROLLBACK")
        with trio.fail_after(60):
            await records.wait_saved()

        assert len(await records.page(10, None)) == 1


SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT max(i) FROM n",
    "postgresql": "SELECT pg_sleep(60)",
}


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
async def test_a_query_that_is_still_going_on_leaves_no_thread_and_no_connection_behind(
    url, monkeypatch
):
    began, ended = threading.Event(), threading.Event()

    def ask_for_long() -> None:
        database = records._database
        with database._engine.connect() as connection:
            began.set()
            try:
                connection.exec_driver_sql(SLOW[url.partition(":")[0]])
            finally:
                ended.set()

    async def abandon() -> None:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_begun, scope)
            await records._in_thread(ask_for_long, records._reading)

    async def cancel_when_begun(scope: trio.CancelScope) -> None:
        await trio.to_thread.run_sync(began.wait)
        scope.cancel()

    monkeypatch.setattr(store_module, "CLOSE_TIMEOUT_S", 30.0)
    async with running(url) as records, trio.open_nursery() as nursery:
        await abandon()

    assert ended.is_set()
    assert records._database._checked_out == set()
    assert records._database._engine.pool.checkedin() == 0


async def test_a_thread_that_outlives_its_server_closes_its_connection_itself(file_url):
    began, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        with database._engine.connect():
            began.set()
            go_on.wait(10)

    async with running(file_url) as records:
        await records.page(1, None)
        database = records._database
        thread = threading.Thread(target=database.use, args=(hang,))
        thread.start()
        await trio.to_thread.run_sync(began.wait)
    left_open = len(database._checked_out)
    go_on.set()
    await trio.to_thread.run_sync(thread.join)

    assert left_open == 1
    assert database._checked_out == set()
    assert database._engine.pool.checkedin() == 0


async def test_a_database_that_was_closed_is_not_opened_again(file_url):
    async with running(file_url) as records:
        pass

    with pytest.raises(RecordsUnavailable):
        await records.page(1, None)
    assert records._database._engine.pool.checkedin() == 0


async def test_a_connection_that_cannot_be_set_up_is_closed(file_url, tmp_path):
    records = Records(file_url, metrics=Metrics(CollectorRegistry()))
    connection = sqlite3.connect(tmp_path / "offhook.db", timeout=0.0)
    with closing(sqlite3.connect(tmp_path / "offhook.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            records._database._set_up_sqlite(connection, None)

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


async def test_a_database_that_is_gone_is_written_when_it_comes_back(tmp_path):
    place = tmp_path / "gone"
    place.write_text("not a directory")
    with structlog.testing.capture_logs() as logged:
        async with running(f"sqlite:///{place}/offhook.db") as records:
            records.keep(record(1))
            with pytest.raises(RecordsUnavailable):
                await records.get("CAunknown")
            with pytest.raises(RecordsUnavailable):
                await records.page(10, None)
            place.unlink()
            with trio.fail_after(60):
                await records.wait_saved()
            assert len(await records.page(10, None)) == 1

    told = [entry["event"] for entry in logged]
    assert told == ["database fails; records wait in memory", "database works again"]


async def test_too_many_waiting_records_cost_the_oldest_and_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(unsaved_module, "MAX_UNSAVED", 3)
    (tmp_path / "gone").write_text("not a directory")
    with structlog.testing.capture_logs() as logged:
        async with running(f"sqlite:///{tmp_path}/gone/offhook.db") as records:
            for number in range(5):
                records.keep(record(number))
            kept = {each["call_sid"] for each in records.unsaved()}
            given_up = failures(records, "given-up")

    assert kept == {record(number)["call_sid"] for number in (2, 3, 4)}
    assert given_up == 2
    assert [entry for entry in logged if entry["event"].startswith("record lost")]


@pytest.mark.parametrize(
    "odd",
    [
        {"number": "sip:" + "9" * 400},
        {"number": "+1\0555"},
        {"detail": "half a pair: \ud800", "reason": "x" * 100},
        {"timings": {"billed_s": float("inf"), "tokens": [10**5000, -(10**30)]}},
        {"transcript": [{"text": "\0\udfff"}]},
        {"metadata": {"order": b"no JSON"}},
        {"transcript": object()},
    ],
    ids=lambda odd: next(iter(odd)),
)
async def test_as_much_of_an_odd_record_is_kept_as_the_database_takes(url, odd):
    with structlog.testing.capture_logs():
        async with running(url) as records:
            records.keep(record(1) | odd)
            with trio.fail_after(60):
                await records.wait_saved()
            kept = await records.get(record(1)["call_sid"])

    assert kept["created_at"] == record(1)["created_at"]
    assert kept["state"] == "ended"


@pytest.mark.parametrize("odd", [{"duration_s": "long"}, {"created_at": None}, {"status": None}])
async def test_a_record_that_no_database_takes_holds_no_other_up(url, odd):
    with structlog.testing.capture_logs() as logged:
        async with running(url) as records:
            for number in range(3):
                records.keep(record(number) | (odd if number == 1 else {}))
            with trio.fail_after(60):
                await records.wait_saved()
            kept = [await records.get(record(number)["call_sid"]) for number in (0, 2)]

    assert kept == [record(0), record(2)]
    assert any(entry.get("call_sid") == record(1)["call_sid"] for entry in logged) or odd == {
        "duration_s": "long"  # SQLite takes a word for a number
    }


async def test_what_people_said_is_not_in_the_log_of_a_failure(file_url, tmp_path):
    with structlog.testing.capture_logs() as logged:
        async with running(file_url) as records:
            with closing(sqlite3.connect(tmp_path / "offhook.db")) as other:
                other.execute("DROP TABLE offhook_calls")
            records.keep(record(1, detail="the secret"))
            await until(lambda: failures(records, "write"))

    assert "no such table" in str(logged)
    assert "secret" not in str(logged)
    assert "tal?" not in str(logged)


async def test_old_records_are_deleted_and_overwritten(file_url, tmp_path):
    now = time.time()
    async with running(file_url) as records:
        records.keep(record(1, created_at=now - 8 * DAY_S, detail="long-forgotten-words"))
        records.keep(record(2, created_at=now - 6 * DAY_S))
        await records.wait_saved()
    async with running(file_url, retention_days=7.0) as records:
        with trio.fail_after(60):
            while len(left := await records.page(10, None)) > 1:  # noqa: ASYNC110
                await trio.sleep(0.01)
        # Not in the file any more, and not in the log beside it.
        await until(
            lambda: all(b"long-forgotten" not in file.read_bytes() for file in tmp_path.iterdir())
        )

    assert left[0]["call_sid"] == record(2)["call_sid"]


def deleting(records: Records) -> list[int]:
    """How many records each transaction deletes, from now on."""
    pieces: list[int] = []
    engine = records._database._engine

    @sql.event.listens_for(engine, "after_cursor_execute")
    def note(connection, cursor, statement, *_) -> None:
        if statement.startswith("DELETE FROM offhook_calls"):
            connection.info["deleted"] = connection.info.get("deleted", 0) + cursor.rowcount

    @sql.event.listens_for(engine, "commit")
    def note_whole(connection) -> None:
        if deleted := connection.info.pop("deleted", 0):
            pieces.append(deleted)

    return pieces


async def keep_old_and_new(records: Records, old: int) -> list[str]:
    """Keep so many records of last month, and one of today, whose call is returned."""
    await until(lambda: records._sweep_at > 0)  # that at the start is over
    now = time.time()
    for number in range(old):
        records.keep(record(number, created_at=now - 31 * DAY_S + number))
    records.keep(record(old, created_at=now))
    with trio.fail_after(60):
        await records.wait_saved()
    return [record(old)["call_sid"]]


async def sids(records: Records) -> list[str]:
    return [row["call_sid"] for row in await records.page(100, None)]


async def test_many_old_records_are_deleted_in_pieces(url, monkeypatch):
    monkeypatch.setattr(store_module, "PIECE", 3)
    async with running(url, retention_days=30.0) as records:
        new = await keep_old_and_new(records, 7)
        pieces = deleting(records)
        with structlog.testing.capture_logs() as logged:
            await records._sweep()
        left = await sids(records)

    assert left == new
    assert pieces == [3, 3, 1]
    assert [entry["records"] for entry in logged if "deleted" in entry["event"]] == [7]


async def test_what_waits_is_written_between_two_pieces_of_what_is_deleted(file_url, monkeypatch):
    monkeypatch.setattr(store_module, "PIECE", 3)
    there: list[bool] = []
    async with running(file_url, retention_days=30.0) as records:
        await keep_old_and_new(records, 7)
        database, delete_before = records._database, records._database.delete_before
        late = record(100, created_at=time.time())

        def delete_while_a_call_ends(*facts) -> int:
            there.append(database.get(late["call_sid"]) is not None)
            if len(there) == 1:
                trio.from_thread.run_sync(records.keep, late)
            return delete_before(*facts)

        monkeypatch.setattr(database, "delete_before", delete_while_a_call_ends)
        records._sweep_at = trio.current_time()
        records._changed.set()
        await until(lambda: records._sweep_at > trio.current_time())

    assert there == [False, True, True]


async def test_a_piece_that_fails_leaves_deleted_what_was_and_is_tried_again(url, monkeypatch):
    monkeypatch.setattr(store_module, "PIECE", 3)
    left: list[int] = []
    async with running(url, retention_days=30.0) as records:
        new = await keep_old_and_new(records, 7)
        database, delete_before = records._database, records._database.delete_before

        def delete_and_fail_once(*facts) -> int:
            left.append(len(database.page(100, None)))
            if len(left) == 2:
                raise sql.exc.OperationalError("DELETE", {}, Exception("cancelled"))
            return delete_before(*facts)

        monkeypatch.setattr(database, "delete_before", delete_and_fail_once)
        records._sweep_at = trio.current_time()
        records._changed.set()
        await until(lambda: records._sweep_at > trio.current_time())
        there = await sids(records)
        failed = failures(records, "write")

    assert left == [8, 5, 5, 2]
    assert there == new
    assert failed == 1


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_more_old_records_than_postgresql_deletes_in_its_time_are_deleted(url, monkeypatch):
    monkeypatch.setattr(store_module, "PIECE", 3)
    too_long = """
        CREATE FUNCTION take_too_long() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT count(*) FROM gone) > 3 THEN
                RAISE query_canceled USING MESSAGE = 'canceling statement due to statement timeout';
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER too_long AFTER DELETE ON offhook_calls REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION take_too_long();
    """
    async with running(url, retention_days=30.0) as records:
        new = await keep_old_and_new(records, 7)
        with records._database._engine.begin() as connection:
            connection.exec_driver_sql(too_long)
        try:
            await records._sweep()
        finally:
            with records._database._engine.begin() as connection:
                connection.exec_driver_sql("DROP FUNCTION take_too_long CASCADE")
        left = await sids(records)

    assert left == new


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_what_another_process_deletes_just_now_is_not_waited_for(url):
    async with running(url) as records:
        [new] = await keep_old_and_new(records, 3)
        database = records._database
        other = Database(database_url(url))
        with other.transaction() as connection:
            connection.execute(statements.OLD_CALLS, {"before": time.time() - DAY_S, "most": 2})
            ours = database.delete_before(time.time() - DAY_S, 10)
            none = database.delete_before(time.time() - DAY_S, 10)
        other.close()
        left = await sids(records)

    assert (ours, none) == (1, 0)
    assert left == [new]


@pytest.mark.skipif(os.name != "posix", reason="file modes")
async def test_only_the_owner_may_read_the_file(file_url, tmp_path):
    async with running(file_url) as records:
        records.keep(record(1))
        await records.wait_saved()
        modes = {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}

    assert modes == {0o600}


async def test_a_database_of_a_later_version_is_left_alone(url):
    async with running(url) as records:
        # In memory there is one connection, and the sweep at the start uses it.
        await until(lambda: records._sweep_at > 0)
        with records._database._engine.begin() as connection:
            connection.execute(sql.text("UPDATE offhook_schema SET version = 99"))
        engine = records._database._engine
        records._database._ready = False
        with pytest.raises(SchemaTooNew, match="99"):
            records._database.open()
        records._database._ready = True
        assert sql.inspect(engine).has_table("offhook_calls")


async def test_an_older_database_is_brought_up_to_date(url, monkeypatch):
    async with running(url) as records:
        records.keep(record(1))
        await records.wait_saved()

        def add_column(connection: sql.Connection) -> None:
            connection.execute(sql.text("ALTER TABLE offhook_calls ADD COLUMN mood VARCHAR(8)"))

        newer = connecting.SCHEMA_VERSION + 1
        monkeypatch.setattr(connecting, "SCHEMA_VERSION", newer)
        monkeypatch.setattr(connecting, "MIGRATIONS", {newer - 1: add_column})
        records._database._ready = False
        assert await records.get(record(1)["call_sid"]) == record(1)
        with records._database._engine.connect() as connection:
            version = connection.scalar(sql.text("SELECT version FROM offhook_schema"))
            moods = connection.execute(sql.text("SELECT mood FROM offhook_calls")).fetchall()

    assert version == newer
    assert moods == [(None,)]


def put_back(records: Records, version: int, *statements: str) -> None:
    """Leave a database's tables as an earlier version had them."""
    with records._database._engine.begin() as connection:
        for statement in (*statements, f"UPDATE offhook_schema SET version = {version}"):
            connection.execute(sql.text(statement))


async def test_the_first_versions_database_gets_the_table_of_requests(file_url):
    async with running(file_url) as records:
        put_back(records, 1, "DROP TABLE offhook_requests")
    async with running(file_url) as records:
        await records.write_request("shop", "a", StoredRequest("f"))
        assert await records.find_request("shop", "a") == StoredRequest("f")


async def test_the_second_versions_records_are_of_the_only_process_that_had_them(url):
    if url == "sqlite://":
        pytest.skip("lasts no longer than its connection")
    async with running(url) as records:
        records.keep(record(1))
        await records.wait_saved()
        put_back(records, 2, "ALTER TABLE offhook_calls DROP COLUMN generation")
    async with running(url) as records:
        there = await records.get(record(1)["call_sid"])
        records.keep(record(1, status="later", generation=2))
        await records.wait_saved()
        later = await records.get(record(1)["call_sid"])

    assert there == record(1)
    assert later == record(1, status="later", generation=2)


async def test_the_third_versions_records_are_the_default_agents(url):
    if url == "sqlite://":
        pytest.skip("lasts no longer than its connection")
    async with running(url) as records:
        records.keep(record(1))
        await records.wait_saved()
        put_back(
            records,
            3,
            "DROP INDEX offhook_calls_of_agent",
            "ALTER TABLE offhook_calls DROP COLUMN agent",
        )
    async with running(url) as records:
        there = await records.get(record(1)["call_sid"])
        records.keep(record(2, agent="order-desk"))
        await records.wait_saved()
        later = await records.get(record(2)["call_sid"])

    assert there == record(1)
    assert later == record(2, agent="order-desk")


async def test_the_fourth_versions_database_gets_the_table_of_events(url):
    if url == "sqlite://":
        pytest.skip("lasts no longer than its connection")
    async with running(url) as records:
        records.keep(record(1))
        await records.wait_saved()
        put_back(records, 4, "DROP TABLE offhook_events")
    async with running(url) as records:
        waiting = await records.with_outbox(lambda outbox: outbox.waiting())
        there = await records.get(record(1)["call_sid"])

    assert waiting.waiting == 0
    assert there == record(1)


async def test_the_fifth_versions_records_say_nothing_in_lists_of_what_they_have_brought(url):
    if url == "sqlite://":
        pytest.skip("lasts no longer than its connection")
    brought = {"values": {"pizza": "hawaii"}, "complete": True}
    async with running(url) as records:
        records.keep(record(1, outcome=brought))
        await records.wait_saved()
        names = ("of_agent", "of_number", "of_reason", "with_trouble")
        dropped = [f"DROP INDEX offhook_calls_{name}" for name in names]
        for column in ("outcome_complete", "had_trouble"):
            dropped.append(f"ALTER TABLE offhook_calls DROP COLUMN {column}")
        put_back(records, 5, *dropped)
    async with running(url) as records:
        there = await records.get(record(1)["call_sid"])
        records.keep(record(2, outcome=brought, outcome_complete=True))
        await records.wait_saved()
        rows = await records.page(10, None, with_outcome=True)
        indexes = sql.inspect(records._database._engine).get_indexes("offhook_calls")

    assert there == record(1, outcome=brought)
    assert [(row["outcome_complete"], row["outcome"]) for row in rows] == [
        (True, brought),
        (None, brought),
    ]
    assert {index["name"] for index in indexes} == {index.name for index in calls.indexes}


async def test_the_sixth_versions_records_had_the_trouble_that_their_ends_tell_of(url):
    if url == "sqlite://":
        pytest.skip("lasts no longer than its connection")
    async with running(url) as records:
        records.keep(record(1, reason="model-silent"))
        records.keep(record(2))
        await records.wait_saved()
        put_back(
            records,
            6,
            "DROP INDEX offhook_calls_with_trouble",
            "ALTER TABLE offhook_calls DROP COLUMN had_trouble",
        )
    async with running(url) as records:
        there = await records.get(record(2)["call_sid"])
        records.keep(record(3, had_trouble=True))
        await records.wait_saved()
        rows = await records.page(10, None, Wanted(troubles=("model-silent",)))
        indexes = sql.inspect(records._database._engine).get_indexes("offhook_calls")

    assert there == record(2)
    assert {index["name"] for index in indexes} == {index.name for index in calls.indexes}
    assert [row["call_sid"] for row in rows] == [record(n)["call_sid"] for n in (3, 1)]


async def test_the_seventh_versions_tables_get_room_for_the_longest_names_of_calls(url):
    if url == "sqlite://":
        pytest.skip("lasts no longer than its connection")
    call_sid = "x" * MAX_CALL_SID_CHARS
    event = OutboxEvent("msg_1", call_sid, 1, 1.0, "call.ended", "http://a", "http://a/", "{}")
    async with running(url) as records:
        records.keep(record(1))
        await records.wait_saved()
        narrow = [
            f"ALTER TABLE offhook_{table} ALTER COLUMN call_sid TYPE VARCHAR(64)"
            for table in ("calls", "events")
            if url.startswith("postgresql")
        ]
        put_back(records, 7, *narrow)
    async with running(url) as records:
        records.keep(record(2, call_sid=call_sid))
        await records.wait_saved()
        before, there = await records.get(record(1)["call_sid"]), await records.get(call_sid)
        refused = await records.with_outbox(lambda outbox: outbox.put([event]))

    assert before == record(1)
    assert there == record(2, call_sid=call_sid)
    assert refused == []


@pytest.mark.parametrize("name", ["agent", "number", "reason"])
async def test_few_of_many_calls_are_found_without_looking_at_all(file_url, name):
    async with running(file_url) as records:
        await records.get("CA1")
        query = statements.wanted_only(statements.PAGE, Wanted(one_of={name: ("x",)}))
        engine = records._database._engine
        literal = query.params(most=10).compile(engine, compile_kwargs={"literal_binds": True})
        with engine.connect() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {literal}").fetchall()

    assert f"INDEX offhook_calls_of_{name}" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
@pytest.mark.parametrize("base", ["first page", "next page", "timings"])
async def test_few_calls_with_trouble_are_found_without_looking_at_all(server, base, request):
    url = request.getfixturevalue("file_url" if server == "sqlite" else "url_of_postgresql")
    page, facts = {
        "first page": (statements.PAGE, {}),
        "next page": (statements.PAGE_BEFORE, {"before": BEGAN + 4_000.0, "before_sid": "CA"}),
        "timings": (statements.TIMINGS, {}),
    }[base]
    query = statements.wanted_only(page, Wanted(troubles=("model-silent", "failed")))
    ends = {7: {"had_trouble": True}, 8: {"reason": "failed"}, 9: {"had_trouble": True}}
    many = [record(number, **ends.get(number, {"had_trouble": False})) for number in range(5_000)]
    database = Database(database_url(url))
    database.write(many)
    engine = database._engine
    literal = str(
        query.params(most=2, **facts).compile(engine, compile_kwargs={"literal_binds": True})
    ).replace("%", "%%")

    with engine.begin() as connection:
        if server == "postgresql":
            connection.exec_driver_sql("ANALYZE offhook_calls")
        explain = "EXPLAIN" if server == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = str(connection.exec_driver_sql(f"{explain} {literal}").fetchall())
        rows = connection.execute(query, {"most": 2, **facts}).fetchall()
    database.close()

    assert "offhook_calls_with_trouble" in plan
    assert "offhook_calls_of_reason" in plan
    assert "offhook_calls_newest" not in plan
    assert "SCAN offhook_calls" not in plan
    assert "Seq Scan" not in plan
    assert [row.call_sid for row in rows] == [record(number)["call_sid"] for number in (9, 8)]


async def test_a_record_of_before_there_were_agents_is_taken_with_one_of_today(url):
    before = record(1)
    del before["agent"]

    async with running(url) as records:
        records.keep(before)
        records.keep(record(2, agent="order-desk"))
        await records.wait_saved()

        assert await records.get(before["call_sid"]) == record(1)


# ------------------------------------------------------------------------------------------
# Owners


async def test_whoever_has_lost_a_call_does_not_replace_the_record_of_who_has_it_now(url):
    async with running(url) as records:
        records.keep(record(1, status="taken-over", generation=2))
        await records.wait_saved()
        records.keep(record(1, status="lost", generation=1))
        await records.wait_saved()
        kept = await records.get(record(1)["call_sid"])
        records.keep(record(1, status="completed", generation=2))
        await records.wait_saved()
        last = await records.get(record(1)["call_sid"])

    assert kept == record(1, status="taken-over", generation=2)
    assert last["status"] == "completed"


async def test_an_older_owners_record_that_still_waits_gives_way_and_never_the_newer_ones(url):
    async with running(url) as records:
        records.keep(record(1, generation=2))
        records.keep(record(1, status="lost", generation=1))
        records.keep(record(2, status="lost", generation=1))
        records.keep(record(2, generation=2))
        await records.wait_saved()
        kept = [await records.get(record(number)["call_sid"]) for number in (1, 2)]

    assert kept == [record(1, generation=2), record(2, generation=2)]


async def test_a_call_that_was_begun_again_under_its_name_does_not_replace_the_first_ones_record(
    url,
):
    again = record(1, status="again", created_at=BEGAN + 500)
    async with running(url) as records:
        records.keep(record(1))
        await records.wait_saved()
        records.keep(again)
        records.keep(again | {NOT_WHOLE: "lost"})
        await records.wait_saved()
        await records.read(lambda database: database.write_newer([again | {KEPT_AT: BEGAN * 2}]))
        kept = await records.get(record(1)["call_sid"])
        records.keep(record(1, status="taken-over", created_at=BEGAN + 500, generation=2))
        await records.wait_saved()
        later = await records.get(record(1)["call_sid"])

    assert kept == record(1)
    assert later["status"] == "taken-over"


async def test_a_summary_does_not_replace_the_whole_record_that_its_owner_has_written(url):
    summary = record(1, status="no-answer", transcript=None) | {NOT_WHOLE: "lost"}
    later = record(2, generation=2, transcript=None) | {NOT_WHOLE: "lost"}
    async with running(url) as records:
        records.keep(record(1))
        records.keep(record(2))
        await records.wait_saved()
        records.keep(summary)
        records.keep(later)
        records.keep(record(3, transcript=None) | {NOT_WHOLE: "lost"})
        await records.wait_saved()
        records.keep(record(3, status="busy", transcript=None) | {NOT_WHOLE: "lost"})
        await records.wait_saved()
        kept = [await records.get(record(number)["call_sid"]) for number in (1, 2, 3)]

    assert kept[:2] == [record(1), later]
    assert (kept[2]["status"], kept[2][NOT_WHOLE]) == ("busy", "lost")


async def test_a_whole_record_that_was_put_aside_takes_the_place_of_its_summary(url):
    database = Database(database_url(url))
    summary = record(1, transcript=None) | {NOT_WHOLE: "lost", KEPT_AT: BEGAN + 9.0}
    database.write([summary])
    database.write_newer([record(1) | {KEPT_AT: BEGAN + 1.0}])
    whole = database.get(record(1)["call_sid"])
    database.write_newer([summary])
    after = database.get(record(1)["call_sid"])
    database.close()

    assert whole == after == record(1)


# ------------------------------------------------------------------------------------------
# Requests


async def test_a_request_is_found_with_its_answer_by_its_own_client(url):
    answered = StoredRequest("f" * 64, {"body": {"call_sid": "CA1"}, "status": 201, "headers": {}})
    async with running(url) as records:
        mark = StoredRequest("f" * 64, created_at=time.time() - 1.1)
        assert await records.write_request("shop", "a", mark)
        found = await records.find_request("shop", "a")
        assert found == mark
        assert found.created_at == mark.created_at
        await records.write_request("shop", "a", answered)
        assert await records.find_request("shop", "a") == answered
        assert await records.find_request("crm", "a") is None
        await records.write_request("shop", "a", None)
        assert await records.find_request("shop", "a") is None


async def test_a_request_is_forgotten_after_its_time(file_url):
    async with running(file_url, requests_ttl_s=0.0) as records:
        await records.write_request("shop", "a", StoredRequest("f"))
        assert await records.find_request("shop", "a") is None
        await records._sweep()
        with records._database._engine.connect() as connection:
            left = connection.execute(sql.text("SELECT * FROM offhook_requests")).fetchall()

    assert left == []


async def test_a_database_that_hangs_holds_no_request_up(file_url, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "REQUEST_TIMEOUT_S", 0.05)
    async with running(file_url) as records:
        other = sqlite3.connect(tmp_path / "offhook.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with trio.fail_after(60):
            is_written = await records.write_request("shop", "a", StoredRequest("f"))
        assert not is_written
        assert failures(records, "request") == 1
        other.execute("ROLLBACK")
        other.close()


def test_what_the_address_of_a_postgresql_says_comes_before_what_we_think_best(url_of_postgresql):
    said = "options=-csearch_path%3Dof_ours&options=-cwork_mem%3D1MB&connect_timeout=7"
    plain = Database(database_url(url_of_postgresql))
    with plain.transaction() as connection:
        connection.exec_driver_sql("CREATE SCHEMA of_ours")
    database = Database(database_url(f"{url_of_postgresql}&{said}&keepalives_idle=60"))

    try:
        with database.transaction() as connection:
            parameters = connection.connection.dbapi_connection.info.get_parameters()
            path, memory, timeout = (
                connection.exec_driver_sql(f"SHOW {name}").scalar()
                for name in ("search_path", "work_mem", "statement_timeout")
            )
            schemas = connection.exec_driver_sql(
                "SELECT schemaname FROM pg_tables WHERE tablename = 'offhook_calls'"
            ).fetchall()
    finally:
        database.close()
        with plain.transaction() as connection:
            connection.exec_driver_sql("DROP SCHEMA of_ours CASCADE")
        plain.close()

    assert (path, memory, timeout) == ("of_ours", "1MB", "10s")
    assert {name for [name] in schemas} == {"public", "of_ours"}
    assert (parameters["connect_timeout"], parameters["keepalives_idle"]) == ("7", "60")
    assert parameters["keepalives_interval"] == "2"


def test_a_statement_has_as_long_as_the_address_of_a_postgresql_says(url_of_postgresql):
    said = "options=-c%20statement_timeout%3D60s"
    database = Database(database_url(f"{url_of_postgresql}&{said}"))
    with database.transaction() as connection:
        timeout = connection.exec_driver_sql("SHOW statement_timeout").scalar()
    database.close()

    assert timeout == "1min"


def test_a_lock_is_waited_for_as_long_as_the_address_of_a_file_says(file_url):
    waits = []
    for said in ("", "?timeout=30"):
        database = Database(database_url(file_url + said))
        with database.transaction(alone=False) as connection:
            waits.append(connection.exec_driver_sql("PRAGMA busy_timeout").scalar())
        database.close()

    assert waits == [20, 30_000]


@pytest.mark.parametrize(
    "wrong", ["offhook.db", "sqlte:///offhook.db", "mysql+nodriver://x", "oracle://scott@db"]
)
def test_a_wrong_address_is_a_wrong_setting(wrong):
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        Records(wrong, metrics=Metrics(CollectorRegistry()))


@pytest.mark.parametrize("text", ["", "x", "12", "12-", "nan-CA1", "x-CA1"])
def test_a_place_in_the_list_is_checked(text):
    with pytest.raises(ValueError, match=r"."):
        Cursor.parse(text)


async def test_many_old_requests_are_forgotten_in_pieces(url):
    async with running(url) as records:
        for number in range(5):
            await records.write_request("shop", f"{number}", StoredRequest("f"))
        database, soon = records._database, time.time() + 60.0
        pieces = [database.delete_requests_before(soon, 2) for _ in range(4)]
        none = [database.delete_requests_before(0.0, 2)]

    assert pieces == [2, 2, 1, 0]
    assert none == [0]


# ------------------------------------------------------------------------------------------
# Over the API


async def test_a_call_is_found_after_the_server_was_restarted(tmp_path, fast_clock):
    address = f"sqlite:///{tmp_path}/offhook.db"
    async with serving(database_url=address) as server:
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        with trio.fail_after(60):
            before = await server.finished(call_sid)
            await server.service.records.wait_saved()  # what is left takes a moment to be taken up
    async with serving(database_url=address) as server:
        after = (await server.http.get(f"/calls/{call_sid}")).json()
        listed = (await server.http.get("/calls")).json()
        ended = await server.http.post(f"/calls/{call_sid}/hang-up")
        unknown = await server.http.get("/calls/CAunknown")

    assert after == before
    assert after["cost"]["billed_minutes"] == 1
    assert set(after["tokens"]) == {"prompt", "response", "other"}
    assert [row["call_sid"] for row in listed["calls"]] == [call_sid]
    assert listed["next"] is None
    assert listed["complete"] is True
    assert "transcript" not in listed["calls"][0]
    assert ended.json()["reason"] == "caller-hung-up"
    assert unknown.status_code == 404


async def test_the_list_of_calls_comes_in_pages_with_the_live_ones_first(tmp_path, fast_clock):
    async with serving(database_url=f"sqlite:///{tmp_path}/x.db", recent_calls=0) as server:
        ended = [(await server.make_call("5550104")).json()["call_sid"] for _ in range(3)]
        for call_sid in ended:
            await server.twilio.calls[call_sid].wait_ended()
        live = (await server.make_call("5550105")).json()["call_sid"]
        await until(lambda: len(server.service.calls.register.live) == 1)
        seen, query = [], {"limit": "2"}
        while True:
            page = (await server.http.get("/calls", params=query)).json()
            seen += [(row["call_sid"], row["state"]) for row in page["calls"]]
            if page["next"] is None:
                break
            query["before"] = page["next"]
        wrong = [
            (await server.http.get("/calls", params=query)).status_code
            for query in ({"limit": "0"}, {"limit": "many"}, {"before": "yesterday"})
        ]
        await server.http.post(f"/calls/{live}/hang-up")

    assert seen == [(live, "live"), *((call_sid, "ended") for call_sid in reversed(ended))]
    assert wrong == [422, 422, 422]


async def test_calls_go_on_and_are_shown_while_the_database_is_gone(tmp_path, fast_clock):
    (tmp_path / "gone").write_text("not a directory")
    async with serving(database_url=f"sqlite:///{tmp_path}/gone/x.db") as server:
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        with trio.fail_after(60):
            record = await server.finished(call_sid)
        listed = (await server.http.get("/calls")).json()
        unknown = await server.http.get("/calls/CAunknown")
        (tmp_path / "gone").unlink()

    assert record["reason"] == "caller-hung-up"
    assert [row["call_sid"] for row in listed["calls"]] == [call_sid]
    assert listed["complete"] is False
    assert unknown.status_code == 503
    assert unknown.json()["error"] == "records-unavailable"
    with closing(sqlite3.connect(tmp_path / "gone" / "x.db")) as database:
        assert database.execute("SELECT call_sid FROM offhook_calls").fetchall() == [(call_sid,)]


async def test_the_list_of_calls_waits_for_no_database_that_hangs(fast_clock, monkeypatch):
    async def hang(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Records, "page", hang)
    async with serving() as server:
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        with trio.fail_after(60):
            listed = (await server.http.get("/calls")).json()

    assert [call["call_sid"] for call in listed["calls"]] == [call_sid]
    assert listed["complete"] is False


async def test_without_transcripts_a_record_says_who_spoke_and_not_what(fast_clock):
    async with serving(transcripts=False, record_numbers="full") as server:
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        with trio.fail_after(60):
            record = await server.finished(call_sid)

    assert record["transcript"]
    assert {turn["text"] for turn in record["transcript"]} == {None}
    assert record["number"] == "+15005550103"


async def test_a_database_that_no_thread_can_ask_is_none_that_can_be_asked(file_url):
    async with running(file_url) as records:
        with no_threads():
            with pytest.raises(RecordsUnavailable):
                await records.get("CA1")
            with pytest.raises(RecordsUnavailable):
                await records.with_outbox(lambda outbox: outbox.waiting())
            records.keep(record(1))
            await until(lambda: failures(records, "write"))
        with trio.fail_after(60):
            await records.wait_saved()


async def test_records_are_not_lost_where_no_thread_can_be_had_from_start_to_stop(
    file_url, monkeypatch, tmp_path
):
    monkeypatch.setattr(store_module, "FLUSH_TIMEOUT_S", 0.1)
    with no_threads():
        async with running(file_url, aside=tmp_path / "aside") as records:
            records.keep(record(1))
    written = [*(tmp_path / "aside").iterdir()]
    found: list[object] = []
    async with running(file_url, aside=tmp_path / "aside") as records:

        async def is_taken_up() -> bool:
            found[:] = [await records.get(record(1)["call_sid"])]
            return found != [None]

        with trio.fail_after(60):
            while not await is_taken_up():  # noqa: ASYNC110
                await trio.sleep(0.01)

    assert len(written) == 1
    assert found == [record(1)]


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
async def test_a_database_that_another_empty_one_has_replaced_gets_its_tables(url):
    async with running(url) as records:
        records.keep(record(1))
        with trio.fail_after(60):
            await records.wait_saved()
        other = Database(database_url(url))
        with other.transaction() as connection:
            tables.drop_all(connection)
        other.close()
        records.keep(record(2))
        with trio.fail_after(60):
            await records.wait_saved()
        found = await records.get(record(2)["call_sid"])

    assert found == record(2)
