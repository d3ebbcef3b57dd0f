"""Token counts: what the service tells, which turn they belong to, and that nothing is free."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.call.report.costs import CostMeter, Prices
from server.model import Usage
from server.model.gemini.counts import MAX_DETAILS, MAX_TOKENS, read_usage
from server.model.gemini.fields import Fields
from server.model.gemini.protocol import GeminiProtocol
from tests.support.gemini_messages import audio

UNSPECIFIED = "MODALITY_UNSPECIFIED"
OVER = {"serverContent": {"turnComplete": True}}
SPOKEN = json.loads(audio())


def counted(prompt: int, response: int = 0, **others: Any) -> dict[str, Any]:
    return {
        "promptTokenCount": prompt,
        "responseTokenCount": response,
        "totalTokenCount": prompt + response,
    } | others


def told(usage: dict[str, Any]) -> Usage | None:
    fields = Fields.read(json.dumps({"u": usage}).encode())
    assert fields is not None
    metadata = fields.object("u")
    assert metadata is not None
    return read_usage(metadata)


def turns_of(*messages: dict[str, Any]) -> list[tuple[int, int]]:
    """The turn and the prompt tokens of each telling."""
    protocol = GeminiProtocol()
    events = [event for one in messages for event in protocol.receive(json.dumps(one), 0.0)]
    return [
        (event.turn, sum(event.prompt_tokens.values()))
        for event in events
        if isinstance(event, Usage)
    ]


def meter_of(*messages: dict[str, Any]) -> CostMeter:
    protocol = GeminiProtocol()
    meter = CostMeter(
        Prices(), model="gemini-3.8-live", direction="outbound", number="+12125550123"
    )
    for message in messages:
        for event in protocol.receive(json.dumps(message), 0.0):
            if isinstance(event, Usage):
                meter.count(event)
    return meter


def cost(meter: CostMeter) -> dict[str, Any]:
    return meter.as_dict(on_line_s=0.0, caller_audio_s=0.0, agent_audio_s=0.0)


# --- Which turn


def test_counts_that_announce_an_answer_belong_to_it():
    announced = [{"serverContent": {}, "usageMetadata": counted(one)} for one in (100, 300, 600)]
    end = OVER | {"usageMetadata": {}}

    messages = [message for announcement in announced for message in (announcement, SPOKEN, end)]

    assert turns_of(*messages) == [(1, 100), (2, 300), (3, 600)]
    assert meter_of(*messages).tokens()["prompt"] == {UNSPECIFIED: 1_000}


def test_the_same_without_any_content_beside_them():
    messages = []
    for prompt in (100, 300, 600):
        messages += [{"usageMetadata": counted(prompt)}, SPOKEN, OVER | {"usageMetadata": {}}]

    assert turns_of(*messages) == [(1, 100), (2, 300), (3, 600)]


def test_counts_beside_what_the_caller_was_heard_to_say_belong_to_the_answer():
    heard = {"serverContent": {"inputTranscription": {"text": "Hello"}}}

    messages = (SPOKEN, OVER, heard | {"usageMetadata": counted(300)}, SPOKEN, OVER)

    assert turns_of(*messages) == [(2, 300)]


def test_counts_at_a_turns_end_are_its_own():
    messages = (SPOKEN, OVER | {"usageMetadata": counted(100, 20)})

    assert turns_of(*messages, *messages) == [(1, 100), (2, 100)]


def test_counts_after_a_turns_end_are_its_own_if_it_has_none():
    assert turns_of(SPOKEN, OVER, {"usageMetadata": counted(100, 20)}, SPOKEN) == [(1, 100)]


def test_counts_that_have_grown_after_a_turns_end_are_still_its_own():
    growing = [{"usageMetadata": counted(100, response)} for response in (10, 40, 95)]

    messages = (SPOKEN, growing[0], OVER | growing[1], growing[2])

    assert turns_of(*messages) == [(1, 100)] * 3
    assert meter_of(*messages).tokens()["response"] == {UNSPECIFIED: 95}


@pytest.mark.parametrize("empty", [{}, {"totalTokenCount": 0}, {"promptTokensDetails": []}, 5])
def test_an_empty_count_at_a_turns_end_changes_nothing(empty):
    begun = {"serverContent": {}, "usageMetadata": counted(100, 20)}

    assert turns_of(begun, SPOKEN, OVER | {"usageMetadata": empty}) == [(1, 100)]


def test_counts_beside_a_function_call_belong_to_the_turn_that_calls():
    call = {"toolCall": {"functionCalls": [{"id": "1", "name": "look_up"}]}}

    messages = (
        SPOKEN,
        OVER | {"usageMetadata": counted(100)},
        call | {"usageMetadata": counted(200)},
    )

    assert turns_of(*messages) == [(1, 100), (2, 200)]


# --- What is counted


def test_response_and_candidates_in_one_message_are_one_thing():
    usage = told(
        {
            "promptTokenCount": 10,
            "responseTokenCount": 95,
            "candidatesTokenCount": 95,
            "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 95}],
            "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 95}],
            "totalTokenCount": 105,
        }
    )

    assert usage is not None
    assert usage.response_tokens == {"AUDIO": 95}


def test_a_bare_count_under_one_name_and_its_parts_under_the_other_are_one_thing():
    usage = told(
        {
            "responseTokenCount": 95,
            "candidatesTokensDetails": [
                {"modality": "AUDIO", "tokenCount": 90},
                {"modality": "TEXT", "tokenCount": 5},
            ],
        }
    )

    assert usage is not None
    assert usage.response_tokens == {"AUDIO": 90, "TEXT": 5}


def test_what_the_parts_leave_out_of_a_count_has_no_modality():
    usage = told(
        {
            "promptTokenCount": 100,
            "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 60}],
        }
    )

    assert usage is not None
    assert usage.prompt_tokens == {"AUDIO": 60, UNSPECIFIED: 40}


def test_what_tools_have_read_is_input():
    meter = meter_of(
        OVER
        | {
            "usageMetadata": {
                "promptTokenCount": 1_000_000,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 1_000_000}],
                "toolUsePromptTokenCount": 1_000_000,
                "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 1_000_000}],
                "totalTokenCount": 2_000_000,
            }
        }
    )

    assert meter.tokens()["prompt"] == {"AUDIO": 1_000_000, "TEXT": 1_000_000}
    assert cost(meter)["model_usd"] == pytest.approx(3.0 + 0.75)


@pytest.mark.parametrize("total", [140, 110, 0])
def test_thoughts_are_counted_whether_or_not_the_total_has_them(total):
    details = [{"modality": "AUDIO", "tokenCount": 100}]
    usage = {
        "promptTokenCount": 100,
        "promptTokensDetails": details,
        "responseTokenCount": 10,
        "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 10}],
        "thoughtsTokenCount": 30,
        "totalTokenCount": total,
    }

    meter = meter_of(OVER | {"usageMetadata": usage})

    assert meter.tokens()["other"] == 30
    assert cost(meter)["model_usd"] == "unknown"
    assert cost(meter)["known_usd"] == pytest.approx((100 * 3.0 + 10 * 12.0) / 1e6)


def test_a_total_of_all_four_kinds_leaves_nothing_but_the_thoughts():
    usage = {
        "promptTokenCount": 100,
        "toolUsePromptTokenCount": 50,
        "responseTokenCount": 20,
        "thoughtsTokenCount": 30,
        "totalTokenCount": 200,
    }

    assert meter_of(OVER | {"usageMetadata": usage}).tokens()["other"] == 30


def test_a_count_and_later_the_same_one_by_modality_are_counted_once():
    bare = {"usageMetadata": counted(100, 20)}
    parts = {
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 100}],
        "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 20}],
    }

    meter = meter_of(SPOKEN, bare, OVER | {"usageMetadata": counted(100, 20) | parts})

    assert meter.tokens() == {"prompt": {"AUDIO": 100}, "response": {"AUDIO": 20}, "other": 0}
    assert cost(meter)["model_usd"] != "unknown"


# --- What is no count


@pytest.mark.parametrize(
    "nonsense",
    [10**400, int("9" * 19), -5, 1.5, "12x", "-1", True, [], {}, "9" * 400, MAX_TOKENS + 1],
)
@pytest.mark.parametrize("field", ["promptTokenCount", "totalTokenCount", "thoughtsTokenCount"])
def test_what_cannot_be_a_count_makes_the_cost_unknown_and_nothing_else(nonsense, field):
    usage = counted(100, 20) | {field: nonsense}

    meter = meter_of(OVER | {"usageMetadata": usage})

    assert cost(meter)["model_usd"] == "unknown"
    assert cost(meter)["known_usd"] < 1.0
    assert meter.tokens()["response"] == {UNSPECIFIED: 20}


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_are_none_do_not_stop_the_reader(literal):
    message = json.dumps({"usageMetadata": counted(1, 20) | {"promptTokenCount": "?"}})

    events = GeminiProtocol().receive(message.replace('"?"', literal), 0.0)

    assert all(isinstance(event, Usage) and not event.complete for event in events)


@pytest.mark.parametrize(("given", "read"), [("12", 12), (12.0, 12), (None, 0), (0, 0), ("0", 0)])
def test_counts_may_be_text_and_may_be_left_out(given, read):
    usage = told({"promptTokenCount": given, "responseTokenCount": 1})

    assert usage is not None
    assert sum(usage.prompt_tokens.values()) == read
    assert usage.complete


def test_modalities_of_the_models_own_are_none():
    details = [{"modality": f"M{index}", "tokenCount": 1} for index in range(MAX_DETAILS)]
    usage = told({"promptTokensDetails": [*details, {"modality": "audio", "tokenCount": 1}]})

    assert usage is not None
    assert usage.prompt_tokens == {UNSPECIFIED: MAX_DETAILS}
    assert not usage.complete  # there was more than is looked at
