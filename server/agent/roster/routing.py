"""Who answers a call: by the user's own route, in time, or by the number that was called."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
import trio

from server.agent.agent import Agent
from server.agent.roster.agents import Agents, Choice, NewCall, VariablesWrong, filled
from server.errors import innermost
from server.logs.authors import place_of

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def choose(agents: Agents, call: NewCall, *, timeout_s: float) -> Agent:
    """The agent of a call, with its texts filled in.

    A route that fails, is late or names nobody costs a warning; the fallback answers then, and the
    default agent where that cannot. Nobody is rung, though, without what their agent is to say:
    whoever has asked for that call is there to be told.

    Args:
        agents: All there are.
        call: What is known of it.
        timeout_s: How long the route may take.

    Raises:
        VariablesWrong: A call that is to be placed lacks values, or has some that are too long.
    """
    wanted, variables = await _asked(agents, call, timeout_s)
    for agent in (wanted, agents.by_name[agents.fallback]):
        try:
            return filled(agent, variables)
        except VariablesWrong as error:
            if call.direction == "outbound":
                raise
            logger.warning("an agent cannot answer: values are missing", reason=str(error))
    return agents.default


async def _asked(
    agents: Agents, call: NewCall, timeout_s: float
) -> tuple[Agent, Mapping[str, str]]:
    by_number = agents.default
    if call.direction == "inbound":
        by_number = agents.of_number(call.called)
    if agents.route is None:
        return by_number, call.variables
    fallback = agents.by_name[agents.fallback]
    answer: object = None
    has_failed = False
    try:
        with trio.move_on_after(timeout_s) as waiting:
            answer = await agents.route(call)
        if waiting.cancelled_caught:
            logger.warning("route failed", reason="late", timeout_s=timeout_s)
            return fallback, call.variables
    except* (Exception, SystemExit) as errors:
        # By except*, for what goes wrong while a route is cancelled may not go on with Cancelled.
        _log_failure(innermost(errors))
        has_failed = True
    if has_failed:
        return fallback, call.variables
    if answer is None:
        return by_number, call.variables
    choice = answer if isinstance(answer, Choice) else call.to(answer)
    agent = agents.by_name.get(choice.agent)
    if agent is None:
        logger.warning("route failed", reason="it answered with no agent that there is")
        return fallback, call.variables
    return agent, {**call.variables, **choice.variables}


def _log_failure(error: BaseException) -> None:
    """A route has failed: its message may hold what only the caller's number leads to."""
    logger.warning("route failed", reason=type(error).__name__, where=place_of(error))
