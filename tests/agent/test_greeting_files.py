"""Greeting files as people have them: half a second of 440 Hz at half of full scale in each."""

from __future__ import annotations

import importlib.util
import math
import os
import struct
import sys
import tracemalloc
from array import array

import pytest

import codec
from server.agent.greeting import mixing_weights, read_greeting
from server.errors import ConfigurationError

RATE_HZ = 16_000
SECONDS = 0.5
WAVE = [math.sin(2 * math.pi * 440 * n / RATE_HZ) / 2 for n in range(round(RATE_HZ * SECONDS))]
PCM16 = array("h", [round(32_767 * value) for value in WAVE])
HAS_LIBSNDFILE = importlib.util.find_spec("soundfile") is not None


def chunk(name: bytes, data: bytes, *, size: int | None = None, order: str = "<") -> bytes:
    padding = b"\0" * (len(data) % 2)
    return name + struct.pack(f"{order}I", len(data) if size is None else size) + data + padding


def layout(
    kind=1, channels=1, bits=16, each=None, order="<", rate_hz=RATE_HZ, mask=None, valid_bits=None
):
    each = each or (bits + 7) // 8
    frame = each * channels
    if mask is None and valid_bits is None:
        return struct.pack(f"{order}HHIIHH", kind, channels, rate_hz, rate_hz * frame, frame, bits)
    return struct.pack(
        f"{order}HHIIHHHHIH14s",
        *(0xFFFE, channels, rate_hz, rate_hz * frame, frame, bits, 22, valid_bits or bits),
        *(mask or 0, kind, bytes.fromhex("000000001000800000aa00389b71")),
    )


def riff(*chunks: bytes, head: bytes = b"RIFF", order: str = "<") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return head + struct.pack(f"{order}I", len(body)) + body


def wav(data: bytes, **how) -> bytes:
    return riff(chunk(b"fmt ", layout(**how)), chunk(b"data", data))


def integers(bits: int, each: int, *, right_justified: bool = False, channels: int = 1) -> bytes:
    """The wave in integers of so many bits, in so many bytes each, little-endian."""
    shift = 0 if right_justified else 8 * each - bits
    full = 2 ** (bits - 1) - 1
    return b"".join(
        (round(full * value) << shift).to_bytes(each, "little", signed=True)
        for value in WAVE
        for _ in range(channels)
    )


def beside(*tracks: list[float]) -> bytes:
    """Tracks as the channels of 16-bit frames."""
    return array(
        "h", [round(32_767 * value) for moment in zip(*tracks, strict=True) for value in moment]
    ).tobytes()


def only(channel: int, channels: int) -> bytes:
    """The wave in one channel, silence in the others."""
    silence = [0.0] * len(WAVE)
    return beside(*(WAVE if place == channel else silence for place in range(channels)))


def swapped(samples: array) -> bytes:
    other = array(samples.typecode, samples)
    other.byteswap()
    return other.tobytes()


