"""A server that takes over from another on the same machine, under calls that go on and come."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from benchmarks.ports import free_port
from server.carrier import CallStatus
from server.cluster.directory.meeting import private_directory
from server.errors import CannotListen, ConfigurationError
from server.serving import succession as succession_module
from server.serving.succession import (
    AGENTS,
    ANSWER_TIMEOUT_S,
    MAX_MESSAGE_BYTES,
    MAX_TOLD_CHARS,
    SPEAKS,
    SPEAKS_OF_AGENTS,
    START_TIMEOUT_S,
    Predecessor,
    Succession,
    TakeOverRefused,
    check_version,
    meeting_point,
    read_message,
    write_message,
)
from server.settings.settings import Settings
from tests.support.processes import PATIENCE_S, ServerProcess, server_process

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs systemd's way of being told"),
    pytest.mark.sockets,
    pytest.mark.slow,
]

ROOMY = {
    "calls_per_s": 1000,
    "media_timeout_s": 60,
    "drain_timeout_s": 60,
}  # busy machines
HANGS_UP = "+15005550103"
CREDENTIALS = struct.Struct("3i")
TAKE_OVER = ("-m", "server", "--take-over")


class Manager:
    """What systemd is to a service: told when it is ready, and which process it is."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def wait_ready(self) -> int:
        """The process that has said that it is ready."""
        _, main_pid = await self.wait_told()
        return main_pid

    async def wait_told(self) -> tuple[int, int]:
        """Who has said that a process is ready, and which one."""
        room = socket.CMSG_SPACE(CREDENTIALS.size)
        words, [(_, _, credentials)], _, _ = await self._socket.recvmsg(4096, room)
        said = dict(line.split("=") for line in words.decode().split())
        assert said["READY"] == "1"
        return CREDENTIALS.unpack(credentials)[0], int(said["MAINPID"])

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[Manager]:
        with self._socket:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            await self._socket.bind(self.address)
            yield self


@pytest.fixture
async def manager(tmp_path):
    async with Manager(tmp_path).listening() as each:
        yield each


def _reasons(directory: Path) -> dict[str, str]:
    with closing(sqlite3.connect(directory / "offhook.db")) as database:
        return dict(database.execute("SELECT call_sid, reason FROM offhook_calls"))


def _meet(server: ServerProcess, temporary: str) -> str:
    host, port = "127.0.0.1", server.http.base_url.port
    return f"{temporary}/{meeting_point(host, port)}/meet"


async def _place(server: ServerProcess, number: str):
    answer = await server.make_call(number)
    assert answer.status_code == 201, answer.text
    return server.twilio.calls[answer.json()["call_sid"]]


async def _hang_up(server: ServerProcess, phone) -> None:
    assert (await server.http.post(f"/calls/{phone.call_sid}/hang-up")).is_success
    await phone.wait_ended()


# -- under calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "two"])
async def test_calls_go_on_and_new_ones_are_taken_while_another_server_takes_over(
    tmp_path, manager, workers
):
    command = "python -m server --workers" if workers else "python -m server"
    placed, inbound, not_ready = [], [], []
    enough = trio.Event()
    async with server_process(tmp_path, command, host="127.0.0.1", **ROOMY) as server:
        url = str(server.http.base_url).rstrip("/")

        async def keep_calling(task_status) -> None:
            while not enough.is_set():
                placed.append(await _place(server, HANGS_UP))
                inbound.append(
                    server.twilio.dial_in(
                        f"{url}/twiml", from_number="+15005550199", script="hangs-up"
                    )
                )
                if len(placed) == 2:
                    task_status.started()
                await trio.sleep(1.0)  # 2 new calls a second; nothing waits for it

        async def keep_asking() -> None:
            while not enough.is_set():
                answer = await server.http.get("/readyz")
                if not answer.is_success:
                    not_ready.append(answer.text)
                await trio.sleep(0.05)

        before = [await server.talking_call() for _ in range(2)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_asking)
            await nursery.start(keep_calling)
            successor = await server.begin(*TAKE_OVER, *workers, notify_socket=manager.address)
            main_pid = await manager.wait_ready()
            here = len(placed)
            while len(placed) < here + 3:
                await placed[-1].wait_ended()
                await trio.sleep(0.05)
            enough.set()
        still = [phone.status for phone in before]
        states = [
            (await server.http.get(f"/calls/{phone.call_sid}")).json()["state"] for phone in before
        ]
        after = await server.talking_call()
        for phone in before:
            await _hang_up(server, phone)
        status = await server.process.wait()
        ready = await server.http.get("/readyz")
        heard = await server.talking_call()
        for phone in (after, heard):
            await _hang_up(server, phone)
        for phone in (*placed, *inbound):
            await phone.wait_ended()
        successor.send_signal(signal.SIGTERM)
        last_status = await successor.wait()

    assert (status, last_status) == (0, 0)
    assert main_pid == successor.pid
    assert not_ready == []
    assert still == [CallStatus.IN_PROGRESS] * 2
    assert states == ["live"] * 2
    assert ready.status_code == 200
    reasons = _reasons(tmp_path)
    assert {reasons[phone.call_sid] for phone in (*placed, *inbound)} == {"caller-hung-up"}
    assert {reasons[phone.call_sid] for phone in (*before, after, heard)} == {"hung-up"}
    reports = [report for phone in (*before, *placed) for report in phone.reports]
    assert {code for _, code in reports} == {204}
    assert all(phone.reports[-1][0] is CallStatus.COMPLETED for phone in (*before, *placed))


