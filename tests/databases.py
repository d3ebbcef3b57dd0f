"""A PostgreSQL of the test run's own, where one is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """Start a cluster in this directory, reached by a Unix socket only; gives its URL."""
    initdb = shutil.which("initdb", path=os.pathsep.join([*map(str, DEBIAN), os.environ["PATH"]]))
    if initdb is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("PostgreSQL or psycopg is not installed")
    user = None
    if os.name == "posix" and os.geteuid() == 0:  # which initdb refuses to be run as
        if shutil.which("postgres") is None and not DEBIAN:
            pytest.skip("no user to run PostgreSQL as")
        user = "postgres"
        shutil.chown(directory, user)
        for parent in directory.parents:  # pytest's directories are closed to other users
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(Path(initdb).parent / program), *arguments],
            user=user,
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    data = directory / "data"
    run("initdb", "--no-sync", "--auth=trust", "--username=offhook", "-D", str(data))
    options = f"-c listen_addresses='' -c unix_socket_directories={directory} -c fsync=off"
    log = str(directory / "log")
    run("pg_ctl", "-D", str(data), "-o", options, "-l", log, "-w", "-t", "120", "start")
    try:
        yield f"postgresql://offhook@/postgres?host={directory}"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
