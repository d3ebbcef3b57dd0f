"""What is written down of a call while it lasts."""

from __future__ import annotations

from collections import deque
from typing import Any

import structlog
import trio

from server.call.report.costs import CostMeter
from server.dialogue.replies import Replies, Reply
from server.dialogue.timings import Timings
from server.dialogue.transcript import Transcript
from server.metrics import Metrics

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_TIMELINE = 500


class Notes:
    """The timeline of a call, its transcript, its timings and its costs.

    Attributes:
        began_at: When the call began.
        timeline: Seconds since then, what happened, and facts: numbers and words of ours.
        metrics: The process's metrics.
        replies: The agent turns that answered the caller.
    """

    def __init__(self, costs: CostMeter, metrics: Metrics) -> None:
        self.began_at = trio.current_time()
        self.call_sid = ""
        self.timeline: deque[tuple[float, str, dict[str, Any]]] = deque(maxlen=MAX_TIMELINE)
        self.transcript = Transcript()
        self.timings = Timings()
        self.replies = Replies()
        self.costs = costs
        self.metrics = metrics
        self.caller_latency = metrics.chunk_latency.labels("caller")
        self.agent_latency = metrics.chunk_latency.labels("agent")

    def note(self, what: str, **facts: Any) -> None:
        """Add a line to the timeline; never speech, and no argument of a tool."""
        self.timeline.append((trio.current_time() - self.began_at, what, facts))
        # Webhooks and sockets note things from tasks of their own, without the call's context.
        logger.debug(what, call_sid=self.call_sid, **facts)

    def caller_passed(self, took_s: float) -> None:
        """A chunk of the caller's has gone to the model."""
        self.timings.caller_chunks.record(took_s)
        self.caller_latency.observe(took_s)

    def agent_passed(self, took_s: float) -> None:
        """A chunk of the agent's has gone to the caller."""
        self.timings.agent_chunks.record(took_s)
        self.agent_latency.observe(took_s)

    def measured(self, reply: Reply, *stages: str) -> None:
        """These stages of a reply are known now."""
        durations_s = reply.stages_s()
        for stage in stages:
            self.metrics.replies.labels(stage).observe(durations_s[stage])
        if "total" in stages:
            self.timings.replies.record(durations_s["total"])
