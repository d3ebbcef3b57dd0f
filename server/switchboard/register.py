"""The register of calls: live ones, those that ended lately, and what the database has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog

from server.agent import phrases
from server.agent.outcome import Outcome
from server.call.call import Call
from server.call.report.ended import EndedCall
from server.carrier import StatusUpdate
from server.carrier.webhooks import EndCall, Reply, SayAndEndCall
from server.errors import ServerError
from server.events.event import Kind
from server.events.events import Events
from server.records.recording import Recorder
from server.records.store import Records
from server.records.words import CallRecord, Cursor, RecordsUnavailable, Wanted
from server.switchboard.making import one_calls_trouble

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_UNWRITTEN = 1_000
"""Ended calls that stay with the others until their records are written: a database may be away for
long."""
MAX_ENDED = 10_000
"""CallSids of ended calls that are remembered: a webhook that comes again begins no call again."""


class Watcher(Protocol):
    """Whoever shows live calls to people."""

    def is_watched(self) -> bool:
        """Whether anybody looks."""
        ...

    def call_changed(self, shown: Mapping[str, Any]) -> None:
        """A call has begun, was answered, has ended, or is told of again, as a list shows it."""
        ...

    def noted(self, call_sid: str, at_s: float, what: str, facts: Mapping[str, Any]) -> None:
        """A line was added to the timeline of a live call."""
        ...


class CallIsOver(ServerError):
    """A call has ended here: nobody is to go on with it."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the list of calls."""

    rows: list[dict[str, Any]]
    more: bool
    """Whether there are calls after these."""
    is_complete: bool
    """False when the database, or a process that may have calls, could not be asked."""

    def joined(self, other: Page, limit: int) -> Page:
        """What two processes know together; of a call that both know, the other's word counts."""
        rows = {row["call_sid"]: row for row in self.rows}
        rows |= {row["call_sid"]: row for row in other.rows}
        newest = sorted(rows.values(), key=Cursor.of, reverse=True)
        return Page(
            newest[:limit],
            self.more or other.more or len(newest) > limit,
            self.is_complete and other.is_complete,
        )

    @property
    def next(self) -> Cursor | None:
        """Where the next page begins; None when this was the last."""
        return Cursor.of(self.rows[-1]) if self.rows and self.more else None


