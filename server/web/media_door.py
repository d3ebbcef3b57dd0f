"""The door for media sockets: accepted, claimed by a call, and served where that is cheapest.

On the media plane a request returns as soon as its socket has shown its ticket: the request has
done its part, and a call is not to hold what belongs to it (a quarter of its memory) for minutes.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import structlog
import trio
from quart import Quart, websocket

from codec.path import WebSocket
from server.carrier import MediaStream
from server.carrier.transport import QueuedTransport, Transport, WireTransport
from server.cluster.cluster import Cluster
from server.cluster.names import is_name
from server.cluster.passing_on import PASSED_ON, WorkerLost, hand_over, headers_of
from server.errors import StreamEnded
from server.headers import Headers
from server.hooks.detach import detachable
from server.hooks.media_socket import AcceptedSocket, MediaWebsocket
from server.logs import log_stranger
from server.media.bounds import STRANGER
from server.media.plane import Plane
from server.media.wire import Wire
from server.metrics import add
from server.service import Service
from server.switchboard.strangers import client_address
from server.switchboard.tickets import Claim
from server.web.api import error_body
from server.web.cross_origin import is_own_page
from server.web.elsewhere import worker_lost
from server.web.http_request import MAX_BODY_BYTES, target_of
from server.web.pass_on import relay_media
from server.web.path_prefix import NAMED

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FORWARDED = "x-forwarded-for"
"""Where a stream comes from, as a proxy has written it: whoever relays a stream says so, too."""
PAGES = "/stream/browser"
"""Where web pages open media streams."""
PROCESS_IN_QUERY = re.compile(rb"(?:^|&)process=([^&]*)")


@dataclass(frozen=True, slots=True)
class _ClaimedWire:
    """A media socket on the plane, with the call it belongs to."""

    wire: Wire
    media: MediaStream
    claim: Claim


class MediaDoor:
    """Lets media sockets in; a :class:`server.service.Streams`.

    Args:
        service: Whose calls they are.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        # Of any size: what comes is taken at once, and each was claimed by a call of its own.
        self._claimed_in, self._claimed_out = trio.open_memory_channel[_ClaimedWire](math.inf)

    # -- a request of this process ---------------------------------------------------------

    async def serve(
        self, websocket: MediaWebsocket, address: str = "", *, is_page: bool = False
    ) -> None:
        """Accept a media socket and serve its call; on the media plane where that can be.

        Args:
            websocket: Not accepted yet.
            address: Where it comes from if nothing has vouched for it yet.
            is_page: Whether it is a web page's.
        """
        plane = self._service.plane
        connection = None if plane is None else detachable(websocket.scope)
        if plane is None or connection is None:
            self._note_path("ordinary")
            await websocket.accept()
            transport = QueuedTransport(AcceptedSocket(websocket))
            await self._serve_queued(transport, address, is_page=is_page)
            return
        async with connection.detach() as lent:
            wire = self._wire(plane, lent)
            try:
                await websocket.accept()
                claimed = await self._claim(wire, address, is_page=is_page)
                if claimed is not None:
                    self._serve_later(claimed)
            except BaseException:
                wire.close()
                raise

    def _new_stream(self, transport: Transport, *, is_page: bool) -> MediaStream:
        accounts = self._service.accounts
        return (accounts.pages.new_stream if is_page else accounts.new_stream)(transport)

    async def _serve_queued(
        self, transport: QueuedTransport, address: str, *, is_page: bool
    ) -> None:
        """Serve a media socket that is no wire; its tasks live here for as long as its call."""
        with self._counted(self._new_stream(transport, is_page=is_page)) as media:
            claim = await self._service.calls.claim(media, address)
            if claim is None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transport.run)
                await claim.call.serve(media, claim.started)
                nursery.cancel_scope.cancel("its call is over")

    # -- between processes -----------------------------------------------------------------

    async def hand_over(
        self, websocket: MediaWebsocket, name: str, facts: Mapping[str, Any]
    ) -> None:
        """Give a media socket to the process of this machine whose call it belongs to.

        Where there is a media plane, the connection itself goes there as soon as it is accepted:
        what the carrier sends meanwhile waits in it. Elsewhere its messages are relayed.

        Raises:
            WorkerLost: That process is gone.
        """
        service = self._service
        number = service.cluster.sibling_number(name)
        if number is None:  # never from machine to machine: every frame would cost both of them
            raise WorkerLost(name, reached=False)
        service.metrics.passed_on.labels("stream").inc()
        connection = None if service.plane is None else detachable(websocket.scope)
        if connection is None:
            stream = await service.cluster.peers.connect(number, "http")
            headers = headers_of(websocket.scope, by=service.cluster.me.name)
            await relay_media(
                websocket,
                stream,
                headers,
                passed_on={*service.accounts.webhooks.signature_headers, FORWARDED},
                name=name,
                max_message_bytes=MAX_BODY_BYTES,
                timeout_s=service.settings.close_timeout_s,
            )
            return
        stream = await service.cluster.peers.connect(number, "media")
        async with stream, connection.detach() as lent:
            with lent:
                await websocket.accept()
                await hand_over(stream, lent, facts)
                connection.give_away()

    async def take(self, sock: socket.socket, facts: Mapping[str, Any]) -> None:
        """Serve a media socket that another process has accepted."""
        assert self._service.plane is not None
        wire = self._wire(self._service.plane, sock)
        try:
            is_page = facts.get("is_page", False)
            claimed = await self._claim(wire, facts["address"], is_page=is_page)
            if claimed is not None:
                self._serve_later(claimed)
        except BaseException:
            wire.close()
            raise

    # -- wires -----------------------------------------------------------------------------

    def _wire(self, plane: Plane, sock: socket.socket) -> Wire:
        self._note_path("fast")
        websocket = WebSocket(is_client=False, max_message_bytes=MAX_BODY_BYTES)
        try:
            return Wire(plane, sock, websocket, bounds=STRANGER)
        except BaseException:
            sock.close()
            raise

    async def _claim(self, wire: Wire, address: str, *, is_page: bool) -> _ClaimedWire | None:
        """Wait until a wire has shown its ticket; one that has none is closed, and None.

        What comes back is to be served without a wait in between, in which the call could end and
        its socket be nobody's.
        """
        media = self._new_stream(WireTransport(wire), is_page=is_page)
        claim = await self._service.calls.claim(media, address)
        if claim is not None and not claim.call.is_over:
            wire.trust()
            return _ClaimedWire(wire, media, claim)
        await wire.wait_ended(timeout_s=self._service.settings.close_timeout_s)
        self._count(media)
        wire.close()
        return None

    def _serve_later(self, claimed: _ClaimedWire) -> None:
        try:
            self._claimed_in.send_nowait(claimed)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamEnded("the server has stopped") from None

    async def run(self) -> None:
        """Serve the calls' sockets that are on the plane, until the last of them is closed."""
        try:
            async with trio.open_nursery() as nursery:
                async for claimed in self._claimed_out:
                    nursery.start_soon(self._serve_wire, claimed)
        finally:
            while self._claimed_out.statistics().current_buffer_used:
                self._claimed_out.receive_nowait().wire.close()
            self._claimed_out.close()

    async def aclose(self) -> None:
        """Take no more media sockets; :meth:`run` returns when the last is closed."""
        await self._claimed_in.aclose()

    async def _serve_wire(self, claimed: _ClaimedWire) -> None:
        try:
            with closing(claimed.wire):
                with self._counted(claimed.media) as media:
                    await claimed.claim.call.serve(media, claimed.claim.started)
                # The call has gone; only its socket waits here for the carrier's goodbye.
                await claimed.wire.wait_ended(timeout_s=self._service.settings.close_timeout_s)
        except* Exception as failures:
            # Of one call, not of others.
            logger.exception("media stream failed by a bug of ours", exc_info=failures)

    # -- counting --------------------------------------------------------------------------

    def _note_path(self, path: str) -> None:
        self._service.metrics.streams.accepted.labels(path).inc()
        logger.debug("media stream accepted", path=path)

    @contextmanager
    def _counted(self, media: MediaStream) -> Generator[MediaStream]:
        """Add what a stream has counted to the metrics when it is over."""
        try:
            yield media
        finally:
            self._count(media)

    def _count(self, media: MediaStream) -> None:
        counts, metrics = media.counts, self._service.metrics
        add(metrics.streams.lost_frames.labels("carrier"), counts.missing_chunks)
        odd = {
            "malformed": counts.malformed,
            "unknown": counts.unknown,
            "misplaced": counts.misplaced,
            "foreign": counts.foreign,
            "binary": counts.binary,
            "hasty-key": counts.hasty,
            "repeated-chunk": counts.repeated_chunks,
            "timestamp-jump": counts.timestamp_jumps,
        }
        for what, count in odd.items():
            if count:
                metrics.streams.odd_messages.labels(what).inc(count)


