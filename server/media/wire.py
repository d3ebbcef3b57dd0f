"""One media WebSocket on the plane: a socket that never waits, and its protocol's state.

Everybody has a turn in each pass of the plane's, and each turn is bounded here: in bytes read, in
messages that Python looks at, in bytes written. A socket that has not shown a ticket is a
stranger's: it has less of each, and a small allowance in all (``bounds.py``), as the carrier sends
next to nothing then.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import structlog
import trio

from codec.path import WebSocket
from codec.pump import Descriptor, Left, Pump
from server.logs import log_stranger
from server.media.bounds import KNOWN, READ_BYTES, STRANGER, Bounds
from server.media.words import MediaSocket, Messages
from server.signal import Once

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

READABLE = getattr(select, "EPOLLIN", 1)
WRITABLE = getattr(select, "EPOLLOUT", 4)
READING = int(Left.READING)  # an enumeration is slow to look into

READS_PER_PASS = 4
"""Python's TLS hands out a record (16 KiB) at a time; what is left is read in the next pass."""
MESSAGES_PER_PASS = 64
"""Messages of one socket that Python looks at in a pass: more than a second of audio, and far less
than the ten thousand small ones that fit into what is read."""
WRITE_BYTES = 64 * 1024
"""Copied at most for one write."""
MAX_WRITTEN_BYTES = 256 * 1024
"""Written at most in a pass to one socket."""
LINGER_BYTES = 64 * 1024
"""Dropped unread after a peer has broken the rules, so that it gets our goodbye; see
:meth:`Wire.wait_ended`."""
POLICY_VIOLATION = 1008


class Watcher(Protocol):
    """Says when sockets are ready: the plane."""

    def add(self, wire: Wire) -> None:
        """Watch a wire's socket."""
        ...

    def watch(self, wire: Wire, *, reading: bool, writing: bool) -> None:
        """Change what is waited for; if that is nothing, epoll is silent about its end, too."""
        ...

    def read_again(self, wire: Wire) -> None:
        """Read the wire in the next pass, too: there is more, which epoll cannot know."""
        ...

    def pump(self, wire: Wire, pump: Pump | None) -> None:
        """Let this read the wire's socket first, or nobody."""
        ...

    def forget(self, wire: Wire) -> None:
        """Stop watching; done before the socket is closed, as its number will be used again."""
        ...


