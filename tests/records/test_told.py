"""Events in memory, until the outbox has them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from server.metrics import RecordMetrics
from server.records import told as told_module
from server.records.outbox import OutboxEvent
from server.records.told import Told


def event(number: int, payload: str = "{}") -> OutboxEvent:
    return OutboxEvent(
        f"msg_{number}", f"CA{number}", 1, 1.0, "call.ended", "https://a:443", "https://a/", payload
    )


def test_what_they_come_to_is_bounded_and_not_only_how_many_they_are(monkeypatch):
    monkeypatch.setattr(told_module, "MAX_TOLD_BYTES", 1_000)
    told = Told(RecordMetrics(CollectorRegistry()))

    for number in range(10):
        told.add(event(number, "x" * 300))

    assert [one.id for one in told] == ["msg_7", "msg_8", "msg_9"]


def test_there_is_room_again_when_they_are_where_they_belong(monkeypatch):
    monkeypatch.setattr(told_module, "MAX_TOLD_BYTES", 1_000)
    told = Told(RecordMetrics(CollectorRegistry()))
    first = [event(number, "x" * 300) for number in range(3)]

    for one in first:
        told.add(one)
        told.add(one)
    told.forget(first)
    told.add(event(9, "x" * 999))

    assert [one.id for one in told] == ["msg_9"]


def test_one_that_is_told_again_is_there_once():
    told = Told(RecordMetrics(CollectorRegistry()))

    told.add(event(1))
    told.add(event(1, "another"))

    assert [one.payload for one in told] == ["{}"]
