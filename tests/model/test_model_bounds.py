"""What a model may ask of the process: bounded where it is read, and answered all the same."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
import trio
from websockets.frames import Close

from server.call.report.costs import MAX_OPEN_TURNS, CostMeter, Prices
from server.dialogue.playout import MAX_QUEUED_BYTES, Playout
from server.dialogue.transcript import MAX_CHARACTERS, MAX_TURN_CHARACTERS, MAX_TURNS, Transcript
from server.errors import ModelError
from server.model import (
    AgentAudio,
    CallerTranscript,
    ResumptionHandle,
    ToolCall,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    Usage,
)
from server.model.gemini.connection import MAX_MESSAGES_AT_ONCE, MESSAGES_PER_S, GeminiConnection
from server.model.gemini.dialects import dialect_of
from server.model.gemini.faults import Faults
from server.model.gemini.fields import MAX_BARE_BYTES, MAX_ITEMS, MAX_TEXT, Fields, is_plain
from server.model.gemini.model import MAX_MESSAGE_BYTES
from server.model.gemini.protocol import (
    CALLS_PER_S,
    JOINED_PARTS,
    MAX_ARGUMENTS_BYTES,
    MAX_CALLS,
    MAX_CALLS_AT_ONCE,
    MAX_HANDLE,
    MAX_ID,
    MAX_PARTS,
    GeminiProtocol,
)
from server.model.lasting.plan import reason_of
from server.model.lasting.unanswered import MAX_KEPT_WORDS, UnansweredInput
from server.simulators.gemini import Drop, FunctionCall, ModelScript
from tests.support.rig import calling


def calls(*ids: str, **fields: Any) -> bytes:
    functions = [{"id": one, "name": "look_up", "args": {}} | fields for one in ids]
    return json.dumps({"toolCall": {"functionCalls": functions}}).encode()


def named(count: int, prefix: str = "c") -> list[str]:
    return [f"{prefix}{index}" for index in range(count)]


def only_call(message: bytes) -> ToolCall:
    (event,) = GeminiProtocol().receive(message, 0.0)
    assert isinstance(event, ToolCallsRequested)
    (call,) = event.calls
    return call


# --- One message


def test_as_many_calls_as_a_message_may_have_are_all_read():
    (event,) = GeminiProtocol().receive(calls(*named(MAX_CALLS)), 0.0)

    assert isinstance(event, ToolCallsRequested)
    assert [call.id for call in event.calls] == named(MAX_CALLS)


@pytest.mark.parametrize("count", [MAX_CALLS + 1, 5_000, 100_000])
def test_a_message_with_more_calls_than_can_be_answered_gives_the_session_up(count):
    with pytest.raises(ModelError) as caught:
        GeminiProtocol().receive(calls(*named(count)), 0.0)

    assert caught.value.retryable


def test_calls_are_bounded_over_the_messages_of_a_turn():
    protocol = GeminiProtocol()
    protocol.receive(calls(*named(MAX_CALLS)), 0.0)

    with pytest.raises(ModelError):
        protocol.receive(calls("another"), 0.0)


def test_calls_are_bounded_over_turns_by_time():
    protocol, over = GeminiProtocol(), b'{"serverContent":{"turnComplete":true}}'
    for _ in range(MAX_CALLS_AT_ONCE // 16):
        protocol.receive(calls(*named(16)), 0.0)
        protocol.receive(over, 0.0)

    with pytest.raises(ModelError):
        protocol.receive(calls("one"), 0.0)
    assert protocol.receive(calls("later"), 1.1 / CALLS_PER_S)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": "x" * MAX_ARGUMENTS_BYTES},
        {"a": json.loads("[" * 200 + "]" * 200)},
        {"number": 10**400},
        {"list": list(range(12_000))},
    ],
    ids=["long", "deep", "hundreds of digits", "many"],
)
def test_a_call_with_arguments_beyond_reason_is_to_be_refused_under_its_id(arguments):
    call = only_call(calls("c1", args=arguments))

    assert (call.id, call.arguments) == ("c1", {})
    assert "arguments" in call.refusal


def test_a_call_with_a_name_that_no_function_has_is_to_be_refused_under_its_id():
    call = only_call(calls("c1", name="x" * 1_000_000))

    assert call.id == "c1"
    assert call.refusal


def test_an_id_that_is_too_long_to_be_sent_back_gives_the_session_up():
    assert only_call(calls("x" * MAX_ID)).id == "x" * MAX_ID

    with pytest.raises(ModelError):
        GeminiProtocol().receive(calls("x" * 1_000_000), 0.0)


def test_ids_taken_back_are_read_as_far_as_they_can_be_ids():
    message = json.dumps({"toolCallCancellation": {"ids": ["c1", "x" * 50_000, 7]}})

    assert GeminiProtocol().receive(message, 0.0) == [ToolCallsCancelled(("c1",))]


@pytest.mark.parametrize(("length", "kept"), [(MAX_HANDLE, True), (1_000_000, False)])
def test_a_handle_too_long_to_begin_with_is_none(length, kept):
    update = {"newHandle": "h" * length, "resumable": True}
    (event,) = GeminiProtocol().receive(json.dumps({"sessionResumptionUpdate": update}), 0.0)

    assert event == ResumptionHandle("h" * length if kept else None)


def audio_parts(count: int) -> bytes:
    blob = {"mimeType": "audio/pcm;rate=24000", "data": base64.b64encode(b"\1\2").decode()}
    turn = {"modelTurn": {"parts": [{"inlineData": blob}] * count}}
    return json.dumps({"serverContent": turn}).encode()


@pytest.mark.parametrize("count", [JOINED_PARTS + 1, 500])
def test_many_parts_of_audio_are_one_piece_of_it(count):
    assert GeminiProtocol().receive(audio_parts(count), 0.0) == [
        AgentAudio(b"\1\2" * count, 1, 0.0)
    ]


def test_of_a_message_that_is_not_plain_audio_so_many_parts_are_looked_at():
    message = json.loads(audio_parts(MAX_PARTS + 5))
    message["serverContent"]["turnComplete"] = True
    protocol = GeminiProtocol()

    events = protocol.receive(json.dumps(message), 0.0)

    assert events[0] == AgentAudio(b"\1\2" * MAX_PARTS, 1, 0.0)
    assert protocol.malformed == 1


@pytest.mark.parametrize(
    "message",
    [
        audio_parts(MAX_ITEMS),
        json.dumps(dict.fromkeys(named(MAX_ITEMS + 2), 1)).encode(),
        json.dumps({"usageMetadata": {"promptTokensDetails": [{}] * (2 * MAX_ITEMS)}}).encode(),
        json.dumps({"x": "y" * MAX_BARE_BYTES}).encode(),
    ],
    ids=["parts", "unknown fields", "details", "bytes"],
)
def test_a_message_with_more_in_it_than_a_moments_work_gives_the_session_up(message):
    with pytest.raises(ModelError) as caught:
        GeminiProtocol().receive(message, 0.0)

    assert caught.value.retryable


def test_a_minute_of_audio_in_one_message_is_played():
    pcm = bytes(2 * 24_000 * 60)
    blob = {"mimeType": "audio/pcm;rate=24000", "data": base64.b64encode(pcm).decode()}
    content = {"modelTurn": {"parts": [{"inlineData": blob}]}, "generationComplete": True}

    events = GeminiProtocol().receive(json.dumps({"serverContent": content}), 0.0)

    assert events[0] == AgentAudio(pcm, 1, 0.0)


def test_a_text_that_nobody_says_in_one_breath_is_left_out():
    protocol = GeminiProtocol()
    for length in (MAX_TEXT, MAX_TEXT + 1, 900_000):
        heard = {"serverContent": {"inputTranscription": {"text": "x" * length}}}
        events = protocol.receive(json.dumps(heard), 0.0)

        assert events == ([CallerTranscript("x" * length)] if length <= MAX_TEXT else [])
    assert protocol.malformed == 2


def test_a_long_name_with_many_underscores_is_not_respelt():
    fields = Fields.read(json.dumps({"_" * 50_000: 1, "turn_complete": True}).encode())

    assert fields is not None
    assert fields.flag("turnComplete")


@pytest.mark.parametrize(("depth", "plain"), [(10, True), (31, True), (40, False), (20_000, False)])
def test_depth_is_known_without_recursion(depth, plain):
    value: Any = []
    for _ in range(depth):
        value = {"a": value} if depth % 2 else [value]

    assert is_plain(value) is plain


@pytest.mark.parametrize(
    ("value", "plain"), [(2**64 - 1, True), (2**64, False), (-(2**63), True), (10**400, False)]
)
def test_numbers_are_of_64_bits(value, plain):
    assert is_plain({"a": [1.5, {"b": value}, True, None]}) is plain


# --- Many messages


class Flood:
    """A socket that always has one more message."""

    def __init__(self, message: bytes, gap_s: float) -> None:
        self.received = 0
        self._message = message
        self._gap_s = gap_s

    async def recv(self, *, decode: bool) -> bytes:
        await trio.sleep(self._gap_s)
        self.received += 1
        return self._message


def session_over(socket: Any) -> GeminiConnection:
    return GeminiConnection(socket, dialect_of("gemini-3.8-live"), Faults("a-key", "a-host"))


async def test_a_flood_of_tiny_messages_gives_the_session_up(autojump_clock):
    flood = Flood(b"{}", gap_s=0.0)

    with pytest.raises(ModelError, match="more messages"):
        await session_over(flood).receive()

    assert flood.received == MAX_MESSAGES_AT_ONCE + 1


async def test_a_flood_of_long_messages_gives_the_session_up_sooner(autojump_clock):
    flood = Flood(json.dumps({"x": "y" * 40_000}).encode(), gap_s=0.001)

    with pytest.raises(ModelError, match="more messages"):
        await session_over(flood).receive()

    assert flood.received < MAX_MESSAGES_AT_ONCE / 9


async def test_the_longest_message_there_may_be_is_no_flood(autojump_clock):
    pcm = bytes(3 * (MAX_MESSAGE_BYTES - 1_000) // 4 // 2 * 2)
    blob = {"mimeType": "audio/pcm", "data": base64.b64encode(pcm).decode()}
    content = {"modelTurn": {"parts": [{"inlineData": blob}]}}
    longest = Flood(json.dumps({"serverContent": content}).encode(), gap_s=0.0)

    event = await session_over(longest).receive()

    assert event == AgentAudio(pcm, 1, trio.current_time())


async def test_messages_that_keep_a_brisk_pace_may_go_on_for_ever(autojump_clock):
    flood = Flood(b"{}", gap_s=1 / MESSAGES_PER_S)

    with trio.move_on_after(60):
        await session_over(flood).receive()

    assert flood.received > MAX_MESSAGES_AT_ONCE


# --- Functions


async def test_a_call_goes_on_in_another_session_after_a_storm_of_functions(autojump_clock):
    storm = ModelScript(
        functions=(FunctionCall("look_up"),) * 5_000,
        function_turns=frozenset({2}),
    )
    async with calling(callee="asks-and-waits", script=storm) as rig:
        await rig.over()

    assert rig.record["reason"] == "caller-hung-up"
    assert len(rig.sessions) == 2
    assert "model reconnected" in rig.noted


async def test_a_call_in_which_the_model_calls_a_hundred_functions_at_once_goes_on(
    autojump_clock,
):
    storm = ModelScript(functions=(FunctionCall("look_up"),) * 100, function_turns=frozenset({2}))
    async with calling(callee="asks-and-waits", script=storm) as rig:
        await rig.over()

    (session,) = rig.sessions
    assert rig.record["reason"] == "caller-hung-up"
    assert session.functions.made == len(session.tool_results) == 100
    assert not session.mistakes


# --- What a call keeps


def test_a_turn_keeps_so_many_words_and_a_transcript_so_many_turns():
    transcript = Transcript()
    for _ in range(100):
        transcript.caller_said("x" * 1_000, 0.0)
    for number in range(2, MAX_TURNS + 10):
        transcript.agent_said("y" * 600, number, 0.0)

    assert len(transcript.turns[0].text) <= MAX_TURN_CHARACTERS
    assert sum(len(turn.text) for turn in transcript.turns) <= MAX_CHARACTERS
    assert len(transcript.turns) <= MAX_TURNS
    assert transcript.turns[-1].number == MAX_TURNS + 9


def test_what_is_heard_of_a_turn_that_was_let_go_of_is_nobodys():
    transcript = Transcript()
    for number in range(1, MAX_TURNS + 3):
        transcript.agent_said("y", number, 0.0)

    transcript.agent_heard(1, heard_s=1.0, made_s=1.0, cut=False)

    assert transcript.agent_heard_text(1) == ""
    assert transcript.agent_heard_text(MAX_TURNS) == "y"


def test_audio_that_nobody_will_ever_hear_is_not_queued():
    playout = Playout()
    minute = bytes(60 * 8_000)

    taken = [playout.push(minute, 1) for _ in range(12)]

    assert taken == [True] * 10 + [False] * 2
    assert playout.queued_s * 8_000 <= MAX_QUEUED_BYTES


def test_turns_without_end_cost_no_memory_and_stay_in_the_sum():
    meter = CostMeter(
        Prices(), model="gemini-3.8-live", direction="outbound", number="+12125550123"
    )
    for turn in range(1, 5_001):
        meter.count(Usage({"AUDIO": 10}, {"AUDIO": 1}, 11, turn))

    assert len(meter._turns) == MAX_OPEN_TURNS
    assert meter.tokens() == {"prompt": {"AUDIO": 50_000}, "response": {"AUDIO": 5_000}, "other": 0}


def test_tool_answers_that_have_been_sent_are_kept_up_to_a_size():
    kept = UnansweredInput()
    for index in range(100):
        kept.put((ToolResult(str(index), "x", {"output": "y" * 30_000}),))
        kept.take()
        kept.taken_is_sent()

    kept.rewind(resumed=False)
    again: list[Any] = []
    while (content := kept.take()) is not None:
        again.append(content)
    assert 0 < len(again) * 30_000 <= MAX_KEPT_WORDS
    assert again[-1][0].id == "99"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (999, "closed-other"),
        (1000, "closed-1000"),
        (1006, "closed-1006"),
        (1015, "closed-1015"),
        (1016, "closed-other"),
        (None, "broken"),
    ],
)
def test_reasons_that_metrics_count_are_few(code, word):
    assert reason_of(ModelError("", code=code, reason="", retryable=True)) == word


# --- Logs


@pytest.mark.parametrize(
    "message",
    [
        {"a caller's secret": 1},
        {"serverContent": {"a caller's secret": 1}},
        {
            "serverContent": {
                "modelTurn": {
                    "parts": [
                        {"inlineData": {"mimeType": "audio/a caller's secret", "data": "AAAA"}}
                    ]
                }
            }
        },
        {"toolCall": {"functionCalls": [{"id": "1", "args": {"a caller's secret": 1}}]}},
    ],
)
def test_no_word_of_the_models_choosing_is_logged(
    message: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    GeminiProtocol().receive(json.dumps(message), 0.0)

    log = capsys.readouterr().out
    assert log.count("ignored") == 1
    assert "secret" not in log


def test_unknown_names_are_told_apart_without_being_shown(capsys):
    protocol = GeminiProtocol()
    for name in ("first", "other", "first"):
        protocol.receive(json.dumps({name: 1}), 0.0)

    log = capsys.readouterr().out
    assert log.count("unknown field") == 2
    assert "characters=5" in log


async def test_a_refusal_of_the_models_is_in_the_record_and_not_in_the_log(autojump_clock, capsys):
    secret = "the caller said pomegranate"
    script = ModelScript(refuse_setup=Close(1007, secret))
    async with calling(script=script, script_after_resume=script) as rig:
        await rig.over()

    assert secret in rig.record["detail"]
    log = capsys.readouterr().out
    assert "closed the session with 1007" in log
    assert "pomegranate" not in log


async def test_a_reason_for_a_drop_in_mid_call_is_not_in_the_log(autojump_clock, capsys):
    script = ModelScript(drop=Drop(2, 0.5, 1011, "the caller said pomegranate"))
    async with calling(callee="talks", script=script) as rig:
        await rig.over()

    assert "model reconnected" in rig.noted
    assert "pomegranate" not in capsys.readouterr().out


async def test_a_service_that_goes_away_as_soon_as_it_is_there_is_not_connected_to_in_a_loop(
    autojump_clock,
):
    leaves = ModelScript(go_away_at_s=0.0, go_away_left_s=0.0)
    async with calling(
        callee="never-hangs-up", script=leaves, script_after_resume=leaves, max_duration_s=30.0
    ) as rig:
        await rig.over()

    assert len(rig.sessions) < 40
