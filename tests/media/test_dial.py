"""Connecting to the model on the plane: the handshake, TLS, and how it says no."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import ssl
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trustme
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.trio.server import serve

from codec.tls import AVAILABLE, compiled_context
from server.hooks.sockets import UNREAD_TIMEOUT_S
from server.media import plane as plane_module
from server.media.bounds import MAX_INBOX
from server.media.dial import DEAD_PATH_TIMEOUT_S, open_wire, plane_context
from server.media.plane import Plane
from server.serving.listening import listen
from tests.support.websocket_oracle import write_frames

pytestmark = [
    pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll"),
    pytest.mark.sockets,
]


@pytest.fixture(params=["while trio sleeps", "by a task"])
async def plane(nursery, request) -> Plane:
    if request.param == "by a task":
        await nursery.start(Plane().run)  # only one at a time is served otherwise
    plane = Plane()
    await nursery.start(plane.run)
    return plane


async def echo(socket) -> None:
    async for message in socket:
        await socket.send(f"{socket.request.headers['X-Key']}:{message}")
    # leaving closes with 1000


@asynccontextmanager
async def serving(handler=echo, **options):
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(serve, handler, 0, host="127.0.0.1", compression=None, **options)
        )
        yield server.listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def dial(plane: Plane, url: str, tls: ssl.SSLContext | None = None, connect_timeout_s: float = 5.0):
    return open_wire(
        plane,
        url,
        {"X-Key": "secret"},
        tls=tls,
        max_message_bytes=1 << 24,
        connect_timeout_s=connect_timeout_s,
        close_timeout_s=1.0,
    )


async def test_a_plain_connection_carries_messages_both_ways(plane):
    async with serving() as port, dial(plane, f"ws://127.0.0.1:{port}/x") as socket:
        await socket.send(b"hello", text=True)
        assert await socket.recv(decode=False) == b"secret:hello"
        await socket.aclose(1000, "")

    assert plane.wires == 0


def handshakes() -> list[ClientProtocol]:
    return [one for one in gc.get_objects() if type(one) is ClientProtocol]


async def test_nothing_of_the_handshake_stays_for_as_long_as_the_call(plane):
    gc.disable()  # as the server does
    try:
        before = handshakes()
        async with serving() as port, dial(plane, f"ws://127.0.0.1:{port}/x"):
            left = [one for one in handshakes() if one not in before]
    finally:
        gc.enable()

    assert left == []


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system cannot tell")
@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_path_that_has_died_is_noticed_by_the_system(
    plane, authority, client_context, is_tls
):
    context = server_context(authority, "localhost") if is_tls else None
    url = "wss://localhost" if is_tls else "ws://127.0.0.1"
    ours = client_context(authority) if is_tls else None
    async with serving(ssl=context) as port, dial(plane, f"{url}:{port}/x", ours) as opened:
        options = _dead_path_options(socket.socket(fileno=os.dup(opened.wire.descriptor.number)))

    assert options == [DEAD_PATH_TIMEOUT_S * 1000, DEAD_PATH_TIMEOUT_S, 1]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system cannot tell")
async def test_the_connections_that_a_listener_accepts_notice_a_dead_path_too():
    with listen("127.0.0.1", 0) as listener:
        client = await trio.open_tcp_stream(*listener.getsockname())
        accepted, _ = listener.accept()
        options = _dead_path_options(accepted)
        await client.aclose()

    assert options == [UNREAD_TIMEOUT_S * 1000, UNREAD_TIMEOUT_S, 1]


def _dead_path_options(connection: socket.socket) -> list[int]:
    with connection:
        return [
            connection.getsockopt(level, name)
            for level, name in [
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            ]
        ]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture(params=["python", "compiled"])
def client_context(request, tmp_path) -> Callable[[trustme.CA], ssl.SSLContext]:
    """Makes what a client trusts an authority with: Python's TLS, or OpenSSL's in C."""

    def make(authority: trustme.CA) -> ssl.SSLContext:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        if request.param == "python":
            return context
        return compiled_context(context, cafile=str(tmp_path / "ca.pem"))

    if request.param == "compiled" and not AVAILABLE:
        pytest.skip("built without OpenSSL")
    return make


async def test_tls_carries_messages_larger_than_a_record(plane, authority, client_context):
    text = "x" * 300_000
    async with (
        serving(ssl=server_context(authority, "localhost")) as port,
        dial(plane, f"wss://localhost:{port}/x", client_context(authority)) as socket,
    ):
        for _ in range(3):
            await socket.send(text.encode(), text=True)
        with trio.fail_after(60):
            for _ in range(3):
                assert await socket.recv(decode=False) == f"secret:{text}".encode()


async def test_what_nobody_takes_is_left_with_the_peer_and_not_lost(
    plane, authority, client_context
):
    count = 20 * MAX_INBOX
    sent = 0

    async def flood(socket) -> None:
        nonlocal sent
        for number in range(count):
            await socket.send(f"{number} {'x' * 2000}")
            sent = number + 1

    async with (
        serving(flood, ssl=server_context(authority, "localhost")) as port,
        dial(plane, f"wss://localhost:{port}/x", client_context(authority)) as socket,
    ):
        await wait_all_tasks_blocked(0.05)
        sent_unheard, unheard = sent, len(socket.wire._inbox)
        with trio.fail_after(60):
            heard = [await socket.recv(decode=False) for _ in range(count)]

    assert sent_unheard < count
    assert unheard < 2 * MAX_INBOX
    assert [int(message.split()[0]) for message in heard] == list(range(count))


async def test_many_small_messages_of_one_record_all_come(plane, authority, client_context):
    async def flood(socket) -> None:
        frame = Frame(Opcode.TEXT, b"x")
        await socket.stream.send_all(write_frames([frame] * 5000, masked=False))
        await socket.recv()  # nothing more, which would wake whoever has forgotten the rest

    async with (
        serving(flood, ssl=server_context(authority, "localhost")) as port,
        dial(plane, f"wss://localhost:{port}/x", client_context(authority)) as socket,
    ):
        await wait_all_tasks_blocked(0.01)
        with trio.fail_after(60):
            heard = [await socket.recv(decode=False) for _ in range(5000)]

    assert heard == [b"x"] * 5000


@pytest.mark.parametrize("fault", ["name", "authority"])
async def test_a_certificate_that_is_not_the_hosts_is_refused(
    plane, authority, client_context, fault
):
    name = "elsewhere.example" if fault == "name" else "localhost"
    trusted = authority if fault == "name" else trustme.CA()
    async with serving(ssl=server_context(authority, name)) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            async with dial(plane, f"wss://localhost:{port}/x", client_context(trusted)):
                pass

    assert plane.wires == 0


async def test_a_refusal_says_its_status(plane):
    def refuse(connection, request):
        return connection.respond(403, "no\n")

    async with serving(process_request=refuse) as port:
        with pytest.raises(InvalidStatus, match="403"):
            async with dial(plane, f"ws://127.0.0.1:{port}/x"):
                pass


@pytest.mark.parametrize("body", [b"", b"no\n", b"n" * 20_000])
async def test_a_refusal_whose_body_ends_with_the_connection_says_its_status(plane, nursery, body):
    async def refuse(stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(body)
        await stream.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]

    with pytest.raises(InvalidStatus, match="403") as refused:
        async with dial(plane, f"ws://127.0.0.1:{port}/x"):
            pass

    assert refused.value.response.body == body
    nursery.cancel_scope.cancel()


async def test_a_connection_that_the_plane_cannot_watch_is_closed(plane, monkeypatch):
    class Full:
        """An epoll that watches no more sockets; the rest is that of the plane's own."""

        def __init__(self, epoll: select.epoll) -> None:
            self._epoll = epoll

        def __getattr__(self, name: str) -> object:
            return getattr(self._epoll, name)

        def register(self, number: int, events: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ended = trio.Event()

    async def note_the_end(socket) -> None:
        with suppress(ConnectionClosed):
            await socket.recv()
        ended.set()

    async with serving(note_the_end) as port:
        with monkeypatch.context() as patched:
            patched.setattr(plane, "_epoll", Full(plane._epoll))
            with pytest.raises(OSError, match="No space"):
                async with dial(plane, f"ws://127.0.0.1:{port}/x"):
                    pass
        with trio.fail_after(60):
            await ended.wait()

    assert plane.wires == 0


async def test_nobody_there_is_an_os_error(plane):
    with pytest.raises(OSError, match=r"."):
        async with dial(plane, "ws://127.0.0.1:1/x"):
            pass


async def test_a_server_that_says_nothing_is_left_at_the_deadline(plane, nursery):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(trio.TooSlowError):
        async with dial(plane, f"ws://127.0.0.1:{port}/x", connect_timeout_s=0.05):
            pass
    await listeners[0].aclose()


async def test_the_peers_close_code_and_reason_are_kept(plane):
    async def leave(socket) -> None:
        await socket.aclose(1011, "You exceeded your current quota")

    async with serving(leave) as port, dial(plane, f"ws://127.0.0.1:{port}/x") as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv(decode=False)

    assert closed.value.rcvd.code == 1011
    assert "quota" in closed.value.rcvd.reason


async def test_a_connection_that_is_cut_has_no_close_code(plane):
    async def cut(socket) -> None:
        await socket.stream.aclose()

    async with serving(cut) as port, dial(plane, f"ws://127.0.0.1:{port}/x") as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv(decode=False)

    assert closed.value.rcvd is None


@pytest.mark.skipif(not AVAILABLE, reason="built without OpenSSL")
@pytest.mark.parametrize("keys", [True, False])
def test_that_tls_in_c_is_there_and_not_used_is_said(tmp_path, keys):
    context = ssl.create_default_context()
    if keys:
        context.keylog_filename = str(tmp_path / "keys")

    with capture_logs() as logs:
        chosen = plane_context(context)

    assert (chosen is context) is keys
    assert [each["keys_written_down"] for each in logs] == [True] * keys
