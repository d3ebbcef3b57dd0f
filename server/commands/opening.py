"""The accounts that the settings name, for as long as a command needs them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from server.accounts import Accounts
from server.agent.roster.agents import Agents
from server.agent.roster.files import read_agents
from server.cluster.cluster import Cluster
from server.errors import ConfigurationError, ServerError, innermost
from server.settings.settings import Settings

T = TypeVar("T")
READ_S = 20.0
"""How long the agents may take to be read: a module of the user's does whatever it likes."""


async def with_accounts(settings: Settings, work: Callable[[Accounts], Awaitable[T]]) -> T:
    """Do something with the carrier and the model, or their simulators; nothing is served.

    Args:
        settings: Name them.
        work: Opens the carrier itself.

    Raises:
        ServerError: What the work has raised.
    """
    accounts = Accounts(settings, Cluster(), None)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            await accounts.open(nursery, is_to_serve=False)
            result = await work(accounts)
            nursery.cancel_scope.cancel("the command is done")
    except* ServerError as failures:
        failure = innermost(failures)
    if failure is not None:
        raise failure
    return result


async def all_agents(settings: Settings, accounts: Accounts) -> Agents:
    """The agents that the settings name.

    Raises:
        ConfigurationError: They are wrong, or are never read.
    """
    with trio.move_on_after(READ_S):
        return await trio.to_thread.run_sync(
            read_agents, settings, accounts.check_agent, abandon_on_cancel=True
        )
    raise ConfigurationError(f"AGENTS: {settings.agents} is not read within {READ_S:g} s")
