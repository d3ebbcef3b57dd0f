"""What Gemini is sent and what it sends, without a socket or an event loop."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ModelError
from server.model import (
    AgentAudio,
    AgentTranscript,
    CallerTranscript,
    GenerationComplete,
    GoingAway,
    Interrupted,
    ResumptionHandle,
    ToolCall,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Usage,
)
from server.model.gemini import protocol as wire
from server.model.gemini.dialects import DIALECTS, dialect_of
from server.model.gemini.messages import (
    audio_message,
    client_content_message,
    text_message,
    tool_results_message,
)
from server.model.gemini.protocol import LATE_AUDIO_S, MAX_MALFORMED_IN_A_ROW, GeminiProtocol
from tests.support.gemini_messages import PCM, audio, content

MODELS = (
    "gemini-3.8-live",
    "gemini-3.8-live-extended-thinking",
    "gemini-3.1-flash-live-preview",
    "gemini-2.5-flash-native-audio-preview-12-2025",
)


def never(identity: str) -> bool:
    return False


# --- To the service
def test_audio_is_one_plain_message() -> None:
    assert json.loads(audio_message(PCM)) == {
        "realtimeInput": {
            "audio": {
                "mimeType": "audio/pcm;rate=16000",
                "data": base64.b64encode(PCM).decode(),
            }
        }
    }


@pytest.mark.parametrize("model", MODELS[:3])
def test_text_goes_as_realtime_input(model: str) -> None:
    message = text_message(dialect_of(model), 'Say "hello".')

    assert json.loads(message) == {"realtimeInput": {"text": 'Say "hello".'}}


def test_text_goes_to_the_oldest_family_as_a_turn_of_its_own() -> None:
    message = text_message(dialect_of(MODELS[3]), "Greet them.")

    assert json.loads(message) == {
        "clientContent": {
            "turns": [{"role": "user", "parts": [{"text": "Greet them."}]}],
            "turnComplete": True,
        }
    }


def test_a_history_waits_for_more() -> None:
    turns = [("user", "Hello?"), ("model", "Good morning.")]

    message = json.loads(client_content_message(turns, turn_complete=False))

    assert message["clientContent"]["turnComplete"] is False
    assert [turn["role"] for turn in message["clientContent"]["turns"]] == ["user", "model"]


def test_tool_results_are_answered_together() -> None:
    results = [
        ToolResult("c1", "look_up", {"output": {"open": True}}),
        ToolResult("c2", "send", {"error": "no such thing"}),
    ]

    assert json.loads(tool_results_message(results, has_made=never)) == {
        "toolResponse": {
            "functionResponses": [
                {"id": "c1", "name": "look_up", "response": {"output": {"open": True}}},
                {"id": "c2", "name": "send", "response": {"error": "no such thing"}},
            ]
        }
    }


def test_what_we_send_is_understood_by_the_official_types() -> None:
    for dialect in DIALECTS:
        for message in (
            audio_message(PCM),
            text_message(dialect, "Hello"),
            tool_results_message([ToolResult("c1", "f", {"output": 1})], has_made=never),
        ):
            types.LiveClientMessage.model_validate_json(message)


# --- From the service
def test_audio_and_its_transcript_in_one_message() -> None:
    message = audio(outputTranscription={"text": "Hello"})

    events = GeminiProtocol().receive(message, 5.0)

    assert events == [AgentAudio(PCM, 1, 5.0), AgentTranscript("Hello", 1)]


def test_text_frames_and_snake_case_mean_the_same() -> None:
    data = base64.b64encode(PCM).decode()
    snake = (
        '{"server_content":{"model_turn":{"parts":[{"inline_data":'
        f'{{"mime_type":"audio/pcm;rate=24000","data":"{data}"}}}}]}},"turn_complete":true}}}}'
    )

    events = GeminiProtocol().receive(snake, 5.0)

    assert events == [AgentAudio(PCM, 1, 5.0), TurnComplete(1, None)]


@pytest.mark.parametrize("length", [254, 256, 258])
def test_base64_may_be_url_safe_and_unpadded(length: int) -> None:
    pcm = PCM[:length]
    for data in (
        base64.urlsafe_b64encode(pcm).decode(),
        base64.urlsafe_b64encode(pcm).decode().rstrip("="),
        base64.b64encode(pcm).decode().rstrip("="),
    ):
        blob = {"mimeType": "audio/pcm;rate=24000", "data": data}
        message = content(modelTurn={"parts": [{"inlineData": blob}]})

        assert GeminiProtocol().receive(message, 0.0) == [AgentAudio(pcm, 1, 0.0)]


def test_every_part_and_every_field_of_a_message_is_read() -> None:
    blob = {"mimeType": "audio/pcm", "data": base64.b64encode(PCM).decode()}
    message = {
        "serverContent": {
            "modelTurn": {
                "role": "model",
                "parts": [
                    {"inlineData": blob},
                    {"text": "thinking …", "thought": True},
                    {"inlineData": blob},
                ],
            },
            "inputTranscription": {"text": "hi", "languageCode": "en"},
            "outputTranscription": {"text": "hello", "finished": True},
            "generationComplete": True,
            "turnComplete": True,
            "turnCompleteReason": "MAX_REGENERATION_REACHED",
        },
        "usageMetadata": {
            "promptTokenCount": "410",
            "responseTokenCount": 95,
            "totalTokenCount": 505,
            "promptTokensDetails": [
                {"modality": "AUDIO", "tokenCount": "380"},
                {"modality": "TEXT", "tokenCount": 30},
            ],
        },
    }

    events = GeminiProtocol().receive(json.dumps(message), 1.0)

    assert events == [
        CallerTranscript("hi"),
        AgentAudio(PCM, 1, 1.0),
        AgentAudio(PCM, 1, 1.0),
        AgentTranscript("hello", 1),
        GenerationComplete(1),
        TurnComplete(1, "MAX_REGENERATION_REACHED"),
        Usage({"AUDIO": 380, "TEXT": 30}, {"MODALITY_UNSPECIFIED": 95}, 505, turn=1),
    ]


def test_vertex_counts_candidates() -> None:
    usage = {
        "promptTokenCount": 1,
        "candidatesTokenCount": 7,
        "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 7}],
        "totalTokenCount": 8,
    }

    events = GeminiProtocol().receive(json.dumps({"usageMetadata": usage}), 0.0)

    assert events == [Usage({"MODALITY_UNSPECIFIED": 1}, {"AUDIO": 7}, 8, turn=1)]


def test_tokens_that_are_told_after_their_turn_are_still_its_own() -> None:
    usage = {"usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1}}
    protocol = GeminiProtocol()
    turns = []
    for message in (usage, {"serverContent": {"turnComplete": True}}, usage):
        turns += [
            e.turn for e in protocol.receive(json.dumps(message), 0.0) if isinstance(e, Usage)
        ]
    protocol.receive(json.dumps({"toolCall": {"functionCalls": [{"id": "1", "name": "x"}]}}), 0.0)
    turns += [e.turn for e in protocol.receive(json.dumps(usage), 0.0) if isinstance(e, Usage)]

    assert turns == [1, 1, 2]


def test_turns_are_numbered_by_their_completion() -> None:
    protocol = GeminiProtocol()

    first = protocol.receive(audio(), 0.0) + protocol.receive(content(turnComplete=True), 1.0)
    second = protocol.receive(audio(), 2.0)

    assert first == [AgentAudio(PCM, 1, 0.0), TurnComplete(1, None)]
    assert second == [AgentAudio(PCM, 2, 2.0)]


def test_silence_on_purpose_is_told_from_an_empty_turn() -> None:
    message = content(turnComplete=True, waitingForInput=True)

    assert GeminiProtocol().receive(message, 0.0) == [TurnComplete(1, "NEED_MORE_INPUT")]


def test_late_audio_of_a_cut_turn_keeps_its_number() -> None:
    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)

    cut = protocol.receive(content(interrupted=True), 1.0)
    late = protocol.receive(audio(), 1.5)
    over = protocol.receive(content(turnComplete=True), 1.6)
    answer = protocol.receive(audio(), 1.7)

    assert cut == [Interrupted(1, 1.0)]
    assert late == [AgentAudio(PCM, 1, 1.5)]
    assert over == [TurnComplete(1, None)]
    assert answer == [AgentAudio(PCM, 2, 1.7)]


def test_a_turn_complete_that_never_comes_does_not_mute_the_agent() -> None:
    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)
    protocol.receive(content(interrupted=True), 1.0)

    late = protocol.receive(audio(), 1.0 + LATE_AUDIO_S)
    answer = protocol.receive(audio(), 1.001 + LATE_AUDIO_S)
    more = protocol.receive(audio(), 1.002 + LATE_AUDIO_S)

    assert [event.turn for event in late + answer + more] == [1, 2, 2]  # type: ignore[union-attr]


def test_an_interruption_bundled_with_the_end_of_its_turn() -> None:
    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)

    cut = protocol.receive(content(interrupted=True, turnComplete=True), 1.0)
    answer = protocol.receive(audio(), 1.1)

    assert cut == [Interrupted(1, 1.0), TurnComplete(1, None)]
    assert answer == [AgentAudio(PCM, 2, 1.1)]


def test_an_interruption_before_any_audio_of_the_turn() -> None:
    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)
    protocol.receive(content(turnComplete=True), 1.0)

    cut = protocol.receive(content(interrupted=True), 2.0)
    over = protocol.receive(content(turnComplete=True), 2.1)
    answer = protocol.receive(audio(), 3.0)

    assert cut == [Interrupted(2, 2.0)]
    assert over == [TurnComplete(2, None)]
    assert answer == [AgentAudio(PCM, 3, 3.0)]


def test_an_interruption_while_the_finished_generation_is_still_playing() -> None:
    protocol = GeminiProtocol()
    protocol.receive(audio(), 0.0)
    protocol.receive(content(generationComplete=True), 0.1)

    assert protocol.receive(content(interrupted=True), 2.0) == [Interrupted(1, 2.0)]


NAMELESS = "a call needs a function's name, of at most 128 characters"


def test_tool_calls_and_their_cancellation() -> None:
    protocol = GeminiProtocol()
    calls = {
        "functionCalls": [
            {"id": "c1", "name": "look_up", "args": {"snake_case": 1}},
            {"name": "hang_up"},
            {"id": "c3"},
        ]
    }

    asked = protocol.receive(json.dumps({"toolCall": calls}), 0.0)
    made_up = asked[0].calls[1].id
    cancelled = protocol.receive(b'{"toolCallCancellation":{"ids":["c1", 5]}}', 0.0)

    assert asked == [
        ToolCallsRequested(
            (
                ToolCall("c1", "look_up", {"snake_case": 1}),
                ToolCall(made_up, "hang_up", {}),
                ToolCall("c3", "unnamed", {}, NAMELESS),
            ),
            turn=1,
        )
    ]
    assert [protocol.has_made(one) for one in ("c1", made_up, "c3")] == [False, True, False]
    assert cancelled == [ToolCallsCancelled(("c1",))]
    assert protocol.malformed == 1


@pytest.mark.parametrize(
    ("model", "ends"),
    [
        ("gemini-3.8-live", True),
        ("gemini-3.8-live-extended-thinking", True),
        ("gemini-3.1-flash-live-preview", False),
        ("gemini-2.5-flash-native-audio-latest", False),
    ],
)
def test_a_call_says_whether_its_turn_ends_with_it(model: str, ends: bool) -> None:
    protocol = GeminiProtocol(ends_turn_at_call=dialect_of(model).ends_turn_at_call)

    (asked,) = protocol.receive(b'{"toolCall":{"functionCalls":[{"id":"c1","name":"f"}]}}', 0.0)

    assert asked.ends_turn is ends


@pytest.mark.parametrize(
    ("time_left", "seconds"),
    [("50s", 50.0), ("1.500s", 1.5), ("soon", 0.0), (50, 0.0), (None, 0.0)],
)
def test_going_away(time_left: object, seconds: float) -> None:
    message = json.dumps({"goAway": {"timeLeft": time_left}})

    assert GeminiProtocol().receive(message, 0.0) == [GoingAway(seconds)]


@pytest.mark.parametrize(
    ("update", "handle"),
    [
        ({"newHandle": "h1", "resumable": True, "lastConsumedClientMessageIndex": "12"}, "h1"),
        ({"newHandle": "", "resumable": False}, None),
        ({"newHandle": "h1"}, None),
        ({"resumable": True}, None),
    ],
)
def test_resumption(update: object, handle: str | None) -> None:
    message = json.dumps({"sessionResumptionUpdate": update})

    assert GeminiProtocol().receive(message, 0.0) == [ResumptionHandle(handle)]


def test_the_session_is_ready_after_setup_complete_only() -> None:
    protocol = GeminiProtocol()

    protocol.receive(b"{}", 0.0)
    before = protocol.ready
    protocol.receive(b'{"setupComplete":{"sessionId":"s1"}}', 0.0)

    assert (before, protocol.ready) == (False, True)


@pytest.mark.parametrize(
    "message",
    [
        b"{}",
        b'{"serverContent":{}}',
        b'{"voiceActivity":{"type":"ACTIVITY_START","audioOffset":"3.2s"}}',
        b'{"serverContent":{"interimInputTranscription":{"text":"I would"}}}',
        b'{"serverContent":{"interrupted":false,"turnComplete":null}}',
    ],
)
def test_messages_that_mean_nothing_to_a_call(
    message: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = GeminiProtocol()

    assert protocol.receive(message, 0.0) == []
    assert protocol.malformed == 0
    assert capsys.readouterr().out == ""


def test_what_is_unknown_is_ignored_and_logged_once_and_not_by_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    protocol = GeminiProtocol()
    message = audio(newThing={"said": "a secret"})

    events = protocol.receive(message, 0.0) + protocol.receive(message, 0.0)

    assert events == [AgentAudio(PCM, 1, 0.0)] * 2
    log = capsys.readouterr().out
    assert log.count("unknown field") == 1
    assert "newThing" not in log
    assert "a secret" not in log


@pytest.mark.parametrize(
    "blob",
    [
        {"mimeType": "audio/pcm;rate=96000", "data": "AAAA"},
        {"mimeType": "image/png", "data": "AAAA"},
        {"mimeType": "audio/pcm;rate=24000", "data": "?"},
        {"mimeType": "audio/pcm;rate=24000", "data": ""},
        {"data": base64.b64encode(b"RIFF....WAVEfmt ").decode()},
    ],
)
def test_audio_nobody_could_play_is_ignored(blob: object) -> None:
    message = content(modelTurn={"parts": [{"inlineData": blob}]})

    assert GeminiProtocol().receive(message, 0.0) == []


def test_half_a_sample_is_cut_off() -> None:
    assert GeminiProtocol().receive(audio(b"\1\2\3"), 0.0) == [AgentAudio(b"\1\2", 1, 0.0)]


@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":"\xff"}', "\ud800", b"[" * 100_000, b"1e999"],
)
def test_malformed_messages_are_counted_and_ignored(message: bytes | str) -> None:
    protocol = GeminiProtocol()

    assert protocol.receive(message, 0.0) == []
    assert protocol.malformed == 1


def test_nothing_but_malformed_messages_ends_the_session() -> None:
    protocol = GeminiProtocol()
    for _ in range(MAX_MALFORMED_IN_A_ROW - 1):
        protocol.receive(b"{", 0.0)

    with pytest.raises(ModelError) as caught:
        protocol.receive(b"{", 0.0)

    assert caught.value.retryable


def test_a_readable_message_forgives_the_malformed_ones_before_it() -> None:
    protocol = GeminiProtocol()

    for _ in range(3):
        for _ in range(MAX_MALFORMED_IN_A_ROW - 1):
            protocol.receive(b"{", 0.0)
        protocol.receive(audio(), 0.0)

    assert protocol.malformed == 3 * (MAX_MALFORMED_IN_A_ROW - 1)


# Every name the reader looks for, from its own tables, and some that are hard to respell.
NAMES = st.sampled_from(
    sorted(
        wire._KNOWN_MESSAGE_FIELDS
        | wire._KNOWN_CONTENT_FIELDS
        | {"server_content", "model_turn", "turn_complete", "parts", "inlineData", "inline_data"}
        | {"mimeType", "data", "text", "ids", "functionCalls", "id", "name", "args", "timeLeft"}
        | {"newHandle", "resumable", "promptTokensDetails", "modality", "tokenCount", "_", "__a"}
    )
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["audio/pcm", "audio/pcm;rate=24000", "AAAA", "5s", "x" * 5000])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=5))
def test_no_json_whatever_makes_the_reader_fail(messages: list[Any]) -> None:
    protocol = GeminiProtocol()

    for message in messages:
        with contextlib.suppress(ModelError):
            protocol.receive(json.dumps(message), 0.0)


@given(st.binary(max_size=200))
def test_no_bytes_whatever_make_the_reader_fail(message: bytes) -> None:
    GeminiProtocol().receive(message, 0.0)
