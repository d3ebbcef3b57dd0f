"""A message's shape, and the walk that reads one; ``_shape.pyx`` has the picture.

The walk is compiled into whoever uses it: a chunk comes every 20 ms, when nothing of another
library's is in the processor's caches any more.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

from codec._json cimport (
    Walk,
    base64_string,
    enter,
    expect,
    finished,
    next_member,
    plain_string,
    skip_plain,
    walk_over,
    whole_number,
)
from codec._websocket cimport Span

cdef enum:
    PART_AUDIO = 0
    PART_STREAM = 1
    PART_TIMESTAMP_MS = 2
    PART_CHUNK_NUMBER = 3
    PART_TEXT = 4
    IS_OBJECT = 5
    IS_LIST = 6
    IS_WORDS = 7
    MAX_FIELDS = 64
    MAX_NAME_BYTES = 40


cdef struct Field:
    char name[MAX_NAME_BYTES]  # of an object's member, or one word of several
    uint8_t name_bytes
    uint8_t kind
    uint16_t first  # an object's members, a list's one item, the words that may stand there
    uint16_t count
    uint32_t required  # a bit for each of these that must be there


cdef struct Found:
    Span audio  # base64
    int64_t chunk_number  # 0 if there is none
    int64_t timestamp_ms  # -1 if there is none


cdef class Shape:
    # All in one place, and in the order in which it is read.
    cdef Field _fields[MAX_FIELDS]
    cdef int _used
    cdef bint _ignores_others

    cdef int _describe(self, Field* field, object pattern, int depth) except -1
    cdef int _name(self, Field* field, object name) except -1


cdef inline bint find_audio(Shape shape, Span message, Span stream, Found* found) noexcept nogil:
    """Read a message of this shape and stream; False for any other, which is for a full parser."""
    cdef Walk walk = walk_over(message)
    found.audio.data = NULL  # it may be where it need not be
    found.audio.size = 0
    found.chunk_number = 0
    found.timestamp_ms = -1
    walk_value(&walk, shape._fields, shape._fields, shape._ignores_others, stream, found)
    return finished(&walk) and found.audio.data != NULL


cdef inline void walk_value(
    Walk* walk,
    const Field* fields,
    const Field* field,
    bint ignores_others,
    Span stream,
    Found* found,
) noexcept nogil:
    cdef Span text
    if field.kind == PART_AUDIO:
        base64_string(walk, &found.audio)
    elif field.kind == PART_TIMESTAMP_MS:
        whole_number(walk, &found.timestamp_ms)
    elif field.kind == PART_CHUNK_NUMBER:
        whole_number(walk, &found.chunk_number)
    elif field.kind == IS_OBJECT:
        walk_object(walk, fields, field, ignores_others, stream, found)
    elif field.kind == IS_LIST:
        expect(walk, c"[")
        walk_value(walk, fields, fields + field.first, ignores_others, stream, found)
        expect(walk, c"]")
    else:
        plain_string(walk, &text)
        if field.kind == PART_STREAM:
            walk.broken |= not same(text, stream.data, stream.size)
        elif field.kind == IS_WORDS:
            walk.broken |= place_of(fields + field.first, field.count, text, 0) < 0


cdef inline void walk_object(
    Walk* walk,
    const Field* fields,
    const Field* field,
    bint ignores_others,
    Span stream,
    Found* found,
) noexcept nogil:
    cdef Span name
    cdef const Field* members = fields + field.first
    cdef uint32_t seen = 0, bit
    cdef int place = -1, known
    enter(walk)
    while next_member(walk, &name):
        known = place_of(members, field.count, name, place + 1)
        if known >= 0:
            place = known
            bit = <uint32_t>1 << place
            # A name that comes twice: the full parser knows which of them counts.
            walk.broken |= (seen & bit) != 0
            seen |= bit
            walk_value(walk, fields, members + place, ignores_others, stream, found)
        elif ignores_others:
            skip_plain(walk)
        else:
            walk.broken = True
    walk.broken |= (seen & field.required) != field.required


cdef inline int place_of(
    const Field* fields, int count, Span name, int expected
) noexcept nogil:
    """Which field has this name, looked for from the expected one on; -1 if none has."""
    cdef int index
    for index in range(expected, count):
        if same(name, <const uint8_t*>fields[index].name, fields[index].name_bytes):
            return index
    for index in range(min(expected, count)):
        if same(name, <const uint8_t*>fields[index].name, fields[index].name_bytes):
            return index
    return -1


cdef inline bint same(Span text, const uint8_t* word, size_t size) noexcept nogil:
    return text.size == size and memcmp(text.data, word, size) == 0
