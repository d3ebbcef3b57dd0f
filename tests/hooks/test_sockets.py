"""What trio's streams say of a socket that fails, and that they leave nothing behind."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest
import structlog.testing
import trio

from server.hooks.sockets import NoThread, OwnListener, translate_errors_without_rings
from tests.support.kept_garbage import garbage_kept
from tests.support.limits import no_threads

pytestmark = pytest.mark.sockets

USES: dict[str, Callable[[trio.SocketStream], Awaitable[object]]] = {
    "receive_some": lambda stream: stream.receive_some(1),
    "send_all": lambda stream: stream.send_all(b"x"),
    "send_eof": lambda stream: stream.send_eof(),
}


@pytest.fixture(autouse=True)
def translated() -> None:
    translate_errors_without_rings()


def pair() -> tuple[trio.SocketStream, socket.socket]:
    """A stream of ours, and the socket at its other end."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs


@pytest.mark.parametrize("use", USES)
async def test_a_stream_that_is_closed_says_so_and_leaves_no_ring(use):
    async def close_and_use() -> None:
        stream, theirs = pair()
        theirs.close()
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError, match="already closed"):
            await USES[use](stream)

    await close_and_use()
    with garbage_kept() as left:
        await close_and_use()

    assert left == []


async def test_a_stream_that_is_reset_says_why_and_leaves_no_ring():
    said: list[tuple[str, type[BaseException]]] = []

    async def reset_and_read() -> None:
        stream, theirs = pair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        async with stream:
            try:  # what pytest.raises gives would be a ring of its own
                await stream.receive_some(1)
            except trio.BrokenResourceError as error:
                said.append((str(error), type(error.__cause__)))

    await reset_and_read()
    with garbage_kept() as left:
        await reset_and_read()

    assert left == []
    (why, cause), _ = said
    assert why.startswith("socket connection broken: ")
    assert cause is ConnectionResetError


@pytest.mark.parametrize("use", USES)
async def test_trio_asks_us_what_its_streams_say(use):
    stream, theirs = pair()
    theirs.close()
    await stream.aclose()

    with pytest.raises(trio.ClosedResourceError) as caught:
        await USES[use](stream)

    assert caught.traceback[-1].path.parts[-3:] == ("server", "hooks", "sockets.py")


class _Exhausted:
    """A listener for which there is no descriptor the first times that somebody comes."""

    def __init__(self, listener: trio.SocketListener, times: int) -> None:
        self._listener = listener
        self._times = times

    async def accept(self) -> trio.SocketStream:
        if self._times:
            self._times -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return await self._listener.accept()


async def test_where_descriptors_are_short_our_own_processes_wait_and_it_is_said_in_one_line():
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        sock.setblocking(False)
        listener = OwnListener(sock)
        listener._listener = _Exhausted(listener._listener, times=3)
        with closing(socket.create_connection(sock.getsockname())) as theirs:
            with structlog.testing.capture_logs() as logged, trio.fail_after(60):
                async with await listener.accept() as ours:
                    await ours.send_all(b"x")
            assert theirs.recv(1) == b"x"

    assert [entry["log_level"] for entry in logged] == ["warning"]
    assert "exc_info" not in logged[0]


async def test_what_else_goes_wrong_with_a_listener_of_our_own_is_raised():
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        listener = OwnListener(sock)
        await listener.aclose()

        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


async def test_a_thread_that_the_system_refuses_is_an_error_of_the_systems():
    limiter = trio.CapacityLimiter(1)
    with no_threads():
        with pytest.raises(NoThread) as refused:
            await trio.to_thread.run_sync(list, limiter=limiter)
        with pytest.raises(OSError, match="no thread"):
            await trio.open_tcp_stream("localhost", 9)

    assert isinstance(refused.value, OSError)
    assert limiter.borrowed_tokens == 0
    assert await trio.to_thread.run_sync(list, limiter=limiter) == []
