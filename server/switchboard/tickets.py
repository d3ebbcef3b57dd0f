"""Tickets: what a media socket shows to prove whose call it is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from server.call.call import Call

MAX_TICKETS = 5
"""Unused tickets of one call: more than a carrier whose webhook is repeated ever needs."""


@dataclass(frozen=True, slots=True)
class _Ticket:
    call: Call
    expires_at: float


class Tickets:
    """Single-use tickets of 128 bits; each is a call's, and expires; no clock.

    Args:
        ttl_s: How long a ticket may wait for its stream.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._tickets: dict[str, _Ticket] = {}

    def issue(self, call: Call, now: float) -> str:
        """A ticket for this call; one that it has already, if it has too many."""
        for name in [name for name, held in self._tickets.items() if held.expires_at <= now]:
            del self._tickets[name]
        unused = self.of(call)
        if len(unused) >= MAX_TICKETS:
            return unused[-1]
        ticket = secrets.token_urlsafe(16)
        self._tickets[ticket] = _Ticket(call, now + self._ttl_s)
        return ticket

    def use(self, ticket: str, now: float) -> Call | None:
        """The call whose ticket was shown, which is used up by it; None if it is nobody's."""
        held = self._tickets.pop(ticket, None)
        return None if held is None or held.expires_at <= now else held.call

    def drop(self, call: Call) -> None:
        """Forget this call's unused tickets."""
        for name in self.of(call):
            del self._tickets[name]

    def of(self, call: Call) -> list[str]:
        """This call's unused tickets, the oldest first."""
        return [name for name, held in self._tickets.items() if held.call is call]
