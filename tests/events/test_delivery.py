"""Sending: a database, a receiver on a socket, and what goes wrong between them."""

from __future__ import annotations

import base64
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from time import time as now
from types import SimpleNamespace

import pytest
import trio
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError
from standardwebhooks import Webhook

from server.events import delivery as delivery_module
from server.events import retries
from server.events.delivery import AT_ONCE, LEASE_S, Delivery
from server.events.event import CallTold, outbox_event, payload_of
from server.events.places import PER_SILENT, SLOW_PART
from server.metrics import Metrics
from server.records import store as store_module
from server.records.outbox import Outbox
from server.records.store import Records
from server.settings.events import read_secret
from tests.support.receivers import receiving

pytestmark = pytest.mark.sockets
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(store_module, "GATHER_S", 0.01)


def told(kind: str, url: str, *, call: str = "CA1", at: float = 1.0, **facts):
    record = CallTold({"call_sid": call, "created_at": 1.0, "generation": 1, **facts})
    return outbox_event(kind, record, payload_of(kind, record, at=at), at=at, url=url)


@asynccontextmanager
async def sending(url: str = "sqlite://", **options):
    metrics = Metrics(CollectorRegistry())
    records = Records(url, metrics=metrics)
    delivery = Delivery(
        records,
        [read_secret(SECRET)],
        metrics=metrics,
        **({"allow_private": True, "poll_s": 0.1} | options),
    )
    with trio.fail_after(60.0):
        async with trio.open_nursery() as nursery:
            await nursery.start(records.run)
            nursery.start_soon(delivery.run)
            yield records
            nursery.cancel_scope.cancel()


async def until(records, ask):
    """What the outbox says, as soon as it says something."""
    while True:
        if found := await records.with_outbox(ask):
            return found
        await trio.sleep(0.01)


async def test_an_event_reaches_its_receiver_signed_and_leaves_the_database():
    async with receiving() as receiver, sending() as records:
        records.tell(told("call.started", receiver.url, at=now()))

        await receiver.wait_taken(1)
        await until(records, lambda outbox: not outbox.waiting().waiting)

    [received] = receiver.taken
    assert Webhook(SECRET).verify(received.body, received.headers) == received.content
    assert received.content["data"]["call"]["call_sid"] == "CA1"


async def test_one_that_is_not_taken_comes_again_with_the_same_id_before_those_after_it():
    async with receiving() as receiver, sending() as records:
        receiver.answer = lambda received: 500 if len(receiver.received) < 4 else 200
        began = now()
        for number, kind in enumerate(("call.started", "call.answered", "call.ended")):
            records.tell(told(kind, receiver.url, at=began + number * 1e-6))

        await receiver.wait_taken(3)

    kinds = [one.content["type"] for one in receiver.received]
    assert kinds == ["call.started"] * 4 + ["call.answered", "call.ended"]
    assert len({one.id for one in receiver.received}) == 3


