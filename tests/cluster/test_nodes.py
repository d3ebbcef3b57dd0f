"""Two machines of one server: a request comes to the wrong one, to a stranger, or to nobody."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import msgspec
import pytest
import trio
from twilio.request_validator import RequestValidator
from websockets.exceptions import InvalidStatus
from websockets.trio.client import connect

from server.cluster.passing_on import WorkerLost
from server.cluster.registry import Holding, Load, Member, RegistryAway, Seen
from server.dialogue.endings import EndReason
from server.records.database.database import Database
from server.switchboard.rescue import Rescue
from server.web.elsewhere import DENIALS, ORPHAN_S
from tests.call.test_call_state import state
from tests.support.nodes import Shared, Store, two_nodes
from tests.support.pages import page_on
from tests.support.serving import CALL_SID

pytestmark = pytest.mark.sockets

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Whoever is busy is not gone, as this machine may be busy."""
    for name in ("TAKEOVER_ASK_S", "OWNER_S", "HOLD_ON_S"):
        monkeypatch.setattr(f"server.web.elsewhere.{name}", PATIENCE_S)


async def test_a_look_up_is_answered_by_the_machine_that_has_the_call(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, second):
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        record = await second.http.get(f"/calls/{call_sid}")
        hung_up = await second.http.post(f"/calls/{call_sid}/hang-up")
        phone = first.twilio.calls[call_sid]
        with trio.fail_after(PATIENCE_S):
            await phone.wait_ended()
        requests = [len(server.twilio.account.requests) for server in (first, second)]

    assert (record.status_code, record.json()["state"]) == (200, "live")
    assert hung_up.json()["reason"] == "hung-up"
    assert phone.status.is_final
    assert requests == [2, 0]  # it was placed and hung up by the one whose it is


