"""Events of a process's calls: told by whoever has the calls, kept, and handed on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from server.events.delivery import Delivery
from server.events.event import CallTold, Kind, outbox_event, payload_of
from server.events.handlers import Handler, Handling
from server.metrics import Metrics
from server.records.store import Records
from server.settings.events import check_url

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Events:
    """Takes what has happened to calls; nothing here waits, or costs a call anything.

    Args:
        records: Has the outbox.
        metrics: The process's metrics.
        url: The receiver of calls that name no other; None for none.
        keys: What events are signed with; without any, none is sent.
        allow_private: Receivers may be in our own network, and without TLS.
        turns: Whether receivers are told of each turn; handlers that want to be are.
        public_url: Says what links begin with.
        handlers: The user's functions.

    Attributes:
        delivery: Sends what is in the outbox.
        handling: Calls the handlers.
    """

    def __init__(
        self,
        *,
        records: Records,
        metrics: Metrics,
        url: str | None = None,
        keys: Sequence[bytes] = (),
        allow_private: bool = False,
        turns: bool = False,
        public_url: Callable[[], str] = lambda: "",
        handlers: Sequence[Handler] = (),
    ) -> None:
        self._records = records
        self._url = url
        self._keys = keys
        self._allow_private = allow_private
        self._turns = turns
        self._public_url = public_url
        self._last_at = 0.0
        self.handling = Handling(handlers, metrics)
        self.delivery = Delivery(records, keys, metrics=metrics, allow_private=allow_private)

    @property
    def are_sent(self) -> bool:
        """Whether there may be any to be sent."""
        return bool(self._keys)

    def url_problem(self, url: str) -> str | None:
        """What is wrong with the address of a receiver that a request names."""
        if not self._keys:
            return "needs EVENTS_SECRET, which events are signed with"
        try:
            check_url(url, allow_private=self._allow_private)
        except ValueError as error:
            return str(error)
        return None

    def is_wanted(self, kind: Kind, url: str | None) -> bool:
        """Whether anybody wants to be told this of a call that names this receiver, or none."""
        return bool(self._receiver(kind, url)) or self.handling.wants(kind)

    def _receiver(self, kind: Kind, url: str | None) -> str | None:
        if not self._keys or (kind == "call.turn" and not self._turns):
            return None
        return url or self._url

    def tell(self, kind: Kind, told: CallTold, url: str | None = None) -> None:
        """Something has happened to a call.

        Args:
            kind: What.
            told: The call.
            url: The call's own receiver; None for the usual one.
        """
        receiver = self._receiver(kind, url)
        if not receiver and not self.handling.wants(kind):
            return
        # Whatever the clock does, what happens later is later.
        at = self._last_at = max(time.time(), self._last_at + 1e-6)
        payload = payload_of(kind, told, at=at, public_url=self._public_url().rstrip("/"))
        self.handling.tell(kind, told.call_sid, payload)
        if receiver:
            self._records.tell(outbox_event(kind, told, payload, at=at, url=receiver))
