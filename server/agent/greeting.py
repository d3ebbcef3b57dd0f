"""A greeting from a file: any WAV, and with libsndfile any sound, as the telephone plays it.

WAV is read here, so that the first thing people try needs no more than the base install, without
numpy and libsndfile. All else is libsndfile's (``pip install 'offhook[audio]'``).
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import codec
from codec.line import LINE_RATE_HZ
from codec.mixdown import MAX_CHANNELS, RATES_HZ, Layout, Mixdown, Survey, to_pcm
from server.errors import ConfigurationError
from server.media import wav
from server.media.wav import NotWav, OtherFile, WavHead, read_head

MAX_SECONDS = 60.0
_BLOCK_BYTES = 64 * 1024
_SURVEY_RATE_HZ = 16_000
"""How many frames of a second are enough to know how loud a channel is."""
_CANCELS = 0.5
"""Channels whose mix is weaker than this, measured by the loudest of them, take each other out."""
_UNKNOWN_FRAMES = 2**62
"""libsndfile says so many or more where a file does not say how long it is."""
_ADVICE = "save it as WAV, 16 bits: ffmpeg -i FILE -ac 1 -ar 16000 greeting.wav"

# What the first bytes of a file say that is not WAV: RFC 9639, RFC 3533, ID3v2, AIFF-C, ISO
# 14496-12 and so on.
_SIGNATURES = (
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (0, b"FORM", "AIFF"),
    (0, b"caff", "Core Audio"),
    (0, b".snd", "AU"),
    (0, b"riff", "Wave64"),
    (4, b"ftyp", "MPEG-4 (M4A, AAC)"),
    (0, b"\x1aE\xdf\xa3", "Matroska (WebM)"),
    (0, b"#!AMR", "AMR"),
)


class _Unreadable(Exception):
    """The file cannot be a greeting; the message goes on where the file's name ends."""


class _Sound(Protocol):
    """A file of sound that can be gone through several times."""

    layout: Layout
    rate_hz: int
    low_frequency_channel: int | None

    def blocks(self) -> Iterator[bytes]:
        """Whole frames, from the beginning to the end."""
        ...


