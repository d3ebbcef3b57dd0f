"""What a page does on its call's socket, without a browser."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

NARROW = {"encoding": "audio/x-mulaw", "sampleRate": 8_000, "channels": 1}
WIDE = {"encoding": "audio/l16", "sampleRate": 16_000, "channels": 1}
PATIENCE_S = 60.0


@dataclass
class Page:
    """One stream of a page's: says silence all the time, and writes down what it is sent."""

    socket: ClientConnection
    made: dict[str, Any]
    is_wide: bool
    stream_sid: str = "MZ1"
    heard: bytearray = field(default_factory=bytearray)
    events: list[dict[str, Any]] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)
    _chunk: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)

    async def send(self, event: str, **facts: Any) -> None:
        message = {"event": event, "streamSid": self.stream_sid}
        await self.socket.send(json.dumps(message | ({event: facts} if facts else {})))

    async def start(self, ticket: str) -> None:
        facts = {
            "callSid": self.made["call_sid"],
            "mediaFormat": WIDE if self.is_wide else NARROW,
            "customParameters": {"ticket": ticket},
        }
        await self.send("start", **facts)

    async def say(self, payload: bytes) -> None:
        """Say 20 ms."""
        text = base64.b64encode(payload).decode()
        at_ms = str(20 * self._chunk)
        self._chunk += 1
        await self.send("media", chunk=str(self._chunk), timestamp=at_ms, payload=text)

    async def wait(self, is_there) -> None:
        """Wait until what has come is as wanted."""
        with trio.fail_after(PATIENCE_S):
            while not is_there():
                await self._changed.wait()

    async def run(self) -> None:
        with suppress(ConnectionClosed):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._be_silent)
                await self._listen()
                nursery.cancel_scope.cancel()
        self._tell()
        self.over.set()

    async def _be_silent(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self.say(bytes(640) if self.is_wide else b"\xff" * 160)
                await trio.sleep(0.02)

    async def _listen(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                message = json.loads(await self.socket.recv())
                self.events.append(message)
                if message["event"] == "media":
                    self.heard += base64.b64decode(message["media"]["payload"])
                if message["event"] == "mark":
                    await self.send("mark", name=message["mark"]["name"])
                self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]


def open_stream(url: str, origin: str | None = None):
    return connect(url, compression=None, proxy=None, max_queue=None, origin=origin)


@asynccontextmanager
async def page_on(
    made: dict[str, Any], *, ticket: str | None = None, url: str | None = None
) -> AsyncGenerator[Page]:
    """A page that has opened its stream, and says nothing."""
    async with trio.open_nursery() as nursery, open_stream(url or made["url"]) as socket:
        page = Page(socket, made, made["quality"] == "wide")
        await page.start(ticket or made["ticket"])
        nursery.start_soon(page.run)
        yield page
        nursery.cancel_scope.cancel()
