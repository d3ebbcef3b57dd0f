"""Google's Gemini Live API: its dialects, its wire format, and a session over trio.

Top to bottom: what each family of models accepts (``DIALECTS``), the set-up message, the protocol
without a socket (``GeminiProtocol``), and the part that waits (``GeminiSession``, ``GeminiModel``).

The set-up is written in ``google.genai.types``, which users of the API know and Google maintains.
Messages are written and read here, because the SDK's own session needs asyncio, ends its stream
after every turn and costs forty times as much for each chunk of audio.
"""

from __future__ import annotations

import binascii
import logging
import re
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec
import structlog
import trio
from google.genai import types
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.trio.client import ClientConnection
from websockets.trio.client import connect as websocket_connect

from server.agent import Agent
from server.dial import WireSocket, open_wire
from server.errors import ConfigurationError, ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.model import (
    AGENT_RATE_HZ,
    CALLER_RATE_HZ,
    AgentAudio,
    AgentTranscript,
    CallerTranscript,
    Conversation,
    EventListener,
    GenerationComplete,
    GoingAway,
    Interrupted,
    PastTurn,
    ResumptionHandle,
    SessionEvent,
    ToolCall,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Way,
    Working,
)
from server.model.audio_label import MAX_LABEL, RateChange, described, is_file, rate_of
from server.model.counts import CountedTurn, read_usage
from server.model.fields import MAX_NAME, MAX_TEXT, UNREADABLE, Fields, has_too_much
from server.model.refusals import Cure, Kind, classify
from server.model.service_words import MAX_REASON, fingerprint, known_status, known_words
from server.pace import Pace
from server.plane import Messages, Plane
from server.relay import Relay

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

DEFAULT_MODEL = "gemini-3.8-live"
DEFAULT_URL = "wss://generativelanguage.googleapis.com"
API_VERSION = "v1beta"
"""The documented version of the Live API (the SDK's default, v1, is not documented for Live)."""

LATE_AUDIO_S = 1.0
"""How long audio after ``interrupted`` is taken for the cut turn's when no ``turnComplete`` comes.

What is already on the wire arrives within a round trip; a reply to the caller who interrupted
needs at least the end-of-speech silence (0.5 s) and the model's own time. Between the two.
"""
END_SILENCE_S = 0.6
"""Silence that ends the caller's turn where ``audioStreamEnd`` does not (3.8, as measured)."""
MAX_MESSAGE_BYTES = 16 * 2**20
"""Largest message accepted; the library's 1 MiB is only about 16 s of base64 audio."""
MESSAGES_PER_S, MAX_MESSAGES_AT_ONCE = 500, 5_000
"""More than these from one session are a flood, and it is given up. In the field some 110 a second
come, in the quickest bursts; audio that goes by the media path is not counted."""
MESSAGE_BYTES = 4 * 1024
"""A longer message counts as so many: the longest one is within what may come at once."""
MAX_HISTORY_CHARACTERS = 16_000
"""What a fresh session is told of the conversation so far: about 4,000 tokens of text, half of
what the service keeps when it compresses the context."""
MAX_MALFORMED_IN_A_ROW = 50
"""So many unreadable messages without a readable one between them end the session."""
MAX_NAMES_LOGGED = 64
"""Unknown names logged by one session, so that a confused service cannot fill the disk."""


# --- What each family of models accepts -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one family of models accepts: a single unsupported field ends the session with 1007."""

    name: str
    """Every model whose name starts with this speaks the dialect."""
    text_by: Literal["realtimeInput", "clientContent"]
    """The message that carries text, which is also what makes the model speak first."""
    ends_audio_by: Literal["audioStreamEnd", "silence"]
    takes_notes: bool = False
    """Whether ``clientContent`` without ``turnComplete`` adds to the conversation in mid-call."""
    thinking_fields: frozenset[str] = frozenset()
    """What ``thinkingConfig`` may contain; empty: it must not be sent."""
    thinking_levels: frozenset[str] = frozenset()
    default_thinking: Mapping[str, object] | None = None
    tool_behaviors: frozenset[str] = frozenset()
    """Values of a function's ``behavior`` that may be sent; empty: the field must not be."""
    default_tool_behavior: str | None = None
    proactivity: bool = False
    affective_dialog: bool = False
    transcription_options: bool = False
    """Whether the transcription settings may contain anything, such as ``languageCodes``."""
    history_by: Literal["clientContent", "systemInstruction"] = "clientContent"
    """What tells a new session of what has been said: turns before any other input
    (``historyConfig``), or, where the first audio turn ignores those, the instruction."""


DIALECTS = (
    Dialect(
        name="gemini-3.8-live",
        text_by="realtimeInput",
        ends_audio_by="silence",
        takes_notes=True,
        tool_behaviors=frozenset({"BLOCKING", "NON_BLOCKING"}),
        # Non-blocking is this model's default, and its results are spoken unreliably.
        default_tool_behavior="BLOCKING",
        transcription_options=True,
    ),
    Dialect(
        name="gemini-3.8-live-extended-thinking",
        text_by="realtimeInput",
        ends_audio_by="silence",
        takes_notes=True,
        thinking_fields=frozenset({"thinkingLevel", "includeThoughts"}),
        thinking_levels=frozenset({"LOW", "MEDIUM", "HIGH"}),
        default_thinking={"thinkingLevel": "LOW"},
        tool_behaviors=frozenset({"NON_BLOCKING"}),
        transcription_options=True,
    ),
    Dialect(
        name="gemini-3.1-flash-live",
        text_by="realtimeInput",
        ends_audio_by="audioStreamEnd",
        # Its documents disagree about clientContent in mid-call: no notes.
        thinking_fields=frozenset({"thinkingLevel", "includeThoughts"}),
        # No default: an explicit level often gives empty generations on this model.
        thinking_levels=frozenset({"MINIMAL", "LOW", "MEDIUM", "HIGH"}),
    ),
    Dialect(
        name="gemini-2.5-flash-native-audio",
        text_by="clientContent",
        ends_audio_by="audioStreamEnd",
        takes_notes=True,
        thinking_fields=frozenset({"thinkingBudget", "includeThoughts"}),
        default_thinking={"thinkingBudget": 0},
        tool_behaviors=frozenset({"BLOCKING", "NON_BLOCKING"}),
        proactivity=True,
        affective_dialog=True,
        history_by="systemInstruction",
    ),
)
"""Newest first: of equally near families an unknown name gets the first."""

