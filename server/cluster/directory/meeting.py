"""What the processes of one server meet in: a private directory, its locks, and a shared secret."""

from __future__ import annotations

import hmac
import multiprocessing
import os
import shutil
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from server.errors import ConfigurationError
from server.hooks.sockets import BACKLOG

try:
    import fcntl
except ImportError:  # Windows
    AVAILABLE = False
else:
    AVAILABLE = hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")

MAX_PATH_BYTES = 90
"""Of the directory: a Unix socket's whole path may have 103 on macOS, 107 on Linux."""


def shared_secret(purpose: str) -> str:
    """A secret of 128 bits that all processes of this server have, and nobody else.

    It comes from the process's ``authkey``: random, and never on any disk. One that was spawned has
    its parent's, and a server that takes over from another is told that one's: :func:`share`.
    """
    key = bytes(multiprocessing.current_process().authkey)
    return hmac.digest(key, f"offhook {purpose}".encode(), "sha256").hex()[:32]


def secret_to_share() -> bytes:
    """What another server has to know to be one with this one; for nobody else, and for no disk."""
    return bytes(multiprocessing.current_process().authkey)


def share(secret: bytes) -> None:
    """Be one with the server whose secret this is; before anything is made of ours."""
    multiprocessing.current_process().authkey = secret


def run_directory() -> Path:
    """Where directories for what runs are made: this user's own place if the system has one, else
    everybody's."""
    if (own := os.environ.get("XDG_RUNTIME_DIR", "")) and _is_private(Path(own)):
        return Path(own)
    return Path(tempfile.gettempdir())


def private_directory(name: str) -> Path:
    """A directory that only this user may look into.

    Raises:
        ConfigurationError: Somebody else has made it, or its path is too long.
    """
    directory = run_directory() / name
    if len(os.fsencode(directory)) > MAX_PATH_BYTES:
        where = "XDG_RUNTIME_DIR or TMPDIR"
        raise ConfigurationError(f"{directory} is too long for Unix sockets: set {where}")
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    if not _is_private(directory):
        raise ConfigurationError(f"{directory} is not this user's own, private directory")
    return directory


def _is_private(directory: Path) -> bool:
    """Whether this is a directory, and no link to one, that only this user may look into."""
    try:
        facts = directory.lstat()
    except OSError:
        return False
    is_ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
    return is_ours and not facts.st_mode & 0o077


def try_lock(path: Path) -> int | None:
    """Lock a file for as long as the number that is returned stays open; None: somebody has it."""
    number = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    return number


def listen(path: Path) -> socket.socket:
    """A Unix socket that listens at this path, which may be a dead process's.

    To connect to one whose queue is full does not wait, it fails.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


def take_place(directory: Path, count: int) -> tuple[int, int]:
    """Take one of so many places: its number, and its lock; nobody else comes meanwhile.

    Raises:
        ConfigurationError: All of them are taken.
    """
    for number in range(count):
        if (lock := try_lock(_lock_of(directory, number))) is not None:
            return number, lock
    raise ConfigurationError(f"there are {count} processes of this server already")


def is_taken(directory: Path, number: int) -> bool:
    """Whether a place is somebody's who lives; nobody comes meanwhile, who would find it locked."""
    if (lock := try_lock(_lock_of(directory, number))) is None:
        return True
    os.close(lock)
    return False


def _lock_of(directory: Path, number: int) -> Path:
    return directory / f"{number}.lock"


def clear_away(directory: Path) -> None:
    """Remove the directory if nobody is left in it; nobody comes or leaves meanwhile."""
    places = [try_lock(path) for path in directory.glob("*.lock")]
    try:
        if None not in places:
            # What those have left who were killed, too; and the gate last, for whoever has got
            # one of that name may come in.
            for name in ("calls", "kept"):
                shutil.rmtree(directory / name, ignore_errors=True)  # or it was never made
            for path in directory.iterdir():
                if path.name != "gate":
                    path.unlink()
            (directory / "gate").unlink()
            with suppress(OSError):  # somebody joins at this moment
                directory.rmdir()
    finally:
        for place in places:
            if place is not None:
                os.close(place)
