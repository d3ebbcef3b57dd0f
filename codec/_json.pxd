"""Walk through JSON of a known shape; anything else breaks the walk and is somebody else's work.

A walk is a cursor with a sticky ``broken``. Strings must be plain: no escapes, so that their bytes
are their value. ::

    enter(&walk)
    while next_member(&walk, &name):
        if same(name, "event"):
            plain_string(&walk, &event)
        else:
            skip_plain(&walk)
    if finished(&walk): ...
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memchr

from codec._websocket cimport Span


cdef struct Walk:
    const uint8_t* at
    const uint8_t* end
    bint fresh  # an object or array has been entered and nothing of it been read
    bint broken


cdef inline Walk walk_over(Span text) noexcept nogil:
    cdef Walk walk
    walk.at = text.data
    walk.end = text.data + text.size
    walk.fresh = False
    walk.broken = False
    return walk


cdef inline bint accept(Walk* walk, uint8_t character) noexcept nogil:
    """Skip white space, and the character if it is next."""
    while walk.at < walk.end and walk.at[0] in (c" ", c"\n", c"\r", c"\t"):
        walk.at += 1
    if walk.at < walk.end and walk.at[0] == character:
        walk.at += 1
        return True
    return False


cdef inline void expect(Walk* walk, uint8_t character) noexcept nogil:
    if not accept(walk, character):
        walk.broken = True


cdef inline bint finished(Walk* walk) noexcept nogil:
    """Whether the walk saw everything and nothing but white space is left."""
    return not accept(walk, 0) and walk.at == walk.end and not walk.broken


cdef inline void enter(Walk* walk) noexcept nogil:
    """Go into an object."""
    expect(walk, c"{")
    walk.fresh = True


cdef inline bint next_member(Walk* walk, Span* name) noexcept nogil:
    """Go to the next member's value; False when the object has been left or the walk broke."""
    cdef bint fresh = walk.fresh
    walk.fresh = False
    if walk.broken or accept(walk, c"}"):
        return False
    if not fresh:
        expect(walk, c",")
    plain_string(walk, name)
    expect(walk, c":")
    return not walk.broken


cdef inline void plain_string(Walk* walk, Span* text) noexcept nogil:
    """A string without escapes; the text must be known to be UTF-8."""
    expect(walk, c'"')
    text.data = walk.at
    while walk.at < walk.end and walk.at[0] >= 0x20 and walk.at[0] not in (c'"', c"\\"):
        walk.at += 1
    text.size = walk.at - text.data
    if walk.at < walk.end and walk.at[0] == c'"':
        walk.at += 1
    else:
        walk.broken = True


cdef inline void base64_string(Walk* walk, Span* text) noexcept nogil:
    """A string up to its quote, whatever is in it: decoding refuses all that is not base64."""
    cdef const uint8_t* quote
    expect(walk, c'"')
    text.data = walk.at
    text.size = 0
    quote = <const uint8_t*>memchr(walk.at, c'"', walk.end - walk.at)
    if quote == NULL:
        walk.broken = True
        return
    text.size = quote - walk.at
    walk.at = quote + 1


cdef inline void whole_number(Walk* walk, int64_t* number) noexcept nogil:
    """A number of 1 to 15 digits, bare or as a string, as carriers write them."""
    cdef bint quoted = accept(walk, c'"')
    cdef const uint8_t* first = walk.at
    number[0] = 0
    while walk.at < walk.end and c"0" <= walk.at[0] <= c"9" and walk.at - first < 16:
        number[0] = number[0] * 10 + (walk.at[0] - c"0")
        walk.at += 1
    if not 1 <= walk.at - first <= 15 or (first[0] == c"0" and walk.at - first > 1):
        walk.broken = True
    elif quoted and not (walk.at < walk.end and walk.at[0] == c'"'):
        walk.broken = True
    elif quoted:
        walk.at += 1


cdef inline void skip_plain(Walk* walk) noexcept nogil:
    """A value of no interest: a plain string or a whole number."""
    cdef Span ignored
    cdef int64_t number
    if accept(walk, c'"'):
        walk.at -= 1
        plain_string(walk, &ignored)
    else:
        whole_number(walk, &number)
