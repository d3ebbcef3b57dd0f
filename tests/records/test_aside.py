"""What the database does not take is kept in files, and taken up when it does."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
import structlog.testing
import trio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from server.events.places import Places
from server.records import aside as aside_module
from server.records import store as store_module
from server.records import told as told_module
from server.records import unsaved as unsaved_module
from server.records.aside import Aside, read_lines
from server.records.database.database import Database
from server.records.database.tables import KEPT_AT, NOT_WHOLE, SUMMARY, calls, fitted
from server.records.database.url import database_url
from server.records.outbox import Outbox, OutboxEvent, Sent, Step
from server.records.store import Records
from server.records.words import Cursor, RecordsUnavailable
from tests.records.test_records import (
    BEGAN,
    DAY_S,
    failures,
    file_url,
    impatient,
    postgresql_url,
    record,
    running,
    until,
    url,
    url_of_postgresql,
)
from tests.support.databases import postgresql
from tests.support.inputs import inputs
from tests.support.kept_garbage import garbage_kept
from tests.support.processes import FLUSHES_SHORTLY, server_process

__all__ = ["file_url", "impatient", "postgresql_url", "url", "url_of_postgresql"]  # fixtures
pytestmark = pytest.mark.sockets
SERVERS = ["sqlite", "postgresql"]


def files(directory: Path, kind: str = "unsaved") -> list[Path]:
    return sorted(directory.glob(f"offhook-{kind}-*"))


def sid(number: int) -> str:
    return str(record(number)["call_sid"])


def put_aside(records, *entries: dict) -> Path:
    assert records._aside is not None
    return records._aside.write("unsaved", entries)


@pytest.fixture
def locked(tmp_path, file_url):
    """A database that another program holds."""
    database = Database(database_url(file_url))
    database.open()
    database.close()
    with closing(sqlite3.connect(tmp_path / "offhook.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other


def test_a_file_that_is_only_begun_is_not_taken_up_by_whoever_looks_for_files(
    tmp_path, monkeypatch
):
    ours, others = (Aside(tmp_path, database_url("sqlite:///a.db")) for _ in range(2))
    lock = aside_module._lock

    def sweep_first(file):
        """Another process takes up what it finds just before ours has locked its own."""
        monkeypatch.setattr(aside_module, "_lock", lock)
        for path in others.unsaved():
            with others.claimed(path) as claimed:
                if claimed is not None:
                    others.finish(path, claimed, is_whole=True)
        return lock(file)

    monkeypatch.setattr(aside_module, "_lock", sweep_first)
    written = ours.write("unsaved", [record(1)])

    assert [path.name for path in tmp_path.iterdir()] == [written.name]
    with others.claimed(written) as claimed:
        assert [line["call_sid"] for line in read_lines(claimed)] == [sid(1)]


# ------------------------------------------------------------------------------------------
# What fits


_anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, exclude_categories=()) | st.just("\0"), max_size=300),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.floats(), inner, max_size=3)
    ),
    max_leaves=8,
)
_text = st.text(st.characters(exclude_categories=()) | st.just("\0"), max_size=300)
_odd = st.fixed_dictionaries(
    {},
    optional={
        **{name: _text for name in SUMMARY if isinstance(record(1)[name], str)},
        **dict.fromkeys(("created_at", "duration_s", "agent_heard_s"), st.floats()),
        "reason": st.none() | _text,
        "metadata": st.dictionaries(_text, _text, max_size=3),
        "transcript": _anything,
        "timings": _anything,
    },
)


@given(_odd)
def test_what_is_fitted_fits_its_column_and_stays_the_same(odd):
    once = fitted(record(1) | odd)

    assert fitted(once) == once
    for column in calls.c:
        if column.name in SUMMARY and isinstance(value := once[column.name], str):
            assert len(value) <= (column.type.length or math.inf)
    assert json.loads(json.dumps(once, allow_nan=False)) == once
    text = json.dumps(once, ensure_ascii=False)
    assert "\\u0000" not in text
    text.encode()


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
@hypothesis_settings(
    max_examples=inputs(15),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(odd=st.lists(_odd, min_size=1, max_size=10))
def test_a_database_gives_back_what_was_shown_from_memory(server, odd, request, tmp_path):
    found = f"sqlite:///{tmp_path}/x.db"
    database = Database(
        database_url(request.getfixturevalue("postgresql_url") if server != "sqlite" else found)
    )
    records = [fitted(record(n) | one | {"call_sid": sid(n)}) for n, one in enumerate(odd)]
    database.delete_before(
        math.inf, most=1_000
    )  # what the example before has written of other calls

    assert database.write_each([each | {KEPT_AT: 1.0} for each in records]) == []
    back = [database.get(sid(number)) for number in range(len(odd))]
    page = database.page(1, Cursor(0.0, "half \ud800 \0"))
    database.close()

    assert back == records
    assert isinstance(page, list)


def test_what_is_deeper_than_anything_is_cut():
    deep: list = []
    for _ in range(5_000):
        deep = [deep]

    assert len(json.dumps(fitted(record(1) | {"timings": deep}))) < 5_000


# ------------------------------------------------------------------------------------------
# What is poison


@pytest.mark.parametrize("url", SERVERS, indirect=True)
async def test_one_record_of_a_batch_is_put_aside_and_the_others_are_written(url, tmp_path):
    poison = {"transcript": {1, 2}, "duration_s": {"a": "dictionary"}}
    with structlog.testing.capture_logs() as logged:
        async with running(url, aside=tmp_path) as records:
            writes = count_writes(records)
            for number in range(100):
                records.keep(record(number) | (poison if number == 37 else {}))
            with trio.fail_after(60):
                await records.wait_saved()
            kept = await records.page(200, None)
            refused = failures(records, "record")

    lines = [
        json.loads(line)
        for file in files(tmp_path, "refused")
        for line in file.read_text().splitlines()
    ]
    assert {each["call_sid"] for each in kept} == {sid(n) for n in range(100) if n != 37}
    assert [line["record"]["call_sid"] for line in lines] == [sid(37)]
    assert lines[0]["reason"]
    assert refused == 1
    assert [each["call_sid"] for each in logged if each["event"].startswith("record not")] == [
        sid(37)
    ]
    assert len(writes) < 2 * math.log2(100) + 4


async def test_where_only_a_detail_is_poison_the_call_is_still_found(file_url, tmp_path):
    async with running(file_url) as records:
        records.keep(record(1) | {"transcript": {1, 2}})
        with trio.fail_after(60):
            await records.wait_saved()
        kept = await records.get(sid(1))

    assert kept["reason"] == "caller-hung-up"
    assert NOT_WHOLE in kept
    assert len(files(tmp_path, "refused")) == 1


class Unshown:
    """What cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no words for it")


