"""Twilio: Media Streams without a socket, the same on a socket, the REST API, the webhooks.

The rules followed here are Twilio's "Media Streams - WebSocket Messages", "TwiML Voice: <Stream>",
"Call resource" and "Webhooks Security" pages.
"""

from __future__ import annotations

import base64
import hmac
import logging
import math
import random
import re
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from types import TracebackType
from typing import Annotated, Protocol, Self, TypeVar, runtime_checkable
from urllib.parse import urlsplit

import httpx2
import msgspec
import structlog
import trio
from msgspec import Meta, Struct
from twilio.base.exceptions import TwilioException, TwilioRestException, TwilioServiceException
from twilio.http import AsyncHttpClient
from twilio.http.response import Response
from twilio.request_validator import (
    SIGNATURE_HEADER,
    SIGNATURE_SETTINGS_HEADER,
    RequestValidator,
    get_signature_algorithm,
)
from twilio.rest import Client
from twilio.twiml.voice_response import Connect, Dial, VoiceResponse

from server.carrier import (
    AnsweredBy,
    CallerAudio,
    CallStatus,
    CarrierCommand,
    CarrierEvent,
    Clear,
    DigitPressed,
    Listener,
    MachineVerdict,
    MarkReached,
    PlacedCall,
    SendAudio,
    SendMark,
    StatusUpdate,
    StreamStarted,
    StreamStopped,
    TransferUpdate,
    VoiceRequest,
)
from server.carrier.retry_after import read_retry_after
from server.carrier.twilio_webhooks import (
    check_call_sid,
    check_fields,
    is_count,
    is_of_account,
    other_addresses,
    parse_status,
    parse_voice,
)
from server.errors import (
    CallNotInProgress,
    CarrierError,
    CarrierProtocolError,
    ConfigurationError,
    StreamEnded,
)
from server.headers import Headers, lines_of, single
from server.relay import Relay
from server.setting_values import is_loopback

logger = structlog.get_logger(__name__)

_T = TypeVar("_T")

MAX_MESSAGE_CHARS = 64 * 1024
"""A longer message is not read. Twilio's own are about 400 characters."""

MAX_MALFORMED = 50
"""So many unreadable messages on one stream, a second's worth, and it is not Twilio's stream."""

MAX_BEFORE_START = 32
"""Messages until ``start`` has come, itself included. Twilio sends ``connected``, and then it."""
MAX_CHARS_BEFORE_START = 16 * 1024
"""What they may have together. Twilio's are about 1,500; a parameter has less than 500."""

_MAX_UNKNOWN_KINDS_LOGGED = 10
_MAX_CLOSE_REASON_BYTES = 123  # RFC 6455, 5.5: a control frame carries 125, two are the code.

# ------------------------------------------------------------------------------------------
# Media Streams: messages on the wire
#
# Twilio writes every number as a string except inside mediaFormat; the decoder is lax about
# that, and strict about base64 (standard alphabet, padded), which it decodes itself.

# A stream's numbers are bounded here: Python's integers are not, and a float, a counter or a column
# that is given one of 400 digits fails far from whoever sent it.

MAX_COUNT = 999_999_999_999_999
"""Of 15 digits: as many as the compiled path reads, and exact in a float."""
MAX_GAP_CHUNKS = 3_000
"""A minute: chunk numbers that are further apart are another count, not audio that was lost."""
_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Sid = Annotated[str, Meta(min_length=1, max_length=64)]


class _MediaFormat(Struct, rename="camel"):
    encoding: str
    sample_rate: _Count
    channels: _Count


class _StartFacts(Struct, rename="camel"):
    call_sid: _Sid
    media_format: _MediaFormat
    custom_parameters: dict[str, str] | None = None


class _MediaFacts(Struct, gc=False):
    payload: bytes
    timestamp: _Count
    chunk: _Count = 0
    track: str = "inbound"


class _DtmfFacts(Struct, gc=False):
    digit: Annotated[str, Meta(pattern="^[0-9*#A-D]$")]


class _MarkFacts(Struct, gc=False):
    name: str


class _Connected(Struct, tag_field="event", tag="connected"):
    pass


class _Start(Struct, tag_field="event", tag="start", rename="camel"):
    stream_sid: _Sid
    start: _StartFacts


class _Media(Struct, gc=False, tag_field="event", tag="media", rename="camel"):
    stream_sid: str
    media: _MediaFacts


class _Dtmf(Struct, tag_field="event", tag="dtmf", rename="camel"):
    stream_sid: str
    dtmf: _DtmfFacts


class _Mark(Struct, tag_field="event", tag="mark", rename="camel"):
    stream_sid: str
    mark: _MarkFacts


class _Stop(Struct, tag_field="event", tag="stop", rename="camel"):
    stream_sid: str


_Message = _Connected | _Start | _Media | _Dtmf | _Mark | _Stop
_KNOWN_KINDS = frozenset({"connected", "start", "media", "dtmf", "mark", "stop"})


class _AnyKind(Struct):
    event: str


_decode_message = msgspec.json.Decoder(_Message, strict=False).decode
_decode_kind = msgspec.json.Decoder(_AnyKind).decode

# What msgspec raises for text that is no such message: not JSON or not the fields wanted, lone
# surrogates, nested too deep.
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)

# ------------------------------------------------------------------------------------------
# Media Streams without a socket


