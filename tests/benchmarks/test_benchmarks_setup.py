"""The set-up benchmark's own driver: its calls begin and end, either way."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks import processes, setup

pytestmark = [pytest.mark.sockets, pytest.mark.slow]


@pytest.mark.parametrize("module", ["server", "benchmarks.peers.bare"])
def test_every_call_is_set_up_and_ends_and_has_a_cost(module, monkeypatch):
    monkeypatch.setattr(setup, "WARM_CALLS", 1)
    costs = setup.Costs()

    asyncio.run(setup.one_round(processes.ROOT, [], 3, costs, module))

    assert all(costs.median_ms("set_up", way) > 0 for way in setup.DIRECTIONS)
    assert all(costs.median_ms("end", way) > 0 for way in setup.DIRECTIONS)