@pytest.mark.parametrize("odd", [{("a", 1): 2}, Unshown(), {Unshown(): 1}, [{"deep": Unshown()}]])
async def test_what_json_cannot_write_costs_no_other_record_anything(odd, file_url, tmp_path):
    async with running(file_url) as records:
        for number in range(6):
            records.keep(record(number) | ({"timings": odd} if number == 3 else {}))
        with trio.fail_after(60):
            await records.wait_saved()
        kept = [await records.get(sid(number)) for number in range(6)]

    assert [each["call_sid"] for each in kept] == [sid(number) for number in range(6)]
    assert [each for each in kept if NOT_WHOLE not in each and each["call_sid"] != sid(3)] == [
        record(number) for number in range(6) if number != 3
    ]


@pytest.mark.parametrize("odd", [{("a", 1): 2}, Unshown(), [{("a", 1): Unshown()}]])
def test_a_file_has_the_rest_of_a_record_whatever_one_part_of_it_is(odd, tmp_path):
    path = Aside(tmp_path, database_url("sqlite:///x.db")).write(
        "refused", [record(1), record(2) | {"timings": odd}, record(3)]
    )

    with path.open("rb") as file:
        lines = [line for line in read_lines(file) if line is not None]
    assert [line["call_sid"] for line in lines] == [sid(1), sid(2), sid(3)]
    assert [line["transcript"] for line in lines] == [record(1)["transcript"]] * 3


