"""A session with the simulated Gemini in memory, and the one who listens to it."""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from server.agent.agent import Agent
from server.model import (
    AgentAudio,
    SessionEvent,
)
from server.model.gemini.connection import GeminiConnection
from server.model.gemini.model import GeminiModel
from server.simulators.gemini import (
    GeminiSimulator,
)

KEY = "a-secret-key"
MODELS = (
    "gemini-3.8-live",
    "gemini-3.8-live-extended-thinking",
    "gemini-3.1-flash-live-preview",
    "gemini-2.5-flash-native-audio-preview-12-2025",
)


def silence(seconds: float) -> bytes:
    return bytes(2 * int(seconds * 16_000))


def speech(seconds: float) -> bytes:
    """A loud 220 Hz, which the simulator cannot tell from a voice."""
    samples = range(int(seconds * 16_000))
    return array(
        "h", [int(9_000 * math.sin(2 * math.pi * 220 * n / 16_000)) for n in samples]
    ).tobytes()


async def say(session: GeminiConnection, pcm: bytes) -> None:
    """Send caller audio as a telephone does, 20 ms at a time in real time."""
    due = trio.current_time()
    for start in range(0, len(pcm), 640):
        await session.send(session.audio_message(pcm[start : start + 640]))
        due += 0.02
        await trio.sleep_until(due)


async def receive_audio(session: GeminiConnection) -> AsyncIterator[bytes]:
    """Give out agent audio until the session fails."""
    while True:
        if isinstance(event := await session.receive(), AgentAudio):
            yield event.pcm


class Heard:
    """What came out of a session, and when."""

    def __init__(self) -> None:
        self.events: list[SessionEvent] = []
        self.times: list[float] = []

    async def listen(self, session: GeminiConnection) -> None:
        while True:
            self.events.append(await session.receive())
            self.times.append(trio.current_time())

    def all(self, kind: type[SessionEvent]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def pcm(self, turn: int) -> bytes:
        return b"".join(event.pcm for event in self.all(AgentAudio) if event.turn == turn)

    def at(self, event: SessionEvent) -> float:
        return self.times[self.events.index(event)]

    def last_audio_at(self, turn: int) -> float:
        pairs = zip(self.events, self.times, strict=True)
        return max(
            at for event, at in pairs if isinstance(event, AgentAudio) and event.turn == turn
        )


@asynccontextmanager
async def simulated(
    simulator: GeminiSimulator, **options: Any
) -> AsyncIterator[tuple[GeminiConnection, Heard]]:
    """Open a session in memory and listen to it."""
    options.setdefault("connect", simulator.connect)
    heard = Heard()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, **options)
        async with model.open_connection(Agent()) as session, trio.open_nursery() as listening:
            listening.start_soon(heard.listen, session)
            yield session, heard
            listening.cancel_scope.cancel()
        await simulator.sessions[-1].ended.wait()
        nursery.cancel_scope.cancel()