@dataclass(slots=True)
class StreamCounts:
    """What one stream has carried and what was wrong with it, for metrics and the call's record."""

    media: int = 0
    """Chunks of caller audio delivered."""
    malformed: int = 0
    """Not JSON, too long, or without the fields its kind must have; ignored."""
    unknown: int = 0
    """Kinds of message this program has never heard of; ignored."""
    misplaced: int = 0
    """Known kinds at the wrong time, such as media before start or after stop; ignored."""
    foreign: int = 0
    """Another stream's sid, or the track of our own audio; ignored."""
    binary: int = 0
    """Binary frames, which Twilio never sends; ignored."""
    missing_chunks: int = 0
    """Chunk numbers that were skipped: audio the carrier dropped before we saw it."""
    repeated_chunks: int = 0
    """Chunk numbers that were late or not new; their audio is delivered all the same."""
    timestamp_jumps: int = 0
    """Chunks that began somewhere else than where the one before ended."""


class StreamState(Enum):
    """Where a media stream stands in its life."""

    CONNECTING = auto()
    """The WebSocket is open, ``start`` has not come yet."""
    STREAMING = auto()
    STOPPED = auto()


TRANSITIONS: dict[StreamState, dict[type[_Message], StreamState]] = {
    StreamState.CONNECTING: {
        _Connected: StreamState.CONNECTING,
        _Start: StreamState.STREAMING,
    },
    StreamState.STREAMING: {
        _Media: StreamState.STREAMING,
        _Dtmf: StreamState.STREAMING,
        _Mark: StreamState.STREAMING,
        _Stop: StreamState.STOPPED,
    },
    StreamState.STOPPED: {},
}


class TwilioProtocol:
    """Twilio Media Streams without a socket: text in, events out; commands in, text out.

    What can be ignored is ignored and counted, so that one bad message never ends a call.

    Attributes:
        state: Where the stream stands.
        stream_sid: Twilio's name for the stream; empty before ``start``.
        counts: What has been seen so far.
    """

    def __init__(self) -> None:
        self.state = StreamState.CONNECTING
        self.stream_sid = ""
        self.counts = StreamCounts()
        self._unknown_kinds: set[str] = set()
        self._malformed_told = False
        self._messages_before_start = self._chars_before_start = 0
        self._last_chunk = 0
        self._next_timestamp_ms: int | None = None
        self._media_head = ""
        self._mark_head = ""
        self._clear_text = ""

    def receive_text(self, text: str | bytes, now: float) -> CarrierEvent | None:
        """Read one WebSocket message.

        Args:
            text: A text frame's content; ``bytes`` is a binary frame and is ignored.
            now: ``trio.current_time()`` when it was read.

        Returns:
            What it says, or None if it says nothing or was ignored.

        Raises:
            CarrierProtocolError: The stream is of no use: its audio is not mu-law at 8 kHz, its
                ``start`` cannot be read, too much comes before it, or it has carried
                ``MAX_MALFORMED`` unreadable messages.
        """
        if self.state is StreamState.CONNECTING:
            self._count_before_start(len(text))
        if isinstance(text, bytes):
            self.counts.binary += 1
            return None
        if len(text) > MAX_MESSAGE_CHARS:
            self._ignore_malformed(f"{len(text)} characters long")
            return None
        try:
            message: _Message = _decode_message(text)
        except _UNREADABLE as error:
            self._ignore_unreadable(text, error)
            return None

        state = TRANSITIONS[self.state].get(type(message))
        if state is None:
            self.counts.misplaced += 1
            return None
        if isinstance(message, _Connected):
            return None
        if isinstance(message, _Start):
            self._start(message)
        elif message.stream_sid != self.stream_sid:
            self.counts.foreign += 1
            return None
        self.state = state

        match message:
            case _Media(media=media):
                return self._hear(media, now)
            case _Mark(mark=mark):
                return MarkReached(mark.name, now)
            case _Dtmf(dtmf=dtmf):
                return DigitPressed(dtmf.digit)
            case _Start(start=start):
                return StreamStarted(
                    stream_sid=self.stream_sid,
                    call_sid=start.call_sid,
                    parameters=start.custom_parameters or {},
                    received_at=now,
                )
            case _Stop():
                return StreamStopped(said=True)

    def send(self, command: CarrierCommand) -> str:
        """Write one command as the text of a WebSocket message.

        Raises:
            ValueError: Nothing may be sent before ``start``: the stream has no name yet.
            StreamEnded: The carrier has said ``stop``.
        """
        if self.state is StreamState.STOPPED:
            raise StreamEnded("the carrier has stopped the stream")
        if self.state is StreamState.CONNECTING:
            raise ValueError("nothing can be sent before the stream has started")
        match command:
            case SendAudio(payload):
                return f'{self._media_head}{base64.b64encode(payload).decode("ascii")}"}}}}'
            case SendMark(name):
                return f"{self._mark_head}{_json_string(name)}}}}}"
            case Clear():
                return self._clear_text

    @property
    def position(self) -> tuple[int, int | None]:
        """Number of the last chunk, 0 if there was none, and the carrier's clock at its end."""
        return self._last_chunk, self._next_timestamp_ms

    def count_elsewhere(
        self, media: int, missing: int, repeated: int, jumps: int, *, position: tuple[int, int]
    ) -> None:
        """Chunks have been read by somebody else: add what they counted, and go on from there."""
        if not media:
            return
        counts = self.counts
        counts.media += media
        counts.missing_chunks += missing
        counts.repeated_chunks += repeated
        counts.timestamp_jumps += jumps
        self._last_chunk, self._next_timestamp_ms = position

    def _count_before_start(self, chars: int) -> None:
        self._messages_before_start += 1
        self._chars_before_start += chars
        if (
            self._messages_before_start > MAX_BEFORE_START
            or self._chars_before_start > MAX_CHARS_BEFORE_START
        ):
            raise CarrierProtocolError("too much came before a start message")

    @property
    def _may_log(self) -> bool:
        """Whether this is a call's stream: before its ``start`` it may be anybody's."""
        return self.state is not StreamState.CONNECTING

    def _start(self, message: _Start) -> None:
        media_format = message.start.media_format
        got = (media_format.encoding[:40], media_format.sample_rate, media_format.channels)
        if got != ("audio/x-mulaw", 8000, 1):
            raise CarrierProtocolError(
                "media format is {}/{}/{}, only audio/x-mulaw/8000/1 is spoken here".format(*got),
                stream_sid=message.stream_sid,
            )
        check_call_sid(message.start.call_sid, "start message")
        self.stream_sid = message.stream_sid
        sid = _json_string(message.stream_sid)
        self._media_head = f'{{"event":"media","streamSid":{sid},"media":{{"payload":"'
        self._mark_head = f'{{"event":"mark","streamSid":{sid},"mark":{{"name":'
        self._clear_text = f'{{"event":"clear","streamSid":{sid}}}'

    def _hear(self, media: _MediaFacts, now: float) -> CallerAudio | None:
        counts = self.counts
        if media.track.startswith("outbound"):
            counts.foreign += 1
            return None
        if media.chunk > self._last_chunk:
            if self._last_chunk:
                counts.missing_chunks += min(media.chunk - self._last_chunk - 1, MAX_GAP_CHUNKS)
            self._last_chunk = media.chunk
        elif media.chunk:
            counts.repeated_chunks += 1
        if self._next_timestamp_ms is not None and media.timestamp != self._next_timestamp_ms:
            counts.timestamp_jumps += 1
        self._next_timestamp_ms = media.timestamp + len(media.payload) // 8
        if not media.payload:
            return None
        counts.media += 1
        return CallerAudio(media.payload, media.timestamp, now)

    def _ignore_unreadable(self, text: str, error: Exception) -> None:
        try:
            kind = _decode_kind(text).event
        except _UNREADABLE:
            self._ignore_malformed("not a JSON object with an event")
            return
        if kind in _KNOWN_KINDS:
            if kind == "start" and self.state is StreamState.CONNECTING:
                raise CarrierProtocolError(f"unreadable start message: {error}") from error
            self._ignore_malformed(f"unreadable {kind} message: {error}")
            return
        self.counts.unknown += 1
        known = self._unknown_kinds
        if self._may_log and kind not in known and len(known) < _MAX_UNKNOWN_KINDS_LOGGED:
            known.add(kind)
            logger.info("carrier message of an unknown kind ignored", kind=kind[:40])

    def _ignore_malformed(self, cause: str) -> None:
        self.counts.malformed += 1
        if self._may_log and not self._malformed_told:
            self._malformed_told = True
            logger.warning("malformed carrier message ignored", cause=cause)
        if self.counts.malformed >= MAX_MALFORMED:
            raise CarrierProtocolError(
                f"{self.counts.malformed} malformed messages, the last one {cause}",
                stream_sid=self.stream_sid or None,
            )


