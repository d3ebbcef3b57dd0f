"""A socket that has to be waited for, as a stream that pushes and sends without waiting."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.carrier.transport import MAX_UNSENT_CHARS, MESSAGES_AT_ONCE, QueuedTransport
from server.errors import StreamEnded


class Socket:
    """A peer that sends what the test says, and reads only while it is told to."""

    def __init__(self) -> None:
        self.to_us, self._inbox = trio.open_memory_channel[str | bytes](10_000)
        self.reads = trio.Event()
        self.read: list[str] = []
        self.closed: tuple[int, str] | None = None

    async def receive(self) -> str | bytes:
        try:
            return await self._inbox.receive()
        except trio.EndOfChannel:
            raise StreamEnded("closed") from None

    def receive_nowait(self) -> str | bytes | None:
        try:
            return self._inbox.receive_nowait()
        except trio.WouldBlock:
            return None
        except trio.EndOfChannel:
            raise StreamEnded("closed") from None

    async def send(self, text: str) -> None:
        await self.reads.wait()
        if self.closed is not None:
            raise StreamEnded("closed")
        self.read.append(text)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await trio.lowlevel.checkpoint()
        self.closed = (code, reason)


class Ends:
    """Both ends of a transport that runs, and what it has pushed."""

    def __init__(self) -> None:
        self.socket = Socket()
        self.transport = QueuedTransport(self.socket)
        self.pushed: list[tuple[list[str | bytes], bool]] = []
        self.has_run = trio.Event()

    def listen(self) -> None:
        self.transport.listen(lambda messages, ended: self.pushed.append((list(messages), ended)))

    async def run(self) -> None:
        await self.transport.run()
        self.has_run.set()


@pytest.fixture
async def ends(nursery):
    ends = Ends()
    nursery.start_soon(ends.run)
    await wait_all_tasks_blocked()
    return ends


async def test_what_has_come_before_anybody_listens_is_pushed_first_and_together(ends):
    for word in ("one", b"two"):
        ends.socket.to_us.send_nowait(word)
    await wait_all_tasks_blocked()
    ends.listen()
    await wait_all_tasks_blocked()
    ends.socket.to_us.send_nowait("three")
    await wait_all_tasks_blocked()

    assert ends.pushed == [(["one", b"two"], False), (["three"], False)]


async def test_a_burst_is_pushed_in_pieces_so_that_others_have_their_turn(ends):
    for number in range(MESSAGES_AT_ONCE + 1):
        ends.socket.to_us.send_nowait(str(number))
    ends.listen()
    await wait_all_tasks_blocked()

    assert [len(messages) for messages, _ in ends.pushed] == [MESSAGES_AT_ONCE, 1]


async def test_the_end_is_pushed_once_and_after_all_that_came_before(ends):
    ends.listen()
    ends.socket.to_us.send_nowait("last")
    ends.socket.to_us.close()
    await ends.has_run.wait()

    assert ends.pushed == [(["last"], False), ([], True)]
    with pytest.raises(StreamEnded):
        ends.transport.send("too late")


async def test_what_is_sent_waits_for_the_peer_and_arrives_in_order(ends):
    for word in ("one", "two"):
        ends.transport.send(word)
    await wait_all_tasks_blocked()
    assert ends.socket.read == []

    ends.socket.reads.set()
    await wait_all_tasks_blocked()
    ends.transport.send("three")
    await wait_all_tasks_blocked()

    assert ends.socket.read == ["one", "two", "three"]


async def test_what_is_sent_before_the_close_is_read_before_it(ends, nursery):
    ends.transport.send("goodbye")
    nursery.start_soon(ends.transport.aclose, 1000, "over")
    await wait_all_tasks_blocked()
    assert ends.socket.closed is None

    ends.socket.reads.set()
    await wait_all_tasks_blocked()

    assert ends.socket.read == ["goodbye"]
    assert ends.socket.closed == (1000, "over")
    with pytest.raises(StreamEnded):
        ends.transport.send("too late")


async def test_a_transport_that_nobody_runs_is_closed_at_once():
    ends = Ends()
    ends.transport.send("never read")

    await ends.transport.aclose(1008, "no ticket")

    assert ends.socket.closed == (1008, "no ticket")


async def test_a_peer_that_stops_reading_is_given_up_at_a_bound_whatever_it_goes_on_to_say(ends):
    piece = "x" * (MAX_UNSENT_CHARS // 4)
    ends.listen()
    for _ in range(4):
        ends.transport.send(piece)
    await wait_all_tasks_blocked()
    assert ends.pushed == []

    ends.transport.send("x")
    for _ in range(3):
        ends.socket.to_us.send_nowait("still talking")
        await wait_all_tasks_blocked()

    assert ends.pushed == [([], True)]
    with pytest.raises(StreamEnded):
        ends.transport.send("x")
    await ends.transport.aclose(1011, "stalled")
    assert ends.socket.closed == (1011, "stalled")
    ends.socket.reads.set()
    await ends.has_run.wait()


async def test_what_the_peer_has_read_is_not_counted_against_it(ends):
    ends.listen()
    ends.socket.reads.set()
    for _ in range(5):
        ends.transport.send("x" * (MAX_UNSENT_CHARS // 2))
        await wait_all_tasks_blocked()

    assert ends.pushed == []
    assert len(ends.socket.read) == 5


async def test_a_socket_that_ends_while_it_is_written_to_ends_the_transport(ends):
    ends.listen()
    ends.transport.send("never read")
    await wait_all_tasks_blocked()
    ends.socket.closed = (1006, "")
    ends.socket.reads.set()
    await ends.has_run.wait()

    assert ends.pushed == [([], True)]


async def test_what_is_cleared_is_not_sent_to_a_peer_that_reads_slowly(ends):
    for word in ("being written", "speech", "a mark"):
        ends.transport.send(word)
    await wait_all_tasks_blocked()
    ends.transport.forget_unsent()
    ends.transport.send("clear")

    ends.socket.reads.set()
    await wait_all_tasks_blocked()

    assert ends.socket.read == ["being written", "clear"]
