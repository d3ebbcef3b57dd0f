from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

from codec._buffer cimport Buffer
from codec._ear cimport Ear, Played
from codec._kernels cimport MulawDecoder, MulawEncoder
from codec._shape cimport Shape
from codec._websocket cimport Span, WebSocket


cdef struct Run:
    int64_t bytes
    int64_t audible_bytes
    int64_t limit_bytes
    double audible_dbfs
    double thin_s
    double last_at
    double late_at


cdef class MediaPath:
    cdef WebSocket _phone
    cdef WebSocket _model
    cdef MulawDecoder _decoder
    cdef MulawEncoder _encoder
    cdef public Ear ear
    cdef Played _played
    cdef double _now

    cdef public bint recording
    cdef public bint keep_sent
    cdef public size_t keep_newest_bytes
    cdef bint _caller_passes
    cdef bint _model_ready
    cdef bint _follows
    cdef Run _run

    cdef bytes _stream_sid  # None while there is no stream
    cdef Shape _phone_shape  # None if its audio is binary frames
    cdef bytes _phone_head
    cdef bytes _phone_tail
    cdef bytes _to_mulaw  # None if it is mu-law
    cdef bytes _of_mulaw
    cdef Shape _model_shape
    cdef bytes _model_head
    cdef bytes _model_tail

    cdef Buffer _caller  # payload for the model: empty unless held
    cdef Buffer _agent  # what one model message has become
    cdef Buffer _pcm  # what one model message said
    cdef Buffer _sent  # payload that went to the model and that nobody has written down yet
    cdef Buffer _caller_recording
    cdef Buffer _agent_recording

    cdef int64_t _chunks
    cdef int64_t _missing_chunks
    cdef int64_t _repeated_chunks
    cdef int64_t _timestamp_jumps
    cdef readonly int64_t caller_sent_bytes
    cdef readonly int64_t timestamp_ms
    cdef readonly int64_t recorded_ms
    cdef readonly int64_t last_chunk
    cdef readonly double heard_at
    cdef readonly double due_at
    cdef bint _timed  # timestamp_ms is known
    cdef double _resumed_at

    # For the pump; the Python methods are in the .pyi.
    cdef bytes next_from_phone_c(self, double now)
    cdef bytes next_from_model_c(self, double now)
    cdef bint run_is_over_c(self) noexcept
    cdef bint has_caller_news_c(self)

    cdef bint _take_caller_message(self, Span message) except -1
    cdef bint _take_caller_frame(self, Span frame) except -1
    cdef int _take_chunk(self, int64_t number, int64_t timestamp_ms, size_t size) except -1
    cdef void _count_chunk(self, int64_t number, int64_t timestamp_ms, int64_t size) noexcept
    cdef int _hear(self, int64_t size) except -1
    cdef int _send_caller_audio(self) except -1
    cdef bint _keeps_only(self) noexcept
    cdef bint _take_agent_message(self, Span message) except -1
    cdef bint _may_follow(self) noexcept
    cdef int _say(self, size_t samples) except -1
    cdef int _note_followed(self, const uint8_t* payload, int64_t size) except -1
    cdef int _send_agent_audio(self) except -1
    cdef int _write_for_phone(self, const uint8_t* payload, size_t size) except -1
