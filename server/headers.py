"""Header fields as they came: what it means that a name stands on several lines.

RFC 9110, section 5.3: the lines of a list, such as ``X-Forwarded-For``, are one list, in their
order. A field that is no list, such as ``Authorization``, may stand there once; sent twice it says
two things, and whoever is in front of us may have believed the other one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Headers(Protocol):
    """A request's headers: a dictionary, or werkzeug's ``Headers``, which keeps every line."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Every line, in order."""
        ...


def lines_of(headers: Headers, name: str) -> list[str]:
    """The values of every line of this name, in order, whatever its case."""
    wanted = name.lower()
    return [value for key, value in headers.items() if key.lower() == wanted]


def listed(headers: Headers, name: str) -> list[str]:
    """The elements of a list field, of all its lines; empty elements do not count."""
    elements = ",".join(lines_of(headers, name)).split(",")
    return [element.strip() for element in elements if element.strip()]


def single(headers: Headers, name: str) -> str | None:
    """The value of a field that may be there once; None if it is not there, or several times."""
    lines = lines_of(headers, name)
    return lines[0] if len(lines) == 1 else None
