"""A small Gemini Live: the real wire protocol, over a loopback socket or in memory.

It refuses the set-ups that Google refuses, greets, hears where a caller's turn ends, and says each
turn back in a voice half as high again, faster than real time, until the caller interrupts. A
``Script`` makes it misbehave on purpose. Everything runs on trio's clock, and a chunk of audio
costs it microseconds, so that an hour's call on a mock clock takes seconds.

Top to bottom: scripts, what a set-up may contain, the agent's voice, hearing the caller, one
session, and the server.
"""

from __future__ import annotations

import binascii
import hmac
import logging
import re
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.resources import files
from itertools import cycle
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec
import trio
from websockets.datastructures import Headers
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidStatus,
)
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.trio.server import ServerConnection, serve

import codec
from server.media.wav import data_of
from server.model import AGENT_RATE_HZ, CALLER_RATE_HZ

# --- Scripts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection ends in the middle of what the agent says."""

    turn: int
    """Number of the agent turn, from 1 (the greeting), counted over resumed connections."""
    after_s: float
    """Seconds of that turn's audio sent before."""
    code: int
    """WebSocket close code; 1006 is a connection cut without a word."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function the model calls, declared or not."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Script:
    """How the model behaves; the defaults are a healthy one, quick for a test's sake."""

    setup_delay_s: float = 0.1
    """Seen in the field: 0.1 to 1.1 s."""
    reply_delay_s: float = 0.3
    """From the end of the caller's turn to the first audio."""
    speed: float = 4.4
    """How much faster than real time the audio comes, as measured on 3.8."""
    refuse_setup: Close | None = None
    """Close instead of ``setupComplete``, whatever the set-up."""
    refuse_handshake: tuple[int, str] | None = None
    """Answer the WebSocket handshake with this HTTP status and body."""
    refuse_handles: Close | None = None
    """Close when a session is to be resumed: its handle is lost."""
    pong_delay_s: float = 0.0
    """How late pings are answered: 8 to 30 s were seen from a service that was well."""
    drop: Drop | None = None
    go_away_at_s: float | None = None
    """Seconds after ``setupComplete`` at which ``goAway`` is sent."""
    go_away_left_s: float = 10.0
    """The ``timeLeft`` it announces, after which the connection is closed."""
    silent_turns: frozenset[int] = frozenset()
    """Agent turns that never come: the socket stays open and nothing is sent."""
    empty_turns: frozenset[int] = frozenset()
    """Agent turns that complete without any audio."""
    quiet_turns: frozenset[int] = frozenset()
    """Agent turns whose audio is all there, and so faint that nobody hears it."""
    stalled_turns: frozenset[int] = frozenset()
    """Agent turns that stop in the middle of the audio and are never completed."""
    early_turns: frozenset[int] = frozenset()
    """Agent turns whose ``turnComplete`` comes in the middle of the audio."""
    start_speech_s: float = 0.08
    """Loud audio that it takes for the beginning of a caller's turn."""
    heals: bool = True
    """Whether a new connection in mid-call finds a healthy service; if not, the same faults."""
    only_model: str = ""
    """The model that behaves so, if all others are well."""
    tool_calls: int = 0
    """Functions called, all at once, before each answer to speech, if the set-up declares any."""
    functions: tuple[FunctionCall, ...] = ()
    """More that are called with them, whatever the set-up declares."""
    function_turns: frozenset[int] = frozenset()
    """Agent turns in which functions are called; empty for every answer to speech."""
    cancel_tool_calls: bool = False
    """Whether every other one of those calls is taken back at once."""
    thinking_turns: frozenset[int] = frozenset()
    """Agent turns that only say that an answer is on its way: they complete as ``IN_PROGRESS``, and
    the answer is the next turn."""
    thinking_s: float = 6.0
    """How long that takes."""
    forgets: bool = False
    """Whether it never comes."""
    tells_error: Mapping[str, Any] | None = None
    """Sent as ``error`` instead of ``setupComplete``; the socket stays open."""
    audio_label: str = f"audio/pcm;rate={AGENT_RATE_HZ}"
    audio_rate_hz: int = AGENT_RATE_HZ
    """What its audio is called, and what it is."""


def refused(code: int, reason: str) -> Script:
    """A service that refuses every session: with a close code, or an HTTP status below 1000."""
    if code < 1000:
        return Script(refuse_handshake=(code, reason))
    return Script(refuse_setup=Close(code, reason))


