"""A real server with few descriptors, or little memory: it takes fewer calls, and loses none."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import httpx2
import pytest
import trio

from tests.support.processes import (
    NEVER_HANGS_UP,
    TWO_PROCESSES,
    ServerProcess,
    parent_of,
    server_process,
)

if sys.platform != "win32":
    import resource

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs limits as Linux has them"),
]

MIB = 1024 * 1024
SHORT = ("full", "descriptors")
"""As many calls as there are descriptors for; or fewer, where others have taken some."""


async def place_until_refused(
    server: ServerProcess, most: int
) -> tuple[list[str], httpx2.Response]:
    """Place calls, one after the other, until one is refused: the others, and the refusal."""
    placed: list[str] = []
    for _ in range(most):
        answer = await server.make_call(NEVER_HANGS_UP)
        if answer.status_code != 201:
            return placed, answer
        placed.append(answer.json()["call_sid"])
    raise AssertionError(f"{most} calls were taken")


async def wait_talking(server: ServerProcess, call_sids: list[str]) -> None:
    """Wait until the agent of each has been heard."""
    for call_sid in call_sids:
        while True:
            call = (await server.http.get(f"/calls/{call_sid}")).json()
            assert call["state"] == "live", call["reason"]
            if call["transcript"] and call["transcript"][0]["heard_s"]:
                break
            await trio.sleep(0.05)


async def test_with_few_descriptors_fewer_calls_are_taken_and_all_of_them_talk(tmp_path, capfd):
    async with server_process(
        tmp_path,
        "python -m server",
        limits={resource.RLIMIT_NOFILE: (128, 160)},
        calls_per_s=1000,
        max_calls=61,
        recordings_dir=tmp_path / "recordings",
    ) as server:
        base = descriptors(server.process.pid)
        placed, refused = await place_until_refused(server, 62)
        await wait_talking(server, placed)
        # A set-up under way may have had what now is free again for one more.
        while (ready := await server.http.get("/readyz")).status_code == 200:
            more, refused = await place_until_refused(server, 62 - len(placed))
            placed += more
            await wait_talking(server, placed)
        used = descriptors(server.process.pid)
        alive = await server.http.get("/healthz")
        live = ready.json()["live_calls"]

    words = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line[:1] == "{"]
    said = {word["event"]: word for word in words}
    assert 10 <= len(placed) < 61
    assert used - base <= 3 * len(placed) + 2  # a stream, a session and a recording each
    assert refused.status_code == 503
    assert refused.json()["error"] in SHORT
    assert int(refused.headers["Retry-After"]) > 0
    assert ready.status_code == 503
    assert ready.json()["reason"] in SHORT
    assert alive.status_code == 200
    assert live == len(placed)
    assert said["descriptor limit raised"]["now"] == 160
    fitting = next(word for event, word in said.items() if "MAX_CALLS is more" in event)
    assert fitting["taken"] >= len(placed)


async def wait_said(output: Path, words: str) -> None:
    """Wait until a server has said this."""
    while words not in await trio.Path(output).read_text():  # noqa: ASYNC110
        await trio.sleep(0.05)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def address_space_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


async def test_with_little_memory_calls_are_refused_before_any_is_lost(tmp_path):
    async with server_process(
        tmp_path, "python -m server", calls_per_s=1000, max_calls=200
    ) as server:
        first = (await server.make_call(NEVER_HANGS_UP)).json()["call_sid"]
        await wait_talking(server, [first])
        pid = server.process.pid
        most = address_space_bytes(pid) + (64 + 4) * MIB  # 64 of it are kept back
        resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
        placed: list[str] = []
        while True:
            more, refused = await place_until_refused(server, 200)
            placed += more
            await wait_talking(server, [first, *placed])  # while they are set up each counts twice
            ready = await server.http.get("/readyz")
            if not ready.is_success:
                break
        alive = await server.http.get("/healthz")

    assert placed
    assert refused.status_code == 503
    assert refused.json()["error"] == "memory"
    assert (ready.status_code, ready.json()["reason"]) == (503, "memory")
    assert ready.json()["live_calls"] == len(placed) + 1
    assert alive.status_code == 200


@pytest.mark.parametrize("command", list(TWO_PROCESSES))
async def test_a_process_that_cannot_be_replaced_yet_costs_the_others_no_call(
    tmp_path, kept_output, command
):
    async with server_process(
        tmp_path, command, output=kept_output.fileno(), calls_per_s=1000
    ) as server:
        await server.both_ready()
        phones = [await server.talking_call() for _ in range(2)]
        victim, other = server.workers()
        starter = parent_of(victim)
        before = resource.prlimit(starter, resource.RLIMIT_NOFILE)
        resource.prlimit(starter, resource.RLIMIT_NOFILE, (3, before[1]))
        os.kill(victim, signal.SIGKILL)
        await wait_said(Path(kept_output.name), "cannot be started")
        phones.append(await server.talking_call())
        resource.prlimit(starter, resource.RLIMIT_NOFILE, before)
        await server.both_ready()
        workers = server.workers()
        states = [
            (await server.http.get(f"/calls/{phone.call_sid}")).json()["state"] for phone in phones
        ]

    assert other in workers
    assert victim not in workers
    assert states == ["live"] * 3