async def test_a_server_is_taken_over_again_while_the_one_before_it_still_has_a_call(
    tmp_path, manager
):
    async with server_process(tmp_path, "python -m server", host="127.0.0.1", **ROOMY) as server:
        phones, processes = [await server.talking_call()], [server.process]
        for workers in ((), ("--workers", "2")):
            processes.append(
                await server.begin(*TAKE_OVER, *workers, notify_socket=manager.address)
            )
            await manager.wait_ready()
            phones.append(await server.talking_call())
        still = [phone.status for phone in phones]
        running = [process.poll() for process in processes]
        for phone in phones:
            await _hang_up(server, phone)
        statuses = [await process.wait() for process in processes[:2]]
        processes[2].send_signal(signal.SIGTERM)
        statuses.append(await processes[2].wait())

    assert still == [CallStatus.IN_PROGRESS] * 3
    assert running == [None] * 3
    assert statuses == [0] * 3
    assert set(_reasons(tmp_path).values()) == {"hung-up"}


@pytest.mark.parametrize("told", ["old", "new"])
async def test_a_stop_of_either_ends_its_own_calls_and_not_the_others(tmp_path, manager, told):
    async with server_process(
        tmp_path, "python -m server", host="127.0.0.1", **{**ROOMY, "drain_timeout_s": 0.2}
    ) as server:
        # The one that is told nothing has time.
        long = {"drain_timeout_s": 60}
        if told == "old":
            old, new_settings = server.process, long
        else:
            first = await server.begin(*TAKE_OVER, **long, notify_socket=manager.address)
            await manager.wait_ready()
            await server.process.wait()
            old, new_settings = first, {}
        on_old = await server.talking_call()
        new = await server.begin(*TAKE_OVER, **new_settings, notify_socket=manager.address)
        await manager.wait_ready()
        on_new = await server.talking_call()
        process, ended, other = (old, on_old, on_new) if told == "old" else (new, on_new, on_old)
        process.send_signal(signal.SIGTERM)
        await ended.wait_ended()
        status = await process.wait()
        still = other.status

    assert status == 0
    assert still is CallStatus.IN_PROGRESS
    assert _reasons(tmp_path) == {ended.call_sid: "drained"}


async def test_the_command_returns_when_the_server_it_began_serves(tmp_path, manager):
    async with server_process(tmp_path, "python -m server", host="127.0.0.1", **ROOMY) as server:
        command = await server.begin(*TAKE_OVER, "--detach", notify_socket=manager.address)
        status = await command.wait()
        told_by, main_pid = await manager.wait_told()
        try:
            old_status = await server.process.wait()
            ready = await server.http.get("/readyz")
        finally:
            with suppress(ProcessLookupError):
                os.kill(main_pid, signal.SIGTERM)

    assert (status, old_status, ready.status_code) == (0, 0, 200)
    assert main_pid != command.pid
    assert told_by == command.pid  # whom systemd believes, as it has begun it itself


# -- when it goes wrong ----------------------------------------------------------------------


