"""Telling the registry what is new of our calls: what has gathered in 50 ms, in one go.

A newer state of a call that has one already goes along with the next beat: a go of its own costs as
much as many calls in it, and nothing is decided by a state that is a moment older.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
import trio

from server.cluster.redis import answers as answers_of
from server.cluster.redis.connection import Connection
from server.cluster.redis.ours import MAX_KEPT_BYTES, Ours, Write
from server.cluster.redis.scripts import Put, Step, Steps
from server.cluster.registry import Member, State, made, made_in_turn, nobody_minds
from server.cluster.sealing import seal
from server.metrics import RegistryMetrics

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WRITE_S = 0.05
"""How long what is new gathers; newer states wait for the next beat."""
MAX_WRITES = 50
"""In one go: a few milliseconds of the loop."""
SAY_AGAIN_S = 30.0
"""In which every call is said again to a registry of shards, so that none is lost for longer."""


class Writing:
    """The one writer of what is ours; nothing waits for it.

    Args:
        me: Whose calls they are.
        steps: The registry's.
        cluster_secrets: The first seals the state of calls.
        metrics: Say how much has not been said, when asked.
        on_lost: Told which call is another's by now, and at which generation it was ours.
        on_forgotten: Told that the registry has lost a call that it had.

    Attributes:
        has_forgotten: Whether it has, and not everything was said again since.
    """

    def __init__(
        self,
        me: Member,
        steps: Steps,
        cluster_secrets: Sequence[str],
        metrics: RegistryMetrics,
        on_lost: Callable[[str, int], None] = nobody_minds,
        on_forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        self.has_forgotten = False
        self._on_lost = on_lost
        self._on_forgotten = on_forgotten
        self._me = str(me)
        self._steps = steps
        self._secrets = cluster_secrets
        self._ours = Ours()
        metrics.unsaid.set_function(lambda: self._ours.unsaid)
        metrics.calls.set_function(lambda: self._ours.known)
        self._strike_off: dict[str, dict[str, None]] = {}
        self._haste = trio.Event()
        self._one_go = trio.Lock()  # what is older never comes after what is newer

    def announce(self, call_sid: str, generation: int) -> None:
        """A call is ours."""
        self._ours.announce(call_sid, generation)
        self._wake()

    def keep(
        self,
        call_sid: str,
        generation: int,
        state: State,
        *,
        in_haste: bool = False,
        has_ended: bool = False,
    ) -> None:
        """Another process would need this of a call of ours: see :meth:`Registry.keep`.

        What is left of a call that has ended is written with the next beat: by then its record is
        in the database as a rule, and there is nothing left.
        """
        in_haste = in_haste or not state or not self._ours.has_state(call_sid)
        self._ours.keep(call_sid, generation, state, in_haste=in_haste, has_ended=has_ended)
        self._wake(in_haste=in_haste)

    def release(self, call_sid: str, generation: int, *, has_begun: bool = True) -> None:
        """A call of ours is over, or has not begun: see :meth:`Registry.release`."""
        self._ours.release(call_sid, generation, has_begun=has_begun)
        self._wake()

    def is_held(self, call_sid: str, generation: int) -> bool:
        """Whether a call is ours and live with this generation, as far as we know."""
        return self._ours.is_held(call_sid, generation)

    def is_urgent(self, call_sid: str) -> bool:
        """Whether something of a call has not been written that was to be in haste."""
        return self._ours.is_urgent(call_sid)

    def strike_off(self, member: str, call_sid: str) -> None:
        """A call is no longer one of a member's."""
        self._strike_off.setdefault(member, {})[call_sid] = None
        self._wake()

    def say_all_again(self, *, is_lost: bool = False) -> None:
        """The registry may have forgotten anything; or it is known that it has."""
        self.has_forgotten = self.has_forgotten and not is_lost
        self._ours.say_all_again(is_lost=is_lost)
        self._wake()

    def say_some_again(self, beat_s: float) -> None:
        """A shard that has lost what was in it says so to nobody: ask in turn, with the beats."""
        most = math.ceil(self._ours.known * beat_s / SAY_AGAIN_S)
        self._ours.say_some_again(min(most, MAX_WRITES // 2))

    def is_there(self, call_sid: str, generation: int) -> bool:
        """Whether the registry has a call, unless it has lost it."""
        return self._ours.is_there(call_sid, generation)

    def was_put(self, answer: int, *, was_there: bool) -> bool:
        """A call was put; returns whether the registry had lost it.

        Args:
            answer: What has become of it.
            was_there: Whether the registry had it before, unless it had lost it: as it was known
                when this was asked, for another may have put the call since.
        """
        is_lost = answer == answers_of.NEW and was_there
        if is_lost and not self.has_forgotten:
            self.has_forgotten = True
            self._on_forgotten()
        return is_lost

    def _wake(self, *, in_haste: bool = True) -> None:
        if in_haste and (self._ours.unsaid or self._strike_off):
            self._haste.set()

    async def write_on(self, connection: Connection) -> None:
        """Write what is new and in haste, until the connection fails."""
        while True:
            await self._haste.wait()
            await trio.sleep(WRITE_S)
            if self._haste.is_set():  # else it has gone along with a beat
                await self.write(connection)

    async def write_all(self, connection: Connection) -> None:
        """Write what is new now."""
        while self._ours.unsaid or self._strike_off:
            await self.write(connection)

    async def write(self, connection: Connection, *first: Step) -> list[Any]:
        """Write what is new, in one go with other steps.

        Returns:
            What those are answered.
        """
        async with self._one_go:
            if self._haste.is_set():  # else somebody waits for this one
                self._haste = trio.Event()
            strike_off, self._strike_off = self._strike_off, {}
            try:
                writes = self._ours.take(MAX_WRITES)
                answers = await self._write(connection, first, writes, strike_off)
            except BaseException:
                for member, call_sids in strike_off.items():
                    self._strike_off.setdefault(member, {}).update(call_sids)
                self._haste.set()
                raise
            self._wake(in_haste=len(writes) == MAX_WRITES)  # there may be more
        return answers

    async def write_of(self, call_sid: str, connection: Connection, *first: Step) -> list[Any]:
        """Write what is new of one call, in one go with other steps.

        Returns:
            What those are answered.
        """
        async with self._one_go:
            return await self._write(connection, first, self._ours.take_of(call_sid), {})

    async def _write(
        self,
        connection: Connection,
        first: Sequence[Step],
        writes: Sequence[Write],
        strike_off: Mapping[str, Mapping[str, None]],
    ) -> list[Any]:
        lists = self._ours.lists(writes)
        over = [write for write in writes if write.is_over]
        others = [write for write in writes if not write.is_over]
        put = self._steps.put(self._me, await made_in_turn(self._put, others))
        batch = [
            self._steps.give_back(one.call_sid, self._me)
            if one.is_given_back
            else self._steps.over(one.call_sid, self._me, one.generation)
            for one in over
        ]
        if lists.join:
            batch.append(self._steps.join(self._me, list(lists.join)))
        if lists.leave:
            batch.append(self._steps.leave(self._me, list(lists.leave)))
        batch += [self._steps.leave(member, list(sids)) for member, sids in strike_off.items()]
        answers = await connection.ask_all([*first, *put, *batch])
        were_put = (
            was_put
            for step, answer in zip(put, answers[len(first) :], strict=False)
            for was_put in answers_of.puts(answer, len(step.keys))
        )
        for write, was_put in zip(others, were_put, strict=True):
            if was_put:
                # Nobody else writes meanwhile; but a loss that was heard of is not a second one.
                self.was_put(was_put, was_there=self.is_there(write.call_sid, write.generation))
                self._ours.was_written(write)
            else:
                self._is_lost(write)
        for write in over:
            self._ours.was_written(write)
        return answers[: len(first)]

    def _put(self, write: Write) -> Put:
        sealed = state = self._made(write)
        if state:
            sealed = seal(state, write.call_sid, self._secrets, has_ended=write.has_ended)
        return write.call_sid, write.generation, sealed

    def _made(self, write: Write) -> bytes | None:
        """The state that is to be written; None if it is not new, cannot be made, or is too large
        to be kept."""
        state = made(write.state)
        if state is None or len(state) <= MAX_KEPT_BYTES:
            return state
        if self._ours.tell_too_large(write.call_sid, write.generation):
            logger.warning(
                "the state of a call is too large to be kept",
                call_sid=write.call_sid,
                size_bytes=len(state),
            )
        return None

    def _is_lost(self, write: Write) -> None:
        """Somebody else has a call that was ours, or it is over."""
        was_live = self._ours.is_held(write.call_sid, write.generation)
        if not self._ours.was_refused(write):
            return
        self.strike_off(self._me, write.call_sid)
        if was_live:
            logger.info("a call is not ours any more", call_sid=write.call_sid)
            self._on_lost(write.call_sid, write.generation)
