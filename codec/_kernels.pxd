"""The codec for other compiled modules of this package: pointers in, pointers out, no objects.

``cimport`` a class, make its object from Python as anyone does, and call the C methods below. They
take no lock: a stream belongs to one thread at a time. They cannot fail.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t


cdef extern from "stream.h" nogil:
    ctypedef enum Format:
        PCM16
        MULAW
        ALAW

    ctypedef struct RateChange:
        int32_t up
        int32_t down
        int32_t tail
        const float* taps

    # Read chunk_energy / chunk_samples, the mean square of the last chunk as it came in, and
    # clipped, the outputs so far that needed more than full scale. The rest is the kernels' own.
    ctypedef struct Stream:
        const RateChange* change
        Format input
        Format output
        float gain
        int32_t carried
        int32_t started
        float* memory
        double chunk_energy
        int64_t chunk_samples
        int64_t clipped


cdef class Converter:
    cdef Stream stream
    cdef readonly int input_rate_hz
    cdef readonly int output_rate_hz
    cdef double _gain_db
    cdef int _set_rates(self, int input_rate_hz, int output_rate_hz) except -1
    cdef int _copy_to(self, Converter twin) except -1
    cdef bytes _convert(self, const void* data, Py_ssize_t n)

    # Exactly how many samples the next call writes when it is given n: size the output by this.
    cdef Py_ssize_t outputs(self, Py_ssize_t n) noexcept nogil
    # RMS level of the last chunk as it came in; SILENCE_DBFS (-120) if there was no sound in it.
    cdef double chunk_level_dbfs(self) noexcept nogil


cdef class Decoder(Converter):
    # n G.711 bytes in, outputs(n) samples out: always n * output_rate_hz / 8000.
    cdef Py_ssize_t decode_into(
        self, const uint8_t* payload, Py_ssize_t n, int16_t* pcm
    ) noexcept nogil


cdef class MulawDecoder(Decoder):
    pass


cdef class AlawDecoder(Decoder):
    pass


cdef class Encoder(Converter):
    # n samples (not bytes) in, outputs(n) bytes out: at most n * 8000 / input_rate_hz + 1.
    cdef Py_ssize_t encode_into(
        self, const int16_t* pcm, Py_ssize_t n, uint8_t* payload
    ) noexcept nogil


cdef class MulawEncoder(Encoder):
    pass


cdef class AlawEncoder(Encoder):
    pass


cdef class Resampler(Converter):
    # n samples in, outputs(n) samples out.
    cdef Py_ssize_t resample_into(
        self, const int16_t* pcm, Py_ssize_t n, int16_t* resampled
    ) noexcept nogil
