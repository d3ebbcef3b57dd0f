from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t

from codec._buffer cimport Buffer


cdef enum:
    MASK_KEYS_BYTES = 256  # fetched at once: the system call is paid once per 64 frames
    MAX_CONTROL_BYTES = 125  # RFC 6455 5.5


cdef struct Span:
    # Bytes that belong to someone else; good until their owner changes.
    const uint8_t* data
    size_t size


cdef class WebSocket:
    cdef Buffer _incoming  # read from the socket, not yet taken as frames
    cdef Buffer _message  # the fragments of a message so far
    cdef Buffer _outgoing  # frames for the socket
    cdef size_t _begun_bytes  # at its start: the rest of a frame that the socket has partly
    cdef uint8_t _pong[MAX_CONTROL_BYTES]  # what the latest ping wants back
    cdef int _pong_size  # -1 when no ping is unanswered
    cdef uint8_t _mask_keys[MASK_KEYS_BYTES]
    cdef int _mask_keys_left
    cdef object _random
    cdef uint8_t _fragmented  # opcode of the message in fragments, 0 between messages
    cdef readonly bint is_client
    cdef readonly size_t max_message_bytes
    cdef readonly bint is_open
    cdef readonly bint ended
    cdef readonly bint is_text
    cdef readonly object close_code
    cdef readonly str close_reason
    cdef readonly object close_code_sent
    cdef readonly str failure
    cdef readonly uint64_t frames

    # For other extensions; the Python methods are in the .pyi.
    cdef bint next_span(self, Span* message) except -1
    cdef uint8_t* begin(self, bint is_text, size_t size) except NULL
    cdef int end(self, uint8_t* payload, size_t size) except -1
    cdef void written(self, size_t size) noexcept

    cdef bint _next_frame(self, uint8_t* first, Span* payload) except -1
    cdef int _control(self, uint8_t opcode, Span payload) except -1
    cdef int _closed_by_peer(self, Span payload) except -1
    cdef int _fail(self, int code, str reason) except -1
    cdef bint has_output(self) noexcept
    cdef int _write_pong(self) except -1
    cdef int _send(self, uint8_t opcode, const uint8_t* payload, size_t size) except -1
    cdef uint8_t* _begin(self, uint8_t opcode, size_t size) except NULL
