"""A receiver of events on a socket of this machine, which answers as a test likes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
import trio


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """What has come, and what is answered to it."""

    answer: Callable[[Received], int | None] = lambda received: 204
    """A status; None for no answer at all."""
    answer_headers: list[tuple[str, str]] = field(default_factory=list)
    may_answer: trio.Event | None = None
    """Nothing is answered before that, if there is anything to wait for."""
    url: str = ""
    received: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    async def wait_received(self, count: int) -> None:
        while len(self.received) < count:
            await self._changed.wait()

    async def wait_taken(self, count: int) -> None:
        while len(self.taken) < count:
            await self._changed.wait()

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                request, body = None, b""
                while True:
                    event = connection.next_event()
                    if event is h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some(65_536))
                    elif isinstance(event, h11.Request):
                        request = event
                    elif isinstance(event, h11.Data):
                        body += event.data
                    elif isinstance(event, h11.EndOfMessage):
                        break
                    else:
                        return
                assert request is not None
                headers = {name.decode(): value.decode() for name, value in request.headers}
                await self._answer(connection, stream, Received(headers, body))
                connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, connection, stream: trio.SocketStream, received: Received) -> None:
        self.received.append(received)
        status = self.answer(received)
        if status is not None and 200 <= status < 300:
            self.taken.append(received)
        self._changed.set()
        self._changed = trio.Event()
        if status is None:
            await trio.sleep_forever()
        if self.may_answer is not None:
            await self.may_answer.wait()
        headers = [*self.answer_headers, ("content-length", "0")]
        head = h11.Response(status_code=status, headers=headers)
        await stream.send_all(connection.send(head) + connection.send(h11.EndOfMessage()))


@asynccontextmanager
async def receiving(
    answer: Callable[[Received], int | None] = lambda received: 204,
) -> AsyncGenerator[Receiver]:
    receiver = Receiver(answer)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, receiver.serve, 0, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        receiver.url = f"http://127.0.0.1:{port}/events"
        yield receiver
        nursery.cancel_scope.cancel()