_ALIASES = {"gemini-live-2.5-flash": "gemini-2.5-flash"}
"""Vertex's word order for the same family."""


@cache
def dialect_of(model: str) -> Dialect:
    """Find the dialect of a model, the nearest one for a name never heard of.

    Args:
        model: A model's name, with or without ``models/`` or a Vertex path before it.

    An unknown name is a warning, once, and not an error: new names come more often than new
    dialects, and if the guess is wrong the service says so at set-up.
    """
    name = model.rpartition("/")[2]
    for alias, family in _ALIASES.items():
        if name.startswith(alias):
            name = family + name.removeprefix(alias)
    known = [dialect for dialect in DIALECTS if name.startswith(dialect.name)]
    if known:
        return max(known, key=lambda dialect: len(dialect.name))

    def nearness(dialect: Dialect) -> tuple[int, int]:
        return _shared(name, dialect.name), _shared(name[::-1], dialect.name[::-1])

    nearest = max(DIALECTS, key=nearness)
    logger.warning("unknown model, treated as its nearest family", model=name, as_=nearest.name)
    return nearest


def _shared(one: str, other: str) -> int:
    """Count the characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


# --- Set-up ---------------------------------------------------------------------------------------

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
    detection = types.AutomaticActivityDetection(
        # A telephone carries the other end's noise and our own echo: start is not hair-triggered.
        start_of_speech_sensitivity=types.StartSensitivity.START_SENSITIVITY_LOW,
        end_of_speech_sensitivity=types.EndSensitivity.END_SENSITIVITY_LOW,
        prefix_padding_ms=20,
        # The quickest value of the recommended 500-800 ms; below it sentences are cut in two.
        silence_duration_ms=500,
    )
    fields: dict[str, Any] = {
        "realtime_input_config": types.RealtimeInputConfig(
            automatic_activity_detection=detection,
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
    if base is not None:
        fields |= {name: getattr(base, name) for name in base.model_fields_set}

    if agent.tools:
        declared = [
            types.FunctionDeclaration(
                name=tool.name,
                description=tool.description,
                # Without arguments there is no schema: an empty object is refused.
                parameters_json_schema=tool.parameters if tool.parameters["properties"] else None,
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
    spoken = "\n".join(
        f"{'You' if turn.speaker == 'agent' else 'Caller'}: {turn.text}" for turn in history
    )
    instruction = (
        f"{config.system_instruction}\n\nThe call is under way, so do not greet again. "
        f"What has been said so far:\n{spoken}"
    )
    return config.model_copy(update={"system_instruction": instruction})


def setup_message(
    model: str, config: types.LiveConnectConfig
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write the first message of a session, without anything this model would refuse.

    Args:
        model: The model's name; ``models/`` is put before a bare one.
        config: What the session shall be, as one would give it to the official SDK.

    Returns:
        The message in pure camelCase, and the names of the settings that were left out.

    Raises:
        TypeError: ``config.tools`` holds something that is not a ``types.Tool`` (a plain
            function or an MCP session): only the SDK's own session can run those.
    """
    dialect = dialect_of(model)
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
    setup |= {name: given.pop(name) for name in _SETUP_FIELDS if name in given}
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


# --- Messages to the service ----------------------------------------------------------------------

_AUDIO_HEAD = b'{"realtimeInput":{"audio":{"mimeType":"audio/pcm;rate=%d","data":"' % CALLER_RATE_HZ
_AUDIO_TAIL = b'"}}}'


def audio_message(pcm: bytes) -> bytes:
    """Write caller audio: signed 16-bit little-endian mono at 16 kHz."""
    return _AUDIO_HEAD + binascii.b2a_base64(pcm, newline=False) + _AUDIO_TAIL


def text_message(dialect: Dialect, text: str) -> bytes:
    """Write text from the caller's side so that the model answers it, silent or not so far."""
    if dialect.text_by == "clientContent":
        return client_content_message([("user", text)], turn_complete=True)
    return msgspec.json.encode({"realtimeInput": {"text": text}})


def client_content_message(turns: Sequence[tuple[str, str]], *, turn_complete: bool) -> bytes:
    """Write turns of conversation, such as a history to go on from.

    Args:
        turns: Pairs of role (``"user"`` or ``"model"``) and text, oldest first.
        turn_complete: True to have the model answer; with False it waits for more. Either way
            what it is saying is cut off.
    """
    contents = [{"role": role, "parts": [{"text": text}]} for role, text in turns]
    return msgspec.json.encode(
        {"clientContent": {"turns": contents, "turnComplete": turn_complete}}
    )


def tool_results_message(results: Sequence[ToolResult]) -> bytes:
    """Write the answers to tool calls, several in one message."""
    responses = [
        {"id": result.id, "name": result.name, "response": result.response} for result in results
    ]
    return msgspec.json.encode({"toolResponse": {"functionResponses": responses}})


