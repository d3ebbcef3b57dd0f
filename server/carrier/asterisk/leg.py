"""One call, as Asterisk has told of it: what is known of it, and what it has."""

from __future__ import annotations

from dataclasses import dataclass

from server.carrier import CallStatus, VoiceRequest
from server.carrier.asterisk.steps import Drop, Step, Unfollow

STATES = {"Up": CallStatus.IN_PROGRESS, "Ringing": CallStatus.RINGING, "Ring": CallStatus.RINGING}
"""Of a channel; in any other it has only begun."""


@dataclass(slots=True)
class Leg:
    """One call, as Asterisk has told of it."""

    call_sid: str
    ticket: str = ""
    """That the stream of a call which we have placed is to show, once it is answered."""
    is_outbound: bool = False
    is_dialling: bool = False
    """Asterisk has not yet answered that it knows of the call."""
    is_heard_of: bool = False
    """Asterisk has told something of the call."""
    answered_at: float | None = None
    is_taken_over: bool = False
    """It was answered before it was known here: since when it lasts cannot be told."""
    dial_status: str = ""
    media_id: str = ""
    """The channel of its stream; empty if it has none, or that is not wanted any more."""
    is_open: bool = False
    """Asterisk has answered that it knows of that channel."""
    is_joined: bool = False
    """That channel has come, and is put together with the call's."""
    lacks_stream: bool = False
    """Another was to be opened while the caller was away, or was to be sent away."""
    streams: int = 0
    is_limited: bool = False
    """Asterisk ends the call should nobody here do it."""
    is_away: bool = False
    """The caller is with somebody else, in the dialplan's hands."""
    sent_to: str = ""
    """The number that the caller was last to be sent to: the extension that they are at there."""
    was_sent: bool = False
    """Since the caller was last to be sent there, the app was told that they have left."""
    is_followed: bool = False
    """The app has asked to be told of the call outside its hands, too: once, as Asterisk counts."""
    is_here: bool = False
    """The app was told, or shown, that it has the call in its hands; it may have left since."""
    has_left: bool = False
    """The app has the call in its hands no more, and nobody has sent it away."""
    is_last: bool = False
    """The last words are being said: no more streams."""
    arguments: tuple[str, ...] = ()
    """What the dialplan has told of a call that comes in."""
    unheard: VoiceRequest | None = None
    """Nothing was told of how it came, and its caller still rings: what is asked then, should
    nobody know of it."""
    left_app: str = ""
    """The app of a process that is gone, to which the call comes when it is answered, or its caller
    is back: it has to be fetched from there."""

    @property
    def is_new(self) -> bool:
        """Whether nobody here, or before, has given the caller anything to hear."""
        return not (self.is_outbound or self.streams or self.is_taken_over or self.is_last)

    @property
    def is_in_hand(self) -> bool:
        """Whether the app has the call in its hands, as far as it was told."""
        return self.is_here and not (self.is_away or self.has_left or self.left_app)

    @property
    def is_left_away(self) -> bool:
        """Whether another process has sent the caller away, or was about to when it ended."""
        return self.is_away and self.is_taken_over and not self.streams


def without_stream(leg: Leg) -> list[Step]:
    """What takes a call's stream away, if it has one."""
    media_id, leg.media_id = leg.media_id, ""
    leg.is_open = leg.is_joined = False
    return [Drop(media_id)] if media_id else []


def sent_away(leg: Leg) -> list[Step]:
    """The caller is where we have sent them, though that was taken for failed."""
    leg.has_left, leg.is_away, leg.was_sent = False, True, True
    return without_stream(leg)


def unfollow(leg: Leg) -> list[Step]:
    """What has the app told of a call only while that is in its hands, as it is now."""
    was_followed, leg.is_followed = leg.is_followed, False
    return [Unfollow(leg.call_sid)] if was_followed else []
