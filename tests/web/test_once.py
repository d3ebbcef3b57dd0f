from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel

from server.errors import CallRefused
from server.web.api import Answer
from server.web.once import Memory
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
