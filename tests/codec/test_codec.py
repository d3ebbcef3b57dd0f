"""The codec as its callers use it: sizes, chunking, state, levels, gain, and bad input."""

import ast
import pickle
import random
import sys
from array import array
from importlib import resources

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


def test_a_stream_that_was_never_initialised_is_a_stream_at_8_khz():
    decoder = codec.MulawDecoder.__new__(codec.MulawDecoder)

    assert decoder.decode(PAYLOAD) == codec.decode_mulaw(PAYLOAD)
    assert decoder.flush() == b""
    decoder.reset()
    assert decoder.copy().output_rate_hz == 8000


def test_a_stream_initialised_again_begins_again():
    encoder = codec.MulawEncoder(24000)
    encoder.encode(PCM)

    encoder.__init__(16000)

    assert encoder.encode(PCM) == codec.MulawEncoder(16000).encode(PCM)


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


# ---- Saturation, levels and gain ----


def square_wave(samples: int) -> array:
    """As loud as 16 bits can be; a filter overshoots on its edges."""
    return array("h", [32767 if i // 20 % 2 else -32768 for i in range(samples)])


def test_overshoot_is_held_at_full_scale_and_counted():
    resampler = codec.Resampler(8000, 16000)

    out = array("h", resampler.resample(square_wave(800)))

    assert max(out) == 32767
    assert min(out) == -32768
    assert resampler.clipped_samples > 0
    # Held, not wrapped: every sample a quarter period after an edge still has the sign it should.
    assert all((out[i + 20] > 0) == (i // 40 % 2 == 1) for i in range(0, 1500, 40))


def test_clipped_samples_are_counted_over_the_life_of_a_stream():
    encoder = codec.MulawEncoder(24000)
    encoder.encode(square_wave(4800))
    first = encoder.clipped_samples

    encoder.reset()
    encoder.encode(square_wave(4800))

    assert encoder.clipped_samples == 2 * first > 0


def test_a_quiet_stream_clips_nothing():
    decoder = codec.MulawDecoder(16000)

    decoder.decode(codec.encode_mulaw(array("h", [1000, -1000] * 80)))

    assert decoder.clipped_samples == 0


@pytest.mark.parametrize(
    ("samples", "level_dbfs"),
    [
        ([-32768] * 480, 0.0),
        ([16384, -16384] * 240, -6.0206),
        ([1000] * 240 + [0] * 240, -33.319),
        ([0] * 480, -120.0),
        ([1, 0, 0], -95.08),
        ([-20000] * 7, -4.288),
    ],
)
def test_the_level_is_the_root_mean_square_of_the_last_chunk(samples, level_dbfs):
    encoder = codec.MulawEncoder(24000, gain_db=-12)

    encoder.encode(array("h", samples))

    assert encoder.level_dbfs == pytest.approx(level_dbfs, abs=0.001)


def test_a_decoder_s_level_is_that_of_the_caller_before_gain():
    decoder = codec.MulawDecoder(16000, gain_db=12)

    decoder.decode(b"\xff\xaf" * 80)

    # The codes of 0 and 4092.
    assert decoder.level_dbfs == pytest.approx(-18.07 - 3.01, abs=0.01)


def test_the_level_of_a_stream_not_begun_is_silence_and_an_empty_chunk_changes_nothing():
    decoder = codec.MulawDecoder(16000)
    before = decoder.level_dbfs

    decoder.decode(PAYLOAD)
    level_dbfs = decoder.level_dbfs
    decoder.decode(b"")

    assert before == -120.0
    assert decoder.level_dbfs == level_dbfs > -120.0


def test_the_level_of_a_long_chunk_takes_all_of_it():
    resampler = codec.Resampler(16000, 8000)

    resampler.resample(array("h", [8192] * 16000 + [0] * 16001))

    assert resampler.level_dbfs == pytest.approx(-15.05, abs=0.01)


def test_gain_makes_a_quiet_caller_louder_by_so_much():
    resampler = codec.Resampler(8000, 8000, gain_db=20)

    out = array("h", resampler.resample(array("h", [0, 100, -250, 2000])))

    assert out.tolist() == [0, 1000, -2500, 20000]


def test_gain_bends_peaks_instead_of_cutting_them():
    ramp = array("h", range(0, 6400, 16))
    resampler = codec.Resampler(8000, 8000, gain_db=20)

    out = array("h", resampler.resample(ramp))

    # Twice full scale is asked for at the end: each step still leads higher, but never beyond.
    assert list(out) == sorted(set(out))
    assert 31000 < max(out) < 32767
    assert resampler.clipped_samples == sum(10 * sample > 32767 for sample in ramp)


def test_the_limiter_is_odd_so_it_adds_no_offset():
    loud = array("h", range(-32640, 32641, 128))
    resampler = codec.Resampler(16000, 16000, gain_db=12)

    out = array("h", resampler.resample(loud))

    assert [-sample for sample in reversed(out)] == list(out)


def test_gain_can_change_while_the_stream_runs():
    resampler = codec.Resampler(8000, 8000)
    quiet = array("h", [100, -100])

    first = resampler.resample(quiet)
    resampler.gain_db = 20
    second = array("h", resampler.resample(quiet))

    assert first == quiet.tobytes()
    assert second.tolist() == [1000, -1000]
    assert resampler.gain_db == 20


@pytest.mark.parametrize("gain_db", [30.1, -31, float("nan"), float("inf")])
def test_a_gain_out_of_range_is_refused_and_the_old_one_kept(gain_db):
    decoder = codec.MulawDecoder(16000, gain_db=3)

    with pytest.raises(ValueError, match="gain_db must be between -30 and 30, got"):
        decoder.gain_db = gain_db

    assert decoder.gain_db == 3


@pytest.mark.parametrize("gain_db", ["3", None, b"3"])
def test_a_gain_of_the_wrong_type_is_refused(gain_db):
    with pytest.raises(TypeError, match="gain_db must be a number, got"):
        codec.MulawDecoder(16000, gain_db=gain_db)


@given(st.binary(max_size=4000), st.floats(-30, 30), st.sampled_from(RATES_HZ))
def test_no_gain_wraps_round(pcm, gain_db, rate_hz):
    samples = array("h", pcm[: len(pcm) // 2 * 2])
    resampler = codec.Resampler(rate_hz, rate_hz, gain_db=gain_db)

    out = array("h", resampler.resample(samples))

    assert all(
        (after >= 0) if before >= 0 else (after <= 0)
        for before, after in zip(samples, out, strict=True)
    )


# ---- What a stream says of itself ----


@pytest.mark.parametrize(
    ("stream", "delay_ms"),
    [
        (codec.MulawDecoder(8000), 0.0),
        (codec.MulawDecoder(16000), 0.234),
        (codec.MulawDecoder(24000), 0.268),
        (codec.MulawDecoder(48000), 0.288),
        # An output takes in the whole of its group: two samples at 24 kHz earlier.
        (codec.MulawEncoder(24000), 0.268 - 2 / 24),
        (codec.Resampler(16000, 16000), 0.0),
    ],
    ids=repr,
)
def test_delay_s_is_a_fraction_of_a_millisecond(stream, delay_ms):
    assert 1000 * stream.delay_s == pytest.approx(delay_ms, abs=0.001)


def test_a_stream_names_its_rates():
    encoder = codec.AlawEncoder(48000)

    assert repr(encoder) == "<AlawEncoder 48000 Hz to 8000 Hz>"
    assert (encoder.input_rate_hz, encoder.output_rate_hz) == (48000, 8000)


def test_a_stream_is_small():
    assert sys.getsizeof(codec.MulawDecoder(16000)) <= 1024
    assert sys.getsizeof(codec.MulawEncoder(24000)) <= 1024


def test_a_stream_cannot_be_pickled_by_mistake():
    with pytest.raises(TypeError):
        pickle.dumps(codec.MulawDecoder(16000))


def test_every_documented_name_is_in_the_stub():
    stub = ast.parse((resources.files("codec") / "_kernels.pyi").read_text("utf-8"))
    described = {node.name: node for node in stub.body if hasattr(node, "name")}

    for name in codec.__all__:
        assert name in described
        public = {member for member in vars(getattr(codec, name)) if not member.startswith("_")}
        if isinstance(described[name], ast.ClassDef):
            names = {
                member.name if hasattr(member, "name") else member.target.id
                for member in described[name].body
                if not isinstance(member, ast.Expr)
            }
            assert public <= names
