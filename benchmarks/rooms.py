"""Telephone calls out of real rooms, mixed from what Debian and PyPI packages bring.

Speech and noise are other people's work under their own licences, so none of it is here: packages
that are installed are read, others are named with how to install them. A mix is what a carrier
would send: 300 to 3400 Hz, the caller at a level, the room so far under them, the noise of the
line, mu-law. Everything follows from a seed.
"""

from __future__ import annotations

import random
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
from scipy import signal

import codec
from codec.line import FRAME_BYTES, SILENCE

Sound = Any
"""Samples at 8 kHz, floats from -1 to 1: an array of numpy's."""

RATE_HZ = 8_000
CALLER_DBFS = -26.0
LINE_DBFS = -66.0
UNDER_ACTIVE_DB = 28.0
"""Speech is what is no further below its own level, 10 ms at a time."""
BEFORE_S = 1.2
"""Of the room alone, before somebody speaks."""
AFTER_S = 4.0
WORD_S = (0.12, 0.6)
SENTENCE_S = (1.0, 5.0)


@dataclass(frozen=True, slots=True)
class Package:
    """What somebody else has recorded."""

    name: str
    install: str
    licence: str
    folder: str
    """Where it puts its sounds: a path of the system's, or one inside a Python package."""

    @property
    def path(self) -> Path | None:
        """Its sounds, or None where it is not installed."""
        path = Path(self.folder)
        if not path.is_absolute():
            try:
                path = Path(str(metadata.distribution(self.name).locate_file(self.folder)))
            except metadata.PackageNotFoundError:
                return None
        return path if path.is_dir() else None


def _asterisk(name: str, voice: str, licence: str = "CC-BY-SA 3.0") -> Package:
    install = f"apt-get install --no-install-recommends {name}"
    return Package(name, install, licence, f"/usr/share/asterisk/sounds/{voice}")


PROMPTS = (
    _asterisk("asterisk-core-sounds-en-wav", "en_US_f_Allison"),
    _asterisk("asterisk-core-sounds-es-wav", "es_MX_f_Allison"),
    _asterisk("asterisk-core-sounds-fr-wav", "fr_CA_f_June"),
    _asterisk("asterisk-core-sounds-it-wav", "it_IT_m_Carlo"),
    _asterisk("asterisk-core-sounds-ru-wav", "ru_RU_f_IvrvoiceRU", "CC-BY 3.0"),
    _asterisk("asterisk-prompt-it-menardi-wav", "it_IT_f_Menardi"),
)
ACTED = tuple(
    Package(
        f"fillets-ng-data-{language}",
        f"apt-get install --no-install-recommends fillets-ng-data-{language}",
        "GPL-2",
        "/usr/share/games/fillets-ng/sound",
    )
    for language in ("cs", "nl")
)
LETTERS = Package(
    "klettres-data",
    "apt-get install --no-install-recommends klettres-data",
    "GPL-2+",
    "/usr/share/klettres",
)
AMBIENCES = Package(
    "livekit-agents",
    "pip install --no-deps livekit-agents",
    "Apache-2.0; typing CC-BY 4.0",
    "livekit/agents/resources",
)
CITY = Package(
    "lincity-ng-data",
    "apt-get install --no-install-recommends lincity-ng-data",
    "GPL-2+",
    "/usr/share/games/lincity-ng/sounds",
)

RECORDED = {
    "city": (AMBIENCES, ("city-ambience.ogg",)),
    "office": (AMBIENCES, ("office-ambience.ogg",)),
    "forest": (AMBIENCES, ("forest-ambience.ogg",)),
    "traffic": (CITY, ("TraficHigh?.wav", "TraficLow?.wav")),
    "typing": (AMBIENCES, ("keyboard-typing.ogg", "keyboard-typing2.ogg")),
    "bangs": (CITY, ("Blacksmith?.wav", "Build?.wav", "CoalMine?.wav")),
    "crowd": (AMBIENCES, ("crowded-room.ogg",)),
}
SYNTHETIC = ("car", "white")
NOISES = ("city", "office", "forest", "traffic", "car", "white", "typing", "bangs")
VOICES = ("crowd", "babble", "tv")
"""Rooms in which others speak, which a detector of speech cannot tell from the caller."""


def missing() -> list[Package]:
    """Packages that are not installed, each with its way to be."""
    wanted = (*PROMPTS, *ACTED, LETTERS, AMBIENCES, CITY)
    return [package for package in wanted if package.path is None]


@dataclass(frozen=True, slots=True)
class Utterance:
    """Something said: from the first sound to the last, at an active level of 0 dBFS."""

    samples: Sound

    @property
    def length_s(self) -> float:
        return len(self.samples) / RATE_HZ


@dataclass(frozen=True, slots=True)
class Mix:
    """What the carrier sends, and when the caller truly speaks in it."""

    payload: bytes
    began_s: float
    ended_s: float

    def frames(self) -> list[bytes]:
        return frames(self.payload)


