"""Two machines of one server: a request comes to the wrong one, to a stranger, or to nobody."""

from __future__ import annotations

import json

import httpx2
import pytest
from twilio.request_validator import RequestValidator
from websockets.exceptions import InvalidStatus
from websockets.trio.client import connect

from server.cluster.registry import Holding, Member
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
