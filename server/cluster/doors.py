"""The doors for what other processes pass on: one for those of this machine, one for the others."""

from __future__ import annotations

import hashlib
import hmac
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import structlog
import trio
from hypercorn.utils import wrap_app

from server.cluster.directory.directory import Directory
from server.cluster.directory.meeting import listen
from server.cluster.passing_on import (
    LOST,
    PEER,
    NotRead,
    PassedOn,
    WorkerLost,
    read_request,
    take_over,
    written_answer,
)
from server.cluster.peers import Peers
from server.cluster.proof import Asked, NotProved, Prover
from server.cluster.registry import Member
from server.hooks.hypercorn_worker import make_config, serve_worker
from server.hooks.sockets import OwnListener
from server.logs import log_stranger

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Framework, Scope

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BODY_TIMEOUT_S = 5.0
"""For the body of a request between machines, all of which is there when it is sent."""
MAX_AROUND_BYTES = 128 * 1024
"""What a request between machines has beside its body: its headers, which are 64 KiB at most."""


async def serve_siblings(
    directory: Directory,
    app: Framework,
    take_media: Callable[[socket.socket, Mapping[str, Any]], Awaitable[None]],
    *,
    max_message_bytes: int,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take what the other processes of this machine pass on, until cancelled.

    Args:
        directory: Where they are.
        app: Answers requests.
        take_media: Serves a media socket, which is its own from then on.
        max_message_bytes: The longest head of a request, and WebSocket message.
        task_status: Told when others can pass on.
    """
    config = make_config(
        f"fd://{listen(directory.socket_path(directory.number, 'http')).detach()}",
        errorlog=logging.getLogger("hypercorn.error"),
        max_message_bytes=max_message_bytes,
    )
    media = listen(directory.socket_path(directory.number, "media"))
    listener = OwnListener(media)

    async def take(stream: trio.SocketStream) -> None:
        if (taken := await take_over(stream)) is None:
            return  # whoever was about to give it has gone
        try:
            await take_media(*taken)
        except Exception:
            logger.exception("media stream failed by a bug of ours")

    async with trio.open_nursery() as nursery:
        passed_on = wrap_app(PassedOn(app), config.wsgi_max_body_size, "asgi")
        await nursery.start(serve_worker, passed_on, config)
        await nursery.start(trio.serve_listeners, take, [listener])
        task_status.started()


class ProvedDoor:
    """Looks at requests that come to the public address and say another machine passes them on.

    Args:
        me: This process.
        peers: Reach the other processes of this machine, which may be meant.
        directory: Those processes; None if there are none.
        prover: Tells ours from strangers.
        max_body_bytes: The longest body there is.
    """

    def __init__(
        self,
        me: Member,
        peers: Peers,
        directory: Directory | None,
        prover: Prover,
        *,
        max_body_bytes: int,
    ) -> None:
        self._me = me
        self._peers = peers
        self._directory = directory
        self._prover = prover
        self._max_bytes = max_body_bytes + MAX_AROUND_BYTES

    def concerns(self, scope: Mapping[str, Any]) -> bool:
        """Whether a request says that it comes from another machine's process."""
        return any(name == PEER for name, _ in scope.get("headers", ()))

    async def answer(
        self,
        app: Callable[[Any, Any, Any], Awaitable[None]],
        scope: Any,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> bool:
        """Answer a request that :meth:`concerns` us, with proof; False if it is a stranger's, who
        has been refused: without a look at the body, if the header does not prove it.
        """
        try:
            peer = _single(scope)
            wall_time = self._peers.wall_time()
            asked = self._prover.check(peer, wall_time=wall_time, now=time.monotonic())
            number = self._number_of(asked)
            if asked.length > self._max_bytes:
                raise NotProved("longer than any request")
            body = await _read(receive, asked)
            if number is not None:
                return await self._hand_on(number, asked, peer, body, send)
            changed, content = read_request(asked.unseal(body))
        except (NotProved, NotRead) as error:
            return await _refuse(scope, send, str(error))
        answer = _Answer()
        await app({**scope, **changed}, _body(content), answer.send)
        await _send_sealed(send, asked, answer.status, answer.headers, answer.body)
        return True

    def _number_of(self, asked: Asked) -> int | None:
        """Which process of this machine a request is for; None if it is this one.

        Raises:
            NotProved: It is for none of them, or for one that is gone.
        """
        if asked.to == str(self._me):
            return None
        if self._directory is not None:
            name = asked.to.partition("@")[0]
            if asked.to == str(self._directory.member(name)):
                return self._directory.number_of(name)
        raise NotProved("for another process, or one that is gone")

    async def _hand_on(
        self,
        number: int,
        asked: Asked,
        peer: bytes,
        body: bytes,
        send: ASGISendCallable,
    ) -> bool:
        """Have the process of this machine that is meant check it and answer with its proof."""
        try:
            answer = await self._peers.hand_on(number, body, {PEER: peer})
        except WorkerLost as error:
            lost = b"reached" if error.reached else b"not reached"
            await _send_sealed(send, asked, 503, [(LOST.lower().encode(), lost)], b"")
        else:
            await _send(send, answer.status_code, _lines(answer.content), answer.content)
        return True


def _single(scope: Mapping[str, Any]) -> bytes:
    """The one header by which a request shows whose it is.

    Raises:
        NotProved: There are several, or it is no request.
    """
    if scope["type"] != "http":
        raise NotProved("no request")
    match [value for name, value in scope["headers"] if name == PEER]:
        case [value]:
            return cast(bytes, value)
    raise NotProved("with a header that is there twice")


class _Answer:
    """An app's answer, kept until it is whole."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [
                (bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())
            ]
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")


def _body(body: bytes) -> Callable[[], Awaitable[Any]]:
    """What an app receives of a request that has been read already."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        await trio.lowlevel.checkpoint()
        if messages:
            return messages.pop()
        await trio.sleep_forever()

    return receive


async def _read(receive: ASGIReceiveCallable, asked: Asked) -> bytes:
    """Read a body that is proved to be so long, and no more.

    Raises:
        NotProved: It is another one, or is not there in time.
    """
    body = bytearray()
    with trio.move_on_after(BODY_TIMEOUT_S):
        while True:
            message: Any = await receive()
            if message["type"] != "http.request":
                raise NotProved("not there whole")
            body += message.get("body", b"")
            if len(body) > asked.length:
                raise NotProved("another body")
            if not message.get("more_body"):
                break
        if not hmac.compare_digest(hashlib.sha256(body).digest(), asked.digest):
            raise NotProved("another body")
        return bytes(body)
    raise NotProved("not there in time")


async def _refuse(scope: Scope, send: ASGISendCallable, why: str) -> bool:
    log_stranger(logger.warning, "request refused: it is not one of our processes'", why=why)
    if scope["type"] == "websocket":
        await send(cast(Any, {"type": "websocket.close", "code": 1008, "reason": ""}))
    else:
        body = b'{"error": "forbidden", "message": "not proved to be one of this server\'s"}'
        await _send(send, 403, [(b"content-type", b"application/json")], body)
    return False


async def _send(
    send: ASGISendCallable, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> None:
    start = {"type": "http.response.start", "status": status, "headers": list(headers)}
    await send(cast(Any, start))
    await send(cast(Any, {"type": "http.response.body", "body": body, "more_body": False}))


def _lines(sealed: bytes) -> list[tuple[bytes, bytes]]:
    length = b"%d" % len(sealed)
    return [(b"content-type", b"application/octet-stream"), (b"content-length", length)]


async def _send_sealed(
    send: ASGISendCallable,
    asked: Asked,
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    sealed = asked.seal_answer(written_answer(status, headers, body))
    await _send(send, 200, _lines(sealed), sealed)
