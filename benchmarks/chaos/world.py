"""The server as users run it, with everything around it, for one run."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks import processes
from benchmarks.chaos.database import PostgreSql, why_no_postgresql
from benchmarks.chaos.lines import LineProcess
from benchmarks.point import Keys, wait_ready
from benchmarks.ports import free_port
from benchmarks.processes import family

FULL_TRIES = 5
DISK_BYTES = 512 * 2**20
PIPE_BYTES = 4096
"""As small as a pipe can be: one that nobody reads is full at once."""
_F_SETPIPE_SZ = 1031
PREFERRED = -15
"""The server's niceness where it is to be preferred."""
ROOM, LEAST_ROOM = 40, 8
"""Calls that the server takes beyond those that are kept up, on a machine that bears so many."""
BORNE = 12
"""Calls that one core bears: the doubles and the relay take two thirds of it for so many."""
LINE_LOST_TIMEOUT_S = 5.0
MODEL_RECONNECT_BUDGET_S = 30.0


class LogPipe:
    """What the server writes, through a pipe that is read as long as somebody wants to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        reading, self.writing = os.pipe()
        with suppress(OSError):
            fcntl.fcntl(self.writing, _F_SETPIPE_SZ, PIPE_BYTES)
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        self._reader.start()

    def _read(self, reading: int) -> None:
        with self.path.open("ab") as file, open(reading, "rb", buffering=0) as pipe:
            while True:
                self._goes_on.wait()
                data = pipe.read(65_536)
                if not data:
                    return
                file.write(data)
                file.flush()

    @contextmanager
    def unread(self) -> Generator[None]:
        """Have nobody read it."""
        self._goes_on.clear()
        try:
            yield
        finally:
            self._goes_on.set()

    def close(self) -> None:
        """Let it end with its last writer."""
        self._goes_on.set()
        self._reader.join(10.0)


class Record(NamedTuple):
    """What is kept of one call, wherever it is kept."""

    call_sid: str
    state: str
    reason: str | None


@dataclass
class World:
    """Everything there is in a run."""

    directory: Path
    keys: Keys
    relay: LineProcess
    doubles: LineProcess
    database: PostgreSql | None
    log: LogPipe
    disk: Path
    is_tmpfs: bool
    port: int
    public_url: str
    workers: int
    max_calls: int
    server: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        """Where the server itself is reached."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """The server's processes, the first one first."""
        return family(self.server.pid)

    @property
    def worker_pids(self) -> list[int]:
        """Those that serve."""
        if self.workers == 1:
            return [self.server.pid]
        found = []
        for pid in self.pids[1:]:
            with suppress(OSError):
                if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    @contextmanager
    def full_disk(self) -> Generator[None]:
        """Have no room left where recordings (and SQLite's file) are."""
        if not self.is_tmpfs:
            with limited(self.pids, "FSIZE", 0):
                yield
            return
        for tries_left in reversed(range(FULL_TRIES)):
            room = os.statvfs(self.disk)
            used = (room.f_blocks - room.f_bfree) * room.f_frsize
            try:
                _mount("-o", f"remount,size={max(4096, used)}", str(self.disk))
            except subprocess.CalledProcessError:  # something has been written meanwhile
                if not tries_left:
                    raise
            else:
                break
        try:
            yield
        finally:
            _mount("-o", f"remount,size={DISK_BYTES}", str(self.disk))

    @property
    def victim(self) -> int:
        """The worker that is killed, or stopped alone."""
        return self.worker_pids[0]

    def records(self) -> list[Record]:
        """Every record there is, in the database and in files of what it did not take."""
        query = "SELECT call_sid, state, reason FROM offhook_calls"
        if self.database is not None:
            rows = self.database.rows(query)
        else:
            with closing(sqlite3.connect(self.disk / "offhook.db")) as connection:
                rows = connection.execute(query).fetchall()
        beside = self.directory if self.database is not None else self.disk
        return [Record(*row) for row in rows] + records_aside(beside)


def records_aside(directory: Path) -> list[Record]:
    """The records in a server's files of what its database did not take."""
    found = []
    for path in sorted(directory.glob("offhook-*.jsonl")):
        for line in path.read_text(errors="replace").splitlines():
            record = json.loads(line)["record"]
            found.append(Record(record["call_sid"], record["state"], record["reason"]))
    return found


@contextmanager
def limited(
    pids: list[int], resource_name: str, soft: int | None = None, more: int = 0
) -> Generator[None]:
    """Let processes have no more of something than this, or than they have now and ``more``."""
    import resource

    kind = getattr(resource, f"RLIMIT_{resource_name}")
    was = {}
    for pid in pids:
        with suppress(OSError):
            was[pid] = resource.prlimit(pid, kind)
            limit = soft if soft is not None else _in_use(pid, resource_name) + more
            resource.prlimit(pid, kind, (limit, was[pid][1]))
    try:
        yield
    finally:
        for pid, limits in was.items():
            with suppress(OSError):
                resource.prlimit(pid, kind, limits)


