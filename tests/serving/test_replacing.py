"""What becomes of a server of several processes when one dies, and the next cannot serve."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import trio

from server.hooks.stopping import StopSignals
from server.serving.master import Master
from server.serving.notify import Detached
from server.serving.single import known_places
from server.settings.settings import Settings
from server.supervision import MAX_SOON_DEATHS
from tests.support.processes import GIVES_UP_SOON, server_process


class Dying:
    """A parent whose one process has served, and after which no other comes to serve."""

    def __init__(self) -> None:
        settings = Settings.load(_env_file=None)
        self.master = Master(settings, {}, 2, StopSignals({}), Detached(wanted=False))
        self.master._has_served = True
        self.master._run_one = self._run_one
        self.started = 0

    async def _run_one(self, listener: object, index: int) -> tuple[None, int]:
        self.started += 1
        await trio.lowlevel.checkpoint()
        return None, 2

    async def keep_for(self, time_s: float) -> None:
        with trio.move_on_after(time_s):
            await self.master._keep_one(None, 0)


async def test_one_that_cannot_serve_is_tried_again_for_ever_while_another_serves(autojump_clock):
    dying = Dying()
    dying.master._serving.add(1)

    await dying.keep_for(3_600.0)

    assert dying.started > 3_600 / 30  # after 30 s at most
    assert not dying.master._gave_up


async def test_where_none_serves_any_more_and_none_can_the_server_ends(autojump_clock):
    dying = Dying()

    await dying.keep_for(3_600.0)

    assert dying.started == MAX_SOON_DEATHS + 1
    assert dying.master._gave_up


@pytest.mark.parametrize(
    ("carrier", "count", "known"), [("twilio", 4, None), ("asterisk", 1, 2), ("asterisk", 4, 8)]
)
def test_with_asterisk_a_server_and_one_that_takes_over_have_places(carrier, count, known):
    settings = Settings(_env_file=None, carrier=carrier)

    assert known_places(settings, count) == known


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes as Linux has them")
async def test_a_worker_that_cannot_serve_in_a_dead_ones_place_is_tried_again_beside_the_others(
    tmp_path, kept_output
):
    agent, output = tmp_path / "agents" / "desk.toml", Path(kept_output.name)
    agent.parent.mkdir()
    agent.write_text('name = "desk"')
    async with server_process(
        tmp_path, GIVES_UP_SOON, output=kept_output.fileno(), agents="agents"
    ) as server:
        await server.both_ready()
        agent.write_text("name = 3")
        victim, other = server.workers()
        os.kill(victim, signal.SIGKILL)
        while output.read_text().count("ended before it served") < 2:  # noqa: ASYNC240
            assert server.process.poll() is None
            await trio.sleep(0.05)
        alive = await server.http.get("/healthz")
        agent.write_text('name = "desk"')
        await server.both_ready()
        workers = server.workers()

    assert alive.is_success
    assert other in workers
    assert victim not in workers
