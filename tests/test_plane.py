"""The media plane over real sockets: fair, isolated, bounded, and nothing left registered."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from codec.latency import Histogram, Latencies
from codec.path import MediaPath, WebSocket
from codec.pump import Descriptor, Pump
from server import plane as plane_module
from server.plane import (
    MAX_BACKLOG_BYTES,
    MAX_INBOX,
    MESSAGES_PER_PASS,
    Messages,
    Plane,
    Wire,
)

pytestmark = pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll")


class Peer:
    """The other end of a wire: a blocking-free socket with a WebSocket of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.websocket = WebSocket(is_client=True, max_message_bytes=1 << 24)

    async def send(self, *messages: bytes) -> None:
        for message in messages:
            self.websocket.send_text(message)
        await self.send_raw(self.websocket.take_output())

    async def send_raw(self, data: bytes) -> None:
        while data:
            data = data[await self.sock.send(data) :]

    async def receive(self) -> bytes | None:
        with trio.fail_after(5):
            while (message := self.websocket.next_message()) is None:
                if self.websocket.ended:
                    return None
                data = await self.sock.recv(65536)
                if not data:
                    self.websocket.receive_eof()
                self.websocket.receive(data)
        return message


@pytest.fixture
async def plane(nursery) -> Plane:
    plane = Plane()
    await nursery.start(plane.run)
    return plane