def frames(payload: bytes) -> list[bytes]:
    whole = len(payload) - len(payload) % FRAME_BYTES
    return [payload[at : at + FRAME_BYTES] for at in range(0, whole, FRAME_BYTES)]


# ---- What is said ----


def sentences(count: int, seed: int = 1) -> list[Utterance]:
    """Sentences of all voices that are installed, as many of each as may be."""
    pools = [
        sorted(path.glob("*.wav")) for package in PROMPTS if (path := package.path) is not None
    ]
    for package in ACTED:
        if (path := package.path) is not None:
            pools.append(sorted(path.glob(f"*/{package.name[-2:]}/*.ogg")))
    return _choose(pools, SENTENCE_S, count, seed)


def words(count: int, seed: int = 1) -> list[Utterance]:
    """Short words of all voices: digits, letters and syllables, in the place of yes and no."""
    pools = [
        sorted([*path.glob("digits/?.wav"), *path.glob("letters/*.wav")])
        for package in PROMPTS
        if (path := package.path) is not None
    ]
    if (path := LETTERS.path) is not None:
        for language in sorted(each for each in path.iterdir() if each.is_dir()):
            pools.append(sorted(language.glob("*/*.ogg")))
    return _choose(pools, WORD_S, count, seed)


def _choose(
    pools: Sequence[list[Path]], length_s: tuple[float, float], count: int, seed: int
) -> list[Utterance]:
    generator = random.Random(seed)
    pools = [pool for pool in pools if pool]
    chosen: list[Utterance] = []
    for pool in pools:
        generator.shuffle(pool)
    while pools and len(chosen) < count:
        for pool in pools:
            while pool:
                path = pool.pop()
                said = _said(path)
                if said is not None and length_s[0] <= said.length_s <= length_s[1]:
                    chosen.append(said)
                    break
        pools = [pool for pool in pools if pool]
    return chosen[:count]


def _said(path: Path) -> Utterance | None:
    """What is said in a file, without the silence around it; None if there is next to nothing."""
    samples = _band(_read(path))
    levels = _levels(samples)
    if len(levels) < 8 or levels.max() < 1e-6:
        return None
    active = _active(levels)
    loud = numpy.flatnonzero(levels > active * 10 ** (-UNDER_ACTIVE_DB / 10))
    first, last = int(loud[0]), int(loud[-1]) + 1
    said = samples[first * 80 : last * 80] / numpy.sqrt(active)
    return Utterance(said)


# ---- The room behind it ----


@cache
def noise(name: str) -> Sound:
    """A minute or more of a room, at 0 dBFS; raises LookupError where its package is missing."""
    if name == "car":
        found = _car(90.0)
    elif name == "white":
        found = numpy.random.default_rng(2).normal(0, 1, 90 * RATE_HZ)
    elif name == "babble":
        found = numpy.sum([_talk(seed) for seed in range(10, 18)], axis=0)
    elif name == "tv":
        found = _talk(20)
    else:
        package, patterns = RECORDED[name]
        if package.path is None:
            raise LookupError(package.install)
        pieces = [
            _read(path) for pattern in patterns for path in sorted(package.path.glob(pattern))
        ]
        once = numpy.concatenate([piece / (_rms(piece) or 1.0) for piece in pieces])
        # The same at other speeds is another room of its kind.
        speeds = [signal.resample_poly(once, up, 10) for up in (10, 9, 11)]
        found = numpy.concatenate(speeds)
    found = _band(found)
    return found / _rms(found)


def is_there(name: str) -> bool:
    """Whether what this noise is made of is installed."""
    try:
        noise(name)
    except (LookupError, ValueError):
        return False
    return True


def _talk(seed: int) -> Sound:
    """Somebody else who goes on and on, with the pauses that people make."""
    generator = random.Random(seed)
    pieces: list[Sound] = []
    for said in sentences(40, seed):
        pieces += [said.samples, numpy.zeros(round(generator.uniform(0.1, 0.6) * RATE_HZ))]
    talk = numpy.concatenate(pieces)
    return numpy.resize(talk, 90 * RATE_HZ)


def _car(seconds: float) -> Sound:
    """A cabin: rumble that falls by 12 dB an octave, and an engine that changes its gears."""
    generator = numpy.random.default_rng(3)
    count = round(seconds * RATE_HZ)
    rumble = signal.lfilter(*signal.butter(2, 200, fs=RATE_HZ), generator.normal(0, 1, count))
    wind = signal.lfilter(*signal.butter(1, 900, fs=RATE_HZ), generator.normal(0, 1, count))
    at = numpy.arange(count) / RATE_HZ
    hz = 55 + 18 * signal.sawtooth(2 * numpy.pi * at / 11.0)
    phase = 2 * numpy.pi * numpy.cumsum(hz) / RATE_HZ
    engine = sum(numpy.sin(n * phase) / n for n in range(1, 9))
    sways = 1 + 0.4 * numpy.sin(2 * numpy.pi * at / 7.0)
    parts = ((rumble, 1.0), (wind, 0.35), (engine, 0.4))
    return sways * sum(gain * part / _rms(part) for part, gain in parts)