def _in_use(pid: int, resource_name: str) -> int:
    if resource_name == "NOFILE":
        return max(int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()) + 1
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=30)


@contextmanager
def _disk(directory: Path) -> Generator[bool]:
    """A small disk of our own, where we may mount one; says whether it is."""
    directory.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory))
    except (OSError, subprocess.SubprocessError):
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False, timeout=30)


@contextmanager
def _lines(name: str, seed: int, *, realtime: bool) -> Generator[LineProcess]:
    with processes.running(
        f"benchmarks.chaos.{name}",
        *("--seed", str(seed)),
        realtime=realtime,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield LineProcess(name, process)


@contextmanager
def open_world(
    seed: int, calls: int, workers: int, *, postgresql: bool, realtime: bool = False
) -> Generator[World]:
    """Start everything, and end it with the block.

    Args:
        seed: For what is drawn in relay and doubles.
        calls: Kept up at once.
        workers: Server processes.
        postgresql: Have records in one, where one can be started; else in SQLite.
        realtime: Prefer all of it to other programs.

    Raises:
        PointFailed: The server did not come up.
        LineFailed: Something else did not.
    """
    keys = Keys()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="offhook-chaos-")))
        directory.chmod(0o755)
        is_tmpfs = stack.enter_context(_disk(directory / "disk"))
        relay = stack.enter_context(_lines("relay", seed, realtime=realtime))
        doubles = stack.enter_context(_lines("doubles", seed, realtime=realtime))
        homes = doubles.ask(
            "keys",
            account_sid=keys.account_sid,
            auth_token=keys.auth_token,
            gemini_api_key=keys.gemini_api_key,
            api_key=keys.api_key,
        )

        def through(name: str, target: str) -> str:
            address = target.rpartition("/")[2]
            return f"127.0.0.1:{relay.ask('listen', name=name, target=address)['port']}"

        database = None
        database_url = f"sqlite:///{directory / 'disk' / 'offhook.db'}"
        if postgresql and not why_no_postgresql():
            (directory / "postgresql").mkdir()
            database = PostgreSql(directory / "postgresql", free_port())
            database.create()
            database.start()
            stack.callback(_stopped, database)
            home = through("database", f"127.0.0.1:{database.port}")
            database_url = f"postgresql://offhook@{home}/postgres"
        port = free_port()
        public_url = f"http://{through('carrier', f'127.0.0.1:{port}')}"
        log = LogPipe(directory / "server.log")
        stack.callback(log.close)
        world = World(
            directory,
            keys,
            relay,
            doubles,
            database,
            log,
            directory / "disk",
            is_tmpfs,
            port,
            public_url,
            workers,
            calls + _room(calls),
        )
        environment = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "PUBLIC_URL": public_url,
            "TWILIO_ACCOUNT_SID": keys.account_sid,
            "TWILIO_AUTH_TOKEN": keys.auth_token,
            "TWILIO_PHONE_NUMBER": "+15005550006",
            "TWILIO_API_URL": f"http://{through('rest', homes['twilio_url'])}",
            "GEMINI_API_KEY": keys.gemini_api_key,
            "GEMINI_URL": f"ws://{through('model', homes['gemini_url'])}",
            "API_KEY": keys.api_key,
            "DATABASE_URL": database_url,
            "RECORDINGS_DIR": str(directory / "disk"),
            "MAX_CALLS": str(world.max_calls),
            "CALLS_PER_S": "20",
            "LOG_JSON": "true",
            # What is numbered is never speech: nobody is asked whether they are there, and no
            # greeting is protected from them.
            "SILENCE_TIMEOUT_S": "0",
            "GREETING_PROTECT_S": "0",
            # A machine that other programs use, too, is late by more than a phone would bear.
            "MAX_LOOP_LAG_S": "1",
            "DRAIN_TIMEOUT_S": "5",
            "TICKET_TTL_S": "20",
        }
        more = ["--workers", str(workers)] if workers > 1 else []
        output: IO[bytes] = stack.enter_context(os.fdopen(log.writing, "wb", buffering=0))
        world.server = stack.enter_context(
            processes.running(
                *("server", *more),
                environment=environment,
                directory=directory,
                stdout=output,
                stderr=output,
            )
        )
        output.close()
        if realtime:  # no more than that: what is real time has no quota
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, world.server.pid, PREFERRED)
            processes.prefer_session(world.server.pid, PREFERRED)
        wait_ready(world.url, world.server)
        yield world


def _room(calls: int) -> int:
    """How many more calls are let in: else a burst holds everything up, and not only the server."""
    return max(LEAST_ROOM, min(ROOM, BORNE * (os.cpu_count() or 1) - calls))


def _stopped(database: PostgreSql) -> None:
    with suppress(subprocess.SubprocessError, OSError):
        database.stop("immediate")