def _json_string(text: str) -> str:
    return msgspec.json.encode(text).decode()


# ------------------------------------------------------------------------------------------
# Media Streams on a socket


class TextTransport(Protocol):
    """One WebSocket, as little of it as a media stream needs."""

    async def receive(self) -> str | bytes:
        """Wait for the next message: ``str`` for a text frame, ``bytes`` for a binary one.

        Raises:
            StreamEnded: The socket is over and every message that came before has been given.
        """
        ...

    def receive_nowait(self) -> str | bytes | None:
        """The next message if it is already here, else None; raises as :meth:`receive` does."""
        ...

    async def send(self, text: str) -> None:
        """Send a text frame.

        Raises:
            StreamEnded: The socket is over.
        """
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with a WebSocket close code; closing again does nothing."""
        ...


@runtime_checkable
class PushTransport(Protocol):
    """A transport that can also call back, and send without waiting."""

    def listen(self, on_messages: Callable[[Sequence[str | bytes], bool], None]) -> None:
        """Call back with what each read brought, and whether that was the end, from now on."""
        ...

    def join(self, relay: Relay) -> bool:
        """Have the relay's path take the audio; False if it cannot."""
        ...

    def leave(self, relay: Relay) -> None:
        """Undo that."""
        ...

    def send_nowait(self, text: str) -> None:
        """Send a text frame.

        Raises:
            StreamEnded: The socket is over.
        """
        ...