FLOATS = array("f", WAVE)
OTHER = [math.sin(2 * math.pi * 700 * n / RATE_HZ) / 2 for n in range(len(WAVE))]
DS64 = struct.pack("<QQQI", 72 + 2 * len(PCM16), 2 * len(PCM16), len(PCM16), 0)
FILES = {
    "8 in 1": wav(bytes(round(128 + 127 * value) for value in WAVE), bits=8),
    "16 in 2": wav(PCM16.tobytes()),
    "12 in 2": wav(integers(12, 2), bits=12),
    "20 in 3": wav(integers(20, 3), bits=20),
    "24 in 3": wav(integers(24, 3), bits=24),
    "24 in 4": wav(integers(24, 4), bits=24, each=4),
    "32 in 4": wav(integers(32, 4), bits=32),
    "64 in 8": wav(integers(64, 8), bits=64),
    "24 in 4, right-justified": wav(integers(24, 4, right_justified=True), bits=24, each=4),
    "12 in 2, right-justified": wav(integers(12, 2, right_justified=True), bits=12),
    "extensible, 24 of 32 bits": wav(integers(24, 4), bits=32, valid_bits=24),
    "extensible, 20 of 24 bits": wav(integers(20, 3), bits=24, valid_bits=20),
    "extensible, no valid bits": wav(PCM16.tobytes(), mask=4, valid_bits=0),
    "float 32": wav(FLOATS.tobytes(), kind=3, bits=32),
    "float 64": wav(array("d", WAVE).tobytes(), kind=3, bits=64),
    "extensible float 64": wav(array("d", WAVE).tobytes(), kind=3, bits=64, mask=4),
    "mu-law, 16 kHz": wav(codec.encode_mulaw(PCM16), kind=7, bits=8),
    "A-law": wav(codec.encode_alaw(PCM16), kind=6, bits=8),
    "two of the same": wav(integers(16, 2, channels=2), channels=2),
    "one side silent": wav(only(0, 2), channels=2),
    "one side upside down": wav(beside(WAVE, [-value for value in WAVE]), channels=2),
    "quad, at the back": wav(only(3, 4), channels=4),
    "5.1, in the centre": wav(only(2, 6), channels=6),
    "5.1 by its mask, in the centre": wav(only(2, 6), channels=6, mask=0x3F),
    "7.1, in the centre": wav(only(2, 8), channels=8, mask=0x63F),
    "5.1, with a hum below": wav(
        beside(*([0.0] * len(WAVE),) * 2, WAVE, OTHER, *([0.0] * len(WAVE),) * 2), channels=6
    ),
    "6 channels, all in the fourth": wav(only(3, 6), channels=6),
    "2.1 by its mask, with a hum below": wav(
        beside(WAVE, WAVE, OTHER), channels=3, mask=0x1 | 0x2 | 0x8
    ),
    "RIFX": riff(
        chunk(b"fmt ", layout(order=">"), order=">"),
        chunk(b"data", swapped(PCM16), order=">"),
        head=b"RIFX",
        order=">",
    ),
    "RIFX float": riff(
        chunk(b"fmt ", layout(3, bits=32, order=">"), order=">"),
        chunk(b"data", swapped(FLOATS), order=">"),
        head=b"RIFX",
        order=">",
    ),
    **{
        name.decode(): riff(
            chunk(b"ds64", DS64),
            chunk(b"fmt ", layout()),
            chunk(b"data", PCM16.tobytes(), size=0xFFFFFFFF),
            head=name,
        )
        for name in (b"RF64", b"BW64")
    },
    "RF64 that never learnt its size": riff(
        chunk(b"ds64", bytes(28)),
        chunk(b"fmt ", layout()),
        chunk(b"data", PCM16.tobytes(), size=0xFFFFFFFF),
        head=b"RF64",
    ),
    "no size": riff(chunk(b"fmt ", layout()), chunk(b"data", PCM16.tobytes(), size=0)),
    "the largest size": riff(
        chunk(b"fmt ", layout()), chunk(b"data", PCM16.tobytes(), size=0xFFFFFFFF)
    ),
    "a size beyond the end": riff(
        chunk(b"fmt ", layout()), chunk(b"data", PCM16.tobytes(), size=10**8)
    ),
    "cut in the middle of a frame": wav(integers(24, 3, channels=2), bits=24, channels=2)[:-4],
    "fmt of 14 bytes": riff(chunk(b"fmt ", layout()[:14]), chunk(b"data", PCM16.tobytes())),
    "fmt of 18 bytes": riff(chunk(b"fmt ", layout() + b"\0\0"), chunk(b"data", PCM16.tobytes())),
    "data before fmt": riff(chunk(b"data", PCM16.tobytes()), chunk(b"fmt ", layout())),
    "odd chunk, padded": riff(
        chunk(b"LIST", b"abc"), chunk(b"fmt ", layout()), chunk(b"data", PCM16.tobytes())
    ),
    "odd chunk, not padded": riff(
        chunk(b"fmt ", layout()), b"LIST\x03\0\0\0abc", chunk(b"data", PCM16.tobytes())
    ),
    "something after the sound": riff(
        chunk(b"fmt ", layout()), chunk(b"data", PCM16.tobytes()), chunk(b"LIST", b"x" * 999)
    ),
    "no block align": wav(PCM16.tobytes()).replace(
        struct.pack("<HH", 2, 16), struct.pack("<HH", 0, 16), 1
    ),
}


