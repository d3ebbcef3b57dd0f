"""The names of processes, and how they stand in the addresses of their calls."""

from __future__ import annotations

import re

MAX_NODE_CHARS = 63
"""As long as a name in the DNS may be, which a pod's is."""
_NODE = rf"[A-Za-z0-9][A-Za-z0-9-]{{0,{MAX_NODE_CHARS - 1}}}"
_NAME = re.compile(rf"{_NODE}(?:\.[0-9]{{1,2}})?")
_NAMED = re.compile(r"/n/([^/]+)(/.+)")


def is_name(text: str) -> bool:
    """Whether a process can have this name: ``NODE``, ``NODE.NUMBER`` or ``NUMBER``."""
    return _NAME.fullmatch(text) is not None


def name_of(node: str | None, number: int | None) -> str:
    """The name of a process.

    Args:
        node: Its machine; None where there is but one.
        number: Which of several of its machine it is; None for the only one.
    """
    if node is None:
        return str(number or 0)
    return node if number is None else f"{node}.{number}"


def path_of(name: str) -> str:
    """What stands before the paths of a process's own addresses, ``/n/NAME``."""
    return f"/n/{name}"


def split(path: str) -> tuple[str, str] | None:
    """The name in a path, and the path without it; None if it names nobody.

    The name may be anything: see :func:`is_name`.
    """
    found = _NAMED.fullmatch(path)
    return None if found is None else (found[1], found[2])
