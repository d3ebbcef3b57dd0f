"""Faults that meet in one database: each is itself, whatever the other has done to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from benchmarks.chaos.database import PostgreSql, why_no_postgresql
from benchmarks.ports import free_port

pytestmark = pytest.mark.skipif(bool(why_no_postgresql()), reason=why_no_postgresql())


@pytest.fixture(scope="module")
def database():
    # Not one of pytest's directories: those are closed to other users.
    with tempfile.TemporaryDirectory(prefix="offhook-") as directory:
        database = PostgreSql(Path(directory), free_port())
        database.create()
        database.start()
        try:
            yield database
        finally:
            database.stop("immediate")


def test_a_table_whose_lock_was_killed_can_be_let_go_and_read(database):
    with database.locked("pg_description"):
        database.kill_connections()

    assert database.rows("SELECT count(*) > 0 FROM pg_description") == [(True,)]


def test_a_locked_table_can_be_read_when_it_is_let_go(database):
    with database.locked("pg_description"):
        pass

    assert database.rows("SELECT count(*) > 0 FROM pg_description") == [(True,)]


def test_a_database_that_stops_under_a_lock_is_no_fault_of_the_lock(database):
    with database.locked("pg_description"):
        database.stop("fast")
    database.start()

    assert database.rows("SELECT 1") == [(1,)]


def test_a_database_that_is_not_there_is_said_as_what_it_is(database):
    database.stop("fast")
    try:
        with pytest.raises(ConnectionError), database.locked("pg_description"):
            pass
        with pytest.raises(ConnectionError):
            database.kill_connections()
    finally:
        database.start()