def add_stream(app: Quart, service: Service, door: MediaDoor) -> None:
    """Add the routes that a carrier and web pages open media streams at."""

    @app.websocket("/stream")
    @app.websocket("/stream/<int:worker>")
    @app.websocket(PAGES)
    async def stream(worker: int | None = None) -> Any:
        """One call's audio, both ways; the path says whose call it is."""
        cluster, allowed = service.cluster, service.settings.allowed_origins
        name = _name(websocket.scope, worker, cluster)
        # Of many machines any may have this name, though it is not known here at this moment.
        if not cluster.has_nodes and cluster.sibling_number(name) is None:
            service.metrics.strangers_refused.labels("stream-worker").inc()
            return error_body("not-found", "there is no such process"), 404
        headers, is_page = websocket.headers, websocket.path == PAGES
        address = ""
        if is_page and not is_own_page(headers, service.accounts.public_url, allowed):
            service.metrics.strangers_refused.labels("stream-origin").inc()
            return error_body("forbidden", "ALLOWED_ORIGINS does not name this origin"), 403
        if is_page:
            address = _address(headers)
        elif not service.accounts.webhooks.verify_upgrade(target_of(websocket.scope), headers):
            if service.settings.strict_stream_signature:
                service.metrics.strangers_refused.labels("stream-signature").inc()
                return error_body("forbidden", "not signed by the carrier"), 403
            # A reason to look twice, not to hang up: the ticket is what lets a stream in.
            address = _address(headers)
        socket = cast(Any, websocket)._get_current_object()
        try:
            if name == cluster.me.name or PASSED_ON in websocket.scope:
                await door.serve(socket, address, is_page=is_page)
            else:
                facts = {"address": address, "is_page": is_page}
                await door.hand_over(socket, name, facts)
        except WorkerLost as lost:
            log_stranger(logger.warning, "media stream refused: its process is gone", worker=name)
            return None if lost.reached else (worker_lost(lost).body, 503)
        except StreamEnded as error:  # as a rule nobody is there any more to be told
            return error_body("unavailable", str(error)), 503
        return None

    def _address(headers: Headers) -> str:
        peer = (websocket.scope.get("client") or ("",))[0]
        return client_address(peer, headers, service.settings.trusted_proxies)


def _name(scope: Mapping[str, Any], worker: int | None, cluster: Cluster) -> str:
    """The process that a stream's path says has the call; ours if it says nothing.

    Args:
        scope: The request's own.
        worker: What an old path says: a number.
        cluster: This process among others.
    """
    if worker is not None:
        return cluster.name_of_number(worker)
    if (named := scope.get(NAMED)) is not None:
        return cast(str, named)
    # A carrier whose address is fixed in its own configuration can still add to the query.
    asked = PROCESS_IN_QUERY.search(scope.get("query_string", b""))
    name = cluster.me.name if asked is None else asked[1].decode("latin-1")
    return name if is_name(name) else cluster.me.name
