"""Whose each call is, among the processes of one machine.

A claim is a symbolic link: CallSid -> the process that has the call, and the generation, which is
one more each time it is taken over. Whoever makes the link first, atomically, has decided. Since a
link cannot be compared and changed in one step, whatever changes one that is there does it behind a
gate that the processes share, and looks again there.

What another process needs to go on with a call lies in a file of its own for each generation, so
that one who has lost the call cannot write over what its next owner keeps. It is sealed: a file
outlives processes that are all killed at once, and what people said is not to.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from server.cluster.registry import Holding, Member, Seized
from server.cluster.sealing import ENDED, LIVE, has_ended, seal, unsealed

with suppress(ImportError):  # Windows, where there is one process only
    import fcntl

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

GATE_TIMEOUT_S = 0.5
"""Behind it are a few system calls; a process that stops there holds nobody up for longer."""
GATE_PAUSE_S = 0.0005
CLAIM_TRIES = 20
AT_ONCE = 20
"""Links given back behind the gate in one go, which is a millisecond of whoever waits there."""
LOOKED_AT_ONCE = 200
"""Links that are read in one go, which is a few milliseconds."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+@-]{0,127}")
"""A call's name that may be a file's, as all are that carriers give; of another there is a digest.
"""


class Gate:
    """A lock on a file, which goes with the process that holds it, however that ends.

    One that is stopped while it holds it does so for as long as it stands. That is waited for once:
    until the lock has been had again, it is only tried, or each of the calls that are to be taken
    over would hold all others up.

    Args:
        path: The file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        self._is_stuck = False

    @contextmanager
    def held(
        self, timeout_s: float = GATE_TIMEOUT_S, *, however_stuck: bool = False
    ) -> Generator[bool]:
        """Hold the lock, if it can be had within this time: the value says whether.

        Whoever waits blocks the whole process, so nothing behind it may take long.

        Args:
            timeout_s: How long it is waited for; 0 tries it.
            however_stuck: Whether it is waited for though that was in vain the last time: for
                whoever has nothing else to do.
        """
        held = self._lock(0.0 if self._is_stuck and not however_stuck else timeout_s)
        self._is_stuck = not held and (self._is_stuck or timeout_s > 0.0)
        try:
            yield held
        finally:
            if held:
                fcntl.flock(self._number, fcntl.LOCK_UN)

    def _lock(self, timeout_s: float) -> bool:
        give_up_at = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    return False
                time.sleep(GATE_PAUSE_S)
            else:
                return True

    @property
    def is_the_one(self) -> bool:
        """Whether this file still has its name: the last process to leave removes it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._number), self._path.stat())
        return False

    def close(self) -> None:
        """Give the file back, and the lock if it is held."""
        os.close(self._number)


