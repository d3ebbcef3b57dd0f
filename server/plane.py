"""The media plane: every media socket of the process in one epoll, served while trio sleeps.

On the ordinary path a 20 ms frame crosses a reader task, two protocol layers and two queues before
a call sees it. Here the socket is ours, not blocking, and its WebSocket is the codec's: a frame is
one ``recv`` and a few microseconds of C. The nursery of a call still owns everything of its call;
the plane is a service that calls back when bytes have come, and forgets a socket when told.

::

    epoll says "readable" ── Wire ── WebSocket (C) ── messages ──▶ inbox ──▶ the task that receives
                               ▲                        │      └─▶ a listener
                               └── backlog ◀── bytes ◀──┘   pongs, closes, whatever is sent

A call's two wires can be joined (``relay.py``): then audio does not become a message at all.

Linux only, because of epoll: elsewhere :data:`AVAILABLE` is False and the ordinary path serves.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Collection
from time import monotonic

import structlog
import trio

from codec.path import WebSocket
from codec.pump import Descriptor, Left, Pump
from server.trio_hook import serving_while_trio_sleeps

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

AVAILABLE = hasattr(select, "epoll")
_READABLE = select.EPOLLIN if AVAILABLE else 1
# An enumeration is slow to look into.
_NOTHING, _OUTPUT, _READING = int(Left.NOTHING), int(Left.OUTPUT), int(Left.READING)

Messages = list[tuple[bytes, bool]]
"""Complete messages, and whether each is text."""

READ_BYTES = 64 * 1024
"""Read at most at once from one socket, so that one busy call cannot hold up the others."""
READS_PER_PASS = 4
"""TLS hands out a record (16 KiB) at a time; what is left is read in the next pass."""
MESSAGES_PER_PASS = 128
"""Messages of one socket that Python sees before the others have their turn; meanwhile it is not
read. The smallest has two bytes, so what one read brings may hold tens of thousands."""
READY_PER_PASS = 128
"""Sockets that are served before trio is asked again; those that are left come first then."""
MAX_INBOX = 256
"""Messages nobody has taken yet; then the socket is no longer read, and TCP holds the peer back."""
MAX_BACKLOG_BYTES = 4 * 1024 * 1024
"""Bytes a peer has not read; beyond it has stalled, and its connection is given up."""


class Plane:
    """One epoll, served while trio sleeps, or by a task where that cannot be."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}
        self._again: set[Wire] = set()
        self._pumps: dict[int, Pump] = {}
        self._called_back = False  # Python has been called, and may have given trio work

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve every wire until cancelled."""
        with self._epoll, serving_while_trio_sleeps(self) as trios:
            task_status.started()
            if trios is not None:
                self._epoll.register(trios, select.EPOLLIN)
                await trio.sleep_forever()
            while True:
                if self._again:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._serve()

    def serve_until(self, timeout_s: float, wakes_at: int, has_work: Callable[[], bool]) -> bool:
        """See :class:`server.trio_hook.SleepsWell`."""
        until = monotonic() + timeout_s
        left_s = timeout_s
        while True:
            if wakes_at in self._serve(0.0 if self._again else left_s):
                return True
            if self._called_back:
                self._called_back = False
                if has_work():
                    return True
            if (left_s := until - monotonic()) <= 0.0:
                return False

    def _serve(self, timeout_s: float = 0.0) -> Collection[int]:
        """One fair pass: every socket that has something gets one bounded turn.

        Returns:
            File numbers that were ready and are no wire's.
        """
        others: Collection[int] = ()
        again = self._again
        if again:
            self._again, self._called_back = set(), True
            for wire in again:
                wire.serve(_READABLE)
        ready = self._epoll.poll(timeout_s, READY_PER_PASS)
        now, pumps, wires = trio.current_time(), self._pumps, self._wires
        for number, events in ready:
            left = _READING
            if events == _READABLE and (pump := pumps.get(number)) is not None:
                try:
                    if (left := pump.run(now)) == _NOTHING:
                        continue
                    self._called_back = True  # a sink that fails tells its own session
                    if left == _OUTPUT:
                        wires[number].flush_sink()
                        pump.written()
                        continue
                except Exception:
                    self._called_back = True
                    wires[number].fail_by_a_bug()  # nobody can have closed it since it was asked
                    continue
            if (wire_or_none := wires.get(number)) is None:
                others = (*others, number)
            elif wire_or_none not in again:
                self._called_back = True
                wire_or_none.serve(events, left)
        return others

    def add(self, wire: Wire) -> None:
        """Watch a wire's socket."""
        number = wire.fileno()
        self._wires[number] = wire
        self._epoll.register(number, select.EPOLLIN)

    def watch(self, wire: Wire, *, reading: bool, writing: bool) -> None:
        """Change what is waited for."""
        events = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if writing else 0)
        self._epoll.modify(wire.fileno(), events)

    def read_again(self, wire: Wire) -> None:
        """There is more in the wire's TLS buffer, or in ours, which epoll cannot know."""
        self._again.add(wire)

    def pump(self, wire: Wire, pump: Pump | None) -> None:
        """Let this read the wire's socket first, or nobody."""
        self._pumps.pop(wire.fileno(), None)
        if pump is not None and wire.fileno() in self._wires:
            self._pumps[wire.fileno()] = pump

    def forget(self, wire: Wire) -> None:
        """Stop watching; done before the socket is closed, as its number will be used again."""
        self._again.discard(wire)
        self._pumps.pop(wire.fileno(), None)
        if self._wires.pop(wire.fileno(), None) is not None:
            self._epoll.unregister(wire.fileno())

    @property
    def wires(self) -> int:
        """How many sockets are watched."""
        return len(self._wires)


