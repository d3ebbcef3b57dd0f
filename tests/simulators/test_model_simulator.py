"""The simulated Gemini Live service: what it refuses, what it hears, and how it misbehaves."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from functools import partial
from typing import Any, get_args, get_origin

import msgspec
import pytest
import trio
from google import genai
from google.genai import live, types
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from websockets.asyncio.client import connect as asyncio_connect
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from server.agent.agent import Agent
from server.model.gemini.setup import agent_config, setup_message
from server.simulators.gemini import (
    MODEL_SCRIPTS,
    GeminiSimulator,
    Hearing,
    MemorySocket,
    ModelScript,
    ServiceClosesError,
    Speech,
    check_setup,
    read_client_message,
)

pytestmark = pytest.mark.sockets

KEY = "a-key"
PATH = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
HEADERS = {"x-goog-api-key": KEY}
MODELS = (
    "gemini-3.8-live",
    "gemini-3.8-live-extended-thinking",
    "gemini-3.1-flash-live-preview",
    "gemini-2.5-flash-native-audio-preview-12-2025",
)
QUICK = ModelScript(setup_delay_s=0, reply_delay_s=0, speed=100)


def speech(seconds: float, loudness: int = 9_000) -> bytes:
    samples = range(int(seconds * 16_000))
    wave = (int(loudness * math.sin(2 * math.pi * 220 * n / 16_000)) for n in samples)
    return array("h", wave).tobytes()


def silence(seconds: float) -> bytes:
    return bytes(2 * int(seconds * 16_000))


# --- Set-ups


def setup(model: str = "gemini-3.8-live", **fields: Any) -> dict[str, Any]:
    generation: dict[str, Any] = {"responseModalities": ["AUDIO"]}
    if model.endswith("extended-thinking"):
        generation["thinkingConfig"] = {"thinkingLevel": "low"}
    generation |= fields.pop("generationConfig", {})
    return {"setup": {"model": f"models/{model}", "generationConfig": generation} | fields}


def function(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"functionDeclarations": [{"name": "hang_up"} | fields]}]}


def refusal(message: object) -> ServiceClosesError:
    with pytest.raises(ServiceClosesError) as caught:
        check_setup(read_client_message(json.dumps(message).encode())["setup"])
    return caught.value


@pytest.mark.parametrize("model", MODELS)
def test_a_plain_set_up_is_accepted(model: str) -> None:
    message = setup(model, systemInstruction={"parts": [{"text": "Be brief."}]})

    check_setup(read_client_message(json.dumps(message).encode())["setup"])


@pytest.mark.parametrize("model", MODELS)
def test_the_set_up_we_write_is_accepted_whatever_was_asked_for(model: str) -> None:
    everything = types.LiveConnectConfig(
        response_modalities=[types.Modality.TEXT],
        temperature=0.5,
        media_resolution=types.MediaResolution.MEDIA_RESOLUTION_LOW,
        thinking_config=types.ThinkingConfig(
            thinking_level=types.ThinkingLevel.MINIMAL, thinking_budget=9, include_thoughts=True
        ),
        enable_affective_dialog=True,
        proactivity=types.ProactivityConfig(proactive_audio=True),
        explicit_vad_signal=True,
        session_resumption=types.SessionResumptionConfig(transparent=True),
        history_config=types.HistoryConfig(initial_history_in_client_content=True),
        tools=[
            types.Tool(
                function_declarations=[
                    types.FunctionDeclaration(
                        name="a",
                        behavior=behavior,
                        parameters=types.Schema(
                            type=types.Type.OBJECT, additional_properties=False
                        ),
                    )
                    for behavior in types.Behavior
                    if behavior is not types.Behavior.UNSPECIFIED
                ]
            )
        ],
    )
    agent = Agent(voice="Kore", language="es-VE")

    message, _ = setup_message(model, agent_config(agent, everything))

    check_setup(read_client_message(json.dumps(message).encode())["setup"])


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (setup("gemini-4-live"), 1008, "models/gemini-4-live is not found for API version v1beta"),
        ({"setup": {}}, 1008, "is not found"),
        (setup(unheardOf=1), 1007, "Unknown name \"unheardOf\" at 'setup': Cannot find field."),
        (
            setup(generationConfig={"languageCode": "en"}),
            1007,
            "Unknown name \"languageCode\" at 'setup.generation_config'",
        ),
        (
            setup(realtimeInputConfig={"automaticActivityDetection": {"silence": 5}}),
            1007,
            'Unknown name "silence"',
        ),
        (
            setup(realtimeInputConfig={"activityHandling": "NEVER"}),
            1007,
            "Invalid value at 'setup.realtime_input_config.activity_handling'",
        ),
        (setup(generationConfig={"temperature": "hot"}), 1007, "Invalid value"),
        (setup(generationConfig={"responseModalities": ["TEXT"]}), 1007, "response modalities"),
        (
            setup(generationConfig={"thinkingConfig": {"thinkingLevel": "LOW"}}),
            1007,
            "Thinking level is not supported for this model.",
        ),
        (
            setup(MODELS[1], generationConfig={"thinkingConfig": {}}),
            1007,
            "Thinking level must be specified for this model.",
        ),
        (
            setup(MODELS[1], generationConfig={"thinkingConfig": {"thinkingLevel": "MINIMAL"}}),
            1007,
            "MINIMAL is not supported",
        ),
        (setup(proactivity={"proactiveAudio": True}), 1007, 'Unknown name "proactivity"'),
        (
            setup(generationConfig={"enableAffectiveDialog": True}),
            1007,
            'Unknown name "enable_affective_dialog"',
        ),
        (setup(explicitVadSignal=True), 1007, "Unknown name"),
        (setup(sessionResumption={"transparent": True}), 1007, "Unknown name"),
        (
            setup(
                generationConfig={
                    "speechConfig": {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": "Bob"}}}
                }
            ),
            1007,
            "Requested voice api_name 'Bob' is not available",
        ),
        (setup(MODELS[1], **function(behavior="BLOCKING")), 1007, "Blocking function calls"),
        (setup(MODELS[2], **function(behavior="NON_BLOCKING")), 1007, "not supported"),
        (setup(**function(name="2nd")), 1007, "Invalid function name"),
        (
            setup(**function(parameters={"type": "OBJECT", "additionalProperties": False})),
            1007,
            'Unknown name "additionalProperties" at \'setup.tools[0].function_declarations[0]',
        ),
    ],
)
def test_a_set_up_google_would_refuse(message: object, code: int, reason: str) -> None:
    close = refusal(message).close

    assert close.code == code
    assert reason in close.reason
    assert len(close.reason.encode()) <= 123


def test_the_older_family_may_have_what_the_newer_ones_refuse() -> None:
    message = setup(
        MODELS[3],
        proactivity={"proactiveAudio": True},
        generationConfig={"enableAffectiveDialog": True, "thinkingConfig": {"thinkingBudget": 0}},
    )

    check_setup(read_client_message(json.dumps(message).encode())["setup"])


def test_names_may_be_in_snake_case_but_not_those_of_a_users_own() -> None:
    schema = {"type": "object", "properties": {"the_reason": {"type": "string"}}}
    message = {
        "setup": {
            "model": "models/gemini-3.8-live",
            "generation_config": {"speech_config": {"voice_config": {}}},
            "tools": [{"function_declarations": [{"name": "f", "parameters_json_schema": schema}]}],
            "labels": {"cost_centre": "a"},
        }
    }

    read = read_client_message(json.dumps(message).encode())["setup"]

    assert read["generationConfig"] == {"speechConfig": {"voiceConfig": {}}}
    assert read["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"] == schema
    assert read["labels"] == {"cost_centre": "a"}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"\xff", b'{"setup":{},"realtimeInput":{}}', b'{"what":1}']
)
def test_a_message_that_is_none_closes_with_1007(data: bytes) -> None:
    with pytest.raises(ServiceClosesError) as caught:
        read_client_message(data)

    assert caught.value.close.code == 1007


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["setup", "model", "tools", "generationConfig", "realtimeInput"])
            | st.sampled_from(["functionDeclarations", "parameters", "properties", "labels"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_any_message_is_read_or_refused(data: bytes) -> None:
    with suppress(ServiceClosesError):
        check_setup(read_client_message(data).get("setup", {}))


# --- Hearing


def turns(pcm: bytes, chunk_bytes: int, **options: float) -> list[bytes | str]:
    hearing = Hearing(**options)
    return [
        news
        for start in range(0, len(pcm), chunk_bytes)
        for news in hearing.hear(pcm[start : start + chunk_bytes])
    ]


@pytest.mark.parametrize("chunk_bytes", [640, 1_280, 3_200])
def test_a_turn_is_from_its_first_sound_to_the_silence_after_it(chunk_bytes: int) -> None:
    question = speech(1.0)

    start, turn = turns(silence(1) + question + silence(2), chunk_bytes)

    assert start == "start"
    assert isinstance(turn, bytes)
    assert question in turn
    assert len(turn) <= len(question) + len(silence(0.4))


def test_a_pause_shorter_than_the_silence_asked_for_ends_no_turn() -> None:
    pcm = speech(0.5) + silence(0.45) + speech(0.5) + silence(1)

    patient = turns(pcm, 640, end_silence_s=0.5)
    hasty = turns(pcm, 640, end_silence_s=0.4)

    assert (len(patient), len(hasty)) == (2, 4)


@pytest.mark.parametrize("pcm", [speech(3, loudness=300), speech(0.04) + silence(2)])
def test_noise_and_clicks_are_no_speech(pcm: bytes) -> None:
    assert turns(pcm, 640) == []


def test_a_caller_who_never_stops_is_answered_at_last() -> None:
    found = turns(speech(60), 640)

    assert [isinstance(one, bytes) for one in found] == [False, True, False, True]


# --- Over the wire


@asynccontextmanager
async def connected(
    simulator: GeminiSimulator, message: object | None = None, url: str = PATH
) -> AsyncIterator[MemorySocket]:
    """Connect in memory, and set up if there is a set-up."""
    # Virtual seconds: a message that never comes is a failure and not a wait for ever.
    with trio.fail_after(1_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(simulator.run, port=None))
            async with simulator.connect(url, HEADERS if "key=" not in url else {}) as socket:
                if message is not None:
                    await socket.send(json.dumps(message).encode(), text=True)
                    assert "setupComplete" in await receive(socket)
                yield socket
            nursery.cancel_scope.cancel()


async def receive(socket: MemorySocket | ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await socket.recv(decode=False))
    return message


async def send(socket: MemorySocket | ClientConnection, message: object) -> None:
    await socket.send(json.dumps(message).encode(), text=True)


async def closing(socket: MemorySocket) -> tuple[int, str]:
    """Read to the end and return the close code and reason."""
    try:
        while True:
            await socket.recv(decode=False)
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")


async def until_turn_complete(socket: MemorySocket | ClientConnection) -> list[dict[str, Any]]:
    """Read one turn's messages."""
    messages = []
    while not messages or "turnComplete" not in messages[-1].get("serverContent", {}):
        messages.append(await receive(socket))
    return messages