ANSWERS = Script()
SCRIPTS: Mapping[str, Script] = {
    "answers": ANSWERS,
    "go-away": Script(go_away_at_s=6.0, go_away_left_s=15.0),
    "drop-1006": Script(drop=Drop(turn=2, after_s=0.5, code=1006)),
    "drop-1011": Script(drop=Drop(2, 0.5, 1011, "Internal error encountered.")),
    "silent-model": Script(silent_turns=frozenset(range(2, 100))),
    "deaf-model": Script(silent_turns=frozenset(range(2, 1_000)), heals=False),
    "deaf-main-model": Script(
        silent_turns=frozenset(range(2, 1_000)), heals=False, only_model="gemini-3.8-live"
    ),
    "hard-of-hearing": Script(start_speech_s=0.4),
    "empty-turn": Script(empty_turns=frozenset({2})),
    "slow-model": Script(speed=0.8, reply_delay_s=1.2),
    "quiet-turn": Script(quiet_turns=frozenset({2})),
    "stalled-turn": Script(stalled_turns=frozenset({2})),
    "early-turn-complete": Script(early_turns=frozenset({2})),
    "quota": Script(
        refuse_setup=Close(1011, "You exceeded your current quota, please check your plan.")
    ),
    "quota-in-call": Script(
        drop=Drop(2, 0.5, 1011, "You exceeded your current quota, please check your plan.")
    ),
    "no-credits": refused(1011, "Your prepayment credits are depleted."),
    "bad-key": refused(1007, "API key expired. Please renew the API key."),
    "no-permission": refused(
        403, '{"error":{"code":403,"status":"PERMISSION_DENIED","message":"Permission denied."}}'
    ),
    "bad-setup": Script(refuse_setup=Close(1007, "Request contains an invalid argument.")),
    "late-pong": Script(pong_delay_s=30.0),
    "lost-handle": Script(
        drop=Drop(turn=2, after_s=0.5, code=1006),
        refuse_handles=Close(1008, "Requested entity was not found."),
    ),
    "tool-storm": Script(tool_calls=8, cancel_tool_calls=True),
    "thinks": Script(thinking_turns=frozenset({2})),
    "forgets": Script(thinking_turns=frozenset({2}), forgets=True),
    "told-error": Script(
        tells_error={"code": 400, "message": "Invalid value.", "status": "INVALID_ARGUMENT"}
    ),
    "other-rate": Script(audio_label="audio/PCM; rate=16000", audio_rate_hz=16_000),
    "hangs-up": Script(functions=(FunctionCall("hang_up"),)),
    "transfers": Script(
        functions=(FunctionCall("transfer", {"destination": "sales"}),),
        function_turns=frozenset({2}),
    ),
    "presses-keys": Script(
        functions=(FunctionCall("send_dtmf", {"digits": "1w2"}),), function_turns=frozenset({2})
    ),
}
"""Scripts by the name the settings and the demo know them under."""


# --- What a set-up may contain --------------------------------------------------------------------


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
                raise _unknown(name, path)
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


def _unknown(name: str, path: str) -> ServiceClosesError:
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
            raise _unknown("proactivity", "setup")
        if "enableAffectiveDialog" in generation:
            raise _unknown("enable_affective_dialog", "setup.generation_config")
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


# --- The agent's voice ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Speech:
    """Something to say, as text and as pcm at 24 kHz."""

    text: str
    pcm: bytes

    @property
    def seconds(self) -> float:
        """Playing time."""
        return len(self.pcm) / _AGENT_BYTES_PER_S


_AGENT_BYTES_PER_S = 2 * AGENT_RATE_HZ
_CALLER_BYTES_PER_S = 2 * CALLER_RATE_HZ
_TOKENS_PER_S = 25  # of audio, either way

# Spoken by espeak-ng (voice en-us+f3, pitch 62), 8 kHz mu-law.
_GREETING = (
    "agent-greeting",
    "Good morning, this is Offhook. I say back to you whatever you tell me. Please go ahead.",
)
_STILL_HERE = ("agent-still-here", "I am still here.")
_VOICEMAIL = (
    "agent-voicemail",
    "This is Offhook. I am sorry that I missed you. I will call again tomorrow.",
)
_LEAD_INS = (
    ("agent-you-said", "You said:"),
    ("agent-i-heard", "I heard:"),
    ("agent-was-it", "Was that:"),
)


def load_speech(name: str, text: str) -> Speech:
    """Read a recording of ``server/speech`` (mu-law at 8 kHz) as the model would send it."""
    wav = files("server").joinpath("speech", f"{name}.wav").read_bytes()
    decoder = codec.MulawDecoder(output_rate_hz=AGENT_RATE_HZ)
    return Speech(text, decoder.decode(data_of(wav)) + decoder.flush())


# --- Hearing the caller ---------------------------------------------------------------------------


class Hearing:
    """Where the caller's turns begin and end, by loudness; in audio time, so it needs no clock.

    Args:
        end_silence_s: Silence that ends a turn.
        start_speech_s: Loud audio that begins one.
    """

    LOUD = 1_000
    """Peak of a loud piece, of 32,767: speech on a telephone is well above, its noise below."""
    PIECE_BYTES = 2 * CALLER_RATE_HZ // 50
    """Loudness is judged every 20 ms."""
    KEPT_BEFORE_S = 0.2
    """Audio kept from before the start was certain, or the first sound would be missing."""
    MAX_TURN_S = 30.0

    def __init__(self, *, end_silence_s: float = 0.8, start_speech_s: float = 0.08) -> None:
        self.speaking = False
        self._end_silence_bytes = int(end_silence_s * _CALLER_BYTES_PER_S)
        self._start_speech_bytes = int(start_speech_s * _CALLER_BYTES_PER_S)
        self._kept_before_bytes = 2 * int(self.KEPT_BEFORE_S * CALLER_RATE_HZ)
        self._max_turn_bytes = int(self.MAX_TURN_S * _CALLER_BYTES_PER_S)
        self._loud_bytes = 0
        self._quiet_bytes = 0
        self._turn = bytearray()

    def hear(self, pcm: bytes) -> Iterable[Literal["start"] | bytes]:
        """Take caller audio at 16 kHz.

        Yields:
            ``"start"`` when the caller has begun to speak, and the turn's pcm when it has ended.
        """
        for position in range(0, len(pcm), self.PIECE_BYTES):
            piece = pcm[position : position + self.PIECE_BYTES]
            # Every fourth sample shows the loudness of speech, at a quarter of the cost.
            samples = memoryview(piece).cast("h")[::4]
            loud = max(samples) >= self.LOUD or min(samples) <= -self.LOUD
            self._turn += piece
            if loud:
                self._loud_bytes += len(piece)
                self._quiet_bytes = 0
            else:
                self._quiet_bytes += len(piece)
                if not self.speaking:
                    self._loud_bytes = 0
            if not self.speaking:
                if self._loud_bytes >= self._start_speech_bytes:
                    self.speaking = True
                    yield "start"
                else:
                    del self._turn[: -self._kept_before_bytes - self._loud_bytes]
            elif (
                self._quiet_bytes >= self._end_silence_bytes
                or len(self._turn) >= self._max_turn_bytes
            ):
                yield self.end()

    def end(self) -> bytes:
        """End the turn here and return its pcm, without the silence at its end."""
        kept = len(self._turn) - max(0, self._quiet_bytes - self._kept_before_bytes)
        turn = bytes(self._turn[:kept])
        self._turn.clear()
        self._loud_bytes = self._quiet_bytes = 0
        self.speaking = False
        return turn


