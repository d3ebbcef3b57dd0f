"""Programs that a command runs beside itself: they end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from server.supervision import first_of

STOP_S = 10.0
"""How long a program may take to end when it is told to; then it is killed."""
MAX_LINE_BYTES = 64 * 1024
"""Of what a program prints; a longer line comes in parts."""

# Ctrl+C is for the command, which tells the others in its own order.
_APART: Mapping[str, Any]
if sys.platform == "win32":
    _APART = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    _APART = {"start_new_session": True}


@asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    stop_s: float | None = None,
    hurry: trio.Event | None = None,
    **options: Any,
) -> AsyncGenerator[trio.Process]:
    """Run a program until the block ends: then it is told to end, and killed if it does not.

    Args:
        command: The program and what it is told.
        stop_s: How long it may take to end; :data:`STOP_S` if that is not said.
        hurry: Set when it may take no longer.
        options: Of :func:`trio.lowlevel.open_process`.

    Raises:
        OSError: It cannot be started.
    """
    process = await trio.lowlevel.open_process(
        list(command), stdin=subprocess.DEVNULL, **_APART, **options
    )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await stop(process, STOP_S if stop_s is None else stop_s, hurry)


async def stop(process: trio.Process, stop_s: float, hurry: trio.Event | None = None) -> None:
    """Tell a program to end, and kill it if it does not within so many seconds, or before when an
    event is set.
    """
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(stop_s):
            await first_of(process.wait, *([] if hurry is None else [hurry.wait]))
        if process.poll() is None:
            _kill(process)
            await process.wait()
    if process.stdout is not None:
        await process.stdout.aclose()


def _kill(process: trio.Process) -> None:
    """Kill a program, and what it has started, where those are a group of their own."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


class Output:
    """What a program prints, line by line.

    Args:
        process: Its ``stdout`` is a pipe.
    """

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._left = b""

    async def next_line(self) -> str | None:
        """The next line, without its end; None when there is no more."""
        while True:
            line, end, rest = self._left.partition(b"\n")
            if end or len(line) >= MAX_LINE_BYTES:
                self._left = rest
                return line.decode(errors="replace").rstrip("\r")
            part = await self._stream.receive_some(MAX_LINE_BYTES)
            if not part:
                self._left = b""
                return line.decode(errors="replace") if line else None
            self._left += part
