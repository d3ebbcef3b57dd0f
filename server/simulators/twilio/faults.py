"""What goes wrong on Twilio's side: faults by name, and the requests that they fail."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from server.simulators.twilio.refusals import ApiRefusal


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on Twilio's side; by default nothing."""

    callback_delay_s: float = 0.0
    """How much later than what they tell status callbacks come."""
    callback_copies: int = 1
    """How often each is posted; with more than one, all come once more at the end, last first."""
    callbacks: bool = True
    """Whether status callbacks are posted at all."""
    busy_for_s: float | None = None
    """From the first request to place a call on, all are answered 429 for so long, with the rest of
    it in ``Retry-After``."""
    failed_dials: int = 0
    """Requests to place a call that are answered 503 before one is taken."""
    failed_updates: int = 0
    """The same of requests to end a call or to send it another document."""
    cut_after_s: float | None = None
    """How long the agent has been heard when the first stream of a call breaks off."""
    comes_back: bool = True
    """Whether the server can be reached after that; if not, the call waits for a word over REST."""
    abrupt_end_ends_call: bool = False
    """Whether a stream that breaks off ends its call. Twilio runs the next verb when the server
    *closes* the stream; what it does when the socket just goes is documented nowhere."""
    updates_wait: bool = False
    """Whether a document that comes over REST waits for one that is being fetched, for a
    ``<Redirect>`` for instance, instead of overtaking it. Documented nowhere, too."""


FAULTS: Mapping[str, Faults] = {
    "healthy": Faults(),
    "late-callbacks": Faults(callback_delay_s=3.0),
    "duplicate-callbacks": Faults(callback_copies=3),
    "no-callbacks": Faults(callbacks=False),
    "too-many-requests": Faults(busy_for_s=2.0),
    "twilio-5xx": Faults(failed_updates=2),
    "twilio-5xx-dial": Faults(failed_dials=1),
    "line-lost": Faults(cut_after_s=2.0),
    "line-lost-for-good": Faults(cut_after_s=2.0, comes_back=False),
    "line-lost-ends-call": Faults(cut_after_s=2.0, abrupt_end_ends_call=True),
}
"""By the name the settings know them under."""


class RequestFaults:
    """Fails as many requests of the REST API as the faults want.

    Attributes:
        dial_requests: Requests to place a call that were not answered 503.
    """

    def __init__(self, faults: Faults) -> None:
        self.dial_requests = 0
        self._faults = faults
        self._failed_dials = 0
        self._failed_updates = 0
        self._busy_until: float | None = None

    @property
    def has_been_busy(self) -> bool:
        """True once requests to place a call were answered 429, or would have been."""
        return self._busy_until is not None

    def check_dial(self) -> None:
        """Let a request to place a call fail if it is to.

        Raises:
            ApiRefusal: It is.
        """
        if self._failed_dials < self._faults.failed_dials:
            self._failed_dials += 1
            raise ApiRefusal(503, 20503, "Service unavailable")
        self.dial_requests += 1
        if self._faults.busy_for_s is not None:
            now = trio.current_time()
            if self._busy_until is None:
                self._busy_until = now + self._faults.busy_for_s
            if now < self._busy_until:
                wait_s = math.ceil(self._busy_until - now)
                raise ApiRefusal(429, 20429, "Too many requests", retry_after_s=wait_s)

    def check_update(self) -> None:
        """Let a request to change a call fail if it is to.

        Raises:
            ApiRefusal: It is.
        """
        if self._failed_updates < self._faults.failed_updates:
            self._failed_updates += 1
            raise ApiRefusal(503, 20503, "Service unavailable")
