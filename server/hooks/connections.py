"""One client's connection to hypercorn: HTTP/1.1 alone, with an end to every wait, and an island.

hypercorn lets whatever goes wrong in a connection out into the nursery of all connections, takes
everybody to HTTP/2 who asks for it, and keeps a connection open for as long as its client likes
once it has refused it something. :class:`Connection` is hypercorn's own class without that:

::

    head ──▶ request ──▶ answer ──▶ head …            each arrow has a bound; see the constants
      └──────── refused ──┴──▶ lingering ──▶ closed

No interface of hypercorn's is public here: pyproject.toml pins it to 0.18, and
tests/hooks/test_connections.py fails when another version goes another way.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import islice
from typing import Any, cast

import h11
import structlog
import trio
import wsproto.utilities
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11WSConnection
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from server.headroom import lowest_free_descriptor, memory_state
from server.hooks.http11 import Http11
from server.hooks.http_connection import Inbox
from server.hooks.sockets import (
    CLOSED_HERE,
    SHORT_OF_DESCRIPTORS,
    UNREAD_TIMEOUT_S,
    descriptors_for_all,
    is_readable,
)
from server.hooks.turns import MAX_TURN_S, Kind, Turns, shared_turns
from server.logs import Sparing

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LINGER_S = 2.0
"""After our last word the client's unread bytes are dropped for so long: to close over them would
reset the connection, and our last word with it (RFC 9112 section 9.6)."""
LINGER_BYTES = 256 * 1024
CLOSE_TIMEOUT_S = 1.0
"""For TLS to say goodbye."""
WRITE_BYTES = 64 * 1024
"""So much of an answer is taken in the time that a client has to take something: one that reads
slowly has as many of these times as its answer is long."""
LAST_READ_S = 0.5
"""For reading what has come already when a wait is over."""
LATE_READS = 8
"""So often, for one request: 64 KiB in records of TLS are four."""
ACCEPTED_PER_PASS = 32
"""Connections that are accepted before trio's other tasks have a turn: in the system's queue
everybody waits behind everybody, and here the kinds of requests take turns."""
TOO_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: %d\r\n"
    b"connection: close\r\n\r\n" % MAX_TURN_S
)
SHED_AT_ONCE = 64
SHED_PAUSE_S = 0.05
LEAVING_S = 5.0
"""Whoever is sent away is gone by then, on a busy machine as well, or something keeps them that is
not ours to wait for."""
CONNECTION_BYTES = 160 * 1024
"""What one that waits may have brought: a head and a body of 64 KiB each. All of them together have
a quarter of the memory that there is at start."""
FEWEST = 64
THEIR_FAULT = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    wsproto.utilities.ProtocolError,
)
"""A client has gone, or talks nonsense."""


class Doors:
    """What the connections of one server have in common: who may be sent away, and for whom.

    A connection that brings no whole request can be closed without harm: when descriptors are
    short, the one that has waited longest goes, and a client that has something to ask is let
    in instead. When nobody waits, nobody more is let in; calls keep what they have. Whoever has
    said something that is yet to be read, or to have its turn, is not sent away for it, once: who
    says a request bit by bit can be.
    """

    def __init__(self) -> None:
        limit = descriptors_for_all()
        self._most = math.inf if limit is None else limit
        memory = memory_state()
        self._most_waiting = (
            math.inf if memory is None else max(FEWEST, memory.left_bytes // 4 // CONNECTION_BYTES)
        )
        self._waiting: dict[trio.CancelScope, Connection | None] = {}  # longest first; of whom
        self._unheard: set[trio.CancelScope] = set()  # of them: what they said waits for its turn
        self._half_said: set[trio.CancelScope] = set()  # of them: they have had a turn
        self._to_begin = 0  # who has been let in, and has not had a pass of trio's since
        self._leaving: dict[object, float] = {}  # who has been sent away, and since when
        self._to_come: set[object] = set()  # of them: those whose places are nobody's yet
        self._spare: int | None = None
        self._shed = Sparing()
        self._bugs = Sparing()
        self._too_busy = Sparing()

    def begin(self) -> None:
        """A connection that was let in is served from now on."""
        self._to_begin -= 1

    def wait(
        self, scope: trio.CancelScope, who: Connection | None = None, *, half_said: bool = False
    ) -> None:
        """A connection waits for a request, or the rest of one, from now on; the scope ends it.

        Args:
            scope: Ends the wait.
            who: The connection, if it says when it is :meth:`gone`.
            half_said: It is the rest that it waits for.
        """
        self._waiting[scope] = who
        (self._half_said.add if half_said else self._half_said.discard)(scope)

    def wait_no_more(self, scope: trio.CancelScope) -> None:
        """The connection has brought a whole request, or is over."""
        self._waiting.pop(scope, None)
        self._half_said.discard(scope)

    def gone(self, who: object) -> None:
        """A connection is closed, and its descriptor free."""
        self._leaving.pop(who, None)
        self._to_come.discard(who)

    @contextmanager
    def hearing(self, scope: trio.CancelScope) -> Generator[None]:
        """What a connection has brought waits for its turn in this block: it is not sent away."""
        self._unheard.add(scope)
        try:
            yield
        finally:
            self._unheard.discard(scope)

    def heard(self, scope: trio.CancelScope) -> None:
        """A connection has had a turn, in which it may have said all of its request, or not."""
        if scope in self._waiting:
            self._half_said.add(scope)

    def dismiss(self) -> None:
        """Close every connection that waits for a request: the server stops."""
        self._half_said.clear()
        while self._waiting:
            scope, _ = self._waiting.popitem()
            scope.cancel("the server stops")

    async def let_in(self, stream: trio.SocketStream) -> bool:
        """Wait until there is a place for a connection that was accepted, if there will be one.

        Whoever is let in is to :meth:`begin`.

        Returns:
            False where everybody keeps their place: nobody waits for a request.
        """
        descriptor: int | None = stream.socket.fileno()
        give_up_at = trio.current_time() + MAX_TURN_S
        while not self.admit(descriptor):
            if not self._are_crowded or trio.current_time() >= give_up_at:
                self._note_shed()
                return False
            await trio.sleep(SHED_PAUSE_S)
            descriptor = lowest_free_descriptor()
        return True

    def admit(self, descriptor: int | None) -> bool:
        """Whether a new connection is let in at once.

        Args:
            descriptor: Its number, or one that is free by now: the system gives out the lowest.
                None: there is none.
        """
        has_number = descriptor is not None and descriptor < self._most
        has_room = has_number and len(self._waiting) < self._most_waiting
        if not has_room and self._send_away("a younger connection needs the place") is None:
            if not self._to_come:
                return False
            self._to_come.pop()  # it has no less right to it than who comes when it is free
        self._to_begin += 1
        return True

    @property
    def _are_crowded(self) -> bool:
        """Whether somebody who has a place, and cannot be sent away now, soon can be or is served.

        They have only just come, or have said something that is yet to have its turn.
        """
        return self._to_begin > 0 or bool(self._waiting)

    def _send_away(self, reason: str) -> object | None:
        """Send away who has waited longest and says nothing, or has said half of a request.

        Returns:
            Who that was, if anybody.
        """
        half_said, unheard = self._half_said, self._unheard
        may_go = (one for one in self._waiting if one in half_said or one not in unheard)
        for scope in islice(may_go, SHED_AT_ONCE):  # to ask the system takes its time
            who = self._waiting[scope]
            if scope in half_said or not self._says_something(who):
                self.wait_no_more(scope)
                scope.cancel(reason)
                if who is not None:
                    self._leaving[who] = trio.current_time()
                return who or scope
        return None

    def _says_something(self, who: Connection | None) -> bool:
        try:
            return who is not None and who.has_unread()
        except Exception as error:
            self.note_bug(error)  # which ends one, and not the service
            return False

    def make_room(self, listener: socket.socket) -> None:
        """Free a descriptor, as there is none left to accept a connection with.

        Where nobody can be sent away, nor soon, and nobody is on the way out, what waits to be
        accepted is closed. Left where it is, each client would wait until it gives up by itself.
        """
        self._note_shed()
        leave = [self._send_away("descriptors are short") for _ in range(SHED_AT_ONCE)]
        self._to_come |= self._leaving.keys() & set(leave)
        since = trio.current_time() - LEAVING_S
        if any(leave) or self._are_crowded:
            return
        if any(left_at > since for left_at in self._leaving.values()):
            return
        for _ in range(SHED_AT_ONCE):
            if self._spare is not None:
                os.close(self._spare)
                self._spare = None
            try:
                listener.accept()[0].close()
            except OSError:  # nobody waits, or somebody else has taken what we gave back
                break
            finally:
                self.keep_spare()

    def keep_spare(self) -> None:
        """Hold a descriptor that can be given back when there is no other."""
        if self._spare is None:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError:
                self._spare = None

    def close(self) -> None:
        """Give the spare descriptor back."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _note_shed(self) -> None:
        message = "connections closed: descriptors are short (raise ulimit -n), or memory is"
        self._shed.log(trio.current_time(), logger.warning, message)

    def note_too_busy(self) -> None:
        """A request was refused unread."""
        message = "requests refused unread: more come than can be served in time"
        self._too_busy.log(trio.current_time(), logger.warning, message)

    def note_bug(self, error: BaseException) -> None:
        """Something went wrong in a connection that should not: it ends, and nothing else."""
        message = "connection ended by a bug of ours"
        self._bugs.log(trio.current_time(), logger.error, message, exc_info=error)


