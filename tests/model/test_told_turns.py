"""Turns of the caller's that connections are told of: no audio outside of them is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from server.agent.agent import Agent
from server.model import SessionEvent, Way
from server.model.lasting.model import LastingModel
from server.model.lasting.told_turns import MAX_BEFORE_BYTES, ToldTurns
from server.model.lasting.unanswered import Edge, Passed
from server.simulators.phone import load_speech
from server.simulators.phone.steps import PhoneScript, Say, Wait
from tests.model.test_lasting_services import StandIn
from tests.support.lasting_talks import Conversation
from tests.support.rig import calling

AGENT = Agent(turn_end="local")


class Told:
    """A connection that takes turns, or does not."""

    def __init__(self, *, takes_turns: bool = True) -> None:
        self.takes_turns = takes_turns

    def turn_message(self, *, begins: bool) -> bytes:
        return b"begins" if begins else b"ends"


def told(turns: ToldTurns, connection: Told, *contents: object) -> list[list[bytes]]:
    return [list(turns.messages(connection, content)) for content in contents]


def test_audio_that_is_repeated_is_in_a_turn_whatever_is_left_of_the_first():
    turns = ToldTurns(are_wanted=True)
    turns.opened(Told())

    found = told(turns, Told(), Edge.ENDS, Passed(b"\xff"), "text", b"\0\0", Edge.ENDS, Edge.ENDS)

    assert found == [[], [b"begins"], [], [], [b"ends"], []]


def test_audio_behind_the_end_of_a_turn_is_in_none_until_the_next_begins():
    turns, connection = ToldTurns(are_wanted=True), Told()
    turns.opened(connection)
    contents = [Edge.ENDS, b"\0\0", Edge.ENDS, b"\0\0", Edge.ENDS, "text", Edge.BEGINS, b"\0\0"]

    left_out = []
    for content in contents:
        left_out.append(turns.leaves_out(connection, content))
        if not left_out[-1]:
            told(turns, connection, content)

    assert left_out == [False, False, False, True, False, False, False, False]
    told(turns, connection, Edge.ENDS)
    assert turns.leaves_out(connection, Passed(b"\xff"))
    assert not turns.leaves_out(Told(takes_turns=False), b"\0\0")
    turns.opened(connection)
    assert not turns.leaves_out(connection, b"\0\0")


def test_each_connection_is_told_anew_and_only_those_that_take_it():
    turns = ToldTurns(are_wanted=True)

    assert told(turns, Told(), Edge.BEGINS, Edge.BEGINS) == [[b"begins"], []]
    turns.opened(Told())
    assert told(turns, Told(), Edge.BEGINS) == [[b"begins"]]
    turns.opened(Told())
    assert told(turns, Told(takes_turns=False), Edge.BEGINS, b"\0\0") == [[], []]


def test_what_is_in_no_turn_is_kept_for_a_while_and_no_more():
    turns = ToldTurns(are_wanted=True)
    assert turns.holds_back(None)
    assert not turns.holds_back(Told(takes_turns=False))
    assert not ToldTurns(are_wanted=False).holds_back(Told())

    turns.keep(b"\1\0" * MAX_BEFORE_BYTES)
    turns.keep(b"\2\0")

    assert turns.take(0.001) == b"\1\0" * 15 + b"\2\0"
    assert turns.take(0.001) == b""


@pytest.mark.parametrize("callee", ["talks", "interrupts", "says-hello", "coughs"])
async def test_a_call_whose_turns_are_told_goes_as_any_other(autojump_clock, callee):
    async with calling(callee=callee, agent=AGENT) as rig:
        await rig.over()

    (session,) = rig.sessions
    assert session.caller.is_manual
    assert session.mistakes == []
    assert session.closed_by_client == 1000
    assert rig.call.end_reason == "caller-hung-up"
    said = [turn for turn in rig.record["transcript"] if turn["speaker"] == "agent"]
    assert len(said) >= 2
    assert "watchdog nudge" not in rig.noted


async def test_the_model_hears_the_whole_turn_and_what_was_before_it(autojump_clock):
    script = PhoneScript("asks once", (Wait(9.0), Say("question"), Wait(6.0)))

    async with calling(callee=script, agent=AGENT) as rig:
        await rig.over()

    (session,) = rig.sessions
    spoken_s = len(load_speech("question")) / 8_000
    heard_s = session.heard_samples / 16_000
    assert spoken_s < heard_s < spoken_s + 1.3
    starts = [moment for moment in session.timeline if moment.what == "caller starts"]
    assert len(starts) == 1


async def test_a_turn_goes_on_over_another_connection(autojump_clock):
    script = PhoneScript("asks once", (Wait(9.0), Say("question"), Wait(8.0)))

    async with calling(callee=script, agent=AGENT) as rig:
        with trio.fail_after(60.0):
            while not any(  # noqa: ASYNC110
                one.what == "caller starts" for each in rig.sessions for one in each.timeline
            ):
                await trio.sleep(0.05)
        await trio.sleep(0.6)
        await rig.sessions[-1].cut()
        await rig.over()

    assert len(rig.sessions) == 2
    second = rig.sessions[1]
    assert second.caller.is_manual
    assert second.closed_by_client == 1000
    spoken_s = len(load_speech("question")) / 8_000
    assert second.heard_samples / 16_000 > spoken_s - 0.5
    assert any(one.what.startswith("caller ends") for one in second.timeline)


class Recorded(StandIn):
    """A connection that writes down what it is sent."""

    def __init__(self, heard: list[bytes], *, takes_turns: bool) -> None:
        self._heard = heard
        self.takes_turns = takes_turns

    def turn_message(self, *, begins: bool) -> bytes:
        assert self.takes_turns
        return b"begins" if begins else b"ends"

    async def receive(self) -> SessionEvent:
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._heard.append(message)


class Changing:
    """A service whose connections take turns, or not, one after the other."""

    name, key_name = "changing", ""

    def __init__(self, *takes_turns: bool) -> None:
        self._takes_turns = list(takes_turns)
        self.heard: list[list[bytes]] = []

    @asynccontextmanager
    async def open_connection(self, *_: Any, **options: Any) -> AsyncIterator[Recorded]:
        self.heard.append([])
        yield Recorded(self.heard[-1], takes_turns=self._takes_turns.pop(0))


async def changed(*takes_turns: bool, before: bytes = b"") -> list[list[bytes]]:
    """What connections hear of a caller who speaks on one, and on another the next moment."""
    service = Changing(*takes_turns)
    session = LastingModel(service).new_session(AGENT, Conversation(), lambda event: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        if before:
            session.send_audio(before)
            assert await session.reconnect(Way.FRESH, "test")
        session.caller_begins(0.3)
        session.send_audio(b"\1\0" * 160)
        await trio.testing.wait_all_tasks_blocked()
        assert await session.reconnect(Way.FRESH, "test")
        session.send_audio(b"\2\0" * 160)
        await trio.testing.wait_all_tasks_blocked()
        session.caller_ends()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return service.heard


async def test_a_turn_that_begins_where_none_is_told_is_told_to_the_next_connection(
    autojump_clock,
):
    first, second = await changed(False, True)

    assert b"begins" not in first
    assert second[0] == b"begins"
    assert b"\2\0" * 160 in second
    assert second[-1] == b"ends"


async def test_a_turn_that_is_repeated_with_the_silence_behind_it_is_over_with_its_end(
    autojump_clock,
):
    service = Changing(False, True)
    session = LastingModel(service).new_session(AGENT, Conversation(), lambda event: None)
    question, behind = b"\0\x40" * 1_600, bytes(3_200)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        session.caller_begins(0.3)
        session.send_audio(question)
        session.caller_ends()
        for _ in range(10):
            session.send_audio(behind)
        await trio.testing.wait_all_tasks_blocked()
        assert await session.reconnect(Way.FRESH, "test")
        await trio.testing.wait_all_tasks_blocked()
        repeated = list(service.heard[1])
        session.send_audio(behind)
        session.caller_begins(0.1)
        session.send_audio(question)
        session.caller_ends()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert service.heard[0].count(behind) == 10
    assert repeated == [b"begins", question, b"ends"]
    assert service.heard[1][3:] == [b"begins", behind, question, b"ends"]


async def test_what_was_kept_for_one_connection_is_not_said_to_another_that_keeps_nothing(
    autojump_clock,
):
    _, second, third = await changed(True, False, True, before=b"\3\0" * 160)

    assert not any(b"\3" in message for message in second + third)
    assert b"\1\0" * 160 in second


async def test_a_turn_that_does_not_end_is_ended(autojump_clock):
    script = PhoneScript("goes on and on", (Wait(9.0), *(Say("question"),) * 14, Wait(4.0)))

    async with calling(callee=script, agent=AGENT, barge_in="local") as rig:
        await rig.over()

    ends = [one for one in rig.sessions[0].timeline if one.what.startswith("caller ends")]
    assert ends
    assert all(float(one.what.split()[3]) <= 31.5 for one in ends)


async def test_a_model_that_is_not_known_to_bear_it_is_not_told(autojump_clock):
    agent = Agent(turn_end="local", model="gemini-3.8-live-extended-thinking")

    async with calling(callee="talks", agent=agent) as rig:
        await rig.over()

    (session,) = rig.sessions
    assert not session.caller.is_manual
    assert rig.call.end_reason == "caller-hung-up"
    assert session.heard_samples / 16_000 > 5.0
