"""``offhook dev``: the numbers' webhooks, and the whole command as it is used."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import trio

from benchmarks.ports import free_port
from server.carrier.account import NumberHooks
from server.commands import dev, kept, processes
from server.commands.dev import pointed, url_here
from server.commands.kept import FILE
from server.commands.line import main
from server.commands.opening import with_accounts
from server.commands.processes import Output
from server.commands.tunnel import TunnelLost
from server.errors import CannotListen, ConfigurationError
from server.hooks.stopping import StopSignals
from server.settings.settings import Settings
from tests.support.accounts import NUMBER, OTHER, Doubles, open_doubles
from tests.support.tunnels import ADDRESS, CLOUDFLARED, install

pytestmark = pytest.mark.sockets
PATIENCE_S = 180.0
BEFORE = "https://production.example.com/twiml"
develop = partial(dev.develop, signals=StopSignals({}))


@pytest.fixture
async def doubles(nursery, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doubles = await open_doubles(nursery, tmp_path)
    doubles.twilio.account.numbers.get(NUMBER).voice_url = BEFORE
    return doubles


def test_what_cannot_be_shown_is_said_as_it_can_be(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(dev, "stop_signals", lambda: StopSignals({}))
    monkeypatch.setattr(dev.logs, "configure", lambda **how: None)
    monkeypatch.setattr(dev.trio, "run", lambda *of: dev.say("caf\u00e9 \udcff changed"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))

    main(["dev"])
    dev.say("ending")

    assert shown.getvalue().split(b"\n") == [
        b"offhook dev: caf\\xe9 \\udcff changed",
        b"offhook dev: ending",
        b"",
    ]


SAYS_TOO_MUCH = """
import os, sys
from server.commands import dev
from server.commands.line import main

def say(*of):
    for _ in range(100):
        dev.say("x" * 4096)
    if sys.argv[1:]:
        os.read(reads, ALL)
    dev.say("ending")
    return 0

