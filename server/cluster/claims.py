"""Whose each call is, among the processes of one server.

A claim is a symbolic link: CallSid -> the process that has the call. Whoever makes it first,
atomically, has decided. Only the owner gives it back, and only from an owner that is gone may
another take it over; since a link cannot be compared and changed in one step, both are done behind
a gate that the processes share, and look again there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.cluster.board import Member

GATE_TIMEOUT_S = 0.5
"""Behind it are a few system calls; a process that stops there holds nobody up for longer."""
GATE_PAUSE_S = 0.0005
CLAIM_TRIES = 20


class Gate:
    """A lock on a file, which goes with the process that holds it, however that ends.

    Args:
        path: The file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)

    @contextmanager
    def held(self, timeout_s: float = GATE_TIMEOUT_S) -> Generator[bool]:
        """Hold the lock, if it can be had within this time: the value says whether.

        Whoever waits blocks the whole process, so nothing behind it may take long.
        """
        held = self._lock(timeout_s)
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
    """The links in one directory.

    Args:
        directory: Has nothing else in it.
        gate: For whoever changes a link that is there.
    """

    def __init__(self, directory: Path, gate: Gate) -> None:
        self._directory = directory
        self._gate = gate

    def make(
        self, call_sid: str, claimant: Member, *, is_there: Callable[[Member], bool]
    ) -> Member:
        """Claim a call for a process.

        Args:
            call_sid: Any text.
            claimant: Who is to have it.
            is_there: Whether a process that has it already is one to leave it to.

        Returns:
            Whose it is: of all who claim it at once, all are told the same.

        Raises:
            OSError: The directory cannot be used.
        """
        link = self._link(call_sid)
        owner = claimant
        for _ in range(CLAIM_TRIES):
            try:
                link.symlink_to(str(claimant))
            except FileExistsError:
                pass
            else:
                return claimant
            if (found := _read(link)) is None:
                continue  # it was given back at this moment
            owner = found
            if is_there(owner):
                return owner
            if self._take_over(link, owner, claimant):
                return claimant
        return owner

    def _take_over(self, link: Path, owner: Member, claimant: Member) -> bool:
        with self._gate.held() as alone:
            if not alone or _read(link) != owner:
                return False
            unnamed = link.with_name(f"{link.name}.{claimant}")
            unnamed.unlink(missing_ok=True)
            unnamed.symlink_to(str(claimant))
            unnamed.replace(link)
        return True

    def owner(self, call_sid: str) -> Member | None:
        """Whose a call is; None for one that nobody has.

        Raises:
            OSError: The directory cannot be used.
        """
        return _read(self._link(call_sid))

    def release(self, call_sid: str, owner: Member) -> None:
        """Give a call back, unless another has taken it over meanwhile.

        Raises:
            OSError: The directory cannot be used.
        """
        link = self._link(call_sid)
        with self._gate.held() as alone:
            if alone and _read(link) == owner:
                link.unlink(missing_ok=True)

    def release_all(self, number: int, *, older_than_s: float = 0.0) -> None:
        """Give back what the processes with this number had; called behind the gate.

        Args:
            number: Whose they are, or were.
            older_than_s: Claims that were made later than so long ago are kept. They are of one
                that is gone, and say so to whoever asks.

        Raises:
            OSError: The directory cannot be used.
        """
        kept_since = time.time() - older_than_s
        for link in self._directory.iterdir():
            with suppress(FileNotFoundError):
                owner = _read(link)
                is_old = older_than_s <= 0 or link.lstat().st_mtime < kept_since
                if owner is not None and owner.number == number and is_old:
                    link.unlink(missing_ok=True)

    def _link(self, call_sid: str) -> Path:
        # Whoever may ask for a call may write any name; a digest is never a path.
        name = hashlib.sha256(call_sid.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self._directory / name


def _read(link: Path) -> Member | None:
    """What a link says; None if it is gone, as any of them may be by the time one looks."""
    with suppress(FileNotFoundError, ValueError):
        return Member.parse(str(link.readlink()))
    return None
