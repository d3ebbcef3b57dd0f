from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    STEPS_PER_DOUBLING = 16  # a bucket is 4.4 % wide: finer than a machine repeats itself
    DOUBLINGS = 27  # from 1 us to 134 s


cdef class Latencies:
    cdef readonly uint64_t count
    cdef readonly double max_s
    cdef readonly double sum_s
    # One block of counts per doubling, made when something falls into it: a call's chunks take
    # between 20 us and 20 ms, which is ten of them. The last one is for all that is longer.
    cdef uint32_t* _counts[DOUBLINGS + 1]

    # For other extensions; the Python methods are in the .pyi.
    cdef void record_c(self, double seconds) noexcept nogil


cdef class Histogram:
    cdef readonly double sum_s
    cdef int _size
    cdef double* _bounds  # infinity is the last
    cdef uint64_t* _counts

    cdef void record_c(self, double seconds) noexcept nogil
