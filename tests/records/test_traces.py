from __future__ import annotations

import json
import sys
from dataclasses import replace
from threading import Event, Thread, current_thread

import pytest
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.call.report.notes import MAX_TIMELINE
from server.dialogue.replies import MAX_REPLIES
from server.dialogue.transcript import MAX_TURNS
from server.errors import ConfigurationError
from server.records import traces as traces_module
from server.records.traces import MAX_SPANS, STAGES, CallTraces, NoTraces, open_traces
from server.records.words import CallDetails, CallRecord, ReplyRecord
from server.simulators.gemini import MODEL_SCRIPTS
from tests.support.rig import calling

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return CallTraces(provider)


def written(traces: CallTraces, exporter: InMemorySpanExporter, record: CallRecord):
    """What is written of a call."""
    traces.call_ended(record)
    traces.close()
    return exporter.get_finished_spans()


def seconds(span: ReadableSpan) -> float:
    return (span.end_time - span.start_time) / 1e9


async def test_a_call_is_one_trace_with_its_turns_and_where_each_replys_time_went(
    autojump_clock, traces, exporter
):
    async with calling(callee="interrupts") as rig:
        rig.call.report.traceparent = PARENT
        await rig.over()
    spans = written(traces, exporter, rig.call.record())

    (call,) = [span for span in spans if span.name == "call"]
    names = [span.name for span in spans]
    assert {"ringing", "agent turn", "caller turn", "reply", "model", "playout"} <= set(names)
    assert {span.context.trace_id for span in spans} == {0x0AF7651916CD43DD8448EB211C80319C}
    assert call.parent.span_id == 0xB7AD6B7169203331
    assert call.attributes["offhook.end_reason"] == "caller-hung-up"
    assert call.status.is_ok or call.status.is_unset
    assert "barge-in" in [event.name for event in call.events]
    for reply in [span for span in spans if span.name == "reply"]:
        stages = [s for s in spans if s.parent and s.parent.span_id == reply.context.span_id]
        assert sum(map(seconds, stages)) == pytest.approx(seconds(reply), abs=1e-6)


async def test_a_call_whose_answer_is_not_in_its_timeline_has_its_turns_in_its_trace(
    autojump_clock, traces, exporter
):
    async with calling(callee="interrupts") as rig:
        await rig.over()
    record = rig.call.record()
    (answered_s,) = (at_s for at_s, what, _ in record.details.timeline if what == "answered")
    lines = tuple(line for line in record.details.timeline if line[1] != "answered")

    record = record.with_details(replace(record.details, timeline=lines))
    spans = written(traces, exporter, record)

    (ringing,) = [span for span in spans if span.name == "ringing"]
    assert seconds(ringing) == pytest.approx(answered_s, abs=1e-6)
    assert {"agent turn", "caller turn"} <= {span.name for span in spans}


async def test_nothing_anyone_said_and_no_number_is_in_a_trace(autojump_clock, traces, exporter):
    async with calling(callee="talks") as rig:
        await rig.over()
    spans = written(traces, exporter, rig.call.record())
    shown = json.dumps([json.loads(span.to_json()) for span in spans])

    assert rig.call.number not in shown
    spoken = [turn.text for turn in rig.call.conversation.notes.transcript.turns]
    assert len(spoken) > 3
    assert [text for text in spoken if text in shown] == []


async def test_a_call_that_failed_is_an_error_in_its_trace(autojump_clock, traces, exporter):
    async with calling(callee="talks", script=MODEL_SCRIPTS["quota"]) as rig:
        await rig.over()
    (call,) = [span for span in written(traces, exporter, rig.call.record()) if span.name == "call"]

    assert not call.status.is_ok
    assert call.status.description.startswith("model-")


def long_record() -> CallRecord:
    """Of a call with as much in it as there can be."""
    facts = {"turn": 1}
    details = CallDetails(
        timings=None,
        tokens=None,
        cost=None,
        replies=tuple(
            ReplyRecord(turn, float(turn), dict.fromkeys(STAGES, 0.1))
            for turn in range(MAX_REPLIES)
        ),
        recording=None,
        transcript=tuple(
            {"speaker": "caller", "at_s": float(turn), "heard_s": None, "cut": False}
            for turn in range(MAX_TURNS)
        ),
        timeline=tuple((float(at_s), "agent turn", facts) for at_s in range(MAX_TIMELINE)),
        answered_s=1.0,
    )
    return CallRecord(
        **{"call_sid": "CA1", "direction": "inbound", "number": "", "state": "ended"},
        **{"status": "completed", "reason": "caller-hung-up", "detail": "", "created_at": 1.0},
        **{"duration_s": 9.0, "answered_by": None, "agent_heard_s": None, "metadata": {}},
        details=details,
    )


class Watching(SpanProcessor):
    """Notes who writes spans, and when a call's own is written, which is the last."""

    def __init__(self) -> None:
        self.threads: set[Thread] = set()
        self.is_over = Event()

    def on_end(self, span: ReadableSpan) -> None:
        self.threads.add(current_thread())
        if span.name == "call":
            self.is_over.set()


class SlowExporter(InMemorySpanExporter):
    """Sends nothing until a whole call is written."""

    may_send: Event

    def export(self, spans):
        assert self.may_send.wait(60)
        return super().export(spans)


def test_all_of_a_long_call_is_sent_and_another_thread_writes_it(monkeypatch):
    exporter, watching = SlowExporter(), Watching()
    exporter.may_send = watching.is_over
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda: exporter)
    for name in ("OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_BSP_MAX_QUEUE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    traces = open_traces(wanted=True)
    assert isinstance(traces, CallTraces)
    traces._provider.add_span_processor(watching)

    spans = written(traces, exporter, long_record())

    assert len(spans) == MAX_SPANS == 2 + MAX_TURNS + MAX_REPLIES * (1 + len(STAGES))
    assert [len(span.events) for span in spans if span.name == "call"] == [MAX_TIMELINE]
    assert current_thread() not in watching.threads


def test_what_the_environment_says_of_traces_counts(monkeypatch):
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda: exporter)
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "7")
    traces = open_traces(wanted=True)

    spans = written(traces, exporter, long_record())

    assert [len(span.events) for span in spans if span.name == "call"] == [7]


def test_a_trace_that_fails_costs_no_other_its_own(traces, exporter):
    traces.call_ended(replace(long_record(), details=None))

    spans = written(traces, exporter, long_record())

    assert len(spans) == MAX_SPANS


def test_traces_for_which_there_was_no_thread_are_written_in_the_end(monkeypatch, traces, exporter):
    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(Thread, "start", refuse)
        traces.call_ended(long_record())
    assert exporter.get_finished_spans() == ()
    traces.close()

    assert len(exporter.get_finished_spans()) == MAX_SPANS


def test_of_too_many_calls_that_end_at_once_some_have_no_trace(monkeypatch, traces, exporter):
    monkeypatch.setattr(traces_module, "MAX_WAITING", 0)

    assert written(traces, exporter, long_record()) == ()


def test_without_the_package_tracing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(ConfigurationError, match=r"offhook\[otel\]"):
        open_traces(wanted=True)
    assert isinstance(open_traces(wanted=False), NoTraces)