def cough(seed: int) -> Sound:
    """Two bursts of breath, as long and as loud as people cough, each time differently."""
    generator = random.Random(seed)
    noise = numpy.random.default_rng(seed)
    bursts = []
    for seconds, loudest in ((0.10, 0.37), (0.06, 0.0), (0.22, 0.15)):
        count = round(RATE_HZ * seconds * generator.uniform(0.7, 1.3))
        at = numpy.arange(count)
        envelope = numpy.minimum(1, at / 40) * numpy.exp(-3 * at / count)
        bursts.append(loudest * generator.uniform(0.3, 1.5) * noise.normal(0, 1, count) * envelope)
    return numpy.concatenate(bursts)


# ---- What the carrier sends ----


def said_in(
    said: Utterance, room: str | None, snr_db: float, seed: int, dbfs: float = CALLER_DBFS
) -> Mix:
    """Somebody speaks after a while in a room, or on a quiet line where that is None."""
    spoken = said.samples * 10 ** (dbfs / 20)
    before, after = round(BEFORE_S * RATE_HZ), round(AFTER_S * RATE_HZ)
    # Somewhere else on the grid of frames each time.
    before += random.Random(seed).randrange(FRAME_BYTES)
    samples = numpy.zeros(before + len(spoken) + after)
    samples[before : before + len(spoken)] = spoken
    if room is not None:
        samples += _stretch(room, len(samples), seed) * 10 ** ((dbfs - snr_db) / 20)
    began_s = before / RATE_HZ
    return Mix(_coded(samples, seed), began_s, began_s + said.length_s)


def room_alone(room: str, seconds: float, snr_db: float, seed: int = 7) -> bytes:
    """A room, so far under a caller who says nothing."""
    samples = _stretch(room, round(seconds * RATE_HZ), seed) * 10 ** ((CALLER_DBFS - snr_db) / 20)
    return _coded(samples, seed)


def coughed(seed: int) -> bytes:
    """Somebody coughs on a line that was quiet for a second."""
    quiet = numpy.zeros(RATE_HZ)
    return _coded(numpy.concatenate([quiet, _band(cough(seed)), quiet]), seed)


def dropped(payload: bytes, share: float, seed: int) -> bytes:
    """Lose frames in bursts of three on average, and send silence in their place."""
    generator, lost, kept = random.Random(seed), False, []
    for frame in frames(payload):
        lost = generator.random() < (2 / 3 if lost else share / (1 - share) / 3)
        kept.append(SILENCE * FRAME_BYTES if lost else frame)
    return b"".join(kept)


def _coded(samples: Sound, seed: int) -> bytes:
    line = numpy.random.default_rng(seed).normal(0, 10 ** (LINE_DBFS / 20), len(samples))
    clipped = numpy.clip(samples + line, -1, 1)
    return codec.encode_mulaw((clipped * 32_767).astype("<i2").tobytes())


def _stretch(room: str, count: int, seed: int) -> Sound:
    whole = noise(room)
    return numpy.take(whole, numpy.arange(count) + random.Random(seed).randrange(len(whole)),
                      mode="wrap")  # fmt: skip


# ---- Samples ----


def _read(path: Path) -> Sound:
    if path.suffix == ".wav":
        try:
            with wave.open(str(path)) as file:
                if file.getsampwidth() == 2:
                    pcm = numpy.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_768
                    return _at_rate(pcm.reshape(-1, file.getnchannels()), file.getframerate())
        except (wave.Error, EOFError):
            pass  # not plain PCM
    import soundfile

    pcm, rate_hz = soundfile.read(path, always_2d=True)
    return _at_rate(pcm, rate_hz)


def _at_rate(pcm: Sound, rate_hz: int) -> Sound:
    mono = pcm.mean(axis=1)
    if rate_hz == RATE_HZ:
        return mono
    common = numpy.gcd(rate_hz, RATE_HZ)
    return signal.resample_poly(mono, RATE_HZ // common, rate_hz // common)


@cache
def _telephone() -> Any:
    return signal.butter(4, (300, 3_400), "bandpass", fs=RATE_HZ, output="sos")


def _band(samples: Sound) -> Sound:
    return signal.sosfilt(_telephone(), samples)


def _levels(samples: Sound) -> Sound:
    """Mean power of each 10 ms."""
    whole = samples[: len(samples) - len(samples) % 80].reshape(-1, 80)
    return (whole**2).mean(axis=1)


def _active(levels: Sound) -> float:
    """Mean power of the stretches in which somebody speaks, without the pauses between."""
    loudest = numpy.percentile(levels, 95)
    return float(levels[levels > loudest * 10**-2.5].mean())


def _rms(samples: Sound) -> float:
    return float(numpy.sqrt((samples**2).mean()))
