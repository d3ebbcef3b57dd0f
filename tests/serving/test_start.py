"""Server processes as people start and stop them: taken ports, certificates, impatience."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import httpx2
import pytest
import trio
import trustme

from benchmarks.ports import free_port
from server.errors import CannotListen
from server.hooks.sockets import holder_of
from server.hooks.stopping import StopSignals
from server.serving.listening import listen
from server.serving.master import Master
from server.serving.notify import Detached
from server.serving.words import READY
from server.settings.settings import Settings
from tests.support.processes import COMMANDS, printed_by, server_process

pytestmark = [pytest.mark.sockets, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def test_a_taken_port_says_what_holds_it_and_what_to_do():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as refused:
            listen("127.0.0.1", port)

    assert f"127.0.0.1:{port}" in str(refused.value)
    assert "--port" in str(refused.value)
    if sys.platform == "linux":
        assert f"process {os.getpid()} (" in str(refused.value)


def test_nobody_holds_a_free_port():
    assert holder_of(free_port()) is None


@pytest.mark.parametrize("more", [[], ["--workers", "2"]])
def test_a_start_on_a_taken_port_is_one_line_and_a_status(more):
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "server", "--port", port, *more]
        ended = subprocess.run(
            command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )

    assert ended.returncode == 1
    assert ended.stderr.startswith("offhook: cannot listen on 127.0.0.1:")
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_second_ctrl_c_ends_the_server_at_once(tmp_path, capfd, command):
    async with server_process(tmp_path, command, drain_timeout_s=300) as server:
        await server.talking_call()
        os.killpg(server.process.pid, signal.SIGINT)
        await server.wait_ready(False)
        # Sooner than a second later it would be the same wish, told twice.
        while server.process.poll() is None:  # within what server_process allows, and not the drain
            with suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGINT)
            await trio.sleep(0.1)

    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
async def test_a_second_ctrl_c_ends_several_processes_as_one_and_leaves_nothing_of_theirs(tmp_path):
    command = "python -m server --workers"
    async with server_process(tmp_path, command, drain_timeout_s=300) as server:
        await server.both_ready()
        await server.talking_call()
        met_in = [each.name for each in server.temporary.iterdir()]
        os.killpg(server.process.pid, signal.SIGINT)
        await server.wait_ready(False)
        while server.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGINT)
            await trio.sleep(0.1)
        left = [each.name for each in server.temporary.iterdir() if each.name in met_in]
        status = server.process.returncode

    assert status == 128 + signal.SIGINT
    assert met_in
    assert left == []


@asynccontextmanager
async def _served_over_tls(directory: Path) -> AsyncGenerator[str]:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(directory / "key.pem")
    made.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    port = free_port()
    arguments = [
        *("-m", "hypercorn", "-c", str(ROOT / "server" / "hypercorn.toml"), "--workers", "0"),
        *("--certfile", str(directory / "cert.pem"), "--keyfile", str(directory / "key.pem")),
        *("--bind", f"127.0.0.1:{port}", "server.asgi:app"),
    ]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "SIMULATED_RING_S": "0.1"}
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, [sys.executable, *arguments], cwd=directory, check=False)
        process = await nursery.start(partial(run, env=environment))
        yield f"https://127.0.0.1:{port}"
        process.terminate()


async def test_with_tls_ended_by_hypercorn_a_simulated_call_is_answered_and_talks(tmp_path):
    async with (
        _served_over_tls(tmp_path) as url,
        httpx2.AsyncClient(base_url=url, trust_env=False, verify=False) as http,
    ):
        with trio.fail_after(60):
            while True:
                try:
                    await http.get("/healthz")
                    break
                except httpx2.TransportError:
                    await trio.sleep(0.05)
            made = await http.post("/make-call", json={"destination_number": "+15005550103"})
            call_sid = made.json()["call_sid"]
            call = {"state": "live"}
            while call["state"] == "live":
                await trio.sleep(0.1)
                call = (await http.get(f"/calls/{call_sid}")).json()

    assert call["reason"] == "caller-hung-up"
    assert call["agent_heard_s"] > 0.2


class _DiesYoung:
    """A process that is killed before it has read what it was told."""

    exitcode = -9

    def __init__(self, theirs: Connection) -> None:
        self._theirs = theirs
        self.sentinel, self._over = os.pipe()

    def start(self) -> None:
        self._end = self._theirs
        self._theirs = Connection(os.dup(self._end.fileno()))

    async def die_when_told(self) -> None:
        await trio.lowlevel.wait_readable(self._theirs.fileno())
        self._theirs.close()  # over what nobody has read: its other end is reset
        os.close(self._over)

    def serve_and_die(self) -> None:
        self._theirs.send_bytes(READY)
        self._theirs.close()
        os.close(self._over)

    def join(self) -> None:
        os.close(self.sentinel)


class _Context:
    """Makes the one process, and its pipe."""

    def __init__(self) -> None:
        self.process: _DiesYoung | None = None
        self.started = trio.Event()

    def Pipe(self) -> tuple[Connection, Connection]:
        return multiprocessing.Pipe()

    def Process(self, target, args) -> _DiesYoung:
        self.process = _DiesYoung(args[-1])
        self.started.set()
        return self.process


async def test_a_process_that_dies_before_it_has_read_what_it_was_told_ends_no_other(nursery):
    master = Master(Settings.load(_env_file=None), {}, 2, StopSignals({}), Detached(wanted=False))
    master._context = context = _Context()
    master._begun.set()

    async def die() -> None:
        await context.started.wait()
        await context.process.die_when_told()

    nursery.start_soon(die)
    with listen("127.0.0.1", 0) as listener, trio.fail_after(60):
        lived_s, status = await master._run_one(listener, 0)

    assert (lived_s, status) == (None, -9)
    assert master._serving == set()


async def test_a_process_that_has_said_that_it_is_ready_has_served(nursery):
    master = Master(Settings.load(_env_file=None), {}, 2, StopSignals({}), Detached(wanted=False))
    master._context = context = _Context()

    async def serve_and_die() -> None:
        await context.started.wait()
        context.process.serve_and_die()

    nursery.start_soon(serve_and_die)
    with listen("127.0.0.1", 0) as listener, trio.fail_after(60):
        lived_s, _ = await master._run_one(listener, 0)

    assert lived_s is not None
    assert master._serving == set()


def test_the_parent_of_several_processes_imports_nothing_of_what_serves(tmp_path):
    script = "import sys, server.__main__; print(*sys.modules)"
    imported = set(printed_by(script, tmp_path).split())

    assert "server.serving.master" in imported
    assert imported.isdisjoint(
        {"server.app", "server.agent", "google.genai", "quart", "sqlalchemy"}
    )
