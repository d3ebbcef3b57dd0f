"""OpenTelemetry traces, with ``pip install offhook[otel]`` and ``TRACES=true``: one for each call.

A trace is written when its call has ended, from what the call has noted anyway, and in a thread, so
tracing costs a call in progress nothing. Nothing anyone said is in it, and no number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from server.errors import ConfigurationError
from server.records.words import CallRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

STAGES = ("vad", "model", "codec", "playout")
MAX_EVENTS = 500
"""Lines of one call's timeline, all in one span; OpenTelemetry's own default is 128."""
MAX_SPANS = 2 + 1_000 + 1_000 * (1 + len(STAGES))
"""Of one call: itself, its ringing, its turns, and its replies with their stages."""
MAX_UNSENT = 4 * MAX_SPANS
"""Spans that wait to be sent, some 3 kB each; OpenTelemetry's own default is 2,048, and it drops
the others."""
MAX_WAITING = 1_000
"""Calls whose traces are to be written: as many may end at once."""
_OURS_OR_THEIRS = ("model-", "carrier-", "error")


class Traces(Protocol):
    """Where ended calls go."""

    def call_ended(self, record: CallRecord) -> None:
        """Have the trace of a call that is over written soon."""
        ...

    def close(self) -> None:
        """Write and send what has not been; blocks, for as long as the exporter's own timeout."""
        ...


class NoTraces:
    """Tracing is off."""

    def call_ended(self, record: CallRecord) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_traces(*, wanted: bool) -> Traces:
    """Start tracing, if it is wanted.

    Where spans are sent, and how, is in OpenTelemetry's own environment variables, such as
    ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_HEADERS`` and ``OTEL_SERVICE_NAME``.

    Raises:
        ConfigurationError: It is wanted, but the packages are not installed.
    """
    if not wanted:
        return NoTraces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(f"TRACES needs pip install 'offhook[otel]': {error}") from None
    # Resource.create lets OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: "offhook"}),
        span_limits=SpanLimits(max_events=_unless_set("OTEL_SPAN_EVENT_COUNT_LIMIT", MAX_EVENTS)),
    )
    most = _unless_set("OTEL_BSP_MAX_QUEUE_SIZE", MAX_UNSENT)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=most))
    return CallTraces(provider)


def _unless_set(name: str, ours: int) -> int | None:
    """Our own default, for what the environment does not say."""
    return None if name in os.environ else ours


class CallTraces:
    """Writes a call as spans: ringing, each turn, each reply with its stages.

    Those of a long call take a third of a second, so one thread writes them, one call after the
    other; it is started with the first.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("offhook")
        self._waiting = SimpleQueue[CallRecord | None]()
        self._thread: Thread | None = None

    def call_ended(self, record: CallRecord) -> None:
        """Have the trace of a call that is over written soon; its record changes no more."""
        if self._waiting.qsize() >= MAX_WAITING:
            logger.warning("trace not written: too many wait", call_sid=record.call_sid)
            return
        self._waiting.put(record)
        if self._thread is None:
            thread = Thread(target=self._work, name="traces", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has none for us: the next call tries again
                logger.warning("traces wait for a thread", error=str(error))
            else:
                self._thread = thread

    def _work(self) -> None:
        """Write what waits, until there is None of it."""
        while (record := self._waiting.get()) is not None:
            try:
                self._write(record)
            except Exception:  # of one call, which is over, and not of those after it
                call_sid = record.call_sid
                logger.exception("trace not written by a bug of ours", call_sid=call_sid)

    def _write(self, record: CallRecord) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        details = record.details
        assert details is not None
        timeline = details.timeline or ()
        ended_s = timeline[-1][0] if timeline else 0.0
        clock = _Clock(record.created_at)
        parent = TraceContextTextMapPropagator().extract({"traceparent": details.traceparent})
        inbound = record.direction == "inbound"
        root = self._tracer.start_span(
            "call",
            parent,
            kind=SpanKind.SERVER if inbound else SpanKind.CLIENT,
            start_time=clock.ns(0.0),
            attributes=_attributes(record),
        )
        if (record.reason or "").startswith(_OURS_OR_THEIRS):
            root.set_status(Status(StatusCode.ERROR, record.reason))
        for at_s, what, facts in timeline:
            root.add_event(what, _plain(facts), clock.ns(at_s))

        # Its line may be gone from the timeline, or in that of another process.
        answered_s = details.answered_s
        self._span(root, "ringing", clock, 0.0, ended_s if answered_s is None else answered_s)
        if answered_s is not None:
            for turn in details.transcript or ():
                started_s = answered_s + turn["at_s"]
                facts = {"offhook.speaker": turn["speaker"], "offhook.cut": turn["cut"]}
                heard_s = turn["heard_s"]
                if heard_s is not None:
                    facts["offhook.heard_s"] = heard_s
                ends_s = started_s + (heard_s or 0.0)
                self._span(root, f"{turn['speaker']} turn", clock, started_s, ends_s, facts)
        for reply in details.replies or ():
            whole_s = sum(reply.stages_s.get(stage, 0.0) for stage in STAGES)
            at_s = reply.at_s
            span = self._span(root, "reply", clock, at_s, at_s + whole_s)
            for stage in STAGES:
                if stage in reply.stages_s:
                    self._span(span, stage, clock, at_s, at_s + reply.stages_s[stage])
                    at_s += reply.stages_s[stage]
        root.end(clock.ns(ended_s))

    def close(self) -> None:
        """Write and send what has not been."""
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()
        else:  # none was needed, or to be had
            self._work()
        self._provider.shutdown()

    def _span(
        self,
        parent: Span,
        name: str,
        clock: _Clock,
        began_at: float,
        ended_at: float,
        facts: dict[str, Any] | None = None,
    ) -> Span:
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(
            name,
            set_span_in_context(parent),
            start_time=clock.ns(began_at),
            attributes=facts or {},
        )
        span.end(clock.ns(max(began_at, ended_at)))
        return span


class _Clock:
    """A call's clock as the world's, in nanoseconds."""

    def __init__(self, created_at: float) -> None:
        self._created_at = created_at

    def ns(self, at_s: float) -> int:
        return round((self._created_at + at_s) * 1e9)


def _attributes(record: CallRecord) -> dict[str, Any]:
    details = record.details
    assert details is not None
    timings = details.timings or {}
    p99_s = {
        f"offhook.{name}_p99_s": _in_s((timings.get(shown) or {}).get("p99_ms"))
        for name, shown in (
            ("caller_chunk", "caller_to_model"),
            ("agent_chunk", "model_to_caller"),
            ("interrupt_to_clear", "interrupt_to_clear"),
        )
    }
    facts = {
        "offhook.call_sid": record.call_sid,
        "offhook.direction": record.direction,
        "offhook.agent": record.agent,
        "offhook.end_reason": record.reason,
        "offhook.duration_s": record.duration_s,
        "offhook.answer_to_first_audio_s": _in_s(timings.get("answer_to_first_audio_ms")),
        **p99_s,
        "offhook.caller_audio_lost_s": timings.get("caller_audio_lost_s"),
    }
    return _plain(facts)


def _in_s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenTelemetry takes as attributes; None is left out."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in facts.items()
        if value is not None
    }
