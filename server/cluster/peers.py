"""Asking the other processes of this server: those of this machine, and those of others."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2
import structlog
import trio

from server.cluster.directory.directory import Directory
from server.cluster.passing_on import (
    FACTS,
    LOST,
    PEER,
    Hop,
    NotRead,
    WorkerLost,
    facts_of,
    read_answer,
    request_of,
    written_request,
)
from server.cluster.proof import NotProved, Prover
from server.cluster.registry import Registry
from server.logs import Sparing

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 2.0
"""To a process of this machine, which may be busy."""
PEER_CONNECT_TIMEOUT_S = 0.5
"""To another machine: one that is gone says nothing, and somebody waits."""
HAND_ON_TIMEOUT_S = 120.0
"""Whoever has asked has a shorter one; this is for one that has gone meanwhile."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Of another machine, which may be a stranger's by now."""
_LENGTH = re.compile("[0-9]{1,9}")


class Peers:
    """Has other processes answer requests.

    Args:
        registry: Says where the processes of other machines are.
        directory: The processes of this machine; None if this is the only one.
        prover: Proves requests between machines; None: those of others are not asked.
    """

    def __init__(
        self, registry: Registry, directory: Directory | None, prover: Prover | None
    ) -> None:
        self._registry = registry
        self._directory = directory
        self._prover = prover
        self._clients: dict[str, httpx2.AsyncClient] = {}
        self._unproved = Sparing()

    async def ask(
        self, name: str, scope: Mapping[str, Any], body: bytes, hop: Hop, *, timeout_s: float
    ) -> httpx2.Response:
        """Have another process answer a request, as if it had come there.

        Args:
            name: Which one.
            scope: The request's own.
            body: The request's own.
            hop: Why it is passed on.
            timeout_s: How long it may take.

        Raises:
            WorkerLost: It is gone, or what answers at its address is not proved to be it.
        """
        number = None if self._directory is None else self._directory.number_of(name)
        with _telling(name):
            with trio.fail_after(timeout_s):
                if number is None:
                    return await self._ask_elsewhere(name, scope, body, hop)
                facts = {FACTS: json.dumps(facts_of(scope, hop)).encode()}
                return await self._ask_here(number, scope, body, facts, but=_but(hop))

    def wall_time(self) -> float:
        """The time as all machines have it, wherever their own clocks stand."""
        return time.time() + self._registry.ahead_s

    async def answers(self, name: str, *, by: str, timeout_s: float) -> bool:
        """Whether a process answers at all.

        Args:
            name: Which one.
            by: Who asks.
            timeout_s: How long it may take.
        """
        scope = {
            **{"method": "GET", "scheme": "http", "path": "/healthz", "raw_path": b"/healthz"},
            **{"query_string": b"", "headers": [], "client": None, "server": None},
        }
        try:
            await self.ask(name, scope, b"", Hop(by), timeout_s=timeout_s)
        except WorkerLost:
            return False
        return True

    async def hand_on(
        self, number: int, body: bytes, facts: Mapping[bytes, bytes]
    ) -> httpx2.Response:
        """Bring what another machine has sent to a process of this one that it is meant for.

        Raises:
            WorkerLost: That is gone.
        """
        as_sent = {"method": "POST", "path": "/", "headers": ()}
        with _telling(str(number)), trio.fail_after(HAND_ON_TIMEOUT_S):
            return await self._ask_here(number, as_sent, body, facts)

    async def _ask_here(
        self,
        number: int,
        scope: Mapping[str, Any],
        body: bytes,
        facts: Mapping[bytes, bytes],
        *,
        but: bytes = b"",
    ) -> httpx2.Response:
        assert self._directory is not None
        path = str(self._directory.socket_path(number, "http"))
        if path not in self._clients:
            self._clients[path] = _client(CONNECT_TIMEOUT_S, uds=path)
        return await self._clients[path].send(request_of(scope, body, facts, but=but))

    async def _ask_elsewhere(
        self, name: str, scope: Mapping[str, Any], body: bytes, hop: Hop
    ) -> httpx2.Response:
        seen = self._registry.others().get(name)
        if seen is None or self._prover is None or not seen.address.startswith("http://"):
            raise WorkerLost(name, reached=False)
        content = written_request(scope, body, hop, but=_but(hop))
        peer, sealed, asked = self._prover.ask(seen.member, content, wall_time=self.wall_time())
        if "" not in self._clients:
            self._clients[""] = _client(PEER_CONNECT_TIMEOUT_S)
        request = httpx2.Request("POST", seen.address, headers={PEER: peer}, content=sealed)
        answer = await self._clients[""].send(request, stream=True)
        try:
            length = answer.headers.get("Content-Length", "")
            if not _LENGTH.fullmatch(length):
                shown = b""  # ours say it, and what is not to be read whole is not begun with
            elif int(length) > MAX_ANSWER_BYTES:
                raise WorkerLost(name, reached=True)
            else:
                shown = b"".join([piece async for piece in answer.aiter_raw()])
        finally:
            with trio.move_on_after(PEER_CONNECT_TIMEOUT_S, shield=True):
                await answer.aclose()
        try:
            theirs = read_answer(asked.unseal_answer(shown))
        except NotProved as error:
            # Who has this address now could not read what it was asked, and has done nothing.
            self._unproved.log(
                time.monotonic(),
                logger.warning,
                "what answers at a node's address is not proved to be it: it is gone, or has "
                "another CLUSTER_SECRET, clock or version",
                worker=name,
                status=answer.status_code,
            )
            raise WorkerLost(name, reached=False) from error
        except NotRead as error:
            raise WorkerLost(name, reached=True) from error
        if (lost := theirs.headers.get(LOST)) is not None:
            raise WorkerLost(name, reached=lost == "reached")
        return theirs

    async def connect(self, number: int, socket_name: str) -> trio.SocketStream:
        """Connect to one of the Unix sockets of another process of this machine.

        Raises:
            WorkerLost: It is gone.
        """
        assert self._directory is not None
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                path = self._directory.socket_path(number, socket_name)
                return await trio.open_unix_socket(path)
        except (OSError, trio.TooSlowError) as error:
            raise WorkerLost(self._directory.name_of(number), reached=False) from error

    async def aclose(self) -> None:
        """Close what is open; the next request opens it again."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()


@contextmanager
def _telling(name: str) -> Generator[None]:
    """Whatever goes wrong on the way to a process, it is lost to us."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.InvalidURL) as error:
        raise WorkerLost(name, reached=False) from error
    except (httpx2.TransportError, trio.TooSlowError) as error:
        raise WorkerLost(name, reached=True) from error


def _but(hop: Hop) -> bytes:
    # Only what has chosen a process has looked at the key, and keeps it.
    return b"idempotency-key" if hop.given else b""


def _client(connect_timeout_s: float, *, uds: str | None = None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        # No TLS between processes: to load certificates would hold up all calls, up to 0.1 s.
        transport=httpx2.AsyncHTTPTransport(uds=uds, verify=False),
        timeout=httpx2.Timeout(None, connect=connect_timeout_s),
        # An idle connection may be closed just as it is used again.
        limits=httpx2.Limits(max_keepalive_connections=0),
        trust_env=False,
    )
