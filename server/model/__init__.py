"""The model's side of a call: its words, and what a model has to offer.

A model opens one :class:`Session` per call: caller audio goes in, agent audio and the rest of the
conversation's events come out. ``gemini.py`` is the real one; ``simulator.py`` is a small Gemini
Live server that speaks the same protocol over loopback sockets.

Turns are numbered by the session, from 1: every event that belongs to an agent turn carries its
number, so that audio which arrives after the turn was cut can be told from the next turn's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from server.agent import Agent

CALLER_RATE_HZ = 16_000
"""Rate of the pcm given to :meth:`Session.send_audio` (gemini-live: native input rate)."""
AGENT_RATE_HZ = 24_000
"""Rate of the pcm in :class:`AgentAudio` (gemini-live: output is always 24 kHz)."""


@dataclass(frozen=True, slots=True)
class AgentAudio:
    """A chunk of what the agent says, usually much faster than real time."""

    pcm: bytes
    """Signed 16-bit little-endian mono samples at 24 kHz; any number of them."""
    turn: int
    received_at: float
    """``trio.current_time()`` when the message was read."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The model heard the caller speak over this turn and has dropped the rest of it."""

    turn: int
    received_at: float


@dataclass(frozen=True, slots=True)
class GenerationComplete:
    """Every piece of this turn's audio has been sent; absent in an interrupted turn."""

    turn: int


@dataclass(frozen=True, slots=True)
class TurnComplete:
    """The turn is over as the model sees it: about a playing time after the last audio."""

    turn: int
    reason: str | None
    """The service's word for an unusual end (``"RESPONSE_REJECTED"`` …), else None."""


@dataclass(frozen=True, slots=True)
class CallerTranscript:
    """A piece of what the model's recogniser understood of the caller; best effort, unordered."""

    text: str


@dataclass(frozen=True, slots=True)
class AgentTranscript:
    """A piece of the text of this turn; leads its audio by up to seconds."""

    text: str
    turn: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One function the model wants run; the answer must carry the same id."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCallsRequested:
    """The model waits for the answers to all of these."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class ToolCallsCancelled:
    """The model no longer wants these answers; answering anyway is an error."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """Our answer to one :class:`ToolCall`."""

    id: str
    name: str
    response: Mapping[str, Any]
    """``{"output": …}`` or ``{"error": …}``; never empty."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens the service counted, by direction and modality (``"AUDIO"``, ``"TEXT"`` …).

    The counts of one turn may be told several times while they grow: the last ones are the turn's.
    """

    prompt_tokens: Mapping[str, int]
    """Input and the whole history: billed again in every turn."""
    response_tokens: Mapping[str, int]
    total_tokens: int
    """May be more than the sum of the others: thoughts, and what tools read."""
    turn: int = 0
    """The agent turn these are the counts of."""


@dataclass(frozen=True, slots=True)
class GoingAway:
    """The connection will be closed by the service in this many seconds."""

    time_left_s: float


@dataclass(frozen=True, slots=True)
class ResumptionHandle:
    """The session's newest handle, or None while it cannot be resumed."""

    handle: str | None


SessionEvent = (
    AgentAudio
    | Interrupted
    | GenerationComplete
    | TurnComplete
    | CallerTranscript
    | AgentTranscript
    | ToolCallsRequested
    | ToolCallsCancelled
    | Usage
    | GoingAway
    | ResumptionHandle
)


class Session(Protocol):
    """One conversation with the model. One task receives; sending is safe from any task."""

    async def receive(self) -> SessionEvent:
        """Wait for the next event; a message with several fields gives several events in order.

        Raises:
            ModelError: The service closed or lost the session.
        """
        ...

    async def send_audio(self, pcm: bytes) -> None:
        """Send caller audio: signed 16-bit little-endian mono at 16 kHz.

        Raises:
            ModelError: The session is closed.
        """
        ...

    async def send_text(self, text: str) -> None:
        """Say something to the model out of band, as the caller's side (a nudge, a key press)."""
        ...

    async def send_tool_results(self, results: tuple[ToolResult, ...]) -> None:
        """Answer tool calls; each id exactly once."""
        ...


class Model(Protocol):
    """Opens sessions."""

    @property
    def name(self) -> str:
        """The model's name, such as ``"gemini-3.8-live"``."""
        ...

    def open_session(self, agent: Agent) -> AbstractAsyncContextManager[Session]:
        """Connect, set the agent up, wait until the service is ready; close when the block ends.

        Raises:
            ModelSetupRefused: The service refused the set-up; trying again will not help.
            ModelError: It could not be reached, or closed before it was ready.
        """
        ...