class Wire:
    """One media WebSocket on the plane.

    One task receives; sending never waits, so any task may send. It is long because it is both a
    socket and its protocol's state: what epoll is told depends on both.

    Args:
        plane: Serves it.
        sock: A connected socket whose opening handshake is done; not blocking. Owned from now on.
        websocket: Its protocol.
        early: What was already read beyond the handshake.
        bounds: What its peer may have until it is :meth:`trust`-ed.

    Attributes:
        refusal: Why a stranger's socket was given up, or empty.
    """

    def __init__(
        self,
        plane: Watcher,
        sock: MediaSocket,
        websocket: WebSocket,
        early: bytes = b"",
        *,
        bounds: Bounds = KNOWN,
    ) -> None:
        self.websocket = websocket
        self.refusal = ""
        self._bounds = bounds
        self._received_bytes = 0  # counted while there is a bound on them
        self._listener: Callable[[Messages, bool], None] | None = None
        self._next_message = websocket.next_message
        self._flush_sink: Callable[[], None] | None = None
        self._plane = plane
        self._sock = sock
        self._tls = sock if isinstance(sock, (ssl.SSLSocket, Descriptor)) else None
        self._is_pumped = not isinstance(sock, ssl.SSLSocket)  # Python's TLS is Python's to read
        self.descriptor: Descriptor
        if isinstance(sock, Descriptor):  # TLS in C
            self.descriptor = sock
        else:
            self.descriptor = Descriptor(sock.fileno(), takes_output=self._is_pumped)
        self._inbox: list[tuple[bytes, bool]] = []
        self._news = Once()
        self._is_full = False  # the inbox is, and nobody listens
        self._has_more = False  # read, but not looked at for want of turns
        self._at_eof = False
        self._lingers = False
        self._is_blocked = False  # TLS has to say something before it can read on
        self._is_mute = False  # TLS has to hear something before it can write on
        self._paused = False
        self._writing = False
        self._is_lost = False  # for writing: what the peer has said before is still to be read
        self._closed = False
        plane.add(self)
        if early:
            websocket.receive(early)
            self._deliver_all()
        if self._tls is not None and self._tls.pending():
            plane.read_again(self)  # read before there was anybody to ask

    def fileno(self) -> int:
        """The socket's number, as long as it is open."""
        return self._sock.fileno()

    # -- called by the plane ---------------------------------------------------------------

    def serve(self, events: int, left: int = READING) -> None:
        """Do what the socket is ready for; a failure here is this call's and nobody else's.

        Args:
            events: What epoll says.
            left: What a pump that has read already has left.
        """
        if self._closed:
            return  # by somebody who was served in the same pass
        try:
            if events & WRITABLE:
                self._write()
                if self._is_blocked:
                    self._is_blocked, events = False, READABLE
                    self._watch()
            if left != READING:
                self._deliver()
            elif events == READABLE and self._paused and not self._has_more:
                pass  # was to be read again, and must wait: what TLS holds is not lost
            elif events & ~WRITABLE:
                self._read()
        except Exception:
            self.fail_by_a_bug()

    def fail_by_a_bug(self) -> None:
        """Say what has just been raised, and treat the connection as lost; never raises."""
        message = "media socket failed by a bug of ours"
        if self._bounds is STRANGER:
            log_stranger(logger.error, message, exc_info=True)
        else:
            logger.exception(message)
        try:
            self.fail()
        except Exception:  # whoever listens fails at the end, too
            logger.exception(message)

    def _read(self) -> None:
        websocket, bounds, tls = self.websocket, self._bounds, self._tls
        if self._has_more:  # comes first
            self._deliver()
            return
        recv = self._sock.recv
        if self._lingers:
            self._drop(recv)
            return
        left = 1 if self._is_pumped else READS_PER_PASS
        while True:
            try:
                data = recv(bounds.read_bytes)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._at_eof = self._is_lost  # all that it has said has been read
                break
            except ssl.SSLWantWriteError:
                self._at_eof = self._is_lost
                self._is_blocked = not self._is_lost
                self._watch()
                break
            except OSError:  # reset, or broken TLS: the peer is gone either way
                data = b""
            if not data:
                self._at_eof = True
                break
            websocket.receive(data)
            if bounds is not KNOWN:
                self._count(len(data))
            # TLS may have decrypted more than we have read, which epoll cannot know.
            if not self._is_lost and (tls is None or not tls.pending()):
                break
            left -= 1
            if not left:
                self._plane.read_again(self)
                break
        if self._is_mute:
            self._write()
        self._deliver()

    def _count(self, size: int) -> None:
        self._received_bytes += size
        if self._received_bytes > self._bounds.total_bytes:
            self._refuse("more was sent than may be before a start")

    def _drop(self, recv: Callable[[int], bytes]) -> None:
        try:
            data = recv(READ_BYTES)
        except BlockingIOError:
            if not self._is_lost:
                return
            data = b""
        except OSError:
            data = b""
        self._received_bytes += len(data)
        if not data or self._received_bytes > LINGER_BYTES:
            self._lingers, self._at_eof = False, True
            self._settle()
            self._news.set()

    def _deliver(self) -> None:
        """Give what has come to the listener, or put it into the inbox; a bounded number."""
        websocket, inbox, left = self.websocket, self._inbox, MESSAGES_PER_PASS
        self._has_more = False
        while (message := self._next_message()) is not None:
            inbox.append((message, websocket.is_text))
            if self._listener is not None:
                # One by one: what it does about one may decide how the next is read.
                self._listener([inbox.pop(0)], False)
            left -= 1
            if not left:
                self._has_more = True
                self._plane.read_again(self)
                break
        if self._at_eof and not self._has_more:
            websocket.receive_eof()
        if self._bounds is not KNOWN and websocket.frames > self._bounds.frames:
            self._refuse("more frames were sent than may be before a start")
        if websocket.output_bytes:
            self.flush()
        ended = websocket.ended
        if self._listener is not None:
            if inbox or ended:
                messages = list(inbox)
                inbox.clear()
                self._listener(messages, ended)
        elif len(inbox) >= self._bounds.inbox:
            self._is_full = True
        if self._paused or self._is_full or self._has_more or ended:
            self._settle()
        if inbox or ended:
            self._news.set()

    def _deliver_all(self) -> None:
        """Give what has come, where no pass of the plane's need follow: one read's worth."""
        self._deliver()
        while self._has_more:
            self._deliver()

    def _refuse(self, reason: str) -> None:
        """Send a stranger away, and forget what it has said."""
        if not self.websocket.ended:
            self.refusal = reason
            self.websocket.refuse(POLICY_VIOLATION, reason)
            self._inbox.clear()

    # -- for the call ----------------------------------------------------------------------

    async def receive(self) -> tuple[bytes, bool] | None:
        """Wait for a message and whether it is text; None when the connection has ended."""
        while not self._inbox:
            if self.websocket.ended or self._closed:
                return None
            if self._news.is_set():  # else somebody waits for it: the one who closes waits, too
                self._news = Once()
            await self._news.wait()
        message = self._inbox.pop(0)
        if self._is_full and len(self._inbox) <= self._bounds.inbox // 2:
            self._is_full = False
            self._settle()
        return message

    def listen(self, listener: Callable[[Messages, bool], None]) -> None:
        """Call back with what each read brought, and whether that was the end, instead.

        What is in the inbox is given to it at once. It is called by the plane, for whose other
        sockets' sake it must be quick.
        """
        self._listener = listener
        self._is_full = False
        self._deliver_all()

    def read_through(
        self,
        next_message: Callable[[], bytes | None],
        pump: Pump | None = None,
        flush_sink: Callable[[], None] | None = None,
    ) -> None:
        """Ask this for the next message from now on; it sees all that the WebSocket has.

        Args:
            next_message: Gives it, or None.
            pump: Is asked before, whenever the socket is readable; what it leaves goes that way.
            flush_sink: Writes what the pump has made for its other socket and could not write.
        """
        self._next_message = next_message
        self._flush_sink = flush_sink
        self._plane.pump(self, pump if self._is_pumped else None)

    def flush_sink(self) -> None:
        """Write what the pump has made and could not write: a full socket, or Python's TLS."""
        if self._flush_sink is not None:
            self._flush_sink()

    @property
    def has_inbox(self) -> bool:
        """Whether something has come that nobody has taken."""
        return bool(self._inbox)

    def trust(self) -> None:
        """The peer has shown the ticket of a call: from now on it has the bounds of one."""
        self._bounds = KNOWN
        self._is_full = len(self._inbox) >= KNOWN.inbox
        self._settle()

    def send_text(self, data: bytes) -> None:
        """Send a text message; dropped when the connection is closing."""
        if self.websocket.is_open and not self._closed:
            self.websocket.send_text(data)
            self.flush()

    def send_binary(self, data: bytes) -> None:
        """Send a binary message; dropped when the connection is closing."""
        if self.websocket.is_open and not self._closed:
            self.websocket.send_binary(data)
            self.flush()

    def flush(self) -> None:
        """Write what the WebSocket has for the socket; what does not go stays with it."""
        if self._closed or self._is_lost:
            self.websocket.drop_output()
        elif not self._writing:
            self._write()
        elif self.websocket.output_bytes > self._bounds.backlog_bytes:
            self._give_up()

    def forget_unsent(self) -> None:
        """Drop every message of which the socket has taken nothing; behind TLS nothing is."""
        if self._tls is None:  # it is to be offered again what it did not take
            self.websocket.forget_unsent()

    def _write(self) -> None:
        """Write as much as the socket takes, with a bound."""
        websocket, send, written = self.websocket, self._sock.send, 0
        waits = is_mute = False
        while data := websocket.next_output(WRITE_BYTES):
            waits = True
            try:
                sent = send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                break
            except ssl.SSLWantReadError:
                is_mute = True
                break
            except OSError:
                self._lose()
                return
            if not websocket.output_written(sent):
                waits = False
                break
            written += sent
            # Python's TLS takes a record (16 KiB) at a time; others that leave some are full.
            if written >= MAX_WRITTEN_BYTES or (sent < len(data) and self._is_pumped):
                break
        if waits and websocket.output_bytes > self._bounds.backlog_bytes:
            self._give_up()
            return
        if waits is not self._writing or is_mute is not self._is_mute:
            self._writing, self._is_mute = waits, is_mute
            self.descriptor.takes_output = not waits and self._is_pumped
            self._watch()

    def _lose(self) -> None:
        """Nothing can be written any more: the peer is gone, and has maybe said why before."""
        self._is_lost = True
        self.websocket.drop_output()
        self._writing = self._is_mute = self.descriptor.takes_output = False
        self._watch()
        self._plane.read_again(self)

    def _give_up(self) -> None:
        if self._bounds is STRANGER:
            self.refusal = "it does not read what it asks for"
        else:
            logger.warning("media socket given up: its peer has stopped reading")
        self.fail()

    def fail(self) -> None:
        """Treat the connection as lost."""
        self.websocket.drop_output()
        self.websocket.receive_eof()
        self._settle()
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

        A socket that is closed with something unread in it is reset, and our goodbye with it. So
        where the peer has broken the rules, and nothing is looked at any more, it is told that we
        have ended, and what it still sends is dropped: a bounded number of bytes.
        """
        self._listener = None
        with trio.move_on_after(timeout_s):
            while await self.receive() is not None:
                pass
            if self.websocket.failure is None or self._tls is not None or self._at_eof:
                return
            if not self._writing:
                with suppress(OSError):  # it has gone
                    self._sock.shutdown(socket.SHUT_WR)
            self._lingers, self._received_bytes = True, 0
            self._settle()
            while not self._at_eof and not self._closed:
                self._news = Once()
                await self._news.wait()

    def close(self) -> None:
        """Close the socket now; closing again does nothing."""
        if not self._closed:
            self._plane.forget(self)
            self._closed = True
            self.descriptor.number = -1
            self._sock.close()
            self._news.set()

    def _settle(self) -> None:
        """Read on, or not: an ended socket stays readable for ever."""
        paused = self._is_full or self._has_more or self.websocket.ended
        paused = paused and not self._lingers
        if paused is not self._paused:
            self._paused = paused
            self._watch()
            if not paused and (self._is_lost or (self._tls is not None and self._tls.pending())):
                self._plane.read_again(self)

    def _watch(self) -> None:
        if not self._closed:
            reading = not self._paused and not self._is_blocked
            writing = (self._writing and not self._is_mute) or self._is_blocked
            self._plane.watch(self, reading=reading, writing=writing)