async def test_a_fault_of_ours_in_writing_a_file_ends_neither_the_writing_nor_the_stop(
    file_url, monkeypatch
):
    def fail(*_: object) -> Path:
        raise TypeError("a fault of ours")

    monkeypatch.setattr(Aside, "write", fail)
    with structlog.testing.capture_logs() as logged:
        async with running(file_url) as records:
            records.keep(record(1) | {"transcript": {1, 2}})
            records.keep(record(2))
            with trio.fail_after(60):
                await records.wait_saved()
            closed = records._database

    assert closed._closed
    assert [each["event"] for each in logged if each["log_level"] == "critical"] == [
        "records cannot be put aside"
    ]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_directory_that_hangs_does_not_stop_the_writing(
    fails, locked, file_url, monkeypatch
):
    go_on = threading.Event()

    def hang(*_: object) -> Path:
        go_on.wait(60)
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(Aside, "write", hang)
    monkeypatch.setattr(store_module, "ASIDE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(unsaved_module, "MAX_UNSAVED", 4)
    monkeypatch.setattr(store_module, "PUT_ASIDE", 1)
    if not fails:
        locked.execute("ROLLBACK")
    async with running(file_url) as records:
        for number in range(4):
            # Either what is refused is put aside, or what is too much.
            odd = {"transcript": {1, 2}} if number == 0 and not fails else {}
            records.keep(record(number) | odd)
        await until(lambda: failures(records, "aside"))
        if fails:
            locked.execute("ROLLBACK")
        with trio.fail_after(60):
            await records.wait_saved()
        page = await records.page(10, None)
        go_on.set()

    assert len(page) == 4


@pytest.mark.parametrize("what", ["unsaved", "is_closed_to_us"])
async def test_a_directory_that_hangs_when_it_is_looked_at_does_not_stop_the_writing(
    what, file_url, monkeypatch
):
    go_on = threading.Event()

    def hang(*_: object) -> list[Path]:
        assert threading.current_thread() is not threading.main_thread()
        go_on.wait(60)
        return []

    monkeypatch.setattr(Aside, what, hang)
    monkeypatch.setattr(store_module, "ASIDE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(store_module, "TAKE_UP_TIMEOUT_S", 0.05)
    async with running(file_url) as records:
        await until(lambda: records._sweep_at > 0)
        records.keep(record(1))
        with trio.fail_after(60):
            await records.wait_saved()
        go_on.set()


async def test_a_directory_that_cannot_even_be_looked_for_is_warned_of_and_stops_no_start(file_url):
    nobody_can = Path("/", "x" * 256, "unsaved")  # as where a folder above it is closed
    with structlog.testing.capture_logs() as lines:
        async with running(file_url, aside=nobody_can) as records:
            records.keep(record(1))
            with trio.fail_after(60):
                await records.wait_saved()

    warned = [line["directory"] for line in lines if "cannot be written" in line["event"]]
    assert warned == [str(nobody_can)]


@pytest.mark.parametrize("where", ["yet", "offhook.db/below"])
async def test_a_directory_that_is_not_there_yet_is_not_warned_of(
    file_url, tmp_path, monkeypatch, where
):
    monkeypatch.setattr(store_module, "ASIDE_TIMEOUT_S", 60.0)
    with structlog.testing.capture_logs() as lines:
        async with running(file_url, aside=tmp_path / where):
            pass

    assert not [line for line in lines if "cannot be written" in line["event"]]


def count_writes(records) -> list[int]:
    written: list[int] = []
    write = records._database.write

    def counting(batch, is_late) -> None:
        written.append(len(batch))
        write(batch, is_late)

    records._database.write = counting
    return written


# ------------------------------------------------------------------------------------------
# A stop while the database fails


async def test_what_a_locked_database_does_not_take_at_a_stop_is_taken_up_at_the_next_start(
    locked, file_url, tmp_path
):
    async with running(file_url) as records:
        for number in range(250):
            records.keep(record(number))
    left = files(tmp_path)
    locked.execute("ROLLBACK")
    async with running(file_url) as records:
        await until(lambda: not files(tmp_path))
        page = await records.page(1_000, None)
        first = await records.get(sid(0))

    assert len(left) == 1
    assert len(page) == 250
    assert first == record(0)


async def test_a_database_that_comes_back_in_time_takes_all_itself(
    locked, file_url, tmp_path, monkeypatch
):
    monkeypatch.setattr(store_module, "FLUSH_TIMEOUT_S", 60.0)
    async with trio.open_nursery() as nursery, running(file_url) as records:
        records.keep(record(1))

        async def unlock() -> None:
            await until(lambda: failures(records, "write") >= 3)
            locked.execute("ROLLBACK")

        nursery.start_soon(unlock)

    async with running(file_url) as records:
        assert await records.get(sid(1)) == record(1)
    assert files(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes")
async def test_only_the_owner_may_read_a_file(file_url, locked, tmp_path):
    async with running(file_url) as records:
        records.keep(record(1))

    assert [path.stat().st_mode & 0o777 for path in files(tmp_path)] == [0o600]


async def test_an_older_version_does_not_replace_a_newer_one(url, tmp_path):
    if url == "sqlite://":
        pytest.skip("has no files")
    async with running(url, aside=tmp_path) as records:
        records.keep(record(1, status="new"))
        records.keep(record(2, status="old"))
        await records.wait_saved()
        put_aside(
            records,
            record(1, status="old") | {KEPT_AT: 1.0},
            record(2, status="new") | {KEPT_AT: time.time() + 1},
            record(2, status="older") | {KEPT_AT: 2.0},
            record(3, status="unknown when"),
        )
    async with running(url, aside=tmp_path) as records:
        await until(lambda: not files(tmp_path))
        statuses = [(await records.get(sid(number)))["status"] for number in (1, 2, 3)]

    assert statuses == ["new", "new", "unknown when"]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_version_that_comes_between_look_and_write_is_not_replaced_by_an_older_one(
    server, is_there, request, tmp_path
):
    found = f"sqlite:///{tmp_path}/x.db"
    address = database_url(
        request.getfixturevalue("postgresql_url") if server != "sqlite" else found
    )
    mine, other = Database(address), Database(address)
    call_sid = f"CA{server}{is_there}"
    if is_there:
        mine.write([record(1, status="first") | {"call_sid": call_sid, KEPT_AT: 1.0}])
    mine.open()
    other.open()

    def write_newest() -> None:
        give_up_at = time.monotonic() + 60
        while True:
            try:
                other.write([record(1, status="newest") | {"call_sid": call_sid, KEPT_AT: 3.0}])
            except OperationalError:  # locked, as it should be
                assert time.monotonic() < give_up_at
            else:
                return

    thread = threading.Thread(target=write_newest)

    def come_between(*event: Any) -> None:
        if "SELECT" in event[2] and "offhook_calls" in event[2] and thread.ident is None:
            thread.start()
            thread.join(0.5)  # it waits for us, or is done

    sql.event.listen(mine._engine, "after_cursor_execute", come_between)
    refused = mine.write_newer([record(1, status="second") | {"call_sid": call_sid, KEPT_AT: 2.0}])
    thread.join()
    kept = mine.get(call_sid)
    mine.close()
    other.close()

    assert refused == []
    assert kept["status"] == "newest"


def test_two_that_write_the_same_call_at_once_both_succeed(postgresql_url):
    address = database_url(postgresql_url)
    mine, other = Database(address), Database(address)
    mine.open()
    other.open()
    came: list[str] = []

    def come_between(*event: Any) -> None:
        if "SELECT" in event[2] and "offhook_calls" in event[2] and not came:
            came.append("other")
            other.write([record(1, status="other") | {"call_sid": "CAtwice"}])

    sql.event.listen(mine._engine, "after_cursor_execute", come_between)
    refused = mine.write_each([record(1, status="mine") | {"call_sid": "CAtwice"}])
    kept = mine.get("CAtwice")
    mine.close()
    other.close()

    assert came
    assert refused == []
    assert kept == record(1, status="mine") | {"call_sid": "CAtwice"}


def test_a_later_owner_that_writes_between_look_and_write_is_not_replaced(postgresql_url):
    address = database_url(postgresql_url)
    mine, other = Database(address), Database(address)
    mine.open()
    other.open()
    came: list[str] = []

    def come_between(*event: Any) -> None:
        if "SELECT" in event[2] and "offhook_calls" in event[2] and not came:
            came.append("other")
            other.write([record(1, status="theirs", generation=2) | {"call_sid": "CAlost"}])

    sql.event.listen(mine._engine, "after_cursor_execute", come_between)
    refused = mine.write_each([record(1, status="mine") | {"call_sid": "CAlost"}])
    kept = mine.get("CAlost")
    mine.close()
    other.close()

    assert came
    assert refused == []
    assert kept == record(1, status="theirs", generation=2) | {"call_sid": "CAlost"}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("is_whole", [True, False])
def test_what_is_written_late_replaces_nothing_that_was_kept_later_but_what_is_in_time_does(
    server, is_whole, request, tmp_path
):
    found = f"sqlite:///{tmp_path}/x.db"
    database = Database(
        database_url(request.getfixturevalue("postgresql_url") if server != "sqlite" else found)
    )
    call_sids = [f"CAlate{is_whole}{n}" for n in range(4)]
    part = {} if is_whole else {NOT_WHOLE: "lost"}

    def versions(status: str, kept_at: float, generation: int = 1) -> list[dict]:
        later = {"status": status, KEPT_AT: kept_at, "generation": generation} | part
        return [record(1) | {"call_sid": call_sid} | later for call_sid in call_sids]

    def statuses() -> list[str]:
        return [database.get(call_sid)["status"] for call_sid in call_sids]

    untold, *told = versions("there", 3.0)
    del untold[KEPT_AT]  # of an older program
    database.write([untold, *told[:2]])
    late = database.write_each(versions("late", 2.0), lambda: True)
    after_late = statuses()
    later = database.write_each(versions("later", 4.0), lambda: True)
    after_later = statuses()
    in_time = database.write_each(versions("in time", 1.0))  # by another machine's clock
    after_in_time = statuses()
    owned = database.write_each(versions("its next owner's", 0.5, generation=2), lambda: True)
    after_owned = statuses()
    database.close()

    assert late == later == in_time == owned == []
    assert after_late == ["late", "there", "there", "late"]
    assert after_later == ["later"] * 4
    assert after_in_time == ["in time"] * 4
    assert after_owned == ["its next owner's"] * 4


def test_what_becomes_late_between_look_and_write_does_not_replace_what_came_there(postgresql_url):
    address = database_url(postgresql_url)
    mine, other = Database(address), Database(address)
    mine.open()
    other.open()
    asked: list[str] = []

    def is_late() -> bool:
        asked.append("mine")
        if len(asked) > 1:
            return True
        other.write_newer([record(1, status="newer") | {"call_sid": "CAslow", KEPT_AT: 2.0}])
        return False

    refused = mine.write_each(
        [record(1, status="late") | {"call_sid": "CAslow", KEPT_AT: 1.0}], is_late
    )
    kept = mine.get("CAslow")
    mine.close()
    other.close()

    assert len(asked) == 2
    assert refused == []
    assert kept["status"] == "newer"


async def test_a_torn_or_hostile_file_gives_its_good_lines_and_is_kept_for_people(
    file_url, tmp_path
):
    async with running(file_url) as records:
        await until(lambda: records._sweep_at > 0)
        path = put_aside(records, record(1), record(2))
    good = json.dumps({"record": record(3) | {"number": "9" * 100, "detail": "\0"}}).encode()
    bad = [
        b"{",
        b"[]",
        b'{"record": 1}',
        b'{"record": {"call_sid": ""}}',
        b'{"record": {"call_sid": "CA1"}}',
        b"\xff\xfe",
        b"[" * 200_000,
        json.dumps({"record": record(4) | {"created_at": "soon"}}).encode(),
        json.dumps({"record": record(4) | {"status": None}}).encode(),
        b"",
    ]
    with path.open("ab") as file:
        file.write(b"\n".join([*bad, good, json.dumps({"record": record(5)}).encode()[:-20]]))
    async with running(file_url) as records:
        await until(lambda: not files(tmp_path))
        page = {each["call_sid"] for each in await records.page(100, None)}
        await until(lambda: failures(records, "record") == len(bad) + 1)

    assert page == {sid(1), sid(2), sid(3)}
    assert len(files(tmp_path, "refused")) == 1


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
async def test_what_is_no_file_of_ours_is_left_alone(file_url, tmp_path):
    async with running(file_url) as records:
        assert records._aside is not None
        start = records._aside._start_of("unsaved")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / f"{start}link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / f"{start}pipe")
    (tmp_path / f"{start}folder").mkdir()
    async with running(file_url) as records:
        await until(lambda: records._sweep_at > 0)

    assert len(files(tmp_path)) == 3


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_a_file_is_one_process_s_at_a_time(tmp_path):
    aside = Aside(tmp_path, database_url("sqlite:///x.db"))
    path = aside.write("unsaved", [record(1)])
    with aside.claimed(path) as first, aside.claimed(path) as second:
        assert first is not None
        assert second is None
        aside.finish(path, first, is_whole=True)
    with aside.claimed(path) as third:
        assert third is None


def test_what_a_dying_process_began_is_read_as_far_as_it_goes(tmp_path):
    aside = Aside(tmp_path, database_url("sqlite:///x.db"))
    path = aside.write("unsaved", [record(1), record(2)])
    torn = path.with_name(path.name + aside_module.UNFINISHED)
    torn.write_bytes(path.read_bytes()[:-5])
    path.unlink()

    assert aside.unsaved() == [torn]
    with torn.open("rb") as file:
        lines = [line and line["call_sid"] for line in read_lines(file)]
    assert lines == [sid(1), None]


@pytest.mark.parametrize(
    "lacks",
    [
        ("had_trouble",),
        ("outcome_complete", "had_trouble"),
        ("agent", "outcome_complete", "had_trouble"),
        ("agent", "generation", "outcome_complete", "had_trouble"),
    ],
    ids=["schema 6", "schema 5", "schema 3", "schema 2"],
)
def test_a_file_of_an_earlier_version_is_whole_without_what_has_come_since(tmp_path, lacks):
    before = {name: value for name, value in record(1).items() if name not in lacks}
    path = tmp_path / "file"
    path.write_text(json.dumps({"record": before}) + "\n")

    with path.open("rb") as file:
        (line,) = read_lines(file)

    assert line is not None
    assert (line["agent"], line["generation"]) == ("default", 1)
    assert (line["outcome_complete"], line["had_trouble"]) == (None, None)


async def test_records_of_another_database_are_not_taken_up_but_told_of(file_url, tmp_path):
    other = Aside(tmp_path, database_url("postgresql://user@elsewhere/name"))
    other.write("unsaved", [record(1)])
    with structlog.testing.capture_logs() as logged:
        async with running(file_url) as records:
            await until(lambda: records._sweep_at > 0)
            assert await records.get(sid(1)) is None

    assert "files of records for another DATABASE_URL wait" in [each["event"] for each in logged]
    same = Aside(tmp_path, database_url("postgresql://somebody:password@elsewhere/name"))
    assert len(same.unsaved()) == 1


async def test_old_files_and_old_records_in_files_go_as_retention_wants(file_url, tmp_path):
    now = time.time()
    async with running(file_url) as records:
        await until(lambda: records._sweep_at > 0)
        put_aside(records, record(1, created_at=now - 3 * DAY_S), record(2, created_at=now))
        assert records._aside is not None
        old = records._aside.write("refused", [record(3)])
        os.utime(old, (now - 3 * DAY_S, now - 3 * DAY_S))
    async with running(file_url, retention_days=1) as records:
        await until(lambda: records._sweep_at > 0)
        page = [each["call_sid"] for each in await records.page(100, None)]

    assert page == [sid(2)]
    assert list(tmp_path.glob("offhook-*-*")) == []


async def test_a_folder_that_is_called_like_a_file_of_ours_keeps_no_old_file(file_url, tmp_path):
    now = time.time()
    aside = Aside(tmp_path, database_url(file_url))
    folder = tmp_path / f"{aside._start_of('refused')}0-folder"
    folder.mkdir()
    other = Aside(tmp_path, database_url("postgresql://user@elsewhere/name"))
    old = [aside.write("refused", [record(1)]), other.write("unsaved", [record(2)])]
    new = other.write("unsaved", [record(3)])
    for path in (folder, *old):
        os.utime(path, (now - 3 * DAY_S, now - 3 * DAY_S))
    async with running(file_url, retention_days=1) as records:
        await until(lambda: records._sweep_at > 0)
        failed = failures(records, "aside")

    assert [path.exists() for path in (folder, *old, new)] == [True, False, False, True]
    assert failed == 0


def test_an_old_file_that_cannot_be_deleted_leaves_nothing_to_the_garbage_collector(
    tmp_path, monkeypatch
):
    aside = Aside(tmp_path, database_url("sqlite:///x.db"))
    path = aside.write("unsaved", [record(1)])

    def unlink(self: Path) -> None:
        raise PermissionError(errno.EPERM, "not now")

    monkeypatch.setattr(Path, "unlink", unlink)
    failed = []

    def delete() -> None:
        try:  # what pytest.raises gives would be a ring of its own
            aside.delete_before(path.stat().st_mtime + 1.0)
        except PermissionError as error:
            failed.append(error.strerror)

    delete()  # what first uses make stays
    with garbage_kept() as left:
        delete()

    assert left == []
    assert failed == ["not now"] * 2


async def test_one_file_that_cannot_be_taken_up_does_not_hold_up_the_others(
    file_url, tmp_path, monkeypatch
):
    aside = Aside(tmp_path, database_url(file_url))
    first = aside.write("unsaved", [record(1)])
    aside.write("unsaved", [record(2)])
    finish = Aside.finish

    def fail_once(self: Aside, path: Path, *args: Any, **options: Any) -> Path | None:
        if path == first:
            raise OSError(errno.EPERM, "Operation not permitted")
        return finish(self, path, *args, **options)

    monkeypatch.setattr(Aside, "finish", fail_once)
    async with running(file_url) as records:
        await until(lambda: records._sweep_at > 0)
        failed = failures(records, "aside")

    assert files(tmp_path) == [first]
    assert failed == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="gives a file away")
async def test_files_of_another_user_are_not_read_but_told_of_once(file_url, tmp_path):
    path = Aside(tmp_path, database_url(file_url)).write("unsaved", [record(1)])
    os.chown(path, 12345, -1)
    with structlog.testing.capture_logs() as logged:
        async with running(file_url) as records:
            for _ in range(3):
                await records._take_up()

    told = [each for each in logged if each["event"] == "files of records belong to another user"]
    assert [each["files"] for each in told] == [1]
    assert path.exists()


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_the_directory_is_made_for_its_owner_only(tmp_path):
    Aside(tmp_path / "aside", database_url("sqlite:///x.db")).write("unsaved", [record(1)])

    assert (tmp_path / "aside").stat().st_mode & 0o777 == 0o700


async def test_a_full_disk_while_records_are_put_aside_is_said_loudly(
    file_url, locked, tmp_path, monkeypatch
):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(aside_module.os, "fsync", full)
    with structlog.testing.capture_logs() as logged:
        async with running(file_url) as records:
            records.keep(record(1))

    loud = [each for each in logged if each["log_level"] == "critical"]
    assert [each["event"] for each in loud] == [
        "records cannot be put aside",
        "record lost: neither database nor file took it",
    ]
    assert loud[1]["call_sid"] == sid(1)
    assert list(tmp_path.glob("offhook-*-*")) == []


async def test_records_beyond_what_memory_holds_go_to_a_file_and_back(
    file_url, locked, tmp_path, monkeypatch
):
    monkeypatch.setattr(unsaved_module, "MAX_UNSAVED", 40)
    monkeypatch.setattr(store_module, "PUT_ASIDE", 10)
    async with running(file_url) as records:
        for round in range(4):
            for number in range(15):
                records.keep(record(100 * round + number))
            await until(lambda: len(list(records.unsaved())) <= 20)
        assert files(tmp_path)
        given_up = failures(records, "given-up")
        locked.execute("ROLLBACK")
        with trio.fail_after(60):
            await records.wait_saved()
        await until(lambda: not files(tmp_path))
        page = await records.page(1_000, None)

    assert given_up == 0
    assert len(page) == 60


# ------------------------------------------------------------------------------------------
# PostgreSQL


async def test_a_failover_to_a_standby_is_waited_out(postgresql_url):
    engine = sql.create_engine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))

    def read_only(is_so: bool) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            word = "on" if is_so else "off"
            connection.exec_driver_sql(
                f"ALTER DATABASE postgres SET default_transaction_read_only = {word}"
            )
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

    async with running(postgresql_url) as records:
        records.keep(record(1, created_at=BEGAN))
        await records.wait_saved()
        read_only(True)
        records.keep(record(2))
        await until(lambda: failures(records, "write") >= 2)
        read_only(False)
        with trio.fail_after(60):
            await records.wait_saved()
        assert await records.get(sid(2)) == record(2)
    engine.dispose()


