"""What a client's message may contain, checked the way the service checks proto JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from websockets.frames import Close


class ServiceClosesError(Exception):
    """The service closes the connection: a message it refuses, or a fault of the script.

    Attributes:
        close: The close frame; code 1006 for a connection that is cut without one.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        # A close frame has room for 123 bytes; Google's reasons are cut there, too.
        self.close = Close(code, reason.encode()[:123].decode("utf-8", "ignore"))


@dataclass(frozen=True, slots=True)
class _Map:
    """An object with any names, whose values are all alike."""

    values: Any


_ANY = object()
_ENUM = str
_NUMBER = (int, float)
_COUNT = (int, str)  # an int64 may be a string in JSON
_SCHEMA: dict[str, Any] = {
    "type": _ENUM,
    "format": str,
    "title": str,
    "description": str,
    "nullable": bool,
    "enum": [str],
    "maxItems": _COUNT,
    "minItems": _COUNT,
    "required": [str],
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "pattern": str,
    "example": _ANY,
    "propertyOrdering": [str],
    "default": _ANY,
    "minimum": _NUMBER,
    "maximum": _NUMBER,
}
_SCHEMA |= {"ref": str, "defs": _Map(_SCHEMA)}
_SCHEMA |= {"items": _SCHEMA, "anyOf": [_SCHEMA], "properties": _Map(_SCHEMA)}
_OTHER_PARTS = (
    *("audioMetadata", "audioTranscription", "codeExecutionResult", "documentMetadata"),
    *("executableCode", "fileData", "functionCall", "functionResponse", "mediaProcessing"),
    *("mediaResolution", "partMetadata", "speechMetadata", "spreadsheetMetadata", "thought"),
    *("thoughtSignature", "toolCall", "toolResponse", "videoMetadata"),
)
_PART = {"text": str, "inlineData": {"mimeType": str, "data": str, "displayName": str}}
_CONTENT = {"role": str, "parts": [_PART | dict.fromkeys(_OTHER_PARTS, _ANY)]}
_TRANSCRIPTION = {
    "languageCodes": [str],
    "languageHints": {"languageCodes": [str]},
    "languageAuto": {},
    "customVocabulary": [str],
    "adaptationPhrases": [str],
    "wordTimestamp": bool,
    "diarization": bool,
    "mode": _ENUM,
    "sourceText": str,
}
_OTHER_TOOLS = (
    *("retrieval", "computerUse", "fileSearch", "googleMaps", "enterpriseWebSearch"),
    *("googleSearchRetrieval", "parallelAiSearch", "mcpServers", "exaAiSearch"),
)
_OTHER_GENERATION = (
    "responseJsonSchema",
    "responseFormat",
    "routingConfig",
    "modelSelectionConfig",
)
_BLOB = {"mimeType": str, "data": str}
_SETUP: dict[str, Any] = {
    "model": str,
    "generationConfig": {
        "responseModalities": [_ENUM],
        "temperature": _NUMBER,
        "topP": _NUMBER,
        "topK": _NUMBER,
        "maxOutputTokens": int,
        "mediaResolution": _ENUM,
        "seed": int,
        "candidateCount": int,
        "presencePenalty": _NUMBER,
        "frequencyPenalty": _NUMBER,
        "speechConfig": {
            "voiceConfig": {
                "prebuiltVoiceConfig": {"voiceName": str},
                "replicatedVoiceConfig": _ANY,
                "voice": str,
            },
            "languageCode": str,
        },
        "thinkingConfig": {"thinkingLevel": _ENUM, "thinkingBudget": int, "includeThoughts": bool},
        "enableAffectiveDialog": bool,
        "translationConfig": {"echoTargetLanguage": bool, "targetLanguageCode": str},
        "audioTranscriptionConfig": _TRANSCRIPTION,
        "stopSequences": [str],
        "responseMimeType": str,
        "responseSchema": _SCHEMA,
        "responseLogprobs": bool,
        "logprobs": int,
        "audioTimestamp": bool,
        "enableEnhancedCivicAnswers": bool,
    }
    | dict.fromkeys(_OTHER_GENERATION, _ANY),
    "systemInstruction": _CONTENT,
    "tools": [
        {
            "functionDeclarations": [
                {
                    "name": str,
                    "description": str,
                    "behavior": _ENUM,
                    "parameters": _SCHEMA,
                    "parametersJsonSchema": _ANY,
                    "response": _SCHEMA,
                    "responseJsonSchema": _ANY,
                }
            ],
            "googleSearch": _ANY,
            "urlContext": {},
            "codeExecution": {},
        }
        | dict.fromkeys(_OTHER_TOOLS, _ANY)
    ],
    "realtimeInputConfig": {
        "automaticActivityDetection": {
            "disabled": bool,
            "startOfSpeechSensitivity": _ENUM,
            "endOfSpeechSensitivity": _ENUM,
            "prefixPaddingMs": int,
            "silenceDurationMs": int,
        },
        "activityHandling": _ENUM,
        "turnCoverage": _ENUM,
        "interimTranscriptTimestampEnabled": bool,
    },
    "sessionResumption": {"handle": str},
    "contextWindowCompression": {
        "triggerTokens": _COUNT,
        "slidingWindow": {"targetTokens": _COUNT},
    },
    "inputAudioTranscription": _TRANSCRIPTION,
    "outputAudioTranscription": _TRANSCRIPTION,
    "proactivity": {"proactiveAudio": bool, "proactiveVideo": bool},
    "historyConfig": {"initialHistoryInClientContent": bool},
    "explicitVadSignal": bool,  # on Vertex AI only
    "safetySettings": [{"category": _ENUM, "threshold": _ENUM, "method": _ENUM}],
    "avatarConfig": {
        "avatarName": str,
        "customizedAvatar": _ANY,
        "audioBitrateBps": int,
        "videoBitrateBps": int,
    },
    "labels": _Map(str),
}
_CLIENT_MESSAGE: dict[str, Any] = {
    "setup": _SETUP,
    "clientContent": {"turns": [_CONTENT], "turnComplete": bool},
    "realtimeInput": {
        "audio": _BLOB,
        "video": _BLOB,
        "mediaChunks": [_BLOB],
        "text": str,
        "audioStreamEnd": bool,
        "activityStart": {},
        "activityEnd": {},
    },
    "toolResponse": {
        "functionResponses": [
            {
                "id": str,
                "name": str,
                "response": _ANY,
                "scheduling": _ENUM,
                "willContinue": bool,
                "parts": _ANY,
            }
        ]
    },
    "contextUpdate": {"systemInstruction": _CONTENT, "tools": _ANY},
}
_ENUM_VALUES = {
    "responseModalities": {"TEXT", "AUDIO", "IMAGE"},
    "startOfSpeechSensitivity": {"START_SENSITIVITY_HIGH", "START_SENSITIVITY_LOW"},
    "endOfSpeechSensitivity": {"END_SENSITIVITY_HIGH", "END_SENSITIVITY_LOW"},
    "activityHandling": {"START_OF_ACTIVITY_INTERRUPTS", "NO_INTERRUPTION"},
    "turnCoverage": {
        "TURN_INCLUDES_ONLY_ACTIVITY",
        "TURN_INCLUDES_ALL_INPUT",
        "TURN_INCLUDES_AUDIO_ACTIVITY_AND_ALL_VIDEO",
    },
    "behavior": {"BLOCKING", "NON_BLOCKING"},
    "thinkingLevel": {"MINIMAL", "LOW", "MEDIUM", "HIGH"},
    "scheduling": {"SILENT", "WHEN_IDLE", "INTERRUPT"},
}


