"""The demonstrations: the table is sound, and a script is judged by what its call was like."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from server.app import create_app
from server.commands.line import main
from server.demo.checks import ended
from server.demo.command import _run_all, _run_one, run_demo
from server.demo.embedded import embedded_settings
from server.demo.scripts import DEMO_SCRIPTS
from server.settings.settings import Settings
from server.simulators.phone import PhoneScript, Say, Wait, load_speech, speaking
from server.simulators.phone.steps import Forever

pytestmark = pytest.mark.sockets


@pytest.mark.parametrize("name", DEMO_SCRIPTS)
def test_the_settings_of_every_script_are_accepted(name):
    create_app(Settings.load(_env_file=None, **DEMO_SCRIPTS[name].settings))

    assert DEMO_SCRIPTS[name].checks


def test_a_demonstration_uses_no_account_and_no_machine_that_the_environment_names(monkeypatch):
    real = {
        "CARRIER": "asterisk",
        "ASTERISK_URL": "http://pbx:8088",
        "ASTERISK_USER": "offhook",
        "ASTERISK_SECRET": "secret",
        "VERTEX_PROJECT": "a-project-1",
        "FALLBACK_GEMINI_API_KEY": "key",
        "REGISTRY_URL": "redis://registry:6379",
        "EVENTS_URL": "https://example.com/events",
        "API_KEY": "sesame",
    }
    for name, value in real.items():
        monkeypatch.setenv(name, value)

    settings = embedded_settings("http://127.0.0.1:1")

    assert settings.account is None
    for name in map(str.lower, real):
        assert getattr(settings, name) == Settings.model_fields[name].default
    assert not any(settings.warnings)


async def test_a_script_passes_if_its_call_went_as_demanded(tmp_path, fast_clock):
    console = Console(file=io.StringIO())

    assert await _run_one(console, DEMO_SCRIPTS["busy"], tmp_path)
    assert "yes the call ended: busy" in console.file.getvalue()


@pytest.mark.slow
async def test_every_call_goes_as_its_script_demands_over_real_sockets(tmp_path, fast_clock):
    page = Console(file=io.StringIO(), width=120)

    assert await _run_all(page, tmp_path), page.file.getvalue()


async def test_a_script_fails_if_it_did_not(tmp_path, fast_clock):
    demanding = replace(DEMO_SCRIPTS["busy"], checks=(ended("caller-hung-up"),))

    assert not await _run_one(Console(file=io.StringIO()), demanding, tmp_path)


def test_an_unknown_script_is_refused_with_the_list(capsys):
    assert run_demo("opera") == 2

    assert "interrupts" in capsys.readouterr().out


async def test_a_callee_says_what_somebody_has_recorded(tmp_path, fast_clock):
    """What the model hears, and says back, is the recording, and not what the script has."""
    speech = load_speech("followup") * 2
    console = Console(file=io.StringIO(), width=120)

    assert await _run_one(console, DEMO_SCRIPTS["talks"], tmp_path, speech=speech)

    shown = console.file.getvalue()
    seconds = [float(found) for found in re.findall(r"\(([\d.]+) seconds of speech\)", shown)]
    assert seconds
    assert all(abs(found - len(speech) / 8_000) < 0.6 for found in seconds)


def test_everybody_speaks_in_the_recordings_place():
    script = PhoneScript("x", (Wait(1.0), Say("question", 0.5), Forever((Say("hello"),))))

    changed = speaking(script, b"abc")

    assert changed.steps == (
        Wait(1.0),
        Say("question", 0.5, b"abc"),
        Forever((Say("hello", speech=b"abc"),)),
    )
    assert script.steps[1] == Say("question", 0.5)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--say", "none.wav"], "--say cannot be read: none.wav"),
        (["--say", "text.wav"], "--say text.wav"),
        (["--script", "all", "--say", "text.wav"], "of one script"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, monkeypatch, capsys, arguments, why):
    (tmp_path / "text.wav").write_text("no sound at all")
    monkeypatch.chdir(tmp_path)

    assert main(["demo", *arguments]) == 2
    assert why in capsys.readouterr().err
