"""The model's side of a call: its words, and what a model has to offer.

A model makes one :class:`Session` per call: caller audio goes in, agent audio and the rest of the
conversation's events come out. ``gemini/`` has connections to Gemini Live; ``lasting/`` makes one
session of as many connections as a call needs.

Turns are numbered by the session, from 1: every event that belongs to an agent turn carries its
number, so that audio which arrives after the turn was cut can be told from the next turn's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Any, Literal, Protocol

import msgspec

from server.agent.agent import Agent
from server.media.words import SoundPath

CALLER_RATE_HZ = 16_000
"""Rate of the pcm given to :meth:`Session.send_audio` (gemini-live: native input rate)."""
AGENT_RATE_HZ = 24_000
"""Rate of the pcm in :class:`AgentAudio` (gemini-live: output is always 24 kHz)."""


class AgentAudio(msgspec.Struct, frozen=True):
    """A chunk of what the agent says, usually much faster than real time."""

    pcm: bytes
    """Signed 16-bit little-endian mono samples at 24 kHz; any number of them."""
    turn: int
    received_at: float
    """``trio.current_time()`` when the message was read."""


class Interrupted(msgspec.Struct, frozen=True):
    """The model heard the caller speak over this turn and has dropped the rest of it."""

    turn: int
    received_at: float


class GenerationComplete(msgspec.Struct, frozen=True):
    """Every piece of this turn's audio has been sent; absent in an interrupted turn."""

    turn: int


class TurnComplete(msgspec.Struct, frozen=True):
    """The turn is over as the model sees it: about a playing time after the last audio."""

    turn: int
    reason: str | None
    """The service's word for an unusual end (``"RESPONSE_REJECTED"`` …), else None; our own is
    ``"CONNECTION_LOST"``: no more of this turn will come."""
    more: bool = False
    """The model is still at work on its answer: another turn comes by itself."""


class Working(msgspec.Struct, frozen=True):
    """The model says, apart from a turn's end, whether it is at work on more to say."""

    is_on: bool


class CallerTranscript(msgspec.Struct, frozen=True):
    """A piece of what the model's recogniser understood of the caller; best effort, unordered."""

    text: str


class AgentTranscript(msgspec.Struct, frozen=True):
    """A piece of the text of this turn; leads its audio by up to seconds."""

    text: str
    turn: int


class ToolCall(msgspec.Struct, frozen=True):
    """One function the model wants run; the answer must carry the same id."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    refusal: str = ""
    """Why the function must not be run, to be told to the model; "" if it may."""


class ToolCallsRequested(msgspec.Struct, frozen=True):
    """The model waits for the answers to all of these."""

    calls: tuple[ToolCall, ...]
    turn: int
    """Which may end without a word: the answer is then the turn after the results."""
    ends_turn: bool = False
    """Whether it always ends with the calls, however late its end is told. Else the model may go on
    with it, and what it says about the results is the next turn here all the same."""


class ToolCallsCancelled(msgspec.Struct, frozen=True):
    """The model no longer wants these answers; answering anyway is an error."""

    ids: tuple[str, ...]


class ToolResult(msgspec.Struct, frozen=True):
    """Our answer to one :class:`ToolCall`."""

    id: str
    name: str
    response: Mapping[str, Any]
    """``{"output": …}`` or ``{"error": …}``; never empty."""


UNSPECIFIED = "MODALITY_UNSPECIFIED"
"""The modality of tokens whose own was not told, in the service's own word."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens the service counted, by direction and modality (``"AUDIO"``, ``"TEXT"`` …).

    The counts of one turn may be told several times while they grow: the last ones are the turn's.
    """

    prompt_tokens: Mapping[str, int]
    """Input, what tools have read, and the whole history: billed again in every turn."""
    response_tokens: Mapping[str, int]
    total_tokens: int
    """May be more than the sum of the others, and may leave thoughts out."""
    turn: int = 0
    """The agent turn these are the counts of."""
    thoughts_tokens: int = 0
    """What the model thought before it spoke."""
    complete: bool = True
    """False if a count was there that cannot be one."""


class GoingAway(msgspec.Struct, frozen=True):
    """The connection will be closed by the service in this many seconds."""

    time_left_s: float


class ResumptionHandle(msgspec.Struct, frozen=True):
    """The session's newest handle, or None while it cannot be resumed."""

    handle: str | None


