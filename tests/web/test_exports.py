"""Lists of calls that are asked for some of them, and calls as files."""

from __future__ import annotations

import csv
import io
import json

import pytest
from prometheus_client import CollectorRegistry

from server.metrics import Metrics
from server.records.store import Records
from server.records.words import Wanted
from server.web.kept import exports
from tests.support.databases import postgresql
from tests.support.serving import serving

pytestmark = pytest.mark.sockets
NOON = 1_790_000_000.0 // 86_400 * 86_400 + 43_200
DAY = "2026-09-21"


def record(number: int, /, **differences) -> dict:
    return {
        "call_sid": f"CA{number:032x}",
        "direction": "outbound",
        "number": "+15*******06",
        "agent": "default",
        "state": "ended",
        "status": "completed",
        "reason": "caller-hung-up",
        "detail": "",
        "created_at": NOON + number,
        "duration_s": float(number),
        "agent_heard_s": 3.25,
        "metadata": {},
        "transcript": [],
        **differences,
    }


RECORDS = [
    record(1),
    record(2, direction="inbound", number="+15005550006"),
    record(3, reason="busy", status="busy", duration_s=0.0),
    record(4, created_at=NOON - 86_400, number="+58*******34", agent="order-desk"),
]


@pytest.fixture(scope="module")
def postgresql_url():
    with postgresql() as url:
        yield url


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), [3, 2, 1, 4]),
        (Wanted(since=NOON), [3, 2, 1]),
        (Wanted(until=NOON), [4]),
        (Wanted(min_duration_s=1.5), [2, 4]),
        (Wanted(max_duration_s=1.0), [3, 1]),
        (Wanted(one_of={"direction": ("inbound",)}), [2]),
        (Wanted(one_of={"number": ("+15005550006", "+15*******06")}, min_duration_s=1.0), [2, 1]),
        (Wanted(one_of={"reason": ("busy",), "direction": ("inbound",)}), []),
    ],
)
async def test_the_database_and_memory_agree_on_what_is_wanted(
    nursery, wanted, found, database, request, tmp_path
):
    url = f"sqlite:///{tmp_path}/offhook.db"
    if database == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    records = Records(url, metrics=Metrics(CollectorRegistry()), aside=tmp_path)
    await nursery.start(records.run)
    for one in RECORDS:
        records.keep(one)

    in_memory = [int(row["call_sid"][2:], 16) for row in records.unsaved() if wanted.takes(row)]
    await records.wait_saved()
    rows = await records.page(10, None, wanted)

    assert [int(row["call_sid"][2:], 16) for row in rows] == found
    assert sorted(in_memory) == sorted(found)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (f"day={DAY}", {1, 2, 3}),
        ("since=2026-09-20T00:00:00Z&until=2026-09-21", {4}),
        ("number=%2B15005550006", {1, 2, 3}),
        ("number=+15005550006&direction=inbound", {2}),
        ("reason=busy&state=ended", {3}),
        ("agent=order-desk", {4}),
        ("min_duration_s=2&max_duration_s=3", {2}),
    ],
)
async def test_a_list_has_the_calls_that_were_asked_for(query, found):
    async with serving(database_url="sqlite://") as server:
        for one in RECORDS:
            server.service.records.keep(one)

        answer = (await server.http.get(f"/calls?{query}")).json()

    assert {int(row["call_sid"][2:], 16) for row in answer["calls"]} == found


@pytest.mark.parametrize(
    "query", ["day=today", "direction=both", "number=12", "min_duration_s=-1", "since=soon"]
)
async def test_what_cannot_be_asked_for_is_refused_by_name(query):
    async with serving(database_url="sqlite://") as server:
        answer = await server.http.get(f"/calls.csv?{query}")

    assert answer.status_code == 422
    assert list(answer.json()["fields"]) == [query.partition("=")[0]]


async def test_all_calls_are_had_as_files_of_which_only_a_part_is_ever_in_memory(monkeypatch):
    monkeypatch.setattr(exports, "PAGE", 3)
    async with serving(database_url="sqlite://") as server:
        for number in range(10):
            server.service.records.keep(record(number))
        await server.service.records.wait_saved()

        table = await server.http.get("/calls.csv?min_duration_s=1")
        lines = await server.http.get("/calls.jsonl")

    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert [float(row["duration_s"]) for row in rows] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert table.headers["content-type"].startswith("text/csv")
    found = [json.loads(line) for line in lines.text.splitlines()]
    assert [row["duration_s"] for row in found] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_nothing_in_a_table_is_computed_by_a_spreadsheet():
    odd = record(1, detail='=HYPERLINK("http://evil.example","x")', reason="@SUM(1)", number="+1")

    [row] = csv.reader(io.StringIO(exports.csv_lines([odd]), newline=""))

    assert '\'=HYPERLINK("http://evil.example","x")' in row
    assert "'@SUM(1)" in row
    assert "'+1" in row
