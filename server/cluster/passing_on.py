"""How requests and media sockets go from one process of a server to another."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
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
"""In an ASGI scope: which process has passed this request on."""
GIVEN = "offhook.given"
"""In an ASGI scope: whether it has chosen this process for a new call."""
FACTS = b"x-offhook-facts"
_NOT_PASSED_ON = frozenset(
    {
        *(b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"upgrade", b"te"),
        *(b"expect", b"trailer"),
        FACTS,  # nobody else may write this
    }
)


class WorkerLost(ServerError):
    """The process that has this call, or shall have it, is gone.

    Attributes:
        reached: Whether it may have done what it was asked for.
    """

    def __init__(self, number: int, *, reached: bool) -> None:
        super().__init__(f"process {number} of this server is gone")
        self.reached = reached


# -- requests --------------------------------------------------------------------------------


def facts_of(scope: Mapping[str, Any], *, by: int, given: bool = False) -> bytes:
    """What another process has to know of a connection that it does not see.

    Args:
        scope: The connection's.
        by: Which process passes it on.
        given: Whether that has chosen the other one for a new call.
    """
    facts = {
        "by": by,
        "given": given,
        "client": scope.get("client"),
        "server": scope.get("server"),
        "scheme": scope.get("scheme"),
    }
    return json.dumps(facts).encode()


def headers_of(scope: Mapping[str, Any], *, by: int) -> dict[str, str]:
    """What says to another process, on its HTTP socket, where a media stream comes from."""
    return {FACTS.decode(): facts_of(scope, by=by).decode()}


def request_of(
    scope: Mapping[str, Any], body: bytes, facts: bytes, but: bytes = b""
) -> httpx2.Request:
    """A request as it is passed on: whole and unchanged, with the facts.

    Args:
        scope: The request's own.
        body: The request's own.
        facts: See :func:`facts_of`.
        but: A header that stays here.
    """
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in _NOT_PASSED_ON and name.lower() != but
    ]
    target: bytes = scope.get("raw_path") or scope["path"].encode()
    if query := scope.get("query_string"):
        target += b"?" + query
    return httpx2.Request(
        scope["method"],
        httpx2.URL("http://worker").copy_with(raw_path=target),
        headers=[*headers, (FACTS, facts)],
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
        headers = [(name, value) for name, value in scope["headers"] if name != FACTS]
        facts = json.loads(next(value for name, value in scope["headers"] if name == FACTS))
        changed = {
            "headers": headers,
            PASSED_ON: facts["by"],
            GIVEN: facts["given"],
            "client": facts["client"] and tuple(facts["client"]),
            "server": facts["server"] and tuple(facts["server"]),
            "scheme": facts["scheme"],
        }
        await self._app({**scope, **changed}, receive, send)


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
    raise WorkerLost(-1, reached=True)


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
