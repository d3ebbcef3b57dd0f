"""Records in memory, until the database has them."""

from __future__ import annotations

import json

from prometheus_client import CollectorRegistry

from server.metrics import RecordMetrics
from server.records import unsaved as unsaved_module
from server.records.unsaved import Unsaved, bytes_of


def long_record(number: int, turns: int = 200) -> dict:
    said = "A sentence of the usual length, such as people say on the telephone. "
    return {
        "call_sid": f"CA{number}",
        "metadata": {"order": "17"},
        "transcript": [{"speaker": "agent", "text": said, "cut": False} for _ in range(turns)],
        "timeline": [{"at_s": 1.0, "what": "agent turn", "turn": 1} for _ in range(turns)],
        "replies": None,
    }


def kept(unsaved: Unsaved) -> list[str]:
    return [record["call_sid"] for record in unsaved]


def test_a_record_takes_at_least_what_it_is_as_text():
    for turns in (0, 10, 1_000):
        record = long_record(1, turns)
        assert len(json.dumps(record)) <= bytes_of(record) < 20 * len(json.dumps(record)) + 10_000


def test_what_they_take_is_bounded_and_not_only_how_many_they_are(monkeypatch):
    size = bytes_of(long_record(1))
    monkeypatch.setattr(unsaved_module, "MAX_UNSAVED_BYTES", 3 * size)
    registry = CollectorRegistry()
    unsaved = Unsaved(RecordMetrics(registry))

    for number in range(1, 6):
        unsaved.put(long_record(number))

    assert kept(unsaved) == ["CA3", "CA4", "CA5"]
    assert unsaved.are_many
    assert registry.get_sample_value("offhook_records_unsaved") == 3


def test_there_is_room_again_when_they_are_where_they_belong(monkeypatch):
    monkeypatch.setattr(unsaved_module, "MAX_UNSAVED_BYTES", 3 * bytes_of(long_record(1)))
    unsaved = Unsaved(RecordMetrics(CollectorRegistry()))
    first = [long_record(1), long_record(2)]

    for record in first * 2:
        unsaved.put(record)
    for record in first:
        unsaved.forget(record)
    for number in (3, 4, 5):
        unsaved.put(long_record(number))

    assert kept(unsaved) == ["CA3", "CA4", "CA5"]


def test_a_version_that_came_while_an_earlier_one_was_written_goes_on_waiting():
    unsaved = Unsaved(RecordMetrics(CollectorRegistry()))
    earlier, newer = long_record(1), long_record(1)
    unsaved.put(earlier)
    unsaved.put(long_record(2))
    unsaved.put(newer)

    unsaved.forget(earlier)

    assert kept(unsaved) == ["CA2", "CA1"]
    assert unsaved.get("CA1") is newer
    assert unsaved.oldest(1) == [long_record(2)]