class Listener(trio.abc.Listener[trio.SocketStream]):
    """A listening socket that goes on listening when descriptors have run out."""

    def __init__(self, sock: socket.socket, doors: Doors) -> None:
        self._sock = sock
        self._doors = doors
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self._in_a_row = 0

    async def accept(self) -> trio.SocketStream:
        """Wait for a client that has a place; of those that wait already, some come without a wait.

        The place is given here, before anybody else is accepted: whoever is served later might find
        that all who could be sent away have been, for those who were accepted together with it.
        """
        while True:
            stream = None
            try:
                if self._in_a_row < ACCEPTED_PER_PASS:
                    stream = self._accept_nowait()
            except OSError as error:
                if error.errno not in SHORT_OF_DESCRIPTORS:
                    raise
                if is_readable(self._sock.fileno()):  # the system says so when nobody waits, too
                    self._doors.make_room(self._sock)
                    await trio.sleep(SHED_PAUSE_S)
                    continue
            if stream is None:
                self._in_a_row = 0
                await trio.lowlevel.wait_readable(self._sock)
                continue
            self._in_a_row += 1
            with ExitStack() as unless_let_in:
                unless_let_in.callback(stream.socket.close)
                if await self._doors.let_in(stream):
                    unless_let_in.pop_all()
                    return stream

    def _accept_nowait(self) -> trio.SocketStream | None:
        try:
            accepted, _ = self._sock.accept()
        except OSError as error:
            if error.errno in SHORT_OF_DESCRIPTORS | CLOSED_HERE | {errno.EINVAL}:
                raise  # the last: it does not listen any more
            return None  # nobody waits, or it is that client's own trouble
        try:
            return trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
        except OSError:  # it has gone already
            accepted.close()
            return None

    async def aclose(self) -> None:
        """Listen no more."""
        await self._listener.aclose()