# --- One session ----------------------------------------------------------------------------------


class ServerSocket(Protocol):
    """What a session needs of a connection; raises ``websockets.exceptions.ConnectionClosed``."""

    async def send(self, message: bytes, *, text: bool) -> None:
        """Send a whole message, as a text or a binary frame."""
        ...

    async def recv(self, *, decode: Literal[False]) -> bytes:
        """Wait for a whole message."""
        ...

    async def aclose(self, code: int, reason: str) -> None:
        """Close with a close frame."""
        ...

    async def drop(self) -> None:
        """Cut the connection without a word: the client sees 1006."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened in a session."""

    at_s: float
    """Seconds since the connection was opened."""
    what: str


@dataclass(slots=True)
class _Reply:
    """An agent turn that is to be spoken, or is being spoken."""

    speech: Speech
    heard: str | None = None
    """What the recogniser made of the caller's turn; None in answer to text."""
    cut: trio.Event = field(default_factory=trio.Event)
    """Set when the caller speaks over it, or before it."""


class SimulatedSession:
    """One connection as the service sees it.

    Attributes:
        setup: The set-up that was accepted, in camelCase; empty before.
        heard: The caller audio, pcm at 16 kHz, as far as the simulator keeps it.
        calls_made: Functions called.
        calls_taken_back: How many of them need no answer any more.
        heard_samples: All of the caller audio, counted.
        said_samples: All of the agent audio, counted.
        unsaid_samples: Agent audio that a turn would have had, if the connection had lasted.
        texts: What was said to the model in text, oldest first.
        tool_results: Answers to tool calls by id.
        mistakes: What the client did that the API does not allow but the service tolerates.
        turn: Agent turns begun so far, those of the session it resumes included.
        handles: What it can be resumed with, newest last; none is given while it generates or
            waits for tools, but the ones before stay good.
        greeted: Whether the greeting has been begun.
        resumed_from: The session this one goes on with.
        timeline: What happened, oldest first; per turn, never per chunk.
        is_open: False as soon as either side has closed.
        ended: Set when all is over.
        closed_by_client: The client's close code, None while it is open or if we closed.
    """

    CHUNK_MS = (40, 80, 120, 200, 100, 160)
    """Audio chunks come in all these sizes."""

    def __init__(self, simulator: GeminiSimulator, socket: ServerSocket) -> None:
        self.setup: Mapping[str, Any] = {}
        self.heard = bytearray()
        self.heard_samples = 0
        self.said_samples = 0
        self.unsaid_samples = 0
        self.texts: list[str] = []
        self.tool_results: dict[str, Mapping[str, Any]] = {}
        self.mistakes: list[str] = []
        self.turn = 0
        self.timeline: deque[Moment] = deque(maxlen=1_000)
        self.closed_by_client: int | None = None
        self.handles: deque[str] = deque(maxlen=32)
        self.greeted = False
        self.resumed_from: SimulatedSession | None = None
        self.is_open = True
        self.ended = trio.Event()
        self._simulator = simulator
        self._script = simulator.script
        self._socket = socket
        self._opened_at = trio.current_time()
        self._keep_heard_bytes = int(simulator.keep_heard_s * _CALLER_BYTES_PER_S)
        self._said_bytes = 0  # in the turn under way
        self._hearing = Hearing()
        self._manual_activity = False  # the client says when the caller speaks
        self._manual_turn = bytearray()
        self._interruptible = True
        self._awaits_history = False
        self._family: Family = "3.8"
        self._functions: list[Mapping[str, Any]] = []
        self._calls_open: set[str] = set()
        self.calls_made = 0
        self.calls_taken_back = 0
        self._answered = trio.Event()
        self._replies: deque[_Reply] = deque()
        self._reply: _Reply | None = None
        self._news = trio.Event()
        self._chunk_ms = cycle(self.CHUNK_MS)
        self._lead_ins = cycle(simulator.lead_ins)

    def __repr__(self) -> str:
        return f"<SimulatedSession turn={self.turn} {'open' if self.is_open else 'closed'}>"

    def note(self, what: str) -> None:
        """Add a moment to the timeline."""
        self.timeline.append(Moment(trio.current_time() - self._opened_at, what))

    def forget_heard(self) -> None:
        """Let go of the caller audio, and keep no more of it."""
        self._keep_heard_bytes = 0
        self.heard.clear()

    async def run(self, refusal: Close | None = None) -> None:
        """Serve the connection until either side closes it.

        Args:
            refusal: Close with this as soon as the client has spoken (a wrong key).
        """
        try:
            setup = await self._socket.recv(decode=False)
            if refusal is not None:
                await self._close(refusal)
                return
            self._accept(read_client_message(setup))
            await trio.sleep(self._script.setup_delay_s)
            if self._script.refuse_setup is not None:
                await self._close(self._script.refuse_setup)
                return
            if self._script.tells_error is not None:
                await self._send({"error": self._script.tells_error})
                while True:
                    await self._socket.recv(decode=False)
            await self._send({"setupComplete": {"sessionId": f"session-{id(self):x}"}})
            self.note("set up")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speak)
                if self._script.go_away_at_s is not None:
                    nursery.start_soon(self._go_away, self._script.go_away_at_s)
                try:
                    while True:
                        self._receive(await self._socket.recv(decode=False))
                finally:
                    nursery.cancel_scope.cancel()
        except* ServiceClosesError as refused:
            await self._close(_first(refused).close)
        except* ConnectionClosed as closed:
            frame = _first(closed).rcvd
            self.closed_by_client = frame.code if frame is not None else 1006
            self.note(f"closed by the client with {self.closed_by_client}")
        finally:
            self.is_open = False

    async def _close(self, close: Close) -> None:
        self.note(f"closed with {close.code}: {close.reason}")
        self.is_open = False
        if close.code == 1006:
            await self._socket.drop()
        else:
            await self._socket.aclose(close.code, close.reason)

    async def _send(self, message: Mapping[str, Any]) -> None:
        # Google's own browser sample reads binary frames, so some of ours are.
        binary = "sessionResumptionUpdate" in message
        await self._socket.send(msgspec.json.encode(message), text=not binary)

    # Hearing: one task, and nothing in it waits but for the next message.

    def _accept(self, message: Mapping[str, Any]) -> None:
        if "setup" not in message:
            raise ServiceClosesError(1007, "setup must be the first message and only the first")
        setup = message["setup"]
        self._family = check_setup(setup)
        if self._script.only_model not in setup["model"]:
            self._script = self._simulator.script_after_resume
        handle = setup.get("sessionResumption", {}).get("handle")
        if handle:
            if self._script.refuse_handles is not None:
                refusal = self._script.refuse_handles
                raise ServiceClosesError(refusal.code, refusal.reason)
            self.resumed_from = self._simulator.find_resumable(handle)
            self.turn = self.resumed_from.turn
            self.greeted = self.resumed_from.greeted
            if self._script.heals:
                self._script = self._simulator.script_after_resume
            self.note("resumed")
        realtime = setup.get("realtimeInputConfig", {})
        detection = realtime.get("automaticActivityDetection", {})
        self._hearing = Hearing(
            end_silence_s=detection.get("silenceDurationMs", 800) / 1000,
            start_speech_s=self._script.start_speech_s,
        )
        self._manual_activity = detection.get("disabled", False)
        self._interruptible = realtime.get("activityHandling", "").upper() != "NO_INTERRUPTION"
        history = setup.get("historyConfig", {})
        self._awaits_history = history.get("initialHistoryInClientContent", False)
        if self._awaits_history:
            # It takes the place of a session that has failed, as one that resumes it does.
            self.greeted = True
            if self._script.heals:
                self._script = self._simulator.script_after_resume
        self._functions = [
            function
            for tool in setup.get("tools", ())
            for function in tool.get("functionDeclarations", ())
        ]
        self.setup = setup

    def _receive(self, data: bytes) -> None:
        message = read_client_message(data)
        if "setup" in message:
            raise ServiceClosesError(1007, "setup must be the first message and only the first")
        if (content := message.get("clientContent")) is not None:
            self._receive_content(content)
        elif (realtime := message.get("realtimeInput")) is not None:
            if self._awaits_history:
                self._note_mistake("realtimeInput before the initial history was complete")
            else:
                self._receive_realtime(realtime)
        elif (response := message.get("toolResponse")) is not None:
            for result in response.get("functionResponses", ()):
                self._receive_tool_result(result)
        elif "contextUpdate" in message:
            self.note("context updated")

    def _receive_content(self, content: Mapping[str, Any]) -> None:
        texts = [
            part["text"]
            for turn in content.get("turns", ())
            for part in turn.get("parts", ())
            if "text" in part
        ]
        self.texts += texts
        complete = content.get("turnComplete", False)
        if self._awaits_history:
            self._awaits_history = not complete
            return
        self._cut()
        # On 3.1 it seeds the history and starts nothing, which has muted many a greeting.
        if complete and self._family != "3.1":
            self._answer_text(" ".join(texts))

    def _receive_realtime(self, realtime: Mapping[str, Any]) -> None:
        chunks = realtime.get("mediaChunks", ())
        if chunks and self._family == "3.1":
            raise ServiceClosesError(1007, "realtime_input.media_chunks is deprecated. Use audio.")
        if chunks and self._family == "2.5":
            self._receive_audio(chunks[0])  # only the first counts; 3.8 ignores them all
        if (audio := realtime.get("audio")) is not None:
            self._receive_audio(audio)
        if (text := realtime.get("text")) is not None:
            self.texts.append(text)
            self._cut()
            self._answer_text(text)
        if "activityStart" in realtime or "activityEnd" in realtime:
            if not self._manual_activity:
                raise ServiceClosesError(
                    1007, "Explicit activity control is not supported with automatic detection."
                )
            if "activityStart" in realtime:
                self._manual_turn.clear()
                self._caller_starts()
            else:
                self._caller_ends(bytes(self._manual_turn))
        # 3.8 does not take it for the end of a turn.
        ends = realtime.get("audioStreamEnd") and self._family in ("3.1", "2.5")
        if ends and self._hearing.speaking:
            self._caller_ends(self._hearing.end())

    def _receive_audio(self, blob: Mapping[str, str]) -> None:
        kind, _, rate = blob.get("mimeType", "").partition(";rate=")
        try:
            encoded = blob.get("data", "").translate({0x2D: "+", 0x5F: "/"}).rstrip("=")
            pcm = binascii.a2b_base64(encoded + "=" * (-len(encoded) % 4), strict_mode=True)
        except ValueError:
            raise ServiceClosesError(
                1007, "Invalid value at 'realtime_input.audio.data' (TYPE_BYTES), Base64 decoding"
            ) from None
        if kind != "audio/pcm" or len(pcm) % 2:
            raise ServiceClosesError(1007, f"Unsupported audio: {kind}, {len(pcm)} bytes.")
        if rate == "8000":
            samples = array("h", pcm)
            doubled = array("h", bytes(2 * len(pcm)))
            doubled[::2] = doubled[1::2] = samples
            pcm = doubled.tobytes()
        self.heard_samples += len(pcm) // 2
        if len(self.heard) < self._keep_heard_bytes:
            self.heard += pcm
        if self._manual_activity:
            if len(self._manual_turn) < Hearing.MAX_TURN_S * _CALLER_BYTES_PER_S:
                self._manual_turn += pcm
            return
        for news in self._hearing.hear(pcm):
            if isinstance(news, bytes):
                self._caller_ends(news)
            else:
                self._caller_starts()

    def _caller_starts(self) -> None:
        self.note("caller starts")
        if self._interruptible:
            self._cut()

    def _caller_ends(self, turn: bytes) -> None:
        seconds = len(turn) / _CALLER_BYTES_PER_S
        self.note(f"caller ends after {seconds:.1f} s")
        lead_in: Speech = next(self._lead_ins)
        pause = bytes(2 * (AGENT_RATE_HZ // 5))
        # The caller's 16 kHz samples played at 24 kHz: half as high again, and no computing.
        speech = Speech(
            f"{lead_in.text} ({seconds:.1f} seconds of your voice)", lead_in.pcm + pause + turn
        )
        self._ask(_Reply(speech, heard=f"({seconds:.1f} seconds of speech)"))

    def _answer_text(self, text: str) -> None:
        """Say one of the few things it can say: whoever mentions voicemail wants a message left."""
        simulator = self._simulator
        if "voicemail" in text.lower():
            self._ask(_Reply(simulator.voicemail))
        else:
            self._ask(_Reply(simulator.still_here if self.greeted else simulator.greeting))

    def _ask(self, reply: _Reply) -> None:
        self._replies.append(reply)
        self._news.set()

    def _cut(self) -> None:
        """Take back what is being said and what was going to be."""
        for reply in self._replies:
            reply.cut.set()
        if self._reply is not None:
            self._reply.cut.set()
            self._answered.set()  # it no longer waits for tools, either

    def _receive_tool_result(self, result: Mapping[str, Any]) -> None:
        identity = result.get("id", "")
        if identity not in self._calls_open:
            self._note_mistake(f"answer to a tool call that is not open: {identity!r}")
            return
        if not isinstance(result.get("response"), dict) or not result["response"]:
            self._note_mistake(f"empty answer to the tool call {identity!r}")
        self._calls_open.remove(identity)
        self.tool_results[identity] = result.get("response") or {}
        if not self._calls_open:
            self._answered.set()

    def _note_mistake(self, mistake: str) -> None:
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)

    # Speaking: one task, the only one that sends. Its sleeps are cut short by an interruption and
    # its sends never are, for half a message would ruin the connection.

    async def _speak(self) -> None:
        while True:
            while not self._replies:
                self._news = trio.Event()
                await self._news.wait()
            reply = self._replies.popleft()
            if reply.cut.is_set():
                continue  # taken back before it was begun: nobody ever knew of it
            self._reply = reply
            self.turn += 1
            if self.turn in self._script.silent_turns:
                self.note("stays silent")
            elif await self._say(reply):
                await self._complete("completes")
            else:
                self.note("is interrupted")
                if self.turn % 2:
                    await self._send_content(interrupted=True)
                    await self._complete("completes")
                else:
                    await self._complete("completes", interrupted=True)
            self._reply = None

    async def _say(self, reply: _Reply) -> bool:
        """Speak one turn up to its turnComplete; False as soon as it is interrupted."""
        script = self._script
        if await self._cut_by(reply, trio.current_time() + script.reply_delay_s):
            return False
        await self._send({"sessionResumptionUpdate": {"newHandle": "", "resumable": False}})
        if reply.heard is not None:
            await self._send_content(inputTranscription={"text": reply.heard, "finished": True})
            calls = self._functions_to_call()
            if calls and not await self._call_functions(calls, reply):
                return False
            if self.turn in script.thinking_turns and not await self._think(reply):
                return False
        if self.turn in script.empty_turns:
            self.note("says nothing")
            return True

        self.greeted = True
        self.note(f"says {reply.speech.text}")
        # The transcript leads: half of it before any audio, the rest with the first chunk.
        words = reply.speech.text.split()
        await self._send_content(outputTranscription={"text": " ".join(words[: len(words) // 2])})
        bundled: dict[str, Any] = {}
        if self.turn not in script.early_turns:  # they know no more of their sentence
            rest = " ".join(words[len(words) // 2 :])
            bundled["outputTranscription"] = {"text": f" {rest}"}
        started_at = trio.current_time()
        pcm = reply.speech.pcm
        sent_bytes = 0
        self.unsaid_samples = len(pcm) // 2
        while sent_bytes < len(pcm):
            size = next(self._chunk_ms) * _AGENT_BYTES_PER_S // 1000
            chunk = pcm[sent_bytes : sent_bytes + size]
            if self.turn in script.quiet_turns:
                chunk = b"\x01\x00" * (len(chunk) // 2)
            sent_bytes += len(chunk)
            self._said_bytes = sent_bytes
            if sent_bytes == len(pcm) and self.turn % 2 == 0:
                bundled["generationComplete"] = True
            await self._send_content(modelTurn={"parts": self._audio_parts(chunk)}, **bundled)
            bundled.clear()
            self.said_samples += len(chunk) // 2
            self.unsaid_samples -= len(chunk) // 2
            sent_s = sent_bytes / _AGENT_BYTES_PER_S
            drop = script.drop
            if drop is not None and self.turn == drop.turn and sent_s >= drop.after_s:
                raise ServiceClosesError(drop.code, drop.reason)
            if self.turn in script.stalled_turns and sent_bytes >= len(pcm) // 2:
                self.note("stalls in the middle")
                await reply.cut.wait()
                return False
            if self.turn in script.early_turns and sent_bytes >= len(pcm) // 2:
                self.note("stops in the middle")
                return True
            if await self._cut_by(reply, started_at + sent_s / script.speed):
                self.unsaid_samples = 0  # nobody wants to hear it
                return False
        await self._send({})  # such frames occur
        if self.turn % 2:
            await self._send_content(generationComplete=True)
        self.note("generated")
        # The service takes it that audio is played as it comes, and lets the turn last as long.
        return not await self._cut_by(reply, started_at + reply.speech.seconds)

    def _audio_parts(self, chunk: bytes) -> list[dict[str, Any]]:
        """Put a chunk into one part, a long one into two: the newer models send several."""
        script = self._script
        half = len(chunk) // 4 * 2 if len(chunk) > _AGENT_BYTES_PER_S // 6 else len(chunk)
        parts = [part for part in (chunk[:half], chunk[half:]) if part]
        if script.audio_rate_hz != AGENT_RATE_HZ:
            parts = [
                codec.Resampler(AGENT_RATE_HZ, script.audio_rate_hz).resample(part)
                for part in parts
            ]
        return [
            {
                "inlineData": {
                    "mimeType": script.audio_label,
                    "data": binascii.b2a_base64(part, newline=False).decode("ascii"),
                }
            }
            for part in parts
        ]

    async def _think(self, reply: _Reply) -> bool:
        """Say that an answer is on its way, and be silent; False as soon as it is interrupted."""
        aside: Speech = next(self._lead_ins)
        self.note("thinks")
        await self._send_content(
            modelTurn={"parts": self._audio_parts(aside.pcm)},
            outputTranscription={"text": aside.text},
            generationComplete=True,
        )
        self._said_bytes = len(aside.pcm)
        if await self._cut_by(reply, trio.current_time() + aside.seconds):
            return False
        await self._complete("thinks on", status="IN_PROGRESS")
        self.turn += 1
        if self._script.forgets:
            await reply.cut.wait()
        return not await self._cut_by(reply, trio.current_time() + self._script.thinking_s)

    def _functions_to_call(self) -> list[FunctionCall]:
        script = self._script
        if script.function_turns and self.turn not in script.function_turns:
            return []
        calls = [
            FunctionCall(
                function["name"],
                _sample(function.get("parametersJsonSchema", function.get("parameters"))),
            )
            for function, _ in zip(cycle(self._functions), range(script.tool_calls))
        ]
        return [*calls, *script.functions]

    async def _call_functions(self, functions: Sequence[FunctionCall], reply: _Reply) -> bool:
        """Call functions and wait for all the answers; False as soon as it is interrupted."""
        calls = []
        for function in functions:
            self.calls_made += 1
            identity = self._simulator.new_call_id()
            calls.append({"id": identity, "name": function.name, "args": function.arguments})
            self._calls_open.add(identity)
        self._answered = trio.Event()
        self.note(f"calls {len(calls)} functions")
        await self._send({"toolCall": {"functionCalls": calls}})
        if self._script.cancel_tool_calls:
            await self._cancel_calls([str(call["id"]) for call in calls[1::2]])
        if self._family.startswith("3.8"):
            # These end the turn when they call; the answer is the next turn.
            await self._complete("calls")
            self.turn += 1
        if self._calls_open:
            await self._answered.wait()
        if reply.cut.is_set():
            await self._cancel_calls(sorted(self._calls_open))
        return not reply.cut.is_set()

    async def _cancel_calls(self, ids: list[str]) -> None:
        if ids:
            self.calls_taken_back += len(ids)
            self._calls_open.difference_update(ids)
            await self._send({"toolCallCancellation": {"ids": ids}})

    async def _complete(self, what: str, status: str = "IDLE", **bundled: bool) -> None:
        """End the turn: turnComplete with the tokens used, then a handle if no tool is open."""
        said = _TOKENS_PER_S * self._said_bytes // _AGENT_BYTES_PER_S
        heard = _TOKENS_PER_S * self.heard_samples // CALLER_RATE_HZ
        usage = {
            "promptTokenCount": heard,
            "responseTokenCount": said,
            "totalTokenCount": heard + said,
            "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": heard}],
            "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": said}],
        }
        self._said_bytes = 0
        self.note(what)
        content: dict[str, Any] = {"turnComplete": True} | bundled
        message: dict[str, Any] = {"serverContent": content, "usageMetadata": usage}
        if self._family == "3.8-thinking" or self._script.thinking_turns:
            # Google's documents have it in the one place and in the other.
            (content if self.turn % 2 else message)["interactionStatus"] = status
        await self._send(message)
        if not self._calls_open:
            handle = self._simulator.new_handle()
            self.handles.append(handle)
            await self._send({"sessionResumptionUpdate": {"newHandle": handle, "resumable": True}})

    async def _send_content(self, **fields: Any) -> None:
        await self._send({"serverContent": fields})

    async def _cut_by(self, reply: _Reply, deadline: float) -> bool:
        """Sleep until the deadline, or until the reply is cut; say which."""
        with trio.move_on_at(deadline):
            await reply.cut.wait()
        return reply.cut.is_set()

    async def _go_away(self, at_s: float) -> None:
        await trio.sleep(at_s)
        self.note("announces that it goes away")
        await self._send({"goAway": {"timeLeft": f"{self._script.go_away_left_s:g}s"}})
        await trio.sleep(self._script.go_away_left_s)
        raise ServiceClosesError(1008, "The operation was aborted.")


_Leaf = TypeVar("_Leaf", bound=Exception)


def _first(group: ExceptionGroup[_Leaf]) -> _Leaf:
    one = group.exceptions[0]
    return _first(one) if isinstance(one, ExceptionGroup) else one


_SAMPLES: Mapping[str, Any] = {
    "string": "something",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
}


def _sample(schema: Any) -> dict[str, Any]:
    """Make up arguments of the declared types."""
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return {
        name: one["enum"][0] if one.get("enum") else _SAMPLES.get(str(one.get("type")).lower())
        for name, one in properties.items()
    }


# --- The server -----------------------------------------------------------------------------------

_PATH = re.compile(
    # The official JavaScript client asks for two slashes.
    r"/{1,2}ws/google\.ai\.generativelanguage\.(v1|v1beta|v1alpha)\.GenerativeService\."
    "BidiGenerateContent"
)


class GeminiSimulator:
    """A Gemini Live service for calls that cost nothing.

    Args:
        api_key: The only key it knows.
        script: How it behaves.
        script_after_resume: How it behaves in sessions that resume another: healthy by default,
            so that a fault strikes once and recovery can be seen.
        keep_heard_s: How much of each session's caller audio is kept for a look at it.

    Attributes:
        url: Base URL, once :meth:`run` has started with a port.
        sessions: The last thousand connections, oldest first.
    """

    def __init__(
        self,
        *,
        api_key: str = "simulated",
        script: Script = ANSWERS,
        script_after_resume: Script = ANSWERS,
        keep_heard_s: float = 20.0,
    ) -> None:
        self.url = ""
        self.script = script
        self.script_after_resume = script_after_resume
        self.keep_heard_s = keep_heard_s
        self.sessions: deque[SimulatedSession] = deque(maxlen=1_000)
        self.greeting = load_speech(*_GREETING)
        self.still_here = load_speech(*_STILL_HERE)
        self.voicemail = load_speech(*_VOICEMAIL)
        self.lead_ins = tuple(load_speech(*one) for one in _LEAD_INS)
        self._api_key = api_key
        self._handles_made = 0
        self._call_ids_made = 0
        self._arrivals, self._arriving = trio.open_memory_channel[_Arrival](0)

    async def run(
        self,
        *,
        port: int | None = 0,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; started with the base URL.

        Args:
            port: Port on the loopback interface, 0 for a free one; None for no socket at all,
                only for :meth:`connect`.
        """
        async with trio.open_nursery() as nursery:
            if port is not None:
                server = await nursery.start(
                    partial(
                        serve,
                        self._welcome,
                        port,
                        host="127.0.0.1",
                        process_request=self._check_request,
                        compression=None,
                        ping_interval=None,
                        max_size=16 * 2**20,
                        logger=_websocket_logger,
                    )
                )
                address = server.listeners[0].socket.getsockname()
                self.url = f"ws://127.0.0.1:{address[1]}"
            task_status.started(self.url)
            async for arrival in self._arriving:
                nursery.start_soon(self._serve, arrival)

    @asynccontextmanager
    async def connect(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[MemorySocket]:
        """Connect without a socket, while :meth:`run` runs: for calls on a mock clock."""
        if self.script.refuse_handshake is not None:
            status, body = self.script.refuse_handshake
            raise InvalidStatus(Response(status, "Refused", Headers(), body.encode()))
        client, server = memory_sockets()
        refusal = self._refusal(url, headers)
        await self._arrivals.send(_Arrival(server, refusal, server.hang_up))
        try:
            yield client
        finally:
            client.hang_up()

    def new_handle(self) -> str:
        """Make up a resumption handle."""
        self._handles_made += 1
        return f"handle-{self._handles_made}"

    def new_call_id(self) -> str:
        """Make up an id for a function call; like the service's, it is never used again."""
        self._call_ids_made += 1
        return f"call-{self._call_ids_made}"

    def find_resumable(self, handle: str) -> SimulatedSession:
        """Find the session a handle stands for.

        Raises:
            ServiceClosesError: It stands for none, or for one whose socket is still open.
        """
        for session in reversed(self.sessions):
            if handle in session.handles:
                if session.is_open:
                    raise ServiceClosesError(1011, "The session is still in use.")
                return session
        raise ServiceClosesError(1008, "Requested entity was not found.")

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.script.refuse_handshake is not None:
            return connection.respond(*self.script.refuse_handshake)
        # urlsplit() would take what follows two slashes for a host.
        if _PATH.fullmatch(request.path.partition("?")[0]):
            return None
        return connection.respond(404, "Not Found\n")

    async def _welcome(self, connection: ServerConnection) -> None:
        """Hand a connection to ``run``, where a bug of ours is not just a line in a log."""
        request = connection.request
        assert request is not None
        if self.script.pong_delay_s:
            _answer_pings_late(connection, self.script.pong_delay_s)
        refusal = self._refusal(request.path, request.headers)
        served = trio.Event()
        await self._arrivals.send(_Arrival(_WebSocket(connection), refusal, served.set))
        await served.wait()

    async def _serve(self, arrival: _Arrival) -> None:
        session = SimulatedSession(self, arrival.socket)
        self.sessions.append(session)
        if len(self.sessions) > _RECORDINGS:
            self.sessions[-_RECORDINGS - 1].forget_heard()
        try:
            await session.run(arrival.refusal)
        finally:
            session.ended.set()
            arrival.release()

    def _refusal(self, url: str, headers: Mapping[str, str]) -> Close | None:
        """Judge the key as Google does: the connection is accepted, then closed."""
        query = parse_qs(urlsplit(url).query)
        given = headers.get("x-goog-api-key") or query.get("key", [""])[0]
        if not given:
            return Close(1008, "Method doesn't allow unregistered callers.")
        if not hmac.compare_digest(given.encode(), self._api_key.encode()):
            return Close(1007, "API key not valid. Please pass a valid API key.")
        return None


# At DEBUG the library logs every header, the client's key among them; at INFO every connection.
_websocket_logger = logging.getLogger(f"{__name__}.websocket")
_websocket_logger.setLevel(logging.WARNING)

_RECORDINGS = 20
"""Sessions whose caller audio is kept: 20 s of it is 640 kB."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    socket: ServerSocket
    refusal: Close | None
    release: Callable[[], None]
    """To be called when the session is over."""


def _answer_pings_late(connection: ServerConnection, delay_s: float) -> None:
    """Let every pong of this connection wait."""
    send_frame = connection.protocol.send_frame

    async def send_late(frame: Frame) -> None:
        with trio.move_on_after(delay_s):
            await connection.wait_closed()
            return
        send_frame(frame)
        await connection.send_data()

    def send_frame_or_wait(frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            connection.nursery.start_soon(send_late, frame)
        else:
            send_frame(frame)

    # The protocol answers a ping by itself, and this is the only way it has.
    connection.protocol.send_frame = send_frame_or_wait  # type: ignore[method-assign]


class _WebSocket:
    """A real connection as a session wants it."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def send(self, message: bytes, *, text: bool) -> None:
        await self._connection.send(message, text=text)

    async def recv(self, *, decode: Literal[False]) -> bytes:
        return await self._connection.recv(decode=decode)

    async def aclose(self, code: int, reason: str) -> None:
        await self._connection.aclose(code, reason)

    async def drop(self) -> None:
        await trio.aclose_forcefully(self._connection.stream)


# --- A connection without a socket ----------------------------------------------------------------


class MemorySocket:
    """One end of a connection in memory; fails with the same errors as a WebSocket."""

    def __init__(
        self, send: trio.MemorySendChannel[bytes], receive: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self.peer = self
        self._send = send
        self._receive = receive
        self._received: Close | None = None
        self._sent: Close | None = None

    async def send(self, message: bytes, *, text: bool) -> None:
        """Send a whole message; there are no frames here, so ``text`` means nothing."""
        try:
            await self._send.send(bytes(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._closed() from None

    async def recv(self, *, decode: Literal[False]) -> bytes:
        """Wait for a whole message; what was sent before a close is still read."""
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._closed() from None

    async def aclose(self, code: int, reason: str) -> None:
        """Close with a close frame."""
        if self._sent is None:
            self._sent = self.peer._received = Close(code, reason)
            self.peer._sent = self.peer._sent or self._sent  # the echo
        await self.drop()

    async def drop(self) -> None:
        """Cut the connection; without a close frame the other side sees 1006."""
        self.hang_up()
        await trio.lowlevel.checkpoint()

    def hang_up(self) -> None:
        """Close both directions."""
        self._send.close()
        self._receive.close()

    def _closed(self) -> ConnectionClosed:
        if self._received is None:
            return ConnectionClosedError(None, self._sent)
        kind = ConnectionClosedOK if self._received.code in (1000, 1001) else ConnectionClosedError
        return kind(self._received, self._sent, rcvd_then_sent=True)


def memory_sockets() -> tuple[MemorySocket, MemorySocket]:
    """Make both ends of a connection that holds at most a moment's messages each way."""
    to_server, at_server = trio.open_memory_channel[bytes](64)
    to_client, at_client = trio.open_memory_channel[bytes](64)
    client, server = MemorySocket(to_server, at_client), MemorySocket(to_client, at_server)
    client.peer, server.peer = server, client
    return client, server
