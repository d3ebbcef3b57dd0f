"""Every trouble of the soak, once, after a few calls to warm up: nothing may be left behind."""

from __future__ import annotations

import pytest

from benchmarks.soak import TROUBLES, soak

pytestmark = [pytest.mark.sockets, pytest.mark.slow]


async def test_calls_in_any_trouble_end_with_a_record_and_leave_nothing(tmp_path, fast_clock):
    told: list[str] = []
    warm_up = TROUBLES[:3]
    result = await soak(warm_up + TROUBLES, len(warm_up), tmp_path, told.append)
    promises = dict(result.judge(len(warm_up)))

    assert result.wrong == []
    assert result.refused == 1
    assert result.accepted == len(warm_up) + len(TROUBLES) - 1
    assert promises == dict.fromkeys(promises, True)
