"""``offhook dev`` at its end: numbers are set back, whatever is told it and whoever is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from server.commands import dev
from server.commands.kept import FILE
from tests.support.accounts import NUMBER, OTHER, Doubles, open_doubles
from tests.support.processes import hang_ups_taken

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and terminals"),
    pytest.mark.sockets,
    pytest.mark.slow,
]
PATIENCE_S = 180.0
BEFORE = "https://production.example.com/twiml"

COMMAND = """
import math, os, sys
from server.commands import dev
from server.commands.line import main
from server.hooks import stopping

if "TERMINAL" in os.environ:
    terminal = os.open(os.environ["TERMINAL"], os.O_RDWR)  # ours, as we lead a session
    for standard in range(3):
        os.dup2(terminal, standard)
stopping.AGAIN_AFTER_S = 0.0 if "AT_ONCE" in os.environ else math.inf
dev.Serving._command = [sys.executable, "program"]
sys.exit(main(["dev", "--yes"]))
"""
SERVER = """
import pathlib, signal, sys, time

def end(*_):
    pathlib.Path("ending").touch()
    while not pathlib.Path("may_end").exists():
        time.sleep(0.01)
    pathlib.Path("ended").touch()
    sys.exit()

signal.signal(signal.SIGTERM, end)
pathlib.Path("serves").touch()
while True:
    time.sleep(0.01)
"""
"""Ends when it may; in the place of a real one, which some call keeps from it."""


class Command:
    """The command while two numbers lead to it."""

    def __init__(self, process: trio.Process, doubles: Doubles, folder: Path) -> None:
        self.process = process
        self._numbers = [doubles.twilio.account.numbers.get(each) for each in (NUMBER, OTHER)]
        self._folder = folder

    @property
    def leads_to(self) -> list[str]:
        return [number.voice_url for number in self._numbers]

    async def until(self, name: str) -> None:
        """Wait until the server has said something by a file."""
        while not await trio.Path(self._folder, name).exists():
            assert self.process.poll() is None, f"it ended with status {self.process.poll()}"
            await trio.sleep(0.01)

    async def end(self) -> int:
        (self._folder / "may_end").touch()
        return await self.process.wait()


@pytest.fixture
async def doubles(nursery, tmp_path):
    doubles = await open_doubles(nursery, tmp_path)
    doubles.twilio.account.numbers.get(NUMBER).voice_url = BEFORE
    doubles.twilio.account.numbers.add(OTHER).voice_url = BEFORE
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "desk.toml").write_text(f'name = "desk"\nnumbers = ["{OTHER}"]\n')
    (tmp_path / "program").write_text(SERVER)
    return doubles


@asynccontextmanager
async def serving(doubles: Doubles, folder: Path, **env: str) -> AsyncGenerator[Command]:
    """The command, from when its server serves."""
    ours = str(Path(dev.__file__).parent.parent.parent)
    given = doubles.env() | {"AGENTS": "agents", "PYTHONPATH": ours} | env
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            run = partial(
                trio.run_process,
                [sys.executable, "-c", COMMAND],
                cwd=folder,
                env=os.environ | given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                check=False,
            )
            with hang_ups_taken():
                process = await nursery.start(run)
            command = Command(process, doubles, folder)
            await command.until("serves")
            assert command.leads_to == [doubles.given["public_url"] + "/twiml"] * 2
            yield command


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
async def test_numbers_are_set_back_though_it_is_told_twice(doubles, tmp_path, number):
    async with serving(doubles, tmp_path) as command:
        command.process.send_signal(number)
        await command.until("ending")
        command.process.send_signal(number)
        status = await command.end()

    assert (status, command.leads_to) == (0, [BEFORE] * 2)
    assert (tmp_path / "ended").exists()
    assert not (tmp_path / FILE).exists()


async def test_who_insists_waits_for_no_server_and_numbers_are_set_back_all_the_same(
    doubles, tmp_path
):
    async with serving(doubles, tmp_path, AT_ONCE="yes") as command:
        command.process.send_signal(signal.SIGINT)
        await command.until("ending")
        command.process.send_signal(signal.SIGINT)
        status = await command.process.wait()

    assert (status, command.leads_to) == (0, [BEFORE] * 2)
    assert not (tmp_path / "ended").exists()


async def test_numbers_are_set_back_though_nobody_reads_any_more_what_it_says(doubles, tmp_path):
    async with serving(doubles, tmp_path) as command:
        await command.process.stdout.aclose()  # as `| tee` at Ctrl+C
        command.process.send_signal(signal.SIGINT)
        status = await command.end()
        complaints = await command.process.stderr.receive_some()

    assert (status, command.leads_to, complaints) == (0, [BEFORE] * 2, b"")
    assert not (tmp_path / FILE).exists()


async def test_numbers_are_set_back_when_its_terminal_closes(doubles, tmp_path):
    ours, theirs = os.openpty()
    async with serving(doubles, tmp_path, TERMINAL=os.ttyname(theirs)) as command:
        os.close(theirs)
        os.close(ours)  # the system sends SIGHUP, and so does a shell
        await command.until("ending")
        command.process.send_signal(signal.SIGHUP)
        status = await command.end()

    assert (status, command.leads_to) == (0, [BEFORE] * 2)
    assert not (tmp_path / FILE).exists()
