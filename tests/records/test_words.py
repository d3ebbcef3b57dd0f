"""A call's record as the API shows it, and places in the list of calls."""

from __future__ import annotations

import json
import math

import pytest

from server.records.database.tables import SUMMARY
from server.records.words import CallDetails, CallRecord, Cursor, ReplyRecord

RECORD = CallRecord(
    call_sid="CA1",
    direction="outbound",
    number="+15*******06",
    state="ended",
    status="completed",
    reason="caller-hung-up",
    detail="",
    created_at=1_700_000_000.123,
    duration_s=61.5,
    answered_by=None,
    agent_heard_s=12.25,
    metadata={"order": "1"},
)
DETAILS = CallDetails(
    timings={"caller_audio_s": 1.0},
    tokens={"prompt": {}},
    cost={"known_usd": 0.1},
    replies=(ReplyRecord(2, 5.0, {"vad": 0.50004, "total": 1.23456}),),
    recording=None,
    transcript=({"speaker": "agent", "text": "Hello."},),
    timeline=((0.12345, "answered", {}), (1.0, "first audio", {"after_ms": 5.0})),
    outcome={"values": {"pizza": "hawaii"}, "source": "agent", "complete": True, "missing": []},
    model="gemini-3.8-live",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
NOTHING = CallDetails(None, None, None, None, None, None, None)


def test_a_list_shows_what_the_record_is_without_its_details():
    shown = RECORD.as_dict()

    assert shown.keys() == {*SUMMARY, "answered_by"}
    assert (shown["call_sid"], shown["duration_s"], shown["metadata"]) == (
        "CA1",
        61.5,
        {"order": "1"},
    )


def test_the_whole_record_is_that_and_its_details_in_milliseconds_and_rounded():
    shown = RECORD.with_details(DETAILS).as_dict()

    assert shown == RECORD.as_dict() | {
        "timings": {"caller_audio_s": 1.0},
        "tokens": {"prompt": {}},
        "cost": {"known_usd": 0.1},
        "replies": [{"turn": 2, "at_s": 5.0, "vad_ms": 500.0, "total_ms": 1234.6}],
        "recording": None,
        "transcript": [{"speaker": "agent", "text": "Hello."}],
        "timeline": [
            {"at_s": 0.123, "what": "answered"},
            {"at_s": 1.0, "what": "first audio", "after_ms": 5.0},
        ],
        "outcome": {
            "values": {"pizza": "hawaii"},
            "source": "agent",
            "complete": True,
            "missing": [],
        },
        "model": "gemini-3.8-live",
    }
    assert json.loads(json.dumps(shown)) == shown


def test_a_part_that_could_not_be_made_is_shown_as_nothing():
    shown = RECORD.with_details(NOTHING).as_dict()

    assert {shown[name] for name in ("replies", "transcript", "timeline", "cost")} == {None}


def test_a_place_is_read_as_it_was_written():
    place = Cursor.of(RECORD.as_dict())

    assert str(place) == "1700000000.123-CA1"
    assert Cursor.parse(str(place)) == place


def test_places_are_ordered_by_time_and_then_by_name():
    assert Cursor(1.0, "CA9") < Cursor(2.0, "CA1") < Cursor(2.0, "CA2")


@pytest.mark.parametrize("text", ["", "1.0", "1.0-", "-CA1", "x-CA1", "nan-CA1", f"{math.inf}-CA1"])
def test_anything_else_is_no_place(text):
    with pytest.raises(ValueError, match=r"."):
        Cursor.parse(text)
