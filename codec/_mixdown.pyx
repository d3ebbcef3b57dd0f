"""Sound of any layout and any rate, mixed into one channel at the telephone's rate.

For files, which are read once at start: the streams of calls are in ``_kernels.pyx``. The low-pass
is the codec's own (48 to 8 kHz, ``filters.json``), read between its taps where a rate asks for it.
"""

import json
import math
from importlib import resources

from codec._kernels import decode_alaw, decode_mulaw

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport fabsf, floor
from libc.stdint cimport int16_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

cdef enum Encoding:
    PCM
    FLOAT
    TABLE  # one byte a sample, whatever it means

cdef enum:
    FILTER_RATE_HZ = 48000
    LINE_RATE_HZ = 8000
    FILTER_TAPS = 240
    AROUND = 3  # zeros on either side of the filter, for reading between its taps
    LANES = 8  # sums side by side in a dot product
    BLOCK_FRAMES = 4096  # at most so many are mixed before outputs are made of them

RATES_HZ = (1_000, 384_000)
MAX_CHANNELS = 32

# Beyond this a sample is damage, not sound: even 32-bit integers written as floats are below it.
cdef float LARGEST = 4294967296.0

cdef double padded_filter[AROUND + FILTER_TAPS + AROUND + 1]


def _pad_filter():
    taps = json.loads((resources.files("codec") / "filters.json").read_text("ascii"))["6"]
    assert len(taps) == FILTER_TAPS
    for index, tap in enumerate(taps):
        padded_filter[AROUND + <int>index] = tap


_pad_filter()


cdef double filter_at(double x) noexcept nogil:
    """The impulse response ``x`` taps after its beginning, by Lagrange's polynomial of degree 5.

    The filter ends at 4.2 kHz, a twelfth of its own rate, so what the polynomial misses is 80 dB
    and more below it.
    """
    cdef int first = <int>floor(x)
    cdef double f, result = 0, weight
    cdef int i, j
    if not 0 <= first < FILTER_TAPS + 1:  # after its end
        return 0
    f = x - first
    if f == 0:
        return padded_filter[AROUND + first]
    for i in range(-2, 4):
        weight = 1
        for j in range(-2, 4):
            if j != i:
                weight *= (f - j) / (i - j)
        result += weight * padded_filter[AROUND + first + i]
    return result


cdef struct Shape:
    Encoding encoding
    int bytes
    int channels
    bint big_endian
    int unused_bits
    float table[256]


cdef inline int64_t integer_at(const Shape* shape, const uint8_t* at) noexcept nogil:
    """An integer with its sign bit at the top of 64 bits, as it stands in the file."""
    cdef uint64_t word = 0
    cdef int i, last = shape.bytes - 1
    for i in range(shape.bytes):
        word = word << 8 | at[i if shape.big_endian else last - i]
    word <<= 64 - 8 * shape.bytes
    if shape.bytes == 1:
        word ^= <uint64_t>1 << 63
    return <int64_t>word


cdef inline float sample_at(const Shape* shape, const uint8_t* at) noexcept nogil:
    cdef uint32_t low
    cdef uint64_t word = 0
    cdef float single
    cdef double wide
    cdef int i, last = shape.bytes - 1
    if shape.encoding == TABLE:
        return shape.table[at[0]]
    if shape.encoding == PCM:
        word = <uint64_t>integer_at(shape, at) << shape.unused_bits
        return <float>(<int64_t>word >> 32) * <float>(1.0 / 2147483648.0)
    for i in range(shape.bytes):
        word = word << 8 | at[i if shape.big_endian else last - i]
    if shape.bytes == 4:
        low = <uint32_t>word
        memcpy(&single, &low, sizeof(single))
        return single
    memcpy(&wide, &word, sizeof(wide))
    return <float>wide


cdef class Layout:
    """How samples lie in a file: interleaved, every one in as many bytes.

    Args:
        encoding: ``"pcm"`` (integers; of one byte without sign), ``"float"``, ``"mulaw"`` or
            ``"alaw"``.
        sample_bytes: 1 to 8 for integers, 4 or 8 for floats, 1 for the others.
        channels: 1 to 32.
        big_endian: The most significant byte comes first.
        unused_bits: How many bits at the top of each integer only repeat its sign.

    Raises:
        ValueError: There is no such layout.
    """

    cdef Shape shape

    def __init__(
        self, str encoding, int sample_bytes, int channels, *, big_endian=False, int unused_bits=0
    ):
        allowed = {"pcm": range(1, 9), "float": (4, 8), "mulaw": (1,), "alaw": (1,)}
        if sample_bytes not in allowed.get(encoding, ()):
            raise ValueError(f"no layout {encoding} of {sample_bytes} bytes")
        if not 1 <= channels <= MAX_CHANNELS or not 0 <= unused_bits < 8 * sample_bytes:
            raise ValueError(f"{channels} channels, {unused_bits} unused bits")
        self.shape.encoding = {"pcm": PCM, "float": FLOAT}.get(encoding, TABLE)
        self.shape.bytes = sample_bytes
        self.shape.channels = channels
        self.shape.big_endian = big_endian
        self.shape.unused_bits = unused_bits
        if self.shape.encoding == TABLE:
            decode = decode_mulaw if encoding == "mulaw" else decode_alaw
            for code, sample in enumerate(memoryview(decode(bytes(range(256)))).cast("h")):
                self.shape.table[<int>code] = sample / 32768.0

    @property
    def frame_bytes(self):
        """How many bytes one sample of every channel has."""
        return self.shape.bytes * self.shape.channels

    @property
    def channels(self):
        """How many there are."""
        return self.shape.channels


