"""The processes of one machine, in a private directory made from a secret that only they share.

::

    N.lock    held by process N as long as it lives; whoever gets the lock is N
    N.http    its Unix socket for requests that another process passes on, whole and unchanged
    N.media   its Unix socket for connected media sockets (SCM_RIGHTS): no byte of audio goes
              through two processes
    calls/    whose each call is; kept/ what another process needs to go on with it: ``claims.py``
    X.request which requests with an ``Idempotency-Key`` are worked on: ``requests.py``
    board     how many calls each has, see ``board.py``
    gate      locked by whoever comes, leaves, or takes a call over
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import structlog
import trio

from server.cluster.directory.board import MAX_WORKERS, Board
from server.cluster.directory.claims import Claims, Gate
from server.cluster.directory.keeper import Keeper
from server.cluster.directory.meeting import (
    clear_away,
    is_taken,
    private_directory,
    run_directory,
    shared_secret,
    take_place,
)
from server.cluster.directory.requests import Requests
from server.cluster.names import name_of
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
from server.errors import ConfigurationError
from server.logs import Sparing

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

JOIN_TRIES = 10
_PLACE = re.compile(r"offhook-[0-9a-f]{32}")
ORPHANED_S = 4 * 3600.0
"""No call that began so long ago lasts: the carrier's own limit, unless it is told another."""
COMING_TIMEOUT_S = 10.0
"""How long a process that comes or goes may wait for others that do."""
LEFT_TIMEOUT_S, LEFT_PAUSE_S = 3.0, 0.05
"""How long, and with which pauses, a process that stops tries the gate to see who is gone."""


def _name() -> str:
    """What the directory of this server is called: only its own processes can know."""
    return f"offhook-{shared_secret('place')}"


def clear_away_after() -> None:
    """Remove the directory after the processes that we have started, if nobody is left in it.

    The last one to leave does so itself, unless it is killed.
    """
    _clear_away_if_left(run_directory() / _name(), COMING_TIMEOUT_S)


def _clear_away_what_was_left() -> None:
    """Remove what other servers of this user's have left of which all processes were killed."""
    for directory in run_directory().glob("offhook-*"):
        if _PLACE.fullmatch(directory.name) and directory.name != _name():
            with suppress(OSError):
                if directory.lstat().st_uid == os.getuid() and (directory / "gate").exists():
                    _clear_away_if_left(directory, 0.0)


def _clear_away_if_left(directory: Path, timeout_s: float) -> None:
    with suppress(OSError):  # nobody has left one, or only the next server there would mind
        gate = Gate(directory / "gate")
        try:
            with gate.held(timeout_s) as alone:
                if alone and gate.is_the_one:
                    clear_away(directory)
        finally:
            gate.close()


