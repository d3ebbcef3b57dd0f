"""``python -m benchmarks.pinned CORES normal|rr MODULE …``: become that module, on these cores.

Being bound before the program starts binds every thread it will have; and the kernel is asked to
end it with the process that started it, so that no benchmark leaves a server behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
REALTIME_PRIORITY = 10


def main(cores: str, policy: str, module: str, *arguments: str) -> None:
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if policy == "rr":
        # Not allowed to everybody, and a benchmark is worth something without it.
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REALTIME_PRIORITY))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
