"""ARI's events, as much of them as is of use here, without a connection.

Texts in them are of any length: whoever keeps one shortens it, as nobody's name or number is a
reason to lose the call that it comes with. What bounds a whole event is its connection.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from server.carrier.protocol import UNREADABLE

EVENTS = (
    "StasisStart",
    "StasisEnd",
    "ChannelStateChange",
    "ChannelDestroyed",
    "Dial",
    "PlaybackFinished",
    "ApplicationMoveFailed",
    "ApplicationReplaced",
    "ChannelUserevent",
)
"""All that have to be told."""


class Party(Struct):
    """Who calls."""

    number: str = ""


class Dialplan(Struct):
    """Where a channel is in the dialplan."""

    exten: str = ""
    app_name: str = ""
    app_data: str = ""


class Channel(Struct):
    """A channel, and how it stands."""

    id: str
    state: str = ""
    caller: Party = msgspec.field(default_factory=Party)
    dialplan: Dialplan = msgspec.field(default_factory=Dialplan)


class Playback(Struct):
    """Something that is played."""

    id: str


class UserEvent(Struct):
    """What one app tells another."""

    app: str = ""


class Event(Struct):
    """One event."""

    type: str
    channel: Channel | None = None
    peer: Channel | None = None
    """Of a dial: who is dialled."""
    caller: Channel | None = None
    """Of a dial: who dials, if that is a channel."""
    args: list[str] = []
    dialstatus: str = ""
    cause: int = 0
    tech_cause: int = 0
    playback: Playback | None = None
    eventname: str = ""
    """Of a user event: what its sender calls it."""
    userevent: UserEvent | None = None


class _BareChannel(Struct):
    id: str


class _BareEvent(Struct):
    type: str
    channel: _BareChannel | None = None


_decode = msgspec.json.Decoder(Event, strict=False).decode
_decode_bare = msgspec.json.Decoder(_BareEvent).decode


def read_event(message: str | bytes) -> Event | None:
    """Read one event; of one that is otherwise than it should be, what it is and whose.

    Returns:
        None if not even that can be read.
    """
    try:
        return _decode(message)
    except UNREADABLE:
        pass
    try:
        bare = _decode_bare(message)
    except UNREADABLE:
        return None
    return Event(bare.type, None if bare.channel is None else Channel(bare.channel.id))
