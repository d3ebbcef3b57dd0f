"""A lasting session in memory, the one who listens to it, and the caller."""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
import trio.testing
from google.genai import types
from websockets.frames import Close

from server.agent.agent import Agent
from server.errors import ModelError
from server.model import (
    AgentAudio,
    PastTurn,
    Reconnected,
    SessionEvent,
    Way,
)
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.model.lasting.session import LastingSession
from server.model.lasting.unanswered import is_loud
from server.simulators.gemini import (
    ANSWERS,
    MODEL_SCRIPTS,
    GeminiSimulator,
    ModelScript,
    SimulatedSession,
)

KEY = "a-secret-key"
QUOTA = Close(1011, "You exceeded your current quota.")
TOOL = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(name="look_up", parameters_json_schema={"type": "object"})
    ]
)
HISTORY = [
    PastTurn("agent", "Good morning."),
    PastTurn("caller", "I would like a table."),
]


def silence(seconds: float) -> bytes:
    return bytes(2 * int(seconds * 16_000))


def speech(seconds: float) -> bytes:
    """A loud 220 Hz, which the simulator cannot tell from a voice."""
    samples = range(int(seconds * 16_000))
    return array(
        "h", [int(9_000 * math.sin(2 * math.pi * 220 * n / 16_000)) for n in samples]
    ).tobytes()


@dataclass
class Conversation:
    """What a session asks of its call."""

    quiet: bool = True
    caller_speaks: bool = False
    answer_awaited: bool = False
    turns: list[PastTurn] = field(default_factory=list)

    def is_quiet(self) -> bool:
        return self.quiet and not self.caller_speaks and not self.answer_awaited

    def history(self) -> list[PastTurn]:
        return self.turns


class Talk:
    """A session, the one who listens to it, and the caller."""

    session: LastingSession

    def __init__(self, gemini: GeminiSimulator, conversation: Conversation) -> None:
        self.gemini = gemini
        self.conversation = conversation
        self.events: list[SessionEvent] = []
        self.failure: ModelError | None = None
        self.failed = trio.Event()
        self.said = bytearray()
        self.is_noise = False

    def take(self, event: SessionEvent) -> None:
        self.events.append(event)
        if isinstance(event, AgentAudio):
            self.conversation.answer_awaited = False

    async def run(self, ready: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_ready, ready)
            try:
                await self.session.run()
            except ModelError as error:
                self.failure = error
                self.failed.set()
                ready.set()
            nursery.cancel_scope.cancel()

    async def _tell_ready(self, ready: trio.Event) -> None:
        await self.session.wait_ready()
        ready.set()

    async def say(self, pcm: bytes) -> None:
        """Send caller audio as a telephone does, 20 ms at a time in real time."""
        due = trio.current_time()
        for start in range(0, len(pcm), 640):
            chunk = pcm[start : start + 640]
            self.conversation.caller_speaks = is_loud(chunk) and not self.is_noise
            self.conversation.answer_awaited |= self.conversation.caller_speaks
            self.session.send_audio(chunk)
            self.said += chunk
            due += 0.02
            await trio.sleep_until(due)

    async def say_until(self, what: Callable[[], bool], pcm: bytes, within_s: float = 60) -> None:
        """Go on saying the same until something is the case."""
        with trio.fail_after(within_s):
            while not what():
                await self.say(pcm)

    def all(self, kind: type[SessionEvent]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def pcm(self, turn: int) -> bytes:
        return b"".join(event.pcm for event in self.all(AgentAudio) if event.turn == turn)

    @property
    def reconnects(self) -> list[tuple[str, Way]]:
        return [(event.reason, event.way) for event in self.all(Reconnected)]

    @property
    def services(self) -> list[SimulatedSession]:
        return list(self.gemini.sessions)

    @property
    def heard(self) -> bytes:
        """What the service heard over all connections."""
        return b"".join(bytes(service.heard) for service in self.services)


@asynccontextmanager
async def talking(
    script: ModelScript | str = ANSWERS,
    after: ModelScript = ANSWERS,
    *,
    fallback: bool = False,
    model: str = "gemini-3.8-live",
    config: types.LiveConnectConfig | None = None,
    gemini: GeminiSimulator | None = None,
    **options: Any,
) -> AsyncIterator[Talk]:
    """Open a lasting session in memory and listen to it."""
    if isinstance(script, str):
        script = MODEL_SCRIPTS[script]
    gemini = gemini or GeminiSimulator(api_key=KEY, script=script, script_after_resume=after)
    gemini.keep_heard_s = 600.0
    conversation = Conversation()
    make = partial(GeminiModel, api_key=KEY, connect=gemini.connect, config=config)
    other = make(model="gemini-3.1-flash-live-preview") if fallback else None
    lasting = LastingModel(make(model=model), fallback=other, **options)
    talk = Talk(gemini, conversation)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(gemini.run, port=None))
        talk.session = lasting.new_session(Agent(), conversation, talk.take)
        async with trio.open_nursery() as running:
            ready = trio.Event()
            running.start_soon(talk.run, ready)
            await ready.wait()
            if talk.failure is None:
                yield talk
            running.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    if talk.failure is not None and not talk.session.is_ready:
        raise talk.failure
