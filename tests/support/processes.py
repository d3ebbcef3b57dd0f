"""The server as a process, as it is started in production."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio

if sys.platform != "win32":
    import resource

from benchmarks.ports import free_port
from benchmarks.processes import family
from server.carrier import CallStatus
from server.simulators.gemini import GeminiSimulator
from server.simulators.phone import StreamEnd
from server.simulators.twilio import TwilioSimulator
from server.simulators.twilio.webhooks import Overrides

ROOT = Path(__file__).parents[2]
NUMBER = "+15005550006"
NEVER_HANGS_UP, RINGS_FOR_LONG = "+15005550108", "+15005550105"
API_KEY = "sesame"
PATIENCE_S = 120.0
"""For a whole test: processes that start on a busy machine take their time, and only one that hangs
is to fail for it."""
COMMANDS = {
    "python -m server": ["-m", "server"],
    "hypercorn": [
        *("-m", "hypercorn", "-c", str(ROOT / "server" / "hypercorn.toml")),
        *("--bind", "127.0.0.1:{port}", "server.asgi:app"),
    ],
    "hypercorn in one process": [
        *("-m", "hypercorn", "-c", str(ROOT / "server" / "hypercorn.toml"), "--workers", "0"),
        *("--bind", "127.0.0.1:{port}", "server.asgi:app"),
    ],
}
TWO_PROCESSES = {
    "python -m server --workers": ["-m", "server", "--workers", "2"],
    "hypercorn -w": [
        *("-m", "hypercorn", "-c", str(ROOT / "server" / "hypercorn.toml"), "-w", "2"),
        *("--bind", "127.0.0.1:{port}", "server.asgi:app"),
    ],
}
KEEPS_GARBAGE, FLUSHES_SHORTLY = "keeps garbage", "flushes shortly"
KNOWN_SECRET = "known secret"
GIVES_UP_SOON = "hypercorn -w, gives up soon"
OF_TESTS = {
    KEEPS_GARBAGE: ["-m", "tests.support.kept_garbage"],
    FLUSHES_SHORTLY: ["-m", "tests.support.short_flush"],
    KNOWN_SECRET: ["-m", "tests.support.known_secret"],
    GIVES_UP_SOON: ["-m", "tests.support.soon_given_up", *TWO_PROCESSES["hypercorn -w"][2:]],
}


@dataclass
class ServerProcess:
    process: trio.Process
    http: httpx2.AsyncClient
    twilio: TwilioSimulator
    gemini: GeminiSimulator
    directory: Path
    temporary: Path
    begin: Callable[..., Awaitable[trio.Process]]
    """Starts another process like it, with a command's words and environment of its own."""

    async def make_call(self, number: str) -> httpx2.Response:
        return await self.http.post("/make-call", json={"destination_number": number})

    async def talking_call(self):
        """A call whose agent has said its greeting to the end."""
        call_sid = (await self.make_call(NEVER_HANGS_UP)).json()["call_sid"]
        while True:
            turns = (await self.http.get(f"/calls/{call_sid}")).json()["transcript"]
            if turns and turns[0]["heard_s"]:
                return self.twilio.calls[call_sid]
            await trio.sleep(0.05)

    async def wait_ready(self, ready: bool = True) -> None:
        while True:
            try:
                if (await self.http.get("/readyz")).is_success is ready:
                    return
            except httpx2.TransportError:
                pass
            await trio.sleep(0.05)

    def workers(self) -> list[int]:
        """Its processes that serve, if it has several: those that others were started to be.

        A keeper of a worker, which has the same command line, serves nothing itself.
        """
        spawned = [
            each
            for each in family(self.process.pid)
            if b"multiprocessing.spawn" in Path(f"/proc/{each}/cmdline").read_bytes()
        ]
        return [each for each in spawned if not set(family(each)[1:]) & set(spawned)]

    async def both_ready(self) -> None:
        """Wait until both processes of two serve."""
        while True:
            if (await self.http.get("/metrics")).text.count("\noffhook_calls_active{") == 2:
                return
            await trio.sleep(0.05)

    def tell_to_stop(
        self, *, whole_group: bool = False, by: signal.Signals = signal.SIGTERM
    ) -> None:
        if whole_group:
            os.killpg(self.process.pid, by)
        else:
            self.process.send_signal(by)


def parent_of(process: int) -> int:
    """The process that has started another; Linux only."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def hang_ups_taken() -> Generator[None]:
    """Within the block, what is started takes SIGHUP though the tests themselves may not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def run_command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the program to its end; what it says is kept.

    Args:
        words: What follows the program's name.
        cwd: Where.
        environment: All that there is of it.
    """
    return subprocess.run(
        [sys.executable, "-m", "server", *words],
        cwd=cwd,
        env={"PATH": ""} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def printed_by(script: str, cwd: Path) -> str:
    """What a script prints in an interpreter that has imported nothing of ours."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout


