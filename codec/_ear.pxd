"""The ear for other compiled modules: ``ear.py`` says what it does, the ``.pyi`` has the rest.

    cdef Ear ear
    if ear.hear_c(payload, size, at):  # judged in place; True: have Python call take_found()
        ...
    ear.played.sent_c(payload, size, max(now, ear.played.play_end))
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t

from codec._buffer cimport Buffer

cdef enum:
    FRAME = 160  # 20 ms of mu-law
    # An echo is looked for in a second of both directions,
    WINDOW_FRAMES = 50
    # as late as 600 ms: two mobile networks and a jitter buffer;
    MAX_DELAY_FRAMES = 30
    # and a room goes on sounding for 100 ms.
    TAIL_FRAMES = 5
    LEVELS = WINDOW_FRAMES + MAX_DELAY_FRAMES + TAIL_FRAMES + 1
    # What a judge is given of what came before a suspicion: ten of its hops of 32 ms.
    RING_FRAMES = 16
    RING = RING_FRAMES * FRAME


cdef class Played:
    cdef public bint open
    cdef public bint remember
    cdef public bint goes_on
    cdef public int64_t marks_out
    cdef public int64_t turn
    cdef public double play_end
    cdef readonly double background_end
    cdef Buffer _pieces  # what is remembered, oldest first: a Piece for each stretch of it
    cdef size_t _playing  # which of these was heard when it was last asked for

    # The next bytes for the caller, of turn `turn`: begun to be heard at `plays_at`, which is
    # max(now, play_end). Moves play_end. Remembers nothing unless `remember`.
    cdef int sent_c(self, const uint8_t* payload, size_t size, double plays_at) except -1
    # It is now so late: forget what was heard long ago. Whoever sends calls it before sent_c now
    # and then, or nothing is ever forgotten; an Ear that judges barge-ins does so with each frame.
    cdef void passed_c(self, double now) noexcept nogil
    cdef bint is_playing_c(self, double now) noexcept nogil
    cdef bint is_speaking_c(self, double now) noexcept nogil
    # Mean magnitude of the 20 ms played up to now.
    cdef double loudness_c(self, double now) noexcept nogil

    cdef int _gather(self, double now, uint8_t* heard, size_t size) noexcept nogil


cdef struct Levels:
    # The loudness of the last frames, newest last, in a stretch that slides along: FRAME times the
    # mean, which is a whole number of 127 * FRAME at most, so nothing is lost by it.
    uint16_t at[2 * LEVELS]
    int start
    int count


cdef struct Speech:
    int end_silence_frames
    int in_a_row
    int frames
    int silent_frames
    double last_at
    bint speaking


cdef struct Echo:
    Levels played
    Levels caller
    int64_t frames
    int candidate  # a delay that may be it; -1 for none
    int verdicts
    int delay  # in frames; -1 until an echo has been found
    double loss  # how much quieter it comes back


cdef struct BargeIn:
    int confirm_frames
    int agree_frames
    int in_a_row
    int frames
    int vowels
    int silence
    int false_alarms
    int speech_frames  # of what holds the agent
    double loudness  # of these, added up
    double not_before
    double wary_until
    double louder_than  # what holds the agent until then
    bint holding


cdef struct Suspicion:
    uint8_t ring[RING]
    int64_t kept  # bytes that have ever been in the ring
    int64_t valid_from  # what was kept before is no part of what is said now
    double kept_at  # when the last of them was heard
    double came_at[RING_FRAMES]  # when each frame in the ring came
    double floor  # loudness of the room
    double last_level  # of what was kept last
    int holes  # frames in a row that were filled
    int in_a_row
    double until


cdef class Ear:
    cdef readonly Played played
    cdef readonly bint barge_in
    cdef public bint judges_barge_in
    cdef public double judges_after
    cdef public bint judged
    cdef readonly double heard_at
    cdef readonly int64_t echo_frames
    cdef object _detector
    cdef Speech _speech
    cdef Echo _echo
    cdef BargeIn _barge_in
    cdef Suspicion _suspicion
    cdef double _last_speech_at
    cdef double _received_at
    cdef uint8_t _partial[FRAME]
    cdef size_t _partial_bytes
    cdef Buffer _found

    # Judges caller audio of any size and overwrites echoes in it with silence. True while
    # something found has not been taken.
    cdef bint hear_c(self, uint8_t* payload, size_t size, double at) except -1

    cdef void _steady(self, double at, double duration_s) noexcept nogil
    cdef bint _judge(self, const uint8_t* frame, double at) except -1
    cdef bint _detects(self, const uint8_t* frame) except -1
    cdef int _note(self, int kind, double at, double known_at, int frames) except -1
    cdef int _hear_echo(self, double level, double at, bint* is_echo) except -1