ALL = 1 << 20  # of what a pipe holds
reads, writes = os.pipe()
os.set_blocking(reads, False)
os.set_blocking(writes, False)
os.dup2(writes, 1)
dev.trio.run = say
status = main(["dev"])
if sys.argv[1:]:
    print(os.read(reads, ALL)[-30:], file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pipe that does not block")
@pytest.mark.parametrize("is_read", [True, False])
def test_whoever_reads_slowly_hears_what_is_said_later_and_whoever_does_not_fails_nothing(
    tmp_path, is_read
):
    ours = str(Path(dev.__file__).parent.parent.parent)
    ended = subprocess.run(
        [sys.executable, "-c", SAYS_TOO_MUCH, *(["read"] if is_read else [])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ours, "PYTHONUNBUFFERED": ""},
        capture_output=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert (b"offhook dev: ending" in ended.stderr) == is_read


async def while_pointed(doubles: Doubles, meanwhile=None, *, is_sure: bool, **changes) -> list[str]:
    """The number's voice webhook before, within and after the block."""
    number = doubles.twilio.account.numbers.get(NUMBER)
    seen = [number.voice_url]
    settings = doubles.settings(**changes)

    async def work(accounts) -> None:
        async with accounts.carrier, pointed(settings, accounts, is_sure=is_sure):
            seen.append(number.voice_url)
            if meanwhile is not None:
                meanwhile()

    with trio.fail_after(PATIENCE_S):
        await with_accounts(settings, work)
    return [*seen, number.voice_url]


async def test_numbers_lead_here_until_the_end(doubles, tmp_path):
    (tmp_path / "desk.toml").write_text(f'name = "desk"\nnumbers = ["{OTHER}"]\n')
    other = doubles.twilio.account.numbers.add(OTHER)
    here = doubles.given["public_url"] + "/twiml"

    within: list[str] = []
    seen = await while_pointed(
        doubles, lambda: within.append(other.voice_url), is_sure=True, agents=tmp_path
    )

    assert seen == [BEFORE, here, BEFORE]
    assert (within, other.voice_url) == ([here], "")


@pytest.mark.parametrize("answer", [True, False])
async def test_it_is_asked_once_before(doubles, monkeypatch, answer, capsys):
    asked: list[str] = []

    def ask(question: str) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr(dev, "ask", ask)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

    seen = await while_pointed(doubles, is_sure=False)

    here = doubles.given["public_url"] + "/twiml"
    assert asked == [f"Send them to {here} until this ends?"]
    assert seen[1] == (here if answer else BEFORE)
    assert f"callers of {NUMBER} are sent to {BEFORE}" in capsys.readouterr().out


async def test_where_nobody_can_be_asked_nothing_is_changed(doubles, capsys):
    assert await while_pointed(doubles, is_sure=False) == [BEFORE] * 3
    assert "say --yes" in capsys.readouterr().out


async def test_what_somebody_else_sets_meanwhile_stays(doubles):
    number = doubles.twilio.account.numbers.get(NUMBER)

    def set_by_another() -> None:
        number.voice_url = "https://another.example.com/"

    seen = await while_pointed(doubles, set_by_another, is_sure=True)

    assert seen[2] == "https://another.example.com/"


KILLED = """
import os, signal, trio
from server.commands.dev import pointed
from server.commands.opening import with_accounts
from server.settings.settings import Settings

settings = Settings.load()

async def work(accounts):
    async with accounts.carrier, pointed(settings, accounts, is_sure=True):
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(with_accounts, settings, work)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is killed like this there")
@pytest.mark.parametrize("is_sure", [True, False])
@pytest.mark.slow
async def test_a_number_is_set_back_as_it_was_before_a_process_that_was_killed(
    doubles, tmp_path, is_sure
):
    number = doubles.twilio.account.numbers.get(NUMBER)
    number.voice_method = "GET"
    ours = str(Path(dev.__file__).parent.parent.parent)
    env = os.environ | doubles.env() | {"PYTHONPATH": ours, "PUBLIC_URL": "https://dead.example"}
    with trio.fail_after(PATIENCE_S):
        command = [sys.executable, "-c", KILLED]
        done = await trio.run_process(command, cwd=tmp_path, env=env, check=False)
    dead, left = number.voice_url, tmp_path / FILE
    mode = left.stat().st_mode & 0o777

    seen = await while_pointed(doubles, is_sure=is_sure)

    here = doubles.given["public_url"] + "/twiml"
    assert (done.returncode, dead, mode) == (-9, "https://dead.example/twiml", 0o600)
    assert seen == [dead, here if is_sure else BEFORE, BEFORE]
    assert (number.voice_method, number.status_url) == ("GET", "")
    assert not left.exists()


async def test_what_could_not_be_set_back_is_tried_again_by_the_next(doubles, tmp_path, capsys):
    account = doubles.twilio.account
    number = account.numbers.get(NUMBER)

    def take_away() -> None:
        number.number = OTHER

    seen = await while_pointed(doubles, take_away, is_sure=True)
    number.number = NUMBER
    again = await while_pointed(doubles, is_sure=False)

    assert seen[2] == again[0] == doubles.given["public_url"] + "/twiml"
    assert again[1:] == [BEFORE, BEFORE]
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("text", ["{", '[{"before": 5}]', "[" * 5_000])
async def test_a_file_that_cannot_be_read_is_told_of_and_left(doubles, tmp_path, text, capsys):
    (tmp_path / FILE).write_text(text)

    assert await while_pointed(doubles, is_sure=True) == [BEFORE] * 3
    assert f"{FILE}, where it is kept how they were, cannot be read" in capsys.readouterr().out
    assert (tmp_path / FILE).read_text() == text


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
async def test_the_numbers_of_one_that_runs_in_this_folder_are_left_to_it(doubles, capsys):
    settings = doubles.settings()
    number, seen = doubles.twilio.account.numbers.get(NUMBER), list[str]()

    async def work(accounts) -> None:
        async with accounts.carrier, pointed(settings, accounts, is_sure=True):
            seen.extend(await while_pointed(doubles, is_sure=True, public_url="https://b.example"))

    with trio.fail_after(PATIENCE_S):
        await with_accounts(settings, work)

    assert seen == [doubles.given["public_url"] + "/twiml"] * 3
    assert number.voice_url == BEFORE
    assert "another `offhook dev`" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_a_file_that_was_deleted_as_it_was_opened_is_nobodys_place(tmp_path, monkeypatch):
    path = tmp_path / FILE

    def delete(descriptor: int, operation: int) -> None:
        path.unlink()

    monkeypatch.setattr(kept.fcntl, "flock", delete)

    with pytest.raises(ConfigurationError, match="another"):
        kept.Kept.open(tmp_path)


async def test_agents_that_are_wrong_keep_nobody_from_mending_them(doubles, tmp_path, capsys):
    (tmp_path / "desk.toml").write_text("name = ")

    assert await while_pointed(doubles, is_sure=True, agents=tmp_path) == [BEFORE] * 3
    assert "desk.toml" in capsys.readouterr().out


async def test_a_number_that_an_application_answers_is_left_alone(doubles, capsys):
    doubles.twilio.account.numbers.get(NUMBER).voice_application_sid = "AP1"

    assert await while_pointed(doubles, is_sure=True) == [BEFORE] * 3
    assert "a TwiML application answers" in capsys.readouterr().out


async def test_a_carrier_that_refuses_keeps_nobody_from_serving(doubles, capsys):
    assert await while_pointed(doubles, is_sure=True, twilio_auth_token="3" * 32) == [BEFORE] * 3
    assert "webhooks stay as they are: Unable to fetch record: Auth" in capsys.readouterr().out


async def test_numbers_that_lead_here_already_are_not_touched(doubles):
    number = doubles.twilio.account.numbers.get(NUMBER)
    url = doubles.given["public_url"]
    number.voice_url, number.status_url = f"{url}/twiml", f"{url}/call-status"

    await while_pointed(doubles, is_sure=True)

    assert number.updates == 0


async def test_an_address_that_is_taken_is_said_before_anything_is_opened(doubles, monkeypatch):
    monkeypatch.setattr(dev, "find_program", None)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", doubles.given["port"]))
        holder.listen()
        with trio.fail_after(PATIENCE_S), pytest.raises(CannotListen):
            await develop(doubles.given | {"_env_file": None}, "auto", is_sure=True)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"public_url": None}, "is not installed"), ({"max_calls": 0}, "MAX_CALLS")],
)
async def test_settings_that_do_not_fit_are_refused(doubles, monkeypatch, tmp_path, changes, why):
    monkeypatch.setenv("PATH", str(tmp_path))
    given = doubles.given | {"_env_file": None} | changes

    with trio.fail_after(PATIENCE_S), pytest.raises(ConfigurationError, match=why):
        await develop(given, "auto", is_sure=True)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("desk.example.com", "http://desk.example.com:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("fd00::1", "http://[fd00::1]:80"),
    ],
)
def test_the_address_that_is_told_leads_to_where_it_listens(host, url):
    assert url_here(Settings(_env_file=None, host=host, port=80)) == url


async def test_a_tunnel_that_ends_ends_it_all(doubles, tmp_path, monkeypatch):
    install(tmp_path, "cloudflared", CLOUDFLARED, then="end")
    monkeypatch.setenv("PATH", str(tmp_path))
    given = doubles.given | {"_env_file": None, "public_url": None}

    with trio.fail_after(PATIENCE_S), pytest.raises(TunnelLost, match="cloudflared has ended"):
        await develop(given, "auto", is_sure=True)

    assert doubles.twilio.account.numbers.get(NUMBER).voice_url == BEFORE


ENDS_SLOWLY = """
import os, pathlib, signal, sys, time

def end(*_):
    pathlib.Path("ending").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    pathlib.Path("goodbye").touch()
    sys.exit()

signal.signal(signal.SIGTERM, end)
names = "DRAIN_TIMEOUT_S", "FAREWELL_TIMEOUT_S", "AGENTS_WATCH"
pathlib.Path("told.new").write_text(" ".join(os.environ.get(name, "?") for name in names))
pathlib.Path("told.new").rename("told")
while True:
    time.sleep(0.01)
"""


async def until_there(path: trio.Path) -> None:
    while not await path.exists():  # noqa: ASYNC110
        await trio.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="the program waits for SIGTERM")
@pytest.mark.parametrize(
    ("environment", "told"), [(None, "0.0 2.0 True"), ("5", "5 2.0 True")], ids=["file", "both"]
)
async def test_calls_end_shortly_and_in_peace_whatever_the_file_says(
    tmp_path, monkeypatch, environment, told
):
    (tmp_path / "program").write_text(ENDS_SLOWLY)
    (tmp_path / ".env").write_text(
        f"PORT={free_port()}\nDRAIN_TIMEOUT_S=600\nFAREWELL_TIMEOUT_S=10\nAGENTS_WATCH=false\n"
    )
    monkeypatch.chdir(tmp_path)
    if environment is not None:
        monkeypatch.setenv("DRAIN_TIMEOUT_S", environment)
    monkeypatch.setattr(dev.Serving, "_command", [sys.executable, "program"])
    monkeypatch.setattr(processes, "STOP_S", 0.1)  # of anything but the server

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(develop, {}, "none", is_sure=True))
            await until_there(trio.Path(tmp_path, "told"))
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await until_there(trio.Path(tmp_path, "ending"))
                await trio.sleep(0.5)  # longer than anything else may take
                (tmp_path / "go").touch()

    assert (tmp_path / "told").read_text() == told
    assert (tmp_path / "goodbye").exists()


TELLS_KEY = """
import os, pathlib, time

pathlib.Path("told.new").write_text(os.environ.get("API_KEY", ""))
pathlib.Path("told.new").rename("told")
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the program for the tunnel is a script")
@pytest.mark.parametrize("key", [None, "offhook_" + "k" * 40], ids=["none", "one of mine"])
async def test_what_a_tunnel_leads_to_wants_a_key_without_an_account_too(
    tmp_path, monkeypatch, capsys, key
):
    install(tmp_path / "bin", "cloudflared", CLOUDFLARED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(dev.Serving, "_command", [sys.executable, "-c", TELLS_KEY])
    given = {"_env_file": None, "port": free_port()} | ({"api_key": key} if key else {})

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(develop, given, "cloudflared", is_sure=True))
            await until_there(trio.Path(tmp_path, "told"))
            nursery.cancel_scope.cancel()

    told, said = (tmp_path / "told").read_text(), capsys.readouterr().out
    assert told == key if key else told.startswith("offhook_")
    assert (told in said) is (key is None)


TELLS_NAME = """
import pathlib, sys, time

name = pathlib.Path("agents/desk.toml").read_text()
pathlib.Path("told.new").write_text(name)
pathlib.Path("told.new").rename(name)
if name == "broken":
    sys.exit(2)
time.sleep(600)
"""


async def test_a_server_that_an_agents_file_ended_is_begun_again_when_that_is_mended(
    tmp_path, monkeypatch, capsys
):
    agent = tmp_path / "agents" / "desk.toml"
    agent.parent.mkdir()
    agent.write_text("broken")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dev.Serving, "_command", [sys.executable, "-c", TELLS_NAME])
    given = {"_env_file": None, "port": free_port(), "agents": Path("agents")}

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(develop, given, "none", is_sure=True))
            await until_there(trio.Path(tmp_path, "broken"))
            agent.write_text("mended!")
            await until_there(trio.Path(tmp_path, "mended!"))
            nursery.cancel_scope.cancel()

    assert f"{Path('agents', 'desk.toml')} changed: starting again" in capsys.readouterr().out


