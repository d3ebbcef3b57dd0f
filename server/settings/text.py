"""Bytes from people and their programs as text: UTF-8, or what else they may be without a doubt."""

from __future__ import annotations

import codecs
import re

# The longest first: the mark of UTF-16 LE is the beginning of that of UTF-32 LE.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class NotText(ValueError):
    """These bytes are no text; the message says where and in which encoding they are not.

    Attributes:
        line: The first line that is none, counted from 1.
        reason: What is wrong with it.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


def decode(content: bytes) -> str:
    """Read text that begins with ASCII: UTF-8, or UTF-16 and UTF-32 in either order.

    A byte order mark says which; without one, the zeros among the first bytes do. The mark is not
    in what comes back.

    Raises:
        NotText: It is none of these, or has a NUL in it.
    """
    encoding, mark = _without_mark(content), b""
    for each, its_encoding in _MARKS:
        if content.startswith(each):
            encoding, mark = its_encoding, each
            break
    content = content[len(mark) :]
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, "replace")
        raise NotText(count_lines(before), f"this is not {encoding.upper()} text") from None
    if "\0" in text:
        raise NotText(count_lines(text[: text.index("\0")]), "a NUL character")
    return text


def count_lines(before: str) -> int:
    """Which line comes after this text, counted from 1."""
    return len(re.findall(r"\r\n|\n|\r", before)) + 1


def _without_mark(content: bytes) -> str:
    match [byte != 0 for byte in content[:4]]:
        case [True, False, False, False]:
            return "utf-32-le"
        case [False, False, False, True]:
            return "utf-32-be"
        case [True, False, True, False] | [True, False]:
            return "utf-16-le"
        case [False, True, False, True] | [False, True]:
            return "utf-16-be"
    return "utf-8"
