"""The media plane over real sockets: fair, isolated, bounded, and nothing left registered."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from websockets.frames import Frame, Opcode

from codec.latency import Histogram, Latencies
from codec.path import WebSocket
from codec.pump import Descriptor, Pump, Pumps
from server.media import plane as plane_module
from server.media.bounds import KNOWN, MAX_BACKLOG_BYTES, MAX_INBOX, STRANGER, Bounds
from server.media.plane import Plane
from server.media.wire import LINGER_BYTES, MESSAGES_PER_PASS, Wire
from server.media.words import Messages
from server.simulators.clock import PatientClock
from tests.support.path_messages import media, open_path
from tests.support.peers import Peer, messages
from tests.support.websocket_oracle import write_frames

pytestmark = [
    pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll"),
    pytest.mark.sockets,
]


@pytest.fixture
async def plane(nursery) -> Plane:
    plane = Plane()
    await nursery.start(plane.run)
    return plane


Kind = TypeVar("Kind", bound=socket.socket)


def wire_of(plane: Plane, kind: type[Kind], bounds: Bounds = KNOWN) -> tuple[Wire, Kind, Peer]:
    """A wire on a socket of this kind, that socket, and the other end."""
    ours, theirs = socket.socketpair()
    sock = kind(fileno=ours.detach())
    sock.setblocking(False)
    wire = Wire(plane, sock, WebSocket(is_client=False, max_message_bytes=65536), bounds=bounds)
    return wire, sock, Peer(theirs)


@asynccontextmanager
async def connected(plane: Plane, bounds: Bounds = KNOWN) -> AsyncGenerator[tuple[Wire, Peer]]:
    wire, _, peer = wire_of(plane, socket.socket, bounds)
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
        with trio.fail_after(60):
            wire.close()
            await wait_all_tasks_blocked()

    assert received == [None]


async def test_a_wire_that_outlives_its_plane_closes_its_socket_all_the_same():
    plane = Plane()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        async with trio.open_nursery() as nursery:
            await nursery.start(plane.run)
            wire = Wire(plane, ours, WebSocket(is_client=False, max_message_bytes=65536))
            nursery.cancel_scope.cancel()
        wire.send_text(b"goodbye")
        wire.close()

        assert ours.fileno() == -1


async def test_what_was_read_with_the_handshake_is_not_lost(plane):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = WebSocket(is_client=True, max_message_bytes=65536)
    client.send_text(b"early")
    websocket = WebSocket(is_client=False, max_message_bytes=65536)
    wire = Wire(plane, ours, websocket, client.take_output())

    assert await wire.receive() == (b"early", True)
    wire.close()
    theirs.close()


async def test_everything_sent_before_a_close_is_delivered_and_then_the_end(plane):
    async with connected(plane) as (wire, peer):
        await peer.send(*(b"%d" % number for number in range(50)))
        peer.sock.close()
        received = [message async for message in messages(wire)]

    assert received == [b"%d" % number for number in range(50)]
    assert wire.websocket.ended


async def test_a_listener_is_called_with_what_was_there_what_comes_and_the_end(plane):
    async with connected(plane) as (wire, peer):
        heard = []
        await peer.send(b"before")
        await wait_all_tasks_blocked(0.01)
        wire.listen(lambda messages, ended: heard.append(([m for m, _ in messages], ended)))
        await peer.send(b"after", b"that")
        peer.sock.close()
        with trio.fail_after(60):
            while not wire.websocket.ended:
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
        # At once, without a wait in which some of it would be read before the rest is there.
        flooding.send_nowait(*(b"%d" % number for number in range(count)))
        peer.send_nowait(b"a frame of somebody's")
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

    assert wire.fileno() == -1
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


class Full:
    """An epoll that watches no more sockets; the rest is that of the plane's own."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def register(self, number: int, events: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def receive_all(wire: Wire) -> None:
    while await wire.receive() is not None:
        pass


