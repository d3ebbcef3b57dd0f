"""What a page sends and is sent: the dialect of Twilio's Media Streams, without a socket.

In the quality of a telephone audio is mu-law at 8 kHz, both ways. A wide stream brings linear PCM
at the model's input rate and is sent it at the model's output rate, so nothing is lost on the way.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

import codec
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
)
from server.carrier.protocol import UNREADABLE
from server.errors import CarrierProtocolError, StreamEnded
from server.pace import Pace

HEARD_HZ, SAID_HZ = 16_000, 24_000
"""A wide stream's rates, from the page and to it: the model's own."""
NARROW, WIDE = ("audio/x-mulaw", 8_000, 1), ("audio/l16", HEARD_HZ, 1)
MAX_MESSAGE_CHARS = 16 * 1024
MAX_CHUNK_BYTES = 6_400
"""0.2 s of a wide stream, 0.8 s of a narrow one; a page sends 20 ms at a time."""
MAX_AHEAD_S = 10.0
"""A page may send so much more audio than time has passed: what a stalled network has held back.
What comes beyond it is no microphone's, and would cost the model's tokens."""
KEYS_PER_S, KEYS_AT_ONCE = 20.0, 64
"""Nobody presses keys as fast; so many at once, for a network may have held them back."""
MAX_BEFORE_START = 8
MAX_SAID_CHARS = 4_000
CALL_SID = re.compile(r"BR[0-9a-f]{32}")
_Sid = Annotated[str, Meta(pattern="^[A-Za-z0-9]{1,64}$")]


class _StartFacts(Struct, rename="camel"):
    call_sid: Annotated[str, Meta(max_length=64)]
    media_format: MediaFormat
    custom_parameters: dict[str, str]


class _MediaFacts(Struct, gc=False):
    payload: bytes
    timestamp: Count
    chunk: Count = 0


class _MarkFacts(Struct, gc=False):
    name: Annotated[str, Meta(max_length=64)]


class _Start(Struct, tag_field="event", tag="start", rename="camel"):
    stream_sid: _Sid
    start: _StartFacts


class _Media(Struct, gc=False, tag_field="event", tag="media", rename="camel"):
    stream_sid: str
    media: _MediaFacts


class _Mark(Struct, tag_field="event", tag="mark", rename="camel"):
    stream_sid: str
    mark: _MarkFacts


_Message = _Start | _Media | _Mark | Dtmf | Stop
_KNOWN_KINDS = frozenset({"start", "media", "mark", "dtmf", "stop"})


_decode_message = msgspec.json.Decoder(_Message, strict=False).decode

_CALLER_AUDIO = Shape(
    {
        "event": "media",
        "streamSid": Part.STREAM,
        "media": {
            "chunk": Maybe(Part.CHUNK_NUMBER),
            "timestamp": Part.TIMESTAMP_MS,
            "payload": Part.AUDIO,
        },
    },
    ignores_others=True,
)


class BrowserProtocol(MediaStreamsProtocol):
    """One page's media stream: text in, events out; commands in, text out.

    What can be ignored is ignored and counted, so that one bad message never ends a call.

    Attributes:
        is_wide: Whether its audio has more than a telephone's band.
        due_at: When the end of the last chunk may have been at the earliest, with what a network
            may have held back.
    """

    malformed_line = "malformed message of a page ignored"

    def __init__(self) -> None:
        super().__init__()
        self.is_wide = False
        self._is_over = False
        self._before_start = 0
        self._keys = Pace(KEYS_PER_S, KEYS_AT_ONCE)
        self.due_at = 0.0
        self._head = self._tail = ""
        self._to_line = codec.Resampler(HEARD_HZ, 8_000)
        self._from_line = codec.MulawDecoder(SAID_HZ)

    def receive(self, text: str | bytes, now: float) -> CarrierEvent | None:
        """Read one WebSocket message.

        Args:
            text: A text frame's content; ``bytes`` is a binary frame and is ignored.
            now: ``trio.current_time()`` when it was read.

        Returns:
            What it says, or None if it says nothing or was ignored.

        Raises:
            CarrierProtocolError: The stream is of no use: its ``start`` cannot be read or is of no
                call, too much comes before it, too much is unreadable, or it brings more audio than
                time has passed.
        """
        if not self.stream_sid:
            self._before_start += 1
            if self._before_start > MAX_BEFORE_START:
                raise CarrierProtocolError("too much came before a start message")
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
        if isinstance(message, _Start) is bool(self.stream_sid) or self._is_over:
            self.counts.misplaced += 1
            return None
        if isinstance(message, _Start):
            return self._start(message, now)
        if message.stream_sid != self.stream_sid:
            self.counts.foreign += 1
            return None
        match message:
            case _Media(media=media):
                return self._hear(media, now)
            case _Mark(mark=mark):
                return MarkReached(mark.name, now)
            case Dtmf(dtmf=dtmf):
                if not self._keys.allows(now):
                    self.counts.hasty += 1
                    return None
                return DigitPressed(dtmf.digit)
            case Stop():
                self._is_over = True
                return StreamStopped(said=True)

    def send(self, command: CarrierCommand) -> str:
        """Write one command as the text of a WebSocket message.

        Raises:
            StreamEnded: The page has hung up, or its stream has not started.
        """
        if self._is_over or not self.stream_sid:
            raise StreamEnded("the page's stream is over, or has not started")
        match command:
            case SendAudio(payload, wide=wide):
                if self.is_wide:
                    payload = wide or self._from_line.decode(payload)
                return f"{self._head}{base64.b64encode(payload).decode('ascii')}{self._tail}"
            case SendMark(name):
                return self._written("mark", {"name": name})
            case Clear():
                return self._written("clear", None)

    def say(self, text: str, language: str) -> str:
        """What has the page itself say something: the last words of a call that failed."""
        return self._written("say", {"text": text[:MAX_SAID_CHARS], "language": language})

    def alive(self) -> str:
        """What tells the page that there is somebody, also while nothing is said."""
        return self._written("alive", None)

    def audio_messages(self) -> AudioMessages:
        """How audio comes and goes on a narrow stream, for the media path."""
        return audio_messages_of(self.stream_sid, _CALLER_AUDIO)

    def count_elsewhere(
        self,
        media: int,
        missing: int,
        repeated: int,
        jumps: int,
        *,
        position: tuple[int, int],
        due_at: float,
    ) -> None:
        """Chunks have been read by somebody else: add what they counted, and go on from there."""
        if media:
            self._count_passed(media, missing, repeated, jumps, position)
            self.due_at = due_at

    def _start(self, message: _Start, now: float) -> StreamStarted:
        start = message.start
        got = start.media_format.shown()
        if got not in (NARROW, WIDE):
            raise CarrierProtocolError("media format is {}/{}/{}, not one of ours".format(*got))
        if CALL_SID.fullmatch(start.call_sid) is None:
            raise CarrierProtocolError("start message without the sid of a call from a browser")
        self.stream_sid, self.is_wide = message.stream_sid, got == WIDE
        self.due_at = now - MAX_AHEAD_S
        audio = self.audio_messages()
        self._head, self._tail = audio.head.decode(), audio.tail.decode()
        return StreamStarted(
            stream_sid=self.stream_sid,
            call_sid=start.call_sid,
            parameters={"ticket": start.custom_parameters.get("ticket", "")},
            received_at=now,
        )

    def _hear(self, media: _MediaFacts, now: float) -> CallerAudio | None:
        payload = media.payload
        if len(payload) > MAX_CHUNK_BYTES or (self.is_wide and len(payload) % 2):
            self._ignore_malformed(f"audio of {len(payload)} bytes")
            return None
        wide = b""
        if self.is_wide:
            wide, payload = payload, codec.encode_mulaw(self._to_line.resample(payload))
        self.due_at += len(media.payload) / (2 * HEARD_HZ if self.is_wide else 8_000)
        if self.due_at > now:
            raise CarrierProtocolError(
                "more audio than time has passed", stream_sid=self.stream_sid
            )
        ms = len(media.payload) // (2 * HEARD_HZ // 1_000 if self.is_wide else 8)
        self._count_chunk(media.chunk, media.timestamp, ms)
        if not payload:
            return None
        self.counts.media += 1
        return CallerAudio(payload, media.timestamp, now, wide)

    def _written(self, event: str, facts: dict[str, str] | None) -> str:
        message: dict[str, object] = {"event": event, "streamSid": self.stream_sid}
        if facts is not None:
            message[event] = facts
        return msgspec.json.encode(message).decode()

    def _ignore_unreadable(self, text: str, error: Exception) -> None:
        try:
            kind = decode_kind(text).event
        except UNREADABLE:
            self._ignore_malformed("not a JSON object with an event")
            return
        if kind == "start" and not self.stream_sid:
            raise CarrierProtocolError(f"unreadable start message: {error}") from error
        if kind in _KNOWN_KINDS:
            self._ignore_malformed(f"unreadable {kind} message: {error}")
        else:
            self.counts.unknown += 1
