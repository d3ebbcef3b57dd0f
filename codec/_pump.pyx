"""From one socket of a call to the other without Python; ``pump.py`` says when and why."""

import enum

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from codec._buffer cimport append, clear, consume, head, held, lend, settle
from codec._latency cimport Histogram, Latencies
from codec._websocket cimport WebSocket


cdef extern from "sockets.h" nogil:
    Py_ssize_t recv_now(int number, void* data, size_t size)
    Py_ssize_t send_now(int number, const void* data, size_t size)
    double seconds()


cdef enum:
    LEFT_NOTHING = 0
    LEFT_OUTPUT = 1
    LEFT_NEWS = 2
    LEFT_READING = 3

cdef enum:
    READ_BYTES = 16384  # on the stack; more is left to Python


class Left(enum.IntEnum):
    """What a pass has left to Python."""

    NOTHING = LEFT_NOTHING
    """All that was read has passed."""
    OUTPUT = LEFT_OUTPUT
    """All that was read has passed, and the other socket has still to be given some of it."""
    NEWS = LEFT_NEWS
    """A message that is not audio, audio that may not pass, a connection's end."""
    READING = LEFT_READING
    """There is more to read, or nothing could be read: ask the socket itself."""


cdef class Descriptor:
    """A socket as the pump knows it.

    Attributes:
        number: Its file number; -1 as soon as it is closed, as the number is used again.
        takes_output: Whether it may be written to here: not while Python holds something for it,
            and never where Python's TLS stands between.
    """

    def __init__(self, int number, *, bint takes_output=True):
        self.number = number
        self.takes_output = takes_output

    cdef Py_ssize_t read(self, void* data, size_t size) noexcept nogil:
        """How many bytes have been read, or READ_NOTHING, or READ_LATER."""
        return recv_now(self.number, data, size)

    cdef Py_ssize_t write(self, const void* data, size_t size) noexcept nogil:
        """How many bytes the socket has taken; one that takes fewer is full, or broken."""
        return send_now(self.number, data, size)

    cdef bint has_more(self) noexcept nogil:
        """Whether a read that has brought fewer bytes than it might has left something."""
        return False


cdef class Pump:
    """One direction of a call: reads a socket, and writes what became of it to another.

    Args:
        source: Where to read.
        source_websocket: Its protocol.
        next_message: The path's method that takes audio as far as it goes; see ``path.py``.
        has_news: The path's word on whether somebody has to look though no message has come.
        sink: Where to write.
        sink_websocket: Its protocol.
        summary: Takes how long each piece took from socket to socket.
        histogram: The same.
    """

    cdef Descriptor _source
    cdef Descriptor _sink
    cdef WebSocket _source_websocket
    cdef WebSocket _sink_websocket
    cdef object _next_message
    cdef object _has_news
    cdef Latencies _summary
    cdef Histogram _histogram
    cdef object _message
    cdef double _began

    def __init__(
        self,
        Descriptor source not None,
        WebSocket source_websocket not None,
        next_message,
        has_news,
        Descriptor sink not None,
        WebSocket sink_websocket not None,
        Latencies summary not None,
        Histogram histogram not None,
    ):
        self._source = source
        self._source_websocket = source_websocket
        self._next_message = next_message
        self._has_news = has_news
        self._sink = sink
        self._sink_websocket = sink_websocket
        self._summary = summary
        self._histogram = histogram

    def run(self, double now):
        """The source is readable: pass on what is there; returns a :class:`Left` as an int."""
        cdef uint8_t data[READ_BYTES]
        cdef WebSocket source = self._source_websocket
        cdef WebSocket sink = self._sink_websocket
        cdef Py_ssize_t size = READ_NOTHING
        self._began = seconds()
        if self._source.number >= 0 and not source.ended and self._message is None:
            size = self._source.read(data, READ_BYTES)
        if size == READ_LATER:
            return LEFT_NOTHING
        if size <= 0:
            return LEFT_READING
        if held(&source._incoming):  # the beginning of what this goes on with
            append(&source._incoming, data, size)
            self._message = self._next_message(now)
        else:
            lend(&source._incoming, data, size)
            try:
                self._message = self._next_message(now)
            finally:
                settle(&source._incoming)
        if held(&sink._outgoing) and self._sink.takes_output and self._sink.number >= 0:
            if self._send(sink):
                self.passed(seconds() - self._began)
        if size == READ_BYTES or self._source.has_more():
            return LEFT_READING
        if self._message is not None or source.ended:
            return LEFT_NEWS
        if self._source.takes_output and source.has_output():
            return LEFT_NEWS
        if self._has_news():
            return LEFT_NEWS
        return LEFT_OUTPUT if held(&sink._outgoing) else LEFT_NOTHING

    cdef bint _send(self, WebSocket sink):
        """Whether the socket has taken all that there was for it."""
        cdef size_t size = held(&sink._outgoing)
        cdef Py_ssize_t sent = self._sink.write(head(&sink._outgoing), size)
        if sent == <Py_ssize_t>size:
            clear(&sink._outgoing)
            return True
        if sent > 0:
            consume(&sink._outgoing, sent)
        return False

    def written(self):
        """What the last :meth:`run` has left as output has been written only now."""
        self.passed(seconds() - self._began)

    cpdef passed(self, double took_s):
        """A piece took so long from socket to socket, in seconds."""
        self._summary.record_c(took_s)
        self._histogram.record_c(took_s)

    def take_message(self):
        """The message at which :meth:`run` has stopped, if it has; others may be behind it."""
        message = self._message
        self._message = None
        return message
