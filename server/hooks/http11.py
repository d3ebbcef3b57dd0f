"""HTTP/1.1 as we let hypercorn speak it: bounded heads and bodies, and no way to HTTP/2.

No interface of hypercorn's or h11's is public here; see :mod:`server.hooks.connections`.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import h11
from h11._readers import ChunkedReader
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response, StreamClosed
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream

MAX_HEAD_LINES = 100
"""The request line and its fields: a carrier's have some twenty, and every proxy adds a few. What a
line costs does not depend on its length, and 64 KiB are twenty thousand lines."""
MAX_LINE_BYTES = 8 * 1024
MAX_CHUNKS = 256
"""Pieces of a chunked body: more than four for each KiB that a body may have."""
MAX_CHUNK_HEAD_BYTES = 256
"""The line before a chunk: its length, and extensions that nobody sends (RFC 9112 section 7.1.1
wants a bound for them). h11 takes the square of its length to find that it is none."""
HEAD_END = re.compile(rb"(?:\A|\n)\r?\n")
NOT_IN_A_HEAD = re.compile(rb"\n[ \t]|[\x00\v\f]|\r(?=[^\n])")
"""What makes one field of several lines, and so one that is longer than a line may be: "a server
MUST either reject the message […] or replace each received obs-fold" (RFC 9112 section 5.2). And
what h11 refuses in any line, but for which it takes the square of the blanks before it."""
AUTHORITY = (string.ascii_letters + string.digits + "-._~%!$&'()*+,;=:@[]").encode()
"""What may stand between the scheme and the path of an absolute target (RFC 3986 section 3.2)."""
LENGTHS = frozenset((b"content-length", b"transfer-encoding"))
ABOUT_WEBSOCKET = b"sec-websocket-"
HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[\w~!$&'()*+,;=%-]{1,63}\.)*[\w~!$&'()*+,;=%-]{0,63})(?::\d{0,5})?"
)
"""A name in labels that DNS could have, or an IPv6 address; and a port."""


class _Refused(Exception):
    """A request that gets no further than its head.

    Args:
        status: The answer.
        headers: More of it.
    """

    def __init__(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class Lines:
    """Those of a request's head, or of what may follow a chunked body, before they are parsed.

    They may come byte by byte: what has been looked at is not looked at again, but for the last
    line, as far as it has come.
    """

    def __init__(self) -> None:
        self._seen_bytes = 0
        self._count = 0  # of those that are whole
        self._last_begins = 0

    def check(self, received: bytes) -> None:
        """Look at what has come since.

        Args:
            received: All that has come, from the first line's beginning on; behind the last line
                may be what is none of them. Then the next is the beginning of others.

        Raises:
            RemoteProtocolError: There are more or longer lines than there can be, one that goes on
                in the next, or what is in none.
        """
        begins = max(0, self._seen_bytes - 2)  # what is looked for has three bytes at most
        end = HEAD_END.search(received, begins)
        stops = len(received) if end is None else end.start()
        is_first = not self._count
        lines = received[self._last_begins : stops].split(b"\n")
        # An end of which half has come is no line yet.
        count = self._count + len(lines) - (lines[-1] in (b"", b"\r"))
        if count > MAX_HEAD_LINES or max(map(len, lines)) > MAX_LINE_BYTES:
            status = 414 if is_first and len(lines[0]) > MAX_LINE_BYTES else 431
            text = "too many lines, or too long ones"
            raise h11.RemoteProtocolError(text, error_status_hint=status)
        if NOT_IN_A_HEAD.search(received, begins, stops) is not None:
            raise h11.RemoteProtocolError("a folded line, or a control character in one")
        if end is not None:
            self._seen_bytes = self._count = self._last_begins = 0
            return
        self._seen_bytes = stops
        self._count += len(lines) - 1
        self._last_begins = stops - len(lines[-1])


class _Chunks(ChunkedReader):
    """A body in chunks: no more of them than it may have, and no more behind it than a head has."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._trailer = Lines()

    def __call__(self, buf: Any) -> Any:
        """Read what comes next."""
        if self._reading_trailer:
            self._trailer.check(bytes(buf))
        elif not self._bytes_in_chunk:
            begins = len(self._bytes_to_discard)  # of the chunk before
            head = bytes(buf)[begins : begins + MAX_CHUNK_HEAD_BYTES]
            if len(head) == MAX_CHUNK_HEAD_BYTES and b"\r\n" not in head:
                raise h11.RemoteProtocolError("a chunk begins with a line that is too long")
        event = super().__call__(buf)
        if isinstance(event, h11.Data) and event.chunk_start:
            self._count += 1
            if self._count > MAX_CHUNKS:
                raise h11.RemoteProtocolError("too many chunks", error_status_hint=413)
        return event


