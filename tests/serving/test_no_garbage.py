"""Calls, requests and strangers' sockets leave nothing for Python's collector to find.

What only it can free waits for it, and it holds up every call while it looks. Reference counts free
the rest at once.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import connect

from server.carrier import CallStatus
from server.simulators.gemini import MODEL_SCRIPTS
from server.simulators.twilio.webhooks import sign
from tests.support.kept_garbage import REPORT
from tests.support.processes import KEEPS_GARBAGE, ServerProcess, server_process
from tests.support.serving import start_message

pytestmark = [pytest.mark.sockets, pytest.mark.slow]

CALLER = "+15005550199"
PATHS = ("fast", "ordinary")


async def requests(server: ServerProcess) -> None:
    """What clients and the carrier ask, rightly and wrongly."""
    http = server.http
    for path in ("/healthz", "/readyz", "/metrics", "/calls", "/openapi.json", "/nowhere"):
        await http.get(path)
    await http.get("/calls", headers={"Authorization": "Bearer wrong"})
    await http.get("/calls/CA0")
    await http.post("/calls/CA0/hang-up")
    await http.get("/make-call")
    await http.post("/make-call", content=b"{", headers={"Content-Type": "application/json"})
    await http.post("/make-call", content=b"x" * 200_000)
    await http.post("/make-call", json={"destination_number": "12"})
    await http.post("/make-call", json={"destination_number": "+15005550101", "prompt": 5})
    await http.post("/twiml", data={"CallSid": "CA1"})
    await http.post("/twiml", data={"CallSid": "CA1"}, headers={"X-Twilio-Signature": "forged"})
    for path in ("/twiml", "/call-status", "/amd-status", "/transfer-status"):
        for form in (
            {"CallSid": "CA" + "7" * 32, "CallStatus": "completed", "SequenceNumber": "3"},
            {"CallSid": "?"},
        ):
            signature = sign(url_of(server, path), "t" * 32, _many(form))
            await http.post(path, data=form, headers={"X-Twilio-Signature": signature})


def url_of(server: ServerProcess, path: str) -> str:
    """Where the server is, as it is signed."""
    return str(server.http.base_url).rstrip("/") + path


def _many(form: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: [value] for name, value in form.items()}


async def strangers(server: ServerProcess) -> None:
    """Sockets that prove nothing."""
    parts = urlsplit(str(server.http.base_url))
    assert parts.hostname is not None
    assert parts.port is not None
    host = b"Host: x\r\n"
    for said in (
        b"",
        b"GET / HT",
        b"\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n",
        b"POST /twiml HTTP/1.1\r\n" + host + b"Content-Length: 90\r\n\r\nhalf",
        b"GET /stream HTTP/1.1\r\n" + host + b"Upgrade: websocket\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\n" + host + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ):
        stream = await trio.open_tcp_stream(parts.hostname, parts.port)
        async with stream:
            if said:
                await stream.send_all(said)
            with trio.move_on_after(0.2):
                await stream.receive_some()
    url = f"ws://{parts.hostname}:{parts.port}"
    for path, message in (
        ("/nowhere", ""),
        ("/stream", ""),
        ("/stream", "nonsense"),
        ("/stream", start_message("no ticket")),
        ("/stream/7", start_message("no ticket")),
    ):
        try:
            async with connect(url + path, compression=None, proxy=None) as socket:
                if message:
                    await socket.send(message)
                    await socket.recv()
        except (ConnectionClosed, InvalidStatus):
            pass


async def outbound(server: ServerProcess, ending: str, *, may_be_refused: bool = False) -> None:
    """A call that we place, to its end."""
    answer = await server.make_call(f"+1500{ending}")
    if may_be_refused and answer.status_code == 503:
        return
    assert answer.status_code == 201, answer.text
    call_sid = answer.json()["call_sid"]
    call = server.twilio.calls[call_sid]
    if ending in ("5550108", "5550105"):
        if ending == "5550108":
            await call.wait_status(CallStatus.IN_PROGRESS)
        await server.http.post(f"/calls/{call_sid}/hang-up")
    await call.wait_ended()
    await _final(server, call_sid)


async def inbound(server: ServerProcess, script: str) -> None:
    """A call that we answer, to its end."""
    call = server.twilio.dial_in(
        url_of(server, "/twiml"),
        from_number=CALLER,
        script=script,
        status_url=url_of(server, "/call-status"),
    )
    await call.wait_ended()
    await _final(server, call.call_sid)


async def _final(server: ServerProcess, call_sid: str) -> None:
    while True:
        call = (await server.http.get(f"/calls/{call_sid}")).json()
        if call.get("reason", "refused") is not None:
            return
        await trio.sleep(0.05)


async def stir(server: ServerProcess, *people: str) -> None:
    """Requests, strangers and calls either way, with those who answer and call, side by side."""
    async with trio.open_nursery() as nursery:
        for part in (requests, strangers):
            nursery.start_soon(part, server)
        for ending in ("5550103", "5550104", "5550105", "5550106", "5550108"):
            nursery.start_soon(outbound, server, ending)
        for script in ("hangs-up", "drops", *people):
            nursery.start_soon(inbound, server, script)


async def talk_to(server: ServerProcess, model: str) -> None:
    """A call either way, with a model of this kind."""
    server.gemini.script = MODEL_SCRIPTS[model]
    async with trio.open_nursery() as nursery:
        # The other call may have shown already that the model's account is used up.
        place = partial(outbound, may_be_refused=model == "quota-in-call")
        nursery.start_soon(place, server, "5550116")
        nursery.start_soon(inbound, server, "asks-and-waits")


async def report(server: ServerProcess) -> dict[str, object]:
    """What has been left since the last time."""
    path = server.directory / REPORT
    path.unlink(missing_ok=True)
    os.kill(server.process.pid, signal.SIGUSR1)
    while True:
        if path.exists():
            told: dict[str, object] = json.loads(path.read_text())
            return told
        await trio.sleep(0.05)


async def left_by(
    directory: Path, doings: Mapping[str, tuple[str, Callable[[ServerProcess], Awaitable[None]]]]
) -> dict[str, object]:
    """What is left where each of these is done to a server of its own, all of them side by side.

    Args:
        directory: Where they are.
        doings: By a name, the server's media path, and what is done.
    """
    left: dict[str, object] = {}

    async def do(name: str, media_path: str, doing: Callable[[ServerProcess], Awaitable[None]]):
        home = directory / name
        home.mkdir()
        async with server_of(home, media_path) as server:
            await doing(server)
            left[name] = await report(server)

    async with trio.open_nursery() as nursery:
        for name, (media_path, doing) in doings.items():
            nursery.start_soon(do, name, media_path, doing)
    return left


def server_of(directory: Path, media_path: str) -> AbstractAsyncContextManager[ServerProcess]:
    settings = {"media_path": media_path, "start_timeout_s": 0.5, "calls_per_s": 1_000}
    settings |= {"media_timeout_s": 60}  # busy machines
    return server_process(directory, KEEPS_GARBAGE, **settings)


async def test_people_and_strangers_leave_nothing_to_the_garbage_collector(tmp_path):
    async def meet(server: ServerProcess) -> None:
        await stir(server)
        await report(server)  # what first uses make stays, and is no garbage of theirs
        await stir(server, "interrupts", "vanishes", "garbage")

    left = await left_by(tmp_path, {media_path: (media_path, meet) for media_path in PATHS})

    assert left == {media_path: {"objects": 0, "rings": []} for media_path in PATHS}


async def test_sessions_that_are_lost_leave_nothing_to_the_garbage_collector(tmp_path):
    async def lose(model: str, server: ServerProcess) -> None:
        await outbound(server, "5550103")
        await report(server)
        await talk_to(server, model)

    models = ("lost-handle", "tool-storm", "quota-in-call")
    doings = {
        f"{model}, {media_path}": (media_path, partial(lose, model))
        for model in models
        for media_path in PATHS
    }

    left = await left_by(tmp_path, doings)

    assert left == {name: {"objects": 0, "rings": []} for name in doings}
