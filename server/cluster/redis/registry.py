"""The registry over Redis: who is there, whose each call is, and whose turn it is.

One task (:meth:`RedisRegistry.run`) owns the connection and enters it again when it has ended. Two
more use it beside those who ask: one says how this process is, and hears how all are; one writes
what is new of our calls, where that is not to wait for the next beat. Whoever asks waits for
``REGISTRY_TIMEOUT_S`` at most, and not at all while the registry is away.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import TypeVar

import structlog
import trio

from server.cluster.proof import Prover
from server.cluster.redis import answers
from server.cluster.redis.connection import (
    Connection,
    is_sharding,
    is_theirs,
    open_connection,
    reasons,
)
from server.cluster.redis.members import WHOLE_AFTER_S, Members
from server.cluster.redis.scripts import Step, Steps
from server.cluster.redis.writing import Writing
from server.cluster.registry import (
    Holding,
    Load,
    Member,
    RegistryAway,
    Seen,
    Seized,
    State,
    nobody_minds,
)
from server.cluster.sealing import ENDED, LIVE, has_ended, unsealed
from server.metrics import RegistryMetrics
from server.pace import Backoff, next_tick
from server.settings.cluster import RegistryAddress
from server.supervision import Start

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BEAT_S, SOONEST_BEAT_S = 0.75, 0.05
"""From one beat to the next, at most: half of what a call costs with a registry is beats."""
BEATS_A_LEASE = 4
"""At least: one that is heard of so late, and heard late itself, is not silent yet."""
AWAY_S = (0.1, 1.0)
"""Before the registry is tried again: at first, and at most."""
LEAVING_S = 2.0
MAX_ASKED_AT_ONCE = 100

T = TypeVar("T")


def beat_every_s(lease_s: float) -> float:
    """From one beat to the next, where a member may be silent for so long."""
    return min(BEAT_S, lease_s / BEATS_A_LEASE)


class RedisRegistry:
    """A :class:`server.cluster.registry.Registry` in Redis or Valkey.

    Args:
        address: Where it is.
        me: This process.
        my_address: Where other members reach it.
        cluster_secrets: What the state of calls is sealed with: with the first, opened with any.
        metrics: Told when it is away and back.
        timeout_s: How long anything waits for an answer.
        lease_s: How long a member may be silent.
    """

    def __init__(
        self,
        address: RegistryAddress,
        me: Member,
        my_address: str,
        cluster_secrets: Sequence[str],
        metrics: RegistryMetrics,
        timeout_s: float = 0.5,
        lease_s: float = inf,
    ) -> None:
        self.me = me
        self.on_lost: Callable[[str, int], None] = nobody_minds
        self._address = address
        self._secrets = tuple(cluster_secrets)
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self._steps = Steps(address.prefix, is_sharded=address.kind == "cluster")
        self._connection: Connection | None = None
        self._is_away: bool | None = None
        self.losses, self.ahead_s = 0, 0.0
        self._beat_now = trio.Event()
        self._members = Members(me, my_address, self._steps, Prover(self._secrets))
        self._writing = Writing(
            me,
            self._steps,
            self._secrets,
            metrics,
            lambda *lost: self.on_lost(*lost),
            lambda: self._beat_now.set(),
        )
        self._attempts: dict[str, str] = {}
        self._odd: set[str] = set()  # what has been told of answers that nobody expects
        self._requests: dict[tuple[str, str], bytes] = {}

    # -- the owner of the connection -----------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be one of the members, until cancelled; has started when the registry was tried once."""
        start = Start(task_status)
        backoff = Backoff(*AWAY_S, jitter=random.random)
        try:
            while True:
                try:
                    async with open_connection(self._address, self._timeout_s) as connection:
                        await self._beat(connection)
                        self._is_back(connection)
                        backoff.reset()
                        start.started()
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._beat_on, connection)
                            nursery.start_soon(self._writing.write_on, connection)
                except* Exception as failures:
                    self._has_failed(failures)
                self._connection = None
                start.started()
                await trio.sleep(backoff.next_s())
        finally:
            self._connection = None
            with trio.move_on_after(LEAVING_S, shield=True):
                await self._leave()

    async def _leave(self) -> None:
        """Say what is still to be said, and that we are gone."""
        if self._is_away is not False:
            return
        try:
            async with open_connection(self._address, self._timeout_s) as connection:
                await self._writing.write_all(connection)
                await connection.ask(self._steps.gone(str(self.me)))
        except* Exception as failures:
            self._has_failed(failures)

    def _is_back(self, connection: Connection) -> None:
        self._connection = connection
        if self._is_away is not False:
            self._is_away = False
            self._metrics.is_away.set(0)
            self._metrics.changes.labels("back").inc()
            logger.info("the registry can be asked", members=len(self._members.others) + 1)
        self._writing.say_all_again()

    def _has_failed(self, failures: BaseExceptionGroup[Exception]) -> None:
        """The registry is away; a bug of ours is told with its traceback, but costs no more."""
        self._connection = None
        found = list(reasons(failures))
        if any(map(is_sharding, found)):
            self._steps.is_sharded = True
        if odd := [each for each in found if isinstance(each, answers.OddAnswer)]:
            self._tell_odd(odd[0])
        elif not all(map(is_theirs, found)):
            logger.error("a bug in the registry", exc_info=failures)
        if self._is_away is not True:
            self._is_away = True
            self._metrics.is_away.set(1)
            self._metrics.changes.labels("away").inc()
            # What coredis says of a pipeline may have all that was in it: the kind is enough.
            kinds = sorted({type(each).__name__ for each in found})
            logger.warning("the registry is away; calls go on without it", reasons=kinds)

    async def _beat_on(self, connection: Connection) -> None:
        """Say how we are, and hear how the others are, now and then and when it matters."""
        while True:
            beat_at = trio.current_time()
            with trio.move_on_at(next_tick(beat_at, beat_every_s(self._lease_s))) as waiting:
                await self._beat_now.wait()
            if not waiting.cancelled_caught:
                await trio.sleep_until(beat_at + SOONEST_BEAT_S)
            await self._beat(connection)

    async def _beat(self, connection: Connection) -> None:
        if self._beat_now.is_set():  # else somebody waits for this one
            self._beat_now = trio.Event()
        if self._steps.is_sharded:
            self._writing.say_some_again(beat_every_s(self._lease_s))
        asked_at = trio.current_time()
        step, told = self._members.beat(asked_at)
        sent_at = time.time()
        (answer,) = await self._writing.write(connection, step)
        heard, heard_at = answers.heard(answer), time.time()
        if heard_at - sent_at < self._timeout_s:  # else we were held up, and it is old
            self.ahead_s = heard.now_ms / 1000 - heard_at
        is_lost = self._members.heard(heard, told, trio.current_time(), asked_at=asked_at)
        if self._writing.has_forgotten and not is_lost:  # a shard has, where no beats are
            begun = answers.begun(await connection.ask(self._steps.begin_anew()))
            self._members.has_begun_anew(begun, trio.current_time())
            is_lost = True
        if is_lost:
            self.losses += 1
            self._metrics.changes.labels("lost").inc()
            logger.warning("the registry has lost what was in it; our calls are told again")
            self._writing.say_all_again(is_lost=True)
            self._beat_now.set()

    # -- asking --------------------------------------------------------------------------------

    async def _ask(
        self, step: Step, read: Callable[[object], T], *, after_news_of: str | None = None
    ) -> T:
        """Take a step, and read what it is answered.

        Args:
            step: What is asked.
            read: Knows what it can be answered.
            after_news_of: A call: what is new of it is written in the same go.

        Raises:
            RegistryAway: There is no answer, or it is none.
        """
        (answer,) = await self._ask_all((step,), read, after_news_of=after_news_of)
        return answer

    async def _ask_all(
        self,
        steps: Sequence[Step],
        read: Callable[[object], T],
        *,
        after_news_of: str | None = None,
    ) -> list[T]:
        connection = self._connection
        if connection is None:
            await trio.lowlevel.checkpoint()
            raise RegistryAway("the registry is away")
        try:
            if after_news_of is not None:
                found = await self._writing.write_of(after_news_of, connection, *steps)
            else:
                found = await connection.ask_all(steps)
            return [read(each) for each in found]
        except answers.OddAnswer as odd:
            self._tell_odd(odd)
            raise
        except Exception as failure:
            raise self._not_answered(failure, connection) from None

    def _not_answered(self, failure: Exception, connection: Connection) -> RegistryAway:
        """What whoever has asked is told; a bug of ours is told with its traceback."""
        self._beat_now.set()
        if not all(map(is_theirs, reasons(failure))) and self._connection is connection:
            logger.error("a bug in the registry", exc_info=failure)
        return RegistryAway(f"the registry has not answered: {type(failure).__name__}")

    def _tell_odd(self, odd: answers.OddAnswer) -> None:
        """Say once for each kind of answer that something else has come."""
        if odd.expected not in self._odd:
            self._odd.add(odd.expected)
            logger.error("the registry has something that is not ours", reason=str(odd))

    async def _sure_of_nothing(self) -> None:
        """Make sure that what the registry does not know it has not forgotten.

        Raises:
            RegistryAway: It may have.
        """
        if await self._ask(self._steps.age(), answers.age_ms) < WHOLE_AFTER_S * 1000:
            self._beat_now.set()
            raise RegistryAway("the registry has been restarted, and not everybody was heard yet")

    @property
    def is_away(self) -> bool:
        """Whether it cannot be asked at this moment."""
        return self._connection is None

    # -- a snapshot ----------------------------------------------------------------------------

    def publish(self, load: Load) -> None:
        """Say how this process is doing; at once if it begins or ceases to take calls."""
        if self._members.publish(load):
            self._beat_now.set()

    def others(self) -> Mapping[str, Seen]:
        """The members beside this one, by name; those that have been silent for five minutes are
        left out, and one whose name another has by now is under ``NAME@BORN``."""
        return self._members.seen(trio.current_time())

    # -- whose call it is ----------------------------------------------------------------------

    async def claim(self, call_sid: str, member: Member | None = None) -> Holding:
        """Say that a call is to be a member's; tells whose it is."""
        step = self._steps.claim(call_sid, str(member or self.me))
        found = await self._ask(step, answers.holding)
        if found is None:
            raise RegistryAway("the registry has not taken a claim")
        holding, is_over = found
        if holding.member == self.me and not is_over:
            self.announce(call_sid, holding.generation)
        await self._hear_of(holding.member)
        return holding

    async def owner(self, call_sid: str) -> Holding | None:
        """Whose a call is; None if it is nobody's or over."""
        found = await self._ask(self._steps.owner(call_sid), answers.holding)
        if found is None:
            await self._sure_of_nothing()
            return None
        holding, is_over = found
        if is_over:
            return None
        await self._hear_of(holding.member)
        return holding

    async def _hear_of(self, member: Member) -> None:
        """Make sure that a member that we do not know is gone, and not new.

        Raises:
            RegistryAway: It is not known.
        """
        if (connection := self._connection) is None or self._members.knows(member):
            return
        try:
            await self._beat(connection)
        except Exception as failure:
            raise self._not_answered(failure, connection) from None

    async def seize(self, call_sid: str, holding: Holding) -> Seized | None:
        """Take a call over, if it is still that member's.

        What was not answered may have been done: the same attempt, made again, then has it.
        """
        attempt = self._attempts.pop(call_sid, None) or secrets.token_hex(8)
        step = self._steps.seize(
            call_sid, str(self.me), str(holding.member), holding.generation, attempt
        )
        try:
            taken = await self._ask(step, answers.taken)
        except RegistryAway:
            self._attempts[call_sid] = attempt
            while len(self._attempts) > MAX_ASKED_AT_ONCE:
                self._attempts.pop(next(iter(self._attempts)))
            raise
        if taken is True:
            await self._sure_of_nothing()
        if isinstance(taken, bool):
            return None
        self.announce(call_sid, taken.generation)
        if holding.member != self.me:
            self._writing.strike_off(str(holding.member), call_sid)
        if taken.sealed is None:
            return Seized(taken.generation, b"")
        state = unsealed(taken.sealed, call_sid, self._secrets)
        return Seized(taken.generation, state, has_ended=has_ended(taken.sealed))

    async def is_current(self, call_sid: str, generation: int) -> bool:
        """Whether a call is still ours; one that the registry has forgotten is, if it is live.

        What was kept of it in haste is in the registry before it says so.
        """
        me, is_held = str(self.me), self._writing.is_held(call_sid, generation)
        if is_held:
            (step,) = self._steps.put(me, [(call_sid, generation, None)])
            news_of = call_sid if self._writing.is_urgent(call_sid) else None
            was_there, losses = self._writing.is_there(call_sid, generation), self.losses
            (put,) = await self._ask(step, answers.puts, after_news_of=news_of)
            if self._writing.was_put(put, was_there=was_there and self.losses == losses):
                raise RegistryAway("the registry has lost this call, and whoever had it since")
            if put:
                await self._sure_of_nothing()  # or whoever took it over has not said so again yet
                return True
        found = await self._ask(self._steps.owner(call_sid), answers.holding)
        if found is None:
            raise RegistryAway("the registry knows nothing of this call any more")
        return found[0] == Holding(self.me, generation)

    async def calls_of(self, member: Member, *, ended: bool = False) -> Mapping[str, Holding]:
        """The live calls of a member that somebody can go on with, or those that have ended."""
        kind = ENDED if ended else LIVE
        call_sids = await self._ask(self._steps.calls_of(str(member)), answers.call_sids)
        found: dict[str, Holding] = {}
        for first in range(0, len(call_sids), MAX_ASKED_AT_ONCE):
            some = call_sids[first : first + MAX_ASKED_AT_ONCE]
            holders = await self._ask_all(
                [self._steps.left(sid, kind) for sid in some], answers.holding
            )
            for call_sid, holder in zip(some, holders, strict=True):
                if holder is not None and holder == (Holding(member, holder[0].generation), False):
                    found[call_sid] = holder[0]
        return found

    # -- what is new of our calls --------------------------------------------------------------

    def announce(self, call_sid: str, generation: int) -> None:
        """A call is ours."""
        self._writing.announce(call_sid, generation)

    def keep(
        self,
        call_sid: str,
        generation: int,
        state: State,
        *,
        in_haste: bool = False,
        has_ended: bool = False,
    ) -> None:
        """What another process needs to go on with this call; more than 64 kB is not kept."""
        self._writing.keep(call_sid, generation, state, in_haste=in_haste, has_ended=has_ended)

    def release(self, call_sid: str, generation: int, *, has_begun: bool = True) -> None:
        """A call is over, or has not begun, and is nobody's again."""
        self._writing.release(call_sid, generation, has_begun=has_begun)

    # -- what all processes share --------------------------------------------------------------

    async def dial_turn(self, account: str, calls_per_s: float, max_wait_s: float) -> float | None:
        """Take the account's next turn to dial."""
        return await self._ask(
            self._steps.turn(account, 1 / calls_per_s, max_wait_s), answers.wait_s
        )

    @property
    def _tag(self) -> bytes:
        return f"{self.me}\n".encode()

    async def begin_request(self, client: str, key: str, fingerprint: bytes) -> bytes | None:
        """A request is being worked on here, unless it is elsewhere."""
        if (ours := self._requests.get((client, key))) is not None:
            return ours
        self._requests[client, key] = fingerprint
        try:
            step = self._steps.begin(client, key, self._tag, fingerprint)
            theirs = await self._ask(step, answers.worked_on)
        except RegistryAway:
            raise  # it may be written all the same: it is ours until it ends
        except BaseException:
            with trio.move_on_after(self._timeout_s, shield=True), suppress(RegistryAway):
                await self.end_request(client, key)
            raise
        if theirs is not None:
            self._requests.pop((client, key), None)
        return theirs

    async def end_request(self, client: str, key: str) -> None:
        """A request is no longer worked on here."""
        if self._requests.pop((client, key), None) is not None:
            await self._ask(self._steps.end(client, key, self._tag), answers.anything)

    # -- the model's account -------------------------------------------------------------------

    def tell_pause(self, kind: str, pause_s: float) -> None:
        """The model's service refuses the account."""
        self._members.tell_pause(kind, trio.current_time() + pause_s)
        self._beat_now.set()

    def pause(self) -> tuple[str, float] | None:
        """What another process was refused, and for how long yet nobody needs to try."""
        return self._members.pause(trio.current_time())