class LeasedAgain:
    """Tells when an event is leased that has been leased before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[str] = []
        self.again = threading.Event()
        step = Outbox.step

        def told(outbox, sent, **facts):
            found = step(outbox, sent, **facts)
            ids = [one.event.id for one in found.claimed]
            if not set(ids).isdisjoint(self.ids):
                self.again.set()
            self.ids += ids
            return found

        monkeypatch.setattr(Outbox, "step", told)

    async def wait(self) -> None:
        while not self.again.is_set():  # noqa: ASYNC110 (a thread sets it)
            await trio.sleep(0.01)


async def test_an_event_that_is_on_its_way_when_its_lease_runs_out_is_not_sent_beside_itself(
    monkeypatch,
):
    ahead_s = 0.0
    clock = SimpleNamespace(time=lambda: now() + ahead_s)
    monkeypatch.setattr(delivery_module, "time", clock)
    leased = LeasedAgain(monkeypatch)
    async with receiving() as receiver, sending() as records:
        receiver.may_answer = trio.Event()
        records.tell(told("call.ended", receiver.url, call="CA1", at=now()))
        await receiver.wait_received(1)

        ahead_s = 2 * LEASE_S
        await leased.wait()
        receiver.may_answer.set()
        records.tell(told("call.ended", receiver.url, call="CA2", at=now()))
        await receiver.wait_taken(2)
        await until(records, lambda outbox: not outbox.waiting().waiting)

    calls = [one.content["data"]["call"]["call_sid"] for one in receiver.received]
    assert calls == ["CA1", "CA2"]


async def test_an_event_whose_outcome_is_not_yet_written_when_its_lease_runs_out_is_not_sent_again(
    monkeypatch,
):
    ahead_s = 0.0
    clock = SimpleNamespace(time=lambda: now() + ahead_s)
    monkeypatch.setattr(delivery_module, "time", clock)
    step = Delivery._step

    async def steps_late(delivery, at, free=None):
        """Its receiver answers while a step goes on, in which the lease runs out."""
        nonlocal ahead_s
        if delivery._under_way and not receiver.may_answer.is_set():
            await receiver.wait_received(1)
            ahead_s, at = 2 * LEASE_S, at + 2 * LEASE_S
            sent = delivery._sent
            delivery._sent = []  # what the step knows
            finished = delivery._records.outbox_changed.next()
            receiver.may_answer.set()
            await finished.wait()
            assert not delivery._under_way
            unwritten, delivery._sent = delivery._sent, sent
            found = await step(delivery, at, free)
            delivery._sent += unwritten
            return found
        return await step(delivery, at, free)

    monkeypatch.setattr(Delivery, "_step", steps_late)
    async with receiving() as receiver, sending() as records:
        receiver.may_answer = trio.Event()
        records.tell(told("call.ended", receiver.url, call="CA1", at=now()))
        await receiver.wait_received(1)

        await until(records, lambda outbox: not outbox.waiting().waiting)

    assert len(receiver.received) == 1


async def test_a_redirect_is_not_followed():
    async with receiving() as inside, receiving() as receiver, sending() as records:
        receiver.answer_headers = [("location", inside.url)]
        receiver.answer = lambda received: 302 if len(receiver.received) < 2 else 200
        records.tell(told("call.ended", receiver.url, at=now()))

        await receiver.wait_taken(1)

    assert inside.received == []


async def test_a_receiver_that_hangs_holds_up_no_other_and_is_asked_again():
    async with (
        receiving(lambda received: None) as hanging,
        receiving() as well,
        sending(deadline_s=0.3) as records,
    ):
        records.tell(told("call.ended", hanging.url, call="CA1", at=now()))
        for number in range(20):
            records.tell(told("call.ended", well.url, call=f"CB{number}", at=now()))

        await well.wait_taken(20)
        await hanging.wait_received(2)

    assert len({one.id for one in hanging.received}) == 1


async def test_receivers_that_hang_leave_places_to_those_that_answer():
    async with AsyncExitStack() as stack:
        well = await stack.enter_async_context(receiving())
        hanging = [
            await stack.enter_async_context(receiving(lambda received: None)) for _ in range(20)
        ]
        records = await stack.enter_async_context(sending(deadline_s=60.0))
        records.tell(told("call.ended", well.url, call="CB", at=now()))
        await well.wait_taken(1)

        for number in range(80):
            url = hanging[number % 20].url
            records.tell(told("call.ended", url, call=f"CA{number}", at=now()))
        for number in range(20):
            records.tell(told("call.ended", well.url, call=f"CB{number}", at=now()))

        await well.wait_taken(21)

    assert sum(len(one.received) for one in hanging) <= AT_ONCE * SLOW_PART


async def test_a_count_that_fails_costs_no_event_its_turn(monkeypatch):
    waiting, failures = Outbox.waiting, []

    def fails_at_first(outbox):
        if not failures:
            failures.append(1)
            raise OperationalError("SELECT", {}, Exception("gone"))
        return waiting(outbox)

    monkeypatch.setattr(Outbox, "waiting", fails_at_first)
    async with receiving() as receiver:
        url = "sqlite://"
        async with sending(url, lease_s=3_600.0) as records:
            records.tell(told("call.ended", receiver.url, at=now()))
            await receiver.wait_taken(1)

    assert failures


async def test_a_run_that_fails_leaves_its_events_and_places_to_the_next(monkeypatch):
    broken = []

    async def fails_once_something_is_sent(delivery):
        if delivery._under_way and not broken:
            broken.append(1)
            await receiver.wait_received(PER_SILENT)
            raise RuntimeError("a bug")

    monkeypatch.setattr(Delivery, "_count", fails_once_something_is_sent)
    metrics = Metrics(CollectorRegistry())
    records = Records("sqlite://", metrics=metrics)
    delivery = Delivery(
        records, [read_secret(SECRET)], metrics=metrics, allow_private=True, lease_s=3_600.0
    )
    with trio.fail_after(60.0):
        async with receiving(lambda received: None) as receiver, trio.open_nursery() as nursery:
            await nursery.start(records.run)
            for number in range(PER_SILENT):
                records.tell(told("call.ended", receiver.url, call=f"CA{number}", at=now()))
            await records.wait_saved()
            with pytest.raises(ExceptionGroup):
                await delivery.run()
            receiver.answer = lambda received: 200
            nursery.start_soon(delivery.run)
            await receiver.wait_taken(PER_SILENT)
            nursery.cancel_scope.cancel()

    assert broken


async def test_nothing_is_sent_into_our_own_network_and_people_are_told_why():
    async with receiving() as receiver, sending(allow_private=False) as records:
        records.tell(told("call.ended", receiver.url, at=now() - retries.GIVE_UP_S))

        dead = await until(records, lambda outbox: outbox.dead(1))

    assert "private network" in dead[0]["error"]
    assert receiver.received == []


@pytest.mark.slow
async def test_what_a_server_did_not_send_is_sent_by_the_next(tmp_path):
    url = f"sqlite:///{tmp_path}/offhook.db"
    async with receiving(lambda received: 503) as receiver:
        async with sending(url) as records:
            records.tell(told("call.ended", receiver.url, at=now()))
            await receiver.wait_received(1)
        receiver.answer = lambda received: 200

        async with sending(url):
            await receiver.wait_taken(1)

    assert len({one.id for one in receiver.received}) == 1


async def test_two_processes_share_an_outbox_and_keep_the_order_of_each_call(tmp_path):
    url = f"sqlite:///{tmp_path}/offhook.db"
    async with receiving() as receiver:
        receiver.answer = lambda received: 200 if len(receiver.received) % 2 else 500
        async with sending(url) as records, sending(url):
            began = now()
            for number in range(90):
                kind = ("call.started", "call.answered", "call.ended")[number // 30]
                call = f"CA{number % 30}"
                records.tell(told(kind, receiver.url, call=call, at=began + number * 1e-6))

            await receiver.wait_taken(90)

    of_calls: dict[str, list[str]] = {}
    for one in receiver.taken:
        of_calls.setdefault(one.content["data"]["call"]["call_sid"], []).append(one.content["type"])
    assert len(of_calls) == 30
    assert set(map(tuple, of_calls.values())) == {("call.started", "call.answered", "call.ended")}