DOES_NOT_START = {
    "bad setting": ((), {"drain_timeout_s": "soon"}, 2),
    "fails at start": ((), {"recordings_dir": "/proc/nowhere"}, None),
    "fails at start in two processes": (
        ("--workers", "2"),
        {"recordings_dir": "/proc/nowhere"},
        None,
    ),
    "detached": (("--detach",), {"drain_timeout_s": "soon"}, 1),
}


@pytest.mark.parametrize(
    "names",
    [("bad setting", "detached"), ("fails at start", "fails at start in two processes")],
    ids=" and ".join,
)
async def test_servers_that_do_not_start_leave_the_other_as_it_was(tmp_path, names):
    statuses, talking = {}, {}
    async with server_process(tmp_path, "python -m server", host="127.0.0.1", **ROOMY) as server:
        phone = await server.talking_call()
        for name in names:
            words, settings, _ = DOES_NOT_START[name]
            successor = await server.begin(*TAKE_OVER, *words, **settings)
            statuses[name] = await successor.wait()
            talking[name] = (phone.status, (await server.talking_call()).status)
        running = server.process.poll()

    wanted = {name: DOES_NOT_START[name][2] for name in names}
    assert all(statuses.values()), statuses
    assert all(status in (None, statuses[name]) for name, status in wanted.items()), statuses
    assert set(talking.values()) == {(CallStatus.IN_PROGRESS, CallStatus.IN_PROGRESS)}
    assert running is None


NEVER_LOADED = """
import pathlib, threading

pathlib.Path("starts").write_text("it starts")
threading.Event().wait()
"""
"""The user's own tools, which a new server loads once it has the listening socket."""


async def test_a_server_that_is_killed_before_it_is_ready_leaves_the_other_as_it_was(
    tmp_path, manager
):
    """Killed while it starts: it has the listening socket, and has said nothing more."""
    async with server_process(tmp_path, "python -m server", host="127.0.0.1", **ROOMY) as server:
        phone = await server.talking_call()
        os.mkfifo(tmp_path / "starts")
        (tmp_path / "never_loaded.py").write_text(NEVER_LOADED)
        killed = await server.begin(*TAKE_OVER, tools="never_loaded")
        async with await trio.open_file(tmp_path / "starts") as starts:
            said = await starts.read()
        killed.kill()
        status = await killed.wait()
        still, running = phone.status, server.process.poll()
        another = await server.talking_call()
        successor = await server.begin(*TAKE_OVER, notify_socket=manager.address)
        main_pid = await manager.wait_ready()
        at_last = phone.status

    assert (said, status) == ("it starts", -signal.SIGKILL)
    assert running is None
    assert still is another.status is at_last is CallStatus.IN_PROGRESS
    assert main_pid == successor.pid


LOADED_LATE = """
import fcntl

from server.agent.tool import tool

with open("starts", "wb", buffering=0) as starts:
    starts.write(b".")
with open("may_load") as lock:
    fcntl.flock(lock, fcntl.LOCK_SH)


@tool
async def opening_hours() -> str:
    '''Say when they are open.'''
    return "always"
"""
"""The user's own tools, which no process of a new server has loaded before it may."""


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "two"])
async def test_a_server_that_is_stopped_while_it_starts_leaves_the_other_as_it_was(
    tmp_path, workers
):
    command = "python -m server --workers" if workers else "python -m server"
    async with server_process(tmp_path, command, host="127.0.0.1", **ROOMY) as server:
        phone = await server.talking_call()
        os.mkfifo(tmp_path / "starts")
        (tmp_path / "loaded_late.py").write_text(LOADED_LATE)
        with (tmp_path / "may_load").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stopped = await server.begin(*TAKE_OVER, *workers, tools="loaded_late")
            # Open for writing as well, or it would end between one process and the next.
            starts = os.open(tmp_path / "starts", os.O_RDWR | os.O_NONBLOCK)
            async with trio.lowlevel.FdStream(starts) as said:
                for _ in workers or ("itself",):
                    await said.receive_some(1)
            stopped.send_signal(signal.SIGTERM)
        status = await stopped.wait()
        another = await server.talking_call()
        still, running = phone.status, server.process.poll()

    assert status == 0
    assert running is None
    assert still is another.status is CallStatus.IN_PROGRESS


