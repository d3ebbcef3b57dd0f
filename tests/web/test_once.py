from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
from prometheus_client import CollectorRegistry

from server.cluster.cluster import Cluster
from server.errors import CallRefused
from server.metrics import Metrics
from server.records.store import Records
from server.records.words import StoredRequest
from server.web.api import Answer
from server.web.once import Memory, Once, fingerprint_of
from tests.support.nodes import Store, two_nodes
from tests.support.serving import Server

MADE = Answer({"call_sid": "CA1"}, 201)
RINGS_FOR_LONG = {"destination_number": "+15005550105"}
KEY = {"Idempotency-Key": "a"}


def test_the_same_request_gets_the_same_answer():
    store = Memory()
    assert store.begin("a", "k", b"body", 0.0) is None
    store.end("a", "k", MADE)

    assert store.begin("a", "k", b"body", 1.0) is MADE


def test_another_request_with_the_same_key_is_a_mistake():
    store = Memory()
    store.begin("a", "k", b"body", 0.0)
    store.end("a", "k", MADE)

    with pytest.raises(CallRefused) as refused:
        store.begin("a", "k", b"other", 1.0)
    assert refused.value.status == 422


def test_a_request_that_is_being_worked_on_is_a_conflict():
    store = Memory()
    store.begin("a", "k", b"body", 0.0)

    with pytest.raises(CallRefused) as refused:
        store.begin("a", "k", b"body", 1.0)
    assert refused.value.status == 409
    assert refused.value.retry_after_s == 1


def test_a_request_that_did_nothing_may_come_again():
    store = Memory()
    store.begin("a", "k", b"body", 0.0)
    store.end("a", "k", None)

    assert store.begin("a", "k", b"other", 1.0) is None


def test_a_request_of_which_nobody_knows_what_it_did_does_not_come_again():
    store = Memory(ttl_s=10.0)
    store.begin("a", "k", b"body", 0.0)
    store.end("a", "k", None, is_unknown=True)

    with pytest.raises(CallRefused) as refused:
        store.begin("a", "k", b"body", 1.0)
    assert (refused.value.status, refused.value.reason) == (409, "outcome-unknown")
    assert store.begin("a", "k", b"body", 11.0) is None


def test_clients_do_not_share_their_keys():
    store = Memory()
    store.begin("a", "k", b"body", 0.0)

    assert store.begin("b", "k", b"other", 0.0) is None


def test_an_answer_is_kept_for_its_time():
    store = Memory(ttl_s=10.0)
    store.begin("a", "k", b"body", 0.0)
    store.end("a", "k", MADE)

    assert store.begin("a", "k", b"body", 9.0) is MADE
    assert store.begin("a", "k", b"body", 11.0) is None


def test_the_store_is_bounded_for_each_client_and_keeps_what_is_being_worked_on():
    store = Memory(max_kept=10)
    store.begin("a", "working", b"", 0.0)
    for number in range(1_000):
        store.begin("a", str(number), b"", 0.0)
        store.end("a", str(number), MADE)

    assert len(store._requests["a"]) <= 11
    assert "working" in store._requests["a"]
    assert store.begin("a", "999", b"", 0.0) is MADE


def test_the_store_is_bounded_though_nobody_knows_what_requests_did():
    store = Memory(max_kept=10)
    for number in range(1_000):
        store.begin("a", str(number), b"", 0.0)
        store.end("a", str(number), None, is_unknown=True)

    assert len(store._requests["a"]) <= 11


# -- requests of which nothing comes -----------------------------------------------------------


