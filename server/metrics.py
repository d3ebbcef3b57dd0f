"""What is measured: bounded latency summaries per call, and the process's Prometheus metrics.

The same :class:`LatencySummary` takes a call's timestamps in production, in the demo's table and in
the benchmarks, so that they speak of the same thing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as prometheus_text
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from codec import latency, tls
from server.logs import output


class LatencySummary(latency.Latencies):
    """One call's durations of one kind: percentiles within 4.4 %, and next to no memory."""

    __slots__ = ()

    def as_dict(self) -> dict[str, float | int | None]:
        """Count and percentiles in milliseconds, as the API shows them."""

        def in_ms(duration_s: float | None) -> float | None:
            return None if duration_s is None else round(duration_s * 1000, 3)

        return {
            "count": self.count,
            "p50_ms": in_ms(self.percentile(50)),
            "p99_ms": in_ms(self.percentile(99)),
            "max_ms": in_ms(self.max_s if self.count else None),
        }


class CountedInC:
    """A Prometheus histogram whose observations cost no Python: for what happens 50 times a second.

    What a scrape shows is, to the letter, what prometheus-client's own ``Histogram`` would show.
    """

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], *,
        buckets: Sequence[float], registry: CollectorRegistry,
    ) -> None:  # fmt: skip
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._buckets = tuple(buckets)
        self._children: dict[tuple[str, ...], tuple[latency.Histogram, float]] = {}
        # The switch that prometheus-client documents, and applies only to histograms of its own.
        switch = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "")
        self._shows_created = switch.lower() not in ("true", "1", "t")
        registry.register(self)

    def labels(self, *values: str) -> latency.Histogram:
        """The series with these label values; keep it, and ``observe``."""
        if len(values) != len(self._labelnames):
            raise ValueError(f"{self._name} has the labels {self._labelnames}, not {values}")
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = (latency.Histogram(self._buckets), time.time())
        return child[0]

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The name alone, so that it is registered only once."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """What a scrape shows."""
        [family] = self.describe()
        for values, (histogram, created_at) in list(self._children.items()):
            so_far = 0
            cumulative: list[tuple[str, float]] = []
            for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
                so_far += count
                cumulative.append((floatToGoString(bound), so_far))
            family.add_metric(values, cumulative, histogram.sum_s)
            if self._shows_created:
                labels = dict(zip(self._labelnames, values, strict=True))
                family.add_sample(f"{self._name}_created", labels, created_at)
        yield family


_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_HUMAN = (0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_WAIT = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)


KINDS_OF_STRANGERS = (
    "key",
    "webhook-signature",
    "stream-signature",
    "stream-no-start",
    "stream-protocol",
    "stream-ticket",
    "stream-worker",
    "peer",
)
NO_ROOM = ("full", "model-sessions", "overloaded", "rate", "burst", "descriptors", "memory")
"""Why calls are refused that would be taken by a server with more room."""
RecordFailure = Literal[
    "open", "read", "write", "request", "outbox", "event", "record", "aside", "given-up"
]
"""What failed of the work with records."""
RecordingStopped = Literal["disk-full", "disk-too-slow", "disk-error", "error"]
"""Why a recording has ended before its call."""


MAX_ADDED = 1e9
"""No call comes to so many tokens, dollars or frames."""


def add(counter: Counter, amount: float) -> None:
    """Add what one call has come to; what none can come to is left out.

    A counter never forgets: infinity, or a number of a stranger's invention, would stay in it until
    the process ends.
    """
    if 0 <= amount <= MAX_ADDED:  # not a number is neither
        counter.inc(amount)


class EventMetrics:
    """What became of events."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sent = Counter(
            "offhook_events_sent", "Times that an event was sent, by what came of it.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.handled = Counter(
            "offhook_events_handled", "Calls of event handlers in Python, by outcome.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "offhook_events_waiting",
            "Events in the database that no receiver has yet; the same for all its processes.",
            registry=registry,
        )
        self.oldest = Gauge(
            "offhook_events_oldest_seconds", "For how long the oldest of them waits.",
            registry=registry,
        )  # fmt: skip
        self.dead = Gauge(
            "offhook_events_dead", "Events that were given up, and wait for people.",
            registry=registry,
        )  # fmt: skip
        for outcome in ("delivered", "failed", "dead"):
            self.sent.labels(outcome)
        for outcome in ("ok", "error", "late", "left-out"):
            self.handled.labels(outcome)


