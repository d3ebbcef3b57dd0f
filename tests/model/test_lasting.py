"""Sessions that outlive their connections: in memory on a mock clock, and over sockets."""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.trio.client import connect

from server.agent.agent import Agent
from server.errors import ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.media.plane import AVAILABLE, Plane
from server.media.relay import Relay
from server.model import (
    AgentAudio,
    Interrupted,
    PastTurn,
    Reconnected,
    ResumptionHandle,
    SessionEvent,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Way,
)
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.model.lasting.session import CUT_OFF_TEXT, STALL_S, LastingSession
from server.model.lasting.unanswered import BYTES_PER_S, is_loud
from server.simulators.clock import PatientClock
from server.simulators.gemini import (
    ANSWERS,
    SCRIPTS,
    Drop,
    GeminiSimulator,
    MemorySocket,
    Script,
    SimulatedSession,
)

KEY = "a-secret-key"
QUOTA = Close(1011, "You exceeded your current quota.")
TOOL = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(name="look_up", parameters_json_schema={"type": "object"})
    ]
)


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
    script: Script | str = ANSWERS,
    after: Script = ANSWERS,
    *,
    fallback: bool = False,
    model: str = "gemini-3.8-live",
    config: types.LiveConnectConfig | None = None,
    gemini: GeminiSimulator | None = None,
    **options: Any,
) -> AsyncIterator[Talk]:
    """Open a lasting session in memory and listen to it."""
    if isinstance(script, str):
        script = SCRIPTS[script]
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


# --- Rotating


async def test_an_old_connection_is_replaced_in_a_silence_and_nothing_is_lost(autojump_clock):
    async with talking(connection_age_s=20.0) as talk:
        for _ in range(10):
            await talk.say(speech(1.0) + silence(4.0))

    assert talk.reconnects == [("age", Way.RESUME)] * 2
    assert talk.heard == talk.said
    assert all(event.reason is None for event in talk.all(TurnComplete))
    turns = [event.turn for event in talk.all(TurnComplete)]
    assert turns == list(range(1, 11))
    assert [event.gap_s for event in talk.all(Reconnected)] == pytest.approx([0.1, 0.1])
    assert [event.lost_s for event in talk.all(Reconnected)] == [0.0, 0.0]


async def test_the_old_socket_is_closed_before_the_session_is_resumed(autojump_clock):
    async with talking(connection_age_s=5.0) as talk:
        await talk.say(speech(1.0) + silence(9.0))

    first, second, *_ = talk.services
    assert first.closed_by_client == 1000
    assert second.resumed_from is first
    assert not any("still in use" in moment.what for moment in second.timeline)


async def test_the_agent_finishes_its_sentence_before_a_rotation(autojump_clock):
    async with talking(Script(go_away_at_s=2.0, go_away_left_s=40.0)) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(10.0))

    assert talk.pcm(1) == talk.gemini.greeting.pcm
    assert talk.all(TurnComplete) == [TurnComplete(1, None)]
    names = [type(event) for event in talk.events]
    assert names.index(TurnComplete) < names.index(Reconnected)
    assert talk.reconnects == [("go-away", Way.RESUME)]


async def test_a_call_in_which_the_agent_can_still_be_heard_is_not_quiet(autojump_clock):
    async with talking(Script(go_away_at_s=2.0, go_away_left_s=40.0)) as talk:
        talk.session.send_text("Greet.")
        talk.conversation.quiet = False
        await talk.say(silence(20.0))
        assert talk.reconnects == []

        talk.conversation.quiet = True
        await talk.say(silence(0.5))
        assert talk.reconnects == [("go-away", Way.RESUME)]


async def test_without_any_silence_the_rotation_comes_before_the_service_closes(autojump_clock):
    async with talking(Script(go_away_at_s=2.0, go_away_left_s=40.0)) as talk:
        talk.conversation.quiet = False
        await talk.say(silence(1.0) + speech(1.0) + silence(29.8))
        assert talk.reconnects == []
        await talk.say(silence(1.0))

    assert talk.reconnects == [("go-away", Way.RESUME)]
    assert talk.heard == talk.said