cdef class Survey:
    """What is in the channels of a file, by every so many-th of its frames.

    Args:
        layout: How they lie there.
        stride: Of so many frames the first is looked at.
    """

    cdef Shape _shape
    cdef Py_ssize_t _stride, _skip
    cdef double _sums[32]
    cdef double _products[32][32]
    cdef uint64_t _bits, _magnitude_bits
    cdef double _count

    def __init__(self, Layout layout not None, Py_ssize_t stride=1):
        assert stride >= 1
        self._shape = layout.shape
        self._stride = stride

    def add(self, const uint8_t[::1] frames not None):
        """Look at the next whole frames of the file; what is no number is left out."""
        cdef Py_ssize_t size = self._shape.bytes, frame = size * self._shape.channels
        cdef Py_ssize_t count = frames.shape[0] // frame, index = self._skip
        cdef const uint8_t* at
        cdef float moment[32]
        cdef int64_t number
        cdef int i, j, channels = self._shape.channels
        if count == 0:
            return
        with nogil:
            while index < count:
                at = &frames[0] + index * frame
                for i in range(channels):
                    moment[i] = sample_at(&self._shape, at + i * size)
                    if not fabsf(moment[i]) <= LARGEST:
                        moment[i] = 0
                    if self._shape.encoding == PCM:
                        number = integer_at(&self._shape, at + i * size)
                        self._bits |= <uint64_t>number
                        self._magnitude_bits |= <uint64_t>(number ^ (number >> 63))
                for i in range(channels):
                    self._sums[i] += moment[i]
                    for j in range(i + 1):
                        self._products[i][j] += <double>moment[i] * moment[j]
                self._count += 1
                index += self._stride
        self._skip = index - count

    def covariance(self):
        """The power of each channel on the diagonal, and what two have in common beside it.

        Returns:
            A list of rows; a constant part of the signal is no power.
        """
        cdef int i, j, channels = self._shape.channels
        cdef double count = max(self._count, 1)
        rows = [[0.0] * channels for _ in range(channels)]
        for i in range(channels):
            for j in range(i + 1):
                shared = self._products[i][j] / count
                shared -= self._sums[i] / count * (self._sums[j] / count)
                rows[i][j] = rows[j][i] = shared
        return rows

    def is_right_justified(self, int bits):
        """Whether integers of so many bits fill their bytes from the bottom, not from the top.

        From the top is the rule of WAV files: then the bits below are zero.
        """
        cdef int unused = 8 * self._shape.bytes - bits
        cdef uint64_t below
        if self._shape.encoding != PCM or not 0 < unused < 8 * self._shape.bytes:
            return False
        below = ((<uint64_t>1 << unused) - 1) << (64 - 8 * self._shape.bytes)
        return bool(self._bits & below) and self._magnitude_bits >> (63 - unused) == 0


