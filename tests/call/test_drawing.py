"""What an agent has not written down, drawn from the transcript when the call is over."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from server.agent.agent import Agent
from server.agent.outcome import outcome_schema
from server.call.report import drawing as drawing_module
from server.call.report.drawing import Drawing
from server.call.report.ended import EndedCall
from server.dialogue.endings import EndReason
from server.errors import ModelError
from server.events.events import Events
from server.metrics import Metrics
from server.model import CallerTranscript
from tests.call.test_ended_call import ended
from tests.support.fakes import KeptRecords
from tests.support.serving import serving
from tests.support.switchboards import NUMBER, make_calls

SCHEMA = outcome_schema(
    {"required": ["pizza", "count"], "properties": {"pizza": {"type": "string"}, "count": {}}}
)
DESK = Agent(name="desk", outcome=SCHEMA)


class Reader:
    """Answers what the test says, or fails with it; holds still for as long as it is told to."""

    def __init__(self, answer: Mapping[str, Any] | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[Mapping[str, Any], str]] = []
        self.may_answer = Event()
        self.may_answer.set()

    def read(self, schema: Mapping[str, Any], transcript: str) -> Mapping[str, Any]:
        self.asked.append((schema, transcript))
        self.may_answer.wait(60)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Desk:
    """Calls of an agent with an outcome, and who reads what was said in them."""

    def __init__(self, reader: Reader | None, timeout_s: float = 60.0) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.drawing = Drawing(reader, timeout_s=timeout_s, metrics=metrics)
        self.records = KeptRecords()
        self.calls = make_calls(drawing=self.drawing, records=self.records, recent_calls=0)
        self.calls.register.events = Events(
            records=self.records, metrics=metrics, url="https://usual.example/", keys=[b"k" * 24]
        )

    async def call(self, agent: Agent = DESK, said: str = "A hawaii, please.", **filled: Any):
        call = await self.calls.place(NUMBER, agent)
        if said:
            self.calls.model.session.event(CallerTranscript(said))
        if filled:
            call.fill_outcome(filled)
        call.end(EndReason.HUNG_UP)
        await call.finished.wait()
        return call

    def record(self, call) -> Mapping[str, Any]:
        """What was kept of a call last, however many have ended since."""
        return [one for one in self.records.kept if one["call_sid"] == call.call_sid][-1]

    def told(self, kind: str) -> list[tuple[str, Mapping[str, Any]]]:
        """The receivers that were told of this, and of which call."""
        return [
            (event.url, json.loads(event.payload)["data"]["call"])
            for event in self.records.told
            if event.type == kind
        ]

    def counted(self, complete: str) -> float | None:
        labels = {"agent": "desk", "complete": complete}
        return self.registry.get_sample_value("offhook_outcomes_total", labels)


@asynccontextmanager
async def open_desk(desk: Desk):
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.calls.run)
        nursery.start_soon(desk.drawing.run)
        yield desk
        nursery.cancel_scope.cancel()


async def test_what_is_missing_is_read_from_what_was_said():
    reader = Reader({"count": 2, "pizza": "another", "colour": "red"})

    async with open_desk(Desk(reader)) as desk:
        call = await desk.call(pizza="hawaii")
        await desk.drawing.finish()
        record = desk.record(call)

    ((schema, transcript),) = reader.asked
    assert list(schema["properties"]) == ["count"]
    assert transcript == "caller: A hawaii, please."
    assert record["outcome"] == {
        "values": {"pizza": "hawaii", "count": 2},
        "source": "agent+transcript",
        "complete": True,
        "missing": [],
    }
    assert (desk.counted("yes"), desk.counted("no")) == (1, None)


async def test_the_record_is_there_before_and_the_next_call_does_not_wait():
    reader = Reader({"pizza": "hawaii", "count": 1})
    reader.may_answer.clear()

    async with open_desk(Desk(reader)) as desk:
        first = await desk.call()
        before = desk.record(first)["outcome"]
        second = await desk.call()
        reader.may_answer.set()
        await desk.drawing.finish()
        after = [desk.record(call)["outcome"] for call in (first, second)]

    assert (before["values"], before["source"], before["complete"]) == ({}, None, False)
    assert [(one["source"], one["complete"]) for one in after] == [("transcript", True)] * 2


@pytest.mark.parametrize("url", [None, "https://own.example/"])
async def test_a_receiver_is_told_of_what_was_found_after_the_end(url):
    agent = replace(DESK, events_url=url)

    async with open_desk(Desk(Reader({"count": 2}))) as desk:
        call = await desk.call(agent=agent, pizza="hawaii")
        await desk.drawing.finish()
        record = desk.record(call)

    [(to, told)] = desk.told("call.outcome")
    [(_, ended)] = desk.told("call.ended")
    assert to == (url or "https://usual.example/")
    assert (told["outcome"], told["outcome_complete"]) == (record["outcome"], True)
    assert (ended["outcome"]["missing"], ended["outcome_complete"]) == (["count"], False)
    assert [event.type for event in desk.records.told][-2:] == ["call.ended", "call.outcome"]
    assert record["outcome_complete"] is True


async def test_nobody_is_told_again_of_what_was_known():
    async with open_desk(Desk(Reader({"colour": "red", "count": None}))) as desk:
        await desk.call(pizza="hawaii")
        await desk.drawing.finish()

    assert desk.told("call.outcome") == []
    assert len(desk.records.kept) == 1


async def test_an_event_that_cannot_be_told_costs_the_record_nothing(monkeypatch):
    async with open_desk(Desk(Reader({"count": 2}))) as desk:

        def fails(*told):
            raise RuntimeError("a bug")

        monkeypatch.setattr(desk.calls.register.events, "tell", fails)
        monkeypatch.setattr(desk.calls.register.events, "is_wanted", lambda kind, url: True)
        call = await desk.call(pizza="hawaii")
        await desk.drawing.finish()

    assert desk.record(call)["outcome"]["complete"]


@pytest.mark.parametrize(
    "failure",
    [
        ModelError("the service answered 500", code=None, reason="", retryable=True),
        RuntimeError("a bug"),
    ],
)
async def test_a_reader_that_fails_leaves_what_the_agent_has_said(failure):
    async with open_desk(Desk(Reader(failure))) as desk:
        with capture_logs() as logs:
            call = await desk.call(pizza="hawaii")
            await desk.drawing.finish()
            again = await desk.call(pizza="hawaii")
            await desk.drawing.finish()

    for one in (call, again):
        assert desk.record(one)["outcome"]["values"] == {"pizza": "hawaii"}
    assert len([line for line in logs if line["event"].startswith("outcome not drawn")]) == 2
    assert "hawaii" not in str(logs)
    assert desk.counted("no") == 2


async def test_a_reader_that_is_late_is_left_alone():
    reader = Reader({"count": 1})
    reader.may_answer.clear()

    async with open_desk(Desk(reader, timeout_s=0.05)) as desk:
        call = await desk.call(pizza="hawaii")
        while desk.counted("no") is None:  # noqa: ASYNC110 - a thread is behind it
            await trio.sleep(0.01)
        record = desk.record(call)
        reader.may_answer.set()

    assert record["outcome"]["values"] == {"pizza": "hawaii"}


@pytest.mark.parametrize("timeout_s", [60.0, 0.0])
async def test_nobody_is_asked_where_that_is_of_no_use(timeout_s):
    reader = Reader({})

    async with open_desk(Desk(reader, timeout_s)) as desk:
        await desk.call(agent=Agent(name="other"))
        await desk.call(pizza="hawaii", count=1)
        await desk.call(said="")
        if not timeout_s:
            await desk.call()
        await desk.drawing.finish()

    assert reader.asked == []


async def test_calls_beyond_a_number_do_not_wait_to_be_read(monkeypatch):
    monkeypatch.setattr(drawing_module, "MAX_WAITING", 1)
    reader = Reader({"pizza": "hawaii", "count": 1})

    desk = Desk(reader)  # nobody reads
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.calls.run)
        with capture_logs() as logs:
            await desk.call()
            await desk.call()
        nursery.cancel_scope.cancel()

    assert [line["event"] for line in logs if "too many" in line["event"]]


@pytest.mark.sockets
async def test_an_outcome_of_a_call_that_another_process_has_left_is_drawn_here(monkeypatch):
    said = [
        {"speaker": "agent", "text": "For whom?"},
        {"speaker": "caller", "text": "Two, please."},
    ]
    known = {"values": {"pizza": "hawaii"}, "source": "agent", "complete": False, "missing": []}
    before = ended(agent="desk", transcript=said, outcome=known, outcome_complete=False)
    left, url = EndedCall.taken_over(before.handed_on(None), wall_time=time.time())
    reader = Reader({"count": 2, "pizza": "another"})
    async with serving() as server:
        service = server.service
        monkeypatch.setattr(service, "find_agent", {"desk": DESK}.get)
        monkeypatch.setattr(service._drawing, "_reader", reader)
        service.calls.register.inherit(left, 2, url, lambda *, left=b"": None)
        await service._drawing.finish()
        record = await service.calls.register.record(left.call_sid)

    ((_, transcript),) = reader.asked
    assert transcript == "agent: For whom?\ncaller: Two, please."
    assert record["outcome"] == {
        "values": {"pizza": "hawaii", "count": 2},
        "source": "agent+transcript",
        "complete": True,
        "missing": [],
    }
    assert record["outcome_complete"]


@pytest.mark.sockets
async def test_nothing_is_drawn_of_a_call_whose_agent_is_not_known_here():
    left, url = EndedCall.taken_over(ended(agent="desk").handed_on(None), wall_time=time.time())
    async with serving() as server:
        reader = server.service._drawing._reader = Reader({})
        server.service.calls.register.inherit(left, 2, url, lambda *, left=b"": None)
        await server.service._drawing.finish()

    assert reader.asked == []