async def test_a_caller_who_speaks_or_waits_for_an_answer_is_not_rotated_away(autojump_clock):
    async with talking(Script(reply_delay_s=4.0), connection_age_s=5.0) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(4.0) + speech(3.0) + silence(4.0))
        assert talk.reconnects == []
        await talk.say_until(lambda: bool(talk.reconnects), silence(0.5))

    assert [event.reason for event in talk.all(TurnComplete)] == [None, None]
    assert talk.heard == talk.said


async def test_a_sound_that_may_be_speech_is_waited_for_but_a_noisy_line_is_rotated(autojump_clock):
    async with talking(Script(go_away_at_s=6.0, go_away_left_s=60.0)) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(5.0))
        talk.is_noise = True
        await talk.say(speech(4.0))
        assert talk.reconnects == []
        await talk.say(speech(4.0))
        assert talk.reconnects == [("go-away", Way.RESUME)]


async def test_no_rotation_while_a_tool_call_is_open(autojump_clock):
    config = types.LiveConnectConfig(tools=[TOOL])
    script = Script(tool_calls=1)
    async with talking(script, connection_age_s=5.0, config=config) as talk:
        await talk.say(speech(1.0) + silence(12.0))
        assert talk.reconnects == []

        (request,) = talk.all(ToolCallsRequested)
        (call,) = request.calls
        talk.session.send_tool_results((ToolResult(call.id, call.name, {"output": 1}),))
        await talk.say_until(lambda: bool(talk.reconnects), silence(0.5))

    assert talk.services[0].tool_results == {call.id: {"output": 1}}
    assert talk.services[0].mistakes == []


# --- Coming back


@pytest.mark.parametrize(
    ("script", "reason"), [("drop-1006", "closed-1006"), ("drop-1011", "closed-1011")]
)
async def test_a_question_whose_answer_broke_off_is_answered_again(
    script: str, reason: str, autojump_clock
):
    question = speech(2.0)
    async with talking(script) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(6.0) + question + silence(8.0))

    assert talk.reconnects == [(reason, Way.RESUME)]
    assert talk.all(TurnComplete) == [
        TurnComplete(1, None),
        TurnComplete(2, "CONNECTION_LOST"),
        TurnComplete(3, None),
    ]
    assert 0 < len(talk.pcm(2)) < len(talk.pcm(3))
    assert question in talk.pcm(3)
    (news,) = talk.all(Reconnected)
    assert news.repeated_s == pytest.approx(2.0 + 0.3 + 0.8, abs=0.15)
    assert news.words_repeated
    assert news.gap_s == pytest.approx(0.1)


async def test_a_greeting_that_broke_off_is_asked_for_again(autojump_clock):
    async with talking(Script(drop=Drop(turn=1, after_s=1.0, code=1006))) as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = [PastTurn("agent", "Good")]
        await trio.sleep(10.0)

    assert talk.reconnects == [("closed-1006", Way.FRESH)]
    assert [service.texts for service in talk.services] == [["Greet."], ["Good", "Greet."]]


async def test_a_service_that_always_breaks_off_is_given_up(autojump_clock):
    async with talking(Script(drop=Drop(turn=1, after_s=1.0, code=1006))) as talk:
        talk.session.send_text("Greet.")
        await trio.sleep(60.0)

        assert talk.failure is not None
        assert 5 < len(talk.services) < 15


async def test_a_caller_who_is_cut_off_in_mid_sentence_is_heard_whole(autojump_clock):
    async with talking(Script(go_away_at_s=9.0, go_away_left_s=2.0)) as talk:
        talk.session.send_text("Greet.")
        question = speech(6.0)
        # The service closes in the middle of the question.
        await talk.say(silence(6.0) + question + silence(8.0))

    assert question in talk.pcm(2)
    assert talk.all(Reconnected)[0].lost_s == 0


async def test_a_turn_that_was_cut_stays_cut(autojump_clock):
    async with talking(Script(drop=Drop(turn=2, after_s=0.3, code=1006))) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(1.0) + speech(1.0) + silence(8.0))

    assert [event.turn for event in talk.all(Interrupted)] == [1]
    turns = [event.turn for event in talk.events if isinstance(event, AgentAudio)]
    assert turns == sorted(turns)
    assert [event.turn for event in talk.all(TurnComplete)] == [1, 2, 3]


