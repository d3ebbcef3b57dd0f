"""What is left of a benchmark that was killed is cleaned up by a process of its own.

It is told, in lines, what there is: ``pid PID BORN``, ``netns NAME``, ``link NAME``, ``route
PREFIX``, ``directory PATH``. When its standard input ends, all of that goes, the newest first;
whoever ends in order has cleaned up already, and there is nothing left to do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.processes import family

GRACE_S = 3.0


def born(pid: int) -> str:
    """When a process was started, in ticks since the system was; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_there(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for yet has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def clean_up(lines: Sequence[str]) -> None:
    """End and remove all that these lines name, and that is still there."""
    things = [line.split(maxsplit=2) for line in reversed(lines)]
    pids = [
        pid
        for kind, name, *facts in things
        if kind == "pid" and facts and born(int(name)) == facts[0]
        for pid in family(int(name))
    ]
    for number, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 1.0)):
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, number)
        deadline = time.monotonic() + grace_s
        while pids and time.monotonic() < deadline:
            pids = [pid for pid in pids if is_there(pid)]
            time.sleep(0.05)
    for kind, name, *_ in things:
        match kind:
            case "netns":
                _ip("netns", "delete", name)
            case "link":
                _ip("link", "delete", name)
            case "route":
                _ip("route", "delete", "blackhole", name)
            case "directory":
                shutil.rmtree(name, ignore_errors=True)


def _ip(*arguments: str) -> None:
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["ip", *arguments], capture_output=True, check=False, timeout=10)


class Guardian:
    """Knows what a run has made; cleans up when it is closed, and when we are killed, too."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.failover.guardian"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            start_new_session=True,  # no Ctrl-C reaches it
        )

    def told(self, kind: str, name: str | int) -> None:
        """There is something to be cleaned up."""
        line = f"{kind} {name} {born(int(name))}" if kind == "pid" else f"{kind} {name}"
        self._lines.append(line)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Have it clean up what is left."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30.0)


def main() -> None:
    """Run as a process: wait for the end of whoever wrote these lines."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    clean_up(sys.stdin.read().splitlines())


if __name__ == "__main__":
    main()
