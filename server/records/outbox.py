"""The outbox: events that wait in the records' database until their receiver has them.

Several processes, on several machines, share it. What is to be sent next of a call is leased to one
of them; whoever dies leaves a lease that runs out. What everything here does, it does in threads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import sqlalchemy as sql

from server.records.database import statements
from server.records.database.database import Database
from server.records.database.errors import is_about_data
from server.records.database.tables import FOUND_OVER, MAX_NUMBER, calls, events, storable

MAX_ERROR_CHARS = 200
REPLAYED = 1_000
"""Events that one request sends again at most."""


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """Something that has happened to a call, as it is sent."""

    id: str
    call_sid: str
    generation: int
    at: float
    """When it happened: seconds since 1970, and later than what happened before it."""
    type: str
    target: str
    """The receiver's scheme, host and port: so much at once is sent there."""
    url: str
    payload: str = field(repr=False)
    is_last: bool = False
    """It tells how the call ended: that of a later owner takes its place."""

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a file beside the database."""
        return asdict(self)

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> OutboxEvent:
        """Read what :meth:`as_dict` has written.

        Raises:
            ValueError: It is something else.
        """
        try:
            event = cls(**{one.name: found[one.name] for one in fields(cls)})
        except (KeyError, TypeError):
            raise ValueError("no event") from None
        texts = (event.id, event.call_sid, event.type, event.target, event.url, event.payload)
        numbers = (event.generation, event.at)
        if not all(isinstance(text, str) for text in texts) or not all(
            type(number) in (int, float) and abs(number) < MAX_NUMBER for number in numbers
        ):
            raise ValueError("no event")
        return event


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event that this process is to send now."""

    event: OutboxEvent
    attempts: int
    """How many there were before."""
    since: float
    """When it happened, or was last asked for by a person."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What has become of an event that was claimed."""

    event: OutboxEvent
    is_done: bool = False
    """Its receiver has it, or it is of no use any more."""
    next_at: float | None = None
    """When it is to be sent again; None if it is dead."""
    error: str = ""
    counts: bool = True
    """Whether it was sent at all, as far as we know."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is in the outbox."""

    waiting: int
    oldest_at: float | None
    """When the oldest one that waits has happened."""
    dead: int


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be sent now, and when to ask again."""

    claimed: Sequence[Claimed]
    next_at: float | None
    """When something that waits is due; None if nothing is."""


class Places(Protocol):
    """Whom there is room for: see :class:`server.events.places.Places`."""

    @property
    def full(self) -> Sequence[str]:
        """The targets that are sent nothing more just now."""
        ...

    @property
    def only(self) -> Sequence[str] | None:
        """The targets that there is any room for; None if it is not a matter of who they are."""
        ...

    def take(self, target: str) -> bool:
        """Take a place for an event, if there is one."""
        ...


def _turn_of(one: sql.FromClause) -> sql.ColumnElement[int]:
    """Whose turn among a call's owners an event is of: who found the call over is the last."""
    generation = one.c.generation
    return sql.case((generation == FOUND_OVER, MAX_NUMBER), else_=generation)


