"""Files of records that the database did not take, until one takes them.

A record a line, as JSON, with the events of its call; or one event of a call without one. There are
two kinds: ``offhook-unsaved-…`` waits for the database and is taken up by the next process that
finds it; ``offhook-refused-…`` has what no database will take, and waits for people. What is in
them are transcripts, so only their owner may read them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from sqlalchemy.engine import URL

from server.records.database.tables import EVENTS, checked, shown, writable

try:
    import fcntl
except ImportError:  # Windows: nobody there runs several processes of us
    fcntl = None  # type: ignore[assignment]

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Far beyond the record of a day."""
UNFINISHED = ".part"
EVENT = "event"
"""What a line has in the place of a record if it is an event."""
Kind = Literal["unsaved", "refused"]


class Aside:
    """The files of one database in a directory; everything here may block, and raise ``OSError``.

    Args:
        directory: Where they are; made when it is first needed.
        url: The database. What one did not take is not given to another.
    """

    def __init__(self, directory: Path, url: URL) -> None:
        self.directory = directory
        is_file = url.get_backend_name() == "sqlite"
        name = Path(str(url.database)).absolute() if is_file else url.database
        place = f"{url.get_backend_name()} {url.host} {url.port} {name}"
        self._database = hashlib.sha256(place.encode()).hexdigest()[:8]
        self._written = 0

    def write(
        self,
        kind: Kind,
        records: Sequence[Mapping[str, Any]],
        reason: str = "",
        *,
        events: Sequence[Mapping[str, Any]] = (),
    ) -> Path:
        """Write records to a file of their own; when this returns they survive the machine.

        Args:
            kind: What is to become of them.
            records: As :meth:`server.records.store.Records.keep` takes them.
            reason: Why nobody has taken them.
            events: Those that belong to none of the records.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._written += 1
        name = f"{time.time_ns()}-{os.getpid()}-{self._written}.jsonl"
        path = self.directory / f"{self._start_of(kind)}{name}"
        unfinished = path.with_name(path.name + UNFINISHED)
        # Nobody looks for it by its first name, and by the next it is locked: who looks for files
        # meanwhile claims nothing unfinished.
        new = unfinished if fcntl is None else unfinished.with_name(f".{unfinished.name}")
        with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as to:
            try:
                _lock(to)
                if fcntl is not None:
                    new.rename(unfinished)
                for record in records:
                    to.write(_line(record, reason))
                for event in events:
                    to.write(json.dumps({EVENT: event}).encode() + b"\n")
                to.flush()
                os.fsync(to.fileno())
                if fcntl is None:
                    to.close()
                unfinished.rename(path)
            except BaseException:
                for there in (new, unfinished):
                    there.unlink(missing_ok=True)
                raise
        self._sync()
        return path

    def is_closed_to_us(self) -> bool:
        """Whether nothing could be written here as things are."""
        try:
            self.directory.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a folder above it is closed
            return True
        return not os.access(self.directory, os.W_OK)

    def unsaved(self) -> list[Path]:
        """What waits for the database, the oldest first, what a dying process began included."""
        start = self._start_of("unsaved")
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(path for path in self.directory.iterdir() if path.name.startswith(start))
        return []

    def of_others(self) -> int:
        """How many files there are of records that another database did not take."""
        return len(set(self._files_of_all("unsaved")) - set(self.unsaved()))

    def of_other_users(self) -> int:
        """How many files wait for this database, and belong to another user of the machine."""
        found = 0
        for path in self.unsaved():
            with suppress(FileNotFoundError, NotADirectoryError):
                status = path.lstat()
                found += stat.S_ISREG(status.st_mode) and not _is_ours(status)
        return found

    @contextmanager
    def claimed(self, path: Path) -> Iterator[IO[bytes] | None]:
        """Have a file for oneself; None if it is another process's, gone, or none of ours.

        A process that dies lets go of what it has claimed.
        """
        try:
            fd = os.open(path, os.O_RDONLY | _flag("O_NOFOLLOW") | _flag("O_NONBLOCK"))
        except OSError:
            yield None
            return
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            yield None
            return
        with os.fdopen(fd, "rb") as file:
            # Whoever had it before may have taken it up and deleted it, or finished it.
            yield file if _is_ours(status) and _lock(file) and _is_at(path, status) else None

    def finish(self, path: Path, file: IO[bytes], *, is_whole: bool) -> Path | None:
        """Delete a claimed file, or keep it for people if not all its lines could be taken up."""
        if fcntl is None:
            file.close()
        if is_whole:
            path.unlink()
            return None
        name = path.name.removeprefix(self._start_of("unsaved")).removesuffix(UNFINISHED)
        return path.rename(path.with_name(self._start_of("refused") + name))

    def delete_before(self, written_at: float) -> int:
        """Delete our user's files older than this, of both kinds and whatever database.

        What people said is not kept longer because DATABASE_URL was changed meanwhile.

        Returns:
            How many there were.
        """
        deleted = 0
        failure: OSError | None = None
        for path in (*self._files_of_all("unsaved"), *self._files_of_all("refused")):
            try:
                status = path.lstat()
                if _is_ours(status) and status.st_mtime < written_at:
                    path.unlink()
                    deleted += 1
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:  # the others go all the same
                failure = error
        try:
            if failure is not None:
                raise failure
        finally:
            failure = None  # or it would be kept by this frame, to which it leads back
        return deleted

    def _files_of_all(self, kind: Kind) -> list[Path]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return list(self.directory.glob(f"offhook-{kind}-*"))
        return []

    def _start_of(self, kind: str) -> str:
        return f"offhook-{kind}-{self._database}-"

    def _sync(self) -> None:
        """See to it that the file's name survives the machine, too."""
        if hasattr(os, "O_DIRECTORY"):
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def read_lines(file: IO[bytes]) -> Iterator[dict[str, Any] | None]:
    """Read the records of a file, as their table takes them; None for each line that is none.

    An event of a call without a record stands alone, as if it were beside one.
    """
    while line := file.readline(MAX_LINE_BYTES):
        try:
            said = json.loads(line)
            yield {EVENTS: [said[EVENT]]} if EVENT in said else checked(said["record"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            yield None


def _line(record: Mapping[str, Any], reason: str) -> bytes:
    """One record as a line; what is no JSON is the very reason why some are here."""
    try:
        text = json.dumps({"reason": reason, "record": record}, default=shown)
    except (ValueError, TypeError, RecursionError):
        fields = {str(name): writable(value) for name, value in record.items()}
        text = json.dumps({"reason": reason, "record": fields})
    return text.encode() + b"\n"


def _is_ours(status: os.stat_result) -> bool:
    """Whether this is a file, not a link or a folder, and belongs to the user that we run as."""
    is_file = stat.S_ISREG(status.st_mode)
    return is_file and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _lock(file: IO[bytes]) -> bool:
    if fcntl is None:
        return not str(file.name).endswith(UNFINISHED)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), status)
    except OSError:
        return False


def _flag(name: str) -> int:
    return getattr(os, name, 0)