def send_to_backends(engine: sql.Engine, signal_: signal.Signals) -> list[int]:
    """Signal every process of PostgreSQL's that serves one of the server's connections."""
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        pids = connection.exec_driver_sql(f"SELECT pid FROM pg_stat_activity WHERE {others}").all()
    for [pid] in pids:
        os.kill(pid, signal_)
    return [pid for [pid] in pids]


async def test_what_a_database_that_stands_still_does_not_take_goes_to_a_file_and_back_once(
    url_of_postgresql, tmp_path, monkeypatch
):
    monkeypatch.setattr(unsaved_module, "MAX_UNSAVED", 4)
    engine = sql.create_engine(url_of_postgresql.replace("postgresql:", "postgresql+psycopg:"))
    async with running(url_of_postgresql, aside=tmp_path) as records:
        records.keep(record(99))
        with trio.fail_after(60):
            await records.wait_saved()
        await until(lambda: records._sweep_at > trio.current_time())
        monkeypatch.setattr(store_module, "WRITE_TIMEOUT_S", 0.2)
        with structlog.testing.capture_logs() as logged:
            pids = send_to_backends(engine, signal.SIGSTOP)
            try:
                for number in range(3):
                    records.tell(started(sid(number)))
                    records.keep(record(number, status="in-progress"))
                await until(lambda: not records._unsaved and not records._told)
                made = files(tmp_path)
                records.keep(record(1))  # a newer one than the thread has that was left to itself
            finally:
                monkeypatch.setattr(store_module, "WRITE_TIMEOUT_S", 60.0)
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await until(lambda: not records._unsaved and not files(tmp_path))
            await records.wait_saved()
            kept = [await records.get(sid(number)) for number in range(3)]
            waiting = await records.with_outbox(lambda outbox: outbox.waiting())
    engine.dispose()
    failed = [entry for entry in logged if entry["event"].startswith("database fails")]

    assert pids
    assert len(made) == 1
    assert [one["status"] for one in kept] == ["in-progress", "completed", "in-progress"]
    assert waiting.waiting == 3
    assert [(one["error"], one["exc_info"]) for one in failed] == [
        ("the database does not answer", False)
    ]