_EARLIER = events.alias("earlier")
_IS_FIRST = ~sql.exists().where(
    _EARLIER.c.call_sid == events.c.call_sid,
    _EARLIER.c.dead_at.is_(None),
    sql.or_(
        _turn_of(_EARLIER) < _turn_of(events),
        sql.and_(_EARLIER.c.generation == events.c.generation, _EARLIER.c.at < events.c.at),
    ),
)
"""Nothing of the same call waits before it."""
_WAITS = events.c.dead_at.is_(None)
_DUE = (
    sql.select(events)
    .where(
        _WAITS,
        events.c.next_at <= sql.bindparam("now"),
        events.c.leased_until <= sql.bindparam("now"),
        events.c.target.not_in(sql.bindparam("full", expanding=True)),
        _IS_FIRST,
    )
    .order_by(events.c.next_at)
    .limit(sql.bindparam("most", type_=sql.Integer))
    .with_for_update(skip_locked=True, of=events)
)
_DUE_OF_SOME = _DUE.where(events.c.target.in_(sql.bindparam("only", expanding=True)))
_NEXT = sql.select(sql.func.min(events.c.next_at)).where(
    _WAITS, events.c.next_at > sql.bindparam("now")
)
_OURS = (events.c.id == sql.bindparam("of_id"), events.c.lease == sql.bindparam("of_lease"))
_DONE = sql.delete(events).where(*_OURS)
_AGAIN = (
    sql.update(events)
    .where(*_OURS)
    .values(
        attempts=events.c.attempts + sql.bindparam("tried"),
        next_at=sql.bindparam("at_next"),
        dead_at=sql.bindparam("at_dead"),
        error=sql.bindparam("of_error"),
        leased_until=0.0,
        lease=None,
    )
)
_HOLD_BACK = (
    sql.update(events)
    .where(
        events.c.call_sid == sql.bindparam("of_call"),
        _WAITS,
        events.c.next_at < sql.bindparam("at_next"),
    )
    .values(next_at=sql.bindparam("at_next"))
)
"""What waits behind an event is not looked at before it."""
_LEASE = (
    sql.update(events)
    .where(events.c.id.in_(sql.bindparam("ids", expanding=True)))
    .values(leased_until=sql.bindparam("until"), lease=sql.bindparam("of_lease"))
)
_LAST_KNOWN = sql.select(calls.c.call_sid, calls.c.generation).where(
    calls.c.call_sid.in_(sql.bindparam("names", expanding=True))
)
_GENERATIONS = (
    sql.select(
        events.c.call_sid,
        sql.func.max(events.c.generation).label("generation"),
        sql.func.max(sql.case((events.c.is_last, events.c.generation))).label("of_end"),
    )
    .where(events.c.call_sid.in_(sql.bindparam("names", expanding=True)))
    .group_by(events.c.call_sid)
)
_THERE = sql.select(events.c.id).where(events.c.id.in_(sql.bindparam("ids", expanding=True)))
_DROP_EARLIER_ENDS = sql.delete(events).where(
    events.c.call_sid == sql.bindparam("of_call"),
    events.c.is_last,
    events.c.generation < sql.bindparam("of_generation"),
)
_COUNT = sql.select(sql.func.count(), sql.func.min(events.c.at)).where(_WAITS)
_COUNT_DEAD = sql.select(sql.func.count()).where(events.c.dead_at.is_not(None))
_SHOWN = tuple(
    events.c[name]
    for name in ("id", "type", "call_sid", "target", "at", "attempts", "error", "dead_at")
)
_DEAD = (
    sql.select(*_SHOWN)
    .where(events.c.dead_at.is_not(None))
    .order_by(events.c.dead_at.desc(), events.c.id)
    .limit(sql.bindparam("most", type_=sql.Integer))
)
_REVIVE: dict[str, Any] = {
    "dead_at": None, "attempts": 0, "error": "", "leased_until": 0.0, "lease": None,
    "next_at": sql.bindparam("now"), "since": sql.bindparam("now"),
}  # fmt: skip
_REPLAY = (
    sql.update(events)
    .where(events.c.id == sql.bindparam("of_id"), events.c.dead_at.is_not(None))
    .values(_REVIVE)
)


