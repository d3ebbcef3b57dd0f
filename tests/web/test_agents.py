"""Several agents in one server: who answers which number, and who speaks for a request."""

from __future__ import annotations

from inspect import unwrap

import pytest
import trio

from server.app import create_app
from server.errors import ConfigurationError
from server.settings.settings import Settings
from tests.support.serving import Server, serving

pytestmark = pytest.mark.sockets

ROOMY = {"max_loop_lag_s": 60, "media_timeout_s": 60}  # busy machines
DESK = """\
name = "order-desk"
numbers = ["+15005550001"]
prompt = "You take orders for {{shop}}."
voice = "Kore"
max_call_duration_s = 7
recording = false
[variables]
shop = "Norte"
"""
NIGHT = """\
name = "night"
numbers = "*"
prompt = "You say that nobody is there."
model = "gemini-3.8-live-extended-thinking"
built_in_tools = []
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "order.toml").write_text(DESK)
    (folder / "night.toml").write_text(NIGHT)
    return folder


def prompts(server: Server) -> list[str]:
    return [
        session.setup["systemInstruction"]["parts"][0]["text"] for session in server.gemini.sessions
    ]


async def called(server: Server, to_number: str) -> dict:
    phone = server.twilio.dial_in(
        f"{server.url}/twiml", from_number="+15005550199", to_number=to_number, script="hangs-up"
    )
    with trio.fail_after(60):
        await phone.wait_ended()
    return await server.finished(phone.call_sid)


async def test_two_numbers_have_two_agents_in_one_process(folder, fast_clock):
    async with serving(**ROOMY, agents=folder, agent_prompt="The default.") as server:
        first = await called(server, "+15005550001")
        second = await called(server, "+15005550002")
        listed = (await server.http.get("/calls")).json()["calls"]
        told = prompts(server)
        models = [session.setup["model"] for session in server.gemini.sessions]
        tools = ["tools" in session.setup for session in server.gemini.sessions]

    assert (first["agent"], second["agent"]) == ("order-desk", "night")
    assert told == ["You take orders for Norte.", "You say that nobody is there."]
    assert models == ["models/gemini-3.8-live", "models/gemini-3.8-live-extended-thinking"]
    assert tools == [True, False]
    assert [call["agent"] for call in listed] == ["night", "order-desk"]


def longest_s(server, made) -> float:
    """How long a call that has just been placed may last."""
    call = server.service.calls.register.get_live(made.json()["call_sid"])
    return call.conversation.options.max_duration_s


async def test_a_request_names_the_agent_and_says_what_it_wants_to_know(folder, fast_clock):
    async with serving(**ROOMY, agents=folder, agent_prompt="The default.") as server:
        named = await server.make_call(
            "5550103", agent="order-desk", variables={"shop": "Sur"}, voice="Puck"
        )
        limits = [longest_s(server, named)]
        record = await server.finished(named.json()["call_sid"])
        unnamed = await server.make_call("5550103")
        limits.append(longest_s(server, unnamed))
        default = await server.finished(unnamed.json()["call_sid"])
        told = prompts(server)

    assert (record["agent"], default["agent"]) == ("order-desk", "default")
    assert told == ["You take orders for Sur.", "The default."]
    assert limits == [7, 3_600]


async def test_a_request_for_nobody_or_without_what_is_needed_rings_no_phone(folder, fast_clock):
    (folder / "order.toml").write_text(DESK.partition("[variables]")[0].replace("numbers", "#"))
    async with serving(**ROOMY, agents=folder) as server:
        nobody = await server.make_call(agent="nobody")
        missing = await server.make_call(agent="order-desk", variables={"name": "Ana"})
        rung = len(server.twilio.calls)

    assert (nobody.status_code, missing.status_code, rung) == (422, 422, 0)
    assert nobody.json()["fields"] == {"agent": "there is no agent of this name"}
    assert missing.json()["fields"] == {"variables": "the agent order-desk needs a value for shop"}


async def test_agents_are_listed_without_their_prompts(folder, fast_clock):
    async with serving(**ROOMY, agents=folder) as server:
        answer = await server.http.get("/agents")

    by_name = {agent["name"]: agent for agent in answer.json()["agents"]}
    assert list(by_name) == ["default", "night", "order-desk"]
    assert by_name["order-desk"] == {
        "name": "order-desk",
        "numbers": ["+15005550001"],
        "language": None,
        "voice": "Kore",
        "model": "gemini-3.8-live",
        "tools": ["hang_up", "send_dtmf"],
        "variables": ["shop"],
        "outcome": None,
    }
    assert "orders" not in answer.text


async def test_a_call_of_an_agent_that_is_not_to_be_recorded_is_not(folder, tmp_path, fast_clock):
    recordings = tmp_path / "recordings"
    async with serving(**ROOMY, agents=folder, recordings_dir=recordings) as server:
        quiet = await called(server, "+15005550001")
        kept = await called(server, "+15005550002")

    assert quiet["recording"] is None
    assert kept["recording"] is not None


async def test_a_route_chooses_by_who_calls_and_may_fail(folder, fast_clock):
    (folder / "agents.py").write_text(
        "DEFAULT = 'night'\n"
        "async def route(call):\n"
        "    if call.direction == 'outbound':\n"
        "        raise LookupError\n"
        "    return call.to('order-desk', shop=call.number[-2:])\n"
    )
    async with serving(**ROOMY, agents=folder) as server:
        routed = await called(server, "+15005550002")
        placed = await server.make_call("5550103")
        failed = await server.finished(placed.json()["call_sid"])
        told = prompts(server)

    assert (routed["agent"], failed["agent"]) == ("order-desk", "night")
    assert told[0] == "You take orders for 99."


async def test_a_call_whose_routed_agent_lacks_values_rings_no_phone(folder, fast_clock):
    (folder / "agents.py").write_text(
        "from server.agent import Agent\n"
        "needy = Agent('needy', prompt='For {{who}}.')\n"
        "async def route(call):\n"
        "    return needy\n"
    )
    async with serving(**ROOMY, agents=folder) as server:
        answer = await server.make_call("5550103")
        calls = (await server.http.get("/calls")).json()["calls"]

    assert answer.status_code == 422
    assert "who" in answer.json()["fields"]["variables"]
    assert calls == []


async def test_a_route_is_not_asked_about_a_call_that_is_refused(folder, fast_clock):
    (folder / "agents.py").write_text(
        "asked = []\nasync def route(call):\n    asked.append(call)\n    return 'night'\n"
    )
    async with serving(**ROOMY, agents=folder) as server:
        taken = await called(server, "+15005550002")
        route = server.service.roster.agents.route
        assert route is not None
        server.service.calls.draining = True
        phone = server.twilio.dial_in(f"{server.url}/twiml", from_number="+15005550199")
        with trio.fail_after(60):
            await phone.wait_ended()

    assert taken["agent"] == "night"
    assert len(unwrap(route).__globals__["asked"]) == 1


def test_an_apology_that_no_carrier_can_say_is_refused_with_its_line(folder):
    (folder / "night.toml").write_text(f'{NIGHT}apology = "{"sorry " * 1_000}"\n')

    with pytest.raises(ConfigurationError, match=r"night\.toml, line 6: apology "):
        create_app(Settings.load(_env_file=None, agents=folder))
