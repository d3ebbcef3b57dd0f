"""The codec: G.711, and rate changes between 8, 16, 24 and 48 kHz with state per stream.

This file is the front: arguments, their checks, names and docstrings. The loops are plain C in
``kernels.h``, and the filters are data in ``filters.json``.
"""

import cmath
import json
import math
from importlib import resources

cimport cython
from cpython.buffer cimport (
    PyBUF_FULL_RO,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport log10
from libc.string cimport memcpy


cdef extern from "kernels.h" nogil:
    enum:
        RATE_CHANGES
        TAP_ROWS
        LAGS
    RateChange rate_changes[]
    float tap_rows[][LAGS]
    const char* choose_kernels(bint allow_avx2)
    Py_ssize_t stream_outputs(const Stream* stream, Py_ssize_t inputs)
    Py_ssize_t stream_convert(
        Stream* stream, const void* input, Py_ssize_t inputs, void* output
    )
    Py_ssize_t stream_tail_outputs(const Stream* stream)
    void stream_flush(Stream* stream, void* output)
    void stream_reset(Stream* stream)
    size_t stream_memory_bytes(const RateChange* change)
    void g711_decode(Format law, const uint8_t* payload, Py_ssize_t n, char* pcm)
    void g711_encode(Format law, const char* pcm, Py_ssize_t n, uint8_t* payload)


LINE_RATE_HZ = 8000
RATES_HZ = (8000, 16000, 24000, 48000)
# The level of a chunk without any sound, which has none in decibels. One step of 16-bit PCM is
# -90 dBFS, and a single one in a 20 ms frame -112.
SILENCE_DBFS = -120.0
# More gain than this is noise, and would leave the range in which the kernels round exactly.
GAIN_LIMIT_DB = 30.0
DELAY_AT_HZ = 1000


# ---- The rate changes, built once at import ----

_FILTERS = json.loads((resources.files("codec") / "filters.json").read_text("ascii"))
_rate_change_index = {}


def _ratio(int input_rate_hz, int output_rate_hz):
    """(up, down) in lowest terms."""
    common = math.gcd(input_rate_hz, output_rate_hz)
    return output_rate_hz // common, input_rate_hz // common


def _prototype(int up, int down):
    """The low-pass at ``up`` times the input rate, with gain ``up`` to make up for the zeros."""
    if up == down:
        return [1.0]
    return [up * tap for tap in _FILTERS[str(max(up, down))]]


def _place_of_lag(lag):
    """Where the kernel looks for the tap of a lag: in the order 0, 8, 16, 24, 32, 1, 9, ..."""
    assert 0 <= lag < LAGS
    return lag % 8 * (LAGS // 8) + lag // 8


def _lookahead(int up, int down):
    """How many inputs past its own time an output may use because their group is complete."""
    return down - 1 - (up - 1) * down // up


cdef int _build_rate_changes() except -1:
    cdef int rows = 0, built = 0
    cdef RateChange* change
    for input_rate_hz in RATES_HZ:
        for output_rate_hz in RATES_HZ:
            up, down = _ratio(input_rate_hz, output_rate_hz)
            if (up, down) in _rate_change_index:
                continue
            assert built < RATE_CHANGES
            _rate_change_index[up, down] = built
            change = &rate_changes[built]
            built += 1
            change.up = up
            change.down = down
            if up == down:
                continue
            assert rows + up * down <= TAP_ROWS
            change.taps = tap_rows[rows]
            taps = _prototype(up, down)
            # Output `q` of a group is phase (q * down) % up of the prototype, and that phase's
            # tap number `i` meets the input at `place` in the group; earlier groups are below 0.
            for q in range(up):
                for i, tap in enumerate(taps[q * down % up :: up]):
                    place = q * down // up + _lookahead(up, down) - i
                    lag, row = -(place // down), q * down + place % down
                    tap_rows[rows + <int>row][_place_of_lag(lag)] = tap
                    change.tail = max(change.tail, lag)
            rows += up * down
    return 0


_build_rate_changes()


def use_avx2(bint wanted):
    """Choose the kernels of every stream in the process; for tests and benchmarks.

    Any choice gives the same bytes. AVX2 is the default where the CPU has it and the compiler
    could build it.

    Returns:
        What was chosen: ``"avx2"``, or ``"baseline"`` (SSE2 or NEON), or ``"plain"`` C.
    """
    return choose_kernels(wanted).decode()


use_avx2(True)


# ---- Checks ----


cdef int _rate(object rate_hz, str name) except -1:
    if not isinstance(rate_hz, int):
        raise TypeError(f"{name} must be an int, got {type(rate_hz).__name__}")
    if rate_hz not in RATES_HZ:
        raise ValueError(f"{name} must be 8000, 16000, 24000 or 48000, got {rate_hz}")
    return rate_hz


cdef int _open_buffer(object data, Py_buffer* view, str name, bint is_pcm) except -1:
    """Lock the bytes of ``data`` in place, whatever object they belong to."""
    if not PyObject_CheckBuffer(data):
        raise TypeError(f"{name} must be bytes-like, got {type(data).__name__}")
    PyObject_GetBuffer(data, view, PyBUF_FULL_RO)
    try:
        item_format = "B" if view.format is NULL else view.format.decode("ascii")
        if item_format not in ("B", "b", "c") and not (is_pcm and item_format in ("h", "<h")):
            expected = "bytes or 16-bit little-endian samples" if is_pcm else "bytes"
            raise TypeError(f"{name} must be a buffer of {expected}, got items of {item_format!r}")
        if view.ndim != 1:
            raise ValueError(f"{name} must have 1 dimension, got {view.ndim}")
        if not PyBuffer_IsContiguous(view, b"C"):
            raise ValueError(f"{name} must be contiguous, got a stride of {view.strides[0]} bytes")
        if is_pcm:
            _whole_samples(view.len, name)
    except BaseException:
        PyBuffer_Release(view)
        raise
    return 0


cdef int _whole_samples(Py_ssize_t n_bytes, str name) except -1:
    if n_bytes % 2:
        raise ValueError(f"{name} must hold whole 16-bit samples, got an odd {n_bytes} bytes")
    return 0


# ---- Streams ----


cdef class Converter:
    """One stream of audio changing its rate or its format, and what it remembers of it.

    Not made directly: see its subclasses. A stream belongs to one direction of one call. It may be
    used from any thread, by one thread at a time. All subclasses promise:

    * nothing is withheld: every chunk gives exactly the output its inputs allow;
    * the bytes are the same however the stream was cut into chunks, and on every machine;
    * a sample too large for its format is held at full scale, never wrapped round.
    """

    def __cinit__(self, *args, **kwargs):
        # A whole stream from the first moment, whether or not __init__ ever runs.
        self.stream.gain = 1.0
        self._set_rates(LINE_RATE_HZ, LINE_RATE_HZ)

    def __init__(self):
        raise TypeError(f"{type(self).__name__} is not made directly, but one of its subclasses")

    def __dealloc__(self):
        PyMem_Free(self.stream.memory)

    cdef int _set_rates(self, int input_rate_hz, int output_rate_hz) except -1:
        """Begin a stream between these rates."""
        cdef const RateChange* change = &rate_changes[
            <int>_rate_change_index[_ratio(input_rate_hz, output_rate_hz)]
        ]
        cdef float* memory = <float*>PyMem_Malloc(stream_memory_bytes(change))
        if memory is NULL:
            raise MemoryError
        PyMem_Free(self.stream.memory)
        self.stream.memory = memory
        self.stream.change = change
        self.input_rate_hz = input_rate_hz
        self.output_rate_hz = output_rate_hz
        stream_reset(&self.stream)
        return 0

    cdef Py_ssize_t outputs(self, Py_ssize_t n) noexcept nogil:
        return stream_outputs(&self.stream, n)

    cdef double chunk_level_dbfs(self) noexcept nogil:
        cdef double mean_square
        if self.stream.chunk_energy == 0:
            return -120.0
        mean_square = self.stream.chunk_energy / <double>self.stream.chunk_samples
        return 10 * log10(mean_square / (32768.0 * 32768.0))

    cdef bytes _convert(self, const void* data, Py_ssize_t n):
        cdef Py_ssize_t sample_bytes = 2 if self.stream.output == PCM16 else 1
        cdef bytes converted = PyBytes_FromStringAndSize(
            NULL, sample_bytes * stream_outputs(&self.stream, n)
        )
        stream_convert(&self.stream, data, n, PyBytes_AS_STRING(converted))
        return converted

    @cython.critical_section
    def flush(self):
        """End the stream: what is still ringing in the filter, then the state of a new stream.

        For the end of a stream only; on barge-in the tail is not wanted, so call ``reset()``.

        Returns:
            The last few milliseconds of output, or ``b""`` if nothing came in since the last
            reset.
        """
        cdef Py_ssize_t sample_bytes = 2 if self.stream.output == PCM16 else 1
        cdef bytes tail = PyBytes_FromStringAndSize(
            NULL, sample_bytes * stream_tail_outputs(&self.stream)
        )
        stream_flush(&self.stream, PyBytes_AS_STRING(tail))
        return tail

    @cython.critical_section
    def reset(self):
        """Forget the audio so far, as if the stream began here. ``clipped_samples`` goes on."""
        stream_reset(&self.stream)

    def copy(self):
        """A second stream in the same state; from here on the two know nothing of each other."""
        cdef Converter twin = type(self).__new__(type(self))
        with cython.critical_section(self):
            self._copy_to(twin)
        return twin

    cdef int _copy_to(self, Converter twin) except -1:
        cdef float* memory
        twin._set_rates(self.input_rate_hz, self.output_rate_hz)
        memory = twin.stream.memory
        memcpy(memory, self.stream.memory, stream_memory_bytes(self.stream.change))
        twin.stream = self.stream
        twin.stream.memory = memory
        twin._gain_db = self._gain_db
        return 0

    @property
    def delay_s(self):
        """How much later sound comes out than it went in: the filter's group delay at 1 kHz.

        Nothing adds to it, because nothing is withheld but the at most 5 samples of an incomplete
        group (2 at 24 kHz to 8 kHz).
        """
        up, down = _ratio(self.input_rate_hz, self.output_rate_hz)
        taps = _prototype(up, down)
        turn = -2j * math.pi * DELAY_AT_HZ / (up * self.input_rate_hz)
        response = sum(tap * cmath.exp(turn * i) for i, tap in enumerate(taps))
        slope = sum(i * tap * cmath.exp(turn * i) for i, tap in enumerate(taps))
        return ((slope / response).real / up - _lookahead(up, down)) / self.input_rate_hz

    @property
    def level_dbfs(self):
        """RMS level of the last chunk as it came in, before gain, in dB below full scale.

        A sine wave that just fits reads -3.0, silence (or a stream not yet begun) -120.0. An empty
        chunk changes nothing.
        """
        return self.chunk_level_dbfs()

    @property
    def clipped_samples(self):
        """How many samples needed more than full scale so far and were held at it, or limited."""
        return self.stream.clipped

    @property
    def gain_db(self):
        """Amplification in dB, -30 to 30; 0 leaves samples untouched.

        With any other value, peaks within 2.5 dB of full scale are bent gently instead of cut, so
        a caller who is too quiet can be made louder without distortion when they speak up. It may
        be changed while the stream runs and counts from the next chunk.
        """
        return self._gain_db

    @gain_db.setter
    def gain_db(self, gain_db):
        if isinstance(gain_db, str) or not hasattr(gain_db, "__float__"):
            raise TypeError(f"gain_db must be a number, got {type(gain_db).__name__}")
        gain = float(gain_db)
        if not -GAIN_LIMIT_DB <= gain <= GAIN_LIMIT_DB:
            raise ValueError(f"gain_db must be between -30 and 30, got {gain_db}")
        self._gain_db = gain
        self.stream.gain = 10 ** (gain / 20)

    def __sizeof__(self):
        return object.__sizeof__(self) + stream_memory_bytes(self.stream.change)

    def __repr__(self):
        return f"<{type(self).__name__} {self.input_rate_hz} Hz to {self.output_rate_hz} Hz>"


cdef class Decoder(Converter):
    """G.711 at 8 kHz to 16-bit PCM: ``MulawDecoder`` or ``AlawDecoder``."""

    def __cinit__(self, *args, **kwargs):
        self.stream.input = MULAW
        self.stream.output = PCM16

    cdef Py_ssize_t decode_into(
        self, const uint8_t* payload, Py_ssize_t n, int16_t* pcm
    ) noexcept nogil:
        return stream_convert(&self.stream, payload, n, pcm)

    @cython.critical_section
    def decode(self, payload):
        """Expand one chunk to PCM at ``output_rate_hz``.

        Args:
            payload: G.711 codes at 8 kHz, one byte per sample; any length, 160 for 20 ms.

        Returns:
            Signed 16-bit little-endian samples, exactly ``output_rate_hz / 8000`` per code.

        Raises:
            TypeError: ``payload`` is not bytes-like, or not a buffer of bytes.
            ValueError: it is not one contiguous run.

        Every byte is a legal code, so no payload can fail to decode. After an error the stream is
        as it was.
        """
        cdef Py_buffer view
        if PyBytes_CheckExact(payload):
            return self._convert(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        _open_buffer(payload, &view, "payload", False)
        try:
            return self._convert(view.buf, view.len)
        finally:
            PyBuffer_Release(&view)


cdef class MulawDecoder(Decoder):
    """mu-law from the telephone line to PCM for a model.

    Args:
        output_rate_hz: 8000, 16000, 24000 or 48000.
        gain_db: See the attribute.
    """

    def __init__(self, output_rate_hz, *, gain_db=0.0):
        self.gain_db = gain_db
        self._set_rates(LINE_RATE_HZ, _rate(output_rate_hz, "output_rate_hz"))


cdef class AlawDecoder(Decoder):
    """A-law from the telephone line to PCM for a model.

    Args:
        output_rate_hz: 8000, 16000, 24000 or 48000.
        gain_db: See the attribute.
    """

    def __cinit__(self, *args, **kwargs):
        self.stream.input = ALAW

    def __init__(self, output_rate_hz, *, gain_db=0.0):
        self.gain_db = gain_db
        self._set_rates(LINE_RATE_HZ, _rate(output_rate_hz, "output_rate_hz"))


cdef class Encoder(Converter):
    """16-bit PCM to G.711 at 8 kHz: ``MulawEncoder`` or ``AlawEncoder``."""

    def __cinit__(self, *args, **kwargs):
        self.stream.input = PCM16
        self.stream.output = MULAW

    cdef Py_ssize_t encode_into(
        self, const int16_t* pcm, Py_ssize_t n, uint8_t* payload
    ) noexcept nogil:
        return stream_convert(&self.stream, pcm, n, payload)

    @cython.critical_section
    def encode(self, pcm):
        """Bring one chunk of PCM at ``input_rate_hz`` down to G.711.

        Args:
            pcm: Signed 16-bit little-endian samples as bytes, or a buffer of 16-bit integers; any
                number of samples, 480 for 20 ms at 24 kHz.

        Returns:
            One byte per sample at 8 kHz. At 24 kHz in, three samples give one byte, and the one or
            two left over are kept for the next chunk.

        Raises:
            TypeError: ``pcm`` is not bytes-like, or not a buffer of bytes or 16-bit integers.
            ValueError: it is not one contiguous run, or has an odd number of bytes.

        After an error the stream is as it was.
        """
        cdef Py_buffer view
        if PyBytes_CheckExact(pcm):
            _whole_samples(PyBytes_GET_SIZE(pcm), "pcm")
            return self._convert(PyBytes_AS_STRING(pcm), PyBytes_GET_SIZE(pcm) // 2)
        _open_buffer(pcm, &view, "pcm", True)
        try:
            return self._convert(view.buf, view.len // 2)
        finally:
            PyBuffer_Release(&view)


cdef class MulawEncoder(Encoder):
    """PCM from a model to mu-law for the telephone line.

    Args:
        input_rate_hz: 8000, 16000, 24000 or 48000.
        gain_db: See the attribute.
    """

    def __init__(self, input_rate_hz, *, gain_db=0.0):
        self.gain_db = gain_db
        self._set_rates(_rate(input_rate_hz, "input_rate_hz"), LINE_RATE_HZ)


cdef class AlawEncoder(Encoder):
    """PCM from a model to A-law for the telephone line.

    Args:
        input_rate_hz: 8000, 16000, 24000 or 48000.
        gain_db: See the attribute.
    """

    def __cinit__(self, *args, **kwargs):
        self.stream.output = ALAW

    def __init__(self, input_rate_hz, *, gain_db=0.0):
        self.gain_db = gain_db
        self._set_rates(_rate(input_rate_hz, "input_rate_hz"), LINE_RATE_HZ)


cdef class Resampler(Converter):
    """16-bit PCM from one rate to another, for carriers and models that do not speak G.711.

    Args:
        input_rate_hz: 8000, 16000, 24000 or 48000.
        output_rate_hz: Likewise.
        gain_db: See the attribute.
    """

    def __init__(self, input_rate_hz, output_rate_hz, *, gain_db=0.0):
        self.gain_db = gain_db
        self._set_rates(
            _rate(input_rate_hz, "input_rate_hz"), _rate(output_rate_hz, "output_rate_hz")
        )

    cdef Py_ssize_t resample_into(
        self, const int16_t* pcm, Py_ssize_t n, int16_t* resampled
    ) noexcept nogil:
        return stream_convert(&self.stream, pcm, n, resampled)

    @cython.critical_section
    def resample(self, pcm):
        """Bring one chunk of PCM to ``output_rate_hz``.

        Args:
            pcm: Signed 16-bit little-endian samples as bytes, or a buffer of 16-bit integers.

        Returns:
            Samples of the same kind, for as many whole groups of inputs as have come in: a group
            is 3 samples from 24 to 8 or 16 kHz, 6 from 48 to 8 kHz. The rest of a group is kept.

        Raises:
            TypeError: ``pcm`` is not bytes-like, or not a buffer of bytes or 16-bit integers.
            ValueError: it is not one contiguous run, or has an odd number of bytes.

        After an error the stream is as it was.
        """
        cdef Py_buffer view
        if PyBytes_CheckExact(pcm):
            _whole_samples(PyBytes_GET_SIZE(pcm), "pcm")
            return self._convert(PyBytes_AS_STRING(pcm), PyBytes_GET_SIZE(pcm) // 2)
        _open_buffer(pcm, &view, "pcm", True)
        try:
            return self._convert(view.buf, view.len // 2)
        finally:
            PyBuffer_Release(&view)


# ---- G.711 alone ----


cdef bytes _g711_decode(object payload, Format law):
    cdef Py_buffer view
    cdef bytes pcm
    _open_buffer(payload, &view, "payload", False)
    try:
        pcm = PyBytes_FromStringAndSize(NULL, 2 * view.len)
        g711_decode(law, <const uint8_t*>view.buf, view.len, PyBytes_AS_STRING(pcm))
    finally:
        PyBuffer_Release(&view)
    return pcm


cdef bytes _g711_encode(object pcm, Format law):
    cdef Py_buffer view
    cdef bytes payload
    _open_buffer(pcm, &view, "pcm", True)
    try:
        payload = PyBytes_FromStringAndSize(NULL, view.len // 2)
        g711_encode(
            law, <const char*>view.buf, view.len // 2, <uint8_t*>PyBytes_AS_STRING(payload)
        )
    finally:
        PyBuffer_Release(&view)
    return payload


def decode_mulaw(payload):
    """Expand G.711 mu-law to 16-bit linear PCM at the same sample rate.

    Args:
        payload: mu-law codes, one byte per sample; any length, 160 for a 20 ms frame at 8 kHz.

    Returns:
        Signed 16-bit little-endian samples, exactly ``2 * len(payload)`` bytes.

    Raises:
        TypeError: ``payload`` is not bytes-like, or not a buffer of bytes.
        ValueError: it is not one contiguous run.

    Every byte is a legal code, so no payload can fail to decode. Nothing is kept between calls.
    """
    return _g711_decode(payload, MULAW)


def encode_mulaw(pcm):
    """Compress 16-bit linear PCM to G.711 mu-law at the same sample rate.

    Equal to the ITU-T reference code (G.191) for every sample, ties and signs included.

    Args:
        pcm: Signed 16-bit little-endian samples as bytes, or a buffer of 16-bit integers.

    Returns:
        One code per sample.

    Raises:
        TypeError: ``pcm`` is not bytes-like, or not a buffer of bytes or 16-bit integers.
        ValueError: it is not one contiguous run, or has an odd number of bytes.
    """
    return _g711_encode(pcm, MULAW)


def decode_alaw(payload):
    """Expand G.711 A-law to 16-bit linear PCM; in all else like ``decode_mulaw``."""
    return _g711_decode(payload, ALAW)


def encode_alaw(pcm):
    """Compress 16-bit linear PCM to G.711 A-law; in all else like ``encode_mulaw``."""
    return _g711_encode(pcm, ALAW)
