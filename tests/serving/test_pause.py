"""A server process that is stopped for longer than any silence may last, and goes on."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import trio

from tests.support.processes import NEVER_HANGS_UP, PATIENCE_S, ServerProcess, server_process

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="nothing can be stopped there"),
]

CALLS = 6
PAUSE_S, MEDIA_TIMEOUT_S = 3.0, 1.5


async def records_once(server: ServerProcess, call_sids: list[str], caller_audio_s: float) -> list:
    """The calls' records as soon as so much was heard of each caller, or some call has ended."""
    while True:
        records = [(await server.http.get(f"/calls/{each}")).json() for each in call_sids]
        heard_s = [record["timings"]["caller_audio_s"] for record in records]
        if min(heard_s) >= caller_audio_s or any(record["reason"] for record in records):
            return records
        await trio.sleep(0.1)


PAUSED = "offhook_paused_seconds_total"
STARVED = 'offhook_loop_stall_seconds_total{cause="starved"}'


async def counted_s(server: ServerProcess, name: str) -> float:
    """How long the process says that it was held up, by this metric of it."""
    metrics = (await server.http.get("/metrics")).text
    [line] = [one for one in metrics.splitlines() if one.startswith(name)]
    return float(line.split()[-1])


@pytest.mark.parametrize(
    ("media_path", "command"), [("fast", "hypercorn"), ("ordinary", "python -m server")]
)
async def test_no_call_ends_because_the_process_was_stopped(tmp_path, media_path, command):
    settings = {"media_timeout_s": MEDIA_TIMEOUT_S, "calls_per_s": 1000, "max_loop_lag_s": 5}
    settings["watch_loop"] = "true"
    async with server_process(tmp_path, command, media_path=media_path, **settings) as server:
        answers = [await server.make_call(NEVER_HANGS_UP) for _ in range(CALLS)]
        call_sids = [answer.json()["call_sid"] for answer in answers]
        before = await records_once(server, call_sids, 0.5)
        os.killpg(server.process.pid, signal.SIGSTOP)
        await trio.sleep(PAUSE_S)
        os.killpg(server.process.pid, signal.SIGCONT)
        most_s = max(record["timings"]["caller_audio_s"] for record in before)
        with trio.fail_after(PATIENCE_S):
            after = await records_once(server, call_sids, most_s + PAUSE_S + MEDIA_TIMEOUT_S)
            for name in (PAUSED, STARVED):
                while await counted_s(server, name) < PAUSE_S / 2:  # noqa: ASYNC110  # every 2 s
                    await trio.sleep(0.1)

    assert [record["reason"] for record in after] == [None] * CALLS
    # What was on the line meanwhile is the call's time, too.
    for record in after:
        assert record["duration_s"] > record["timings"]["caller_audio_s"] - PAUSE_S / 2
