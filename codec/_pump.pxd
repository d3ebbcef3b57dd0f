from libc.stddef cimport size_t


cdef enum:
    READ_NOTHING = -1  # nothing could be read: ask the socket itself, which says why
    READ_LATER = -2  # what has come is the beginning of something: there will be more


cdef class Descriptor:
    cdef public int number
    cdef public bint takes_output

    # Neither waits, and neither needs the interpreter; where TLS stands between, others take their
    # place.
    cdef Py_ssize_t read(self, void* data, size_t size) noexcept nogil
    cdef Py_ssize_t write(self, const void* data, size_t size) noexcept nogil
    cdef bint has_more(self) noexcept nogil
