"""Who answers the phone: the first file to edit.

An :class:`Agent` is what the model is told before the call. ``AGENT_PROMPT``, ``GEMINI_VOICE`` and
the other settings fill the default one, ``AGENTS`` names others (``roster/``), and ``POST
/make-call`` may change any of them for a single call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from server.agent.outcome import OutcomeSchema
    from server.agent.tool import Tool
    from server.settings.settings import Settings

DEFAULT_NAME = "default"
"""The agent that the process's own settings describe."""

DEFAULT_PROMPT = (
    "You are a friendly assistant on a telephone call. You hear the caller through a telephone, "
    "so speak plainly, keep each answer to one or two short sentences, and never use lists, "
    "markup or emoji. If you did not understand, say so and ask."
)
DEFAULT_GREETING = "The caller has just picked up. Greet them in one short sentence."
DEFAULT_FAREWELL = (
    "The call has to end now. Say goodbye to the caller in one short sentence, and nothing else."
)


@dataclass(frozen=True, slots=True)
class Agent:
    """What the model is told before a call, and how it speaks."""

    prompt: str = DEFAULT_PROMPT
    """The system instruction."""
    greeting: str = DEFAULT_GREETING
    """The instruction that makes the model speak first; empty for an agent that waits."""
    greeting_text: str = ""
    """What it says first, word for word; with a recording, the words that are in it."""
    greeting_audio: bytes = b""
    """A recorded greeting, mu-law at 8 kHz, that is played in place of the model's."""
    thinking_sound: bytes = field(default=b"", repr=False)
    """What is heard in the silence while it is at work, mu-law at 8 kHz, over and over."""
    farewell: str = DEFAULT_FAREWELL
    """The instruction that makes the model say goodbye; empty to hang up without a word."""
    voicemail: str = ""
    """What it leaves on an answering machine, word for word; empty for words of the model's own."""
    apology: str = ""
    """What the carrier says if the model fails for good; empty for our own words."""
    voice: str | None = None
    """A prebuilt voice such as ``"Kore"``; None for the model's own choice."""
    language: str | None = None
    """A BCP 47 tag such as ``"es-VE"``; None lets the model follow the caller."""
    turn_end: Literal["service", "local"] = "service"
    """Who tells where the caller's turns begin and end: the model's service, or our own ear."""
    events_url: str | None = None
    """Who is told of its calls; None for whoever is told of all (``EVENTS_URL``)."""
    tools: tuple[Tool, ...] = ()
    """Functions the model may call: see ``server/agent/tool.py``."""
    name: str = DEFAULT_NAME
    """What requests and records call it."""
    numbers: tuple[str, ...] = ()
    """The numbers of ours whose callers it answers; ``*`` for all that are nobody else's."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What ``{{name}}`` in its texts stands for, where the call does not say."""
    model: str | None = None
    """The model it speaks with; None for the process's."""
    settings: Settings | None = field(default=None, repr=False, compare=False)
    """Those of its calls; None for the process's."""
    outcome: OutcomeSchema | None = field(default=None, repr=False)
    """What its calls are to bring, as data."""
    is_recorded: bool = True
    """Whether its calls are recorded, where any are."""
