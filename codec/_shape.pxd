"""A message's shape for other compiled modules; ``_shape.pyx`` has the picture."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t

from codec._websocket cimport Span


cdef struct Field:
    const char* name  # of an object's member, or one word of several
    size_t name_bytes
    int kind
    Node* inner  # an object's members, a list's one item, the words that may stand there


cdef struct Node:
    Field* fields
    int count
    uint32_t required  # a bit for each field that must be there


cdef struct Found:
    Span audio  # base64
    int64_t chunk_number  # 0 if there is none
    int64_t timestamp_ms  # -1 if there is none


cdef class Shape:
    cdef Field _message
    cdef bint _ignores_others
    cdef list _names  # what the fields point to

    # Reads a message of this shape and stream; False for any other, which is for a full parser.
    cdef bint find(self, Span message, Span stream, Found* found) noexcept nogil

    cdef int _describe(self, Field* field, object pattern, int depth) except -1
    cdef int _name(self, Field* field, object name) except -1
