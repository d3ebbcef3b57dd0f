"""The folder that a command is given in: what is imported from it, and what is in the way there."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import server
from server.settings.file import is_file

OURS = Path(server.__file__).parent


def import_from_here() -> None:
    """Let modules of the folder be found (``TOOLS=shop.tools``), after all that is installed.

    ``python -m server`` has the folder among the places to look in already; ``offhook`` has not.
    """
    with suppress(OSError):  # the folder is gone
        here = str(Path.cwd())
        if not {"", here} & set(sys.path):
            sys.path.append(here)


def in_the_way() -> str | None:
    """What is wrong with the folder if it has a module of this program's name; None if it has not.

    ``python -m server`` there starts that one, and cannot say so.
    """
    try:
        folder = Path.cwd()
    except OSError:
        return None
    # Whoever may not look there imports nothing from there, either.
    for found in (folder / "server.py", folder / "server" / "__init__.py"):
        if is_file(found) and found.parent.resolve() not in (OURS, OURS.parent):
            name = found.relative_to(folder)
            return (
                f"{name} in this folder has this program's name: `python -m server` and hypercorn "
                "would start it in this program's place. Give it another name, or use `offhook`"
            )
    return None
