"""A Twilio media stream that is listened to, for tests that wait for what it brings."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from codec.latency import Histogram, Latencies
from codec.path import MediaPath
from server.carrier import CarrierCommand, CarrierEvent, StreamCounts, StreamStarted, StreamStopped
from server.carrier.transport import QueuedTransport, TextSocket
from server.carrier.twilio.stream import TwilioMediaStream
from server.errors import CarrierProtocolError
from server.media.relay import Relay


def nobodys_relay() -> Relay:
    return Relay(
        MediaPath(),
        on_caller=lambda: None,
        on_agent=lambda: None,
        caller_latencies=(Latencies(), Histogram([1.0])),
        agent_latencies=(Latencies(), Histogram([1.0])),
    )


class HeardStream:
    """A stream over a socket, its events in the order in which they were pushed."""

    def __init__(self, stream: TwilioMediaStream, started: StreamStarted) -> None:
        self._stream = stream
        self.started = started
        self._told, self._events = trio.open_memory_channel[CarrierEvent | CarrierProtocolError](
            float("inf")
        )
        stream.listen(self._listen, nobodys_relay())

    def _listen(self, events) -> None:
        for event in events:
            self._told.send_nowait(event)

    async def receive(self) -> CarrierEvent:
        event = await self._events.receive()
        if isinstance(event, CarrierProtocolError):
            raise event
        return event

    async def until_stop(self) -> list[CarrierEvent]:
        events: list[CarrierEvent] = []
        while not events or not isinstance(events[-1], StreamStopped):
            events.append(await self.receive())
        return events

    def send(self, command: CarrierCommand) -> None:
        self._stream.send(command)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self._stream.aclose(code, reason)

    @property
    def counts(self) -> StreamCounts:
        return self._stream.counts


async def start(nursery: trio.Nursery, socket: TextSocket) -> HeardStream:
    """Wait for the start of the stream that a socket carries, and listen to it."""
    transport = QueuedTransport(socket)
    stream = TwilioMediaStream(transport)
    started = await stream.receive_start()
    assert started is not None
    nursery.start_soon(transport.run)
    return HeardStream(stream, started)


@asynccontextmanager
async def listening(socket: TextSocket) -> AsyncGenerator[HeardStream]:
    """Have the stream that a socket carries for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        yield await start(nursery, socket)
        nursery.cancel_scope.cancel()
