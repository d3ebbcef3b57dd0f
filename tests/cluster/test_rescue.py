"""Calls that outlive their process, in real ones: killed, stopped and let go on."""

from __future__ import annotations

import hmac
import os
import re
import signal
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import httpx2
import pytest
import trio

from server.call.takeover.state import CallState
from server.carrier import CallStatus
from server.cluster.directory.meeting import AVAILABLE
from server.cluster.sealing import CannotUnseal, unseal
from server.simulators.twilio import SimulatedCall
from server.supervision import first_of
from tests.support.known_secret import SECRET
from tests.support.pages import page_on
from tests.support.processes import (
    KNOWN_SECRET,
    RINGS_FOR_LONG,
    ServerProcess,
    server_process,
)
from tests.support.redis_servers import until

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason="needs Unix sockets"),
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc"),
    pytest.mark.sockets,
    pytest.mark.slow,
]
PATIENT = {"calls_per_s": 1000, "line_lost_timeout_s": 60, "lease_s": 1}
COMMAND = "python -m server --workers"
PATIENCE_S = 120.0
"""For what has to come; the machine may be busy."""
UNSEALS = hmac.digest(SECRET, b"offhook state", "sha256").hex()[:32]


def state_of(server: ServerProcess, call_sid: str) -> CallState | None:
    """What is kept of a call, where its processes keep it."""
    environment = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
    where = next(each[7:].decode() for each in environment if each.startswith(b"TMPDIR="))
    for file in Path(where).glob(f"*/kept/{call_sid}.*"):
        with suppress(CannotUnseal, FileNotFoundError):  # not written yet, or renamed
            return CallState.decode(unseal(file.read_bytes(), call_sid, [UNSEALS]))
    return None


async def greeted_calls(server: ServerProcess, count: int) -> list[SimulatedCall]:
    """Calls whose greeting is over, so that their sessions can be resumed."""
    await server.both_ready()
    phones = [await server.talking_call() for _ in range(count)]

    with trio.fail_after(PATIENCE_S):
        for phone in phones:
            while True:
                state = state_of(server, phone.call_sid)
                if state is not None and state.handle is not None and state.greeted:
                    break
                await trio.sleep(0.05)
    return phones


async def moved(phones: list[SimulatedCall], count: int) -> list[SimulatedCall]:
    """So many of the calls, when they have another stream, on which the agent is heard."""
    found: list[SimulatedCall] = []
    enough = trio.Event()

    async def wait(phone: SimulatedCall) -> None:
        await phone.wait_streams(2)
        await phone.phone.sounded.wait()
        found.append(phone)
        if len(found) == count:
            enough.set()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for phone in phones:
                nursery.start_soon(wait, phone)
            await enough.wait()
            nursery.cancel_scope.cancel()
    return found


async def record_of(server: ServerProcess, phone: SimulatedCall) -> dict:
    return (await server.http.get(f"/calls/{phone.call_sid}")).json()


async def end(server: ServerProcess, phones: list[SimulatedCall]) -> None:
    for phone in phones:
        answer = await server.http.post(f"/calls/{phone.call_sid}/hang-up")
        assert answer.is_success, answer.text
        await phone.wait_ended()


async def test_calls_of_a_process_that_is_killed_go_on_in_another(tmp_path):
    async with server_process(tmp_path, KNOWN_SECRET, **PATIENT) as server:
        phones = await greeted_calls(server, 4)
        os.kill(server.workers()[0], signal.SIGKILL)
        taken = await moved(phones, 2)
        records = [await record_of(server, phone) for phone in taken]
        left = [phone.status for phone in phones]
        await end(server, phones)
        sessions = list(server.gemini.sessions)
        server.tell_to_stop()
        await server.process.wait()
    with closing(sqlite3.connect(tmp_path / "offhook.db")) as database:
        saved = dict(database.execute("SELECT call_sid, generation FROM offhook_calls"))

    assert left == [CallStatus.IN_PROGRESS] * 4
    for record in records:
        greeting, *later = [turn["text"] for turn in record["transcript"]]
        assert record["state"] == "live"
        assert greeting not in later
        assert "taken up from another process" in [one["what"] for one in record["timeline"]]
    for phone in taken:
        first, second = phone.stream_urls
        assert first != second
        assert not any(what.startswith("says:") for _, what in phone.timeline)
    assert len(sessions) == 4 + 2
    assert sum(one.resumed_from is not None for one in sessions) == 2
    assert saved == {phone.call_sid: 2 if phone in taken else 1 for phone in phones}


