"""Asterisk's media stream messages, without a socket: binary frames are audio, text is JSON.

As ``chan_websocket`` of Asterisk 22.8 speaks them with ``f(json)`` ("WebSocket Channel Driver"). It
has no timestamps, and where the caller's side sends no RTP there are no frames either, so the
stream's clock is the time of arrival: frames follow each other until one comes after a pause.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import structlog
from msgspec import Meta, Struct

from codec.line import BYTES_PER_S
from codec.shapes import ALAW, AudioMessages, Law
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
)
from server.carrier.protocol import UNREADABLE, StreamProtocol
from server.errors import CarrierProtocolError, StreamEnded

logger = structlog.get_logger(__name__)

CALL_VARIABLE = "OFFHOOK_CALL"
"""The media channel's variable with the name of the call that its audio is of."""
TICKET_VARIABLE = "OFFHOOK_TICKET"
LAWS: dict[str, Law | None] = {"ulaw": None, "alaw": ALAW}
MAX_MESSAGE_CHARS = 16 * 1024
"""A longer one is not read. ``MEDIA_START``, with the channel's variables, has some 500."""
MAX_BEFORE_START = 64
"""Messages until ``MEDIA_START`` has come: audio can overtake it (Asterisk's issue 1712)."""
PAUSE_S = 0.2
"""A frame that comes so much later than the one before it was spoken after a pause, as the compiled
path has it, too."""
MAX_MARK_BYTES = 128
"""A longer text message is ignored ("Control Commands")."""
_KNOWN_KINDS = frozenset(
    {
        "MEDIA_START",
        "MEDIA_XOFF",
        "MEDIA_XON",
        "STATUS",
        "QUEUE_DRAINED",
        "MEDIA_BUFFERING_COMPLETED",
        "MEDIA_MARK_PROCESSED",
        "DTMF_END",
        "ERROR",
    }
)
_START_BUFFERING = '{"command":"START_MEDIA_BUFFERING"}'
_FLUSH = '{"command":"FLUSH_MEDIA"}'
_Name = Annotated[str, Meta(min_length=1, max_length=149)]  # as Asterisk has it


class _Start(Struct, tag_field="event", tag="MEDIA_START"):
    channel_id: _Name
    format: Annotated[str, Meta(max_length=64)]
    channel_variables: dict[str, str] = {}


class _Mark(Struct, tag_field="event", tag="MEDIA_MARK_PROCESSED"):
    correlation_id: str


class _Digit(Struct, tag_field="event", tag="DTMF_END"):
    digit: Annotated[str, Meta(pattern="^[0-9*#A-D]$")]


class _AnyKind(Struct):
    event: str


_Message = _Start | _Mark | _Digit
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_kind = msgspec.json.Decoder(_AnyKind).decode


