"""An HTTP request as the API takes it: JSON in any Unicode, bodies as long as what is documented.

``request_class`` is Quart's documented seam for this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from quart import Request
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import BadRequest

from server.cluster import passing_on
from server.settings.text import NotText, decode
from server.web.api import MAKE_CALL, MakeCall
from server.web.browser.words import RESUME, START, CallFromBrowser, ResumeFromBrowser

MAX_BODY_BYTES = 64 * 1024
"""Twilio's webhooks are a few kilobytes, and so are all requests but those for a call."""
_ESCAPED_BYTES = 12
"""What JSON needs at most for a character: two halves of a surrogate pair, ``\\ud83d\\ude00``."""
_AROUND_BYTES = 64
"""For what stands around a member: quotes, colon, comma, and a line of its own with its indent."""
_PLAIN_BYTES = 32
"""More than any number that a program writes needs, and than ``false`` and ``null``."""


def longest_json(schema: Mapping[str, Any]) -> int:
    """The most bytes that a value needs as JSON, however its characters are escaped.

    Args:
        schema: Its JSON Schema. Every text and every object of free names in it has a bound, so
            that there is an answer.
    """
    match schema:
        case {"anyOf": choices}:
            return max(longest_json(choice) for choice in choices)
        case {"enum": values}:
            return max(_longest_text(len(value)) for value in values)
        case {"const": str(value)}:
            return _longest_text(len(value))
        case {"properties": members}:
            return _AROUND_BYTES + sum(
                _longest_text(len(name)) + _AROUND_BYTES + longest_json(member)
                for name, member in members.items()
            )
        case {"additionalProperties": value, "propertyNames": name, "maxProperties": int(count)}:
            member = _longest_text(name["maxLength"]) + _AROUND_BYTES + longest_json(value)
            return _AROUND_BYTES + count * member
        case {"maxLength": int(chars)}:
            return _longest_text(chars)
        case {"type": "number" | "integer" | "boolean" | "null"}:
            return _PLAIN_BYTES
    raise ValueError(f"has no bound: {schema}")


def _longest_text(chars: int) -> int:
    return _ESCAPED_BYTES * chars + len('""')


_MODELS: Mapping[str, type[BaseModel]] = {
    MAKE_CALL: MakeCall,
    START: CallFromBrowser,
    RESUME: ResumeFromBrowser,
}
LONGEST_BODIES = {
    path: max(MAX_BODY_BYTES, longest_json(model.model_json_schema()))
    for path, model in _MODELS.items()
}
"""The paths that take JSON for a call, and the longest body of each: all that its model allows."""


class HttpRequest(TrioRequest):
    """A request whose JSON is parsed once, whoever asks for it."""

    def __init__(self, method: str, scheme: str, path: str, *args: Any, **options: Any) -> None:
        longest = LONGEST_BODIES.get(path)
        if longest is not None:
            options["max_content_length"] = longest
        super().__init__(method, scheme, path, *args, **options)
        self._json: tuple[Any] | None = None

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
