"""Speech that a slow peer has not been sent, and that is to be cleared, over real sockets."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.frames import Frame, Opcode

from codec.path import WebSocket
from server.carrier import Clear, SendAudio, SendMark
from server.carrier.transport import WireTransport
from server.carrier.twilio.stream import TwilioMediaStream
from server.media import plane as plane_module
from server.media.plane import Plane
from server.media.wire import Wire
from tests.support.peers import Peer
from tests.support.serving import start_message
from tests.support.streams import nobodys_relay
from tests.support.websocket_oracle import write_frames

pytestmark = [
    pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll"),
    pytest.mark.sockets,
]

SPEECH = b"\x55" * 8_000


@pytest.fixture
async def plane(nursery) -> Plane:
    plane = Plane()
    await nursery.start(plane.run)
    return plane


@asynccontextmanager
async def connected(
    plane: Plane, ours: socket.socket, theirs: socket.socket
) -> AsyncGenerator[tuple[Wire, Peer]]:
    ours.setblocking(False)
    wire = Wire(plane, ours, WebSocket(is_client=False, max_message_bytes=1 << 20))
    peer = Peer(theirs)
    try:
        yield wire, peer
    finally:
        wire.close()
        peer.sock.close()


def narrow_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a line that takes little before it is read."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * 1024)
    return ours, theirs


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection of which the system keeps as little unsent as of all of trio's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 16 * 1024)
    return ours, theirs


async def test_what_is_cleared_is_not_sent_on_a_wire_whose_peer_reads_slowly(plane):
    async with connected(plane, *narrow_pair()) as (wire, peer):
        transport = WireTransport(wire)
        being_written = "being written " * 10_000
        for text in (being_written, "speech", "a mark"):
            transport.send(text)
        await wait_all_tasks_blocked()
        transport.forget_unsent()
        transport.send("clear")
        transport.send(b"what follows")

        received = [await peer.receive() for _ in range(3)]

    assert received == [being_written.encode(), b"clear", b"what follows"]


async def test_a_clear_comes_before_speech_that_has_not_left(plane):
    async with connected(plane, *tcp_pair()) as (wire, peer):
        await peer.send(start_message("t").encode())
        stream = TwilioMediaStream(WireTransport(wire))
        await stream.receive_start()
        stream.listen(lambda events: None, nobodys_relay())
        for second in range(300):  # 3.2 MB: no more than may wait
            stream.send(SendAudio(SPEECH))
            stream.send(SendMark(f"1:{second}"))
        stream.send(Clear())
        stream.send(SendMark("2:0"))

        events = []
        while not events or events[-1] != "2:0":
            message = json.loads(await peer.receive())
            events.append(message["mark"]["name"] if "mark" in message else message["event"])

    assert events[-2] == "clear"
    assert events.count("media") < 60
    assert events.count("clear") == 1


async def test_a_socket_that_has_taken_nothing_is_left_with_nothing_and_goes_on(plane):
    async with connected(plane, *narrow_pair()) as (wire, peer):
        filled = 0
        while not wire.websocket.output_bytes:
            wire.send_text(b"x" * 500)
            filled += 1
        wire.send_text(b"speech")
        wire.forget_unsent()
        begun = wire.websocket.output_bytes
        received = [await peer.receive() for _ in range(filled if begun else filled - 1)]
        await wait_all_tasks_blocked()
        watched = plane._epoll.poll(0)
        wire.send_text(b"next")

        assert received == [b"x" * 500] * len(received)
        assert await peer.receive() == b"next"
        assert (watched, wire.websocket.output_bytes) == ([], 0)


async def test_a_pong_and_a_goodbye_come_though_all_else_is_forgotten(plane):
    async with connected(plane, *narrow_pair()) as (wire, peer):
        wire.listen(lambda messages, ended: None)
        wire.send_text(b"being written " * 10_000)
        wire.send_text(b"speech")
        peer_half = [Frame(Opcode.TEXT, b"half", fin=False), Frame(Opcode.PING, b"there?")]
        await peer.send_raw(write_frames(peer_half, masked=True))
        await wait_all_tasks_blocked()
        wire.forget_unsent()
        wire.send_text(b"clear")
        wire.send_close(1000)
        wire.forget_unsent()

        received = [await peer.receive() for _ in range(2)]

    assert received == [b"being written " * 10_000, None]
    assert (peer.websocket.close_code, peer.websocket.frames) == (1000, 3)


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_is_forgotten_the_peer_reads_whole_messages_in_their_order(
    plane, nursery, seed
):
    chance = random.Random(seed)
    async with connected(plane, *narrow_pair()) as (wire, peer):
        must_come, received = [], []
        over = trio.Event()

        async def read() -> None:
            while not received or received[-1] != b"over":
                data = await peer.sock.recv(chance.randrange(1, 20_000))
                assert data
                peer.websocket.receive(data)
                while (message := peer.websocket.next_message()) is not None:
                    received.append(message)
                assert peer.websocket.failure is None
            over.set()

        nursery.start_soon(read)
        for number in range(300):
            if chance.random() < 0.1:
                wire.forget_unsent()
                must_come = [each for each in must_come if each in received]
            message = b"%d " % number + b"." * chance.choice([0, 100, 120, 121, 300, 5_000, 70_000])
            (wire.send_text if chance.random() < 0.5 else wire.send_binary)(message)
            must_come.append(message)
            if chance.random() < 0.3:
                await trio.lowlevel.checkpoint()
        wire.send_text(b"over")
        with trio.fail_after(60):
            await over.wait()

    numbers = [int(message.split()[0]) for message in received[:-1]]
    assert numbers == sorted(set(numbers))
    assert set(must_come) <= set(received)
