"""GeminiModel and its sessions against the simulator: in memory on a mock clock, and on sockets."""

from __future__ import annotations

import json
import logging
import math
import traceback
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from google.genai import types
from websockets.exceptions import InvalidHandshake
from websockets.frames import Close
from websockets.http11 import Request
from websockets.server import ServerProtocol

from server.agent.agent import Agent
from server.errors import ConfigurationError, ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.media.dial import WireSocket
from server.media.plane import Messages, Plane
from server.model import (
    AgentAudio,
    AgentTranscript,
    GenerationComplete,
    GoingAway,
    Interrupted,
    ResumptionHandle,
    SessionEvent,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Usage,
)
from server.model.gemini.connection import GeminiConnection
from server.model.gemini.dialects import dialect_of
from server.model.gemini.faults import Faults
from server.model.gemini.model import GeminiModel
from server.refusal import Kind
from server.simulators.gemini import (
    SCRIPTS,
    Drop,
    GeminiSimulator,
    MemorySocket,
    Script,
    Speech,
    memory_sockets,
    refused,
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


@pytest.fixture
def simulator() -> GeminiSimulator:
    return GeminiSimulator(api_key=KEY)


# --- A conversation


@pytest.mark.parametrize("model", MODELS)
async def test_every_model_greets_when_told_to(
    model: str, simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with simulated(simulator, model=model) as (session, heard):
        await session.send(session.text_message("Greet the caller."))
        await trio.sleep(10)

    greeting = simulator.greeting
    assert heard.pcm(1) == greeting.pcm
    assert "".join(event.text for event in heard.all(AgentTranscript)) == greeting.text
    assert heard.all(GenerationComplete) == [GenerationComplete(1)]
    assert heard.all(TurnComplete) == [TurnComplete(1, None)]
    assert heard.all(Usage)[0].response_tokens == {"AUDIO": int(25 * greeting.seconds)}
    (service,) = simulator.sessions
    assert service.texts == ["Greet the caller."]
    assert service.closed_by_client == 1000
    assert service.mistakes == []


async def test_audio_comes_ahead_of_time_and_the_turn_ends_with_its_playing(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with simulated(simulator) as (session, heard):
        await session.send(session.text_message("Greet the caller."))
        await trio.sleep(10)

    first = heard.all(AgentAudio)[0].received_at
    seconds = simulator.greeting.seconds
    assert heard.last_audio_at(1) - first == pytest.approx(seconds / 4.4, rel=0.1)
    assert heard.at(TurnComplete(1, None)) - first == pytest.approx(seconds, abs=0.01)
    sizes = {len(event.pcm) // 48 for event in heard.all(AgentAudio)}
    assert {40, 80, 120, 200 // 2} <= sizes  # the longest come in two parts


async def test_the_caller_is_answered_in_his_own_words(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    question = speech(1.5)

    async with simulated(simulator) as (session, heard):
        await say(session, silence(1) + question + silence(2))
        await trio.sleep(5)

    answer = heard.pcm(1)
    assert answer.startswith(simulator.lead_ins[0].pcm)
    assert question in answer
    assert simulator.sessions[0].heard == silence(1) + question + silence(2)


async def test_turns_follow_one_another_in_one_stream(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with simulated(simulator) as (session, heard):
        for _ in range(3):
            await say(session, speech(0.5) + silence(3))

    assert [event.turn for event in heard.all(TurnComplete)] == [1, 2, 3]
    assert {event.turn for event in heard.all(AgentAudio)} == {1, 2, 3}


async def test_barge_in_while_the_model_generates(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with simulated(simulator) as (session, heard):
        await session.send(session.text_message("Greet the caller."))
        await trio.sleep(0.5)
        cut_in_at = trio.current_time()
        await say(session, speech(0.5) + silence(3))

    (interrupted,) = heard.all(Interrupted)
    assert interrupted.turn == 1
    assert interrupted.received_at - cut_in_at < 0.15
    assert 0 < len(heard.pcm(1)) < len(simulator.greeting.pcm)
    assert heard.all(GenerationComplete) == [GenerationComplete(2)]
    assert [event.turn for event in heard.all(TurnComplete)] == [1, 2]
    assert speech(0.5) in heard.pcm(2)


async def test_barge_in_while_the_finished_generation_plays(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with simulated(simulator) as (session, heard):
        await session.send(session.text_message("Greet the caller."))
        await trio.sleep(3)
        await say(session, speech(0.5) + silence(3))

    assert [event.turn for event in heard.all(Interrupted)] == [1]
    assert heard.pcm(1) == simulator.greeting.pcm
    assert heard.all(GenerationComplete) == [GenerationComplete(1), GenerationComplete(2)]


async def test_a_handle_is_given_between_turns_only(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with simulated(simulator) as (session, heard):
        await session.send(session.text_message("Greet the caller."))
        await trio.sleep(10)

    assert heard.all(ResumptionHandle) == [ResumptionHandle(None), ResumptionHandle("handle-1")]


async def test_a_session_is_resumed_with_its_handle_once_its_socket_is_closed(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    resumption = types.SessionResumptionConfig(handle="handle-1")
    again = GeminiModel(
        api_key=KEY,
        connect=simulator.connect,
        config=types.LiveConnectConfig(session_resumption=resumption),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, connect=simulator.connect)
        async with model.open_connection(Agent()) as session:
            await session.send(session.text_message("Greet the caller."))
            while await session.receive() != ResumptionHandle("handle-1"):
                pass
            with pytest.raises(ModelError, match="1011: The session is still in use"):
                async with again.open_connection(Agent()):
                    pass
        async with again.open_connection(Agent()):
            pass
        nursery.cancel_scope.cancel()

    assert simulator.sessions[2].resumed_from is simulator.sessions[0]


async def test_a_session_lost_in_mid_word_is_resumed_with_the_handle_from_before(
    autojump_clock: trio.abc.Clock,
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=SCRIPTS["drop-1006"])
    resumption = types.SessionResumptionConfig(handle="handle-1")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, connect=simulator.connect)
        async with model.open_connection(Agent()) as session:
            await session.send(session.text_message("Greet the caller."))
            while await session.receive() != ResumptionHandle("handle-1"):
                pass
            await session.send(session.audio_message(speech(1) + silence(1)))
            with pytest.raises(ModelError):
                async for _ in receive_audio(session):
                    pass
        config = types.LiveConnectConfig(session_resumption=resumption)
        again = GeminiModel(api_key=KEY, connect=simulator.connect, config=config)
        async with again.open_connection(Agent()) as session:
            await session.send(session.audio_message(speech(1) + silence(1)))
            answer = b""
            while not isinstance(event := await session.receive(), GenerationComplete):
                if isinstance(event, AgentAudio):
                    answer += event.pcm
        nursery.cancel_scope.cancel()

    assert speech(1) in answer
    assert [service.turn for service in simulator.sessions] == [2, 3]


async def test_a_greeting_that_does_not_come_may_be_asked_for_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(silent_turns=frozenset({1})))
    async with simulated(simulator) as (session, heard):
        await session.send(session.text_message("Greet the caller."))
        await trio.sleep(3)
        before = heard.all(AgentAudio)
        await session.send(session.text_message("Greet the caller."))
        await trio.sleep(10)

    assert before == []
    assert heard.pcm(1) == simulator.greeting.pcm


async def test_tools_are_called_cancelled_and_answered(
    autojump_clock: trio.abc.Clock,
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=SCRIPTS["tool-storm"])
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    tool = types.Tool(
        function_declarations=[
            types.FunctionDeclaration(name="look_up", parameters_json_schema=schema),
            types.FunctionDeclaration(name="hang_up"),
        ]
    )

    async with simulated(simulator, config=types.LiveConnectConfig(tools=[tool])) as (
        session,
        heard,
    ):
        await say(session, speech(0.5) + silence(1))
        (asked,) = heard.all(ToolCallsRequested)
        (cancelled,) = heard.all(ToolCallsCancelled)
        open_calls = [call for call in asked.calls if call.id not in cancelled.ids]
        await trio.sleep(5)
        before = heard.all(AgentAudio)
        results = tuple(ToolResult(call.id, call.name, {"output": "found"}) for call in open_calls)
        await session.send(session.tool_results_message(results))
        await trio.sleep(5)

    assert [call.name for call in asked.calls] == ["look_up", "hang_up"] * 4
    assert asked.calls[0].arguments == {"name": "something"}
    assert len(cancelled.ids) == 4
    assert before == []  # blocking calls: it waits
    assert speech(0.5) in heard.pcm(2)
    (service,) = simulator.sessions
    assert service.mistakes == []
    assert len(service.tool_results) == 4


# --- What goes wrong


def test_a_handshake_that_failed_is_told_by_its_words_and_logged_by_its_kind() -> None:
    with pytest.raises(ModelError) as caught, Faults(KEY, "a-host").translated_opening():
        raise InvalidHandshake("an odd header")

    assert "an odd header" in str(caught.value)
    assert "odd" not in caught.value.loggable
    assert "InvalidHandshake" in caught.value.loggable


class OneRead:
    """A wire that has brought several messages with one read."""

    has_inbox = False

    def __init__(self, *messages: bytes) -> None:
        self._messages = [(message, True) for message in messages]

    def listen(self, on_messages: Callable[[Messages, bool], None]) -> None:
        on_messages(self._messages, False)


async def test_what_has_come_before_an_error_is_told_before_it() -> None:
    handle = b'{"sessionResumptionUpdate":{"newHandle":"h","resumable":true}}'
    wire: Any = OneRead(handle, b'{"error":{"code":400,"message":"no"}}')
    faults = Faults(KEY, "a-host")
    connection = GeminiConnection(
        WireSocket(wire, close_timeout_s=1.0), dialect_of(MODELS[0]), faults
    )
    told: list[SessionEvent | ModelError] = []

    connection.listen(told.append)

    assert told[0] == ResumptionHandle("h")
    assert [type(one) for one in told[1:]] == [ModelSetupRefused]
    assert connection.is_drained


async def opened(simulator: GeminiSimulator, **options: Any) -> BaseException:
    """Open a session that cannot be opened, and return what is raised."""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(**{"api_key": KEY, "connect": simulator.connect} | options)
        try:
            with pytest.raises(ModelError) as caught:
                async with model.open_connection(Agent()):
                    pytest.fail("the session was opened")
        finally:
            nursery.cancel_scope.cancel()
    return caught.value


async def test_a_wrong_key_is_refused_in_googles_words(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    error = await opened(simulator, api_key="another-key")

    assert isinstance(error, ModelSetupRefused)
    assert (error.code, error.retryable) == (1007, False)
    assert error.reason == "API key not valid. Please pass a valid API key."


async def test_an_unknown_model_is_refused(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    error = await opened(simulator, model="gemini-4-live")

    assert isinstance(error, ModelSetupRefused)
    assert error.code == 1008
    assert "models/gemini-4-live is not found" in str(error)


@pytest.mark.parametrize(
    ("close", "kind", "retryable"),
    [
        (Close(1007, "Request contains an invalid argument."), ModelSetupRefused, False),
        (Close(1008, "policy"), ModelSetupRefused, False),
        (Close(1011, "You exceeded your current quota"), ModelQuotaExceeded, False),
        (Close(1011, "RESOURCE_EXHAUSTED"), ModelQuotaExceeded, False),
        (Close(1011, "Internal error encountered."), ModelError, True),
        (Close(1006, ""), ModelError, True),
    ],
)
async def test_a_close_before_the_service_is_ready(
    close: Close, kind: type[ModelError], retryable: bool, autojump_clock: trio.abc.Clock
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(refuse_setup=close))

    error = await opened(simulator)

    assert type(error) is kind
    assert isinstance(error, ModelError)
    assert (error.code, error.reason, error.retryable) == (close.code, close.reason, retryable)


@pytest.mark.parametrize(
    ("close", "refusal", "retryable"),
    [
        (Close(1007, "API key expired. Please renew the API key."), Kind.KEY, False),
        (Close(1011, "Your prepayment credits are depleted."), Kind.CREDITS, False),
        (Close(1011, "Rate limit exceeded. Too many requests."), Kind.RATE, True),
        (Close(1007, "Request contains an invalid argument."), None, False),
        (Close(1011, "Internal error encountered."), None, True),
    ],
)
async def test_a_close_says_whether_it_is_about_the_account(
    close: Close, refusal: Kind | None, retryable: bool, autojump_clock: trio.abc.Clock
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(refuse_setup=close))

    error = await opened(simulator)

    assert isinstance(error, ModelError)
    assert (error.refusal, error.retryable) == (refusal, retryable)


@pytest.mark.parametrize("kept", [len(KEY), 10])
async def test_a_key_in_a_close_reason_that_was_cut_is_in_no_error(
    kept: int, autojump_clock: trio.abc.Clock
) -> None:
    reason = f"Consumer suspended: api_key:{KEY[:kept]}"
    simulator = GeminiSimulator(api_key=KEY, script=Script(refuse_setup=Close(1008, reason)))

    error = await opened(simulator)

    assert KEY[:10] not in str(error)
    assert isinstance(error, ModelError)
    assert error.refusal is Kind.PERMISSION


@pytest.mark.parametrize("plane", [True, False])
@pytest.mark.parametrize(
    ("status", "message", "refusal"),
    [
        (400, "API key not valid. Please pass a valid API key.", Kind.KEY),
        (403, "Your project has been denied access.", Kind.PERMISSION),
        (429, "Your prepayment credits are depleted.", Kind.CREDITS),
        (503, "The model is overloaded.", Kind.BUSY),
    ],
)
async def test_the_json_of_a_refused_handshake_is_read(
    status: int, message: str, refusal: Kind, plane: bool, nursery: trio.Nursery
) -> None:
    details = [{"@type": "the long name of a type"}] * 20
    body = json.dumps({"error": {"code": status, "details": details, "message": message}})
    simulator = GeminiSimulator(api_key=KEY, script=refused(status, body))
    await nursery.start(simulator.run)
    media = Plane() if plane else None
    if media is not None:
        await nursery.start(media.run)
    with pytest.raises(ModelError) as caught, trio.fail_after(5):
        async with GeminiModel(api_key=KEY, url=simulator.url, plane=media).open_connection(
            Agent()
        ):
            pass

    nursery.cancel_scope.cancel()
    assert caught.value.refusal is refusal


INVALID = {"code": 400, "message": "A secret value.", "status": "INVALID_ARGUMENT"}


@pytest.mark.parametrize(
    ("told", "kind", "retryable"),
    [
        (INVALID, ModelSetupRefused, False),
        ({"code": 403, "message": "no", "status": "PERMISSION_DENIED"}, ModelSetupRefused, False),
        ({"code": 429, "message": "slow down"}, ModelQuotaExceeded, True),
        ({"status": "RESOURCE_EXHAUSTED"}, ModelQuotaExceeded, False),
        ({"code": 503, "status": "UNAVAILABLE"}, ModelError, True),
        ({"message": "nothing else"}, ModelSetupRefused, False),
        ({}, ModelSetupRefused, False),
        ({"code": 10**400, "status": 7, "message": []}, ModelSetupRefused, False),
    ],
)
async def test_an_error_that_is_told_in_a_message_ends_the_set_up_at_once(
    told: dict[str, Any],
    kind: type[ModelError],
    retryable: bool,
    autojump_clock: trio.abc.Clock,
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(tells_error=told))
    started = trio.current_time()

    error = await opened(simulator)

    assert type(error) is kind
    assert isinstance(error, ModelError)
    assert error.retryable is retryable
    assert trio.current_time() - started < 1.0


async def test_what_is_told_is_in_the_error_and_not_in_what_is_logged(
    autojump_clock: trio.abc.Clock,
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(tells_error=INVALID))

    error = await opened(simulator)

    assert isinstance(error, ModelError)
    assert "A secret value." in str(error)
    assert error.loggable == "Gemini says 400 INVALID_ARGUMENT: a reason unknown here"


@pytest.mark.parametrize(
    ("reason", "logged"),
    [
        ("API key expired. Please renew the API key.", "the API key has expired"),
        ("A caller's secret.", "a reason unknown here"),
        ("", "no reason given"),
    ],
)
async def test_a_close_reason_is_logged_in_words_of_ours(
    reason: str, logged: str, autojump_clock: trio.abc.Clock
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(refuse_setup=Close(1007, reason)))

    error = await opened(simulator)

    assert isinstance(error, ModelError)
    assert error.reason == reason
    assert error.loggable == f"Gemini closed the session with 1007: {logged}"


async def test_a_service_that_never_gets_ready(autojump_clock: trio.abc.Clock) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(setup_delay_s=60))
    started = trio.current_time()

    error = await opened(simulator, setup_timeout_s=7)

    assert isinstance(error, ModelError)
    assert (error.code, error.retryable) == (None, True)
    assert trio.current_time() - started == pytest.approx(7)


@pytest.mark.parametrize(
    ("drop", "retryable"),
    [
        (Drop(1, 0.5, 1006), True),
        (Drop(1, 0.5, 1011, "Internal error encountered."), True),
        (Drop(1, 0.5, 1008, "The operation was aborted."), True),
        (Drop(1, 0.5, 1007, "The context is exhausted."), False),
    ],
)
async def test_a_session_that_is_lost_says_so_to_receiver_and_sender(
    drop: Drop, retryable: bool, autojump_clock: trio.abc.Clock
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(drop=drop))
    pcm = b""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, connect=simulator.connect)
        async with model.open_connection(Agent()) as session:
            await session.send(session.text_message("Greet the caller."))
            with pytest.raises(ModelError) as received:  # noqa: PT012
                async for chunk in receive_audio(session):
                    pcm += chunk
            with pytest.raises(ModelError) as sent:
                await session.send(session.audio_message(silence(0.02)))
        nursery.cancel_scope.cancel()

    assert len(pcm) >= 0.5 * 48_000  # nothing that came before is lost
    for error in (received.value, sent.value):
        assert (error.code, error.reason) == (drop.code, drop.reason)
        assert error.retryable is retryable


async def test_going_away_is_announced_before_it_happens(autojump_clock: trio.abc.Clock) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=Script(go_away_at_s=6, go_away_left_s=15))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, connect=simulator.connect)
        async with model.open_connection(Agent()) as session:
            opened_at = trio.current_time()
            announced = await session.receive()
            announced_at = trio.current_time()
            with pytest.raises(ModelError):
                await session.receive()
            closed_at = trio.current_time()
        nursery.cancel_scope.cancel()

    assert announced == GoingAway(15.0)
    assert (announced_at - opened_at, closed_at - opened_at) == pytest.approx((6, 21))


async def test_the_key_is_in_no_error_and_no_repr(autojump_clock: trio.abc.Clock) -> None:
    suspended = Close(1008, f"Consumer 'api_key:{KEY}' has been suspended.")
    simulator = GeminiSimulator(api_key=KEY, script=Script(refuse_setup=suspended))

    error = await opened(simulator)

    assert "has been suspended" in str(error)
    assert KEY not in "".join(traceback.format_exception(error))
    assert KEY not in repr(GeminiModel(api_key=KEY))


@pytest.mark.parametrize("url", ["https://example.org", "ws://", "localhost:80", ""])
def test_a_url_that_is_none_is_a_mistake_in_the_settings(url: str) -> None:
    with pytest.raises(ConfigurationError, match="GEMINI_URL"):
        GeminiModel(api_key=KEY, url=url)


@pytest.mark.parametrize("key", ["", "clé", "two\nlines"])
def test_a_key_that_is_none_is_a_mistake_in_the_settings(key: str) -> None:
    with pytest.raises(ConfigurationError, match="GEMINI_API_KEY"):
        GeminiModel(api_key=key)


async def test_closing_is_bounded_when_the_service_does_not_agree(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    class Deaf(MemorySocket):
        async def aclose(self, code: int, reason: str) -> None:
            await trio.sleep_forever()

    @asynccontextmanager
    async def connect(url: str, headers: object) -> AsyncIterator[MemorySocket]:
        client, server = memory_sockets()
        client.__class__ = Deaf
        await server.send(b'{"setupComplete":{}}', text=True)
        yield client

    model = GeminiModel(api_key=KEY, connect=connect, close_timeout_s=2)
    async with model.open_connection(Agent()):
        left_at = trio.current_time()

    assert trio.current_time() - left_at == pytest.approx(2)


# --- Over real sockets


QUICK = Script(setup_delay_s=0, reply_delay_s=0, speed=100)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[GeminiSimulator]:
    simulator = GeminiSimulator(api_key=KEY, **{"script": QUICK} | options)
    simulator.greeting = Speech("Good morning.", simulator.greeting.pcm[:24_000])
    async with trio.open_nursery() as nursery:
        await nursery.start(simulator.run)
        yield simulator
        nursery.cancel_scope.cancel()


async def test_a_conversation_over_a_socket(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with trio.fail_after(60):
        async with serving() as simulator:
            model = GeminiModel(api_key=KEY, url=simulator.url)
            async with model.open_connection(Agent()) as session:
                await session.send(session.text_message("Greet the caller."))
                greeting = b""
                while not isinstance(event := await session.receive(), TurnComplete):
                    if isinstance(event, AgentAudio):
                        greeting += event.pcm
                await session.send(session.audio_message(speech(0.3) + silence(0.6)))
                answer = b""
                while not isinstance(event := await session.receive(), GenerationComplete):
                    if isinstance(event, AgentAudio):
                        answer += event.pcm
            await simulator.sessions[0].ended.wait()

    assert greeting == simulator.greeting.pcm
    assert speech(0.3) in answer
    assert simulator.sessions[0].closed_by_client == 1000
    assert KEY not in caplog.text  # the library would log every header at DEBUG


async def test_a_dropped_socket_is_1006() -> None:
    with trio.fail_after(60):
        script = Script(setup_delay_s=0, reply_delay_s=0, speed=100, drop=Drop(1, 0.1, 1006))
        async with serving(script=script) as simulator:
            model = GeminiModel(api_key=KEY, url=simulator.url)
            async with model.open_connection(Agent()) as session:
                await session.send(session.text_message("Greet the caller."))
                with pytest.raises(ModelError) as caught:
                    async for _ in receive_audio(session):
                        pass

    assert (caught.value.code, caught.value.retryable) == (1006, True)


async def test_a_cancelled_call_still_closes_cleanly() -> None:
    with trio.fail_after(60):
        async with serving() as simulator:
            model = GeminiModel(api_key=KEY, url=simulator.url)
            for _ in range(10):
                with trio.CancelScope() as call:
                    async with model.open_connection(Agent()):
                        call.cancel()
                        await trio.sleep_forever()
                await simulator.sessions[-1].ended.wait()

    # The library alone loses the close frame in half of the cases.
    assert [session.closed_by_client for session in simulator.sessions] == [1000] * 10


async def test_a_service_that_no_longer_reads_cannot_hold_up_a_hang_up(
    nursery: trio.Nursery,
) -> None:
    async def accept_and_fall_silent(stream: trio.SocketStream) -> None:
        protocol = ServerProtocol()
        while not (requests := protocol.events_received()):
            protocol.receive_data(await stream.receive_some())
        assert isinstance(requests[0], Request)
        protocol.send_response(protocol.accept(requests[0]))
        protocol.send_text(b'{"setupComplete":{}}')
        await stream.send_all(b"".join(protocol.data_to_send()))
        await trio.sleep_forever()

    (listener,) = await nursery.start(
        partial(trio.serve_tcp, accept_and_fall_silent, 0, host="127.0.0.1")
    )
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
    model = GeminiModel(api_key=KEY, url=url, close_timeout_s=0.05)

    with trio.fail_after(60), trio.move_on_after(0.1) as call:
        async with model.open_connection(Agent()) as session:
            while True:  # until the kernel takes no more, and the last one hangs half sent
                await session.send(session.audio_message(silence(20)))
    nursery.cancel_scope.cancel()

    assert call.cancelled_caught


async def test_what_the_block_raises_comes_out_as_it_was() -> None:
    group = ExceptionGroup("of the call", [ValueError("one"), KeyError("two")])
    with trio.fail_after(60):
        async with serving() as simulator:
            model = GeminiModel(api_key=KEY, url=simulator.url)
            with pytest.raises(ExceptionGroup) as caught:
                async with model.open_connection(Agent()):
                    raise group

    assert caught.value.message == group.message
    assert caught.value.exceptions == group.exceptions


async def test_nobody_listening_is_an_unreachable_model() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()

    with pytest.raises(ModelError, match="cannot be reached") as caught, trio.fail_after(60):
        async with GeminiModel(api_key=KEY, url=f"ws://127.0.0.1:{port}").open_connection(Agent()):
            pass

    assert (caught.value.code, caught.value.retryable) == (None, True)


async def test_a_path_that_is_not_there_is_refused() -> None:
    with trio.fail_after(60):
        async with serving() as simulator:
            model = GeminiModel(api_key=KEY, url=f"{simulator.url}/elsewhere")
            with pytest.raises(ModelSetupRefused, match="HTTP 404"):
                async with model.open_connection(Agent()):
                    pass


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("302 Found\r\nLocation: ws://127.0.0.1:1/", ModelSetupRefused),
        ("403 Forbidden", ModelSetupRefused),
        ("429 Too Many Requests", ModelQuotaExceeded),
        ("503 Service Unavailable", ModelError),
    ],
)
async def test_an_http_answer_instead_of_a_websocket(
    status: str, kind: type[ModelError], nursery: trio.Nursery
) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
    port = listener.socket.getsockname()[1]

    with pytest.raises(ModelError) as caught, trio.fail_after(60):
        async with GeminiModel(api_key=KEY, url=f"ws://127.0.0.1:{port}").open_connection(Agent()):
            pass

    nursery.cancel_scope.cancel()
    assert type(caught.value) is kind
    assert f"HTTP {status[:3]}" in str(caught.value)
