"""Connections that say whatever one likes."""

from __future__ import annotations

import trio

from tests.support.serving import (
    Server,
)


async def connection(server: Server) -> trio.SocketStream:
    host, port = server.url.removeprefix("http://").split(":")
    return await trio.open_tcp_stream(host, int(port))


UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