async def test_caller_audio_waits_for_the_connection_and_overtakes_real_time(autojump_clock):
    async with talking(Script(drop=Drop(1, 0.3, 1006)), Script(setup_delay_s=4.0)) as talk:
        talk.conversation.turns = [PastTurn("caller", "Hello?")]
        talk.session.send_text("Greet.")
        await trio.sleep(0.5)
        numbered = b"".join(n.to_bytes(2, "little") * 320 for n in range(1, 1 + 300))
        await talk.say(numbered)
        await trio.lowlevel.checkpoint()

    assert talk.services[1].heard == numbered
    times = {moment.what: moment.at_s for moment in talk.services[1].timeline}
    assert times["set up"] == pytest.approx(4.0)


async def test_only_ten_seconds_wait_and_what_has_to_go_is_counted(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY, script=Script(drop=Drop(1, 0.3, 1006)))
    down_until = math.inf

    @asynccontextmanager
    async def connect_if_up(url: str, headers: Any) -> AsyncIterator[MemorySocket]:
        if gemini.sessions and trio.current_time() < down_until:
            raise OSError("connection refused")
        async with GeminiSimulator.connect(gemini, url, headers) as socket:
            yield socket

    gemini.connect = connect_if_up  # type: ignore[method-assign]
    async with talking(gemini=gemini) as talk:
        talk.session.send_text("Greet.")
        await trio.sleep(1.0)
        down_until = trio.current_time() + 16.0
        await talk.say_until(lambda: bool(talk.reconnects), speech(1.0))

    (news,) = talk.all(Reconnected)
    assert news.gap_s > 10.0
    assert news.lost_s == pytest.approx(news.gap_s - 10.0, abs=1.2)
    assert news.lost_s + len(talk.services[-1].heard) / BYTES_PER_S == pytest.approx(
        len(talk.said) / BYTES_PER_S, abs=0.1
    )


async def test_a_service_that_stays_away_is_given_up_after_the_budget(autojump_clock):
    @asynccontextmanager
    async def refuse(url: str, headers: Any) -> AsyncIterator[MemorySocket]:
        raise OSError("connection refused")
        yield

    model = LastingModel(GeminiModel(api_key=KEY, connect=refuse))
    began = trio.current_time()
    with pytest.raises(ModelError, match="connection refused"):
        await model.new_session(Agent(), Conversation(), [].append).run()

    assert 20.0 < trio.current_time() - began <= 30.0


async def test_an_attempt_that_hangs_ends_with_the_budget(autojump_clock):
    began = trio.current_time()
    with pytest.raises(ModelError):
        async with talking(Script(setup_delay_s=1e6), reconnect_budget_s=12.0):
            pass

    assert trio.current_time() - began == pytest.approx(12.0, abs=0.1)


async def test_a_wrong_set_up_is_tried_once(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY, script=SCRIPTS["bad-setup"])
    with pytest.raises(ModelSetupRefused):
        async with talking(gemini=gemini):
            pass

    assert len(gemini.sessions) == 1


async def test_quota_is_told_at_once_when_a_session_is_opened(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY, script=SCRIPTS["quota"])
    with pytest.raises(ModelQuotaExceeded):
        async with talking(gemini=gemini):
            pass

    assert len(gemini.sessions) == 1


async def test_quota_in_mid_call_ends_the_session_for_good(autojump_clock):
    drop = Drop(1, 0.5, QUOTA.code, QUOTA.reason)
    async with talking(Script(drop=drop)) as talk:
        talk.session.send_text("Greet.")
        await trio.sleep(5.0)

        assert isinstance(talk.failure, ModelQuotaExceeded)
        assert not talk.session.send_audio(silence(0.02))
        assert not talk.session.send_note("Hello?")
        assert not await talk.session.reconnect(Way.FRESH, "no-reply")
    assert len(talk.services) == 1


# --- A fresh session


HISTORY = [
    PastTurn("agent", "Good morning."),
    PastTurn("caller", "I would like a table."),
]


async def test_a_used_up_context_is_replaced_by_a_session_that_is_told_the_story(autojump_clock):
    drop = Drop(2, 0.5, 1007, "The context is too long.")
    async with talking(Script(drop=drop)) as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = list(HISTORY)
        await talk.say(silence(6.0) + speech(1.0) + silence(6.0))

    assert talk.reconnects == [("closed-1007", Way.FRESH)]
    fresh = talk.services[1]
    assert fresh.resumed_from is None
    assert fresh.setup["historyConfig"] == {"initialHistoryInClientContent": True}
    assert "handle" not in fresh.setup["sessionResumption"]
    assert fresh.texts == [turn.text for turn in HISTORY]
    assert fresh.mistakes == []
    assert talk.all(TurnComplete)[-1] == TurnComplete(3, None)


