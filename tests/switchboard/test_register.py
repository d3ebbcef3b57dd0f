"""What the register makes of what the database says of a call that is not known any more."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
import trio
from prometheus_client import CollectorRegistry

from server.call.report.ended import EndedCall
from server.call.report.progress import Progress
from server.dialogue.endings import EndReason
from server.metrics import Metrics
from server.records.database.tables import FOUND_OVER
from server.records.store import DAY_S, Records
from server.records.words import Cursor, RecordsUnavailable, Wanted
from server.signal import Once
from server.switchboard.register import LOOK_UP_TIMEOUT_S, Page, Register
from tests.records.test_records import record

SID = "CA7"


class FewRecords:
    """Records of which one is read; or none, as the database hangs or is away."""

    def __init__(self, generation: int | None, *, hangs: bool = False, is_away: bool = False):
        self._generation, self._hangs, self._is_away = generation, hangs, is_away
        self.on_written = self.on_sweep = None

    async def get(self, call_sid: str) -> dict[str, Any] | None:
        if self._hangs:
            await trio.sleep_forever()
        if self._is_away:
            raise RecordsUnavailable("the database does not answer")
        return None if self._generation is None else {"generation": self._generation}

    async def page(
        self, limit: int, before: Cursor | None, wanted: Wanted | None, *, with_outcome: bool
    ) -> list[dict[str, Any]]:
        if self._hangs:
            await trio.sleep_forever()
        assert self._is_away, "the database was asked"
        raise RecordsUnavailable("the database does not answer")

    def unsaved(self, *details: str) -> list[dict[str, Any]]:
        return []


def register(records: FewRecords) -> Register:
    return Register(cast(Records, records), recent_calls=10)


@pytest.mark.parametrize(
    ("written_at", "begins_at", "was_over"),
    [
        (None, 1, False),
        (1, 1, True),
        (2, 1, True),
        (1, 2, False),  # its owner of before is gone, and nothing was left to go on with
        (2, 2, True),
        (FOUND_OVER, 1, True),
        (FOUND_OVER, 2, True),
    ],
)
async def test_a_record_is_the_end_of_a_call_unless_it_is_an_earlier_owners(
    written_at, begins_at, was_over
):
    assert await register(FewRecords(written_at)).was_over(SID, begins_at) is was_over


async def test_no_call_waits_long_for_a_database_that_hangs(autojump_clock):
    began_at = trio.current_time()

    assert not await register(FewRecords(1, hangs=True)).was_over(SID, 1)
    assert trio.current_time() - began_at == pytest.approx(LOOK_UP_TIMEOUT_S)


async def test_a_call_begins_where_the_database_is_away():
    assert not await register(FewRecords(1, is_away=True)).was_over(SID, 1)


async def test_nobody_is_asked_of_a_call_that_is_known():
    known = register(FewRecords(1))
    known._has_ended(SID, 1, None)

    assert not await known.was_over(SID, 1)


@pytest.mark.parametrize(("state", "is_complete"), [("live", True), ("ended", False)])
async def test_a_list_of_live_calls_asks_no_database(state, is_complete):
    known = register(FewRecords(None, is_away=True))

    page = await known.page(10, wanted=Wanted(one_of={"state": (state,)}))

    assert page == Page([], more=False, is_complete=is_complete)


class OldRecords(FewRecords):
    """Records of which some have changed, which the database does not know yet."""

    def __init__(self, kept: list[dict[str, Any]], changed: list[dict[str, Any]]) -> None:
        super().__init__(None)
        self._kept, self._changed = kept, changed

    async def page(
        self, limit: int, before: Cursor | None, wanted: Wanted | None, *, with_outcome: bool
    ) -> list[dict[str, Any]]:
        newest = sorted(self._kept, key=Cursor.of, reverse=True)
        return [
            row
            for row in newest
            if (before is None or Cursor.of(row) < before) and (wanted is None or wanted.takes(row))
        ][:limit]

    def unsaved(self, *details: str) -> list[dict[str, Any]]:
        return self._changed


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
async def test_no_call_is_missing_in_a_list_for_one_that_belongs_there_no_more(limit):
    kept = [
        {"call_sid": f"CA{at}", "created_at": float(at), "duration_s": 1.0, "agent": "sales"}
        for at in range(9)
    ]
    changed = [kept[at] | {"agent": "help"} for at in (7, 6, 5, 3)] + [kept[0], kept[4]]
    known, wanted = register(OldRecords(kept, changed)), Wanted(one_of={"agent": ("sales",)})
    listed, before, more = list[str](), None, True
    while more:
        page = await known.page(limit, before, wanted)
        listed += [row["call_sid"] for row in page.rows]
        before, more = page.next, page.next is not None

    assert listed == ["CA8", "CA4", "CA2", "CA1", "CA0"]


async def test_a_list_does_without_a_database_that_hangs(autojump_clock):
    known = register(FewRecords(None, hangs=True))
    began_at = trio.current_time()

    page = await known.page(10, patience_s=2.0)

    assert page == Page([], more=False, is_complete=False)
    assert trio.current_time() == began_at + 2.0


def ended(number: int, days_ago: float) -> EndedCall:
    return EndedCall(
        record(number, created_at=time.time() - days_ago * DAY_S),
        EndReason.CALLER_HUNG_UP,
        costs=None,
        billed={},
        began_at=trio.current_time(),
        began_wall_at=time.time(),
        progress=Progress(),
        finished=Once(),
    )


async def test_what_is_deleted_from_the_database_is_not_shown_from_memory_or_written_anew():
    metrics = Metrics(CollectorRegistry())
    records = Records("sqlite://", metrics=metrics, retention_days=7.0)
    register = Register(records, recent_calls=10)
    old, new = ended(1, days_ago=8.0), ended(2, days_ago=6.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(records.run)
        with trio.fail_after(60):
            while records._sweep_at < 0.0:  # noqa: ASYNC110
                await trio.sleep(0.001)
            for left in (old, new):
                register.inherit(left, 2, None, lambda **_: None)
            await records.wait_saved()
            assert await register.record(old.call_sid) is not None

            await records._sweep()

            page = await register.page(10)
            gone = await register.record(old.call_sid)
        nursery.cancel_scope.cancel()

    assert [row["call_sid"] for row in page.rows] == [new.call_sid]
    assert gone is None
    assert register.get_recent(old.call_sid) is None  # whose record a late word would write
    assert register.has_ended(old.call_sid)