class TwilioMediaStream:
    """A :class:`server.carrier.MediaStream` over one WebSocket that Twilio opened."""

    def __init__(self, transport: TextTransport) -> None:
        self._transport = transport
        self._push_transport = transport if isinstance(transport, PushTransport) else None
        self._protocol = TwilioProtocol()
        self._relay: Relay | None = None
        self._counted = (0, 0, 0, 0)
        self._over = False

    @property
    def stream_sid(self) -> str:
        """Twilio's name for this stream; empty until :class:`StreamStarted` was received."""
        return self._protocol.stream_sid

    @property
    def counts(self) -> StreamCounts:
        """What the stream has carried and what was wrong with it."""
        self._count_passed()
        return self._protocol.counts

    async def receive(self) -> CarrierEvent:
        """Wait for the next event; :class:`StreamStopped` is always the last and comes once.

        Raises:
            CarrierProtocolError: See :meth:`TwilioProtocol.receive_text`; close with 1008.
            StreamEnded: Called again after :class:`StreamStopped`.
        """
        while True:
            self._check_not_over()
            try:
                text = await self._transport.receive()
            except StreamEnded:
                return self._socket_ended()
            if (event := self._read(text)) is not None:
                return event

    def receive_nowait(self) -> CarrierEvent | None:
        """The next event if it is already here, else None; raises as :meth:`receive` does."""
        while True:
            self._check_not_over()
            try:
                text = self._transport.receive_nowait()
            except StreamEnded:
                return self._socket_ended()
            if text is None:
                return None
            if (event := self._read(text)) is not None:
                return event

    async def send(self, command: CarrierCommand) -> None:
        """Send one command.

        Raises:
            StreamEnded: The stream has stopped or the socket is closed.
            ValueError: The stream has not started.
        """
        await self._transport.send(self._protocol.send(command))

    def listen(self, on_events: Listener, relay: Relay | None = None) -> bool:
        """See :meth:`server.carrier.MediaStream.listen`; it takes a transport that pushes."""
        transport = self._push_transport
        if transport is None:
            return False

        def on_messages(messages: Sequence[str | bytes], ended: bool) -> None:
            events: list[CarrierEvent | CarrierProtocolError] = []
            try:
                for message in messages:
                    if not self._over and (event := self._read(message)) is not None:
                        events.append(event)
            except CarrierProtocolError as error:
                self._over = True
                events.append(error)
            if ended and not self._over:
                events.append(self._socket_ended())
            if events:
                on_events(events)

        transport.listen(on_messages)
        if relay is not None and not self._over and transport.join(relay):
            self._relay = relay
            relay.path.start(self.stream_sid)
            self._counted = relay.path.counts()
            self._hand_over()
        return True

    def send_nowait(self, command: CarrierCommand) -> None:
        """See :meth:`server.carrier.MediaStream.send_nowait`."""
        assert self._push_transport is not None
        self._push_transport.send_nowait(self._protocol.send(command))

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket; Twilio then goes on with the TwiML, and ours has nothing more."""
        self._leave_relay()
        fitting = reason.encode()[:_MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
        await self._transport.aclose(code, fitting)

    def _read(self, text: str | bytes) -> CarrierEvent | None:
        if self._relay is None:
            event = self._protocol.receive_text(text, trio.current_time())
        else:
            # The path counts the chunks it takes; what it does not understand is counted here.
            self._count_passed()
            event = self._protocol.receive_text(text, trio.current_time())
            self._hand_over()
        if isinstance(event, StreamStopped):
            self._over = True
            self._leave_relay()
        return event

    def _socket_ended(self) -> StreamStopped:
        self._over = True
        self._leave_relay()
        return StreamStopped(said=False)

    def _leave_relay(self) -> None:
        if self._relay is not None:
            self._count_passed()
            assert self._push_transport is not None
            self._push_transport.leave(self._relay)
            self._relay = None

    def _hand_over(self) -> None:
        """The path is to count on from where the protocol has got to."""
        if self._relay is not None:
            last_chunk, timestamp_ms = self._protocol.position
            self._relay.path.resume(last_chunk=last_chunk, timestamp_ms=timestamp_ms)

    def _count_passed(self) -> None:
        """The protocol is to count on from where the path has got to."""
        if self._relay is not None:
            path = self._relay.path
            before, self._counted = self._counted, path.counts()
            self._protocol.count_elsewhere(
                *(now - then for now, then in zip(self._counted, before, strict=True)),
                position=(path.last_chunk, path.timestamp_ms),
            )

    def _check_not_over(self) -> None:
        if self._over:
            raise StreamEnded("the stream has already stopped")


# ------------------------------------------------------------------------------------------
# TwiML

# Twilio's <Say> documents these for its basic voices; any other tag is refused with an error and
# the caller hears nothing. The first of each language speaks for its other regions.
_SAY_LANGUAGES = (
    *("en-US", "en-GB", "en-AU", "en-IN", "en-CA", "es-MX", "es-ES", "pt-BR", "pt-PT", "fr-FR"),
    *("fr-CA", "de-DE", "it-IT", "nl-NL", "ca-ES", "da-DK", "fi-FI", "ja-JP", "ko-KR", "nb-NO"),
    *("pl-PL", "ru-RU", "sv-SE", "zh-CN", "zh-TW", "zh-HK"),
)


_SAME_LANGUAGE = {
    **{"no": "nb", "nn": "nb", "nor": "nb", "nob": "nb", "nno": "nb"},
    **{"zho": "zh", "chi": "zh", "cmn": "zh", "wuu": "zh", "hsn": "zh", "gan": "zh"},
    **{"eng": "en", "spa": "es", "por": "pt", "fra": "fr", "fre": "fr", "deu": "de", "ger": "de"},
    **{"ita": "it", "nld": "nl", "dut": "nl", "cat": "ca", "dan": "da", "fin": "fi", "jpn": "ja"},
    **{"kor": "ko", "pol": "pl", "rus": "ru", "swe": "sv"},
}
"""Macro-languages, their members, and codes of three letters, by the code that Twilio uses."""
_CHINESE_REGIONS = {"hk": "HK", "mo": "HK", "tw": "TW"}
MAX_TWIML_CHARACTERS = 4_000
"""Of a document in a request of ours ("Call resource": Twiml)."""


def say_language(tag: str) -> str:
    """The language of ``<Say>`` that is nearest to a BCP 47 tag; US English if none is near."""
    given, *subtags = re.split("[-_]", tag.strip().partition(".")[0].lower())
    if given == "zh" and subtags and len(subtags[0]) == 3 and subtags[0].isalpha():
        given = subtags.pop(0)  # zh-yue and its like, the older spelling
    if given == "yue":
        return "zh-HK"
    language = _SAME_LANGUAGE.get(given, given)
    region = next((one for one in subtags if len(one) == 2 and one.isalpha()), "")
    if language == "zh":
        if not region and "hant" in subtags:
            region = "tw"
        if given == "cmn" and region in ("hk", "mo"):
            region = "cn"  # Mandarin, wherever it is spoken; zh-HK is a Cantonese voice
        region = _CHINESE_REGIONS.get(region, "CN")
    if (exact := f"{language}-{region.upper()}") in _SAY_LANGUAGES:
        return exact
    near = (one for one in _SAY_LANGUAGES if one.startswith(f"{language}-"))
    return next(near, "en-US")


def say_twiml(text: str, language: str) -> str:
    """Write the document that says something and hangs up.

    Args:
        text: Anything; it is escaped.
        language: A BCP 47 tag.
    """
    response = VoiceResponse()
    response.say(text, language=say_language(language))
    response.hangup()
    return str(response)


def check_sayable(text: str, name: str) -> None:
    """Refuse what could not be said when it is wanted.

    Args:
        text: What is to be said by :func:`say_twiml`.
        name: Of the setting it comes from.

    Raises:
        ConfigurationError: It is too long, or has characters that XML cannot have.
    """
    if found := _NOT_XML.search(text):
        raise ConfigurationError(
            f"{name} has a character at place {found.start() + 1} that cannot be said: "
            f"U+{ord(found[0]):04X}"
        )
    if (over := len(say_twiml(text, "en-US")) - MAX_TWIML_CHARACTERS) > 0:
        raise ConfigurationError(
            f"{name} is too long by {over} characters: the carrier takes a document of "
            f"{MAX_TWIML_CHARACTERS} with all that is around the text, and & < > count for more"
        )


_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def stream_twiml(stream_url: str, parameters: Mapping[str, str]) -> str:
    """Write the document that gives a call to a bidirectional media stream.

    Nothing follows ``<Connect>``: when the stream is closed, the call ends.

    Args:
        stream_url: ``wss://…`` without a query, which Twilio refuses.
        parameters: Arrive with the stream's ``start``; each name and value together under 500
            characters.
    """
    connect = Connect()
    stream = connect.stream(url=stream_url)
    for name, value in parameters.items():
        stream.parameter(name=name, value=value)
    response = VoiceResponse()
    response.append(connect)
    return str(response)


def dial_twiml(number: str, *, caller_id: str, ring_timeout_s: float, status_url: str) -> str:
    """Write the document that connects a caller with somebody else.

    Twilio reports to ``status_url`` when the other one answers, and asks it for the next document
    when they have not answered or have hung up.
    """
    dial = Dial(
        caller_id=caller_id,
        timeout=math.ceil(ring_timeout_s),
        action=status_url,
        method="POST",
    )
    dial.number(
        number,
        status_callback=status_url,
        status_callback_event="answered",
        status_callback_method="POST",
    )
    response = VoiceResponse()
    response.append(dial)
    return str(response)


def _stream_origin(public_url: str) -> str:
    """``wss://host`` for the world, ``ws://127.0.0.1:port`` for a simulation on this machine."""
    parts = urlsplit(public_url)
    scheme = "ws" if parts.scheme == "http" and is_loopback(public_url) else "wss"
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"


