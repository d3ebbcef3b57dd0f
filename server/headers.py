"""Header fields as they came: what it means that a name stands on several lines.

RFC 9110, section 5.3: the lines of a list, such as ``X-Forwarded-For``, are one list, in their
order. A field that is no list, such as ``Authorization``, may stand there once; sent twice it says
two things, and whoever is in front of us may have believed the other one. What a field says that
somebody has answered with is read here, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from werkzeug.http import parse_date

_SECONDS = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")


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


def cookie_of(headers: Headers, name: str) -> str | None:
    """The value of a cookie (RFC 6265, section 4.2); None if it is not there, or several times.

    This takes time in proportion to what was sent. werkzeug's ``request.cookies`` takes the square
    of it: a second for 8 KB of spaces.
    """
    parts = ";".join(lines_of(headers, "Cookie")).split(";")
    pairs = (part.partition("=") for part in parts)
    values = [value for key, _, value in pairs if key.strip() == name]
    return values[0].strip() if len(values) == 1 else None


def read_retry_after(text: str | None, now: datetime, *, longest_s: float) -> float | None:
    """Read how long somebody asks to be left alone: ``Retry-After``, RFC 9110, section 10.2.3.

    Args:
        text: Seconds, or a date in any form of HTTP's; None if there is no such header.
        now: The time of day, with its zone.
        longest_s: We come back after this, whatever was asked.

    Returns:
        Seconds from now, 0 to the longest; None if it says nothing that can be read.
    """
    text = (text or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), longest_s)
    try:
        date = parse_date(text) if len(text) <= 64 else None
        wait_s = None if date is None else (date - now).total_seconds()
    except (ValueError, OverflowError, IndexError):  # a date that no calendar has
        return None
    return None if wait_s is None else min(max(wait_s, 0.0), longest_s)
