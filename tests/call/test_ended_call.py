"""What stays of a call when it is over: its record, and what the carrier may still change of it."""

from __future__ import annotations

import gc
import json
import random
import re
import time
import tracemalloc
import weakref
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.report.costs import Prices
from server.call.report.ended import MAX_LEFT_BYTES, EndedCall, LeftUnreadable
from server.call.report.progress import Progress
from server.carrier import CallStatus, StatusUpdate
from server.dialogue.endings import EndReason
from server.errors import CarrierError
from server.model import (
    AgentAudio,
    AgentTranscript,
    CallerTranscript,
    GenerationComplete,
    TurnComplete,
)
from server.records.database.database import Database
from server.records.database.tables import KEPT_AT, NOT_WHOLE, fitted
from server.records.database.url import database_url
from server.records.recording import Recorder
from server.records.words import Wanted
from server.signal import Once
from server.switchboard.register import Register
from tests.records.test_records import record
from tests.support.fakes import KeptRecords, MemoryCarrier, MemoryMedia
from tests.support.switchboards import NUMBER, make_calls, serve_stream, started

COUNT = 5
BYTES_PER_CALL = 24_000
"""What such a call may leave in memory."""
NOT_LOGS = tracemalloc.Filter(False, "*/structlog/*")
"""What is logged is kept for whoever reads about a test that has failed."""
TURNS = 30
"""Of each side: a talkative minute."""


async def talk(calls, nursery, agent: Agent | None = None):
    """Have a whole call with many turns, ended by the caller."""
    call = await calls.place(NUMBER, agent or Agent())
    media = MemoryMedia()
    started(calls, media, call.call_sid)
    nursery.start_soon(serve_stream, calls, media)
    await wait_all_tasks_blocked()
    session = calls.model.session
    for turn in range(1, TURNS + 1):
        session.event(CallerTranscript(f"And what about number {turn}?"))
        session.event(AgentAudio(b"\0\x10" * 2_400, turn, trio.current_time()))
        session.event(AgentTranscript(f"Number {turn} is quite as good as the one before.", turn))
        session.event(GenerationComplete(turn))
        session.event(TurnComplete(turn, None))
        await trio.sleep(0.1)
    media.hang_up()
    await call.finished.wait()
    await wait_all_tasks_blocked()
    return call


