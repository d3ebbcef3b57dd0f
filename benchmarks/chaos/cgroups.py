"""Control groups, where this machine lets us make one: the freezer, and a share of the CPU."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 100_000


def _home(controller: str) -> Path | None:
    """Where a group can be made: of its own hierarchy (version 1), or of the one (version 2)."""
    if (ROOT / controller / "cgroup.procs").exists():
        return ROOT / controller
    return ROOT if (ROOT / "cgroup.controllers").exists() else None


def why_not(controller: str) -> str:
    """Why no group of this kind can be made here; empty if one can."""
    home = _home(controller)
    if home is None or not os.access(home, os.W_OK):
        return f"the control group {controller} is not ours to write"
    try:
        with _group(controller, ()):
            return ""
    except OSError as error:
        return f"the control group {controller}: {error.strerror}"


@contextmanager
def _group(controller: str, pids: Sequence[int]) -> Generator[Path]:
    """A group of its own with these processes in it, which go back where they were."""
    home = _home(controller)
    assert home is not None
    group = home / f"offhook-chaos-{os.getpid()}"
    if home == ROOT and controller != "freezer":
        (home / "cgroup.subtree_control").write_text(f"+{controller}")
    group.mkdir(exist_ok=True)
    before = {}
    try:
        for pid in pids:
            with suppress(OSError):  # it may have ended
                before[pid] = _place(home, controller, pid)
                (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        # Their children that were born meanwhile go with them.
        for pid in [*before, *map(int, (group / "cgroup.procs").read_text().split())]:
            with suppress(OSError):
                place = before.get(pid) or next(iter(before.values()))
                (place / "cgroup.procs").write_text(str(pid))
        with suppress(OSError):
            group.rmdir()


def _place(home: Path, controller: str, pid: int) -> Path:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(",") or (home == ROOT and not names):
            return home / path.lstrip("/")
    return home


@contextmanager
def frozen(pids: Sequence[int]) -> Generator[None]:
    """Have these processes not run at all."""
    with _group("freezer", pids) as group:
        old = group / "freezer.state"
        state, freeze, thaw = (
            (old, "FROZEN", "THAWED") if old.exists() else (group / "cgroup.freeze", "1", "0")
        )
        state.write_text(freeze)
        try:
            yield
        finally:
            state.write_text(thaw)


@contextmanager
def starved(pids: Sequence[int], share: float) -> Generator[None]:
    """Give these processes this share of one core, all together."""
    with _group("cpu", pids) as group:
        quota_us = max(1_000, round(share * PERIOD_US))
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        yield