class Claims:
    """The links of one directory, and what is kept of the calls; of all of it, OSError says that
    the directory cannot be used.

    Args:
        directory: The processes' own.
        gate: For whoever changes a link that is there.
        secret: What is kept of calls is sealed with this, which all processes have.
    """

    def __init__(self, directory: Path, gate: Gate, secret: str) -> None:
        self._links, self._kept = directory / "calls", directory / "kept"
        for each in (self._links, self._kept):
            each.mkdir(mode=0o700, exist_ok=True)
        self._gate = gate
        self._secrets = (secret,)
        self._unreleased: dict[Path, Holding] = {}

    def make(self, call_sid: str, claimant: Member) -> Holding:
        """Claim a call for a process: the first claim counts, whatever has become of its maker.

        Args:
            call_sid: Any text.
            claimant: Who is to have it.

        Returns:
            Whose it is: of all who claim it at once, all are told the same.

        Raises:
            OSError: The directory cannot be used.
        """
        link, ours = self._link(call_sid), Holding(claimant, 1)
        self._unreleased.pop(link, None)  # whoever had it here may have it again
        for _ in range(CLAIM_TRIES):
            try:
                link.symlink_to(_written(ours))
            except FileExistsError:
                pass
            else:
                return ours
            if (found := _read(link)) is not None:
                return found
            # It was given back at this moment.
        raise OSError("a call is claimed and given back again and again")

    def announce(self, call_sid: str, holding: Holding) -> int | None:
        """Say that a call is a process's; one that has it at a higher generation keeps it.

        Returns:
            At which generation it was that process's before, if it was: what was kept of it goes
            along.
        """
        link = self._link(call_sid)
        self._unreleased.pop(link, None)
        try:
            link.symlink_to(_written(holding))
        except FileExistsError:
            found = _read(link)
            is_newer = found is None or found.generation <= holding.generation
            if found == holding or not is_newer:
                return None
            is_own = found is not None and found.member == holding.member
            if self._replace(link, found, holding, takes_along=is_own) is None:
                return None
            if found is not None and is_own:
                return found.generation
        return None

    def owner(self, call_sid: str) -> Holding | None:
        """Whose a call is; None for one that nobody has."""
        return _read(self._link(call_sid))

    def seize(self, call_sid: str, holding: Holding, claimant: Member) -> Seized | None:
        """Take a call over from whoever has it, if that is still so.

        Raises:
            TimeoutError: Somebody holds the gate.
        """
        link = self._link(call_sid)
        ours = Holding(claimant, holding.generation + 1)
        kept = self._replace(link, holding, ours, takes_along=True)
        if kept is None:
            return None
        if not kept:
            return Seized(ours.generation, b"")
        (sealed,) = kept
        state = unsealed(sealed, call_sid, self._secrets)
        return Seized(ours.generation, state, has_ended=has_ended(sealed))

    def _replace(
        self, link: Path, before: Holding | None, after: Holding, *, takes_along: bool
    ) -> Sequence[bytes] | None:
        """Say that a call is another's by now, or ours at another generation.

        What was kept of it goes along, before that is said: whoever dies in here has lost none of
        it, nor the call, and where this fails nothing has been done.

        Returns:
            What was kept, if it goes along and there is anything; None if it is not so any more.
        """
        with self._gate.held() as alone:
            if not alone:
                raise TimeoutError("the gate of the processes is held for too long")
            if _read(link) != before:
                return None
            kept: list[bytes] = []
            if before is not None and takes_along:
                there, here = (self._file(link, each.generation) for each in (before, after))
                here.unlink(missing_ok=True)  # of one that died in here
                with suppress(FileNotFoundError):
                    here.hardlink_to(there)
                    kept = [here.read_bytes()]
            unnamed = link.with_name(f".{link.name}.{after.member.born}")
            unnamed.unlink(missing_ok=True)
            unnamed.symlink_to(_written(after))
            unnamed.replace(link)
            if kept:
                with suppress(OSError):  # it is in nobody's way
                    there.unlink(missing_ok=True)
        return kept

    def release(self, call_sid: str, holding: Holding) -> None:
        """Give a call back, unless another has taken it over meanwhile; if somebody holds the gate
        just now, :meth:`release_rest` does it."""
        link = self._link(call_sid)
        self._unreleased[link] = holding
        self.release_rest()

    def release_rest(self) -> None:
        """Give back what could not be given back at once."""
        if self._unreleased and self._unlink(self._unreleased.items(), timeout_s=0.0):
            self._unreleased.clear()

    def release_all(self, member: Member) -> None:
        """Give back what a process has; what was kept of it is forgotten."""
        self._give_back(
            (link, holding) for link, holding in self._all() if holding.member == member
        )

    def release_old(self, name: str, *, older_than_s: float) -> None:
        """Give back what processes with this name had that are gone.

        Args:
            name: Whose they were.
            older_than_s: Claims that were made later than so long ago are kept: they say to whoever
                asks that their process is gone.
        """
        kept_since = time.time() - older_than_s

        def is_old(link: Path) -> bool:
            with suppress(FileNotFoundError):
                return link.lstat().st_mtime < kept_since
            return False

        self._give_back(
            (link, holding)
            for link, holding in self._all()
            if holding.member.name == name and is_old(link)
        )

    def _all(self) -> Iterator[tuple[Path, Holding]]:
        """Every link and what it says: a walk of many system calls, never to be behind the gate."""
        for link in self._links.iterdir():
            if (holding := _read(link)) is not None:
                yield link, holding

    def _give_back(self, found: Iterable[tuple[Path, Holding]]) -> None:
        links = list(found)
        for first in range(0, len(links), AT_ONCE):
            some = links[first : first + AT_ONCE]
            if self._unlink(some, timeout_s=GATE_TIMEOUT_S):
                for link, holding in some:
                    self._file(link, holding.generation).unlink(missing_ok=True)

    def _unlink(self, links: Iterable[tuple[Path, Holding]], *, timeout_s: float) -> bool:
        with self._gate.held(timeout_s) as alone:
            if alone:
                for link, holding in links:
                    if _read(link) == holding:
                        link.unlink(missing_ok=True)
            return alone

    def of(self, member: Member, *, ended: bool = False) -> Iterator[Sequence[tuple[str, Holding]]]:
        """The calls of a process that somebody can go on with; or those that have ended, and of
        which something is left. In parts: the links may be many, as those of ended calls stay."""
        kind, links = ENDED if ended else LIVE, list(self._links.iterdir())
        for first in range(0, len(links), LOOKED_AT_ONCE):
            yield [
                (link.name, holding)
                for link in links[first : first + LOOKED_AT_ONCE]
                if (holding := _read(link)) is not None
                and holding.member == member
                and _is_plain(link.name)
                and self._kind(link, holding) == kind
            ]

    def look_round(self, member: Member, older_than_s: float) -> set[Member]:
        """See what those have left that had a process's name; returns whose calls are still here.

        Of one that has died the carrier may yet ask for its last calls, but not for older ones.
        """
        self.release_old(member.name, older_than_s=older_than_s)
        return self.namesakes(member)

    def namesakes(self, member: Member) -> set[Member]:
        """Other processes that have had a process's name, and whose calls are here."""
        return {each for each in self.members() if each.name == member.name and each != member}

    def members(self) -> set[Member]:
        """The processes whose calls are here, be they there or gone."""
        return {holding.member for _, holding in self._all()}

    # -- what is kept of a call ------------------------------------------------------------

    def keep(
        self, call_sid: str, generation: int, state: bytes, *, has_ended: bool = False
    ) -> None:
        """Write what another process needs of a call, in place of what was there."""
        file = self._file(self._link(call_sid), generation)
        unnamed = file.with_name(f".{file.name}")
        with os.fdopen(os.open(unnamed, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as out:
            if state:
                out.write(seal(state, call_sid, self._secrets, has_ended=has_ended))
        unnamed.replace(file)

    def forget(self, call_sid: str, generation: int) -> None:
        """Remove what was kept of a call at this generation."""
        self._file(self._link(call_sid), generation).unlink(missing_ok=True)

    def _kind(self, link: Path, holding: Holding) -> bytes:
        """What kind of state is kept of a call; empty for none."""
        with suppress(FileNotFoundError), self._file(link, holding.generation).open("rb") as kept:
            return kept.read(1)
        return b""

    def _link(self, call_sid: str) -> Path:
        # Whoever may ask for a call may write any name; a digest is never a path.
        if _is_plain(call_sid):
            return self._links / call_sid
        digest = hashlib.sha256(call_sid.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self._links / f"-{digest}"

    def _file(self, link: Path, generation: int) -> Path:
        return self._kept / f"{link.name}.{generation}"


def _is_plain(name: str) -> bool:
    return _PLAIN.fullmatch(name) is not None


def _written(holding: Holding) -> str:
    return f"{holding.member} {holding.generation}"


def _read(link: Path) -> Holding | None:
    """What a link says; None if it is gone, as any of them may be by the time one looks."""
    with suppress(FileNotFoundError, ValueError):
        member, _, generation = str(link.readlink()).rpartition(" ")
        return Holding(Member.parse(member), int(generation))
    return None
