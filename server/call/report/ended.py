"""What stays in memory of a call that is over."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import structlog
import trio

from server.call.report.costs import CostMeter
from server.call.report.notes import MAX_TIMELINE
from server.call.report.progress import Progress
from server.carrier import StatusUpdate
from server.dialogue.endings import EndReason
from server.records.tables import fitted, shown
from server.records.words import CallDetails

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

DETAILS = frozenset(one.name for one in fields(CallDetails))
_FAST = 1
"""A long call's 20 kB come to a fifth in 0.1 ms; what more effort saves is not worth the wait."""


class EndedCall:
    """A call that is over, for whoever still asks for it: some kilobytes, where a live call has
    hundreds.

    Its record is as it was left but for what becomes known afterwards: how the call stands at the
    carrier, the minutes that are billed, a recording whose end could not be written.

    Args:
        record: As the API shows it.
        reason: Why it ended.
        costs: What it cost, all counts taken; None if that could not be told.
        billed: What the costs go by, as :meth:`CostMeter.as_dict` takes it.
        began_at: When its timeline began.
        progress: How far it has come, as the carrier reports it.
        finished: Set.

    Attributes:
        call_sid: The carrier's name for it.
        end_reason: Why it ended.
        progress: How far it has come, as the carrier reports it.
        finished: Set.
    """

    __slots__ = (
        "_began_at",
        "_billed",
        "_changed",
        "_costs",
        "_lines",
        "_outcome",
        "_packed",
        "_summary",
        "call_sid",
        "end_reason",
        "finished",
        "progress",
    )

    def __init__(
        self,
        record: Mapping[str, Any],
        reason: EndReason,
        *,
        costs: CostMeter | None,
        billed: Mapping[str, float],
        began_at: float,
        progress: Progress,
        finished: trio.Event,
    ) -> None:
        self.call_sid: str = record["call_sid"]
        self.end_reason = reason
        self._summary = {name: of for name, of in record.items() if name not in DETAILS}
        self._outcome = record.get("outcome")
        details = {name: of for name, of in record.items() if name in DETAILS}
        self._packed = zlib.compress(json.dumps(details, default=shown).encode(), _FAST)
        self._changed: dict[str, Any] = {}
        self._lines: tuple[dict[str, Any], ...] = ()
        self._costs = costs
        self._billed = billed
        self._began_at = began_at
        self.progress = progress
        self.finished = finished

    @property
    def is_over(self) -> bool:
        """True."""
        return True

    def shown(self, *, full: bool = True) -> dict[str, Any]:
        """The record as the API shows it: all of it, or what a list shows."""
        changed = self._changed
        if not full:
            return self._summary | {name: changed[name] for name in changed.keys() - DETAILS}
        details: dict[str, Any] = json.loads(zlib.decompress(self._packed))
        if self._lines and details["timeline"] is not None:
            details["timeline"] = [*details["timeline"], *self._lines][-MAX_TIMELINE:]
        return self._summary | details | changed

    def update_status(self, update: StatusUpdate) -> bool:
        """The carrier says how the call stood: idempotent, and it never goes back.

        Returns:
            Whether that is news, so that the record is another now.
        """
        if not self.progress.update(update):
            return False
        changed: dict[str, Any] = {"status": update.status.value}
        if self._costs is not None and self._costs.bill(update):
            changed["cost"] = self._costs.as_dict(**self._billed)
        self._note(changed, update.status.value, update.facts)
        return True

    def outcome_drawn(self, outcome: Mapping[str, Any]) -> None:
        """What the call was for, with what was found in its transcript; as the API shows it."""
        self._changed |= fitted({"outcome": outcome, "outcome_complete": outcome["complete"]})

    @property
    def outcome(self) -> Any:
        """What the call was for, as the API shows it; None if its agent wants nothing."""
        return self._changed.get("outcome", self._outcome)

    def recording_stopped(self, recording: Mapping[str, Any], reason: str) -> None:
        """The rest of what was said could not be written.

        Args:
            recording: As the API shows it now.
            reason: Why.
        """
        self._note({"recording": recording}, "recording stopped", {"reason": reason})

    def _note(self, changed: Mapping[str, Any], what: str, facts: Mapping[str, Any]) -> None:
        """Add a line to the timeline, and change these parts of the record."""
        logger.debug(what, call_sid=self.call_sid, **facts)
        at_s = round(trio.current_time() - self._began_at, 3)
        line = {"at_s": at_s, "what": what, **facts}
        self._changed |= fitted(changed)
        self._lines = (*self._lines, fitted({"line": line})["line"])[-MAX_TIMELINE:]
