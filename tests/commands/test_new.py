"""``offhook new``, and the example in this repository, which is what it writes."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio
from standardwebhooks import Webhook

from benchmarks.ports import free_port
from server.commands.line import main
from server.commands.new import PROJECT, write_project
from server.errors import ConfigurationError
from server.settings.file import read_settings_file
from server.settings.settings import Settings
from tests.deploy.programs import find, run
from tests.support.required import is_required
from tests.support.serving import serving

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "pizzeria"
SECRET = base64.b64encode(b"an example's secret, which is none!").decode()
LEFT_BY_TESTS = {"__pycache__", ".pytest_cache"}
PATIENCE_S = 120.0


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not LEFT_BY_TESTS & set(path.parts)
    }


def test_the_example_is_exactly_what_is_written(tmp_path):
    write_project(tmp_path / "pizzeria", SECRET)

    written = files_of(tmp_path / "pizzeria")
    assert written.keys() == set(PROJECT)
    assert files_of(EXAMPLE) == written


def test_every_project_has_a_secret_of_its_own_that_nobody_else_may_read(tmp_path, capsys):
    for name in ("one", "two"):
        assert main(["new", str(tmp_path / name)]) == 0

    given = [read_settings_file(tmp_path / name / ".env", ()).values for name in ("one", "two")]
    assert given[0]["EVENTS_SECRET"] != given[1]["EVENTS_SECRET"]
    assert len(base64.b64decode(given[0]["EVENTS_SECRET"].removeprefix("whsec_"))) == 32
    if os.name == "posix":
        assert (tmp_path / "one" / ".env").stat().st_mode & 0o077 == 0
    assert "offhook dev" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["shop/tools.py", ".env"])
def test_nothing_that_is_there_is_overwritten(tmp_path, name):
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")

    with pytest.raises(ConfigurationError, match=r"has .* in it already: nothing was written"):
        write_project(tmp_path / "mine", SECRET)

    assert files_of(tmp_path / "mine") == {name: b"mine"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_project(tmp_path / "file" / "pizzeria", SECRET)


@pytest.mark.skipif(sys.platform == "win32", reason="a name that is too long is not there")
def test_a_folder_that_cannot_be_looked_at_is_named(tmp_path, capsys):
    assert main(["new", str(tmp_path / ("n" * 300))]) == 2

    assert "cannot be written: File name too long" in capsys.readouterr().err


def test_its_settings_are_settings(tmp_path, monkeypatch):
    write_project(tmp_path, SECRET)
    monkeypatch.chdir(tmp_path)

    settings = Settings.load()

    assert settings.warnings == ()
    assert settings.account is None


@pytest.mark.slow
def test_its_own_tests_pass():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=EXAMPLE,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


HADOLINT = find("hadolint")


@pytest.mark.skipif(
    HADOLINT is None and not is_required("hadolint"),
    reason="hadolint (offhook[deploy]) is not here",
)
def test_hadolint_has_nothing_to_say_of_its_image():
    done = run(HADOLINT, str(EXAMPLE / "Dockerfile"))

    assert done.returncode == 0, done.stdout


@asynccontextmanager
async def running(*command: str, folder: Path, **env: str) -> AsyncGenerator[trio.Process]:
    """A program of the project's, until the block ends."""
    async with trio.open_nursery() as nursery:
        start = partial(
            trio.run_process,
            [sys.executable, *command],
            cwd=folder,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | env,
            stdout=subprocess.PIPE,
            check=False,
        )
        process: trio.Process = await nursery.start(start)
        yield process
        process.terminate()


async def next_line(process: trio.Process) -> str:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        part = await process.stdout.receive_some(1)
        assert part, "it has ended"
        line += part
    return line.decode().rstrip()


@pytest.mark.slow
@pytest.mark.sockets
async def test_an_order_comes_as_json_to_the_receiver(tmp_path):
    """All as a user does it: the project, its receiver, the server, and one call on simulators."""
    folder = tmp_path / "pizzeria"
    write_project(folder, SECRET)
    port, receiver_port = str(free_port()), str(free_port())
    url = f"http://127.0.0.1:{port}"
    told = {
        "PORT": port,
        "RECEIVER_PORT": receiver_port,
        "EVENTS_URL": f"http://127.0.0.1:{receiver_port}/orders",
    }

    with trio.fail_after(PATIENCE_S):
        async with (
            running("receiver.py", folder=folder, **told) as receiver,
            running("-m", "server", "serve", folder=folder, **told),
            httpx2.AsyncClient(trust_env=False, verify=False, timeout=60) as http,
        ):
            assert await next_line(receiver) == f"waiting for orders on port {receiver_port}"
            await until_ready(http, url)
            call = {"destination_number": "+15005550101", "agent": "order-desk"}
            placed = (await http.post(f"{url}/make-call", json=call)).json()
            order = json.loads(await next_line(receiver))

    assert order == {
        "call": placed["call_sid"],
        "complete": True,
        "name": "Ana",
        "items": [{"pizza": "hawaii", "count": 2}, {"pizza": "margherita", "count": 1}],
        "confirmed": True,
    }
    assert kept_in(folder) == [order]


