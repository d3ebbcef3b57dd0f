"""``python -m benchmarks.load.attacker``: one attack on a server of this machine, then it ends.

The first line in says what it may use (:class:`Means`), the first line out that it is ready; the
next line in begins the attack, and what came of it goes out. Every line is JSON. Every attack is
bounded: in time, in sockets at once, and in how many a second are begun; and only 127.0.0.1 is ever
asked. It runs at the lowest priority, because the generator whose clock counts has the same core.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from benchmarks.load import doors
from benchmarks.load.stranger import (
    CONNECTED,
    LOOPS,
    MIB,
    SOCKETS,
    UPGRADE,
    Attack,
    Attacker,
    Connection,
    Means,
    Pace,
    frame,
    request,
    start,
)

# ------------------------------------------------------------------------------------------
# The attacks


async def never_start(attacker: Attacker) -> None:
    """Media sockets that say nothing; for each that is closed another is opened."""
    pace = Pace(50, at_once=SOCKETS)

    async def wait(connection: Connection) -> str:
        status = await connection.upgrade()
        return await connection.farewell() if status == "101" else status

    await attacker.many(SOCKETS, wait, pace)


async def slow_heads(attacker: Attacker) -> None:
    """Requests whose heads come byte by byte."""
    await _slow(attacker, b"POST /make-call HTTP/1.1\r\nHost: x\r\nX-A: ")


async def slow_bodies(attacker: Attacker) -> None:
    """Requests whose bodies come byte by byte."""
    await _slow(
        attacker,
        b"POST /twiml HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\nCallSid=",
    )


async def _slow(attacker: Attacker, beginning: bytes) -> None:
    pace = Pace(50, at_once=SOCKETS)

    async def trickle(connection: Connection) -> str:
        await connection.send(beginning)
        answer = asyncio.ensure_future(connection.answer())
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=1.0)
                with contextlib.suppress(ConnectionError):
                    await connection.send(b"a")
            return answer.result()
        finally:
            answer.cancel()

    await attacker.many(SOCKETS, trickle, pace)


async def forged_webhooks(attacker: Attacker) -> None:
    """Webhooks with signatures that somebody has made up."""
    forms = [
        urlencode({"CallSid": f"CA{number:032x}", "From": "+15005550006", "CallStatus": "ringing"})
        for number in range(64)
    ]
    made_up = [base64.b64encode(attacker.chance.randbytes(20)).decode() for _ in forms]
    requests = [
        request(path, form=form, X_Twilio_Signature=signature)
        for form, signature in zip(forms, made_up, strict=True)
        for path in ("/twiml", "/call-status")
    ]
    await attacker.ask(itertools.cycle(requests), 50)


async def replayed_webhooks(attacker: Attacker) -> None:
    """Webhooks that the carrier has really sent, again and again."""
    requests = [
        request(path, form=form, X_Twilio_Signature=signature)
        for path, signature, form in attacker.means.webhooks
    ]
    await attacker.ask(itertools.cycle(requests), 50)


async def wrong_keys(attacker: Attacker) -> None:
    """The API, asked with keys that are none."""
    requests = [
        request(path, X_API_Key=base64.b64encode(attacker.chance.randbytes(24)).decode())
        for path in ("/calls", "/calls/CA0", "/calls/CA0/recording", "/metrics")
        for _ in range(16)
    ]
    await attacker.ask(itertools.cycle(requests), 50)


async def tickets(attacker: Attacker) -> None:
    """Tickets that were guessed, used, stolen from another call, or too old."""
    shown = itertools.cycle(attacker.means.tickets)
    pace = Pace(20)

    async def show(connection: Connection) -> str:
        ticket, call_sid = next(shown)
        if (status := await connection.upgrade()) != "101":
            return status
        await connection.send(frame(CONNECTED) + frame(start(ticket, call_sid)))
        return await connection.farewell()

    await attacker.many(LOOPS, show, pace)


async def oversized(attacker: Attacker) -> None:
    """Messages of a mebibyte."""
    pace = Pace(10)

    async def shout(connection: Connection) -> str:
        if (status := await connection.upgrade()) != "101":
            return status
        said = asyncio.ensure_future(connection.send(frame(MIB)))
        try:
            return await connection.farewell()
        finally:
            said.cancel()
            await asyncio.wait([said])
            if not said.cancelled():
                said.exception()  # the server need not have read it

    await attacker.many(LOOPS, shout, pace)


async def half_sent(attacker: Attacker) -> None:
    """Handshakes, frames and requests that stop in the middle; every fourth is torn down there."""
    pace = Pace(20)
    ways = itertools.cycle(("handshake", "head", "payload", "torn down"))

    async def stop(connection: Connection) -> str:
        way = next(ways)
        if way == "handshake":
            await connection.send(UPGRADE[: len(UPGRADE) // 2])
            return await connection.answer()
        if (status := await connection.upgrade()) != "101":
            return status
        whole = frame(b"x" * 300)
        await connection.send(whole[:3] if way == "head" else whole[:150])
        return "we tore it down" if way == "torn down" else await connection.farewell()

    await attacker.many(SOCKETS, stop, pace)


MALFORMED = [
    frame(b"x", mask=False),
    frame(b"x", first=0xF1),
    frame(b"x", first=0x83),
    frame(b"x", first=0x80),  # goes on with what never began
    frame(b"\xff\xfe"),
    frame(b"x" * 126, first=0x89),  # a ping too long
    frame(b"x", first=0x09),  # a ping in fragments
    frame(b"\x03", first=0x88),  # half a close code
    frame(b"\x03\xed", first=0x88),  # 1005, which may not be said
    b"\x81\xff" + b"\xff" * 8 + b"\0\0\0\0",
    frame(b'{"event":"start"', first=0x81),
    frame(b'{"event":"start","start":[]}', first=0x81),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
]


async def malformed(attacker: Attacker) -> None:
    """Frames that break RFC 6455, and messages that are no Media Streams."""
    pace = Pace(20)
    wrong = itertools.cycle(MALFORMED)

    async def send(connection: Connection) -> str:
        if (status := await connection.upgrade()) != "101":
            return status
        await connection.send(next(wrong))
        return await connection.farewell()

    await attacker.many(SOCKETS, send, pace)


async def deaf_phones(attacker: Attacker) -> None:
    """Calls with genuine tickets whose phones talk and never read."""

    def deaf(ticket: str, call_sid: str) -> Callable[[Connection], Awaitable[str]]:
        async def talk(connection: Connection) -> str:
            # Nothing is read after the handshake: what the agent says stays on the server's side.
            if (status := await connection.upgrade()) != "101":
                return status
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await connection.send(frame(CONNECTED) + frame(start(ticket, call_sid)))
            silence = base64.b64encode(b"\xff" * 160).decode()
            sid = "MZ" + call_sid[2:]
            for number in itertools.count(1):
                media = {"chunk": str(number), "timestamp": str(20 * number), "payload": silence}
                said = {"event": "media", "sequenceNumber": str(number + 1), "streamSid": sid}
                await connection.send(frame(json.dumps(said | {"media": media}).encode()))
                await asyncio.sleep(0.02)
            raise AssertionError("it counts for ever")

        return talk

    async with asyncio.TaskGroup() as group:
        for ticket, call_sid in attacker.means.tickets:
            group.create_task(attacker.once(deaf(ticket, call_sid), unread_bytes=2048))


async def short_calls(attacker: Attacker) -> None:
    """No attack: calls that come and go, and a client that asks about them, while something fails.

    What an attack's table would call endings is here how the client was answered.
    """
    ringing = list(attacker.means.tickets)

    def call(ticket: str, call_sid: str) -> Callable[[Connection], Awaitable[str]]:
        async def talk(connection: Connection) -> str:
            if (status := await connection.upgrade()) != "101":
                return status
            await connection.send(frame(CONNECTED) + frame(start(ticket, call_sid)))
            await connection.reader.readexactly(400)  # the agent speaks
            sid = "MZ" + call_sid[2:]
            stop = {"event": "stop", "sequenceNumber": "2", "streamSid": sid, "stop": {}}
            await connection.send(frame(json.dumps(stop).encode()))
            await asyncio.sleep(0.05)
            return "call served"

        return talk

    async def calls() -> None:
        for ticket, call_sid in ringing:
            await attacker.once(call(ticket, call_sid))

    async def client() -> None:
        lists = itertools.cycle([request("/calls?limit=5", X_API_Key=attacker.means.key)])
        await attacker.ask(lists, 4)

    async with asyncio.TaskGroup() as group:
        group.create_task(calls())
        group.create_task(client())


ATTACKS: dict[str, Attack] = {
    "never-start": never_start,
    "slow-heads": slow_heads,
    "slow-bodies": slow_bodies,
    "forged-webhooks": forged_webhooks,
    "replayed-webhooks": replayed_webhooks,
    "tickets": tickets,
    "oversized": oversized,
    "half-sent": half_sent,
    "malformed": malformed,
    "wrong-keys": wrong_keys,
    "deaf-phones": deaf_phones,
    "short-calls": short_calls,
    **doors.ATTACKS,
}


async def main() -> None:
    read = asyncio.get_running_loop().run_in_executor
    given = json.loads(await read(None, sys.stdin.readline))
    attacker = Attacker(Means(**given))
    print(json.dumps({"ready": True}), flush=True)
    if await read(None, sys.stdin.readline):
        attack = ATTACKS[attacker.means.attack]
        print(json.dumps(await attacker.run(attack)), flush=True)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(19)
    asyncio.run(main())
