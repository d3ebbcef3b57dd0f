"""One call's audio between two sockets; ``path.py`` has the picture.

Read it from ``next_from_phone`` (the caller's way) or ``next_from_model`` (the agent's way).
"""

import enum
import json

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport sqrt
from libc.stddef cimport size_t
from libc.stdint cimport int16_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from codec._base64 cimport decode_into as decode_base64
from codec._base64 cimport decoded_size
from codec._base64 cimport encode_into as encode_base64
from codec._base64 cimport encoded_size
from codec._buffer cimport Buffer, append, clear, consume, grow, head, held, release, reserve
from codec._ear cimport Ear, Played
from codec._json cimport (
    Walk,
    base64_string,
    enter,
    enter_sole,
    expect,
    finished,
    leave_sole,
    next_member,
    plain_string,
    same,
    skip_plain,
    walk_over,
    whole_number,
)
from codec._kernels cimport MulawDecoder, MulawEncoder
from codec._websocket cimport Span, WebSocket

from codec import decode_mulaw

cdef enum:
    CALLER_RATE_HZ = 16000  # what the model wants to hear
    AGENT_RATE_HZ = 24000  # what it says
    # The model's guide asks for 20-40 ms a message and allows 100: only what was held is longer.
    CALLER_MESSAGE_BYTES = 800
    # A second; the carrier documents no limit.
    AGENT_MESSAGE_BYTES = 8000
    # Base64 comes in threes of bytes, so pieces of a message are divisible by three.
    PIECE_BYTES = 480
    # A second of sent audio: often enough to write it down, and seldom.
    SENT_NEWS_BYTES = 8000

cdef enum:
    GATE_PASS = 0
    GATE_HOLD = 1
    GATE_DROP = 2
    GATE_HAND_UP = 3
    GATE_FOLLOW = 4

cdef enum:
    SILENCE = 0x7F  # mu-law's code for it, without the sign


class Gate(enum.IntEnum):
    """What becomes of one direction's audio."""

    PASS = GATE_PASS
    """It goes on to the other side."""
    HOLD = GATE_HOLD
    """It is kept, in order, until the gate says PASS."""
    DROP = GATE_DROP
    """It is thrown away."""
    HAND_UP = GATE_HAND_UP
    """Its messages come out whole, like any other, and nothing is done with them here."""
    FOLLOW = GATE_FOLLOW
    """The agent's only: see :meth:`MediaPath.follow`."""


cdef int64_t UNLIMITED = 1 << 62
cdef int64_t MAX_GAP_CHUNKS = 3_000  # numbers further apart are another count, not lost audio
cdef int64_t MAX_TIMESTAMP_MS = 1 << 53  # beyond what JSON numbers are exact for it is nonsense

cdef bytes _REALTIME_HEAD = (
    b'{"realtimeInput":{"audio":{"mimeType":"audio/pcm;rate=%d","data":"' % CALLER_RATE_HZ
)
cdef const uint8_t* REALTIME_HEAD = _REALTIME_HEAD
cdef size_t REALTIME_HEAD_BYTES = len(_REALTIME_HEAD)

# Square and magnitude of every mu-law code, as the codec expands it.
cdef uint32_t SQUARES[256]
cdef int MAGNITUDES[128]


cdef void fill_tables():
    pcm = memoryview(decode_mulaw(bytes(range(256)))).cast("h")
    for code in range(256):
        SQUARES[code] = pcm[code] * pcm[code]
    for code in range(128):
        MAGNITUDES[code] = -pcm[code]


fill_tables()


cdef class Level:
    """How loud some audio was, in steps of 16-bit PCM.

    Attributes:
        samples: How many samples at 8 kHz this is about; the rest is 0 when there are none.
        rms: Root of the mean square.
        peak: Largest magnitude.
        full_scale_samples: Samples at mu-law's largest code: they were, or may have been, clipped.
    """

    cdef readonly int64_t samples
    cdef readonly double rms
    cdef readonly int peak
    cdef readonly int64_t full_scale_samples

    def __repr__(self):
        return (
            f"Level(samples={self.samples}, rms={self.rms:.1f}, peak={self.peak}, "
            f"full_scale_samples={self.full_scale_samples})"
        )