class Wire:
    """One media WebSocket on the plane.

    One task receives; sending never waits, so any task may send.

    Args:
        plane: Serves it.
        sock: A connected socket whose opening handshake is done; not blocking. Owned from now on.
        websocket: Its protocol.
        early: What was already read beyond the handshake.
    """

    def __init__(
        self,
        plane: Plane,
        sock: socket.socket,
        websocket: WebSocket,
        early: bytes = b"",
    ) -> None:
        self.websocket = websocket
        self._listener: Callable[[Messages, bool], None] | None = None
        self._next_message = websocket.next_message
        self._sink: Wire | None = None
        self._plane = plane
        self._sock = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self.descriptor = Descriptor(sock.fileno(), takes_output=self._tls is None)
        self._inbox: deque[tuple[bytes, bool]] = deque()
        self._news = trio.Event()
        self._backlog = bytearray()
        self._paused = False
        self._behind = False  # messages are here that have not been looked at
        self._writing = False
        self._closed = False
        plane.add(self)
        if early:
            websocket.receive(early)
            self._deliver()

    def fileno(self) -> int:
        """The socket's number, as long as it is open."""
        return self._sock.fileno()

    # -- called by the plane ---------------------------------------------------------------

    def serve(self, events: int, left: int = _READING) -> None:
        """Do what the socket is ready for; a failure here is this call's and nobody else's.

        Args:
            events: What epoll says.
            left: What a pump that has read already has left.
        """
        try:
            if events & select.EPOLLOUT:
                self.flush()
            if self._behind or left != _READING:
                self._deliver()
                self._stop_at_end()
            elif events & ~select.EPOLLOUT:
                self._read()
        except Exception:
            self.fail_by_a_bug()

    def fail_by_a_bug(self) -> None:
        """Say what has just been raised, and treat the connection as lost."""
        logger.exception("media socket failed by a bug of ours")
        self.fail()

    def _stop_at_end(self) -> None:
        if self.websocket.ended:
            self._pause(True)  # an ended socket stays readable for ever

    def _read(self) -> None:
        websocket, recv = self.websocket, self._sock.recv
        for _ in range(READS_PER_PASS):
            try:
                data = recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError:  # reset, or broken TLS: the peer is gone either way
                data = b""
            if not data:
                websocket.receive_eof()
                break
            websocket.receive(data)
            # TLS may have decrypted more than we have read, which epoll cannot know.
            if len(data) < READ_BYTES and (self._tls is None or not self._tls.pending()):
                break
        else:
            self._plane.read_again(self)
        self._deliver()
        self._stop_at_end()

    def _deliver(self) -> None:
        """Give what has come to the listener, or put it into the inbox."""
        websocket, inbox, left = self.websocket, self._inbox, MESSAGES_PER_PASS
        was_behind, self._behind = self._behind, False
        while (message := self._next_message()) is not None:
            inbox.append((message, websocket.is_text))
            if self._listener is not None:
                # One by one: what it does about one may decide how the next is read.
                self._listener([inbox.popleft()], False)
            left -= 1
            if not left and not self._closed:
                self._behind = True
                self._pause(True)
                self._plane.read_again(self)
                break
        if was_behind and not self._behind and not websocket.ended:
            self._pause(False)
        if websocket.output_bytes:
            self.flush()
        if self._behind:
            pass  # the end comes after them
        elif self._listener is not None:
            if inbox or websocket.ended:
                messages = list(inbox)
                inbox.clear()
                self._listener(messages, websocket.ended)
        elif len(inbox) >= MAX_INBOX:
            self._pause(True)
        if inbox or (websocket.ended and not self._behind):
            self._news.set()

    # -- for the call ----------------------------------------------------------------------

    async def receive(self) -> tuple[bytes, bool] | None:
        """Wait for a message and whether it is text; None when the connection has ended."""
        while not self._inbox:
            if self.is_over:
                return None
            if self._news.is_set():  # else somebody waits for it: the one who closes waits, too
                self._news = trio.Event()
            await self._news.wait()
        return self._take()

    def listen(self, listener: Callable[[Messages, bool], None]) -> None:
        """Call back with what each read brought, and whether that was the end, instead.

        What is in the inbox is given to it at once. It is called by the plane, for whose other
        sockets' sake it must be quick.
        """
        self._listener = listener
        self._deliver()
        if self._paused and not (self.websocket.ended or self._behind):
            self._pause(False)

    def read_through(
        self,
        next_message: Callable[[], bytes | None],
        pump: Pump | None = None,
        sink: Wire | None = None,
    ) -> None:
        """Ask this for the next message from now on; it sees all that the WebSocket has.

        Args:
            next_message: Gives it, or None.
            pump: Is asked before, whenever the socket is readable; what it leaves goes that way.
            sink: The wire that the pump writes to.
        """
        self._next_message = next_message
        self._sink = sink
        self._plane.pump(self, pump if self._tls is None else None)

    def flush_sink(self) -> None:
        """Write what the pump has made and could not write itself: TLS, or a full socket."""
        if self._sink is not None:
            self._sink.flush()

    @property
    def has_inbox(self) -> bool:
        """Whether something has come that nobody has taken."""
        return bool(self._inbox)

    def receive_nowait(self) -> tuple[bytes, bool] | None:
        """A message that is already here, or None."""
        return self._take() if self._inbox else None

    def _take(self) -> tuple[bytes, bool]:
        message = self._inbox.popleft()
        may_read = not (self.websocket.ended or self._behind)
        if self._paused and len(self._inbox) < MAX_INBOX // 2 and may_read:
            self._pause(False)
        return message

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be received."""
        ended = self.websocket.ended and not self._behind
        return not self._inbox and (ended or self._closed)

    def send_text(self, data: bytes) -> None:
        """Send a text message; dropped when the connection is closing."""
        if self.websocket.is_open and not self._closed:
            self.websocket.send_text(data)
            self.flush()

    def flush(self) -> None:
        """Write what the WebSocket has for the socket, and keep what does not go."""
        data = self.websocket.take_output()
        if self._closed:
            return
        if self._backlog:
            self._backlog += data
            data = bytes(self._backlog)
            self._backlog.clear()
        size = len(data)
        while size:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
            except OSError:
                self.fail()
                return
            size -= sent
            if size:
                data = data[sent:]
        if size:
            self._backlog += data
            if size > MAX_BACKLOG_BYTES:
                logger.warning("media socket given up: its peer has stopped reading")
                self.fail()
                return
        if (size > 0) is not self._writing:
            self._writing = size > 0
            self.descriptor.takes_output = not self._writing and self._tls is None
            self._watch()

    def fail(self) -> None:
        """Treat the connection as lost."""
        self._backlog.clear()
        self.websocket.receive_eof()
        self._pause(True)
        self._news.set()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener([], True)

    def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye; the peer is to answer, and the socket stays open for that."""
        if self.websocket.is_open and not self._closed:
            self.websocket.send_close(code, reason)
            self.flush()

    async def wait_ended(self, *, timeout_s: float) -> None:
        """Wait until the peer has said goodbye, too, or is gone; for a bounded time.

        A socket that is closed with something unread in it is reset, and our goodbye with it.
        """
        self._listener = None
        with trio.move_on_after(timeout_s):
            while await self.receive() is not None:
                pass

    def close(self) -> None:
        """Close the socket now; closing again does nothing."""
        if not self._closed:
            self._plane.forget(self)
            self._closed = True
            self.descriptor.number = -1
            self._sock.close()
            self._news.set()

    def _pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self._watch()

    def _watch(self) -> None:
        if not self._closed:
            self._plane.watch(self, reading=not self._paused, writing=self._writing)
