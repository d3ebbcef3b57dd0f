"""What is ours, and what of it the registry has yet to be told: no clock, nothing that waits.

There is one thing to say of a call at a time, the newest, so whatever the order in which things
happened, what is written is in order; and what the registry has forgotten is here to be said again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from server.cluster.registry import State

MAX_KEPT_BYTES = 65_536
"""Of the state of one call, which has 2 kB as a rule, or of what is left of it."""
MAX_OVER = 100_000
"""Calls that ended while the registry was away, a day of one a second; beyond that the oldest is
left to the time limit of its key."""


class Write(msgspec.Struct, frozen=True):
    """What is to be said of a call."""

    call_sid: str
    generation: int
    state: State | None
    """What another needs of it; empty if there is nothing to be done, None if it is not new."""
    has_ended: bool
    """Whether that is what is left of a call that has ended."""
    is_over: bool
    is_given_back: bool
    """Whether that is so because it has not begun."""
    change: int
    """Which of all changes it is."""

    @property
    def is_last(self) -> bool:
        """Whether nobody is to go on with the call, and there is no more to say of it."""
        return self.is_over or self.state == b""


@dataclass(slots=True)
class _Call:
    generation: int
    state: State | None = None
    is_left: bool = False
    """The state is what is left of it: it has ended."""
    is_over: bool = False
    is_given_back: bool = False
    """It is over because it has not begun, and may be ours anew."""
    change: int = 0
    is_listed: bool = False
    is_there: bool = False
    """The registry has it, if that has lost nothing since."""
    is_state_new: bool = False
    is_urgent: bool = False
    is_too_large: bool = False

    @property
    def is_done(self) -> bool:
        """Whether nobody is to do anything about it: that is still to be written, or it were not
        here."""
        return self.is_over or self.state == b""


@dataclass(slots=True)
class Lists:
    """Calls to write into a member's list, and to strike off it."""

    join: dict[str, None] = field(default_factory=dict)
    leave: dict[str, None] = field(default_factory=dict)


