"""Base64 (RFC 4648) by tables, straight into and out of buffers.

Decoding is strict: the standard alphabet in one padded run. The URL-safe alphabet, white space and
missing padding are refused, and are for the full parser to think about.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

cdef bytes ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

# Two characters for every twelve bits: 8 KiB, where one table per 16 bits would not stay in L1.
cdef uint8_t PAIRS[4096][2]
# What the first, second, third and fourth character of a group put into its three bytes, which
# are the low bytes of a number, first byte lowest. REFUSED is set where none belongs.
cdef uint32_t GROUP[4][256]
cdef enum:
    REFUSED = 0x80000000


cdef void fill_tables():
    cdef int i, code, place
    cdef uint32_t bits
    for i in range(4096):
        PAIRS[i][0] = ALPHABET[i >> 6]
        PAIRS[i][1] = ALPHABET[i & 63]
    for i in range(256):
        code = ALPHABET.find(i)
        for place in range(4):
            bits = <uint32_t>code << (18 - 6 * place)  # of the group's 24, first byte highest
            GROUP[place][i] = (
                (bits >> 16 | (bits & 0xFF00) | (bits & 0xFF) << 16) if code >= 0 else REFUSED
            )


fill_tables()


cdef size_t encoded_size(size_t size) noexcept nogil:
    return (size + 2) // 3 * 4


cdef uint8_t* encode_into(const uint8_t* data, size_t size, uint8_t* out) noexcept nogil:
    """Write ``encoded_size(size)`` characters; returns where they end."""
    cdef uint32_t bits
    cdef size_t i, whole = size - size % 3
    for i in range(0, whole, 3):
        bits = <uint32_t>data[i] << 16 | <uint32_t>data[i + 1] << 8 | data[i + 2]
        memcpy(out, PAIRS[bits >> 12], 2)
        memcpy(out + 2, PAIRS[bits & 0xFFF], 2)
        out += 4
    if whole < size:
        bits = <uint32_t>data[whole] << 16
        if size - whole == 2:
            bits |= <uint32_t>data[whole + 1] << 8
        memcpy(out, PAIRS[bits >> 12], 2)
        out[2] = PAIRS[bits & 0xFFF][0] if size - whole == 2 else c"="
        out[3] = c"="
        out += 4
    return out


cdef bint decoded_size(const uint8_t* text, size_t size, size_t* decoded) noexcept nogil:
    """How many bytes this much base64 holds; False if it cannot be base64."""
    if size % 4:
        return False
    decoded[0] = size // 4 * 3
    if size and text[size - 1] == c"=":
        decoded[0] -= 2 if text[size - 2] == c"=" else 1
    return True


cdef bint decode_into(const uint8_t* text, size_t size, uint8_t* out) noexcept nogil:
    """Write ``decoded_size`` bytes; False if a character does not belong there.

    ``size`` must have passed :func:`decoded_size`. What was written when it is False is junk, but
    never more than that many bytes.
    """
    cdef uint32_t bits, refused = 0
    cdef uint8_t third, fourth
    cdef size_t i, whole
    if size == 0:
        return True
    # The last group may be padded and its neighbours not ours to write over: it comes by itself.
    whole = size - 4
    for i in range(0, whole, 4):
        bits = (
            GROUP[0][text[i]]
            | GROUP[1][text[i + 1]]
            | GROUP[2][text[i + 2]]
            | GROUP[3][text[i + 3]]
        )
        refused |= bits
        out[0] = <uint8_t>bits
        out[1] = <uint8_t>(bits >> 8)
        out[2] = <uint8_t>(bits >> 16)
        out += 3
    third = text[whole + 2]
    fourth = text[whole + 3]
    bits = GROUP[0][text[whole]] | GROUP[1][text[whole + 1]]
    out[0] = <uint8_t>bits
    if third != c"=" or fourth != c"=":
        bits |= GROUP[2][third]
        out[1] = <uint8_t>(bits >> 8)
        if fourth != c"=":
            bits |= GROUP[3][fourth]
            out[2] = <uint8_t>(bits >> 16)
    return not (refused | bits) & REFUSED


def encode(const uint8_t[::1] data not None):
    """Standard base64 with padding."""
    cdef bytes text = PyBytes_FromStringAndSize(NULL, encoded_size(data.shape[0]))
    if data.shape[0]:
        encode_into(&data[0], data.shape[0], <uint8_t*>PyBytes_AS_STRING(text))
    return text


def decode(const uint8_t[::1] text not None):
    """The bytes, or None for anything but one padded run of the standard alphabet."""
    cdef size_t size
    cdef bytes data
    if text.shape[0] == 0:
        return b""
    if not decoded_size(&text[0], text.shape[0], &size):
        return None
    data = PyBytes_FromStringAndSize(NULL, size)
    if not decode_into(&text[0], text.shape[0], <uint8_t*>PyBytes_AS_STRING(data)):
        return None
    return data
