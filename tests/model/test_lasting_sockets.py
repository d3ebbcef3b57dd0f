"""Sessions that outlive their connections, over sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

from server.agent.agent import Agent
from server.media.plane import AVAILABLE, Plane
from server.model import (
    Reconnected,
    SessionEvent,
    TurnComplete,
    Way,
)
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.simulators.clock import PatientClock
from server.simulators.gemini import (
    Drop,
    GeminiSimulator,
    ModelScript,
)
from tests.support.lasting_talks import (
    HISTORY,
    KEY,
    Conversation,
    Talk,
    silence,
)

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def talking_over_sockets(
    gemini: GeminiSimulator, *, on_plane: bool, **options: Any
) -> AsyncIterator[Talk]:
    """Open a lasting session over TCP and listen to it."""
    gemini.greeting = replace(gemini.greeting, pcm=gemini.greeting.pcm[:24_000])
    gemini.still_here = replace(gemini.still_here, pcm=gemini.still_here.pcm[:12_000])
    conversation = Conversation()
    async with trio.open_nursery() as nursery:
        await nursery.start(gemini.run)
        plane = None
        if on_plane:
            plane = Plane()
            await nursery.start(plane.run)
        service = GeminiModel(api_key=KEY, url=gemini.url, plane=plane)
        talk = Talk(gemini, conversation)
        model = LastingModel(service, **options)
        talk.session = model.new_session(Agent(), conversation, talk.take)
        with trio.fail_after(120.0):
            async with trio.open_nursery() as running:
                ready = trio.Event()
                running.start_soon(talk.run, ready)
                await ready.wait()
                yield talk
                running.cancel_scope.cancel()
        assert talk.failure is None
        await gemini.sessions[-1].ended.wait()
        nursery.cancel_scope.cancel()


QUICK = ModelScript(setup_delay_s=0.01, reply_delay_s=0.05)
PATHS = pytest.mark.parametrize(
    "on_plane",
    [False, pytest.param(True, marks=pytest.mark.skipif(not AVAILABLE, reason="needs epoll"))],
)


@PATHS
async def test_over_sockets_a_dropped_connection_is_replaced_and_the_call_goes_on(
    patient_clock: PatientClock, on_plane: bool
):
    dropping = replace(QUICK, drop=Drop(1, 0.1, 1006))
    gemini = GeminiSimulator(api_key=KEY, script=dropping, script_after_resume=QUICK)
    async with talking_over_sockets(gemini, on_plane=on_plane) as talk:
        talk.conversation.turns = list(HISTORY)
        talk.session.send_text("Greet.")
        await talk.say_until(lambda: TurnComplete(2, None) in talk.events, silence(0.02))

    assert talk.reconnects == [("closed-1006", Way.FRESH)]
    assert TurnComplete(1, "CONNECTION_LOST") in talk.events
    assert [service.closed_by_client for service in talk.services] == [None, 1000]


@PATHS
async def test_over_sockets_a_connection_is_rotated_and_nothing_is_lost(
    fast_clock: PatientClock, on_plane: bool
):
    gemini = GeminiSimulator(api_key=KEY, script=QUICK, script_after_resume=QUICK)
    # By then the greeting has been said and can be gone on from, however busy the machine is.
    async with talking_over_sockets(gemini, on_plane=on_plane, connection_age_s=5.0) as talk:
        talk.session.send_text("Greet.")
        await talk.say_until(lambda: len(talk.reconnects) >= 3, silence(0.02))
        with trio.fail_after(60):
            while len(talk.heard) < len(talk.said):  # noqa: ASYNC110  # sockets tell nobody
                await trio.sleep(0.02)

    assert set(talk.reconnects) == {("age", Way.RESUME)}
    assert TurnComplete(1, None) in talk.events
    # What was on its way when a connection was left is said again to the next.
    twice = len(talk.heard) - len(talk.said)
    assert twice in range(0, 640 * len(talk.reconnects) + 1, 640)
    assert {service.closed_by_client for service in talk.services} == {1000}


async def test_a_service_whose_pongs_are_late_is_well_and_only_pinging_it_does_harm(
    patient_clock: PatientClock,
):
    gemini = GeminiSimulator(api_key=KEY, script=replace(QUICK, pong_delay_s=30.0))
    path = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
    options = {"ping_interval": 0.05, "ping_timeout": 0.1, "close_timeout": 0.1}

    async with talking_over_sockets(gemini, on_plane=False) as talk:
        talk.session.send_text("Greet.")
        async with connect(f"{gemini.url}{path}?key={KEY}", proxy=None, **options) as pinging:
            with pytest.raises(ConnectionClosed, match="keepalive ping timeout"):
                await pinging.recv()
        await talk.say_until(lambda: TurnComplete(1, None) in talk.events, silence(0.02))

    assert talk.reconnects == []


@pytest.mark.slow
async def test_a_hundred_sessions_that_are_cut_at_once_come_back_one_after_the_other() -> None:
    gemini = GeminiSimulator(api_key=KEY, script=QUICK, script_after_resume=QUICK)
    back_after_s: list[float] = []
    cut_at = 0.0

    def take(event: SessionEvent) -> None:
        if isinstance(event, Reconnected):
            back_after_s.append(trio.current_time() - cut_at)

    with trio.fail_after(120.0):
        async with trio.open_nursery() as nursery:
            await nursery.start(gemini.run)
            model = LastingModel(GeminiModel(api_key=KEY, url=gemini.url))
            for _ in range(100):
                session = model.new_session(Agent(), Conversation(), take)
                nursery.start_soon(session.run)
                await session.wait_ready()
            cut_at = trio.current_time()
            for each in list(gemini.sessions):
                nursery.start_soon(each.cut)
            while len(back_after_s) < 100:
                await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()

    # A busy machine makes it longer, and never shorter.
    assert len(back_after_s) == 100
    assert sum(after_s < 0.1 for after_s in back_after_s) <= 10
    assert max(back_after_s) > 1.8