async def test_a_wire_that_was_held_back_and_cannot_be_watched_again_is_closed_all_the_same(
    plane, monkeypatch, nursery
):
    async with connected(plane) as (wire, peer):
        nursery.start_soon(partial(peer.send, *(b"." * 2000 for _ in range(MAX_INBOX + 1))))
        with trio.fail_after(60):
            while not wire._paused:  # noqa: ASYNC110
                await trio.sleep(0.001)
        with monkeypatch.context() as patched:
            patched.setattr(plane, "_epoll", Full(plane._epoll))
            with pytest.raises(OSError, match="No space"):
                await receive_all(wire)
            wire.close()

    assert plane.wires == 0
    assert wire.fileno() == -1


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


@pytest.mark.parametrize("at_its_end", [False, True], ids=["by a message", "by its end, too"])
async def test_a_bug_in_one_wire_leaves_the_others_alone(plane, at_its_end):
    async with connected(plane) as (broken, its_peer), connected(plane) as (good, peer):

        def fail(messages, ended) -> None:
            if at_its_end or not ended:
                raise ZeroDivisionError

        broken.listen(fail)
        await its_peer.send(b"boom")
        with trio.fail_after(60):
            while not broken.websocket.ended:
                await trio.lowlevel.checkpoint()
        await peer.send(b"fine")

        assert await good.receive() == (b"fine", True)


class Looks(PatientClock):
    """A clock that knows how often it was looked at since trio began to wait."""

    looks = 0

    def current_time(self) -> float:
        self.looks += 1
        return super().current_time()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        wait_s = super().deadline_to_sleep_time(deadline)
        self.looks = 0
        return wait_s


def test_a_clock_that_takes_looks_for_work_is_not_looked_at_before_a_wait():
    clock = Looks()
    looks: list[int] = []

    class Watched:
        def __init__(self, pumps: Pumps) -> None:
            self.pumps = pumps

        def serve(self, epoll: int, timeout_s: float, *how: Any) -> list[tuple[int, int, int]]:
            if timeout_s > 0.0:
                looks.append(clock.looks)
            return self.pumps.serve(epoll, timeout_s, *how)

    async def wait() -> None:
        plane: Any = Plane()
        plane._pumps = Watched(plane._pumps)
        async with trio.open_nursery() as nursery:
            await nursery.start(plane.run)
            await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(wait, clock=clock)

    assert looks[0] == 0


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
        with trio.fail_after(60):
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
    failed = trio.Event()  # as by a wire whose socket turns out to be gone: it tells its session

    async with connected(plane) as (source, peer):
        path = open_path()
        path.phone = source.websocket
        timings = Latencies(), Histogram([1.0])
        pump = Pump(path, source.descriptor, Descriptor(-1), *timings, from_phone=True)
        source.read_through(path.next_from_phone, pump, failed.set)
        # Without a checkpoint: nothing else is to wake trio once it sleeps.
        peer_socket = socket.socket(fileno=os.dup(peer.sock.fileno()))
        peer.websocket.send_text(media(b"\x55" * 160))  # for a model that has gone
        peer_socket.send(peer.websocket.take_output())
        peer_socket.close()

        began = trio.current_time()
        with trio.move_on_after(60):
            await failed.wait()

        assert trio.current_time() - began < 50


@pytest.mark.parametrize("says", ["nothing", "audio", "answers"])
async def test_the_last_words_of_a_peer_that_has_gone_are_heard_whatever_is_said_to_it(plane, says):
    async with connected(plane) as (wire, peer):
        heard: list[bytes] = []
        is_over = trio.Event()

        def listen(messages, ended):
            heard.extend(message for message, _ in messages)
            if messages and says == "answers":
                wire.send_text(b"an answer")
            if ended:
                is_over.set()

        wire.listen(listen)
        # Without a checkpoint: the loop is busy when all of this comes.
        peer.send_nowait(b"one", b"two", b"stop")
        peer.websocket.send_close(1011, "no more of this today")
        os.write(peer.sock.fileno(), peer.websocket.take_output())
        peer.sock.close()
        if says == "audio":
            for _ in range(2):
                wire.send_text(b"audio")
        with trio.fail_after(60):
            await is_over.wait()

        assert heard == [b"one", b"two", b"stop"]
        assert wire.websocket.close_code == 1011
        assert wire.websocket.close_reason == "no more of this today"


