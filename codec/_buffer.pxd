"""A run of bytes that grows at its end and is consumed from its start; no Python objects.

Memory comes from Python's raw allocator, so that ``tracemalloc`` sees what a call costs. A call has
a dozen of these, and most are empty nearly always: what is in them goes on in the pass that brought
it. So one that is empty keeps next to nothing; the allocator has it again at once.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memmove

cdef extern from "fence.h" nogil:
    void fence(const void* data, size_t usable, size_t capacity)

cdef enum:
    FIRST_BYTES = 256
    KEEP_BYTES = 512  # what an empty buffer may keep: a caller's frame, as many times as it comes


cdef struct Buffer:
    uint8_t* data
    size_t start  # first byte not consumed
    size_t end  # one past the last byte
    size_t capacity  # 0 with data: lent, see lend()


cdef inline size_t held(const Buffer* buffer) noexcept nogil:
    return buffer.end - buffer.start


cdef inline uint8_t* head(const Buffer* buffer) noexcept nogil:
    return buffer.data + buffer.start


cdef inline uint8_t* reserve(Buffer* buffer, size_t size) except NULL:
    """Room for ``size`` more bytes; returns where to write them, then call :func:`grow`.

    May move everything: pointers into the buffer are void after this.
    """
    cdef size_t used = buffer.end - buffer.start
    cdef size_t capacity
    cdef uint8_t* data
    if buffer.capacity >= buffer.end and buffer.capacity - buffer.end >= size and buffer.capacity:
        fence(buffer.data, buffer.end + size, buffer.capacity)
        return buffer.data + buffer.end
    if used + size < used:
        raise MemoryError
    if buffer.data != NULL and used + size <= buffer.capacity - buffer.capacity // 4:
        # A quarter of it is free again: moving is cheap, and happens once per quarter.
        memmove(buffer.data, buffer.data + buffer.start, used)
    else:
        # One that is filled bit by bit grows by half; one that was empty is as a rule filled once.
        capacity = used + size + ((used + size) // 2 if used else 0)
        capacity = max(<size_t>FIRST_BYTES, capacity)
        data = <uint8_t*>PyMem_RawMalloc(capacity)
        if data == NULL:
            raise MemoryError
        if used:
            memcpy(data, buffer.data + buffer.start, used)
        release(buffer)
        buffer.data = data
        buffer.capacity = capacity
    buffer.start = 0
    buffer.end = used
    fence(buffer.data, used + size, buffer.capacity)
    return buffer.data + used


cdef inline void grow(Buffer* buffer, size_t size) noexcept nogil:
    """The reserved bytes have been written."""
    buffer.end += size


cdef inline int append(Buffer* buffer, const void* source, size_t size) except -1:
    cdef uint8_t* room = reserve(buffer, size)
    if size:
        memcpy(room, source, size)
    buffer.end += size
    return 0


cdef inline void consume(Buffer* buffer, size_t size) noexcept nogil:
    """Drop bytes from the start; they stay readable until the next :func:`reserve`."""
    buffer.start += size


cdef inline void clear(Buffer* buffer) noexcept nogil:
    """Drop everything, and the memory unless it is very little."""
    buffer.start = buffer.end = 0
    if buffer.capacity > KEEP_BYTES:
        release(buffer)
    elif buffer.data != NULL:
        fence(buffer.data, 0, buffer.capacity)


cdef inline void release(Buffer* buffer) noexcept nogil:
    """Give all memory back; the buffer may be used again."""
    if buffer.capacity:
        fence(buffer.data, buffer.capacity, buffer.capacity)
        PyMem_RawFree(buffer.data)
    buffer.data = NULL
    buffer.start = buffer.end = buffer.capacity = 0


cdef inline void lend(Buffer* buffer, uint8_t* data, size_t size) noexcept nogil:
    """Have an empty buffer hold these bytes, which stay somebody else's, until :func:`settle`."""
    release(buffer)
    buffer.data = data
    buffer.end = size


cdef inline int settle(Buffer* buffer) except -1:
    """Take into memory of its own what is left of the bytes that were lent.

    Raises:
        MemoryError: There is none; what was left is lost.
    """
    cdef uint8_t* rest = head(buffer)
    cdef size_t size = held(buffer)
    if buffer.data != NULL and buffer.capacity == 0:
        buffer.data = NULL
        buffer.start = buffer.end = 0
        if size:
            append(buffer, rest, size)
    return 0