class _Reader(h11.Connection):
    """h11's own, with a bound for what is cheap to say and dear to read.

    Its errors do not lead back to themselves by the frames that raised them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head = Lines()

    def _extract_next_receive_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self._head.check(self.trailing_data[0])
        return super()._extract_next_receive_event()

    def _get_io_object(self, role: Any, event: Any, io_dict: Any) -> Any:
        found = super()._get_io_object(role, event, io_dict)
        return _Chunks() if isinstance(found, ChunkedReader) else found

    def next_event(self) -> Any:
        """What has come."""
        try:
            return super().next_event()
        except h11.RemoteProtocolError as error:
            text, status = str(error), error.error_status_hint
            error.__traceback__ = None
        raise h11.RemoteProtocolError(text, status)


class Http11(H11Protocol):
    """HTTP/1.1 as hypercorn speaks it, with no way from it to HTTP/2."""

    has_ended = False
    """The client has gone, or has had our last word: an app that still answers says it to nobody.

    hypercorn would answer a second time where a first answer was cut in the middle.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        longest = self.config.h11_max_incomplete_size
        self.connection = _Reader(h11.SERVER, max_incomplete_event_size=longest)
        self._unsent = b""
        self._is_last = False

    async def _send_h11_event(self, event: Any) -> None:
        """Send part of an answer: its head in one write with what follows, and no empty rest."""
        if self.has_ended:
            return
        try:
            self._unsent += self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if not isinstance(event, h11.Response):
            await self._flush()

    async def _flush(self) -> None:
        if self._unsent:
            data, self._unsent = self._unsent, b""
            await self.send(RawData(data))

    async def handle(self, event: Event) -> None:
        """Read what has come."""
        self.has_ended |= isinstance(event, Closed)
        stream = self.stream
        is_early = isinstance(stream, WSStream) and not stream.handshake.accepted
        if not isinstance(event, RawData) or not is_early:
            await super().handle(event)
        elif cast(WSStream, stream).state is ASGIWebsocketState.HANDSHAKE:
            # "MUST wait for a response from the server before sending any further data": RFC 6455
            # section 4.1. hypercorn answers 400, leaves the connection open and the app untold.
            await self._refuse(_Refused(400))

    async def _handle_events(self) -> None:
        try:
            await super()._handle_events()
        except _Refused as refused:
            await self._refuse(refused.with_traceback(None))

    async def _refuse(self, refused: _Refused) -> None:
        connection = self.connection
        if isinstance(connection, H11WSConnection):
            connection = connection.h11_connection
        if self.has_ended or connection.our_state is not h11.SEND_RESPONSE:
            return  # the app has begun to answer, and that is the last answer here, too
        no_body = [(b"content-length", b"0"), (b"connection", b"close"), *refused.headers]
        headers = list(chain(no_body, self.config.response_headers("h11")))
        self.has_ended = True  # an app that is about to accept the WebSocket says it to nobody
        await super()._send_h11_event(h11.Response(status_code=refused.status, headers=headers))
        await super()._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        """Refuse what is not HTTP/1, an HTTP/2 preface among it; an upgrade to h2c is ignored.

        A server need not upgrade (RFC 9110 section 7.8), and no carrier asks for it.
        """
        if not event.http_version.startswith(b"1."):
            raise _Refused(505)

    async def _create_stream(self, request: h11.Request) -> None:
        if (target := origin_form(request)) != request.target:
            request = replace(request, target=target)
        if not all(HOST.fullmatch(value) for name, value in request.headers if name == b"host"):
            raise _Refused(400)  # RFC 9112 section 3.2; the router cannot take it either
        connection = cast(h11.Connection, self.connection)
        if (refused := check_upgrade(request, bool(connection.trailing_data[0]))) is not None:
            raise refused
        self._is_last = {name for name, _ in request.headers} >= LENGTHS
        await super()._create_stream(request)
        if isinstance(self.stream, WSStream) and self.stream.closed:
            await self.send(Closed())  # hypercorn has refused the handshake, and leaves it at that

    async def stream_send(self, event: StreamEvent) -> None:
        """Send part of an answer; one that does not wait for the whole request is the last.

        And one to a request that says twice how long it is, each time another way: somebody before
        us may take part of it for the next (RFC 9112 section 6.1).
        """
        if isinstance(event, Response):
            if self._is_last or self.connection.their_state is h11.SEND_BODY:
                event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        elif isinstance(event, StreamClosed):
            await self._flush()  # a head that nothing has followed
        await super().stream_send(event)


