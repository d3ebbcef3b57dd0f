"""What each family of Gemini Live models accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import structlog

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one family of models accepts: a single unsupported field ends the session with 1007."""

    name: str
    """Every model whose name starts with this speaks the dialect."""
    text_by: Literal["realtimeInput", "clientContent"]
    """The message that carries text, which is also what makes the model speak first."""
    takes_notes: bool = False
    """Whether ``clientContent`` without ``turnComplete`` adds to the conversation in mid-call."""
    thinking_fields: frozenset[str] = frozenset()
    """What ``thinkingConfig`` may contain; empty: it must not be sent."""
    thinking_levels: frozenset[str] = frozenset()
    default_thinking: Mapping[str, object] | None = None
    tool_behaviors: frozenset[str] = frozenset()
    """Values of a function's ``behavior`` that may be sent; empty: the field must not be."""
    default_tool_behavior: str | None = None
    proactivity: bool = False
    affective_dialog: bool = False
    transcription_options: bool = False
    """Whether the transcription settings may contain anything, such as ``languageCodes``."""
    takes_turns: bool = False
    """Whether it is documented to be told where the caller's turns begin and end."""
    history_by: Literal["clientContent", "systemInstruction"] = "clientContent"
    """What tells a new session of what has been said: turns before any other input
    (``historyConfig``), or, where the first audio turn ignores those, the instruction."""


DIALECTS = (
    Dialect(
        name="gemini-3.8-live",
        text_by="realtimeInput",
        takes_notes=True,
        tool_behaviors=frozenset({"BLOCKING", "NON_BLOCKING"}),
        # Non-blocking is this model's default, and its results are spoken unreliably.
        default_tool_behavior="BLOCKING",
        transcription_options=True,
        takes_turns=True,
    ),
    Dialect(
        name="gemini-3.8-live-extended-thinking",
        text_by="realtimeInput",
        takes_notes=True,
        thinking_fields=frozenset({"thinkingLevel", "includeThoughts"}),
        thinking_levels=frozenset({"LOW", "MEDIUM", "HIGH"}),
        default_thinking={"thinkingLevel": "LOW"},
        tool_behaviors=frozenset({"NON_BLOCKING"}),
        transcription_options=True,
    ),
    Dialect(
        name="gemini-3.1-flash-live",
        text_by="realtimeInput",
        # Its documents disagree about clientContent in mid-call: no notes.
        thinking_fields=frozenset({"thinkingLevel", "includeThoughts"}),
        # No default: an explicit level often gives empty generations on this model.
        thinking_levels=frozenset({"MINIMAL", "LOW", "MEDIUM", "HIGH"}),
        takes_turns=True,
    ),
    Dialect(
        name="gemini-2.5-flash-native-audio",
        text_by="clientContent",
        takes_notes=True,
        thinking_fields=frozenset({"thinkingBudget", "includeThoughts"}),
        default_thinking={"thinkingBudget": 0},
        tool_behaviors=frozenset({"BLOCKING", "NON_BLOCKING"}),
        proactivity=True,
        affective_dialog=True,
        takes_turns=True,
        history_by="systemInstruction",
    ),
)
"""Newest first: of equally near families an unknown name gets the first."""
_ALIASES = {"gemini-live-2.5-flash": "gemini-2.5-flash"}
"""Vertex's word order for the same family."""


@cache
def dialect_of(model: str) -> Dialect:
    """Find the dialect of a model, the nearest one for a name never heard of.

    Args:
        model: A model's name, with or without ``models/`` or a Vertex path before it.

    An unknown name is a warning, once, and not an error: new names come more often than new
    dialects, and if the guess is wrong the service says so at set-up.
    """
    name = model.rpartition("/")[2]
    for alias, family in _ALIASES.items():
        if name.startswith(alias):
            name = family + name.removeprefix(alias)
    known = [dialect for dialect in DIALECTS if name.startswith(dialect.name)]
    if known:
        return max(known, key=lambda dialect: len(dialect.name))

    def nearness(dialect: Dialect) -> tuple[int, int]:
        return _shared(name, dialect.name), _shared(name[::-1], dialect.name[::-1])

    nearest = max(DIALECTS, key=nearness)
    logger.warning("unknown model, treated as its nearest family", model=name, as_=nearest.name)
    return nearest


def _shared(one: str, other: str) -> int:
    """Count the characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
