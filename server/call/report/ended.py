"""What stays in memory of a call that is over."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import structlog
import trio

from server.call.report.costs import CostMeter
from server.call.report.notes import MAX_TIMELINE
from server.call.report.progress import Progress
from server.carrier import CallStatus, StatusUpdate
from server.dialogue.endings import EndReason
from server.errors import ServerError
from server.records.database.tables import KEPT_AT, MAX_NUMBER, NOT_WHOLE, checked, fitted, shown
from server.records.words import CallDetails
from server.signal import Once

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

DETAILS = frozenset(one.name for one in fields(CallDetails))
_VERSION = b"1"
"""The first byte of what is handed on; older programs do not read what begins otherwise."""
MAX_LEFT_BYTES = 48 * 1024
"""Of what is handed on of one call: a long one's is 5 kB. One that has more is left with its
summary."""
_MAX_DETAILS_BYTES = 16 * 1024 * 1024
"""Far beyond those of a day."""
_FAST = 1
"""A long call's 20 kB come to a fifth in 0.1 ms; what more effort saves is not worth the wait."""


class LeftUnreadable(ServerError):
    """What was left of a call that has ended cannot be read, or is of an unknown version."""


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
        began_wall_at: The same moment, in the time of all who may have the call.
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
        "_began_wall_at",
        "_billed",
        "_changed",
        "_costs",
        "_known_usd",
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
        began_wall_at: float,
        progress: Progress,
        finished: Once,
    ) -> None:
        self.call_sid: str = record["call_sid"]
        self.end_reason = reason
        self._summary = {name: of for name, of in record.items() if name not in DETAILS}
        self._outcome = record.get("outcome")
        self._known_usd: float | None = (record.get("cost") or {}).get("known_usd")
        details = {name: of for name, of in record.items() if name in DETAILS}
        self._packed = zlib.compress(json.dumps(details, default=shown).encode(), _FAST)
        self._changed: dict[str, Any] = {}
        self._lines: tuple[dict[str, Any], ...] = ()
        self._costs = costs
        self._billed = billed
        self._began_at = began_at
        self._began_wall_at = began_wall_at
        self.progress = progress
        self.finished = finished

    @property
    def created_at(self) -> float:
        """When it began, as its record says."""
        at: float = self._summary["created_at"]
        return at

    @property
    def is_over(self) -> bool:
        """True."""
        return True

    def handed_on(self, events_url: str | None) -> bytes:
        """What another process needs to write the record in our place, and to tell of its end.

        Args:
            events_url: Who is told of it, if it is the call's own receiver.
        """
        facts = {
            "number": self.progress.number,
            "events_url": events_url,
            "began_at": round(self._began_wall_at, 3),
        }
        head = json.dumps({"record": self._summary, **facts}, default=shown).encode()
        if len(head) + len(self._packed) <= MAX_LEFT_BYTES:
            return b"".join((_VERSION, head, b"\n", self._packed))
        # The whole one may be written already, or be yet.
        summary = self._summary | {NOT_WHOLE: "its process was lost before it was written"}
        head = json.dumps({"record": summary, **facts}, default=shown).encode()
        if len(head) > MAX_LEFT_BYTES:  # labels of the client's, in some alphabet that JSON escapes
            head = json.dumps({"record": summary | {"metadata": {}}, **facts}).encode()
        no_details = dict.fromkeys(json.loads(zlib.decompress(self._packed)))
        nothing = zlib.compress(json.dumps(no_details).encode(), _FAST)
        return b"".join((_VERSION, head, b"\n", nothing))

    @classmethod
    def taken_over(cls, left: bytes, *, wall_time: float) -> tuple[EndedCall, str | None]:
        """Read what another process has :meth:`handed_on`; returns whom to tell, too.

        Args:
            left: What that is.
            wall_time: The time as all who may have the call have it.

        Raises:
            LeftUnreadable: It is something else, or a part of it is beyond bounds.
        """
        try:
            head, _, packed = left.removeprefix(_VERSION).partition(b"\n")
            reader = zlib.decompressobj()
            details = json.loads(reader.decompress(packed, _MAX_DETAILS_BYTES))
            facts = json.loads(head)
            url = facts["events_url"]
            known = {name: of for name, of in details.items() if name in DETAILS}
            record = checked(facts["record"] | known)
            if (began_at := facts.get("began_at")) is None:  # of an older program: see going_on
                began_at = record["created_at"] + wall_time - time.time()
            if left[:1] != _VERSION or not reader.eof or not isinstance(url, str | None):
                raise ValueError("no record")
            if not (type(began_at) in (int, float) and abs(began_at) < MAX_NUMBER):
                raise ValueError("no time")
            progress, finished = Progress(), Once()
            progress.go_on(CallStatus(record["status"]), int(facts["number"]))
            finished.set()
            del record[KEPT_AT]
            return cls(
                record,
                EndReason(record["reason"]),
                costs=None,
                billed={},
                began_at=trio.current_time() - max(0.0, wall_time - began_at),
                began_wall_at=began_at,
                progress=progress,
                finished=finished,
            ), url
        except (
            zlib.error, ValueError, TypeError, KeyError, AttributeError, RecursionError,
        ) as error:  # fmt: skip
            kind = type(error).__name__  # its words may quote what people said
            raise LeftUnreadable(f"what is left of a call cannot be read: {kind}") from None

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

    @property
    def cost(self) -> Mapping[str, Any] | None:
        """What lists are asked of what the call has cost; None if that could not be told."""
        if self._known_usd is None:
            return None
        cost: Mapping[str, Any] = self._changed.get("cost", {"known_usd": self._known_usd})
        return cost

    def recording_stopped(self, recording: Mapping[str, Any], reason: str) -> None:
        """The rest of what was said could not be written.

        Args:
            recording: As the API shows it now.
            reason: Why.
        """
        changed = {"recording": recording, "had_trouble": True}
        self._note(changed, "recording stopped", {"reason": reason})

    def _note(self, changed: Mapping[str, Any], what: str, facts: Mapping[str, Any]) -> None:
        """Add a line to the timeline, and change these parts of the record."""
        logger.debug(what, call_sid=self.call_sid, **facts)
        at_s = round(trio.current_time() - self._began_at, 3)
        line = {"at_s": at_s, "what": what, **facts}
        self._changed |= fitted(changed)
        self._lines = (*self._lines, fitted({"line": line})["line"])[-MAX_TIMELINE:]
