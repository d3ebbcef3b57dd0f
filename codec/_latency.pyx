"""Durations counted in C: a call's own percentiles, and a process's histogram."""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.math cimport INFINITY, ceil, exp2, log2
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cdef double SMALLEST_S = 1e-6
cdef enum:
    LONGEST = STEPS_PER_DOUBLING * DOUBLINGS  # the bucket of all that is longer


cdef inline int bucket_of(double seconds) noexcept nogil:
    cdef double position
    if not seconds > SMALLEST_S:  # also what is not a number
        return 0
    position = log2(seconds / SMALLEST_S) * STEPS_PER_DOUBLING
    return LONGEST if position >= LONGEST else <int>position


cdef class Latencies:
    """Durations in logarithmic buckets: percentiles within 4.4 % from 1 us to 134 s.

    Attributes:
        count: How many were recorded.
        max_s: The longest, exactly; 0.0 without any.
        sum_s: All of them together.

    It costs 64 bytes without any, and 64 more for each doubling from the shortest to the longest;
    never more than 2 KiB. Not for two threads at once.
    """

    def __dealloc__(self):
        PyMem_RawFree(self._counts)

    def __repr__(self):
        return f"{type(self).__name__}(count={self.count}, max_s={self.max_s})"

    def record(self, double seconds):
        """Add one duration; a negative one (two clocks that disagree) counts as zero."""
        self.record_c(seconds)

    cdef void record_c(self, double seconds) noexcept nogil:
        cdef int bucket = bucket_of(seconds)
        cdef int doubling = bucket // STEPS_PER_DOUBLING
        if not self._first <= doubling < self._first + self._doublings:
            if not self._reach(doubling):
                return  # no memory: a duration less, rather than a call
        self._counts[bucket - self._first * STEPS_PER_DOUBLING] += 1
        self.count += 1
        if seconds > 0.0:
            self.sum_s += seconds
        if seconds > self.max_s:
            self.max_s = seconds

    cdef bint _reach(self, int doubling) noexcept nogil:
        """Make room for the counts of this doubling, too; False where there is no memory."""
        cdef int first = doubling, end = doubling + 1
        cdef uint32_t* counts
        if self._doublings:
            first = min(first, self._first)
            end = max(end, self._first + self._doublings)
        counts = <uint32_t*>PyMem_RawCalloc(
            (end - first) * STEPS_PER_DOUBLING, sizeof(uint32_t)
        )
        if counts == NULL:
            return False
        if self._doublings:
            memcpy(
                counts + (self._first - first) * STEPS_PER_DOUBLING,
                self._counts,
                self._doublings * STEPS_PER_DOUBLING * sizeof(uint32_t),
            )
        PyMem_RawFree(self._counts)
        self._counts, self._first, self._doublings = counts, first, end - first
        return True

    def percentile(self, double percent):
        """The duration in seconds that ``percent`` of all stay below; None without any."""
        cdef double wanted = ceil(self.count * percent / 100)
        cdef double upper_s
        cdef uint64_t seen = 0
        cdef uint32_t count
        cdef int bucket, first = self._first * STEPS_PER_DOUBLING
        if not self.count:
            return None
        for bucket in range(first, min(first + self._doublings * STEPS_PER_DOUBLING, LONGEST)):
            count = self._counts[bucket - first]
            seen += count
            if count and seen >= wanted:
                upper_s = SMALLEST_S * exp2(<double>(bucket + 1) / STEPS_PER_DOUBLING)
                return min(upper_s, self.max_s)
        return self.max_s


cdef class Histogram:
    """Durations counted exactly by given upper bounds, as Prometheus wants them.

    Args:
        bounds: In seconds, ascending, each bound belonging to what it bounds; infinity is added.

    Raises:
        ValueError: There is no bound, or they do not ascend.

    Attributes:
        bounds: All of them, with infinity.
        counts: How many fell to each bound and to none before; not cumulative.
        sum_s: All durations together.

    Written by one thread at a time; another may read it, and be behind.
    """

    def __cinit__(self, bounds):
        cdef list given = [float(bound) for bound in bounds]
        cdef int index
        if given and given[len(given) - 1] == INFINITY:
            given.pop()
        if not given:
            raise ValueError("a histogram needs at least one finite bound")
        if not all(low < high for low, high in zip(given, [*given[1:], INFINITY], strict=True)):
            raise ValueError(f"bounds must ascend: {given}")
        self._size = len(given) + 1
        self._bounds = <double*>PyMem_RawCalloc(self._size, sizeof(double))
        self._counts = <uint64_t*>PyMem_RawCalloc(self._size, sizeof(uint64_t))
        if self._bounds == NULL or self._counts == NULL:
            raise MemoryError
        for index in range(self._size - 1):
            self._bounds[index] = given[index]
        self._bounds[self._size - 1] = INFINITY

    def __dealloc__(self):
        PyMem_RawFree(self._bounds)
        PyMem_RawFree(self._counts)

    @property
    def bounds(self):
        cdef int index
        return [self._bounds[index] for index in range(self._size)]

    @property
    def counts(self):
        cdef int index
        return [self._counts[index] for index in range(self._size)]

    def observe(self, double seconds):
        """Add one duration."""
        self.record_c(seconds)

    cdef void record_c(self, double seconds) noexcept nogil:
        cdef int index = 0
        cdef int last = self._size - 1
        while index < last and not seconds <= self._bounds[index]:
            index += 1
        self._counts[index] += 1
        self.sum_s += seconds
