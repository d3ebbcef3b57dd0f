"""Lists of calls that are asked for some of them, and calls as files."""

from __future__ import annotations

import csv
import io
import json
import threading

import httpx2
import pytest
import trio
from prometheus_client import CollectorRegistry

from server.metrics import Metrics
from server.records.store import Records
from server.records.words import Wanted
from server.switchboard.register import Page
from server.web import calls_api
from server.web.elsewhere import Elsewhere
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
        "outcome_complete": None,
        "had_trouble": False,
        "metadata": {},
        "transcript": [],
        **differences,
    }


RECORDS = [
    record(1),
    record(2, direction="inbound", number="+15005550006"),
    record(3, reason="busy", status="busy", duration_s=0.0, cost={"known_usd": 0.0}),
    record(
        4,
        had_trouble=True,
        cost={"known_usd": 0.25},
        created_at=NOON - 86_400,
        number="+58*******34",
        agent="order-desk",
        outcome_complete=True,
        outcome={"values": {"pizza": "hawaii"}, "complete": True},
    ),
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
        (Wanted(one_of={"outcome_complete": (True,)}), [4]),
        (Wanted(one_of={"outcome_complete": (False,)}), []),
        (Wanted(troubles=("busy", "failed")), [3, 4]),
        (Wanted(troubles=("busy",), one_of={"reason": ("caller-hung-up",)}), [4]),
        (Wanted(troubles=("busy",), one_of={"reason": ("failed",)}), []),
        (Wanted(min_cost_usd=0.25), [4]),
        (Wanted(max_cost_usd=0.2), [3]),
        (Wanted(min_cost_usd=0.0, one_of={"agent": ("order-desk",)}), [4]),
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

    waiting = records.unsaved("cost")
    in_memory = [int(row["call_sid"][2:], 16) for row in waiting if wanted.takes(row)]
    await records.wait_saved()
    rows = await records.page(10, None, wanted, with_outcome=True)

    assert [row["outcome"] for row in rows if row["call_sid"] == RECORDS[-1]["call_sid"]] == [
        RECORDS[-1]["outcome"] for number in found if number == 4
    ]
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
        ("outcome=complete", {4}),
        ("outcome=incomplete", set()),
        ("min_duration_s=2&max_duration_s=3", {2}),
        ("trouble=true", {3, 4}),
        ("trouble=true&reason=caller-hung-up", {4}),
        ("min_cost_usd=0.2", {4}),
    ],
)
async def test_a_list_has_the_calls_that_were_asked_for(query, found):
    async with serving(database_url="sqlite://") as server:
        for one in RECORDS:
            server.service.records.keep(one)

        answer = (await server.http.get(f"/calls?{query}")).json()

    assert {int(row["call_sid"][2:], 16) for row in answer["calls"]} == found