class _Requests(TaskGroup):
    """hypercorn's tasks that ask the app, with a bounded log."""

    def __init__(self, doors: Doors) -> None:
        super().__init__()
        self._doors = doors

    async def spawn_app(
        self, app: Any, config: Any, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Ask the app; the value is what gives it its events."""
        inbox = Inbox(config.max_app_queue_size)
        self.spawn(self._ask, app, scope, inbox, send)
        return inbox.put

    async def _ask(
        self, app: Any, scope: Any, inbox: Inbox, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        try:
            await app(scope, inbox.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
        except* Exception as failures:
            self._doors.note_bug(failures)
        finally:
            inbox.close()
            await send(None)


class Connection(TCPServer):
    """One connection, from the client's first byte to the last of ours.

    Args:
        doors: What it shares with the others.
        app: hypercorn's wrapper of the app.
        config: hypercorn's; its ``keep_alive_timeout`` bounds the wait for a whole head.
        context: hypercorn's.
        state: hypercorn's; every request's scope gets a copy.
        stream: The accepted connection.
    """

    protocol: Http11  # type: ignore[assignment]  # hypercorn has one for HTTP/2 around it

    def __init__(
        self, doors: Doors, app: Any, config: Any, context: Any, state: Any, stream: Any
    ) -> None:
        super().__init__(app, config, context, state, stream)
        self._doors = doors
        self._reading = trio.CancelScope()  # ends when there is nothing more to be read
        self._idle = trio.CancelScope()  # one wait for more, which ends when that is due
        self._due_at = math.inf
        self._late_reads = LATE_READS
        self._turns: Turns = shared_turns()
        self._has_closed = False
        self._is_from_us = False

    async def run(self) -> None:
        """Serve it to its end; never raises for anything that a connection can do wrong."""
        try:
            await self._serve()
        except* THEIR_FAULT:
            pass
        except* Exception as failures:
            self._doors.note_bug(failures)
        finally:
            self._doors.wait_no_more(self._reading)  # also if an answer's end began another wait
            with trio.CancelScope(shield=True):
                await self._close()
            self._doors.gone(self)
            # What it holds leads back to it, and would wait for the garbage collector, which has
            # little time while there are calls: 10 KiB a connection, and more with TLS.
            vars(self).clear()

    @property
    def _is_tls(self) -> bool:
        return isinstance(self.stream, trio.SSLStream)

    @property
    def asks_for_websocket(self) -> bool:
        """Whether its request is for a WebSocket, and may still be accepted."""
        protocol = self.protocol
        return isinstance(protocol.connection, H11WSConnection) and protocol.stream is not None

    async def _serve(self) -> None:
        if is_tls := self._is_tls:
            with trio.move_on_after(self.config.keep_alive_timeout) as handshake:
                self._doors.wait(handshake, self)
                try:
                    await self.stream.do_handshake()
                finally:
                    self._doors.wait_no_more(handshake)
            if handshake.cancelled_caught:
                return
        sock = self.stream.transport_stream.socket if is_tls else cast(Any, self.stream).socket
        self._is_from_us = sock.family == getattr(socket, "AF_UNIX", None)
        async with _Requests(self._doors) as requests:
            self.protocol = Http11(
                self.app,
                self.config,
                self.context,
                requests,
                ConnectionState(cast(Any, self.state)),
                is_tls,
                parse_socket_addr(sock.family, sock.getpeername()),
                parse_socket_addr(sock.family, sock.getsockname()),
                self.protocol_send,
            )
            try:
                self._wait_for_request()
                with self._reading:
                    await self._read_data()
                await self.protocol.handle(Closed())
            finally:
                self.protocol.has_ended = True  # however it ended: hypercorn answers for no app now
                self._doors.wait_no_more(self._reading)
                self.requests_are_over()
            if self._has_closed:
                await self._linger()
            await self._close()

    def requests_are_over(self) -> None:
        """The app knows that nothing more is read from this connection: no request comes after."""

    def _wait_for_request(self) -> None:
        self._due_at = self._idle.deadline = trio.current_time() + self.config.keep_alive_timeout
        self._late_reads = LATE_READS
        self._doors.wait(self._reading, self)

    async def _read_data(self) -> None:
        while data := await self._receive_in_time():
            if not await self._wait_turn(Kind.of(data)):
                self._has_closed = True
                self._doors.note_too_busy()
                await self._send(TOO_BUSY)
                return
            await self.protocol.handle(RawData(bytes(data)))
            self._note_half_said()

    async def _wait_turn(self, kind: Kind) -> bool:
        """Wait for the turn of what has come; False if it is to be refused unread.

        What another process of ours passes on has waited there already.
        """
        if kind is Kind.ACT:
            if self._is_from_us or not self._is_at_rest:
                kind = Kind.REST
            elif self._turns.wait_s(kind) > MAX_TURN_S:
                return False
        with self._doors.hearing(self._reading):
            has_turn = await self._turns.take(kind)
        self._doors.heard(self._reading)
        return has_turn

    @property
    def _is_at_rest(self) -> bool:
        """Whether the next byte begins a request."""
        connection = self.protocol.connection
        if isinstance(connection, H11WSConnection):
            return False
        return connection.their_state is h11.IDLE and not connection.trailing_data[0]

    def _note_half_said(self) -> None:
        """Whoever leaves a request half said can be sent away, as whoever says nothing can."""
        connection = self.protocol.connection
        if isinstance(connection, H11WSConnection) or connection.their_state is h11.IDLE:
            return
        if connection.their_state is h11.SEND_BODY:
            self._doors.wait(self._reading, self, half_said=True)
        else:
            self._doors.wait_no_more(self._reading)

    async def _receive_in_time(self) -> bytes | bytearray:
        """Wait for more until a request is due; empty when nothing has come by then.

        What has come counts, however late we are to read it, and however long it then waits for
        its turn: that is our own queue, and no fault of the client's.
        """
        self._idle = trio.CancelScope(deadline=self._due_at)
        with self._idle:
            return await self._receive()
        if not self._late_reads or not self.has_unread():
            return b""
        self._late_reads -= 1
        with trio.move_on_after(LAST_READ_S):
            return await self._receive()
        return b""

    def has_unread(self) -> bool:
        """Whether something has come from its client that it has not read yet."""
        plain: Any = self.stream.transport_stream if self._is_tls else self.stream
        return is_readable(plain.socket.fileno())

    async def _receive(self) -> bytes | bytearray:
        # trio's other tasks have a pass between the read of what is there and its end. Of TLS it
        # may be half a record, and a wait.
        is_there = not self._is_tls and self.has_unread()
        try:
            with self._doors.hearing(self._reading) if is_there else nullcontext():
                return await self.stream.receive_some(MAX_RECV)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""  # a reset is an end like any other, and the app is told of it

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol asks for."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Closed):
            await self._end()
        elif isinstance(event, Updated):
            if event.idle and not self.protocol.has_ended:
                self._wait_for_request()
            elif not event.idle:
                self._due_at = self._idle.deadline = math.inf
                self._doors.wait_no_more(self._reading)

    async def _close(self) -> None:
        with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(CLOSE_TIMEOUT_S):
            await self.stream.aclose()
        await trio.aclose_forcefully(self.stream)

    async def _send(self, data: bytes) -> None:
        # To leave off in the middle would leave half a message there, hence the shield; a client
        # that takes nothing is gone, and nothing of ours waits for it.
        try:
            async with self.send_lock:
                due_at, pieces = math.inf, memoryview(data)
                for start in range(0, len(pieces), WRITE_BYTES):
                    # From a cancel on, all that is left has the time of the piece it came in.
                    if due_at == math.inf or trio.current_effective_deadline() > -math.inf:
                        due_at = trio.current_time() + UNREAD_TIMEOUT_S
                    with trio.fail_at(due_at, shield=True):
                        await self.stream.send_all(pieces[start : start + WRITE_BYTES])
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._reading.cancel("the client takes nothing")
            await self.protocol.handle(Closed())

    async def _end(self) -> None:
        """Say no more, and read no more requests."""
        self._has_closed = self.protocol.has_ended = True
        with suppress(AttributeError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with self.send_lock:  # a write that is stuck has a bound of its own
                await cast(Any, self.stream).send_eof()  # TLS has no half of an end
        self._reading.cancel("the last answer has been given")
        await self.protocol.handle(Closed())

    async def _linger(self) -> None:
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_S) as scope:
            self._doors.wait(scope, self)
            try:
                while left > 0 and (data := await self._receive()):
                    left -= len(data)
            finally:
                self._doors.wait_no_more(scope)
