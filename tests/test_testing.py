"""The kit for tests of one's own agents: what a script says is what a test can look at."""

from __future__ import annotations

import struct
import sys
import time
from typing import Any

import pytest
import trio

from codec import encode_mulaw
from server.agent.agent import Agent
from server.agent.builtin import hang_up
from server.agent.outcome import outcome_schema, outcome_tool
from server.agent.results import MAX_RESULT_BYTES
from server.agent.roster.agents import VariablesMissing
from server.agent.tool import LiveCall, ToolError, tool
from server.errors import ConfigurationError
from server.testing import (
    AgentCalls,
    AgentSays,
    CallerPresses,
    CallerSays,
    CallerWaits,
    ToolUse,
    agent_call,  # noqa: F401 - a fixture
    call_agent,
)

DESK = """\
name = "order-desk"
numbers = "*"
prompt = "You take orders for {{shop}}."
greeting_protect_s = 0
[variables]
shop = "Norte"
[transfer]
owner = "+584125550009"
[outcome]
required = ["pizza", "count"]
[outcome.properties]
pizza = {enum = ["margherita", "hawaii"]}
count = {type = "integer"}
"""
GREETS = AgentSays("Good day, this is Norte. Which pizza would you like?")
ORDERS = CallerSays("Two hawaii, please.")
SAVES = AgentCalls("save_outcome", pizza="hawaii", count=2)


@tool
def price(pizza: str, call: LiveCall) -> float:
    """Say what a pizza costs.

    Args:
        pizza: Which.
    """
    if pizza == "sushi":
        raise ToolError("we have none")
    time.sleep(0.05)  # longer than a virtual clock would wait for anybody
    return 8.5


@pytest.fixture
def agents(tmp_path):
    (tmp_path / "desk.toml").write_text(DESK)
    return tmp_path


def test_an_order_is_taken(agents):
    call = call_agent(
        agents,
        GREETS,
        ORDERS,
        SAVES,
        AgentSays("Two hawaii. Is that all?"),
        CallerSays("Yes. Goodbye."),
        AgentSays("Goodbye!"),
        agent="order-desk",
        variables={"shop": "Sur"},
    )

    assert call.prompt == "You take orders for Sur."
    assert call.outcome == {"pizza": "hawaii", "count": 2}
    assert call.is_complete
    assert [use.name for use in call.tools] == ["save_outcome"]
    assert call.said == (GREETS.text, "Two hawaii. Is that all?", "Goodbye!")
    assert call.heard == ("Two hawaii, please.", "Yes. Goodbye.")
    assert (call.reason, call.hung_up) == ("caller-hung-up", False)
    assert call.record["agent"] == "order-desk"


def test_what_does_not_fit_is_seen_as_the_model_sees_it(agents):
    call = call_agent(
        agents,
        GREETS,
        CallerSays("One sushi, please."),
        AgentCalls("save_outcome", pizza="sushi"),
        AgentSays("We have no sushi."),
        agent="order-desk",
    )

    assert "'sushi' is not one of" in str(call.tools[0].error)
    assert call.outcome == {}


def test_the_agent_hangs_up(agents):
    call = call_agent(
        agents,
        GREETS,
        CallerSays("Nothing, thank you."),
        AgentCalls("hang_up"),
        AgentSays("Goodbye!"),
        agent="order-desk",
    )

    assert (call.reason, call.hung_up) == ("agent-hung-up", True)
    assert call.said[-1] == "Goodbye!"


def test_a_caller_is_transferred(agents):
    call = call_agent(
        agents,
        GREETS,
        CallerSays("The owner, please."),
        AgentCalls("transfer", destination="owner"),
        agent="order-desk",
    )

    assert call.transferred_to == ("+584125550009",)
    assert call.reason == "transferred"


def test_time_stands_still_for_a_plain_tool_and_its_errors_are_told():
    call = call_agent(
        Agent(tools=(price,)),
        CallerSays("What is a hawaii?"),
        AgentCalls("price", pizza="hawaii"),
        AgentCalls("price", pizza="sushi"),
        AgentSays("Eight fifty."),
    )

    assert call.tools == (
        ToolUse("price", {"pizza": "hawaii"}, 8.5),
        ToolUse("price", {"pizza": "sushi"}, error="we have none"),
    )


@tool(timeout_s=3.0)
async def look_up(what: str) -> Any:
    """Look something up.

    Args:
        what: What.
    """
    match what:
        case "slow":
            await trio.sleep_forever()
        case "exit":
            sys.exit(3)
        case "bug":
            raise KeyError(what)
        case "object":
            return object()
        case "long":
            return "x" * MAX_RESULT_BYTES
    return None


@tool
def look_up_elsewhere(what: str) -> Any:
    """Look something up in a thread.

    Args:
        what: What.
    """
    return object() if what == "object" else (letter for letter in what)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("slow", "no answer within 3 seconds. Tell the caller that it did not work."),
        ("object", "the function was run, but what it returned cannot be read"),
        ("long", "the function was run, but what it returned is too long to be read"),
        ("exit", "SystemExit(3)"),
        ("bug", "'bug'"),
        ("nothing", None),
    ],
)
def test_a_tool_that_fails_in_a_call_fails_in_its_test(what, error):
    call = call_agent(
        Agent(tools=(look_up,)),
        CallerSays("What is there?"),
        AgentCalls("look_up", what=what),
        AgentSays("That is all."),
    )

    assert call.tools == (ToolUse("look_up", {"what": what}, error=error),)


