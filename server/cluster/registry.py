"""The registry: which processes serve, how each is doing, and whose each call is.

A call lives in the memory of one process. What the processes of a server, on one machine or on
many, must agree on is here, as one interface: who is there (a snapshot, asked for without waiting)
and whose a call is (which may wait, bounded). A call that goes on never waits for it: what is new
of the call is said with :meth:`Registry.announce` and :meth:`Registry.keep`, which are queued, in
one order, with a bound. Only before it tells the carrier something over REST (to end the call, to
transfer it) does it ask whose it is, for a second at most (:mod:`server.call.takeover.fence`).

Two are behind it: a private directory for the processes of one machine, and Redis or Valkey for
many machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import trio

from server.errors import ServerError


class RegistryAway(ServerError):
    """The registry cannot be asked at this moment, so what it would say is not known."""


State: TypeAlias = bytes | Callable[[], bytes | None]
"""What another process needs to go on with a call; or what makes that when it is written, in the
server's loop, of the call as it is then (None if it cannot be made)."""
MADE_AT_ONCE = 5
"""So many states are made, a millisecond, before audio has its turn."""

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def made(state: State | None) -> bytes | None:
    """A state as it is to be written; None if there is none, or it cannot be made."""
    return state() if callable(state) else state


async def made_in_turn(make: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
    """Make something with a state of each, and let audio have its turn now and then."""
    all_made = []
    for number, item in enumerate(items, 1):
        all_made.append(make(item))
        if number % MADE_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return all_made


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A process of this server.

    Its name is in the addresses of its calls (``/n/NAME/stream``): letters, digits and ``-``, and
    for one of several processes of a node ``NODE.NUMBER``.
    """

    name: str
    born: int
    """Tells it from others that have had its name, or will."""

    def __str__(self) -> str:
        return f"{self.name}@{self.born}"

    @classmethod
    def parse(cls, text: str) -> Member:
        """Read what ``str`` has written.

        Raises:
            ValueError: It is no member.
        """
        name, _, born = text.rpartition("@")
        return cls(name, int(born))


@dataclass(frozen=True, slots=True)
class Load:
    """How a process is doing."""

    live: int = 0
    """Calls it has, those among them that wait to be dialled."""
    running: int = 0
    """Calls it has that have begun."""
    waiting: int = 0
    """Calls of it that wait to be dialled."""
    accepts: bool = False
    """Whether it would take the next call."""
    draining: bool = False
    dials_in_s: float = 0.0
    """When it could dial next."""
    dial_every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last heard of a member."""

    member: Member
    load: Load
    age_s: float
    """How long ago that was."""
    address: str
    """Where other members reach it: ``http://host:port`` on another machine, ``unix:PATH`` on
    this one; "" if nowhere."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Whose a call is, and for the how-manieth time it is somebody's.

    The generation is the fence: whoever has an older one has lost the call, and must neither tell
    the carrier anything about it nor write its record.
    """

    member: Member
    generation: int


@dataclass(frozen=True, slots=True)
class Seized:
    """A call that has just become ours, and what its last owner has left of it."""

    generation: int
    state: bytes
    """As :meth:`Registry.keep` was given it; empty if nothing was kept."""
    has_ended: bool = False
    """Its last owner has said that it has ended: nobody is to go on with it. Its state is then what
    is left of it, which that one has not written; empty if there is nothing to write."""


def nobody_minds(call_sid: str, generation: int) -> None:
    """A call of ours is another's, and nobody here has to be told."""


class Registry(Protocol):
    """What the processes of one server agree on.

    Attributes:
        me: This process.
        on_lost: Told of a call of ours, and at which generation it was, that turns out to be
            another's when something is said of it.
        losses: How often it has turned out to have lost what was in it. Whoever others are is
            then heard anew.
        ahead_s: How much further the clock that all members share is than this machine's.
    """

    me: Member
    on_lost: Callable[[str, int], None]
    losses: int
    ahead_s: float

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be one of them, until cancelled; whatever happens to the registry, this goes on."""
        ...

    @property
    def is_away(self) -> bool:
        """Whether it cannot be asked at this moment."""
        ...

    # -- a snapshot: sync --------------------------------------------------------------------

    def publish(self, load: Load) -> None:
        """Say how this process is doing, now that it has changed."""
        ...

    def others(self) -> Mapping[str, Seen]:
        """The members beside this one, by name; those among them that are silent, too, until
        somebody has made sure that they are gone."""
        ...

    # -- whose call it is: may wait ----------------------------------------------------------

    async def claim(self, call_sid: str, member: Member | None = None) -> Holding:
        """Say that a call is to be a member's (ours if None): the first claim counts.

        Returns:
            Whose it is: of all who claim it at once, all are told the same.

        Raises:
            RegistryAway: It is not known; whoever was asked for the call keeps it.
        """
        ...

    async def owner(self, call_sid: str) -> Holding | None:
        """Whose a call is or was, though that may be gone; None for one that nobody ever had, or
        that is over. Whoever is not among :meth:`others` now has not said anything since.

        Raises:
            RegistryAway: It is not known.
        """
        ...

    async def seize(self, call_sid: str, holding: Holding) -> Seized | None:
        """Take a call over from a member, if it is still that one's: of all who try, one does.

        Returns:
            None if somebody else has it by now, or it is over.

        Raises:
            RegistryAway: It is not known.
        """
        ...

    async def is_current(self, call_sid: str, generation: int) -> bool:
        """Whether a call of ours is still ours: asked before anything is done to it that cannot be
        undone.

        Raises:
            RegistryAway: It is not known.
        """
        ...

    async def calls_of(self, member: Member, *, ended: bool = False) -> Mapping[str, Holding]:
        """The live calls of a member that somebody can go on with, to be taken over.

        Args:
            member: Whose they are.
            ended: Those instead that have ended, and of which something is left to be written.

        Raises:
            RegistryAway: They are not known.
        """
        ...

    # -- what is new of our calls: queued, in one order ----------------------------------------

    def announce(self, call_sid: str, generation: int) -> None:
        """A call is ours, which nobody else can have; said again whenever the registry has
        forgotten it."""
        ...

    def keep(
        self,
        call_sid: str,
        generation: int,
        state: State,
        *,
        in_haste: bool = False,
        has_ended: bool = False,
    ) -> None:
        """What another process needs to go on with this call; newer takes the place of older.

        Args:
            call_sid: The call.
            generation: For the how-manieth time it is somebody's.
            state: What is needed; empty if it has ended, and there is nothing to be done.
            in_haste: Whether something would be done twice if the state before counted: it is
                written as soon as may be, and before :meth:`is_current` says that the call is ours.
            has_ended: Whether the call has: the state is what is left of it, to be written by
                whoever takes it over, and no other state comes after it.
        """
        ...

    def release(self, call_sid: str, generation: int, *, has_begun: bool = True) -> None:
        """A call is over: what comes about it from now on is about nothing.

        Args:
            call_sid: The call.
            generation: For the how-manieth time it is somebody's.
            has_begun: False for one that was to be ours, and has not begun: it is nobody's again,
                or ours, should it be asked about once more.
        """
        ...

    # -- what all processes share: may wait ----------------------------------------------------

    async def dial_turn(self, account: str, calls_per_s: float, max_wait_s: float) -> float | None:
        """Take the account's next turn to dial.

        Returns:
            In how many seconds it is; None, and no turn is taken, if that is later than
            ``max_wait_s``.

        Raises:
            RegistryAway: It is not known; this process takes its share of the rate.
        """
        ...

    async def begin_request(self, client: str, key: str, fingerprint: bytes) -> bytes | None:
        """A request with an ``Idempotency-Key`` is being worked on here.

        Returns:
            None if it is nobody else's; else the fingerprint of the request that somebody works on.

        Raises:
            RegistryAway: It is not known, and may be taken for ours: :meth:`end_request` is to
                follow.
        """
        ...

    async def end_request(self, client: str, key: str) -> None:
        """It is done.

        Raises:
            RegistryAway: It will be forgotten by itself.
        """
        ...

    # -- the model's account: queued, and a snapshot -------------------------------------------

    def tell_pause(self, kind: str, pause_s: float) -> None:
        """The model's service refuses the account: nobody needs to try for so long; with 0, what
        was told here is over."""
        ...

    def pause(self) -> tuple[str, float] | None:
        """What another process was refused, and for how long yet nobody needs to try."""
        ...
