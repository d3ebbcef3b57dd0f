"""How a database of an earlier program is brought up to date beside others who use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sql
from sqlalchemy.exc import OperationalError, ProgrammingError

from server.carrier import MAX_CALL_SID_CHARS
from server.records.database import migrations
from server.records.database.database import Database
from server.records.database.tables import SCHEMA_VERSION
from server.records.database.url import database_url
from tests.support.databases import postgresql

pytestmark = pytest.mark.sockets

NARROW = [
    f"ALTER TABLE offhook_{table} ALTER COLUMN call_sid TYPE VARCHAR(64)"
    for table in ("calls", "events")
]
OF_VERSION_6 = [
    "DROP INDEX offhook_calls_with_trouble",
    "ALTER TABLE offhook_calls DROP COLUMN had_trouble",
    "UPDATE offhook_schema SET version = 6",
]


@pytest.fixture(scope="module")
def server_url():
    with postgresql() as url:
        yield url


@pytest.fixture
def others(server_url):
    """Whoever else uses the database, which has our tables as they are today."""
    engine = sql.create_engine(server_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    opened(server_url).close()
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(migrations, "TURN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(migrations, "WIDEN_TURN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(migrations, "WIDEN_AGAIN_S", 0.0)


def opened(url: str) -> Database:
    database = Database(database_url(url))
    database.use(database.open)
    return database


def leave(others: sql.Engine, *statements: str) -> None:
    """Leave the tables as an earlier program had them."""
    with others.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@contextmanager
def dumped(others: sql.Engine) -> Iterator[None]:
    """Somebody reads the calls for long, as ``pg_dump`` does."""
    with others.connect() as dump:
        dump.exec_driver_sql("LOCK TABLE offhook_calls IN ACCESS SHARE MODE")
        yield


def widths(others: sql.Engine) -> list[int | None]:
    with others.connect() as connection:
        return list(
            connection.exec_driver_sql(
                "SELECT character_maximum_length FROM information_schema.columns "
                "WHERE column_name = 'call_sid' AND table_schema = 'public' ORDER BY table_name"
            ).scalars()
        )


def test_a_database_is_opened_beside_a_dump_and_gets_room_for_long_names_after_it(
    server_url, others
):
    leave(others, *NARROW)

    with dumped(others):
        database = opened(server_url)
        page = database.use(lambda: database.page(10, None))
        during = widths(others)
    database.use(database.open)
    after = widths(others)
    database.close()

    assert page == []
    assert during == [64, 64]
    assert after == [MAX_CALL_SID_CHARS, MAX_CALL_SID_CHARS]


def test_a_change_that_is_needed_waits_for_a_dump_for_a_moment_and_is_made_after_it(
    server_url, others
):
    leave(others, *OF_VERSION_6)

    with dumped(others):
        database = Database(database_url(server_url))
        with pytest.raises(OperationalError, match="lock timeout"):
            database.use(database.open)
        during = database.use(database.version)
    database.use(database.open)
    after = database.use(database.version)
    database.close()

    assert (during, after) == (6, SCHEMA_VERSION)


def test_a_database_whose_names_of_calls_cannot_be_widened_is_used_as_it_is(server_url, others):
    shown = "CREATE VIEW of_theirs AS SELECT call_sid FROM offhook_calls"
    leave(others, *NARROW, shown)

    database = opened(server_url)
    page = database.use(lambda: database.page(10, None))
    database.close()

    assert page == []


@pytest.mark.parametrize("version", [7, 8])
def test_the_last_two_versions_are_the_same_and_programs_of_the_first_can_use_it(
    server_url, others, version
):
    leave(others, f"UPDATE offhook_schema SET version = {version}")

    database = opened(server_url)
    counted = database.use(database.version)
    database.close()
    with others.connect() as connection:
        left = connection.exec_driver_sql("SELECT version FROM offhook_schema").scalar()

    assert counted == SCHEMA_VERSION == 7
    assert left == version


def test_a_database_that_an_empty_one_replaces_before_it_was_widened_gets_its_tables(
    server_url, others
):
    leave(others, *NARROW)
    with dumped(others):
        database = opened(server_url)
    leave(others, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")

    with pytest.raises(ProgrammingError, match="does not exist"):
        database.use(lambda: database.page(10, None))
    page = database.use(lambda: database.page(10, None))
    database.close()

    assert page == []
