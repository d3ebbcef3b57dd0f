"""The other end of a wire."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator

import trio

from codec.path import WebSocket
from server.media.wire import Wire


class Peer:
    """The other end of a wire: a blocking-free socket with a WebSocket of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.websocket = WebSocket(is_client=True, max_message_bytes=1 << 24)

    async def send(self, *messages: bytes) -> None:
        for message in messages:
            self.websocket.send_text(message)
        await self.send_raw(self.websocket.take_output())

    def send_nowait(self, *messages: bytes) -> None:
        """Send what the socket's buffer takes whole."""
        for message in messages:
            self.websocket.send_text(message)
        data = self.websocket.take_output()
        assert os.write(self.sock.fileno(), data) == len(data)

    async def send_raw(self, data: bytes) -> None:
        while data:
            data = data[await self.sock.send(data) :]

    async def receive(self) -> bytes | None:
        with trio.fail_after(60):
            while (message := self.websocket.next_message()) is None:
                if self.websocket.ended:
                    return None
                data = await self.sock.recv(65536)
                if not data:
                    self.websocket.receive_eof()
                self.websocket.receive(data)
        return message


async def messages(wire: Wire) -> AsyncGenerator[bytes]:
    while (message := await wire.receive()) is not None:
        yield message[0]
