"""The live calls of this process as the console shows them, and the load, while anybody watches.

Calls tell of themselves when something happens; once a second somebody who waits for news looks at
what changes all the time: whose turn it is, how loud it is, what it costs, how the process does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import structlog
import trio

from codec.ear import loudness
from server.call.call import Call
from server.call.conversation import Conversation, Stage
from server.console.journal import Batch, Journal
from server.errors import CallRefused
from server.records.database.tables import fitted
from server.records.words import line_of
from server.service import Service

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
GATHER_S = 0.3
"""What happens within so long goes out together."""
MAX_LOOKED_AT = 60
"""Live calls of a process that are looked at each time: all in turn, and first those that nobody
has looked at."""
LEVEL_BYTES = 800
"""A tenth of a second of mu-law: what a meter shows."""
LOUDEST = 127.0


class Live:
    """What is told of this process's calls.

    Args:
        service: This process's.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._journal = Journal()
        self._news = trio.Event()
        self._look_at = 0.0
        self._looked_at: dict[str, float] = {}
        """When each live call was looked at last."""
        self._unseen: set[str] = set()
        """Live calls that could not be looked at, each told of once."""

    def begin(self) -> None:
        """Calls can come: have each tell of itself."""
        self._service.calls.register.watcher = self

    # -- what calls tell ---------------------------------------------------------------------

    def is_watched(self) -> bool:
        """Whether anybody wants to know."""
        return self._journal.is_watched(trio.current_time())

    def call_changed(self, shown: Mapping[str, Any]) -> None:
        """A call has begun, was answered, has ended, or is told of again, as a list shows it."""
        self._journal.write("call", trio.current_time(), call=shown)
        self._tell()

    def noted(self, call_sid: str, at_s: float, what: str, facts: Mapping[str, Any]) -> None:
        """A line was added to a call's timeline."""
        now = trio.current_time()
        if self._journal.is_watched(now):
            line = fitted({"line": line_of(at_s, what, facts)})
            self._journal.write("line", now, call_sid=call_sid, **line)
            self._tell()

    def _tell(self) -> None:
        self._news.set()

    # -- what watchers get -------------------------------------------------------------------

    def watch(self) -> int:
        """Somebody begins to watch; returns the number after which there will be news for them."""
        self._journal.watch(trio.current_time())
        return self._journal.last

    async def batch(self, after: int, *, wait_s: float) -> Batch:
        """The news after this number: as soon as there are any, or none when the time is over."""
        until = trio.current_time() + wait_s
        while True:
            news = self._news = trio.Event() if self._news.is_set() else self._news
            now = trio.current_time()
            self._journal.watch(now)
            if now >= self._look_at:
                self._look_at = now + LOOK_EVERY_S
                self._look(now)
            batch = self._journal.since(after)
            if batch.news or batch.has_gap or now >= until:
                return batch
            with trio.move_on_at(min(until, self._look_at)):
                await news.wait()
                await trio.sleep(GATHER_S)

    def _look(self, now: float) -> None:
        live = {call.call_sid: call for call in self._service.calls.register.live}
        looked_at = {sid: self._looked_at.get(sid, -math.inf) for sid in live}
        due = sorted(live, key=looked_at.__getitem__)[:MAX_LOOKED_AT]
        self._looked_at = looked_at | dict.fromkeys(due, now)
        self._unseen &= live.keys()
        rows = [row for sid in due if (row := self._row(live[sid], now)) is not None]
        self._journal.write("load", now, load=self.load(), calls=rows)

    def _row(self, call: Call, now: float) -> list[Any] | None:
        """What changes of a call; None by a bug of ours, which keeps no other call from sight."""
        try:
            return _row(call, now)
        except Exception:
            if call.call_sid not in self._unseen:
                self._unseen.add(call.call_sid)
                logger.exception("call not looked at by a bug of ours", call_sid=call.call_sid)
            return None

    def load(self) -> dict[str, Any]:
        """How this process does."""
        calls, cluster = self._service.calls, self._service.cluster
        admission, reason = calls.admission, None
        try:
            calls.check_admission()
        except CallRefused as refused:
            reason = refused.reason
        pause = admission.account_pause.kind
        live = calls.register.live
        return {
            "process": cluster.me.name,
            "live": len(live),
            "waiting": admission.waiting_count,
            "in_setup": len(admission.setups),
            "sessions": sum(call.conversation.session.is_ready for call in live),
            "max_calls": admission.max_calls,
            "lag_ms": round(admission.lag_s * 1000, 1),
            "paused": None if pause is None else pause.value,
            "draining": calls.draining,
            "reason": reason,
        }


def _row(call: Call, now: float) -> list[Any]:
    """What changes of a call all the time: see docs/console.md."""
    c = call.conversation
    caller, agent = _levels(c, now)
    return [
        call.call_sid,
        call.progress.status.value,
        whose_turn(c, now),
        caller,
        agent,
        round(call.duration_s, 1),
        round(call.report.known_usd(now), 5),
    ]


def whose_turn(c: Conversation, now: float) -> str:
    """Who has the word: caller, agent, a tool that the model waits for; away, lost, nobody."""
    if c.answered_at is None:
        return "nobody"
    if c.stage is Stage.AWAY:
        return "away"
    if c.is_lost:
        return "lost"
    if c.turns.caller_speaking:
        return "caller"
    if c.playout.is_playing(now):
        return "agent"
    return "tool" if c.turns.tools_open else "nobody"


def _levels(c: Conversation, now: float) -> tuple[int, int]:
    """How loud both sides are, 0 to 100: the caller's is known where the call is recorded."""
    agent = _level(c.playout.timeline.played(now, LEVEL_BYTES)) if c.line is not None else 0
    if (recorder := c.passing.recorder) is None:
        return (60 if c.turns.caller_speaking else 0), agent
    c.passing.collect_recording()
    return _level(recorder.caller_tail(LEVEL_BYTES)), agent


def _level(payload: bytes) -> int:
    return round(100 * loudness(payload) / LOUDEST) if payload else 0
