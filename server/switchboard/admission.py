"""Whether and when a call may be placed, decided before anybody's phone rings.

Lines, model sessions and the event loop are gates: a call passes or is refused. The carrier's
rate is a queue: a call waits for its turn, and clients take turns with each other.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from server.errors import CallRefused
from server.headroom import busy_s, lowest_free_descriptor, memory_state
from server.hooks.sockets import descriptors_for_all, descriptors_for_calls
from server.hooks.trio_clock import missed_s
from server.metrics import Metrics
from server.pace import next_tick
from server.settings.settings import Settings
from server.switchboard.account_pause import AccountPause
from server.switchboard.account_turns import AccountTurns
from server.switchboard.capacity import (
    MAX_SETUP_WAIT_S,
    TAKEOVER_RESERVED_BYTES,
    Room,
    SetUps,
    fitting_calls,
)

DEFAULT_CALLS_PER_S = 1.0
"""What a carrier dials for an account that has not asked for more."""


TAKEOVER_FACTOR = 2
"""So many times MAX_CALLS a process may have with the calls of others that are gone."""


def failed() -> CallRefused:
    """Nobody runs calls any more."""
    return CallRefused(
        "the server has failed and is about to end", reason="failed", status=503, retry_after_s=10
    )


def draining() -> CallRefused:
    """No more calls are taken, because the server is about to stop."""
    return CallRefused("the server is draining", reason="draining", status=503, retry_after_s=60)


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings of admission."""

    max_calls: int = 100
    """Calls at once, inbound and outbound, ringing ones and those that wait to be dialled too."""
    max_model_sessions: int | None = None
    """Sessions that the model's account may have open at once; None for no limit of its own."""
    calls_per_s: float = math.inf
    """How many calls a second the carrier dials; more would only wait there, unseen."""
    max_dial_wait_s: float = 20.0
    """A call that would wait longer for its turn is refused, with the time to come back."""
    max_waiting_calls: int = 100
    max_loop_lag_s: float = 0.05
    """Above this, calls in progress suffer already: no more are taken."""
    max_setup_wait_s: float = MAX_SETUP_WAIT_S
    """A call that would be set up later than this is refused."""
    descriptors: int | None = None
    """How many there may be when another call is taken; None for any number."""
    quota_pause_s: float = 60.0
    """After the model has refused the account, no call is taken for so long; then it is tried."""

    @classmethod
    def of(
        cls, settings: Settings, *, is_simulated: bool, processes: int, has_nodes: bool = False
    ) -> Limits:
        """What the settings say for one of so many processes, as far as its descriptors go.

        Lines and sessions are counted over all of them; of the carrier's rate each has a share.
        Where there are other machines, what those have descriptors for is not known, and the rate
        is the account's: see :class:`AccountTurns`.
        """
        fitting = processes * fitting_calls(
            descriptors_for_all(),
            lowest_free_descriptor() or 0,
            records_calls=settings.recordings_dir is not None,
        )
        calls_per_s = settings.calls_per_s
        if calls_per_s is None:
            calls_per_s = math.inf if is_simulated else DEFAULT_CALLS_PER_S
        return cls(
            max_calls=int(min(settings.max_calls, math.inf if has_nodes else fitting)),
            max_model_sessions=settings.max_model_sessions,
            calls_per_s=calls_per_s / (1 if has_nodes else processes),
            max_dial_wait_s=settings.max_dial_wait_s,
            max_waiting_calls=math.ceil(settings.max_waiting_calls / processes),
            max_loop_lag_s=settings.max_loop_lag_s,
            descriptors=descriptors_for_calls(),
            quota_pause_s=settings.quota_pause_s,
        )


# ------------------------------------------------------------------------------------------
# The carrier's rate


@dataclass(slots=True, eq=False)
class Place:
    """One call's place in the queue."""

    client: str
    joined_at: float


