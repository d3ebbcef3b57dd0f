"""What a function has returned, as the model is told it: bounded before it is looked at whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import msgspec
import structlog
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_RESULT_BYTES = 32 * 1024
"""Of a result as JSON: the whole context is billed again with every turn, and nobody listens to
more than this."""
MAX_OBJECT_BYTES = 4 * MAX_RESULT_BYTES
"""Of all that is in a result's dataclasses and models, what they leave out of their JSON included:
this much is written within a few milliseconds, which calls can wait on the event loop."""


class ToolError(Exception):
    """Something the model should know about: the message is told to it, and to nobody else."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a function has returned, and how it is told."""

    value: object
    """As it was returned; what came from an iterator is a list."""
    output: Any
    """As JSON says it, at most :data:`MAX_RESULT_BYTES` long."""


def written(value: object) -> Result:
    """Write what a function has returned as JSON, where the function has run.

    A generator is run here, like any iterator: its body is the function's own, and may wait for
    what that may wait for. It is left alone as soon as it has given more than can be told.

    Raises:
        ToolError: It cannot be told.
    """
    kind = type(value).__name__
    try:
        value = _Room(MAX_RESULT_BYTES).listed(value)
    except _TooLong:
        raise _too_long(MAX_RESULT_BYTES + 1) from None
    except RecursionError as error:
        raise _unreadable(kind, error) from None
    if is_too_big(value, MAX_RESULT_BYTES):
        raise _too_long(MAX_RESULT_BYTES + 1)
    if is_too_big(value, MAX_OBJECT_BYTES, with_objects=True):
        raise _too_long(MAX_OBJECT_BYTES + 1)
    try:
        output = to_jsonable_python(value, by_alias=True)
        size_bytes = len(msgspec.json.encode({"output": output}))
    except (
        PydanticSerializationError,
        UnicodeError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise _unreadable(kind, error) from None
    if size_bytes > MAX_RESULT_BYTES:
        raise _too_long(size_bytes)
    return Result(value, output)


def _too_long(least_bytes: int) -> ToolError:
    logger.error("tool result is too long", least_bytes=least_bytes, limit_bytes=MAX_RESULT_BYTES)
    return ToolError("the function was run, but what it returned is too long to be read")


def _unreadable(kind: str, error: Exception) -> ToolError:
    logger.error("tool result cannot be written as JSON", result=kind, error=type(error).__name__)
    return ToolError("the function was run, but what it returned cannot be read")


def is_too_big(value: object, most_bytes: int, *, with_objects: bool = False) -> bool:
    """Whether a value takes more than so many bytes as JSON, found out without writing it.

    Args:
        value: What would be written.
        most_bytes: As much as it may take.
        with_objects: Look into dataclasses and models, too, at all that would be written of them.
    """
    left, rest = most_bytes, [value]
    while rest and left >= 0:
        one = rest.pop()
        left -= 2  # a digit or a bracket, and the comma
        if isinstance(one, str | bytes | bytearray):
            left -= len(one)
        elif isinstance(one, dict | list | tuple | set | frozenset | deque):
            if len(one) > left:
                return True
            rest += [*one.keys(), *one.values()] if isinstance(one, dict) else one
        elif with_objects and isinstance(one, BaseModel):
            told = (name for name, its in type(one).model_fields.items() if not its.exclude)
            rest += [vars(one).get(name) for name in told]  # the rest may lead back to it
            rest += (one.model_extra or {}).values()
        elif with_objects and is_dataclass(one):
            rest += [getattr(one, part.name, None) for part in fields(one)]
    return left < 0


class _TooLong(Exception):
    """It is longer than can be told."""


class _Room:
    """Counts what a value takes as JSON, at least, and makes lists of the iterators in it."""

    def __init__(self, left_bytes: int) -> None:
        self._left_bytes = left_bytes

    def listed(self, value: Any) -> Any:
        """The value with lists in the place of iterators.

        Raises:
            _TooLong: There is no room for it.
        """
        self._take(2)  # a digit or a bracket, and the comma
        if isinstance(value, str):
            self._take(len(value))
        elif type(value) is dict:
            return {name: self.listed(of) for name, of in value.items()}
        elif type(value) is tuple:
            return tuple([self.listed(one) for one in value])
        elif type(value) is list or isinstance(value, Iterator):
            return [self.listed(one) for one in value]
        return value

    def _take(self, size_bytes: int) -> None:
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise _TooLong