async def test_a_server_that_says_something_else_than_that_it_is_ready_is_refused(
    tmp_path, manager
):
    async with server_process(tmp_path, "python -m server", host="127.0.0.1", **ROOMY) as server:
        phone = await server.talking_call()
        async with await trio.open_unix_socket(_meet(server, _temporary(server))) as stream:
            await stream.send_all(write_message(speaks=SPEAKS))
            offer = await stream.receive_some(MAX_MESSAGE_BYTES)  # its socket is not taken
            await stream.send_all(write_message(ready="perhaps"))
            said = await stream.receive_some(MAX_MESSAGE_BYTES)
        await server.begin(*TAKE_OVER, notify_socket=manager.address)
        await manager.wait_ready()
        status = phone.status

    assert read_message(offer)["speaks"] == SPEAKS
    with pytest.raises(TakeOverRefused, match="ready"):
        read_message(said)
    assert status is CallStatus.IN_PROGRESS


@pytest.mark.parametrize("command", ["python -m server", "python -m server --workers"])
async def test_a_server_that_is_ending_says_so_to_one_that_takes_over(tmp_path, command):
    offers = []
    async with server_process(tmp_path, command, host="127.0.0.1", **ROOMY) as server:
        phone = await server.talking_call()
        for is_ready in (True, False):
            await server.wait_ready(is_ready)
            async with await trio.open_unix_socket(_meet(server, _temporary(server))) as stream:
                await stream.send_all(write_message(speaks=SPEAKS))
                offers.append(read_message(await stream.receive_some(MAX_MESSAGE_BYTES)))
            if is_ready:
                server.tell_to_stop()
        await _hang_up(server, phone)
        await server.process.wait()

    assert ["ends" in offer for offer in offers] == [False, True]


async def test_nobody_takes_over_where_nobody_serves(tmp_path):
    async with server_process(tmp_path, "python -m server", host="127.0.0.1", **ROOMY) as server:
        successor = await server.begin(*TAKE_OVER, "--port", str(free_port()))

        assert await successor.wait() == 1


def _temporary(server: ServerProcess) -> str:
    environment = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
    return next(line[7:].decode() for line in environment if line.startswith(b"TMPDIR="))


REFUSED = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "no text": b"\xff\xfe\n",
    "nested": b"[" * 4000 + b"\n",
    "too long": b"x" * (2 * MAX_MESSAGE_BYTES),
    "nothing": b"{}\n",
    "another version": b'{"speaks": 99}\n',
}
WAITED_FOR = {"half": b'{"speaks": ', "silent": b""}


async def test_strangers_who_say_something_else_do_no_harm(tmp_path, manager):
    answers = dict.fromkeys(REFUSED, b"")
    async with (
        AsyncExitStack() as strangers,
        server_process(tmp_path, "python -m server", host="127.0.0.1", **ROOMY) as server,
    ):
        phone = await server.talking_call()
        meet = _meet(server, _temporary(server))
        for name, said in (REFUSED | WAITED_FOR).items():
            stream = await strangers.enter_async_context(await trio.open_unix_socket(meet))
            with suppress(trio.BrokenResourceError):  # it does not hear all of it out
                await stream.send_all(said)
                while name in REFUSED and (some := await stream.receive_some()):
                    answers[name] += some
        # Whoever is still there while another takes over holds nothing up.
        await server.begin(*TAKE_OVER, notify_socket=manager.address)
        await manager.wait_ready()
        still = phone.status
        await _hang_up(server, phone)
        status = await server.process.wait()

    assert (status, still) == (0, CallStatus.IN_PROGRESS)
    answered = [answer for name, answer in answers.items() if name != "too long"]
    assert all(b"refused" in answer for answer in answered), answers


async def test_one_server_takes_over_at_a_time(tmp_path):
    async with server_process(tmp_path, "python -m server", host="127.0.0.1", **ROOMY) as server:
        async with await trio.open_unix_socket(_meet(server, _temporary(server))) as stream:
            await stream.send_all(write_message(speaks=SPEAKS))
            await stream.receive_some(MAX_MESSAGE_BYTES)
            second = await server.begin(*TAKE_OVER)

            assert await second.wait() == 1
        assert (await server.http.get("/readyz")).is_success


# -- what they say ---------------------------------------------------------------------------


def test_a_message_is_read_as_it_was_written():
    assert read_message(write_message(speaks=1, secret="00ff")) == {"speaks": 1, "secret": "00ff"}


