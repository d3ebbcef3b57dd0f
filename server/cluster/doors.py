"""The doors for what other processes pass on: one for those of this machine, one for the others."""

from __future__ import annotations

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
    PROOF,
    PassedOn,
    WorkerLost,
    scope_of,
    take_over,
    target_of,
)
from server.cluster.peers import Peers
from server.cluster.proof import NotProved, Prover, receiver
from server.hooks.hypercorn_worker import make_config, serve_worker
from server.hooks.sockets import OwnListener
from server.logs import log_stranger

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Framework, Scope

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BODY_TIMEOUT_S = 5.0
"""For the body of a request between machines, all of which is there when it is sent."""
_BETWEEN_US = frozenset({PEER, PROOF})


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
        me: The name of this process.
        peers: Reach the other processes of this machine, which may be meant.
        directory: Those processes; None if there are none.
        prover: Tells ours from strangers.
        max_body_bytes: The longest body there is.
    """

    def __init__(
        self,
        me: str,
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
        self._max_body_bytes = max_body_bytes

    def concerns(self, scope: Mapping[str, Any]) -> bool:
        """Whether a request says that it comes from another machine's process."""
        return any(name in _BETWEEN_US for name, _ in scope.get("headers", ()))

    async def answer(
        self,
        app: Callable[[Any, Any, Any], Awaitable[None]],
        scope: Any,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> bool:
        """Answer a request that :meth:`concerns` us, with proof; False if it is a stranger's, who
        has been refused.
        """
        said = {name: value for name, value in scope["headers"] if name in _BETWEEN_US}
        peer, proof = said.get(PEER, b""), said.get(PROOF, b"")
        body = None
        if (to := receiver(peer)) is not None and scope["type"] == "http":
            with trio.move_on_after(BODY_TIMEOUT_S):
                body = await _read(receive, self._max_body_bytes)
        if to is None or body is None or scope["type"] != "http":
            return await _refuse(scope, send, "unreadable")
        between_us = {PEER: peer, PROOF: proof}
        number = (
            None if to == self._me or self._directory is None else self._directory.number_of(to)
        )
        lost = ""
        if number is not None:
            try:
                await _send(send, *await self._hand_on(number, scope, body, between_us))
            except WorkerLost as error:
                lost = "reached" if error.reached else "not reached"
            else:
                return True
        method, target = str(scope["method"]), target_of(scope)
        me = self._me if number is None else to  # or it is proved that it was meant for one gone
        try:
            asked = self._prover.check_request(
                peer, proof, method, target, body, me=me, wall_time=time.time()
            )
            changed = scope_of(asked.facts)
        except NotProved as error:
            return await _refuse(scope, send, str(error))
        except (KeyError, TypeError, ValueError):  # another version of ours
            return await _refuse(scope, send, "unreadable facts")
        answer = _Answer()
        if number is None:
            kept = [(name, value) for name, value in scope["headers"] if name not in _BETWEEN_US]
            await app({**scope, "headers": kept, **changed}, _body(body), answer.send)
        else:
            answer.status, answer.headers = 503, [(LOST.lower().encode(), lost.encode())]
        shown = self._prover.prove_answer(asked.nonce, answer.status, answer.headers, answer.body)
        await _send(send, answer.status, [*answer.headers, (PROOF, shown)], answer.body)
        return True

    async def _hand_on(
        self, number: int, scope: Scope, body: bytes, between_us: Mapping[bytes, bytes]
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Have the process of this machine that is meant check it, and answer with its proof."""
        answer = await self._peers.hand_on(number, scope, body, between_us)
        headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower() not in (b"content-length", b"transfer-encoding", b"connection", b"date")
        ]
        return answer.status_code, headers, answer.content


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


async def _read(receive: ASGIReceiveCallable, max_bytes: int) -> bytes | None:
    body = b""
    while True:
        message: Any = await receive()
        if message["type"] != "http.request":
            return None
        body += bytes(message.get("body", b""))
        if len(body) > max_bytes:
            return None
        if not message.get("more_body"):
            return body


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
