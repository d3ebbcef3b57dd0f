"""RFC 6455 frames without a socket: bytes in, messages out; messages in, bytes out.

::

    socket -> receive() -> [incoming] -> next_message() -> complete messages
    socket <- take_output() <- [outgoing] <- send_text(), send_binary(), send_close()
                                   '-- the pong that is owed, when all before it has gone

A frame is looked at when all of it is here and unmasked where it lies, so a message in one frame
(every one but a hostile one's) is copied once. What the RFC forbids is refused at the frame's
header, before its payload is buffered. permessage-deflate is not understood: reserved bits are an
error, so the handshake must not agree to any extension.

A peer that pings and does not read is owed one pong and no more: RFC 6455 5.5.3 has only the latest
ping answered where several wait.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memmove

from codec._buffer cimport append, clear, consume, grow, head, held, release, reserve

cdef enum:
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10

cdef enum:
    FINAL = 0x80  # first byte of a header
    RESERVED_BITS = 0x70
    OPCODE = 0x0F
    MASKED = 0x80  # second byte
    LENGTH = 0x7F
    CONTROL = 0x08  # in the opcode

cdef enum:
    MAX_HEADER_BYTES = 14
    MASK_BYTES = 4

# Close codes a peer may send (RFC 6455 7.4.1 and the IANA registry), besides 3000-4999.
cdef frozenset SENDABLE_CODES = frozenset(
    {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
)


cdef class WebSocket:
    """One side of an established WebSocket connection, without the socket.

    Args:
        is_client: True towards a server (masks what it sends, refuses masked frames); False
            towards a client (the reverse).
        max_message_bytes: A longer message, whole or in fragments, closes with 1009.
        random: Gives mask keys; called with a number of bytes. Only a test should replace it: RFC
            6455 10.3 wants keys that nobody can predict.

    Attributes:
        is_open: No close frame has been sent: messages may be sent.
        ended: Nothing more will be received: the peer closed, broke the protocol or went away.
        is_text: Whether the last message was a text message.
        close_code: The peer's close code once ``ended``: 1005 if its frame had none, 1006 if
            there was no frame.
        close_reason: The peer's own words, often empty.
        close_code_sent: Our close code, or None.
        failure: Which rule the peer broke, or None.
        frames: How many have been received: fragments and control frames count, too.

    Not for two threads at once. Every bytes-like object is copied.
    """

    def __cinit__(self, *, bint is_client, size_t max_message_bytes, random=os.urandom):
        if max_message_bytes < MAX_CONTROL_BYTES:
            raise ValueError("max_message_bytes must be at least 125, a control frame's size")
        self.is_client = is_client
        self.max_message_bytes = max_message_bytes
        self._random = random
        self._pong_size = -1
        self.is_open = True
        self.close_reason = ""

    def __dealloc__(self):
        release(&self._incoming)
        release(&self._message)
        release(&self._outgoing)

    # -- receiving -------------------------------------------------------------------------

    def receive(self, data):
        """Take bytes read from the socket; then call :meth:`next_message` until it gives None.

        Raises:
            TypeError: ``data`` is not bytes-like.
            BufferError: It is not one contiguous run of bytes.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.ended:
                return  # RFC 6455 7.1.7: what follows is not to be processed
            append(&self._incoming, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def receive_eof(self):
        """The socket has been closed by the peer or by an error; no close frame is sent."""
        if not self.ended:
            self.ended = True
            self.close_code = 1006
        self.is_open = False
        self._pong_size = -1

    def next_message(self):
        """The next complete message as bytes, or None until more is received.

        Pings are answered, pongs and fragments put away, a close answered on the way.
        """
        cdef Span message
        if self.next_span(&message):
            return PyBytes_FromStringAndSize(<const char*>message.data, message.size)
        return None

    cdef bint next_span(self, Span* message) except -1:
        """Point ``message`` at the next complete message; good until the next call of any kind."""
        cdef uint8_t first, opcode
        cdef Span payload
        if self._fragmented == 0:
            clear(&self._message)  # the caller has done with a message in fragments
        while self._next_frame(&first, &payload):
            opcode = first & OPCODE
            if opcode & CONTROL:
                self._control(opcode, payload)
                continue
            if opcode != CONTINUATION and first & FINAL:
                message[0] = payload
            else:
                append(&self._message, payload.data, payload.size)
                if opcode != CONTINUATION:
                    self._fragmented = opcode
                if not first & FINAL:
                    continue
                opcode = self._fragmented
                self._fragmented = 0
                message.data = head(&self._message)
                message.size = held(&self._message)
            self.is_text = opcode == TEXT
            if self.is_text and not is_utf8(message[0]):
                self._fail(1007, "text is not UTF-8")
                return False
            return True
        if held(&self._incoming) == 0:
            clear(&self._incoming)
        return False

    cdef bint _next_frame(self, uint8_t* first, Span* payload) except -1:
        """The next whole frame, checked and unmasked; False when there is none."""
        cdef const uint8_t* at = head(&self._incoming)
        cdef size_t size = held(&self._incoming)
        cdef size_t header_bytes = 2
        cdef uint64_t length
        cdef uint8_t opcode
        cdef str fault
        cdef int i
        if self.ended or size < 2:
            return False
        first[0] = at[0]
        opcode = at[0] & OPCODE
        if opcode & 0x07 > 2:
            self._fail(1002, "reserved opcode")
            return False
        if (at[1] & MASKED != 0) == self.is_client:
            self._fail(1002, "masked frame" if self.is_client else "unmasked frame")
            return False

        length = at[1] & LENGTH
        if length >= 126:
            header_bytes = 4 if length == 126 else 10
            if size < header_bytes:
                return False
            length = 0
            for i in range(2, <int>header_bytes):
                length = length << 8 | at[i]

        if not opcode & CONTROL and length > self.max_message_bytes - held(&self._message):
            self._fail(1009, "message too big")
            return False
        fault = broken_rule(at[0], opcode, length, self._fragmented)
        if fault is not None:
            self._fail(1002, fault)
            return False

        if not self.is_client:
            header_bytes += MASK_BYTES
        if size < header_bytes + length:
            return False
        payload.data = at + header_bytes
        payload.size = <size_t>length
        if not self.is_client:
            apply_mask(<uint8_t*>payload.data, payload.size, payload.data - MASK_BYTES)
        consume(&self._incoming, header_bytes + payload.size)
        self.frames += 1
        return True

    cdef int _control(self, uint8_t opcode, Span payload) except -1:
        if opcode == PING:
            # RFC 6455 5.5.2: answered unless a close frame has been received.
            memcpy(self._pong, payload.data, payload.size)
            self._pong_size = <int>payload.size
        elif opcode == CLOSE:
            self._closed_by_peer(payload)
        return 0

    cdef int _closed_by_peer(self, Span payload) except -1:
        cdef int code = 1005
        cdef str reason = ""
        if payload.size == 1:
            return self._fail(1002, "close frame too short")
        if payload.size >= 2:
            code = payload.data[0] << 8 | payload.data[1]
            try:
                reason = payload.data[2:payload.size].decode("utf-8")
            except UnicodeDecodeError:
                return self._fail(1007, "close reason is not UTF-8")
            if not (code in SENDABLE_CODES or 3000 <= code <= 4999):
                return self._fail(1002, "invalid close code")
        if self._fragmented:
            self._fail(1002, "closed within a fragmented message")
        elif self.is_open:
            # RFC 6455 5.5.1: the answer echoes the code.
            self._write_pong()
            self._send(CLOSE, payload.data, payload.size)
            self.close_code_sent = code
            self.is_open = False
        self.close_code = code
        self.close_reason = reason
        self.ended = True
        return 0

    cdef int _fail(self, int code, str reason) except -1:
        """RFC 6455 7.1.7: say why, and look at nothing more."""
        self.failure = reason
        if self.is_open:
            self.send_close(code, reason)
        self.close_code = 1006
        self.ended = True
        clear(&self._incoming)
        clear(&self._message)
        return 0

    # -- sending ---------------------------------------------------------------------------

    def send_text(self, data):
        """Send one text message.

        Args:
            data: UTF-8 as bytes-like; not checked, ours is always JSON.

        Raises:
            ValueError: A close frame has been sent; check :attr:`is_open`.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if not self.is_open:
                raise ValueError("the WebSocket is closed for sending")
            self._send(TEXT, <const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def send_binary(self, data):
        """Send one binary message; what is bytes-like is copied.

        Raises:
            ValueError: A close frame has been sent; check :attr:`is_open`.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if not self.is_open:
                raise ValueError("the WebSocket is closed for sending")
            self._send(BINARY, <const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def send_close(self, int code=1000, str reason=""):
        """Send a close frame, once; what the peer still sends is received until it answers.

        Raises:
            ValueError: The code must not be sent, or the reason is over 123 bytes of UTF-8.
        """
        cdef bytes payload = code.to_bytes(2, "big") + reason.encode()
        if not (code in SENDABLE_CODES or 3000 <= code <= 4999):
            raise ValueError(f"{code} is not a close code that may be sent")
        if len(payload) > MAX_CONTROL_BYTES:
            raise ValueError("a close reason has at most 123 bytes")
        if self.is_open:
            self._write_pong()
            self._send(CLOSE, payload, len(payload))
            self.close_code_sent = code
            self.is_open = False

    def refuse(self, int code, str reason):
        """Send a close frame, and look at nothing more of what the peer sends.

        Raises:
            ValueError: As for :meth:`send_close`.
        """
        if not self.ended:
            self.send_close(code, reason)
            self._fail(code, reason)

    def take_output(self):
        """What to write to the socket now; empty when there is nothing."""
        cdef bytes output
        self._write_pong()
        if held(&self._outgoing) == 0:
            return b""
        output = PyBytes_FromStringAndSize(
            <const char*>head(&self._outgoing), held(&self._outgoing)
        )
        self.written(held(&self._outgoing))
        return output

    def next_output(self, size_t max_bytes):
        """The first of what is to be written; say what of it was with :meth:`output_written`."""
        cdef size_t size = held(&self._outgoing)
        if size == 0:
            if self._pong_size < 0:
                return b""
            self._write_pong()
            size = held(&self._outgoing)
        return PyBytes_FromStringAndSize(
            <const char*>head(&self._outgoing), min(size, max_bytes)
        )

    def output_written(self, size_t size):
        """The socket has taken so many bytes; returns whether there is more to be written.

        Raises:
            ValueError: There were not so many.
        """
        if size > held(&self._outgoing):
            raise ValueError("more was written than there is")
        self.written(size)
        return self.has_output()

    def forget_unsent(self):
        """Drop every message of which the socket has taken nothing; a close or a pong stays.

        Not where TLS stands between: what it did not take it wants to be offered again.
        """
        cdef uint8_t* data = head(&self._outgoing)
        cdef size_t size = held(&self._outgoing)
        cdef size_t at = self._begun_bytes
        cdef size_t kept = at
        cdef size_t frame
        while at < size:
            frame = frame_bytes(data + at)
            if data[at] & CONTROL:
                memmove(data + kept, data + at, frame)
                kept += frame
            at += frame
        self._outgoing.end = self._outgoing.start + kept
        if kept == 0:
            clear(&self._outgoing)

    def drop_output(self):
        """The socket is broken: throw away what was to be written."""
        self.written(held(&self._outgoing))
        self._pong_size = -1

    @property
    def output_bytes(self):
        """How much there is to be written, a pong that is owed included."""
        cdef size_t size = held(&self._outgoing)
        if self._pong_size >= 0:
            size += 2 + self._pong_size + (MASK_BYTES if self.is_client else 0)
        return size

    cdef void written(self, size_t size) noexcept:
        """The socket has taken so many bytes of what there is."""
        cdef const uint8_t* data = head(&self._outgoing)
        cdef size_t at = self._begun_bytes
        if size == held(&self._outgoing):  # nearly always
            clear(&self._outgoing)
            self._begun_bytes = 0
            return
        while at < size:
            at += frame_bytes(data + at)
        self._begun_bytes = at - size
        consume(&self._outgoing, size)

    cdef bint has_output(self) noexcept:
        return held(&self._outgoing) != 0 or self._pong_size >= 0

    cdef int _write_pong(self) except -1:
        """Put the pong that is owed, if one is, behind all other output."""
        cdef int size = self._pong_size
        if size >= 0:
            self._pong_size = -1
            self._send(PONG, self._pong, size)
        return 0

    cdef uint8_t* begin(self, bint is_text, size_t size) except NULL:
        """Where to write a message of exactly this size; then call :meth:`end`."""
        return self._begin(TEXT if is_text else BINARY, size)

    cdef int end(self, uint8_t* payload, size_t size) except -1:
        if self.is_client:
            apply_mask(payload, size, payload - MASK_BYTES)
        grow(&self._outgoing, size)
        return 0

    cdef int _send(self, uint8_t opcode, const uint8_t* payload, size_t size) except -1:
        cdef uint8_t* room = self._begin(opcode, size)
        if size:
            memcpy(room, payload, size)
        return self.end(room, size)

    cdef uint8_t* _begin(self, uint8_t opcode, size_t size) except NULL:
        """Write a header; returns where the payload goes, with room for it."""
        cdef uint8_t masked = MASKED if self.is_client else 0
        cdef uint8_t* header
        cdef uint8_t* at
        cdef bytes keys
        cdef int shift
        if self.is_client and self._mask_keys_left == 0:
            keys = self._random(MASK_KEYS_BYTES)
            if len(keys) != MASK_KEYS_BYTES:
                raise ValueError("random gave the wrong number of bytes")
            memcpy(self._mask_keys, <const uint8_t*>keys, MASK_KEYS_BYTES)
            self._mask_keys_left = MASK_KEYS_BYTES
        at = header = reserve(&self._outgoing, MAX_HEADER_BYTES + size)
        at[0] = FINAL | opcode
        if size <= 125:
            at[1] = masked | <uint8_t>size
            at += 2
        elif size <= 0xFFFF:
            at[1] = masked | 126
            at[2] = <uint8_t>(size >> 8)
            at[3] = <uint8_t>size
            at += 4
        else:
            at[1] = masked | 127
            for shift in range(8):
                at[2 + shift] = <uint8_t>(<uint64_t>size >> (56 - 8 * shift))
            at += 10
        if self.is_client:
            memcpy(at, self._mask_keys + MASK_KEYS_BYTES - self._mask_keys_left, MASK_BYTES)
            self._mask_keys_left -= MASK_BYTES
            at += MASK_BYTES
        grow(&self._outgoing, at - header)
        return at


cdef size_t frame_bytes(const uint8_t* at) noexcept nogil:
    """The size of a whole frame of ours, by its header."""
    cdef size_t header_bytes = 2
    cdef size_t i
    cdef uint64_t length = at[1] & LENGTH
    if length >= 126:
        header_bytes = 4 if length == 126 else 10
        length = 0
        for i in range(2, header_bytes):
            length = length << 8 | at[i]
    if at[1] & MASKED:
        header_bytes += MASK_BYTES
    return header_bytes + <size_t>length


cdef str broken_rule(uint8_t first, uint8_t opcode, uint64_t length, uint8_t fragmented):
    """Which rule of RFC 6455 5.2, 5.4 and 5.5 this header breaks, or None."""
    if first & RESERVED_BITS:
        return "reserved bits"
    if opcode & CONTROL:
        if length > MAX_CONTROL_BYTES:
            return "control frame too long"
        if not first & FINAL:
            return "fragmented control frame"
    elif opcode == CONTINUATION:
        if not fragmented:
            return "nothing to continue"
    elif fragmented:
        return "continuation expected"
    return None


cdef bint is_utf8(Span text) except -1:
    cdef uint8_t bits = 0
    cdef size_t i
    for i in range(text.size):
        bits |= text.data[i]
    if bits < 0x80:
        return True  # all ASCII, as every audio message is
    try:
        text.data[:text.size].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


cdef void apply_mask(uint8_t* data, size_t size, const uint8_t* key) noexcept nogil:
    """RFC 6455 5.3, in place, eight bytes at a time."""
    cdef uint64_t word, wide
    cdef size_t i, words = size // 8
    memcpy(&wide, key, MASK_BYTES)
    memcpy(<uint8_t*>&wide + MASK_BYTES, key, MASK_BYTES)
    for i in range(words):
        memcpy(&word, data + 8 * i, 8)
        word ^= wide
        memcpy(data + 8 * i, &word, 8)
    for i in range(8 * words, size):
        data[i] ^= key[i % MASK_BYTES]
