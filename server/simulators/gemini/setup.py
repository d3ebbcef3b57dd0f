"""Which set-ups a model accepts, and with which words the service refuses the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from server.simulators.gemini.schema import ServiceClosesError, unknown_name

Family = Literal["3.8", "3.8-thinking", "3.1", "2.5"]

_FAMILIES: tuple[tuple[str, Family], ...] = (
    (r"gemini-3\.8-live", "3.8"),
    (r"gemini-3\.8-live-extended-thinking", "3.8-thinking"),
    (r"gemini-3\.1-flash-live-preview", "3.1"),
    (r"gemini-2\.5-flash-native-audio-(latest|preview-\d\d-\d{4})", "2.5"),
)


_VOICES = frozenset(
    (
        "Zephyr Puck Charon Kore Fenrir Leda Orus Aoede Callirrhoe Autonoe Enceladus Iapetus "
        "Umbriel Algieba Despina Erinome Algenib Rasalgethi Laomedeia Achernar Alnilam Schedar "
        "Gacrux Pulcherrima Achird Zubenelgenubi Vindemiatrix Sadachbia Sadaltager Sulafat"
    )
    .lower()
    .split()
)


def check_setup(setup: Mapping[str, Any]) -> Family:
    """Check a set-up, already in camelCase, against what its model accepts.

    Returns:
        The family of the model.

    Raises:
        ServiceClosesError: Google would close with this code and reason.
    """
    model = setup.get("model", "")
    name = model.removeprefix("models/")
    family = next((family for pattern, family in _FAMILIES if re.fullmatch(pattern, name)), None)
    if family is None or not model.startswith("models/"):
        raise ServiceClosesError(
            1008,
            f"{model} is not found for API version v1beta, or is not supported for "
            "bidiGenerateContent.",
        )
    if "explicitVadSignal" in setup:
        raise unknown_name("explicitVadSignal", "setup")
    generation = setup.get("generationConfig", {})
    if [mode.upper() for mode in generation.get("responseModalities", ["AUDIO"])] != ["AUDIO"]:
        raise ServiceClosesError(
            1007, f"The requested combination of response modalities is not supported. {model}"
        )
    voice_config = generation.get("speechConfig", {}).get("voiceConfig", {})
    voice = voice_config.get("prebuiltVoiceConfig", {}).get("voiceName", "Puck")
    if voice.lower() not in _VOICES:
        raise ServiceClosesError(
            1007, f"Requested voice api_name '{voice}' is not available for model {model}"
        )
    if family != "2.5":
        if "proactivity" in setup:
            raise unknown_name("proactivity", "setup")
        if "enableAffectiveDialog" in generation:
            raise unknown_name("enable_affective_dialog", "setup.generation_config")
    _check_thinking(family, generation.get("thinkingConfig"))
    for tool in setup.get("tools", ()):
        for function in tool.get("functionDeclarations", ()):
            _check_function(family, function)
    return family


def _check_thinking(family: Family, thinking: Mapping[str, Any] | None) -> None:
    level = (thinking or {}).get("thinkingLevel", "").upper()
    if family == "3.8" and thinking is not None:
        raise ServiceClosesError(1007, "Thinking level is not supported for this model.")
    if family == "3.8-thinking" and not level:
        raise ServiceClosesError(1007, "Thinking level must be specified for this model.")
    if family == "3.8-thinking" and level == "MINIMAL":
        raise ServiceClosesError(1007, "Thinking level MINIMAL is not supported for this model.")
    if family == "2.5" and level:
        raise ServiceClosesError(1007, "Thinking level is not supported for this model.")
    if family != "2.5" and "thinkingBudget" in (thinking or {}):
        raise ServiceClosesError(1007, "Thinking budget is not supported for this model.")


def _check_function(family: Family, function: Mapping[str, Any]) -> None:
    name = function.get("name", "")
    if not re.fullmatch(r"[A-Za-z_.:-][A-Za-z0-9_.:-]{0,127}", name):
        raise ServiceClosesError(1007, f"Invalid function name {name!r}.")
    behavior = function.get("behavior", "").upper()
    if family == "3.8-thinking" and behavior == "BLOCKING":
        raise ServiceClosesError(1007, "Blocking function calls are not supported for this model.")
    if family == "3.1" and behavior == "NON_BLOCKING":
        raise ServiceClosesError(1007, "Asynchronous function calls are not supported.")