async def test_what_a_thread_writes_late_replaces_nothing_that_another_process_has_taken_up(
    file_url, tmp_path, monkeypatch
):
    monkeypatch.setattr(unsaved_module, "MAX_UNSAVED", 1)
    hangs, goes_on = threading.Event(), threading.Event()
    lock = Database._lock

    def hang(database: Database, connection: sql.Connection) -> None:
        if not hangs.is_set():
            hangs.set()
            goes_on.wait(60.0)
        lock(database, connection)

    async with running(file_url) as records:
        await until(lambda: records._sweep_at > trio.current_time())  # takes nothing up itself
        monkeypatch.setattr(store_module, "WRITE_TIMEOUT_S", 0.2)
        monkeypatch.setattr(Database, "_lock", hang)
        records.keep(record(1, status="older"))
        await until(hangs.is_set)
        await until(lambda: not records._unsaved)
        records.keep(record(1, status="newer"))
        await until(lambda: not records._unsaved)
        made = files(tmp_path)
        async with running(file_url) as sibling:
            await until(lambda: not files(tmp_path))
            taken_up = await sibling.get(sid(1))
        goes_on.set()
        monkeypatch.setattr(store_module, "WRITE_TIMEOUT_S", 60.0)
        records.keep(record(2))  # after what the thread writes
        await until(lambda: not records._unsaved)
        kept = await records.get(sid(1))

    assert len(made) == 2
    assert taken_up["status"] == kept["status"] == "newer"
    assert failures(records, "given-up") == 0


