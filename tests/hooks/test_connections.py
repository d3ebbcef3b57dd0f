"""Connections of strangers: what they cannot do to the server, and how long each of them lives."""

from __future__ import annotations

import errno
import gc
import importlib.metadata
import inspect
import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import h11
import hypercorn.protocol.h11
import hypercorn.trio.tcp_server
import pytest
import trio
import trio.testing
import trustme
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from structlog.testing import capture_logs

from benchmarks.load.killers import (
    DATA,
    HOST,
    PREFACE,
    SETTINGS,
    h2_frame,
    h2c,
    priorities,
    settings_of,
)
from benchmarks.ports import free_port
from server.app import create_app
from server.cluster.directory.meeting import AVAILABLE
from server.cluster.directory.meeting import listen as listen_to_us
from server.headroom import MemoryState
from server.hooks.connections import FEWEST, Connection, Doors, Listener
from server.hooks.http11 import MAX_CHUNKS, MAX_HEAD_LINES, Http11, check_upgrade
from server.hooks.hypercorn_worker import serve_worker
from server.hooks.sockets import UNREAD_TIMEOUT_S, is_readable
from server.hooks.turns import MAX_TURN_S, Kind, Turns
from server.serving.listening import listen
from server.settings.settings import Settings
from tests.support.serving import serving

pytestmark = pytest.mark.sockets

UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
STREAM = b"GET /stream HTTP/1.1\r\n" + HOST + UPGRADE

