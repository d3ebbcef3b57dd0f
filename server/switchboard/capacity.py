"""How many more calls this process can take: by how fast it sets them up, and by what they need.

Decisions alone, without a clock: who asks says what time it is, and what the system has said.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from server.errors import CallRefused

MAX_SETUP_WAIT_S = 4.0
"""A call that would be set up later than this is refused: whoever has called would hear nothing for
so long, and the carrier waits 15 s for a webhook's answer."""
USUAL_PER_S = 50.0
"""Calls that one ordinary core sets up in a second, until it is known better."""
USUAL_COUNT = 20
"""So many set-ups at that rate are what a measurement starts from: a few say little."""
REMEMBERED_S = 5.0
"""What was measured longer ago than this has faded to a third."""
BUSY_SHARE = 0.9
"""A loop that has worked, or waited for a core, for this share of the time has a queue."""
OURS_FOR_S = 20.0
"""Whoever takes longer to be set up waits for somebody else: a phone that rings, a carrier."""
RETRY_S = 2.0

RESERVED_BYTES = 64 * 1024 * 1024
"""Memory kept for calls that there are, for probes, and for what comes from strangers."""
TAKEOVER_RESERVED_BYTES = RESERVED_BYTES // 4
"""The rest is for calls that have lost their process as well: nobody else may have more room."""
USUAL_CALL_BYTES = 1024 * 1024
"""What a call needs until it is known better; a long one's transcript and records included."""
CALL_BYTES = (512 * 1024, 16 * 1024 * 1024)
"""No call needs less than this, and none is taken to need more."""
ENOUGH_CALLS = 20
"""With fewer calls what one of them needs cannot be told from the rest."""

DESCRIPTORS_PER_CALL = 2
"""A media socket and the model's. A recording is a third."""
DESCRIPTORS_PER_SETUP = 6
"""At the most, until it talks: a webhook's connection, a media socket and its duplicate, a dial to
two addresses of the model's, a recording."""


class SetUp(Enum):
    """What has become of one call's set-up."""

    GOES_ON = auto()
    DONE = auto()
    LEFT = auto()
    """The call ended before, or was no use: that says nothing of how fast we are."""


@dataclass(slots=True)
class _Waiting:
    state: Callable[[], SetUp]
    began_at: float


class SetUps:
    """Calls that were admitted and do not talk yet, and how fast they come to it.

    Only while the loop has no rest does a call wait for us; what it waits for at other times is
    the carrier's or the model's, and no reason to refuse another.

    Args:
        max_wait_s: A call that would wait longer is refused.
    """

    def __init__(self, max_wait_s: float = MAX_SETUP_WAIT_S) -> None:
        self._max_wait_s = max_wait_s
        self._waiting: list[_Waiting] = []
        self._done = self._busy_for_s = 0.0
        self._looked_at = self._busy_s = 0.0
        self._is_busy = False

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, state: Callable[[], SetUp], now: float) -> None:
        """A call is admitted.

        Args:
            state: What has become of its set-up until it is asked.
            now: ``trio.current_time() + missed_s()``: our pauses make us no faster.
        """
        self._waiting.append(_Waiting(state, now))

    def look(self, now: float, busy_s: float) -> None:
        """See which are over, a few times a second.

        Args:
            now: ``trio.current_time() + missed_s()``.
            busy_s: What :func:`server.headroom.busy_s` says.
        """
        passed_s, worked_s = now - self._looked_at, busy_s - self._busy_s
        self._looked_at, self._busy_s = now, busy_s
        before, done, still = len(self._waiting), 0, []
        for each in self._waiting:
            state = each.state()
            done += state is SetUp.DONE
            if state is SetUp.GOES_ON and now - each.began_at < OURS_FOR_S:
                still.append(each)
        self._waiting = still
        if passed_s <= 0:
            return
        self._is_busy = worked_s >= BUSY_SHARE * passed_s
        fading = math.exp(-passed_s / REMEMBERED_S)
        self._done *= fading
        self._busy_for_s *= fading
        if self._is_busy and before:
            self._done += done
            self._busy_for_s += passed_s

    @property
    def per_s(self) -> float:
        """How many calls are set up in a second when there is nothing to wait for but us."""
        return (self._done + USUAL_COUNT) / (self._busy_for_s + USUAL_COUNT / USUAL_PER_S)

    @property
    def wait_s(self) -> float:
        """How long the next call would wait for those that have come before it."""
        return len(self._waiting) / self.per_s if self._is_busy else 0.0

    def check(self) -> None:
        """Whether one more call could be served in time.

        Raises:
            CallRefused: It could not.
        """
        if (wait_s := self.wait_s) > self._max_wait_s:
            raise CallRefused(
                f"{len(self)} calls are being set up, and the next would wait {wait_s:.0f} s",
                reason="burst",
                status=503,
                retry_after_s=max(wait_s - self._max_wait_s, RETRY_S),
            )


