"""What the processes of one server tell each other all the time: numbers in memory they share.

Every number has one writer, so there is nothing to lock and nothing to clean up after a process
that has died: each has a row of its own, and a row whose process has not written for a while counts
for nothing.
"""

from __future__ import annotations

import mmap
import secrets
import time
from pathlib import Path

from server.cluster.choosing import Candidate
from server.cluster.registry import Load

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


class Board:
    """The rows of all processes, and the choice that is made from them.

    Args:
        path: The file they share; made if it is not there.
        number: Which row is ours.
        count: How many processes there can be.

    Raises:
        OSError: There is no room for it.
    """

    def __init__(self, path: Path, *, number: int, count: int) -> None:
        size = MAX_WORKERS * _ROW * _NUMBER_BYTES
        with path.open("ab", buffering=0) as file:
            # Written, and not only made so long: to use memory that a full disk has no room for
            # would end the process, without a word.
            while (left := size - file.tell()) > 0:
                file.write(bytes(left))
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
        # While we were held up, perhaps with all the others, nobody's silence counts.
        return self.age_s(number) < SILENT_S

    def _now(self) -> float:
        """The time; and if we have not written for long, we have just come back."""
        now, written = time.monotonic(), self._numbers[self._own + _BEAT]
        if written and now - written >= AWAY_S:
            left = self._away[0] if self._away[1] >= written else written
            self._away = left, now
        return now

    def others(self) -> list[int]:
        """The processes that are there beside us."""
        return [n for n in self.ever_there() if self.is_there(n)]

    def staying(self) -> list[int]:
        """The rows that are in use, without those of processes that are about to end."""
        numbers = self._numbers
        rows = [(n, n * _ROW) for n in range(self._count)]
        return [n for n, row in rows if numbers[row + _BEAT] and not numbers[row + _DRAINING]]

    def ever_there(self) -> list[int]:
        """The processes beside us that have not said that they go: some may be gone."""
        beats = self._numbers[_BEAT : self._count * _ROW : _ROW].tolist()
        return [n for n, beat in enumerate(beats) if beat and n != self._number]

    def age_s(self, number: int) -> float:
        """How long a process has written nothing, the time left out in which nobody could."""
        now, (left, back), beat = self._now(), self._away, self._numbers[number * _ROW + _BEAT]
        return now - beat - max(0.0, back - max(left, beat))

    def load(self, number: int) -> Load:
        """What a process has written."""
        numbers, row = self._numbers, number * _ROW
        return Load(
            live=round(numbers[row + _LIVE]),
            running=round(numbers[row + _REQUESTS]),
            waiting=round(numbers[row + _WAITING]),
            accepts=bool(numbers[row + _ACCEPTS]),
            draining=bool(numbers[row + _DRAINING]),
            dials_in_s=max(numbers[row + _DIALS_AT] - time.monotonic(), 0.0),
            dial_every_s=numbers[row + _DIAL_EVERY_S],
        )

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

    def candidate(self, number: int, name: str) -> Candidate:
        """A process, ours or another that is there, as one that could have the next call."""
        numbers, row = self._numbers, number * _ROW
        # One that its giver counts no more may be taken all the same, and is no fewer than none.
        # What one that was killed had on its way nobody is left to count off.
        given = (
            (giver, numbers[giver * _ROW + _GIVEN + number] - numbers[row + _TAKEN + giver])
            for giver in range(self._count)
        )
        coming = sum(
            calls
            for giver, calls in given
            if calls > 0.0 and (giver == self._number or self.is_there(giver))
        )
        wait_s = max(numbers[row + _DIALS_AT] - time.monotonic(), 0.0)
        wait_s += (numbers[row + _WAITING] + coming) * numbers[row + _DIAL_EVERY_S]
        return Candidate(
            name,
            accepts=bool(numbers[row + _ACCEPTS]),
            calls=numbers[row + _REQUESTS] + coming,
            dial_wait_s=wait_s,
            is_other=number != self._number,
            order=number,
        )

    def give(self, number: int) -> None:
        """A new call is on its way to another process."""
        self._numbers[self._own + _GIVEN + number] += 1

    def take_back(self, number: int) -> None:
        """Count a call no more that was given to a process which was never reached."""
        given = self._own + _GIVEN + number
        if self._numbers[given] > self._numbers[number * _ROW + _TAKEN + self._number]:
            self._numbers[given] -= 1

    def settle(self, number: int, under_way: int) -> None:
        """Count no more calls as on their way to another process than there can be.

        Args:
            number: That process's.
            under_way: How many of the requests for them that we have sent there are unanswered;
                it may have taken each of them, or not yet.
        """
        taken = self._numbers[number * _ROW + _TAKEN + self._number]
        given = self._own + _GIVEN + number
        self._numbers[given] = max(min(self._numbers[given], taken + under_way), taken)

    def take(self, giver: int | None) -> None:
        """A request for a new call is ours to answer, and may have come from another process."""
        if giver is not None:
            self._numbers[self._own + _TAKEN + giver] += 1
        self._requests += 1
        self._numbers[self._own + _REQUESTS] += 1

    def answered(self) -> None:
        """A request for a new call is answered: from now on its call, if there is one, counts."""
        self._requests -= 1
