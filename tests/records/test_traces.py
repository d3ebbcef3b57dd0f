from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.errors import ConfigurationError
from server.records.traces import CallTraces, NoTraces, open_traces
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
    yield CallTraces(provider)
    provider.shutdown()


def seconds(span: ReadableSpan) -> float:
    return (span.end_time - span.start_time) / 1e9


async def test_a_call_is_one_trace_with_its_turns_and_where_each_replys_time_went(
    autojump_clock, traces, exporter
):
    async with calling(callee="interrupts") as rig:
        rig.call.report.traceparent = PARENT
        await rig.over()
    traces.call_ended(rig.call.record())
    spans = exporter.get_finished_spans()

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

    traces.call_ended(record.with_details(replace(record.details, timeline=lines)))

    spans = exporter.get_finished_spans()
    (ringing,) = [span for span in spans if span.name == "ringing"]
    assert seconds(ringing) == pytest.approx(answered_s, abs=1e-6)
    assert {"agent turn", "caller turn"} <= {span.name for span in spans}


async def test_nothing_anyone_said_and_no_number_is_in_a_trace(autojump_clock, traces, exporter):
    async with calling(callee="talks") as rig:
        await rig.over()
    traces.call_ended(rig.call.record())
    written = json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()])

    assert rig.call.number not in written
    spoken = [turn.text for turn in rig.call.conversation.notes.transcript.turns]
    assert len(spoken) > 3
    assert [text for text in spoken if text in written] == []


async def test_a_call_that_failed_is_an_error_in_its_trace(autojump_clock, traces, exporter):
    async with calling(callee="talks", script=MODEL_SCRIPTS["quota"]) as rig:
        await rig.over()
    traces.call_ended(rig.call.record())

    (call,) = [span for span in exporter.get_finished_spans() if span.name == "call"]
    assert not call.status.is_ok
    assert call.status.description.startswith("model-")


def test_without_the_package_tracing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(ConfigurationError, match=r"offhook\[otel\]"):
        open_traces(wanted=True)
    assert isinstance(open_traces(wanted=False), NoTraces)