CHUNKED = b"POST /twiml HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
STRANGE: dict[str, tuple[bytes, bytes]] = {
    "a subprotocol above 0x7f": (STREAM + b"Sec-WebSocket-Protocol: \xff\r\n\r\n", b"400"),
    "an extension above 0x7f": (STREAM + b"Sec-WebSocket-Extensions: \xff\r\n\r\n", b"400"),
    "a connection token above 0x7f": (
        STREAM.replace(b"Connection: Upgrade", b"Connection: Upgrade,\xff") + b"\r\n",
        b"400",
    ),
    "a websocket key above 0x7f": (STREAM.replace(b"AAAA==", b"AA\xe4\xb8==") + b"\r\n", b"400"),
    "a version above 0x7f": (STREAM.replace(b": 13", b": \xb3") + b"\r\n", b"400"),
    "a blank of latin-1 behind the upgrade": (
        STREAM.replace(b"websocket\r\n", b"websocket\xa0\r\n") + b"\r\n",
        b"400",
    ),
    "a separator behind the upgrade": (
        STREAM.replace(b"websocket\r\n", b"websocket\x1f\r\n") + b"\r\n",
        b"400",
    ),
    "a blank before it and a strange subprotocol": (
        STREAM.replace(b": websocket", b": \x85websocket")
        + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
        b"400",
    ),
    "two upgrades": (STREAM + b"Upgrade: websocket\r\n\r\n", b"400"),
    "another version": (STREAM.replace(b": 13", b": 12") + b"\r\n", b"426"),
    "no key": (STREAM.replace(b"Sec-WebSocket-Key", b"X-Key") + b"\r\n", b"400"),
    "a short key": (STREAM.replace(b"AAAAAAAAAAAAAAAAAAAAAA==", b"AAAA") + b"\r\n", b"400"),
    "an upgrade of HTTP/1.0": (STREAM.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n", b"400"),
    "an upgrade by POST": (STREAM.replace(b"GET", b"POST") + b"\r\n", b"400"),
    "an upgrade with a body": (STREAM + b"Content-Length: 3\r\n\r\nabc", b"400"),
    "an upgrade in chunks": (STREAM + b"Transfer-Encoding: chunked\r\n\r\n", b"400"),
    "a frame with the upgrade": (STREAM + b"\r\n\x81\x80abcd", b"400"),
    "h2c with settings of bad base64": (h2c(b"A"), b"200"),
    "h2c with short settings": (h2c(b"AAAA"), b"200"),
    "h2c with a wrong value": (h2c(settings_of((2, 7))), b"200"),
    "h2c with settings above 0x7f": (h2c(b"\xff"), b"200"),
    "an HTTP/2 preface": (PREFACE + h2_frame(SETTINGS), b"505"),
    "HTTP/2 with a flood of priorities": (
        PREFACE + priorities(2_000),
        b"505",
    ),
    "HTTP/2 with late data": (PREFACE + h2_frame(DATA, b"x" * 10, stream=1), b"505"),
    "HTTP/2 in words": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", b"505"),
    "HTTP/0.9 in words": (b"GET / HTTP/0.9\r\n" + HOST + b"\r\n", b"505"),
    "TLS": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(100) + b"\r\n\r\n", b"400"),
    "a path above 0x7f": (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "a path of escapes": (b"GET /%ff%00%0d%0aX HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "a fragment": (b"GET /healthz?a#b HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "an upgrade with a fragment": (STREAM.replace(b"/stream", b"/stream#a") + b"\r\n", b"400"),
    "no path at all": (b"GET ? HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "a path without a slash": (b"GET healthz HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "half an address": (b"GET http://[::1/healthz HTTP/1.1\r\n" + HOST + b"\r\n", b"200"),
    "an address": (b"GET http://x:80/healthz?a HTTP/1.1\r\n" + HOST + b"\r\n", b"200"),
    "an address of nobody": (b"GET http:///healthz HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "the server as a whole": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "a tunnel": (b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "a host too long for a name": (
        b"GET /healthz HTTP/1.1\r\nHost: " + b"a" * 64 + b"\r\n\r\n",
        b"400",
    ),
    "a host with nothing between dots": (b"GET /healthz HTTP/1.1\r\nHost: a..b\r\n\r\n", b"400"),
    "a host above 0x7f": (b"GET /healthz HTTP/1.1\r\nHost: \xff\r\n\r\n", b"400"),
    "a host of spaces": (b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n", b"400"),
    "an IPv6 host": (b"GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"200"),
    "a host with a last dot and a port": (
        b"GET /healthz HTTP/1.1\r\nHost: a-b.c.:80\r\n\r\n",
        b"200",
    ),
    "no host": (b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", b"200"),
    "as many lines as there may be": (
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"a:\r\n" * (MAX_HEAD_LINES - 2) + b"\r\n",
        b"200",
    ),
    "a line more": (
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"a:\r\n" * (MAX_HEAD_LINES - 1) + b"\r\n",
        b"431",
    ),
    "lines without their return": (b"GET / HTTP/1.1\n" + b"a:\n" * 20_000 + b"\n", b"431"),
    "one line folded into many": (
        b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" + b" c\r\n" * 10_000 + b"\r\n",
        b"431",
    ),
    "a line folded in two": (
        b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n " + b" " * 8_000 + b"c\r\n\r\n",
        b"400",
    ),
    "a chunk's first line that is long": (CHUNKED + b"1;" + b" " * 60_000 + b"\n\r\n", b"400"),
    "lines that do not end": (b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 200, b"431"),
    "a long line": (b"GET / HTTP/1.1\r\nCookie: " + b"a=b;" * 2_500 + b"\r\n\r\n", b"431"),
    "a long target": (b"GET /healthz?" + b"a&" * 5_000 + b" HTTP/1.1\r\n" + HOST, b"414"),
    "many lines on a kept connection": (
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\nGET / HTTP/1.1\r\n" + b"a:\r\n" * 200,
        b"200",
    ),
    "many lines behind a body": (
        CHUNKED + b"1\r\nx\r\n0\r\n" + b"a:\r\n" * 10_000 + b"\r\n",
        b"431",
    ),
    "a body in as many chunks as there may be": (
        CHUNKED + b"1\r\nx\r\n" * MAX_CHUNKS + b"0\r\na: b\r\n\r\n",
        b"403",
    ),
    "a chunk more": (CHUNKED + b"1\r\nx\r\n" * (MAX_CHUNKS + 1) + b"0\r\n\r\n", b"413"),
    "a body of nothing but small chunks": (CHUNKED + b"1\r\nx\r\n" * 60_000, b"413"),
    "two slashes": (b"GET //healthz HTTP/1.1\r\n" + HOST + b"\r\n", b"200"),
    "a proxy's line": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n", b"400"),
}


async def _ask(address: tuple[str, int], *segments: bytes) -> bytes:
    """Send this and read until the connection is closed."""
    answer = b""
    with trio.fail_after(20):
        async with await trio.open_tcp_stream(*address) as client:
            with suppress(trio.BrokenResourceError):
                for segment in segments:
                    await client.send_all(segment)
                while received := await client.receive_some():
                    answer += received
                    is_whole = answer.rstrip().endswith(b"}")
                    if is_whole and b"connection: close" not in answer.lower():
                        break  # it would wait for the next request
    return answer


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_strange_connections_are_answered_and_end_and_others_are_served(media_path):
    answers: dict[str, bytes] = {}
    async with serving(media_path=media_path) as server:
        address = ("127.0.0.1", server.http.base_url.port)
        for name, (data, _) in STRANGE.items():
            answers[name] = await _ask(address, data)
            assert (await server.http.get("/healthz")).status_code == 200, name

    assert {name: answer[9:12] for name, answer in answers.items()} == {
        name: status for name, (_, status) in STRANGE.items()
    }


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_who_leaves_in_the_middle_of_a_handshake_is_no_error(media_path):
    with capture_logs() as lines:
        async with serving(media_path=media_path) as server:
            await _leave_in_the_middle(server)

    assert [line for line in lines if line["log_level"] == "error"] == []


async def _leave_in_the_middle(server) -> None:
    address = ("127.0.0.1", server.http.base_url.port)
    asked = b"GET /twiml HTTP/1.1\r\n" + HOST + b"\r\n"
    for data in (STREAM, STREAM + b"\r\n", STREAM + b"\r\n\x81", asked):
        for reset in (False, True):
            client = await trio.open_tcp_stream(*address)
            await client.send_all(data)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await client.aclose()
    assert (await server.http.get("/healthz")).status_code == 200


# ------------------------------------------------------------------------------------------
# With an app of a few lines


def test_this_is_the_hypercorn_that_connections_were_written_for():
    assert importlib.metadata.version("hypercorn").startswith("0.18.")
    protocol = inspect.getsource(hypercorn.protocol.h11.H11Protocol)
    for called in ("_check_protocol(event)", "_create_stream(event)", "self.send(Closed())"):
        assert called in protocol, called
    for name in ("run", "_read_data", "_close", "protocol_send"):
        assert name in vars(hypercorn.trio.tcp_server.TCPServer), name
        assert name in vars(Connection), name


@asynccontextmanager
async def _served(
    app: Callable[..., Awaitable[None]], listener: socket.socket | None = None, **settings: object
) -> AsyncGenerator[tuple[str, int]]:
    async def whole_app(scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
        else:
            await app(scope, receive, send)

    listener = listener or listen("127.0.0.1", 0)
    address = listener.getsockname()
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    config.graceful_timeout = 0.1
    for name, value in settings.items():
        setattr(config, name, value)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_worker, wrap_app(whole_app, 2**16, "asgi"), config)
        yield address
        nursery.cancel_scope.cancel()


async def _answer(send, status: int = 200, body: bytes = b"{}") -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _reads_nothing(scope, receive, send) -> None:
    await _answer(send, 413)


async def _reads_all(scope, receive, send) -> None:
    while (await receive()).get("more_body"):
        pass
    await _answer(send)


async def _fails(scope, receive, send) -> None:
    raise RuntimeError("a bug")


async def _answers_twice(scope, receive, send) -> None:
    await _answer(send)
    await _answer(send)


async def _begins_and_fails(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("a bug")


def _writes_of(monkeypatch) -> list[bytes]:
    """What connections write from now on, write by write."""
    written: list[bytes] = []
    send_all = trio.SocketStream.send_all

    async def noting(self: trio.SocketStream, data: bytes) -> None:
        if data[:5] != b"GET /":  # the client's own
            written.append(bytes(data))
        await send_all(self, data)

    monkeypatch.setattr(trio.SocketStream, "send_all", noting)
    return written


async def test_a_short_answer_is_one_write(monkeypatch):
    written = _writes_of(monkeypatch)

    async with _served(_reads_all) as address:
        answer = await _ask(address, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")

    assert answer.endswith(b"{}")
    assert written == [answer]


async def test_a_head_that_nothing_follows_is_written_all_the_same(monkeypatch):
    written = _writes_of(monkeypatch)

    async with _served(_begins_and_fails) as address:
        answer = await _ask(address, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")

    assert answer.startswith(b"HTTP/1.1 200")
    assert written == [answer]


class _Reader:
    """A client that takes so many bytes a second, until it has taken some; and its stream."""

    def __init__(self, bytes_per_s: int, most: int = sys.maxsize) -> None:
        self._bytes_per_s, self._most = bytes_per_s, most
        self.taken = bytearray()

    async def send_all(self, data: bytes | memoryview) -> None:
        for start in range(0, len(data), 16 * 1024):
            if len(self.taken) >= self._most:
                await trio.sleep_forever()
            await trio.sleep(16 * 1024 / self._bytes_per_s)
            self.taken += data[start : start + 16 * 1024]


def _answering(reader: _Reader) -> tuple[Connection, list[Event]]:
    """A connection to a client, and what its protocol is told."""
    told: list[Event] = []

    class Protocol:
        async def handle(self, event: Event) -> None:
            told.append(event)

    connection = Connection(
        Doors(), None, Config(), WorkerContext(None), ConnectionState({}), reader
    )
    connection.protocol = Protocol()
    return connection, told


LONG = os.urandom(1_500_000)


async def test_a_client_that_reads_slowly_but_steadily_has_its_whole_answer(autojump_clock):
    connection, told = _answering(reader := _Reader(16 * 1024))

    await connection.protocol_send(RawData(LONG))

    assert trio.current_time() > 4 * UNREAD_TIMEOUT_S
    assert reader.taken == LONG
    assert told == []


@pytest.mark.parametrize("taken", [0, 640 * 1024])
async def test_a_client_that_takes_nothing_or_nothing_more_is_cut(autojump_clock, taken):
    connection, told = _answering(reader := _Reader(64 * 1024, taken))
    began_at = trio.current_time()

    await connection.protocol_send(RawData(LONG))

    assert trio.current_time() - began_at == pytest.approx(UNREAD_TIMEOUT_S + taken / (64 * 1024))
    assert len(reader.taken) == taken
    assert told == [Closed()]


@pytest.mark.parametrize(("bytes_per_s", "is_whole"), [(512 * 1024, True), (16 * 1024, False)])
async def test_whoever_is_to_end_finishes_its_message_and_waits_for_no_slow_reader(
    autojump_clock, bytes_per_s, is_whole
):
    connection, _ = _answering(reader := _Reader(bytes_per_s))

    with trio.move_on_after(1.0):
        await connection.protocol_send(RawData(LONG))

    assert trio.current_time() <= 1.0 + UNREAD_TIMEOUT_S
    assert (reader.taken == LONG) is is_whole


async def test_the_app_cuts_no_long_answer_that_is_read_slowly_but_steadily(autojump_clock):
    connection, _ = _answering(reader := _Reader(8 * 1024))
    app = create_app(Settings.load(_env_file=None, api_key="sesame", public_url="https://test"))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": "/long", "raw_path": b"/long", "query_string": b"",
        "root_path": "", "headers": [(b"host", b"test"), (b"x-api-key", b"sesame")],
        "client": ("203.0.113.9", 1), "server": ("127.0.0.1", 8000), "extensions": {}, "state": {},
    }  # fmt: skip
    request = iter([{"type": "http.request", "body": b"", "more_body": False}])

    @app.get("/long")
    async def long() -> bytes:
        return LONG

    async def receive() -> dict:
        if (event := next(request, None)) is None:
            await trio.sleep_forever()  # the client stays
        return event

    async def send(event: dict) -> None:
        await connection.protocol_send(RawData(event.get("body", b"")))

    await app(scope, receive, send)

    assert trio.current_time() > 180
    assert reader.taken == LONG


async def test_a_long_answer_comes_whole_over_tls(certificates):
    async def app(scope, receive, send) -> None:
        await _answer(send, body=LONG)

    files, context = certificates
    async with _served(app, **files) as address:
        client = await trio.open_ssl_over_tcp_stream(
            *address, ssl_context=context, https_compatible=True
        )
        with trio.fail_after(60):
            await client.send_all(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            answer = b""
            while piece := await client.receive_some():
                answer += piece
            await client.aclose()

    assert answer.endswith(b"\r\n\r\n" + LONG)


async def test_an_answer_before_the_body_has_come_is_announced_as_the_last():
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 500000\r\n\r\n"
    async with _served(_reads_nothing) as address:
        answer = await _ask(address, head + b"x" * 400_000)

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    assert answer.endswith(b"{}")  # no reset has taken it away


async def test_a_request_that_says_its_length_in_two_ways_is_the_last():
    both = HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 8\r\n\r\n0\r\n\r\n"
    again = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    async with _served(_reads_nothing) as address:
        answer = await _ask(address, b"POST / HTTP/1.1\r\n" + both + again)

    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer.lower()


async def test_a_body_that_came_with_its_head_keeps_the_connection():
    request = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
    async with _served(_reads_nothing) as address:
        answer = await _ask(address, request)

    assert b"connection: close" not in answer.lower()


async def test_a_body_in_more_pieces_than_an_app_takes_does_not_keep_the_connection_open():
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    async with _served(_reads_nothing) as address:
        answer = await _ask(address, head, *[b"1\r\nx\r\n" * 1000] * 5)

    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("app", [_fails, _answers_twice])
async def test_an_app_that_fails_ends_its_own_connection_and_is_logged_once(app):
    with capture_logs() as lines:
        async with _served(app) as address:
            for _ in range(20):
                await _ask(address, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")

    assert [line["event"] for line in lines] == ["connection ended by a bug of ours"]


async def _answers_when_cancelled(scope, receive, send) -> None:
    try:
        await trio.sleep_forever()
    finally:
        await _answer(send)


async def test_a_client_that_resets_its_connection_is_answered_by_nobody():
    with capture_logs() as lines:
        async with _served(_answers_when_cancelled) as address:
            client = await trio.open_tcp_stream(*address)
            await client.send_all(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
            await trio.testing.wait_all_tasks_blocked(0.01)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await client.aclose()
            await trio.testing.wait_all_tasks_blocked(0.01)

    assert lines == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
        b"GET ? HTTP/1.1\r\n" + HOST + b"\r\n",
        STREAM.replace(b"13", b"8") + b"\r\n",
        b"\0\r\n\r\n",
        PREFACE,
    ],
    ids=["answered", "no path", "a refused upgrade", "no HTTP", "HTTP/2"],
)
async def test_a_connection_that_has_ended_leaves_nothing_to_the_garbage_collector(data):
    # While there are calls, that looks through everything every two minutes only.
    async with _served(_reads_all) as address:
        await _ask(address, data)
        await trio.testing.wait_all_tasks_blocked(0.01)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await _ask(address, data)
            await trio.testing.wait_all_tasks_blocked(0.01)
            left = gc.collect()
        finally:
            gc.enable()

    assert left < 20


EARLY_FRAME = b"\x81\x80abcd"


async def test_a_handshake_that_is_being_refused_is_not_accepted_meanwhile():
    async def accept(protocol: Http11) -> None:
        await protocol.stream.app_send({"type": "websocket.accept"})

    protocol, sent = _asked_for_websocket(accept)
    await protocol.handle(RawData(data=STREAM + b"\r\n"))
    await protocol.handle(RawData(data=EARLY_FRAME))

    assert _said(sent).startswith(b"HTTP/1.1 400")
    assert _said(sent).count(b"HTTP/1.1") == 1
    assert isinstance(sent[-1], Closed)


async def test_a_handshake_that_its_app_is_refusing_is_not_refused_twice():
    async def send_early(protocol: Http11) -> None:
        await protocol.handle(RawData(data=EARLY_FRAME))

    protocol, sent = _asked_for_websocket(send_early)
    await protocol.handle(RawData(data=STREAM + b"\r\n"))
    start = {"type": "websocket.http.response.start", "status": 403, "headers": []}
    await protocol.stream.app_send(start)
    await protocol.stream.app_send({"type": "websocket.http.response.body", "body": b"no"})

    assert _said(sent).startswith(b"HTTP/1.1 403")
    assert _said(sent).count(b"HTTP/1.1") == 1


def _asked_for_websocket(
    meanwhile: Callable[[Http11], Awaitable[None]],
) -> tuple[Http11, list[Event]]:
    """A protocol without a socket, and what it sends; while it sends the first of that, this."""
    sent: list[Event] = []

    async def send(event: Event) -> None:
        sent.append(event)
        if len(sent) == 2:  # the first tells that the connection is not idle
            await meanwhile(protocol)

    protocol = Http11(
        None, Config(), WorkerContext(None), _Asked(), ConnectionState({}), False, None, None, send
    )
    return protocol, sent


def _said(sent: list[Event]) -> bytes:
    return b"".join(event.data for event in sent if isinstance(event, RawData))


class _Asked:
    """hypercorn's task group, whose app takes all that it is told."""

    async def spawn_app(self, app, config, scope, send):
        async def told(event) -> None:
            pass

        return told


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET",
        PREFACE[:10],
        b"GET / HTTP/1.1\r\n" + HOST,
        b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",  # and then nothing
    ],
)
async def test_a_connection_that_brings_no_request_is_closed_in_time(data):
    async with _served(_reads_all, keep_alive_timeout=0.05) as address, trio.open_nursery():
        with trio.fail_after(20):
            async with await trio.open_tcp_stream(*address) as client:
                if data:
                    await client.send_all(data)
                while await client.receive_some():
                    pass


async def _send_bytes(client: trio.SocketStream) -> None:
    """Send a byte now and then, until the connection is reset."""
    for _ in range(1_000):
        await client.send_all(b"x")
        await trio.sleep(0.01)


async def test_a_head_that_comes_byte_by_byte_has_no_longer_than_another():
    async with _served(_reads_all, keep_alive_timeout=0.2) as address:
        with trio.fail_after(20):
            async with await trio.open_tcp_stream(*address) as client:
                with pytest.raises(trio.BrokenResourceError):
                    await _send_bytes(client)


async def test_a_request_that_waits_unread_is_no_idle_connection(monkeypatch):
    """All turns are taken for longer than a connection may be idle."""
    asked = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    turns = trio.lowlevel.ParkingLot()
    take = Turns.take

    async def take_late(self: Turns, kind: Kind) -> bool:
        await turns.park()
        return await take(self, kind)

    monkeypatch.setattr(Turns, "take", take_late)
    async with _served(_reads_all, keep_alive_timeout=1.0) as address:
        with trio.fail_after(20):
            async with await trio.open_tcp_stream(*address) as client:
                await client.send_all(asked)
                while not turns:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                await trio.sleep(1.1)
                turns.unpark_all()

                assert (await client.receive_some()).startswith(b"HTTP/1.1 200")


async def test_what_has_come_when_its_time_is_over_is_read_before_it_is_judged():
    """The loop is held up for longer than a connection may be idle."""
    asked = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    async with _served(_reads_all, keep_alive_timeout=2.0) as address:
        with trio.fail_after(20):
            async with await trio.open_tcp_stream(*address) as client:
                await client.send_all(asked[:9])
                await trio.testing.wait_all_tasks_blocked()
                client.socket._sock.send(asked[9:])
                time.sleep(2.1)  # noqa: ASYNC251

                assert (await client.receive_some()).startswith(b"HTTP/1.1 200")


async def test_an_act_that_would_wait_too_long_for_its_turn_is_told_when_to_come_back(monkeypatch):
    monkeypatch.setattr(Turns, "wait_s", lambda self, kind: 9.0 if kind is Kind.ACT else 0.0)
    head = b" / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
    with trio.fail_after(20):
        async with _served(_reads_all) as address:
            act = await _ask(address, b"POST" + head + b"Content-Length: 1\r\n\r\nx")
            look = await _ask(address, b"GET" + head + b"\r\n")

    assert act.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 8\r\n" in act
    assert look.startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(not AVAILABLE, reason="needs Unix sockets")
async def test_what_another_process_passes_on_has_had_its_wait_already(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a Unix socket's path is short
    monkeypatch.setattr(Turns, "wait_s", lambda self, kind: 9.0 if kind is Kind.ACT else 0.0)
    act = b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 1\r\n\r\nx"
    answer = b""
    with trio.fail_after(20):
        async with (
            _served(_reads_all, listen_to_us(Path("1.http"))) as path,
            await trio.open_unix_socket(path) as client,
        ):
            await client.send_all(act)
            while received := await client.receive_some():
                answer += received

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "odd", [errno.EPERM, errno.EPROTO, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENETDOWN]
)
async def test_a_client_that_cannot_be_accepted_ends_nothing_but_itself(odd):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = Listener(listeners[0].socket._sock, Doors())
    listener._sock = _Odd(listener._sock, odd)
    with trio.fail_after(20):
        async with await trio.open_tcp_stream(*listeners[0].socket.getsockname()):
            accepted = await listener.accept()

    await accepted.aclose()
    await listeners[0].aclose()


class _Odd:
    """A socket whose first client cannot be accepted."""

    def __init__(self, sock: socket.socket, error: int) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self._errors = [error]

    def accept(self) -> tuple[socket.socket, object]:
        if self._errors:
            raise OSError(self._errors.pop(), "not this one")
        return self._sock.accept()


async def test_those_who_wait_to_be_accepted_are_accepted_together():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = Listener(listeners[0].socket._sock, Doors())
    address = listeners[0].socket.getsockname()
    clients = [await trio.open_tcp_stream(*address) for _ in range(3)]
    with trio.fail_after(20):
        accepted = [await listener.accept() for _ in range(3)]

    for stream in (*clients, *accepted):
        await stream.aclose()
    await listeners[0].aclose()
    assert len(accepted) == 3


async def test_a_refused_client_that_does_not_close_is_closed(monkeypatch):
    monkeypatch.setattr("server.hooks.connections.LINGER_S", 0.05)
    with trio.fail_after(20):
        async with (
            _served(_reads_all) as address,
            await trio.open_tcp_stream(*address) as client,
        ):
            await client.send_all(b"nonsense\r\n\r\n")
            while await client.receive_some():
                pass
            with pytest.raises(trio.BrokenResourceError):
                await _send_bytes(client)


@pytest.fixture
def certificates(tmp_path):
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    files = {"certfile": str(tmp_path / "cert.pem"), "keyfile": str(tmp_path / "key.pem")}
    return files, context


async def test_over_tls_only_http_1_1_is_offered(certificates):
    files, context = certificates
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with _served(_reads_all, **files) as address:
        client = await trio.open_ssl_over_tcp_stream(
            *address, ssl_context=context, https_compatible=True
        )
        async with client:
            with trio.fail_after(20):
                await client.send_all(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
                answer = await client.receive_some()
            chosen = client.selected_alpn_protocol()

    assert chosen == "http/1.1"
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\xff" + b"\xff" * 255]
)
async def test_a_tls_handshake_that_does_not_come_is_closed_in_time(certificates, data):
    files, _ = certificates
    async with _served(_reads_all, keep_alive_timeout=0.05, **files) as address:
        await _ask(address, data)
        await _ask(address, data)


# ------------------------------------------------------------------------------------------
# When descriptors are short


@pytest.fixture
def doors(monkeypatch):
    monkeypatch.setattr("server.hooks.connections.descriptors_for_all", lambda: 60)
    return Doors()


class _Silent:
    """A connection that waits for a request, and from whose client nothing has come."""

    is_asked = False

    def has_unread(self) -> bool:
        return self.is_asked


@pytest.fixture
def free():
    """A listener that accepts nobody by itself."""
    with listen("127.0.0.1", 0) as sock:
        sock.setblocking(False)
        yield sock


async def test_where_descriptors_are_short_the_longest_idle_connection_goes(doors):
    scopes = [trio.CancelScope() for _ in range(3)]
    for scope in scopes:
        doors.wait(scope)
    doors.wait_no_more(scopes[0])  # it has brought a request

    assert doors.admit(59)
    assert [scope.cancel_called for scope in scopes] == [False, False, False]
    assert doors.admit(60)
    assert [scope.cancel_called for scope in scopes] == [False, True, False]
    assert doors.admit(60)
    assert not doors.admit(60)  # nobody is left who could go


async def test_who_has_been_sent_away_and_is_not_gone_yet_leaves_a_place_for_one_more(doors, free):
    scopes = [trio.CancelScope() for _ in range(3)]
    for scope in scopes:
        doors.wait(scope, who := _Silent())

    doors.make_room(free)  # as there was no descriptor to accept with

    assert [scope.cancel_called for scope in scopes] == [True, True, True]
    assert [doors.admit(60) for _ in range(4)] == [True, True, True, False]
    doors.gone(who)
    assert not doors.admit(60)


async def test_nobody_is_closed_unheard_while_those_who_were_sent_away_are_on_their_way_out(
    autojump_clock, doors, free
):
    doors.keep_spare()
    doors.wait(trio.CancelScope(), leaves := _Silent())
    doors.make_room(free)
    with socket.create_connection(free.getsockname()) as client:
        client.setblocking(False)
        await trio.sleep(0.5)
        doors.make_room(free)
        await trio.sleep(0.01)
        with pytest.raises(BlockingIOError):
            client.recv(1)

        doors.gone(leaves)
        doors.make_room(free)

        await trio.lowlevel.wait_readable(client)
        assert client.recv(1) == b""
    doors.close()


async def test_whoever_has_said_something_that_waits_for_its_turn_is_not_sent_away(doors):
    heard, idle = trio.CancelScope(), trio.CancelScope()
    doors.wait(heard)
    doors.wait(idle)

    with doors.hearing(heard):
        assert doors.admit(60)
        assert not doors.admit(60)

    assert [heard.cancel_called, idle.cancel_called] == [False, True]
    assert doors.admit(60)
    assert heard.cancel_called


async def test_whoever_has_said_something_that_is_yet_to_be_read_is_not_sent_away(doors):
    asks, idle = trio.CancelScope(), trio.CancelScope()
    doors.wait(asks, client := _Silent())
    doors.wait(idle, _Silent())
    client.is_asked = True

    assert doors.admit(60)
    assert not doors.admit(60)

    assert [asks.cancel_called, idle.cancel_called] == [False, True]
    client.is_asked = False
    assert doors.admit(60)
    assert asks.cancel_called


async def test_who_says_a_request_bit_by_bit_keeps_no_place_by_it(doors):
    doors.wait(trickles := trio.CancelScope(), client := _Silent())
    client.is_asked = True
    assert not doors.admit(60)

    doors.heard(trickles)

    with doors.hearing(trickles):
        assert doors.admit(60)
    assert trickles.cancel_called


async def test_who_has_had_an_answer_and_asks_again_is_heard_again(doors):
    doors.wait(asks := trio.CancelScope(), client := _Silent())
    doors.heard(asks)
    doors.wait_no_more(asks)
    doors.wait(asks, client)
    client.is_asked = True

    assert not doors.admit(60)
    assert not asks.cancel_called


@pytest.mark.slow
async def test_nobody_is_held_for_long_because_others_wait_for_their_turn(doors, crowded):
    accepted, is_closed = crowded
    doors.wait(heard := trio.CancelScope())
    with doors.hearing(heard):
        assert not await is_closed()
        await trio.sleep(MAX_TURN_S)

        assert await is_closed()
    assert accepted == []


async def test_a_bug_in_one_connection_does_not_keep_others_from_coming_in(doors):
    doors.wait(broken := trio.CancelScope(), object())

    with capture_logs() as lines:
        assert doors.admit(60)

    assert broken.cancel_called
    assert [line["log_level"] for line in lines] == ["error"]


async def test_who_ends_while_the_last_of_the_answer_is_written_leaves_no_place_taken(
    monkeypatch, nursery
):
    made: list[Doors] = []
    monkeypatch.setattr(
        "server.hooks.hypercorn_worker.Doors", lambda: made.append(Doors()) or made[0]
    )

    async def app(scope, receive, send) -> None:
        headers = [(b"content-length", b"0"), (b"x", b"y" * 4000)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    listener = listen("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    async with _served(app, listener) as address:
        with trio.fail_after(60), trio.socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await client.connect(address)
            while not made[0]._waiting:  # noqa: ASYNC110
                await trio.sleep(0.01)
            while made[0]._waiting:  # until an answer is stuck on its way
                await client.send(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
                await trio.sleep(0.02)
            client.shutdown(socket.SHUT_WR)
            await trio.sleep(0.1)
            while await client.recv(65536):
                pass
        await trio.testing.wait_all_tasks_blocked()

        assert made[0]._waiting == {}


@pytest.fixture
async def crowded(autojump_clock, nursery, doors, free):
    """Whoever comes needs the place of somebody else; two clients come when one is asked for."""
    doors._most = 0
    accepted: list[trio.SocketStream] = []
    is_prepared = trio.Event()

    async def accept() -> None:
        await is_prepared.wait()
        listener = Listener(free, doors)
        while True:
            accepted.append(await listener.accept())

    with (
        socket.create_connection(free.getsockname()) as first,
        socket.create_connection(free.getsockname()) as second,
    ):
        for client in (first, second):
            client.setblocking(False)

        async def is_closed() -> bool:
            """Whether one of the clients has been closed, a second from now."""
            is_prepared.set()
            await trio.sleep(1.0)
            for client in (first, second):
                with suppress(BlockingIOError):
                    return client.recv(1) == b""
            return False

        nursery.start_soon(accept)
        yield accepted, is_closed
    for stream in accepted:
        await trio.aclose_forcefully(stream)


async def test_a_place_for_one_is_not_given_to_two_who_come_together(doors, crowded):
    accepted, is_closed = crowded
    heard, idle = trio.CancelScope(), trio.CancelScope()
    doors.wait(heard)
    doors.wait(idle)
    with doors.hearing(heard):
        assert not await is_closed()
        assert len(accepted) == 1
        doors.begin()
        assert not await is_closed()
        assert len(accepted) == 1

    assert not await is_closed()

    assert len(accepted) == 2
    assert [heard.cancel_called, idle.cancel_called] == [True, True]


async def test_who_comes_while_all_that_were_said_waits_for_its_turn_is_let_in_after_it(
    doors, crowded
):
    accepted, is_closed = crowded
    scopes = [trio.CancelScope() for _ in range(2)]
    for scope in scopes:
        doors.wait(scope)
    with doors.hearing(scopes[0]), doors.hearing(scopes[1]):
        assert not await is_closed()
        assert accepted == []

    assert not await is_closed()

    assert len(accepted) == 2


async def test_who_comes_right_behind_another_waits_until_that_one_has_begun(doors, crowded):
    accepted, is_closed = crowded
    doors.wait(trio.CancelScope())
    assert not await is_closed()
    assert len(accepted) == 1

    doors.begin()
    doors.wait(trio.CancelScope())
    assert not await is_closed()

    assert len(accepted) == 2


async def test_where_everybody_keeps_their_place_who_comes_is_closed(doors, crowded):
    accepted, is_closed = crowded

    assert await is_closed()

    assert accepted == []


async def test_who_waits_for_a_place_has_one_that_has_become_free(doors, crowded, monkeypatch):
    accepted, is_closed = crowded
    doors.wait(heard := trio.CancelScope())
    with doors.hearing(heard):
        assert not await is_closed()
        assert accepted == []

        doors._most = 60
        monkeypatch.setattr("server.hooks.connections.lowest_free_descriptor", lambda: 59)
        assert not await is_closed()

    assert len(accepted) == 2


async def test_no_descriptor_for_nobody_sends_nobody_away(nursery, autojump_clock, doors, free):
    doors.wait(scope := trio.CancelScope(), _Silent())
    listener = Listener(free, doors)
    listener._sock = _Exhausted(free)
    nursery.start_soon(listener.accept)
    await trio.testing.wait_all_tasks_blocked()

    assert not scope.cancel_called
    nursery.cancel_scope.cancel()


async def test_what_has_come_when_it_is_accepted_is_answered_though_places_are_short(monkeypatch):
    made: list[Doors] = []
    monkeypatch.setattr(
        "server.hooks.hypercorn_worker.Doors", lambda: made.append(Doors()) or made[0]
    )
    receive_some = trio.SocketStream.receive_some

    async def receive_while_others_come(self: trio.SocketStream, size: int) -> bytes | bytearray:
        data = await receive_some(self, size)
        assert not made[0].admit(None)
        return data

    listener = listen("127.0.0.1", 0)
    with socket.create_connection(listener.getsockname()) as client, trio.fail_after(20):
        client.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        client.setblocking(False)
        monkeypatch.setattr(trio.SocketStream, "receive_some", receive_while_others_come)
        async with _served(_reads_all, listener):
            await trio.lowlevel.wait_readable(client)
            answer = client.recv(1000)

    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_where_memory_is_short_fewer_connections_may_wait(monkeypatch):
    state = MemoryState(left_bytes=0, used_bytes=0, limit="cgroup")
    monkeypatch.setattr("server.hooks.connections.memory_state", lambda: state)
    doors = Doors()
    scopes = [trio.CancelScope() for _ in range(FEWEST)]
    for scope in scopes:
        assert doors.admit(10)
        doors.wait(scope)

    assert doors.admit(10)

    assert [scope.cancel_called for scope in scopes] == [True] + [False] * (FEWEST - 1)


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n"])
async def test_whoever_leaves_a_body_half_said_is_sent_away_like_who_says_nothing(
    monkeypatch, more
):
    made: list[Doors] = []
    monkeypatch.setattr(
        "server.hooks.hypercorn_worker.Doors", lambda: made.append(Doors()) or made[0]
    )
    asked: list[str] = []

    async def app(scope, receive, send) -> None:
        asked.append(scope["type"])
        await _reads_all(scope, receive, send)

    def both_are_waited_for() -> bool:
        doors = made[0]
        return asked.count("http") == 2 and len(doors._waiting.keys() - doors._unheard) == 2

    head = b"POST / HTTP/1.1\r\n" + HOST + more + b"Content-Length: 3\r\n\r\n"
    with trio.fail_after(20):
        async with (
            _served(app) as address,
            await trio.open_tcp_stream(*address) as whole,
            await trio.open_tcp_stream(*address) as half,
        ):
            await whole.send_all(head + b"abc")
            while b"200" not in await whole.receive_some():
                pass
            await half.send_all(head)
            while not both_are_waited_for():  # noqa: ASYNC110
                await trio.sleep(0.01)

            assert made[0].admit(1_000_000)  # the one that is idle
            assert made[0].admit(1_000_000)  # the one that has said half

            with suppress(trio.BrokenResourceError):
                while await half.receive_some():
                    pass


class _Exhausted:
    """A listening socket for which there is no descriptor until somebody comes, and once more."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self._is_short = True

    def accept(self) -> tuple[socket.socket, object]:
        if self._is_short:
            self._is_short = not is_readable(self.fileno())
            raise OSError(errno.EMFILE, "too many open files")
        return self._sock.accept()


async def test_a_listener_without_descriptors_closes_who_waits_and_goes_on(nursery, doors):
    accepted: list[trio.SocketStream] = []
    came = trio.Event()
    doors.keep_spare()
    with listen("127.0.0.1", 0) as sock:
        sock.setblocking(False)
        listener = Listener(sock, doors)
        listener._sock = _Exhausted(sock)

        async def accept() -> None:
            accepted.append(await listener.accept())
            came.set()

        nursery.start_soon(accept)
        with trio.fail_after(20):
            async with await trio.open_tcp_stream(*sock.getsockname()) as first:
                with suppress(trio.BrokenResourceError):
                    assert await first.receive_some() == b""
            async with await trio.open_tcp_stream(*sock.getsockname()):
                await came.wait()
        await accepted[0].aclose()
    doors.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs ulimit")
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"POST /twiml HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\na=",
        b"POST /twiml HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n",
    ],
    ids=["nothing", "half a body", "no body yet"],
)
@pytest.mark.slow
async def test_more_idle_sockets_than_descriptors_do_not_end_the_service(nursery, said):
    port = free_port()
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = kept | {"PORT": str(port), "DATABASE_URL": "sqlite://", "LOG_LEVEL": "ERROR"}
    environment["MAX_LOOP_LAG_S"] = "60"  # a machine that is busy with something else
    command = f'ulimit -n 128; exec "{sys.executable}" -m server'
    run = partial(trio.run_process, ["sh", "-c", command], env=environment, check=False)
    process = await nursery.start(run)
    idle: list[trio.SocketStream] = []
    answers: list[bytes] = []
    with trio.fail_after(60):
        while not idle:
            with suppress(OSError):
                idle.append(await trio.open_tcp_stream("127.0.0.1", port))
            await trio.sleep(0.05)
        for _ in range(200):
            idle.append(await trio.open_tcp_stream("127.0.0.1", port))
            with suppress(trio.BrokenResourceError):
                await idle[-1].send_all(said)
        while [answer[9:12] for answer in answers[-10:]] != [b"200"] * 10:
            answers.append(
                await _ask(("127.0.0.1", port), b"GET /readyz HTTP/1.1\r\n" + HOST + b"\r\n")
            )
    for client in idle:
        await trio.aclose_forcefully(client)
    process.terminate()

    # Until the first of the others are let go of there may be too few for a call, and it says so.
    assert [answer for answer in answers if answer[9:12] not in (b"200", b"503")] == []


# ------------------------------------------------------------------------------------------
# Opening handshakes, without a socket


def _request(**changed: bytes | None) -> h11.Request:
    headers = {
        b"host": b"x",
        b"connection": b"keep-alive, Upgrade",
        b"upgrade": b"WebSocket",
        b"sec-websocket-version": b"13",
        b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
    } | {name.replace("_", "-").encode(): value for name, value in changed.items()}
    kept = [(name, value) for name, value in headers.items() if value is not None]
    return h11.Request(method=b"GET", target=b"/stream", headers=kept)


def test_a_handshake_as_the_standard_has_it_may_go_on():
    assert check_upgrade(_request(), False) is None
    assert check_upgrade(_request(sec_websocket_protocol=b"audio.twilio"), False) is None
    assert check_upgrade(_request(upgrade=None), True) is None  # an ordinary request


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"sec_websocket_key": b""}, 400),
        ({"sec_websocket_key": b"dGhlIHNhbXBsZSBub25jZQ"}, 400),
        ({"sec_websocket_key": b"dGhl IHNhbXBsZSBub25jZQ=="}, 400),
        ({"sec_websocket_key": None}, 400),
        ({"sec_websocket_version": None}, 426),
        ({"sec_websocket_version": b"8"}, 426),
        ({"sec_websocket_protocol": b"\xc3\xa4"}, 400),
        ({"connection": b"Upgrade, \xfe"}, 400),
        ({"content_length": b"1"}, 400),
    ],
)
def test_a_handshake_that_is_not_is_refused(changed, status):
    refused = check_upgrade(_request(**changed), False)

    assert refused is not None
    assert refused.status == status
