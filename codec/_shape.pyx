"""The shape of an audio message as data, and the walk that reads messages of it, in C.

A shape is written as the message looks, with a :class:`Part` where something is to be taken out::

    Shape({"event": "media", "media": {"payload": Part.AUDIO}}, ignores_others=True)

Members may come in any order; the walk is quickest when they come as they are written here.
"""

import enum
from collections.abc import Mapping

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

cdef enum:
    MAX_MEMBERS = 32  # a bit for each
    MAX_DEPTH = 8  # the walk goes into itself


class Part(enum.IntEnum):
    """What stands at a place of a message, where that is not always the same."""

    AUDIO = PART_AUDIO
    """The audio, in base64."""
    STREAM = PART_STREAM
    """The stream's name; a message of another stream is not of this shape."""
    TIMESTAMP_MS = PART_TIMESTAMP_MS
    """The sender's clock at the first sample: a whole number, bare or in quotes."""
    CHUNK_NUMBER = PART_CHUNK_NUMBER
    """Which chunk of the stream it is, counted from 1; written as the timestamp is."""
    TEXT = PART_TEXT
    """Any text, which is not looked at."""


cdef class Maybe:
    """A member that need not be there; if it is, it has this value.

    Args:
        value: A pattern, as :class:`Shape` takes it.
    """

    cdef readonly object value

    def __init__(self, value):
        self.value = value


cdef class Shape:
    """How messages look that are plainly audio and nothing else.

    Args:
        message: An object's members, each with the pattern of its value. A pattern is a
            :class:`Part`; a string, for just that text; several strings in a tuple, for one of
            them; another object's members; a list of one pattern, for a list with one item; or a
            :class:`Maybe` of these.
        ignores_others: True if objects may have other members, as long as these are text without
            escapes or whole numbers; False if a message with one of them is not of this shape.

    Raises:
        TypeError: There is something else in it.
        ValueError: The audio is nowhere or in two places, or it is larger than any message.
    """

    def __init__(self, message, *, bint ignores_others):
        if self._used:
            raise TypeError("a shape is made once")
        self._used = 1
        self._ignores_others = ignores_others
        if not isinstance(message, Mapping):
            raise TypeError("a message is an object")
        parts = list(parts_of(message))
        if parts.count(Part.AUDIO) != 1:
            raise ValueError("the audio has to be in one place")
        self._describe(self._fields, message, 0)

    cdef int _describe(self, Field* field, object pattern, int depth) except -1:
        cdef int index = 0
        cdef Field* inner
        if depth > MAX_DEPTH:
            raise ValueError("too deep for a shape")
        if isinstance(pattern, Part):
            field.kind = pattern
            return 0
        if isinstance(pattern, str):
            pattern = (pattern,)
        if not isinstance(pattern, (Mapping, tuple, list)):
            raise TypeError(f"{pattern!r} is no pattern")
        if not 0 < len(pattern) <= (1 if isinstance(pattern, list) else MAX_MEMBERS):
            raise ValueError(f"{len(pattern)} are too few or too many for a shape")
        if self._used + len(pattern) > MAX_FIELDS:
            raise ValueError(f"a shape has at most {MAX_FIELDS} fields")
        field.first, field.count = self._used, len(pattern)
        inner = self._fields + field.first
        self._used += field.count
        if isinstance(pattern, list):
            field.kind = IS_LIST
            return self._describe(inner, pattern[0], depth + 1)
        field.kind = IS_WORDS if isinstance(pattern, tuple) else IS_OBJECT
        for index, name in enumerate(pattern):
            self._name(inner + index, name)
            if field.kind == IS_OBJECT:
                value = pattern[name]
                if isinstance(value, Maybe):
                    value = (<Maybe>value).value
                else:
                    field.required |= <uint32_t>1 << index
                self._describe(inner + index, value, depth + 1)
        return 0

    cdef int _name(self, Field* field, object name) except -1:
        cdef bytes encoded = (<str?>name).encode()
        if len(encoded) > MAX_NAME_BYTES:
            raise ValueError(f"{name!r} is longer than a shape's names can be")
        memcpy(field.name, <const char*>encoded, len(encoded))
        field.name_bytes = len(encoded)
        return 0


def parts_of(pattern):
    """Every part in a pattern."""
    if isinstance(pattern, Part):
        yield pattern
    elif isinstance(pattern, Maybe):
        yield from parts_of(pattern.value)
    elif isinstance(pattern, (Mapping, list)):
        for inner in pattern.values() if isinstance(pattern, Mapping) else pattern:
            yield from parts_of(inner)
