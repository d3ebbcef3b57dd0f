"""What the webhooks of numbers were, in a file until they are so again, whoever is killed."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from server.carrier.account import NumberHooks, OwnNumber
from server.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # Windows: whoever runs two of these in one folder there has to see to it
    fcntl = None  # type: ignore[assignment]

FILE = ".offhook-dev.json"
MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Moved:
    """A number that leads here for a while."""

    before: OwnNumber
    ours: NumberHooks
    """What it was set to instead."""


class Kept:
    """The numbers that are to be set back, in the file of a folder; one process's at a time.

    Args:
        path: Of the file.
        descriptor: Of the file, opened and locked; it is closed with this.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self.by_number: dict[str, Moved] = {}

    @classmethod
    def open(cls, folder: Path) -> Kept:
        """Take the file over, with what an earlier process has left in it.

        Raises:
            ConfigurationError: It cannot be read or written, or is another process's.
        """
        path = folder / FILE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror or error}") from None
        kept = cls(path, descriptor)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_there(path, descriptor):
                    raise BlockingIOError  # another has just let go of it
            # What is behind the first line is left of a longer one.
            text = os.read(descriptor, MAX_BYTES).partition(b"\n")[0]
            moved = msgspec.json.decode(text or b"[]", type=list[Moved])
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigurationError(f"another `offhook dev` in {folder} has them") from None
        except (OSError, msgspec.DecodeError, UnicodeError) as error:
            os.close(descriptor)
            raise ConfigurationError(
                f"{path}, where it is kept how they were, cannot be read ({error}): look at the "
                "numbers in the carrier's console, and delete it"
            ) from None
        kept.by_number = {one.before.number: one for one in moved}
        return kept

    def keep(self, moved: Moved) -> None:
        """Write down how a number is; it is in the file when this returns.

        Raises:
            ConfigurationError: It cannot be written.
        """
        self.by_number[moved.before.number] = moved
        try:
            self._write()
        except OSError as error:
            del self.by_number[moved.before.number]
            raise ConfigurationError(f"{self._path}: {error.strerror or error}") from None

    def forget(self, number: str) -> None:
        """A number is as it was, or somebody else's to set."""
        del self.by_number[number]
        with suppress(OSError):  # then it is found out again that there is nothing to set back
            self._write()

    def close(self) -> None:
        """Let go of the file; it stays if numbers are in it."""
        if fcntl is None:
            os.close(self._descriptor)  # what is open cannot be deleted there
        if not self.by_number:
            with suppress(OSError):
                self._path.unlink()
        if fcntl is not None:
            os.close(self._descriptor)  # not before: whoever waits for it would have it

    def _write(self) -> None:
        line = msgspec.json.encode(list(self.by_number.values())) + b"\n"
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        if len(line) > MAX_BYTES or os.write(self._descriptor, line) < len(line):
            raise OSError("it would be too long")
        os.ftruncate(self._descriptor, len(line))


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of this name."""
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False
