"""Stops and deaths of the processes of one server, at the wrong moments."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from contextlib import closing

import pytest
import trio

from benchmarks.processes import family
from server.carrier import CallStatus
from tests.support.processes import TWO_PROCESSES, parent_of, server_process

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
    pytest.mark.sockets,
    pytest.mark.slow,
]

ROOMY = {"calls_per_s": 1000, "media_timeout_s": 60}  # busy machines


def _reasons(directory) -> list[str]:
    with closing(sqlite3.connect(directory / "offhook.db")) as database:
        return [reason for (reason,) in database.execute("SELECT reason FROM offhook_calls")]


@pytest.mark.parametrize("command", ["python -m server", "hypercorn", *TWO_PROCESSES])
async def test_a_stop_told_to_everybody_in_two_ways_while_all_are_late_is_one_drain(
    tmp_path, command
):
    async with server_process(tmp_path, command, **ROOMY) as server:
        if command in TWO_PROCESSES:
            await server.both_ready()
        for _ in range(4):
            await server.talking_call()
        late = [each for each in family(server.process.pid) if each != server.process.pid]
        for number in late:
            os.kill(number, signal.SIGSTOP)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.killpg(server.process.pid, number)
        await trio.sleep(0.3)  # the fault itself
        for number in late:
            os.kill(number, signal.SIGCONT)
        status = await server.process.wait()

    assert status == 0
    assert _reasons(tmp_path) == ["drained"] * 4


async def test_a_kept_worker_goes_on_serving_when_its_keeper_is_killed(tmp_path):
    async with server_process(tmp_path, "hypercorn -w", **ROOMY) as server:
        await server.both_ready()
        phones = [await server.talking_call() for _ in range(2)]
        children = _children(server.process.pid)
        keepers = [each for each in children if _children(each)]
        for keeper in keepers:
            os.kill(keeper, signal.SIGKILL)
        another = await server.talking_call()
        live = [phone.status.value for phone in (*phones, another)]
        os.killpg(server.process.pid, signal.SIGTERM)
        await server.process.wait()

    assert len(keepers) == 2
    assert live == ["in-progress"] * 3
    assert _reasons(tmp_path) == ["drained"] * 3


def _children(parent: int) -> list[int]:
    return [each for each in family(parent) if parent_of(each) == parent]


@pytest.mark.parametrize("command", ["hypercorn", "hypercorn -w"])
async def test_workers_stop_when_hypercorn_itself_is_killed(tmp_path, command):
    async with server_process(tmp_path, command, **ROOMY) as server:
        phone = await server.talking_call()
        os.kill(server.process.pid, signal.SIGKILL)
        await phone.wait_ended()

    assert phone.reports[-1] == (CallStatus.COMPLETED, 204)  # the worker was still there to take it
