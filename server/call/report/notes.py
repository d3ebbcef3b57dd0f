"""What is written down of a call while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
import trio

from server.agent.outcome import Outcome
from server.call.report.costs import CostMeter
from server.call.takeover.state import MAX_TOOLS
from server.dialogue.replies import Replies, Reply
from server.dialogue.timings import Timings
from server.dialogue.transcript import Transcript
from server.metrics import Metrics
from server.model import ToolCall
from server.records.database.tables import writable

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_TIMELINE = 500
_NONE: frozenset[str] = frozenset()  # each new one takes 216 bytes


class Notes:
    """The timeline of a call, its transcript, its timings and its costs.

    Attributes:
        began_at: When the call began.
        timeline: Seconds since then, what happened, and facts: numbers and words of ours.
        metrics: The process's metrics.
        replies: The agent turns that answered the caller.
        tools: The functions that the model has called since it could be resumed last, by id: their
            names, and whether they were answered.
        outcome: What the call has brought as data; None for an agent that wants none.
        had_trouble: Something went wrong on the way, whatever became of it.
        keep_soon: Called when something has changed that another process would have to know to go
            on.
        on_note: Told of each line of the timeline: whose call, when, what, facts; None for nobody.
        keep_now: Called when what has changed would be done twice if another process did not know
            of it; what comes next then finds it kept.
        on_tool: Told of each function that was run and is answered: its name, its arguments, what
            it has returned or raised, and what the model is told of it; None for nobody.
        on_heard: Called when an agent turn was heard to its end, or cut.
    """

    def __init__(self, costs: CostMeter, metrics: Metrics) -> None:
        self.began_at = trio.current_time()
        self.call_sid = ""
        self.timeline: list[tuple[float, str, dict[str, Any]]] = []
        self.transcript = Transcript()
        self.timings = Timings()
        self.replies = Replies()
        self.costs = costs
        self.tools: dict[str, tuple[str, bool]] = {}
        self._tools_left = _NONE  # of another process, or connection
        self._tools_at_work = _NONE  # when there was another connection
        self._is_told_of_left = True
        self._told_after = -1  # the agent's newest turn when the last of those at work was done
        self.outcome: Outcome | None = None
        self.had_trouble = False
        self.keep_soon: Callable[[], None] = _nobody
        self.keep_now: Callable[[], None] = _nobody
        self.on_note: Callable[[str, float, str, Mapping[str, Any]], None] | None = None
        self.on_tool: Callable[[str, Mapping[str, Any], object, Mapping[str, Any]], None] | None
        self.on_tool = None
        self.on_heard: Callable[[int], None] = _nobody_asks
        self.metrics = metrics
        self.caller_latency = metrics.chunk_latency.labels("caller")
        self.agent_latency = metrics.chunk_latency.labels("agent")

    def note(self, what: str, **facts: Any) -> None:
        """Add a line to the timeline; never speech, and no argument of a tool.

        The facts of an agent's own functions may be anything: what JSON cannot say, no database
        would take, and all else of the record with it.
        """
        at_s = trio.current_time() - self.began_at
        facts = {name: writable(fact) for name, fact in facts.items()}
        self.timeline.append((at_s, what, facts))
        del self.timeline[:-MAX_TIMELINE]
        if self.on_note is not None:
            self.on_note(self.call_sid, at_s, what, facts)
        # Webhooks and sockets note things from tasks of their own, without the call's context. The
        # facts keep to themselves: a function's may have any name, one of the logger's as well.
        logger.debug(what, call_sid=self.call_sid, facts=facts)

    def note_trouble(self, what: str, **facts: Any) -> None:
        """Add a line to the timeline, of what somebody may want to look into afterwards."""
        self.had_trouble = True
        self.note(what, **facts)

    def go_on(self, tools: Mapping[str, tuple[str, bool]]) -> None:
        """Another process had been asked for these functions, as :attr:`tools` has them: until the
        model can be resumed with what it is told of them, the next one has to know, too.
        """
        self.tools, self._tools_left = dict(tools), frozenset(tools)
        self._is_told_of_left = False

    def reconnected(self) -> None:
        """The model goes on over another connection, and is told what was run: it can be resumed
        with that only when it has answered, so until then another process has to know. What still
        runs it is told in words when it is done, and no call is open there that holds a handle up.
        """
        done = {identity for identity, (_, is_done) in self.tools.items() if is_done}
        self._tools_left = frozenset(self.tools.keys() & (done | self._tools_left))
        self._tools_at_work = frozenset(self.tools.keys() - self._tools_left)
        self._is_told_of_left = False

    def turn_complete(self, turn: int) -> None:
        """The model has said something, and this turn of it is over: it knows what it was told
        before that began.
        """
        if turn > self._told_after:
            self._is_told_of_left = True
        self.keep_soon()

    def tools_called(self, calls: Iterable[tuple[str, str]]) -> None:
        """The model has called these functions: ids and names."""
        for identity, name in calls:
            self.tools[identity] = name, False
        while len(self.tools) > MAX_TOOLS:
            del self.tools[next(iter(self.tools))]
        self.keep_now()

    def tools_answered(self, ids: Iterable[str], turn: int) -> None:
        """These functions were run and answered, or are no longer wanted.

        Args:
            ids: Theirs.
            turn: The agent's newest turn, whose end is no answer to them: it had begun before.
        """
        for identity in ids:
            if (tool := self.tools.get(identity)) is not None:
                self.tools[identity] = tool[0], True
                if identity in self._tools_at_work:
                    self._tools_left |= {identity}
                    self._is_told_of_left, self._told_after = False, turn
        self.keep_now()

    def fill_outcome(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The agent says part of what the call was for; returns what of it is still missing.

        Raises:
            ValueError: It does not fit, or there is no schema; nothing is kept.
        """
        if self.outcome is None:
            raise ValueError("this agent has no outcome to be filled in")
        if problems := self.outcome.fill(values, "agent"):
            raise ValueError("; ".join(problems))
        self.note("outcome", missing=len(self.outcome.missing))
        self.keep_soon()
        return self.outcome.missing

    def tool_was_run(self, call: ToolCall, came: object, response: Mapping[str, Any]) -> None:
        """A function has returned or raised this, and the model is told so."""
        if self.on_tool is not None:
            self.on_tool(call.name, call.arguments, came, response)

    def remembered(self) -> None:
        """Whatever resumes the model's session from now on knows what was done before."""
        self.tools = {
            identity: tool
            for identity, tool in self.tools.items()
            if not (self._is_told_of_left if identity in self._tools_left else tool[1])
        }
        self.keep_soon()

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


def _nobody_asks(turn: int) -> None:
    """Nobody wants to be told of turns."""


def _nobody() -> None:
    """Nobody else could have the call."""
