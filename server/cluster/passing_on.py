"""How requests and media sockets go from one process of a server to another."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import httpx2
import trio

from server.errors import ServerError

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Framework, Scope

MAX_FACTS_BYTES = 4096
"""Of what goes along with a media socket."""
HANDOVER_TIMEOUT_S = 5.0
PASSED_ON = "offhook.passed_on"
"""In an ASGI scope: the :class:`Hop` by which another process has passed this request on."""
FACTS = b"x-offhook-facts"
PEER = b"x-offhook-peer"
"""Between machines, what :data:`FACTS` is on one, with what it takes to prove it."""
PROOF = b"x-offhook-proof"
FINAL = "X-Offhook-Final"
"""Between processes: to ask for this call again could ring a phone twice."""
LOST = "X-Offhook-Lost"
"""Between machines: the process that was meant is gone, and whether it was ``reached``."""
PASSED_BACK = (
    "Content-Type",
    "Location",
    "Retry-After",
    "WWW-Authenticate",
    "Idempotent-Replayed",
)
"""Those headers of another process's answer that go on to the client."""
_NOT_PASSED_ON = frozenset(
    {
        *(b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"upgrade", b"te"),
        *(b"expect", b"trailer"),
        *(FACTS, PEER, PROOF),  # nobody else may write these
    }
)


class WorkerLost(ServerError):
    """The process that has this call, or shall have it, is gone, or somebody else answers for it.

    Attributes:
        reached: Whether it may have done what it was asked for.
    """

    def __init__(self, name: str, *, reached: bool) -> None:
        super().__init__(f"process {name} of this server is gone")
        self.reached = reached


@dataclass(frozen=True, slots=True)
class Hop:
    """Why a request is passed on to another process, and by whom.

    Attributes:
        by: The name of the process that passes it on.
        given: Whether that has chosen the other one for a new call.
        generation: Of a new call that the carrier has named: at which it is the other one's.
        named: Whether only the path says that it is the other one's; who is named there may have
            lost the call.
        if_known: Whether only one who knows the call is to answer.
    """

    by: str
    given: bool = False
    generation: int = 1
    named: bool = False
    if_known: bool = False


# -- requests --------------------------------------------------------------------------------


def facts_of(scope: Mapping[str, Any], hop: Hop) -> dict[str, Any]:
    """What another process has to know of a connection that it does not see.

    Args:
        scope: The connection's.
        hop: Why it is passed on.
    """
    return {
        "by": hop.by,
        "given": hop.given,
        "generation": hop.generation,
        "named": hop.named,
        "if_known": hop.if_known,
        "client": scope.get("client"),
        "server": scope.get("server"),
        "scheme": scope.get("scheme"),
    }


def scope_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What in a scope is to be as the other process has said.

    Raises:
        KeyError, TypeError, ValueError: They are no facts.
    """
    return {
        PASSED_ON: Hop(
            by=str(facts["by"]),
            given=bool(facts["given"]),
            generation=int(facts["generation"]),
            named=bool(facts["named"]),
            if_known=bool(facts["if_known"]),
        ),
        "client": facts["client"] and tuple(facts["client"]),
        "server": facts["server"] and tuple(facts["server"]),
        "scheme": facts["scheme"],
    }


def headers_of(scope: Mapping[str, Any], *, by: str) -> dict[str, str]:
    """What says to another process, on its HTTP socket, where a media stream comes from."""
    return {FACTS.decode(): json.dumps(facts_of(scope, Hop(by)))}


def target_of(scope: Mapping[str, Any]) -> bytes:
    """Path and query as they were asked for, which a signature may be over."""
    target: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string") or b""
    return target + b"?" + query if query else target


def request_of(
    scope: Mapping[str, Any],
    body: bytes,
    facts: Mapping[bytes, bytes],
    *,
    base: str = "http://worker",
    but: bytes = b"",
) -> httpx2.Request:
    """A request as it is passed on: whole and unchanged, with the facts.

    Args:
        scope: The request's own.
        body: The request's own.
        facts: The headers that say them.
        base: Where it goes, without a path.
        but: A header that stays here.
    """
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in _NOT_PASSED_ON and name.lower() != but
    ]
    return httpx2.Request(
        scope["method"],
        httpx2.URL(base).copy_with(raw_path=target_of(scope)),
        headers=[*headers, *facts.items()],
        content=body,
    )


class PassedOn:
    """The app, asked by another process: what that one knows of the connection counts here."""

    def __init__(self, app: Framework) -> None:
        self._app: Any = app

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Answer a request; the app's own start and end are none of these."""
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send(cast(Any, {"type": f"lifespan.{stage}.complete"}))
            return
        if any(name == PROOF for name, _ in scope["headers"]):
            await self._app(scope, receive, send)  # from another machine: the app looks at it
            return
        headers = [(name, value) for name, value in scope["headers"] if name != FACTS]
        facts = json.loads(next(value for name, value in scope["headers"] if name == FACTS))
        await self._app({**scope, "headers": headers, **scope_of(facts)}, receive, send)


# -- media sockets ---------------------------------------------------------------------------


async def hand_over(
    stream: trio.SocketStream, connection: socket.socket, facts: Mapping[str, Any]
) -> None:
    """Give a connected socket to the process at the other end, and wait until it has it.

    Raises:
        WorkerLost: It has gone meanwhile.
    """
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, connection.fileno().to_bytes(4, sys.byteorder))
    try:
        with trio.fail_after(HANDOVER_TIMEOUT_S):
            await stream.socket.sendmsg([json.dumps(facts).encode()], [rights])
            if await stream.receive_some(1) == b"\n":
                return
    except (OSError, trio.BrokenResourceError, trio.TooSlowError):
        pass
    raise WorkerLost("that was given a stream", reached=True)


async def take_over(stream: trio.SocketStream) -> tuple[socket.socket, Mapping[str, Any]] | None:
    """Take the connected socket that the process at the other end gives; None if it has gone."""
    facts, connection = b"", None
    async with stream:
        with (
            suppress(OSError, trio.BrokenResourceError),
            trio.move_on_after(HANDOVER_TIMEOUT_S),
        ):
            facts, rights, _, _ = await stream.socket.recvmsg(MAX_FACTS_BYTES, socket.CMSG_SPACE(4))
            if rights:
                connection = socket.socket(fileno=int.from_bytes(rights[0][2][:4], sys.byteorder))
                connection.set_inheritable(False)
                connection.setblocking(False)
                await stream.send_all(b"\n")
    return None if connection is None else (connection, json.loads(facts))