# ------------------------------------------------------------------------------------------
# What calls need


def fitting_calls(descriptors: int | None, in_use: int, *, records_calls: bool) -> float:
    """How many calls there are descriptors for.

    Args:
        descriptors: How many there may be, without those that are kept back; None for any number.
        in_use: How many the process has without a call.
        records_calls: Whether calls are recorded.

    Returns:
        At least 1; infinity for any number.
    """
    if descriptors is None:
        return math.inf
    per_call = DESCRIPTORS_PER_CALL + records_calls
    return max(1, (descriptors - in_use - DESCRIPTORS_PER_SETUP) // per_call)


LOOKS = 3
"""Descriptors are short when they are at so many looks: many who come at once have some until the
idle ones that make room for them are closed."""


class Room:
    """What is left of descriptors and memory, as it was seen last.

    Args:
        descriptors: How many there may be, without those that are kept back; None for any number.
    """

    def __init__(self, descriptors: int | None = None) -> None:
        self._descriptors = descriptors
        self._in_use: deque[float] = deque((0.0,), maxlen=LOOKS)
        self._left_bytes: float = math.inf
        self._call_bytes = USUAL_CALL_BYTES
        self._before_bytes: int | None = None
        self._most_calls = 0
        self._limit = ""

    def see_descriptors(self, lowest_free: int | None) -> None:
        """All below this number are in use; None: all of them are."""
        self._in_use.append(math.inf if lowest_free is None else lowest_free)

    def see_memory(self, left_bytes: int, used_bytes: int, limit: str, calls: int) -> None:
        """How much is left of what allows the least, and how much so many calls have.

        What ended calls had is not always given back to the system: it is there for the next ones.
        While there are fewer than there were, no more is known than what each has at least.
        """
        self._left_bytes, self._limit = left_bytes, limit
        if self._before_bytes is None or calls == 0:
            self._before_bytes, self._most_calls = used_bytes, 0
        elif calls >= ENOUGH_CALLS:
            self._most_calls = max(self._most_calls, calls)
            each = (used_bytes - self._before_bytes) // self._most_calls
            if calls < self._most_calls:
                each = max(each, self._call_bytes)
            self._call_bytes = min(max(each, CALL_BYTES[0]), CALL_BYTES[1])

    def check(self, setups: int, *, reserved_bytes: int = RESERVED_BYTES) -> None:
        """Whether there is what one more call needs.

        Args:
            setups: Calls that do not have all that they need yet.
            reserved_bytes: What is not for this call.

        Raises:
            CallRefused: There is not.
        """
        if self._descriptors is not None:
            needed = (setups + 1) * DESCRIPTORS_PER_SETUP
            if min(self._in_use) + needed > self._descriptors:
                raise CallRefused(
                    "there are not enough file descriptors for one more call (raise ulimit -n)",
                    reason="descriptors",
                    status=503,
                    retry_after_s=10,
                )
        if self._left_bytes < reserved_bytes + (setups + 1) * self._call_bytes:
            raise CallRefused(
                f"there is not enough memory for one more call (the {self._limit}'s limit)",
                reason="memory",
                status=503,
                retry_after_s=10,
            )
