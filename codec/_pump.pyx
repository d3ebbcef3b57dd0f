"""From one socket of a call to the other without Python; ``pump.py`` says when and why."""

import enum

from libc.errno cimport EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from codec._buffer cimport append, head, held, lend, settle
from codec._latency cimport Histogram, Latencies
from codec._path cimport MediaPath
from codec._websocket cimport WebSocket


cdef extern from "sockets.h" nogil:
    Py_ssize_t recv_now(int number, void* data, size_t size)
    Py_ssize_t send_now(int number, const void* data, size_t size)
    double seconds()

    enum:
        MOST_READY

    ctypedef struct ready_t:
        int number[MOST_READY]
        unsigned int events[MOST_READY]

    int wait_ready(int epoll, ready_t* ready, double timeout_s)


cdef enum:
    LEFT_NOTHING = 0
    LEFT_OUTPUT = 1
    LEFT_NEWS = 2
    LEFT_READING = 3
    LEFT_ALL = 4

# Sockets that are served before anybody else is asked; those that are left come first then.
READY_PER_PASS = MOST_READY

cdef unsigned int READABLE = 1  # EPOLLIN

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
    ALL = LEFT_ALL
    """Nothing has been done yet, or the pump has failed: ask it, if there is one."""


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
        path: The call's, between the two connections that it has now.
        from_phone: Whether it is the caller's way, and not the agent's.
        source: Where to read.
        sink: Where to write.
        summary: Takes how long each piece took from socket to socket.
        histogram: The same.
    """

    cdef MediaPath _path
    cdef bint _from_phone
    cdef Descriptor _source
    cdef Descriptor _sink
    cdef WebSocket _source_websocket
    cdef WebSocket _sink_websocket
    cdef Latencies _summary
    cdef Histogram _histogram
    cdef bytes _message
    cdef object _bug  # raised where there was nobody to tell
    cdef double _began

    def __init__(
        self,
        MediaPath path not None,
        Descriptor source not None,
        Descriptor sink not None,
        Latencies summary not None,
        Histogram histogram not None,
        *,
        bint from_phone,
    ):
        phone, model = path.phone, path.model
        self._path = path
        self._from_phone = from_phone
        self._source = source
        self._sink = sink
        self._source_websocket = <WebSocket?>(phone if from_phone else model)
        self._sink_websocket = <WebSocket?>(model if from_phone else phone)
        self._summary = summary
        self._histogram = histogram

    cpdef int run(self, double now) except -1:
        """The source is readable: pass on what is there; returns a :class:`Left` as an int."""
        cdef uint8_t data[READ_BYTES]
        cdef WebSocket source = self._source_websocket
        cdef WebSocket sink = self._sink_websocket
        cdef Py_ssize_t size = READ_NOTHING
        if self._bug is not None:
            bug = self._bug
            self._bug = None
            raise bug
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

    cdef bytes _next_message(self, double now):
        if self._from_phone:
            return self._path.next_from_phone_c(now)
        return self._path.next_from_model_c(now)

    cdef bint _has_news(self):
        """Whether somebody has to look, though no message has come."""
        return self._path.has_caller_news_c() if self._from_phone else self._path.run_is_over_c()

    cdef bint _send(self, WebSocket sink):
        """Whether the socket has taken all that there was for it."""
        cdef size_t size = held(&sink._outgoing)
        cdef Py_ssize_t sent = self._sink.write(head(&sink._outgoing), size)
        if sent > 0:
            sink.written(sent)
        return sent == <Py_ssize_t>size

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


cdef class Pumps:
    """The pumps that there are, by the number of the socket that each reads."""

    cdef dict _pumps

    def __cinit__(self):
        self._pumps = {}

    def __len__(self):
        return len(self._pumps)

    def put(self, int number, Pump pump not None):
        """This reads a socket from now on."""
        self._pumps[number] = pump

    def get(self, int number):
        """What reads a socket first; None if nobody does."""
        return self._pumps.get(number)

    def remove(self, int number):
        """Nobody reads a socket any more."""
        self._pumps.pop(number, None)

    def serve(self, int epoll, double timeout_s, double alone_s, now):
        """Pass audio on until there is something that is no pump's, or the time is over.

        Args:
            epoll: Knows which sockets are ready.
            timeout_s: How long at most; with 0, what is ready now.
            alone_s: How long they may go on by themselves; a pass that has begun is not left.
            now: What time it is, which is good for so long; None for no pump to be asked here.

        Returns:
            File numbers, what they are ready for, and what has been left of it, a :class:`Left` as
            an int. Behind the first nothing has been done. What a pump has raised it raises again
            when it is asked to :meth:`Pump.run`.

        Raises:
            OSError: There is no such epoll.
        """
        cdef ready_t ready
        cdef double began = seconds()
        cdef double passed_s = 0.0
        cdef double first = 0.0
        cdef bint is_alone
        cdef int count, place, result
        cdef list left = []
        if now is None:
            alone_s = 0.0
        else:
            first = now
        while True:
            if timeout_s <= 0.0:  # no wait, so nobody else's turn: it may last for 5 ms
                count = wait_ready(epoll, &ready, 0.0)
            else:
                with nogil:
                    count = wait_ready(epoll, &ready, timeout_s - passed_s)
            if count < 0:
                if errno == EINTR:
                    return left  # whoever has a signal handler is asked first
                raise OSError(errno, "epoll_wait")
            passed_s = seconds() - began
            is_alone = passed_s < alone_s
            for place in range(count):
                result = LEFT_ALL
                # In order: what is left is seen to before anything else is done.
                if is_alone and not left and ready.events[place] == READABLE:
                    result = self._run(ready.number[place], first + passed_s)
                if result != LEFT_NOTHING:
                    left.append((ready.number[place], ready.events[place], result))
            if left or count == 0 or passed_s >= timeout_s:
                return left

    cdef int _run(self, int number, double now):
        cdef Pump pump = self._pumps.get(number)
        if pump is None:
            return LEFT_ALL
        try:
            return pump.run(now)
        except Exception as bug:
            pump._bug = bug
            return LEFT_ALL
