"""The accounts that the settings name, for as long as a command needs them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from server.accounts import Accounts
from server.cluster.cluster import Cluster
from server.errors import ServerError, innermost
from server.settings.settings import Settings

T = TypeVar("T")


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
            await accounts.open(nursery)
            result = await work(accounts)
            nursery.cancel_scope.cancel("the command is done")
    except* ServerError as failures:
        failure = innermost(failures)
    if failure is not None:
        raise failure
    return result