class DialQueue:
    """Calls waiting to be dialled: so many a second, and the clients take turns.

    A client that asks for a hundred calls waits for its own hundred; another one's first call is
    dialled next but one.
    """

    def __init__(self, *, per_s: float, max_wait_s: float, max_waiting: int) -> None:
        self._interval_s = 1.0 / per_s
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[str, deque[Place]] = OrderedDict()
        self._order: list[Place] = []
        self._free_at = -math.inf

    def __len__(self) -> int:
        return len(self._order)

    @property
    def interval_s(self) -> float:
        """From one dial to the next."""
        return self._interval_s

    def free_in_s(self, now: float) -> float:
        """When the next dial may be, if nobody waited."""
        return max(self._free_at - now, 0.0)

    def pause_until(self, at: float) -> None:
        """Nobody is dialled before this; a shorter pause does not end a longer one."""
        self._free_at = max(self._free_at, at)

    def join(self, client: str, now: float) -> Place:
        """Take a place.

        Raises:
            CallRefused: The wait would be too long; it says for how long, and behind how many.
        """
        place = Place(client, now)
        self._waiting.setdefault(client, deque()).append(place)
        self._sort()
        position = self.position(place)
        wait_s = self._due_at(position, now) - now
        if wait_s > self._max_wait_s or len(self) > self._max_waiting:
            self.leave(place)
            raise CallRefused(
                f"{len(self)} calls wait to be dialled; this one would be number {position} "
                f"and wait {wait_s:.0f} s",
                reason="rate",
                status=429,
                retry_after_s=max(wait_s - self._max_wait_s, 1.0),
                position=position,
            )
        return place

    def position(self, place: Place) -> int:
        """1 for the next one to be dialled."""
        return self._order.index(place) + 1

    def due_at(self, place: Place, now: float) -> float:
        """When a place's turn comes if nobody leaves and no other client joins."""
        return self._due_at(self.position(place), now)

    def take(self, place: Place, now: float) -> None:
        """Use a place whose turn has come."""
        self.leave(place)
        self._free_at = now + self._interval_s
        if place.client in self._waiting:
            self._waiting.move_to_end(place.client)
            self._sort()

    def leave(self, place: Place) -> None:
        """Give a place up."""
        queue = self._waiting[place.client]
        queue.remove(place)
        if not queue:
            del self._waiting[place.client]
        self._sort()

    def _due_at(self, position: int, now: float) -> float:
        return max(self._free_at, now) + (position - 1) * self._interval_s

    def _sort(self) -> None:
        """Write down who comes when: one of each client in turn."""
        order = []
        queues = [iter(queue) for queue in self._waiting.values()]
        while queues:
            still = []
            for queue in queues:
                if (place := next(queue, None)) is not None:
                    order.append(place)
                    still.append(queue)
            queues = still
        self._order = order


# ------------------------------------------------------------------------------------------
# The event loop


class LagMeter:
    """How late the event loop is, as a median: one slow step is a hiccup, half of them is a load.

    Args:
        samples: How many of the last measurements count; odd.
    """

    def __init__(self, samples: int = 21) -> None:
        self._lags_s: deque[float] = deque([0.0] * samples, maxlen=samples)

    def record(self, lag_s: float) -> None:
        """Add how much later than asked for a sleep has ended."""
        self._lags_s.append(max(0.0, lag_s))

    @property
    def lag_s(self) -> float:
        """The median of the last measurements."""
        return statistics.median(self._lags_s)


LAG_INTERVAL_S = 0.1
"""With 21 samples the median speaks of the last two seconds."""
ROOM_INTERVAL_S = 1.0
"""From one look at the system's memory to the next."""
MAX_LATE_SAMPLES = 3
"""A late one counts for those that could not be taken meanwhile; but one pause is no load."""


# ------------------------------------------------------------------------------------------
# All gates together


