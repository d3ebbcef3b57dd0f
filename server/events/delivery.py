"""Sends what is in the outbox: one short loop, and a task for each event that is on its way.

What decides is elsewhere: the outbox says what is next of each call (:mod:`server.records.outbox`),
and :mod:`server.events.retries` when it is sent again.
"""

from __future__ import annotations

import math
import random
import ssl
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

import httpcore2
import structlog
import trio

from server.events.places import PER_TARGET, Places
from server.events.retries import Attempt, next_at, retry_after_s
from server.events.signing import headers_of
from server.events.targets import AddressRefused, GuardedBackend
from server.logs import Sparing
from server.metrics import Metrics
from server.pace import Backoff
from server.records.outbox import Claimed, Sent
from server.records.store import Records
from server.records.words import RecordsUnavailable

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

DEADLINE_S = 10.0
"""How long a receiver may take to answer, from the first step of connecting to it."""
LEASE_S = 30.0
"""How long an event is this process's: it has to be told of before, however the clocks go."""
AT_ONCE = 64
"""Events that are on their way at the same time."""
POLL_S = 5.0
"""How often the outbox is looked at for what other processes have left there."""
COUNT_EVERY_S = 15.0
RETRY_S = (0.5, 30.0)
MAX_ANSWER_BYTES = 16 * 1024
"""Of an answer's body, which says nothing to us: a connection is used again if it is short."""
TELL_EVERY_S, TOLD_TARGETS = 60.0, 10
"""How often the log says of a receiver that it does not take events, and of how many at most."""
LAST_WORD_S = 2.0
"""How long a server that stops may take to give its leases back."""


