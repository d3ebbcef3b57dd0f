"""``offhook new``: a small project that runs at once, on the simulators."""

from __future__ import annotations

import base64
import secrets
import shlex
from importlib.resources import files
from pathlib import Path

from server.errors import ConfigurationError

PROJECT = (
    "README.md",
    ".env",
    ".gitignore",
    ".dockerignore",
    "Dockerfile",
    "requirements.txt",
    "agents/order-desk.toml",
    "agents/owner.toml",
    "shop/__init__.py",
    "shop/menu.py",
    "shop/orders.py",
    "shop/tools.py",
    "model.toml",
    "receiver.py",
    "pytest.ini",
    "conftest.py",
    "tests/test_calls.py",
)
"""What is written; the package has each with ``.txt`` behind its name, and no dot before it."""
SECRET_BYTES = 32
_SECRET_FIELD = "@SECRET@"
_NEXT = """\
{folder}: {count} files

  cd {folder}
  python receiver.py        in a terminal of its own: takes the orders
  offhook dev               serves; without an account, on simulators
  python -m pytest          its calls, in a second (pip install pytest)

README.md there has the rest."""


def write_new(folder: Path) -> int:
    """Write a project, and say how to go on; the value is the exit status.

    Raises:
        ConfigurationError: There is something in its place, or it cannot be written.
    """
    write_project(folder, base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())
    print(_NEXT.format(folder=shlex.quote(str(folder)), count=len(PROJECT)))  # noqa: T201
    return 0


def write_project(folder: Path, secret: str) -> None:
    """Write all files of a project; none, if one of them is there.

    Args:
        folder: Where; it is made.
        secret: What its events are signed with, in base64.

    Raises:
        ConfigurationError: There is something in its place, or it cannot be written.
    """
    try:
        there = [name for name in PROJECT if _is_there(folder / name)]
        if there:
            raise ConfigurationError(
                f"{folder} has {', '.join(there[:5])} in it already: nothing was written; name "
                "another folder"
            )
        for name in PROJECT:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8", newline="\n") as file:
                if name == ".env":
                    path.chmod(0o600)
                file.write(_template(name).replace(_SECRET_FIELD, secret))
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}"
        ) from None


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _template(name: str) -> str:
    """What a file of the project says."""
    *folders, last = name.split("/")
    place = files("server").joinpath("commands", "pizzeria", *folders, f"{last.lstrip('.')}.txt")
    return place.read_text(encoding="utf-8")
