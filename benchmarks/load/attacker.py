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
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

HOST = "127.0.0.1"
SOCKETS = 200
"""Held at once, where an attack is about holding."""
LOOPS = 8
"""Connections that ask again and again, where it is about asking."""
AFTER_S = 40.0
"""How long a socket is watched after the attack, until the server has closed it."""
WAIT_S = 30.0
PINGERS = 80
BURST_BYTES = 2**16
"""Sent at once, where an attack is a flood."""
FLOOD_BYTES_PER_S = 45e6 / 8
"""Of one flood, over all its sockets."""
STUCK_S = 5.0
"""A flood that the server has not read for so long is over."""
MIB = b"x" * 2**20
UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CONNECTED = b'{"event":"connected","protocol":"Call","version":"1.0.0"}'


@dataclass(frozen=True, slots=True)
class Means:
    """What an attacker has got hold of."""

    attack: str
    port: int
    seconds: float
    webhooks: list[tuple[str, str, str]] = field(default_factory=list)
    """Path, signature and form of requests that the carrier has once sent."""
    tickets: list[tuple[str, str]] = field(default_factory=list)
    """Tickets, each with the call it is shown for."""
    key: str = ""
    """A key of the API, where it is no attacker who asks."""


@dataclass
class Tally:
    """What an attack got."""

    tried: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    lives_s: list[float] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
    still_open: int = 0
    most_open: int = 0
    open_now: int = 0

    def opened(self) -> float:
        """A connection is there."""
        self.tried += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        return time.monotonic()

    def closed(self, ending: str, opened_at: float) -> None:
        """It is gone, and this is how."""
        self.open_now -= 1
        self.endings[ending] += 1
        self.lives_s.append(time.monotonic() - opened_at)

    def as_dict(self) -> dict[str, Any]:
        return {
            "tried": self.tried,
            "endings": dict(self.endings.most_common()),
            "lives_s": _spread(self.lives_s),
            "answers_s": _spread(self.answers_s),
            "still_open": self.open_now,
            "most_open": self.most_open,
        }


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ranked = sorted(values)
    places = {"p50": len(ranked) // 2, "p99": min(len(ranked) - 1, len(ranked) * 99 // 100)}
    return {name: round(ranked[at], 3) for name, at in places.items()} | {
        "max": round(ranked[-1], 3)
    }


class Pace:
    """So many a second, after so many at once."""

    def __init__(self, per_s: float, at_once: int = 1) -> None:
        self._interval_s = 1.0 / per_s
        self._next_at = time.monotonic() - (at_once - 1) * self._interval_s

    async def turn(self) -> None:
        """Wait for one's own."""
        mine, self._next_at = self._next_at, self._next_at + self._interval_s
        await asyncio.sleep(max(0.0, mine - time.monotonic()))


class Attacker:
    """Runs one attack."""

    def __init__(self, means: Means) -> None:
        self.means = means
        self.tally = Tally()
        self.until = 0.0
        self.chance = random.Random(1)

    async def run(self) -> dict[str, Any]:
        """Attack for the time given, and watch until every socket is closed."""
        self.until = time.monotonic() + self.means.seconds
        attack = ATTACKS[self.means.attack]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.means.seconds + AFTER_S):
                await attack(self)
        return self.tally.as_dict()

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    async def many(
        self, count: int, act: Callable[[Connection], Awaitable[str]], pace: Pace | None = None
    ) -> None:
        """So many connections at once; for each that has ended another is opened."""

        async def again() -> None:
            while self.goes_on:
                if pace is not None:
                    await pace.turn()
                if self.goes_on:
                    await self.once(act)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(again())

    # -- sockets ---------------------------------------------------------------------------

    async def connect(self, *, unread_bytes: int = 0) -> Connection:
        """Open a connection, which may be one that takes next to nothing in."""
        plain = socket.socket()
        plain.setblocking(False)
        if unread_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, unread_bytes)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(WAIT_S):
                await loop.sock_connect(plain, (HOST, self.means.port))
                reader, writer = await asyncio.open_connection(
                    sock=plain, limit=unread_bytes or 2**16
                )
        except BaseException:
            plain.close()
            raise
        return Connection(reader, writer)

    async def once(
        self,
        act: Callable[[Connection], Awaitable[str]],
        *,
        unread_bytes: int = 0,
    ) -> None:
        """One connection: do this with it, and note how it ended."""
        try:
            connection = await self.connect(unread_bytes=unread_bytes)
        except (OSError, TimeoutError) as error:
            self.tally.tried += 1
            self.tally.endings[f"no connection: {type(error).__name__}"] += 1
            await asyncio.sleep(0.1)
            return
        opened_at = self.tally.opened()
        ending = "cut"
        try:
            ending = await act(connection)
        except (ConnectionError, asyncio.IncompleteReadError, BrokenPipeError):
            pass
        finally:
            connection.abort()
            self.tally.closed(ending, opened_at)


