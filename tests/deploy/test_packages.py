"""The wheel holds all that serves, and the sdist all that is needed to build and try it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.deploy.programs import find

ROOT = Path(__file__).parents[2]
OF_BUILDING = {".pyx", ".pxd", ".h", ".c", ".so", ".pyd", ".pyc", ".html"}
"""Of codec/, what its compiled modules are made from, or are."""
CIBUILDWHEEL = find("cibuildwheel")
SYSTEMS = ("linux", "macos", "windows")


def files_of(*directories: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for directory in directories
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with an sdist, and a wheel or what the Python part of one would be made of.

    ``DISTRIBUTIONS`` is the folder that ``python -m build --outdir`` has written to. Without it
    nothing is compiled.
    """
    if given := os.environ.get("DISTRIBUTIONS"):
        return Path(given)
    setuptools = importlib.util.find_spec("setuptools")
    is_new = setuptools is not None and int(version("setuptools").split(".")[0]) >= 77
    if not is_new or importlib.util.find_spec("Cython") is None:
        pytest.skip("neither DISTRIBUTIONS nor Cython and setuptools>=77 are here")
    directory = tmp_path_factory.mktemp("dist")
    commands = (
        *("egg_info", "--egg-base", str(directory)),
        *("sdist", "--dist-dir", str(directory)),
        *("build_py", "--build-lib", str(directory / "python")),
    )
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *commands],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def wheel(built) -> set[str]:
    if python := [path for path in built.glob("python") if path.is_dir()]:
        return {
            path.relative_to(python[0]).as_posix()
            for path in python[0].rglob("*")
            if path.is_file()
        }
    (file,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(file).namelist())
    return {name for name in names if ".dist-info/" not in name and not name.endswith(".so")}


@pytest.fixture(scope="module")
def sdist(built) -> set[str]:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.mark.slow
def test_the_wheel_has_all_of_the_server_and_nothing_else(wheel):
    codec = {name for name in files_of("codec") if Path(name).suffix not in OF_BUILDING}

    assert wheel == files_of("server") | codec


@pytest.mark.slow
def test_the_sdist_has_what_builds_tests_and_deploys(sdist):
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("this is no clone, so nothing says which files there are")
    there = {name for name in tracked.stdout.split("\n") if name and (ROOT / name).exists()}

    assert there - sdist == {".gitignore"}
    made = {name for name in sdist if name.endswith((".so", ".pyd", ".pyc", ".c"))}
    assert made - there == set()


@pytest.mark.slow
def test_the_sdist_has_nobodys_secrets(sdist):
    assert {name for name in sdist if name.endswith((".env", ".pem", ".db"))} == {
        "examples/pizzeria/.env"  # the one that is written for everybody
    }


def configuration() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_a_wheel_is_let_out_only_after_it_has_served_a_call():
    assert configuration()["tool"]["cibuildwheel"]["test-command"] == "python -m server demo"


def test_a_package_index_is_told_each_python_there_is_a_wheel_for_and_no_address_that_is_none():
    told = configuration()
    project, wheels = told["project"], told["tool"]["cibuildwheel"]["build"]
    named = [one.rpartition(" ")[2] for one in project["classifiers"] if ":: 3." in one]

    assert [f"cp{version.replace('.', '')}-*" for version in named] == wheels
    assert all(url.startswith("https://") for url in project.get("urls", {}).values())


@pytest.mark.skipif(CIBUILDWHEEL is None, reason="cibuildwheel (offhook[deploy]) is not here")
@pytest.mark.parametrize("system", SYSTEMS)
def test_there_is_a_wheel_for_each_python_and_system_that_the_pages_name(system):
    done = subprocess.run(
        [CIBUILDWHEEL, "--print-build-identifiers", "--platform", system, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )

    built = {tuple(name.split("-")) for name in done.stdout.split()}
    pythons = {"cp311", "cp312", "cp313", "cp314"}
    machines = {
        "linux": {
            *("manylinux_x86_64", "manylinux_aarch64"),
            *("musllinux_x86_64", "musllinux_aarch64"),
        },
        "macos": {"macosx_x86_64", "macosx_arm64"},
        "windows": {"win_amd64"},
    }[system]
    assert built == {(python, machine) for python in pythons for machine in machines}, done.stderr
