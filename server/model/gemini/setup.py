"""The first message of a Gemini Live connection: who the agent is, in the words the model takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from google.genai import types

from server.agent import phrases
from server.agent.agent import Agent
from server.agent.tool import names_parameters
from server.model import (
    PastTurn,
    spoken,
)
from server.model.gemini.dialects import Dialect, dialect_of

MAX_HISTORY_CHARACTERS = 16_000
"""What a fresh session is told of the conversation so far: about 4,000 tokens of text, half of
what the service keeps when it compresses the context."""
MAX_NAMES_LOGGED = 64
"""Unknown names logged by one session, so that a confused service cannot fill the disk."""

_GENERATION_FIELDS = (
    "responseModalities",
    "temperature",
    "topP",
    "topK",
    "maxOutputTokens",
    "mediaResolution",
    "seed",
    "speechConfig",
    "thinkingConfig",
    "enableAffectiveDialog",
    "translationConfig",
)
"""Fields of ``LiveConnectConfig`` that travel inside ``generationConfig``."""
_SETUP_FIELDS = (
    "realtimeInputConfig",
    "sessionResumption",
    "contextWindowCompression",
    "inputAudioTranscription",
    "outputAudioTranscription",
    "proactivity",
    "historyConfig",
    "avatarConfig",
    "safetySettings",
    "labels",
)
"""Fields that stand directly in ``setup``; the instruction and the tools are converted first."""


_VERTEX_FIELDS = (*(name for name in _SETUP_FIELDS if name != "labels"), "explicitVadSignal")
"""On Vertex AI."""

for _type in (
    types.LiveConnectConfig,
    types.FunctionDeclaration,
    types.Tool,
    types.SpeechConfig,
    types.VoiceConfig,
    types.PrebuiltVoiceConfig,
    types.HistoryConfig,
):
    _type.model_rebuild()  # or the first session that has one makes it, and holds up all calls

# Made once, and never changed: each of them is validated when it is made.
_DEFAULTS: Mapping[str, Any] = {
    "realtime_input_config": types.RealtimeInputConfig(
        automatic_activity_detection=types.AutomaticActivityDetection(
            # A telephone carries the other end's noise and our own echo: start is not
            # hair-triggered.
            start_of_speech_sensitivity=types.StartSensitivity.START_SENSITIVITY_LOW,
            end_of_speech_sensitivity=types.EndSensitivity.END_SENSITIVITY_LOW,
            prefix_padding_ms=20,
            # The quickest value of the recommended 500-800 ms; below it sentences are cut in two.
            silence_duration_ms=500,
        ),
        turn_coverage=types.TurnCoverage.TURN_INCLUDES_ONLY_ACTIVITY,
    ),
    # Every turn bills the whole window again, and the service's own trigger (80 % of it) is
    # never reached in a call: these cap the cost, and lift the 15 minute limit of a session.
    "context_window_compression": types.ContextWindowCompressionConfig(
        trigger_tokens=25_000, sliding_window=types.SlidingWindow(target_tokens=8_000)
    ),
    "session_resumption": types.SessionResumptionConfig(),
    "input_audio_transcription": types.AudioTranscriptionConfig(),
    "output_audio_transcription": types.AudioTranscriptionConfig(),
}


def agent_config(
    agent: Agent, base: types.LiveConnectConfig | None = None
) -> types.LiveConnectConfig:
    """Describe an agent in the API's own vocabulary, with the defaults a telephone call wants.

    Args:
        agent: Who answers the phone.
        base: Settings for every session (tools, temperature …); what the agent says goes over
            it, and what it leaves out gets our default.

    Returns:
        A new configuration; ``base`` is not changed.
    """
    fields = dict(_DEFAULTS)
    if base is not None:
        fields |= {name: getattr(base, name) for name in base.model_fields_set}

    if agent.tools:
        declared = [
            types.FunctionDeclaration(
                name=tool.name,
                description=tool.told,
                # Without arguments that have names there is no schema: an empty object is
                # refused, and with it every call of the agent.
                parameters_json_schema=tool.parameters
                if names_parameters(tool.parameters)
                else None,
            )
            for tool in agent.tools
        ]
        fields["tools"] = [
            *(fields.get("tools") or ()),
            types.Tool(function_declarations=declared),
        ]
    instruction = agent.prompt
    if agent.language is not None:
        # These models ignore speechConfig.languageCode; the guide's own wording steers them.
        instruction += (
            f"\n\nRESPOND IN {agent.language} (a BCP 47 language tag). "
            f"YOU MUST RESPOND UNMISTAKABLY IN {agent.language}."
        )
        heard: types.AudioTranscriptionConfig = fields["input_audio_transcription"]
        if not heard.language_codes:
            fields["input_audio_transcription"] = heard.model_copy(
                update={"language_codes": [agent.language]}
            )
    fields["system_instruction"] = instruction
    if agent.voice is not None:
        fields["speech_config"] = types.SpeechConfig(
            voice_config=types.VoiceConfig(
                prebuilt_voice_config=types.PrebuiltVoiceConfig(voice_name=agent.voice)
            )
        )
    return types.LiveConnectConfig(**fields)


def told_turns(config: types.LiveConnectConfig) -> types.LiveConnectConfig:
    """Describe the same session, but that it is told where the caller's turns begin and end."""
    told = types.AutomaticActivityDetection(disabled=True)
    realtime = config.realtime_input_config or types.RealtimeInputConfig()
    realtime = realtime.model_copy(update={"automatic_activity_detection": told})
    return config.model_copy(update={"realtime_input_config": realtime})


