"""What a model calls its audio, and how it becomes what the rest of us expects.

The Live API says that all it sends is 16-bit little-endian mono at 24 kHz. What its messages call
that differs: ``audio/pcm;rate=24000``, ``audio/PCM``, ``audio/L16;codec=pcm;rate=24000``, nothing.
A label is read where it can only mean one thing.
"""

from __future__ import annotations

import re
from functools import lru_cache

from codec import Resampler
from codec.stretch import Stretcher
from server.model import AGENT_RATE_HZ

MAX_LABEL = 128
"""Characters; a longer one is none."""
MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 48_000
_CODEC_RATES_HZ = (8_000, 16_000, 24_000, 48_000)

# "L16" is big-endian in RFC 2586. Google's own services call little-endian samples so, and say in
# the Live API's guide that whatever it sends is little-endian.
_KINDS = frozenset({"audio/pcm", "audio/x-pcm", "audio/l16", "audio/x-l16"})
_RATE_NAMES = frozenset({"rate", "samplerate", "sample-rate"})
_WANTED = {
    "codec": {"pcm", "l16", "s16le", "pcm-s16le", "linear16"},
    "codecs": {"pcm", "l16", "s16le", "pcm-s16le", "linear16"},
    "encoding": {"pcm", "linear16", "s16le", "pcm-s16le", "signed-integer", "signed-int"},
    "format": {"pcm", "linear16", "s16le", "pcm-s16le", "int16"},
    "channels": {"1", "mono"},
    "bits": {"16"},
    "bit-depth": {"16"},
    "bitdepth": {"16"},
    "endian": {"little", "le", "little-endian"},
    "endianness": {"little", "le", "little-endian"},
}
"""Parameters that could make other audio of it, and what they must say then."""
_FOREIGN = (
    b"RIFF",
    b"OggS",
    b"ID3",
    b"fLaC",
    b"\x1aE\xdf\xa3",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
)
"""How files begin that are no bare samples, whatever they are not called."""
_KNOWN_KINDS = frozenset(
    {
        *("audio/mpeg", "audio/mp3", "audio/ogg", "audio/opus", "audio/webm", "audio/wav"),
        *("audio/x-wav", "audio/aac", "audio/flac", "audio/basic", "audio/pcmu", "audio/pcma"),
        *("audio/mulaw", "audio/l8", "audio/l24", "image/png", "image/jpeg", "text/plain"),
        *("video/mp4", "video/webm", "application/json", "application/octet-stream"),
    }
)


def rate_of(label: str) -> int | None:
    """The rate of bare 16-bit mono samples with this label, in Hz; None if it is something else.

    Args:
        label: A MIME type as it came; "" if there was none.
    """
    return _rate_of(label) if len(label) <= MAX_LABEL else None


@lru_cache(64)
def _rate_of(label: str) -> int | None:
    kind, *parameters = (part.strip() for part in label.lower().split(";"))
    if kind not in _KINDS and (kind or any(parameters)):
        return None
    rates_hz: set[int] = set()
    for parameter in filter(None, parameters):
        name, _, value = (part.strip().replace("_", "-") for part in parameter.partition("="))
        value = value.strip("\"' ")
        if name in _RATE_NAMES:
            if not re.fullmatch("[0-9]{1,6}", value):
                return None
            rates_hz.add(int(value))
        elif value not in _WANTED.get(name, {value}):
            return None
    if len(rates_hz) > 1:
        return None
    rate_hz = rates_hz.pop() if rates_hz else AGENT_RATE_HZ
    return rate_hz if MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ else None


def is_file(data: bytes) -> bool:
    """Whether this begins as a file of some kind does, and not as bare samples do."""
    return data.startswith(_FOREIGN)


def described(label: str) -> str:
    """A label that cannot be played, in words that are not the model's own."""
    kind = label[:MAX_LABEL].lower().partition(";")[0].strip()
    if not kind:
        return "a file without a label"
    if kind in _KINDS:
        return "samples of another rate or layout"
    return kind if kind in _KNOWN_KINDS else "a kind unknown here"


class RateChange:
    """Brings one turn's audio from another rate to the agent's.

    Args:
        rate_hz: Between ``MIN_RATE_HZ`` and ``MAX_RATE_HZ``.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._stretcher: Stretcher | None = None
        if rate_hz not in _CODEC_RATES_HZ:
            self._stretcher = Stretcher(rate_hz)
            rate_hz = Stretcher.OUTPUT_RATE_HZ
        self._resampler = Resampler(rate_hz, AGENT_RATE_HZ)

    def convert(self, pcm: bytes) -> bytes:
        """Take samples at the other rate, and give those that they allow at the agent's."""
        if self._stretcher is not None:
            pcm = self._stretcher.stretch(pcm)
        return self._resampler.resample(pcm)

    def flush(self) -> bytes:
        """End the turn: what is still in the filter."""
        if self._stretcher is not None:
            self._stretcher.reset()
        return self._resampler.flush()
