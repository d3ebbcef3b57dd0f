"""Who asks the model, for all calls of a process: the one owner of it, and of its time.

A call comes here when its ear suspects somebody of speaking (:meth:`Judge.watch`). From then on all
its audio is judged, from a third of a second before, until nothing is suspicious any more; on a
quiet line nothing is. Whatever is due of all calls is asked in one go, in a thread that the audio
goes before. Where that takes too long, calls go by what the detector alone says for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import inf
from time import thread_time
from typing import Any, Protocol

import trio

from codec.ear import Ear
from codec.hops import HOP_S, MOST_HOPS, Hops
from server.metrics import VoiceMetrics
from server.signal import Signal
from server.voice.low_thread import LowThread, low_thread

MAX_CALLS = 512
"""Calls that have a place; more than one core can carry."""
TICK_S = 0.02
"""How often it is looked whether something is due: a frame. Sooner, and fewer calls share a run."""
MAX_BEHIND_S = 0.04
"""Audio that could have been judged is late if it has waited longer than this."""
COLD_S = 0.2
"""What is first judged of a call may take so long: it begins with ten hops at once."""
WITHOUT_S = 2.0
"""How long a call that was late goes by the detector alone."""
GONE_S = 1.2
"""Without new audio for so long nothing is watched any more, and what was going on is over. The ear
takes up to 1 s for jitter: what comes after more than that is suspicious anew."""


class Model(Protocol):
    """What tells how likely it is that there is a voice."""

    def rows(self, count: int) -> Any:
        """Make room for so many hops."""
        ...

    def forget(self, place: int) -> None:
        """Have a place begin anew."""
        ...

    def probabilities(self, places: Sequence[int], rows: Any) -> list[float]:
        """How likely it is that there is a voice in each row, of the call at that place."""
        ...


class Judged(Protocol):
    """A call that is judged. Nothing in here waits."""

    @property
    def is_open(self) -> bool:
        """Whether it has to be judged on, though nothing is suspicious any more."""
        ...

    def hop(self, probability: float, at: float, level_dbfs: float) -> None:
        """So likely is it that there was a voice in the 32 ms that were over then, so loud."""
        ...

    def gone(self) -> None:
        """Nothing has been heard of it for long: whatever it was in the middle of is over."""
        ...

    def do_without(self) -> None:
        """Nobody judges it for the time being: it has to go by the detector alone."""
        ...

    def rely_again(self) -> bool:
        """It may be judged again; False where this is not the moment."""
        ...


@dataclass(slots=True, eq=False)
class _Watched:
    judged: Judged
    ear: Ear
    hops: Hops
    place: int
    since: float
    suspected_at: float
    """The same by the ear's clock."""
    heard_at: float
    """When there was something of it to ask about."""


@dataclass(slots=True)
class _Round:
    """What is asked in one go: no call twice."""

    watched: list[_Watched]
    heard: list[tuple[float, float]]
    """When each hop was over, and how loud it was."""
    rows: Any
    likely: list[float] = field(default_factory=list)


