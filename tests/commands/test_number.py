"""``offhook number``: the carrier's number and the agent's file, before and after."""

from __future__ import annotations

import sys
from functools import partial
from io import StringIO

import httpx2
import pytest
import trio

from server import logs
from server.app import create_app
from server.commands.line import main
from server.commands.number import ask, point
from server.errors import CarrierError, ConfigurationError
from server.serving.listening import listen
from server.serving.single import serve
from tests.support.accounts import NUMBER, OTHER, open_doubles
from tests.support.processes import run_command

pytestmark = pytest.mark.sockets


@pytest.fixture
async def doubles(nursery, tmp_path):
    doubles = await open_doubles(nursery, tmp_path)
    (tmp_path / "desk.toml").write_text('name = "order-desk"\n')
    (tmp_path / "owner.toml").write_text(f'name = "owner"\nnumbers = ["{OTHER}"]\n')
    doubles.given["agents"] = tmp_path
    return doubles


def yes(asked: list[str], question: str) -> bool:
    asked.append(question)
    return True


async def test_a_numbers_callers_come_to_an_agent_after_asking_once(doubles, tmp_path, capsys):
    number = doubles.twilio.account.numbers.get(NUMBER)
    number.voice_url = "https://demo.twilio.com/welcome"
    asked: list[str] = []

    status = await point(doubles.settings(), NUMBER, "order-desk", partial(yes, asked))

    url = doubles.given["public_url"]
    assert status == 0
    assert (number.voice_url, number.status_url) == (f"{url}/twiml", f"{url}/call-status")
    assert (tmp_path / "desk.toml").read_text() == f'name = "order-desk"\nnumbers = ["{NUMBER}"]\n'
    assert len(asked) == 1
    said = capsys.readouterr().out
    assert said.index("https://demo.twilio.com/welcome") < said.index(f"→ {url}/twiml")
    assert "none" in said  # the status callback


async def test_what_is_so_already_is_left_alone(doubles, tmp_path, capsys):
    asked: list[str] = []
    for _ in range(2):
        await point(doubles.settings(), NUMBER, "order-desk", partial(yes, asked))

    assert len(asked) == 1
    assert doubles.twilio.account.numbers.get(NUMBER).updates == 1
    assert f"{NUMBER}: nothing to change" in capsys.readouterr().out


async def test_who_says_no_changes_nothing(doubles, tmp_path):
    status = await point(doubles.settings(), NUMBER, "order-desk", lambda question: False)

    assert status == 1
    assert doubles.twilio.account.numbers.get(NUMBER).updates == 0
    assert (tmp_path / "desk.toml").read_text() == 'name = "order-desk"\n'


@pytest.mark.parametrize(("typed", "is_yes"), [("y\n", True), ("no\n", False), ("", False)])
def test_who_ends_the_input_says_no(monkeypatch, typed, is_yes):
    monkeypatch.setattr(sys, "stdin", StringIO(typed))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

    assert ask("Change it?") is is_yes


async def test_without_an_agent_only_the_webhooks_are_set(doubles, tmp_path):
    await point(doubles.settings(), "+1 (500) 555-0006", None, lambda question: True)

    assert doubles.twilio.account.numbers.get(NUMBER).updates == 1
    assert (tmp_path / "desk.toml").read_text() == 'name = "order-desk"\n'


async def test_a_twiml_application_is_taken_off(doubles, capsys):
    number = doubles.twilio.account.numbers.get(NUMBER)
    number.voice_application_sid = "AP1"

    await point(doubles.settings(), NUMBER, None, lambda question: True)

    assert number.voice_application_sid == ""
    assert "a TwiML application" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "agent", "why"),
    [
        ("+15005550999", None, "not one of this account's"),
        ("5550006", None, "E.164"),
        (NUMBER, "nobody", "there is no agent nobody; there are default, order-desk, owner"),
        (OTHER, "order-desk", "is the agent owner's"),
        (NUMBER, "default", "not in a TOML file"),
    ],
)
async def test_what_does_not_fit_is_refused(doubles, number, agent, why):
    with pytest.raises(ConfigurationError, match=why):
        await point(doubles.settings(), number, agent, lambda question: True)

    assert doubles.twilio.account.numbers.get(NUMBER).updates == 0