cdef struct Run:
    int64_t bytes
    int64_t audible_bytes
    int64_t limit_bytes
    double audible_dbfs
    double last_at


cdef struct Meter:
    uint64_t energy
    int64_t samples
    int64_t full_scale
    uint8_t loudest  # smallest code without its sign: mu-law counts down


cdef class MediaPath:
    """Everything that happens to one call's audio, from socket bytes to socket bytes.

    Feed it what was read (``path.phone.receive``, ``path.model.receive``), ask it for messages that
    are Python's (:meth:`next_from_phone`, :meth:`next_from_model`) until there is none, write what
    it has for the other side (``path.model.take_output``, ``path.phone.take_output``).

    Args:
        phone_max_message_bytes: A longer message from the phone's side closes with 1009.
        model_max_message_bytes: The same for the model's side.
        caller_hold_limit_bytes: How much caller audio is held at most, in payload bytes (8000 a
            second); the oldest is dropped first.

    Attributes:
        phone: The carrier's connection; we are its server. Another may be put in its place.
        model: The model's connection; we are its client. The same; see :meth:`replace_model`.
        decoder: Of the caller's audio. Python may use it too, between two messages.
        encoder: Of the agent's; the same.
        ear: Judges every chunk of caller audio before it goes anywhere, and may silence it.
        played: What the caller hears of the agent; :meth:`follow` needs it.
        model_ready: False holds the caller's audio, whatever its gate says.
        keep_sent: Whether caller audio that was sent is kept for :meth:`take_sent`.
        caller_bytes: Payload bytes heard from the caller. Every count is of mu-law bytes, which
            are samples at 8 kHz, and only ever grows.
        caller_sent_bytes: Of these, written into messages for the model.
        caller_dropped_bytes: Of these, dropped by the gate or by the hold's limit.
        agent_bytes: Payload bytes that the agent's audio became.
        agent_sent_bytes: Of these, written into messages for the phone.
        agent_dropped_bytes: Of these, dropped by the gate or by :meth:`clear`.
        caller_chunks: Media messages taken here or given back by :meth:`hear`.
        missing_chunks: Chunk numbers that were skipped: audio the carrier dropped.
        repeated_chunks: Chunk numbers that were late or not new; their audio is used all the same.
        timestamp_jumps: Chunks that began somewhere else than where the one before ended.
        timestamp_ms: The carrier's clock at the end of the last chunk.
        recorded_ms: The same at the end of what was recorded of the caller.

    No sockets, no clock, and one thread at a time.
    """

    cdef WebSocket _phone
    cdef WebSocket _model
    cdef MulawDecoder _decoder
    cdef MulawEncoder _encoder
    cdef public Ear ear
    cdef Played _played
    cdef double _now

    cdef int _caller_gate
    cdef int _agent_gate
    cdef int64_t _agent_allowance_bytes
    cdef int64_t _caller_hold_limit_bytes
    cdef public bint recording
    cdef public bint keep_sent
    cdef bint _model_ready
    cdef Run _run

    cdef bytes _stream_sid
    cdef bytes _media_head
    cdef bytes _mark_head
    cdef bytes _clear_message

    cdef Buffer _caller  # payload for the model: empty unless held
    cdef Buffer _agent  # payload for the phone: empty unless held or beyond the allowance
    cdef Buffer _pcm  # what one model message said
    cdef Buffer _sent  # payload that went to the model and that nobody has written down yet
    cdef Buffer _caller_recording
    cdef Buffer _agent_recording
    cdef Meter _caller_meter
    cdef Meter _agent_meter

    cdef readonly int64_t caller_bytes
    cdef readonly int64_t caller_sent_bytes
    cdef readonly int64_t caller_dropped_bytes
    cdef readonly int64_t agent_bytes
    cdef readonly int64_t agent_sent_bytes
    cdef readonly int64_t agent_dropped_bytes
    cdef readonly int64_t caller_chunks
    cdef readonly int64_t missing_chunks
    cdef readonly int64_t repeated_chunks
    cdef readonly int64_t timestamp_jumps
    cdef readonly int64_t timestamp_ms
    cdef readonly int64_t recorded_ms
    cdef readonly int64_t last_chunk
    cdef bint _timed  # timestamp_ms is known

    def __cinit__(
        self,
        *,
        size_t phone_max_message_bytes=64 * 1024,
        size_t model_max_message_bytes=16 * 1024 * 1024,
        int64_t caller_hold_limit_bytes=30 * 8000,
    ):
        self._phone = WebSocket(is_client=False, max_message_bytes=phone_max_message_bytes)
        self._model = WebSocket(is_client=True, max_message_bytes=model_max_message_bytes)
        self._decoder = MulawDecoder(CALLER_RATE_HZ)
        self._encoder = MulawEncoder(AGENT_RATE_HZ)
        self._model_ready = True
        self._caller_gate = GATE_HOLD
        self._agent_gate = GATE_PASS
        self._agent_allowance_bytes = UNLIMITED
        self._caller_hold_limit_bytes = caller_hold_limit_bytes
        self._caller_meter.loudest = self._agent_meter.loudest = SILENCE

    def __dealloc__(self):
        release(&self._caller)
        release(&self._agent)
        release(&self._pcm)
        release(&self._sent)
        release(&self._caller_recording)
        release(&self._agent_recording)

    # -- the caller's way: phone to model ---------------------------------------------------

    def next_from_phone(self, double now=0.0):
        """Take caller audio as far as it goes; returns the next message that is not, or None.

        Args:
            now: When it was read; what the ear finds has its time from this.

        None means that all that was received has been seen; if ``phone.ended``, no more will be.
        A message with caller audio comes out too when it is unusual in any way: read it with the
        full parser and give the audio back to :meth:`hear` before going on.
        """
        cdef Span message
        self._now = now
        while self._phone.next_span(&message):
            if self._caller_gate == GATE_HAND_UP or not self._take_caller_message(message):
                return PyBytes_FromStringAndSize(<const char*>message.data, message.size)
        return None

    def hear(self, payload, *, timestamp_ms):
        """Take a chunk of caller audio that Python has read.

        Args:
            payload: Mu-law bytes.
            timestamp_ms: The carrier's clock at its first sample, of any size.
        """
        cdef Py_buffer view
        cdef Py_ssize_t size
        cdef int64_t at_ms = min(max(timestamp_ms, 0), MAX_TIMESTAMP_MS)
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            size = view.len
            append(&self._caller, view.buf, size)
        finally:
            PyBuffer_Release(&view)
        self._count_chunk(self.last_chunk + 1 if self.last_chunk else 0, at_ms, size)
        self._hear(size)

    cdef bint _take_caller_message(self, Span message) except -1:
        """False, with nothing changed, for whatever is not plainly audio of this stream."""
        cdef CallerChunk chunk
        cdef size_t size
        if not self._phone.is_text or not find_caller_audio(message, &chunk):
            return False
        if self._stream_sid is None or not same(chunk.stream_sid, self._stream_sid):
            return False
        if self.recording and self._timed and chunk.timestamp_ms != self.timestamp_ms:
            return False  # what is recorded here is one stretch
        if not decoded_size(chunk.payload.data, chunk.payload.size, &size) or size == 0:
            return False
        if not decode_base64(
            chunk.payload.data, chunk.payload.size, reserve(&self._caller, size)
        ):
            return False
        grow(&self._caller, size)
        self._count_chunk(chunk.number, chunk.timestamp_ms, size)
        self._hear(size)
        return True

    cdef void _count_chunk(
        self, int64_t number, int64_t timestamp_ms, int64_t size
    ) noexcept:
        if number > self.last_chunk:
            if self.last_chunk:
                self.missing_chunks += min(number - self.last_chunk - 1, MAX_GAP_CHUNKS)
            self.last_chunk = number
        elif number:
            self.repeated_chunks += 1
        if self._timed and timestamp_ms != self.timestamp_ms:
            self.timestamp_jumps += 1
        self._timed = True
        self.timestamp_ms = timestamp_ms + size // 8
        self.caller_chunks += 1

    cdef int _hear(self, int64_t size) except -1:
        """The last ``size`` bytes of ``_caller`` are new."""
        cdef uint8_t* payload = self._caller.data + self._caller.end - size
        cdef int64_t excess
        measure(&self._caller_meter, payload, size)
        if self.recording:
            append(&self._caller_recording, payload, size)
            self.recorded_ms = self.timestamp_ms
        if self.ear is not None:
            self.ear.hear_c(payload, size, self._now)
        self.caller_bytes += size
        if self._caller_gate == GATE_DROP:
            self._caller.end -= size
            self.caller_dropped_bytes += size
        self._send_caller_audio()
        excess = <int64_t>held(&self._caller) - self._caller_hold_limit_bytes
        if excess > 0:
            consume(&self._caller, excess)
            self.caller_dropped_bytes += excess
        return 0

    cdef int _send_caller_audio(self) except -1:
        """Write messages for the model from what is there, if it may go."""
        cdef size_t size, piece
        cdef int16_t pcm[2 * PIECE_BYTES]
        cdef uint8_t* text
        cdef uint8_t* at
        cdef size_t text_bytes
        if self._caller_gate != GATE_PASS or not self._model_ready or not self._model.is_open:
            return 0
        while held(&self._caller):
            size = min(held(&self._caller), <size_t>CALLER_MESSAGE_BYTES)
            text_bytes = REALTIME_HEAD_BYTES + encoded_size(4 * size) + 4
            at = text = self._model.begin_text(text_bytes)
            memcpy(at, REALTIME_HEAD, REALTIME_HEAD_BYTES)
            at += REALTIME_HEAD_BYTES
            self.caller_sent_bytes += size
            if self.keep_sent:
                append(&self._sent, head(&self._caller), size)
            while size:
                piece = min(size, <size_t>PIECE_BYTES)
                self._decoder.decode_into(head(&self._caller), piece, pcm)
                at = encode_base64(<const uint8_t*>pcm, 4 * piece, at)
                consume(&self._caller, piece)
                size -= piece
            memcpy(at, b'"}}}', 4)
            self._model.end_text(text, text_bytes)
        clear(&self._caller)
        return 0

    # -- the agent's way: model to phone -----------------------------------------------------

    def next_from_model(self, double now=0.0):
        """Take agent audio as far as it goes; returns the next message that is not, or None.

        Args:
            now: When it was read; :meth:`follow` needs it.

        None means that all that was received has been seen; if ``model.ended``, no more will be.
        A message with agent audio comes out too when there is anything else in it, or when it is
        unusual in any way: give its audio back to :meth:`say` before going on.
        """
        cdef Span message
        self._now = now
        while self._model.next_span(&message):
            if self._agent_gate == GATE_HAND_UP or not self._take_agent_message(message):
                if self._agent_gate == GATE_FOLLOW:
                    self._agent_gate = GATE_HAND_UP
                return PyBytes_FromStringAndSize(<const char*>message.data, message.size)
        return None

    def say(self, pcm):
        """Take agent audio that Python has read: signed 16-bit little-endian mono at 24 kHz.

        Raises:
            ValueError: Half a sample.
        """
        cdef Py_buffer view
        cdef Py_ssize_t size
        PyObject_GetBuffer(pcm, &view, PyBUF_SIMPLE)
        try:
            size = view.len
            if size % 2:
                raise ValueError(f"{size} bytes of pcm are not whole samples")
            # The codec wants its samples aligned, which nobody promises for another's bytes.
            append(&self._pcm, view.buf, size)
        finally:
            PyBuffer_Release(&view)
        self._say(size // 2)

    cdef bint _take_agent_message(self, Span message) except -1:
        """False, with nothing changed, for whatever is not plainly audio and nothing else."""
        cdef Span base64
        cdef size_t size
        if not find_agent_audio(message, &base64):
            return False
        if not decoded_size(base64.data, base64.size, &size) or size == 0 or size % 2:
            return False
        if self._agent_gate == GATE_FOLLOW and not self._may_follow():
            return False
        if not decode_base64(base64.data, base64.size, reserve(&self._pcm, size)):
            return False
        grow(&self._pcm, size)
        self._say(size // 2)
        return True

    cdef int _say(self, size_t samples) except -1:
        """Encode what is in ``_pcm``."""
        cdef const int16_t* pcm = <const int16_t*>head(&self._pcm)
        cdef uint8_t* payload = reserve(&self._agent, self._encoder.outputs(samples))
        cdef int64_t size = self._encoder.encode_into(pcm, samples, payload)
        clear(&self._pcm)
        measure(&self._agent_meter, payload, size)
        self.agent_bytes += size
        if self._agent_gate == GATE_DROP:
            self.agent_dropped_bytes += size
            return 0
        if self._agent_gate == GATE_FOLLOW:
            self._note_followed(payload, size)
        grow(&self._agent, size)
        return self._send_agent_audio()

    cdef bint _may_follow(self) noexcept:
        """Whether nobody would want to look at the next chunk of this turn."""
        return (
            self._run.bytes < self._run.limit_bytes
            and self._now < self._played.play_end
            and self._media_head is not None
            and self._phone.is_open
            and held(&self._agent) == 0
        )

    cdef int _note_followed(self, const uint8_t* payload, int64_t size) except -1:
        self._played.passed_c(self._now)
        self._played.sent_c(payload, size, self._played.play_end)
        self._run.bytes += size
        if self._encoder.chunk_level_dbfs() > self._run.audible_dbfs:
            self._run.audible_bytes += size
        self._run.last_at = self._now
        return 0

    cdef int _send_agent_audio(self) except -1:
        """Write messages for the phone from what is there, as far as it may go."""
        cdef size_t size, head_bytes, text_bytes
        cdef const uint8_t* payload
        cdef uint8_t* text
        cdef uint8_t* at
        if self._agent_gate != GATE_PASS and self._agent_gate != GATE_FOLLOW:
            return 0
        if self._media_head is None or not self._phone.is_open:
            return 0
        head_bytes = len(self._media_head)
        while held(&self._agent) and self._agent_allowance_bytes:
            size = min(held(&self._agent), <size_t>AGENT_MESSAGE_BYTES)
            size = min(size, <uint64_t>self._agent_allowance_bytes)
            payload = head(&self._agent)
            text_bytes = head_bytes + encoded_size(size) + 3
            at = text = self._phone.begin_text(text_bytes)
            memcpy(at, <const uint8_t*>self._media_head, head_bytes)
            at = encode_base64(payload, size, at + head_bytes)
            memcpy(at, b'"}}', 3)
            self._phone.end_text(text, text_bytes)
            if self.recording:
                append(&self._agent_recording, payload, size)
            consume(&self._agent, size)
            self.agent_sent_bytes += size
            self._agent_allowance_bytes -= size
        if held(&self._agent) == 0:
            clear(&self._agent)
        return 0

    # -- what Python decides -----------------------------------------------------------------

    @property
    def phone(self):
        """The carrier's connection."""
        return self._phone

    @phone.setter
    def phone(self, WebSocket websocket not None):
        self._phone = websocket

    @property
    def model(self):
        """The model's connection."""
        return self._model

    @model.setter
    def model(self, WebSocket websocket not None):
        self._model = websocket

    @property
    def played(self):
        """What the caller hears of the agent, or None; another one ends the following."""
        return self._played

    @played.setter
    def played(self, Played played):
        if self._agent_gate == GATE_FOLLOW:
            self._agent_gate = GATE_HAND_UP
        self._played = played

    @property
    def decoder(self):
        """Of the caller's audio; it goes on where the last chunk ended, whoever decodes."""
        return self._decoder

    @property
    def encoder(self):
        """Of the agent's audio; the same."""
        return self._encoder

    @property
    def model_ready(self):
        """Whether the model's connection may be used by whoever passes."""
        return self._model_ready

    @model_ready.setter
    def model_ready(self, bint ready):
        self._model_ready = ready
        self._send_caller_audio()

    def resume(self, *, last_chunk, timestamp_ms):
        """Go on counting where Python has got to.

        Args:
            last_chunk: Number of the last chunk; 0 if there was none.
            timestamp_ms: The carrier's clock at its end; None if there was none.
        """
        self.last_chunk = min(max(last_chunk, 0), MAX_TIMESTAMP_MS)
        self._timed = timestamp_ms is not None
        self.timestamp_ms = min(max(timestamp_ms or 0, 0), MAX_TIMESTAMP_MS)

    def follow(self, *, int64_t limit_bytes, double audible_dbfs=-50.0):
        """Pass on what else comes of the agent's turn under way, as long as it is nothing special.

        That ends, and the gate is HAND_UP again, with the first message that is not audio, with a
        chunk that comes after the caller has heard all before it, when ``limit_bytes`` have passed,
        and with :meth:`take_run`. Nothing may be held here.

        Args:
            limit_bytes: Payload after which somebody has to look: a mark is due, or the lead used.
            audible_dbfs: How loud a chunk has to be to be heard.

        Raises:
            ValueError: There is nobody who knows what has been played, or something is held.
        """
        if self._played is None or held(&self._agent):
            raise ValueError("the agent's audio cannot be followed now")
        self._run.bytes = self._run.audible_bytes = 0
        self._run.limit_bytes = limit_bytes
        self._run.audible_dbfs = audible_dbfs
        self._run.last_at = 0.0
        self._agent_gate = GATE_FOLLOW

    @property
    def has_run(self):
        """Whether :meth:`take_run` has anything to tell, or to stop."""
        return self._run.bytes > 0 or self._agent_gate == GATE_FOLLOW

    def run_is_over(self):
        """Whether somebody has to look, though no message has come."""
        return self._run.bytes >= self._run.limit_bytes and self._run.bytes > 0

    def take_run(self):
        """Stop following, and say what has passed since :meth:`follow`.

        Returns:
            Payload bytes, how many of them were audible, and when the last came.
        """
        run = (self._run.bytes, self._run.audible_bytes, self._run.last_at)
        self._run.bytes = self._run.audible_bytes = self._run.limit_bytes = 0
        if self._agent_gate == GATE_FOLLOW:
            self._agent_gate = GATE_HAND_UP
        return run

    def start(self, str stream_sid):
        """The carrier has named its stream: only now can anything be sent to the phone."""
        name = json.dumps(stream_sid, ensure_ascii=False)
        self._stream_sid = stream_sid.encode()
        self._media_head = f'{{"event":"media","streamSid":{name},"media":{{"payload":"'.encode()
        self._mark_head = f'{{"event":"mark","streamSid":{name},"mark":{{"name":'.encode()
        self._clear_message = f'{{"event":"clear","streamSid":{name}}}'.encode()
        self._send_agent_audio()

    def stop(self):
        """The carrier has ended its stream: nothing more is sent, and late audio is handed up."""
        self._stream_sid = self._media_head = self._mark_head = self._clear_message = None

    @property
    def caller_gate(self):
        """What becomes of the caller's audio; HOLD to begin with, until the model is ready."""
        return Gate(self._caller_gate)

    @caller_gate.setter
    def caller_gate(self, gate):
        if gate == GATE_FOLLOW:
            raise ValueError("only the agent's audio can be followed")
        self._caller_gate = Gate(gate)
        self._send_caller_audio()

    @property
    def agent_gate(self):
        """What becomes of the agent's audio; PASS to begin with. FOLLOW has its own method."""
        return Gate(self._agent_gate)

    @agent_gate.setter
    def agent_gate(self, gate):
        if gate == GATE_FOLLOW:
            raise ValueError("use follow()")
        self._agent_gate = Gate(gate)
        self._send_agent_audio()

    @property
    def agent_allowance_bytes(self):
        """How much more agent audio may be sent, whatever the gate; without limit until set.

        The playout's lead: set it to what the lead allows, whenever that has grown. What goes
        beyond it is held in order, and a mark may be put where it stopped. There is no limit to
        what is held: whoever holds much stops reading from the model.
        """
        return self._agent_allowance_bytes

    @agent_allowance_bytes.setter
    def agent_allowance_bytes(self, int64_t allowance):
        if allowance < 0:
            raise ValueError("an allowance cannot be negative")
        self._agent_allowance_bytes = allowance
        self._send_agent_audio()

    def mark(self, str name):
        """Ask the phone's side to say when it has played everything sent so far.

        Raises:
            ValueError: There is no stream, or its WebSocket is closed.
        """
        if self._mark_head is None:
            raise ValueError("there is no stream to send to")
        self._phone.send_text(self._mark_head + json.dumps(name).encode() + b"}}")

    def clear(self):
        """Drop all agent audio that is held, and have the phone's side drop what it has not played.

        The next turn starts with a fresh encoder: nothing of the old one rings on in it.

        Returns:
            How many payload bytes were held here.

        Raises:
            ValueError: There is no stream, or its WebSocket is closed.
        """
        if self._clear_message is None:
            raise ValueError("there is no stream to send to")
        self._phone.send_text(self._clear_message)
        return self.drop_held_agent_audio()

    def drop_held_agent_audio(self):
        """Drop all agent audio that is held here and tell nobody; returns how many bytes."""
        cdef size_t dropped = held(&self._agent)
        self.agent_dropped_bytes += dropped
        clear(&self._agent)
        self._encoder.reset()
        return dropped

    def replace_model(self):
        """Start with a fresh connection to the model; returns it as the new :attr:`model`.

        The old one, with all it has not given out, is forgotten. Set the caller's gate to HOLD
        first, and to PASS when the new session is ready: nothing the caller says is lost.
        """
        self._model = WebSocket(
            is_client=True, max_message_bytes=self._model.max_message_bytes
        )
        return self._model

    # -- what Python wants to know -----------------------------------------------------------

    def has_caller_news(self):
        """Whether somebody has to look: audio is held, to be written down, or tells something."""
        return (
            held(&self._caller) > 0
            or held(&self._sent) >= SENT_NEWS_BYTES
            or (self.ear is not None and self.ear.has_news)
        )

    def counts(self):
        """Caller chunks taken, and of them the missing, the repeated, those at an odd time."""
        return (
            self.caller_chunks, self.missing_chunks, self.repeated_chunks, self.timestamp_jumps
        )

    def take_caller(self):
        """Take the caller audio that is held: payload, as the ear has left it."""
        return take_bytes(&self._caller)

    def take_sent(self):
        """Take what was sent to the model since this was last asked, while ``keep_sent``."""
        return take_bytes(&self._sent)

    @property
    def caller_held_bytes(self):
        """Caller audio that waits for the gate or for a connection."""
        return held(&self._caller)

    @property
    def agent_held_bytes(self):
        """Agent audio that waits for the gate, the stream or the allowance."""
        return held(&self._agent)

    def take_caller_level(self):
        """How loud the caller was since this was last asked; once per chunk, if one likes."""
        return take_level(&self._caller_meter)

    def take_agent_level(self):
        """How loud the agent's audio was, as it came, since this was last asked."""
        return take_level(&self._agent_meter)

    def take_recording(self):
        """What was said since this was last asked, while ``recording`` is true.

        Returns:
            Mu-law bytes of the caller, as they came (a chunk that begins anywhere but at the end
            of the one before is handed up meanwhile), and of the agent, as sent to the phone. The
            caller's are a clock; the agent's come ahead of it and some may be cleared, so who
            records both must note the counts when they are taken.
        """
        caller = take_bytes(&self._caller_recording)
        return caller, take_bytes(&self._agent_recording)


# -- messages --------------------------------------------------------------------------------

cdef struct CallerChunk:
    Span stream_sid
    Span payload  # base64
    int64_t number
    int64_t timestamp_ms


cdef bint find_caller_audio(Span message, CallerChunk* chunk) noexcept nogil:
    """Read {"event": "media", "streamSid": "...", "media": {...}}; False for anything else."""
    cdef Walk walk = walk_over(message)
    cdef Span name, event
    cdef bint has_event = False, has_stream_sid = False, has_media = False
    enter(&walk)
    while next_member(&walk, &name):
        if same(name, "event"):
            once(&walk, &has_event)
            plain_string(&walk, &event)
            walk.broken |= not same(event, "media")
        elif same(name, "streamSid"):
            once(&walk, &has_stream_sid)
            plain_string(&walk, &chunk.stream_sid)
        elif same(name, "media"):
            once(&walk, &has_media)
            walk_media(&walk, chunk)
        else:
            skip_plain(&walk)
    return finished(&walk) and has_event and has_stream_sid and has_media


cdef void walk_media(Walk* walk, CallerChunk* chunk) noexcept nogil:
    """{"track": "inbound", "chunk": "2", "timestamp": "5", "payload": "..."}"""
    cdef Span name, track
    cdef bint has_payload = False, has_timestamp = False, has_track = False, has_chunk = False
    chunk.number = 0
    enter(walk)
    while next_member(walk, &name):
        if same(name, "payload"):
            once(walk, &has_payload)
            base64_string(walk, &chunk.payload)
        elif same(name, "timestamp"):
            once(walk, &has_timestamp)
            whole_number(walk, &chunk.timestamp_ms)
        elif same(name, "chunk"):
            once(walk, &has_chunk)
            whole_number(walk, &chunk.number)
        elif same(name, "track"):
            once(walk, &has_track)
            plain_string(walk, &track)
            walk.broken |= not same(track, "inbound")
        else:
            skip_plain(walk)
    walk.broken |= not (has_payload and has_timestamp)


cdef bint find_agent_audio(Span message, Span* base64) noexcept nogil:
    """Read one part of audio and nothing else; False for whatever has more to say.

    {"serverContent": {"modelTurn": {"parts": [{"inlineData": {...}}], "role": "model"}}}
    """
    cdef Walk walk = walk_over(message)
    cdef Span name, ignored
    cdef bint has_parts = False, has_role = False
    base64.data = NULL
    base64.size = 0
    enter_sole(&walk, "serverContent")
    enter_sole(&walk, "modelTurn")
    enter(&walk)
    while next_member(&walk, &name):
        if same(name, "parts"):
            once(&walk, &has_parts)
            expect(&walk, c"[")
            enter_sole(&walk, "inlineData")
            walk_inline_data(&walk, base64)
            leave_sole(&walk)
            expect(&walk, c"]")
        elif same(name, "role"):
            once(&walk, &has_role)
            plain_string(&walk, &ignored)
        else:
            return False
    leave_sole(&walk)
    leave_sole(&walk)
    return finished(&walk) and has_parts


cdef void walk_inline_data(Walk* walk, Span* base64) noexcept nogil:
    """{"mimeType": "audio/pcm;rate=24000", "data": "..."}"""
    cdef Span name, mime_type
    cdef bint has_data = False, has_mime_type = False
    enter(walk)
    while next_member(walk, &name):
        if same(name, "data"):
            once(walk, &has_data)
            base64_string(walk, base64)
        elif same(name, "mimeType"):
            once(walk, &has_mime_type)
            plain_string(walk, &mime_type)
            # The model has one rate; when it does not say which, it is that.
            walk.broken |= not (
                same(mime_type, "audio/pcm;rate=24000") or same(mime_type, "audio/pcm")
            )
        else:
            walk.broken = True
    walk.broken |= not (has_data and has_mime_type)


cdef inline void once(Walk* walk, bint* seen) noexcept nogil:
    """A name that comes twice: the full parser knows which of them counts."""
    walk.broken |= seen[0]
    seen[0] = True


# -- levels and buffers ------------------------------------------------------------------------

cdef void measure(Meter* meter, const uint8_t* payload, size_t size) noexcept nogil:
    cdef uint64_t energy = 0
    cdef uint8_t loudest = meter.loudest
    cdef size_t i, full_scale = 0
    for i in range(size):
        energy += SQUARES[payload[i]]
    for i in range(size):
        loudest = min(loudest, payload[i] & 0x7F)
    for i in range(size):
        full_scale += not payload[i] & 0x7F
    meter.energy += energy
    meter.samples += size
    meter.full_scale += full_scale
    meter.loudest = loudest


cdef Level take_level(Meter* meter):
    cdef Level level = Level.__new__(Level)
    level.samples = meter.samples
    if meter.samples:
        level.rms = sqrt(<double>meter.energy / meter.samples)
        level.peak = MAGNITUDES[meter.loudest]
        level.full_scale_samples = meter.full_scale
    meter.energy = meter.samples = meter.full_scale = 0
    meter.loudest = SILENCE
    return level


cdef bytes take_bytes(Buffer* buffer):
    cdef bytes taken = PyBytes_FromStringAndSize(<const char*>head(buffer), held(buffer))
    clear(buffer)
    return taken