@asynccontextmanager
async def connected(plane: Plane) -> AsyncGenerator[tuple[Wire, Peer]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = Wire(plane, ours, WebSocket(is_client=False, max_message_bytes=65536))
    peer = Peer(theirs)
    try:
        yield wire, peer
    finally:
        wire.close()
        peer.sock.close()


async def test_messages_come_out_in_order_and_go_back(plane):
    async with connected(plane) as (wire, peer):
        await peer.send(b"one", b"two")

        assert await wire.receive() == (b"one", True)
        assert await wire.receive() == (b"two", True)
        wire.send_text(b"three")
        assert await peer.receive() == b"three"


async def test_closing_wakes_the_task_that_receives(plane, nursery):
    async with connected(plane) as (wire, _):
        received = []

        async def receive() -> None:
            received.append(await wire.receive())

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            wire.close()
            await wait_all_tasks_blocked()

    assert received == [None]


async def test_what_was_read_with_the_handshake_is_not_lost(plane):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = WebSocket(is_client=True, max_message_bytes=65536)
    client.send_text(b"early")
    websocket = WebSocket(is_client=False, max_message_bytes=65536)
    wire = Wire(plane, ours, websocket, client.take_output())

    assert wire.receive_nowait() == (b"early", True)
    wire.close()
    theirs.close()


async def test_everything_sent_before_a_close_is_delivered_and_then_the_end(plane):
    async with connected(plane) as (wire, peer):
        await peer.send(*(b"%d" % number for number in range(50)))
        peer.sock.close()
        received = [message async for message in messages(wire)]

    assert received == [b"%d" % number for number in range(50)]
    assert wire.is_over


async def messages(wire: Wire) -> AsyncGenerator[bytes]:
    while (message := await wire.receive()) is not None:
        yield message[0]


async def test_a_listener_is_called_with_what_was_there_what_comes_and_the_end(plane):
    async with connected(plane) as (wire, peer):
        heard = []
        await peer.send(b"before")
        await wait_all_tasks_blocked(0.01)
        wire.listen(lambda messages, ended: heard.append(([m for m, _ in messages], ended)))
        await peer.send(b"after", b"that")
        peer.sock.close()
        with trio.fail_after(5):
            while not wire.is_over:
                await trio.lowlevel.checkpoint()

    assert [message for messages, _ in heard for message in messages] == [
        b"before",
        b"after",
        b"that",
    ]
    assert heard[-1][1] is True


async def test_a_flood_of_tiny_messages_leaves_the_others_their_turn(plane):
    async with connected(plane) as (wire, flooding), connected(plane) as (other, peer):
        heard: list[bytes] = []
        over = trio.Event()

        def hear(messages: Messages, ended: bool) -> None:
            heard.extend(message for message, _ in messages)
            if ended:
                over.set()

        wire.listen(hear)
        other.listen(hear)
        count = 20 * MESSAGES_PER_PASS
        await flooding.send(*(b"%d" % number for number in range(count)))
        await peer.send(b"a frame of somebody's")
        flooding.sock.close()
        with trio.fail_after(10):
            await over.wait()

    assert heard.index(b"a frame of somebody's") < 3 * MESSAGES_PER_PASS
    heard.remove(b"a frame of somebody's")
    assert heard == [b"%d" % number for number in range(count)]


async def test_a_flood_that_is_received_one_by_one_is_whole_and_then_over(plane):
    async with connected(plane) as (wire, peer):
        count = 5 * MESSAGES_PER_PASS + 7
        await peer.send(*(b"%d" % number for number in range(count)))
        peer.sock.close()
        with trio.fail_after(10):
            received = [message async for message in messages(wire)]

    assert received == [b"%d" % number for number in range(count)]


async def test_a_wire_may_be_closed_in_the_middle_of_a_flood(plane):
    async with connected(plane) as (wire, peer):
        heard = []
        closed = trio.Event()

        def hear(messages: Messages, ended: bool) -> None:
            heard.extend(messages)
            if len(heard) == MESSAGES_PER_PASS + 5:
                wire.close()
                closed.set()

        wire.listen(hear)
        await peer.send(*(b"%d" % number for number in range(10 * MESSAGES_PER_PASS)))
        with trio.fail_after(10):
            await closed.wait()
            await wait_all_tasks_blocked(0.01)
        watched = plane.wires

    assert wire.is_over
    assert watched == 0


async def test_a_peer_that_is_not_heard_is_held_back_and_nothing_is_lost(plane, nursery):
    async with connected(plane) as (wire, peer):
        sent = 3 * MAX_INBOX

        async def send() -> None:
            await peer.send(*(b"%d" % number + b"." * 2000 for number in range(sent)))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        held = len(wire._inbox)
        received = [(await wire.receive())[0] for _ in range(sent)]

    assert held < sent
    assert [int(message.rstrip(b".")) for message in received] == list(range(sent))


async def test_a_peer_that_stops_reading_is_given_up_at_a_bound(plane):
    async with connected(plane) as (wire, _), connected(plane) as (other, other_peer):
        for _ in range(MAX_BACKLOG_BYTES // 60_000 + 20):
            wire.send_text(b"x" * 60_000)
        assert await wire.receive() is None

        await other_peer.send(b"still here")
        assert await other.receive() == (b"still here", True)


async def test_a_slow_peer_gets_everything(plane):
    async with connected(plane) as (wire, peer):
        for number in range(40):
            wire.send_text(b"%d " % number + b"x" * 60_000)
        received = [await peer.receive() for _ in range(40)]

    assert [int(message.split()[0]) for message in received] == list(range(40))


async def test_a_bug_in_one_wire_leaves_the_others_alone(plane):
    async with connected(plane) as (broken, its_peer), connected(plane) as (good, peer):

        def fail(messages, ended) -> None:
            if not ended:
                raise ZeroDivisionError

        await its_peer.send(b"boom")
        await broken.receive()
        broken._listener = fail
        await its_peer.send(b"boom")
        with trio.fail_after(5):
            while not broken.is_over:
                await trio.lowlevel.checkpoint()
        await peer.send(b"fine")

        assert await good.receive() == (b"fine", True)


async def test_a_malformed_frame_ends_that_connection_with_the_right_code(plane):
    async with connected(plane) as (wire, peer):
        await peer.send_raw(b"\x81\x05hello")  # not masked: RFC 6455 section 5.1

        assert await wire.receive() is None
        assert await peer.receive() is None
        assert peer.websocket.close_code == 1002


async def test_closing_says_goodbye_and_leaves_nothing_registered(plane):
    async with connected(plane) as (wire, peer), trio.open_nursery() as nursery:
        wire.send_close(1008, "no ticket")
        assert await peer.receive() is None
        nursery.start_soon(peer.send_raw, peer.websocket.take_output())
        await wire.wait_ended(timeout_s=5)
        wire.close()

    assert (peer.websocket.close_code, peer.websocket.close_reason) == (1008, "no ticket")
    assert plane.wires == 0


async def test_a_peer_that_does_not_answer_a_close_is_left_at_a_deadline(plane):
    async with connected(plane) as (wire, _):
        wire.send_close()
        with trio.fail_after(5):
            await wire.wait_ended(timeout_s=0.01)

    assert plane.wires == 0


async def test_a_cancelled_receive_loses_nothing(plane):
    async with connected(plane) as (wire, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await peer.send(b"later")

        assert await wire.receive() == (b"later", True)


async def test_whoever_is_woken_by_what_a_pump_could_not_write_runs_at_once(plane):
    failed = trio.Event()

    class Sink:
        """A wire whose socket turns out to be gone; it tells its session."""

        def flush(self) -> None:
            failed.set()

    async with connected(plane) as (source, peer):
        websocket = WebSocket(is_client=True, max_message_bytes=65536)
        pump = Pump(
            *(source.descriptor, source.websocket, lambda now: None, MediaPath().has_caller_news),
            *(Descriptor(-1), websocket, Latencies(), Histogram([1.0])),
        )
        source.read_through(source.websocket.next_message, pump, Sink())
        websocket.send_text(b"for somebody who has gone")
        # Without a checkpoint: nothing else is to wake trio once it sleeps.
        peer_socket = socket.socket(fileno=os.dup(peer.sock.fileno()))
        peer.websocket.send_text(b"anything")
        peer_socket.send(peer.websocket.take_output())
        peer_socket.close()

        began = trio.current_time()
        with trio.move_on_after(5):
            await failed.wait()

        assert trio.current_time() - began < 4
