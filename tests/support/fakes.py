"""Two small peers of ours that speak the call's own words over memory channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from server.agent.agent import Agent
from server.carrier import (
    CallerAudio,
    CallStatus,
    CarrierCommand,
    CarrierEvent,
    Clear,
    Listener,
    MarkReached,
    PlacedCall,
    SendAudio,
    SendMark,
    StatusUpdate,
    StreamStarted,
    StreamStopped,
)
from server.carrier.twilio.stream import ABILITIES
from server.errors import CarrierError, CarrierProtocolError, ModelError, StreamEnded
from server.media.words import SoundPath
from server.model import Conversation, EventListener, SessionEvent, Standing, ToolResult, Way
from server.records.outbox import OutboxEvent
from server.records.words import Cursor, Wanted


def _nobody(told: object) -> None:
    """The call is over."""


class MemoryMedia:
    """A media stream; the test says what the carrier sends and sees what it is sent."""

    stream_sid = "MZ1"

    def __init__(self) -> None:
        self.abilities = ABILITIES
        self._listener: Listener | None = None
        self._early: list[CarrierEvent | CarrierProtocolError] = []
        self._news = trio.Event()
        self.sent: list[tuple[float, CarrierCommand]] = []
        self.closed: tuple[int, str] | None = None
        self.left = False
        self.joins_s = 0.0
        """How long it takes until the caller hears it."""
        self.is_joined = True
        """Whether they do then."""

    # The carrier's end, for the test.

    def start(self, call_sid: str = "CA1", ticket: str = "") -> StreamStarted:
        wait = self._wait_heard if self.joins_s else None
        return StreamStarted("MZ1", call_sid, {"ticket": ticket}, trio.current_time(), wait)

    def say(self, payload: bytes) -> None:
        self.event(CallerAudio(payload, 0, trio.current_time()))

    def event(self, event: CarrierEvent | CarrierProtocolError) -> None:
        if self._listener is None:
            self._early.append(event)
            self._news.set()
        else:
            self._listener([event])

    def echo_marks(self) -> None:
        for command in self.commands:
            if isinstance(command, SendMark):
                self.event(MarkReached(command.name, trio.current_time()))

    def hang_up(self) -> None:
        self.event(StreamStopped(said=True))

    @property
    def commands(self) -> list[CarrierCommand]:
        return [command for _, command in self.sent]

    @property
    def payload(self) -> bytes:
        return b"".join(c.payload for c in self.commands if isinstance(c, SendAudio))

    def audio_after_clear(self) -> bytes:
        after = self.commands[self.commands.index(Clear()) + 1 :]
        return b"".join(c.payload for c in after if isinstance(c, SendAudio))

    # The call's end.

    async def receive_start(self) -> StreamStarted | None:
        while True:
            while not self._early:
                self._news = trio.Event()
                await self._news.wait()
            event = self._early.pop(0)
            if isinstance(event, CarrierProtocolError):
                raise event
            if isinstance(event, StreamStarted):
                return event
            if isinstance(event, StreamStopped):
                return None

    async def _wait_heard(self) -> float | None:
        await trio.sleep(self.joins_s)
        return trio.current_time() if self.is_joined else None

    def listen(self, on_events: Listener, relay: SoundPath) -> None:
        self._listener = on_events
        early, self._early = self._early, []
        if early:
            on_events(early)

    def leave(self) -> None:
        self.left = True

    def send(self, command: CarrierCommand) -> None:
        if self.closed:
            raise StreamEnded("closed")
        self.sent.append((trio.current_time(), command))

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await trio.lowlevel.checkpoint()
        self.closed = (code, reason)
        self._listener = _nobody


class MemorySession:
    """A model session; the test says what the model sends and sees what it is sent."""

    lost_s = 0.0
    is_drained = text_interrupts = False

    def __init__(
        self, on_event: EventListener, connect_s: float, failure: ModelError | None
    ) -> None:
        self._on_event = on_event
        self._connect_s = connect_s
        self._failure = failure
        self._failed = trio.Event()
        self._opened = trio.Event()
        self.connects = False
        self.is_away = False
        """Whether there is no connection just now, as the test has it."""
        self.heard = bytearray()
        self.texts: list[tuple[float, str]] = []
        self.hints: list[str] = []
        self.told: list[tuple[float, str]] = []
        """When turns of the caller's began and ended."""
        self.results: list[ToolResult] = []
        self.reconnects: list[tuple[Way, str]] = []
        self.ways: frozenset[Way] = frozenset()
        """The ways that are open to :meth:`reconnect`."""
        self.closed = False
        self.standing = Standing()

    def event(self, event: SessionEvent | ModelError) -> None:
        if isinstance(event, ModelError):
            self._failure = event
            self._failed.set()
        else:
            self._on_event(event)

    async def run(self) -> None:
        self.connects = True
        try:
            await trio.sleep(self._connect_s)
            if self._failure is None:
                self._opened.set()
                await self._failed.wait()
            assert self._failure is not None
            raise self._failure
        finally:
            self.closed = True

    async def wait_ready(self) -> None:
        await self._opened.wait()

    @property
    def is_ready(self) -> bool:
        return self._opened.is_set()

    @property
    def is_connected(self) -> bool:
        return self.is_ready and not self.is_away

    def leave(self) -> None:
        self._on_event = _nobody

    def join(self, relay: SoundPath) -> None:
        pass

    def note_passed(self) -> None:
        pass

    def send_audio(self, pcm: bytes) -> bool:
        self.heard += pcm
        return self.is_ready

    def caller_begins(self, before_s: float) -> None:
        self.told.append((trio.current_time(), "begins"))

    def caller_ends(self) -> None:
        self.told.append((trio.current_time(), "ends"))

    def send_text(self, text: str) -> None:
        self.texts.append((trio.current_time(), text))

    def send_note(self, text: str) -> bool:
        self.hints.append(text)
        return True

    def send_tool_results(self, results: tuple[ToolResult, ...]) -> None:
        self.results.extend(results)

    async def reconnect(self, way: Way, reason: str) -> bool:
        await trio.lowlevel.checkpoint()
        self.reconnects.append((way, reason))
        return way in self.ways