def origin_form(request: h11.Request) -> bytes:
    """A request's path and query, with no authority in front (RFC 9112 section 3.2).

    Raises:
        _Refused: It asks for something else: a tunnel, the server as a whole, or nonsense.
    """
    if b"#" in request.target:
        raise _Refused(400)  # a fragment is never sent, and clients of ours would cut it off
    if request.target.startswith(b"/"):
        return request.target
    scheme, _, rest = request.target.partition(b"://")
    if scheme.lower() not in (b"http", b"https"):
        raise _Refused(400)
    authority_chars = len(rest) - len(rest.lstrip(AUTHORITY))
    path = rest[authority_chars:]
    if not authority_chars or path[:1] not in (b"", b"/", b"?"):
        raise _Refused(400)
    return path if path.startswith(b"/") else b"/" + path


def check_upgrade(request: h11.Request, more_has_come: bool) -> _Refused | None:
    """Why a request's opening handshake gets no further (RFC 6455 section 4.2.1); None: it may.

    Args:
        request: Any; one that asks for no WebSocket may always.
        more_has_come: Whether its client has sent more already.
    """
    headers: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        headers.setdefault(name.strip().lower(), []).append(value.strip())
    upgrades = headers.get(b"upgrade", [])
    # hypercorn takes away what is blank in latin-1, too, and has a WebSocket then.
    if "websocket" not in (value.decode("latin-1").strip().lower() for value in upgrades):
        return None
    texts = (v for n in headers if n.startswith(ABOUT_WEBSOCKET) for v in headers[n])
    if upgrades[0].lower() != b"websocket" or len(upgrades) > 1:
        return _Refused(400)
    if not all(value.isascii() for value in chain(texts, headers.get(b"connection", []))):
        return _Refused(400)
    if request.http_version != b"1.1" or request.method != b"GET" or more_has_come:
        return _Refused(400)
    if b"transfer-encoding" in headers or headers.get(b"content-length", [b"0"]) != [b"0"]:
        return _Refused(400)  # a body would be taken for frames
    if not all(_is_key(key) for key in headers.get(b"sec-websocket-key", [b""])):
        return _Refused(400)
    if headers.get(b"sec-websocket-version") != [b"13"]:
        return _Refused(426, (b"sec-websocket-version", b"13"), (b"upgrade", b"websocket"))
    return None


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except binascii.Error:
        return False