def contents(messages: list[dict[str, Any]], name: str) -> list[Any]:
    found = (message.get("serverContent", {}).get(name) for message in messages)
    return [one for one in found if one is not None]


def audio(messages: list[dict[str, Any]]) -> bytes:
    parts = [part for turn in contents(messages, "modelTurn") for part in turn["parts"]]
    return b"".join(base64.b64decode(part["inlineData"]["data"]) for part in parts)


def audio_input(pcm: bytes, rate: int = 16_000, encode: Any = base64.b64encode) -> object:
    blob = {"mimeType": f"audio/pcm;rate={rate}", "data": encode(pcm).decode()}
    return {"realtimeInput": {"audio": blob}}


@pytest.fixture
def simulator() -> GeminiSimulator:
    simulator = GeminiSimulator(api_key=KEY, script=QUICK)
    simulator.greeting = Speech("Good morning to you.", simulator.greeting.pcm[:24_000])
    return simulator


async def test_the_set_up_comes_first(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with connected(simulator) as socket:
        await send(socket, {"realtimeInput": {"text": "Hello"}})
        assert await closing(socket) == (1007, "setup must be the first message and only the first")


async def test_the_set_up_comes_once(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with connected(simulator, setup()) as socket:
        await send(socket, setup())
        assert await closing(socket) == (1007, "setup must be the first message and only the first")


@pytest.mark.parametrize(
    ("url", "code"), [(f"{PATH}?key=wrong", 1007), (f"{PATH}?other_key=1", 1008)]
)
async def test_a_wrong_key_in_the_query(
    url: str, code: int, simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with connected(simulator, url=url) as socket:
        await send(socket, setup())
        assert (await closing(socket))[0] == code


async def test_a_right_key_in_the_query(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with connected(simulator, setup(), url=f"{PATH}?key={KEY}"):
        pass


async def test_a_turn_as_the_service_sends_it(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with connected(simulator, setup()) as socket:
        await send(socket, {"realtimeInput": {"text": "Greet the caller."}})
        messages = await until_turn_complete(socket)
        handle = await receive(socket)

    kinds = [
        "{}" if not message else "+".join(message.get("serverContent", message))
        for message in messages
    ]
    assert kinds == [
        "sessionResumptionUpdate",
        "outputTranscription",
        "modelTurn+outputTranscription",
        *["modelTurn"] * (len(kinds) - 6),
        "{}",
        "generationComplete",
        "turnComplete",
    ]
    assert messages[0]["sessionResumptionUpdate"]["resumable"] is False
    assert "usageMetadata" in messages[-1]
    assert handle == {"sessionResumptionUpdate": {"newHandle": "handle-1", "resumable": True}}
    assert audio(messages) == simulator.greeting.pcm


@pytest.mark.parametrize(
    ("model", "answers"), [(MODELS[0], True), (MODELS[2], False), (MODELS[3], True)]
)
async def test_client_content_starts_nothing_on_3_1(
    model: str, answers: bool, simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    turn = {"role": "user", "parts": [{"text": "Greet the caller."}]}
    async with connected(simulator, setup(model)) as socket:
        await send(socket, {"clientContent": {"turns": [turn], "turnComplete": True}})
        with trio.move_on_after(10):
            await until_turn_complete(socket)

    assert simulator.sessions[0].turn == (1 if answers else 0)
    assert simulator.sessions[0].texts == ["Greet the caller."]


async def test_an_initial_history_is_taken_and_not_answered(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    turn = {"role": "user", "parts": [{"text": "Earlier."}]}
    message = setup(historyConfig={"initialHistoryInClientContent": True})
    async with connected(simulator, message) as socket:
        await send(socket, {"realtimeInput": {"text": "Too early."}})
        await send(socket, {"clientContent": {"turns": [turn]}})
        await send(socket, {"clientContent": {"turnComplete": True}})
        await trio.sleep(5)
        before = simulator.sessions[0].turn
        await send(socket, {"realtimeInput": {"text": "Greet the caller."}})
        await until_turn_complete(socket)

    (session,) = simulator.sessions
    assert (before, session.turn) == (0, 1)
    assert session.texts == ["Earlier.", "Greet the caller."]
    assert session.mistakes == ["realtimeInput before the initial history was complete"]


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
async def test_both_alphabets_of_base64_are_heard(
    encode: Any, simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    question = speech(1)
    assert {b"+"[0], b"/"[0]} <= set(base64.b64encode(question))
    async with connected(simulator, setup()) as socket:
        await send(socket, audio_input(question + silence(1), encode=encode))
        messages = await until_turn_complete(socket)

    assert question in audio(messages)
    assert contents(messages, "inputTranscription") == [
        {"text": "(1.2 seconds of speech)", "finished": True}
    ]


async def test_eight_kilohertz_are_heard_at_their_own_pace(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with connected(simulator, setup()) as socket:
        await send(socket, audio_input(speech(1)[: 2 * 8_000] + bytes(2 * 8_000), rate=8_000))
        await until_turn_complete(socket)

    assert simulator.sessions[0].heard_samples == 2 * 16_000


@pytest.mark.parametrize(
    "blob",
    [
        {"mimeType": "audio/pcm;rate=16000", "data": "?"},
        {"mimeType": "audio/pcm;rate=16000", "data": "AAAA"},  # three bytes
        {"mimeType": "audio/mulaw", "data": "AAAA"},
    ],
)
async def test_audio_that_is_none_closes_with_1007(
    blob: object, simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with connected(simulator, setup()) as socket:
        await send(socket, {"realtimeInput": {"audio": blob}})
        assert (await closing(socket))[0] == 1007


@pytest.mark.parametrize(("model", "answers"), [(MODELS[0], False), (MODELS[2], True)])
async def test_the_end_of_the_audio_stream_ends_a_turn_except_on_3_8(
    model: str, answers: bool, simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    async with connected(simulator, setup(model)) as socket:
        await send(socket, audio_input(speech(1)))
        await send(socket, {"realtimeInput": {"audioStreamEnd": True}})
        with trio.move_on_after(10):
            await until_turn_complete(socket)

    assert simulator.sessions[0].turn == (1 if answers else 0)


async def test_the_client_may_say_when_the_caller_speaks(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    manual = {"automaticActivityDetection": {"disabled": True}}
    async with connected(simulator, setup(realtimeInputConfig=manual)) as socket:
        await send(socket, {"realtimeInput": {"activityStart": {}}})
        await send(socket, audio_input(speech(1) + silence(3)))
        await send(socket, {"realtimeInput": {"activityEnd": {}}})
        messages = await until_turn_complete(socket)

    assert speech(1) in audio(messages)
    assert simulator.sessions[0].turn == 1


@pytest.mark.parametrize("ended", [False, True])
async def test_audio_outside_of_what_the_client_calls_a_turn_closes_the_session(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock, ended: bool
) -> None:
    manual = {"automaticActivityDetection": {"disabled": True}}
    async with connected(simulator, setup(realtimeInputConfig=manual)) as socket:
        if ended:
            await send(socket, {"realtimeInput": {"activityStart": {}}})
            await send(socket, {"realtimeInput": {"activityEnd": {}}})
        await send(socket, audio_input(speech(1)))
        with pytest.raises(ConnectionClosed) as closed:
            await until_turn_complete(socket)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007


async def test_nobody_interrupts_where_interruption_is_off(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    config = {"activityHandling": "NO_INTERRUPTION"}
    async with connected(simulator, setup(realtimeInputConfig=config)) as socket:
        await send(socket, {"realtimeInput": {"text": "Greet the caller."}})
        await send(socket, audio_input(speech(1) + silence(1)))
        messages = await until_turn_complete(socket)
        answer = await until_turn_complete(socket)

    assert contents(messages + answer, "interrupted") == []
    assert audio(messages) == simulator.greeting.pcm
    assert speech(1) in audio(answer)


async def test_an_interrupted_turn_has_no_generation_complete(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    simulator.script = ModelScript(setup_delay_s=0)
    async with connected(simulator, setup()) as socket:
        for _ in range(2):  # the first comes in two messages, the second bundled
            await send(socket, {"realtimeInput": {"text": "Speak."}})
            await trio.sleep(0.35)
            await send(socket, {"clientContent": {"turnComplete": False}})
            messages = await until_turn_complete(socket)
            await receive(socket)

            assert audio(messages)
            assert contents(messages, "interrupted") == [True]
            assert contents(messages, "generationComplete") == []


async def test_every_script_has_a_name() -> None:
    assert set(MODEL_SCRIPTS) >= {"answers", "go-away", "drop-1006", "drop-1011", "silent-model"}
    assert set(MODEL_SCRIPTS) >= {"empty-turn", "slow-model", "early-turn-complete", "quota"}
    assert set(MODEL_SCRIPTS) >= {"bad-setup", "tool-storm"}


@pytest.mark.parametrize(
    ("name", "share"), [("empty-turn", 0.0), ("early-turn-complete", 0.5), ("answers", 1.0)]
)
async def test_a_turn_may_complete_before_it_was_all_said(
    name: str, share: float, simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    simulator.script = MODEL_SCRIPTS[name]
    async with connected(simulator, setup()) as socket:
        await send(socket, {"realtimeInput": {"text": "Greet the caller."}})
        await until_turn_complete(socket)
        await send(socket, audio_input(speech(3) + silence(1)))
        messages = await until_turn_complete(socket)

    # The lead-in, a pause of 0.2 s, then 3 s of speech and 0.2 s of silence half as fast again.
    whole = simulator.lead_ins[0].seconds + 0.2 + 3.2 / 1.5
    assert len(audio(messages)) / 48_000 == pytest.approx(share * whole, abs=0.2)


async def test_a_silent_model_keeps_its_socket_open(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    simulator.script = MODEL_SCRIPTS["silent-model"]
    async with connected(simulator, setup()) as socket:
        await send(socket, {"realtimeInput": {"text": "Greet the caller."}})
        await until_turn_complete(socket)
        await receive(socket)
        await send(socket, audio_input(speech(1) + silence(1)))
        with trio.move_on_after(600) as waited:
            await receive(socket)
        await send(socket, audio_input(silence(1)))
        still_open = simulator.sessions[0].is_open

    assert waited.cancelled_caught
    assert still_open


async def test_a_slow_model_is_slower_than_real_time(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    simulator.script = MODEL_SCRIPTS["slow-model"]
    async with connected(simulator, setup()) as socket:
        await send(socket, {"realtimeInput": {"text": "Greet the caller."}})
        await until_turn_complete(socket)

    says, generated = (
        next(moment.at_s for moment in simulator.sessions[0].timeline if word in moment.what)
        for word in ("says", "generated")
    )
    assert generated - says > simulator.greeting.seconds


async def test_recordings_and_sessions_are_bounded(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    simulator.keep_heard_s = 1.0
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        for _ in range(25):
            async with simulator.connect(PATH, HEADERS) as socket:
                await send(socket, setup())
                await receive(socket)
                for _ in range(20):
                    await send(socket, audio_input(silence(0.1)))
                await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert [len(session.heard) for session in simulator.sessions] == [0] * 5 + [32_000] * 20
    assert {session.heard_samples for session in simulator.sessions} == {32_000}


# --- Real sockets


async def test_text_and_binary_frames_are_both_read_and_sent(
    simulator: GeminiSimulator, nursery: trio.Nursery
) -> None:
    await nursery.start(simulator.run)
    frames: list[type] = []
    with trio.fail_after(60):
        async with connect(simulator.url + PATH, additional_headers=HEADERS, proxy=None) as socket:
            await socket.send(json.dumps(setup()).encode())  # a binary frame
            await socket.recv()
            await socket.send(json.dumps({"realtimeInput": {"text": "Greet."}}))
            while "turnComplete" not in str(message := await socket.recv()):
                frames.append(type(message))
    nursery.cancel_scope.cancel()

    assert set(frames) == {str, bytes}


# --- The official client


def run_official_client(url: str, use: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the official SDK on a loop of its own; it knows only wss, we serve only ws."""

    def connect_plainly(uri: str, **options: Any) -> Any:
        options.pop("ssl", None)
        return asyncio_connect(uri.replace("wss://", "ws://"), proxy=None, **options)

    monkeypatch.setattr(live, "ws_connect", connect_plainly)

    async def main() -> Any:
        client = genai.Client(
            api_key=KEY,
            http_options=types.HttpOptions(
                base_url=url.replace("ws://", "http://"), api_version="v1beta"
            ),
        )
        return await use(client)

    return asyncio.run(main())


async def test_the_official_client_holds_a_conversation(
    simulator: GeminiSimulator, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = speech(0.5)
    config = types.LiveConnectConfig(
        response_modalities=[types.Modality.AUDIO],
        system_instruction="Be brief.",
        speech_config=types.SpeechConfig(
            voice_config=types.VoiceConfig(
                prebuilt_voice_config=types.PrebuiltVoiceConfig(voice_name="Kore")
            )
        ),
        realtime_input_config=types.RealtimeInputConfig(
            automatic_activity_detection=types.AutomaticActivityDetection(silence_duration_ms=500)
        ),
        context_window_compression=types.ContextWindowCompressionConfig(
            trigger_tokens=25_000, sliding_window=types.SlidingWindow(target_tokens=8_000)
        ),
        session_resumption=types.SessionResumptionConfig(),
        input_audio_transcription=types.AudioTranscriptionConfig(),
        output_audio_transcription=types.AudioTranscriptionConfig(),
        tools=[
            types.Tool(
                function_declarations=[
                    types.FunctionDeclaration(
                        name="hang_up", parameters_json_schema={"type": "object"}
                    )
                ]
            )
        ],
    )

    async def talk(client: genai.Client) -> list[list[types.LiveServerMessage]]:
        async with client.aio.live.connect(model="gemini-3.8-live", config=config) as session:
            await session.send_realtime_input(text="Greet the caller.")
            greeting = [message async for message in session.receive()]
            pcm = question + silence(1)
            for start in range(0, len(pcm), 1_280):
                await session.send_realtime_input(
                    audio=types.Blob(
                        data=pcm[start : start + 1_280], mime_type="audio/pcm;rate=16000"
                    )
                )
            return [greeting, [message async for message in session.receive()]]

    await nursery.start(simulator.run)
    with trio.fail_after(60):
        greeting, answer = await trio.to_thread.run_sync(
            run_official_client, simulator.url, talk, monkeypatch
        )
    nursery.cancel_scope.cancel()

    assert b"".join(message.data or b"" for message in greeting) == simulator.greeting.pcm
    assert question in b"".join(message.data or b"" for message in answer)
    last = answer[-1]
    assert last.server_content is not None
    assert last.server_content.turn_complete
    assert last.usage_metadata is not None
    assert any(
        message.server_content is not None
        and message.server_content.output_transcription is not None
        for message in answer
    )
    assert simulator.sessions[0].mistakes == []


async def test_the_official_client_is_refused_in_its_own_errors(
    simulator: GeminiSimulator, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(client: genai.Client) -> genai.errors.APIError:
        config = types.LiveConnectConfig(
            thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW)
        )
        with pytest.raises(genai.errors.APIError) as caught:
            async with client.aio.live.connect(model="gemini-3.8-live", config=config):
                pass
        return caught.value

    await nursery.start(simulator.run)
    with trio.fail_after(60):
        error = await trio.to_thread.run_sync(
            run_official_client, simulator.url, refused, monkeypatch
        )
    nursery.cancel_scope.cancel()

    assert error.code == 1007
    assert "Thinking level is not supported" in str(error)


async def test_the_official_client_answers_tools(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ModelScript(setup_delay_s=0, reply_delay_s=0, speed=100, tool_calls=2)
    simulator = GeminiSimulator(api_key=KEY, script=script)
    tool = types.Tool(function_declarations=[types.FunctionDeclaration(name="look_up")])

    async def talk(client: genai.Client) -> bytes:
        config = types.LiveConnectConfig(tools=[tool])
        async with client.aio.live.connect(model="gemini-3.8-live", config=config) as session:
            await session.send_realtime_input(
                audio=types.Blob(data=speech(0.5) + silence(1), mime_type="audio/pcm;rate=16000")
            )
            asked = [message async for message in session.receive()]
            calls = [
                call
                for message in asked
                if message.tool_call
                for call in message.tool_call.function_calls or ()
            ]
            await session.send_tool_response(
                function_responses=[
                    types.FunctionResponse(id=call.id, name=call.name, response={"output": "yes"})
                    for call in calls
                ]
            )
            return b"".join([message.data or b"" async for message in session.receive()])

    await nursery.start(simulator.run)
    with trio.fail_after(60):
        answer = await trio.to_thread.run_sync(
            run_official_client, simulator.url, talk, monkeypatch
        )
    nursery.cancel_scope.cancel()

    (session,) = simulator.sessions
    assert session.mistakes == []
    assert session.tool_results == {"call-1": {"output": "yes"}, "call-2": {"output": "yes"}}
    assert speech(0.5) in answer


# --- What a client may send


def full(model: Any, depth: int = 0) -> Any:
    """Something of a type of the SDK's with every field set."""
    fields = {}
    for name, field in model.model_fields.items():
        value = value_of(field.annotation, depth)
        if value is not None:
            fields[name] = value
    return model(**fields)


def value_of(annotation: Any, depth: int) -> Any:
    arguments = [one for one in get_args(annotation) if one is not type(None)]
    origin = get_origin(annotation)
    if origin is list:
        inner = value_of(arguments[0], depth)
        return [] if inner is None else [inner]
    if origin is dict:
        return {}
    if arguments:
        return value_of(arguments[0], depth)
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            return full(annotation, depth + 1) if depth < 4 else None
        if issubclass(annotation, Enum):
            return list(annotation)[-1]
    return {str: "x", int: 1, float: 0.5, bool: True, bytes: b"x"}.get(annotation)


def everything_our_client_may_send() -> types.LiveConnectConfig:
    skipped = {
        "http_options",
        "generation_config",
        "system_instruction",
        "tools",
        "session_resumption",
    }
    fields = {
        name: value_of(field.annotation, 0)
        for name, field in types.LiveConnectConfig.model_fields.items()
        if name not in skipped
    }
    function = types.FunctionDeclaration(
        name="x", description="y", parameters_json_schema={"type": "object"}
    )
    tools = [
        types.Tool(function_declarations=[function]),
        *(
            types.Tool(**{name: value_of(field.annotation, 3)})
            for name, field in types.Tool.model_fields.items()
            if name != "function_declarations" and value_of(field.annotation, 3) is not None
        ),
    ]
    return types.LiveConnectConfig(
        **{name: value for name, value in fields.items() if value is not None},
        system_instruction=types.Content(parts=[types.Part(text="Be brief.")]),
        session_resumption=types.SessionResumptionConfig(handle="h"),
        tools=tools,
    )


@pytest.mark.parametrize(
    "model",
    [
        "gemini-3.8-live",
        "gemini-3.8-live-extended-thinking",
        "gemini-2.5-flash-native-audio-latest",
    ],
)
def test_every_set_up_field_that_our_client_may_send_is_known(model: str) -> None:
    message, _ = setup_message(model, everything_our_client_may_send())

    checked = read_client_message(msgspec.json.encode(message))

    assert set(checked["setup"]) == set(message["setup"])
    assert {"avatarConfig", "labels", "safetySettings", "tools"} <= set(checked["setup"])
    assert "translationConfig" in checked["setup"]["generationConfig"]


@pytest.mark.parametrize("slashes", ["/", "//"])
async def test_the_address_may_have_two_slashes_as_the_official_javascript_client_asks_for_it(
    slashes: str,
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=QUICK)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(simulator.run)
        with trio.fail_after(10):
            async with connect(f"{url}{slashes}{PATH[1:]}?key={KEY}") as client:
                await client.send('{"setup":{"model":"models/gemini-3.8-live"}}')
                ready = await client.recv()
        nursery.cancel_scope.cancel()

    assert "setupComplete" in str(ready)