@contextmanager
def _refused_in_words(directory: Path) -> Generator[None]:
    """Say what the system has against a directory as what is wrong with it, if it is there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be used: {error.strerror}") from error


class Directory:
    """This process's place among those of its machine, and a registry of them.

    What it does on disk takes microseconds, and is done at once; what is kept of calls is written
    by a thread.

    Args:
        where: The directory; somebody holds its gate.
        gate: The gate.
        places: How many processes there can be.
        node: The machine's name; None if it is the only one.

    Raises:
        ConfigurationError: There are so many already.
    """

    is_away = False
    losses = 0
    ahead_s = 0.0

    def __init__(self, where: Path, gate: Gate, *, places: int, node: str | None) -> None:
        self._where = where
        self._node = node
        self._gate = gate
        self._names = [name_of(node, number) for number in range(places)]
        self._refusals = Sparing()
        self.number, self._lock = take_place(where, places)
        try:
            self._claims = Claims(where, gate, shared_secret("state"))
            self.board = Board(where / "board", number=self.number, count=places)
        except BaseException:
            os.close(self._lock)
            raise
        self.me = self._member(self.number)
        self._requests = Requests(where, gate, self.me, self.is_gone)
        self.on_lost: Callable[[str, int], None] = nobody_minds
        self._joined_at = time.monotonic()
        self._predecessors: set[Member] = set()
        self._unannounced: dict[str, int] = {}  # at which generation; nobody else knows of them
        self._keeper = Keeper(self._claims, self._tell_unusable)

    @classmethod
    def join(
        cls,
        count: int,
        *,
        places: int | None = None,
        where: str | None = None,
        node: str | None = None,
    ) -> Self:
        """Take a place among so many processes.

        Args:
            count: How many there shall be.
            places: How many there can be, those of a server that takes over from this one, or the
                other way round, among them; None for no others.
            where: The name of their directory; None for the one that only they can know.
            node: The machine's name; None if it is the only one.

        Raises:
            ConfigurationError: There are too many, or their directory cannot be used.
        """
        if count > MAX_WORKERS:
            raise ConfigurationError(f"{count} processes; there can be {MAX_WORKERS} at most")
        directory = Path()
        for _ in range(JOIN_TRIES):
            # The last one to leave, at this moment, clears away what we are about to use.
            with suppress(FileNotFoundError):
                directory = private_directory(where or _name())
                gate = Gate(directory / "gate")
                joined = None
                try:
                    with gate.held(COMING_TIMEOUT_S) as alone:
                        if alone and gate.is_the_one:
                            with _refused_in_words(directory):
                                joined = cls(directory, gate, places=places or count, node=node)
                finally:
                    if joined is None:
                        gate.close()
                if joined is not None:
                    # Which may be much; those who are there go on meanwhile.
                    joined._predecessors = joined._claims.look_round(joined.me, ORPHANED_S)
                    joined._requests.look_round()
                    _clear_away_what_was_left()
                    return joined
        raise ConfigurationError(f"{directory} is cleared away again and again")

    def leave(self) -> None:
        """Give the place back; the last one to leave clears the directory away."""
        try:
            self.board.close()
            self._claims.release_all(self.me)  # and nobody else's, whatever their name
        except OSError as error:
            logger.warning("calls not given back", error=str(error))
        try:
            with self._gate.held(COMING_TIMEOUT_S, however_stuck=True) as alone:
                try:
                    for name in ("http", "media"):
                        self.socket_path(self.number, name).unlink(missing_ok=True)
                finally:
                    os.close(self._lock)
                if alone:
                    clear_away(self._where)
        except OSError as error:
            # Nothing is left to do it for, and what is left lying about is found by the next one.
            logger.warning("place among the processes not given back", error=str(error))
        finally:
            self._gate.close()

    # -- who is there ----------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is kept of calls, until cancelled."""
        task_status.started()
        await self._keeper.run()

    def publish(self, load: Load) -> None:
        """Say how this process is doing, now that it has changed."""
        self.board.write(load)
        with self._told():
            self._claims.release_rest()
            self._requests.release_rest()
        for call_sid, generation in [*self._unannounced.items()]:
            self.announce(call_sid, generation)

    def others(self) -> Mapping[str, Seen]:
        """The processes beside this one, by name; silent ones, too, until another is in their
        place, which then has them under ``NAME@BORN``.
        """
        found = {}
        for number in self.board.ever_there():
            seen = Seen(
                self._member(number),
                self.board.load(number),
                self.board.age_s(number),
                f"unix:{self.socket_path(number, 'http')}",
            )
            found[seen.member.name] = seen
        for each in self._predecessors:
            found[str(each)] = Seen(each, Load(), time.monotonic() - self._joined_at, "")
        return found

    def number_of(self, name: str) -> int | None:
        """The number of a process of this machine; None for another name."""
        with suppress(ValueError):
            return self._names.index(name)
        return None

    def name_of(self, number: int) -> str:
        """The name of the process with a number; one that there may be."""
        return self._names[number]

    def there(self) -> list[str]:
        """The names of the processes that are there beside this one."""
        return [self._names[number] for number in self.board.others()]

    def socket_path(self, number: int, name: str) -> Path:
        """Where a process listens for requests (``http``) or for media sockets (``media``)."""
        return self._where / f"{number}.{name}"

    def is_gone(self, member: Member) -> bool:
        """Whether a process of this machine is known to be gone. One that is slow is not: its calls
        are its own all the same.
        """
        number = self.number_of(member.name)
        if number is None or member != self._member(number):
            return True
        if number == self.number or self.board.is_there(number):
            return False
        # Without the gate whoever comes would find a place taken by us.
        with self._told(), self._gate.held() as alone:
            return alone and not is_taken(self._where, number)
        return False  # there is no descriptor to look with

    async def left_to_us(self) -> set[Member]:
        """Processes that are gone, and whose calls are still here; none of them while another
        process stays, which is to take the calls over, nor while the gate is held.

        One may have died since it last said something, so all locks are looked at.

        Raises:
            RegistryAway: The directory cannot be used.
        """

        def has_let_go(member: Member) -> bool:
            number = self.number_of(member.name)
            if number is None or member != self._member(number):
                return True
            return number != self.number and not is_taken(self._where, number)

        with self._usable():
            had = self._claims.members() - {self.me}
        with trio.move_on_after(LEFT_TIMEOUT_S):
            while True:
                with self._told(), self._gate.held(0.0) as alone:
                    if alone:
                        others = [n for n in self.board.others() if not self.board.load(n).draining]
                        if not all(has_let_go(self._member(n)) for n in others):
                            return set()
                        return {each for each in had if has_let_go(each)}
                await trio.sleep(LEFT_PAUSE_S)
        return set()

    def member(self, name: str) -> Member | None:
        """Who has a name of this machine now; None for another name."""
        number = self.number_of(name)
        return None if number is None else self._member(number)

    def _member(self, number: int) -> Member:
        return Member(self._names[number], self.board.born(number))

    # -- whose call it is ------------------------------------------------------------------

    async def claim(self, call_sid: str, member: Member | None = None) -> Holding:
        """Say that a call is to be a member's, ours if None: the first claim counts."""
        with self._usable():
            return self._claims.make(call_sid, member or self.me)

    async def owner(self, call_sid: str) -> Holding | None:
        """Whose a call is or was, though that may be gone."""
        with self._usable():
            return self._claims.owner(call_sid)

    async def seize(self, call_sid: str, holding: Holding) -> Seized | None:
        """Take a call over from a member, if it is still that one's."""
        with self._usable():
            seized = self._claims.seize(call_sid, holding, self.me)
        if seized is not None:
            self._keeper.has(call_sid, seized.generation)
        return seized

    async def is_current(self, call_sid: str, generation: int) -> bool:
        """Whether a call of ours is still ours; one that could not be announced is."""
        await self._keeper.written(call_sid)
        with self._usable():
            found = self._claims.owner(call_sid)
        if self._unannounced.get(call_sid) == generation:
            return found is None or found.generation < generation
        return found == Holding(self.me, generation)

    async def calls_of(self, member: Member, *, ended: bool = False) -> Mapping[str, Holding]:
        """The calls of a member, to be taken over."""
        found: dict[str, Holding] = {}
        with self._usable():
            for some in self._claims.of(member, ended=ended):
                found.update(some)
                await trio.lowlevel.checkpoint()  # our own calls have their turn meanwhile
        return found

    def announce(self, call_sid: str, generation: int) -> None:
        """A call is ours, which nobody else can have; said again until it is said."""
        self._unannounced[call_sid] = generation
        with self._told():
            before = self._claims.announce(call_sid, Holding(self.me, generation))
            del self._unannounced[call_sid]
            if before is not None:
                self._keeper.goes_on(call_sid, before, generation)

    def keep(
        self,
        call_sid: str,
        generation: int,
        state: State,
        *,
        in_haste: bool = False,
        has_ended: bool = False,
    ) -> None:
        """What another process needs to go on with this call; newer takes the place of older."""
        in_haste = in_haste or has_ended or not state
        self._keeper.keep(call_sid, generation, state, in_haste=in_haste, has_ended=has_ended)

    def release(self, call_sid: str, generation: int, *, has_begun: bool = True) -> None:
        """A call is over, or has not begun, and is nobody's again: the link says no more of it."""
        if self._unannounced.get(call_sid) == generation:
            del self._unannounced[call_sid]
        with self._told():
            self._claims.release(call_sid, Holding(self.me, generation))
            self._keeper.forget(call_sid, generation)

    @contextmanager
    def _usable(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self._tell_unusable(error)
            raise RegistryAway(f"the directory of the processes cannot be used: {error}") from error

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self._tell_unusable(error)

    def _tell_unusable(self, error: OSError) -> None:
        self._refusals.log(
            time.monotonic(),
            logger.error,
            "directory of the processes cannot be used; calls stay where they come",
            error=str(error),
        )

    # -- what all processes share ----------------------------------------------------------

    async def dial_turn(self, account: str, calls_per_s: float, max_wait_s: float) -> float | None:
        """Every process has a share of the rate, which its own queue keeps."""
        return 0.0

    async def begin_request(self, client: str, key: str, fingerprint: bytes) -> bytes | None:
        """A request is being worked on here, unless it is in another process of the machine."""
        with self._usable():
            return self._requests.begin(client, key, fingerprint)

    async def end_request(self, client: str, key: str) -> None:
        """A request is no longer worked on here."""
        with self._usable():
            self._requests.end(client, key)

    def tell_pause(self, kind: str, pause_s: float) -> None:
        """The model's service refuses the account: nobody needs to try for so long; with 0, what
        was told here is over."""
        unnamed, file = self._where / f"pause.{self.number}", self._where / "pause"
        theirs = self.pause()
        if theirs is not None and theirs[1] >= pause_s:  # who knows of a longer one has the word
            return
        with self._told():
            unnamed.write_text(json.dumps([kind, time.monotonic() + pause_s, str(self.me)]))
            unnamed.replace(file)

    def pause(self) -> tuple[str, float] | None:
        """What another process was refused, and for how long yet nobody needs to try."""
        with suppress(OSError, ValueError):
            kind, until, by = json.loads((self._where / "pause").read_text())
            if (left_s := until - time.monotonic()) > 0 and by != str(self.me):
                return kind, left_s
        return None
