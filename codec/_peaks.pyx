"""How loud both sides of a recording are, a pair of extremes for each point of a drawing."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int8_t, int16_t, int64_t
from libc.string cimport memcpy

cdef enum:
    FRAME_BYTES = 4  # two samples of 16 bits
    POINT_BYTES = 4  # lowest and highest of each


cdef class StereoPeaks:
    """The lowest and the highest sample of every so many, of two channels, in chunks of any size.

    A point is four signed bytes, the upper half of a sample each: left lowest, left highest, right
    lowest, right highest; what lies between two steps is rounded outwards, so that a sound that
    is there is never drawn as none.

    Args:
        samples_per_point: Of each channel; at least 1.

    Raises:
        ValueError: There would be less than one sample to a point.
    """

    cdef int64_t _per_point
    cdef int64_t _left  # samples until the point is whole
    cdef int16_t _extremes[4]

    def __init__(self, int64_t samples_per_point):
        if samples_per_point < 1:
            raise ValueError(f"samples_per_point must be at least 1, got {samples_per_point}")
        self._per_point = samples_per_point
        self._begin()

    cdef void _begin(self) noexcept nogil:
        self._left = self._per_point
        self._extremes[0] = self._extremes[2] = 32767
        self._extremes[1] = self._extremes[3] = -32768

    def take(self, pcm):
        """Take samples, and give the points that they complete; without the GIL.

        Args:
            pcm: Signed 16-bit little-endian samples, left and right in turn, bytes-like.

        Raises:
            ValueError: Half a frame.
        """
        cdef Py_buffer view
        cdef bytes points
        cdef int64_t frames, count
        cdef const char* samples
        cdef int8_t* out
        PyObject_GetBuffer(pcm, &view, PyBUF_SIMPLE)
        try:
            if view.len % FRAME_BYTES:
                raise ValueError(f"{view.len} bytes of pcm are not whole frames")
            frames = view.len // FRAME_BYTES
            samples = <const char*>view.buf
            count = (self._per_point - self._left + frames) // self._per_point
            points = PyBytes_FromStringAndSize(NULL, count * POINT_BYTES)
            out = <int8_t*>PyBytes_AS_STRING(points)
            with nogil:
                self._take(samples, frames, out)
        finally:
            PyBuffer_Release(&view)
        return points

    def end(self):
        """Give the point that has begun, if one has, and begin anew."""
        cdef int8_t last[4]
        if self._left == self._per_point:
            return b""
        self._put(last)
        self._begin()
        return PyBytes_FromStringAndSize(<char*>last, POINT_BYTES)

    cdef void _take(self, const char* samples, int64_t frames, int8_t* out) noexcept nogil:
        cdef int64_t at = 0, stop
        cdef int16_t left, right
        cdef int16_t a, b, c, d
        while at < frames:
            stop = min(frames, at + self._left)
            self._left -= stop - at
            a, b, c, d = self._extremes[0], self._extremes[1], self._extremes[2], self._extremes[3]
            while at < stop:
                memcpy(&left, samples + FRAME_BYTES * at, 2)
                memcpy(&right, samples + FRAME_BYTES * at + 2, 2)
                a = min(a, left)
                b = max(b, left)
                c = min(c, right)
                d = max(d, right)
                at += 1
            self._extremes[0], self._extremes[1], self._extremes[2], self._extremes[3] = a, b, c, d
            if self._left == 0:
                self._put(out)
                out += POINT_BYTES
                self._begin()

    cdef void _put(self, int8_t* out) noexcept nogil:
        # An arithmetic shift rounds down, which is outwards for the lowest.
        out[0] = <int8_t>(self._extremes[0] >> 8)
        out[1] = <int8_t>min(127, (self._extremes[1] + 255) >> 8)
        out[2] = <int8_t>(self._extremes[2] >> 8)
        out[3] = <int8_t>min(127, (self._extremes[3] + 255) >> 8)