class RecordMetrics:
    """What became of records, of events about calls, and of recordings."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = EventMetrics(registry)
        self.unsaved = Gauge(
            "offhook_records_unsaved", "Records that wait for the database.", registry=registry
        )
        self.failures = Counter(
            "offhook_record_failures", "Work with the database that failed, or records given up.",
            ["what"], registry=registry,
        )  # fmt: skip
        self.aside = Counter(
            "offhook_records_aside", "Records put into files beside, and taken up from them.",
            ["what"], registry=registry,
        )  # fmt: skip
        for failed in get_args(RecordFailure):
            self.failures.labels(failed)
        for what in ("kept", "taken-up", "refused"):
            self.aside.labels(what)
        self.recordings_stopped = Counter(
            "offhook_recordings_stopped", "Recordings that stopped before their call did.",
            ["reason"], registry=registry,
        )  # fmt: skip
        for reason in get_args(RecordingStopped):
            self.recordings_stopped.labels(reason)


class _LinesDropped:
    """What :mod:`server.logs.output` counts, of which a process has one for all its registries."""

    def collect(self) -> Iterable[Metric]:
        text = "Lines of output that found no room, or that stdout or stderr did not take."
        yield CounterMetricFamily("offhook_log_lines_dropped", text, value=output.dropped())


class StreamMetrics:
    """What media streams have carried, and what was wrong with it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.accepted = Counter(
            "offhook_media_path_streams",
            "Media streams by the path they took: the media plane, or through hypercorn.",
            ["path"], registry=registry,
        )  # fmt: skip
        compiled_tls = Gauge(
            "offhook_compiled_tls_available",
            "Whether TLS to the model can be served in C (1), or by Python only (0), for more CPU.",
            registry=registry,
        )
        compiled_tls.set(tls.AVAILABLE)
        self.lost_frames = Counter(
            "offhook_lost_frames",
            "20 ms frames of caller audio that were lost, at the carrier or in this server.",
            ["where"], registry=registry,
        )  # fmt: skip
        self.odd_messages = Counter(
            "offhook_odd_messages", "Carrier messages that were ignored, by what was odd.",
            ["what"], registry=registry,
        )  # fmt: skip
        self.lines = Counter(
            "offhook_lines", "Calls that lost their stream, got another, or did not.", ["event"],
            registry=registry,
        )  # fmt: skip
        for where in ("carrier", "server"):
            self.lost_frames.labels(where)
        for event in ("lost", "back", "not-back"):
            self.lines.labels(event)


class RegistryMetrics:
    """How the registry of a server on many machines does; only there are they to be seen."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.changes = Counter(
            "offhook_registry_changes",
            "Times that the registry was found away, back, or to have lost what was in it.",
            ["event"], registry=registry,
        )  # fmt: skip
        self.is_away = Gauge(
            "offhook_registry_away", "1 while the registry cannot be asked.", registry=registry
        )
        self.unsaid = Gauge(
            "offhook_registry_unsaid",
            "Calls of which the registry has not been told the newest.", registry=registry,
        )  # fmt: skip
        self.calls = Gauge(
            "offhook_registry_calls",
            "Calls that this process would tell the registry of again.", registry=registry,
        )  # fmt: skip
        for event in ("away", "back", "lost"):
            self.changes.labels(event)


class VoiceMetrics:
    """How voices are told from noise."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.available = Gauge(
            "offhook_voice_judge_available",
            "Whether voices are told from noise by a model (1), or by a detector alone (0).",
            registry=registry,
        )
        self.suspicions = Counter(
            "offhook_voice_suspicions", "Times that a caller's audio was worth asking about.",
            registry=registry,
        )  # fmt: skip
        self.hops = Counter(
            "offhook_voice_hops", "Stretches of 32 ms that were judged.", registry=registry
        )
        self.cpu = Counter(
            "offhook_voice_judge_cpu_seconds",
            "The processor's time that judging has taken, in its own thread and in the loop.",
            registry=registry,
        )
        self.late = Counter(
            "offhook_voice_late",
            "Times that a call had to do with a detector alone, as judging took too long.",
            registry=registry,
        )
        self.refusals = Counter(
            "offhook_voice_refusals",
            "Times that a call had to do with a detector alone, as there was no place for it, or "
            "nobody to judge it.",
            registry=registry,
        )
        self.failures = Counter(
            "offhook_voice_failures",
            "Times that the model of voices could not be loaded, or has failed.", registry=registry,
        )  # fmt: skip


