"""Any rate to 48 kHz by straight lines, for audio that no filter of the codec takes.

What lines add to a voice lies above the telephone's band, where the codec takes it out, or some
45 dB below the voice.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int16_t, int64_t
from libc.string cimport memcpy

cdef enum:
    STRETCHED_RATE_HZ = 48000
    LOWEST_RATE_HZ = 1000
    HIGHEST_RATE_HZ = 48000


cdef class Stretcher:
    """One stream of 16-bit samples brought to 48 kHz, in chunks of any size.

    Args:
        input_rate_hz: 1,000 to 48,000.

    Raises:
        ValueError: Another rate.
    """

    OUTPUT_RATE_HZ = STRETCHED_RATE_HZ

    cdef int64_t _rate_hz
    cdef int64_t _at  # of the next output behind the last input, in 1/48000 of an input's time
    cdef int16_t _last
    cdef bint _begun

    def __init__(self, int input_rate_hz):
        if not LOWEST_RATE_HZ <= input_rate_hz <= HIGHEST_RATE_HZ:
            raise ValueError(f"input_rate_hz must be 1000 to 48000, got {input_rate_hz}")
        self._rate_hz = input_rate_hz

    def reset(self):
        """Forget the audio so far, as if the stream began here."""
        self._begun = False
        self._at = 0

    def stretch(self, pcm):
        """Draw lines through the samples; gives all up to the last one that is known.

        Args:
            pcm: Signed 16-bit little-endian samples, bytes-like.

        Raises:
            ValueError: Half a sample.
        """
        cdef Py_buffer view
        cdef bytes stretched
        PyObject_GetBuffer(pcm, &view, PyBUF_SIMPLE)
        try:
            if view.len % 2:
                raise ValueError(f"{view.len} bytes of pcm are not whole samples")
            stretched = self._stretch(<const char*>view.buf, view.len // 2)
        finally:
            PyBuffer_Release(&view)
        return stretched

    cdef bytes _stretch(self, const char* pcm, int64_t samples):
        cdef int64_t first = 0, count, i, at = self._at, span
        cdef int16_t here, after
        cdef bytes stretched
        cdef char* out
        if samples and not self._begun:
            memcpy(&self._last, pcm, 2)
            self._begun = True
            first = 1
        if samples <= first:
            return b""
        # Outputs between the last sample that was known and the newest.
        span = (samples - first) * STRETCHED_RATE_HZ
        count = (span - at + self._rate_hz - 1) // self._rate_hz if span > at else 0
        stretched = PyBytes_FromStringAndSize(NULL, 2 * count)
        out = PyBytes_AS_STRING(stretched)
        here = self._last
        memcpy(&after, pcm + 2 * first, 2)
        for i in range(count):
            while at >= STRETCHED_RATE_HZ:
                at -= STRETCHED_RATE_HZ
                first += 1
                here = after
                memcpy(&after, pcm + 2 * first, 2)
            here_to_after(here, after, at, out + 2 * i)
            at += self._rate_hz
        self._at = self._at + count * self._rate_hz - span
        memcpy(&self._last, pcm + 2 * (samples - 1), 2)
        return stretched


cdef inline void here_to_after(int16_t here, int16_t after, int64_t at, char* out) noexcept nogil:
    cdef int16_t between = <int16_t>(here + (after - here) * at // STRETCHED_RATE_HZ)
    memcpy(out, &between, 2)
