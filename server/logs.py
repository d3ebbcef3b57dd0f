"""Structured logs: one JSON line per event in production, readable lines on a terminal.

Nothing anyone said, no phone number in full and no key is ever a field: :func:`masked` is how a
number is shown.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from typing import Any

import structlog


def masked(number: str) -> str:
    """A phone number as logs may show it: country prefix and the last two digits.

    >>> masked("+584125551234")
    '+58*******34'
    """
    if len(number) < 7:
        return "*" * len(number)
    return f"{number[:3]}{'*' * (len(number) - 5)}{number[-2:]}"


class Sparing:
    """How often the same warning is logged, so that strangers cannot fill a disk with it.

    Args:
        every_s: One line in this time; the others are counted.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._next_at = -math.inf
        self._unlogged = 0

    def may_log(self, now: float) -> bool:
        """Whether to log this one."""
        if now < self._next_at:
            self._unlogged += 1
            return False
        self._next_at = now + self._every_s
        return True

    def take_unlogged(self) -> int:
        """How many were not logged since the last time."""
        unlogged, self._unlogged = self._unlogged, 0
        return unlogged


_NUMBER = re.compile(r"(?:\+|%2[bB])\d{7,15}\b")
_SECRET = re.compile(r"(?i)\b(key|token|secret|password|authorization)=[^&\s\"'\\]+")


def censored(text: str) -> str:
    """A log line without what must not be in it, whoever wrote it there.

    Our own lines have none of it; other packages' messages, carriers' error texts and tracebacks
    are not ours to write.
    """
    text = _NUMBER.sub(lambda match: masked(match[0].replace("%2B", "+").replace("%2b", "+")), text)
    return _SECRET.sub(r"\1=***", text)


class _Lines(logging.StreamHandler[Any]):
    """Lines on stderr; where a disk is full, they are lost in silence."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        # Python's own way is a traceback of the failure, to the same full disk: milliseconds of
        # every call's time for each line.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def configure(*, level: str = "INFO", json: bool | None = None) -> None:
    """Set the process's logs up: ours and those of every package, as one kind of line on stderr.

    Args:
        level: The lowest level shown.
        json: One JSON object a line; None decides by whether stderr is a terminal.
    """
    if json is None:
        json = not sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _Lines(sys.stderr)
    handler.setFormatter(_formatter(shared, json=json))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Full URLs (with numbers and keys) are logged at INFO by the HTTP client.
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2", "websockets", "twilio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _formatter(shared: list[Any], *, json: bool) -> logging.Formatter:
    last: list[Any]
    if json:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # The default shows a traceback's local variables: speech, numbers and keys among them.
        plain = structlog.dev.plain_traceback
        colours = sys.stderr.isatty()
        last = [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]
    drop_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[drop_meta, *last, _censor]
    )


def _censor(logger: Any, method: str, rendered: Any) -> str:
    return censored(rendered)