class Delivery:
    """Sends events, each until its receiver has it or it is given up.

    Args:
        records: Has the outbox.
        keys: What events are signed with.
        metrics: The process's metrics.
        allow_private: Receivers may be in our own network.
        lease_s: How long an event is this process's.
        poll_s: How often the outbox is looked at though nothing is known to be in it.
        deadline_s: How long a receiver may take.
        jitter: Gives numbers from 0 to 1.
    """

    def __init__(
        self,
        records: Records,
        keys: Sequence[bytes],
        *,
        metrics: Metrics,
        allow_private: bool = False,
        lease_s: float = LEASE_S,
        poll_s: float = POLL_S,
        deadline_s: float = DEADLINE_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._records = records
        self._keys = keys
        self._metrics = metrics.records.events
        self._allow_private = allow_private
        self._lease_s, self._poll_s, self._deadline_s = lease_s, poll_s, deadline_s
        self._jitter = jitter
        self._lease = uuid.uuid4().hex
        self._places = Places(AT_ONCE)
        self._under_way: dict[str, Claimed] = {}
        self._sent: list[Sent] = []
        self._count_at = -math.inf
        self._failures = Sparing(TELL_EVERY_S, lines=TOLD_TARGETS)

    async def run(self) -> None:
        """Send what is in the outbox until cancelled."""
        backend = GuardedBackend(allow_private=self._allow_private, is_trusted=self._places.answers)
        async with httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=AT_ONCE,
            max_keepalive_connections=PER_TARGET,
            keepalive_expiry=self._poll_s,
            network_backend=backend,
        ) as pool:
            try:
                async with trio.open_nursery() as nursery:
                    await self._work(pool, nursery)
            finally:
                # When nothing is sent any more: what was taken until then is known.
                with trio.move_on_after(LAST_WORD_S, shield=True):
                    await self._give_back()

    async def _work(self, pool: httpcore2.AsyncConnectionPool, nursery: trio.Nursery) -> None:
        backoff = Backoff(*RETRY_S, jitter=self._jitter)
        while True:
            changed = self._records.outbox_changed.next()
            now = time.time()
            try:
                claimed, due_at = await self._step(now)
                # The wall clock may go far ahead of ours, when it is put forward or we are held up:
                # then leases of ours have run out, and the same events are leased to us again.
                ours = self._under_way.keys() | {one.event.id for one in self._sent}
                for one in claimed:
                    if one.event.id in ours:
                        continue
                    self._places.began(one.event.target)
                    self._under_way[one.event.id] = one
                    nursery.start_soon(self._send, pool, one)
                await self._count()
            except RecordsUnavailable:
                await trio.sleep(backoff.next_s())  # the records have said so
                continue
            backoff.reset()
            if not claimed and not self._sent:
                with trio.move_on_after(min(self._poll_s, max(0.0, due_at - time.time()))):
                    await changed.wait()

    async def _step(self, now: float, free: int | None = None) -> tuple[Sequence[Claimed], float]:
        sent, places = list(self._sent), self._places.copy()
        step = await self._records.with_outbox(
            lambda outbox: outbox.step(
                sent,
                lease=self._lease,
                now=now,
                until=now + self._lease_s,
                free=AT_ONCE - len(self._under_way) if free is None else free,
                places=places,
            )
        )
        del self._sent[: len(sent)]
        return step.claimed, math.inf if step.next_at is None else step.next_at

    async def _count(self) -> None:
        if trio.current_time() < self._count_at:
            return
        found = await self._records.with_outbox(lambda outbox: outbox.waiting())
        self._count_at = trio.current_time() + COUNT_EVERY_S
        oldest_s = 0.0 if found.oldest_at is None else max(0.0, time.time() - found.oldest_at)
        self._metrics.waiting.set(found.waiting)
        self._metrics.oldest.set(oldest_s)
        self._metrics.dead.set(found.dead)

    async def _give_back(self) -> None:
        """Say what has become of events, and that those under way are anybody's again."""
        now = time.time()
        self._sent += [
            Sent(one.event, next_at=now, counts=False) for one in self._under_way.values()
        ]
        for one in self._under_way.values():
            self._places.give_back(one.event.target)
        self._under_way.clear()
        with suppress(RecordsUnavailable):  # else the leases run out
            await self._step(now, free=0)

    async def _send(self, pool: httpcore2.AsyncConnectionPool, claimed: Claimed) -> None:
        attempt = Attempt(error="it failed by a bug of ours")
        began_at = trio.current_time()
        try:
            attempt = await self._post(pool, claimed)
        except Exception:
            # Of one event: the others are sent, and this one again.
            logger.exception("event not sent by a bug of ours", event_id=claimed.event.id)
        has_answered = attempt.status is not None
        answered_s = trio.current_time() - began_at if has_answered else None
        self._places.learn(claimed.event.target, answered_s)
        self._finish(claimed, attempt)

    def _finish(self, claimed: Claimed, attempt: Attempt) -> None:
        event = claimed.event
        self._places.give_back(event.target)
        del self._under_way[event.id]
        self._records.outbox_changed.set()
        if attempt.is_taken:
            self._metrics.sent.labels("delivered").inc()
            self._sent.append(Sent(event, is_done=True))
            return
        again_at = next_at(
            attempt,
            claimed.attempts + 1,
            since=claimed.since,
            now=time.time(),
            jitter=self._jitter(),
        )
        is_dead = again_at == math.inf
        self._metrics.sent.labels("dead" if is_dead else "failed").inc()
        if is_dead:
            logger.error("event given up", event_id=event.id, call_sid=event.call_sid)
        self._failures.log(
            trio.current_time(),
            logger.warning,
            "events are not taken",
            kind=event.target,
            target=event.target,
            reason=attempt.problem,
        )
        self._sent.append(Sent(event, next_at=None if is_dead else again_at, error=attempt.problem))

    async def _post(self, pool: httpcore2.AsyncConnectionPool, claimed: Claimed) -> Attempt:
        event = claimed.event
        body = event.payload.encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "offhook",
            **headers_of(event.id, body, self._keys, at=time.time()),
        }
        status: int | None = None
        wait_s = 0.0
        with trio.move_on_after(self._deadline_s):
            try:
                async with pool.stream(
                    "POST", event.url, headers=list(headers.items()), content=body
                ) as response:
                    status = response.status
                    for name, value in response.headers:
                        if name.lower() == b"retry-after":
                            wait_s = retry_after_s(value, time.time())
                    size = 0
                    async for piece in response.aiter_stream():
                        size += len(piece)
                        if size > MAX_ANSWER_BYTES:
                            break
            except AddressRefused as error:
                return Attempt(error=str(error))
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException,
                    httpcore2.UnsupportedProtocol, OSError) as error:  # fmt: skip
                if status is None:
                    return Attempt(error=f"{type(error).__name__}: {error}"[:150])
        if status is None:
            return Attempt(error=f"no answer within {self._deadline_s:g} s")
        return Attempt(status, retry_after_s=wait_s)