class Admission:
    """The gates and the queue. It counts nothing itself: who asks says how many calls there are.

    Args:
        limits: The settings.
        metrics: The process's metrics.
        turns: Those of the carrier's account, if other machines dial for it, too; None if its rate
            is all in the limits.
    """

    def __init__(self, limits: Limits, metrics: Metrics, turns: AccountTurns | None = None) -> None:
        self._limits = limits
        self._metrics = metrics
        self._queue = DialQueue(
            per_s=limits.calls_per_s,
            max_wait_s=limits.max_dial_wait_s,
            max_waiting=limits.max_waiting_calls,
        )
        self._turns = turns
        self._turn_at = -math.inf  # of the account, used by whoever is first then
        self._changed = trio.Event()
        self._lag = LagMeter()
        self.account_pause = AccountPause(limits.quota_pause_s)
        """The pause of all calls while the model's service refuses the account."""
        self.setups = SetUps(limits.max_setup_wait_s)
        """The calls that were admitted and do not talk yet."""
        self._room = Room(limits.descriptors)
        self._carrier_back_at = -math.inf
        self._trial_sessions = 0

    @property
    def max_calls(self) -> int:
        """How many calls there may be at once."""
        return self._limits.max_calls

    @property
    def waiting_count(self) -> int:
        """Calls that wait for their turn to be dialled."""
        return len(self._queue)

    @property
    def lag_s(self) -> float:
        """How late the event loop is, as a median."""
        return self._lag.lag_s

    @property
    def dial_every_s(self) -> float:
        """From one dial to the next."""
        return self._queue.interval_s

    def dials_in_s(self, now: float) -> float:
        """When the next dial may be, if nobody waited."""
        return self._queue.free_in_s(now)

    def check(self, calls: int, now: float) -> None:
        """Whether one more call may come.

        Args:
            calls: How many there are, ringing and waiting ones included.
            now: ``trio.current_time()``.

        Raises:
            CallRefused: No, with the reason and when it may be worth asking again.
        """
        limits = self._limits
        if calls >= limits.max_calls:
            raise CallRefused(
                f"all {limits.max_calls} lines are busy",
                reason="full",
                status=503,
                retry_after_s=10,
            )
        self._check_sessions(calls)
        if self._lag.lag_s > limits.max_loop_lag_s:
            raise CallRefused(
                f"the server is overloaded: {self._lag.lag_s * 1000:.0f} ms late",
                reason="overloaded",
                status=503,
                retry_after_s=5,
            )
        self.setups.check()
        self._room.check(len(self.setups))
        self.account_pause.check(now)

    def _check_sessions(self, calls: int, *, left: int = 0) -> None:
        """Whether there may be one more session with the model, and so many are left then."""
        most, used = self._limits.max_model_sessions, calls + self._trial_sessions
        if most is not None and used + left >= most:
            raise CallRefused(
                f"all {most} model sessions are in use"
                if used >= most
                else f"{used} of {most} model sessions are in use, and {left} is left for a caller",
                reason="model-sessions",
                status=503,
                retry_after_s=10,
            )

    @contextmanager
    def trial_session(self, calls: int) -> Generator[None]:
        """Have a session with the model that is no call's, while this lasts; a call finds one more.

        Args:
            calls: How many there are, each with a session of its own.

        Raises:
            CallRefused: There is none to be had.
        """
        self._check_sessions(calls, left=1)
        self._trial_sessions += 1
        try:
            yield
        finally:
            self._trial_sessions -= 1

    def check_takeover(self, calls: int) -> None:
        """Whether a call in progress may be taken over: nobody else would go on with it.

        Args:
            calls: How many there are in this process.

        Raises:
            CallRefused: There is no room for it, by any measure.
        """
        if calls >= TAKEOVER_FACTOR * self._limits.max_calls:
            raise CallRefused("there is no room for more", reason="full", status=503)
        self._room.check(len(self.setups), reserved_bytes=TAKEOVER_RESERVED_BYTES)

    def pause_dialling(self, until: float) -> None:
        """The carrier has asked to be left alone until then: calls wait, or are told when to come.

        It is about dialling only: calls that come in are answered meanwhile.
        """
        self._carrier_back_at = max(self._carrier_back_at, until)
        self._queue.pause_until(until)
        self._pulse()

    def _check_carrier(self, give_up_at: float, now: float) -> None:
        """Whether the carrier will take calls again before this one has to give up.

        Raises:
            CallRefused: It will not; the time to come back is the carrier's own.
        """
        if self._carrier_back_at > max(give_up_at, now):
            raise CallRefused(
                "the carrier has asked us to place no calls for a while",
                reason="carrier-busy",
                status=503,
                retry_after_s=self._carrier_back_at - now,
            )

    async def wait_turn(self, client: str) -> None:
        """Wait for the turn to dial, and use it.

        Raises:
            CallRefused: The wait is, or has become, too long.
        """
        joined_at = trio.current_time()
        self._check_carrier(joined_at + self._limits.max_dial_wait_s, joined_at)
        place = self._queue.join(client, joined_at)
        self._metrics.admission_queue.set(len(self._queue))
        try:
            await self._wait(place, joined_at + self._limits.max_dial_wait_s)
        except BaseException:
            self._queue.leave(place)
            raise
        else:
            now = trio.current_time()
            self._queue.take(place, now)
            self._turn_at = -math.inf
            self._metrics.dial_wait.observe(now - joined_at)
        finally:
            self._metrics.admission_queue.set(len(self._queue))
            self._pulse()

    def _pulse(self) -> None:
        """Whoever waits looks again."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _wait(self, place: Place, give_up_at: float) -> None:
        while True:
            changed, now = self._changed, trio.current_time()
            first = self._queue.position(place) == 1
            due_at = await self._due_at(place, now, give_up_at) if first else math.inf
            if due_at <= now:
                return
            self._check_carrier(give_up_at, now)
            if now >= give_up_at or (first and due_at == math.inf):
                raise CallRefused(
                    "other clients' calls came in between, and the wait became too long",
                    reason="rate",
                    status=429,
                    retry_after_s=self._limits.max_dial_wait_s,
                    position=self._queue.position(place),
                )
            with trio.move_on_at(min(due_at, give_up_at)):
                await changed.wait()

    async def _due_at(self, place: Place, now: float, give_up_at: float) -> float:
        """When whoever is first may dial; never if that is too late, or not known yet."""
        if self._turns is None:
            return self._queue.due_at(place, now)
        if self._carrier_back_at > now:
            return self._carrier_back_at
        if self._turn_at < now - self._queue.interval_s:  # none, or one that nobody has used
            turn_at = await self._turns.take(give_up_at)
            if turn_at is None:
                return math.inf
            self._turn_at = turn_at
            self._queue.pause_until(turn_at)  # so that those behind it know how long they wait
        return self._turn_at

    async def watch_loop(self, calls: Callable[[], int]) -> None:
        """Measure the event loop, and what it has room for, until cancelled.

        Args:
            calls: How many there are.
        """
        look_at = -math.inf
        while True:
            # trio's time leaves out what of the lateness was a pause; here all of it counts.
            asked_for, missed_before_s = next_tick(trio.current_time(), LAG_INTERVAL_S), missed_s()
            await trio.sleep_until(asked_for)
            now = trio.current_time()
            lag_s = now - asked_for + missed_s() - missed_before_s
            for _ in range(min(1 + int(lag_s / LAG_INTERVAL_S), MAX_LATE_SAMPLES)):
                self._lag.record(lag_s)
            self._metrics.loop_lag.observe(lag_s)
            self.setups.look(now + missed_s(), busy_s())
            self._metrics.capacity.setups.set(len(self.setups))
            if now >= look_at:
                look_at = now + ROOM_INTERVAL_S
                self.look_round(calls())
                self._metrics.capacity.tasks.set(trio.lowlevel.current_statistics().tasks_living)
            self._room.see_descriptors(lowest_free_descriptor())

    def look_round(self, calls: int) -> None:
        """Ask the system how much memory is left."""
        if (memory := memory_state()) is not None:
            self._room.see_memory(memory.left_bytes, memory.used_bytes, memory.limit, calls)
            self._metrics.capacity.memory_left.set(memory.left_bytes)