async def test_more_than_a_read_of_a_peer_that_has_gone_is_heard_to_its_end(plane):
    async with connected(plane) as (wire, peer):
        said = [b"%d" % number for number in range(3 * MESSAGES_PER_PASS)]
        peer.send_nowait(*said, b"x" * 40_000)
        peer.sock.close()
        for _ in range(2):
            wire.send_text(b"audio")

        with trio.fail_after(60):
            heard = [message async for message in messages(wire)]

        assert heard == [*said, b"x" * 40_000]
        assert not wire.websocket.output_bytes


PING = Frame(Opcode.PING, b"x" * 125)
CONNECTED = Frame(Opcode.TEXT, b'{"event":"connected","protocol":"Call","version":"1.0.0"}')
AUDIO = Frame(Opcode.TEXT, b'{"event":"media",%s}' % (b"x" * 330))


def from_client(*frames: Frame) -> bytes:
    return write_frames(frames, masked=True)


async def flood(peer: Peer, data: bytes, times: int) -> None:
    """Send the same again and again, until the other end has had enough."""
    with suppress(OSError):
        for _ in range(times):
            await peer.send_raw(data)


async def until_over(wire: Wire) -> None:
    with trio.fail_after(60):
        while await wire.receive() is not None:
            pass


async def test_who_pings_and_does_not_read_is_owed_one_pong(plane):
    async with connected(plane) as (wire, peer), connected(plane) as (other, its_peer):
        await flood(peer, from_client(*[PING] * 500), times=20)
        await its_peer.send(b"after all that")
        await other.receive()

        assert wire.websocket.output_bytes <= 2 * 127
        assert not wire.websocket.ended
        with trio.fail_after(60):
            while wire.websocket.output_bytes:
                await peer.sock.recv(1 << 20)


class CountingSocket(socket.socket):
    """Counts how often it is written to."""

    sends = 0

    def send(self, data, flags=0):
        self.sends += 1
        return super().send(data, flags)


async def test_what_waits_to_be_written_is_not_tried_again_at_every_read(plane):
    wire, counting, peer = wire_of(plane, CountingSocket)
    while not wire.websocket.output_bytes:
        wire.send_text(b"x" * 60_000)
    tried = counting.sends
    for _ in range(200):
        await peer.send_raw(from_client(PING))
        wire.send_text(b"x" * 1000)
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()

    assert counting.sends == tried
    assert wire.websocket.output_bytes >= 200_000
    wire.close()
    peer.sock.close()


async def test_what_waits_is_written_though_its_socket_is_read_again_in_every_pass(plane):
    async with connected(plane) as (wire, peer):
        while not wire.websocket.output_bytes:
            wire.send_text(b"x" * 60_000)
        await wait_all_tasks_blocked()
        with suppress(trio.WouldBlock, BlockingIOError):
            while True:
                os.read(peer.sock.fileno(), 1 << 20)
        plane.read_again(wire)
        plane.serve_now()

        assert not wire.websocket.output_bytes


class SpeakingFirst(socket.socket):
    """Reads only when it could be written to, as TLS has to when it is asked for new keys."""

    reads = 0

    def recv(self, size, flags=0):
        self.reads += 1
        if not select.select([], [self], [], 0)[1]:
            raise ssl.SSLWantWriteError
        return super().recv(size, flags)


async def test_a_socket_that_must_speak_before_it_reads_waits_until_it_can(plane):
    wire, speaking, peer = wire_of(plane, SpeakingFirst)
    with suppress(BlockingIOError):
        while True:
            speaking.send(bytes(60_000))
    await peer.send(b"are you there?")
    await wait_all_tasks_blocked(0.01)
    tried = speaking.reads
    while tried == speaking.reads:
        await peer.sock.recv(1 << 20)

    assert await wire.receive() == (b"are you there?", True)
    assert tried == 1
    wire.close()
    peer.sock.close()