@pytest.mark.parametrize("letter", ["ñ", "\U0001f355", "\ud800", "\0"])
def test_the_longest_text_that_is_told_fits_into_a_message(letter):
    message = write_message(wrong=letter * MAX_TOLD_CHARS)

    assert len(message) <= MAX_MESSAGE_BYTES
    assert len(read_message(message)["wrong"]) == MAX_TOLD_CHARS


def test_a_server_that_knows_of_no_wishes_refuses_one_by_its_version():
    with pytest.raises(TakeOverRefused, match="do not go together"):
        check_version({"speaks": SPEAKS_OF_AGENTS, "wants": AGENTS})


async def _told_of_agents(reload_agents) -> str:
    """What whoever wants agents read again is told by a server that does it like this."""
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        succession = Succession(listener, "127.0.0.1", port, reload_agents)
        async with trio.open_nursery() as nursery:
            await nursery.start(succession.run)
            try:
                told.append(await succession_module.reload_agents("127.0.0.1", port))
            except ConfigurationError as error:
                told.append(f"wrong: {error}")
            nursery.cancel_scope.cancel()
    return told[0]


async def test_a_server_that_cannot_be_met_serves_all_the_same(monkeypatch, tmp_path):
    (too_long := tmp_path / ("long" * 40)).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(too_long))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        succession = Succession(listener, "127.0.0.1", listener.getsockname()[1], None)
        async with trio.open_nursery() as nursery:
            await nursery.start(succession.run)
            assert not succession.relieved.is_set()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _held_up(monkeypatch) -> AsyncGenerator[tuple[Succession, socket.socket, trio.Event]]:
    """A server that was held up until the event, when another was ready to take over and waited no
    longer for the answer; and the listening socket of both.
    """
    monkeypatch.setattr(succession_module, "LOOK_S", 0.01)
    heard, may_go_on = trio.Event(), trio.Event()
    message = succession_module._message

    async def message_late(connection, timeout_s):
        said = await message(connection, timeout_s)
        if "ready" in said:
            heard.set()
            await may_go_on.wait()
        return said

    monkeypatch.setattr(succession_module, "_message", message_late)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        old = Succession(listener, "127.0.0.1", port, None)
        async with trio.open_nursery() as nursery:
            await nursery.start(old.run)
            async with await trio.open_unix_socket(_point(port)) as stream:
                await stream.send_all(write_message(speaks=SPEAKS))
                await stream.receive_some(MAX_MESSAGE_BYTES)  # its socket is not taken
                await stream.send_all(write_message(ready=True))
                await heard.wait()
            yield old, listener, may_go_on
            nursery.cancel_scope.cancel()


def _point(port: int) -> Path:
    return private_directory(meeting_point("127.0.0.1", port)) / "meet"


@pytest.mark.parametrize("is_there", [True, False], ids=["already", "yet"])
async def test_a_server_that_was_held_up_until_another_had_stepped_in_is_relieved(
    monkeypatch, is_there
):
    async with (
        _held_up(monkeypatch) as (old, listener, may_go_on),
        trio.open_nursery() as nursery,
    ):
        new = Succession(listener, "127.0.0.1", listener.getsockname()[1], None)
        if is_there:
            await nursery.start(new.run)
        may_go_on.set()
        if not is_there:
            await wait_all_tasks_blocked()
            await nursery.start(new.run)
        with trio.fail_after(PATIENCE_S):
            await old.relieved.wait()
        nursery.cancel_scope.cancel()

    assert not new.relieved.is_set()


async def test_a_server_goes_on_when_one_that_was_ready_is_gone(monkeypatch, capsys):
    monkeypatch.setattr(succession_module, "STEPS_IN_WITHIN_S", 0.05)
    async with _held_up(monkeypatch) as (old, listener, may_go_on):
        may_go_on.set()
        port = listener.getsockname()[1]
        said = {"refused": "not asked yet"}
        with trio.fail_after(PATIENCE_S):
            while "refused" in said:
                async with await trio.open_unix_socket(_point(port)) as stream:
                    await stream.send_all(write_message(speaks=SPEAKS))
                    said = json.loads(await stream.receive_some(MAX_MESSAGE_BYTES))

        assert not old.relieved.is_set()
    assert "this server goes on" in capsys.readouterr().out


