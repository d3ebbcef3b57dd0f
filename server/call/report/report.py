"""The record of a call, made of what is written down while it lasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from codec.line import FRAME_S
from server.call.conversation import Conversation
from server.call.report.ended import EndedCall
from server.call.report.progress import Progress
from server.carrier import AnsweredBy, CallStatus
from server.dialogue.endings import EndReason
from server.hooks.trio_clock import missed_s
from server.logs import masked
from server.metrics import Metrics, add
from server.records.database.tables import FIRST_GENERATION
from server.records.words import CallDetails, CallRecord, ReplyRecord
from server.signal import Once

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")

MODALITIES = frozenset({"AUDIO", "TEXT", "IMAGE", "VIDEO"})
"""Counted by their names; others are of the service's own invention."""


class Report:
    """Makes the record of one call, at any time of its life."""

    def __init__(self, conversation: Conversation, created_at: float, began_at: float) -> None:
        self._conversation = conversation
        self.created_at = created_at
        """In the world's time, as the machine had it where the call began; by it a record is
        known."""
        self.began_at = began_at
        """The same moment, in the time of all who may have the call."""
        self.generation = FIRST_GENERATION
        """For the how-manieth time the call is some process's."""
        self._failed: list[str] = []
        self._missed_before_s = 0.0
        self._missed_until_s: float | None = None
        self.traceparent = ""
        """Whose trace this call belongs to: W3C Trace Context, from whoever asked for the call."""

    def answered(self) -> None:
        """The phone has left the hook: what the process misses from now on is on the line, too."""
        self._missed_before_s = missed_s()

    def ended(self) -> None:
        """The call is over: what the process misses from now on is no time of the call's."""
        self._missed_until_s = missed_s()

    def duration_s(self, now: float) -> float:
        """Seconds on the line, as the carrier counts them: from the answer to now."""
        answered_at = self._conversation.answered_at
        if answered_at is None:
            return 0.0
        until_s = missed_s() if self._missed_until_s is None else self._missed_until_s
        return now - answered_at + until_s - self._missed_before_s

    def summary(
        self, now: float, *, status: CallStatus, answered_by: AnsweredBy | None, is_over: bool
    ) -> CallRecord:
        """What a list shows of the call."""
        c = self._conversation
        self._made("passed", c.passing.collect, None)
        return CallRecord(
            call_sid=c.call_sid,
            direction=c.party.direction,
            number=c.party.number if c.options.full_numbers else masked(c.party.number),
            state="ended" if is_over else "live",
            status=status.value,
            reason=c.end_reason.value if c.end_reason else None,
            detail=c.end_detail,
            created_at=round(self.created_at, 3),
            duration_s=round(self.duration_s(now), 3),
            answered_by=answered_by,
            agent_heard_s=self._made(
                "agent_heard_s", lambda: round(c.playout.heard_s(now), 3), 0.0
            ),
            metadata=c.party.metadata,
            agent=c.party.agent.name,
            generation=self.generation,
            had_trouble=c.notes.had_trouble
            or (c.end_reason is not None and c.end_reason.is_failure),
            outcome_complete=self._made(
                "outcome_complete",
                lambda: None if c.notes.outcome is None else c.notes.outcome.is_complete,
                None,
            ),
        )

    def details(self, now: float, *, is_over: bool) -> CallDetails:
        """What a list does not show; a part of it that cannot be made is left out."""
        c, notes = self._conversation, self._conversation.notes
        recorder = c.passing.recorder

        def transcript() -> tuple[dict[str, Any], ...]:
            if not is_over:
                c.write_heard(now)
            return tuple(notes.transcript.as_list(words=c.options.transcripts))

        def replies() -> tuple[ReplyRecord, ...]:
            return tuple(
                ReplyRecord(one.turn, one.ended_at - notes.began_at, one.stages_s())
                for one in notes.replies.all
            )

        return CallDetails(
            timings=self._made(
                "timings",
                lambda: notes.timings.as_dict(caller_audio_lost_s=c.session.lost_s),
                None,
            ),
            tokens=self._made("tokens", notes.costs.tokens, None),
            cost=self._made("cost", lambda: notes.costs.as_dict(**self._billed(now)), None),
            replies=self._made("replies", replies, None),
            recording=self._made(
                "recording", lambda: None if recorder is None else recorder.as_dict(), None
            ),
            transcript=self._made("transcript", transcript, None),
            timeline=self._made("timeline", lambda: tuple(notes.timeline), None),
            outcome=self._made(
                "outcome",
                lambda: None if notes.outcome is None else notes.outcome.as_dict(),
                None,
            ),
            model=notes.costs.model,
            traceparent=self.traceparent,
            answered_s=None if c.answered_at is None else c.answered_at - notes.began_at,
        )

    def left(
        self, record: dict[str, Any], now: float, progress: Progress, finished: Once
    ) -> EndedCall:
        """What stays in memory of a call that is over, given its record as the API shows it."""
        c, notes = self._conversation, self._conversation.notes
        is_priced = record["cost"] is not None
        if is_priced:
            notes.costs.close()
        return EndedCall(
            record,
            c.end_reason or EndReason.ERROR,
            costs=notes.costs if is_priced else None,
            billed=self._billed(now) if is_priced else {},
            began_at=notes.began_at,
            began_wall_at=self.began_at,
            progress=progress,
            finished=finished,
        )

    def known_usd(self, now: float, *, ahead_s: float = 0.0) -> float:
        """What the call costs at least if it goes on for this long."""
        c = self._conversation
        c.passing.collect()
        billed = self._billed(now)
        if c.answered_at is not None:
            billed["on_line_s"] += ahead_s
        return c.notes.costs.known_usd(**billed)

    def count_costs(self, now: float) -> None:
        """Add what the call has cost to the metrics."""
        costs, metrics = self._conversation.notes.costs, self._conversation.metrics
        tokens = costs.tokens()
        for direction in ("prompt", "response"):
            for modality, count in tokens[direction].items():
                known = modality if modality in MODALITIES else "other"
                add(metrics.tokens.labels(direction, known.lower()), count)
        carrier_usd = costs.carrier_usd(self.duration_s(now)) or 0.0
        add(metrics.cost.labels("carrier"), carrier_usd)
        add(metrics.cost.labels("model"), max(0.0, self.known_usd(now) - carrier_usd))

    def count_end(self, metrics: Metrics, reason: EndReason) -> None:
        """The call is over: count it, and why."""
        c = self._conversation
        metrics.calls_active.dec()
        metrics.calls_ended.labels(c.party.direction, reason.value).inc()
        metrics.agents.call_ended(c.party.agent.name, reason.value)
        add(metrics.streams.lost_frames.labels("server"), c.session.lost_s / FRAME_S)

    def tell_bug(self, step: str) -> None:
        """Log the exception at hand, once for each step: a record is looked at again and again."""
        if step not in self._failed:
            self._failed.append(step)
            logger.exception(
                "end of a call failed by a bug of ours",
                step=step,
                call_sid=self._conversation.call_sid,
            )

    def _billed(self, now: float) -> dict[str, float]:
        c = self._conversation
        return {
            "on_line_s": self.duration_s(now),
            "caller_audio_s": c.notes.timings.caller_audio_s,
            "agent_audio_s": c.playout.heard_s(now),
        }

    def _made(self, name: str, make: Callable[[], T], otherwise: T) -> T:
        try:
            return make()
        except Exception:
            self.tell_bug(name)
            return otherwise
