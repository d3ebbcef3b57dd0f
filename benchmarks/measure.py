"""What a resampler does to sound: response, delay, lateness, continuity, and speech scores.

Everything is measured from outside, through 16-bit samples and 20 ms chunks, the same way for
every peer. Needs numpy; the speech scores need scipy, pesq and pystoi.
"""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

import codec
from benchmarks import speech
from benchmarks.peers.codecs import AGENT, CALLER, Convert, Direction

Array = numpy.ndarray[Any, Any]
Open = Callable[[Direction], Convert]

LINE_NYQUIST_HZ = 4000
SPEECH_BAND_HZ = (300, 3400)
STOP_HZ = 4200
"""Images and aliases from here on count as heard: the stop band of the table."""
CHUNK_S = 0.02
TONE_AMPLITUDE = 29000.0
SETTLE_S = 0.4
"""More than any peer withholds, so that a tone is there in full."""


def chunks_of(pcm: bytes, rate_hz: int) -> list[bytes]:
    """20 ms chunks of 16-bit samples; what is left over at the end is dropped."""
    size = 2 * round(CHUNK_S * rate_hz)
    return [pcm[at : at + size] for at in range(0, len(pcm) - size + 1, size)]


def resampled(open_resampler: Open, direction: Direction, pcm: bytes) -> Array:
    resample = open_resampler(direction)
    chunks = chunks_of(pcm, direction.input_rate_hz)
    return numpy.frombuffer(b"".join([resample(chunk) for chunk in chunks]), numpy.int16)


# ---- Response ----


@dataclass(frozen=True, slots=True)
class Response:
    """Amplitude out over amplitude in, in dB, of single tones.

    Towards the model the rate goes up: each tone below 4 kHz comes out as itself and as an image
    mirrored about 4 kHz, and both are gains of the same filter. Towards the caller it goes down:
    tones above 4 kHz should vanish, and what comes out of them is an alias.
    """

    frequencies_hz: Array
    gains_db: Array

    def ripple_db(self) -> float:
        """Largest less smallest gain in the speech band."""
        low, high = SPEECH_BAND_HZ
        inside = (self.frequencies_hz >= low) & (self.frequencies_hz <= high)
        return float(numpy.ptp(self.gains_db[inside]))

    def stop_db(self, from_hz: int = STOP_HZ) -> float:
        """How far below the tone the loudest image or alias is, from ``from_hz`` on."""
        return float(-self.gains_db[self.frequencies_hz >= from_hz].max())


def response(open_resampler: Open, direction: Direction, step_hz: int) -> Response:
    """Measure every ``step_hz``, up to 8 kHz towards the model and 12 kHz towards the caller.

    Tones are whole hertz and are looked at for one second, so that each is one line of a Fourier
    transform, 130 dB above what rounding to 16 bits leaves in another. They are 7 Hz off the
    round numbers, lest the rounding error repeat itself and gather in lines of its own; only the
    edges of the bands are round.
    """
    edge_hz = LINE_NYQUIST_HZ if direction is CALLER else direction.input_rate_hz // 2
    gains: dict[int, float] = {}
    edges = {*SPEECH_BAND_HZ, 2 * LINE_NYQUIST_HZ - STOP_HZ if direction is CALLER else STOP_HZ}
    for tone_hz in sorted({*range(7, edge_hz, step_hz), *edges}):
        out = resampled(open_resampler, direction, tone(tone_hz, direction.input_rate_hz))
        lines = numpy.fft.rfft(out[-direction.output_rate_hz :].astype(float))
        levels = numpy.abs(lines) / (direction.output_rate_hz / 2) / TONE_AMPLITUDE
        if direction is CALLER:
            gains[tone_hz] = levels[tone_hz]
            gains[2 * LINE_NYQUIST_HZ - tone_hz] = levels[2 * LINE_NYQUIST_HZ - tone_hz]
        else:
            # Where a tone lands after folding about multiples of the line's Nyquist frequency.
            folded = tone_hz % direction.output_rate_hz
            gains[tone_hz] = levels[min(folded, direction.output_rate_hz - folded)]
    frequencies = sorted(gains)
    floor = 1e-8  # below what one second of 16-bit samples can show
    return Response(
        numpy.array(frequencies),
        numpy.array([20 * numpy.log10(gains[frequency] + floor) for frequency in frequencies]),
    )


def tone(tone_hz: float, rate_hz: int, duration_s: float = 1 + SETTLE_S) -> bytes:
    time_s = numpy.arange(round(duration_s * rate_hz)) / rate_hz
    samples = TONE_AMPLITUDE * numpy.sin(2 * numpy.pi * tone_hz * time_s)
    return numpy.rint(samples).astype(numpy.int16).tobytes()


def sweep(rate_hz: int, duration_s: float = 3.0) -> bytes:
    """A tone that rises from 0 Hz to half the rate."""
    time_s = numpy.arange(round(duration_s * rate_hz)) / rate_hz
    phase = numpy.pi * (rate_hz / 2 / duration_s) * time_s**2
    return numpy.rint(TONE_AMPLITUDE * numpy.sin(phase)).astype(numpy.int16).tobytes()


# ---- Delay and lateness ----