class Way(StrEnum):
    """How a conversation goes on over a new connection, the gentlest first."""

    RESUME = "resume"
    """The service goes on with the session it has kept; it remembers everything."""
    FRESH = "fresh"
    """A new session that is told what has been said so far."""
    FALLBACK = "fallback"
    """A new session with another model, key or region, for the rest of the call."""


PLANNED = frozenset({"age", "go-away"})
"""Reasons to change the connection before it fails."""
SMOOTH_GAP_S = 2.0
"""Longer than that, whoever speaks notices that nobody answers."""


class Reconnected(msgspec.Struct, frozen=True):
    """The conversation goes on over a new connection; every reconnect gives exactly one."""

    reason: str
    """Why, in a short stable word: ``"age"``, ``"go-away"``, ``"closed-1011"``, or the word that
    :meth:`Session.reconnect` was given."""
    way: Way
    model: str
    gap_s: float
    """From the end of the old connection to the new one's being ready."""
    lost_s: float
    """Caller audio that could not be kept meanwhile."""
    repeated_s: float = 0.0
    """Caller audio that the model is given once more, because it had not answered it."""
    words_repeated: bool = False
    """Whether :class:`CallerTranscript` events will report words again that have been reported, and
    all of them since the last answer."""

    @property
    def is_smooth(self) -> bool:
        """Whether the old connection had only served its time, and nobody noticed the change."""
        return self.reason in PLANNED and self.gap_s <= SMOOTH_GAP_S and not self.lost_s


SessionEvent = (
    AgentAudio
    | Interrupted
    | GenerationComplete
    | TurnComplete
    | Working
    | CallerTranscript
    | AgentTranscript
    | ToolCallsRequested
    | ToolCallsCancelled
    | Usage
    | GoingAway
    | ResumptionHandle
    | Reconnected
)


EventListener = Callable[[SessionEvent], None]
"""Called with each event the moment it has come; must not wait for anything."""


class PastTurn(msgspec.Struct, frozen=True):
    """Something that has been said in this call, to tell a fresh session."""

    speaker: Literal["caller", "agent"]
    text: str
    """As it was heard: an agent's turn up to where the caller cut it."""


def spoken(turns: Sequence[PastTurn]) -> str:
    """Write turns down for a model, one a line."""
    return "\n".join(
        f"{'You' if turn.speaker == 'agent' else 'Caller'}: {turn.text}" for turn in turns
    )


class Standing(msgspec.Struct, frozen=True):
    """How far a session has come, for another process that is to go on with it."""

    turn: int = 0
    """The newest agent turn."""
    handle: str | None = None
    """What the service would resume it with; None if it would not."""
    model: str = ""
    on_fallback: bool = False
    key_name: str = ""
    """Which of the keys the handle belongs to: the setting's name, not the key."""
    done: tuple[str, ...] = ()
    """Names of functions that another process has run since the handle came."""
    interrupted: tuple[str, ...] = ()
    """Names of functions that were running when the other process was gone."""
    in_first_words: bool = True
    """Whether the call tells the model of these functions with its first words, and the session
    sees to it only that this is not forgotten with a connection; else the session tells it."""


class Conversation(Protocol):
    """What a session asks of the call it serves."""

    def is_quiet(self) -> bool:
        """Whether neither side can be heard now, and neither waits for a word of the other's.

        That is the moment for changing connections. The session itself sees to the rest: no turn
        of the model's under way, no tool call open, and something to resume with.
        """
        ...

    def history(self) -> Sequence[PastTurn]:
        """What has been said so far, oldest first."""
        ...


