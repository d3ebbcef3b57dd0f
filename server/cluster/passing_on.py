"""How requests and media sockets go from one process of a server to another."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import unquote

import httpx2
import msgspec
import trio

from server.errors import ServerError

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Framework, Scope

MAX_FACTS_BYTES = 4096
"""Of what goes along with a media socket."""
HANDOVER_TIMEOUT_S = 5.0
PASSED_ON = "offhook.passed_on"
"""In an ASGI scope: the :class:`Hop` by which another process has passed this request on."""
CLIENT = "offhook.client"
"""In an ASGI scope: the name of the API key that the request has shown, here or at the process
that has passed it on; the key itself goes no further."""
FACTS = b"x-offhook-facts"
PEER = b"x-offhook-peer"
"""Between machines: that one of ours asks, see ``proof.py``; all else is in the sealed body."""
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
        # A client's secrets have been looked at, and are nobody else's: see CLIENT.
        *(b"authorization", b"proxy-authorization", b"x-api-key", b"cookie", b"x-console-token"),
    }
)
_OURS = b"x-offhook-"
"""How the headers begin that nobody else may write."""
_ANSWERED = frozenset(name.lower().encode() for name in (*PASSED_BACK, FINAL, LOST))


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
        "key": scope.get(CLIENT),
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
        CLIENT: None if facts["key"] is None else str(facts["key"]),
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


def _passed_on(scope: Mapping[str, Any], but: bytes) -> list[tuple[bytes, bytes]]:
    """Those headers of a request that go on to another process."""
    return [
        (name, value)
        for name, value in scope["headers"]
        if (lower := name.lower()) not in _NOT_PASSED_ON
        and lower != but
        and not lower.startswith(_OURS)
    ]


def request_of(
    scope: Mapping[str, Any],
    body: bytes,
    facts: Mapping[bytes, bytes],
    *,
    but: bytes = b"",
) -> httpx2.Request:
    """A request as it is passed on to a process of this machine: unchanged, with the facts.

    Args:
        scope: The request's own.
        body: The request's own.
        facts: The headers that say them.
        but: A header that stays here.
    """
    return httpx2.Request(
        scope["method"],
        httpx2.URL("http://worker").copy_with(raw_path=target_of(scope)),
        headers=[*_passed_on(scope, but), *facts.items()],
        content=body,
    )


# -- between machines: what is sealed there ----------------------------------------------------

_Lines = list[tuple[bytes, bytes]]


class _Request(msgspec.Struct, array_like=True):
    method: str
    target: bytes
    headers: _Lines
    facts: dict[str, Any]
    body: bytes


class _Answer(msgspec.Struct, array_like=True):
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    headers: _Lines
    body: bytes


_encoder = msgspec.msgpack.Encoder()
_requests, _answers = msgspec.msgpack.Decoder(_Request), msgspec.msgpack.Decoder(_Answer)


class NotRead(ServerError):
    """Another process has said something that this one does not understand."""


def written_request(scope: Mapping[str, Any], body: bytes, hop: Hop, *, but: bytes = b"") -> bytes:
    """A request as it is passed on to a process of another machine, with the facts.

    Args:
        scope: The request's own.
        body: The request's own.
        hop: Why it is passed on.
        but: A header that stays here.
    """
    headers = _passed_on(scope, but)
    facts = facts_of(scope, hop)
    return _encoder.encode(_Request(scope["method"], target_of(scope), headers, facts, body))


def read_request(content: bytes) -> tuple[dict[str, Any], bytes]:
    """What in a scope is to be as it was where the request came, and the body.

    Raises:
        NotRead: It is none.
    """
    try:
        asked = _requests.decode(content)
        path, _, query = asked.target.partition(b"?")
        scope = {
            "method": asked.method,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "headers": [*asked.headers, (b"content-length", b"%d" % len(asked.body))],
            **scope_of(asked.facts),
        }
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise NotRead("a request of another process cannot be read") from error
    return scope, asked.body


def written_answer(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """An answer as it goes back to the process that has passed the request on."""
    kept = [(name, value) for name, value in headers if name in _ANSWERED]
    return _encoder.encode(_Answer(status, kept, body))


def read_answer(content: bytes) -> httpx2.Response:
    """The answer of a process that a request was passed on to.

    Raises:
        NotRead: It is none, or says something twice.
    """
    try:
        answer = _answers.decode(content)
    except msgspec.DecodeError as error:
        raise NotRead("an answer of another process cannot be read") from error
    names = [name for name, _ in answer.headers]
    if len(names) != len({*names}) or not _ANSWERED.issuperset(names):
        raise NotRead("an answer of another process has headers twice, or others than there are")
    return httpx2.Response(answer.status, headers=answer.headers, content=answer.body)


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
        if any(name == PEER for name, _ in scope["headers"]):
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
