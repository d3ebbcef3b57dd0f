"""Sessions over connections that may do anything: no word is lost that is not counted."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from server.agent.agent import Agent
from server.dialogue.opening import LONGEST_HOLD_S
from server.errors import ModelError, ModelSetupRefused
from server.media.relay import Relay
from server.model import (
    Reconnected,
    ResumptionHandle,
    SessionEvent,
    ToolResult,
    Way,
)
from server.model.lasting.model import LastingModel
from server.model.lasting.plan import State
from server.model.lasting.session import STALL_S
from server.model.lasting.unanswered import MAX_INPUT_BYTES, PCM_BYTES_PER_S
from tests.support.inputs import inputs
from tests.support.lasting_talks import (
    Conversation,
)


class StandIn:
    """A connection that is no wire, and whose messages are what was to be said."""

    is_wire = takes_turns = text_interrupts = False
    is_drained = False

    def listen(self, on_event: Callable[[SessionEvent | ModelError], None]) -> None:
        raise AssertionError("it is no wire")

    def join(self, relay: Relay) -> bool:
        return False

    def leave(self, relay: Relay) -> None:
        raise AssertionError("it was not joined")

    def audio_message(self, pcm: bytes) -> bytes:
        return pcm

    def turn_message(self, *, begins: bool) -> bytes:
        raise AssertionError("it takes no turns")

    def text_message(self, text: str) -> bytes:
        return text.encode()

    def note_message(self, text: str) -> bytes | None:
        return text.encode()

    def tool_results_message(self, results: tuple[ToolResult, ...]) -> bytes:
        raise AssertionError

    def send_nowait(self, message: bytes) -> None:
        raise AssertionError("it is no wire")


class DeafService:
    """Its first connection takes nothing and says nothing, until it is left."""

    name = "deaf"

    def __init__(self) -> None:
        self.opened = 0
        self.heard: list[bytes] = []

    @asynccontextmanager
    async def open_connection(self, *_: Any, **options: Any) -> AsyncIterator[DeafConnection]:
        self.opened += 1
        yield DeafConnection(self, deaf=self.opened == 1)


class DeafConnection(StandIn):
    def __init__(self, service: DeafService | WholeService, *, deaf: bool) -> None:
        self._service = service
        self._deaf = deaf

    async def receive(self) -> SessionEvent:
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, message: bytes) -> None:
        await (trio.sleep_forever if self._deaf else trio.lowlevel.checkpoint)()
        self._service.heard.append(message)


@pytest.mark.parametrize("is_note", [False, True])
async def test_nothing_that_hangs_on_a_dead_connection_keeps_the_next_from_its_work(
    autojump_clock, is_note: bool
):
    service = DeafService()
    news: list[SessionEvent] = []
    session = LastingModel(service).new_session(Agent(), Conversation(), news.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        began = trio.current_time()
        if is_note:
            session.send_note("by the way")
            await trio.testing.wait_all_tasks_blocked()
        session.send_text("Hello?")
        await trio.sleep(30.0)
        nursery.cancel_scope.cancel()

    (reconnected,) = news
    assert isinstance(reconnected, Reconnected)
    assert (reconnected.reason, service.opened) == ("broken", 2)
    assert session._plan.left_at - began == pytest.approx(STALL_S)
    assert service.heard == [b"Hello?"]


class WholeService:
    """Writes down all that its connections are sent, be they wires or none."""

    name = "whole"
    key_name = ""

    def __init__(self, *, is_wire: bool, takes_notes: bool = True) -> None:
        self.is_wire = is_wire
        self.takes_notes = takes_notes
        self.heard: list[bytes] = []
        self.opened_with: list[tuple[str | None, tuple[str, ...]]] = []
        """The handle that each connection was opened with, and what has been said by then."""

    @asynccontextmanager
    async def open_connection(
        self, agent: Agent, story: Any, **options: Any
    ) -> AsyncIterator[StandIn]:
        said = tuple(turn.text for turn in story.history())
        self.opened_with.append((options["handle"], said))
        if self.is_wire:
            yield WireConnection(self)
        else:
            yield DeafConnection(self, deaf=False)


class WireConnection(StandIn):
    is_wire = True

    def __init__(self, service: WholeService) -> None:
        self._service = service

    def note_message(self, text: str) -> bytes | None:
        return super().note_message(text) if self._service.takes_notes else None

    def listen(self, on_event: Callable[[SessionEvent | ModelError], None]) -> None:
        pass

    def send_nowait(self, message: bytes) -> None:
        self._service.heard.append(message)


@pytest.mark.parametrize(
    ("is_wire", "held_s"), [(True, LONGEST_HOLD_S), (True, 60.0), (False, LONGEST_HOLD_S)]
)
async def test_what_was_held_for_long_is_said_from_its_first_word_on(
    autojump_clock, is_wire: bool, held_s: float
):
    service = WholeService(is_wire=is_wire)
    session = LastingModel(service).new_session(Agent(), Conversation(), lambda event: None)
    held = b"".join(n.to_bytes(4, "little") for n in range(round(held_s * PCM_BYTES_PER_S) // 4))
    behind = bytes(MAX_INPUT_BYTES // 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        session.send_audio(bytes(MAX_INPUT_BYTES))
        await trio.testing.wait_all_tasks_blocked()
        session.send_audio(held)
        session.send_audio(behind)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert b"".join(service.heard) == bytes(MAX_INPUT_BYTES) + held + behind
    assert max(map(len, service.heard)) == MAX_INPUT_BYTES
    assert session.lost_s == 0.0


@dataclass(frozen=True)
class Life:
    """One connection of a service that may do anything."""

    opens_after_s: float
    fails_to_open: ModelError | None
    lasts_s: float
    ends: ModelError
    handle: bool


class UnreliableService:
    """Lives one life after the other, and then is well."""

    def __init__(self, lives: Iterable[Life], name: str = "unreliable") -> None:
        self.name = name
        self.lives = list(lives)
        self.heard: list[list[bytes]] = []
        self.open = 0

    @asynccontextmanager
    async def open_connection(
        self, agent: Agent, conversation: Any, *, handle: str | None = None, first_turn: int = 1
    ) -> AsyncIterator[UnreliableConnection]:
        life = self.lives.pop(0) if self.lives else None
        if life is not None:
            await trio.sleep(life.opens_after_s)
            if life.fails_to_open is not None:
                raise life.fails_to_open
        assert self.open == 0, "the old connection must be closed before the next is opened"
        self.open += 1
        self.heard.append([])
        try:
            yield UnreliableConnection(life, self.heard[-1])
        finally:
            self.open -= 1


class UnreliableConnection(StandIn):
    def __init__(self, life: Life | None, heard: list[bytes]) -> None:
        self._life = life
        self._heard = heard
        self._ends_at = trio.current_time() + (life.lasts_s if life else math.inf)
        self._handle_sent = life is None or not life.handle

    async def receive(self) -> SessionEvent:
        if not self._handle_sent:
            self._handle_sent = True
            return ResumptionHandle("h")
        await trio.sleep_until(self._ends_at)
        assert self._life is not None
        raise self._life.ends

    async def send(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if trio.current_time() >= self._ends_at:
            assert self._life is not None
            raise self._life.ends
        self._heard.append(message)


def lost(code: int | None) -> ModelError:
    return ModelError(f"lost: {code}", code=code, reason="", retryable=code != 1007)


FAILURES = st.sampled_from([lost(1006), lost(1011), lost(1008), lost(None)])
LIVES = st.builds(
    Life,
    opens_after_s=st.sampled_from([0.0, 0.1, 2.0]),
    fails_to_open=st.one_of(
        st.none(),
        FAILURES,
        st.just(ModelSetupRefused("no", code=1008, reason="not found", retryable=False)),
    ),
    lasts_s=st.sampled_from([0.0, 0.05, 1.0, 11.0]),
    ends=st.one_of(FAILURES, st.just(lost(1007))),
    handle=st.booleans(),
)


@pytest.mark.parametrize("hangs", [True, False])
async def test_the_fallback_that_is_asked_for_in_an_outage_takes_over_at_once(
    autojump_clock, hangs: bool
):
    never = Life(25.0 if hangs else 0.0, lost(1011), 0.0, lost(1006), handle=False)
    lives = [Life(0.0, None, 1.0, lost(1006), handle=False), *[never] * 20]
    main, other = UnreliableService(lives), UnreliableService([], "other")
    news: list[SessionEvent] = []
    model = LastingModel(main, fallback=other)
    session = model.new_session(Agent(), Conversation(), news.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        await trio.sleep(10.0)
        state, asked_at = session._plan.state, trio.current_time()

        assert await session.reconnect(Way.FALLBACK, "no-reply")
        took_s = trio.current_time() - asked_at
        nursery.cancel_scope.cancel()

    assert state is (State.OPENING if hangs else State.WAITING)
    assert [(one.way, one.model) for one in news] == [(Way.FALLBACK, "other")]
    assert took_s < 0.1


@settings(max_examples=inputs(40))
@given(lives=st.lists(LIVES, max_size=6))
def test_whatever_a_service_does_every_word_is_heard_in_order_or_counted(lives: list[Life]) -> None:
    async def call() -> None:
        service = UnreliableService(lives)
        spoken = 0
        news: list[SessionEvent] = []
        session = LastingModel(service).new_session(Agent(), Conversation(), news.append)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.run)
                await session.wait_ready()
                for spoken in range(1, 751):  # 15 s
                    session.send_audio(spoken.to_bytes(2, "little") + b"\x00\x40" * 319)
                    await trio.sleep(0.02)
                await trio.sleep(60.0)
                nursery.cancel_scope.cancel()
        except* ModelError:
            failed = True
        else:
            failed = False
        if failed:
            return  # told to whoever runs it, which is not the same as silence

        heard = [
            [
                int.from_bytes(pcm[at : at + 2], "little")
                for pcm in one
                for at in range(0, len(pcm), 640)
            ]
            for one in service.heard
        ]
        for one in heard:
            assert one == sorted(set(one))
        missing = spoken - len(set().union(*heard))
        counted_s = sum(event.lost_s for event in news if isinstance(event, Reconnected))
        assert missing * 0.02 == pytest.approx(counted_s)
        assert heard[-1][-1] == spoken

    trio.run(call, clock=MockClock(autojump_threshold=0))