def test_what_a_plain_tool_returns_is_what_the_test_sees_if_the_model_does():
    call = call_agent(
        Agent(tools=(look_up_elsewhere,)),
        CallerSays("What is there?"),
        AgentCalls("look_up_elsewhere", what="ab"),
        AgentCalls("look_up_elsewhere", what="object"),
        AgentSays("That is all."),
    )

    given, unreadable = call.tools
    assert given == ToolUse("look_up_elsewhere", {"what": "ab"}, ["a", "b"])
    assert (unreadable.result, "cannot be read" in str(unreadable.error)) == (None, True)


def test_a_caller_interrupts_and_presses_keys():
    call = call_agent(
        Agent(),
        AgentSays("Good day. " + "This sentence is much longer than anybody would wait for. " * 5),
        CallerSays("Stop!", after_s=3.0),
        AgentSays("Yes?"),
        CallerPresses("12#"),
        AgentSays("You have pressed one and two."),
        CallerWaits(1.0),
        direction="outbound",
        greeting_protect_s=0.0,
    )

    assert call.record["transcript"][0]["cut"]
    assert call.said[1:] == ("Yes?", "You have pressed one and two.")
    assert any("1 2 #" in text for text in call.told)


def test_a_caller_who_waits_answers_when_the_wait_is_over():
    call = call_agent(
        Agent(),
        GREETS,
        CallerWaits(5.0),
        CallerSays("Hawaii."),
        AgentSays("One hawaii."),
        CallerWaits(1.0),
        CallerWaits(1.0),
        CallerPresses("1"),
        AgentSays("Goodbye."),
        CallerWaits(2.0),
        silence_timeout_s=0,
    )

    agent, caller = call.record["transcript"][:2]
    # About 3.5 s of greeting, 0.9 s until it is noticed that it is over, and the wait.
    assert 9.0 < caller["at_s"] - agent["at_s"] < 14.0
    assert call.heard[0] == "Hawaii."
    assert call.said == (GREETS.text, "One hawaii.", "Goodbye.")
    assert call.record["duration_s"] < 40


def test_an_agent_that_speaks_for_long_is_heard_to_the_end():
    minute = "This sentence is one that takes the agent about four seconds. " * 15

    call = call_agent(
        Agent(), AgentSays(minute), CallerSays("Goodbye."), AgentSays(minute), silence_timeout_s=0
    )

    assert not any(turn.get("cut") for turn in call.record["transcript"])
    assert call.said == (minute.strip(), minute.strip())
    assert call.record["duration_s"] > 100


def test_time_is_the_callers_and_not_the_worlds():
    call = call_agent(Agent(), GREETS, CallerWaits(120.0), silence_timeout_s=0)

    assert call.record["duration_s"] > 120


def test_what_a_test_asks_for_has_to_be_there(agents):
    (agents / "other.toml").write_text('name = "other"\nprompt = "Hi {{who}}."\n')

    with pytest.raises(VariablesMissing):
        call_agent(agents, agent="other")
    with pytest.raises(KeyError):
        call_agent(agents, agent="nobody")
    with pytest.raises(ConfigurationError):
        call_agent(agents / "none")
    with pytest.raises(TypeError, match="colour"):
        call_agent(Agent(), colour="red")
    with pytest.raises(ValueError, match="only when the caller has spoken"):
        call_agent(Agent(tools=(hang_up,)), AgentCalls("hang_up"))
    with pytest.raises(ValueError, match=r"no function price_off; there are: .*save_outcome"):
        call_agent(agents, GREETS, ORDERS, AgentCalls("price_off"), agent="order-desk")


def test_the_environment_says_nothing(monkeypatch):
    monkeypatch.setenv("MAX_CALL_DURATION_S", "nonsense")
    schema = outcome_schema({"properties": {"a": {}}})

    call = call_agent(Agent(outcome=schema, tools=(outcome_tool(schema),)), GREETS)

    assert call.record["outcome"]["missing"] == ["a"]


def test_the_fixture_has_the_agents_beside_the_tests_settings(agent_call):  # noqa: F811
    with pytest.raises(ConfigurationError, match="agents is not there"):
        agent_call(GREETS)


def test_a_sound_while_a_function_runs_is_nothing_that_the_agent_has_said():
    @tool(timeout_s=30.0)
    async def look_up() -> str:
        """Look it up."""
        await trio.sleep(8.0)
        return "hawaii"

    beep = encode_mulaw(struct.pack("<2h", 2_000, -2_000) * 2_000)
    agent = Agent(tools=(look_up, hang_up), thinking_sound=beep + b"\xff" * 24_000)
    call = call_agent(
        agent,
        GREETS,
        CallerSays("What is there?"),
        AgentCalls("look_up"),
        AgentSays("There is hawaii."),
        CallerSays("One, please."),
        AgentSays("Goodbye!"),
    )

    assert [use.result for use in call.tools] == ["hawaii"]
    assert call.said == (GREETS.text, "There is hawaii.", "Goodbye!")
    assert call.heard == ("What is there?", "One, please.")
