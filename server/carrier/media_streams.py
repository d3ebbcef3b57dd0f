"""The dialect of Media Streams, which is Twilio's and spoken by others: JSON in text frames."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from codec.shapes import AudioMessages, Shape
from server.carrier.protocol import StreamProtocol

# A stream's numbers are bounded here: Python's integers are not, and a float, a counter or a column
# that is given one of 400 digits fails far from whoever sent it.
MAX_COUNT = 999_999_999_999_999
"""Of 15 digits: as many as the compiled path reads, and exact in a float."""
MAX_GAP_CHUNKS = 3_000
"""A minute: chunk numbers that are further apart are another count, not audio that was lost."""
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]


class MediaFormat(Struct, rename="camel"):
    """How a stream's audio is encoded."""

    encoding: str
    sample_rate: Count
    channels: Count

    def shown(self) -> tuple[str, int, int]:
        """Encoding, rate and channels, as short as they fit into an error."""
        return self.encoding[:40], self.sample_rate, self.channels


class _DtmfFacts(Struct, gc=False):
    digit: Annotated[str, Meta(pattern="^[0-9*#A-D]$")]


class Dtmf(Struct, tag_field="event", tag="dtmf", rename="camel"):
    """The caller has pressed a key."""

    stream_sid: str
    dtmf: _DtmfFacts


class Stop(Struct, tag_field="event", tag="stop", rename="camel"):
    """The stream is over, and whoever sends it says so."""

    stream_sid: str


class _AnyKind(Struct):
    event: str


decode_kind = msgspec.json.Decoder(_AnyKind).decode
"""Of any message: which kind it says it is."""


class MediaStreamsProtocol(StreamProtocol):
    """One stream of this dialect: its chunks are numbered, and have a time.

    Attributes:
        last_chunk: Number of the last chunk; 0 before the first.
        timestamp_ms: The sender's clock at the end of it; None before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last_chunk = 0
        self.timestamp_ms: int | None = None

    def _count_chunk(self, number: int, timestamp_ms: int, duration_ms: int) -> None:
        """Note what a chunk's number and time say of those before it; 0 is no number."""
        counts = self.counts
        if number > self.last_chunk:
            if self.last_chunk:
                counts.missing_chunks += min(number - self.last_chunk - 1, MAX_GAP_CHUNKS)
            self.last_chunk = number
        elif number:
            counts.repeated_chunks += 1
        if self.timestamp_ms is not None and timestamp_ms != self.timestamp_ms:
            counts.timestamp_jumps += 1
        self.timestamp_ms = timestamp_ms + duration_ms

    def _count_passed(
        self, media: int, missing: int, repeated: int, jumps: int, position: tuple[int, int]
    ) -> None:
        """Add the chunks that somebody else has read, and go on from there."""
        counts = self.counts
        counts.media += media
        counts.missing_chunks += missing
        counts.repeated_chunks += repeated
        counts.timestamp_jumps += jumps
        self.last_chunk, self.timestamp_ms = position


def audio_messages_of(stream_sid: str, caller_audio: Shape) -> AudioMessages:
    """How audio comes and goes on a stream, for the media path."""
    head = f'{{"event":"media","streamSid":{json_string(stream_sid)},"media":{{"payload":"'
    return AudioMessages(caller_audio, head.encode(), b'"}}')


def json_string(text: str) -> str:
    """Text as JSON has it, with its quotes."""
    return msgspec.json.encode(text).decode()