class Outbox:
    """What is done with the table of events; it may block, and raise ``SQLAlchemyError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, told: Sequence[OutboxEvent]) -> list[OutboxEvent]:
        """Keep events; one that is there already, or of an owner that lost the call, is left out.

        Returns:
            Those that the database does not take as they are.
        """
        try:
            self._put(told)
        except Exception as error:
            if not is_about_data(error):
                raise
            if len(told) == 1:
                return list(told)
            middle = len(told) // 2
            return self.put(told[:middle]) + self.put(told[middle:])
        return []

    def _put(self, told: Sequence[OutboxEvent]) -> None:
        if not told:
            return
        new = {event.id: event for event in told}
        with self._database.transaction() as connection:
            for [there] in connection.execute(_THERE, {"ids": list(new)}):
                del new[there]
            if last := [event for event in new.values() if event.is_last]:
                newest, ends = self._newest(connection, [event.call_sid for event in last])
                for event in last:
                    is_of_owner = event.generation != FOUND_OVER  # else only an owner's end counts
                    better = (newest if is_of_owner else ends).get(event.call_sid, FOUND_OVER)
                    if event.generation < better:
                        del new[event.id]
                    elif event.generation > ends.get(event.call_sid, event.generation):
                        facts = {"of_call": event.call_sid, "of_generation": event.generation}
                        connection.execute(_DROP_EARLIER_ENDS, facts)
            if new:
                # A clock that was put back meanwhile holds nothing up.
                now = time.time()
                rows = [
                    asdict(event) | {"next_at": min(event.at, now), "since": min(event.at, now)}
                    for event in new.values()
                ]
                connection.execute(sql.insert(events), rows)

    def _newest(
        self, connection: sql.Connection, names: list[str]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Who is known to have had each call last, and who of those to have told of its end."""
        known = {"names": names}
        newest: dict[str, int] = {}
        for call_sid, generation in connection.execute(_LAST_KNOWN, known):
            newest[call_sid] = generation
        ends = dict(newest)
        for row in connection.execute(_GENERATIONS, known):
            newest[row.call_sid] = max(row.generation, newest.get(row.call_sid, FOUND_OVER))
            if row.of_end is not None:
                ends[row.call_sid] = max(row.of_end, ends.get(row.call_sid, FOUND_OVER))
        return newest, ends

    def step(
        self,
        sent: Sequence[Sent],
        *,
        lease: str,
        now: float,
        until: float,
        free: int,
        places: Places,
    ) -> Step:
        """Write down what has become of events, and lease those that are to be sent now.

        Args:
            sent: What has become of those that were claimed.
            lease: Whose leases ours are.
            now: Seconds since 1970.
            until: When the new leases run out.
            free: How many may be claimed.
            places: Whom there is room for; what is claimed takes its place.
        """
        facts: dict[str, Any] = {"now": now, "full": places.full, "most": free}
        query = _DUE
        if (only := places.only) is not None:
            query, facts = _DUE_OF_SOME, facts | {"only": only}
        with self._database.transaction() as connection:
            for one in sent:
                self._finish(connection, one, lease, now)
            due = connection.execute(query, facts).all() if free > 0 else ()
            rows = [row for row in due if places.take(row.target)]
            if rows:
                ids = [row.id for row in rows]
                connection.execute(_LEASE, {"ids": ids, "until": until, "of_lease": lease})
            next_at = connection.scalar(_NEXT, {"now": now})
        names = [one.name for one in fields(OutboxEvent)]
        return Step(
            [
                Claimed(
                    OutboxEvent(**{name: row._mapping[name] for name in names}),
                    row.attempts,
                    row.since,
                )
                for row in rows
            ],
            next_at,
        )

    def _finish(self, connection: sql.Connection, sent: Sent, lease: str, now: float) -> None:
        facts: dict[str, Any] = {"of_id": sent.event.id, "of_lease": lease}
        if sent.is_done:
            connection.execute(_DONE, facts)
            return
        facts |= {
            "tried": int(sent.counts),
            "at_next": now if sent.next_at is None else sent.next_at,
            "at_dead": now if sent.next_at is None else None,
            "of_error": sent.error[:MAX_ERROR_CHARS],
        }
        is_ours = connection.execute(_AGAIN, facts).rowcount
        if is_ours and sent.next_at is not None:
            held = {"of_call": sent.event.call_sid, "at_next": sent.next_at}
            connection.execute(_HOLD_BACK, held)

    def waiting(self) -> Waiting:
        """Count what is there."""
        with self._database.transaction(alone=False) as connection:
            count, oldest_at = connection.execute(_COUNT).one()
            return Waiting(count, oldest_at, connection.scalar(_COUNT_DEAD) or 0)

    def dead(self, limit: int) -> list[dict[str, Any]]:
        """Events that were given up, the last ones first, without what they say."""
        with self._database.transaction(alone=False) as connection:
            return [dict(row._mapping) for row in connection.execute(_DEAD, {"most": limit})]

    def replay(self, event_id: str, now: float) -> bool:
        """Send an event again that was given up; False if there is none of this id."""
        if storable(event_id) != event_id:
            return False  # no event is called that, and not every database may be asked for it
        with self._database.transaction() as connection:
            return bool(connection.execute(_REPLAY, {"of_id": event_id, "now": now}).rowcount)

    def replay_all(self, now: float) -> int:
        """Send events again that were given up; returns how many."""
        with self._database.transaction() as connection:
            ids = [row.id for row in connection.execute(_DEAD, {"most": REPLAYED})]
            for event_id in ids:
                connection.execute(_REPLAY, {"of_id": event_id, "now": now})
        return len(ids)

    def delete_before(self, at: float, most: int) -> int:
        """Delete so much of what has happened before this; returns how many events that were."""
        return self._database.delete_piece(statements.OLD_EVENTS, at, most)
