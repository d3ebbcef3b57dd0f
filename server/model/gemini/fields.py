"""Reading JSON that somebody else has written, as much of it as anybody asks for.

A message is read one object at a time: what nobody asks for stays the bytes it came as, whatever is
in it. Everything that is taken out has a bound here: text a length, numbers a size, lists a count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

MAX_SMALL_BYTES = 64 * 1024
"""A message no longer than this cannot hold more than a call can read in a moment."""
MAX_ITEMS = 20_000
"""Of a longer one: commas, outside and inside of its strings. Sixteen MiB of audio in one message
have a dozen; so many objects that reading them takes a while have more than this."""
MAX_BARE_BYTES = 2**20
"""Of a message without audio or other data in it."""
MAX_TEXT = 16_000
"""Characters of any one text: nobody says more in one breath."""
MAX_NAME = 64
"""Of a field; a longer one is none that we know."""
MAX_DEPTH = 32
"""Objects and lists within each other, where they are read whole."""
_LONGEST_ESCAPE = 12
"""Bytes that one character may take in JSON: a pair of escaped surrogates."""
_MAX_NUMBER_BYTES = 24

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode

Json = bytes | msgspec.Raw
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding raises for whatever is no JSON, or none that Python can hold."""


def has_too_much(data: bytes) -> bool:
    """Whether a message holds more than can be read without holding everybody else up."""
    if len(data) <= MAX_SMALL_BYTES:
        return False
    if len(data) > MAX_BARE_BYTES and b"inlineData" not in data and b"inline_data" not in data:
        return True
    return data.count(b",") > MAX_ITEMS


class Fields:
    """An object from the wire: a field by its camelCase name, absent if its type is wrong."""

    __slots__ = ("_given",)

    def __init__(self, given: Mapping[str, msgspec.Raw]) -> None:
        # Proto JSON may come in either spelling; nothing an object is asked for holds user keys.
        self._given = {
            _camel(name) if "_" in name and len(name) <= MAX_NAME else name: given[name]
            for name in given
        }

    @classmethod
    def read(cls, data: Json) -> Fields | None:
        """The object that this is; None if it is anything else, or no JSON at all."""
        try:
            return cls(_decode_object(data))
        except UNREADABLE:
            return None

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def __bool__(self) -> bool:
        return bool(self._given)

    def names(self) -> set[str]:
        """Every name that is given, however long."""
        return set(self._given)

    def size(self, name: str) -> int:
        """Bytes that a field's value takes in the message; 0 if it is not there."""
        return memoryview(self._given[name]).nbytes if name in self._given else 0

    def is_unset(self, name: str) -> bool:
        """Whether a field is not there, or is what proto JSON takes for that: null, or no text."""
        return name not in self._given or bytes(memoryview(self._given[name])[:5]) in (
            b"null",
            b'""',
        )

    def text(self, name: str, most: int = MAX_TEXT) -> str:
        """A text of at most so many characters; "" for anything else, and for a longer one."""
        if not 2 < self.size(name) <= 2 + _LONGEST_ESCAPE * most:
            return ""
        value = _value(self._given[name])
        return value if isinstance(value, str) and len(value) <= most else ""

    def data(self, name: str) -> str:
        """A text that may be as long as the message: base64."""
        value = _value(self._given[name]) if name in self._given else ""
        return value if isinstance(value, str) else ""

    def flag(self, name: str) -> bool:
        """Whether the field is true."""
        return self.size(name) == 4 and bytes(memoryview(self._given[name])) == b"true"

    def count(self, name: str, most: int) -> int | None:
        """A count from 0 to ``most``, as a number or as text; 0 if it is not there.

        Returns:
            None for whatever else is there.
        """
        size = self.size(name)
        if not size:
            return 0
        value = _value(self._given[name]) if size <= _MAX_NUMBER_BYTES else None
        if value is None and size == 4:
            return 0  # null is "not set" in proto JSON
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)  # an int64 may be a string in JSON
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            return None
        return value

    def object(self, name: str) -> Fields | None:
        """The object in a field."""
        return Fields.read(self._given[name]) if name in self._given else None

    def items(self, name: str) -> list[msgspec.Raw]:
        """What is in a list, unread."""
        try:
            return _decode_list(self._given[name]) if name in self._given else []
        except UNREADABLE:
            return []

    def texts(self, name: str, most: int) -> list[str]:
        """The texts of at most so many characters in a list."""
        wanted = (
            one for one in self.items(name) if memoryview(one).nbytes <= _LONGEST_ESCAPE * most
        )
        return [
            text for one in wanted if isinstance(text := _value(one), str) and len(text) <= most
        ]

    def objects(self, name: str, most: int) -> list[Fields]:
        """The objects in a list, of its first so many items."""
        found = (Fields.read(one) for one in self.items(name)[:most])
        return [one for one in found if one is not None]

    def plain_object(self, name: str, most_bytes: int) -> dict[str, Any] | None:
        """An object with all that is in it, which can be written as JSON; {} if none is given.

        Returns:
            None if it takes more bytes, cannot be read, or is not plain: see :func:`is_plain`.
        """
        size = self.size(name)
        if size > most_bytes:
            return None
        try:
            value = _decode_any(self._given[name]) if size else {}
        except UNREADABLE:
            return None
        if not isinstance(value, dict):
            return {}
        return value if is_plain(value) else None


def is_plain(value: Any, max_depth: int = MAX_DEPTH) -> bool:
    """Whether objects and lists go at most so deep, and whole numbers are of 64 bits."""
    level = [value]
    for _ in range(max_depth):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list | int)
        ]
        if any(isinstance(one, int) and not -(2**63) <= one < 2**64 for one in level):
            return False
        level = [one for one in level if not isinstance(one, int)]
        if not level:
            return True
    return False


def _value(raw: Json) -> Any:
    try:
        return _decode_any(raw)
    except UNREADABLE:
        return None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
