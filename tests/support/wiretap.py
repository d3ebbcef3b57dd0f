"""Somebody at a node's address who is no node of ours, or sits on the way to one."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Stranger:
    """Listens where a node is thought to be, keeps all that it is told, and answers as it likes.

    Attributes:
        url: Where it is.
        heard: All bytes that have come, of all connections.
        connections: How many there were.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.heard = bytearray()
        self.connections = 0


async def _request(stream: trio.SocketStream, stranger: Stranger) -> bytes | None:
    """One request as it came, whole; None if whoever asks has gone."""
    request = bytearray()
    while True:
        head, end, body = request.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            return bytes(request)
        try:
            piece = await stream.receive_some()
        except trio.BrokenResourceError:
            return None
        if not piece:
            return None
        request += piece
        stranger.heard += piece


@asynccontextmanager
async def stranger(answer: bytes | None = None) -> AsyncGenerator[Stranger]:
    """Listen, and answer every request the same.

    Args:
        answer: Its bytes; None: it is never answered, but read on.
    """
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made = Stranger(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")

        async def serve(stream: trio.SocketStream) -> None:
            made.connections += 1
            async with stream:
                while await _request(stream, made) is not None:
                    if answer is not None:
                        await stream.send_all(answer)
                        return

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield made
        nursery.cancel_scope.cancel("the test is over")


@asynccontextmanager
async def wiretap(to: str) -> AsyncGenerator[Stranger]:
    """Sit on the way to a node: whatever comes is kept and handed on, and so is the answer."""
    host, _, port = to.removeprefix("http://").partition(":")
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made = Stranger(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")

        async def serve(stream: trio.SocketStream) -> None:
            made.connections += 1
            async with stream, await trio.open_tcp_stream(host, int(port)) as node:
                request = await _request(stream, made)
                if request is not None:
                    await node.send_all(request)
                    async for piece in node:
                        made.heard += piece
                        await stream.send_all(piece)

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield made
        nursery.cancel_scope.cancel("the test is over")
