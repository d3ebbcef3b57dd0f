"""The command line: what it understands, and what it says of what it does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from server.commands import line
from server.commands.line import SHELLS, main, parser_of


@pytest.mark.parametrize("before", [[], ["serve"]], ids=["alone", "after serve"])
def test_serving_is_what_is_done_without_a_command(before):
    chosen = parser_of("offhook").parse_args(
        [*before, "--host", "::1", "--port", "81", "-w", "3", "--take-over", "--detach"]
    )

    assert (chosen.host, chosen.port, chosen.workers) == ("::1", 81, 3)
    assert chosen.take_over
    assert chosen.detach


def test_options_before_serve_are_kept():
    chosen = parser_of("offhook").parse_args(["--port", "81", "serve", "-w", "2"])

    assert (chosen.port, chosen.workers, chosen.take_over) == (81, 2, False)


def test_options_before_dev_are_kept():
    chosen = parser_of("offhook").parse_args(["--port", "81", "dev", "--host", "::1"])

    assert (chosen.host, chosen.port, chosen.model_script) == ("::1", 81, None)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["-w", "2", "dev"], "--workers does not go with dev"),
        (["--take-over", "dev"], "--take-over does not go with dev"),
        (["--port", "81", "check"], "--port does not go with check"),
        (["--model-script", "a.toml", "demo"], "--model-script does not go with demo"),
    ],
)
def test_an_option_that_a_command_does_nothing_with_is_refused(words, what, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)

    assert ended.value.code == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_is_told_how_to_complete(capsys, shell):
    assert main(["completion", shell]) == 0

    printed = capsys.readouterr().out
    for word in ("serve", "dev", "check", "number", "demo", "new-key", "take-over", "script"):
        assert word in printed


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.slow
def test_bash_completes_with_what_is_printed():
    printed = subprocess.run(
        [sys.executable, "-m", "server", "completion", "bash"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    asked = 'COMP_WORDS=(offhook dem); COMP_CWORD=1; _shtab_offhook; echo "${COMPREPLY[@]}"'

    answer = subprocess.run(
        ["bash", "-c", f"{printed}\n{asked}"], check=True, capture_output=True, text=True
    )

    assert answer.stdout.split() == ["demo"]


def test_completion_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)

    assert main(["completion", "bash"]) == 2
    assert "pip install 'offhook[completion]'" in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fly"])

    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "'fly'" in said
    assert "serve" in said


def test_the_command_is_installed_by_its_name():
    (script,) = metadata.entry_points(group="console_scripts", name="offhook")

    assert script.load() is line.main


@pytest.mark.parametrize("where", ["nowhere/call.wav", "n" * 300 + "/call.wav"])
def test_a_recording_goes_only_where_there_is_a_folder(tmp_path, capsys, where):
    assert main(["demo", "--out", str(tmp_path / where)]) == 2

    assert f"there is no folder {(tmp_path / where).parent}" in capsys.readouterr().err


def test_a_recording_is_of_one_script(capsys):
    assert main(["demo", "--script", "all", "--out", "call.wav"]) == 2

    assert "of one script" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a folder that is used stays")
def test_a_folder_that_is_gone_is_in_nobodys_way(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert main(["new-key", "ana"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="not everybody may make links there")
def test_what_cannot_be_looked_at_is_in_nobodys_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.py").symlink_to("n" * 300)

    assert main(["new-key", "ana"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["server.py", "server/__init__.py"])
def test_a_module_of_this_programs_name_is_told_of_by_whatever_is_asked(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")

    assert main(["new-key", "ana"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"offhook: {name} in this folder has this program's name")


def test_modules_of_the_folder_are_found_after_all_others(tmp_path, monkeypatch):
    (tmp_path / "my_own_tools.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/somewhere"])

    main(["new-key", "ana"])

    assert sys.path == ["/somewhere", str(tmp_path)]
