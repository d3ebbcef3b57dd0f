"""What every benchmark is told, and what is said about the machine with every result."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from rich.console import Console


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, as a benchmark's ``run`` gets it."""

    console: Console
    quick: bool = False
    """Under two minutes: fewer rounds, not fewer figures."""
    plots: Path | None = None
    """An existing directory for PNG files, or None for no plots."""
    arguments: argparse.Namespace = field(default_factory=argparse.Namespace)
    """What the benchmark's own ``add_arguments`` asked for, if it has one."""


def machine(packages: Iterable[str] = ()) -> dict[str, object]:
    """The facts a figure means nothing without: CPU, system, interpreter, package versions.

    Args:
        packages: Names of distributions whose versions matter to the benchmark; one that is not
            installed is None.
    """
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "versions": {name: version_of(name) for name in packages},
    }


def version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def machine_line(facts: dict[str, object]) -> str:
    """``machine()`` in one line for the console; versions of absent packages are left out."""
    versions = facts["versions"]
    assert isinstance(versions, dict)
    named = [f"{name} {version}" for name, version in versions.items() if version]
    return ", ".join(
        [f"{facts['cpu']}, {facts['cores']} cores", f"Python {facts['python']}", *named]
    )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
