"""The same bytes on every system, CPU and compiler: one set of hashes for all of them.

The hashes were recorded with gcc on x86-64 and found again with clang and without AVX2; the kernels
alone have also been run for ARM64, under emulation, to the same bytes as here.
If the codec is to sound different, record them anew with
``python -m tests.codec.test_codec_golden``.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import codec
from codec._kernels import use_avx2

GOLDEN = Path(__file__).parents[1] / "data" / "codec_golden.json"
RATES_HZ = (8000, 16000, 24000, 48000)
GAINS_DB = (0.0, 9.0)


def converted() -> Iterator[tuple[str, bytes]]:
    """What every kind of stream makes of noise at full scale, with its name."""
    noise = random.Random(2611)
    payload, pcm = noise.randbytes(4000), noise.randbytes(2 * 12000)
    for gain_db, rate_hz in itertools.product(GAINS_DB, RATES_HZ):
        for decoder in (
            codec.MulawDecoder(rate_hz, gain_db=gain_db),
            codec.AlawDecoder(rate_hz, gain_db=gain_db),
        ):
            yield f"{decoder!r} {gain_db} dB", decoder.decode(payload) + decoder.flush()
        for encoder in (
            codec.MulawEncoder(rate_hz, gain_db=gain_db),
            codec.AlawEncoder(rate_hz, gain_db=gain_db),
        ):
            yield f"{encoder!r} {gain_db} dB", encoder.encode(pcm) + encoder.flush()
        for output_rate_hz in RATES_HZ:
            resampler = codec.Resampler(rate_hz, output_rate_hz, gain_db=gain_db)
            yield f"{resampler!r} {gain_db} dB", resampler.resample(pcm) + resampler.flush()


def hashes() -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest()[:16] for name, data in converted()}


@pytest.fixture(params=[True, False], ids=["best kernels", "baseline kernels"])
def kernels(request):
    yield use_avx2(request.param)
    use_avx2(True)


def test_all_streams_give_the_bytes_recorded(kernels):
    assert hashes() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(hashes(), indent=1) + "\n")
