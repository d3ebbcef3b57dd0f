from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    STEPS_PER_DOUBLING = 16  # a bucket is 4.4 % wide: finer than a machine repeats itself
    DOUBLINGS = 27  # from 1 us to 134 s


cdef class Latencies:
    cdef readonly uint64_t count
    cdef readonly double max_s
    cdef readonly double sum_s
    # Counts of the doublings from the shortest duration to the longest: a call's chunks take from
    # 20 us to 20 ms, which is ten of them. A last one is for all that is longer.
    cdef uint32_t* _counts
    cdef int _first  # of the doublings that are counted,
    cdef int _doublings  # and how many there are

    # For other extensions; the Python methods are in the .pyi.
    cdef void record_c(self, double seconds) noexcept nogil

    cdef bint _reach(self, int doubling) noexcept nogil


cdef class Histogram:
    cdef readonly double sum_s
    cdef int _size
    cdef double* _bounds  # infinity is the last
    cdef uint64_t* _counts

    cdef void record_c(self, double seconds) noexcept nogil