def end_of_audio_message(dialect: Dialect) -> bytes:
    """Write that no caller audio follows for now, so that the model answers what it has heard."""
    if dialect.ends_audio_by == "audioStreamEnd":
        return b'{"realtimeInput":{"audioStreamEnd":true}}'
    return audio_message(bytes(2 * int(END_SILENCE_S * CALLER_RATE_HZ)))


# --- Messages from the service --------------------------------------------------------------------


class _Wire(msgspec.Struct, rename="camel", forbid_unknown_fields=True, gc=False):
    """A message or a part of one; anything not declared sends the message the careful way."""


class _Blob(_Wire):
    data: bytes  # msgspec decodes the base64, and refuses what is not plain and padded
    mime_type: str = ""


class _AudioPart(_Wire):
    inline_data: _Blob


class _AudioTurn(_Wire):
    parts: list[_AudioPart]
    role: str = ""


class _Text(_Wire):
    text: str


class _AudioContent(_Wire):
    model_turn: _AudioTurn
    output_transcription: _Text | None = None


class _AudioMessage(_Wire):
    """The one hot message: audio, perhaps with its transcript, and nothing else."""

    server_content: _AudioContent


_decode_audio_message = msgspec.json.Decoder(_AudioMessage).decode

_KNOWN_MESSAGE_FIELDS = frozenset(
    {
        "setupComplete",
        "serverContent",
        "toolCall",
        "toolCallCancellation",
        "goAway",
        "sessionResumptionUpdate",
        "usageMetadata",
        "interactionStatus",
        "error",
        # Understood, and of no use to a call: these must not be reported as news.
        "voiceActivity",
        "voiceActivityDetectionSignal",
    }
)
_KNOWN_CONTENT_FIELDS = frozenset(
    {
        "modelTurn",
        "outputTranscription",
        "inputTranscription",
        "interrupted",
        "generationComplete",
        "turnComplete",
        "turnCompleteReason",
        "waitingForInput",
        "interactionStatus",
        "interimInputTranscription",
        "groundingMetadata",
        "urlContextMetadata",
    }
)
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")  # a protobuf Duration as JSON

MAX_CALLS = 256
"""Functions called in one message, or in one turn. Each is owed an answer, and so many can have
nothing to do with what was said: the session is given up. The toolbox runs fewer, and refuses."""
CALLS_PER_S, MAX_CALLS_AT_ONCE = 8, 512
"""The same over all turns."""
MAX_CALLS_BYTES = 2**20
"""Of a message that calls functions, and of one that takes calls back."""
MAX_ARGUMENTS_BYTES = 32 * 1024
"""Of one call: as much as a result may have."""
MAX_ID = 256
"""Characters of a call's id. It has to be sent back whole, so a longer one ends the session."""
MAX_FUNCTION_NAME = 128
"""Characters of a function's name in this API."""
MAX_HANDLE = 8 * 1024
"""Characters of a resumption handle, which every new connection begins with."""
MAX_PARTS = 1_000
"""Parts of one message that are looked at."""
JOINED_PARTS = 8
"""With more audio parts than this in one message, they are one piece of audio."""


class TooMuchError(Exception):
    """A message, or what has come of a turn, is more than a call can take: nothing helps."""


class ToldError(ModelError):
    """The service says that something is wrong, in a message instead of a close frame.

    Attributes:
        http_status: As HTTP has it; None if there is none.
        status: The name of the RPC status, "" if there is none that is known.
    """

    def __init__(self, http_status: int | None, status: str, reason: str) -> None:
        super().__init__(f"{http_status} {status}", code=None, reason=reason, retryable=False)
        self.http_status = http_status
        self.status = status