async def test_a_process_that_was_stopped_gives_up_the_calls_that_went_on_elsewhere(tmp_path):
    async with server_process(tmp_path, KNOWN_SECRET, **PATIENT) as server:
        phones = await greeted_calls(server, 4)
        stopped = server.workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            taken = await moved(phones, 2)
            asked = len(server.twilio.account.requests)
        finally:
            os.kill(stopped, signal.SIGCONT)
        await wait_ended_as_moved(server, 2)
        by_the_old = list(server.twilio.account.requests)[asked:]
        streams = [len(phone.phones) for phone in taken]
        records = [await record_of(server, phone) for phone in phones]
        await end(server, phones)

    assert by_the_old == []
    assert streams == [2, 2]
    assert [record["state"] for record in records] == ["live"] * 4


async def test_callers_are_answered_while_a_process_that_has_room_for_them_is_stopped(tmp_path):
    async with server_process(tmp_path, KNOWN_SECRET, **PATIENT) as server:
        await server.both_ready()
        url = str(server.http.base_url).rstrip("/")
        stopped = server.workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            phones = [
                server.twilio.dial_in(
                    f"{url}/twiml",
                    from_number="+15005550199",
                    script="talks",
                    status_url=f"{url}/call-status",
                )
                for _ in range(4)
            ]
            with trio.fail_after(PATIENCE_S):
                for phone in phones:
                    await phone.wait_streams(1)
                    await phone.phone.sounded.wait()
        finally:
            os.kill(stopped, signal.SIGCONT)
        records = [await record_of(server, phone) for phone in phones]
        await end(server, phones)

    assert [record["state"] for record in records] == ["live"] * 4
    # The second time it is somebody's, and once more when its caller has come.
    assert {record["generation"] for record in records} == {1, 3}


async def wait_ended_as_moved(server: ServerProcess, count: int) -> None:
    pattern = re.compile(r'^offhook_calls_ended_total\{.*reason="moved".*\} ([0-9.]+)$', re.M)
    with trio.fail_after(PATIENCE_S):
        while True:
            found = pattern.findall((await server.http.get("/metrics")).text)
            if sum(float(number) for number in found) >= count:
                return
            await trio.sleep(0.05)


async def test_calls_of_a_process_that_is_killed_just_before_a_stop_leave_their_records(tmp_path):
    nobody_looks = PATIENT | {"lease_s": 60}
    async with server_process(tmp_path, KNOWN_SECRET, **nobody_looks) as server:
        await server.both_ready()
        made = [(await server.make_call(RINGS_FOR_LONG)).json()["call_sid"] for _ in range(4)]
        phones = server.twilio.calls
        for sid in made:
            await until(lambda sid=sid: phones[sid].status.is_final or state_of(server, sid))
        killed = server.workers()[0]
        os.kill(killed, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{killed}").exists())  # its parent has seen it
        server.tell_to_stop()
        with trio.fail_after(PATIENCE_S):
            status = await server.process.wait()
    with closing(sqlite3.connect(tmp_path / "offhook.db")) as database:
        saved = {call_sid for (call_sid,) in database.execute("SELECT call_sid FROM offhook_calls")}

    assert status == 0
    assert saved == {*made}


async def test_a_page_whose_process_is_killed_goes_on_in_another(tmp_path):
    async with server_process(tmp_path, KNOWN_SECRET, **PATIENT) as server:
        await server.both_ready()
        calls = {}
        while len(calls) < 2:
            made = (await server.http.post("/calls/browser", json={"quality": "wide"})).json()
            calls[made["url"]] = made
        first, second = calls.values()
        async with page_on(first) as one, page_on(second) as other:
            for page in (one, other):
                await page.wait(lambda page=page: len(page.told("mark")) > 1)
            os.kill(server.workers()[0], signal.SIGKILL)
            with trio.fail_after(PATIENCE_S):
                await first_of(one.over.wait, other.over.wait)
            call = first if one.over.is_set() else second
        shown, goes_on = {"call_sid": call["call_sid"], "key": call["key"]}, {}
        with trio.fail_after(PATIENCE_S):
            while "over" not in goes_on:  # as long as nobody can say
                with suppress(httpx2.TransportError):  # it was in the queue of who is gone
                    answer = await server.http.post("/calls/browser/resume", json=shown)
                    goes_on = answer.json()
        async with page_on(call, ticket=goes_on["ticket"], url=goes_on["url"]) as page:
            await page.wait(lambda: page.told("media"))
            await page.send("stop")
            await page.over.wait()
        record = (await server.http.get(f"/calls/{call['call_sid']}")).json()

    assert "taken up from another process" in [one["what"] for one in record["timeline"]]
    assert record["reason"] == "caller-hung-up"
