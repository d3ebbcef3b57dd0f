"""Every trouble of the soak, twice: the second time must leave nothing behind."""

from __future__ import annotations

from benchmarks.soak import TROUBLES, soak


async def test_calls_in_all_kinds_of_trouble_end_with_a_record_and_leave_nothing(tmp_path):
    told: list[str] = []
    result = await soak(TROUBLES * 2, len(TROUBLES), tmp_path, told.append)
    promises = dict(result.judge(len(TROUBLES)))

    assert result.wrong == []
    assert result.refused == 2
    assert result.accepted == 2 * len(TROUBLES) - 2
    # How much memory it takes can only be told after thousands: python -m benchmarks soak.
    promises.pop(next(promise for promise in promises if promise.startswith("memory")))
    assert promises == dict.fromkeys(promises, True)
