"""Agents that are read again by a server that goes on serving."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing, nullcontext
from multiprocessing import Pipe
from pathlib import Path

import pytest
import trio

from server.errors import ConfigurationError
from server.hooks.stopping import StopSignals
from server.serving import master as master_module
from server.serving.master import Master
from server.serving.notify import Detached
from server.serving.words import READ_AGENTS
from server.settings.settings import Settings
from tests.support.processes import (
    PATIENCE_S,
    ROOT,
    ServerProcess,
    hang_ups_taken,
    server_process,
)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs signals and Unix sockets"),
    pytest.mark.sockets,
    pytest.mark.slow,
]

ROOMY = {"calls_per_s": 1000, "media_timeout_s": 60}  # busy machines
RELOAD = ("-m", "server", "--reload-agents")


def describe(folder: Path, voice: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "desk.toml").write_text(f'name = "desk"\nnumbers = "*"\nvoice = {voice}\n')


async def voice_of(server: ServerProcess) -> str:
    agents = (await server.http.get("/agents")).json()["agents"]
    return next(agent["voice"] for agent in agents if agent["name"] == "desk")


async def until_read(log: Path, times: int) -> None:
    """Wait until so many readings are over: each process does its own, when it comes to it."""
    while log.read_text().count('"agents read"') < times:  # noqa: ASYNC110, ASYNC240
        await trio.sleep(0.05)


@pytest.mark.parametrize("workers", [False, True], ids=["one process", "two"])
async def test_agents_are_read_again_by_a_command_and_a_signal_and_calls_go_on(
    tmp_path, workers, kept_output
):
    describe(tmp_path / "agents", '"Kore"')
    command = "python -m server --workers" if workers else "python -m server"
    told_to = {"agents": "agents", "host": "127.0.0.1", "output": kept_output.fileno(), **ROOMY}
    with hang_ups_taken():
        async with server_process(tmp_path, command, **told_to) as server:
            if workers:
                await server.both_ready()
            phone = await server.talking_call()
            describe(tmp_path / "agents", '"Puck"')
            status = await (await server.begin(*RELOAD)).wait()
            puck = await voice_of(server)
            describe(tmp_path / "agents", '"Zephyr"')
            os.kill(server.process.pid, signal.SIGHUP)
            await until_read(Path(kept_output.name), 4 if workers else 2)
            describe(tmp_path / "agents", "3")
            refused = await (await server.begin(*RELOAD)).wait()
            told = await server.http.post("/agents/reload")
            kept = await voice_of(server)
            live = phone.status.value
            server.tell_to_stop()
            ended = await server.process.wait()

    assert (status, refused, ended) == (0, 2, 0)
    assert puck == "Puck"
    assert told.status_code == 422
    assert "desk.toml, line 3: voice must be a text" in told.json()["message"]
    assert (kept, live) == ("Zephyr", "in-progress")


READS = """
import os
from pathlib import Path
Path("read").with_suffix(".new").write_text(str(os.getpid()))
os.replace("read.new", "read")
"""


@pytest.fixture
def parent(tmp_path, monkeypatch):
    """The parent of several processes, of which none runs, and whose agents say who reads them."""
    monkeypatch.chdir(tmp_path)
    write_module()
    settings = Settings(_env_file=None, agents="agents.py")
    return Master(settings, {}, 2, StopSignals({}), Detached(wanted=False))


def write_module(more: str = "") -> None:
    Path("agents.py").write_text(READS + more)


def reader() -> int:
    return int(Path("read").read_text())


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("is_wrong", [False, True])
async def test_the_parent_of_several_has_agents_read_in_a_process_that_ends(parent, is_wrong):
    write_module("unknown" if is_wrong else "")
    wrong = pytest.raises(ConfigurationError, match=r"agents\.py, line 6: NameError")
    with trio.fail_after(PATIENCE_S), wrong if is_wrong else nullcontext():
        await parent._read_agents()

    assert reader() != os.getpid()
    assert not is_there(reader())


async def test_a_wish_to_read_agents_that_everybody_is_told_of_ends_no_reading_under_way(parent):
    write_module("import signal\nos.kill(os.getpid(), signal.SIGHUP)")
    with trio.fail_after(PATIENCE_S):
        await parent._read_agents()


async def test_what_has_read_agents_cleans_up_behind_them(parent, monkeypatch):
    monkeypatch.setattr(master_module, "TRIED_END_S", PATIENCE_S)
    write_module(
        "import atexit, pathlib, time\n"
        "atexit.register(lambda: (time.sleep(0.2), pathlib.Path('cleaned').touch()))\n"
    )
    with trio.fail_after(PATIENCE_S):
        await parent._read_agents()

    assert Path("cleaned").exists()  # noqa: ASYNC240


async def test_processes_read_their_agents_before_what_has_read_them_on_trial_has_ended(
    parent, monkeypatch
):
    monkeypatch.setattr(master_module, "TRIED_END_S", PATIENCE_S)
    write_module(
        "import threading, time\n"
        "def stay():\n"
        "    while not Path('may_end').exists(): time.sleep(0.01)\n"
        "threading.Thread(target=stay).start()\n"
    )
    ours, process = Pipe()
    parent._wires.add(ours)
    answers, its_time = [], trio.CancelScope()

    async def read() -> None:
        with its_time:
            answers.append(await parent._read_agents())

    with ours, process, trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.lowlevel.wait_readable(process.fileno())
            word = process.recv_bytes()
            its_time.cancel("it is over before the end is")
            Path("may_end").touch()  # noqa: ASYNC240

    assert word == READ_AGENTS
    assert answers == ["1 processes read their agents; the log says what came of it"]


async def test_agents_that_never_come_to_be_read_leave_nothing_behind(parent):
    write_module("while True: pass")
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent._read_agents)
            while not Path("read").exists():  # noqa: ASYNC110, ASYNC240
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    assert not is_there(reader())


READ_FOR_EVER = """
import os
with open("reads", "w") as reads:
    print(os.getpid(), file=reads, flush=True)
    while True:
        pass