# ------------------------------------------------------------------------------------------
# REST


class _TrioHttp(AsyncHttpClient):
    """The HTTP client the twilio package asks for, on trio. (Its own one needs asyncio.)"""

    def __init__(self, client: httpx2.AsyncClient, on_wait: Callable[[float], None]) -> None:
        super().__init__(logging.getLogger(__name__), is_async=True)
        self._client = client
        self._on_wait = on_wait

    async def request(  # type: ignore[override]  # as the package's own async client does
        self,
        method: str,
        uri: str,
        params: Mapping[str, object] | None = None,
        data: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        """Make one request; the carrier's deadline stands around it."""
        answer = await self._client.request(
            method,
            uri,
            params=dict(params) if params else None,  # type: ignore[arg-type]
            data=dict(data) if data else None,
            headers=dict(headers) if headers else None,
            auth=auth,
            follow_redirects=allow_redirects,
        )
        if answer.status_code in (429, 503):
            wait_s = read_retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
            if wait_s is not None:
                # The package's errors have no place for it.
                _asked_to_wait_s.set(wait_s)
                self._on_wait(wait_s)
        if answer.is_success and not _is_json_object(answer.content):
            raise CarrierError(
                "the answer is not Twilio's: is the API's address right?",
                status=answer.status_code,
                outcome_unknown=True,
            )
        return Response(answer.status_code, answer.text, answer.headers)


_asked_to_wait_s: ContextVar[float | None] = ContextVar("_asked_to_wait_s", default=None)
"""What the answer to the request that this task makes has said about when to come back."""


def _is_json_object(content: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(content), dict)
    except _UNREADABLE:
        return False


@contextmanager
def _carrier_errors(timeout_s: float) -> Generator[None]:
    """Bound the wait and say every failure of the REST API as a :class:`CarrierError`."""
    _asked_to_wait_s.set(None)
    try:
        with trio.fail_after(timeout_s):
            yield
    except TwilioRestException as error:
        # Without a code of Twilio's, the package puts the HTTP status there.
        code = error.code if error.code != error.status else None
        raise CarrierError(
            error.msg,
            status=error.status,
            code=code,
            outcome_unknown=error.status >= 500,
            retry_after_s=_asked_to_wait_s.get(),
        ) from error
    except TwilioServiceException as error:
        raise CarrierError(
            error.detail or error.title,
            status=error.status,
            code=error.code,
            outcome_unknown=error.status >= 500,
            retry_after_s=_asked_to_wait_s.get(),
        ) from error
    except TwilioException as error:
        raise CarrierError(str(error), outcome_unknown=True) from error
    except trio.TooSlowError as error:
        message = f"Twilio did not answer within {timeout_s:g} s"
        raise CarrierError(message, outcome_unknown=True) from error
    except _NEVER_SENT as error:
        raise CarrierError(f"Twilio was not reached: {error or type(error).__name__}") from error
    except httpx2.HTTPError as error:
        message = f"Twilio was lost: {error or type(error).__name__}"
        raise CarrierError(message, outcome_unknown=True) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The package takes it for granted that every field is what it should be.
        raise CarrierError("Twilio's answer cannot be read", outcome_unknown=True) from error


# The request has not left this machine.
_NEVER_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.ProxyError,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
    httpx2.InvalidURL,
)

