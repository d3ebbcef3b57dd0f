"""A whole call whose model fills in what it was for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from structlog.testing import capture_logs

from server.agent.agent import Agent
from server.agent.outcome import outcome_schema, outcome_tool
from server.simulators.gemini import ANSWERS, FunctionCall
from tests.support.rig import calling

SCHEMA = outcome_schema(
    {
        "required": ["pizza", "count"],
        "properties": {
            "pizza": {"type": "string", "enum": ["margherita", "hawaii"]},
            "count": {"type": "integer", "minimum": 2},
        },
    }
)
AGENT = Agent(tools=(outcome_tool(SCHEMA),), outcome=SCHEMA)
HEARS_NOTHING = replace(ANSWERS, fills=frozenset())


def saves(**values: Any) -> FunctionCall:
    return FunctionCall("save_outcome", values)


async def test_the_simulated_model_fills_in_what_the_schema_wants(autojump_clock):
    async with calling(agent=AGENT) as rig:
        await rig.over()

    assert rig.record["outcome"] == {
        "values": {"pizza": "margherita", "count": 2},
        "source": "agent",
        "complete": True,
        "missing": [],
    }


async def test_what_does_not_fit_is_corrected_in_the_conversation(autojump_clock):
    wrong = replace(HEARS_NOTHING, functions=(saves(pizza="sushi"), saves(count=3)))
    with capture_logs() as logs:
        async with calling(agent=AGENT, script=wrong) as rig:
            await rig.over()
        results = rig.sessions[0].functions.results.values()

    told = [result.get("error", "") for result in results]
    assert any("'sushi' is not one of ['margherita', 'hawaii']" in one for one in told)
    assert rig.record["outcome"]["values"] == {"count": 3}
    assert rig.record["outcome"]["missing"] == ["pizza"]
    assert "outcome" in rig.noted
    assert "sushi" not in str(logs)


async def test_a_call_that_says_nothing_of_it_leaves_an_outcome_that_is_not_whole(autojump_clock):
    async with calling(agent=AGENT, script=HEARS_NOTHING) as rig:
        await rig.over()

    assert rig.record["outcome"] == {
        "values": {},
        "source": None,
        "complete": False,
        "missing": ["pizza", "count"],
    }


async def test_an_agent_without_a_schema_has_no_outcome(autojump_clock):
    async with calling() as rig:
        await rig.over()

    assert rig.record["outcome"] is None