"""
READS_ON_TRIAL = """
import trio
from server.hooks.stopping import StopSignals
from server.serving.master import Master
from server.serving.notify import Detached
from server.settings.settings import Settings

if __name__ == "__main__":
    settings = Settings(_env_file=None, agents="agents.py")
    trio.run(Master(settings, {}, 2, StopSignals({}), Detached(wanted=False))._read_agents)
"""


async def test_agents_that_never_come_to_be_read_go_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "agents.py").write_text(READ_FOR_EVER)
    (tmp_path / "parent.py").write_text(READS_ON_TRIAL)
    os.mkfifo(tmp_path / "reads")
    with trio.fail_after(PATIENCE_S):
        parent = await trio.lowlevel.open_process(
            [sys.executable, "parent.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        # To wait for whoever writes by opening it could not be given up.
        reads = os.open(tmp_path / "reads", os.O_RDONLY | os.O_NONBLOCK)
        with closing(trio.lowlevel.FdStream(reads)):
            await trio.lowlevel.wait_readable(reads)
            number = int(os.read(reads, 100))
            parent.kill()
            await parent.wait()
            try:
                await trio.lowlevel.wait_readable(reads)  # its end is the process's
            except trio.Cancelled:
                os.kill(number, signal.SIGKILL)
                raise
            rest = os.read(reads, 100)

    assert rest == b""


async def test_who_wants_agents_read_after_another_version_was_installed_is_told(
    parent, monkeypatch, tmp_path
):
    (tmp_path / "server" / "serving").mkdir(parents=True)
    for file in ("__init__.py", "serving/__init__.py", "serving/master.py"):
        (tmp_path / "server" / file).touch()  # what was started is elsewhere by now
    monkeypatch.syspath_prepend(tmp_path)
    with trio.fail_after(PATIENCE_S), pytest.raises(ConfigurationError, match="another version"):
        await parent._read_agents()


async def test_who_wants_agents_read_where_no_process_can_be_started_is_told(parent, monkeypatch):
    def refused(*facts: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(parent, "_start", refused)
    with pytest.raises(ConfigurationError, match="started to read them: no more processes"):
        await parent._read_agents()


STARTS = {
    "one process": """
single.run = begun
sys.exit(main())
""",
    "two": """
class Master:
    def __init__(self, *facts, **more):
        self.facts = facts
    async def run(self):
        return await begun(*self.facts)
serve.Master = Master
sys.argv += ["--workers", "2"]
sys.exit(main())
""",
    "one of two": """
member._serve = begun
signal.pthread_sigmask(signal.SIG_BLOCK, master.STOP)  # as where one is started
signal.raise_signal(signal.SIGHUP)
master.work(None, {}, 2, 0, None)
""",
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("has_agents", [True, False])
def test_a_wish_to_read_agents_stops_no_server_that_is_just_starting(tmp_path, start, has_agents):
    describe(tmp_path / "agents", '"Kore"')
    begin = """
import signal, sys
from server.__main__ import main
from server.commands import serve
from server.hooks.stopping import StopSignals
from server.serving import master, member, single
async def begun(*facts, **more):
    signals = next(fact for fact in facts if isinstance(fact, StopSignals))
    return 50 + signals.asked
serve.raise_file_limit = lambda: signal.raise_signal(signal.SIGHUP)
"""
    with hang_ups_taken():
        ended = subprocess.run(
            [sys.executable, "-c", begin + STARTS[start]],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)}
            | ({"AGENTS": "agents"} if has_agents else {}),
            start_new_session=True,
            check=False,
        )

    assert ended.returncode == (50 if has_agents else 51)


async def test_without_agents_a_hang_up_drains_as_ever(tmp_path):
    with hang_ups_taken():
        async with server_process(tmp_path, "python -m server", **ROOMY) as server:
            server.tell_to_stop(by=signal.SIGHUP)
            status = await server.process.wait()

    assert status == 0


async def test_there_has_to_be_a_server_that_reads_them(tmp_path):
    describe(tmp_path / "agents", '"Kore"')
    async with server_process(tmp_path, "python -m server", agents="agents", **ROOMY) as server:
        status = await (await server.begin(*RELOAD, "--port", "9")).wait()

    assert status == 1


def test_a_process_without_a_terminal_knows_it():
    asked = "from server.hooks.stopping import has_terminal; print(has_terminal())"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=ROOT,
        start_new_session=True,  # the tests themselves may have one
        capture_output=True,
        check=True,
    )

    assert done.stdout.split() == [b"False"]