class GeminiProtocol:
    """The Live API without a socket: what the service sends in, events out.

    Args:
        first_turn: Number of the first agent turn.

    Attributes:
        ready: True once ``setupComplete`` has come.
        turn: Number of the agent turn that is under way, or comes next.
        malformed: Messages and fields so far that could not be read.
    """

    def __init__(self, first_turn: int = 1) -> None:
        self.ready = False
        self.turn = first_turn
        self.malformed = 0
        self._malformed_in_a_row = 0
        self._cut_at: float | None = None  # when the turn under way was interrupted
        self._counted = CountedTurn()
        self._calls_in_turn = 0
        self._call_pace = Pace(CALLS_PER_S, MAX_CALLS_AT_ONCE)
        self._ids_made = 0
        self._rate_change: RateChange | None = None
        self._logged: set[str] = set()

    @property
    def is_cutting(self) -> bool:
        """Whether audio may still come of a turn that was interrupted."""
        return self._cut_at is not None

    def receive(self, data: bytes | str, now: float) -> list[SessionEvent]:
        """Read one message, text or binary, in camelCase or snake_case.

        Args:
            data: The whole message.
            now: ``trio.current_time()`` when it arrived.

        Returns:
            Its events in order; none for a message that means nothing to a call, is not known,
            or cannot be read (``malformed`` counts those).

        Raises:
            ModelError: Nothing but unreadable messages has come for a while, or one that no call
                can take.
            ToldError: The service says that something is wrong.
        """
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogatepass")
        try:
            if has_too_much(data):
                raise TooMuchError("bytes, or parts")
            return self._receive(data, now)
        except TooMuchError as error:
            raise ModelError(
                f"Gemini has sent more at once than a call can take: {error}",
                code=None,
                reason="too much at once",
                retryable=True,
            ) from None

    def _receive(self, data: bytes, now: float) -> list[SessionEvent]:
        try:
            content = _decode_audio_message(data).server_content
        except UNREADABLE:
            return self._receive_any(data, now)
        self._malformed_in_a_row = 0
        events: list[SessionEvent] = []
        self._play(
            [(one.inline_data.mime_type, one.inline_data.data) for one in content.model_turn.parts],
            now,
            events,
        )
        if content.output_transcription is not None:
            self._say(content.output_transcription.text, now, events)
        return events

    def _receive_any(self, data: bytes, now: float) -> list[SessionEvent]:
        """Read a message of any kind; a field of the wrong type counts as absent."""
        fields = Fields.read(data) if _is_utf8(data) else None
        if fields is None:
            self._count_malformed("message")
            self._malformed_in_a_row += 1
            if self._malformed_in_a_row >= MAX_MALFORMED_IN_A_ROW:
                raise ModelError(
                    f"{self._malformed_in_a_row} unreadable messages in a row from Gemini",
                    code=None,
                    reason="unreadable messages",
                    retryable=True,
                )
            return []
        self._malformed_in_a_row = 0

        self._report_unknown("message", fields, _KNOWN_MESSAGE_FIELDS)
        if "error" in fields:
            raise self._told_error(fields)
        events: list[SessionEvent] = []
        if "setupComplete" in fields:
            self.ready = True
        # Google's documents have the status in the one place and in the other.
        status = fields.text("interactionStatus", MAX_NAME)
        content, completed = fields.object("serverContent"), False
        if content is not None:
            status = content.text("interactionStatus", MAX_NAME) or status
            completed = self._read_content(content, status, now, events)
        if status and not completed:
            events.append(Working(_is_at_work(status)))
        if (tool_call := fields.object("toolCall")) is not None:
            if fields.size("toolCall") > MAX_CALLS_BYTES:
                raise TooMuchError("bytes of function calls")
            self._read_tool_call(tool_call, now, events)
        if (cancellation := fields.object("toolCallCancellation")) is not None:
            if fields.size("toolCallCancellation") > MAX_CALLS_BYTES:
                raise TooMuchError("bytes of cancellations")
            if ids := tuple(cancellation.texts("ids", MAX_ID)):
                events.append(ToolCallsCancelled(ids))
        if (update := fields.object("sessionResumptionUpdate")) is not None:
            handle = update.flag("resumable") and update.text("newHandle", MAX_HANDLE)
            events.append(ResumptionHandle(handle or None))
        if (counts := fields.object("usageMetadata")) is not None:
            self._count(counts, content is not None, completed, events)
        if (go_away := fields.object("goAway")) is not None:
            duration = _DURATION.fullmatch(go_away.text("timeLeft", MAX_NAME))
            events.append(GoingAway(float(duration[1]) if duration else 0.0))
        return events

    def _told_error(self, fields: Fields) -> ToldError:
        told = fields.object("error")
        if told is None:
            return ToldError(None, "", fields.text("error", MAX_REASON))
        status = known_status(told.text("status", MAX_NAME))
        reason = told.text("message")[:MAX_REASON] or told.text("status", MAX_NAME)
        return ToldError(told.count("code", 1_000) or None, status, reason)

    def _read_content(
        self, content: Fields, status: str, now: float, events: list[SessionEvent]
    ) -> bool:
        """Read every field: newer models bundle audio, transcripts and flags in one message.

        Returns:
            Whether that completes the turn.
        """
        self._report_unknown("serverContent", content, _KNOWN_CONTENT_FIELDS)
        heard = content.object("inputTranscription")
        if heard is not None and (text := self._text_of(heard)):
            events.append(CallerTranscript(text))
        if (model_turn := content.object("modelTurn")) is not None:
            self._play(self._audio_in(model_turn), now, events)
        if (said := content.object("outputTranscription")) is not None:
            self._say(self._text_of(said), now, events)
        if content.flag("generationComplete"):
            self._end_audio(now, events)
            events.append(GenerationComplete(self.turn))
        if content.flag("interrupted"):
            self._cut_at = now
            self._rate_change = None
            events.append(Interrupted(self.turn, now))
        if not content.flag("turnComplete"):
            return False
        self._end_audio(now, events)
        reason = content.text("turnCompleteReason", MAX_NAME)
        if reason in ("", "TURN_COMPLETE_REASON_UNSPECIFIED"):
            # The same thing said in an older field: the silence is on purpose.
            reason = "NEED_MORE_INPUT" if content.flag("waitingForInput") else ""
        events.append(TurnComplete(self.turn, reason or None, _is_at_work(status)))
        self._counted.completed()
        self._begin_turn()
        return True

    def _begin_turn(self) -> None:
        self.turn += 1
        self._cut_at = None
        self._calls_in_turn = 0

    def _text_of(self, transcription: Fields) -> str:
        text = transcription.text("text")
        if not text and transcription.size("text") > MAX_TEXT:
            self._count_malformed("text too long")
        return text

    def _audio_in(self, model_turn: Fields) -> list[tuple[str, bytes]]:
        """The labels and bytes of whatever a turn's parts hold besides text."""
        found = []
        if len(model_turn.items("parts")) > MAX_PARTS:
            self._count_malformed("parts")
        for part in model_turn.objects("parts", MAX_PARTS):
            if (blob := part.object("inlineData")) is None:
                continue  # text, a thought, code: nothing a caller could hear
            data = _decode_base64(blob.data("data"))
            if data is None:
                self._count_malformed("base64")
            else:
                label = blob.text("mimeType", MAX_LABEL)
                # A label that is no text, or too long for one, is not the same as none at all.
                found.append((label if label or blob.is_unset("mimeType") else "?", data))
        return found

    def _play(
        self, audio: Sequence[tuple[str, bytes]], now: float, events: list[SessionEvent]
    ) -> None:
        """Take agent audio, whatever it is called, if it can only be one thing."""
        pieces = [pcm for label, data in audio if (pcm := self._agent_pcm(label, data))]
        if len(pieces) > JOINED_PARTS:
            pieces = [b"".join(pieces)]
        if pieces:
            turn = self._speaking_turn(now)
            events += [AgentAudio(pcm, turn, now) for pcm in pieces]

    def _agent_pcm(self, label: str, data: bytes) -> bytes:
        """Samples as the rest of us expect them; none if this is something else."""
        rate_hz = None if not label and is_file(data) else rate_of(label)
        if rate_hz is None:
            self._log_once("unplayable agent audio ignored", kind=described(label))
            return b""
        if len(data) % 2:  # half a sample would turn all that follows into noise
            self._count_malformed("odd pcm length")
            data = data[:-1]
        if self._rate_change is not None and self._rate_change.rate_hz != rate_hz:
            self._rate_change = None
        if rate_hz == AGENT_RATE_HZ:
            return data
        if self._rate_change is None:
            self._log_once("agent audio of another rate is resampled", rate_hz=rate_hz)
            self._rate_change = RateChange(rate_hz)
        return self._rate_change.convert(data)

    def _end_audio(self, now: float, events: list[SessionEvent]) -> None:
        """Give out what is still in the filter of a turn that has been resampled."""
        rate_change, self._rate_change = self._rate_change, None
        if rate_change is not None and (pcm := rate_change.flush()):
            events.append(AgentAudio(pcm, self._speaking_turn(now), now))

    def _say(self, text: str, now: float, events: list[SessionEvent]) -> None:
        if text:
            events.append(AgentTranscript(text[:MAX_TEXT], self._speaking_turn(now)))

    def _speaking_turn(self, now: float) -> int:
        """Decide which turn something the agent says belongs to."""
        if self._cut_at is not None and now - self._cut_at > LATE_AUDIO_S:
            # The turnComplete of the cut turn never came. Were its number kept, playout would
            # drop everything the agent says from here on.
            self._begin_turn()
        self._counted.begun = True
        return self.turn

    def _read_tool_call(self, tool_call: Fields, now: float, events: list[SessionEvent]) -> None:
        count = len(tool_call.items("functionCalls"))
        self._calls_in_turn += count
        if self._calls_in_turn > MAX_CALLS or not self._call_pace.allows(now, count):
            raise TooMuchError("function calls")
        calls = []
        self._counted.begun = True
        for call in tool_call.objects("functionCalls", MAX_CALLS):
            identity = call.text("id", MAX_ID)
            if not identity and call.size("id") > MAX_ID:
                raise TooMuchError("characters in the id of a function call")
            name = call.text("name", MAX_FUNCTION_NAME)
            refusal = ""
            if not name:
                self._count_malformed("function call")
                if not identity:
                    continue  # nothing that could be answered
                refusal = "a call needs a function's name, of at most 128 characters"
            if not identity:  # Vertex may leave it out; an answer must carry one
                self._ids_made += 1
                identity = f"offhook-{self._ids_made}"
            arguments = call.plain_object("args", MAX_ARGUMENTS_BYTES)
            if arguments is None:
                self._count_malformed("function arguments")
                refusal = refusal or "the arguments are too long, too deep, or not plain JSON"
            calls.append(ToolCall(identity, name or "unnamed", arguments or {}, refusal))
        if calls:
            events.append(ToolCallsRequested(tuple(calls)))

    def _count(
        self, counts: Fields, beside_content: bool, completed: bool, events: list[SessionEvent]
    ) -> None:
        if (usage := read_usage(counts)) is None:
            return
        late = self._counted.is_of_completed(
            usage, beside_content=beside_content, at_completion=completed
        )
        events.append(replace(usage, turn=self.turn - 1 if late else self.turn))

    def _report_unknown(self, place: str, fields: Fields, known: frozenset[str]) -> None:
        for name in fields.names() - known:
            if len(self._logged) >= MAX_NAMES_LOGGED:
                return
            # The name is the service's: its length and a fingerprint tell one from another.
            self._log_once(
                "unknown field from the model ignored",
                place=place,
                characters=len(name),
                fingerprint=fingerprint(name),
            )

    def _count_malformed(self, what: str) -> None:
        self.malformed += 1
        self._log_once("unreadable data from the model ignored", what=what)

    def _log_once(self, event: str, **facts: object) -> None:
        """Log something for the first time; every fact is a number or a word of ours."""
        said = f"{event} {facts}"
        if said not in self._logged and len(self._logged) < MAX_NAMES_LOGGED:
            self._logged.add(said)
            logger.warning(event, **facts)