def kept_in(folder: Path) -> list[object]:
    return [json.loads(line) for line in (folder / "orders.jsonl").read_text().splitlines()]


async def until_ready(http: httpx2.AsyncClient, url: str) -> None:
    while True:
        try:
            if (await http.get(f"{url}/readyz")).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        await trio.sleep(0.1)


@pytest.mark.sockets
async def test_its_receiver_takes_what_is_signed_once_and_nothing_else(tmp_path):
    folder = tmp_path / "pizzeria"
    write_project(folder, SECRET)
    port = str(free_port())
    url = f"http://127.0.0.1:{port}/"
    outcome = {"complete": True, "values": {"name": "Ana"}}
    ours = {"call_sid": "CA1", "agent": "order-desk", "outcome": outcome}

    def event(call: dict, kind: str = "call.ended") -> str:
        return json.dumps({"type": kind, "data": {"call": call}})

    with trio.fail_after(PATIENCE_S):
        async with (
            running("receiver.py", folder=folder, RECEIVER_PORT=port) as receiver,
            httpx2.AsyncClient(trust_env=False, verify=False) as http,
        ):
            await next_line(receiver)

            async def send(event_id: str, body: str, secret: str = SECRET, age_s: int = 0) -> int:
                at = datetime.now(UTC) - timedelta(seconds=age_s)
                signature = Webhook(f"whsec_{secret}").sign(event_id, at, body)
                headers = {
                    "webhook-id": event_id,
                    "webhook-timestamp": str(int(at.timestamp())),
                    "webhook-signature": signature,
                }
                return (await http.post(url, content=body, headers=headers)).status_code

            other = base64.b64encode(b"somebody else's secret, not ours").decode()
            assert await send("1", event(ours), other) == 401
            for length in ("-1", "5_0", str(10**9)):
                assert await status_with_length(int(port), length) == 413
            assert await send("2", event(ours), age_s=3_600) == 401
            assert (await http.post(url, content=event(ours))).status_code == 401
            assert await send("3", event(ours, "call.started")) == 204
            assert await send("4", event(ours | {"agent": "owner"})) == 204
            assert await send("5", event(ours)) == 204
            assert await send("5", event(ours)) == 204

    assert kept_in(folder) == [{"call": "CA1", "complete": True, "name": "Ana"}]


async def status_with_length(port: int, length: str) -> int:
    """What it says to a request of such a length, whose body never ends."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        answer = b""
        while part := await stream.receive_some():
            answer += part
            if b"\r\n" in answer:
                break
    return int(answer.split()[1])


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_aGFsZg=="])
def test_its_receiver_does_not_run_with_a_secret_that_is_none(tmp_path, secret):
    write_project(tmp_path / "pizzeria", SECRET)

    done = subprocess.run(
        [sys.executable, "receiver.py"],
        cwd=tmp_path / "pizzeria",
        env=os.environ | {"EVENTS_SECRET": secret, "RECEIVER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 1
    assert "EVENTS_SECRET" in done.stderr


def test_its_image_is_made_of_what_its_readme_puts_beside_it():
    build, readme = ((EXAMPLE / name).read_text() for name in ("Dockerfile", "README.md"))
    copied = build.split("COPY ")[1].splitlines()[0].split()

    assert "python -m build --sdist --outdir ." in readme
    assert copied == ["requirements.txt", "offhook-*.tar.gz", "./"]
    assert " ./offhook-*.tar.gz " in build
    # A stranger may have that name on a package index.
    assert "offhook" not in re.sub("(?m)#.*", "", (EXAMPLE / "requirements.txt").read_text())


@pytest.mark.sockets
async def test_two_numbers_have_two_agents_in_one_process(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    agents = EXAMPLE / "agents"
    async with serving(agents=agents, simulated_callee="hangs-up") as server:
        phones = {}
        for number, name in (("+584125550001", "order-desk"), ("+584125550002", "owner")):
            phones[name] = server.twilio.dial_in(
                f"{server.url}/twiml", from_number="+15005550199", to_number=number
            )
        for phone in phones.values():
            await phone.wait_ended()
        records = {name: await server.finished(phone.call_sid) for name, phone in phones.items()}
        prompts = sorted(
            session.setup["systemInstruction"]["parts"][0]["text"].split("\n")[0]
            for session in server.gemini.sessions
        )

    assert {name: record["agent"] for name, record in records.items()} == {
        "order-desk": "order-desk",
        "owner": "owner",
    }
    assert prompts[0].startswith("You answer the owner's telephone")
    assert prompts[1].startswith("You answer the telephone of Pizza Norte and take orders.")