@asynccontextmanager
async def _starting(port: int) -> AsyncGenerator[Predecessor]:
    """What a server that starts has of the one that it takes over from."""
    stream = await trio.open_unix_socket(_point(port))
    await stream.send_all(write_message(speaks=SPEAKS))
    _, listener = await succession_module._receive(stream, PATIENCE_S)
    with closing(Predecessor(stream, listener, _point(port))) as predecessor:
        yield predecessor


@pytest.mark.parametrize("becomes", ["serves on", "has ended", "was killed"])
async def test_a_server_that_was_refused_for_its_lateness_steps_in_only_for_one_that_has_gone(
    monkeypatch, capsys, becomes
):
    monkeypatch.setattr(succession_module, "START_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        old = Succession(listener, "127.0.0.1", port, None)
        async with trio.open_nursery() as nursery:
            await nursery.start(old.run)
            async with _starting(port) as predecessor:
                with trio.fail_after(PATIENCE_S):
                    while "not ready within" not in capsys.readouterr().out:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                await wait_all_tasks_blocked()  # it has hung up
                if becomes == "serves on":
                    late = "cannot take over: it was not ready within"
                    with pytest.raises(CannotListen, match=late):
                        await predecessor.relieve()
                else:
                    nursery.cancel_scope.cancel()
                    with trio.CancelScope(shield=True):
                        await wait_all_tasks_blocked()
                        if becomes == "was killed":  # and nobody has cleared away after it
                            with socket.socket(socket.AF_UNIX) as unix:
                                unix.bind(str(_point(port)))
                        await predecessor.relieve()
                        shutil.rmtree(_point(port).parent)

                assert not old.relieved.is_set()
            nursery.cancel_scope.cancel()


async def test_a_server_steps_in_for_one_that_has_ended_meanwhile():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(Succession(listener, "127.0.0.1", port, None).run)
            async with _starting(port) as predecessor:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()  # it has hung up
                    await predecessor.relieve()


@pytest.mark.parametrize("goes", ["", "speaks", "ready"], ids=["has calls", "asked", "just then"])
async def test_a_server_that_was_refused_for_its_lateness_relieves_one_that_is_ending(
    monkeypatch, capsys, goes
):
    """Told to stop after it had refused; nobody would serve when its calls have ended."""
    monkeypatch.setattr(succession_module, "START_TIMEOUT_S", 0.05)
    stop, message = trio.Event(), succession_module._message

    async def message_and_end(connection, timeout_s):
        said = await message(connection, timeout_s)
        if goes in said and stop.is_set():
            nursery.cancel_scope.cancel("its calls have ended")
            await trio.sleep_forever()
        return said

    monkeypatch.setattr(succession_module, "_message", message_and_end)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        old = Succession(listener, "127.0.0.1", port, None, stop.is_set)
        async with trio.open_nursery() as nursery:
            await nursery.start(old.run)
            async with _starting(port) as predecessor:
                with trio.fail_after(PATIENCE_S):
                    while "not ready within" not in capsys.readouterr().out:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                await wait_all_tasks_blocked()  # it has hung up
                monkeypatch.setattr(succession_module, "START_TIMEOUT_S", PATIENCE_S)
                stop.set()
                with trio.CancelScope(shield=True), trio.fail_after(PATIENCE_S):
                    await predecessor.relieve()

    assert old.relieved.is_set() is not bool(goes)


@pytest.mark.parametrize("serves_yet", [True, False], ids=["serves yet", "has gone, too"])
async def test_a_server_that_finds_another_in_the_place_of_the_one_that_has_gone_gives_way(
    capsys, serves_yet
):
    """The other was refused for its lateness, and ready before this one when the old one went."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with trio.open_nursery() as later, trio.open_nursery() as earlier:
            await earlier.start(Succession(listener, "127.0.0.1", port, None).run)
            async with _starting(port) as predecessor:
                earlier.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()  # it has hung up
                    if serves_yet:
                        other = Succession(listener, "127.0.0.1", port, None)
                        await later.start(other.run)
                        with pytest.raises(CannotListen, match="has gone, and another serves"):
                            await predecessor.relieve()
                        assert not other.relieved.is_set()
                    else:
                        with socket.socket(socket.AF_UNIX) as unix:
                            unix.bind(str(_point(port)))  # as one leaves it that is killed
                        await predecessor.relieve()
                        shutil.rmtree(_point(port).parent)
            later.cancel_scope.cancel()

    assert ("the server before this one has gone" in capsys.readouterr().out) is not serves_yet


async def test_a_server_that_ends_leaves_the_meeting_point_to_who_has_it_by_then():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        old, new = (Succession(listener, "127.0.0.1", port, None) for _ in range(2))
        async with trio.open_nursery() as later:
            async with trio.open_nursery() as earlier:
                await earlier.start(old.run)
                await later.start(new.run)
                earlier.cancel_scope.cancel()
            is_there = _point(port).exists()
            later.cancel_scope.cancel()

    assert is_there


async def test_whoever_wants_agents_read_is_told_what_came_of_it(monkeypatch):
    async def reads() -> str:
        return "3 agents"

    async def reads_many() -> str:
        return "\U0001f355" * 5_000

    async def refuses() -> str:
        raise ConfigurationError("\U0001f355" * 5_000)

    async def hangs() -> str:
        await trio.sleep_forever()
        return ""

    assert await _told_of_agents(reads) == "3 agents"
    assert await _told_of_agents(reads_many) == "\U0001f355" * MAX_TOLD_CHARS
    assert await _told_of_agents(refuses) == "wrong: " + "\U0001f355" * MAX_TOLD_CHARS
    monkeypatch.setattr(succession_module, "RELOAD_TIMEOUT_S", 0.05)
    assert "not read within" in await _told_of_agents(hangs)


@pytest.mark.parametrize("line", [b"", b"\xff", b"[]", b"7", b"null", b"{" * 100_000])
def test_what_is_no_message_is_refused(line):
    with pytest.raises(TakeOverRefused, match="no message"):
        read_message(line)


def test_a_refusal_says_why():
    with pytest.raises(TakeOverRefused, match="under way"):
        read_message(json.dumps({"refused": "another take-over is under way"}).encode())


@pytest.mark.parametrize("spoken", [SPEAKS + 1, 0, None, "1", {}])
def test_another_version_is_refused_in_words(spoken):
    with pytest.raises(TakeOverRefused, match="stop the old one"):
        check_version({"speaks": spoken})


# -- under systemd ---------------------------------------------------------------------------

UNIT = Path(__file__).parents[2] / "deploy" / "offhook.service"
MOST_EXPOSED = 20
"""Tenths: without any of its precautions a service is at 96."""
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")


def _unit() -> dict[str, str]:
    text = UNIT.read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z]\w+=", line))


def test_the_unit_reloads_with_the_words_it_starts_with():
    lines = _unit()

    assert lines["ExecReload"] == lines["ExecStart"] + " --take-over --detach"
    assert (lines["Type"], lines["NotifyAccess"]) == ("notify", "exec")
    assert lines["KillMode"] == "control-group"


def test_the_unit_waits_for_longer_than_a_new_server_may_take_to_be_ready():
    lines = _unit()

    assert int(lines["TimeoutStartSec"]) > START_TIMEOUT_S + ANSWER_TIMEOUT_S
    settings = Settings(_env_file=None)
    ends_s = settings.drain_timeout_s + settings.farewell_timeout_s + 50
    assert int(lines["TimeoutStopSec"]) > ends_s


def test_what_the_unit_lets_the_server_write_to_is_where_the_server_writes():
    environment = dict(
        re.findall(r"([A-Z_]+)=(\S+)", re.findall(r"(?m)^Environment=(.*)", UNIT.read_text())[0])
    )
    lines = _unit()
    directory = f"/var/lib/{lines['StateDirectory']}"

    assert environment["UNSAVED_DIR"] == directory
    assert environment["DATABASE_URL"].startswith(f"sqlite:///{directory}/")
    assert lines["Environment"] == f"TMPDIR=%t/{lines['RuntimeDirectory']}"
    assert lines["UMask"] == "0077"


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not here")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/offhook/.venv/bin/python", sys.executable))
    done = subprocess.run(
        [SYSTEMD_ANALYZE, "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert [line for line in done.stderr.splitlines() if UNIT.name in line] == []


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not here")
def test_systemd_finds_the_unit_to_be_little_exposed():
    words = ("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(UNIT))
    done = subprocess.run([SYSTEMD_ANALYZE, *words], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