def read_greeting(path: Path, setting: str = "GREETING_WAV") -> bytes:
    """Read a file of sound: any WAV, and what libsndfile reads where it is installed.

    Time and memory depend on what is heard in the end, at most a minute of telephone: a file that
    is too long is refused by its head and its size, and any other is read in pieces.

    Args:
        path: The file.
        setting: What names it.

    Returns:
        Mu-law at 8 kHz, one channel, as loud as the loudest channel of the file.

    Raises:
        ConfigurationError: It cannot be read, or is not such a file.
    """
    try:
        with _opened(path) as file:
            return _greeting(path, file)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"{setting} cannot be read: {path}: {reason}") from error
    except _Unreadable as error:
        raise ConfigurationError(f"{setting} {path}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device has no end
        what = "a folder" if path.is_dir() else "not a file"
        raise _Unreadable(f"is {what}: name a file of sound, such as greeting.wav")
    with path.open("rb") as file:
        yield file


def _greeting(path: Path, file: BinaryIO) -> bytes:
    file_bytes = os.fstat(file.fileno()).st_size
    if not file_bytes:
        raise _Unreadable("the file is empty")
    try:
        head = read_head(file, file_bytes)
    except OtherFile:
        return _with_libsndfile(path, file)
    except NotWav as error:
        raise _Unreadable(f"{error}; {_ADVICE}") from error
    encoding = _encoding(head)
    if encoding is None:
        return _with_libsndfile(path, file, tag=head.tag, bits=head.bits)
    _check_length(head.duration_s)
    if (encoding, head.frame_bytes, head.rate_hz) == ("mulaw", 1, LINE_RATE_HZ):
        file.seek(head.data_at)
        return file.read(head.data_bytes)  # as the telephone has it
    return _mixed_down(_Wav(file, head, encoding))


_Encoding = Literal["pcm", "float", "mulaw", "alaw"]


def _encoding(head: WavHead) -> _Encoding | None:
    """How the samples of a WAV file are to be read; None if libsndfile has to."""
    each = head.sample_bytes
    match head.tag:
        case wav.PCM if 1 <= each <= 8:
            return "pcm"
        case wav.FLOAT if each in (4, 8) and head.bits == 8 * each:
            return "float"
        case wav.MULAW if each == 1:
            return "mulaw"
        case wav.ALAW if each == 1:
            return "alaw"
    return None


def _check_length(seconds: float) -> None:
    if not 0 < seconds <= MAX_SECONDS:
        found = f"it is {seconds:.1f} s long" if seconds else "there is no sound in it"
        raise _Unreadable(f"{found}; a greeting must be up to {MAX_SECONDS:.0f} s long")


class _Wav:
    """A WAV file of samples that need no more than being put together."""

    def __init__(self, file: BinaryIO, head: WavHead, encoding: _Encoding) -> None:
        self._file = file
        self._head = head
        self._encoding: _Encoding = encoding
        self.rate_hz = head.rate_hz
        _check_shape(head.channels, head.rate_hz)
        self.layout = self._layout(0)
        self.low_frequency_channel = _low_frequency_channel(head.channels, head.channel_mask)
        if 8 * head.sample_bytes > head.bits:
            survey = Survey(self.layout)
            for block in self.blocks():
                survey.add(block)
            if survey.is_right_justified(head.bits):
                self.layout = self._layout(8 * head.sample_bytes - head.bits)

    def _layout(self, unused_bits: int) -> Layout:
        head = self._head
        return Layout(
            self._encoding,
            head.sample_bytes,
            head.channels,
            big_endian=head.is_big_endian,
            unused_bits=unused_bits,
        )

    def blocks(self) -> Iterator[bytes]:
        """Whole frames, from the beginning to the end."""
        size = self.layout.frame_bytes
        whole = max(1, _BLOCK_BYTES // size) * size
        self._file.seek(self._head.data_at)
        left = self._head.data_bytes
        while left and (block := self._file.read(min(whole, left))):
            left -= len(block)
            yield block


def _check_shape(channels: int, rate_hz: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS or not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise _Unreadable(
            f"it has {channels} channels at {rate_hz} Hz; 1 to {MAX_CHANNELS} channels at "
            f"{RATES_HZ[0]} to {RATES_HZ[1]} Hz can be read"
        )


def _low_frequency_channel(channels: int, mask: int) -> int | None:
    """Which channel is for the subwoofer; without a mask, where 5.1 and 7.1 have it."""
    if mask & wav.LFE:
        place = (mask & (wav.LFE - 1)).bit_count()
        return place if place < channels else None
    return 3 if channels in (6, 8) and not mask else None


# ------------------------------------------------------------------------------------------
# One channel of many


def mixing_weights(covariance: Sequence[Sequence[float]], without: int | None) -> list[float]:
    """How much of each channel is heard: together they are as loud as the loudest one alone.

    So a channel without sound takes nothing from the others, and two that say the same are no
    louder than one. Channels that would take each other out are not mixed.

    Args:
        covariance: The power of each channel on the diagonal.
        without: A channel that is only heard if there is nothing in the others.
    """
    channels = range(len(covariance))
    heard = [channel for channel in channels if channel != without] or list(channels)
    if not any(covariance[channel][channel] > 0 for channel in heard):
        heard = list(channels)
    loudest = max(heard, key=lambda channel: covariance[channel][channel])
    power = covariance[loudest][loudest]
    signs = {
        channel: -1.0
        if covariance[channel][loudest] < -_CANCELS * covariance[channel][channel]
        else 1.0
        for channel in heard
    }
    mixed = sum(signs[a] * signs[b] * covariance[a][b] for a in heard for b in heard)
    if not power > 0:
        return [1.0 / len(heard) if channel in signs else 0.0 for channel in channels]
    if mixed < _CANCELS * power:
        return [1.0 if channel == loudest else 0.0 for channel in channels]
    gain = math.sqrt(power / mixed)
    return [gain * signs.get(channel, 0.0) for channel in channels]


def _mixed_down(sound: _Sound) -> bytes:
    survey = Survey(sound.layout, max(1, sound.rate_hz // _SURVEY_RATE_HZ))
    if sound.layout.channels > 1:
        for block in sound.blocks():
            survey.add(block)
    covariance = survey.covariance()
    weights = mixing_weights(covariance, sound.low_frequency_channel)
    mixdown = Mixdown(sound.layout, sound.rate_hz, weights)
    most = round(MAX_SECONDS * LINE_RATE_HZ)
    line = bytearray()
    for block in sound.blocks():
        try:
            line += mixdown.add(block)
        except ValueError as error:
            raise _Unreadable(f"{error}; {_ADVICE}") from error
        if len(line) > 4 * most:
            raise _Unreadable(f"it is longer; a greeting must be up to {MAX_SECONDS:.0f} s long")
    _check_length(len(line) / (4 * LINE_RATE_HZ))
    # Nothing is cut off: what is beyond full scale makes all of it quieter.
    return codec.encode_mulaw(to_pcm(line, 1 / max(1.0, mixdown.peak)))


# ------------------------------------------------------------------------------------------
# What libsndfile reads


def _with_libsndfile(path: Path, file: BinaryIO, tag: int | None = None, bits: int = 0) -> bytes:
    file.seek(0)
    what = _content(file.read(64), tag, bits)
    if what is None:  # libsndfile would look for MP3 in anything
        raise _Unreadable(f"not a WAV file; {_ADVICE}")
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, the library is not
        raise _Unreadable(f"{what}; reading that needs pip install 'offhook[audio]'") from error
    try:
        with soundfile.SoundFile(os.fspath(path)) as opened:
            _check_shape(opened.channels, opened.samplerate)
            if opened.frames < _UNKNOWN_FRAMES:
                _check_length(opened.frames / opened.samplerate)
            return _mixed_down(_Decoded(opened))
    except (RuntimeError, TypeError, AssertionError) as error:
        # The library's errors, and the package's own: it asserts that a file has what it says.
        reason = getattr(error, "error_string", "it is not whole")
        raise _Unreadable(f"{what}: libsndfile cannot read it ({reason}); {_ADVICE}") from error


class _Decoded:
    """A file that libsndfile decodes."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.rate_hz: int = file.samplerate
        self.layout = Layout("float", 4, file.channels)
        self.low_frequency_channel = _low_frequency_channel(file.channels, 0)

    def blocks(self) -> Iterator[bytes]:
        """Whole frames, from the beginning to the end."""
        frames = max(1, _BLOCK_BYTES // self.layout.frame_bytes)
        self._file.seek(0)
        while block := bytes(self._file.buffer_read(frames, dtype="float32")):
            yield block


def _content(start: bytes, tag: int | None, bits: int) -> str | None:
    """What a file is, in words; None if nobody knows."""
    if tag is not None:
        name = wav.TAG_NAMES.get(tag, f"format {tag}")
        return f"a WAV file with {name} of {bits} bits is not supported"
    for at, signature, name in _SIGNATURES:
        if start[at : at + len(signature)] == signature:
            return name
    # A frame of MPEG audio begins with eleven ones, and layer III is 01 after its version.
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xE6 == 0xE2:
        return "MP3"
    return None
