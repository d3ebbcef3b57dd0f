"""Which files a server is made of that restart it when they change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import trio

from server.agent.roster.roster import files_beside
from server.settings.file import is_folder

WATCH_S = 0.5
"""How often it is looked."""
SETTLED_S = 0.2
"""Files that were changed together are one change: it is waited until nothing changes for this."""
MAX_SETTLING = 50
"""So often at most."""
MAX_FILES = 5_000
MAX_DEPTH = 8
SKIPPED = frozenset({"__pycache__", "node_modules", "tests", "site-packages"})
VENV_FILE = "pyvenv.cfg"

Versions = Mapping[str, tuple[int, int]]
"""When each file was written, and how large it is."""


def versions_in(
    folder: Path,
    others: tuple[Path, ...] = (),
    left_out: Path | None = None,
    agents: Path | None = None,
) -> Versions:
    """The Python files of a folder, down to a depth, without tests, hidden and foreign ones.

    Args:
        folder: Where to look.
        others: Files that count as well.
        left_out: One that does not.
        agents: Where agents are, whose files count as well.
    """
    found: dict[str, tuple[int, int]] = {}
    waiting = [(folder, 0)]
    while waiting and len(found) < MAX_FILES:
        place, depth = waiting.pop()
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in SKIPPED:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    is_venv = os.path.lexists(Path(entry.path, VENV_FILE))
                    if depth < MAX_DEPTH and not is_venv:
                        waiting.append((Path(entry.path), depth + 1))
                elif _is_code(entry.name) and Path(entry.path) != left_out:
                    _note(found, Path(entry.path))
    for path in others:
        _note(found, path)
    if agents is not None:
        beside = agents if is_folder(agents) else agents.parent
        found |= {str(beside / name): (at, size) for name, at, size in files_beside(agents)}
    return found


def _is_code(name: str) -> bool:
    """Whether a file is a module that is no test, as pytest calls those."""
    is_test = name == "conftest.py" or name.startswith("test_") or name.endswith("_test.py")
    return name.endswith(".py") and not is_test


def _note(found: dict[str, tuple[int, int]], path: Path) -> None:
    with suppress(OSError):  # gone for a moment, while somebody replaces it
        facts = path.stat()
        found[str(path)] = (facts.st_mtime_ns, facts.st_size)


def changed_between(before: Versions, after: Versions) -> list[str]:
    """The files that are new, gone, or of another version."""
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


class Code:
    """The files of a server, watched.

    Args:
        folder: Where it is started.
        others: Files that count as well: ``.env``, a model's script.
        left_out: One that does not, as it is read again by itself.
        agents: Where agents are, if their files count as well.
    """

    def __init__(
        self,
        folder: Path,
        others: tuple[Path, ...],
        left_out: Path | None = None,
        agents: Path | None = None,
    ) -> None:
        self._of = folder, others, left_out, agents
        self._seen: Versions = {}

    async def look(self) -> None:
        """What is there now is what later changes are told of."""
        self._seen = await self._now()

    async def wait_changed(self) -> list[str]:
        """Wait for a change, and until it is over; returns the files."""
        while True:
            now = await self._now()
            if now == self._seen:
                await trio.sleep(WATCH_S)
                continue
            for _ in range(MAX_SETTLING):
                await trio.sleep(SETTLED_S)
                before, now = now, await self._now()
                if before == now:
                    break
            if files := changed_between(self._seen, now):
                self._seen = now
                return files

    async def _now(self) -> Versions:
        return await trio.to_thread.run_sync(versions_in, *self._of, abandon_on_cancel=True)
