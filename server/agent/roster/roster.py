"""The agents that calls get from now on: one owner, which replaces all of them at once.

A call keeps the agent that it began with, whatever is read while it lasts.
"""

from __future__ import annotations

import os
from contextlib import suppress
from math import inf
from pathlib import Path

import structlog
import trio

from server.agent.roster.agents import Agents
from server.agent.roster.files import Check, no_check, read_agents
from server.errors import ConfigurationError
from server.settings.file import expanded
from server.settings.settings import Settings
from server.signal import Signal

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WATCH_S = 0.5
"""How often it is looked whether a file has changed, where that is wanted."""
SOUND = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")
WATCHED = (".toml", ".py", ".md", ".txt", *SOUND)
"""What agents, their prompts and their greetings are in: a database beside them changes all the
time."""


class Roster:
    """Has the agents, and reads them again.

    Args:
        settings: Where they are, and what they leave out.
        check: Refuses an agent that calls cannot be made with.

    Attributes:
        agents: Those that there are now; whoever has taken some keeps them.
        wanted: Set by whoever wants them read again, and has no use for the answer.

    Raises:
        ConfigurationError: They cannot be read.
    """

    def __init__(self, settings: Settings, check: Check = no_check) -> None:
        self._settings = settings
        self._check = check
        self._reading = trio.Lock()
        self.wanted = Signal()
        # Both from before the files are read: a process that starts is told of changes, too, and
        # it may take a while until it looks.
        self._told = self.wanted.next()
        where = settings.agents
        self._seen = frozenset() if where is None else files_beside(where)
        self.agents = read_agents(settings, check)

    async def reload(self) -> Agents:
        """Read all files again; if one of them is wrong, everything stays as it was.

        Files and the user's module are read in a thread: calls go on meanwhile.

        Raises:
            ConfigurationError: What is wrong; the log has it, too.
        """
        async with self._reading:
            try:
                agents = await trio.to_thread.run_sync(
                    read_agents, self._settings, self._check, abandon_on_cancel=True
                )
            except ConfigurationError as error:
                logger.error("agents stay as they were", reason=str(error))  # noqa: TRY400
                raise
            self.agents = agents
        logger.info("agents read", agents=len(agents.by_name))
        return agents

    async def run(self, *, watches: bool) -> None:
        """Read the files again whenever that is wanted, until cancelled.

        What was wanted, or has changed, since they were first read is read at once.

        Args:
            watches: Whether a file that changes from now on is reason enough.
        """
        where = self._settings.agents
        while True:
            now = await _versions(where)
            if self._told.is_set() or now != self._seen:
                # The event is made before reading, so that what is wanted meanwhile is not lost.
                self._seen, self._told = now, self.wanted.next()
                with suppress(ConfigurationError):  # it has been told; the next change may mend it
                    await self.reload()
            with trio.move_on_after(WATCH_S if watches and where is not None else inf):
                await self._told.wait()


async def _versions(where: Path | None) -> frozenset[tuple[str, int, int]]:
    if where is None:
        return frozenset()
    return await trio.to_thread.run_sync(files_beside, where, abandon_on_cancel=True)


def files_beside(where: Path) -> frozenset[tuple[str, int, int]]:
    """The files beside each other that agents may be made of, and when each was written.

    Args:
        where: The folder, or one of the files.
    """
    where = expanded(where)
    found: set[tuple[str, int, int]] = set()
    with (
        suppress(OSError),  # gone for a moment, while somebody replaces it
        os.scandir(where if where.is_dir() else where.parent) as entries,
    ):
        for entry in entries:
            if entry.name.endswith(WATCHED) and entry.is_file():
                facts = entry.stat()
                found.add((entry.name, facts.st_mtime_ns, facts.st_size))
    return frozenset(found)
