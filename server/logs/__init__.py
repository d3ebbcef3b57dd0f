"""Structured logs: one JSON line per event in production, readable lines on a terminal.

Nothing anyone said, no phone number in full and no key is ever a field: :func:`masked` is how a
number is shown.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog
import trio

from server.logs import output
from server.logs.output import QueuedStream


def masked(number: str) -> str:
    """A phone number as logs may show it: country prefix and the last two digits.

    >>> masked("+584125551234")
    '+58*******34'
    """
    if number == "browser":  # which is nobody's number
        return number
    if len(number) < 7:
        return "*" * len(number)
    return f"{number[:3]}{'*' * (len(number) - 5)}{number[-2:]}"


class Sparing:
    """How often warnings are logged, so that strangers cannot fill a disk with them.

    Args:
        every_s: In this time there is one line of a kind; the others are counted.
        lines: How many lines there are in it of all kinds together.
    """

    def __init__(self, every_s: float = 10.0, *, lines: int = 1) -> None:
        self._every_s = every_s
        self._lines = lines
        self._next_at = -math.inf
        self._logged: set[str] = set()
        self._unlogged: Counter[str] = Counter()

    def may_log(self, now: float, kind: str = "") -> bool:
        """Whether to log this one."""
        if now >= self._next_at:
            self._next_at = now + self._every_s
            self._logged.clear()
        if kind not in self._logged and len(self._logged) < self._lines:
            self._logged.add(kind)
            return True
        if kind in self._unlogged or len(self._unlogged) < MAX_KINDS:
            self._unlogged[kind] += 1
        return False

    def take_unlogged(self, kind: str = "") -> int:
        """How many of this kind were not logged since the last time."""
        return self._unlogged.pop(kind, 0)

    def log(
        self, now: float, log: Callable[..., Any], event: str, *, kind: str = "", **facts: Any
    ) -> None:
        """Log this one or count it; its line says how many of its kind were not logged.

        Args:
            now: The time.
            log: A logger's method for the level wanted, such as ``logger.warning``.
            event: The message, a fixed text.
            kind: See :class:`Sparing`.
            facts: The line's fields, ``exc_info`` among them; ``unlogged`` is added.
        """
        if self.may_log(now, kind):
            log(event, unlogged=self.take_unlogged(kind), **facts)


MAX_KINDS = 100
"""Kinds of lines of which it is known how many were not logged."""
STRANGERS_LINES = 10
"""Lines in ten seconds of all that strangers can cause."""
_strangers_lines: trio.lowlevel.RunVar[Sparing] = trio.lowlevel.RunVar("strangers' lines")


def log_stranger(log: Callable[..., Any], event: str, *, kind: str = "", **facts: Any) -> None:
    """Log what anybody can cause as often as they like; of all that, a few lines in ten seconds.

    Args:
        log: A logger's method for the level wanted, such as ``logger.warning``.
        event: The message, a fixed text.
        kind: Of each kind there is one line in ten seconds; the message itself if empty. Nothing
            that comes from outside, or there is no end to kinds.
        facts: The line's fields, ``exc_info`` among them. ``unlogged`` is added: how many lines of
            this kind there would have been since the last one.
    """
    try:
        lines = _strangers_lines.get()
    except LookupError:
        lines = Sparing(lines=STRANGERS_LINES)
        _strangers_lines.set(lines)
    lines.log(trio.current_time(), log, event, kind=kind or event, **facts)


_NUMBER = re.compile(r"(?:\+|%2[bB])\d{7,15}\b")
_SECRET = re.compile(
    r"(?i)(key|token|secret|password|authorization)="
    # Quotes, and a scheme, as in headers that OpenTelemetry cannot read and shows. A quote with
    # nothing behind it may be the end of a JSON text.
    r"(?:\\?[\"'](?=\w))?(?:(?:basic|bearer) )?[^&\s\"'\\]+"
)
"""A value by its name, or by the end of its name: ``api_key``, ``tavilyApiKey``."""


def censored(text: str) -> str:
    """A log line without what must not be in it, whoever wrote it there.

    Our own lines have none of it; other packages' messages, carriers' error texts and tracebacks
    are not ours to write.
    """
    text = _NUMBER.sub(lambda match: masked(match[0].replace("%2B", "+").replace("%2b", "+")), text)
    return _SECRET.sub(r"\1=***", text)


class _Lines(logging.StreamHandler[Any]):
    """Lines on stderr; where a disk is full, they are lost in silence.

    They are formatted by whoever logs, though a thread writes them: formatted there, they would
    hold up the event loop for as long, at moments that are nobody's choice.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if not isinstance(stream := self.stream, QueuedStream):
            super().emit(record)
            return
        try:
            stream.write_line(self.format(record))
        except Exception:  # as every handler of logging's: a line never costs what it tells of
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        # Python's own way is a traceback of the failure, to the same full disk: milliseconds of
        # every call's time for each line.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def say_dropped(self, lines: int) -> str:
        """Make the line that stands in the place of lines that could not be written."""
        level, text = logging.WARNING, "log lines dropped: whoever reads them is too slow"
        record = logging.LogRecord(output.__name__, level, __file__, 0, text, (), None)
        record.lines = lines
        return f"{self.format(record)}\n"


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
    output.say_dropped_by(handler.say_dropped)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)  # they are lines like all others
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
        foreign_pre_chain=[*shared, _add_lines], processors=[drop_meta, *last, _censor]
    )


def _add_lines(logger: Any, method: str, event: Any) -> Any:
    if (lines := getattr(event["_record"], "lines", None)) is not None:
        event["lines"] = lines
    return event


def _censor(logger: Any, method: str, rendered: Any) -> str:
    return censored(rendered)