async def test_a_lost_handle_is_replaced_by_a_session_that_is_told_the_story(autojump_clock):
    async with talking("lost-handle") as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = list(HISTORY)
        await talk.say(silence(6.0) + speech(1.0) + silence(6.0))

    assert talk.reconnects == [("closed-1006", Way.FRESH)]
    assert talk.services[-1].texts == [turn.text for turn in HISTORY]
    assert talk.all(TurnComplete)[-1] == TurnComplete(3, None)


async def test_a_model_that_ignores_turns_is_told_the_story_in_its_instruction(autojump_clock):
    model = "gemini-2.5-flash-native-audio-latest"
    async with talking(model=model) as talk:
        talk.conversation.turns = list(HISTORY)
        assert await talk.session.reconnect(Way.FRESH, "no-reply")

    setup = talk.services[-1].setup
    assert "historyConfig" not in setup
    (part,) = setup["systemInstruction"]["parts"]
    assert part["text"].endswith("You: Good morning.\nCaller: I would like a table.")


async def test_a_very_long_story_is_told_from_its_end(autojump_clock):
    async with talking() as talk:
        talk.conversation.turns = [PastTurn("caller", f"{n} ".ljust(1_000)) for n in range(100)]
        await talk.session.reconnect(Way.FRESH, "no-reply")
        await trio.sleep(1.0)

    assert [int(text.split()[0]) for text in talk.services[-1].texts] == list(range(84, 100))


async def test_an_answer_whose_question_is_gone_is_taken_up_in_words(autojump_clock):
    long_answer = Script(speed=1.0, drop=Drop(1, 4.0, 1011))
    async with talking(long_answer) as talk:
        talk.session._input._max_bytes = BYTES_PER_S  # the question is soon forgotten
        talk.session.send_text("Greet.")
        await talk.say(silence(10.0))

    assert talk.services[-1].texts[-1] == CUT_OFF_TEXT


# --- Asked for, and elsewhere


@pytest.mark.parametrize("way", [Way.RESUME, Way.FRESH])
async def test_a_silent_model_is_asked_again_over_a_new_connection(way: Way, autojump_clock):
    async with talking("silent-model") as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = list(HISTORY)
        question = speech(1.0)
        await talk.say(silence(6.0) + question + silence(3.0))

        assert await talk.session.reconnect(way, "no-reply")
        await talk.say(silence(5.0))

    assert talk.reconnects == [("no-reply", way)]
    assert question in talk.pcm(2)


async def test_there_is_not_always_a_way(autojump_clock):
    async with talking() as talk:
        assert not await talk.session.reconnect(Way.RESUME, "no-reply")
        assert not await talk.session.reconnect(Way.FALLBACK, "no-reply")
    assert len(talk.services) == 1


async def test_the_fallback_takes_over_when_asked_and_stays(autojump_clock):
    async with talking(fallback=True) as talk:
        assert await talk.session.reconnect(Way.FALLBACK, "no-reply")
        assert not await talk.session.reconnect(Way.FALLBACK, "no-reply")
        assert await talk.session.reconnect(Way.FRESH, "no-reply")
        await trio.sleep(0.1)

    models = [service.setup["model"] for service in talk.services]
    other = "models/gemini-3.1-flash-live-preview"
    assert models == ["models/gemini-3.8-live", other, other]
    assert [event.model for event in talk.all(Reconnected)] == ["gemini-3.1-flash-live-preview"] * 2


async def test_the_fallback_takes_over_when_the_quota_is_used_up(autojump_clock):
    drop = Drop(2, 0.5, QUOTA.code, QUOTA.reason)
    async with talking(Script(drop=drop), fallback=True) as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = list(HISTORY)
        await talk.say(silence(6.0) + speech(1.0) + silence(5.0))

    assert talk.reconnects == [("closed-1011", Way.FALLBACK)]
    assert talk.all(TurnComplete)[-1] == TurnComplete(3, None)


# --- Tool calls over a reconnect


