"""Which numbers may be dialled: an allow-list, and ranges that cost more than a call should.

Calling premium-rate and satellite numbers with somebody else's account is how toll fraud is paid
out. What kind of number one is, the phonenumbers package knows from the numbering plans.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import phonenumbers
from phonenumbers import PhoneNumberType

PREFIX = re.compile(r"^\+[1-9]\d{0,14}$")

_COSTLY_TYPES = {
    PhoneNumberType.PREMIUM_RATE: "premium-rate numbers",
    PhoneNumberType.SHARED_COST: "shared-cost numbers",
    PhoneNumberType.UAN: "universal access numbers",
    PhoneNumberType.PERSONAL_NUMBER: "personal numbers",
    PhoneNumberType.PAGER: "pagers",
}
# ITU-T E.164, list of assigned country codes: those that belong to networks, not to places. Every
# country's own code, such as Bangladesh's 880 and Taiwan's 886, stays callable.
_COSTLY_CODES = {
    870: "satellite networks",  # Inmarsat
    878: "universal personal numbers",
    881: "satellite networks",  # GMSS: Iridium, Globalstar
    882: "international networks",  # satellite and ship networks among them
    883: "international networks",
    888: "international networks",
    979: "international premium-rate numbers",
}
_TEST_NUMBERS = "+1500555"
"""Twilio's magic numbers: personal numbers by the numbering plan, but no phone rings."""


class Destinations:
    """The policy for outbound calls.

    Args:
        allowed_prefixes: ``+58``, ``+1305`` …; if there are any, nothing else may be dialled.
        refuse_costly: Refuse premium-rate, satellite and similar ranges, except where a prefix
            names the range itself: ``+44`` does not open ``+44 9…``, ``+449`` does.
    """

    def __init__(self, allowed_prefixes: Iterable[str], *, refuse_costly: bool) -> None:
        self._allowed = tuple(allowed_prefixes)
        self._refuse_costly = refuse_costly

    def refusal(self, number: str) -> str | None:
        """Why a number may not be dialled, or None if it may.

        Args:
            number: E.164.
        """
        matching = [prefix for prefix in self._allowed if number.startswith(prefix)]
        if self._allowed and not matching:
            return f"only these prefixes may be called: {', '.join(self._allowed)}"
        if not self._refuse_costly or number.startswith(_TEST_NUMBERS):
            return None
        parsed = phonenumbers.parse(number)
        code = f"+{parsed.country_code}"
        if kind := _COSTLY_CODES.get(parsed.country_code or 0):
            opened = any(prefix.startswith(code) for prefix in matching)
        elif kind := _COSTLY_TYPES.get(phonenumbers.number_type(parsed)):
            opened = any(len(prefix) > len(code) for prefix in matching)
        else:
            return None
        return None if opened else f"{kind} are not called unless ALLOWED_PREFIXES names the range"
