"""The demonstrations: the table is sound, and a script is judged by what its call was like."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import trio
from rich.console import Console

from server.app import create_app
from server.demo import _run_one, run_demo
from server.demo_scripts import SCRIPTS, ended
from server.settings import Settings


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_settings_of_every_script_are_accepted(name):
    create_app(Settings.load(_env_file=None, **SCRIPTS[name].settings))

    assert SCRIPTS[name].checks


async def test_a_script_passes_if_its_call_went_as_demanded(tmp_path):
    console = Console(file=io.StringIO())

    assert await _run_one(console, SCRIPTS["busy"], tmp_path)
    assert "yes the call ended: busy" in console.file.getvalue()


async def test_a_conversation_survives_its_faults_over_real_sockets(tmp_path):
    names = (
        *("silent-model", "deaf-model", "empty-turn", "early-turn-complete", "slow-model"),
        *("quiet-turn", "stalled-turn"),
        *("caller-drops", "says-hello", "coughs", "echoing-speakerphone", "silent-caller"),
        "too-long",
    )
    pages = {name: Console(file=io.StringIO(), width=120) for name in names}
    passed = {}

    async def run(name: str) -> None:
        passed[name] = await _run_one(pages[name], SCRIPTS[name], tmp_path / name)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(run, name)
            await trio.sleep(0.2)
    for name in names:
        assert passed[name], pages[name].file.getvalue()


async def test_a_script_fails_if_it_did_not(tmp_path):
    demanding = replace(SCRIPTS["busy"], checks=(ended("caller-hung-up"),))

    assert not await _run_one(Console(file=io.StringIO()), demanding, tmp_path)


def test_an_unknown_script_is_refused_with_the_list(capsys):
    assert run_demo("opera") == 2

    assert "interrupts" in capsys.readouterr().out