cdef class Mixdown:
    """Frames of a file on their way to one channel at 8 kHz, in pieces of any size.

    Args:
        layout: How they lie in the file.
        rate_hz: The file's rate, 1,000 to 384,000 Hz.
        weights: How much of each channel is in the mix.

    Attributes:
        peak: The largest output so far; 1.0 is full scale.

    An output is made of five milliseconds of input, so time and memory are bounded by the length
    of the file: at most 62 MB of filter, for a rate that has nothing in common with 8 kHz.
    """

    cdef Shape _shape
    cdef float* _weights
    cdef float* _rows  # a filter for each phase, the latest input's tap last
    cdef float* _window
    cdef Py_ssize_t _taps, _filled, _position, _phase, _up, _down
    cdef readonly float peak

    def __cinit__(self, Layout layout not None, int rate_hz, weights):
        cdef Py_ssize_t taps, phase, tap
        cdef double step
        cdef float* row
        cdef int i
        lowest, highest = RATES_HZ
        if not lowest <= rate_hz <= highest:
            raise ValueError(f"rate_hz must be {lowest} to {highest}, got {rate_hz}")
        if len(weights) != layout.channels:
            raise ValueError(f"{len(weights)} weights for {layout.channels} channels")
        self._shape = layout.shape
        common = math.gcd(rate_hz, LINE_RATE_HZ)
        self._up, self._down = LINE_RATE_HZ // common, rate_hz // common
        # The filter's taps per input; below the telephone's rate it is drawn out to fit.
        step = <double>FILTER_RATE_HZ / max(rate_hz, LINE_RATE_HZ)
        taps = 1 if rate_hz == LINE_RATE_HZ else <Py_ssize_t>(FILTER_TAPS / step) + 2
        self._taps = (taps + LANES - 1) // LANES * LANES
        self._rows = <float*>PyMem_Calloc(self._up * self._taps, sizeof(float))
        self._window = <float*>PyMem_Calloc(self._taps + BLOCK_FRAMES, sizeof(float))
        self._weights = <float*>PyMem_Calloc(layout.channels, sizeof(float))
        if self._rows == NULL or self._window == NULL or self._weights == NULL:
            raise MemoryError
        for i in range(layout.channels):
            self._weights[i] = weights[i]
        self._filled = self._taps - 1  # silence before the beginning
        if taps == 1:
            self._rows[self._taps - 1] = 1
            return
        with nogil:
            for phase in range(self._up):
                row = self._rows + phase * self._taps
                for tap in range(taps):
                    row[self._taps - 1 - tap] = <float>(
                        step * filter_at((tap + <double>phase / self._up) * step)
                    )

    def __dealloc__(self):
        PyMem_Free(self._rows)
        PyMem_Free(self._window)
        PyMem_Free(self._weights)

    def add(self, const uint8_t[::1] frames not None):
        """Mix the next whole frames of the file.

        Returns:
            What has become certain of the one channel: 32-bit floats of this machine, as bytes.

        Raises:
            ValueError: A sample is not a number, or far beyond full scale.
        """
        cdef Py_ssize_t frame = self._shape.bytes * self._shape.channels
        cdef Py_ssize_t left = frames.shape[0] // frame, count, made, done = 0
        cdef list pieces = []
        cdef bytes piece
        cdef char* output
        cdef bint whole
        while left > 0:
            count = min(left, <Py_ssize_t>BLOCK_FRAMES)
            piece = PyBytes_FromStringAndSize(
                NULL, sizeof(float) * (count * self._up // self._down + 2)
            )
            output = PyBytes_AS_STRING(piece)
            with nogil:
                whole = self.mix(&frames[0] + done * frame, count)
                made = self.filter(output) if whole else 0
            if not whole:
                raise ValueError("a sample is not a number, or far beyond full scale")
            pieces.append(piece[: made * <Py_ssize_t>sizeof(float)])
            done += count
            left -= count
        return b"".join(pieces)

    cdef bint mix(self, const uint8_t* frames, Py_ssize_t count) noexcept nogil:
        """Put frames behind what is in the window; False if a sample is none."""
        cdef Py_ssize_t index, size = self._shape.bytes
        cdef int i, channels = self._shape.channels
        cdef float sum_, sample
        cdef const uint8_t* at = frames
        for index in range(count):
            sum_ = 0
            for i in range(channels):
                sample = sample_at(&self._shape, at)
                if not fabsf(sample) <= LARGEST:  # also what is no number
                    return False
                sum_ += self._weights[i] * sample
                at += size
            self._window[self._filled + index] = sum_
        self._filled += count
        return True

    cdef Py_ssize_t filter(self, char* output) noexcept nogil:
        """Make every output that the window has the inputs for, and forget what is over."""
        cdef Py_ssize_t made = 0, taps = self._taps, over, at, lane
        cdef const float* inputs
        cdef const float* row
        cdef float sums[LANES]
        cdef float result
        while self._position + taps <= self._filled:
            inputs = self._window + self._position
            row = self._rows + self._phase * taps
            for lane in range(LANES):
                sums[lane] = 0
            at = 0
            while at < taps:
                for lane in range(LANES):
                    sums[lane] += inputs[at + lane] * row[at + lane]
                at += LANES
            result = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + (
                (sums[4] + sums[5]) + (sums[6] + sums[7])
            )
            memcpy(output + made * <Py_ssize_t>sizeof(float), &result, sizeof(float))
            made += 1
            if fabsf(result) > self.peak:
                self.peak = fabsf(result)
            self._phase += self._down
            self._position += self._phase // self._up
            self._phase %= self._up
        over = min(self._position, self._filled)
        memmove(self._window, self._window + over, (self._filled - over) * sizeof(float))
        self._filled -= over
        self._position -= over
        return made


def to_pcm(const uint8_t[::1] line not None, double gain):
    """Floats as :class:`Mixdown` makes them, as 16-bit samples.

    Args:
        line: 32-bit floats of this machine; 1.0 is full scale.
        gain: What each is multiplied by.

    Returns:
        Signed 16-bit little-endian samples; what is beyond full scale is held there.
    """
    cdef Py_ssize_t index, count = line.shape[0] // <Py_ssize_t>sizeof(float)
    cdef bytes pcm = PyBytes_FromStringAndSize(NULL, 2 * count)
    cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(pcm)
    cdef float value
    cdef double scaled
    cdef int16_t sample
    for index in range(count):
        memcpy(&value, &line[0] + index * <Py_ssize_t>sizeof(float), sizeof(float))
        scaled = floor(value * gain * 32768.0 + 0.5)
        sample = <int16_t>max(-32768.0, min(32767.0, scaled))
        out[2 * index] = sample & 0xFF
        out[2 * index + 1] = (sample >> 8) & 0xFF
    return pcm
