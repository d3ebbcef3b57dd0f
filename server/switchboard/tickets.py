"""Tickets: what a media socket shows to prove whose call it is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from server.call.call import Call
from server.carrier import StreamStarted
from server.pace import Pace

MAX_STREAMS_PER_MIN = 5
"""Of one call whose streams are lost: where none lasts, it is not to go on, and cost, for ever."""
MAX_TICKETS = 5
"""Unused tickets of one call: more than a carrier whose webhook is repeated ever needs."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A media socket has shown the ticket of a call."""

    call: Call
    started: StreamStarted


@dataclass(frozen=True, slots=True)
class _Ticket:
    call: Call
    expires_at: float
    is_again: bool
    """For another stream, after one that has ended."""
    is_unasked: bool = False
    """The carrier is told of it, and does not ask for it."""


class Tickets:
    """Single-use tickets of 128 bits; each is a call's, and expires; no clock.

    Args:
        ttl_s: How long a ticket may wait for its stream.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._tickets: dict[str, _Ticket] = {}
        self._again: dict[Call, Pace] = {}

    def issue(self, call: Call, now: float, *, is_again: bool = False) -> str:
        """A ticket for this call; one that it has already, if it has too many."""
        for name in [name for name, held in self._tickets.items() if held.expires_at <= now]:
            del self._tickets[name]
        unused = self.of(call)
        if len(unused) >= MAX_TICKETS:
            return unused[-1]
        ticket = secrets.token_urlsafe(16)
        self._tickets[ticket] = _Ticket(call, now + self._ttl_s, is_again)
        return ticket

    def issue_again(self, call: Call, now: float) -> str | None:
        """A ticket for a call whose stream has ended; None if too many of its have, lately.

        A question that is repeated gets the ticket that its stream has not come for yet.
        """
        unused = [name for name in self.of(call) if self._tickets[name].is_again]
        if unused and self._tickets[unused[-1]].expires_at > now:
            return unused[-1]
        pace = Pace(MAX_STREAMS_PER_MIN / 60.0, MAX_STREAMS_PER_MIN)
        if not self._again.setdefault(call, pace).allows(now):
            return None
        return self.issue(call, now, is_again=True)

    def issue_unasked(self, call: Call, now: float) -> str | None:
        """A ticket for a stream that the carrier is told to bring, which is never given to it
        otherwise; None if it has asked for one and got it, or too many streams have ended lately.
        """
        if any(self._tickets[name].is_again for name in self.of(call)):
            return None
        ticket = self.issue_again(call, now)
        if ticket is not None:
            self._tickets[ticket] = _Ticket(call, now + self._ttl_s, False, is_unasked=True)
        return ticket

    def use(self, ticket: str, now: float) -> Call | None:
        """The call whose ticket was shown, which is used up by it; None if it is nobody's."""
        held = self._tickets.pop(ticket, None)
        return None if held is None or held.expires_at <= now else held.call

    async def claim(self, started: StreamStarted) -> Call | None:
        """The call that a media socket is for, by the ticket in its start message; None if it has
        no right to any. Waits until the carrier has named the call.
        """
        call = self.use(started.parameters.get("ticket", ""), started.received_at)
        if call is None:
            return None
        if not call.accepted.is_set():
            # The phone may be answered before our own dial request is. Where it was not, there is
            # no wait: who has shown a ticket in time is not late for what we have still to do.
            await call.accepted.wait()
        if call.call_sid != started.call_sid:
            return None
        self.drop(call)  # those of repeated webhooks
        return call

    def drop(self, call: Call) -> None:
        """Forget this call's unused tickets, but one whose stream the carrier may yet bring
        unasked: that is then the newest.
        """
        for name in self.of(call):
            if not self._tickets[name].is_unasked:
                del self._tickets[name]

    def forget(self, call: Call) -> None:
        """The call is over: it has no ticket any more, and gets none."""
        for name in self.of(call):
            del self._tickets[name]
        self._again.pop(call, None)

    def of(self, call: Call) -> list[str]:
        """This call's unused tickets, the oldest first."""
        return [name for name, held in self._tickets.items() if held.call is call]
