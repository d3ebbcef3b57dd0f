"""A PostgreSQL of a run's own, and what can go wrong with one."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.processes import family

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
TIMEOUT_S = 60


def why_no_postgresql() -> str:
    """Why none can be started here; empty if one can."""
    if _programs() is None:
        return "PostgreSQL's programs are not installed"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed"
    if os.geteuid() == 0 and _user() is None:
        return "there is no user to run PostgreSQL as"
    return ""


def _programs() -> Path | None:
    path = os.pathsep.join([*map(str, DEBIAN), os.environ.get("PATH", "")])
    found = shutil.which("initdb", path=path)
    return Path(found).parent if found else None


def _user() -> str | None:
    """Whom it is run as: it refuses to be by root."""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


class PostgreSql:
    """One cluster in a directory, reached by TCP on loopback."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self._directory = directory
        self._user = _user() if os.geteuid() == 0 else None

    def _run(self, program: str, *arguments: str) -> None:
        programs = _programs()
        assert programs is not None
        subprocess.run(
            [str(programs / program), *arguments],
            user=self._user,
            cwd=self._directory,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=2 * TIMEOUT_S,
        )

    def create(self) -> None:
        """Make its files."""
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        data = str(self._directory / "data")
        self._run("initdb", "--no-sync", "--auth=trust", "--username=offhook", "-D", data)

    def start(self) -> None:
        """Start it; returns when it serves."""
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c fsync=off "
            f"-c unix_socket_directories={self._directory}"
        )
        self._control("start", "-o", options, "-l", str(self._directory / "log"))

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``smart``, ``fast`` or ``immediate``."""
        self._control("stop", "-m", mode)

    def _control(self, what: str, *arguments: str) -> None:
        data = str(self._directory / "data")
        self._run("pg_ctl", "-D", data, "-w", "-t", str(TIMEOUT_S), *arguments, what)

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        first = (self._directory / "data" / "postmaster.pid").read_text().split()[0]
        return family(int(first))

    @contextmanager
    def _connected(self) -> Generator[Any]:
        """A connection to it.

        Raises:
            ConnectionError: It is not there, or no more: another fault may have it, and be late.
        """
        import psycopg

        try:
            with psycopg.connect(
                f"host=127.0.0.1 port={self.port} user=offhook dbname=postgres", connect_timeout=10
            ) as connection:
                yield connection
        except psycopg.OperationalError as error:
            raise ConnectionError(str(error)) from None

    @contextmanager
    def locked(self, table: str) -> Generator[None]:
        """Let nobody else read or write a table, as long as our connection lives."""
        with self._connected() as connection:
            connection.execute(f'LOCK TABLE "{table}" IN ACCESS EXCLUSIVE MODE')
            yield
            connection.close()  # another fault may have ended it, and the lock with it

    def kill_connections(self) -> None:
        """End everybody's connections but our own."""
        with self._connected() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND usename = 'offhook'"
            )

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query gives."""
        with self._connected() as connection:
            return list(connection.execute(query).fetchall())
