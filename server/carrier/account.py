"""A carrier's account beside its calls: how it stands, and what its numbers do when called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

TRUNK = "a SIP trunk"


@dataclass(frozen=True, slots=True)
class AccountState:
    """How an account stands, as its carrier says."""

    found: str
    """What is there: ``"Asterisk 22.10"``, ``"the account is active"``."""
    advice: str = ""
    """What to do, if no calls can be made like this."""
    doubt: str = ""
    """What to know, if some calls cannot."""


@dataclass(frozen=True, slots=True)
class NumberHooks:
    """Where a carrier asks and reports when one of the account's numbers is called."""

    voice_url: str
    """What is to happen with the call; empty if nobody is asked."""
    status_url: str
    """That it is over."""
    voice_method: str = "POST"
    """How it is asked: ``GET`` or ``POST``."""
    status_method: str = "POST"


@dataclass(frozen=True, slots=True)
class OwnNumber:
    """A number of the account's."""

    name: str
    """The carrier's name for it."""
    number: str
    """E.164."""
    hooks: NumberHooks
    takes_calls: bool = True
    """Whether it can be called at all: some numbers are for messages only."""
    answered_by: str = ""
    """Whose settings count instead of the hooks, such as :data:`TRUNK`; empty for the hooks."""


class Numbers(Protocol):
    """The numbers of an account, where a carrier has them to be set."""

    @property
    def ours(self) -> NumberHooks:
        """What a number has that this server answers."""
        ...

    async def find(self, number: str) -> OwnNumber | None:
        """Look one up; None if it is not the account's.

        Raises:
            CarrierError: Refused or not reached.
        """
        ...

    async def set_hooks(self, number: OwnNumber, hooks: NumberHooks) -> OwnNumber:
        """Have a number's callers asked about elsewhere; returns how it is then.

        Raises:
            CarrierError: Refused or not reached.
        """
        ...