@pytest.mark.parametrize(
    "query",
    ["day=today", "direction=both", "number=12", "min_duration_s=-1", "since=soon", "outcome=good"],
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


async def test_files_have_what_calls_have_brought_wherever_it_is():
    brought = {"values": {"pizza": "hawaii"}, "source": "agent", "complete": True, "missing": []}
    async with serving(database_url="sqlite://") as server:
        server.service.records.keep(record(1, outcome=brought, outcome_complete=True))
        await server.service.records.wait_saved()
        server.service.records.keep(record(2, outcome=brought, outcome_complete=True))
        in_memory = (await server.http.get("/calls.jsonl")).text

        await server.service.records.wait_saved()
        in_the_database = (await server.http.get("/calls.jsonl?outcome=complete")).text
        table = await server.http.get("/calls.csv?outcome=complete")

    for text in (in_memory, in_the_database):
        found = [json.loads(line) for line in text.splitlines()]
        assert [row["outcome"] for row in found] == [brought, brought]
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert [json.loads(row["outcome"]) for row in rows] == [brought, brought]
    assert [row["outcome_complete"] for row in rows] == ["True", "True"]


async def test_a_call_that_has_just_ended_is_in_files_with_what_it_has_brought(tmp_path):
    path = tmp_path / "desk.toml"
    path.write_text('name = "desk"\nprompt = "x"\n[outcome.properties.pizza]\ntype = "string"\n')
    with trio.fail_after(60.0):
        async with serving(database_url="sqlite://", agents=path) as server:
            made = await server.make_call("5550104", agent="desk")
            await server.finished(made.json()["call_sid"])

            lines = await server.http.get("/calls.jsonl?outcome=incomplete")
            none = await server.http.get("/calls.jsonl?outcome=complete")

    [row] = [json.loads(line) for line in lines.text.splitlines()]
    assert (row["outcome_complete"], row["outcome"]["missing"]) == (False, ["pizza"])
    assert none.text == ""


async def test_rows_are_written_in_a_thread(monkeypatch):
    threads = []
    write = exports.json_lines

    def writes(rows):
        threads.append(threading.current_thread())
        return write(rows)

    monkeypatch.setattr(exports, "json_lines", writes)
    async with serving(database_url="sqlite://") as server:
        server.service.records.keep(record(1))
        await server.http.get("/calls.jsonl")

    assert threads
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("limit", [2, 1_000])
async def test_a_long_page_says_what_a_short_one_does_and_holds_no_call_up(monkeypatch, limit):
    monkeypatch.setattr(calls_api, "SHORT_PAGE", 2)
    threads = []
    async with serving(database_url="sqlite://") as server:
        for number in range(5):
            server.service.records.keep(record(number, detail="ñandú"))
        provider = type(server.app.json)
        write = provider.dumps

        def writes(self, *arguments, **options):
            threads.append(threading.current_thread())
            return write(self, *arguments, **options)

        monkeypatch.setattr(provider, "dumps", writes)
        answer = await server.http.get(f"/calls?limit={limit}")

    rows = answer.json()["calls"]
    assert answer.headers["content-type"] == "application/json"
    assert [row["detail"] for row in rows] == ["ñandú"] * min(limit, 5)
    assert (threading.current_thread() in threads) == (limit == 2)


def answer_of(*numbers: int) -> httpx2.Response:
    """What another process knows, as it answers."""
    calls = [record(number) for number in numbers]
    return httpx2.Response(200, json={"calls": calls, "next": None, "complete": True})


@pytest.mark.parametrize(("limit", "is_beside"), [(100, False), (101, True)])
async def test_long_pages_of_several_processes_are_joined_beside_the_loop(
    monkeypatch, limit, is_beside
):
    threads: list[threading.Thread] = []
    joined = Page.joined

    def noted(page: Page, other: Page, limit: int) -> Page:
        threads.append(threading.current_thread())
        return joined(page, other, limit)

    async def of_all_machines(_: Elsewhere) -> tuple[list[httpx2.Response], bool]:
        return [answer_of(3, 1), answer_of(2)], True

    monkeypatch.setattr(Page, "joined", noted)
    monkeypatch.setattr(Elsewhere, "of_all_machines", of_all_machines)
    async with serving() as server:
        answer = (await server.http.get(f"/calls?limit={limit}")).json()

    assert [each["duration_s"] for each in answer["calls"]] == [3.0, 2.0, 1.0]
    assert [each is not threading.current_thread() for each in threads] == [is_beside] * 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a;=1+1", "a;'=1+1"),
        ("a; =1+1", "a;' =1+1"),
        ("a\t@SUM(1)", "a\t'@SUM(1)"),
        ("a\n-1", "a\n'-1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("a;b = 1+1 - 2", "a;b = 1+1 - 2"),
        ("", ""),
    ],
)
def test_nor_is_what_is_a_cell_where_a_comma_is_decimal(text, shown):
    [row] = csv.reader(io.StringIO(exports.csv_lines([record(1, detail=text)]), newline=""))

    assert row[exports.COLUMNS.index("detail")] == shown


def test_nothing_in_a_table_is_computed_by_a_spreadsheet():
    odd = record(1, detail='=HYPERLINK("http://evil.example","x")', reason="@SUM(1)", number="+1")

    [row] = csv.reader(io.StringIO(exports.csv_lines([odd]), newline=""))

    assert '\'=HYPERLINK("http://evil.example","x")' in row
    assert "'@SUM(1)" in row
    assert "'+1" in row
