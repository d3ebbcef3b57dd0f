from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef size_t encoded_size(size_t size) noexcept nogil
cdef uint8_t* encode_into(const uint8_t* data, size_t size, uint8_t* out) noexcept nogil
cdef bint decoded_size(const uint8_t* text, size_t size, size_t* decoded) noexcept nogil
cdef bint decode_into(const uint8_t* text, size_t size, uint8_t* out) noexcept nogil
