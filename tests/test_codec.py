"""The codec as its callers use it: sizes, chunking, state, levels, gain, and bad input."""

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

import codec

RATES_HZ = (8000, 16000, 24000, 48000)
PAYLOAD = random.Random(711).randbytes(1600)
PCM = random.Random(24).randbytes(2 * 4800)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """``data`` in chunks of the given sizes, over and over, until nothing is left."""
    chunks = []
    while data:
        for size in sizes:
            chunks.append(data[:size])
            data = data[size:]
    return chunks


# ---- Sizes and chunking ----


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("make", [codec.MulawDecoder, codec.AlawDecoder])
@given(sizes=st.lists(st.integers(0, 700), min_size=1).filter(any))
def test_decoding_in_chunks_equals_decoding_at_once(make, rate_hz, sizes):
    at_once, in_chunks = make(rate_hz), make(rate_hz)

    pcm = [in_chunks.decode(chunk) for chunk in cut(PAYLOAD, sizes)]

    assert b"".join(pcm) == at_once.decode(PAYLOAD)
    assert in_chunks.flush() == at_once.flush()


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("make", [codec.MulawEncoder, codec.AlawEncoder])
@given(sizes=st.lists(st.integers(0, 700), min_size=1).filter(any))
def test_encoding_in_chunks_equals_encoding_at_once(make, rate_hz, sizes):
    at_once, in_chunks = make(rate_hz), make(rate_hz)

    payload = [in_chunks.encode(chunk) for chunk in cut(PCM, [2 * size for size in sizes])]

    assert b"".join(payload) == at_once.encode(PCM)
    assert in_chunks.flush() == at_once.flush()


@pytest.mark.parametrize("output_rate_hz", RATES_HZ)
@pytest.mark.parametrize("input_rate_hz", RATES_HZ)
@given(sizes=st.lists(st.integers(0, 700), min_size=1).filter(any))
def test_resampling_in_chunks_equals_resampling_at_once(input_rate_hz, output_rate_hz, sizes):
    at_once = codec.Resampler(input_rate_hz, output_rate_hz)
    in_chunks = at_once.copy()

    resampled = [in_chunks.resample(chunk) for chunk in cut(PCM, [2 * size for size in sizes])]

    assert b"".join(resampled) == at_once.resample(PCM)
    assert in_chunks.flush() == at_once.flush()


@given(sizes=st.lists(st.integers(0, 700)))
def test_the_decoder_withholds_nothing(sizes):
    decoder = codec.MulawDecoder(16000)

    assert [len(decoder.decode(bytes(size))) for size in sizes] == [4 * size for size in sizes]


@given(sizes=st.lists(st.integers(0, 700)))
def test_the_encoder_withholds_only_an_incomplete_group_of_three(sizes):
    encoder = codec.MulawEncoder(24000)

    carry = 0
    for size in sizes:
        assert len(encoder.encode(bytes(2 * size))) == (carry + size) // 3
        carry = (carry + size) % 3


def test_decoding_equals_g711_alone_followed_by_the_rate_change():
    decoder, resampler = codec.MulawDecoder(16000), codec.Resampler(8000, 16000)

    assert decoder.decode(PAYLOAD) == resampler.resample(codec.decode_mulaw(PAYLOAD))


def test_encoding_equals_the_rate_change_followed_by_g711_alone():
    encoder, resampler = codec.MulawEncoder(24000), codec.Resampler(24000, 8000)

    assert encoder.encode(PCM) == codec.encode_mulaw(resampler.resample(PCM))


def test_equal_rates_leave_samples_untouched():
    assert codec.Resampler(16000, 16000).resample(PCM) == PCM
    assert codec.MulawDecoder(8000).decode(PAYLOAD) == codec.decode_mulaw(PAYLOAD)


# ---- State ----


def test_reset_begins_a_new_stream():
    decoder = codec.MulawDecoder(16000)
    first = decoder.decode(PAYLOAD)

    decoder.reset()

    assert decoder.decode(PAYLOAD) == first


def test_flush_gives_the_tail_and_begins_a_new_stream():
    encoder = codec.MulawEncoder(24000)
    first = encoder.encode(PCM[:1000])

    tail = encoder.flush()

    # 500 samples leave 2 over; they and the filter's 120 taps make 40 more groups of three.
    assert len(tail) == 40
    assert encoder.flush() == b""
    assert encoder.encode(PCM[:1000]) == first