class AsteriskProtocol(StreamProtocol):
    """One ``chan_websocket`` connection without a socket: messages in, events out, and back.

    What can be ignored is ignored and counted, so that one bad message never ends a call.

    Attributes:
        law: How its audio becomes mu-law; None if it is.
        timestamp_ms: The stream's clock at the end of the last frame; None before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.law: Law | None = None
        self.timestamp_ms: int | None = None
        self._began_at = 0.0
        self._heard_at = 0.0
        self._before_start = 0
        self._overrun_told = False

    def receive(self, message: str | bytes, now: float) -> CarrierEvent | None:
        """Read one WebSocket message.

        Args:
            message: ``bytes`` is audio, ``str`` is control.
            now: ``trio.current_time()`` when it was read.

        Returns:
            What it says, or None if it says nothing or was ignored.

        Raises:
            CarrierProtocolError: The stream is of no use: its audio is no G.711, its start cannot
                be read, too much comes before it, or too much of it is unreadable.
        """
        if not self.stream_sid:
            self._before_start += 1
            if self._before_start > MAX_BEFORE_START:
                raise CarrierProtocolError("too much came before MEDIA_START")
        if isinstance(message, bytes):
            return self._hear(message, now)
        if len(message) > MAX_MESSAGE_CHARS:
            self._ignore_malformed(f"{len(message)} characters long")
            return None
        try:
            read: _Message = _decode_message(message)
        except UNREADABLE as error:
            self._ignore_unreadable(message, error)
            return None
        if isinstance(read, _Start):
            return self._start(read, now)
        if not self.stream_sid:
            self.counts.misplaced += 1
            return None
        if isinstance(read, _Mark):
            return MarkReached(read.correlation_id, now)
        return DigitPressed(read.digit)

    def joined(self, now: float) -> float:
        """The caller is heard from now on: the stream's clock counts from here.

        Returns:
            From when it does.
        """
        self._began_at = now
        return now

    def begin(self) -> str:
        """What is sent first: from then on audio need not come in whole frames."""
        return _START_BUFFERING

    def send(self, command: CarrierCommand) -> list[str | bytes]:
        """Write one command as WebSocket messages.

        Raises:
            StreamEnded: Nothing can be sent before ``MEDIA_START``.
            ValueError: A mark's name is too long for Asterisk.
        """
        if not self.stream_sid:
            raise StreamEnded("the stream has not started")
        match command:
            case SendAudio(payload):
                return [payload if self.law is None else payload.translate(self.law.of_mulaw)]
            case SendMark(name):
                text = msgspec.json.encode({"command": "MARK_MEDIA", "correlation_id": name})
                if len(text) > MAX_MARK_BYTES:
                    raise ValueError(f"a mark of {len(text)} bytes would be ignored")
                return [text.decode()]
            case Clear():  # which ends buffering, too
                return [_FLUSH, _START_BUFFERING]

    def count_elsewhere(self, media: int, *, timestamp_ms: int, heard_at: float) -> None:
        """Frames have been heard by somebody else: go on from there."""
        if media:
            self.counts.media += media
            self.timestamp_ms = timestamp_ms
            self._heard_at = heard_at

    def audio_messages(self) -> AudioMessages:
        """How audio comes and goes on this stream, for the media path."""
        return AudioMessages(received=None, law=self.law)

    def _start(self, start: _Start, now: float) -> StreamStarted | None:
        if self.stream_sid:
            self.counts.misplaced += 1
            return None
        if start.format not in LAWS:
            raise CarrierProtocolError(
                f"media format is {start.format[:40]!r}, only ulaw and alaw are spoken here",
                stream_sid=start.channel_id,
            )
        self.stream_sid, self.law = start.channel_id, LAWS[start.format]
        self._began_at = now
        variables = start.channel_variables
        return StreamStarted(
            stream_sid=start.channel_id,
            call_sid=variables.get(CALL_VARIABLE, ""),
            parameters={"ticket": variables.get(TICKET_VARIABLE, "")},
            received_at=now,
        )

    def _hear(self, frame: bytes, now: float) -> CallerAudio | None:
        if not self.stream_sid or not frame:
            self.counts.misplaced += 1
            return None
        at_ms = self.timestamp_ms
        if at_ms is None or now - self._heard_at > PAUSE_S:
            # Not at the latest: what has come late before is counted as if it were said just then.
            at_ms = round((now - self._began_at) * 1_000)
        self._heard_at = now
        self.timestamp_ms = at_ms + len(frame) * 1_000 // BYTES_PER_S
        self.counts.media += 1
        payload = frame if self.law is None else frame.translate(self.law.to_mulaw)
        return CallerAudio(payload, at_ms, now)

    def _ignore_unreadable(self, text: str, error: Exception) -> None:
        try:
            kind = _decode_kind(text).event
        except UNREADABLE:
            self._ignore_malformed("not a JSON object with an event")
            return
        if kind == "MEDIA_START" and not self.stream_sid:
            raise CarrierProtocolError(f"unreadable MEDIA_START: {error}") from error
        if kind not in _KNOWN_KINDS:
            self.counts.unknown += 1
        elif kind in ("MEDIA_MARK_PROCESSED", "DTMF_END", "MEDIA_START"):
            self._ignore_malformed(f"unreadable {kind}: {error}")
        elif kind == "MEDIA_XOFF" and self.stream_sid and not self._overrun_told:
            self._overrun_told = True
            logger.warning("Asterisk's queue is full: more of the agent's audio would be lost")
