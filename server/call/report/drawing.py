"""What a call has not brought as data, drawn from its transcript when it is over.

A text model reads it, in a thread and after the call: nobody waits for it but the record, which is
kept before, and once more when something has been found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from server.agent.outcome import Outcome, OutcomeSchema
from server.call.report.ended import EndedCall
from server.call.report.notes import Notes
from server.errors import ModelError
from server.metrics import Metrics
from server.model import Reader

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

AT_ONCE = 4
"""Transcripts that are read at the same time."""
MAX_WAITING = 1_000
"""Ended calls whose transcripts wait to be read; beyond that, what the agent wrote down is it."""
MAX_TRANSCRIPT_CHARS = 60_000
"""The end of what was said is read; that is an hour's talk."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A call that is over."""

    call_sid: str
    agent: str
    outcome: Outcome
    transcript: str
    found: Callable[[Outcome], object]


class Drawing:
    """Draws what is missing in outcomes.

    Args:
        reader: Reads transcripts; None if there is none to be had.
        timeout_s: How long one may take; 0 for none to be read.
        metrics: The process's metrics.
    """

    def __init__(self, reader: Reader | None, *, timeout_s: float, metrics: Metrics) -> None:
        self._reader = reader if timeout_s else None
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._under_way = 0
        self._idle = trio.Event()
        self._threads = trio.CapacityLimiter(AT_ONCE)
        self._waiting_in, self._waiting_out = trio.open_memory_channel[_Ended](MAX_WAITING)

    def ended(self, notes: Notes, agent: str, found: Callable[[Outcome], object]) -> None:
        """A call is over.

        Args:
            notes: What was written down of it.
            agent: Who spoke, by name.
            found: Called with its outcome when more is known of it.
        """
        if (outcome := notes.outcome) is None:
            return
        transcript = notes.transcript
        turns = [(turn.speaker, transcript.heard_text(turn)) for turn in transcript.turns]
        self._take(_Ended(notes.call_sid, agent, outcome, _said(turns), found))

    def inherited(
        self, left: EndedCall, schema: OutcomeSchema, found: Callable[[Outcome], object]
    ) -> None:
        """A call is over that another process had, which was lost before its record was written.

        Args:
            left: What that one has left.
            schema: What the call was to bring.
            found: See :meth:`ended`.
        """
        record, outcome = left.shown(), Outcome(schema)
        known = left.outcome if isinstance(left.outcome, Mapping) else {}
        if isinstance(values := known.get("values"), Mapping):
            outcome.go_on(values)
        turns = record.get("transcript")
        said = [
            (str(turn.get("speaker")), str(turn.get("text") or ""))
            for turn in (turns if isinstance(turns, list) else ())
            if isinstance(turn, Mapping)
        ]
        self._take(_Ended(left.call_sid, str(record["agent"]), outcome, _said(said), found))

    def _take(self, ended: _Ended) -> None:
        outcome, agent = ended.outcome, ended.agent
        if self._reader is not None and not outcome.is_complete and ended.transcript:
            try:
                self._waiting_in.send_nowait(ended)
            except trio.WouldBlock:
                logger.warning("outcome not drawn: too many wait", call_sid=ended.call_sid)
            else:
                self._under_way += 1
                return
        self._metrics.agents.outcome(agent, is_complete=outcome.is_complete)

    async def run(self) -> None:
        """Read what is to be read, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._work)

    async def finish(self) -> None:
        """Wait until nothing is left to be read, for as long as one may take."""
        with trio.move_on_after(self._timeout_s):
            while self._under_way:
                await self._idle.wait()

    async def _work(self) -> None:
        async for ended in self._waiting_out:
            try:
                await self._draw(ended)
            except Exception:
                # Of one call, which is over, and not of those after it.
                logger.exception("outcome not drawn by a bug of ours", call_sid=ended.call_sid)
            finally:
                self._under_way -= 1
                if not self._under_way:
                    self._idle.set()
                    self._idle = trio.Event()
                complete = ended.outcome.is_complete
                self._metrics.agents.outcome(ended.agent, is_complete=complete)

    async def _draw(self, ended: _Ended) -> None:
        reader, outcome = self._reader, ended.outcome
        assert reader is not None
        reason = "late"
        with trio.move_on_after(self._timeout_s):
            try:
                drawn = await trio.to_thread.run_sync(
                    _read, reader, outcome, ended.transcript,
                    abandon_on_cancel=True, limiter=self._threads,
                )  # fmt: skip
            except ModelError as error:
                reason = error.loggable
            else:
                is_news = drawn.values != outcome.values
                outcome.values, outcome.sources = drawn.values, drawn.sources
                if is_news:
                    ended.found(outcome)
                return
        logger.warning("outcome not drawn", call_sid=ended.call_sid, reason=reason)


def _read(reader: Reader, outcome: Outcome, transcript: str) -> Outcome:
    """The outcome with what a reader finds; in a thread, for to check it takes its time, too."""
    schema = outcome.schema
    unsaid = {name: one for name, one in schema.properties.items() if name not in outcome.values}
    wanted: dict[str, Any] = {"type": "object", "properties": unsaid}
    if "$defs" in schema.schema:
        wanted["$defs"] = schema.schema["$defs"]
    drawn = Outcome(schema)
    drawn.values, drawn.sources = dict(outcome.values), set(outcome.sources)
    drawn.fill_missing(reader.read(wanted, transcript), "transcript")
    return drawn


def _said(turns: Sequence[tuple[str, str]]) -> str:
    """What both have said, as the caller heard it; empty if the caller has said nothing.

    Args:
        turns: Who spoke, and what was heard of it.
    """
    if not any(speaker == "caller" and text.strip() for speaker, text in turns):
        return ""
    lines = (f"{speaker}: {text.strip()}" for speaker, text in turns if text.strip())
    return "\n".join(lines)[-MAX_TRANSCRIPT_CHARS:]
