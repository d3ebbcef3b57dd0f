"""The agents that calls get from now on: one owner, which replaces all of them at once.

A call keeps the agent that it began with, whatever is read while it lasts.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import structlog
import trio

from server.agent.roster.agents import Agents
from server.agent.roster.files import Check, no_check, read_agents
from server.errors import ConfigurationError
from server.settings.settings import Settings

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WATCH_S = 0.5
"""How often it is looked whether a file has changed, where that is wanted."""
WATCHED = (".toml", ".py", ".md", ".txt", ".wav")
"""What agents, their prompts and their greetings are in: a database beside them changes all the
time."""


class Roster:
    """Has the agents, and reads them again.

    Args:
        settings: Where they are, and what they leave out.
        check: Refuses an agent that calls cannot be made with.

    Attributes:
        agents: Those that there are now; whoever has taken some keeps them.

    Raises:
        ConfigurationError: They cannot be read.
    """

    def __init__(self, settings: Settings, check: Check = no_check) -> None:
        self.agents = read_agents(settings, check)
        self._settings = settings
        self._check = check
        self._reading = trio.Lock()

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

    async def watch(self) -> None:
        """Read the files again whenever one of them has changed, until cancelled."""
        where = self._settings.agents
        if where is None:
            await trio.sleep_forever()
        seen = await trio.to_thread.run_sync(_versions, where)
        while True:
            await trio.sleep(WATCH_S)
            now = await trio.to_thread.run_sync(_versions, where)
            if now != seen:
                seen = now
                with suppress(ConfigurationError):  # it has been told; the next change may mend it
                    await self.reload()


def _versions(where: Path) -> frozenset[tuple[str, int, int]]:
    """The files beside each other that agents may be made of, and when each was written."""
    where = where.expanduser()
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
