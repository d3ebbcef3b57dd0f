"""What the system says of this process: how busy it is, and how much memory it may still have.

Each reader is told where the system's files are, so that a test can hand it some of its own.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import resource

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT_BYTES = 1 << 60
"""cgroup v1 says "none" with a number of about 2^63."""
AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB", re.M)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _read(*parts: object) -> str:
    """What is in a file of the system's; asked ten times a second, with the event loop waiting, for
    which ``Path.read_text`` takes five times as long.
    """
    with open("/".join(map(str, parts)), "rb", buffering=0) as file:  # noqa: PTH123
        return file.readall().decode(errors="replace")


def busy_s(proc: Path = PROC) -> float:
    """Seconds that this thread has run so far, or has waited for a core to run on.

    Where the system does not say how long it has waited, it is what it has run alone.
    """
    try:
        ran_ns, waited_ns, *_ = _read(proc, "thread-self/schedstat").split()
        return (int(ran_ns) + int(waited_ns)) / 1e9
    except (OSError, ValueError):
        return time.thread_time()


def lowest_free_descriptor() -> int | None:
    """The number that the next file or socket would have; None where there is none left.

    All numbers below it are in use, which is soon known however many there are.
    """
    try:
        number = os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None
    os.close(number)
    return number


@dataclass(frozen=True, slots=True)
class MemoryState:
    """What is left of whatever allows the least."""

    left_bytes: int
    used_bytes: int
    """What the process itself has, in RAM."""
    limit: str
    """What allows no more: ``cgroup``, ``system`` or ``process``."""


def own_limits() -> Mapping[str, int]:
    """The process's own limits in bytes, of address space (``as``) and of data (``data``)."""
    if sys.platform == "win32":
        return {}
    kinds = {"as": resource.RLIMIT_AS, "data": resource.RLIMIT_DATA}
    soft = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    return {name: most for name, most in soft.items() if most != resource.RLIM_INFINITY}


def memory_state(
    proc: Path = PROC, cgroups: Path = CGROUPS, limits: Mapping[str, int] | None = None
) -> MemoryState | None:
    """How much memory this process may still have; None where the system does not say.

    Args:
        proc: The system's ``/proc``.
        cgroups: Where the cgroups are, of version 2, or 1 with its folder for memory.
        limits: The process's own; None asks the system.
    """
    try:
        fields = _read(proc, "self/statm").split()
        pages = {"as": int(fields[0]), "data": int(fields[5])}
        used_bytes = int(fields[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
    left = [("cgroup", left_bytes) for left_bytes in _left_in_cgroups(proc, cgroups)]
    for name, most in (own_limits() if limits is None else limits).items():
        left.append(("process", most - pages[name] * _PAGE_BYTES))
    with suppress(OSError):
        if found := AVAILABLE.search(_read(proc, "meminfo")):
            left.append(("system", int(found[1]) * 1024))
    if not left:
        return None
    limit, left_bytes = min(left, key=lambda each: each[1])
    return MemoryState(max(0, left_bytes), used_bytes, limit)


def _left_in_cgroups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What is left in our own cgroup and each above it that has a limit.

    Pages of files that nobody has looked at lately are given back when they are needed: they do
    not count as used.
    """
    try:
        lines = _read(proc, "self/cgroup").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            # Beyond the second nobody is killed, but held up so much that it comes to the same.
            limits = ["memory.max", "memory.high"]
            names = ("memory.current", "inactive_file")
            root = str(cgroups)
        elif "memory" in controllers.split(","):
            limits = ["memory.limit_in_bytes"]
            names = ("memory.usage_in_bytes", "total_inactive_file")
            root = f"{cgroups}/memory"
        else:
            continue
        # A container may see its own cgroup as the root, under a path that is not there.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([root, *parts[:depth]])
            for limit in limits:
                with suppress(OSError, ValueError):
                    most = int(_read(folder, limit))  # "max" is none
                    if most < NO_LIMIT_BYTES:
                        used = int(_read(folder, names[0]))
                        yield most - used + _idle_bytes(folder, names[1])


def _idle_bytes(folder: str, name: str) -> int:
    with suppress(OSError):
        if found := re.search(rf"^{name} (\d+)$", _read(folder, "memory.stat"), re.M):
            return int(found[1])
    return 0
