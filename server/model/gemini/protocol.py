"""Gemini Live without a socket: messages in, events out."""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from secrets import token_hex

import msgspec
import structlog

from server.errors import ModelError
from server.model import (
    AGENT_RATE_HZ,
    AgentAudio,
    AgentTranscript,
    CallerTranscript,
    GenerationComplete,
    GoingAway,
    Interrupted,
    ResumptionHandle,
    SessionEvent,
    ToolCall,
    ToolCallsCancelled,
    ToolCallsRequested,
    TurnComplete,
    Working,
)
from server.model.gemini.audio_label import MAX_LABEL, RateChange, described, is_file, rate_of
from server.model.gemini.counts import CountedTurn, read_usage
from server.model.gemini.fields import MAX_NAME, MAX_TEXT, UNREADABLE, Fields, has_too_much
from server.model.gemini.service_words import MAX_REASON, fingerprint, known_status
from server.model.gemini.setup import MAX_NAMES_LOGGED
from server.pace import Pace

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
LATE_AUDIO_S = 1.0
"""How long audio after ``interrupted`` is taken for the cut turn's when no ``turnComplete`` comes.

What is already on the wire arrives within a round trip; a reply to the caller who interrupted
needs at least the end-of-speech silence (0.5 s) and the model's own time. Between the two.
"""
ANSWER_S = 0.25
"""How soon after functions' results what is said cannot be about them yet.

It was on its way, as all is that follows it without such a pause: an answer needs a round trip and
the model's own time.
"""
MAX_MALFORMED_IN_A_ROW = 50
"""So many unreadable messages without a readable one between them end the session."""


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
        "inputTranscription",
        "outputTranscription",
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
"""Functions called in all turns together, a second and at once, before the session is given up."""
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
        ends_turn_at_call: Whether the model ends the turn in which it calls functions. Of one that
            goes on in it, what follows the results is a turn of its own here: the caller may have
            cut, or missed, what was said before.

    Attributes:
        ready: True once ``setupComplete`` has come.
        turn: Number of the agent turn that is under way, or comes next.
        malformed: Messages and fields so far that could not be read.
    """

    def __init__(self, first_turn: int = 1, *, ends_turn_at_call: bool = False) -> None:
        self.ready = False
        self.turn = first_turn
        self._ends_turn_at_call = ends_turn_at_call
        self.malformed = 0
        self._malformed_in_a_row = 0
        self._cut_at: float | None = None  # when the turn under way was interrupted
        self._counted = CountedTurn()
        # The first of what may be several turns here, and one to the model, which counts it so.
        self._counts_of, self._counts_of_completed = first_turn, first_turn - 1
        self._has_spoken = False  # in this turn
        self._answered_at: float | None = None  # when its calls were, or more of it came since
        self._words = ""  # that came after that, before any sound: of this turn, or of the next
        self._calls_in_turn = 0  # of the model's
        self._call_pace = Pace(CALLS_PER_S, MAX_CALLS_AT_ONCE)
        # In a call, which has many connections and perhaps processes, an id stands for one thing.
        self._made, self._ids_made = f"offhook-{token_hex(8)}-", 0
        self._rate_change: RateChange | None = None
        self._logged: list[str] = []

    @property
    def is_between_turns(self) -> bool:
        """Whether what is said next may be of this turn or of the next one: one that was
        interrupted, or has its functions' results."""
        return self._cut_at is not None or self._answered_at is not None

    def calls_answered(self, now: float) -> None:
        """Results of functions have been sent: the model may go on with what it has to say."""
        waits = self._calls_in_turn > 0 and not self._ends_turn_at_call and self._cut_at is None
        if waits and self._has_spoken:
            self._answered_at = now

    def has_made(self, identity: str) -> bool:
        """Whether a function call's id was made here: the service has given it none."""
        return identity.startswith(self._made)

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
        self._read_heard(fields, events)  # an older page of Vertex AI's has transcripts here
        self._read_said(fields, now, events)
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
        self._read_heard(content, events)
        if (model_turn := content.object("modelTurn")) is not None:
            self._play(self._audio_in(model_turn), now, events)
        self._read_said(content, now, events)
        if content.flag("generationComplete"):
            self._tell_words(events)
            self._end_audio(now, events)
            events.append(GenerationComplete(self.turn))
        if content.flag("interrupted"):
            self._tell_words(events)
            self._cut_at, self._answered_at = now, None
            self._rate_change = None
            events.append(Interrupted(self.turn, now))
        if not content.flag("turnComplete"):
            return False
        self._tell_words(events)
        self._end_audio(now, events)
        reason = content.text("turnCompleteReason", MAX_NAME)
        if reason in ("", "TURN_COMPLETE_REASON_UNSPECIFIED"):
            # The same thing said in an older field: the silence is on purpose.
            reason = "NEED_MORE_INPUT" if content.flag("waitingForInput") else ""
        events.append(TurnComplete(self.turn, reason or None, _is_at_work(status)))
        self._counted.completed()
        self._begin_turn()
        return True

    def _read_heard(self, fields: Fields, events: list[SessionEvent]) -> None:
        heard = fields.object("inputTranscription")
        if heard is not None and (text := self._text_of(heard)):
            events.append(CallerTranscript(text))

    def _read_said(self, fields: Fields, now: float, events: list[SessionEvent]) -> None:
        if (said := fields.object("outputTranscription")) is not None:
            self._say(self._text_of(said), now, events)

    def _begin_turn(self) -> None:
        self._go_on()
        self._cut_at = None
        self._calls_in_turn = 0
        self._counts_of_completed, self._counts_of = self._counts_of, self.turn

    def _go_on(self) -> None:
        """What the model says from here on is another turn, whether or not it is to the model."""
        self.turn += 1
        self._has_spoken, self._answered_at = False, None

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
            turn = self._spoken_turn(now, events)
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
        if rate_hz == AGENT_RATE_HZ:
            return data  # and nothing more: most of it passes in C, and is never seen here
        if self._rate_change is not None and self._rate_change.rate_hz != rate_hz:
            self._rate_change = None
        if self._rate_change is None:
            self._log_once("agent audio of another rate is resampled", rate_hz=rate_hz)
            self._rate_change = RateChange(rate_hz)
        return self._rate_change.convert(data)

    def _end_audio(self, now: float, events: list[SessionEvent]) -> None:
        """Give out what is still in the filter of a turn that has been resampled."""
        rate_change, self._rate_change = self._rate_change, None
        if rate_change is not None and (pcm := rate_change.flush()):
            events.append(AgentAudio(pcm, self._turn_at(now), now))

    def _say(self, text: str, now: float, events: list[SessionEvent]) -> None:
        if self._answered_at is not None and now - self._answered_at > ANSWER_S:
            # Words come late or early; they alone do not say that an answer has begun.
            self._words = (self._words + text)[:MAX_TEXT]
        elif text:
            events.append(AgentTranscript(text[:MAX_TEXT], self._spoken_turn(now, events)))

    def _spoken_turn(self, now: float, events: list[SessionEvent]) -> int:
        """Decide which turn something the agent says belongs to, and end the one before it."""
        if self._answered_at is not None:
            if now - self._answered_at > ANSWER_S:
                events.append(GenerationComplete(self.turn))
                self._go_on()
                self._tell_words(events)
            else:
                self._answered_at = now
        turn = self._turn_at(now)
        self._has_spoken = True
        return turn

    def _tell_words(self, events: list[SessionEvent]) -> None:
        """Words of which it was open whose they are belong to this turn."""
        if self._words:
            events.append(AgentTranscript(self._words, self.turn))
            self._words = ""

    def _turn_at(self, now: float) -> int:
        """Decide which turn something belongs to that the agent does now."""
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
        self._tell_words(events)
        calls, turn = [], self._turn_at(now)
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
            if not identity:  # Vertex may leave it out; whoever answers needs one
                self._ids_made += 1
                identity = f"{self._made}{self._ids_made}"
            arguments = call.plain_object("args", MAX_ARGUMENTS_BYTES)
            if arguments is None:
                self._count_malformed("function arguments")
                refusal = refusal or "the arguments are too long, too deep, or not plain JSON"
            calls.append(ToolCall(identity, name or "unnamed", arguments or {}, refusal))
        if calls:
            events.append(ToolCallsRequested(tuple(calls), turn, self._ends_turn_at_call))

    def _count(
        self, counts: Fields, beside_content: bool, completed: bool, events: list[SessionEvent]
    ) -> None:
        if (usage := read_usage(counts)) is None:
            return
        late = self._counted.is_of_completed(
            usage, beside_content=beside_content, at_completion=completed
        )
        turn = self._counts_of_completed if late else self._counts_of
        events.append(msgspec.structs.replace(usage, turn=turn))

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
            self._logged.append(said)
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
