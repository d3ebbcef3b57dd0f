"""WAV files: where the samples of one are and how they lie, and the head of one that we write.

Every RIFF file of waves is read: RIFF and its big-endian twin RIFX, RF64 and BW64, whose sizes have
64 bits (EBU Tech 3306, ITU-R BS.2088). Programs write sizes before they know them and leave padding
out, so what the head says is believed only as far as the file goes.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from codec import decode_mulaw

# Format tags, from Microsoft's mmreg.h.
PCM, FLOAT, ALAW, MULAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
TAG_NAMES = {
    0x0002: "Microsoft ADPCM",
    0x0011: "IMA ADPCM",
    0x0014: "G.723 ADPCM",
    0x0031: "GSM 6.10",
    0x0040: "G.721 ADPCM",
    0x0050: "MPEG audio",
    0x0055: "MP3",
    0x00FF: "AAC",
    0x0161: "Windows Media Audio",
}
LFE = 0x8
"""The low-frequency channel's bit in a channel mask."""
_MAX_CHUNKS = 1_000
_MAX_FORMAT_BYTES = 4_096
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)


class NotWav(ValueError):
    """The file is no WAV file, or one whose head says nothing; the message says what is missing."""


class OtherFile(NotWav):
    """A file does not begin like a WAV file."""


@dataclass(frozen=True, slots=True)
class WavHead:
    """What the head of a WAV file says, and where its samples are."""

    tag: int
    """The format tag; of an extensible format the one that it stands for."""
    channels: int
    rate_hz: int
    bits: int
    """How many bits of a sample count."""
    frame_bytes: int
    """One sample of every channel."""
    is_big_endian: bool
    channel_mask: int
    """Which loudspeaker each channel is for, as bits; 0 if nothing is said."""
    data_at: int
    data_bytes: int

    @property
    def sample_bytes(self) -> int:
        """How many bytes a sample has, used or not."""
        return self.frame_bytes // self.channels

    @property
    def duration_s(self) -> float:
        """How long the samples last that the file has."""
        return self.data_bytes / (self.frame_bytes * self.rate_hz)


def read_head(file: BinaryIO, file_bytes: int) -> WavHead:
    """Read the head of a WAV file, wherever in the file its parts are.

    Args:
        file: Open for reading at its beginning; its samples are not read.
        file_bytes: How long it is.

    Raises:
        NotWav: There is no head of a WAV file, or it is not one of sound.
    """
    start = file.read(12)
    if start[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or start[8:12] != b"WAVE":
        raise OtherFile("not a WAV file")
    order = ">" if start[:4] == b"RIFX" else "<"
    layout, data = b"", (0, 0)
    long_data_bytes = 0
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at >= file_bytes:
            break
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        name, size = struct.unpack(f"{order}4sI", head)
        if name == b"fmt " and not layout:
            layout = file.read(min(size, _MAX_FORMAT_BYTES))
        elif name == b"ds64":
            (long_data_bytes,) = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))
        elif name == b"data" and not data[0]:
            if size == 0xFFFFFFFF and long_data_bytes:
                size = long_data_bytes
            elif size in _UNKNOWN_SIZES and not _is_chunk_at(file, order, at + 8 + size):
                size = file_bytes  # a program that was to write the size later did not
            data = (at + 8, max(0, min(size, file_bytes - at - 8)))
        at = min(at + 8 + size, file_bytes)
        if size % 2:  # padded to whole words, by programs that know of it
            file.seek(at)
            at += file.read(1) in (b"\0", b"")
    if len(layout) < 14 or not data[0]:
        raise NotWav("it has no format or no data")
    return _head(layout, order, *data)


def _is_chunk_at(file: BinaryIO, order: str, at: int) -> bool:
    """Whether a chunk begins there that ends within the file."""
    file.seek(at)
    head = file.read(8)
    if len(head) < 8 or not head[:4].isascii() or not head[:4].decode().isprintable():
        return False
    (size,) = struct.unpack(f"{order}I", head[4:])
    file.seek(max(at + 8, at + 8 + size - 1))
    return size == 0 or bool(file.read(1))


def _head(layout: bytes, order: str, data_at: int, data_bytes: int) -> WavHead:
    # The oldest format chunks have no word for the bits (WAVEFORMAT, 14 bytes).
    tag, channels, rate_hz, _, frame_bytes = struct.unpack_from(f"{order}HHIIH", layout)
    bits = struct.unpack_from(f"{order}H", layout, 14)[0] if len(layout) >= 16 else 0
    mask = 0
    if tag == EXTENSIBLE and len(layout) >= 26:
        valid_bits, mask, tag = struct.unpack_from(f"{order}HIH", layout, 18)
        if tag in (PCM, FLOAT) and 0 < valid_bits <= bits:
            bits = bits if tag == FLOAT else valid_bits
    if channels and not bits:
        bits = 8 * (frame_bytes // channels)
    if channels and (frame_bytes % channels or 8 * (frame_bytes // channels) < bits):
        frame_bytes = channels * ((bits + 7) // 8)  # the two contradict each other
    if not channels or not rate_hz or not frame_bytes:
        raise NotWav(f"its head speaks of {channels} channels at {rate_hz} Hz")
    return WavHead(
        tag=tag,
        channels=channels,
        rate_hz=rate_hz,
        bits=bits,
        frame_bytes=frame_bytes,
        is_big_endian=order == ">",
        channel_mask=mask,
        data_at=data_at,
        data_bytes=data_bytes - data_bytes % frame_bytes,
    )


def data_of(content: bytes) -> bytes:
    """The samples of a whole WAV file in memory, as they stand in it."""
    head = read_head(BytesIO(content), len(content))
    return content[head.data_at : head.data_at + head.data_bytes]


# ------------------------------------------------------------------------------------------
# Writing: what recordings are

STEREO_FRAME_BYTES = 4
"""One 16-bit sample on either side."""
_STEREO_HEAD = struct.Struct("<4sI8sIHHIIHH4sI")
STEREO_HEAD_BYTES = _STEREO_HEAD.size


def stereo_head(frames: int, rate_hz: int) -> bytes:
    """The head of a WAV: two channels, 16 bits (Microsoft's "Multimedia ... RIFF", 1991)."""
    data_bytes = frames * STEREO_FRAME_BYTES
    return _STEREO_HEAD.pack(
        *(b"RIFF", _STEREO_HEAD.size - 8 + data_bytes, b"WAVEfmt ", 16),
        *(PCM, 2, rate_hz, rate_hz * STEREO_FRAME_BYTES, STEREO_FRAME_BYTES, 16),
        *(b"data", data_bytes),
    )


def stereo_of_mulaw(left: bytes, right: bytes) -> bytes:
    """Put two mu-law recordings of the same length side by side, as 16-bit samples."""
    both = array("h", bytes(len(left) * STEREO_FRAME_BYTES))
    both[0::2] = array("h", decode_mulaw(left))
    both[1::2] = array("h", decode_mulaw(right))
    return both.tobytes()
