"""A Redis of the test's own, where one is installed: reached by a Unix socket, and kept nowhere."""

from __future__ import annotations

import gc
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from prometheus_client import CollectorRegistry

from server.cluster.redis.registry import RedisRegistry
from server.cluster.registry import Member, RegistryAway
from server.metrics import RegistryMetrics
from server.settings.cluster import registry_address
from tests.support.required import is_required

STARTS_WITHIN_S = 60.0
SECRET = "s" * 32
PATIENCE_S = 60.0
_born = count(1)


def server_binary() -> str:
    """Where redis-server is; the test is skipped where it is not."""
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return found
    if is_required("redis"):
        pytest.fail("redis-server is not installed")
    pytest.skip("redis-server is not installed")


IGNORES_UNCLOSED = (
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored.*MemoryObject:pytest.PytestUnraisableExceptionWarning"
    ),
)
"""coredis leaves streams of its own open where a connection was refused."""


class RedisServer:
    """A redis-server that can be killed, begun again, frozen and let go on.

    Args:
        directory: Where its socket is; its name must be short.
        options: More of redis-server's.
        port: Where it listens on the loopback; 0 for its Unix socket alone.
    """

    def __init__(self, directory: Path, *options: str, port: int = 0) -> None:
        self.binary = server_binary()
        self.directory = directory
        self.port = port
        self.socket = directory / f"r{next(_born)}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def command(self) -> list[str]:
        """What starts it."""
        return [
            *(self.binary, *self._options),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
            *("--unixsocket", str(self.socket), "--dir", str(self.directory)),
        ]

    def start(self) -> None:
        """Start it empty, and return when it answers."""
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                if self.ask("PING").startswith(b"+PONG"):
                    return
            except OSError:
                assert self._process.poll() is None, "redis-server has ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.01)

    def ask(self, *words: str) -> bytes:
        """Send one command and return the beginning of what is answered."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(STARTS_WITHIN_S)
            client.connect(str(self.socket))
            parts = [b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words]
            client.sendall(b"*%d\r\n" % len(words) + b"".join(parts))
            return client.recv(65_536)

    def keys(self) -> dict[str, int]:
        """Every key, and for how many seconds it is kept; -1 for ever."""
        names = [line.decode() for line in self.ask("KEYS", "*").split(b"\r\n")[2::2] if line]
        return {name: int(self.ask("TTL", name)[1:].strip()) for name in names}

    def kill(self) -> None:
        """End it at once, with all that was in it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it answer nothing until it may go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


ServerT = TypeVar("ServerT", bound=RedisServer)


@contextmanager
def redis_server(make: Callable[[Path], ServerT] = RedisServer) -> Iterator[ServerT]:
    """A server that runs, made of the directory it has, and leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="offhook-") as directory:
        server = make(Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.kill()
            gc.collect()  # while what is left open is ignored


@asynccontextmanager
async def member(
    url: str, name: str = "n0", *, secrets: tuple[str, ...] = (SECRET,), timeout_s: float = 5.0
) -> AsyncGenerator[RedisRegistry]:
    """A registry that runs: one process among those of a server.

    Args:
        url: As ``REGISTRY_URL``.
        name: Of the member.
        secrets: What state is sealed with.
        timeout_s: Long, as a busy machine is no failure of Redis's.
    """
    me = Member(name, next(_born))
    registry = RedisRegistry(
        registry_address(url), me, f"http://{name}:8000", secrets,
        RegistryMetrics(CollectorRegistry()), timeout_s,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        yield registry
        nursery.cancel_scope.cancel("the test is over")


async def until(condition) -> None:
    """Wait until something is true; a condition may be asked, or awaited."""
    with trio.fail_after(PATIENCE_S):
        while True:
            found = condition()
            if await found if hasattr(found, "__await__") else found:
                return
            await trio.sleep(0.01)


async def surely(ask):
    """What this answers, once the registry is sure of it."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                return await ask()
            except RegistryAway:
                await trio.sleep(0.05)


class Sentinel(RedisServer):
    """One of the sentinels of a primary that they call ``offhook``."""

    def __init__(self, directory: Path, port: int, primary_port: int, down_after_ms: int) -> None:
        config = directory / f"sentinel-{port}.conf"
        config.write_text(
            f"sentinel monitor offhook 127.0.0.1 {primary_port} 2\n"
            f"sentinel down-after-milliseconds offhook {down_after_ms}\n"
            "sentinel failover-timeout offhook 10000\n"
        )
        super().__init__(directory, str(config), "--sentinel", port=port)