@contextmanager
def patient_carrier() -> Generator[None]:
    """Have webhooks wait a minute to be connected, where nothing else is said: a machine that runs
    tests may stand for a while.
    """
    hurried = Overrides.of

    def of(fragment: str) -> Overrides:
        said = hurried(fragment)
        return said if "ct=" in fragment else replace(said, connect_s=60.0, total_s=60.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Overrides, "of", of)
        yield


@asynccontextmanager
async def server_process(
    directory: Path,
    command: str,
    *,
    output: int | None = None,
    limits: Mapping[int, tuple[int, int]] | None = None,
    **settings: object,
) -> AsyncGenerator[ServerProcess]:
    """Start a server with accounts of its own.

    Args:
        directory: Where it runs.
        command: Of :data:`COMMANDS`, :data:`TWO_PROCESSES` or :data:`OF_TESTS`.
        output: The file number of its stdout and stderr; None for ours.
        limits: What the system allows it, as for ``resource.setrlimit``.
        settings: More of them.
    """

    def limit() -> None:
        for kind, soft_and_hard in (limits or {}).items():
            resource.setrlimit(kind, soft_and_hard)

    twilio = TwilioSimulator(account_sid="AC" + "1" * 32, auth_token="t" * 32, phone_number=NUMBER)
    gemini = GeminiSimulator(api_key="model-key")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        # Unix sockets are made in it, so its name is short; who is killed leaves them there, and
        # workers whose parent is killed may still be at their last writes.
        temporary = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="offhook-", ignore_cleanup_errors=True)
        )
        stack.enter_context(patient_carrier())
        await nursery.start(twilio.run)
        await nursery.start(gemini.run)
        named = {
            "twilio_account_sid": twilio.account_sid,
            "twilio_auth_token": "t" * 32,
            "twilio_phone_number": NUMBER,
            "twilio_api_url": twilio.api_url,
            "gemini_api_key": "model-key",
            "gemini_url": gemini.url,
            "public_url": url,
            "port": port,
            "api_key": API_KEY,
            "drain_timeout_s": 0.2,
            "max_loop_lag_s": 60,  # a machine that runs tests is busy
            **settings,
        }
        kept = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "HOME", "LD_LIBRARY_PATH")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        # What a test finds does not depend on whether there is a model of voices here.
        environment["VOICE_JUDGE"] = "off"
        environment |= {name.upper(): str(value) for name, value in named.items()}
        arguments = [
            word.format(port=port) for word in (COMMANDS | TWO_PROCESSES | OF_TESTS)[command]
        ]
        started: list[trio.Process] = []

        async def begin(*words: str, **others: object) -> trio.Process:
            own = {name.upper(): str(value) for name, value in others.items()}
            process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, *words],
                    cwd=directory,
                    env=environment | {"PYTHONPATH": str(ROOT), "TMPDIR": temporary} | own,
                    check=False,
                    start_new_session=True,
                    stdout=output,
                    preexec_fn=limit if limits else None,
                    stderr=subprocess.STDOUT,
                    capture_stdout=False,
                )
            )
            started.append(process)
            return process

        process = await begin(*arguments)
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx2.AsyncClient(
            base_url=url, trust_env=False, verify=False, headers=headers, timeout=PATIENCE_S
        ) as http:
            server = ServerProcess(process, http, twilio, gemini, directory, Path(temporary), begin)
            try:
                with trio.fail_after(PATIENCE_S):
                    await server.wait_ready()
                    yield server
            finally:
                for each in started:
                    if each.poll() is None:
                        os.killpg(each.pid, signal.SIGKILL)
        nursery.cancel_scope.cancel()


async def stopped_in_mid_call(
    directory: Path,
    command: str,
    *,
    whole_group: bool = False,
    by: signal.Signals = signal.SIGTERM,
) -> None:
    """A talking call and a ringing one when the server is told to stop; asserts what must come."""
    async with server_process(directory, command) as server:
        phone = await server.talking_call()
        ringing = (await server.make_call(RINGS_FOR_LONG)).json()["call_sid"]
        server.tell_to_stop(whole_group=whole_group, by=by)
        await server.wait_ready(False)
        refused = await server.make_call(NUMBER)
        await phone.wait_ended()
        status = await server.process.wait()
        sessions = list(server.gemini.sessions)

    assert refused.status_code == 503
    assert refused.json()["error"] == "draining"
    assert status == 0
    assert phone.status is CallStatus.COMPLETED
    # We hung up, and the socket was closed as it should be, by whichever side came first.
    end = phone.phone.end
    our_close = "stream closed by the server (1000, 'drained')"
    assert end is StreamEnd.STOPPED or our_close in [what for _, what in phone.timeline]
    # The last status callback came while the server was still there to take it.
    assert phone.reports[-1] == (CallStatus.COMPLETED, 204)
    assert server.twilio.calls[ringing].status is CallStatus.CANCELED
    assert [session.closed_by_client for session in sessions] == [1000] * len(sessions)
    assert [text for text in sessions[0].texts if "goodbye" in text]
    with closing(sqlite3.connect(directory / "offhook.db")) as database:
        saved = dict(database.execute("SELECT call_sid, reason FROM offhook_calls"))
    assert saved == {phone.call_sid: "drained", ringing: "drained"}
