"""A small HTTP proxy: CONNECT and nothing else, with a password if wanted."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass
class ConnectProxy:
    names: Mapping[str, int]
    """Ports of 127.0.0.1 by the host names that only this proxy knows."""
    credentials: str | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """The first line of every request."""
    seen: bytearray = field(default_factory=bytearray)
    """What has come through it."""

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            first, *lines = head.decode().split("\r\n")
            self.asked.append(first)
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in lines if line)
            }
            if self.credentials is not None:
                shown = base64.b64encode(self.credentials.encode()).decode()
                if headers.get("proxy-authorization") != f"Basic {shown}":
                    await stream.send_all(
                        b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                        b"Proxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
                    )
                    return
            method, target, _ = first.split(" ")
            host = target.rpartition(":")[0]
            if method != "CONNECT" or host not in self.names:
                await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            async with await trio.open_tcp_stream("127.0.0.1", self.names[host]) as far:
                await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, stream, far)
                    await self._pass_on(far, stream)
                    nursery.cancel_scope.cancel()

    async def _pass_on(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        try:
            async for data in near:
                self.seen += data
                await far.send_all(data)
            await far.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def connect_proxy(
    names: Mapping[str, int], credentials: str | None = None
) -> AsyncGenerator[ConnectProxy]:
    proxy = ConnectProxy(names, credentials)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    shown = f"{credentials}@" if credentials else ""
    proxy.url = f"http://{shown}127.0.0.1:{port}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