def read_client_message(data: bytes) -> dict[str, Any]:
    """Check a client's message the way proto JSON is checked, and spell it in camelCase.

    Raises:
        ServiceClosesError: It is not JSON, or a name or a type in it is not in the API.
    """
    try:
        message = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ServiceClosesError(1007, "Request contains an invalid argument.") from None
    checked: dict[str, Any] = _check(message, _CLIENT_MESSAGE, "")
    if len(checked) > 1:
        raise ServiceClosesError(1007, "Invalid JSON payload: oneof field 'message_type' is set.")
    return checked


def _check(value: Any, expected: Any, path: str) -> Any:
    if expected is _ANY:
        return value
    if isinstance(expected, dict | _Map):
        if not isinstance(value, dict):
            raise _invalid(path, value)
        if isinstance(expected, _Map):
            return {
                name: _check(inner, expected.values, f"{path}.{name}")
                for name, inner in value.items()
            }
        checked: dict[str, Any] = {}
        for name, inner in value.items():
            if inner is None:  # null is "not set" in proto JSON
                continue
            camel = _camel(name)
            if camel not in expected:
                raise unknown_name(name, path)
            checked[camel] = _check(inner, expected[camel], f"{path}.{_snake(name)}".lstrip("."))
        return checked
    if isinstance(expected, list):
        if not isinstance(value, list):
            raise _invalid(path, value)
        return [_check(one, expected[0], f"{path}[{index}]") for index, one in enumerate(value)]
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise _invalid(path, value)
    values = _ENUM_VALUES.get(_camel(path.rpartition(".")[2].partition("[")[0]))
    if values is not None and value.upper() not in values:
        raise _invalid(path, value)
    return value


def unknown_name(name: str, path: str) -> ServiceClosesError:
    """What the service says of a name that is not in the API, or not for the model."""
    where = f" at '{path}'" if path else ""
    return ServiceClosesError(
        1007, f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'
    )


def _invalid(path: str, value: object) -> ServiceClosesError:
    return ServiceClosesError(1007, f"Invalid value at '{path}' ({type(value).__name__})")


@lru_cache(1_000)
def _camel(name: str) -> str:
    return re.sub("_([a-z0-9])", lambda found: found[1].upper(), name)


@lru_cache(1_000)
def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda found: "_" + found[0].lower(), name)