async def test_an_agent_that_cannot_answer_strangers_gets_no_number(doubles, tmp_path):
    (tmp_path / "desk.toml").write_text('name = "order-desk"\nprompt = "Hi {{who}}."\n')

    with pytest.raises(ConfigurationError, match="nobody says what who is"):
        await point(doubles.settings(), NUMBER, "order-desk", lambda question: True)


async def test_a_number_on_a_trunk_or_for_messages_is_refused(doubles):
    number = doubles.twilio.account.numbers.get(NUMBER)
    for facts in ({"trunk_sid": "TK1"}, {"trunk_sid": "", "takes_calls": False}):
        for name, value in facts.items():
            setattr(number, name, value)
        with pytest.raises(ConfigurationError, match=r"trunk|messages"):
            await point(doubles.settings(), NUMBER, None, lambda question: True)


async def test_an_address_that_is_ours_and_asked_by_get_is_asked_by_post_then(doubles, capsys):
    number, url = doubles.twilio.account.numbers.get(NUMBER), doubles.given["public_url"]
    number.voice_url, number.status_url = f"{url}/twiml", f"{url}/call-status"
    number.voice_method = "GET"

    await point(doubles.settings(), NUMBER, None, lambda question: True)

    said = capsys.readouterr().out
    assert number.voice_method == "POST"
    assert said.index(f"{url}/twiml (by GET)") < said.index(f"→ {url}/twiml\n")


async def test_a_carrier_that_refuses_is_told(doubles):
    settings = doubles.settings(twilio_auth_token="3" * 32)

    with pytest.raises(CarrierError, match="Authenticate"):
        await point(settings, NUMBER, None, lambda question: True)


async def test_a_call_to_the_number_is_then_a_call_to_the_server(doubles):
    await point(doubles.settings(), NUMBER, "order-desk", lambda question: True)
    key = {"X-API-Key": "offhook_" + "k" * 40}
    app, stop = create_app(doubles.settings(api_key=key["X-API-Key"])), trio.Event()
    async with trio.open_nursery() as nursery:
        listener = listen("127.0.0.1", doubles.given["port"])
        await nursery.start(partial(serve, app, listener, stop=stop))
        phone = doubles.twilio.account.ring(NUMBER, from_number="+15005550199", script="hangs-up")
        with trio.fail_after(120):
            await phone.wait_ended()
            url = f"{doubles.given['public_url']}/calls/{phone.call_sid}"
            async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
                agent = (await client.get(url, headers=key)).json()["agent"]
        stop.set()

    assert agent == "order-desk"
    assert phone.reports[-1][1] == 204


def test_in_a_simulation_only_the_agents_file_is_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "desk.toml").write_text('name = "order-desk"\n')
    monkeypatch.setenv("AGENTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda **_: None)  # it would stay for other tests

    assert main(["number", NUMBER, "--agent", "order-desk", "--yes"]) == 0
    assert main(["number", NUMBER, "--agent", "order-desk", "--yes"]) == 0
    assert NUMBER in (tmp_path / "desk.toml").read_text()
    said = capsys.readouterr().out
    assert "calls are simulated" in said
    assert "nothing to change" in said


def test_where_nobody_can_be_asked_it_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "desk.toml").write_text('name = "order-desk"\n')
    monkeypatch.setenv("AGENTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda **_: None)  # it would stay for other tests

    assert main(["number", NUMBER, "--agent", "order-desk"]) == 2
    assert "say --yes" in capsys.readouterr().err


def test_what_is_logged_is_not_among_what_it_says(tmp_path):
    (tmp_path / "desk.toml").write_text(f'name = "desk"\nnumbers = ["{NUMBER}"]\n')
    env = {"AGENTS": "desk.toml", "GEMINI_MODEL": "gemini-9"}

    done = run_command("number", NUMBER, "--agent", "desk", "--yes", cwd=tmp_path, **env)

    assert done.returncode == 0
    assert "unknown model" in done.stderr
    assert "unknown model" not in done.stdout
