"""What an event says."""

from __future__ import annotations

import json

import pytest

from server.events import event as event_module
from server.events.event import LONG_PARTS, MAX_PAYLOAD_BYTES, CallTold, outbox_event, payload_of

RECORD = {"call_sid": "CA1", "created_at": 1.0, "generation": 1, "transcript": [{"text": "¿Sí?"}]}
URL = "https://a.example/hook"


def said(kind="call.ended", **facts):
    return json.loads(
        payload_of(kind, CallTold(RECORD | facts), at=1.5, public_url="https://x.example")
    )


def test_it_has_the_whole_record_and_where_to_find_it():
    assert said(recording={"file": "x"}) == {
        "type": "call.ended",
        "timestamp": "1970-01-01T00:00:01.500Z",
        "data": {
            "call": RECORD | {"recording": {"file": "x"}},
            "links": {
                "call": "https://x.example/calls/CA1",
                "recording": "https://x.example/calls/CA1/recording",
            },
        },
    }


def test_one_that_is_too_large_lacks_the_long_parts_one_after_the_other():
    half = ["x" * (MAX_PAYLOAD_BYTES // 2 + 1)]

    first = said(timeline=half, transcript=half)["data"]
    all_of_them = said(**dict.fromkeys(LONG_PARTS, half * 2))["data"]

    assert first["left_out"] == ["timeline"]
    assert first["call"]["transcript"] == half
    assert "timeline" not in first["call"]
    assert all_of_them["left_out"] == list(LONG_PARTS)
    assert all_of_them["call"]["call_sid"] == "CA1"


def test_what_json_cannot_say_costs_only_itself():
    assert said(timeline=[{"what": "tool", "given": {1}}])["data"]["call"]["timeline"] == [
        {"what": "tool", "given": "{1}"}
    ]


def test_a_record_is_written_once_for_all_that_is_told_of_it(monkeypatch):
    written = []
    dumps = json.dumps
    monkeypatch.setattr(
        event_module.json,
        "dumps",
        lambda value, **how: written.append(value) or dumps(value, **how),
    )
    told = CallTold(RECORD)

    for kind in ("call.failed", "call.recording", "call.ended"):
        payload_of(kind, told, at=1.0)

    assert written.count(RECORD["transcript"]) == 1


@pytest.mark.parametrize("kind", ["call.started", "call.answered"])
def test_how_a_call_begins_is_one_event_whoever_tells_it(kind):
    ids = {
        outbox_event(kind, CallTold(RECORD | facts), "", at=1.0, url=URL).id
        for facts in ({}, {"generation": 2}, {"created_at": 2.0})
    }

    assert len(ids) == 1


def test_how_a_call_ends_is_one_event_of_each_owner():
    events = [
        outbox_event(kind, CallTold(RECORD | {"generation": generation}), "", at=1.0, url=URL)
        for kind in ("call.failed", "call.ended")
        for generation in (1, 2)
    ]

    assert len({event.id for event in events}) == 4
    assert all(event.is_last for event in events)


def test_a_turn_is_told_with_its_number():
    turn = {"speaker": "caller", "at_s": 1.0, "text": "¿Sí?"}
    told = CallTold(RECORD, (7, turn))

    data = json.loads(payload_of("call.turn", told, at=1.0))["data"]

    assert data["turn"] == {"number": 7, **turn}
    assert data["call"] == RECORD


def test_each_turn_is_one_event_of_each_owner():
    ids = {
        outbox_event(
            "call.turn", CallTold(RECORD | {"generation": one}, (number, {})), "", at=1.0, url=URL
        ).id
        for one in (1, 2)
        for number in (0, 1)
    }

    assert len(ids) == 4