class ListeningFirst(socket.socket):
    """Writes only when it has read, as TLS must once half of a message of its own has come."""

    has_read = False
    sends = 0

    def recv(self, size, flags=0):
        try:
            super().recv(size, flags)
        finally:
            self.has_read = True
        raise ssl.SSLWantReadError

    def send(self, data, flags=0):
        self.sends += 1
        if not self.has_read:
            raise ssl.SSLWantReadError
        return super().send(data, flags)


async def test_a_socket_that_must_read_before_it_speaks_waits_until_something_comes(plane):
    wire, listening, peer = wire_of(plane, ListeningFirst)
    for word in (b"are", b"you", b"there?"):
        wire.send_text(word)
    await wait_all_tasks_blocked(0.01)
    tried, wakes = listening.sends, plane._epoll.poll(0)
    await peer.send_raw(b"the other half")

    with trio.fail_after(60):
        assert [await peer.receive() for _ in range(3)] == [b"are", b"you", b"there?"]
    assert (tried, wakes) == (1, [])
    assert plane._epoll.poll(0) == []
    wire.close()
    peer.sock.close()


async def test_a_busy_peer_has_a_bounded_turn_in_each_pass():
    plane = Plane()  # nobody serves it but we
    order: list[str] = []
    with plane._epoll:
        async with connected(plane) as (busy, its_peer), connected(plane) as (other, peer):
            busy.listen(lambda messages, ended: order.extend(["busy"] * len(messages)))
            other.listen(lambda messages, ended: order.extend(["other"] * len(messages)))
            await its_peer.send_raw(from_client(*[Frame(Opcode.TEXT, b"")] * 5000))
            await peer.send(b"once")
            passes = 0
            while order.count("busy") < 5000:
                plane._serve()
                passes += 1

    assert order.index("other") <= MESSAGES_PER_PASS
    assert passes >= 5000 // MESSAGES_PER_PASS


async def test_many_small_messages_and_the_end_behind_them_are_all_delivered(plane):
    async with connected(plane) as (wire, peer):
        await peer.send(*(b"%d" % number for number in range(5000)))
        peer.sock.close()
        received = [message async for message in messages(wire)]

    assert received == [b"%d" % number for number in range(5000)]


async def test_a_socket_that_has_ended_keeps_the_plane_awake_no_longer(plane):
    async with connected(plane) as (wire, peer):
        peer.sock.close()
        await until_over(wire)

        assert plane._epoll.poll(0) == []


IDLE_TALK = {
    "pings": from_client(*[PING] * 100),
    "empty pings": from_client(*[Frame(Opcode.PING, b"")] * 1000),
    "pongs": from_client(*[Frame(Opcode.PONG, b"")] * 1000),
    "empty fragments": from_client(
        Frame(Opcode.TEXT, b"", fin=False), *[Frame(Opcode.CONT, b"", fin=False)] * 1000
    ),
    "fragments of a byte": from_client(
        Frame(Opcode.TEXT, b"x", fin=False), *[Frame(Opcode.CONT, b"x", fin=False)] * 1000
    ),
    "half a message": from_client(Frame(Opcode.TEXT, b"x" * 40_000))[:-1],
}


@pytest.mark.parametrize("what", IDLE_TALK)
async def test_a_stranger_who_sends_no_message_is_refused(plane, what):
    async with connected(plane, STRANGER) as (wire, peer), trio.open_nursery() as nursery:
        nursery.start_soon(flood, peer, IDLE_TALK[what], 20)
        await until_over(wire)
        wire.close()

    assert wire.refusal
    assert wire.websocket.close_code_sent == 1008