class CapacityMetrics:
    """What the process has room and time for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.setups = Gauge(
            "offhook_calls_in_setup", "Calls that were admitted and do not talk yet.",
            registry=registry,
        )  # fmt: skip
        self.tasks = Gauge(
            "offhook_tasks", "Tasks of the process's loop, ours and the libraries'.",
            registry=registry,
        )  # fmt: skip
        self.memory_left = Gauge(
            "offhook_memory_left_bytes",
            "Memory that the process may still have: its cgroup's, the system's, its own limit.",
            registry=registry,
        )
        self.paused = Counter(
            "offhook_paused_seconds",
            "Time for which the process was held up (stopped, frozen, starved); no deadline ran.",
            registry=registry,
        )


class StallMetrics:
    """How often, and for how long, something has kept the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.stalls = Counter(
            "offhook_loop_stalls",
            "Times that the event loop was 5 ms late or more in one go, by what kept it.",
            ["cause"], registry=registry,
        )  # fmt: skip
        self.seconds = Counter(
            "offhook_loop_stall_seconds", "How late it was in all of these, by what kept it.",
            ["cause"], registry=registry,
        )  # fmt: skip
        for cause in ("code", "blocked", "collector", "starved"):
            self.stalls.labels(cause)
            self.seconds.labels(cause)


class AgentMetrics:
    """What agents have done; names beyond :data:`MAX_AGENTS` are counted together."""

    MAX_AGENTS = 50

    def __init__(self, registry: CollectorRegistry) -> None:
        self._names: set[str] = set()
        self.calls_ended = Counter(
            "offhook_agent_calls_ended", "Calls by agent and reason.", ["agent", "reason"],
            registry=registry,
        )  # fmt: skip
        self.outcomes = Counter(
            "offhook_outcomes", "What calls have brought as data, by whether it is whole.",
            ["agent", "complete"], registry=registry,
        )  # fmt: skip
        self.tool_calls = Counter(
            "offhook_tool_calls", "Functions the model called, and what came of it.",
            ["tool", "outcome"], registry=registry,
        )  # fmt: skip
        self.tool_seconds = Histogram(
            "offhook_tool_seconds", "How long a function of the model's took.", ["tool"],
            buckets=_HUMAN, registry=registry,
        )  # fmt: skip

    def outcome(self, agent: str, *, is_complete: bool) -> None:
        """What a call of this agent has brought is final."""
        self.outcomes.labels(self._label(agent), "yes" if is_complete else "no").inc()

    def call_ended(self, agent: str, reason: str) -> None:
        """A call of this agent has ended."""
        self.calls_ended.labels(self._label(agent), reason).inc()

    def _label(self, agent: str) -> str:
        if agent not in self._names and len(self._names) >= self.MAX_AGENTS:
            return "other"
        self._names.add(agent)
        return agent


