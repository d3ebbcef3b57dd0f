"""A server process that is told to stop in the middle of a call, under both commands."""

from __future__ import annotations

import signal
import sys
from functools import partial

import pytest
import trio

from tests.support.processes import COMMANDS, TWO_PROCESSES, hang_ups_taken, stopped_in_mid_call
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow]


async def test_a_stopped_server_says_goodbye_and_hangs_up(tmp_path):
    # Side by side: it takes as long as one greeting.
    async with trio.open_nursery() as nursery:
        for number, command in enumerate(COMMANDS):
            directory = tmp_path / str(number)
            directory.mkdir()
            nursery.start_soon(stopped_in_mid_call, directory, command)
        if sys.platform != "win32":
            # What systemd does: every process of the service gets the signal, the worker too.
            directory = tmp_path / "group"
            directory.mkdir()
            nursery.start_soon(
                partial(stopped_in_mid_call, directory, "hypercorn", whole_group=True)
            )


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGHUP")
async def test_a_terminal_that_closes_cuts_no_call_without_a_goodbye(tmp_path):
    with hang_ups_taken():
        async with trio.open_nursery() as nursery:
            for number, command in enumerate(COMMANDS):
                directory = tmp_path / str(number)
                directory.mkdir()
                stop = partial(stopped_in_mid_call, whole_group=True, by=signal.SIGHUP)
                nursery.start_soon(stop, directory, command)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGHUP")
@pytest.mark.parametrize("command", TWO_PROCESSES)
async def test_a_terminal_that_closes_has_each_of_several_processes_say_goodbye(tmp_path, command):
    with hang_ups_taken():
        await stopped_in_mid_call(tmp_path, command, whole_group=True, by=signal.SIGHUP)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGHUP")
async def test_the_parent_of_several_processes_passes_a_hang_up_on(tmp_path):
    with hang_ups_taken():
        await stopped_in_mid_call(tmp_path, "python -m server --workers", by=signal.SIGHUP)


async def test_an_idle_connection_does_not_hold_up_a_server_that_stops(fast_clock):
    async with serving(close_timeout_s=20.0) as server:
        connection = await trio.open_tcp_stream("127.0.0.1", int(server.url.rpartition(":")[2]))
        for _ in range(2):
            await connection.send_all(b"GET /healthz HTTP/1.1\r\nHost: offhook\r\n\r\n")
            answer = b""
            while b'"ok"' not in answer:
                answer += await connection.receive_some()
        told_at = trio.current_time()

    assert trio.current_time() - told_at < 10.0
    await connection.aclose()


async def test_a_drain_is_asked_for_over_the_api(fast_clock):
    async with serving(api_key="sesame", drain_timeout_s=60.0) as server:
        refused = await server.http.post("/drain")
        server.http.headers["Authorization"] = "Bearer sesame"
        phone = server.twilio.calls[(await server.make_call("5550103")).json()["call_sid"]]
        accepted = await server.http.post("/drain")
        again = await server.http.post("/drain")
        ready = await server.http.get("/readyz")
        no_more = await server.make_call()
        with trio.fail_after(20):
            await phone.wait_ended()
        record = (await server.http.get(f"/calls/{phone.call_sid}")).json()

    assert refused.status_code == 401
    assert [accepted.status_code, again.status_code] == [202, 202]
    assert accepted.json() == {"draining": True, "live_calls": 1}
    assert [ready.status_code, no_more.status_code] == [503, 503]
    assert int(no_more.headers["Retry-After"]) > 0
    assert record["reason"] == "caller-hung-up"  # it was let finish
