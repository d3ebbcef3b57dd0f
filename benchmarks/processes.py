"""Processes of a benchmark: pinned to cores, gone when we are, and what they cost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
STOP_TIMEOUT_S = 5.0
_CLOCK_TICKS_HZ = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def cores() -> list[int]:
    """The cores this process may use; empty where a process cannot be bound to any."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def running(
    module: str,
    *arguments: str,
    cores: Sequence[int] = (),
    realtime: bool = False,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    before: Sequence[str] = (),
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> Generator[subprocess.Popen[bytes]]:
    """Run ``python -m module``, and end it with the block.

    Args:
        module: What to run.
        arguments: Its command line.
        cores: What it is bound to, before its first thread starts; empty for no matter.
        realtime: Ask the system to prefer it to ordinary programs (SCHED_RR).
        environment: Added to the few variables a Python needs; nothing else is passed on, so that
            no setting of the shell's changes what is measured.
        directory: Where it runs; a ``.env`` there would be read by the server.
        before: What the command line begins with, which then runs the rest of it.
        stdin, stdout, stderr: As for :class:`subprocess.Popen`.
    """
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV")
    variables = {name: os.environ[name] for name in kept if name in os.environ}
    variables |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})}
    pinned = [",".join(map(str, cores)), "rr" if realtime else "normal", module, *arguments]
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "benchmarks.pinned", *pinned],
        env=variables,
        cwd=directory or ROOT,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )
    try:
        yield process
    finally:
        members = family(process.pid)
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for orphan in members[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def prefer_session(pid: int, niceness: int) -> None:
    """Prefer all processes of this one's session to those of others.

    Where the system schedules sessions as groups, niceness counts within each of them alone.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def family(pid: int) -> list[int]:
    """A process and its children, theirs too."""
    members = [pid]
    for member in members:
        for children in _of_each_task(member, "children"):
            members += map(int, children.split())
    return members


def _of_each_task(pid: int, name: str) -> list[str]:
    """What a process's tasks have in this file; either may end while we look."""
    found = []
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob(f"*/{name}"):
            with contextlib.suppress(OSError):
                found.append(path.read_text())
    return found


def cpu_s(pid: int) -> dict[int, float]:
    """CPU time so far of a process and each of its children, by their ids.

    Raises:
        OSError: It is gone.
    """
    return {member: _cpu_s(member) for member in family(pid)}


def _cpu_s(pid: int) -> float:
    # First number: nanoseconds on a CPU. /proc/PID/stat counts hundredths of a second.
    if schedstats := _of_each_task(pid, "schedstat"):
        return sum(int(schedstat.split()[0]) for schedstat in schedstats) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_HZ


def resident_kib(pid: int) -> int:
    """Memory in use by a process and its children, pages they share counted for each."""
    pages = sum(int(Path(f"/proc/{member}/statm").read_text().split()[1]) for member in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def connections_to(pid: int, port: int) -> int:
    """How many connections of this process alone go to that port."""
    ours = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):  # it may be closed while we look
            ours.add(str(descriptor.readlink()))
    count = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            _, _, remote, state, *_, inode = line.split()[:10]
            is_established = state == "01"
            to = int(remote.rpartition(":")[2], 16)
            count += is_established and to == port and f"socket:[{inode}]" in ours
    return count


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """What each core has done since the system started, in seconds."""

    at: float
    busy_s: dict[int, float]
    stolen_s: dict[int, float]
    """Time the machine below a virtual one kept for others."""

    @classmethod
    def read(cls) -> CoreTimes:
        busy, stolen = {}, {}
        with contextlib.suppress(OSError):
            for line in Path("/proc/stat").read_text().splitlines():
                name, *numbers = line.split()
                if name.startswith("cpu") and name != "cpu":
                    user, nice, system, _, _, irq, softirq, steal = map(int, numbers[:8])
                    core = int(name[3:])
                    busy[core] = (user + nice + system + irq + softirq) / _CLOCK_TICKS_HZ
                    stolen[core] = steal / _CLOCK_TICKS_HZ
        return cls(time.monotonic(), busy, stolen)

    def load_since(self, earlier: CoreTimes, core: int) -> float:
        """Share of the time that this core was busy, or stolen."""
        passed_s = self.at - earlier.at
        if core not in self.busy_s or passed_s <= 0:
            return 0.0
        busy_s = self.busy_s[core] - earlier.busy_s[core]
        return (busy_s + self.stolen_s[core] - earlier.stolen_s[core]) / passed_s


def idle_load(seconds: float = 1.0) -> float:
    """How busy the busiest core is while we do nothing."""
    before = CoreTimes.read()
    time.sleep(seconds)
    now = CoreTimes.read()
    return max((now.load_since(before, core) for core in now.busy_s), default=0.0)
