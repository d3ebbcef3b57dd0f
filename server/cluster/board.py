"""What the processes of one server tell each other all the time: numbers in memory they share.

Every number has one writer, so there is nothing to lock and nothing to clean up after a process
that has died: each has a row of its own, and a row whose process has not written for a while counts
for nothing.
"""

from __future__ import annotations

import mmap
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

MAX_WORKERS = 64
BEAT_S = 0.1
"""How often each process writes its row, besides whenever its calls change."""
AWAY_S = 1.0
"""Who has not written for so long was held up, and has seen nothing of the others meanwhile."""
SILENT_S = 3.0
"""A process that has not written for so long is gone, or no use for a new call."""

# A row: a few facts, then for each process how many new calls were given to it, and taken from it.
_BEAT, _LIVE, _REQUESTS, _WAITING, _ACCEPTS, _DRAINING, _DIALS_AT, _DIAL_EVERY_S = range(8)
_BORN = 8
_GIVEN = 9
_TAKEN = _GIVEN + MAX_WORKERS
_ROW = _TAKEN + MAX_WORKERS
_NUMBER_BYTES = 8


class Member(NamedTuple):
    """One process of a server. Another may have its number after it, but is born anew."""

    number: int
    born: int

    def __str__(self) -> str:
        return f"{self.number}.{self.born}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what :meth:`__str__` has written.

        Raises:
            ValueError: It is something else.
        """
        number, _, born = text.partition(".")
        return cls(int(number), int(born))


@dataclass(frozen=True, slots=True)
class Load:
    """How one process is doing."""

    live: int = 0
    """Calls that wait to be dialled, ring or talk."""
    running: int = 0
    """Those of them that the carrier has accepted."""
    waiting: int = 0
    """Those that wait for their turn to be dialled."""
    accepts: bool = False
    """Whether it would take the next call."""
    draining: bool = False
    dials_in_s: float = 0.0
    """When it may dial next, if nobody waited."""
    dial_every_s: float = 0.0


class Board:
    """The rows of all processes, and the choice that is made from them.

    Args:
        path: The file they share; made if it is not there.
        number: Which row is ours.
        count: How many processes there can be.
    """

    def __init__(self, path: Path, *, number: int, count: int) -> None:
        size = MAX_WORKERS * _ROW * _NUMBER_BYTES
        with path.open("ab") as file:
            file.truncate(size)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)
        self._numbers = memoryview(self._memory).cast("d")
        self._number = number
        self._count = count
        self._own = number * _ROW
        self._requests = 0
        self._away = 0.0, 0.0  # from when to when we were held up the last time
        for name in range(_GIVEN):
            self._numbers[self._own + name] = 0.0
        # What tells us from who had our number before; as many bits as a float keeps.
        self._numbers[self._own + _BORN] = 1 + secrets.randbits(52)
        for other in range(count):
            # What a process in our place had on its way, or in hand, died with it.
            theirs = other * _ROW
            self._numbers[self._own + _GIVEN + other] = self._numbers[theirs + _TAKEN + number]
            self._numbers[self._own + _TAKEN + other] = self._numbers[theirs + _GIVEN + number]

    def write(self, load: Load) -> None:
        """Say how we are doing."""
        numbers, own, now = self._numbers, self._own, self._now()
        numbers[own + _LIVE] = load.live
        numbers[own + _REQUESTS] = load.running + self._requests
        numbers[own + _WAITING] = load.waiting
        numbers[own + _ACCEPTS] = load.accepts
        numbers[own + _DRAINING] = load.draining
        numbers[own + _DIALS_AT] = now + max(load.dials_in_s, 0.0)
        numbers[own + _DIAL_EVERY_S] = load.dial_every_s
        numbers[own + _BEAT] = now

    def close(self) -> None:
        """Take our row back."""
        self._numbers[self._own + _BEAT] = 0.0
        self._numbers.release()
        self._memory.close()

    def born(self, number: int) -> int:
        """What tells the process that has this number from others that had it, or will."""
        return round(self._numbers[number * _ROW + _BORN])

    # -- the others ------------------------------------------------------------------------

    def is_there(self, number: int) -> bool:
        """Whether a process writes its row."""
        now, (left, back), beat = self._now(), self._away, self._numbers[number * _ROW + _BEAT]
        # While we were held up, perhaps with all the others, nobody's silence counts.
        return now - beat - max(0.0, back - max(left, beat)) < SILENT_S

    def _now(self) -> float:
        """The time; and if we have not written for long, we have just come back."""
        now, written = time.monotonic(), self._numbers[self._own + _BEAT]
        if written and now - written >= AWAY_S:
            left = self._away[0] if self._away[1] >= written else written
            self._away = left, now
        return now

    def others(self) -> list[int]:
        """The processes that are there beside us."""
        return [n for n in range(self._count) if n != self._number and self.is_there(n)]

    def staying(self) -> list[int]:
        """The rows that are in use, without those of processes that are about to end."""
        numbers = self._numbers
        rows = [(n, n * _ROW) for n in range(self._count)]
        return [n for n, row in rows if numbers[row + _BEAT] and not numbers[row + _DRAINING]]

    def live_elsewhere(self) -> int:
        """How many calls the others have."""
        return round(sum(self._numbers[n * _ROW + _LIVE] for n in self.others()))

    def waiting_elsewhere(self) -> int:
        """How many calls wait there to be dialled."""
        return round(sum(self._numbers[n * _ROW + _WAITING] for n in self.others()))

    def accepts_elsewhere(self) -> bool:
        """Whether any of the others would take the next call."""
        return any(self._numbers[n * _ROW + _ACCEPTS] for n in self.others())

    # -- new calls -------------------------------------------------------------------------

    def choose(self, but: frozenset[int] = frozenset()) -> int:
        """Which process is to have the next call: the one that can dial soonest, of these the one
        with the fewest calls, and rather ourselves than another. If none takes calls, ourselves.

        Args:
            but: Those that have just turned out to be gone.
        """
        now = time.monotonic()
        takers = [
            n for n in {self._number, *self.others()} - but if self._numbers[n * _ROW + _ACCEPTS]
        ]
        return min(takers, key=lambda n: self._burden(n, now), default=self._number)

    def _burden(self, number: int, now: float) -> tuple[float, float, bool, int]:
        numbers, row = self._numbers, number * _ROW
        coming = sum(
            numbers[giver * _ROW + _GIVEN + number] - numbers[row + _TAKEN + giver]
            for giver in range(self._count)
        )
        wait_s = max(numbers[row + _DIALS_AT] - now, 0.0)
        wait_s += (numbers[row + _WAITING] + coming) * numbers[row + _DIAL_EVERY_S]
        # A tenth of a second later is no later: it must not outweigh the number of calls.
        return round(wait_s, 1), numbers[row + _REQUESTS] + coming, number != self._number, number

    def give(self, number: int) -> None:
        """A new call is on its way to another process."""
        self._numbers[self._own + _GIVEN + number] += 1

    def take_back(self, number: int) -> None:
        """Count a call no more that was given to a process which was never reached."""
        given = self._own + _GIVEN + number
        if self._numbers[given] > self._numbers[number * _ROW + _TAKEN + self._number]:
            self._numbers[given] -= 1

    def take(self, giver: int | None) -> None:
        """A request for a new call is ours to answer, and may have come from another process."""
        if giver is not None:
            self._numbers[self._own + _TAKEN + giver] += 1
        self._requests += 1
        self._numbers[self._own + _REQUESTS] += 1

    def answered(self) -> None:
        """A request for a new call is answered: from now on its call, if there is one, counts."""
        self._requests -= 1
