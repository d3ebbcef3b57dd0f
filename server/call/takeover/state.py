"""What another process needs to go on with a call: words, and how they are written.

Times are of the wall clock: processes do not share trio's. What has been said is in here, as far as
a record would have it, and so is the agent's prompt: whoever keeps states keeps them secret.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from server.agent.agent import DEFAULT_NAME
from server.agent.outcome import MAX_PROPERTIES
from server.carrier import AnsweredBy, CallStatus
from server.errors import ServerError

PLAIN_BYTES = 3_000
"""Of what changes in a state: so little is not worth the time that it takes to be compressed."""
VERSION = b"1"
"""The first byte of a state; goes up when older programs could not read what newer ones write.
Members may be added without that: whoever does not know one leaves it out."""
MAX_STATE_BYTES = 1024 * 1024
"""Of a state as JSON: far more than the longest prompt, and the most labels, that a request may
have."""
MAX_TURNS = 20
MAX_TURN_CHARS = 1_000
"""Of what was said in one turn; the end of it is kept."""
MAX_TOOLS = 32
"""Functions called lately that another process has to know of."""
MAX_PARTS = 99
"""Of a call's recording, as far as they are counted."""
MAX_TOKEN_KINDS = 16
COMPRESSION = 1
"""zlib's fastest: most of a state is a prompt, and the next level takes a third more time to save
a twentieth."""
WINDOW_BITS, MEMORY_LEVEL = 13, 6
"""Of what changes: zlib clears and gives back all the memory that it may use each time, a quarter
of a megabyte of it as a rule, and saves no more by that."""