@contextmanager
def nothing_collected() -> Generator[None]:
    """Within the block only reference counts free anything, as while there are calls."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def forgotten(calls) -> None:
    """Wait until nobody has ended calls in hand any more: the fakes, and what looks at set-ups."""
    calls.model.sessions.clear()
    calls.admission.setups.look(trio.current_time(), 0.0)
    await wait_all_tasks_blocked()


def last_word(call_sid: str, duration_s: str = "125") -> StatusUpdate:
    return StatusUpdate(call_sid, CallStatus.COMPLETED, 9, {"duration_s": duration_s})


@pytest.mark.parametrize("is_settled", [True, False], ids=["settled", "not settled"])
async def test_of_a_call_that_has_ended_nothing_lives_but_what_is_left(
    autojump_clock, nursery, is_settled
):
    calls = make_calls()
    await nursery.start(calls.run)
    call = await talk(calls, nursery)
    call_sid, c = call.call_sid, call.conversation
    lived = [weakref.ref(each) for each in (call, c, c.session, c.playout, c.passing, call.hearing)]
    if is_settled:
        calls.update_status(last_word(call_sid))

    with nothing_collected():
        del call, c
        await forgotten(calls)

    assert [each() for each in lived if each() is not None] == []
    assert calls.register.get(call_sid).end_reason is EndReason.CALLER_HUNG_UP
    assert len((await calls.register.record(call_sid))["transcript"]) == 2 * TURNS


async def test_a_call_that_the_carrier_did_not_take_leaves_nothing(autojump_clock, nursery):
    calls = make_calls(carrier=MemoryCarrier(failure=CarrierError("no", status=400, code=21211)))
    await nursery.start(calls.run)
    with pytest.raises(CarrierError):
        await calls.place(NUMBER, Agent())

    with nothing_collected():
        lived = weakref.ref(calls.model.session)
        calls.carrier.failure = None  # it knows whom it was raised in
        await forgotten(calls)

    assert lived() is None


async def test_an_ended_call_is_some_kilobytes_of_memory(autojump_clock, nursery):
    calls = make_calls()
    await nursery.start(calls.run)
    await talk(calls, nursery)  # what is made once only
    gc.collect()

    tracemalloc.start()
    try:
        for _ in range(COUNT):
            call = await talk(calls, nursery)
            calls.update_status(last_word(call.call_sid))
        del call
        await forgotten(calls)
        ours = tracemalloc.take_snapshot().filter_traces([NOT_LOGS])
        size_bytes = sum(trace.size for trace in ours.traces)
    finally:
        tracemalloc.stop()

    assert len(list(calls.register.all())) == COUNT + 1
    assert size_bytes / COUNT < BYTES_PER_CALL


async def test_what_is_left_shows_the_record_as_the_call_did(autojump_clock, nursery):
    records = KeptRecords()
    calls = make_calls(records=records)
    await nursery.start(calls.run)
    call = await talk(calls, nursery)

    shown = await calls.register.record(call.call_sid)
    [listed] = (await calls.register.page(10)).rows

    assert [shown] == records.kept
    assert shown == json.loads(json.dumps(call.record().as_dict()))
    assert listed == call.record(full=False).as_dict()


@pytest.mark.parametrize(
    ("wanted", "is_found"),
    [
        (Wanted(min_cost_usd=0.03), True),
        (Wanted(min_cost_usd=0.03, max_cost_usd=0.5), True),
        (Wanted(max_cost_usd=0.02), False),
        (Wanted(min_cost_usd=0.5), False),
    ],
)
async def test_it_is_found_by_what_it_is_known_to_cost_whether_or_not_that_is_saved(
    autojump_clock, nursery, wanted, is_found
):
    calls = make_calls(records=None, prices=Prices(carrier_minute_usd=0.01))
    await nursery.start(calls.run)
    call = await talk(calls, nursery)
    calls.update_status(last_word(call.call_sid, duration_s="125"))
    waiting = KeptRecords()
    waiting.kept = [calls.register.get_recent(call.call_sid).shown()]
    live = await calls.place(NUMBER, Agent())

    in_memory = (await calls.register.page(10, wanted=wanted)).rows
    unsaved = (await Register(waiting, 0).page(10, wanted=wanted)).rows

    assert [row["call_sid"] for row in in_memory] == [call.call_sid] * is_found
    assert [row["call_sid"] for row in unsaved] == [call.call_sid] * is_found
    assert all("cost" not in row for row in in_memory + unsaved)
    live.end(EndReason.HUNG_UP)
    await live.finished.wait()


async def test_the_carriers_last_word_after_the_end_is_in_the_record(autojump_clock, nursery):
    records = KeptRecords()
    calls = make_calls(records=records, prices=Prices(carrier_minute_usd=0.01))
    await nursery.start(calls.run)
    call = await talk(calls, nursery)
    before = await calls.register.record(call.call_sid)
    await trio.sleep(2.0)

    calls.update_status(last_word(call.call_sid, duration_s="125"))

    after = await calls.register.record(call.call_sid)
    assert (before["status"], after["status"]) == ("queued", "completed")
    assert (before["cost"]["billed_minutes"], after["cost"]["billed_minutes"]) == (1, 3)
    assert after["cost"]["carrier_usd"] == pytest.approx(0.03)
    assert after["cost"]["model_usd"] == before["cost"]["model_usd"]
    *earlier, last = after["timeline"]
    assert earlier == before["timeline"]
    assert last == {"at_s": last["at_s"], "what": "completed", "duration_s": "125"}
    assert last["at_s"] == pytest.approx(earlier[-1]["at_s"] + 2.0)
    assert records.kept == [before, after]
    assert (await calls.register.page(10)).rows[0]["status"] == "completed"


async def test_a_last_word_that_is_said_again_writes_nothing_again(autojump_clock, nursery):
    records = KeptRecords()
    calls = make_calls(records=records)
    await nursery.start(calls.run)
    call = await talk(calls, nursery)

    for _ in range(3):
        calls.update_status(last_word(call.call_sid))

    assert len(records.kept) == 2


async def test_who_waits_for_the_carriers_last_word_hears_it_after_the_end(autojump_clock, nursery):
    calls = make_calls()
    await nursery.start(calls.run)
    call = await talk(calls, nursery)

    calls.update_status(last_word(call.call_sid))

    with trio.fail_after(1.0):
        await call.progress.settled.wait()


async def test_a_value_that_is_no_json_costs_no_record(autojump_clock, nursery):
    calls = make_calls()
    await nursery.start(calls.run)
    call = await calls.place(NUMBER, Agent())
    call.note("of a tool", found={1, 2})
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()
    await wait_all_tasks_blocked()

    timeline = (await calls.register.record(call.call_sid))["timeline"]

    assert "{1, 2}" in [line.get("found") for line in timeline]


async def test_what_a_function_notes_may_be_anything_and_the_database_takes_the_record(
    autojump_clock, nursery
):
    records = KeptRecords()
    calls = make_calls(records=records)
    await nursery.start(calls.run)
    call = await calls.place(NUMBER, Agent())
    call.note("looked up", on=date(2026, 1, 2), price=Decimal("1.5"), by={("a", 1): {2}}, who="me")
    live = call.record().as_dict()
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()
    await wait_all_tasks_blocked()
    database = Database(database_url("sqlite://"))
    kept = [fitted(each) | {KEPT_AT: 1.0} for each in records.kept]

    refused = database.write_each(kept)
    found = database.get(call.call_sid)
    database.close()

    assert refused == []
    assert json.loads(json.dumps(live["timeline"])) == live["timeline"]
    [line] = [line for line in found["timeline"] if line["what"] == "looked up"]
    assert line | {"at_s": 0} == {
        **{"at_s": 0, "what": "looked up", "on": "datetime.date(2026, 1, 2)"},
        **{"price": "Decimal('1.5')", "by": "{('a', 1): {2}}", "who": "me"},
    }


async def test_a_function_may_note_facts_of_any_name(autojump_clock, nursery):
    calls = make_calls(records=KeptRecords())
    await nursery.start(calls.run)
    call = await calls.place(NUMBER, Agent())

    call.note("looked up", event="fair", call_sid="x", method_name="m", exc_info=True, at_s=7.0)

    line = call.record().as_dict()["timeline"][-1]
    assert line.pop("at_s") < 7.0
    assert line == {
        **{"what": "looked up", "event": "fair", "call_sid": "x"},
        **{"method_name": "m", "exc_info": True},
    }


async def test_a_recording_that_fails_later_is_in_the_record_however_many_have_ended_since():
    records = KeptRecords()
    register = Register(records, 0)
    left = EndedCall(
        {"call_sid": "CA1", "recording": {"reason": None}, "timeline": []},
        EndReason.CALLER_HUNG_UP,
        costs=None,
        billed={},
        began_at=trio.current_time(),
        began_wall_at=time.time(),
        progress=Progress(),
        finished=Once(),
    )
    recorder = Recorder("CA1", 0.0)
    register.follow(recorder, left)

    recorder.stop("disk-full")

    [kept] = records.kept
    assert kept["recording"]["reason"] == "disk-full"
    assert kept["timeline"][-1]["what"] == "recording stopped"
    assert kept["had_trouble"]


# -- what is handed on -----------------------------------------------------------------------


def ended(**differences) -> EndedCall:
    """A call that is over, with a record as the API shows it."""
    finished = Once()
    finished.set()
    return EndedCall(
        record(1, **differences),
        EndReason.CALLER_HUNG_UP,
        costs=None,
        billed={},
        began_at=0.0,
        began_wall_at=0.0,
        progress=Progress(),
        finished=finished,
    )


async def test_what_is_handed_on_of_a_call_is_its_whole_record_and_whom_to_tell():
    left = ended()

    handed_on = left.handed_on("https://example.com/calls")
    found, url = EndedCall.taken_over(handed_on, wall_time=time.time())

    assert found.shown() == left.shown() == record(1)
    assert NOT_WHOLE not in found.shown()
    assert found.end_reason is EndReason.CALLER_HUNG_UP
    assert url == "https://example.com/calls"


async def test_what_is_handed_on_of_a_call_is_bounded_and_its_summary_always_there():
    noise = "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x9FFF), k=60_000)))

    words = ended(transcript=[{"text": noise}]).handed_on(None)
    long, _ = EndedCall.taken_over(words, wall_time=time.time())
    labels = ended(metadata={"note": noise}).handed_on(None)
    labelled, _ = EndedCall.taken_over(labels, wall_time=time.time())

    assert (long.shown()["transcript"], long.shown()["detail"]) == (None, "")
    assert long.shown()[NOT_WHOLE] == labelled.shown()[NOT_WHOLE] != ""
    assert len(labels) <= MAX_LEFT_BYTES
    assert (labelled.shown()["metadata"], labelled.call_sid) == ({}, record(1)["call_sid"])


@pytest.mark.parametrize("ahead_s", [-7_200.0, 7_200.0])
async def test_the_timeline_of_a_call_goes_on_on_a_machine_whose_clock_is_another(
    autojump_clock, nursery, monkeypatch, ahead_s
):
    calls = make_calls()
    await nursery.start(calls.run)
    call = await talk(calls, nursery)
    began_at = call.report.began_at
    left = calls.register.get_recent(call.call_sid).handed_on(None)
    monkeypatch.setattr(time, "time", lambda: began_at + 60.0 + ahead_s)

    found, _ = EndedCall.taken_over(left, wall_time=began_at + 60.0)
    again, _ = EndedCall.taken_over(found.handed_on(None), wall_time=began_at + 90.0)
    for each in (found, again):
        each.update_status(last_word(call.call_sid))

    assert found.shown()["timeline"][-1]["at_s"] == pytest.approx(60.0, abs=0.01)
    assert again.shown()["timeline"][-1]["at_s"] == pytest.approx(90.0, abs=0.01)


async def test_when_a_call_began_that_an_older_program_has_left_our_own_clock_has_to_say(
    autojump_clock, monkeypatch
):
    left = re.sub(rb', "began_at": [0-9.]+', b"", ended(timeline=[]).handed_on(None))
    created_at = ended().created_at
    monkeypatch.setattr(time, "time", lambda: created_at + 60.0)

    found, _ = EndedCall.taken_over(left, wall_time=created_at + 7_200.0)
    found.recording_stopped({}, "disk-full")

    assert found.shown()["timeline"][-1]["at_s"] == pytest.approx(60.0, abs=0.01)


@pytest.mark.parametrize(
    "left",
    [b"", b"1", b"2" + ended.__name__.encode(), b"1{}\n" + zlib.compress(b"{}"), b"1null\n{}"],
)
async def test_what_is_no_record_is_not_taken_over(left):
    with pytest.raises(LeftUnreadable):
        EndedCall.taken_over(left, wall_time=time.time())


async def test_a_record_that_is_cut_off_or_not_whole_is_not_taken_over():
    left = ended().handed_on(None)
    head, _, packed = left[1:].partition(b"\n")
    no_time = head.replace(b'"created_at"', b'"created"')
    wrong_time = re.sub(rb'("began_at": )[0-9.]+', rb"\1-Infinity", head)
    heads = (b"1" + each + b"\n" + packed for each in (no_time, wrong_time))

    for wrong in (left[:-8], *heads, b"9" + left[1:]):
        with pytest.raises(LeftUnreadable):
            EndedCall.taken_over(wrong, wall_time=time.time())
