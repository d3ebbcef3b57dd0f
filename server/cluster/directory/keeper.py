"""What is new of calls, written by a thread: of each call only the newest, and nothing of one that
is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import trio

from server.cluster.directory.claims import Claims
from server.cluster.registry import RegistryAway, State, made, made_in_turn
from server.hooks.sockets import NoThread

GATHER_S = 0.1
"""Changes that come so close together are one state."""

WRITTEN_TIMEOUT_S = 1.0
"""How long whoever asks for a call waits for what is being written of it."""

Said: TypeAlias = tuple[int, State, bool]
"""Of a call: for the how-manieth time it is somebody's, its state, and whether it has ended."""
Made: TypeAlias = tuple[str, int, bytes | None, bool]
"""The same of a call that is named, with the state as it is written; None if it cannot be made."""


class Keeper:
    """Writes what calls have said of themselves, in batches.

    Args:
        claims: Where to.
        tell: Told what went wrong.
    """

    def __init__(self, claims: Claims, tell: Callable[[OSError], None]) -> None:
        self._claims = claims
        self._tell = tell
        self._new: dict[str, Said] = {}  # at most one for each live call
        self._kept: dict[str, int] = {}  # at which generation, until the call is over
        self._writing: frozenset[str] = frozenset()
        self._in_haste: set[str] = set()  # of those; what is new of them comes next
        self._over: list[tuple[str, int]] = []
        self._is_new = trio.Event()
        self._is_written = trio.Event()
        # Others' may all wait for a name that nobody answers for.
        self._thread = trio.CapacityLimiter(1)

    def keep(
        self,
        call_sid: str,
        generation: int,
        state: State,
        *,
        in_haste: bool = False,
        has_ended: bool = False,
    ) -> None:
        """A call is now as this says; in haste, and at first, it is on the disk when this returns.

        Unless the call is being written just now: then it is as soon as that is done.
        """
        if generation < (before := self._kept.get(call_sid, 0)):
            return  # of one that had the call before, and has just noticed
        self._kept[call_sid] = generation
        self._new[call_sid] = generation, state, has_ended
        if not in_haste and before:
            self._is_new.set()
        elif call_sid in self._writing:
            self._in_haste.add(call_sid)
        else:
            self._write_now(call_sid)

    async def written(self, call_sid: str) -> None:
        """Wait until what was kept of a call in haste is on the disk.

        Raises:
            RegistryAway: It cannot be written.
        """
        with trio.move_on_after(WRITTEN_TIMEOUT_S):
            while call_sid in self._in_haste:
                await self._is_written.wait()
            return
        raise RegistryAway("what was kept of the call is not written yet")

    def has(self, call_sid: str, generation: int) -> None:
        """There is something of a call already, which was another's."""
        self._kept[call_sid] = generation

    def goes_on(self, call_sid: str, before: int, generation: int) -> None:
        """A call of ours is ours at another generation: what is new of it is kept for that one."""
        self._kept[call_sid] = generation
        if (new := self._new.get(call_sid)) is not None:
            self._new[call_sid] = generation, *new[1:]
        if call_sid in self._writing:
            self._over.append((call_sid, before))

    def forget(self, call_sid: str, generation: int) -> None:
        """A call is over that was ours at this generation, or is another's; not one that is ours
        again since."""
        if generation < self._kept.get(call_sid, generation):
            return
        self._new.pop(call_sid, None)
        self._kept.pop(call_sid, None)
        if call_sid in self._writing:
            self._over.append((call_sid, generation))
        else:
            self._claims.forget(call_sid, generation)

    async def run(self) -> None:
        """Write, until cancelled."""
        while True:
            await self._is_new.wait()
            await trio.sleep(GATHER_S)
            await self._write_new()

    async def _write_new(self) -> None:
        self._is_new = trio.Event()
        batch, self._new = self._new, {}
        self._writing = frozenset(batch)
        try:
            states = await made_in_turn(_one, batch.items())
            try:
                await trio.to_thread.run_sync(self._write, states, limiter=self._thread)
            except NoThread:
                self._write(states)  # it takes a moment, and others may need it at any
        finally:
            self._writing, over, self._over = frozenset(), self._over, []
            for call_sid, generation in over:
                self._claims.forget(call_sid, generation)
            in_haste, self._in_haste = self._in_haste, set()
            for call_sid in in_haste:
                self._write_now(call_sid)
            self._is_written.set()
            self._is_written = trio.Event()

    def _write_now(self, call_sid: str) -> None:
        if (new := self._new.pop(call_sid, None)) is not None:
            self._write((_one((call_sid, new)),))

    def _write(self, batch: Sequence[Made]) -> None:
        for call_sid, generation, state, has_ended in batch:
            if state is None:
                continue  # it cannot be made: the one before stays
            try:
                self._claims.keep(call_sid, generation, state, has_ended=has_ended)
            except OSError as error:
                self._tell(error)


def _one(new: tuple[str, Said]) -> Made:
    call_sid, (generation, state, has_ended) = new
    return call_sid, generation, made(state), has_ended