Short: TypeAlias = Annotated[str, Meta(max_length=256)]
Label: TypeAlias = Annotated[str, Meta(max_length=1_000)]
"""As long as a request may have them."""
Long: TypeAlias = Annotated[str, Meta(max_length=200_000)]
WallTime: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e11)]
"""Seconds since 1970."""
Seconds: TypeAlias = Annotated[float, Meta(ge=-1e9, le=1e9)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Tokens: TypeAlias = Annotated[dict[Short, Count], Meta(max_length=MAX_TOKEN_KINDS)]


class StateTooLong(ServerError):
    """A call has more to keep than anybody would read."""


class StateUnreadable(ServerError):
    """What was kept of a call cannot be read, or is of a version that is not known here."""


class AgentState(msgspec.Struct, frozen=True):
    """The agent as the request changed it; its tools by name."""

    prompt: Long
    greeting: Long
    greeting_text: Long
    farewell: Long
    voicemail: Long
    apology: Long
    voice: Short | None
    language: Short | None
    tools: Annotated[tuple[Short, ...], Meta(max_length=512)]
    has_recording: bool
    """Whether its greeting is a recording that is still to be played; that is not in here."""
    name: Short = DEFAULT_NAME
    model: Short | None = None
    is_recorded: bool = True
    outcome: dict[Short, Any] | None = None
    """The schema of what its calls are to bring, for whoever does not know the agent."""
    events_url: Annotated[str, Meta(max_length=2_000)] | None = None


class TurnState(msgspec.Struct, frozen=True):
    """One turn as it was heard."""

    speaker: Literal["caller", "agent"]
    text: Annotated[str, Meta(max_length=MAX_TURN_CHARS)]
    """Empty where records have no words."""
    at_s: Seconds
    """Since the answer."""
    heard_s: Seconds | None
    cut: bool


class CostState(msgspec.Struct, frozen=True):
    """What the call has come to cost until now."""

    prompt: Tokens
    response: Tokens
    other: Count
    usd: Annotated[float, Meta(ge=0.0, le=1e9)]
    """Of the model, as far as it is known."""
    is_complete: bool
    caller_audio_s: Annotated[float, Meta(ge=0.0, le=1e9)]
    agent_audio_s: Annotated[float, Meta(ge=0.0, le=1e9)]


class ToolState(msgspec.Struct, frozen=True):
    """A function that the model has called since it could be resumed last."""

    id: Short
    name: Short
    is_done: bool


class AwayState(msgspec.Struct, frozen=True):
    """A transfer that is under way: the carrier has the caller, and tells how that went."""

    destination: Short
    number: Short
    is_sure: bool = True
    """Whether the carrier has said that it does it; else it was about to be asked for it."""
    has_failed: bool = False
    """Whether nobody took the call there: the caller is on the way back."""


class MachineState(msgspec.Struct, frozen=True):
    """What is known of who has answered."""

    answered_by: AnsweredBy | None
    stage: Literal["open", "message", "over"]
    was_told: bool = False
    """Whether the model has said that it is a machine."""


class CallState(msgspec.Struct, frozen=True):
    """A call, as far as another process needs it to go on."""

    kept_at: WallTime
    """When this was so."""
    direction: Literal["inbound", "outbound"]
    number: Short
    metadata: Annotated[dict[Label, Label], Meta(max_length=64)]
    client: Short
    traceparent: Short
    agent: AgentState
    created_at: WallTime
    """When it began by the clock of the machine where it did: so its record has it."""
    answered_at: WallTime | None
    ends_at: WallTime | None
    """When it may not go on any longer; None before it is answered."""
    max_duration_s: Annotated[float, Meta(ge=0.0, le=1e9)]
    """How long it may last from the answer."""
    status: CallStatus
    sequence_number: Annotated[int, Meta(ge=-1, le=2**31)]
    """Of the newest status callback."""
    turn: Annotated[int, Meta(ge=0, le=2**31)]
    """The agent's newest."""
    handle: Annotated[str, Meta(max_length=8_192)] | None
    model: Short
    on_fallback: bool
    key_name: Short
    transcript: Annotated[tuple[TurnState, ...], Meta(max_length=MAX_TURNS)]
    greeted: bool
    """Whether the agent has no greeting left to say."""
    first_audio_s: Seconds | None
    """When the agent was first heard, after the answer."""
    costs: CostState
    tools: Annotated[tuple[ToolState, ...], Meta(max_length=MAX_TOOLS)]
    away: AwayState | None
    machine: MachineState | None
    """None for a call that does nothing about machines."""
    recording_parts: Annotated[int, Meta(ge=0, le=MAX_PARTS)]
    outcome: Annotated[dict[Short, Any], Meta(max_length=MAX_PROPERTIES)] = msgspec.field(
        default_factory=dict
    )
    """What the call has brought, by name."""
    turns_before: Count = 0
    """How many turns there were before those of the transcript."""
    turns_told: Count | None = None
    """Of how many in all was told; None, from an older program, for all of them."""
    is_leaving: bool = False
    """Whether the agent has hung up: the call ends when its goodbye was heard."""
    parts_at_s: Annotated[tuple[Seconds | None, ...], Meta(max_length=MAX_PARTS)] = ()
    """When each part of the recording began; see :attr:`recorded_at_s`."""
    began_at: WallTime | None = None
    """When it began by the clock by which all else is told; None from an older program."""

    @property
    def recorded_at_s(self) -> tuple[float | None, ...]:
        """When each part of the recording began, in seconds since the call did; None for those that
        an older program has made, or has taken over from another."""
        known = self.parts_at_s[: self.recording_parts]
        return (*known, *(None,) * (self.recording_parts - len(known)))

    def encode(self) -> bytes:
        """Write it down, in about 2.5 kB; who writes it again and again has a :class:`StateWriter`.

        Raises:
            StateTooLong: It is beyond all bounds.
        """
        members = msgspec.structs.asdict(self)
        writer = StateWriter()
        writer.fix({name: members.pop(name) for name in FIXED})
        return writer.write(members)

    @staticmethod
    def decode(written: bytes) -> CallState:
        """Read what was written, here or elsewhere.

        Raises:
            StateUnreadable: It is something else, is not whole, or a part of it is beyond bounds.
        """
        if written[:1] != VERSION:
            raise StateUnreadable(f"a call's state begins with {VERSION!r}, not {written[:1]!r}")
        try:
            reader = zlib.decompressobj()
            content = reader.decompress(written[1:], MAX_STATE_BYTES)
            if not reader.eof or reader.unused_data:
                raise StateUnreadable("a call's state is cut off, too long, or more than one")
            return _decode(content)
        except (zlib.error, msgspec.MsgspecError, ValueError, RecursionError) as error:
            kind = type(error).__name__  # its words may quote what people said
            raise StateUnreadable(f"a call's state cannot be read: {kind}") from None


_decode = msgspec.json.Decoder(CallState).decode
_decode_agent = msgspec.json.Decoder(AgentState).decode

FIXED = (
    "direction", "number", "metadata", "client", "traceparent", "agent", "created_at",
    "max_duration_s", "began_at",
)  # fmt: skip
"""What of a call hardly ever changes: more than half of its state."""
_HEADER = b"\x78\x01"
"""Of a zlib stream at its fastest level (RFC 1950); blocks of deflate can be put together as they
are, and a checksum goes on over what follows."""


class StateWriter:
    """Writes the states of one call, one after the other; what is fixed is written but once."""

    def __init__(self) -> None:
        self._fixed = b""
        self._checksum = 1
        self._size = 0

    def fix(self, members: Mapping[str, object]) -> None:
        """These members of a state, :data:`FIXED`, are the same from now on.

        Raises:
            StateTooLong: The agent is beyond the bounds of whoever would read it.
        """
        try:
            _decode_agent(msgspec.json.encode(members["agent"]))
        except msgspec.ValidationError as error:  # which says where, and nothing of what is there
            raise StateTooLong(f"the agent of a call is too long to be kept: {error}") from None
        content = msgspec.json.encode(members)[:-1] + b","
        deflate = zlib.compressobj(COMPRESSION, wbits=-zlib.MAX_WBITS)
        self._fixed = deflate.compress(content) + deflate.flush(zlib.Z_FULL_FLUSH)
        self._checksum, self._size = zlib.adler32(content), len(content)

    def write(self, members: Mapping[str, object]) -> bytes:
        """Write a state down; :meth:`fix` has been called.

        Args:
            members: All others of :class:`CallState`; what is JSON already may be ``msgspec.Raw``.

        Raises:
            StateTooLong: It is beyond all bounds.
        """
        content = msgspec.json.encode(members)[1:]
        if (size := self._size + len(content)) > MAX_STATE_BYTES:
            raise StateTooLong(f"a call's state of {size} bytes is too long to be kept")
        checksum = zlib.adler32(content, self._checksum).to_bytes(4, "big")
        return b"".join((VERSION, _HEADER, self._fixed, *_last_block(content), checksum))


def _last_block(content: bytes) -> tuple[bytes, ...]:
    """The end of a stream of deflate (RFC 1951): as it is, if it is short."""
    if (size := len(content)) <= PLAIN_BYTES:
        return b"\x01", size.to_bytes(2, "little"), (size ^ 0xFFFF).to_bytes(2, "little"), content
    deflate = zlib.compressobj(COMPRESSION, wbits=-WINDOW_BITS, memLevel=MEMORY_LEVEL)
    return deflate.compress(content), deflate.flush()


def bounded(text: str, most: int = 256) -> str:
    """Text that somebody else has given, as long as a state takes it."""
    return text if len(text) <= most else text[:most]


def few(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by kind, as many as a state takes."""
    return {bounded(kind): counts[kind] for kind in list(counts)[:MAX_TOKEN_KINDS]}
