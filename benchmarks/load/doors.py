"""Attacks on what stands before a call: sockets that are left open, and bytes that end a server.

Each is bounded as all of them are; see :mod:`benchmarks.load.attacker`, which runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from benchmarks.load.killers import (
    KILLERS,
    PREFACE,
    RST_STREAM,
    begin_h2,
    h2_frame,
    h2_request,
)
from benchmarks.load.stranger import (
    SOCKETS,
    UPGRADE,
    Attack,
    Attacker,
    Connection,
    Pace,
    request,
)

RESETS_PER_S = 400
"""Of requests that are taken back at once: 0.2 Mbit/s."""
FEWER = 320
"""Sockets against a server that may open 300."""
BURSTS_PER_S = 10.0
LISTEN_S = 0.2


async def upgrades(attacker: Attacker) -> None:
    """Handshakes that are answered 400, whose sockets are left open."""
    broken = itertools.cycle(
        [
            UPGRADE.replace(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8"),
            UPGRADE.replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Lock"),
        ]
    )

    async def leave_open(connection: Connection) -> str:
        await connection.send(next(broken))
        status = await connection.answer()
        await connection.end()
        return status

    await attacker.many(SOCKETS, leave_open, Pace(50, at_once=SOCKETS))


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

    async def leave_open(connection: Connection) -> str:
        await connection.send(next(halves))
        status = await connection.answer()
        await connection.end()
        return status

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
        group.create_task(attacker.many(SOCKETS, leave_open, Pace(50, at_once=SOCKETS)))
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


async def merged_webhooks(attacker: Attacker) -> None:
    """Webhooks of the carrier's whose fields are put into each other, which signs alike."""
    await attacker.ask(
        itertools.cycle(
            [
                request(path, form=form, X_Twilio_Signature=signature)
                for path, signature, form in attacker.means.webhooks
            ]
        ),
        50,
    )


ATTACKS: dict[str, Attack] = {
    "upgrades": upgrades,
    "prefaces": prefaces,
    "descriptors": descriptors,
    "killers": killers,
    "webhooks-merged": merged_webhooks,
}
