"""What the register makes of what the database says of a call that is not known any more."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from server.records.database.tables import FOUND_OVER
from server.records.store import Records
from server.records.words import Cursor, RecordsUnavailable, Wanted
from server.switchboard.register import LOOK_UP_TIMEOUT_S, Page, Register

SID = "CA7"


class FewRecords:
    """Records of which one is read; or none, as the database hangs or is away."""

    def __init__(self, generation: int | None, *, hangs: bool = False, is_away: bool = False):
        self._generation, self._hangs, self._is_away = generation, hangs, is_away
        self.on_written = None

    async def get(self, call_sid: str) -> dict[str, Any] | None:
        if self._hangs:
            await trio.sleep_forever()
        if self._is_away:
            raise RecordsUnavailable("the database does not answer")
        return None if self._generation is None else {"generation": self._generation}

    async def page(
        self, limit: int, before: Cursor | None, wanted: Wanted | None, *, with_outcome: bool
    ) -> list[dict[str, Any]]:
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