class Ours:
    """The live calls of one member, and what is new of all; one that has ended is forgotten as soon
    as that is written.
    """

    def __init__(self) -> None:
        self._calls: dict[str, _Call] = {}
        self._new: dict[str, None] = {}
        self._over: dict[str, None] = {}
        self._changes = 0
        self._round: list[str] = []  # to be said again in turn

    @property
    def known(self) -> int:
        """How many calls are told again when the registry has forgotten everything."""
        return len(self._calls)

    @property
    def unsaid(self) -> int:
        """Of how many calls there is something to write."""
        return len(self._new)

    def announce(self, call_sid: str, generation: int) -> None:
        """A call is ours."""
        call = self._ours(call_sid, generation)
        if call is not None and not call.is_done:
            self._changed(call_sid)

    def keep(
        self,
        call_sid: str,
        generation: int,
        state: State,
        *,
        in_haste: bool = False,
        has_ended: bool = False,
    ) -> None:
        """Another process would need this of a call of ours: see :meth:`Registry.keep`."""
        call = self._ours(call_sid, generation)
        if call is None or call.is_done or (call.is_left and state and not has_ended):
            return
        call.state = state
        call.is_left = call.is_left or has_ended
        call.is_state_new = True
        call.is_urgent = call.is_urgent or in_haste
        self._changed(call_sid)

    def release(self, call_sid: str, generation: int, *, has_begun: bool = True) -> None:
        """A call of ours is over, or has not begun: see :meth:`Registry.release`."""
        if (call := self._ours(call_sid, generation)) is None:
            return
        call.is_over = True
        call.is_given_back = not has_begun
        call.state = None
        call.is_state_new = False
        self._over[call_sid] = None
        self._changed(call_sid)
        if len(self._over) > MAX_OVER:
            self.forget(next(iter(self._over)))

    def has_state(self, call_sid: str) -> bool:
        """Whether what another process needs to go on with a call is known."""
        call = self._calls.get(call_sid)
        return call is not None and bool(call.state)

    def is_held(self, call_sid: str, generation: int) -> bool:
        """Whether a call is ours and live with this generation, as far as we know."""
        call = self._calls.get(call_sid)
        return call is not None and not call.is_done and call.generation == generation

    def is_urgent(self, call_sid: str) -> bool:
        """Whether something of a call has not been written that was to be in haste."""
        call = self._calls.get(call_sid)
        return call is not None and call.is_urgent

    def tell_too_large(self, call_sid: str, generation: int) -> bool:
        """A call's state is too large to be kept; returns whether that is new."""
        call = self._ours(call_sid, generation)
        if call is None or call.is_too_large:
            return False
        call.is_too_large = True
        return True

    def forget(self, call_sid: str) -> None:
        """A call is no longer ours to speak of."""
        self._calls.pop(call_sid, None)
        self._new.pop(call_sid, None)
        self._over.pop(call_sid, None)

    def is_there(self, call_sid: str, generation: int) -> bool:
        """Whether the registry has a call, unless it has lost it."""
        call = self._calls.get(call_sid)
        return call is not None and call.generation == generation and call.is_there

    def say_some_again(self, most: int) -> None:
        """Say again of so many calls that they are ours, one after the other; states stay."""
        for _ in range(most):
            if not self._round:
                self._round = list(self._calls)
            call_sid = self._round.pop() if self._round else ""
            if (call := self._calls.get(call_sid)) is not None and not call.is_done:
                call.is_listed = False
                self._changed(call_sid)

    def say_all_again(self, *, is_lost: bool = False) -> None:
        """The registry may have forgotten anything; or it is known that it has."""
        for call_sid, call in self._calls.items():
            call.is_there = call.is_there and not is_lost
            call.is_listed = False
            call.is_state_new = call.state is not None
            self._changed(call_sid)

    def take(self, most: int) -> list[Write]:
        """What is to be written first; it stays here until it :meth:`was_written`."""
        return [self._write(call_sid) for call_sid in islice(self._new, most)]

    def take_of(self, call_sid: str) -> list[Write]:
        """What is to be written of one call; it stays here until it :meth:`was_written`."""
        return [self._write(call_sid)] if call_sid in self._new else []

    def _write(self, call_sid: str) -> Write:
        call = self._calls[call_sid]
        state = call.state if call.is_state_new else None
        return Write(
            call_sid,
            call.generation,
            state,
            call.is_left,
            call.is_over,
            call.is_given_back,
            call.change,
        )

    def lists(self, writes: Sequence[Write]) -> Lists:
        """What changes with them in the list of our calls."""
        lists = Lists()
        for write in writes:
            if write.is_last:
                lists.leave[write.call_sid] = None
            elif not self._calls[write.call_sid].is_listed:
                lists.join[write.call_sid] = None
        return lists

    def was_written(self, write: Write) -> None:
        """The registry has this; what has become new since is still to be written."""
        call = self._calls.get(write.call_sid)
        if call is None or call.generation != write.generation:
            return
        call.is_listed = not write.is_last
        call.is_there = not write.is_given_back
        if call.change != write.change:
            return
        if write.is_last:
            self.forget(write.call_sid)
        else:
            call.is_state_new = call.is_urgent = False
            self._new.pop(write.call_sid, None)

    def was_refused(self, write: Write) -> bool:
        """The registry takes nothing more of this call at this generation, so it is forgotten,
        though it has ended here; returns False for one that is ours anew.
        """
        call = self._calls.get(write.call_sid)
        if call is not None and call.generation != write.generation:
            return False
        self.forget(write.call_sid)
        return True

    def _ours(self, call_sid: str, generation: int) -> _Call | None:
        """The call, made known if it was not; None if what is said of it is out of date."""
        call = self._calls.get(call_sid)
        if call is None or call.generation < generation or call.is_given_back:
            self._over.pop(call_sid, None)
            call = self._calls[call_sid] = _Call(generation)
        elif call.generation > generation or call.is_over:
            return None
        return call

    def _changed(self, call_sid: str) -> None:
        self._changes += 1
        self._calls[call_sid].change = self._changes
        self._new[call_sid] = None
