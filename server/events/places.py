"""How many events are on their way to whom: whoever answers has more places. No clock.

A receiver that hangs holds each of its places until the deadline, and a request for a call may name
any receiver. So one that has left its last event without an answer has few places, and all those
together that do not answer promptly have no more than a part.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

PER_TARGET, PER_SILENT = 8, 2
"""Events that are on their way to one receiver: to one that answers, and to any other."""
PROMPT_S = 2.0
"""Whoever answers within this is in nobody's way."""
SLOW_PART = 0.5
"""Of all places, what all those together may have that are not known to answer promptly."""
MAX_REMEMBERED = 500
"""Receivers of which it is known how they answer; those of the longest ago are forgotten."""


class Places:
    """The events that are on their way, by receiver.

    Args:
        count: How many there may be.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._busy: Counter[str] = Counter()
        self._is_prompt: OrderedDict[str, bool] = OrderedDict()

    def copy(self) -> Places:
        """The same, for somebody who finds out in another thread what there is room for."""
        copied = Places(self._count)
        copied._busy = self._busy.copy()
        copied._is_prompt = self._is_prompt.copy()
        return copied

    def answers(self, target: str) -> bool:
        """Whether a receiver has answered to the last event that it was sent."""
        return target in self._is_prompt

    @property
    def full(self) -> Sequence[str]:
        """The receivers that are sent nothing more just now."""
        return [target for target in self._busy if not self._has_room(target)]

    @property
    def only(self) -> Sequence[str] | None:
        """The receivers that there is any room for; None if it is not a matter of who they are."""
        slow = sum(count for one, count in self._busy.items() if not self._is_prompt.get(one))
        if slow < self._count * SLOW_PART:
            return None
        return [target for target, is_prompt in self._is_prompt.items() if is_prompt]

    def take(self, target: str) -> bool:
        """Have an event on its way to a receiver, if there is room for it; whether there was."""
        is_slow = not self._is_prompt.get(target)
        if not self._has_room(target) or (is_slow and self.only is not None):
            return False
        self.began(target)
        return True

    def began(self, target: str) -> None:
        """An event is on its way, whether or not there would be room for it by now."""
        self._busy[target] += 1

    def give_back(self, target: str) -> None:
        """An event is not on its way any more."""
        self._busy[target] -= 1
        if not self._busy[target]:
            del self._busy[target]

    def learn(self, target: str, answered_s: float | None) -> None:
        """A receiver has answered after so many seconds; None if it has not."""
        self._is_prompt.pop(target, None)
        if answered_s is None:
            return
        self._is_prompt[target] = answered_s <= PROMPT_S
        if len(self._is_prompt) > MAX_REMEMBERED:
            self._is_prompt.popitem(last=False)

    def _has_room(self, target: str) -> bool:
        return self._busy[target] < (PER_TARGET if self.answers(target) else PER_SILENT)
