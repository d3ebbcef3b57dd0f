"""Reports about calls that are not known yet: they can overtake the answer to a dial request.

Anybody who has kept a few of the carrier's callbacks can send those of long gone calls again, so
what waits here is bounded, whatever comes.
"""

from __future__ import annotations

from collections import OrderedDict

from server.carrier import StatusUpdate

MAX_EARLY_UPDATES = 1_000
MAX_EARLY_OF_ONE_CALL = 8
"""A call has four statuses to report, five with an end that is told twice."""


class EarlyUpdates:
    """Status updates by call, the calls that were heard of first going first.

    Args:
        in_all: How many there may be.
        of_one_call: How many one call may have; then its lowest number goes.
    """

    def __init__(
        self, *, in_all: int = MAX_EARLY_UPDATES, of_one_call: int = MAX_EARLY_OF_ONE_CALL
    ) -> None:
        self._in_all = in_all
        self._of_one_call = of_one_call
        self._waiting: OrderedDict[str, list[StatusUpdate]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, update: StatusUpdate) -> None:
        """Keep a report until its call is known; one that is there already is not kept twice."""
        kept = self._waiting.setdefault(update.call_sid, [])
        if any((one.status, _number(one)) == (update.status, _number(update)) for one in kept):
            return
        kept.append(update)
        kept.sort(key=_number)
        self._count += 1
        if len(kept) > self._of_one_call:
            # An end counts whatever its number: it is the last thing to be forgotten.
            kept.remove(next((one for one in kept if not one.status.is_final), kept[0]))
            self._count -= 1
        while self._count > self._in_all:
            _, forgotten = self._waiting.popitem(last=False)
            self._count -= len(forgotten)

    def take(self, call_sid: str) -> list[StatusUpdate]:
        """What was reported about a call, in order; it is forgotten here."""
        updates = self._waiting.pop(call_sid, [])
        self._count -= len(updates)
        return updates


def _number(update: StatusUpdate) -> int:
    return -1 if update.sequence_number is None else update.sequence_number