def heard(payload: bytes) -> tuple[float, float]:
    """The level of 440 Hz, and how much of the power is there; of the middle, without edges."""
    samples = array("h", codec.decode_mulaw(payload))[400:-400]
    power = sum(sample * sample for sample in samples) / len(samples)
    angles = [2 * math.pi * 440 * n / 8_000 for n in range(len(samples))]
    real = sum(s * math.cos(a) for s, a in zip(samples, angles, strict=True))
    imaginary = sum(s * math.sin(a) for s, a in zip(samples, angles, strict=True))
    at_440 = 2 * (real**2 + imaginary**2) / len(samples) ** 2
    return math.sqrt(2 * at_440) / 32_768, at_440 / power


@pytest.fixture
def greeting(tmp_path):
    def read(content: bytes) -> bytes:
        path = tmp_path / "greeting.wav"
        path.write_bytes(content)
        return read_greeting(path)

    return read


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_wav_is_heard_as_loud_as_it_is(greeting, name):
    payload = greeting(FILES[name])

    level, purity = heard(payload)
    assert len(payload) == pytest.approx(SECONDS * 8_000, abs=3)
    assert level == pytest.approx(0.5, rel=0.03)
    assert purity > 0.998


@pytest.mark.parametrize(
    "rate_hz", [4_000, 6_000, 7_999, 8_001, 11_025, 11_127, 22_050, 32_000, 44_100, 96_000, 191_999]
)
def test_any_rate_becomes_the_telephones(greeting, rate_hz):
    wave = [math.sin(2 * math.pi * 440 * n / rate_hz) / 2 for n in range(rate_hz // 2)]

    payload = greeting(wav(beside(wave), rate_hz=rate_hz))

    level, purity = heard(payload)
    assert len(payload) == pytest.approx(4_000, abs=2)
    assert level == pytest.approx(0.5, rel=0.03)
    assert purity > 0.998


@pytest.mark.parametrize("rate_hz", [11_025, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("above_hz", [4_600, 5_300, 0.48])
def test_what_a_telephone_has_no_band_for_is_not_heard_elsewhere(greeting, rate_hz, above_hz):
    frequency_hz = above_hz if above_hz > 1 else above_hz * rate_hz
    wave = [math.sin(2 * math.pi * frequency_hz * n / rate_hz) / 2 for n in range(rate_hz // 2)]

    payload = greeting(wav(array("f", wave).tobytes(), rate_hz=rate_hz, kind=3, bits=32))

    loudest = max(abs(sample) for sample in array("h", codec.decode_mulaw(payload))[100:-100])
    assert loudest <= 8  # one step of mu-law about zero


def test_images_of_a_slow_file_are_not_heard(greeting):
    wave = [math.sin(2 * math.pi * 900 * n / 4_000) / 2 for n in range(2_000)]

    payload = greeting(wav(beside(wave), rate_hz=4_000))

    samples = array("h", codec.decode_mulaw(payload))[400:-400]
    turn = [2 * math.pi * 3_100 * n / 8_000 for n in range(len(samples))]
    image = abs(
        sum(s * complex(math.cos(a), math.sin(a)) for s, a in zip(samples, turn, strict=True))
    )
    assert 2 * image / len(samples) < 100  # the tone has 16,384


def test_two_different_voices_are_both_heard_and_no_louder_than_one(greeting):
    payload = greeting(wav(beside(WAVE, OTHER), channels=2))

    level, share = heard(payload)
    assert level == pytest.approx(0.5 / math.sqrt(2), rel=0.05)
    assert share == pytest.approx(0.5, abs=0.05)


def test_a_channel_with_nothing_but_an_offset_does_not_count(greeting):
    payload = greeting(wav(beside(WAVE, [0.3] * len(WAVE)), channels=2))

    assert heard(payload)[0] == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("scale", [1.5, 32_768.0, 2.0**31])
def test_floats_beyond_full_scale_are_made_quieter_and_not_cut(greeting, scale):
    loud = array("f", [2 * scale * value for value in WAVE])

    level, purity = heard(greeting(wav(loud.tobytes(), kind=3, bits=32)))

    assert level == pytest.approx(1.0, rel=0.03)
    assert purity > 0.998


def damaged(value: float, kind: str = "f") -> bytes:
    samples = array(kind, WAVE)
    samples[5_000] = value
    return wav(samples.tobytes(), kind=3, bits=8 * samples.itemsize)


NO_GREETINGS = {
    "infinity": (damaged(math.inf), "not a number"),
    "not a number": (damaged(math.nan), "not a number"),
    "the largest double": (damaged(1e308, "d"), "far beyond full scale"),
    "nothing": (b"", "the file is empty"),
    "text": (b"Hello, this is ACME.\n", "not a WAV file"),
    "four bytes": (b"RIFF", "not a WAV file"),
    "head only": (riff(chunk(b"fmt ", layout()), chunk(b"data", b"")), "no sound"),
    "an empty data chunk before another": (
        riff(chunk(b"fmt ", layout()), chunk(b"data", b""), chunk(b"LIST", b"abcd")),
        "no sound",
    ),
    "no format": (riff(chunk(b"data", b"\0" * 100)), "no format or no data"),
    "endless chunks of nothing": (riff(b"JUNK\0\0\0\0" * 5_000), "no format or no data"),
    "ds64 beyond everything": (
        riff(chunk(b"ds64", b"\xff" * 28), chunk(b"data", b"", size=2**32 - 1), head=b"RF64"),
        "no format or no data",
    ),
    "no channels": (wav(b"\0" * 100, channels=0), "0 channels"),
    "33 channels": (wav(bytes(66_000), channels=33), "33 channels"),
    "65,535 channels": (wav(bytes(400), channels=65_535, each=1, bits=8), "no sound"),
    "no rate": (wav(bytes(400), rate_hz=0), "at 0 Hz"),
    "an absurd rate": (wav(bytes(16_000), rate_hz=4_000_000_000 // 2), "2000000000 Hz"),
    "61 s": (wav(bytes(2 * 61 * 8_000), rate_hz=8_000), "61.0 s long"),
    "floats of 16 bits": (wav(bytes(4_000), kind=3, bits=16), "format 3 of 16 bits"),
    "something that nobody knows": (wav(bytes(4_000), kind=0x1234, bits=4), "format 4660"),
}


@pytest.mark.parametrize("name", NO_GREETINGS)
def test_what_cannot_be_played_is_refused_in_one_sentence(greeting, name):
    content, found = NO_GREETINGS[name]

    with pytest.raises(ConfigurationError, match=f"GREETING_WAV .*greeting.wav.*{found}") as caught:
        greeting(content)

    assert "\n" not in str(caught.value)


def test_a_file_of_many_gigabytes_is_refused_by_its_head_alone(tmp_path):
    path = tmp_path / "meeting.wav"
    with path.open("wb") as file:
        file.write(wav(b"").replace(struct.pack("<I", 0), struct.pack("<I", 0xFFFFFFFF)))
        file.truncate(20 * 2**30)  # a hole: nothing is on the disk

    with pytest.raises(ConfigurationError, match="up to 60 s"):
        read_greeting(path)


def test_a_folder_is_refused_in_words(tmp_path):
    with pytest.raises(ConfigurationError, match="is a folder"):
        read_greeting(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")

    with pytest.raises(ConfigurationError, match="not a file"):
        read_greeting(tmp_path / "pipe.wav")


def test_the_longest_file_at_a_high_rate_is_never_in_memory_at_once(tmp_path):
    path = tmp_path / "greeting.wav"
    second = bytes(4 * 192_000)
    path.write_bytes(wav(second * 59, rate_hz=192_000, channels=2))

    tracemalloc.start()
    payload = read_greeting(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(payload) == 59 * 8_000
    assert peak_bytes < 20 * 2**20


# ------------------------------------------------------------------------------------------
# How channels are mixed


def test_weights_of_silence_are_even():
    assert mixing_weights([[0.0, 0.0], [0.0, 0.0]], None) == [0.5, 0.5]


def test_the_low_frequency_channel_is_left_out():
    weights = mixing_weights([[1.0, 0.0], [0.0, 9.0]], 1)

    assert weights == [1.0, 0.0]


def test_channels_that_take_each_other_out_are_not_mixed():
    # Two microphones, one half a period later: neither the sum nor the difference is a voice.
    weights = mixing_weights([[1.0, -0.45, -0.45], [-0.45, 0.9, -0.4], [-0.45, -0.4, 0.9]], None)

    assert weights == [1.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------
# What libsndfile reads


@pytest.mark.skipif(not HAS_LIBSNDFILE, reason="without offhook[audio]")
@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("CAF", "ALAC_16"),
        ("W64", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "MS_ADPCM"),
    ],
)
def test_other_formats_are_read_with_libsndfile(tmp_path, name, subtype):
    import soundfile

    path = tmp_path / "greeting"
    with soundfile.SoundFile(path, "w", 16_000, 2, subtype, format=name) as file:
        stereo = array(
            "f", [value for moment in zip(WAVE, [0.0] * len(WAVE), strict=True) for value in moment]
        )
        file.buffer_write(stereo.tobytes(), "float32")

    payload = read_greeting(path)

    level, purity = heard(payload)
    assert len(payload) == pytest.approx(SECONDS * 8_000, abs=1_000)  # codecs add silence
    assert level == pytest.approx(0.5, rel=0.2)
    assert purity > 0.9


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"fLaC" + bytes(60), "FLAC"), (b"ID3\4" + bytes(60), "MP3"), (b"OggS" + bytes(60), "Ogg")],
)
def test_without_libsndfile_the_extra_is_named(greeting, monkeypatch, content, found):
    monkeypatch.setitem(sys.modules, "soundfile", None)

    with pytest.raises(ConfigurationError, match=rf"{found}; .*pip install 'offhook\[audio\]'"):
        greeting(content)


@pytest.mark.skipif(not HAS_LIBSNDFILE, reason="without offhook[audio]")
@pytest.mark.parametrize("name", ["FLAC", "OGG", "MP3", "AIFF", "W64"])
def test_a_file_that_ends_too_soon_is_played_as_far_as_it_goes_or_refused(tmp_path, name):
    import soundfile

    path = tmp_path / "greeting"
    with soundfile.SoundFile(path, "w", 16_000, 1, format=name) as file:
        file.buffer_write(FLOATS.tobytes(), "float32")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    try:
        assert len(read_greeting(path)) > 800
    except ConfigurationError as error:
        assert "greeting" in str(error)  # noqa: PT017  # either will do


@pytest.mark.skipif(not HAS_LIBSNDFILE, reason="without offhook[audio]")
@pytest.mark.parametrize(
    "content", [b"fLaC" + bytes(60), b"ID3\4" + bytes(60), b"OggS" + bytes(60), b"FORM" + bytes(60)]
)
def test_what_libsndfile_cannot_read_is_refused_in_one_sentence(greeting, content):
    with pytest.raises(ConfigurationError, match=r"libsndfile cannot read it .*ffmpeg"):
        greeting(content)