def parent_of(pid: int) -> int:
    """The process that has begun this one: of PostgreSQL's, the one that takes connections."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


async def test_nobody_who_reads_waits_long_for_a_database_that_stands_still(
    url_of_postgresql, monkeypatch
):
    engine = sql.create_engine(url_of_postgresql.replace("postgresql:", "postgresql+psycopg:"))
    asked: list[Callable[[Records], Awaitable[object]]] = [
        lambda records: records.page(10, None),
        lambda records: records.get(sid(2)),
        lambda records: records.with_outbox(lambda outbox: outbox.waiting()),
    ]
    async with running(url_of_postgresql) as records:
        records.keep(record(1))
        with trio.fail_after(60):
            await records.wait_saved()
            for ask in asked:
                await ask(records)
        monkeypatch.setattr(store_module, "READ_TIMEOUT_S", 0.2)
        pids = send_to_backends(engine, signal.SIGSTOP)
        pids.append(parent_of(pids[0]))  # nor is any new connection taken
        os.kill(pids[-1], signal.SIGSTOP)
        try:
            with trio.fail_after(60):
                for ask in asked * 3:  # more than there are threads, which stand still with it
                    with pytest.raises(RecordsUnavailable):
                        await ask(records)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        monkeypatch.setattr(store_module, "READ_TIMEOUT_S", 60.0)
        with trio.fail_after(60):
            page, _, waiting = [await ask(records) for ask in asked]
    engine.dispose()

    assert pids
    assert failures(records, "read") == 6
    assert failures(records, "outbox") == 3
    assert [row["call_sid"] for row in page] == [sid(1)]
    assert waiting.waiting == 0


async def test_what_was_done_with_an_outbox_that_hung_may_be_done_once_more(file_url, monkeypatch):
    goes_on, now = threading.Event(), time.time() + 1.0

    def step(sent: list[Sent], outbox: Outbox) -> Step:
        return outbox.step(sent, lease="ours", now=now, until=now + 60.0, free=1, places=Places(1))

    def step_late(sent: list[Sent], outbox: Outbox) -> Step:
        goes_on.wait(60.0)
        return step(sent, outbox)

    async with running(file_url) as records:
        for number in (1, 2):
            records.tell(started(sid(number)))
        await until(lambda: not records._told)
        first = await records.with_outbox(partial(step, []))
        done = [Sent(one.event, is_done=True) for one in first.claimed]
        monkeypatch.setattr(store_module, "READ_TIMEOUT_S", 0.2)
        with pytest.raises(RecordsUnavailable):
            await records.with_outbox(partial(step_late, done))
        monkeypatch.setattr(store_module, "READ_TIMEOUT_S", 60.0)
        goes_on.set()
        again = await records.with_outbox(partial(step, done))
        waiting = await records.with_outbox(lambda outbox: outbox.waiting())

    assert len(first.claimed) == 1
    assert list(again.claimed) == []  # it is leased to the step that was given up
    assert waiting.waiting == 1


async def test_a_piece_that_a_hanging_database_does_not_delete_holds_up_no_record(
    file_url, monkeypatch
):
    monkeypatch.setattr(store_module, "WRITE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(unsaved_module, "MAX_UNSAVED", 2)
    began, goes_on = trio.Event(), threading.Event()

    def hang(*_: object) -> int:
        trio.from_thread.run_sync(began.set)
        goes_on.wait(60.0)
        return 0

    monkeypatch.setattr(Database, "delete_requests_before", hang)
    async with running(file_url) as records:
        with trio.fail_after(60):
            await began.wait()
        for number in range(2):
            records.keep(record(number))
        await until(lambda: not records._unsaved)
        goes_on.set()
        monkeypatch.setattr(store_module, "WRITE_TIMEOUT_S", 60.0)
        await until(lambda: records._sweep_at > trio.current_time())
        page = await records.page(10, None)

    assert len(page) == 2
    assert failures(records, "given-up") == 0


@pytest.mark.slow
async def test_what_a_hanging_database_does_not_take_at_a_stop_goes_to_a_file(
    postgresql_url, tmp_path
):
    engine = sql.create_engine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))
    database = Database(database_url(postgresql_url))
    database.open()
    database.close()
    with engine.begin() as other:
        other.exec_driver_sql("LOCK TABLE offhook_calls IN ACCESS EXCLUSIVE MODE")
        async with running(postgresql_url, aside=tmp_path) as records:
            records.keep(record(77))
        left = files(tmp_path)
    async with running(postgresql_url, aside=tmp_path) as records:
        await until(lambda: not files(tmp_path))
        found = await records.get(sid(77))
    engine.dispose()

    assert len(left) == 1
    assert found == record(77)


def test_a_connection_that_is_lost_is_no_fault_of_the_record():
    from server.records.database.errors import is_about_data

    assert not is_about_data(OperationalError("INSERT", {}, Exception("server closed")))


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [True, False])
async def test_no_record_is_lost_when_postgresql_restarts_while_the_server_stops(
    tmp_path, comes_back
):
    with postgresql() as database:
        directory = Path(database.partition("host=")[2])
        control = partial(control_postgresql, directory)
        serve = partial(
            server_process,
            tmp_path,
            "python -m server" if comes_back else FLUSHES_SHORTLY,
            database_url=database,
            unsaved_dir=tmp_path,
        )
        async with serve() as server:
            calls = [await server.talking_call() for _ in range(3)]
            await trio.to_thread.run_sync(control, "stop")
            server.tell_to_stop()
            for call in calls:
                await call.wait_ended()
            if comes_back:
                await trio.to_thread.run_sync(control, "start")
            status = await server.process.wait()
        left = files(tmp_path)
        if not comes_back:
            await trio.to_thread.run_sync(control, "start")
        async with serve() as server:
            await until(lambda: not files(tmp_path))
            kept = [(await server.http.get(f"/calls/{call.call_sid}")).json() for call in calls]

    assert status == 0
    assert [each["reason"] for each in kept] == ["drained"] * 3
    assert all(each["transcript"] for each in kept)
    assert bool(left) is not comes_back


def control_postgresql(directory: Path, what: str) -> None:
    import shutil
    import subprocess

    from tests.support.databases import DEBIAN, _unprivileged_user

    path = os.pathsep.join([*map(str, DEBIAN), os.environ["PATH"]])
    program = shutil.which("pg_ctl", path=path)
    assert program is not None
    options = ["-m", "fast"] if what == "stop" else [
        *("-o", f"-c listen_addresses='' -c unix_socket_directories={directory} -c fsync=off"),
        *("-l", str(directory / "log")),
    ]  # fmt: skip
    subprocess.run(
        [program, "-D", str(directory / "data"), *options, "-w", "-t", "120", what],
        user=_unprivileged_user(), cwd=directory, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("kept_at", ["NaN", "Infinity", "-Infinity", "1e400", str(2**63)])
def test_a_line_with_a_time_that_is_none_holds_no_other_up(tmp_path, kept_at):
    path = tmp_path / "lines"
    good = json.dumps({"record": record(1)})
    bad = json.dumps({"record": record(2) | {KEPT_AT: 12345.25}}).replace("12345.25", kept_at)
    path.write_text(f"{bad}\n{good}\n")

    with path.open("rb") as file:
        lines = list(read_lines(file))

    assert lines[0] is None
    assert lines[1] is not None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_folder_that_is_named_like_a_file_of_records_is_nobodys_and_costs_nothing(tmp_path):
    aside = Aside(tmp_path, database_url("sqlite:///x.db"))
    path = aside.write("unsaved", [record(1)])
    folder = path.with_name(path.name + "-folder")
    folder.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(3):
        with aside.claimed(folder) as file:
            assert file is None

    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ------------------------------------------------------------------------------------------
# Events beside their call's record


async def test_events_that_no_database_took_wait_in_the_file_with_their_calls_record(
    locked, tmp_path, file_url
):
    ended = OutboxEvent(
        "msg_1", sid(1), 1, BEGAN, "call.ended", "https://a.example:443", "https://a.example/", "{}"
    )
    async with running(file_url, aside=tmp_path) as records:
        records.tell(ended)
        records.keep(record(1))
    kept = files(tmp_path)
    locked.execute("ROLLBACK")

    async with running(file_url, aside=tmp_path) as records:
        await until(lambda: not files(tmp_path))
        claimed = await records.with_outbox(
            lambda outbox: outbox.step(
                [], lease="us", now=time.time(), until=time.time() + 9.0,
                free=9, places=Places(9),
            ).claimed
        )  # fmt: skip
        found = await records.get(sid(1))

    assert len(kept) == 1
    assert [one.event for one in claimed] == [ended]
    assert found is not None
    assert "_events" not in found


async def claimed(records) -> list[OutboxEvent]:
    now = time.time()
    step = await records.with_outbox(
        lambda outbox: outbox.step(
            [], lease="us", now=now, until=now + 9.0, free=9, places=Places(9)
        )
    )
    return [one.event for one in step.claimed]


def started(call_sid: str, **facts) -> OutboxEvent:
    told = {"type": "call.started", "target": "https://a.example:443", "payload": "{}", **facts}
    return OutboxEvent(
        id=f"msg_{call_sid}", call_sid=call_sid, generation=1, at=BEGAN,
        url="https://a.example/", **told,
    )  # fmt: skip


async def test_events_of_calls_that_go_on_elsewhere_outlive_a_stop_without_a_record(
    locked, tmp_path, file_url
):
    async with running(file_url, aside=tmp_path) as records:
        records.tell(started(sid(1)))
        records.tell(started(sid(2)))
        records.keep(record(1))
    kept = files(tmp_path)
    locked.execute("ROLLBACK")

    async with running(file_url, aside=tmp_path) as records:
        await until(lambda: not files(tmp_path))
        found = await claimed(records)

    assert len(kept) == 1
    assert {one.call_sid for one in found} == {sid(1), sid(2)}


async def test_an_event_in_a_file_that_no_database_takes_is_counted_and_kept_for_people(
    file_url, tmp_path
):
    aside = Aside(tmp_path, database_url(file_url))
    odd, good = started(sid(1), payload="\ud800"), started(sid(2))
    no_event = {"id": 5}
    aside.write("unsaved", [], events=[one.as_dict() for one in (odd, good)] + [no_event])

    async with running(file_url, aside=tmp_path) as records:
        await until(lambda: not aside.unsaved())
        found = await claimed(records)
        lost = failures(records, "event")

    assert found == [good]
    assert lost == 1
    assert len(list(tmp_path.glob("offhook-refused-*"))) == 1


async def test_events_of_calls_that_live_go_aside_alone_when_they_are_many(
    locked, tmp_path, file_url, monkeypatch
):
    monkeypatch.setattr(told_module, "MAX_TOLD_BYTES", 1_000)
    async with running(file_url, aside=tmp_path) as records:
        for number in (1, 2):
            records.tell(started(sid(number), payload="x" * 300))
        await until(lambda: not records._told)
        made = files(tmp_path)
        locked.execute("ROLLBACK")
        lost = failures(records, "event")
    async with running(file_url, aside=tmp_path) as records:
        await until(lambda: not files(tmp_path))
        found = await claimed(records)

    assert (len(made), lost) == (1, 0)
    assert {one.call_sid for one in found} == {sid(1), sid(2)}


async def test_no_file_is_made_while_few_wait(locked, tmp_path, file_url, monkeypatch):
    monkeypatch.setattr(told_module, "MAX_TOLD_BYTES", 1_000)
    async with running(file_url, aside=tmp_path) as records:
        records.tell(started(sid(1), payload="x" * 100))
        await until(lambda: failures(records, "write") >= 2)
        made = files(tmp_path)
        locked.execute("ROLLBACK")
        await records.wait_saved()

    assert made == []


async def test_events_that_are_many_for_their_bytes_go_aside_with_their_calls_records(
    locked, tmp_path, file_url, monkeypatch
):
    monkeypatch.setattr(told_module, "MAX_TOLD_BYTES", 1_000)
    async with running(file_url, aside=tmp_path) as records:
        for number in range(3):
            records.tell(started(sid(number), payload="x" * 300))
            records.keep(record(number))
        await until(lambda: not records._told)
        made = files(tmp_path)
        locked.execute("ROLLBACK")

    assert len(made) == 1
    assert failures(records, "event") == 0
