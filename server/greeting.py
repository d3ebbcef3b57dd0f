"""A greeting from a file: any plain WAV, as the telephone plays it."""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import codec
from server.errors import ConfigurationError

LINE_RATE_HZ = 8_000
MAX_SECONDS = 60.0
# Format tags of the WAV header.
_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_COMMON_RATE_HZ = 48_000


def read_greeting(path: Path) -> bytes:
    """Read a WAV file: PCM of 8 to 32 bits, float, mu-law or A-law; any rate and channels.

    Returns:
        Mu-law at 8 kHz, one channel; every channel of the file is in it.

    Raises:
        ConfigurationError: It cannot be read, or is not such a file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"GREETING_WAV cannot be read: {error}") from error
    try:
        payload = _decode(content)
    except (ValueError, struct.error) as error:
        raise ConfigurationError(f"GREETING_WAV {path}: {error}") from error
    if not 0 < len(payload) <= MAX_SECONDS * LINE_RATE_HZ:
        raise ConfigurationError(f"GREETING_WAV {path}: must be up to {MAX_SECONDS:.0f} s long")
    return payload


def _decode(content: bytes) -> bytes:
    kind, channels, rate_hz, bits, data = _chunks(content)
    if channels < 1 or not 1_000 <= rate_hz <= 384_000:
        raise ValueError(f"{channels} channels at {rate_hz} Hz")
    if kind == _MULAW and channels == 1 and rate_hz == LINE_RATE_HZ:
        return data  # as the telephone has it
    samples = _mixed(_samples(kind, bits, data), channels)
    if rate_hz not in (8_000, 16_000, 24_000, 48_000):
        samples = _stretched(samples, rate_hz)
        rate_hz = _COMMON_RATE_HZ
    encoder = codec.MulawEncoder(rate_hz)
    return encoder.encode(samples.tobytes()) + encoder.flush()


def _chunks(content: bytes) -> tuple[int, int, int, int, bytes]:
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError("not a WAV file")
    found: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        found.setdefault(name, content[position + 8 : position + 8 + size])
        position += 8 + size + size % 2
    if b"fmt " not in found or b"data" not in found:
        raise ValueError("it has no format or no data")
    layout = found[b"fmt "]
    kind, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", layout)
    if kind == _EXTENSIBLE:
        (kind,) = struct.unpack_from("<H", layout, 24)
    return kind, channels, rate_hz, bits, found[b"data"]


def _samples(kind: int, bits: int, data: bytes) -> array[int]:
    """Any format as 16-bit samples."""
    width = max(1, bits // 8)
    data = data[: len(data) - len(data) % width]
    if (kind, bits) == (_MULAW, 8):
        data = codec.decode_mulaw(data)
    elif (kind, bits) == (_ALAW, 8):
        data = codec.decode_alaw(data)
    elif (kind, bits) == (_PCM, 8):  # unsigned, as eight bits are in a WAV file
        return array("h", [(value - 128) << 8 for value in data])
    elif kind == _PCM and bits in (24, 32):
        data = b"".join(data[at + width - 2 : at + width] for at in range(0, len(data), width))
    elif (kind, bits) == (_FLOAT, 32):
        floats = struct.unpack(f"<{len(data) // 4}f", data)
        return array("h", [max(-32_768, min(32_767, round(f * 32_767))) for f in floats])
    elif (kind, bits) != (_PCM, 16):
        raise ValueError(f"format {kind} with {bits} bits is not supported")
    samples = array("h")
    samples.frombytes(data)
    return samples


def _mixed(samples: array[int], channels: int) -> array[int]:
    """All channels in one."""
    if channels == 1:
        return samples
    tracks = [samples[channel::channels] for channel in range(channels)]
    return array("h", [sum(moment) // channels for moment in zip(*tracks, strict=False)])


def _stretched(samples: array[int], rate_hz: int) -> array[int]:
    """Draw lines between the samples, 48,000 a second.

    For rates that the codec does not change. What lines add to a voice lies above the telephone's
    band, where the codec takes it out, or 45 dB below the voice, under mu-law's own noise.
    """
    if len(samples) < 2:
        return samples
    count = (len(samples) - 1) * _COMMON_RATE_HZ // rate_hz
    stretched = array("h", bytes(2 * count))
    for at in range(count):
        whole, part = divmod(at * rate_hz, _COMMON_RATE_HZ)
        here = samples[whole]
        stretched[at] = here + (samples[whole + 1] - here) * part // _COMMON_RATE_HZ
    return stretched
