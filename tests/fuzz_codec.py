"""Throw mutated chunks at the codec: ``python -m tests.fuzz_codec INPUTS [SEED]``.

Meant for the build with sanitizers and bounds checks (``.ci/sanitize``), which ends at the first
wrong access; here the answers are checked too. Inputs come in episodes: one stream, some dozens of
chunks of any size, and some that must be refused. In the end the same stream, given all of it at
once, has to give the same bytes.
"""

import random
import sys
import time
from array import array

import codec

RATES_HZ = (8000, 16000, 24000, 48000)
POOL_BYTES = 1 << 16
# Sizes at which loops begin a new vector, tile or block, give or take one; anything else, too.
EDGES = (1, 2, 3, 6, 8, 16, 32, 40, 80, 120, 160, 240, 320, 480, 640, 960, 1920)


class Fuzz:
    """Random streams and chunks from one seed, and the checks on what comes back."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.inputs = 0
        self.refused = 0
        quiet = bytes(self.random.randrange(4) for _ in range(POOL_BYTES // 4))
        loud = b"\xff\x7f\x00\x80" * (POOL_BYTES // 16)
        self.pool = self.random.randbytes(POOL_BYTES // 2) + quiet + loud

    def episode(self) -> None:
        stream, convert, pcm_in, out_bytes = self.stream()
        again = stream.copy()
        up, down = _ratio(stream)
        given, gotten, carried = [], [], 0
        clipped = 0
        for _ in range(self.random.randrange(1, 60)):
            chunk = self.chunk()
            self.inputs += 1
            if pcm_in and len(chunk) % 2:
                self.must_refuse(convert, chunk, ValueError)
                continue
            if self.random.random() < 0.02:
                self.misuse(convert, chunk)
            converted = convert(self.wrapped(chunk))
            carried += len(chunk) // 2 if pcm_in else len(chunk)
            assert len(converted) == carried // down * up * out_bytes
            assert -120.0 <= stream.level_dbfs <= 0.0
            assert stream.clipped_samples >= clipped
            carried %= down
            clipped = stream.clipped_samples
            given.append(chunk)
            gotten.append(converted)
        at_once = getattr(again, convert.__name__)
        assert b"".join(gotten) == at_once(b"".join(given))
        assert again.clipped_samples == clipped
        if self.random.random() < 0.5:
            assert stream.flush() == again.flush()
        else:
            stream.reset()
        assert stream.flush() == b""

    def stream(self):
        """A stream, its method, whether it takes PCM, and the bytes of a sample it gives."""
        gain_db = 0.0 if self.random.random() < 0.7 else self.random.uniform(-30, 30)
        rate_hz = self.random.choice(RATES_HZ)
        kind = self.random.randrange(5)
        if kind < 2:
            decoder = (codec.MulawDecoder, codec.AlawDecoder)[kind](rate_hz, gain_db=gain_db)
            return decoder, decoder.decode, False, 2
        if kind < 4:
            encoder = (codec.MulawEncoder, codec.AlawEncoder)[kind - 2](rate_hz, gain_db=gain_db)
            return encoder, encoder.encode, True, 1
        resampler = codec.Resampler(rate_hz, self.random.choice(RATES_HZ), gain_db=gain_db)
        return resampler, resampler.resample, True, 2

    def chunk(self) -> bytes:
        """Some bytes of the pool, of a likely or any size, mutated."""
        if self.random.random() < 0.7:
            size = max(0, self.random.choice(EDGES) + self.random.randrange(-1, 2))
        else:
            size = int(self.random.random() ** 4 * 4000)
        start = self.random.randrange(POOL_BYTES - 4000)
        chunk = bytearray(self.pool[start : start + size])
        for _ in range(self.random.randrange(4) if size else 0):
            at = self.random.randrange(len(chunk))
            match self.random.randrange(4):
                case 0:
                    chunk[at] ^= 1 << self.random.randrange(8)
                case 1:
                    chunk[at] = self.random.choice((0x00, 0x7F, 0x80, 0xFF))
                case 2:
                    chunk[at : at + self.random.randrange(9)] = b""
                case 3:
                    chunk[at:at] = chunk[: self.random.randrange(9)]
            if not chunk:
                break
        return bytes(chunk)

    def wrapped(self, chunk: bytes):
        """The same bytes as some other object, now and then at an odd address."""
        match self.random.randrange(12):
            case 0:
                return bytearray(chunk)
            case 1:
                return memoryview(b"?" + chunk)[1:]
            case 2:
                return array("B", chunk)
            case _:
                return chunk

    def misuse(self, convert, chunk: bytes) -> None:
        """Offer what no stream takes."""
        self.must_refuse(convert, chunk.decode("latin-1"), TypeError)
        self.must_refuse(convert, array("f", [0.5]), TypeError)
        if len(chunk) > 1:
            self.must_refuse(convert, memoryview(chunk + chunk)[::2], ValueError)

    def must_refuse(self, convert, data, error: type[Exception]) -> None:
        self.refused += 1
        try:
            convert(data)
        except error:
            return
        raise AssertionError(f"{convert} took {data!r}")


def _ratio(stream) -> tuple[int, int]:
    common = min(rate for rate in RATES_HZ)
    up, down = stream.output_rate_hz // common, stream.input_rate_hz // common
    for shared in (2, 3):
        while up % shared == down % shared == 0:
            up, down = up // shared, down // shared
    return up, down


def main(inputs: int, seed: int) -> None:
    fuzz, started, told = Fuzz(seed), time.monotonic(), 0
    while fuzz.inputs < inputs:
        fuzz.episode()
        if fuzz.inputs - told >= 1_000_000:
            told = fuzz.inputs
            print(f"{told} inputs, {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201
    print(f"seed {seed}: {fuzz.inputs} inputs, {fuzz.refused} of them refused")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2611)
