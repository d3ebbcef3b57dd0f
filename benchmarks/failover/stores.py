"""Redis of a run's own: one, or a primary with a replica and three sentinels."""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from server.cluster.redis.scripts import Steps, Word

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


@dataclass(frozen=True, slots=True)
class Usage:
    """What a Redis has done until now, and what it keeps of a call."""

    at: float
    operations: int
    """Scripts, which is all that nodes ask of it."""
    cpu_s: float
    state_bytes: float
    """Of the calls there are, on average."""

    @classmethod
    def of(cls, port: int) -> Usage:
        """Ask.

        Raises:
            OSError, ValueError: It does not say.
        """
        calls = re.search(r"cmdstat_eval:calls=(\d+)", ask(port, "INFO", "commandstats"))
        cpu = re.findall(r"used_cpu_(?:sys|user):([\d.]+)", ask(port, "INFO", "cpu"))
        found, size = re.findall(r":(\d+)", ask(port, "EVAL", _STATES, "0"))
        return cls(
            time.monotonic(),
            int(calls[1]) if calls else 0,
            sum(map(float, cpu)),
            int(size) / (int(found) or 1),
        )


def cpu_us_of_a_state(port: int) -> float:
    """How much of its CPU a Redis takes to be told a call's state, as nodes tell it.

    Raises:
        OSError: It does not answer.
    """
    before, rounds, together = Usage.of(port), 60, 50
    steps, state = Steps("offhook:"), secrets.token_bytes(2_500)
    with socket.create_connection(("127.0.0.1", port), ASK_S) as talk, talk.makefile("rb") as said:
        for turn in range(rounds):
            calls = [(f"CA-{number}", turn + 1, state) for number in range(together)]
            (step,) = steps.put("n0 1", calls)
            words = ["EVAL", step.script, together, *step.keys, *step.words]
            talk.sendall(b"*%d\r\n" % len(words) + b"".join(map(_bulk, words)))
            for _ in range(1 + together):
                said.readline()
    return 1e6 * (Usage.of(port).cpu_s - before.cpu_s) / (rounds * together)


def _bulk(word: Word) -> bytes:
    written = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%s\r\n" % (len(written), written)


_STATES = """
local found, size = 0, 0
for _, key in ipairs(redis.call('KEYS', '*{CA*')) do
  local length = redis.call('HSTRLEN', key, 's')
  if length > 0 then found, size = found + 1, size + length end
end
return {found, size}
"""


_ODD_KEYS = """
local odd = 0
for _, key in ipairs(redis.call('KEYS', '*')) do
  local is_member = string.find(key, '{nodes}', 1, true)
  local is_over = string.find(key, '{CA', 1, true) and redis.call('TYPE', key).ok == 'hash'
    and redis.call('HSTRLEN', key, 's') == 0
  if redis.call('TTL', key) < 0 or not (is_member or is_over) then odd = odd + 1 end
end
return odd
"""


def odd_keys_of(port: int) -> int:
    """How many keys a Redis has that would stay for good, or are neither the members' nor the claim
    of a call that is over.

    Raises:
        OSError, ValueError: It does not say.
    """
    return int(ask(port, "EVAL", _ODD_KEYS, "0").strip().removeprefix(":"))


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
