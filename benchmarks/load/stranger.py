"""A stranger with sockets: what he may use, how fast he is, and what came of what he tried.

:mod:`benchmarks.load.attacker` and :mod:`benchmarks.load.doors` say what he does with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.percentiles import percentiles

HOST = "127.0.0.1"
SOCKETS = 200
"""Held at once, where an attack is about holding."""
LOOPS = 8
"""Connections that ask again and again, where it is about asking."""
AFTER_S = 40.0
"""How long a socket is watched after the attack, until the server has closed it."""
WAIT_S = 30.0
SHOWN = ("p50", "p99", "max")
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
        """The stranger's socket is gone, and this is how."""
        self.open_now -= 1
        self.endings[ending] += 1
        self.lives_s.append(time.monotonic() - opened_at)

    def as_dict(self) -> dict[str, Any]:
        return {
            "tried": self.tried,
            "endings": dict(self.endings.most_common()),
            "lives_s": percentiles(self.lives_s, SHOWN) or None,
            "answers_s": percentiles(self.answers_s, SHOWN) or None,
            "still_open": self.still_open + self.open_now,
            "most_open": self.most_open,
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

    async def run(self, attack: Attack) -> dict[str, Any]:
        """Attack for the time given, and watch until every socket is closed."""
        self.until = time.monotonic() + self.means.seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.means.seconds + AFTER_S):
                await attack(self)
        return self.tally.as_dict()

    @property
    def goes_on(self) -> bool:
        """Whether there is time left; one who comes late, on a busy machine, tries once all the
        same."""
        return time.monotonic() < self.until or not self.tally.tried

    async def many(
        self,
        count: int,
        act: Callable[[Connection], Awaitable[str]],
        pace: Pace | None = None,
        *,
        unread_bytes: int = 0,
    ) -> None:
        """So many connections at once; for each that has ended another is opened.

        Args:
            count: How many.
            act: What is done with each.
            pace: How fast they are opened.
            unread_bytes: See :meth:`connect`.
        """

        async def again() -> None:
            while self.goes_on:
                if pace is not None:
                    await pace.turn()
                if self.goes_on:
                    await self.once(act, unread_bytes=unread_bytes)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(again())

    async def ask(self, requests: Iterator[bytes], per_s: float) -> None:
        """Requests over connections that are kept, so many a second."""
        pace = Pace(per_s)

        async def keep_asking(connection: Connection) -> str:
            while self.goes_on:
                await pace.turn()
                asked_at = time.monotonic()
                await connection.send(next(requests))
                status = await connection.answer()
                self.tally.answers_s.append(time.monotonic() - asked_at)
                self.tally.endings[status] += 1
                if not status.isdigit():
                    break
            return "left"

        await self.many(LOOPS, keep_asking)

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
        except asyncio.CancelledError:
            ending = "still open"
            self.tally.still_open += 1
            raise
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

    async def end(self) -> None:
        """Read until the server closes."""
        while await self.reader.read(2**16):
            pass

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


def request(path: str, *, form: str = "", **headers: str) -> bytes:
    """A GET, or a POST with a form."""
    head = f"{'POST' if form else 'GET'} {path} HTTP/1.1\r\nHost: x\r\n"
    if form:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        headers["Content-Length"] = str(len(form))
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"{head}\r\n{form}".encode()


Attack = Callable[[Attacker], Awaitable[None]]
