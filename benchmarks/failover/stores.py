"""Redis of a run's own: one, or a primary with a replica and three sentinels."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PRIMARY = "offhook"
START_S = 10.0
ASK_S = 2.0


def why_no_redis() -> str:
    """Why none can be started here; empty if one can."""
    return "" if shutil.which("redis-server") else "redis-server is not installed"


def ask(port: int, *words: str) -> str:
    """Ask a Redis on loopback; its answer as it is written down, errors too.

    Raises:
        OSError: It is not there, or does not answer.
    """
    lines = [f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]
    with socket.create_connection(("127.0.0.1", port), ASK_S) as talk:
        talk.settimeout(ASK_S)
        talk.sendall("".join(lines).encode())
        return talk.recv(1 << 20).decode(errors="replace")


def keys_of(port: int) -> int:
    """How many keys a Redis has.

    Raises:
        OSError, ValueError: It does not say.
    """
    return int(ask(port, "DBSIZE").strip().removeprefix(":"))


def lists_of(port: int) -> int:
    """How many processes a Redis has a list of live calls of.

    Raises:
        OSError: It does not say.
    """
    return ask(port, "KEYS", "*calls:*").count("calls:")


def states_of(port: int) -> int:
    """Of how many calls a Redis has what somebody would need to go on with them.

    Raises:
        OSError, ValueError: It does not say.
    """
    script = (
        "local n = 0 for _, key in ipairs(redis.call('KEYS', '*{*}')) do "
        "local ok, size = pcall(redis.call, 'HSTRLEN', key, 's') "
        "if ok and type(size) == 'number' and size > 0 then n = n + 1 end end return n"
    )
    return int(ask(port, "EVAL", script, "0").strip().removeprefix(":"))


@dataclass
class Redis:
    """One server or sentinel; it keeps nothing on disk."""

    directory: Path
    port: int
    start_process: Callable[[list[str]], subprocess.Popen[bytes]]
    replica_of: int | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it, empty; returns when it answers.

        Raises:
            OSError: It does not.
        """
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly"]
        words += ["no", "--dir", str(self.directory)]
        if self.replica_of is not None:
            words += ["--replicaof", "127.0.0.1", str(self.replica_of)]
        self.process = self.start_process(["redis-server", *words])
        wait_answer(self.port)

    def kill(self) -> None:
        """It is gone at once."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            self.process.wait(10.0)


def wait_answer(port: int) -> None:
    """Wait until a Redis answers.

    Raises:
        OSError: It takes too long.
    """
    deadline = time.monotonic() + START_S
    while True:
        try:
            if ask(port, "PING").startswith("+PONG"):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def sentinel_configuration(port: int, primary: int, directory: Path, down_after_s: float) -> str:
    """Write the file of one of three sentinels."""
    return "\n".join(
        [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            f"sentinel monitor {PRIMARY} 127.0.0.1 {primary} 2",
            f"sentinel down-after-milliseconds {PRIMARY} {round(1000 * down_after_s)}",
            f"sentinel failover-timeout {PRIMARY} 5000",
            f"sentinel parallel-syncs {PRIMARY} 1",
            "",
        ]
    )
