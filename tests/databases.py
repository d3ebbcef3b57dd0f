"""A PostgreSQL of the test run's own, where one is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a cluster that is reached by a Unix socket only; gives its URL."""
    initdb = shutil.which("initdb", path=os.pathsep.join([*map(str, DEBIAN), os.environ["PATH"]]))
    if initdb is None or importlib.util.find_spec("psycopg") is None or os.name != "posix":
        pytest.skip("PostgreSQL or psycopg is not installed")
    # PostgreSQL refuses to be run by root.
    user = "postgres" if os.geteuid() == 0 else None
    # Not one of pytest's directories: those are closed to other users.
    with tempfile.TemporaryDirectory(prefix="offhook-") as directory:
        if user is not None:
            try:
                shutil.chown(directory, user)
            except LookupError:
                pytest.skip("there is no user to run PostgreSQL as")

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [str(Path(initdb).parent / program), *arguments],
                user=user,
                cwd=directory,
                check=True,
                stdout=subprocess.DEVNULL,
            )

        data = f"{directory}/data"
        run("initdb", "--no-sync", "--auth=trust", "--username=offhook", "-D", data)
        options = f"-c listen_addresses='' -c unix_socket_directories={directory} -c fsync=off"
        log = f"{directory}/log"
        run("pg_ctl", "-D", data, "-o", options, "-l", log, "-w", "-t", "120", "start")
        try:
            yield f"postgresql://offhook@/postgres?host={directory}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "-t", "120", "stop")
