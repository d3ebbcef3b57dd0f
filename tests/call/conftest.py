"""What tests of calls share."""

from __future__ import annotations

import pytest
from trio.testing import wait_all_tasks_blocked

from server.agent.tool import Tool
from tests.support.toolboxes import Bench


@pytest.fixture
async def bench(nursery):
    def make(*tools: Tool, timeout_s: float = 10.0) -> Bench:
        bench = Bench(list(tools), timeout_s)
        nursery.start_soon(bench.box.run, bench.answer)
        return bench

    yield make
    nursery.cancel_scope.cancel()


@pytest.fixture
async def talking(ringing, nursery):
    """The call that rings, answered: each module says how it rings."""
    nursery.start_soon(ringing.call.serve, ringing.media, ringing.media.start())
    await wait_all_tasks_blocked()
    return ringing