class Running:
    """The command, and what it and its server have printed so far."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._output = Output(process)

    async def until(self, *words: str) -> list[str]:
        """The lines that have these words, in whichever order they come."""
        found: dict[str, str] = {}
        while len(found) < len(words):
            line = await self._output.next_line()
            assert line is not None, f"it ended without {words}: {self.lines}"
            self.lines.append(line)
            found |= {word: line for word in words if word in line and word not in found}
        return [found[word] for word in words]


async def change_often(path: Path, text: str) -> None:
    """Change a file until it is seen: when the server begins to look, nobody knows."""
    for voice in cycle(("Kore", "Puck", "Zephyr")):
        await trio.Path(path).write_text(f'{text}voice = "{voice}"\n')
        await trio.sleep(1.0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the program for the tunnel is a script")
async def test_a_server_is_begun_again_when_code_changes_and_all_is_put_back(doubles, tmp_path):
    """A tunnel, numbers, a restart, a mistake and its mending, agents, and the end."""
    install(tmp_path / "bin", "cloudflared", CLOUDFLARED)
    tools, agent = tmp_path / "mine.py", tmp_path / "agents" / "desk.toml"
    tools.write_text(tool("one"))
    agent.parent.mkdir()
    agent.write_text('name = "desk"\ntools = ["mine"]\n')
    env = doubles.env() | {"AGENTS": "agents", "API_KEY": "offhook_" + "k" * 40}
    del env["PUBLIC_URL"]
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ours = str(Path(dev.__file__).parent.parent.parent)
    number = doubles.twilio.account.numbers.get(NUMBER)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            run = partial(
                trio.run_process,
                [sys.executable, "-m", "server", "dev", "--yes"],
                cwd=tmp_path,
                env=os.environ | env | {"PATH": path, "PYTHONPATH": ours},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            command = Running(await nursery.start(run))
            await command.until("they come here now")
            within = NumberHooks(number.voice_url, number.status_url)
            url = f"http://127.0.0.1:{doubles.given['port']}"
            ready, _ = await command.until("offhook ready", f"serving at {url}")

            tools.write_text(tool("two, which is longer"))
            await command.until("mine.py changed: starting again")
            await command.until("offhook ready")

            tools.write_text("this is no Python")
            await command.until("has ended with status 2: mend it")
            tools.write_text(tool("three"))
            await command.until("offhook ready")

            async with trio.open_nursery() as writing:
                writing.start_soon(change_often, agent, agent.read_text())
                await command.until("agents read")
                writing.cancel_scope.cancel()

            command.process.send_signal(signal.SIGTERM)
            await command.until(f"{NUMBER} is as it was")
            await command.process.wait()

    assert within == NumberHooks(f"{ADDRESS}/twiml", f"{ADDRESS}/call-status")
    assert ADDRESS in ready
    assert number.voice_url == BEFORE
    assert command.process.returncode == 0
    assert (tmp_path / "bin" / "cloudflared.ended").exists()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", doubles.given["port"]))


def tool(words: str) -> str:
    return f'''
from server.agent.tool import tool


@tool
def say() -> str:
    """Say {words}."""
    return "{words}"
'''