def test_the_tail_is_what_silence_would_have_brought_out():
    encoder = codec.MulawEncoder(24000)
    encoder.encode(PCM)
    twin = encoder.copy()

    assert encoder.flush() == twin.encode(bytes(2 * 3 * 39))


def test_a_copy_goes_its_own_way():
    decoder = codec.MulawDecoder(16000, gain_db=3)
    decoder.decode(PAYLOAD)

    twin = decoder.copy()
    decoder.decode(PAYLOAD[:77])

    untouched = codec.MulawDecoder(16000, gain_db=3)
    untouched.decode(PAYLOAD)
    assert type(twin) is codec.MulawDecoder
    assert twin.gain_db == 3
    assert twin.decode(PAYLOAD) == untouched.decode(PAYLOAD)


# ---- Bad input ----


@pytest.mark.parametrize(
    ("pcm", "error", "message"),
    [
        ("speech", TypeError, "pcm must be bytes-like, got str"),
        (None, TypeError, "pcm must be bytes-like, got NoneType"),
        (b"odd", ValueError, "pcm must hold whole 16-bit samples, got an odd 3 bytes"),
        (bytearray(5), ValueError, "pcm must hold whole 16-bit samples, got an odd 5 bytes"),
        (array("f", [1.0]), TypeError, "pcm must be a buffer of .*, got items of 'f'"),
        (memoryview(bytes(8))[::2], ValueError, "pcm must be contiguous, got a stride of 2 bytes"),
        (memoryview(bytes(8)).cast("B", (2, 4)), ValueError, "pcm must have 1 dimension, got 2"),
    ],
)
def test_bad_pcm_is_refused_and_changes_nothing(pcm, error, message):
    encoder, untouched = codec.MulawEncoder(24000), codec.MulawEncoder(24000)
    encoder.encode(PCM[:100])
    untouched.encode(PCM[:100])

    with pytest.raises(error, match=message):
        encoder.encode(pcm)

    assert encoder.level_dbfs == untouched.level_dbfs
    assert encoder.encode(PCM) == untouched.encode(PCM)


@pytest.mark.parametrize(
    ("payload", "error", "message"),
    [
        ("speech", TypeError, "payload must be bytes-like, got str"),
        (array("h", [1]), TypeError, "payload must be a buffer of bytes, got items of 'h'"),
        (memoryview(bytes(8))[::-1], ValueError, "payload must be contiguous, got a stride of -1"),
    ],
)
def test_a_bad_payload_is_refused_and_changes_nothing(payload, error, message):
    decoder, untouched = codec.MulawDecoder(16000), codec.MulawDecoder(16000)
    decoder.decode(PAYLOAD)
    untouched.decode(PAYLOAD)

    with pytest.raises(error, match=message):
        decoder.decode(payload)

    assert decoder.decode(PAYLOAD) == untouched.decode(PAYLOAD)


@pytest.mark.parametrize("wrap", [bytearray, memoryview, lambda data: array("B", data)])
def test_any_flat_buffer_of_bytes_is_taken(wrap):
    assert codec.MulawDecoder(16000).decode(wrap(PAYLOAD)) == codec.MulawDecoder(16000).decode(
        PAYLOAD
    )
    assert codec.encode_mulaw(array("h", PCM)) == codec.encode_mulaw(wrap(PCM))


@pytest.mark.parametrize("make", [codec.MulawDecoder, codec.MulawEncoder, codec.AlawDecoder])
def test_an_unsupported_rate_is_refused_by_value(make):
    with pytest.raises(ValueError, match="_rate_hz must be 8000, 16000, 24000 or 48000, got 44100"):
        make(44100)


def test_a_rate_of_the_wrong_type_is_refused():
    with pytest.raises(TypeError, match="output_rate_hz must be an int, got float"):
        codec.MulawDecoder(16000.0)


@pytest.mark.parametrize("make", [codec.Converter, codec.Decoder, codec.Encoder])
def test_the_common_part_of_the_streams_is_not_one_itself(make):
    with pytest.raises(TypeError, match="not made directly"):
        make()


def test_an_empty_chunk_is_legal():
    assert codec.MulawDecoder(16000).decode(b"") == b""
    assert codec.MulawEncoder(24000).encode(b"") == b""
    assert codec.decode_mulaw(b"") == b""