_TRY_AGAIN_WITHIN_S = (0.5, 1.0, 2.0)
"""The longest wait before each further try; Twilio asks for back-off with jitter after a 429."""
_MAX_WAITS_S = 10.0
"""All waits of one request together: a client of ours waits, too; better to say when to ask."""


# The call is over, or never was (another Region's calls look like that too): there is nothing
# left to hang up. Codes from Twilio's error dictionary.
_NOT_IN_PROGRESS = 21220
_NOT_FOUND = 20404


class TwilioCarrier:
    """Twilio's REST API, and the TwiML that brings a call's audio to ``/stream``.

    An async context manager: it owns the HTTP connections.

    Args:
        account_sid: ``AC…``.
        auth_token: The account's secret.
        phone_number: The number calls come from, E.164.
        public_url: Where Twilio reaches this server, ``https://host``. With ``http://127.0.0.1…``,
            for a simulation, media streams come over ``ws://`` instead of ``wss://``.
        api_url: Base URL of the REST API; None is Twilio's default. For another Region, such as
            ``https://api.dublin.ie1.twilio.com``, or a simulator.
        name: What answers and banners call this carrier.
        ring_timeout_s: How long a phone rings before the call is given up as no-answer.
        request_timeout_s: How long any one REST request may take.
        proxy: An HTTP proxy on the way to the REST API; the environment's are not used.
        api_key: SID (``SK…``) and secret of the API key to ask the REST API with, in the token's
            place.
    """

    def __init__(
        self,
        *,
        account_sid: str,
        auth_token: str,
        phone_number: str,
        public_url: str,
        api_url: str | None = None,
        name: str = "twilio",
        ring_timeout_s: float = 30.0,
        request_timeout_s: float = 10.0,
        proxy: str | None = None,
        api_key: tuple[str, str] | None = None,
    ) -> None:
        self._name = name
        self._account_sid = account_sid
        self._phone_number = phone_number
        self.on_wait: Callable[[float], None] = lambda wait_s: None
        """Called when Twilio asks to be left alone for so many seconds."""
        self.stream_path = "/stream"
        """Where media streams of this process's calls go, as it is known at the next call."""
        self.reach_at(public_url)
        self._ring_timeout_s = ring_timeout_s
        self._request_timeout_s = request_timeout_s
        # Of the environment only what is trusted (SSL_CERT_FILE): no hop that nobody asked for.
        self._http = httpx2.AsyncClient(
            timeout=request_timeout_s,
            trust_env=False,
            verify=httpx2.create_ssl_context(),
            proxy=proxy,
        )
        self._client = Client(
            *(api_key or (account_sid, auth_token)),
            account_sid=account_sid,
            http_client=_TrioHttp(self._http, lambda wait_s: self.on_wait(wait_s)),
            # Otherwise TWILIO_EDGE and TWILIO_REGION of the environment change the address.
            environment={"TWILIO_ACCOUNT_SID": account_sid},
        )
        if api_url is not None:
            self._client.api.base_url = api_url.rstrip("/")

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(exc_type, exc_value, traceback)

    @property
    def name(self) -> str:
        """What answers and banners call this carrier."""
        return self._name

    def reach_at(self, public_url: str) -> None:
        """From the next call on, Twilio is told to reach this server there."""
        self._status_url = f"{public_url.rstrip('/')}/call-status"
        self._amd_url = f"{public_url.rstrip('/')}/amd-status"
        self._transfer_url = f"{public_url.rstrip('/')}/transfer-status"
        self._stream_origin = _stream_origin(public_url)

    @property
    def stream_url(self) -> str:
        """Where Twilio opens a call's media stream."""
        return f"{self._stream_origin}{self.stream_path}"

    async def place_call(
        self,
        destination_number: str,
        *,
        ticket: str,
        max_duration_s: float,
        detect_machine: bool = False,
    ) -> PlacedCall:
        """Dial a number; when it is answered, Twilio opens a stream that shows the ticket.

        The TwiML goes with the request, which saves Twilio a webhook between the answer and the
        stream. Every change of the call's status is posted to ``/call-status``.

        Machine detection runs beside the call, not before it: the verdict goes to ``/amd-status``,
        for a machine when its announcement is over.

        Raises:
            CarrierError: Refused, not reached or not answered. In the last case its outcome is
                unknown: Twilio may have placed the call all the same; its stream will show a
                ticket nobody holds, and is refused.
        """
        detection = {}
        if detect_machine:
            detection = {
                "machine_detection": "DetectMessageEnd",
                "async_amd": "true",
                "async_amd_status_callback": self._amd_url,
                "async_amd_status_callback_method": "POST",
            }
        call = await self._request(
            lambda: self._client.calls.create_async(
                to=destination_number,
                from_=self._phone_number,
                twiml=self.answer_twiml(ticket),
                status_callback=self._status_url,
                status_callback_event=["initiated", "ringing", "answered", "completed"],
                status_callback_method="POST",
                timeout=math.ceil(self._ring_timeout_s),
                time_limit=math.ceil(max_duration_s),
                **detection,
            ),
            repeatable=False,
        )
        try:
            call_sid = check_call_sid(str(call.sid or ""), "call that was placed")
        except CarrierProtocolError as error:
            message = "Twilio accepted the call but did not name it"
            raise CarrierError(message, outcome_unknown=True) from error
        return PlacedCall(call_sid, _placed_status(call.status))

    async def hang_up(self, call_sid: str) -> None:
        """End a call in any state; a call that is already over is success.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            await self._request(
                lambda: self._client.calls(call_sid).update_async(status="completed"),
                repeatable=True,
            )
        except CarrierError as error:
            if error.code not in (_NOT_IN_PROGRESS, _NOT_FOUND) and error.status != 404:
                raise

    async def update_call(self, call_sid: str, *, twiml: str) -> None:
        """Let a live call go on with another document: its stream stops and is closed.

        Raises:
            CarrierError: Refused (21220 when the call is over) or not reached.
        """
        with _carrier_errors(self._request_timeout_s):
            await self._client.calls(call_sid).update_async(twiml=twiml)

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        """Let a live call ring another number, which ends its stream; see :func:`dial_twiml`.

        The number shown is ours: the caller's own one may not be allowed from this account.

        Raises:
            CarrierError: Refused (21220 when the call is over) or not reached.
        """
        document = dial_twiml(
            number,
            caller_id=self._phone_number,
            ring_timeout_s=ring_timeout_s,
            status_url=self._transfer_url,
        )
        await self.update_call(call_sid, twiml=document)

    async def _request(self, request: Callable[[], Awaitable[_T]], *, repeatable: bool) -> _T:
        """Make a request, and make it again where that cannot do anything twice.

        Args:
            request: Makes it once.
            repeatable: Whether doing it twice does no harm. If it would, it is made again only
                when Twilio has said that it did nothing (429) or was never reached.

        When Twilio says how long to wait, it is not made again sooner; where there is not that
        much time, not at all.
        """
        left_s = _MAX_WAITS_S
        for wait_s in (*_TRY_AGAIN_WITHIN_S, None):
            try:
                with _carrier_errors(self._request_timeout_s):
                    return await request()
            except CarrierError as error:
                not_done = error.status in (None, 429) and not error.outcome_unknown
                again = not_done or (repeatable and error.outcome_unknown)
                if wait_s is None or not again:
                    raise
                pause_s = random.uniform(wait_s / 2, wait_s) + (error.retry_after_s or 0.0)
                left_s -= pause_s
                in_vain = trio.current_time() + pause_s >= trio.current_effective_deadline()
                if left_s < 0 or in_vain:
                    raise
                logger.debug("carrier request is made again", status=error.status, code=error.code)
            await trio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def fetch_status(self, call_sid: str) -> StatusUpdate:
        """Ask how a call stands; one request, which is not made again.

        Raises:
            CarrierError: Refused, not reached, or answered with a status that is none.
        """
        with _carrier_errors(self._request_timeout_s):
            call = await self._client.calls(call_sid).fetch_async()
        try:
            status = CallStatus(str(call.status))
        except ValueError:
            word = str(call.status)[:40]
            raise CarrierError(f"Twilio says that the call is {word!r}") from None
        facts = {"asked": "yes"}
        if status.is_final and is_count(duration := str(call.duration or "")):
            facts["duration_s"] = duration
        return StatusUpdate(call_sid, status, None, facts)

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        """Say something in Twilio's own voice and end the call; its stream stops at once.

        Raises:
            CallNotInProgress: The call is over, or Twilio has not answered it yet (21220).
            CarrierError: Refused or not reached.
        """
        try:
            await self.update_call(call_sid, twiml=self.say_and_hang_up_twiml(text, language))
        except CarrierError as error:
            if error.code != _NOT_IN_PROGRESS:
                raise
            raise CallNotInProgress(error.message, status=error.status, code=error.code) from error

    def answer_twiml(self, ticket: str) -> str:
        """The document that answers a call with a media stream that shows the ticket."""
        return stream_twiml(self.stream_url, {"ticket": ticket})

    def refuse_twiml(self) -> str:
        """The document that refuses an inbound call as busy; Twilio does not bill it."""
        response = VoiceResponse()
        response.reject(reason="busy")
        return str(response)

    def hang_up_twiml(self) -> str:
        """The document that ends a call."""
        response = VoiceResponse()
        response.hangup()
        return str(response)

    def say_and_hang_up_twiml(self, text: str, language: str) -> str:
        """See :func:`say_twiml`."""
        return say_twiml(text, language)

    def check_fields(self, fields: Iterable[tuple[str, str]]) -> None:
        """See :func:`server.carrier.twilio_webhooks.check_fields`."""
        check_fields(fields)

    def is_ours(self, form: Mapping[str, str]) -> bool:
        """Whether a webhook is about our account, as far as it says."""
        return is_of_account(form, self._account_sid)

    def read_voice(self, form: Mapping[str, str]) -> VoiceRequest:
        """See :func:`server.carrier.twilio_webhooks.parse_voice`."""
        return parse_voice(form)

    def read_transfer(self, form: Mapping[str, str]) -> TransferUpdate:
        """See :func:`parse_transfer`."""
        return parse_transfer(form)

    def read_machine_verdict(self, form: Mapping[str, str]) -> MachineVerdict:
        """See :func:`parse_machine_verdict`."""
        return parse_machine_verdict(form)

    def read_status(self, form: Mapping[str, str]) -> StatusUpdate:
        """See :func:`server.carrier.twilio_webhooks.parse_status`."""
        return parse_status(form)


def _placed_status(word: object) -> CallStatus:
    try:
        return CallStatus(str(word))
    except ValueError:
        # A new word of Twilio's is no reason to disown a call that it has accepted.
        return CallStatus.QUEUED


# ------------------------------------------------------------------------------------------
# Webhooks


class WebhookVerifier:
    """Proves that a request was sent by Twilio, and to this server.

    The URL that was signed is rebuilt from the configured public one: the ``Host`` header is the
    sender's to choose, and behind a proxy it is not what Twilio was told.

    Args:
        auth_token: The account's secret.
        public_url: Where Twilio reaches this server.
        shared_keys: Secrets of Twilio's newer shared keys by key id, for accounts that use them.
    """

    def __init__(
        self, auth_token: str, public_url: str, *, shared_keys: Mapping[str, str] | None = None
    ) -> None:
        self._origin = public_url.rstrip("/")
        self._stream_origin = _stream_origin(public_url)
        self._validator = RequestValidator(auth_token)
        self._shared_validators = {
            key: RequestValidator(secret) for key, secret in (shared_keys or {}).items()
        }

    def verify_signature(
        self, target: str, headers: Headers, form: Mapping[str, str] | None = None
    ) -> bool:
        """Whether a webhook's ``X-Twilio-Signature`` is right; without one, or with two, it is not.

        Args:
            target: Path and query exactly as requested, with their escapes.
            headers: The request's headers.
            form: The body's fields, all of them, a multi-dict if names repeat; None for a GET.
        """
        return self._is_signed([self._origin + target], target, headers, form)

    def verify_upgrade(self, target: str, headers: Headers) -> bool:
        """Whether the WebSocket upgrade of a media stream is signed.

        Whether Twilio signs the ``wss`` or the ``https`` form, and with a slash added at the end,
        differs between its documentation and the field, and some never saw the header at all. So
        every form is tried, and a False is a reason to look twice, not to hang up: the ticket
        shown at ``start`` is what lets a stream in.
        """
        urls = [
            origin + target + ending
            for origin in (self._stream_origin, self._origin)
            for ending in ("", "/")
        ]
        return self._is_signed(urls, target, headers, None)

    def signed_for(
        self, target: str, headers: Headers, form: Mapping[str, str] | None = None
    ) -> str | None:
        """The address, without its query, that a webhook which is not ours was signed for.

        Whoever can sign has the account's secret, so a right signature for another address is no
        stranger's: ``PUBLIC_URL``, or the address that Twilio was told, is wrong. It opens nothing.

        Args:
            target: Path and query exactly as requested, with their escapes.
            headers: The request's headers, of which ``Host`` and ``X-Forwarded-Host`` may say more.
            form: The body's fields, a multi-dict if names repeat; None for a GET.

        Returns:
            None if it was signed for no address that can be thought of.
        """
        if (secret := self._secret(headers)) is None or not target.startswith("/"):
            return None
        signature, validator, algorithm = secret
        try:
            # What is signed is the address and then the fields, whose part is always the same.
            fields = "".join(
                f"{name}{value}"
                for name in sorted(set(form or {}))
                for value in sorted(set(validator.get_values(form, name)))
            )
            for url in other_addresses(self._origin, target, headers, ("https", "http")):
                computed = validator.compute_signature(url + fields, {}, algorithm)
                if hmac.compare_digest(computed.encode(), signature.encode()):
                    return url.partition("?")[0]
        except ValueError:  # Text that cannot be encoded, an algorithm that there is not.
            pass
        return None

    def _is_signed(
        self,
        urls: list[str],
        target: str,
        headers: Headers,
        form: Mapping[str, str] | None,
    ) -> bool:
        if (secret := self._secret(headers)) is None or not target.startswith("/"):
            return False
        signature, validator, algorithm = secret
        try:
            return any(validator.validate(url, form, signature, algorithm) for url in urls)
        except ValueError:  # A URL that cannot be parsed, text that cannot be encoded.
            return False

    def _secret(self, headers: Headers) -> tuple[str, RequestValidator, str] | None:
        """A request's signature, and what to look at it with; None without exactly one."""
        signature = single(headers, SIGNATURE_HEADER)
        settings = lines_of(headers, SIGNATURE_SETTINGS_HEADER)
        if not signature or len(settings) > 1:
            return None
        validator = self._shared_validator(settings[0]) if settings else self._validator
        if validator is None:
            return None
        return signature, validator, get_signature_algorithm(settings[0] if settings else None)

    def _shared_validator(self, settings: str) -> RequestValidator | None:
        for part in settings.split(","):
            name, _, value = part.partition("=")
            if name.strip() == "key":
                return self._shared_validators.get(value.strip())
        return None


