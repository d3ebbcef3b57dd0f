"""A greeting from any WAV file, and what the model and the caller are told in words."""

from __future__ import annotations

import math
import struct
from array import array

import pytest

import codec
from server.agent import phrases
from server.agent.greeting import read_greeting
from server.errors import ConfigurationError
from server.simulators.phone import load_speech

SECONDS = 0.5


def tone(rate_hz: int, channels: int = 1, amplitude: float = 0.5) -> list[float]:
    wave = (math.sin(2 * math.pi * 440 * n / rate_hz) for n in range(round(SECONDS * rate_hz)))
    return [amplitude * sample for sample in wave for _ in range(channels)]


def wav(kind: int, bits: int, rate_hz: int, channels: int, data: bytes, more: bytes = b"") -> bytes:
    block = channels * bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, rate_hz, rate_hz * block, block, bits) + more
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd one that nobody knows
    chunks += b"fmt " + struct.pack("<I", len(layout)) + layout
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def pcm16(samples: list[float]) -> bytes:
    return array("h", [round(32_767 * sample) for sample in samples]).tobytes()


def pcm24(samples: list[float]) -> bytes:
    return b"".join(struct.pack("<i", round(2**23 * 0.999 * sample))[:3] for sample in samples)


FILES = {
    "16 bit 8 kHz": wav(1, 16, 8_000, 1, pcm16(tone(8_000))),
    "16 bit 48 kHz stereo": wav(1, 16, 48_000, 2, pcm16(tone(48_000, 2))),
    "16 bit 44.1 kHz": wav(1, 16, 44_100, 1, pcm16(tone(44_100))),
    "16 bit 22.05 kHz": wav(1, 16, 22_050, 1, pcm16(tone(22_050))),
    "8 bit": wav(1, 8, 16_000, 1, bytes(round(128 + 127 * s) for s in tone(16_000))),
    "24 bit": wav(1, 24, 24_000, 1, pcm24(tone(24_000))),
    "float": wav(3, 32, 16_000, 1, struct.pack(f"<{round(16_000 * SECONDS)}f", *tone(16_000))),
    "mu-law": wav(7, 8, 8_000, 1, codec.encode_mulaw(pcm16(tone(8_000)))),
    "A-law": wav(6, 8, 8_000, 1, codec.encode_alaw(pcm16(tone(8_000)))),
    "extensible": wav(
        0xFFFE, 16, 8_000, 1, pcm16(tone(8_000)), struct.pack("<HHIH14s", 22, 16, 4, 1, b"")
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_any_wav_becomes_what_a_telephone_plays(tmp_path, name):
    path = tmp_path / "greeting.wav"
    path.write_bytes(FILES[name])

    payload = read_greeting(path)

    assert len(payload) == pytest.approx(SECONDS * 8_000, abs=40)
    samples = array("h", codec.decode_mulaw(payload))[400:-400]
    power = sum(sample * sample for sample in samples) / len(samples)
    assert math.sqrt(power) == pytest.approx(0.5 * 32_768 / math.sqrt(2), rel=0.03)
    # All of it is at 440 Hz.
    angles = [2 * math.pi * 440 * n / 8_000 for n in range(len(samples))]
    real = sum(s * math.cos(a) for s, a in zip(samples, angles, strict=True))
    imaginary = sum(s * math.sin(a) for s, a in zip(samples, angles, strict=True))
    at_440 = 2 * (real**2 + imaginary**2) / len(samples) ** 2
    assert at_440 / power > 0.998


def test_a_mu_law_file_is_not_touched(tmp_path):
    speech = load_speech("hello")
    path = tmp_path / "greeting.wav"
    path.write_bytes(wav(7, 8, 8_000, 1, speech))

    assert read_greeting(path) == speech


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"MP3", "not a WAV file"),
        (wav(1, 16, 8_000, 1, b"")[:40], "no format or no data"),
        (wav(85, 16, 8_000, 1, b"\0" * 100), "not supported"),
        (wav(1, 16, 8_000, 1, b""), "up to 60 s"),
        (wav(1, 16, 8_000, 1, bytes(16_000 * 61)), "up to 60 s"),
        (wav(1, 16, 8_000, 0, b"\0" * 100), "0 channels"),
    ],
)
def test_what_is_no_greeting_is_refused_with_the_reason(tmp_path, content, problem):
    path = tmp_path / "greeting.wav"
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=problem):
        read_greeting(path)


def test_a_file_that_is_not_there_is_a_wrong_setting(tmp_path):
    with pytest.raises(ConfigurationError, match="GREETING_WAV cannot be read"):
        read_greeting(tmp_path / "nothing.wav")


@pytest.mark.parametrize(
    ("language", "says", "tag"),
    [
        ("es-VE", "Lo siento", "es-VE"),
        ("DE", "Es tut mir leid", "DE"),
        (None, "I am sorry", "en-US"),
        ("tlh", "I am sorry", "en-US"),
    ],
)
def test_an_apology_is_in_the_agents_language_if_there_is_one(language, says, tag):
    text, spoken = phrases.apology(language)

    assert text.startswith(says)
    assert spoken == tag
