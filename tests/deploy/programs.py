"""Programs that look at what is deployed, of this environment or the system's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

OF_ENVIRONMENT = str(Path(sys.executable).parent)
OF_SYSTEM = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


def find(name: str) -> str | None:
    """Where a program is; None if it is not here."""
    return shutil.which(name, path=OF_ENVIRONMENT) or shutil.which(name, path=OF_SYSTEM)


def find_all(name: str) -> list[str]:
    """Where a program is, in each of its versions that is here."""
    found = (shutil.which(name, path=place) for place in (OF_ENVIRONMENT, OF_SYSTEM))
    return list(dict.fromkeys(path for path in found if path is not None))


def run(
    *words: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program; what it says is kept.

    Args:
        words: The program and its arguments.
        cwd: Where; None for where we are.
        environment: Variables beside our own.
    """
    return subprocess.run(
        words,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