def recent_history(history: Sequence[PastTurn]) -> tuple[PastTurn, ...]:
    """Take the newest turns of a conversation, as many as a new session shall be told."""
    room = MAX_HISTORY_CHARACTERS
    kept: deque[PastTurn] = deque()
    for turn in reversed(history):
        room -= len(turn.text)
        if room < 0:
            break
        kept.appendleft(turn)
    return tuple(kept)


def resumed_config(
    config: types.LiveConnectConfig,
    dialect: Dialect,
    *,
    handle: str | None,
    history: Sequence[PastTurn],
) -> types.LiveConnectConfig:
    """Describe a session that goes on with a conversation instead of beginning one.

    Args:
        config: What a new session would be.
        dialect: The model's.
        handle: What the service knows the session by; it remembers the conversation itself.
        history: What has been said, to tell a session that is not resumed; empty for none.
    """
    if handle is not None:
        # Never both: a history on top of a valid handle closes the session with 1007.
        resumption = types.SessionResumptionConfig(handle=handle)
        return config.model_copy(update={"session_resumption": resumption})
    if not history:
        return config
    if dialect.history_by == "clientContent":
        seeded = types.HistoryConfig(initial_history_in_client_content=True)
        return config.model_copy(update={"history_config": seeded})
    instruction = f"{config.system_instruction}\n\n{phrases.under_way(spoken(history))}"
    return config.model_copy(update={"system_instruction": instruction})


