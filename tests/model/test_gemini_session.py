"""GeminiModel and its connections against the simulator, in memory on a mock clock."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from google.genai import types

from server.agent.agent import Agent
from server.errors import ModelError
from server.model import (
    AgentAudio,
    AgentTranscript,
    GenerationComplete,
    Interrupted,
    ResumptionHandle,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Usage,
)
from server.model.gemini.dialects import dialect_of
from server.model.gemini.model import GeminiModel
from server.simulators.gemini import (
    MODEL_SCRIPTS,
    GeminiSimulator,
    ModelScript,
)
from tests.support.gemini_talks import (
    KEY,
    MODELS,
    receive_audio,
    say,
    silence,
    simulated,
    speech,
)


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


async def test_an_unknown_model_is_warned_of_once_though_a_set_up_names_it_in_full(
    simulator: GeminiSimulator, capsys: pytest.CaptureFixture[str]
) -> None:
    dialect_of.cache_clear()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, model="gemini-3.9-live", connect=simulator.connect)
        with pytest.raises(ModelError, match=r"models/gemini-3\.9-live is not found"):
            async with model.open_connection(Agent()):
                pass
        nursery.cancel_scope.cancel()

    assert capsys.readouterr().out.count("unknown model") == 1


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
    simulator = GeminiSimulator(api_key=KEY, script=MODEL_SCRIPTS["drop-1006"])
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
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(silent_turns=frozenset({1})))
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
    simulator = GeminiSimulator(api_key=KEY, script=MODEL_SCRIPTS["tool-storm"])
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


async def test_every_session_is_set_up_for_its_own_agent(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    first, second = Agent(prompt="You are Ann."), Agent(prompt="You are Bob.")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, connect=simulator.connect)
        for agent in (first, first, second, first):
            async with model.open_connection(agent):
                pass
        with pytest.raises(ModelError, match="not found"):
            async with model.open_connection(first, handle="lost"):
                pass
        nursery.cancel_scope.cancel()

    setups = [session.setup for session in simulator.sessions if session.setup]
    said = [setup["systemInstruction"]["parts"][0]["text"] for setup in setups]
    assert said == [agent.prompt for agent in (first, first, second, first)]