class Metrics:
    """The process's Prometheus metrics; labels are few and never name a call or a person."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.records = RecordMetrics(registry)
        self.streams = StreamMetrics(registry)
        self.agents = AgentMetrics(registry)
        registry.register(_LinesDropped())
        self.capacity = CapacityMetrics(registry)
        self.stalls = StallMetrics(registry)
        self.calls_ended = Counter(
            "offhook_calls_ended", "Calls by direction and reason.", ["direction", "reason"],
            registry=registry,
        )  # fmt: skip
        self.calls_active = Gauge("offhook_calls_active", "Calls now.", registry=registry)
        self.chunk_latency = CountedInC(
            "offhook_chunk_latency_seconds", "Chunk read to chunk written.", ["direction"],
            buckets=_FAST, registry=registry,
        )  # fmt: skip
        self.answer_to_audio = Histogram(
            "offhook_answer_to_first_audio_seconds", "Stream start to the first agent audio sent.",
            buckets=_HUMAN, registry=registry,
        )  # fmt: skip
        self.interrupt_to_clear = Histogram(
            "offhook_interrupt_to_clear_seconds", "Barge-in seen to the clear sent.",
            buckets=_FAST, registry=registry,
        )  # fmt: skip
        self.replies = Histogram(
            "offhook_reply_seconds",
            "From the caller's last sound to the agent's first, by stage, and in total.",
            ["stage"], buckets=_HUMAN, registry=registry,
        )  # fmt: skip
        self.watchdog = Counter(
            "offhook_watchdog", "Rungs climbed because a caller got no answer.",
            ["rung", "fault"], registry=registry,
        )  # fmt: skip
        self.model_reconnects = Counter(
            "offhook_model_reconnects", "Model connections replaced during a call.",
            ["reason", "way"], registry=registry,
        )  # fmt: skip
        self.calls_refused = Counter(
            "offhook_calls_refused", "Calls not placed or not answered, by reason.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.model_refusals = Counter(
            "offhook_model_refusals",
            "Times that the model's service has refused the account, by what it refused.",
            ["kind"], registry=registry,
        )  # fmt: skip
        self.calls_paused = Gauge(
            "offhook_calls_paused",
            "1 while no calls are taken because the model's service refuses the account.",
            registry=registry,
        )
        self.admission_queue = Gauge(
            "offhook_admission_queue", "Calls that wait for their turn to be dialled.",
            registry=registry,
        )  # fmt: skip
        self.dial_wait = Histogram(
            "offhook_dial_wait_seconds", "Time a call has waited for its turn to be dialled.",
            buckets=_WAIT, registry=registry,
        )  # fmt: skip
        self.dials = Counter(
            "offhook_dials", "Requests to the carrier to dial, by outcome.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.loop_lag = Histogram(
            "offhook_loop_lag_seconds", "How late the event loop wakes a sleeping task.",
            buckets=_FAST, registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "offhook_model_tokens", "Tokens of ended calls, as billed.", ["direction", "modality"],
            registry=registry,
        )  # fmt: skip
        self.cost = Counter(
            "offhook_cost_usd", "Cost of ended calls, as far as it is known.", ["part"],
            registry=registry,
        )  # fmt: skip
        self.strangers_refused = Counter(
            "offhook_strangers_refused",
            "Requests and sockets without the key, signature or ticket they need, by kind.",
            ["kind"], registry=registry,
        )  # fmt: skip
        self.passed_on = Counter(
            "offhook_passed_on",
            "What came to another process of this server than the one it was about.",
            ["what"], registry=registry,
        )  # fmt: skip
        # From the start, so that the first of each is seen as an increase and not as news.
        for outcome in ("accepted", "refused", "unknown"):
            self.dials.labels(outcome)
        for kind in KINDS_OF_STRANGERS:
            self.strangers_refused.labels(kind)
        for reason in NO_ROOM:
            self.calls_refused.labels(reason)
        for part in ("carrier", "model"):
            self.cost.labels(part)


def merged(registry: CollectorRegistry, others: Iterable[str], **labels: str) -> bytes:
    """This process's samples with labels of their own, and those of other processes, as one text.

    They are not added up: a counter that begins anew, because its process did, would take the sum
    with it, which Prometheus would read as everything having happened again.

    Args:
        registry: This process's.
        others: What other processes say, labels included.
        labels: What tells this one from them.
    """
    families: dict[str, Metric] = {}
    for family in text_string_to_metric_families(prometheus_text(registry).decode()):
        families[family.name] = family
        family.samples = [
            sample._replace(labels={**sample.labels, **labels}) for sample in family.samples
        ]
    for text in others:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, family)
            if families[family.name] is not family:
                families[family.name].samples += family.samples
    return prometheus_text(_Merged(families.values()))


class _Merged:
    """What :func:`merged` has put together, as Prometheus's own writer takes it."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