def _is_at_work(status: str) -> bool:
    """Whether more comes by itself: the SDK goes by "anything but IDLE, if there is a status"."""
    return status not in ("", "IDLE", "INTERACTION_STATUS_UNSPECIFIED")


def _is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def _decode_base64(text: str) -> bytes | None:
    """Decode base64 of either alphabet, padded or not; None if it is neither."""
    try:
        encoded = text.encode("ascii").translate(_STANDARD_BASE64).rstrip(b"=")
        return binascii.a2b_base64(encoded + b"=" * (-len(encoded) % 4), strict_mode=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError are both one
        return None


_STANDARD_BASE64 = bytes.maketrans(b"-_", b"+/")


# --- The socket -----------------------------------------------------------------------------------


class MessageSocket(Protocol):
    """What a session needs of a WebSocket; raises ``websockets.exceptions.ConnectionClosed``."""

    async def send(self, message: bytes, *, text: bool) -> None:
        """Send a whole message, as a text frame if asked to; safe from several tasks."""
        ...

    async def recv(self, *, decode: Literal[False]) -> bytes:
        """Wait for a whole message, as bytes whatever the frame; one task at a time."""
        ...

    async def aclose(self, code: int, reason: str) -> None:
        """Close, and wait for the other side to agree."""
        ...


Connect = Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[MessageSocket]]
"""Opens a socket: URL and headers in. A model simulator offers one that needs no network."""

