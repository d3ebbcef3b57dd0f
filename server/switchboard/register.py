"""The register of calls: live ones, those that ended lately, and what the database has."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog
import trio

from server.agent import phrases
from server.agent.outcome import Outcome
from server.call.call import Call
from server.call.report.ended import EndedCall
from server.carrier import StatusUpdate
from server.carrier.webhooks import EndCall, Reply, SayAndEndCall
from server.errors import ServerError
from server.events.event import CallTold, Kind
from server.events.events import Events
from server.records.database.tables import FOUND_OVER
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

LOOK_UP_TIMEOUT_S = 1.0
"""For the database to say whether a call that is to begin has a record: somebody waits for the
answer, and hears it ring."""


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


class LetGo(Protocol):
    """Tells others that a call has ended here, as :meth:`server.cluster.cluster.Cluster.let_go`."""

    def __call__(self, *, left: bytes = b"") -> None:
        """Nobody is to go on with it.

        Args:
            left: What is left of it to be written; empty if nothing is.
        """


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
        # At which generation, and the apologies that are still owed, with their languages.
        self._ended: OrderedDict[str, tuple[int, tuple[str, str] | None]] = OrderedDict()
        self._unwritten: OrderedDict[str, LetGo] = OrderedDict()
        self.events: Events | None = None
        """Told of what happens to calls."""
        self.watcher: Watcher | None = None
        """Shown live calls; None for nobody."""
        self.draw: Callable[[EndedCall, str | None], None] | None = None
        """Draws what the outcome lacks of a call that another process has left, and whom to tell of
        that; None for nobody."""
        if records is not None:
            records.on_written = self._written
            records.on_sweep = partial(_forget_before, self._recent)

    def add(self, call: Call) -> None:
        """A call lives."""
        self._live[call.call_sid] = call
        self._ended.pop(call.call_sid, None)  # here, before another went on with it
        self._recent.pop(call.call_sid, None)
        if self.watcher is not None:
            call.conversation.notes.on_note = self.watcher.noted
        self._show(call)
        self._tell("call.started", call)
        url = call.conversation.party.agent.events_url
        if self.events is not None and self.events.is_wanted("call.turn", url):
            call.conversation.notes.on_heard = partial(self._tell_heard, call.call_sid)
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
        if self.events is not None and self.events.is_wanted(kind, url):
            with one_calls_trouble(call):
                self.events.tell(kind, CallTold(call.record(full=False).as_dict()), url)

    def _tell_heard(self, call_sid: str, turn: int) -> None:
        if (call := self._live.get(call_sid)) is not None:
            self.tell_turns(call, turn)

    def tell_turns(self, call: Call, heard: int | None = None) -> None:
        """Tell of the turns that are settled by what was heard, or by the call's end, if anybody
        wants to be told.
        """
        c = call.conversation
        url = c.party.agent.events_url
        with one_calls_trouble(call):
            if self.events is None or not self.events.is_wanted("call.turn", url):
                return
            turns = c.notes.transcript.settled(heard, words=c.options.transcripts)
            shown = call.record(full=False).as_dict() if turns else {}
            for turn in turns:
                # Who had the call may have told of its turns already, and be lost: it is the same.
                was_here = turn[0] >= c.notes.transcript.inherited
                by = shown if was_here else shown | {"generation": shown["generation"] - 1}
                self.events.tell("call.turn", CallTold(by, turn), url)

    def _tell_end(self, call: Call | EndedCall, shown: dict[str, Any], url: str | None) -> None:
        """Tell how a call has ended, given its record; before that is written."""
        reason = call.end_reason
        kinds: list[Kind] = ["call.ended"]
        if shown.get("recording"):
            kinds.insert(0, "call.recording")
        if reason is not None and reason.is_failure:
            kinds.insert(0, "call.failed")
        self._tell_of(call, kinds, shown, url)

    def _tell_of(
        self,
        call: Call | EndedCall,
        kinds: Iterable[Kind],
        shown: dict[str, Any],
        url: str | None,
    ) -> None:
        """Tell of a call that is over, given its record, whoever wants to be told."""
        if self.events is None:
            return
        told = CallTold(shown)
        for kind in kinds:
            with one_calls_trouble(call):
                self.events.tell(kind, told, url)

    def end(
        self, call: Call, record: CallRecord | None, let_go: LetGo
    ) -> tuple[Sequence[str], EndedCall | None]:
        """A call has ended: its record is kept, and nothing else of it.

        Should the process be killed before the record is written, whoever takes the call over finds
        it in the place of what it would have gone on with, and writes it.

        Args:
            call: The call.
            record: Its record; None where that could not be made.
            let_go: Tells the others that nobody has to go on with it, and what is left to be done.

        Returns:
            The calls that are forgotten for it (until then a call stays this process's: another
            one would begin it again), and what is left of this one.
        """
        left, is_kept = None, False
        owes_apology, ownership = call.apology.may_be_fetched, call.ownership
        agent = call.conversation.party.agent
        self._live.pop(call.call_sid, None)
        self._unwritten[call.call_sid] = let_go
        if record is not None:
            with one_calls_trouble(call):
                shown = record.as_dict()
                if not ownership.has_carried:
                    shown["generation"] = FOUND_OVER
                self._tell_end(call, shown, agent.events_url)
                with one_calls_trouble(call):
                    left = self._recent[call.call_sid] = call.left(shown)
                    if ownership.keep is not None:
                        let_go(left=left.handed_on(agent.events_url))
                self._keep(shown)
                is_kept = self._records is not None
            if left is not None:
                self._show(left)
        if not is_kept:
            self._written(call.call_sid)
        apology = phrases.apology_of(agent) if owes_apology else None
        return self._has_ended(call.call_sid, ownership.generation, apology), left

    def inherit(
        self, left: EndedCall, generation: int, events_url: str | None, let_go: LetGo
    ) -> Sequence[str]:
        """A call has ended in another process, which has not written its record: it is kept here,
        as it was left.

        Args:
            left: What that one has left.
            generation: For the how-manieth time it is somebody's.
            events_url: Whom to tell, if it is the call's own receiver.
            let_go: See :meth:`end`.

        Returns:
            The calls that are forgotten for it.
        """
        self._unwritten[left.call_sid] = let_go
        self._recent[left.call_sid] = left
        with one_calls_trouble(left):
            shown = left.shown()
            self._tell_end(left, shown, events_url)
            self._keep(shown)
        self._show(left)
        if self._records is None:
            self._written(left.call_sid)
        if self.draw is not None:
            with one_calls_trouble(left):
                self.draw(left, events_url)
        return self._has_ended(left.call_sid, generation, None)

    def _has_ended(
        self, call_sid: str, generation: int, apology: tuple[str, str] | None
    ) -> Sequence[str]:
        """Note that a call has ended; returns those that are forgotten for it."""
        if len(self._unwritten) > MAX_UNWRITTEN:
            self._written(next(iter(self._unwritten)))
        while len(self._recent) > self._recent_calls:
            self._recent.popitem(last=False)
        self._ended[call_sid] = generation, apology
        too_many = range(len(self._ended) - MAX_ENDED)
        return [self._ended.popitem(last=False)[0] for _ in too_many]

    def forget(self, call: Call) -> None:
        """A call is another process's: nothing is known of it here any more."""
        if self._live.get(call.call_sid) is call:
            del self._live[call.call_sid]

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
        self._tell_of(left, ["call.outcome"], shown, events_url)
        self._keep(shown)

    def follow(self, recorder: Recorder, left: EndedCall) -> None:
        """What an ended call's recording still has is being written: learn if that fails."""
        recorder.on_stop = partial(self._recording_stopped, recorder, left)

    def _recording_stopped(self, recorder: Recorder, left: EndedCall, reason: str) -> None:
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

    def has_ended(self, call_sid: str, generation: int = 0) -> bool:
        """True of a call that has ended here, though it may be long ago, when it was somebody's for
        so many times, or more: what ended before that, another may have gone on with.
        """
        ended = self._ended.get(call_sid)
        return ended is not None and ended[0] >= generation

    async def was_over(self, call_sid: str, generation: int) -> bool:
        """True of a call that is not known here, and has ended all the same by its record: before
        this process was there, or before many others.

        It is False, too, where the database does not say so within :data:`LOOK_UP_TIMEOUT_S`.

        Args:
            call_sid: The call.
            generation: At which it would begin here; what an earlier owner has written is not the
                end of it, unless that had found it over.
        """
        if self._records is None or self.get(call_sid) is not None or self.has_ended(call_sid):
            return False
        record = None
        with trio.move_on_after(LOOK_UP_TIMEOUT_S), suppress(RecordsUnavailable):
            record = await self._records.get(call_sid)
        return record is not None and not FOUND_OVER < record["generation"] < generation

    def end_of(self, call_sid: str) -> Reply:
        """What answers whoever asks how a call goes on that is over: its caller may be owed words,
        if nobody has explained its end to them.
        """
        _, owed = self._ended.get(call_sid, (0, None))
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
        self,
        limit: int,
        before: Cursor | None = None,
        wanted: Wanted | None = None,
        *,
        with_outcome: bool = False,
        patience_s: float = math.inf,
    ) -> Page:
        """Summaries of calls, live ones among them, newest first.

        Args:
            limit: How many at most.
            before: Where the page before this one ended; None for the first.
            wanted: Which of them; None for all.
            with_outcome: Only calls that have ended, and what they have brought.
            patience_s: How long the database may take; without it the page is not complete.
        """
        # Memory first: what is written to the database meanwhile is then seen at least once.
        asks_cost = wanted is not None and wanted.asks_cost  # which summaries do not say
        details = ["outcome"] * with_outcome + ["cost"] * asks_cost
        rows = [
            _shown(call, full=False) | {name: getattr(call, name) for name in details}
            for call in (reversed(self._recent.values()) if details else self.all())
        ]
        ours = {row["call_sid"]: row for row in rows}
        records, is_complete, more = self._records, True, False
        if wanted is not None and wanted.is_live:
            records = None
        if records is not None:
            ours = {row["call_sid"]: row for row in records.unsaved(*details)} | ours
        after = [
            row
            for row in ours.values()
            if (before is None or Cursor.of(row) < before) and (wanted is None or wanted.takes(row))
        ]
        if records is not None:
            # What the database has was asked of it; of a call that we know, our word counts, and
            # where that is another one, what comes after it is asked for in its place.
            at, known, kept, is_complete = before, after, list[dict[str, Any]](), False
            with trio.move_on_after(patience_s), suppress(RecordsUnavailable):
                while not is_complete:
                    found = await records.page(limit, at, wanted, with_outcome=with_outcome)
                    kept += [row for row in found if row["call_sid"] not in ours]
                    if more := len(found) == limit:
                        at = end = Cursor.of(found[-1])
                        count = len(kept) + sum(Cursor.of(row) >= end for row in known)
                    is_complete = not more or count >= limit
            after = kept + known
        if asks_cost:
            for row in after:
                row.pop("cost", None)
        after.sort(key=Cursor.of, reverse=True)
        return Page(after[:limit], more or len(after) > limit, is_complete)


def _forget_before(recent: dict[str, EndedCall], oldest_kept: float) -> None:
    """Older records are deleted: nothing of them is shown, and no late word writes one anew."""
    for call_sid in [sid for sid, left in recent.items() if left.created_at < oldest_kept]:
        del recent[call_sid]


def _shown(call: Call | EndedCall, *, full: bool) -> dict[str, Any]:
    """The record as it stands, as the API shows it: all of it, or what a list shows."""
    if isinstance(call, EndedCall):
        return call.shown(full=full)
    return call.record(full=full).as_dict()