class Register:
    """Finds calls by their sid, and lists them.

    Args:
        records: Keeps what is left of each; None keeps the recent ones only.
        recent_calls: How many ended calls stay in memory, for the carrier's late callbacks.
    """

    def __init__(self, records: Records | None, recent_calls: int) -> None:
        self._records = records
        self._recent_calls = recent_calls
        self._live: dict[str, Call] = {}
        self._recent: OrderedDict[str, EndedCall] = OrderedDict()
        # The apologies that are still owed, and the languages they are in.
        self._ended: OrderedDict[str, tuple[str, str] | None] = OrderedDict()
        self._unwritten: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._is_stopping = False
        self.events: Events | None = None
        """Told of what happens to calls."""
        self.watcher: Watcher | None = None
        """Shown live calls; None for nobody."""
        if records is not None:
            records.on_written = self._written

    def add(self, call: Call) -> None:
        """A call lives."""
        self._live[call.call_sid] = call
        if self.watcher is not None:
            call.conversation.notes.on_note = self.watcher.noted
        self._show(call)
        self._tell("call.started", call)
        if call.conversation.answered_at is None:
            call.on_answer = partial(self._tell_answered, call.call_sid)
        else:  # in another process, which may not have lived to tell it
            self._tell("call.answered", call)

    def _tell_answered(self, call_sid: str) -> None:
        if (call := self._live.get(call_sid)) is not None:
            self._show(call)
            self._tell("call.answered", call)

    def _show(self, call: Call | EndedCall) -> None:
        """Show a call as it stands, if anybody looks."""
        if self.watcher is not None and self.watcher.is_watched():
            with one_calls_trouble(call):
                self.watcher.call_changed(_shown(call, full=False))

    def _tell(self, kind: Kind, call: Call) -> None:
        """Tell of a call that goes on, if anybody wants to be told."""
        url = call.conversation.party.agent.events_url
        if self.events is not None and self.events.is_wanted(url):
            with one_calls_trouble(call):
                self.events.tell(kind, call.record(full=False).as_dict(), url)

    def _tell_end(self, call: Call, shown: dict[str, Any]) -> None:
        """Tell how a call has ended, given its record; before that is written."""
        url, reason = call.conversation.party.agent.events_url, call.end_reason
        if self.events is None or not self.events.is_wanted(url):
            return
        kinds: list[Kind] = ["call.ended"]
        if shown.get("recording"):
            kinds.insert(0, "call.recording")
        if reason is not None and reason.is_failure:
            kinds.insert(0, "call.failed")
        for kind in kinds:
            with one_calls_trouble(call):
                self.events.tell(kind, shown, url)

    def end(
        self, call: Call, record: CallRecord | None, let_go: Callable[[], None]
    ) -> tuple[Sequence[str], EndedCall | None]:
        """A call has ended: its record is kept, and nothing else of it.

        Should the process be killed before the record is written, another one that goes on with
        the call finds it over, and writes one.

        Args:
            call: The call.
            record: Its record; None where that could not be made.
            let_go: Tells the others that nobody has to go on with it.

        Returns:
            The calls that are forgotten for it (until then a call stays this process's: another
            one would begin it again), and what is left of this one.
        """
        left: EndedCall | None = None
        self._live.pop(call.call_sid, None)
        self._unwritten[call.call_sid] = let_go
        if record is None or self._records is None or self._is_stopping:
            self._written(call.call_sid)
        elif len(self._unwritten) > MAX_UNWRITTEN:
            self._written(next(iter(self._unwritten)))
        if record is not None:
            with one_calls_trouble(call):
                shown = record.as_dict()
                self._tell_end(call, shown)
                with one_calls_trouble(call):
                    left = self._recent[call.call_sid] = call.left(shown)
                self._keep(shown)
            if left is not None:
                self._show(left)
        while len(self._recent) > self._recent_calls:
            self._recent.popitem(last=False)
        owes_apology = call.apology.may_be_fetched
        agent = call.conversation.party.agent
        self._ended[call.call_sid] = phrases.apology_of(agent) if owes_apology else None
        too_many = range(len(self._ended) - MAX_ENDED)
        return [self._ended.popitem(last=False)[0] for _ in too_many], left

    def forget(self, call: Call) -> tuple[Sequence[str], None]:
        """A call is another process's: nothing is known of it here any more.

        Returns:
            No calls, as what is not ours is not given back; and nothing is left of this one.
        """
        if self._live.get(call.call_sid) is call:
            del self._live[call.call_sid]
        return (), None

    def stop(self) -> None:
        """The process ends as it should, and writes what is unwritten before that."""
        self._is_stopping = True
        for call_sid in list(self._unwritten):
            self._written(call_sid)

    def _written(self, call_sid: str) -> None:
        if (let_go := self._unwritten.pop(call_sid, None)) is not None:
            try:
                let_go()
            except Exception:
                logger.exception("call not let go by a bug of ours", call_sid=call_sid)

    def update(self, left: EndedCall, update: StatusUpdate) -> None:
        """The carrier says something of a call that is over, as its last word."""
        if left.update_status(update):
            with one_calls_trouble(left):
                self._keep(left.shown())
            self._show(left)

    def outcome_drawn(self, left: EndedCall, events_url: str | None, outcome: Outcome) -> None:
        """More is known of what an ended call was for, which its receiver is told, too."""
        left.outcome_drawn(outcome.as_dict())
        shown = left.shown()
        if self.events is not None and self.events.is_wanted(events_url):
            with one_calls_trouble(left):
                self.events.tell("call.outcome", shown, events_url)
        self._keep(shown)

    def follow(self, recorder: Recorder) -> None:
        """What an ended call's recording still has is being written: learn if that fails."""
        recorder.on_stop = partial(self._recording_stopped, recorder)

    def _recording_stopped(self, recorder: Recorder, reason: str) -> None:
        if (left := self._recent.get(recorder.call_sid)) is not None:
            left.recording_stopped(recorder.as_dict(), reason)
            self._keep(left.shown())

    def _keep(self, shown: dict[str, Any]) -> None:
        """Have the database keep a record, or what has become known since."""
        if self._records is not None:
            self._records.keep(shown)

    # -- one call --------------------------------------------------------------------------

    @property
    def live(self) -> Sequence[Call]:
        """The live calls, the oldest first."""
        return list(self._live.values())

    @property
    def live_count(self) -> int:
        """How many calls live."""
        return len(self._live)

    def get_live(self, call_sid: str) -> Call | None:
        """A live call."""
        return self._live.get(call_sid)

    def get_recent(self, call_sid: str) -> EndedCall | None:
        """What is left of a call that ended lately."""
        return self._recent.get(call_sid)

    def get(self, call_sid: str) -> Call | EndedCall | None:
        """A live or recent call."""
        return self._live.get(call_sid) or self._recent.get(call_sid)

    def has_ended(self, call_sid: str) -> bool:
        """True of a call that has ended here, though it may be long ago."""
        return call_sid in self._ended

    def end_of(self, call_sid: str) -> Reply:
        """What answers whoever asks how a call goes on that is over: its caller may be owed words,
        if nobody has explained its end to them.
        """
        owed = self._ended.get(call_sid)
        return EndCall() if owed is None else SayAndEndCall(*owed)

    async def record(self, call_sid: str) -> dict[str, Any] | None:
        """Everything known about a call, however long ago it was; None if it was never heard of.

        Raises:
            RecordsUnavailable: It is not in memory, and the database cannot be asked.
        """
        if (call := self.get(call_sid)) is not None:
            return _shown(call, full=True)
        return None if self._records is None else await self._records.get(call_sid)

    # -- all of them -----------------------------------------------------------------------

    def all(self) -> Iterable[Call | EndedCall]:
        """Live calls, then recent ones, newest first."""
        yield from reversed(self._live.values())
        yield from reversed(self._recent.values())

    async def page(
        self, limit: int, before: Cursor | None = None, wanted: Wanted | None = None
    ) -> Page:
        """Summaries of calls, live ones among them, newest first.

        Args:
            limit: How many at most.
            before: Where the page before this one ended; None for the first.
            wanted: Which of them; None for all.
        """
        # Memory first: what is written to the database meanwhile is then seen at least once.
        asks_cost = wanted is not None and wanted.asks_cost  # which summaries do not say
        here = () if asks_cost else self.all()
        found = {call.call_sid: _shown(call, full=False) for call in here}
        is_complete, more = True, False
        if self._records is not None:
            if not asks_cost:
                unsaved = self._records.unsaved()
                found = {record["call_sid"]: record for record in unsaved} | found
            try:
                kept = await self._records.page(limit, before, wanted)
            except RecordsUnavailable:
                kept, is_complete = [], False
            more = len(kept) == limit
            found = {record["call_sid"]: record for record in kept} | found
        after = [
            row
            for row in found.values()
            if (before is None or Cursor.of(row) < before) and (wanted is None or wanted.takes(row))
        ]
        after.sort(key=Cursor.of, reverse=True)
        return Page(after[:limit], more or len(after) > limit, is_complete)


def _shown(call: Call | EndedCall, *, full: bool) -> dict[str, Any]:
    """The record as it stands, as the API shows it: all of it, or what a list shows."""
    if isinstance(call, EndedCall):
        return call.shown(full=full)
    return call.record(full=full).as_dict()