def parse_transfer(form: Mapping[str, str]) -> TransferUpdate:
    """Read what is posted about a ``<Dial>``: its action, or the other number's own status.

    Raises:
        CarrierProtocolError: No call sid, or a status that is none.
    """
    wants_document = "DialCallStatus" in form
    call_sid = form.get("CallSid" if wants_document else "ParentCallSid", "")
    word = form.get("DialCallStatus" if wants_document else "CallStatus", "")
    check_call_sid(call_sid, "transfer callback")
    if word == "answered":  # of an action: its own word for a call that was connected
        word = "completed"
    try:
        status = CallStatus(word)
    except ValueError:
        raise CarrierProtocolError(f"transfer callback with status {word[:40]!r}") from None
    return TransferUpdate(call_sid, status, wants_document)


def parse_machine_verdict(form: Mapping[str, str]) -> MachineVerdict:
    """Read what asynchronous answering machine detection posts; a new word of it is "unknown".

    Raises:
        CarrierProtocolError: No call sid, or no verdict.
    """
    call_sid = check_call_sid(form.get("CallSid", ""), "machine detection callback")
    word = form.get("AnsweredBy", "")
    if not word:
        raise CarrierProtocolError("machine detection callback without AnsweredBy")
    try:
        answered_by = AnsweredBy(word)
    except ValueError:
        answered_by = AnsweredBy.UNKNOWN
    took_ms = form.get("MachineDetectionDuration", "")
    took_s = int(took_ms) / 1000 if is_count(took_ms) else 0.0
    return MachineVerdict(call_sid, answered_by, took_s)
