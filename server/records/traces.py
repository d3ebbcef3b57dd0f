"""OpenTelemetry traces, with ``pip install offhook[otel]`` and ``TRACES=true``: one for each call.

A trace is written when its call has ended, from what the call has noted anyway, so tracing costs a
call in progress nothing. Nothing anyone said is in it, and no number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from server.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from server.call.call import Call

STAGES = ("vad", "model", "codec", "playout")
_OURS_OR_THEIRS = ("model-", "carrier-", "error")


class Traces(Protocol):
    """Where ended calls go."""

    def call_ended(self, call: Call) -> None:
        """Write the trace of a call that is over."""
        ...

    def close(self) -> None:
        """Send what has not been sent; blocks, for as long as the exporter's own timeout."""
        ...


class NoTraces:
    """Tracing is off."""

    def call_ended(self, call: Call) -> None:
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
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(f"TRACES needs pip install 'offhook[otel]': {error}") from None
    # Resource.create lets OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "offhook"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return CallTraces(provider)


class CallTraces:
    """Writes a call as spans: ringing, each turn, each reply with its stages."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("offhook")

    def call_ended(self, call: Call) -> None:
        """Write the trace of a call that is over."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        timeline = [(call.began_at + at_s, what, facts) for at_s, what, facts in call.timeline]
        ended_at = timeline[-1][0] if timeline else call.began_at
        clock = _Clock(call.began_at, call.created_at)
        parent = TraceContextTextMapPropagator().extract({"traceparent": call.traceparent})
        inbound = call.direction == "inbound"
        root = self._tracer.start_span(
            "call",
            parent,
            kind=SpanKind.SERVER if inbound else SpanKind.CLIENT,
            start_time=clock.ns(call.began_at),
            attributes=_attributes(call),
        )
        reason = call.end_reason.value if call.end_reason else ""
        if reason.startswith(_OURS_OR_THEIRS):
            root.set_status(Status(StatusCode.ERROR, reason))
        for at, what, facts in timeline:
            root.add_event(what, _plain(facts), clock.ns(at))

        answered_at = next((at for at, what, _ in timeline if what == "answered"), None)
        self._span(root, "ringing", clock, call.began_at, answered_at or ended_at)
        if answered_at is not None:
            for turn in call.transcript.turns:
                started_at = answered_at + turn.started_s
                facts = {"offhook.speaker": turn.speaker, "offhook.cut": turn.cut}
                if turn.heard_s is not None:
                    facts["offhook.heard_s"] = round(turn.heard_s, 3)
                ends_at = started_at + (turn.heard_s or 0.0)
                self._span(root, f"{turn.speaker} turn", clock, started_at, ends_at, facts)
        for reply in call.replies:
            stages_s = reply.stages_s()
            whole_s = sum(stages_s.get(stage, 0.0) for stage in STAGES)
            span = self._span(root, "reply", clock, reply.ended_at, reply.ended_at + whole_s)
            at = reply.ended_at
            for stage in STAGES:
                if stage in stages_s:
                    self._span(span, stage, clock, at, at + stages_s[stage])
                    at += stages_s[stage]
        root.end(clock.ns(ended_at))

    def close(self) -> None:
        """Send what has not been sent."""
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
    """trio's clock as the world's, in nanoseconds."""

    def __init__(self, began_at: float, created_at: float) -> None:
        self._offset_s = created_at - began_at

    def ns(self, at: float) -> int:
        return round((at + self._offset_s) * 1e9)


def _attributes(call: Call) -> dict[str, Any]:
    timings = call.timings
    facts = {
        "offhook.call_sid": call.call_sid,
        "offhook.direction": call.direction,
        "offhook.end_reason": call.end_reason.value if call.end_reason else None,
        "offhook.duration_s": round(call.duration_s, 3),
        "offhook.answer_to_first_audio_s": timings.answer_to_first_audio_s,
        "offhook.caller_chunk_p99_s": timings.caller_chunks.percentile(99),
        "offhook.agent_chunk_p99_s": timings.agent_chunks.percentile(99),
        "offhook.interrupt_to_clear_p99_s": timings.interrupt_to_clear.percentile(99),
        "offhook.caller_audio_lost_s": timings.caller_audio_lost_s,
    }
    return _plain(facts)


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """What OpenTelemetry takes as attributes; None is left out."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in facts.items()
        if value is not None
    }
