"""A media stream that has come to another process than its call's, message by message.

On the media plane a connection itself is handed over (:mod:`server.cluster.passing_on`);
this is for where there is none, or where TLS or HTTP/2 ends in this process.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from typing import Any

import trio
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.trio.client import ClientConnection, connect

from server.cluster.passing_on import WorkerLost, target_of
from server.errors import StreamEnded
from server.hooks.media_socket import AcceptedSocket, MediaWebsocket

# At DEBUG the library logs every header and message.
_logger = logging.getLogger(f"{__name__}.websocket")
_logger.setLevel(logging.WARNING)


async def relay_media(
    websocket: MediaWebsocket,
    stream: trio.abc.Stream,
    facts: Mapping[str, str],
    *,
    passed_on: Collection[str],
    name: str,
    max_message_bytes: int,
    timeout_s: float,
) -> None:
    """Accept a media socket, and be its other end towards the process whose call it is.

    Args:
        websocket: Not accepted yet.
        stream: Connected to that process; closed at the end, whatever comes of it.
        facts: What that process is told of the connection.
        passed_on: The headers, in lower case, that say whose stream it is.
        name: Which process it is.
        max_message_bytes: The longest message.
        timeout_s: How long each handshake may take.

    Raises:
        WorkerLost: It did not take the stream, or cannot be asked for it.
    """
    scope: Mapping[str, Any] = websocket.scope
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name.decode("latin-1").lower() in passed_on
    ]
    async with stream, AsyncExitStack() as stack:
        try:
            connection = connect(
                f"ws://worker{target_of(scope).decode('latin-1')}",
                stream=stream,
                additional_headers=[*headers, *facts.items()],
                proxy=None,
                compression=None,
                ping_interval=None,
                max_size=max_message_bytes,
                open_timeout=timeout_s,
                close_timeout=timeout_s,
                logger=_logger,
            )
            owner = await stack.enter_async_context(connection)
        except (OSError, InvalidHandshake, InvalidURI, trio.TooSlowError) as error:
            raise WorkerLost(name, reached=False) from error
        await websocket.accept()
        transport = AcceptedSocket(websocket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_to_owner, transport, owner)
            await _from_owner(owner, transport)
            nursery.cancel_scope.cancel("its call is over")


async def _to_owner(transport: AcceptedSocket, owner: ClientConnection) -> None:
    try:
        while True:
            await owner.send(await transport.receive())
    except StreamEnded:
        await owner.aclose()
    except ConnectionClosed:
        pass


async def _from_owner(owner: ClientConnection, transport: AcceptedSocket) -> None:
    try:
        while True:
            await transport.send(await owner.recv())
    except ConnectionClosed as closed:
        said = closed.rcvd
        await transport.aclose(*((said.code, said.reason) if said is not None else (1011, "")))