# At DEBUG the library logs every header, the API key among them; at INFO every connection.
_websocket_logger = logging.getLogger(f"{__name__}.websocket")
_websocket_logger.setLevel(logging.WARNING)


class _Connection(ClientConnection):
    """A connection whose reader outlives cancellation, until the socket is closed.

    A hang-up cancels the whole call. The library's reader would close the socket at that moment,
    before our close frame is out, and the service would see every call end as 1006.
    """

    async def recv_events(self) -> None:
        with trio.CancelScope(shield=True):
            await super().recv_events()  # ends as soon as the stream is closed


class _connect(websocket_connect):  # noqa: N801 - named as the class it specialises
    """Never follows a redirect: the library would take our key along to another host."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class GeminiSession:
    """A conversation over one connection; made by :meth:`GeminiModel.open_session`."""

    def __init__(
        self, socket: MessageSocket, dialect: Dialect, model: GeminiModel, first_turn: int = 1
    ) -> None:
        self._socket = socket
        self._dialect = dialect
        self._model = model
        self._protocol = GeminiProtocol(first_turn)
        self._pace = Pace(MESSAGES_PER_S, MAX_MESSAGES_AT_ONCE)
        self._events: deque[SessionEvent] = deque()

    async def set_up(self, message: Mapping[str, Any], history: Sequence[PastTurn] = ()) -> None:
        """Send the set-up and wait until the service is ready: nothing may be sent before.

        Args:
            message: The set-up.
            history: Turns that the set-up has announced; the service waits for them, and does
                not answer them.
        """
        await self._socket.send(msgspec.json.encode(message), text=True)
        while not self._protocol.ready:
            await self._read_message()
        if history:
            turns = [
                ("model" if turn.speaker == "agent" else "user", turn.text) for turn in history
            ]
            await self._socket.send(client_content_message(turns, turn_complete=True), text=True)

    async def receive(self) -> SessionEvent:
        """Wait for the next event, over all turns; one task at a time, safe to cancel.

        Raises:
            ModelError: The service closed or lost the connection; every later call says the same.
        """
        while not self._events:
            with self._model.translated_closing():
                await self._read_message()
        return self._events.popleft()

    def listen(self, on_event: EventListener) -> bool:
        """See :meth:`Session.listen`; it takes a wire of the media plane."""
        if not isinstance(self._socket, WireSocket):
            return False
        socket, events = self._socket, self._events

        def on_messages(messages: Messages, ended: bool) -> None:
            try:
                for data, _ in messages:
                    events.extend(self._read(data))
                while events:  # the rest of a message's events are to be seen by is_drained
                    on_event(events.popleft())
                if ended:
                    with self._model.translated_closing():
                        raise socket.closing()
            except ModelError as error:
                on_event(error)

        socket.wire.listen(on_messages)
        return True

    async def _read_message(self) -> None:
        self._events += self._read(await self._socket.recv(decode=False))

    def _read(self, data: bytes) -> list[SessionEvent]:
        now = trio.current_time()
        if not self._pace.allows(now, 1 + len(data) // MESSAGE_BYTES):
            raise ModelError(
                "Gemini sends more messages than a call can take",
                code=None,
                reason="too many messages",
                retryable=True,
            )
        try:
            return self._protocol.receive(data, now)
        except ToldError as told:
            error = self._model.told_error(told, during_setup=not self._protocol.ready)
            raise error from None

    async def send_audio(self, pcm: bytes) -> None:
        """Send caller audio: signed 16-bit little-endian mono at 16 kHz, 20 to 100 ms of it.

        Like every send, safe from several tasks, and not to be used again after one was
        cancelled (half a message may be out).

        Raises:
            ModelError: The connection is closed.
        """
        await self._send(audio_message(pcm))

    def send_audio_nowait(self, pcm: bytes) -> bool:
        """Send caller audio if the socket takes it without waiting; False if it cannot.

        Raises:
            ModelError: The connection is closed.
        """
        if not isinstance(self._socket, WireSocket):
            return False
        with self._model.translated_closing():
            self._socket.send_nowait(audio_message(pcm))
        return True

    def join(self, relay: Relay) -> bool:
        """See :meth:`Session.join`; for as long as this connection lives."""
        if not isinstance(self._socket, WireSocket):
            return False
        relay.join_model(self._socket.wire)
        return True

    def leave(self, relay: Relay) -> None:
        """Undo that: another connection will take its place."""
        if isinstance(self._socket, WireSocket):
            relay.leave_model(self._socket.wire)

    @property
    def is_drained(self) -> bool:
        """See :meth:`Session.is_drained`."""
        return not (
            self._events
            or self._protocol.is_cutting
            or (isinstance(self._socket, WireSocket) and self._socket.wire.has_inbox)
        )

    def note_passed(self) -> None:
        """Nothing is kept for another connection here."""

    async def send_text(self, text: str) -> None:
        """Say something as the caller's side; the model answers, so this makes it speak first.

        Raises:
            ModelError: The connection is closed.
        """
        await self._send(text_message(self._dialect, text))

    async def send_note(self, text: str) -> bool:
        """Add to the conversation without a turn's end, so that the model goes on listening.

        Raises:
            ModelError: The connection is closed.
        """
        if not self._dialect.takes_notes:
            return False
        await self._send(client_content_message([("user", text)], turn_complete=False))
        return True

    async def send_tool_results(self, results: tuple[ToolResult, ...]) -> None:
        """Answer tool calls, in one message.

        Raises:
            ModelError: The connection is closed.
        """
        await self._send(tool_results_message(results))

    async def reconnect(self, way: Way, reason: str) -> bool:
        """One connection is all this session has."""
        return False

    async def _send(self, message: bytes) -> None:
        with self._model.translated_closing():
            await self._socket.send(message, text=True)


class GeminiModel:
    """Opens sessions with one model of the Gemini Developer API.

    Args:
        api_key: Sent in a header, and found in no log, no error and no ``repr``.
        model: The model's name.
        url: Base URL, ``wss://…``; ``ws://…`` for a local double.
        config: Settings for every session (tools, temperature …) under each agent's own.
        connect_timeout_s: Longest wait for the connection.
        setup_timeout_s: Longest wait for the service to be ready after that.
        close_timeout_s: Longest wait for a clean close; then the socket is dropped.
        connect: Opens the socket; None for a real one.
        plane: Where real sockets are put; None leaves them to the ``websockets`` library.
        proxy: An HTTP proxy that real sockets go through, ``http://user:password@host:port``.

    Raises:
        ConfigurationError: The URL is not a WebSocket URL, or the key cannot be a header.
    """

    def __init__(
        self,
        *,
        api_key: str,
        model: str = DEFAULT_MODEL,
        url: str = DEFAULT_URL,
        config: types.LiveConnectConfig | None = None,
        connect_timeout_s: float = 10.0,
        setup_timeout_s: float = 10.0,
        close_timeout_s: float = 2.0,
        connect: Connect | None = None,
        plane: Plane | None = None,
        proxy: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ConfigurationError("GEMINI_URL must be a ws:// or wss:// base URL")
        if not api_key or not api_key.isascii() or not api_key.isprintable():
            raise ConfigurationError("GEMINI_API_KEY is empty or has characters no key has")
        self.name = model
        self._api_key = api_key
        self._host = parts.hostname
        self._url = (
            f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
            f"/ws/google.ai.generativelanguage.{API_VERSION}.GenerativeService.BidiGenerateContent"
        )
        self._config = config
        self._connect_timeout_s = connect_timeout_s
        self._setup_timeout_s = setup_timeout_s
        self._close_timeout_s = close_timeout_s
        self._plane = plane
        self._proxy = proxy
        self._connect = connect if connect is not None else self._connect_websocket
        # Made once: loading the certificate store takes milliseconds, which a call would feel.
        self._tls = ssl.create_default_context() if parts.scheme == "wss" else None
        self._dialect = dialect_of(model)
        self._dropped_logged: set[str] = set()

    def __repr__(self) -> str:
        return f"<GeminiModel {self.name!r} at {self._host!r}>"

    @asynccontextmanager
    async def open_session(
        self,
        agent: Agent,
        conversation: Conversation | None = None,
        *,
        handle: str | None = None,
        first_turn: int = 1,
    ) -> AsyncGenerator[GeminiSession]:
        """Connect, set the agent up, wait until the service is ready; close when the block ends.

        Closing is clean and bounded by ``close_timeout_s`` even when the block was cancelled.

        Args:
            agent: Who answers the phone.
            conversation: Asked what has been said so far, which a new session is then told.
            handle: Go on with the session that the service has kept under this handle.
            first_turn: Number of the first agent turn.

        Raises:
            ModelSetupRefused: The service refused the set-up, or the handle; trying the same again
                will not help.
            ModelQuotaExceeded: The account's quota is used up.
            ModelError: It could not be reached, or closed before it was ready.
        """
        history: tuple[PastTurn, ...] = ()
        if conversation is not None and handle is None:
            history = recent_history(conversation.history())
        config = agent_config(agent, self._config)
        config = resumed_config(config, self._dialect, handle=handle, history=history)
        message, dropped = setup_message(self.name, config)
        self._log_dropped(dropped)
        async with AsyncExitStack() as stack:
            with self._translated_opening():
                headers = {"x-goog-api-key": self._api_key}
                socket = await stack.enter_async_context(self._connect(self._url, headers))
                stack.push_async_callback(self._close, socket)
                session = GeminiSession(socket, self._dialect, self, first_turn)
                with trio.fail_after(self._setup_timeout_s):
                    await session.set_up(message, history if config.history_config else ())
            # The session lasts as long as its call; what it was set up with need not.
            del config, message, history, headers, conversation
            # Nothing is translated past this point: an error raised by the caller's block is
            # the caller's, whatever its type.
            yield session

    def _connect_websocket(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[MessageSocket]:
        if self._plane is not None:
            return open_wire(
                self._plane,
                url,
                headers,
                tls=self._tls,
                max_message_bytes=MAX_MESSAGE_BYTES,
                connect_timeout_s=self._connect_timeout_s,
                close_timeout_s=self._close_timeout_s,
                proxy=self._proxy,
            )
        return _connect(
            url,
            ssl=self._tls,
            additional_headers=headers,
            # None is none: one from the environment would be a hop nobody asked for.
            proxy=self._proxy,
            # 52 us a chunk to save 28 % of a base64 text.
            compression=None,
            # Pongs come up to 30 s late from a healthy service; speech is the sign of life.
            ping_interval=None,
            open_timeout=self._connect_timeout_s,
            close_timeout=self._close_timeout_s,
            max_size=MAX_MESSAGE_BYTES,
            logger=_websocket_logger,
            create_connection=_Connection,
        )

    async def _close(self, socket: MessageSocket) -> None:
        # A call that is hung up is cancelled: without the shield no close frame would be sent.
        with trio.move_on_after(self._close_timeout_s, shield=True):
            await socket.aclose(1000, "")

    def _log_dropped(self, dropped: Sequence[str]) -> None:
        news = [name for name in dropped if name not in self._dropped_logged]
        if news:
            self._dropped_logged.update(news)
            logger.warning("settings left out that this model refuses", model=self.name, names=news)

    @contextmanager
    def translated_closing(self) -> Generator[None]:
        """Turn the socket's closing, in the middle of a session, into a ModelError."""
        try:
            yield
        except ConnectionClosed as closed:
            raise self._closed_error(closed, during_setup=False) from self._cause(closed)

    @contextmanager
    def _translated_opening(self) -> Generator[None]:
        """Turn whatever can go wrong before the service is ready into a ModelError."""
        try:
            yield
        except ConnectionClosed as closed:
            raise self._closed_error(closed, during_setup=True) from self._cause(closed)
        except InvalidStatus as refused:
            raise self._refused_error(refused) from refused
        except trio.TooSlowError as late:
            raise self._unreachable_error("no answer to the set-up in time") from late
        except OSError as failure:
            raise self._unreachable_error(str(failure) or type(failure).__name__) from failure
        except InvalidHandshake as failure:  # its text may hold headers of the other end's choosing
            kind = type(failure).__name__
            raise self._unreachable_error(str(failure) or kind, logged=kind) from failure
        except trio.BrokenResourceError as failure:  # TLS, on the library's own path
            raise self._unreachable_error(str(failure.__cause__ or "TLS failed")) from failure

    def _closed_error(self, closed: ConnectionClosed, *, during_setup: bool) -> ModelError:
        code = closed.rcvd.code if closed.rcvd is not None else 1006
        reason = self._without_key(closed.rcvd.reason if closed.rcvd is not None else "")
        told = f"Gemini closed the session with {code}"
        message = f"{told}: {reason or 'no reason given'}"
        loggable = f"{told}: {known_words(reason)}"
        return _error_of(
            classify(reason, close_code=code),
            message,
            code=code,
            reason=reason,
            loggable=loggable,
            # In mid-call 1008 comes after tool results and goes away; 1007 is a used-up context.
            of_setup=during_setup and code in (1007, 1008),
            retryable=code != 1007,
        )

    def told_error(self, told: ToldError, *, during_setup: bool) -> ModelError:
        """Make an error of one that the service has told in a message."""
        code, reason = told.http_status, self._without_key(f"{told.status} {told.reason}".strip())
        named = " ".join(str(one) for one in (code, told.status) if one) or "an error"
        message = f"Gemini says {named}: {reason or 'no reason given'}"
        loggable = f"Gemini says {named}: {known_words(reason)}"
        kind = classify(reason, status=code)
        passes = (code or 0) >= 500 or told.status in ("INTERNAL", "UNAVAILABLE", "ABORTED")
        of_setup = during_setup and not passes
        return _error_of(
            kind, message, code=None, reason=reason, loggable=loggable, of_setup=of_setup
        )

    def _refused_error(self, refused: InvalidStatus) -> ModelError:
        status = refused.response.status_code
        body = bytes(refused.response.body or b"").decode("utf-8", "replace")
        # The key goes before the text is cut: half of one is too much, too.
        reason = f"HTTP {status} {self._without_key(body)[:200]}".strip()
        message = f"Gemini refused the connection: {reason}"
        loggable = f"Gemini refused the connection: HTTP {status}, {known_words(reason)}"
        kind = classify(body, status=status, at_handshake=True)
        return _error_of(
            kind, message, code=None, reason=reason, loggable=loggable, of_setup=status < 500
        )

    def _unreachable_error(self, reason: str, *, logged: str | None = None) -> ModelError:
        reason = self._without_key(reason)
        told = f"Gemini at {self._host} cannot be reached"
        return ModelError(
            f"{told}: {reason}",
            code=None,
            reason=reason,
            retryable=True,
            loggable=f"{told}: {logged or reason}",
        )

    def _cause(self, closed: ConnectionClosed) -> ConnectionClosed | None:
        # A traceback prints its causes, and the close reason with them.
        return None if self._api_key in str(closed) else closed

    def _without_key(self, text: str) -> str:
        # Google quotes the key in some refusals ("Consumer 'api_key:…' has been suspended"), and
        # cuts a close reason wherever its bytes are full.
        text = text.replace(self._api_key, _NO_KEY)
        for length in range(len(self._api_key) - 1, _MIN_PART_OF_KEY - 1, -1):
            if text.endswith(self._api_key[:length]):
                return text[:-length] + _NO_KEY
        return text


