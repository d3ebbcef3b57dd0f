"""The register of calls: live ones, those that ended lately, and what the database has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from server.call.call import Call
from server.events.event import Kind
from server.events.events import Events
from server.records.store import Records
from server.records.words import CallRecord, Cursor, RecordsUnavailable, Wanted
from server.switchboard.making import one_calls_trouble

MAX_ENDED = 10_000
"""CallSids of ended calls that are remembered: a webhook that comes again begins no call again."""


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
        self._recent: OrderedDict[str, Call] = OrderedDict()
        self._ended: OrderedDict[str, bool] = OrderedDict()  # whether an apology is still owed
        self.events: Events | None = None
        """Told of what happens to calls."""

    def add(self, call: Call) -> None:
        """A call lives."""
        self._live[call.call_sid] = call
        self._tell("call.started", call)
        if call.conversation.answered_at is None:
            call.on_answer = lambda: self._tell("call.answered", call)
        else:  # in another process, which may not have lived to tell it
            self._tell("call.answered", call)

    def _tell(self, kind: Kind, call: Call) -> None:
        """Tell of a call that goes on, if anybody wants to be told."""
        url = call.conversation.party.agent.events_url
        if self.events is not None and self.events.is_wanted(url):
            with one_calls_trouble(call):
                self.events.tell(kind, call.record(full=False).as_dict(), url)

    def end(self, call: Call) -> Sequence[str]:
        """A call has ended.

        Returns:
            The calls that are forgotten for it. Until then a call stays this process's: another
            one would begin it again.
        """
        self._live.pop(call.call_sid, None)
        self._recent[call.call_sid] = call
        while len(self._recent) > self._recent_calls:
            self._recent.popitem(last=False)
        self._ended[call.call_sid] = call.apology.may_be_fetched
        return [self._ended.popitem(last=False)[0] for _ in range(len(self._ended) - MAX_ENDED)]

    def forget(self, call: Call) -> Sequence[str]:
        """A call is another process's: nothing is known of it here any more.

        Returns:
            Nothing: what is not ours is not given back.
        """
        if self._live.get(call.call_sid) is call:
            del self._live[call.call_sid]
        return ()

    def keep_last(self, call: Call) -> CallRecord:
        """Have the database keep what is left of a call, and tell how it has ended."""
        record = call.record()
        url, reason = call.conversation.party.agent.events_url, call.end_reason
        if self.events is not None and self.events.is_wanted(url):
            with one_calls_trouble(call):
                shown = record.as_dict()
                if reason is not None and reason.is_failure:
                    self.events.tell("call.failed", shown, url)
                if shown.get("recording"):
                    self.events.tell("call.recording", shown, url)
                self.events.tell("call.ended", shown, url)
        with one_calls_trouble(call):
            self.keep(record)
        return record

    def keep(self, record: CallRecord) -> None:
        """Have the database keep what is left of a call, or what has become known since."""
        if self._records is not None:
            self._records.keep(record.as_dict())

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

    def get(self, call_sid: str) -> Call | None:
        """A live or recent call."""
        return self._live.get(call_sid) or self._recent.get(call_sid)

    def has_ended(self, call_sid: str) -> bool:
        """True of a call that has ended here, though it may be long ago."""
        return call_sid in self._ended

    def owes_apology(self, call_sid: str) -> bool:
        """True if a call has ended that nobody has explained to the caller."""
        return self._ended.get(call_sid, False)

    async def record(self, call_sid: str) -> dict[str, Any] | None:
        """Everything known about a call, however long ago it was; None if it was never heard of.

        Raises:
            RecordsUnavailable: It is not in memory, and the database cannot be asked.
        """
        if (call := self.get(call_sid)) is not None:
            return call.record().as_dict()
        return None if self._records is None else await self._records.get(call_sid)

    # -- all of them -----------------------------------------------------------------------

    def all(self) -> Iterable[Call]:
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
        found = {call.call_sid: call.record(full=False).as_dict() for call in self.all()}
        is_complete, more = True, False
        if self._records is not None:
            found = {record["call_sid"]: record for record in self._records.unsaved()} | found
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
