"""What each family of Gemini Live models accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import structlog

from server.model.gemini.endpoint import Platform

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
    ends_turn_at_call: bool = False
    """Whether the turn that calls a function ends with that: the answer is the next turn."""
    proactivity: bool = False
    affective_dialog: bool = False
    transcription_options: bool = False
    """Whether the transcription settings may contain anything, such as ``languageCodes``."""
    takes_turns: bool = False
    """Whether it is documented to be told where the caller's turns begin and end."""
    history_by: Literal["clientContent", "systemInstruction"] = "clientContent"
    """What tells a new session of what has been said: turns before any other input
    (``historyConfig``), or, where the first audio turn ignores those, the instruction."""
    has_vertex_fields: bool = False
    """Whether ``explicitVadSignal`` may be sent, which only Vertex AI knows; and ``labels`` may
    not, which only the other one takes at set-up."""


DIALECTS = (
    Dialect(
        name="gemini-3.8-live",
        text_by="realtimeInput",
        takes_notes=True,
        tool_behaviors=frozenset({"BLOCKING", "NON_BLOCKING"}),
        # Non-blocking is this model's default, and its results are spoken unreliably.
        default_tool_behavior="BLOCKING",
        ends_turn_at_call=True,
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
        ends_turn_at_call=True,
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
def dialect_of(model: str, platform: Platform = "developer") -> Dialect:
    """Find the dialect of a model, the nearest one for a name never heard of.

    Args:
        model: A model's name, with or without ``models/`` or a Vertex path before it.
        platform: Whose model it is: not everything is understood on both.

    An unknown name is a warning, once, and not an error: new names come more often than new
    dialects, and if the guess is wrong the service says so at set-up.
    """
    name = model.rpartition("/")[2]
    for alias, family in _ALIASES.items():
        if name.startswith(alias):
            name = family + name.removeprefix(alias)
    known = [dialect for dialect in DIALECTS if name.startswith(dialect.name)]
    if known:
        return _on(platform, max(known, key=lambda dialect: len(dialect.name)))

    def nearness(dialect: Dialect) -> tuple[int, int]:
        return _shared(name, dialect.name), _shared(name[::-1], dialect.name[::-1])

    nearest = max(DIALECTS, key=nearness)
    logger.warning("unknown model, treated as its nearest family", model=name, as_=nearest.name)
    return _on(platform, nearest)


def _on(platform: Platform, dialect: Dialect) -> Dialect:
    """A dialect as it is spoken on a platform."""
    if platform == "developer":
        return dialect
    # Sources disagree whether historyConfig is known on Vertex AI: the instruction always is.
    spoken = replace(dialect, has_vertex_fields=True, history_by="systemInstruction")
    if dialect.name.startswith("gemini-2.5"):  # where functions have no behavior there
        spoken = replace(spoken, tool_behaviors=frozenset(), default_tool_behavior=None)
    return spoken


def _shared(one: str, other: str) -> int:
    """Count the characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
