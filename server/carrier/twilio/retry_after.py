"""How long a carrier asks to be left alone: ``Retry-After``, RFC 9110, section 10.2.3."""

from __future__ import annotations

import re
from datetime import datetime

from werkzeug.http import parse_date

MAX_RETRY_AFTER_S = 300.0
"""We come back after this, whatever was asked: one mistake may not stop a day's calls."""
_SECONDS = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")


def read_retry_after(text: str | None, now: datetime) -> float | None:
    """Read the header's value.

    Args:
        text: Seconds, or a date in any form of HTTP's; None if there is no such header.
        now: The time of day, with its zone.

    Returns:
        Seconds from now, 0 to ``MAX_RETRY_AFTER_S``; None if it says nothing that can be read.
    """
    text = (text or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        date = parse_date(text) if len(text) <= 64 else None
        wait_s = None if date is None else (date - now).total_seconds()
    except (ValueError, OverflowError, IndexError):  # a date that no calendar has
        return None
    return None if wait_s is None else min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)
