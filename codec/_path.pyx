"""One call's audio between two sockets; ``path.py`` has the picture.

Read it from ``next_from_phone`` (the caller's way) or ``next_from_model`` (the agent's way).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport INFINITY
from libc.stddef cimport size_t
from libc.stdint cimport int16_t, int64_t, uint8_t
from libc.string cimport memcpy

from codec._base64 cimport decode_into as decode_base64
from codec._base64 cimport decoded_size
from codec._base64 cimport encode_into as encode_base64
from codec._base64 cimport encoded_size
from codec._buffer cimport Buffer, append, clear, consume, grow, head, held, release, reserve
from codec._ear cimport Played
from codec._kernels cimport MulawDecoder, MulawEncoder
from codec._shape cimport Found, Shape, find_audio
from codec._websocket cimport Span, WebSocket

cdef enum:
    CALLER_RATE_HZ = 16000  # what the model wants to hear
    AGENT_RATE_HZ = 24000  # what it says
    # 100 ms, the longest that Gemini's guide allows. Only what was held is longer than a chunk.
    CALLER_MESSAGE_BYTES = 800
    # A second; no carrier's documentation has a limit below.
    AGENT_MESSAGE_BYTES = 8000
    # Base64 comes in threes of bytes, so pieces of a message are divisible by three.
    PIECE_BYTES = 480
    # A second of sent audio: often enough to write it down, and seldom.
    SENT_NEWS_BYTES = 8000

cdef double BYTES_PER_S = 8000.0
cdef double PAUSE_S = 0.2  # later than any jitter: the sender has paused, and its clock went on
cdef int64_t MAX_GAP_CHUNKS = 3_000  # numbers further apart are another count, not lost audio
cdef int64_t MAX_TIMESTAMP_MS = 1 << 53  # beyond what JSON numbers are exact for it is nonsense

cdef class MediaPath:
    """Everything that happens to one call's audio, from socket bytes to socket bytes.

    Feed it what was read (``path.phone.receive``, ``path.model.receive``), ask it for messages that
    are Python's (:meth:`next_from_phone`, :meth:`next_from_model`) until there is none, write what
    it has for the other side (``path.model.take_output``, ``path.phone.take_output``).

    Attributes:
        phone: The carrier's connection, or None; we are its server. Another may take its place.
        model: The model's connection, or None; we are its client. See :meth:`join_model`.
        decoder: Of the caller's audio. Python may use it too, between two messages.
        encoder: Of the agent's audio; Python encodes what it hands on itself.
        ear: Judges every chunk of caller audio before it goes anywhere, and may silence it.
        played: What the caller hears of the agent; :meth:`follow` needs it.
        caller_passes: False, as to begin with, holds the caller's audio for :meth:`take_caller`.
        model_ready: False holds the caller's audio, too.
        keep_newest_bytes: Of audio that is held by ``model_ready`` alone, no more is kept than
            this, and nobody has to look; 0 for all, and somebody has.
        recording: Whether what is said is kept for :meth:`take_recording`.
        keep_sent: Whether caller audio that was sent is kept for :meth:`take_sent`.
        caller_sent_bytes: How much caller audio was written into messages for the model, in mu-law
            bytes, which are samples at 8 kHz.
        last_chunk: The carrier's number of the last chunk, 0 if there was none.
        timestamp_ms: The carrier's clock at the end of the last chunk.
        recorded_ms: The carrier's clock at the end of what was recorded of the caller.
        heard_at: When the last chunk was read, as given to :meth:`next_from_phone`; 0 before.
        due_at: When the last chunk may have been over at the earliest; one that comes earlier is
            handed up. Minus infinity where nobody minds; see :meth:`resume`.

    No sockets, no clock, and one thread at a time.
    """

    def __cinit__(self):
        self._decoder = MulawDecoder(CALLER_RATE_HZ)
        self._encoder = MulawEncoder(AGENT_RATE_HZ)
        self._model_ready = True
        self.due_at = -INFINITY

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

        None means that all that was received has been seen, or that nobody has joined; if
        ``phone.ended``, no more will be. A message caller audio comes out too when it is unusual
        in any way: the full parser reads it then, and whoever has read it passes it on.
        """
        return self.next_from_phone_c(now)

    cdef bytes next_from_phone_c(self, double now):
        cdef Span message
        self._now = now
        while self._phone is not None and self._phone.next_span(&message):
            if not self._take_caller_message(message):
                return PyBytes_FromStringAndSize(<const char*>message.data, message.size)
        return None

    cdef bint _take_caller_message(self, Span message) except -1:
        """False, with nothing changed, for whatever is not plainly audio of this stream."""
        cdef Found chunk
        cdef Span stream
        cdef size_t size
        if self._stream_sid is None:
            return False
        if self._phone_shape is None:
            return self._take_caller_frame(message)
        if not self._phone.is_text:
            return False
        stream.data, stream.size = <const uint8_t*>self._stream_sid, len(self._stream_sid)
        if not find_audio(self._phone_shape, message, stream, &chunk):
            return False
        if chunk.timestamp_ms < 0:  # where there is none, chunks follow each other
            chunk.timestamp_ms = self.timestamp_ms
        if self.recording and self._timed and chunk.timestamp_ms != self.timestamp_ms:
            return False  # what is recorded here is one stretch
        if not decoded_size(chunk.audio.data, chunk.audio.size, &size) or size == 0:
            return False
        if self.due_at + size / BYTES_PER_S > self._now:
            return False
        if not decode_base64(chunk.audio.data, chunk.audio.size, reserve(&self._caller, size)):
            return False
        grow(&self._caller, size)
        self._take_chunk(chunk.chunk_number, chunk.timestamp_ms, size)
        return True

    cdef bint _take_caller_frame(self, Span frame) except -1:
        """A binary frame is audio and nothing else; after a pause Python says what time it is."""
        if self._phone.is_text or frame.size == 0 or not self._timed:
            return False
        if self._now - max(self.heard_at, self._resumed_at) > PAUSE_S:
            return False
        if self.due_at + frame.size / BYTES_PER_S > self._now:
            return False
        append(&self._caller, frame.data, frame.size)
        self._take_chunk(0, self.timestamp_ms, frame.size)
        return True

    cdef int _take_chunk(self, int64_t number, int64_t timestamp_ms, size_t size) except -1:
        """The last ``size`` bytes of ``_caller`` are new, and in the carrier's law."""
        self.heard_at = self._now
        self.due_at += size / BYTES_PER_S
        if self._to_mulaw is not None:
            translate(self._caller.data + self._caller.end - size, size, self._to_mulaw)
        self._count_chunk(number, timestamp_ms, size)
        return self._hear(size)

    cdef void _count_chunk(
        self, int64_t number, int64_t timestamp_ms, int64_t size
    ) noexcept:
        if number > self.last_chunk:
            if self.last_chunk:
                self._missing_chunks += min(number - self.last_chunk - 1, MAX_GAP_CHUNKS)
            self.last_chunk = number
        elif number:
            self._repeated_chunks += 1
        if self._timed and timestamp_ms != self.timestamp_ms:
            self._timestamp_jumps += 1
        self._timed = True
        self.timestamp_ms = timestamp_ms + size // 8
        self._chunks += 1

    cdef int _hear(self, int64_t size) except -1:
        """The last ``size`` bytes of ``_caller`` are new."""
        cdef uint8_t* payload = self._caller.data + self._caller.end - size
        if self.recording:
            append(&self._caller_recording, payload, size)
            self.recorded_ms = self.timestamp_ms
        if self.ear is not None:
            self.ear.hear_c(payload, size, self._now)
        self._send_caller_audio()
        return 0

    cdef int _send_caller_audio(self) except -1:
        """Write messages for the model from what is there, if it may go."""
        cdef size_t size, piece, head_bytes, tail_bytes
        cdef int16_t pcm[2 * PIECE_BYTES]
        cdef uint8_t* text
        cdef uint8_t* at
        cdef size_t text_bytes
        if not self._caller_passes or not self._model_ready:
            if self._keeps_only() and held(&self._caller) > self.keep_newest_bytes:
                consume(&self._caller, held(&self._caller) - self.keep_newest_bytes)
            return 0
        if self._model is None or not self._model.is_open:
            return 0
        head_bytes, tail_bytes = len(self._model_head), len(self._model_tail)
        while held(&self._caller):
            size = min(held(&self._caller), <size_t>CALLER_MESSAGE_BYTES)
            text_bytes = head_bytes + encoded_size(4 * size) + tail_bytes
            at = text = self._model.begin(True, text_bytes)
            memcpy(at, <const uint8_t*>self._model_head, head_bytes)
            at += head_bytes
            self.caller_sent_bytes += size
            if self.keep_sent:
                append(&self._sent, head(&self._caller), size)
            while size:
                piece = min(size, <size_t>PIECE_BYTES)
                self._decoder.decode_into(head(&self._caller), piece, pcm)
                at = encode_base64(<const uint8_t*>pcm, 4 * piece, at)
                consume(&self._caller, piece)
                size -= piece
            memcpy(at, <const uint8_t*>self._model_tail, tail_bytes)
            self._model.end(text, text_bytes)
        clear(&self._caller)
        return 0

    cdef bint _keeps_only(self) noexcept:
        """Whether what is held is only kept for a while, and nobody's business."""
        return self.keep_newest_bytes > 0 and self._caller_passes and not self._model_ready

    # -- the agent's way: model to phone -----------------------------------------------------

    def next_from_model(self, double now=0.0):
        """Take agent audio while it is followed; returns the next message that is not, or None.

        Args:
            now: When it was read; :meth:`follow` needs it.

        None means that all that was received has been seen, or that nobody has joined; if
        ``model.ended``, no more will be. A message with agent audio comes out too when there is
        anything else in it, or when it is unusual in any way, and with each that comes out the
        following ends.
        """
        return self.next_from_model_c(now)

    cdef bytes next_from_model_c(self, double now):
        cdef Span message
        self._now = now
        while self._model is not None and self._model.next_span(&message):
            if not self._follows or not self._take_agent_message(message):
                self._follows = False
                return PyBytes_FromStringAndSize(<const char*>message.data, message.size)
        return None

    cdef bint _take_agent_message(self, Span message) except -1:
        """False, with nothing changed, for whatever is not plainly audio and nothing else."""
        cdef Found said
        cdef Span no_stream
        cdef size_t size
        no_stream.data, no_stream.size = message.data, 0
        if not self._may_follow() or not find_audio(self._model_shape, message, no_stream, &said):
            return False
        if not decoded_size(said.audio.data, said.audio.size, &size) or size == 0 or size % 2:
            return False
        if not decode_base64(said.audio.data, said.audio.size, reserve(&self._pcm, size)):
            return False
        grow(&self._pcm, size)
        self._say(size // 2)
        return True

    cdef bint _may_follow(self) noexcept:
        """True if Python has no decision to take about the next chunk of this turn."""
        return (
            self._run.bytes < self._run.limit_bytes
            and self._now < self._played.play_end - self._run.thin_s
            and self._stream_sid is not None
            and self._phone is not None
            and self._phone.is_open
        )

    cdef int _say(self, size_t samples) except -1:
        """Encode what is in ``_pcm``, write it down and write it for the phone."""
        cdef const int16_t* pcm = <const int16_t*>head(&self._pcm)
        cdef uint8_t* payload = reserve(&self._agent, self._encoder.outputs(samples))
        cdef int64_t size = self._encoder.encode_into(pcm, samples, payload)
        clear(&self._pcm)
        self._note_followed(payload, size)
        grow(&self._agent, size)
        self._send_agent_audio()
        clear(&self._agent)
        return 0

    cdef int _note_followed(self, const uint8_t* payload, int64_t size) except -1:
        self._played.passed_c(self._now)
        self._played.sent_c(payload, size, self._played.play_end)
        cdef double late_at = self._now - <double>self._run.bytes / BYTES_PER_S
        self._run.late_at = max(self._run.late_at, late_at)
        self._run.bytes += size
        if self._encoder.chunk_level_dbfs() > self._run.audible_dbfs:
            self._run.audible_bytes += size
        self._run.last_at = self._now
        return 0

    cdef int _send_agent_audio(self) except -1:
        """Write messages for the phone from what is in ``_agent``."""
        cdef size_t size
        cdef uint8_t* payload
        while held(&self._agent):
            size = min(held(&self._agent), <size_t>AGENT_MESSAGE_BYTES)
            payload = head(&self._agent)
            if self.recording:
                append(&self._agent_recording, payload, size)
            if self._of_mulaw is not None:
                translate(payload, size, self._of_mulaw)
            self._write_for_phone(payload, size)
            consume(&self._agent, size)
        return 0

    cdef int _write_for_phone(self, const uint8_t* payload, size_t size) except -1:
        """Write one message with this audio, as the carrier wants it."""
        cdef size_t head_bytes = len(self._phone_head), tail_bytes = len(self._phone_tail)
        cdef size_t text_bytes = head_bytes + encoded_size(size) + tail_bytes
        cdef uint8_t* text
        cdef uint8_t* at
        if self._phone_shape is None:
            at = self._phone.begin(False, size)
            memcpy(at, payload, size)
            return self._phone.end(at, size)
        at = text = self._phone.begin(True, text_bytes)
        memcpy(at, <const uint8_t*>self._phone_head, head_bytes)
        at = encode_base64(payload, size, at + head_bytes)
        memcpy(at, <const uint8_t*>self._phone_tail, tail_bytes)
        return self._phone.end(text, text_bytes)

    # -- what Python decides -----------------------------------------------------------------

    @property
    def phone(self):
        """The carrier's connection, or None."""
        return self._phone

    @phone.setter
    def phone(self, WebSocket websocket not None):
        self._phone = websocket

    @property
    def model(self):
        """The model's connection, or None."""
        return self._model

    def join_model(self, WebSocket websocket not None, messages):
        """Use this connection to the model from now on; the one before it is forgotten.

        Args:
            websocket: The connection; we are its client.
            messages: How the model writes audio, a :class:`codec.shapes.AudioMessages`.
        """
        if messages.received is None or messages.law is not None:
            raise ValueError("a model's audio is base64 in text")
        self._model_shape = <Shape?>messages.received
        self._model_head, self._model_tail = <bytes?>messages.head, <bytes?>messages.tail
        self._model = websocket

    @property
    def played(self):
        """What the caller hears of the agent, or None; another one ends the following."""
        return self._played

    @played.setter
    def played(self, Played played):
        self._follows = False
        self._played = played

    @property
    def decoder(self):
        """The decoder of the caller's audio; it goes on where the last chunk ended."""
        return self._decoder

    @property
    def encoder(self):
        """The encoder of the agent's audio; it goes on where the last chunk ended."""
        return self._encoder

    @property
    def caller_passes(self):
        """Whether the caller's audio goes on to the model, and is not held."""
        return self._caller_passes

    @caller_passes.setter
    def caller_passes(self, bint passes):
        self._caller_passes = passes
        self._send_caller_audio()

    @property
    def model_ready(self):
        """Whether the model's connection may be used by whoever passes."""
        return self._model_ready

    @model_ready.setter
    def model_ready(self, bint ready):
        self._model_ready = ready
        self._send_caller_audio()

    def resume(self, *, last_chunk, timestamp_ms, double due_at=-INFINITY):
        """Go on counting where Python has got to.

        Args:
            last_chunk: Number of the last chunk; 0 if there was none.
            timestamp_ms: The carrier's clock at its end; None if there was none.
            due_at: When that may have been at the earliest. Each chunk moves it on by its own
                playing time, and one that is over earlier is handed up.
        """
        cdef int64_t at_ms = min(max(timestamp_ms or 0, 0), MAX_TIMESTAMP_MS)
        if not self._timed or at_ms != self.timestamp_ms:  # audio, and not only a word in between
            self._resumed_at = self._now
        self.due_at = due_at
        self.last_chunk = min(max(last_chunk, 0), MAX_TIMESTAMP_MS)
        self._timed = timestamp_ms is not None
        self.timestamp_ms = at_ms

    def follow(self, *, int64_t limit_bytes, double audible_dbfs=-50.0, double thin_s=0.0):
        """Pass on what else comes of the agent's turn under way, as long as it is nothing special.

        That ends with the first message that is not audio, with a chunk that comes when the caller
        has heard all before it but ``thin_s``, when ``limit_bytes`` have passed, and with
        :meth:`take_run`. Then every message comes out whole, as before.

        Args:
            limit_bytes: Payload after which somebody has to look: a mark is due, or the lead used.
            audible_dbfs: How loud a chunk has to be to be heard.
            thin_s: How much has to be left to play for a chunk to need no decision.

        Raises:
            ValueError: There is nobody who knows what has been played.
        """
        if self._played is None:
            raise ValueError("the agent's audio cannot be followed now")
        self._run.bytes = self._run.audible_bytes = 0
        self._run.limit_bytes = limit_bytes
        self._run.audible_dbfs = audible_dbfs
        self._run.thin_s = thin_s
        self._run.last_at = self._run.late_at = 0.0
        self._follows = True

    @property
    def has_run(self):
        """Whether :meth:`take_run` has anything to tell, or to stop."""
        return self._run.bytes > 0 or self._follows

    def run_is_over(self):
        """Whether somebody has to look, though no message has come."""
        return self.run_is_over_c()

    cdef bint run_is_over_c(self) noexcept:
        return self._run.bytes >= self._run.limit_bytes and self._run.bytes > 0

    def take_run(self):
        """Stop following, and say what has passed since :meth:`follow`.

        Returns:
            Payload bytes, how many of them were audible, when the last came, and when the latest
            came, which is the one whose time of arrival, less the playing time of what came before
            it in this run, is greatest: that difference.
        """
        run = (self._run.bytes, self._run.audible_bytes, self._run.last_at, self._run.late_at)
        self._run.bytes = self._run.audible_bytes = self._run.limit_bytes = 0
        self._follows = False
        return run

    def start(self, str stream_sid, messages):
        """The carrier has begun its stream: only now can anything be sent to the phone.

        Args:
            stream_sid: The stream's name; empty where the carrier's audio does not name it.
            messages: How the carrier writes audio on it, a :class:`codec.shapes.AudioMessages`.
        """
        law = messages.law
        to_mulaw = None if law is None else <bytes?>law.to_mulaw
        of_mulaw = None if law is None else <bytes?>law.of_mulaw
        if law is not None and not len(to_mulaw) == len(of_mulaw) == 256:
            raise ValueError("a law has 256 codes")
        self._phone_head, self._phone_tail = <bytes?>messages.head, <bytes?>messages.tail
        self._phone_shape = None if messages.received is None else <Shape?>messages.received
        self._to_mulaw, self._of_mulaw = to_mulaw, of_mulaw
        self._stream_sid = stream_sid.encode()

    def stop(self):
        """The carrier has ended its stream: nothing more is sent, and late audio is handed up."""
        self._stream_sid = None

    # -- what Python wants to know -----------------------------------------------------------

    def has_caller_news(self):
        """Whether somebody has to look: audio is held, to be written down, or tells something."""
        return self.has_caller_news_c()

    cdef bint has_caller_news_c(self):
        return (
            (held(&self._caller) > 0 and not self._keeps_only())
            or held(&self._sent) >= SENT_NEWS_BYTES
            or (self.ear is not None and held(&self.ear._found) > 0)
        )

    def counts(self):
        """Caller chunks taken, and of them the missing, the repeated, those at an odd time."""
        return (
            self._chunks, self._missing_chunks, self._repeated_chunks, self._timestamp_jumps
        )

    @property
    def keeps_only(self):
        """Whether what is held is only kept for a while, and nobody has to look at it."""
        return self._keeps_only()

    def take_caller(self):
        """Take the caller audio that is held: payload, as the ear has left it."""
        return take_bytes(&self._caller)

    def take_sent(self):
        """Take what was sent to the model since this was last asked, while ``keep_sent``."""
        return take_bytes(&self._sent)

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


cdef void translate(uint8_t* payload, size_t size, const uint8_t* codes) noexcept nogil:
    """Put another code in the place of each."""
    cdef size_t i
    for i in range(size):
        payload[i] = codes[payload[i]]


cdef bytes take_bytes(Buffer* buffer):
    cdef bytes taken = PyBytes_FromStringAndSize(<const char*>head(buffer), held(buffer))
    clear(buffer)
    return taken
