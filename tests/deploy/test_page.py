"""The page about one machine says what its files and the settings say."""

from __future__ import annotations

import re
from pathlib import Path

from tests.deploy.settings import KNOWN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text()
BLOCKS = re.findall(r"(?s)```sh\n(.*?)```", PAGE)
ENVIRONMENT = re.search(r"(?s)<<END\n(.*?)END\n", BLOCKS[0])[1]


def test_a_first_server_takes_ten_commands():
    commands = BLOCKS[0].replace(ENVIRONMENT + "END\n", "").splitlines()

    assert len(commands) == 10


def test_what_the_server_is_told_there_are_settings():
    told = dict(line.split("=", 1) for line in ENVIRONMENT.splitlines())

    assert told.keys() - KNOWN == set()
    assert told["TRUSTED_PROXIES"] == "127.0.0.1"


def test_the_unit_finds_what_the_commands_have_made():
    unit = (ROOT / "deploy" / "offhook.service").read_text()

    (python,) = set(re.findall(r"=(/\S+/bin)/python -m server", unit))
    assert f"\n{python}/pip install" in BLOCKS[0]
    assert re.search(r"EnvironmentFile=(\S+)", unit)[1] in BLOCKS[0]
    assert re.search(r"useradd .* (\w+)\n", BLOCKS[0])[1] == _value(unit, "User")
    directory = _value(unit, "WorkingDirectory")
    # Not where the sources are: the codec in there is not compiled, and would be found first.
    assert f"git clone https://YOUR.CLONE/offhook.git {directory}/source\n" in BLOCKS[0]


def test_what_calls_need_is_stopped_after_the_unit_that_lets_them_end():
    """systemd stops in the reverse of the order in which it starts."""
    unit = (ROOT / "deploy" / "offhook.service").read_text()

    after = " ".join(re.findall(r"(?m)^After=(.*)$", unit)).split()
    for name in ("caddy", "nginx", "haproxy", "postgresql", "redis-server"):
        assert f"{name}.service" in after


def test_what_is_set_is_tried_with_the_units_settings():
    unit = (ROOT / "deploy" / "offhook.service").read_text()
    (check,) = [block for block in BLOCKS if block.rstrip().endswith("/bin/offhook check")]

    assert f"--uid={_value(unit, 'User')} " in check
    assert f"--property=EnvironmentFile={_value(unit, 'EnvironmentFile')} " in check
    assert f"--setenv={_value(unit, 'Environment').split()[0]} " in check
    assert f"--working-directory={_value(unit, 'WorkingDirectory')} " in check


def test_a_change_of_the_unit_takes_back_what_it_replaces():
    unit = (ROOT / "deploy" / "offhook.service").read_text()
    lines = re.search(r"(?s)```ini\n(.*?)```", PAGE)[1].splitlines()

    for name in ("ExecStart", "ExecReload"):
        at = lines.index(f"{name}=")
        assert lines[at + 1] == f"{name}={_value(unit, name)}".replace("workers 2", "workers 4")


def test_programs_that_the_page_uses_are_installed():
    installed = set(BLOCKS[0].splitlines()[0].split())

    assert "apt-get update &&" in BLOCKS[0].splitlines()[0]
    for program in ("git", "curl", "openssl", "sqlite3", "caddy"):
        assert program in installed
        assert re.search(rf"(?m)\b{program}\b", "".join(BLOCKS)[len(BLOCKS[0].splitlines()[0]) :])


def test_the_codecs_tls_finds_openssls_headers():
    assert "libssl-dev" in BLOCKS[0].splitlines()[0].split()


def test_nothing_of_the_version_before_is_packed_into_a_new_one():
    """setuptools packs whatever it finds in its folder, of which it takes nothing away."""
    (upgrade,) = [block for block in BLOCKS if "/source pull" in block]
    source = re.search(r"pip install (\S+)", upgrade)[1]

    first, then = upgrade.splitlines()
    clean, install, reload = then.strip().split(" && ")
    assert first == f"git -C {source} pull &&"  # where that fails, nothing is installed
    # To go back is the second line alone: a version that is checked out cannot be pulled.
    assert clean == f"git -C {source} clean -fdxq build"
    assert install.endswith(f"pip install {source}")
    assert reload == "systemctl reload offhook"


def _value(unit: str, name: str) -> str:
    found = re.search(rf"(?m)^{name}=(.*)$", unit)
    assert found is not None
    return found[1]
