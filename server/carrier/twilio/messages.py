"""Twilio's media stream messages, without a socket: text in, events out, commands in, text out."""

from __future__ import annotations

import base64
from enum import Enum, auto
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta, Struct

from codec.shapes import AudioMessages, Maybe, Part, Shape
from server.carrier import (
    CallerAudio,
    CarrierCommand,
    CarrierEvent,
    Clear,
    DigitPressed,
    MarkReached,
    SendAudio,
    SendMark,
    StreamStarted,
    StreamStopped,
)
from server.carrier.media_streams import (
    Count,
    Dtmf,
    MediaFormat,
    MediaStreamsProtocol,
    Stop,
    audio_messages_of,
    decode_kind,
    json_string,
)
from server.carrier.protocol import UNREADABLE
from server.carrier.twilio.reports import check_call_sid
from server.errors import (
    CarrierProtocolError,
    StreamEnded,
)

logger = structlog.get_logger(__name__)
MAX_MESSAGE_CHARS = 64 * 1024
"""A longer message is not read. Twilio's own are about 400 characters."""
MAX_BEFORE_START = 32
"""Messages until ``start`` has come, itself included. Twilio sends ``connected``, and then it."""
MAX_CHARS_BEFORE_START = 16 * 1024
"""What they may have together. Twilio's are about 1,500; a parameter has less than 500."""
_MAX_UNKNOWN_KINDS_LOGGED = 10
_Sid = Annotated[str, Meta(min_length=1, max_length=64)]


class _StartFacts(Struct, rename="camel"):
    call_sid: _Sid
    media_format: MediaFormat
    custom_parameters: dict[str, str] | None = None


class _MediaFacts(Struct, gc=False):
    payload: bytes
    timestamp: Count
    chunk: Count = 0
    track: str = "inbound"


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


class _Mark(Struct, tag_field="event", tag="mark", rename="camel"):
    stream_sid: str
    mark: _MarkFacts


_Message = _Connected | _Start | _Media | Dtmf | _Mark | Stop
_KNOWN_KINDS = frozenset({"connected", "start", "media", "dtmf", "mark", "stop"})


_decode_message = msgspec.json.Decoder(_Message, strict=False).decode
_CALLER_AUDIO = Shape(
    {
        "event": "media",
        "streamSid": Part.STREAM,
        "media": {
            "track": Maybe("inbound"),
            "chunk": Maybe(Part.CHUNK_NUMBER),
            "timestamp": Part.TIMESTAMP_MS,
            "payload": Part.AUDIO,
        },
    },
    ignores_others=True,
)


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
        Dtmf: StreamState.STREAMING,
        _Mark: StreamState.STREAMING,
        Stop: StreamState.STOPPED,
    },
    StreamState.STOPPED: {},
}


class TwilioProtocol(MediaStreamsProtocol):
    """Twilio Media Streams without a socket: text in, events out; commands in, text out.

    What can be ignored is ignored and counted, so that one bad message never ends a call.

    Attributes:
        state: Where the stream stands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = StreamState.CONNECTING
        self._unknown_kinds: list[str] = []
        self._messages_before_start = self._chars_before_start = 0
        self._media_head = self._media_tail = ""
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
        except UNREADABLE as error:
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
            case Dtmf(dtmf=dtmf):
                return DigitPressed(dtmf.digit)
            case _Start(start=start):
                return StreamStarted(
                    stream_sid=self.stream_sid,
                    call_sid=start.call_sid,
                    parameters=start.custom_parameters or {},
                    received_at=now,
                )
            case Stop():
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
                audio = base64.b64encode(payload).decode("ascii")
                return f"{self._media_head}{audio}{self._media_tail}"
            case SendMark(name):
                return f"{self._mark_head}{json_string(name)}}}}}"
            case Clear():
                return self._clear_text

    @property
    def position(self) -> tuple[int, int | None]:
        """Number of the last chunk, 0 if there was none, and the carrier's clock at its end."""
        return self.last_chunk, self.timestamp_ms

    def count_elsewhere(
        self, media: int, missing: int, repeated: int, jumps: int, *, position: tuple[int, int]
    ) -> None:
        """Chunks have been read by somebody else: add what they counted, and go on from there."""
        if media:
            self._count_passed(media, missing, repeated, jumps, position)

    def _count_before_start(self, chars: int) -> None:
        self._messages_before_start += 1
        self._chars_before_start += chars
        if (
            self._messages_before_start > MAX_BEFORE_START
            or self._chars_before_start > MAX_CHARS_BEFORE_START
        ):
            raise CarrierProtocolError("too much came before a start message")

    def _start(self, message: _Start) -> None:
        got = message.start.media_format.shown()
        if got != ("audio/x-mulaw", 8000, 1):
            raise CarrierProtocolError(
                "media format is {}/{}/{}, only audio/x-mulaw/8000/1 is spoken here".format(*got),
                stream_sid=message.stream_sid,
            )
        check_call_sid(message.start.call_sid, "start message")
        self.stream_sid = message.stream_sid
        sid = json_string(message.stream_sid)
        audio = audio_messages(message.stream_sid)
        self._media_head, self._media_tail = audio.head.decode(), audio.tail.decode()
        self._mark_head = f'{{"event":"mark","streamSid":{sid},"mark":{{"name":'
        self._clear_text = f'{{"event":"clear","streamSid":{sid}}}'

    def _hear(self, media: _MediaFacts, now: float) -> CallerAudio | None:
        if media.track.startswith("outbound"):
            self.counts.foreign += 1
            return None
        self._count_chunk(media.chunk, media.timestamp, len(media.payload) // 8)
        if not media.payload:
            return None
        self.counts.media += 1
        return CallerAudio(media.payload, media.timestamp, now)

    def _ignore_unreadable(self, text: str, error: Exception) -> None:
        try:
            kind = decode_kind(text).event
        except UNREADABLE:
            self._ignore_malformed("not a JSON object with an event")
            return
        if kind in _KNOWN_KINDS:
            if kind == "start" and self.state is StreamState.CONNECTING:
                raise CarrierProtocolError(f"unreadable start message: {error}") from error
            self._ignore_malformed(f"unreadable {kind} message: {error}")
            return
        self.counts.unknown += 1
        known = self._unknown_kinds
        if self.stream_sid and kind not in known and len(known) < _MAX_UNKNOWN_KINDS_LOGGED:
            known.append(kind)
            logger.info("carrier message of an unknown kind ignored", kind=kind[:40])


def audio_messages(stream_sid: str) -> AudioMessages:
    """How Twilio's audio comes and goes on this stream, for the media path."""
    return audio_messages_of(stream_sid, _CALLER_AUDIO)