class Session(Protocol):
    """One conversation with the model, over as many connections as it takes.

    It exists before it is connected: what it is told meanwhile waits, caller audio for as long as a
    bound allows. No sending waits for anything; events are pushed to the listener it was made with.
    """

    async def run(self) -> None:
        """Connect, and keep connected, until cancelled.

        Raises:
            ModelSetupRefused: The service refused the set-up; trying again will not help.
            ModelQuotaExceeded: The account's quota is used up.
            ModelError: The service could not be reached, or the session is lost for good.
        """
        ...

    async def wait_ready(self) -> None:
        """Wait until the service has taken the first connection and its set-up."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the service has ever been reached, so that somebody has heard what was sent."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection just now, so that what is sent need not wait for one."""
        ...

    @property
    def standing(self) -> Standing:
        """How far it has come."""
        ...

    @property
    def lost_s(self) -> float:
        """Seconds of caller audio that had to make room for newer before it was ever sent."""
        ...

    def leave(self) -> None:
        """The call is over, and :meth:`run` with it: push nothing more, and let go of the call."""
        ...

    def join(self, relay: SoundPath) -> None:
        """Let the relay's path send caller audio, and take agent audio while it is followed.

        Done once, by the call; what the path needs to know of connections is seen to here, and
        whether there can be any such thing.
        """
        ...

    @property
    def is_drained(self) -> bool:
        """Whether all that has come has been told, so that audio may be followed."""
        ...

    def note_passed(self) -> None:
        """Write down what the path has sent meanwhile."""
        ...

    def send_audio(self, pcm: bytes) -> bool:
        """Send caller audio: signed 16-bit little-endian mono at 16 kHz.

        Returns:
            Whether it is on its way; if not it waits, behind what waits already.
        """
        ...

    def caller_begins(self, before_s: float) -> None:
        """The caller has begun to speak; only for an agent whose turns are told (``turn_end``).

        Outside of turns the model is sent no audio, where it bears that.

        Args:
            before_s: How much of the audio before this belongs to the turn.
        """
        ...

    def caller_ends(self) -> None:
        """The caller's turn is over, and the model may answer; nothing if it is in none."""
        ...

    @property
    def text_interrupts(self) -> bool:
        """Whether text may cut off what the model is about to say: then it is not sent in haste."""
        ...

    def send_text(self, text: str) -> None:
        """Say something to the model out of band, as the caller's side (a nudge, a key press)."""
        ...

    def send_note(self, text: str) -> bool:
        """Tell the model something that it is not to answer; what it is saying is cut off.

        Returns:
            False if this model has no way to be told, or no connection just now: a note is for
            now or never.
        """
        ...

    def send_tool_results(self, results: tuple[ToolResult, ...]) -> None:
        """Answer tool calls; each id exactly once."""
        ...

    async def reconnect(self, way: Way, reason: str) -> bool:
        """Go on over a new connection, because the model at the end of this one is of no use.

        Returns when the new connection is ready; what the model has not answered yet is said to
        it again, and a :class:`Reconnected` event comes. While a reconnect is under way already,
        that one is waited for.

        Args:
            way: What to try; if resuming fails, a fresh session takes its place.
            reason: A short stable word for the timeline and the metrics, such as ``"no-reply"``.

        Returns:
            False if there is no such way, and nothing was done: the session cannot be resumed, or
            no fallback is set or it is in use already.
        """
        ...


class Reader(Protocol):
    """Reads what was said in a call that is over; it blocks, so it is asked in threads."""

    def read(self, schema: Mapping[str, Any], transcript: str) -> Mapping[str, Any]:
        """Fill in, of a JSON Schema, what the transcript says; what it does not is left out.

        Raises:
            ModelError: The service refused, failed, or answered with something else.
        """
        ...


class Model(Protocol):
    """Makes sessions."""

    @property
    def name(self) -> str:
        """The model's name, such as ``"gemini-3.8-live"``."""
        ...

    def new_session(
        self,
        agent: Agent,
        conversation: Conversation,
        on_event: EventListener,
        going_on: Standing | None = None,
    ) -> Session:
        """Make the session of one call; it connects when it is run.

        Args:
            agent: Who answers the phone.
            conversation: The call it serves.
            on_event: Told of every event.
            going_on: How far it had come in another process, which is gone: it is resumed, or
                else a fresh one is told what has been said, and a :class:`Reconnected` event says
                which.
        """
        ...


class ModelAccount(Protocol):
    """A model with the key that it is asked with, as far as it takes to see whether it is there."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def key_name(self) -> str:
        """What the key's setting is called."""
        ...

    def of_model(self, name: str) -> ModelAccount:
        """The same key with another model."""
        ...

    def open_connection(self, agent: Agent) -> AbstractAsyncContextManager[object]:
        """One connection that is set up for an agent; closed when the block ends.

        Raises:
            ModelError: It could not be reached, or the set-up was refused.
        """
        ...
