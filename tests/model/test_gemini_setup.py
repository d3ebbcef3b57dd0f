"""Gemini's dialects and set-up message, without a socket or an event loop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import _common, _live_converters, types

from server.agent.agent import Agent
from server.agent.builtin import hang_up, transfer_tool
from server.model.gemini.dialects import dialect_of
from server.model.gemini.setup import agent_config, setup_message
from tests.support.processes import printed_by

MODELS = (
    "gemini-3.8-live",
    "gemini-3.8-live-extended-thinking",
    "gemini-3.1-flash-live-preview",
    "gemini-2.5-flash-native-audio-preview-12-2025",
)


# --- Dialects
@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gemini-3.8-live", "gemini-3.8-live"),
        ("models/gemini-3.8-live", "gemini-3.8-live"),
        ("gemini-3.8-live-extended-thinking", "gemini-3.8-live-extended-thinking"),
        ("gemini-3.1-flash-live-preview", "gemini-3.1-flash-live"),
        ("gemini-2.5-flash-native-audio-preview-12-2025", "gemini-2.5-flash-native-audio"),
        (
            "projects/p/locations/l/publishers/google/models/gemini-live-2.5-flash-native-audio",
            "gemini-2.5-flash-native-audio",
        ),
    ],
)
def test_a_model_speaks_the_dialect_of_its_family(model: str, family: str) -> None:
    assert dialect_of(model).name == family


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gemini-3.9-live", "gemini-3.8-live"),
        ("gemini-3.9-live-extended-thinking", "gemini-3.8-live-extended-thinking"),
        ("gemini-3.1-pro-live", "gemini-3.1-flash-live"),
        ("gemini-2.5-pro-live", "gemini-2.5-flash-native-audio"),
        ("somebody-elses-model", "gemini-3.8-live"),
    ],
)
def test_an_unknown_model_gets_the_nearest_family_and_one_warning(
    model: str, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dialect_of.cache_clear()

    first, second = dialect_of(model), dialect_of(model)

    assert first.name == second.name == family
    assert capsys.readouterr().out.count("unknown model") == 1


# --- Set-up
def full_config() -> types.LiveConnectConfig:
    """Ask for everything that some model refuses."""
    return types.LiveConnectConfig(
        response_modalities=[types.Modality.TEXT],
        temperature=0.7,
        top_p=0.9,
        max_output_tokens=800,
        seed=7,
        speech_config=types.SpeechConfig(language_code="en-US"),
        thinking_config=types.ThinkingConfig(
            thinking_level=types.ThinkingLevel.MINIMAL, thinking_budget=100
        ),
        enable_affective_dialog=True,
        proactivity=types.ProactivityConfig(proactive_audio=True),
        input_audio_transcription=types.AudioTranscriptionConfig(custom_vocabulary=["Offhook"]),
        session_resumption=types.SessionResumptionConfig(handle="h1", transparent=True),
        explicit_vad_signal=True,
        labels={"cost_centre": "a"},
        tools=[
            types.Tool(
                function_declarations=[
                    types.FunctionDeclaration(
                        name="hang_up",
                        description="End the call.",
                        behavior=types.Behavior.BLOCKING,
                        parameters_json_schema={
                            "type": "object",
                            "properties": {"the_reason": {"type": "string"}},
                            "additionalProperties": False,
                        },
                    ),
                    types.FunctionDeclaration(
                        name="look_up",
                        parameters=types.Schema(
                            type=types.Type.OBJECT,
                            additional_properties=False,
                            properties={
                                "additionalProperties": types.Schema(
                                    type=types.Type.OBJECT, additional_properties=False
                                )
                            },
                        ),
                    ),
                ]
            ),
            types.Tool(google_search=types.GoogleSearch()),
        ],
    )


def test_the_set_up_of_a_plain_agent() -> None:
    agent = Agent(prompt="Be brief.", voice="Kore", language="es-VE")

    message, dropped = setup_message("gemini-3.8-live", agent_config(agent))

    assert dropped == ()
    instruction = message["setup"].pop("systemInstruction")
    assert message == {
        "setup": {
            "model": "models/gemini-3.8-live",
            "generationConfig": {
                "responseModalities": ["AUDIO"],
                "speechConfig": {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": "Kore"}}},
            },
            "realtimeInputConfig": {
                "automaticActivityDetection": {
                    "startOfSpeechSensitivity": "START_SENSITIVITY_LOW",
                    "endOfSpeechSensitivity": "END_SENSITIVITY_LOW",
                    "prefixPaddingMs": 20,
                    "silenceDurationMs": 500,
                },
                "turnCoverage": "TURN_INCLUDES_ONLY_ACTIVITY",
            },
            "sessionResumption": {},
            "contextWindowCompression": {
                "triggerTokens": 25_000,
                "slidingWindow": {"targetTokens": 8_000},
            },
            "inputAudioTranscription": {"languageCodes": ["es-VE"]},
            "outputAudioTranscription": {},
        }
    }
    (part,) = instruction["parts"]
    assert part["text"].startswith("Be brief.")
    assert "UNMISTAKABLY IN es-VE" in part["text"]


@pytest.mark.parametrize(
    ("model", "thinking", "behaviors", "refused"),
    [
        (
            "gemini-3.8-live",
            None,
            ["BLOCKING", "BLOCKING"],
            {"thinkingConfig.thinkingLevel", "thinkingConfig.thinkingBudget"}
            | {"proactivity", "enableAffectiveDialog"},
        ),
        (
            "gemini-3.8-live-extended-thinking",
            {"thinkingLevel": "LOW"},
            [None, None],
            {"thinkingConfig.thinkingLevel", "thinkingConfig.thinkingBudget"}
            | {"proactivity", "enableAffectiveDialog", "behavior"},
        ),
        (
            "gemini-3.1-flash-live-preview",
            {"thinkingLevel": "MINIMAL"},
            [None, None],
            {"thinkingConfig.thinkingBudget", "proactivity", "enableAffectiveDialog"}
            | {"behavior", "inputAudioTranscription.customVocabulary"},
        ),
        (
            "gemini-2.5-flash-native-audio-preview-12-2025",
            {"thinkingBudget": 100},
            ["BLOCKING", None],
            {"thinkingConfig.thinkingLevel", "inputAudioTranscription.customVocabulary"},
        ),
    ],
)
def test_each_model_is_spared_what_it_refuses(
    model: str, thinking: object, behaviors: list[str | None], refused: set[str]
) -> None:
    message, dropped = setup_message(model, full_config())

    setup = message["setup"]
    functions = setup["tools"][0]["functionDeclarations"]
    assert setup["generationConfig"].get("thinkingConfig") == thinking
    assert [function.get("behavior") for function in functions] == behaviors
    assert set(dropped) == refused | {
        "responseModalities",
        "speechConfig.languageCode",
        "sessionResumption.transparent",
        "explicitVadSignal",
        "additionalProperties",
    }
    assert setup["generationConfig"]["responseModalities"] == ["AUDIO"]
    assert setup["sessionResumption"] == {"handle": "h1"}
    assert setup["labels"] == {"cost_centre": "a"}


def test_additional_properties_are_taken_out_of_googles_schema_only() -> None:
    message, _ = setup_message("gemini-3.8-live", full_config())

    hang_up, look_up = message["setup"]["tools"][0]["functionDeclarations"]
    # JSON Schema knows the keyword, and a property may well be called like it.
    assert hang_up["parametersJsonSchema"]["additionalProperties"] is False
    assert look_up["parameters"] == {
        "type": "OBJECT",
        "properties": {"additionalProperties": {"type": "OBJECT"}},
    }


def test_extended_thinking_is_given_the_level_it_requires() -> None:
    message, _ = setup_message("gemini-3.8-live-extended-thinking", agent_config(Agent()))

    assert message["setup"]["generationConfig"]["thinkingConfig"] == {"thinkingLevel": "LOW"}


def test_settings_for_all_sessions_lie_under_the_agents_own() -> None:
    base = types.LiveConnectConfig(
        temperature=0.2,
        system_instruction="Nobody in particular.",
        session_resumption=types.SessionResumptionConfig(handle="h1"),
    )

    message, _ = setup_message("gemini-3.8-live", agent_config(Agent(prompt="You are Ann."), base))

    setup = message["setup"]
    assert setup["generationConfig"]["temperature"] == 0.2
    assert setup["systemInstruction"] == {"parts": [{"text": "You are Ann."}]}
    assert setup["sessionResumption"] == {"handle": "h1"}
    assert base.system_instruction == "Nobody in particular."


def test_an_agents_tools_are_declared_beside_those_for_every_session():
    base = types.LiveConnectConfig(tools=[types.Tool(google_search=types.GoogleSearch())])
    agent = Agent(tools=(hang_up, transfer_tool({"sales": "+15005550123"})))
    message, dropped = setup_message("gemini-3.8-live", agent_config(agent, base))

    search, ours = message["setup"]["tools"]
    assert search == {"googleSearch": {}}
    first, second = ours["functionDeclarations"]
    # An object without properties is refused, so a function without arguments has no schema.
    assert first == {"name": "hang_up", "description": hang_up.description, "behavior": "BLOCKING"}
    assert second["parametersJsonSchema"]["properties"]["destination"]["enum"] == ["sales"]
    assert second["behavior"] == "BLOCKING"
    assert dropped == ()


@pytest.mark.parametrize(
    ("model", "behavior"),
    [
        ("gemini-3.8-live", "BLOCKING"),
        ("gemini-3.8-live-extended-thinking", None),
        ("gemini-3.1-flash-live-preview", None),
        ("gemini-2.5-flash-native-audio-latest", None),
    ],
)
def test_tools_block_where_that_has_to_be_said(model, behavior):
    message, _ = setup_message(model, agent_config(Agent(tools=(hang_up,))))

    (declared,) = message["setup"]["tools"][0]["functionDeclarations"]
    assert declared.get("behavior") == behavior


def test_a_plain_function_is_no_tool_here() -> None:
    def look_up(name: str) -> str:
        """Look a name up."""
        return name

    config = types.LiveConnectConfig(tools=[look_up])

    with pytest.raises(TypeError, match=r"types\.Tool"):
        setup_message("gemini-3.8-live", config)


def official(model: str, config: types.LiveConnectConfig) -> Any:
    """Convert with the official SDK, then spell everything in camelCase."""
    client = genai.Client(api_key="a-key")
    parameters = types.LiveConnectParameters(model=f"models/{model}", config=config)
    request = _common.convert_to_dict(
        _live_converters._LiveConnectParameters_to_mldev(
            client._api_client, parameters.model_dump(exclude_none=True)
        )
    )
    del request["config"]
    return camel(_common.encode_unserializable_types(request))


def camel(value: Any) -> Any:
    """Spell the names of a set-up in camelCase, but not those inside a user's own schema."""
    if isinstance(value, list):
        return [camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    spelled: dict[str, Any] = {}
    for name, inner in value.items():
        name = re.sub("_([a-z])", lambda found: found[1].upper(), name)
        spelled[name] = inner if name in ("parametersJsonSchema", "labels") else camel(inner)
    return spelled


@pytest.mark.parametrize("model", MODELS)
def test_the_set_up_is_the_official_sdks_own_where_nothing_is_refused(model: str) -> None:
    dialect = dialect_of(model)
    agent = Agent(prompt="Be brief.", voice="Kore")
    function = types.FunctionDeclaration(
        name="hang_up",
        parameters_json_schema={"type": "object", "properties": {"why_not": {"type": "string"}}},
    )
    if dialect.default_tool_behavior is not None:
        function.behavior = types.Behavior(dialect.default_tool_behavior)
    base = types.LiveConnectConfig(
        response_modalities=[types.Modality.AUDIO],
        temperature=0.7,
        top_k=40,
        media_resolution=types.MediaResolution.MEDIA_RESOLUTION_LOW,
        history_config=types.HistoryConfig(initial_history_in_client_content=True),
        tools=[types.Tool(function_declarations=[function])],
    )
    if dialect.default_thinking is not None:
        base.thinking_config = types.ThinkingConfig.model_validate(dialect.default_thinking)
    config = agent_config(agent, base)

    message, dropped = setup_message(model, config)

    expected = official(model, config)
    assert dropped == ()
    message["setup"]["systemInstruction"]["role"] = "user"  # what the SDK adds, needlessly
    assert message == expected


FIRST_SESSION = """
from google.genai import types
from server.agent.agent import Agent
from server.agent.builtin import hang_up
from server.model import PastTurn
from server.model.gemini.dialects import dialect_of
from server.model.gemini import setup

def made():
    return {name for name, each in vars(types).items() if getattr(each, "__pydantic_complete__", 0)}

before = made()
agent = Agent(voice="Kore", language="es-VE", tools=(hang_up,))
for model in ("gemini-3.8-live", "gemini-2.5-flash-native-audio-preview-12-2025"):
    dialect = dialect_of(model)
    config = setup.told_turns(setup.agent_config(agent))
    for handle, history in ((None, ()), ("h", ()), (None, (PastTurn("agent", "Hello"),))):
        resumed = setup.resumed_config(config, dialect, handle=handle, history=history)
        setup.setup_message(model, resumed, dialect)
print(*sorted(made() - before))
"""


def test_no_session_waits_until_the_sdk_has_made_its_types(tmp_path: Path) -> None:
    assert printed_by(FIRST_SESSION, tmp_path).split() == []