_NO_KEY = "[the API key]"
_MIN_PART_OF_KEY = 8
"""Fewer characters of a key may be part of any word."""


def _error_of(
    kind: Kind | None,
    message: str,
    *,
    code: int | None,
    reason: str,
    loggable: str,
    of_setup: bool,
    retryable: bool = True,
) -> ModelError:
    """Make the error for what is about the account, about this set-up, or about neither."""
    if kind is not None:
        return account_refused(kind, message, code=code, reason=reason, loggable=loggable)
    error = ModelSetupRefused if of_setup else ModelError
    retryable = retryable and not of_setup
    return error(message, code=code, reason=reason, retryable=retryable, loggable=loggable)


def account_refused(
    kind: Kind, message: str, *, code: int | None, reason: str, loggable: str | None = None
) -> ModelError:
    """Make the error for a refusal that is about the account.

    Args:
        kind: What is refused.
        message: What has happened, without a key.
        code: The WebSocket close code, if it was one.
        reason: The service's own words, without a key.
        loggable: The message without those; None if it has none.
    """
    error = ModelError
    if kind in (Kind.RATE, Kind.QUOTA):
        error = ModelQuotaExceeded
    elif kind.cure is Cure.PERSON:
        error = ModelSetupRefused
    retryable = kind.cure is Cure.RETRY
    return error(
        message,
        code=code,
        reason=reason,
        retryable=retryable,
        loggable=loggable,
        refusal=kind,
    )
