"""Giving new calls to processes, and counting those that are on their way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import httpx2

from server.cluster.choosing import Candidate, choose
from server.cluster.directory.directory import Directory
from server.cluster.passing_on import PASSED_ON, Hop, WorkerLost
from server.cluster.peers import Peers
from server.cluster.registry import Load, Member, Seen

MAX_KNOWN_GIVEN = 1000
"""New calls on their way to one process of another machine; more are not told apart."""


class NewCalls:
    """Chooses the process of each new call, and brings the request for it there.

    Args:
        me: This process.
        directory: The processes of this machine; None if this is the only one.
        elsewhere: The processes of other machines that have said something lately.
        peers: Ask the other processes.
        publish: Says how this process is doing, and returns that.
    """

    def __init__(
        self,
        me: Member,
        directory: Directory | None,
        elsewhere: Callable[[], Iterator[Seen]],
        peers: Peers,
        publish: Callable[[], Load],
    ) -> None:
        self._me = me
        self._directory = directory
        self._elsewhere = elsewhere
        self._peers = peers
        self._publish = publish
        self._given: dict[str, list[float]] = {}  # when, to processes of other machines
        self._under_way = Counter[int]()  # unanswered, by the processes of this machine

    def choose(self, but: frozenset[str] = frozenset()) -> str:
        """Which process is to have the next call: one of this machine, or, where none of them
        takes any, one of another; if none does, ourselves, whose refusal says why.

        Args:
            but: Those that have just turned out to be gone.
        """
        load = self._publish()
        chosen = choose(one for one in self._here(load) if one.name not in but)
        if chosen is None:
            now = time.monotonic()
            chosen = choose(
                self._candidate(seen, now)
                for seen in self._elsewhere()
                if seen.member.name not in but
            )
        return self._me.name if chosen is None else chosen

    def _here(self, load: Load) -> Iterator[Candidate]:
        if self._directory is None:
            yield Candidate(self._me.name, load.accepts, load.running, load.dials_in_s, False)
            return
        board = self._directory.board
        for number in (self._directory.number, *board.others()):
            yield board.candidate(number, self._directory.name_of(number))

    def _candidate(self, seen: Seen, now: float) -> Candidate:
        name, load = seen.member.name, seen.load
        # What was given since then is not in what it has said.
        given = [at for at in self._given.get(name, ()) if at > now - seen.age_s]
        if given:
            self._given[name] = given[-MAX_KNOWN_GIVEN:]
        else:
            self._given.pop(name, None)
        wait_s = load.dials_in_s - seen.age_s + (load.waiting + len(given)) * load.dial_every_s
        return Candidate(name, load.accepts, load.running + len(given), max(wait_s, 0.0))

    async def give(
        self,
        name: str,
        scope: Mapping[str, Any],
        body: bytes,
        *,
        timeout_s: float,
        generation: int = 1,
    ) -> httpx2.Response:
        """Pass on a request for a new call, which counts there from this moment.

        An ``Idempotency-Key`` has been looked at already, and stays here.

        Args:
            name: Whom to.
            scope: The request's own.
            body: The request's own.
            timeout_s: How long it may take.
            generation: At which it is the other one's, if the carrier has named it.

        Raises:
            WorkerLost: It is gone.
        """
        board = None if self._directory is None else self._directory.board
        number = None if self._directory is None else self._directory.number_of(name)
        hop = Hop(self._me.name, given=True, generation=generation)
        ask = partial(self._peers.ask, name, scope, body, hop, timeout_s=timeout_s)
        if board is None or number is None:
            self._given.setdefault(name, []).append(time.monotonic())
            return await ask()
        board.settle(number, self._under_way[number])
        board.give(number)
        self._under_way[number] += 1
        try:
            return await ask()
        except WorkerLost as lost:
            if not lost.reached:
                board.take_back(number)
            raise
        finally:
            # Whoever has asked may have left before the other process took the call.
            self._under_way[number] -= 1
            board.settle(number, self._under_way[number])

    def take(self, scope: Mapping[str, Any]) -> None:
        """A request for a new call is answered here; :meth:`answered` must follow."""
        if self._directory is not None:
            hop = scope.get(PASSED_ON)
            giver = hop.by if hop is not None and hop.given else None
            number = None if giver is None else self._directory.number_of(giver)
            self._directory.board.take(number)

    def answered(self) -> None:
        """The request for a new call has been answered."""
        if self._directory is not None:
            self._directory.board.answered()
        self._publish()
