"""Which requests with an ``Idempotency-Key`` are worked on, among the processes of one machine.

Requests with one key all go to one process, but not always to the same: its keys are another's when
it has died, or steps aside for the server that takes over, and some are a new process's when that
comes. So whoever works on a request says so by a symbolic link, named after client and key: request
-> the process, and the request's fingerprint. Whoever makes the link first has the request. That of
a process that is gone is removed behind the gate, by whoever wants it or is next in that one's
place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from server.cluster.directory.claims import CLAIM_TRIES, Gate
from server.cluster.registry import Member

_SUFFIX = ".request"


class Requests:
    """The links of one directory; of all of it, OSError says that the directory cannot be used.

    Args:
        directory: The processes' own.
        gate: For whoever removes a link that is another's.
        me: This process.
        is_gone: Says whether another is gone; it may want the gate itself.
    """

    def __init__(
        self, directory: Path, gate: Gate, me: Member, is_gone: Callable[[Member], bool]
    ) -> None:
        self._directory = directory
        self._gate = gate
        self._me = me
        self._is_gone = is_gone
        self._ours: dict[Path, bytes] = {}
        self._over: set[Path] = set()  # of ours, until their links are removed

    def begin(self, client: str, key: str, fingerprint: bytes) -> bytes | None:
        """A request is worked on here, unless one with its key is already.

        Returns:
            None if it is ours now; else the fingerprint of the one that somebody works on.

        Raises:
            OSError: The directory cannot be used, or somebody holds the gate.
        """
        link = self._link(client, key)
        if (ours := self._ours.get(link)) is not None:
            return ours
        for _ in range(CLAIM_TRIES):
            try:
                link.symlink_to(f"{self._me} {fingerprint.hex()}")
            except FileExistsError:
                pass
            else:
                self._ours[link] = fingerprint
                self._over.discard(link)
                return None
            if (found := _read(link)) is None:
                continue  # it was removed at this moment
            member, theirs = found
            # One of ours by now is of a request that is over, and could not be removed.
            if member != self._me and not self._is_gone(member):
                return theirs
            if not self._remove(link, found):
                raise TimeoutError("the gate of the processes is held for too long")
        raise OSError("a request is begun and ended again and again")

    def end(self, client: str, key: str) -> None:
        """A request is no longer worked on here; :meth:`release_rest` tries again what fails.

        Raises:
            OSError: The directory cannot be used.
        """
        link = self._link(client, key)
        if self._ours.pop(link, None) is not None:
            self._over.add(link)
            self.release_rest()

    def release_rest(self) -> None:
        """Remove the links of all requests that are over here.

        It needs no gate: nobody else touches a link of ours while we live.
        """
        for link in [*self._over]:
            found = _read(link)
            if found is not None and found[0] == self._me:
                link.unlink(missing_ok=True)
            self._over.discard(link)

    def look_round(self) -> None:
        """Remove what those have left that were in our place before; what cannot be just now lies
        there until somebody wants it.
        """
        for link in self._directory.glob(f"*{_SUFFIX}"):
            found = _read(link)
            if found is not None and found[0].name == self._me.name and found[0] != self._me:
                self._remove(link, found)

    def _remove(self, link: Path, found: tuple[Member, bytes]) -> bool:
        """Remove a link if it still says this; False where the gate is not to be had."""
        with self._gate.held() as alone:
            if alone and _read(link) == found:
                link.unlink(missing_ok=True)
            return alone

    def _link(self, client: str, key: str) -> Path:
        digest = hashlib.sha256(f"{client}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
        return self._directory / f"{digest}{_SUFFIX}"


def _read(link: Path) -> tuple[Member, bytes] | None:
    """Who works on a request, and its fingerprint; None if the link is gone, or says nothing."""
    with suppress(FileNotFoundError, ValueError):
        member, _, fingerprint = str(link.readlink()).rpartition(" ")
        return Member.parse(member), bytes.fromhex(fingerprint)
    return None
