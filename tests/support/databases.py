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
from typing import NoReturn

import pytest

from tests.support.required import is_required

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a cluster that is reached by a Unix socket only; gives its URL.

    Where it cannot be, the tests that want it are skipped; with ``REQUIRE_POSTGRESQL`` set they
    fail.
    """
    initdb = shutil.which("initdb", path=os.pathsep.join([*map(str, DEBIAN), os.environ["PATH"]]))
    if initdb is None:
        _do_without("PostgreSQL is not installed")
    if importlib.util.find_spec("psycopg") is None:
        _do_without("psycopg is not installed")
    user = _unprivileged_user()
    # Not one of pytest's directories: those are closed to other users.
    with tempfile.TemporaryDirectory(prefix="offhook-") as directory:
        if user is not None:
            shutil.chown(directory, user)

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


def _unprivileged_user() -> str | None:
    """Whom PostgreSQL is run as: it refuses to be by root. None for whoever runs the tests."""
    if os.name != "posix":
        _do_without("PostgreSQL is started on Unix only")
    if os.geteuid() != 0:
        return None
    import pwd

    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    _do_without("there is no user to run PostgreSQL as")


def _do_without(reason: str) -> NoReturn:
    if is_required("postgresql"):
        pytest.fail(reason)
    pytest.skip(reason)