async def test_a_tool_answer_reaches_a_model_that_does_not_remember_the_call(autojump_clock):
    config = types.LiveConnectConfig(tools=[TOOL])
    async with talking(Script(tool_calls=2, cancel_tool_calls=True), config=config) as talk:
        await talk.say(speech(1.0) + silence(3.0))
        (request,) = talk.all(ToolCallsRequested)
        assert await talk.session.reconnect(Way.FRESH, "no-reply")
        results = [ToolResult(call.id, call.name, {"output": "blue"}) for call in request.calls]
        talk.session.send_tool_results(tuple(results))
        await trio.sleep(5.0)

    fresh = talk.services[-1]
    (words,) = fresh.texts  # one of the two was taken back
    assert 'look_up({}) a moment ago. It has returned {"output":"blue"}' in words
    assert fresh.tool_results == {}
    assert fresh.mistakes == []
    assert talk.all(Reconnected)[0].repeated_s == 0


async def test_an_answered_call_is_told_in_words_if_the_answer_may_be_forgotten(autojump_clock):
    config = types.LiveConnectConfig(tools=[TOOL])
    script = Script(tool_calls=1, reply_delay_s=1.0, drop=Drop(2, 0.2, 1008, "aborted"))
    async with talking(script, config=config) as talk:
        await talk.say(speech(1.0) + silence(2.5))
        (request,) = talk.all(ToolCallsRequested)
        (call,) = request.calls
        talk.session.send_tool_results((ToolResult(call.id, call.name, {"output": "red"}),))
        await talk.say(silence(5.0))

    assert talk.services[0].tool_results == {call.id: {"output": "red"}}
    assert '{"output":"red"}' in talk.services[1].texts[-1]


# --- Sockets


class StalledSocket:
    """A connection that takes nothing any more, and says nothing."""

    def __init__(self, socket: MemorySocket) -> None:
        self._socket = socket
        self.stalled = False
        self.sending = trio.Event()

    async def send(self, message: bytes, *, text: bool) -> None:
        if self.stalled:
            self.sending.set()
            await self._socket.recv(decode=False)  # until it is closed
        await self._socket.send(message, text=text)

    async def recv(self, *, decode: Any) -> bytes:
        return await self._socket.recv(decode=False)

    async def aclose(self, code: int, reason: str) -> None:
        await self._socket.aclose(code, reason)


async def test_a_connection_into_which_nothing_can_be_sent_is_replaced(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY)
    sockets: list[StalledSocket] = []

    @asynccontextmanager
    async def connect_stalling(url: str, headers: Any) -> AsyncIterator[StalledSocket]:
        async with GeminiSimulator.connect(gemini, url, headers) as socket:
            sockets.append(StalledSocket(socket))
            yield sockets[-1]

    gemini.connect = connect_stalling  # type: ignore[assignment, method-assign]
    async with talking(gemini=gemini) as talk:
        await talk.say(silence(1.0))
        sockets[0].stalled = True
        began = trio.current_time()
        await talk.say(speech(1.0))
        recovered_s = trio.current_time() - began
        await talk.say(silence(6.0))

    assert [reason for reason, _ in talk.reconnects] == ["broken"]
    assert recovered_s < 12.0
    assert talk.pcm(1)


class StandIn:
    """A connection that is no wire, and whose messages are what was to be said."""

    is_wire = False
    is_drained = False

    def listen(self, on_event: Callable[[SessionEvent | ModelError], None]) -> None:
        raise AssertionError("it is no wire")

    def join(self, relay: Relay) -> bool:
        return False

    def leave(self, relay: Relay) -> None:
        raise AssertionError("it was not joined")

    def audio_message(self, pcm: bytes) -> bytes:
        return pcm

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
    def __init__(self, service: DeafService, *, deaf: bool) -> None:
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


QUICK = Script(setup_delay_s=0.01, reply_delay_s=0.05)
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
    patient_clock: PatientClock, on_plane: bool
):
    gemini = GeminiSimulator(api_key=KEY, script=QUICK, script_after_resume=QUICK)
    async with talking_over_sockets(gemini, on_plane=on_plane, connection_age_s=0.5) as talk:
        talk.session.send_text("Greet.")
        await talk.say_until(lambda: len(talk.reconnects) >= 3, silence(0.02))

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


# --- Whatever a service does


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

    name = "unreliable"

    def __init__(self, lives: Iterable[Life]) -> None:
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


@settings(max_examples=40, deadline=None)
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