class Connection:
    """A connection, and as much of HTTP and WebSockets as an attacker needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def abort(self) -> None:
        self.writer.transport.abort()

    async def answer(self) -> str:
        """The status of an HTTP answer, or what came in place of one."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            return "closed" if not error.partial else "half an answer"
        first, *lines = head.decode("latin-1").split("\r\n")
        for line in lines:
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                await self.reader.readexactly(int(value))
        return first.split()[1]

    async def upgrade(self) -> str:
        await self.send(UPGRADE)
        return await self.answer()

    async def farewell(self) -> str:
        """Read frames until the server closes; the value is its close code."""
        while True:
            head = await self.reader.read(2)
            if len(head) < 2:
                return "closed"
            size = head[1] & 0x7F
            if size >= 126:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            payload = await self.reader.readexactly(size)
            if head[0] & 15 == 8:
                # Answered, as a polite client would; what the server does then is its own affair.
                with contextlib.suppress(ConnectionError):
                    await self.send(frame(payload[:2], opcode=8))
                return str(int.from_bytes(payload[:2], "big")) if size >= 2 else "1005"


def frame(payload: bytes, *, opcode: int = 1, first: int | None = None, mask: bool = True) -> bytes:
    """A client's frame; its mask is nothing but zeros."""
    head = bytes([0x80 | opcode if first is None else first])
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 2**16:
        head += bytes([bit | 126]) + len(payload).to_bytes(2, "big")
    else:
        head += bytes([bit | 127]) + len(payload).to_bytes(8, "big")
    return head + (b"\0\0\0\0" if mask else b"") + payload


def start(ticket: str, call_sid: str) -> bytes:
    """The message that claims a call."""
    stream_sid = "MZ" + call_sid[2:]
    facts = {
        "accountSid": "AC0",
        "streamSid": stream_sid,
        "callSid": call_sid,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"ticket": ticket},
    }
    message = {"event": "start", "sequenceNumber": "1", "streamSid": stream_sid, "start": facts}
    return json.dumps(message).encode()


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


def _request(path: str, *, form: str = "", **headers: str) -> bytes:
    head = f"{'POST' if form else 'GET'} {path} HTTP/1.1\r\nHost: x\r\n"
    if form:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        headers["Content-Length"] = str(len(form))
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"{head}\r\n{form}".encode()


async def _ask(attacker: Attacker, requests: itertools.cycle[bytes], per_s: float) -> None:
    """Requests over connections that are kept, so many a second."""
    pace = Pace(per_s)

    async def keep_asking(connection: Connection) -> str:
        while attacker.goes_on:
            await pace.turn()
            asked_at = time.monotonic()
            await connection.send(next(requests))
            status = await connection.answer()
            attacker.tally.answers_s.append(time.monotonic() - asked_at)
            attacker.tally.endings[status] += 1
            if not status.isdigit():
                break
        return "left"

    await attacker.many(LOOPS, keep_asking)


async def forged_webhooks(attacker: Attacker) -> None:
    """Webhooks with signatures that somebody has made up."""
    forms = [
        urlencode({"CallSid": f"CA{number:032x}", "From": "+15005550006", "CallStatus": "ringing"})
        for number in range(64)
    ]
    made_up = [base64.b64encode(attacker.chance.randbytes(20)).decode() for _ in forms]
    requests = [
        _request(path, form=form, X_Twilio_Signature=signature)
        for form, signature in zip(forms, made_up, strict=True)
        for path in ("/twiml", "/call-status")
    ]
    await _ask(attacker, itertools.cycle(requests), 50)