class Judge:
    """Judges every call of the process that there is something to judge of.

    Args:
        model: Asked in a thread of its own, by nobody else.
        metrics: What is counted.
        now: What time it is.
        in_thread: Whether it is asked in a thread; a mock clock would not wait for that.

    Attributes:
        is_running: Whether anybody is judged.
    """

    def __init__(
        self,
        model: Model,
        metrics: VoiceMetrics,
        *,
        now: Callable[[], float] = trio.current_time,
        in_thread: bool = True,
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._now = now
        self._in_thread = in_thread
        self.is_running = False
        self._watched: dict[Ear, _Watched] = {}
        self._places: dict[Ear, tuple[int, Hops]] = {}
        self._free = list(range(MAX_CALLS))
        self._freed: list[int] = []  # may be asked about just now
        self._without: list[tuple[float, Judged]] = []
        self._news = Signal()

    @property
    def is_busy(self) -> bool:
        """Whether there is a call that may have something to judge; if not, nothing is done."""
        return bool(self._watched)

    def watch(self, ear: Ear, judged: Judged) -> None:
        """Judge this call's audio until nothing is suspicious in it."""
        if ear in self._watched:
            return
        now = self._now()
        if self.is_running and ear not in self._places and self._free:
            # It is kept: a model that remembers the room, however long ago, is fooled less often.
            place = self._free.pop()
            self._places[ear] = place, Hops(ear)
            self._model.forget(place)
        if not self.is_running or ear not in self._places:
            self._metrics.refusals.inc()
            self._give_up(judged, now)
            self._news.set()  # it is to be taken back in time
            return
        place, hops = self._places[ear]
        hops.begin()
        self._watched[ear] = _Watched(judged, ear, hops, place, now, hops.at, now)
        self._metrics.suspicions.inc()
        self._news.set()

    def leave(self, ear: Ear) -> None:
        """What is to come of this call has nothing to do with what was judged of it up to now."""
        self._watched.pop(ear, None)

    def let_go(self, ear: Ear, judged: Judged) -> None:
        """The call is over: its place is another's."""
        self.leave(ear)
        self._without = [(at, other) for at, other in self._without if other is not judged]
        if ear in self._places:
            place, _ = self._places.pop(ear)
            self._freed.append(place)
            self._news.set()  # nobody may have it before that was seen to

    async def run(self) -> None:
        """Judge for ever."""
        with low_thread("judge") if self._in_thread else nullcontext() as thread:
            await self._run(thread)

    async def _run(self, thread: LowThread | None) -> None:
        self.is_running = True
        self._metrics.available.set(1)
        try:
            while True:
                news = self._news.next()
                now = self._now()
                self._take_back(now)
                with self._counted():
                    rounds = self._due(now)
                if rounds:
                    if thread is None:
                        self._ask(rounds)
                    else:
                        await thread.run_sync(self._ask, rounds)
                    with self._counted():
                        self._deliver(rounds)
                elif self._watched:
                    await trio.sleep(TICK_S)
                else:
                    with trio.move_on_at(min((at for at, _ in self._without), default=inf)):
                        await news.wait()
        except Exception:
            self._metrics.failures.inc()
            raise
        finally:
            self.is_running = False
            self._metrics.available.set(0)
            for watched in self._watched.values():
                self._give_up(watched.judged, self._now())
            self._watched.clear()

    def judge_now(self) -> None:
        """Judge all that is due here and now, where there is no time for a thread."""
        self.is_running = True
        self._take_back(self._now())
        rounds = self._due(self._now())
        self._ask(rounds)
        self._deliver(rounds)

    # -- one after the other -------------------------------------------------------------------

    def _due(self, now: float) -> list[_Round]:
        """What there is to ask about; whoever has nothing more leaves, or is late."""
        self._free += self._freed
        self._freed.clear()
        rounds: list[list[_Watched]] = []
        for watched in list(self._watched.values()):
            # How much waits says nothing: a network delivers what it has kept back at once.
            waits_s = now - max(watched.since, watched.hops.due_since)
            if now - watched.since > COLD_S and waits_s > MAX_BEHIND_S:
                self._metrics.late.inc()
                del self._watched[watched.ear]
                self._give_up(watched.judged, now)
                continue
            count = min(int(watched.hops.behind_s / HOP_S), MOST_HOPS)
            if count:
                watched.heard_at = now
            elif now - watched.heard_at > GONE_S:
                del self._watched[watched.ear]
                watched.judged.gone()
            for number in range(count):
                if number == len(rounds):
                    rounds.append([])
                rounds[number].append(watched)
        return [filled for each in rounds if (filled := self._fill(each)).watched]

    def _fill(self, each: list[_Watched]) -> _Round:
        rows = self._model.rows(len(each))
        taken: list[_Watched] = []
        for watched in each:
            if watched.hops.take(rows[len(taken)]):
                taken.append(watched)
        heard = [(watched.hops.at, watched.hops.level_dbfs) for watched in taken]
        return _Round(taken, heard, rows[: len(taken)])

    def _ask(self, rounds: list[_Round]) -> None:
        with self._counted():
            for each in rounds:
                places = [watched.place for watched in each.watched]
                each.likely = self._model.probabilities(places, each.rows)

    def _deliver(self, rounds: list[_Round]) -> None:
        for each in rounds:
            self._metrics.hops.inc(len(each.watched))
            hops = zip(each.watched, each.heard, each.likely, strict=True)
            for watched, (at, level_dbfs), likely in hops:
                # What came long before the suspicion was only to warm the model up.
                is_there = self._watched.get(watched.ear) is watched
                if is_there and at > watched.suspected_at - 1.5 * HOP_S:
                    watched.judged.hop(likely, at, level_dbfs)
        for watched in list(self._watched.values()):
            ended = watched.hops.at >= watched.ear.suspects_until
            if ended and not watched.judged.is_open:
                del self._watched[watched.ear]

    @contextmanager
    def _counted(self) -> Generator[None]:
        """Count what this takes of the processor."""
        began = thread_time()
        yield
        self._metrics.cpu.inc(thread_time() - began)

    # -- where it is too much ------------------------------------------------------------------

    def _give_up(self, judged: Judged, now: float) -> None:
        judged.do_without()
        self._without.append((now + WITHOUT_S, judged))

    def _take_back(self, now: float) -> None:
        if self._without and min(at for at, _ in self._without) <= now:
            self._without = [
                (at if at > now else now + WITHOUT_S, judged)
                for at, judged in self._without
                if at > now or not judged.rely_again()
            ]
