"""An HTTP request as the API takes it: JSON in any Unicode, bodies as long as what is documented.

``request_class`` is Quart's documented seam for this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quart import Request
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import BadRequest

from server.cluster import passing_on
from server.settings.text import NotText, decode
from server.web.api import (
    MAKE_CALL,
    MAX_GREETING_CHARS,
    MAX_METADATA,
    MAX_METADATA_CHARS,
    MAX_PROMPT_CHARS,
)
from server.web.browser.words import RESUME, START

MAX_BODY_BYTES = 64 * 1024
"""Twilio's webhooks are a few kilobytes, and so are all requests but those for a call."""
_ESCAPED_BYTES = 12
"""What JSON needs at most for a character: two halves of a surrogate pair, ``\\ud83d\\ude00``."""
_FREE_CHARS = 2 * MAX_METADATA * 2 * MAX_METADATA_CHARS
"""Names and values of ``metadata`` and ``variables``."""
_LONGEST_CALL = _ESCAPED_BYTES * (MAX_PROMPT_CHARS + MAX_GREETING_CHARS + _FREE_CHARS) + 48_000
"""Its texts as they need most, and all else in it."""
LONGEST_BODIES = {MAKE_CALL: _LONGEST_CALL, START: _LONGEST_CALL, RESUME: MAX_BODY_BYTES}
"""The paths that take JSON for a call, and the longest body of each."""


class HttpRequest(TrioRequest):
    """A request whose JSON is parsed once, whoever asks for it."""

    def __init__(self, method: str, scheme: str, path: str, *args: Any, **options: Any) -> None:
        longest = LONGEST_BODIES.get(path)
        if longest is not None:
            options["max_content_length"] = longest
        super().__init__(method, scheme, path, *args, **options)
        self._json: tuple[Any] | None = None

    @property
    def mimetype(self) -> str:
        """What its body is said to be, without parameters: nothing here reads those.

        werkzeug reads all of them to find it: ten milliseconds for 8 KB, before any key is asked.
        """
        return self.headers.get("Content-Type", "").partition(";")[0].strip(" \t").lower()

    async def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """The body as JSON says it; None if it is not said to be JSON.

        Raises:
            BadRequest: It is not JSON; the description says why.
        """
        if not (force or self.is_json):
            return None
        if self._json is None:
            try:
                self._json = (read_json(await content_of(self)),)
            except ValueError as error:
                if silent:
                    return None
                raise BadRequest(str(error)) from None
        return self._json[0]


def read_json(content: bytes) -> Any:
    """JSON in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Raises:
        ValueError: It is not JSON, in words.
    """
    try:
        return json.loads(decode(content))
    except NotText as error:
        raise ValueError(f"is not text: {error}; send UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not JSON: {error.msg.lower()} in {where}") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except ValueError:  # Python's limit of digits
        raise ValueError("has a number with too many digits") from None


async def content_of(asked: Request) -> bytes:
    """The body of a request, whole and as it came."""
    content = await asked.get_data()
    assert isinstance(content, bytes)  # text is given only where it is asked for
    return content


def target_of(scope: Mapping[str, Any]) -> str:
    """Path and query exactly as requested: what the carrier has signed."""
    return passing_on.target_of(scope).decode("latin-1")