async def replayed_webhooks(attacker: Attacker) -> None:
    """Webhooks that the carrier has really sent, again and again."""
    requests = [
        _request(path, form=form, X_Twilio_Signature=signature)
        for path, signature, form in attacker.means.webhooks
    ]
    await _ask(attacker, itertools.cycle(requests), 50)


async def wrong_keys(attacker: Attacker) -> None:
    """The API, asked with keys that are none."""
    requests = [
        _request(path, X_API_Key=base64.b64encode(attacker.chance.randbytes(24)).decode())
        for path in ("/calls", "/calls/CA0", "/calls/CA0/recording", "/metrics")
        for _ in range(16)
    ]
    await _ask(attacker, itertools.cycle(requests), 50)


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


def _burst(*messages: bytes) -> bytes:
    """So many of these frames in turn as one read takes."""
    together = b"".join(messages)
    return together * (BURST_BYTES // len(together))


PINGS = _burst(frame(b"x" * 125, opcode=9))
IGNORED = [
    _burst(frame(CONNECTED)),
    _burst(frame(b'{"event":"media","streamSid":"MZ0","media":{"payload":"","timestamp":"0"}}')),
    _burst(frame(b'{"event":"never-heard-of"}')),
    _burst(frame(b"")),
    _burst(frame(b"x", opcode=2)),
    _burst(frame(b"", first=0x01), frame(b"", first=0x00), frame(b"", first=0x80)),
    _burst(frame(b"x", first=0x01), *[frame(b"x", first=0x00)] * 1000, frame(b"x", first=0x80)),
    _burst(frame(b"", opcode=10)),
]
"""Messages, fragments and pongs that say nothing."""


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
        lists = itertools.cycle([_request("/calls?limit=5", X_API_Key=attacker.means.key)])
        await _ask(attacker, lists, 4)

    async with asyncio.TaskGroup() as group:
        group.create_task(calls())
        group.create_task(client())


async def pings(attacker: Attacker) -> None:
    """Media sockets that ask for pongs all the time, and read none of them."""
    opening, asking = Pace(50, at_once=PINGERS), Pace(FLOOD_BYTES_PER_S / len(PINGS))

    async def ping(connection: Connection) -> str:
        if (status := await connection.upgrade()) != "101":
            return status
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        return await _flood(attacker, connection, PINGS, asking)

    async def again() -> None:
        while attacker.goes_on:
            await opening.turn()
            await attacker.once(ping, unread_bytes=2048)

    async with asyncio.TaskGroup() as group:
        for _ in range(PINGERS):
            group.create_task(again())


async def ignored(attacker: Attacker) -> None:
    """Media sockets that say what is ignored before a start, and never start."""
    opening = Pace(50, at_once=LOOPS)
    said, saying = itertools.cycle(IGNORED), Pace(FLOOD_BYTES_PER_S / len(IGNORED[0]))

    async def talk(connection: Connection) -> str:
        if (status := await connection.upgrade()) != "101":
            return status
        told = asyncio.ensure_future(connection.farewell())
        try:
            return await _flood(attacker, connection, next(said), saying, told)
        finally:
            told.cancel()
            await asyncio.wait([told])
            if not told.cancelled():
                told.exception()

    await attacker.many(LOOPS, talk, opening)


async def _flood(
    attacker: Attacker,
    connection: Connection,
    burst: bytes,
    pace: Pace,
    farewell: asyncio.Future[str] | None = None,
) -> str:
    """Send the same again and again; the server's close code if it has said goodbye."""
    while attacker.goes_on:
        await pace.turn()
        if farewell is not None and farewell.done():
            return farewell.result()
        try:
            async with asyncio.timeout(STUCK_S):
                await connection.send(burst)
        except TimeoutError:
            return "held back"
        except ConnectionError:
            if farewell is None:
                raise
            return await farewell
    return "left"


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
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
    "pings": pings,
    "ignored": ignored,
}


async def main() -> None:
    read = asyncio.get_running_loop().run_in_executor
    given = json.loads(await read(None, sys.stdin.readline))
    attacker = Attacker(Means(**given))
    print(json.dumps({"ready": True}), flush=True)
    if await read(None, sys.stdin.readline):
        print(json.dumps(await attacker.run()), flush=True)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(19)
    asyncio.run(main())
