"""Speech, coughs, echoes and silence."""

from __future__ import annotations

import math
import random
from array import array

import codec
from server.simulators.gemini import GREETING, load_agent_speech

CLIPS = ("hello", "question", "interrupt", "followup", "goodbye")


def quiet(seconds: float) -> bytes:
    return b"\xff" * round(seconds * 8_000)


def samples(payload: bytes) -> array:
    return array("h", codec.decode_mulaw(payload))


def payload_of(wave) -> bytes:
    held = (max(-32_768, min(32_767, round(sample))) for sample in wave)
    return codec.encode_mulaw(array("h", held).tobytes())


def noise(seconds: float, amplitude: float, seed: int = 1) -> bytes:
    generator = random.Random(seed)
    return payload_of(generator.gauss(0, amplitude) for _ in range(round(seconds * 8_000)))


def cough(seed: int) -> bytes:
    """Two bursts of breath: the burst of the glottis and the rush of air after it."""
    generator = random.Random(seed)
    wave: list[float] = []
    for seconds, amplitude in ((0.10, 12_000), (0.06, 0), (0.22, 5_000)):
        count = round(seconds * 8_000)
        wave += [
            generator.gauss(0, amplitude) * min(1, n / 40) * math.exp(-3 * n / count)
            for n in range(count)
        ]
    return payload_of(wave)


def agent_speech() -> bytes:
    greeting = load_agent_speech(*GREETING)
    return codec.MulawEncoder(24_000).encode(greeting.pcm)


def echo_of(payload: bytes, delay_s: float, gain_db: float) -> bytes:
    """What a telephone on loudspeaker sends back: late, quieter, with a room and a line's noise."""
    generator = random.Random(5)
    spoken = samples(payload)
    gain = 10 ** (gain_db / 20)
    wave = [generator.gauss(0, 20) for _ in range(len(spoken) + 8_000)]
    for after_s, share in ((0.0, 1.0), (0.04, 0.4), (0.09, 0.2)):
        offset = round((delay_s + after_s) * 8_000)
        for n, sample in enumerate(spoken):
            wave[n + offset] += gain * share * sample
    return payload_of(wave)


def mixed(one: bytes, other: bytes, at_s: float) -> bytes:
    wave = [float(sample) for sample in samples(one)]
    for n, sample in enumerate(samples(other)):
        wave[n + round(at_s * 8_000)] += sample
    return payload_of(wave)


def frames_of(payload: bytes):
    return [payload[at : at + 160].ljust(160, b"\xff") for at in range(0, len(payload), 160)]
