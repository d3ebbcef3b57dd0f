"""Turns of connections: what clients bring is handed on one after the other, kind by kind.

Whoever reads a request and does at once what it asks for would, in a burst, hold up everything
else for as long as the burst takes. So each waits for a turn, and between two turns trio's other
tasks have one, too. Kinds of requests take turns with each other: the media socket of a call that
was admitted does not wait behind hundreds of calls that have just come, nor does a probe.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

import trio

from server.hooks.trio_clock import missed_s

HEAD_BYTES = 4096
"""Looked through for an upgrade; the carrier's head has some 400."""


MAX_TURN_S = 8.0
"""A request to do something that has waited longer is left: the carrier gives a webhook 15 s, and
what is answered after that was done in vain. It counts our own pauses: so does the carrier."""
BEHIND_S = 1.0
"""Where a request has waited for so long, whoever expects it may have to wait longer, too."""
REMEMBERED = 16
"""Turns of a kind whose distance is what the next ones' will be."""


class Kind(Enum):
    """What has come, as its first bytes tell it; anybody may claim to be of any kind."""

    UPGRADE = auto()
    """The head of a request for a WebSocket."""
    LOOK = auto()
    """The head of a request that changes nothing: a probe's among others."""
    REST = auto()
    """More of what was begun before: a body."""
    ACT = auto()
    """The head of any other request: a webhook, a call to be placed."""

    @classmethod
    def of(cls, data: bytes | bytearray) -> Kind:
        """Judge what one read has brought; a guess, which decides about the order alone."""
        if data.startswith((b"GET ", b"HEAD ")):
            is_upgrade = b"\nupgrade:" in bytes(data[:HEAD_BYTES]).lower()
            return cls.UPGRADE if is_upgrade else cls.LOOK
        return cls.ACT if data.startswith((b"POST ", b"OPTIONS ")) else cls.REST


@dataclass(slots=True, eq=False)
class _Waiting:
    since: float
    over: trio.Event = field(default_factory=trio.Event)
    is_late: bool = False


class Turns:
    """One turn after the other; the kinds that wait take turns, and within each the oldest is next.

    A flood of one kind holds up its own kind, and each other by no more than a turn.
    """

    def __init__(self) -> None:
        self._waiting: dict[Kind, deque[_Waiting]] = {kind: deque() for kind in Kind}
        self._kinds = deque(Kind)
        self._is_taken = False
        self._given_at = dict.fromkeys(Kind, -math.inf)
        self._apart_s = dict.fromkeys(Kind, 0.0)
        self._behind_at = -math.inf

    def wait_s(self, kind: Kind) -> float:
        """How long the next one of a kind would wait for its turn, as things have gone lately."""
        return len(self._waiting[kind]) * self._apart_s[kind]

    def since_behind_s(self) -> float:
        """How long ago a request last was behind, waiting for its turn for :data:`BEHIND_S` or in
        vain: 0 while one is, infinity if none ever was.
        """
        now = _now()
        oldest = min((each[0].since for each in self._requests() if each), default=now)
        return 0.0 if now - oldest >= BEHIND_S else now - self._behind_at

    def _requests(self) -> Iterator[deque[_Waiting]]:
        return (self._waiting[kind] for kind in (Kind.UPGRADE, Kind.ACT))

    async def take(self, kind: Kind) -> bool:
        """Wait for a turn, and use it; there is a pass of trio's scheduler between two of them.

        Returns:
            False if it came too late to be of any use: then it is still somebody else's.
        """
        if self._is_taken and not await self._wait(kind):
            return False
        self._is_taken = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._give_on()
        return True

    async def _wait(self, kind: Kind) -> bool:
        waiting = self._waiting[kind]
        if not waiting:
            self._given_at[kind] = trio.current_time()  # nobody has waited until now
        own = _Waiting(_now())
        waiting.append(own)
        try:
            await own.over.wait()
        except BaseException:
            if own in waiting:
                waiting.remove(own)
            elif not own.is_late:
                self._give_on()
            raise
        return not own.is_late

    def _give_on(self) -> None:
        now = _now()
        if self.since_behind_s() <= 0.0:
            self._behind_at = now
        late = self._waiting[Kind.ACT]
        while late and now - late[0].since > MAX_TURN_S:
            late[0].is_late = True
            late.popleft().over.set()
        for _ in range(len(self._kinds)):
            kind = self._kinds[0]
            self._kinds.rotate(-1)
            if waiting := self._waiting[kind]:
                self._note(kind)
                waiting.popleft().over.set()
                return
        self._is_taken = False

    def _note(self, kind: Kind) -> None:
        now = trio.current_time()  # a pause of ours says nothing of how long the next ones take
        apart_s = now - self._given_at[kind]
        self._apart_s[kind] += (apart_s - self._apart_s[kind]) / REMEMBERED
        self._given_at[kind] = now


def _now() -> float:
    """The world's time: what we miss, others wait."""
    return trio.current_time() + missed_s()


_turns: trio.lowlevel.RunVar[Turns] = trio.lowlevel.RunVar("turns of connections")


def shared_turns() -> Turns:
    """Those of this event loop."""
    try:
        return _turns.get()
    except LookupError:
        turns = Turns()
        _turns.set(turns)
        return turns