def setup_message(
    model: str, config: types.LiveConnectConfig, dialect: Dialect | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write the first message of a session, without anything this model would refuse.

    Args:
        model: The model's name; ``models/`` is put before a bare one.
        config: What the session shall be, as one would give it to the official SDK.
        dialect: The model's; None for that of its name at the Developer API.

    Returns:
        The message in pure camelCase, and the names of the settings that were left out.

    Raises:
        TypeError: ``config.tools`` holds something that is not a ``types.Tool`` (a plain
            function or an MCP session): only the SDK's own session can run those.
    """
    dialect = dialect or dialect_of(model)
    dropped: list[str] = []
    given = config.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude={"tools", "http_options"}
    )

    generation: dict[str, Any] = given.pop("generationConfig", {})
    generation |= {name: given.pop(name) for name in _GENERATION_FIELDS if name in given}
    if generation.get("responseModalities", ["AUDIO"]) != ["AUDIO"]:
        dropped.append("responseModalities")
    generation["responseModalities"] = ["AUDIO"]
    thinking = _thinking(dialect, generation.pop("thinkingConfig", {}), dropped)
    if thinking:
        generation["thinkingConfig"] = thinking
    if "enableAffectiveDialog" in generation and not dialect.affective_dialog:
        del generation["enableAffectiveDialog"]
        dropped.append("enableAffectiveDialog")
    speech = generation.get("speechConfig", {})
    for name in ("languageCode", "multiSpeakerVoiceConfig"):  # native audio has neither
        if speech.pop(name, None) is not None:
            dropped.append(f"speechConfig.{name}")

    setup: dict[str, Any] = {
        "model": model if "/" in model else f"models/{model}",
        "generationConfig": generation,
    }
    if "systemInstruction" in given:
        setup["systemInstruction"] = _content(given.pop("systemInstruction"))
    if config.tools:
        setup["tools"] = [_tool(dialect, tool, dropped) for tool in config.tools]
    fields = _VERTEX_FIELDS if dialect.has_vertex_fields else _SETUP_FIELDS
    setup |= {name: given.pop(name) for name in fields if name in given}
    dropped += given  # whatever has no place in this API, such as Vertex's explicitVadSignal

    if "proactivity" in setup and not dialect.proactivity:
        del setup["proactivity"]
        dropped.append("proactivity")
    if setup.get("sessionResumption", {}).pop("transparent", None) is not None:  # Vertex only
        dropped.append("sessionResumption.transparent")
    if not dialect.transcription_options:
        for name in ("inputAudioTranscription", "outputAudioTranscription"):
            if setup.get(name):
                dropped += [f"{name}.{option}" for option in setup[name]]
                setup[name] = {}
    return {"setup": setup}, tuple(dropped)


def _thinking(dialect: Dialect, given: Mapping[str, Any], dropped: list[str]) -> dict[str, object]:
    thinking: dict[str, object] = dict(dialect.default_thinking or {})
    for name, value in given.items():
        allowed = name in dialect.thinking_fields
        if name == "thinkingLevel":
            allowed = value in dialect.thinking_levels
        if allowed:
            thinking[name] = value
        else:
            dropped.append(f"thinkingConfig.{name}")
    return thinking


def _content(instruction: Any) -> dict[str, Any]:
    """Give any of the forms the SDK accepts for an instruction the one form of the wire."""
    if isinstance(instruction, dict) and "parts" in instruction:
        return instruction
    parts = instruction if isinstance(instruction, list) else [instruction]
    return {"parts": [{"text": part} if isinstance(part, str) else part for part in parts]}


def _tool(dialect: Dialect, tool: object, dropped: list[str]) -> dict[str, Any]:
    if isinstance(tool, dict):
        tool = types.Tool.model_validate(tool)
    if not isinstance(tool, types.Tool):
        raise TypeError(f"a tool must be a types.Tool, not {type(tool).__name__}")
    written: dict[str, Any] = tool.model_dump(mode="json", by_alias=True, exclude_none=True)
    for function in written.get("functionDeclarations", ()):
        behavior = function.setdefault("behavior", dialect.default_tool_behavior)
        if behavior not in dialect.tool_behaviors:
            del function["behavior"]
            if behavior is not None:
                dropped.append("behavior")
        # Google's Schema is a subset; parametersJsonSchema is the field for the whole language.
        if _remove_key(function.get("parameters"), "additionalProperties"):
            dropped.append("additionalProperties")
    return written


def _remove_key(schema: object, name: str) -> bool:
    """Delete a keyword from a schema at any depth, but never a property that has its name."""
    if not isinstance(schema, dict):
        return False
    removed = schema.pop(name, None) is not None
    inner: list[object] = [schema.get("items"), *schema.get("anyOf", ())]
    inner += [*schema.get("properties", {}).values(), *schema.get("defs", {}).values()]
    for part in inner:
        removed |= _remove_key(part, name)
    return removed
