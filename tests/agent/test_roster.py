"""Who answers a call, and the agents that are read again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from server.agent.agent import Agent
from server.agent.roster.agents import (
    MAX_TEXT_CHARS,
    Agents,
    Choice,
    NewCall,
    VariablesMissing,
    VariablesWrong,
    filled,
)
from server.agent.roster.roster import Roster, files_beside
from server.agent.roster.routing import choose
from server.errors import ConfigurationError
from server.settings.settings import Settings
from tests.support.toolboxes import clean_up_badly

DEFAULT = Agent(prompt="Keep {{braces}}.")
DESK = Agent(name="desk", numbers=("+584125550001",), prompt="You work for {{shop}}.")
SHOP = {"shop": "Norte"}
INBOUND = NewCall("inbound", "+15005550199", "+584125550001", variables=SHOP)


def agents_with(route=None, fallback="default", **more: Agent) -> Agents:
    by_name = {"default": DEFAULT, "desk": DESK} | more
    return Agents(by_name, route, fallback)


def test_values_take_the_place_of_names_and_are_not_looked_into():
    agent = replace(DESK, variables={"shop": "none"}, greeting_text="{{ shop }}!")

    told = filled(agent, {"shop": "{{shop}} \\1"})

    assert told.prompt == "You work for {{shop}} \\1."
    assert told.greeting_text == "{{shop}} \\1!"


def test_a_name_without_a_value_is_refused():
    with pytest.raises(VariablesMissing, match="the agent desk needs a value for shop") as caught:
        filled(DESK, {"shops": "Norte"})

    assert caught.value.names == ("shop",)


def test_the_settings_own_prompt_keeps_its_braces():
    assert filled(DEFAULT, {}) is DEFAULT


async def test_the_number_called_says_who_answers():
    agent = await choose(agents_with(), INBOUND, timeout_s=1.0)

    assert agent.prompt == "You work for Norte."


async def test_a_call_of_ours_is_the_default_agents_unless_somebody_says_another():
    call = NewCall("outbound", "+584125550001")

    assert await choose(agents_with(), call, timeout_s=1.0) is DEFAULT


async def test_a_route_may_answer_with_a_name_a_choice_or_nobody():
    answers = iter(["desk", INBOUND.to("desk", shop="Sur"), None])

    async def route(call):
        return next(answers)

    told = [await choose(agents_with(route), INBOUND, timeout_s=1.0) for _ in range(3)]

    assert [agent.prompt[-6:] for agent in told] == ["Norte.", "r Sur.", "Norte."]


def test_a_variable_may_have_any_name():
    choice = INBOUND.to("desk", agent="Ana", self="me", shop=3)

    assert choice == Choice("desk", {"agent": "Ana", "self": "me", "shop": "3"})


async def test_values_of_a_choice_made_by_hand_are_texts_whatever_they_are():
    async def route(call):
        return Choice("desk", {"shop": 3})

    agent = await choose(agents_with(route), INBOUND, timeout_s=1.0)

    assert agent.prompt == "You work for 3."


async def test_a_choice_whose_values_are_none_leaves_the_call_to_the_fallback():
    async def route(call):
        return Choice("desk", None)

    assert (await choose(agents_with(route, "desk"), INBOUND, timeout_s=1.0)).name == "desk"


async def test_a_route_that_is_late_fails_or_knows_nobody_leaves_the_call_to_the_fallback(
    autojump_clock,
):
    async def late(call):
        await trio.sleep(60)

    async def fails(call):
        raise ValueError("of the user's")

    async def names_nobody(call):
        return "nobody"

    for route in (late, fails, names_nobody):
        began = trio.current_time()
        agent = await choose(agents_with(route, "desk"), INBOUND, timeout_s=2.0)
        assert agent.name == "desk"
        assert trio.current_time() - began <= 2.0


async def test_who_lacks_a_value_leaves_the_call_to_the_default_agent():
    call = replace(INBOUND, variables={})

    assert await choose(agents_with(fallback="desk"), call, timeout_s=1.0) is DEFAULT


@pytest.mark.parametrize("fallback", ["desk", "default"])
async def test_nobody_is_rung_without_what_their_agent_is_to_say(fallback):
    async def route(call):
        return "desk"

    call = replace(INBOUND, direction="outbound", called="", variables={})

    with pytest.raises(VariablesMissing, match="shop"):
        await choose(agents_with(route, fallback), call, timeout_s=1.0)


async def test_a_route_that_wants_to_exit_leaves_the_call_to_the_fallback():
    async def route(call):
        sys.exit(1)

    assert (await choose(agents_with(route, "desk"), INBOUND, timeout_s=1.0)).name == "desk"


async def test_a_route_that_fails_as_nobody_waits_for_it_any_more_raises_nothing(autojump_clock):
    async def route(call):
        await clean_up_badly("of the user's")

    with trio.move_on_after(0.5) as waiting:
        await choose(agents_with(route, "desk"), INBOUND, timeout_s=1.0)

    assert waiting.cancelled_caught


def test_a_text_that_values_make_too_long_is_refused():
    agent = replace(DEFAULT, name="desk", prompt="{{x}}" * (MAX_TEXT_CHARS // 100 + 1))

    with pytest.raises(VariablesWrong, match="prompt of desk longer than"):
        filled(agent, {"x": "y" * 100})


async def test_agents_are_replaced_all_at_once_and_only_by_whole_ones(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('name = "a"\nvoice = "Kore"\n')
    roster = Roster(Settings.load(_env_file=None, agents=tmp_path))
    before = roster.agents

    path.write_text('name = "a"\nvoice = 3\n')
    with pytest.raises(ConfigurationError, match="line 2"):
        await roster.reload()
    kept = roster.agents
    path.write_text('name = "a"\nvoice = "Puck"\n')
    await roster.reload()

    assert kept is before
    assert before.by_name["a"].voice == "Kore"
    assert roster.agents.by_name["a"].voice == "Puck"


async def test_a_module_is_read_afresh(tmp_path):
    path = tmp_path / "agents.py"
    path.write_text("from server.agent import Agent\na = Agent('a', voice='Kore')\n")
    roster = Roster(Settings.load(_env_file=None, agents=tmp_path))

    path.write_text("from server.agent import Agent\na = Agent('a', voice='Puck')\n")
    await roster.reload()

    assert roster.agents.by_name["a"].voice == "Puck"


async def test_files_that_change_are_read_at_once_where_that_is_wanted(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('name = "a"\nvoice = "Kore"\n')
    os.utime(path, (1, 1))
    roster = Roster(Settings.load(_env_file=None, agents=tmp_path))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(roster.run, watches=True))
        with trio.fail_after(60):
            n = 0
            while roster.agents.by_name["a"].voice == "Kore":
                n += 1
                os.utime(path, (n, n))  # whenever the watch began, it sees a change
                path.write_text('name = "a"\nvoice = "Puck"\n')
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


async def test_a_wish_from_before_it_looks_is_no_wish_lost(tmp_path):
    (tmp_path / "a.toml").write_text('name = "a"\n')
    roster = Roster(Settings.load(_env_file=None, agents=tmp_path))
    before = roster.agents

    roster.wanted.set()

    await _run_until(roster, lambda: roster.agents is not before, watches=False)


@pytest.mark.parametrize("watches", [False, True])
async def test_files_that_change_before_it_looks_are_read_at_once(tmp_path, watches):
    path = tmp_path / "a.toml"
    path.write_text('name = "a"\nvoice = "Kore"\n')
    roster = Roster(Settings.load(_env_file=None, agents=tmp_path))

    path.write_text('name = "a"\nvoice = "Puck"\nnumbers = "*"\n')

    await _run_until(roster, lambda: roster.agents.by_name["a"].voice == "Puck", watches=watches)


async def test_files_that_change_while_they_are_first_read_are_read_again(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('name = "a"\nvoice = "Kore"\n')

    def change(agent: Agent) -> None:
        path.write_text('name = "a"\nvoice = "Puck"\nnumbers = "*"\n')

    roster = Roster(Settings.load(_env_file=None, agents=tmp_path), change)
    assert roster.agents.by_name["a"].voice == "Kore"

    await _run_until(roster, lambda: roster.agents.by_name["a"].voice == "Puck", watches=False)


async def test_files_that_are_as_they_were_are_not_read_again(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text('name = "a"\n')
    roster = Roster(Settings.load(_env_file=None, agents=tmp_path))
    before = roster.agents
    looks: list[Path] = []

    def look(where: Path) -> frozenset[tuple[str, int, int]]:
        looks.append(where)
        return files_beside(where)

    monkeypatch.setattr("server.agent.roster.roster.files_beside", look)
    monkeypatch.setattr("server.agent.roster.roster.WATCH_S", 0.01)

    for enough in (3, 6):  # what ends with an error is begun again
        await _run_until(roster, lambda enough=enough: len(looks) >= enough, watches=True)

    assert roster.agents is before


async def _run_until(roster: Roster, condition: Callable[[], bool], *, watches: bool) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(roster.run, watches=watches))
        with trio.fail_after(60):
            while not condition():  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_files_are_read_when_somebody_wants_it(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('name = "a"\nvoice = "Kore"\n')
    roster = Roster(Settings.load(_env_file=None, agents=tmp_path))
    before = roster.agents

    path.write_text('name = "a"\nvoice = "Puck"\n')
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(roster.run, watches=False))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(60):
            while roster.agents is before:
                roster.wanted.set()
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert roster.agents.by_name["a"].voice == "Puck"