@pytest.mark.parametrize("message", [b"", CONNECTED.data, b"x" * 4000], ids=len)
async def test_a_strangers_messages_are_read_one_after_the_other_and_not_for_long(plane, message):
    async with connected(plane, STRANGER) as (wire, peer), trio.open_nursery() as nursery:
        nursery.start_soon(flood, peer, from_client(Frame(Opcode.TEXT, message)), 2000)
        await wait_all_tasks_blocked(0.01)
        unread = len(wire._inbox)
        received = [each async for each in messages(wire)]
        wire.close()

    assert unread <= STRANGER.frames
    assert len(received) <= STRANGER.frames
    assert sum(map(len, received)) <= STRANGER.total_bytes
    assert wire.websocket.close_code_sent == 1008


async def test_a_stranger_who_reads_nothing_is_given_up_at_a_small_bound(plane):
    async with connected(plane, STRANGER) as (wire, peer):
        with suppress(ValueError):  # is_open
            while not wire.websocket.output_bytes:
                wire.send_text(b"x" * 1000)
        for _ in range(10):
            wire.send_text(b"x" * 1000)

        assert await wire.receive() is None
        assert wire.refusal
        peer.sock.close()


async def test_a_call_that_begins_like_any_other_is_no_stranger_for_long(plane):
    start = Frame(Opcode.TEXT, b'{"event":"start",%s}' % (b"x" * 1200))
    async with connected(plane, STRANGER) as (wire, peer), trio.open_nursery() as nursery:
        nursery.start_soon(flood, peer, from_client(CONNECTED, start, *[AUDIO] * 1000), 1)
        assert await wire.receive() == (CONNECTED.data, True)
        assert await wire.receive() == (start.data, True)
        await wait_all_tasks_blocked(0.01)  # its ticket is looked at
        wire.trust()
        with trio.fail_after(60):
            received = [await wire.receive() for _ in range(1000)]

    assert received == [(AUDIO.data, True)] * 1000
    assert not wire.refusal


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    return ours, theirs


async def test_whoever_is_refused_while_still_sending_gets_the_goodbye(plane):
    ours, theirs = tcp_pair()
    wire = Wire(plane, ours, WebSocket(is_client=False, max_message_bytes=65536), bounds=STRANGER)
    peer = Peer(theirs)
    await peer.send_raw(from_client(*[PING] * 200))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            await wire.wait_ended(timeout_s=5)
            wire.close()

        await peer.send_raw(from_client(*[PING] * 50))
        assert await peer.receive() is None
        await peer.send_raw(from_client(*[PING] * 50))
        peer.sock.close()

    assert peer.websocket.close_code == 1008
    assert plane.wires == 0


@pytest.mark.parametrize("talks", [False, True])
async def test_whoever_is_refused_and_stays_is_left_at_a_bound(plane, talks):
    ours, theirs = tcp_pair()
    wire = Wire(plane, ours, WebSocket(is_client=False, max_message_bytes=65536), bounds=STRANGER)
    peer = Peer(theirs)
    await peer.send_raw(from_client(*[PING] * 200))
    async with trio.open_nursery() as nursery:
        if talks:
            nursery.start_soon(flood, peer, from_client(*[PING] * 100), 100)
        with trio.fail_after(60):
            await wire.wait_ended(timeout_s=4 if talks else 0.01)
        wire.close()
        nursery.cancel_scope.cancel()

    assert wire._received_bytes <= LINGER_BYTES + 65536
    peer.sock.close()


@pytest.mark.parametrize("way", ["reset", "closed", "half closed"])
async def test_a_peer_that_leaves_is_the_end_and_no_error(plane, caplog, way):
    ours, theirs = tcp_pair()
    wire = Wire(plane, ours, WebSocket(is_client=False, max_message_bytes=65536), bounds=STRANGER)
    if way == "reset":
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if way == "half closed":
        theirs.shutdown(socket.SHUT_WR)
    else:
        theirs.close()

    await until_over(wire)
    await wire.wait_ended(timeout_s=5)
    wire.close()
    theirs.close()

    assert not wire.refusal
    assert not caplog.records