async def test_a_webhook_goes_straight_to_the_machine_that_its_path_names(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        store.is_away = True  # so that nobody can look it up
        form = {"CallSid": call_sid, "CallStatus": "ringing", "SequenceNumber": "1"}
        believe(first, second, monkeypatch)
        answer = await signed(first, second, "/n/a/call-status", form)
        nobody = await signed(first, second, "/n/gone-7/call-status", form)
        await second.http.post(f"/calls/{call_sid}/hang-up")

    assert answer.status_code == 204
    assert nobody.status_code == 204  # whoever knows the call was asked


def believe(signer, reader, monkeypatch) -> None:
    """What one machine's carrier has signed is believed by the other, which writes its own answers.

    Each has an account of its own here.
    """
    for name in ("verify", "is_ours"):
        theirs = getattr(signer.service.accounts.webhooks, name)
        monkeypatch.setattr(reader.service.accounts.webhooks, name, theirs)


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

    assert record.status_code == 503  # it may have a call that we cannot ask it for
    assert refused == 1


async def test_a_stranger_that_says_it_passes_on_is_refused(monkeypatch):
    facts = json.dumps({"to": "a", "at": 0, "nonce": "1", "facts": {}})
    async with two_nodes(monkeypatch, Store()) as (first, _):
        answers = [
            await first.http.get("/healthz", headers=headers)
            for headers in (
                {"X-Offhook-Peer": facts},
                [("X-Offhook-Peer", facts), ("X-Offhook-Peer", facts)],
            )
        ]

    assert [answer.status_code for answer in answers] == [403, 403]


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
    left = msgspec.structs.replace(
        state(), kept_at=now, created_at=now, answered_at=now, began_at=now,
        ends_at=now + 3600.0, away=None, machine=None, tools=(),
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
        believe(first, second, monkeypatch)
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
        believe(first, second, monkeypatch)
        left_by_one_that_is_gone(store)
        first.service.calls.draining = True
        answer = await resumed(first, first)
        holding = store.calls[CALL_SID]
        first.service.calls.draining = False
        for call in second.service.calls.register.live:
            call.conversation.disown()

    assert holding == Holding(second.service.cluster.me, 2)
    assert answer.status_code == 200
    assert process_of(answer) == "b"


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


async def test_the_caller_of_a_call_that_has_ended_here_since_is_hung_up_though_it_seems_to_begin(
    monkeypatch,
):
    store = Store()
    async with two_nodes(monkeypatch, store, recent_calls=0) as (first, _):
        left_by_one_that_is_gone(store)
        await resumed(first, first)
        (call,) = first.service.calls.register.live
        call.end(EndReason.HUNG_UP)
        with trio.fail_after(PATIENCE_S):
            await call.finished.wait()
        left_by_one_that_is_gone(store)  # as if nobody had heard that it was taken over
        store.ended.clear()
        form = {"CallSid": CALL_SID, "CallStatus": "ringing", "Direction": "inbound"}
        form |= {"From": "+15005550100", "AccountSid": first.twilio.account_sid}
        answer = await signed(first, first, "/twiml", form)

    assert "<Hangup" in answer.text
    assert "<Say" not in answer.text
    assert CALL_SID not in store.calls


async def begun_and_ended(server) -> None:
    """A call that this machine has begun, and of which it remembers nothing but its end."""
    await asked_to_begin(server)
    (call,) = server.service.calls.register.live
    call.end(EndReason.HUNG_UP)
    with trio.fail_after(PATIENCE_S):
        await call.finished.wait()
    assert server.service.calls.register.get(CALL_SID) is None


@pytest.mark.parametrize("is_away", [False, True])
async def test_a_call_that_has_ended_here_and_is_anothers_since_is_begun_there(
    monkeypatch, is_away
):
    store = Store()
    async with two_nodes(monkeypatch, store, recent_calls=0) as (first, second):
        believe(first, second, monkeypatch)
        await begun_and_ended(first)
        store.calls[CALL_SID] = Holding(second.service.cluster.me, 2)
        store.is_away = is_away
        answer = await asked_to_begin(first)
        store.is_away = False
        disown_all(first, second)

    assert process_of(answer) == (None if is_away else "b")
    assert ("<Hangup" in answer.text) is is_away


async def test_a_machine_that_has_lost_a_call_says_so_and_ends_it_in_silence(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        believe(first, second, monkeypatch)
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
        believe(first, second, monkeypatch)
        left_by_one_that_is_gone(store)
        store.is_away = True
        answers: list[httpx2.Response] = []
        registry = first.service.cluster.registry
        owner, asked = registry.owner, []

        async def ask_owner(call_sid: str) -> Holding | None:
            asked.append(call_sid)
            store.is_away = len(asked) < 3
            return await owner(call_sid)

        monkeypatch.setattr(registry, "owner", ask_owner)
        answers.append(await resumed(first, first))
        for call in first.service.calls.register.live:
            call.conversation.disown()

    assert len(asked) >= 3
    assert process_of(answers[0]) == "a"


# -- who is there has its calls ---------------------------------------------------------------


@contextmanager
def told_by(server, monkeypatch) -> Iterator[list[tuple[bool, int]]]:
    """What a machine was told by those that it has asked: whether only who knows the call was to
    answer, and with which status it did.
    """
    told: list[tuple[bool, int]] = []
    ask = server.service.cluster.peers.ask

    async def noting(name, scope, body, hop, **options):
        answer = await ask(name, scope, body, hop, **options)
        told.append((hop.if_known, answer.status_code))
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(server.service.cluster.peers, "ask", noting)
        yield told


async def live_call(server) -> tuple[str, Holding]:
    """A call that a machine has."""
    call_sid = (await server.make_call("5550105")).json()["call_sid"]
    return call_sid, Holding(server.service.cluster.me, 1)


async def test_the_owner_of_a_call_says_first_that_it_is_there_and_then_how_it_goes_on(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        believe(first, second, monkeypatch)
        call_sid, holding = await live_call(second)
        with told_by(first, monkeypatch) as told:
            answer = await resumed(first, first, call_sid)
        held = store.calls[call_sid]
        await second.http.post(f"/calls/{call_sid}/hang-up")

    assert told == [(True, 202), (False, 200)]
    assert process_of(answer) == "b"
    assert held == holding


@pytest.mark.parametrize("fails", ["is-slow", "has-a-bug"])
async def test_a_call_is_not_taken_from_an_owner_that_is_there(monkeypatch, fails):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        believe(first, second, monkeypatch)
        call_sid, holding = await live_call(second)
        call = second.service.calls.register.get(call_sid)

        async def fail() -> bool:
            if fails == "has-a-bug":
                raise ZeroDivisionError
            await trio.sleep_forever()

        monkeypatch.setattr(call.hearing, "wait_line_over", fail)
        monkeypatch.setattr("server.web.elsewhere.OWNER_S", 0.2)
        answer = await resumed(first, first, call_sid)
        held, live = store.calls[call_sid], first.service.calls.register.live
        await second.http.post(f"/calls/{call_sid}/hang-up")

    assert answer.status_code >= 500  # so that the carrier asks again
    assert held == holding
    assert live == []


async def test_a_call_that_its_owner_does_not_know_is_taken_from_it(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        believe(first, second, monkeypatch)
        left_by_one_that_is_gone(store)
        # It has seized it, and was not told so.
        store.calls[CALL_SID] = Holding(second.service.cluster.me, 2)
        with told_by(first, monkeypatch) as told:
            answer = await resumed(first, first)
        held = store.calls[CALL_SID]
        disown_all(first, second)

    assert told == [(True, 404)] * DENIALS
    assert held == Holding(first.service.cluster.me, 3)
    assert process_of(answer) == "a"


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_call_that_its_owner_does_not_know_is_nobodys_only_if_it_is_over(
    monkeypatch, is_over
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        # It is about to take the call up, or another has just taken it from there.
        store.calls[CALL_SID] = Holding(second.service.cluster.me, 2)
        if is_over:
            register = second.service.calls.register
            monkeypatch.setattr(register, "has_ended", lambda call_sid, generation=0: True)
        answers = [
            await first.http.get(f"/calls/{CALL_SID}"),
            await first.http.post(f"/calls/{CALL_SID}/hang-up"),
        ]

    assert [answer.status_code for answer in answers] == [404 if is_over else 503] * 2


async def test_who_asks_for_a_call_does_not_wait_for_a_machine_that_says_nothing(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, second):
        call_sid, _ = await live_call(second)
        over = trio.Event()

        async def stopped(call_sid: str) -> None:
            await over.wait()

        with monkeypatch.context() as patch:
            patch.setattr(second.service.calls.register, "record", stopped)
            patch.setattr("server.web.calls_api.LOOK_UP_S", 0.2)
            with trio.fail_after(PATIENCE_S):
                answer = await first.http.get(f"/calls/{call_sid}")
        over.set()
        await second.http.post(f"/calls/{call_sid}/hang-up")

    assert (answer.status_code, answer.json()["error"]) == (503, "registry-away")


async def test_a_call_that_became_ours_unnoticed_goes_on_here(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        left_by_one_that_is_gone(store)
        store.calls[CALL_SID] = Holding(first.service.cluster.me, 2)
        answer = await resumed(first, first)
        disown_all(first, second)

    assert process_of(answer) == "a"


async def test_a_call_whose_seizure_was_not_answered_goes_on_when_the_carrier_asks_again(
    monkeypatch,
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        believe(first, second, monkeypatch)
        left_by_one_that_is_gone(store)
        registry = first.service.cluster.registry
        seize = registry.seize

        async def unanswered(call_sid: str, holding: Holding):
            await seize(call_sid, holding)
            raise RegistryAway("the answer was lost")

        with monkeypatch.context() as patch:
            patch.setattr(registry, "seize", unanswered)
            patch.setattr("server.switchboard.rescue.SEIZE_TIMEOUT_S", 0.0)
            patch.setattr("server.web.elsewhere.HOLD_ON_S", 0.0)
            before = await resumed(first, first)
        after = await resumed(first, first)
        disown_all(first, second)

    assert before.status_code == 503
    assert process_of(after) == "a"


def disown_all(*servers) -> None:
    """End calls that no carrier knows of."""
    for server in servers:
        for call in server.service.calls.register.live:
            call.conversation.disown()


async def test_a_call_is_taken_by_another_that_takes_no_new_calls_where_we_cannot(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        believe(first, second, monkeypatch)
        left_by_one_that_is_gone(store)
        first.service.calls.draining = True
        second.service.cluster.report = lambda: Load(accepts=False)
        second.service.cluster.publish()
        answer = await resumed(first, first)
        held = store.calls[CALL_SID]
        first.service.calls.draining = False
        disown_all(first, second)

    assert held == Holding(second.service.cluster.me, 2)
    assert process_of(answer) == "b"


async def test_a_call_that_nobody_can_take_now_is_given_up_by_nobody(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        believe(first, second, monkeypatch)
        left_by_one_that_is_gone(store)
        for server in (first, second):
            server.service.calls.draining = True
        refused = await resumed(first, first)
        held = store.calls[CALL_SID]
        for server in (first, second):
            server.service.calls.draining = False
        taken = await resumed(first, first)
        disown_all(first, second)

    assert refused.status_code == 503  # so that the carrier asks again
    assert held == Holding(GONE, 1)
    assert process_of(taken) == "a"


async def test_a_machine_that_was_not_heard_of_since_the_registry_was_away_keeps_its_calls(
    monkeypatch,
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        monkeypatch.setattr("server.web.elsewhere.HOLD_ON_S", 0.0)
        believe(first, second, monkeypatch)
        left_by_one_that_is_gone(store)
        del store.seen[GONE.name]
        settled = [False]
        monkeypatch.setattr(first.service.rescue.lookout, "has_settled", lambda: settled[0])
        before = await resumed(first, first)
        held = store.calls[CALL_SID]
        settled[0] = True
        after = await resumed(first, first)
        disown_all(first, second)

    assert before.status_code == 503
    assert held == Holding(GONE, 1)
    assert process_of(after) == "a"


async def test_a_new_call_whose_claim_was_not_answered_is_kept_above_what_may_have_been_claimed(
    monkeypatch,
):
    store = Store()
    form = {"CallSid": CALL_SID, "From": "+15005550001", "CallStatus": "ringing"}
    async with two_nodes(monkeypatch, store) as (first, second):
        cluster = first.service.cluster
        form["AccountSid"] = first.twilio.account_sid

        async def unanswered(call_sid: str, name: str) -> Holding:
            store.calls[call_sid] = Holding(second.service.cluster.me, 1)
            raise RegistryAway("the answer was lost")

        monkeypatch.setattr(cluster, "claim", unanswered)
        answer = await signed(first, first, "/twiml", form)
        held = store.calls[CALL_SID]
        disown_all(first, second)

    assert process_of(answer) == "a"
    assert held == Holding(cluster.me, 2)


async def test_a_page_finds_its_call_whichever_machine_it_asks(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, second):
        call = (await first.http.post("/calls/browser", json={})).json()
        shown = {"call_sid": call["call_sid"], "key": call["key"]}
        async with page_on(call) as page:
            await page.wait(lambda: page.told("media"))
        goes_on = (await second.http.post("/calls/browser/resume", json=shown)).json()
        url = f"{first.url.replace('http', 'ws')}/n/a/stream/browser"
        async with page_on(call, ticket=goes_on["ticket"], url=url) as back:
            await back.wait(lambda: back.told("media"))
            await back.send("stop")
            record = await second.http.get(f"/calls/{call['call_sid']}")
    noted = [line["what"] for line in record.json()["timeline"]]

    assert call["url"].endswith("/n/a/stream/browser")
    assert goes_on["url"].endswith("/n/a/stream/browser")
    assert "line back" in noted


async def asked_to_begin(server) -> httpx2.Response:
    """What the carrier is told when it asks how a call begins, for the first time or again."""
    form = {"CallSid": CALL_SID, "From": "+15005550001", "CallStatus": "ringing"}
    form["AccountSid"] = server.twilio.account_sid
    return await signed(server, server, "/twiml", form)


async def test_a_call_that_talked_goes_on_though_its_carrier_asks_how_it_begins(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        left_by_one_that_is_gone(store)
        del store.seen[GONE.name]
        answers = [await asked_to_begin(first) for _ in range(2)]
        (call,) = first.service.calls.register.live
        timeline = call.conversation.notes.timeline
        held = store.calls[CALL_SID]
        disown_all(first, second)

    assert [process_of(answer) for answer in answers] == ["a", "a"]
    assert held == Holding(first.service.cluster.me, 2)
    assert "taken up from another process" in [what for _, what, _ in timeline]


@pytest.mark.parametrize("left", [b"", None])
async def test_a_call_that_is_over_or_lost_with_its_machine_is_not_begun_again(monkeypatch, left):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        left_by_one_that_is_gone(store)
        del store.seen[GONE.name]
        store.states[CALL_SID] = b"of no use" if left is None else left
        answer = await asked_to_begin(first)
        live = first.service.calls.register.live

    assert live == []
    assert process_of(answer) is None
    assert ("<Say" in answer.text) == (left is None)
    assert "<Hangup" in answer.text


async def test_a_call_that_a_dead_machine_had_not_begun_begins(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        left_by_one_that_is_gone(store)
        del store.seen[GONE.name]
        store.states.clear()
        answer = await asked_to_begin(first)
        (call,) = first.service.calls.register.live
        disown_all(first, second)

    assert process_of(answer) == "a"
    assert call.ownership.generation == 2


@pytest.mark.parametrize(("silent_s", "status"), [(1.0, 503), (ORPHAN_S + 1.0, 404)])
async def test_a_call_whose_machine_has_just_died_is_not_said_to_be_nobodys(
    monkeypatch, silent_s, status
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        left_by_one_that_is_gone(store)
        store.seen[GONE.name] = dataclasses.replace(store.seen[GONE.name], age_s=silent_s)
        monkeypatch.setattr(first.service.rescue.lookout, "has_settled", lambda: True)
        monkeypatch.setattr(Rescue, "takes_calls", lambda self: False)  # nobody has, until now
        answers = [
            await first.http.get(f"/calls/{CALL_SID}"),
            await first.http.post(f"/calls/{CALL_SID}/hang-up"),
        ]

    assert [answer.status_code for answer in answers] == [status, status]
    if status == 503:
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)


async def test_while_the_registry_is_away_nobody_waits_for_the_slowest_of_those_that_are_asked(
    monkeypatch,
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        call_sid, _ = await live_call(second)
        store.seen["slow"] = Seen(Member("slow", 3), Load(), 0.0, "http://192.0.2.1:1")
        store.is_away = True
        ask = first.service.cluster.peers.ask
        cancelled = []

        async def asking(name, scope, body, hop, **options):
            if name == "slow":
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    cancelled.append(name)
                    raise
            return await ask(name, scope, body, hop, **options)

        monkeypatch.setattr(first.service.cluster.peers, "ask", asking)
        monkeypatch.setattr("server.web.elsewhere.KNOWS_S", PATIENCE_S)
        with trio.fail_after(PATIENCE_S / 2):
            answer = await first.http.get(f"/calls/{call_sid}")
        store.is_away = False
        await second.http.post(f"/calls/{call_sid}/hang-up")

    assert answer.json()["call_sid"] == call_sid
    assert cancelled == ["slow"]


async def test_an_owner_that_is_slow_and_is_heard_of_meanwhile_is_asked_once_more(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        believe(first, second, monkeypatch)
        call_sid, holding = await live_call(second)
        ask, lost = first.service.cluster.peers.ask, [True]

        async def asking(name, scope, body, hop, **options):
            await trio.sleep(0.01)
            if lost.pop() if lost else False:
                raise WorkerLost(name, reached=True)
            return await ask(name, scope, body, hop, **options)

        monkeypatch.setattr(first.service.cluster.peers, "ask", asking)
        answer = await resumed(first, first, call_sid)  # all are just heard of, in this store
        held = store.calls[call_sid]
        await second.http.post(f"/calls/{call_sid}/hang-up")

    assert process_of(answer) == "b"
    assert held == holding


# -- calls that have ended --------------------------------------------------------------------


async def test_a_machine_that_stops_lets_go_of_its_calls_once_their_records_are_written(
    monkeypatch,
):
    store = Store()
    seen: list[tuple[bytes, bool]] = []
    write, keep = Database.write_each, Shared.keep

    def writing(self, records, is_late):
        seen.extend((store.states[one["call_sid"]], False) for one in records)
        return write(self, records, is_late)

    def keeping(self, call_sid, generation, state, **how):
        keep(self, call_sid, generation, state, **how)
        if how.get("has_ended") and not state:
            seen.append((state, self.store.seen[self.me.name].load.draining))

    monkeypatch.setattr(Database, "write_each", writing)
    monkeypatch.setattr(Shared, "keep", keeping)
    monkeypatch.setattr("server.records.store.GATHER_S", PATIENCE_S)  # only the stop writes it
    async with two_nodes(monkeypatch, store) as (first, _):
        call_sid, _ = await live_call(first)
        await first.http.post(f"/calls/{call_sid}/hang-up")

    (left, _), *_, (last, was_draining) = seen
    assert left.startswith(b"1{")  # its record, for whoever finds it if we do not live to write it
    assert (last, was_draining) == (b"", True)
    assert store.states[call_sid] == b""
