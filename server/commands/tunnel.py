"""A tunnel to this machine by a program that is installed: it is started, and its address read.

Nothing is downloaded. What the program prints after its address is read on, so that it never waits
for us, and nobody is shown it unless it ends.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from server.commands.processes import Output, running
from server.errors import ConfigurationError, ServerError

ADDRESS_TIMEOUT_S = 45.0
"""Until the program has said its address: cloudflared needs some five seconds."""
END_S = 1.0
"""Until a program whose output has ended is gone."""
KEPT_LINES = 5
"""The last of what it has printed, which say why it has ended."""
_QUICK = re.compile(r"https://(?!api\.)[a-z0-9-]{1,63}\.trycloudflare\.com(?![\w.-])")
_PUBLIC = re.compile(r"https://[A-Za-z0-9.-]{1,250}")


class TunnelLost(ServerError):
    """The program has ended, or has not said an address in time."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that opens tunnels."""

    name: str
    arguments: Callable[[str], Sequence[str]]
    """What it is started with, for an address of this machine."""
    address_in: Callable[[str], str | None]
    """The tunnel's address, if a line of its output has it."""


def quick_address(line: str) -> str | None:
    """The address in a line of cloudflared's, which draws a frame around it."""
    found = _QUICK.search(line)
    return None if found is None else found[0]


def logged_address(line: str) -> str | None:
    """The address in a line of ngrok's log in JSON, if the line is of a tunnel that is open."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("msg") != "started tunnel":
        return None
    url = said.get("url")
    return url if isinstance(url, str) and _PUBLIC.fullmatch(url) else None


PROGRAMS = (
    Program(
        "cloudflared",
        lambda local: ("tunnel", "--no-autoupdate", "--url", local),
        quick_address,
    ),
    Program(
        "ngrok",
        lambda local: ("http", local, "--log=stdout", "--log-format=json"),
        logged_address,
    ),
)
"""The first that is installed is used."""


def find_program(name: str | None = None) -> tuple[Program, str]:
    """A program that is installed, and where.

    Args:
        name: Which; None for any.

    Raises:
        ConfigurationError: It is not installed.
    """
    wanted = [program for program in PROGRAMS if name in (None, program.name)]
    for program in wanted:
        if (path := shutil.which(program.name)) is not None:
            return program, path
    names = " or ".join(program.name for program in wanted)
    raise ConfigurationError(
        f"{names} is not installed: install it, or set PUBLIC_URL to the https:// address that "
        "leads here"
    )


@asynccontextmanager
async def open_tunnel(program: Program, path: str, local: str) -> AsyncGenerator[str]:
    """Open a tunnel until the block ends; gives its address.

    Args:
        program: Which.
        path: Where it is.
        local: Where it leads, ``http://127.0.0.1:8000``.

    Raises:
        TunnelLost: There is no tunnel, or it has ended before the block has: in an exception group
            then.
    """
    command = [path, *program.arguments(local)]
    last = deque[str](maxlen=KEPT_LINES)
    async with running(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = Output(process)
        address = None
        with trio.move_on_after(ADDRESS_TIMEOUT_S):
            while address is None and (line := await output.next_line()) is not None:
                last.append(line)
                address = program.address_in(line)
        if address is None:
            raise await _lost(program, last, process)
        async with trio.open_nursery() as nursery:

            async def read_on() -> None:
                while (line := await output.next_line()) is not None:
                    last.append(line)
                raise await _lost(program, last, process)

            nursery.start_soon(read_on)
            yield address
            nursery.cancel_scope.cancel("the tunnel is not needed any more")


async def _lost(program: Program, last: Sequence[str], process: trio.Process) -> TunnelLost:
    with trio.move_on_after(END_S):  # its output ends before it does
        await process.wait()
    said = "; ".join(line[:300] for line in last)
    what = "has ended" if process.poll() is not None else "has said no address"
    return TunnelLost(f"{program.name} {what}; it said: {said or 'nothing'}")