@dataclass
class MemoryModel:
    """Makes memory sessions, which connect after a delay or fail."""

    connect_s: float = 0.0
    failure: ModelError | None = None
    name: str = "memory"
    sessions: list[MemorySession] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)

    def new_session(
        self,
        agent: Agent,
        conversation: Conversation,
        on_event: EventListener,
        going_on: Standing | None = None,
    ) -> MemorySession:
        session = MemorySession(on_event, self.connect_s, self.failure)
        session.standing = going_on or Standing(model=agent.model or self.name)
        self.sessions.append(session)
        self.agents.append(agent)
        return session

    @property
    def session(self) -> MemorySession:
        return self.sessions[-1]


@dataclass
class MemoryCarrier:
    """Accepts every call, or none."""

    failure: CarrierError | None = None
    name: str = "memory"
    placed: list[tuple[str, str]] = field(default_factory=list)
    hung_up: list[str] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    transferred: list[tuple[str, str]] = field(default_factory=list)
    transfer_failure: CarrierError | None = None
    reconnected: list[tuple[str, str]] = field(default_factory=list)
    detects_machine: bool = False
    """Whether the last call was placed with answering machine detection."""
    answer_s: float = 0.0
    """How long the answer to the dial request takes."""
    status: CallStatus = CallStatus.QUEUED
    """What it says when it is asked how a call stands."""
    asked: list[tuple[float, str]] = field(default_factory=list)
    fetch_failures: list[CarrierError] = field(default_factory=list)

    async def place_call(
        self,
        destination_number: str,
        *,
        ticket: str,
        max_duration_s: float,
        detect_machine: bool = False,
    ) -> PlacedCall:
        if self.failure is not None:
            raise self.failure
        self.detects_machine = detect_machine
        self.placed.append((destination_number, ticket))
        call_sid = f"CA{len(self.placed)}"
        await trio.sleep(self.answer_s)
        return PlacedCall(call_sid, CallStatus.QUEUED)

    async def hang_up(self, call_sid: str) -> None:
        await trio.lowlevel.checkpoint()
        self.hung_up.append(call_sid)

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        await trio.lowlevel.checkpoint()
        self.said.append((text, language))

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()
        if self.transfer_failure is not None:
            raise self.transfer_failure
        self.transferred.append((call_sid, number))

    async def reconnect(self, call_sid: str, ticket: str) -> None:
        await trio.lowlevel.checkpoint()
        self.reconnected.append((call_sid, ticket))

    async def fetch_status(self, call_sid: str) -> StatusUpdate:
        await trio.lowlevel.checkpoint()
        self.asked.append((trio.current_time(), call_sid))
        if self.fetch_failures:
            raise self.fetch_failures.pop(0)
        return StatusUpdate(call_sid, self.status, None, {"asked": "yes"})

    @property
    def ticket(self) -> str:
        return self.placed[-1][1]


class KeptRecords:
    """Takes records as the database does, and has each written at once if it is not slow."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.told: list[OutboxEvent] = []
        self.is_slow = False
        self.on_written: Callable[[str], None] = _nobody
        self.on_sweep: Callable[[float], None] | None = None

    def keep(self, record: dict[str, Any]) -> None:
        self.kept.append(record)
        if not self.is_slow:
            self.on_written(record["call_sid"])

    def tell(self, event: OutboxEvent) -> None:
        self.told.append(event)

    def unsaved(self, *details: str) -> list[dict[str, Any]]:
        return self.kept

    async def page(
        self,
        limit: int,
        before: Cursor | None,
        wanted: Wanted | None,
        *,
        with_outcome: bool = False,
    ) -> list[dict[str, Any]]:
        return []