class Database:
    """What requests are kept in, which takes nothing while ``fails``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, records: Records) -> None:
        self.records, self.fails = records, False
        self._write = records._database.write_request
        monkeypatch.setattr(records._database, "write_request", self.write)

    def write(self, client: str, key: str, request: StoredRequest | None) -> None:
        if self.fails:
            raise OSError(5, "no such disk")
        self._write(client, key, request)


@asynccontextmanager
async def once_with_records(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncGenerator[tuple[Once, Database]]:
    records = Records("sqlite://", metrics=Metrics(CollectorRegistry()))
    async with trio.open_nursery() as nursery:
        await nursery.start(records.run)
        yield Once(records, Cluster(), ttl_s=60.0), Database(monkeypatch, records)
        nursery.cancel_scope.cancel()


def busy(database: Database, *, fails: bool) -> Callable[..., Awaitable[tuple[Answer, bool]]]:
    """Refuses a call; from then on the database takes something, or not."""

    async def do(on_dial: Callable[[], None]) -> tuple[Answer, bool]:
        database.fails = fails
        return Answer({"error": "busy"}, 503), False

    return do


async def dials(on_dial: Callable[[], None]) -> tuple[Answer, bool]:
    on_dial()
    return MADE, True


async def test_a_refused_request_may_come_again_though_the_database_did_not_forget_it(monkeypatch):
    async with once_with_records(monkeypatch) as (once, database):
        await once.answer("a", "k", b"body", busy(database, fails=True))
        left = await database.records.find_request("a", "k")
        await once.answer("a", "k", b"other", busy(database, fails=True))  # nor is it marked anew
        database.fails = False
        answer = await once.answer("a", "k", b"body", dials)
        kept = await database.records.find_request("a", "k")

    assert left is not None
    assert answer == (MADE, False)
    assert kept is not None
    assert kept.answer == MADE.as_dict()


async def test_a_client_that_left_before_the_dial_may_ask_again_though_that_was_not_written(
    monkeypatch,
):
    async with once_with_records(monkeypatch) as (once, database):
        waits = trio.Event()

        async def wait(on_dial: Callable[[], None]) -> tuple[Answer, bool]:
            database.fails = True
            waits.set()
            await trio.sleep_forever()
            raise AssertionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(once.answer, "a", "k", b"body", wait)
            await waits.wait()
            nursery.cancel_scope.cancel()
        database.fails = False

        assert await once.answer("a", "k", b"body", dials) == (MADE, False)


async def test_what_another_process_has_written_since_of_a_refused_request_counts(monkeypatch):
    marked = StoredRequest(fingerprint_of(b"body").hex())
    answered = StoredRequest(marked.fingerprint, MADE.as_dict())
    async with once_with_records(monkeypatch) as (once, database):
        await once.answer("a", "k", b"body", busy(database, fails=True))
        database.fails = False
        await database.records.write_request("a", "k", marked)
        with pytest.raises(CallRefused) as refused:
            await once.answer("a", "k", b"body", dials)
        await database.records.write_request("a", "k", answered)
        again = await once.answer("a", "k", b"body", dials)

    assert refused.value.reason == "outcome-unknown"
    assert again == (MADE, True)


async def test_a_request_that_is_made_again_and_broken_off_is_known_to_be(monkeypatch):
    async with once_with_records(monkeypatch) as (once, database):
        await once.answer("a", "k", b"body", busy(database, fails=True))
        database.fails = False

        async def breaks_off(on_dial: Callable[[], None]) -> tuple[Answer, bool]:
            on_dial()
            raise OSError(5, "no such disk")

        with pytest.raises(OSError, match="no such disk"):
            await once.answer("a", "k", b"body", breaks_off)
        once._memory = Memory()  # however much else has come since
        with pytest.raises(CallRefused) as refused:
            await once.answer("a", "k", b"body", dials)

    assert refused.value.reason == "outcome-unknown"


async def test_requests_that_the_database_did_not_forget_are_bounded(monkeypatch):
    monkeypatch.setattr("server.web.once.MAX_VOID", 2)
    async with once_with_records(monkeypatch) as (once, database):
        for key in ("1", "2", "3"):
            database.fails = False
            await once.answer("a", key, b"body", busy(database, fails=True))
        database.fails = False
        answer = await once.answer("a", "3", b"body", dials)
        with pytest.raises(CallRefused) as refused:
            await once.answer("a", "1", b"body", dials)

    assert answer == (MADE, False)
    assert refused.value.reason == "outcome-unknown"


# -- clients that leave ------------------------------------------------------------------------


async def leaves_when(server: Server, has_come: Callable[[], Awaitable[object]]) -> None:
    """A client asks for a call, and is gone when this has happened."""
    client = server.app.test_client()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            await client.post("/make-call", json=RINGS_FOR_LONG, headers=KEY)

        nursery.start_soon(ask)
        await has_come()
        nursery.cancel_scope.cancel()


class Dialling:
    """A server's first dial, which is held up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
        self.has_begun, self.may_go_on = trio.Event(), trio.Event()
        self._dial = server.service.calls._dial
        monkeypatch.setattr(server.service.calls, "_dial", self)

    async def __call__(self, call: object) -> None:
        self.has_begun.set()
        await self.may_go_on.wait()
        await self._dial(call)


@pytest.mark.sockets
async def test_who_went_away_while_it_was_dialled_is_given_the_call_that_was_placed(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, _):
        dialling = Dialling(monkeypatch, first)

        async def has_begun() -> None:
            await dialling.has_begun.wait()
            trio.lowlevel.current_trio_token().run_sync_soon(dialling.may_go_on.set)

        await leaves_when(first, has_begun)
        again = await first.http.post("/make-call", json=RINGS_FOR_LONG, headers=KEY)
        calls = [*first.twilio.calls]
        await first.http.post(f"/calls/{calls[0]}/hang-up")

    assert (again.status_code, [again.json()["call_sid"]]) == (201, calls)
    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.sockets
async def test_who_went_away_while_another_process_dialled_rings_no_second_phone(
    monkeypatch, tmp_path
):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    async with two_nodes(monkeypatch, Store(), database_url=url) as (first, second):
        dialling = Dialling(monkeypatch, second)
        new_calls = first.service.cluster.new_calls
        monkeypatch.setattr(new_calls, "choose", lambda but: second.service.cluster.me.name)

        await leaves_when(first, dialling.has_begun.wait)
        dialling.may_go_on.set()
        answers = [
            await server.http.post("/make-call", json=RINGS_FOR_LONG, headers=KEY)
            for server in (first, second)
        ]
        async with trio.open_nursery() as nursery:
            for call in second.service.calls.register.live:
                nursery.start_soon(second.http.post, f"/calls/{call.call_sid}/hang-up")
        rung = len(second.twilio.calls)

    assert [(one.status_code, one.json()["error"]) for one in answers] == [
        (409, "outcome-unknown")
    ] * 2
    assert rung == 1


@pytest.mark.sockets
async def test_who_went_away_before_any_phone_could_ring_may_ask_again(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, _):
        turn, wait_turn = trio.Event(), first.service.calls.admission.wait_turn

        async def wait(client: str) -> None:
            turn.set()
            await trio.sleep_forever()

        monkeypatch.setattr(first.service.calls.admission, "wait_turn", wait)
        await leaves_when(first, turn.wait)
        monkeypatch.setattr(first.service.calls.admission, "wait_turn", wait_turn)
        again = await first.http.post("/make-call", json=RINGS_FOR_LONG, headers=KEY)
        await first.http.post(f"/calls/{again.json()['call_sid']}/hang-up")

    assert again.status_code == 201
    assert "Idempotent-Replayed" not in again.headers
