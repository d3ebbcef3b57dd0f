"""Two machines of one server: a request comes to the wrong one, to a stranger, or to nobody."""

from __future__ import annotations

import dataclasses
import json
import re
import time

import httpx2
import pytest
import trio
from twilio.request_validator import RequestValidator
from websockets.exceptions import InvalidStatus
from websockets.trio.client import connect

from server.cluster.registry import Holding, Load, Member, Seen
from tests.call.test_call_state import state
from tests.support.nodes import Store, two_nodes
from tests.support.serving import CALL_SID

pytestmark = pytest.mark.sockets


async def test_a_look_up_is_answered_by_the_machine_that_has_the_call(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, second):
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        record = await second.http.get(f"/calls/{call_sid}")
        hung_up = await second.http.post(f"/calls/{call_sid}/hang-up")
        paths = first.twilio.calls[call_sid]

    assert (record.status_code, record.json()["state"]) == (200, "live")
    assert hung_up.json()["reason"] == "hung-up"
    assert paths.call_sid == call_sid


async def test_a_webhook_goes_straight_to_the_machine_that_its_path_names(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        store.is_away = True  # so that nobody can look it up
        form = {"CallSid": call_sid, "CallStatus": "ringing", "SequenceNumber": "1"}
        # Each has an account of its own here: it is signed for the one that reads it.
        monkeypatch.setattr(second.service.accounts, "webhooks", first.service.accounts.webhooks)
        answer = await signed(first, second, "/n/a/call-status", form)
        nobody = await signed(first, second, "/n/gone-7/call-status", form)
        await second.http.post(f"/calls/{call_sid}/hang-up")

    assert answer.status_code == 204
    assert nobody.status_code == 204  # whoever knows the call was asked


async def signed(signer, asked, path: str, form: dict[str, str]) -> httpx2.Response:
    validator = RequestValidator(signer.twilio.account.auth_token)
    signature = validator.compute_signature(signer.url + path, form)
    return await asked.http.post(path, data=form, headers={"X-Twilio-Signature": signature})


async def test_while_the_registry_is_away_whoever_knows_a_call_is_asked_and_nobody_says_404(
    monkeypatch,
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        store.is_away = True
        known = await second.http.get(f"/calls/{call_sid}")
        unknown = await second.http.get(f"/calls/{CALL_SID}")
        placed = await second.make_call("5550105")
        await second.http.post(f"/calls/{call_sid}/hang-up")
        await second.http.post(f"/calls/{placed.json()['call_sid']}/hang-up")

    assert known.json()["call_sid"] == call_sid
    assert (unknown.status_code, unknown.json()["error"]) == (503, "registry-away")
    assert int(unknown.headers["Retry-After"]) >= 1
    assert placed.status_code == 201


async def test_a_machine_with_another_secret_is_neither_believed_nor_answered(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store, secrets=("one", "another")) as (first, second):
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        record = await second.http.get(f"/calls/{call_sid}")
        refused = first.service.metrics.strangers_refused.labels("peer")._value.get()
        await first.http.post(f"/calls/{call_sid}/hang-up")

    assert record.status_code == 404
    assert refused == 1


async def test_a_stranger_that_says_it_passes_on_is_refused(monkeypatch):
    facts = json.dumps({"to": "a", "at": 0, "nonce": "1", "facts": {}})
    async with two_nodes(monkeypatch, Store()) as (first, _):
        answers = [
            await first.http.get("/healthz", headers=headers)
            for headers in (
                {"X-Offhook-Proof": "0" * 64},
                {"X-Offhook-Peer": facts},
                {"X-Offhook-Peer": facts, "X-Offhook-Proof": "0" * 64},
            )
        ]

    assert [answer.status_code for answer in answers] == [403, 403, 403]


async def test_a_stream_at_the_wrong_machine_is_refused_so_that_the_carrier_resumes(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, _):
        statuses = []
        for name in ("b", "gone-7"):
            url = first.url.replace("http", "ws") + f"/n/{name}/stream"
            with pytest.raises(InvalidStatus) as refused:
                async with connect(url, proxy=None):
                    pass
            statuses.append(refused.value.response.status_code)

    assert statuses == [503, 503]


async def test_a_call_of_a_machine_that_is_gone_is_known_to_be_lost(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        dead = Member("c", 7)
        store.calls[CALL_SID] = Holding(dead, 1)
        is_gone = first.service.cluster.is_gone(dead)
        store.is_away = True
        while_away = first.service.cluster.is_gone(dead)

    assert is_gone
    assert not while_away


# -- calls whose machine is gone --------------------------------------------------------------

GONE = Member("gone", 7)


def left_by_one_that_is_gone(store: Store, sid: str = CALL_SID) -> None:
    """A machine has died, and this is what it has left of a call that talked."""
    now = time.time()
    left = dataclasses.replace(
        state(), kept_at=now, created_at=now, answered_at=now, ends_at=now + 3600.0,
        away=None, machine=None, tools=(),
    )  # fmt: skip
    # Nobody listens there any more.
    store.seen[GONE.name] = Seen(GONE, Load(accepts=True), 0.0, "http://127.0.0.1:1")
    store.calls[sid], store.states[sid] = Holding(GONE, 1), left.encode()


async def resumed(signer, asked, sid: str = CALL_SID) -> httpx2.Response:
    form = {"CallSid": sid, "CallStatus": "in-progress", "AccountSid": signer.twilio.account_sid}
    return await signed(signer, asked, "/resume", form)


def process_of(answer: httpx2.Response) -> str | None:
    """Whose stream the carrier is to open."""
    found = re.search(r'<Stream url="[^"]*/n/([^/]+)/stream"', answer.text)
    return None if found is None else found[1]


async def test_of_two_machines_that_are_asked_at_once_for_a_dead_ones_call_one_takes_it(
    monkeypatch,
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        monkeypatch.setattr(second.service.accounts, "webhooks", first.service.accounts.webhooks)
        left_by_one_that_is_gone(store)
        answers: list[httpx2.Response] = []

        async def ask(server) -> None:
            answers.append(await resumed(first, server))

        async with trio.open_nursery() as nursery:
            for server in (first, second, first, second):
                nursery.start_soon(ask, server)
        holding = store.calls[CALL_SID]
        live = [len(server.service.calls.register.live) for server in (first, second)]
        for server in (first, second):
            for call in server.service.calls.register.live:
                call.conversation.disown()  # their carriers know of no such call

    assert sorted(live) == [0, 1]
    assert holding.generation == 2
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text.split("ticket")[1] for answer in answers}) == 1


async def test_a_machine_that_drains_leaves_a_dead_ones_call_to_another(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        monkeypatch.setattr(second.service.accounts, "webhooks", first.service.accounts.webhooks)
        left_by_one_that_is_gone(store)
        first.service.calls.draining = True
        answer = await resumed(first, first)
        holding = store.calls[CALL_SID]
        first.service.calls.draining = False
        for call in second.service.calls.register.live:
            call.conversation.disown()

    assert holding == Holding(second.service.cluster.me, 2)
    assert answer.status_code == 200
    assert process_of(answer) is not None


async def test_the_caller_of_a_dead_machine_that_has_left_nothing_is_told_so_in_words(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        left_by_one_that_is_gone(store)
        store.states.clear()
        answer = await resumed(first, first)
        again = await resumed(first, first)

    assert "<Say" in answer.text
    assert "<Hangup" in again.text
    assert CALL_SID not in store.calls


async def test_the_caller_of_a_call_that_had_ended_before_its_machine_was_gone_is_hung_up(
    monkeypatch,
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        left_by_one_that_is_gone(store)
        store.states[CALL_SID] = b""
        answer = await resumed(first, first)

    assert "<Hangup" in answer.text
    assert "<Say" not in answer.text
    assert CALL_SID not in store.calls


async def test_a_machine_that_has_lost_a_call_says_so_and_ends_it_in_silence(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        monkeypatch.setattr(second.service.accounts, "webhooks", first.service.accounts.webhooks)
        left_by_one_that_is_gone(store)
        await resumed(first, first)
        (call,) = first.service.calls.register.live
        # The second has it by now, but asks the first, for so the registry has said before.
        ours = Holding(first.service.cluster.me, 2)
        seized = await second.service.cluster.registry.seize(CALL_SID, ours)
        assert seized is not None
        known = await first.service.rescue.is_ours(CALL_SID)
        await call.finished.wait()
        asked = [one.endpoint for one in first.twilio.account.requests]

    assert not known
    assert call.end_reason is not None
    assert call.end_reason.value == "moved"
    assert asked == []


async def test_a_carrier_that_asks_while_the_registry_is_away_is_kept_until_it_is_back(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        monkeypatch.setattr(second.service.accounts, "webhooks", first.service.accounts.webhooks)
        left_by_one_that_is_gone(store)
        store.is_away = True
        answers: list[httpx2.Response] = []

        async def ask() -> None:
            answers.append(await resumed(first, first))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.3)
            store.is_away = False
        for call in first.service.calls.register.live:
            call.conversation.disown()

    assert process_of(answers[0]) == "a"
