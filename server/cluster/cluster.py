"""This process among those of its server, as the rest of the server sees them.

A call lives in the memory of one process: its nursery, its model session, its greeting. But any
process may accept any connection, so each has to bring what is about a call to the process that
has it. What they agree on is the registry's (``registry.py``); which of them is to have a new call
is chosen here, and :class:`server.cluster.peers.Peers` brings requests there.

Who gets a new call is decided by the one that is asked for it, which is even where the kernel's own
choice among processes that accept is not. The processes of this machine are asked first: their
numbers are fresh, and their way is short.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from secrets import randbits
from typing import TYPE_CHECKING, Any

import trio

from server.cluster.alone import Alone
from server.cluster.directory.board import BEAT_S, SILENT_S
from server.cluster.directory.directory import Directory
from server.cluster.directory.meeting import AVAILABLE
from server.cluster.doors import ProvedDoor, serve_siblings
from server.cluster.names import name_of, path_of
from server.cluster.new_calls import NewCalls
from server.cluster.peers import Peers
from server.cluster.proof import Prover
from server.cluster.registry import Holding, Load, Member, Registry, RegistryAway, Seen
from server.errors import ConfigurationError
from server.pace import next_tick

if TYPE_CHECKING:
    from hypercorn.typing import Framework


_ALONE = Load()
NODE_BEAT_S = 0.5
"""How often other machines are told how this one is; what changes it says so besides."""


class Cluster:
    """This process among those of its server: alone until :meth:`join` says that there are others.

    Args:
        node: This machine's name; None if it is the only one.
        secrets: What the processes of all machines prove themselves with: with the first, and any
            is believed; none if there is but one machine.
        make_registry: Makes the registry of many machines, for this process; None if there is one.

    Attributes:
        registry: Whose each call is. It is another one after :meth:`join`.
        peers: Ask the other processes.
        new_calls: Choose whose a new call is to be.
        report: Says how this process is doing.
        count: How many processes of this machine there shall be; while another server takes over,
            its own besides.
        speaks_for_all: Whether it says what would be the same from each of them.
        stands_aside: Whether others are chosen for new calls; one that comes all the same is not
            refused.
    """

    def __init__(
        self,
        *,
        node: str | None = None,
        secrets: Sequence[str] = (),
        make_registry: Callable[[Member], Registry] | None = None,
    ) -> None:
        self.report: Callable[[], Load] = Load
        self.count = 1
        self.speaks_for_all = True
        self.stands_aside = False
        self._node = node
        self._make_registry = make_registry
        self._prover = Prover(secrets) if secrets else None
        self._directory: Directory | None = None
        self._held: dict[str, int] = {}  # at which generation, until the call is forgotten
        self._use(Member(name_of(node, None), 1 + randbits(52)))

    def _use(self, me: Member) -> None:
        self.me = me
        if self._make_registry is not None:
            self.registry: Registry = self._make_registry(me)
        else:
            self.registry = Alone(me) if self._directory is None else self._directory
        self.peers = Peers(self.registry, self._directory, self._prover)
        self.new_calls = NewCalls(me, self._directory, self._elsewhere, self.peers, self.publish)

    @property
    def are_several(self) -> bool:
        """Whether there are others, or may be."""
        return self._directory is not None or self._make_registry is not None

    @property
    def has_others(self) -> bool:
        """Whether there is more than one process for calls: not so where another one is there only
        while it takes over from the only one.
        """
        return self.count > 1 or self.has_nodes

    @property
    def has_nodes(self) -> bool:
        """Whether there may be other machines."""
        return self._make_registry is not None

    @property
    def path(self) -> str:
        """What stands before the paths of this process's own addresses; empty if it is alone."""
        return path_of(self.me.name) if self.are_several else ""

    def join(
        self,
        count: int,
        *,
        places: int | None = None,
        where: str | None = None,
        speaks_for_all: bool | None = None,
        known: int | None = None,
    ) -> None:
        """Take a place among so many processes of this machine; called before the app starts.

        Args:
            count: How many there shall be.
            places: How many there can be, those of a server that takes over from this one, or the
                other way round, among them; None for no others, and one alone takes no place.
            where: The name of their directory; None for the one that only they can know.
            speaks_for_all: Whether it says what all would; None: the first does.
            known: How many places, from the first, new calls find their way to; None for all.

        Raises:
            ConfigurationError: This system has no way to do it, or there are too many.
        """
        if count < 2 and places is None:
            return
        if not AVAILABLE:
            raise ConfigurationError(
                "several processes need Unix sockets, which this system does not have: "
                "serve with one"
            )
        self._directory = Directory.join(count, places=places, where=where, node=self._node)
        if known is not None and self._directory.number >= known:
            self.leave()
            raise ConfigurationError(
                f"the carrier knows {known} processes of this server, and as many are there: one "
                "that was taken over from still has calls; take over when it has ended"
            )
        self.count = count
        is_first = self._directory.number == 0
        self.speaks_for_all = is_first if speaks_for_all is None else speaks_for_all
        self._use(self._directory.me)

    def leave(self) -> None:
        """Give the place back; the last one to leave clears the directory away."""
        directory, self._directory = self._directory, None
        if directory is not None:
            self.count = 1
            if self.registry is directory:
                self.registry = Alone(self.me)
            directory.leave()

    async def serve(
        self,
        app: Framework,
        take_media: Callable[[socket.socket, Mapping[str, Any]], Awaitable[None]],
        *,
        max_message_bytes: int,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be one of them, and take what the others pass on, until cancelled.

        Args:
            app: Answers requests.
            take_media: Serves a media socket, which is its own from then on.
            max_message_bytes: The longest head of a request, and WebSocket message.
            task_status: Told when others can pass on.
        """
        directory = self._directory
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.registry.run)
                if directory is not None:
                    if directory is not self.registry:
                        await nursery.start(directory.run)
                    await nursery.start(
                        lambda task_status: serve_siblings(
                            directory,
                            app,
                            take_media,
                            max_message_bytes=max_message_bytes,
                            task_status=task_status,
                        )
                    )
                nursery.start_soon(self._beat)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):  # nothing to wait for: nobody answers any more
                await self.peers.aclose()

    async def _beat(self) -> None:
        while True:
            self.publish()
            every_s = NODE_BEAT_S if self._directory is None else BEAT_S
            await trio.sleep_until(next_tick(trio.current_time(), every_s))

    def proved_door(self, *, max_body_bytes: int) -> ProvedDoor | None:
        """The door for requests of other machines; None if there are none.

        Args:
            max_body_bytes: The longest body of a request.
        """
        if self._prover is None:
            return None
        return ProvedDoor(
            self.me,
            self.peers,
            self._directory,
            self._prover,
            max_body_bytes=max_body_bytes,
        )

    # -- how they are doing ----------------------------------------------------------------

    def publish(self) -> Load:
        """Say how this process is doing, now that it has changed."""
        if not self.are_several:
            return _ALONE
        load = self.report()
        if self.stands_aside:
            load = replace(load, accepts=False, draining=True)
        if self._directory is not None:
            self._directory.publish(load)
        if self.registry is not self._directory:
            self.registry.publish(load)
        return load

    @property
    def live_elsewhere(self) -> int:
        """How many calls the others have."""
        here = 0 if self._directory is None else self._directory.board.live_elsewhere()
        return here + sum(seen.load.live for seen in self._elsewhere())

    @property
    def waiting_elsewhere(self) -> int:
        """How many calls wait there to be dialled."""
        here = 0 if self._directory is None else self._directory.board.waiting_elsewhere()
        return here + sum(seen.load.waiting for seen in self._elsewhere())

    @property
    def accepts_elsewhere(self) -> bool:
        """Whether any of the others would take the next call."""
        here = self._directory is not None and self._directory.board.accepts_elsewhere()
        return here or any(seen.load.accepts for seen in self._elsewhere())

    def siblings(self) -> list[str]:
        """The processes of this machine that are there beside this one, by name."""
        return [] if self._directory is None else self._directory.there()

    def seen(self) -> list[str]:
        """All others, by name, as far as they are not known to be gone: whoever was heard of last
        is the first.
        """
        others = self.registry.others()
        return sorted(others, key=lambda name: others[name].age_s)

    def is_heard_of(self, name: str, *, within_s: float) -> bool | None:
        """Whether a process of this name, this one or another, has said something so lately; None
        while the registry is away, as nothing is heard then.
        """
        if self.registry.is_away:
            return None
        seen = self.registry.others().get(name)
        return name == self.me.name or (seen is not None and seen.age_s < within_s)

    def there(self) -> list[str]:
        """The processes of other machines that have said something lately, by name."""
        return [seen.member.name for seen in self._elsewhere()]

    def _elsewhere(self) -> Iterator[Seen]:
        """The processes of other machines that have said something lately."""
        if self._make_registry is None:
            return
        for name, seen in self.registry.others().items():
            if seen.age_s < SILENT_S and self.sibling_number(name) is None:
                yield seen

    def sibling_number(self, name: str) -> int | None:
        """The number of a process of this machine; None for any other name."""
        if self._directory is None:
            return 0 if name == self.me.name else None
        return self._directory.number_of(name)

    def name_of_number(self, number: int) -> str:
        """The name that a process of this machine has, or would have, by its number."""
        is_alone = self._node is not None and self._directory is None
        return name_of(self._node, None if is_alone else number)

    def member(self, name: str) -> Member | None:
        """Who has a name now; None for a name that nobody has."""
        if name == self.me.name:
            return self.me
        if self._directory is not None and self.sibling_number(name) is not None:
            return self._directory.member(name)
        seen = self.registry.others().get(name)
        return None if seen is None else seen.member

    def is_gone(self, member: Member) -> bool:
        """Whether a process is known to be gone, with all that it knew of its calls."""
        if member == self.me:
            return False
        if self._directory is not None and self.sibling_number(member.name) is not None:
            return self._directory.is_gone(member)
        return not self.registry.is_away and self.member(member.name) != member

    # -- our calls -------------------------------------------------------------------------

    def hold(self, call_sid: str, generation: int) -> None:
        """A call is ours from now on, at this generation."""
        if self.are_several:
            self._held[call_sid] = generation
            self.registry.announce(call_sid, generation)

    def generation(self, call_sid: str) -> int:
        """For the how-manieth time a call of ours is somebody's."""
        return self._held.get(call_sid, 1)

    def release(
        self, call_sid: str, generation: int | None = None, *, has_begun: bool = True
    ) -> None:
        """A call is forgotten here; what comes about it now is about nothing.

        Args:
            call_sid: The call.
            generation: At which it was claimed, if it is not one that has been held.
            has_begun: False for one that was to be ours, and has not begun: it may begin yet, here
                or elsewhere.
        """
        if self.are_several:
            held = self._held.pop(call_sid, 1)
            generation = held if generation is None else generation
            self.registry.release(call_sid, generation, has_begun=has_begun)

    def let_go(
        self, call_sid: str, generation: int, *, is_moved: bool = False, left: bytes = b""
    ) -> None:
        """A call has ended here: nobody has to go on with it, but it is known whose it was.

        Args:
            call_sid: The call.
            generation: For the how-manieth time it was somebody's.
            is_moved: Whether another has it.
            left: What is left of it, for whoever takes it over before that is written; empty when
                it is.
        """
        if not self.has_others:
            return
        if not is_moved:
            self.registry.keep(call_sid, generation, left, has_ended=True)
            return
        self.registry.release(call_sid, generation)  # whatever of it is not another's
        if self._held.get(call_sid) == generation:
            del self._held[call_sid]

    def of_key(self, client: str, key: str) -> str:
        """The process of this machine that remembers what was answered to an ``Idempotency-Key``.

        Which one has a key is the same for as long as that stays, but for keys that a process which
        comes has from then on. The one before may still work on a request then, or have stepped
        aside over it: the registry knows.
        """
        if (directory := self._directory) is None:
            return self.me.name
        stay = [self.member(directory.name_of(n)) for n in directory.board.staying()]
        names = [member.name for member in stay if member and not self.is_gone(member)]

        def weight(name: str) -> bytes:
            return hashlib.sha256(f"{name}\0{client}\0{key}".encode()).digest()

        return max(names or [self.me.name], key=weight)

    async def claim(self, call_sid: str, name: str) -> Holding:
        """Say that a call is to be a process's: the first claim counts.

        Raises:
            RegistryAway: It is not known; whoever was asked for the call keeps it.
        """
        return await self.registry.claim(call_sid, self.member(name))


async def chosen_for(call_sid: str, cluster: Cluster) -> str | None:
    """The process that is to have a call that has just come to this one; None if it is this one.

    Who has it already keeps it, as it is the carrier that has brought it to another: it begins no
    second time. Of a new one, or while nobody can say, it is whoever has the most room.
    """
    if not cluster.are_several:
        return None
    holding = None
    with suppress(RegistryAway):
        holding = await cluster.registry.owner(call_sid)
    if holding is None or cluster.is_gone(holding.member):
        name = cluster.new_calls.choose()
    else:
        name = holding.member.name
    return None if name == cluster.me.name else name