def group_delay_s(open_resampler: Open, direction: Direction, tone_hz: float) -> float:
    """How much later sound near ``tone_hz`` stands in the output than in the input.

    From the phases of two tones 20 Hz apart, which tell delays from -10 to 40 ms.
    """
    phases = []
    for beside_hz in (tone_hz - 10, tone_hz + 10):
        out = resampled(open_resampler, direction, tone(beside_hz, direction.input_rate_hz))
        at = numpy.arange(len(out) - direction.output_rate_hz, len(out))
        turn = numpy.exp(-2j * numpy.pi * beside_hz * at / direction.output_rate_hz)
        phases.append(numpy.angle(numpy.sum(out[at] * turn)))
    delay_s = (phases[0] - phases[1]) / (2 * numpy.pi * 20)
    return float((delay_s + 0.01) % 0.05 - 0.01)


def lateness_s(
    open_resampler: Open, direction: Direction, delay_s: float, duration_s: float = 10
) -> list[float]:
    """After each chunk: how old the newest sound in the output so far is.

    It is what the stream holds back plus its delay; 0 would be all the input, at once.
    """
    resample = open_resampler(direction)
    given_s = written_s = 0.0
    late = []
    for chunk in chunks_of(tone(997, direction.input_rate_hz, duration_s), direction.input_rate_hz):
        given_s += len(chunk) / 2 / direction.input_rate_hz
        written_s += len(resample(chunk)) / 2 / direction.output_rate_hz
        late.append(given_s - written_s + delay_s)
    return late


def drift_s(late: list[float]) -> float:
    """How much audio a stream loses in a second: lateness that grows is loss.

    The smallest lateness of either half is compared, because streams that work in blocks go up
    and down.
    """
    half = len(late) // 2
    return (min(late[half:]) - min(late[:half])) / (half * CHUNK_S)


# ---- Continuity ----


def chunking_error(open_resampler: Open, direction: Direction) -> int:
    """The largest difference, in steps of 16 bits, that cutting a stream into chunks makes."""
    source = speech_in(direction)[: 2 * 2 * direction.input_rate_hz]
    whole = numpy.frombuffer(open_resampler(direction)(source), numpy.int16)
    sizes, resample, parts, at = random.Random(1), open_resampler(direction), [], 0
    while at < len(source):
        size = 2 * 3 * sizes.randrange(1, 200)
        parts.append(resample(source[at : at + size]))
        at += size
    cut = numpy.frombuffer(b"".join(parts), numpy.int16)
    common = min(len(whole), len(cut))
    difference = whole[:common].astype(int) - cut[:common]
    return int(numpy.abs(difference).max(initial=0))


# ---- Speech ----


def speech_in(direction: Direction) -> bytes:
    """The speech set as 16-bit PCM at the rate that comes in."""
    pcm = speech.speech()
    if direction is AGENT:
        return pcm
    return _ideal(pcm, speech.RATE_HZ, direction.input_rate_hz)


def speech_scores(open_resampler: Open, direction: Direction) -> dict[str, float | None]:
    """PESQ and STOI against an ideal resampler; None for what is not installed.

    Towards the model: wide-band PESQ of the mu-law caller's voice, so that only the resampler is
    judged. Towards the caller: narrow-band PESQ of the mu-law the telephone gets, where mu-law
    itself sets a ceiling of about 4.1.
    """
    source = speech_in(direction)
    if direction is CALLER:
        source = codec.decode_mulaw(codec.encode_mulaw(source))
    ideal = numpy.frombuffer(
        _ideal(source, direction.input_rate_hz, direction.output_rate_hz), numpy.int16
    )
    silence = bytes(2 * direction.input_rate_hz // 2)  # pushes out what a stream withholds
    out = resampled(open_resampler, direction, source + silence)
    if direction is AGENT:
        out = numpy.frombuffer(codec.decode_mulaw(codec.encode_mulaw(out)), numpy.int16)
    rate_hz = direction.output_rate_hz
    return {
        "pesq": _pesq(ideal, out[: len(ideal)], rate_hz, "wb" if direction is CALLER else "nb"),
        "stoi": _stoi(ideal, out, rate_hz),
    }


def _ideal(pcm: bytes, input_rate_hz: int, output_rate_hz: int) -> bytes:
    """Resampled with no regard for delay or cost: 4000 taps a rate."""
    signal = importlib.import_module("scipy.signal")
    common = numpy.gcd(input_rate_hz, output_rate_hz)
    up, down = output_rate_hz // common, input_rate_hz // common
    taps = signal.firwin(4001, 0.97 / max(up, down), window=("kaiser", 12))
    samples = numpy.frombuffer(pcm, numpy.int16).astype(float)
    out = signal.resample_poly(samples, up, down, window=taps)
    return numpy.clip(numpy.rint(out), -32768, 32767).astype(numpy.int16).tobytes()


def _pesq(ideal: Array, out: Array, rate_hz: int, mode: str) -> float | None:
    try:
        pesq = importlib.import_module("pesq").pesq
    except ImportError:
        return None
    return float(pesq(rate_hz, ideal, out, mode))


def _stoi(ideal: Array, out: Array, rate_hz: int) -> float | None:
    """STOI knows nothing of delay, so the output is first moved to where it fits best."""
    try:
        stoi = importlib.import_module("pystoi").stoi
    except ImportError:
        return None
    signal = importlib.import_module("scipy.signal")
    match = signal.correlate(out.astype(float), ideal.astype(float), method="fft")
    shift = max(0, int(match.argmax()) - (len(ideal) - 1))
    moved = out[shift : shift + len(ideal)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(stoi(ideal[: len(moved)].astype(float), moved.astype(float), rate_hz))
