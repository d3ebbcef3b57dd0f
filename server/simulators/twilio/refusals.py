"""What the REST API answers to requests that Twilio would not take."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from werkzeug.datastructures import MultiDict

_E164 = re.compile(r"\+[1-9]\d{6,14}")


class ApiRefusal(Exception):
    """An error answer in the form of the 2010 API."""

    def __init__(
        self, status: int, code: int, message: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


# "Test credentials": numbers that are refused, and how.
_MAGIC_NUMBERS = {
    "+15005550001": (21217, "The phone number is not a valid phone number."),
    "+15005550002": (21214, "The phone number cannot be reached."),
    "+15005550003": (21215, "The account is not authorized to call this number."),
    "+15005550004": (21216, "The account is not allowed to call this number."),
}


def check_numbers(to: str, from_number: str, own_number: str) -> None:
    """Check whom a call is to be placed to, and from which number.

    Raises:
        ApiRefusal: Twilio would not dial.
    """
    if not to:
        raise ApiRefusal(400, 21201, "No 'To' number is specified")
    if not from_number:
        raise ApiRefusal(400, 21213, "No 'From' number is specified")
    if from_number == "+15005550001":
        raise ApiRefusal(400, 21212, "The 'From' number is not a valid phone number.")
    if from_number != own_number:
        raise ApiRefusal(400, 21210, "The 'From' number is not verified for your account.")
    if to in _MAGIC_NUMBERS:
        raise ApiRefusal(400, *_MAGIC_NUMBERS[to])
    if not _E164.fullmatch(to):
        raise ApiRefusal(400, 21211, f"The phone number you are calling, {to}, is not valid.")


def is_http_url(url: str | None) -> bool:
    """True if a webhook can be asked there."""
    parts = urlsplit(url or "")
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def read_seconds(form: MultiDict[str, str], name: str, default: float, *, maximum: float) -> float:
    """Read a whole number of seconds out of a form.

    Raises:
        ApiRefusal: It is none.
    """
    text = form.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise ApiRefusal(400, 20001, f"{name} must be a whole number of seconds.")
    return min(float(text), maximum)
