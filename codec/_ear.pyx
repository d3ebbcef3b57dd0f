"""What the caller hears of the agent, and what can be found out from what they say; see ``ear.py``.

Top to bottom: what is played; then the three things that happen to a caller frame, each a struct
and its functions; then the ear that joins them. Sums of doubles keep their order, so that verdicts
are the same on every machine.
"""

import _webrtcvad

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport INFINITY, ldexp, rint, sqrt
from libc.stddef cimport size_t
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memmove, memset

from codec._buffer cimport Buffer, append, clear, consume, head, held, release

from codec import decode_mulaw
from codec.findings import EchoFound, SpeechEnded, SpeechStarted, Stop, Suspected

cdef enum:
    SILENCE = 0xFF  # mu-law's positive zero

cdef int64_t BACKGROUND = -1  # no turn of the agent's

cdef double BYTES_PER_S = 8000.0
cdef double FRAME_SECONDS = 0.02
# Mean magnitude from which a frame can be speech: about -50 dBFS. A quiet caller is at -40, and
# most quiet frames of a telephone line are below -60, so that few of them reach the detector.
cdef double LOUD_FROM = 14.0

FRAME_BYTES = FRAME
FRAME_S = FRAME_SECONDS
LINE_RATE_HZ = 8000
LOUD = LOUD_FROM

cdef int16_t LINEAR[256]


cdef void fill_tables():
    pcm = memoryview(decode_mulaw(bytes(range(256)))).cast("h")
    for code in range(256):
        LINEAR[code] = pcm[code]


fill_tables()


cdef double loudness_of(const uint8_t* payload, size_t size) noexcept nogil:
    """Mean magnitude, 0 to 127, in mu-law's steps: 16 of them are 6 dB."""
    cdef uint32_t sum = 0
    cdef size_t i
    for i in range(size):
        sum += ~payload[i] & 0x7F
    return <double>sum / <double>size


cdef bint is_voiced(const uint8_t* frame) noexcept nogil:
    """Whether a frame of speech sounds like a vowel: it crosses zero seldom.

    The breath of a cough and the hiss of a line cross zero at two or three kilohertz, a voice
    below one.
    """
    cdef uint32_t crossings = 0
    cdef int i
    for i in range(FRAME - 1):
        crossings += (frame[i] ^ frame[i + 1]) >> 7
    return crossings <= 40  # 1 kHz in 20 ms


def loudness(payload):
    """Mean magnitude of a frame or more, 0 to 127, in mu-law's steps: 16 of them are 6 dB.

    Raises:
        ValueError: There is nothing in it.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        if view.len == 0:
            raise ValueError("nothing has no loudness")
        return loudness_of(<const uint8_t*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


# -- what is played --------------------------------------------------------------------------

# How much of what was heard is remembered: longer than an echo takes.
cdef double REMEMBERED_S = 2.0
# How long a turn may pause for want of audio and still be the agent's: as long as callers wait
# before they take the word, and longer than a playout lets it pause by itself.
cdef double PAUSE_SECONDS = 0.5


cdef struct Piece:
    uint8_t* audio  # in memory of its own, which is given back as soon as it is forgotten
    size_t size
    int64_t turn
    double plays_at


cdef inline double played_at(const Piece* piece) noexcept nogil:
    return piece.plays_at + <double>piece.size / BYTES_PER_S


cdef inline const Piece* pieces_of(const Buffer* pieces) noexcept nogil:
    return <const Piece*>head(pieces)


cdef inline size_t count_of(const Buffer* pieces) noexcept nogil:
    return held(pieces) // sizeof(Piece)


cdef class Played:
    """What the caller is hearing of the agent: mu-law, and the times at which it plays.

    Args:
        remember: Whether to keep what the caller has not heard yet, and two seconds of what they
            have; if not, only times are kept.

    Attributes:
        open: There is a stream on which anything can be heard.
        marks_out: Marks that the carrier has not echoed: until it has, the agent is heard.
        play_end: When the carrier has nothing of the agent's any more.
        background_end: The same of a sound that is not the agent's speech.
        turn: The turn of what is sent next.
        goes_on: More is to come of that turn.

    No clock: times are the owner's, and are to be given in their order.
    """

    def __cinit__(self, *, bint remember=False):
        self.remember = remember

    def __dealloc__(self):
        cdef const Piece* pieces = pieces_of(&self._pieces)
        cdef size_t number
        for number in range(count_of(&self._pieces)):
            PyMem_RawFree(pieces[number].audio)
        release(&self._pieces)

    def sent(self, payload, double plays_at):
        """The carrier has got this, and the caller begins to hear it then."""
        cdef Py_buffer view
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            self.sent_c(<const uint8_t*>view.buf, view.len, plays_at)
        finally:
            PyBuffer_Release(&view)

    cdef int sent_c(self, const uint8_t* payload, size_t size, double plays_at) except -1:
        cdef Piece piece
        if self.remember and size:
            piece.audio = <uint8_t*>PyMem_RawMalloc(size)
            if piece.audio == NULL:
                raise MemoryError
            memcpy(piece.audio, payload, size)
            piece.size = size
            piece.turn = self.turn
            piece.plays_at = plays_at
            try:
                append(&self._pieces, &piece, sizeof(Piece))
            except MemoryError:
                PyMem_RawFree(piece.audio)
                raise
        self.play_end = plays_at + <double>size / BYTES_PER_S
        return 0

    def background(self, payload, double plays_at):
        """The carrier has got a sound that is not the agent's speech: only echoes are made of it.

        It comes after all that was sent, and what is sent then comes after it.
        """
        cdef double play_end = self.play_end
        cdef int64_t turn = self.turn
        self.turn = BACKGROUND
        try:
            self.sent(payload, plays_at)
            self.background_end = self.play_end
        finally:
            self.turn, self.play_end = turn, play_end

    def passed(self, double now):
        """Note the time, and forget what was heard long ago."""
        self.passed_c(now)

    cdef void passed_c(self, double now) noexcept nogil:
        cdef const Piece* oldest
        if self._pieces.capacity == 0:
            return
        while held(&self._pieces):
            oldest = pieces_of(&self._pieces)
            if not played_at(oldest) < now - REMEMBERED_S:
                return
            if self._playing:
                self._playing -= 1
            PyMem_RawFree(oldest.audio)
            consume(&self._pieces, sizeof(Piece))
        release(&self._pieces)

    def forget(self, double now):
        """A clear is on its way: nothing that the carrier holds will be heard."""
        cdef size_t count = count_of(&self._pieces)
        cdef Piece* newest
        cdef size_t kept
        while count:
            newest = <Piece*>pieces_of(&self._pieces) + count - 1
            if newest.plays_at < now:
                if played_at(newest) > now:
                    kept = <size_t>rint((now - newest.plays_at) * BYTES_PER_S)
                    newest.size = min(kept, newest.size)
                break
            PyMem_RawFree(newest.audio)
            self._pieces.end -= sizeof(Piece)
            count -= 1
        self._playing = min(self._playing, count)
        self.play_end = now
        self.background_end = min(self.background_end, now)

    def forget_background(self, double now):
        """A clear is on its way, and the carrier has nothing of the agent's."""
        cdef double play_end = self.play_end
        self.forget(now)
        self.play_end = play_end

    def hasten(self, double by_s):
        """The carrier is further on than the owner's clock has said, by so much."""
        cdef Piece* pieces = <Piece*>pieces_of(&self._pieces)
        cdef size_t number
        for number in range(count_of(&self._pieces)):
            pieces[number].plays_at -= by_s
        self.play_end -= by_s

    def is_playing(self, double now):
        """Whether the caller is hearing the agent now, as far as can be known."""
        return self.is_playing_c(now)

    cdef bint is_playing_c(self, double now) noexcept nogil:
        return self.open and (self.marks_out > 0 or now < self.play_end)

    def is_speaking(self, double now):
        """Whether the caller hears the agent, or a pause that its turn makes for want of audio."""
        return self.is_speaking_c(now)

    cdef bint is_speaking_c(self, double now) noexcept nogil:
        if self.is_playing_c(now):
            return True
        return self.open and self.goes_on and now < self.play_end + PAUSE_SECONDS

    def played(self, double now, size_t length_bytes):
        """What the carrier has played up to now, silence where there was nothing."""
        cdef bytes heard = PyBytes_FromStringAndSize(NULL, length_bytes)
        self._gather(now, <uint8_t*>PyBytes_AS_STRING(heard), length_bytes)
        return heard

    cdef double loudness_c(self, double now) noexcept nogil:
        cdef uint8_t heard[FRAME]
        self._gather(now, heard, FRAME)
        return loudness_of(heard, FRAME)

    cdef int _gather(self, double now, uint8_t* heard, size_t size) noexcept nogil:
        """Fill with what was played up to now."""
        cdef double began = now - <double>size / BYTES_PER_S
        cdef const Piece* pieces = pieces_of(&self._pieces)
        cdef size_t count = count_of(&self._pieces)
        cdef const Piece* piece
        cdef size_t number, filled = 0, skipped, length
        cdef double at
        # Whoever asks begins to look where it was asked for last, which is near; a console asks for
        # what is played now, an ear for what was when the audio it hears left the caller.
        while self._playing and played_at(pieces + self._playing - 1) > began:
            self._playing -= 1
        while self._playing < count and played_at(pieces + self._playing) <= began:
            self._playing += 1
        memset(heard, SILENCE, size)
        for number in range(self._playing, count):
            piece = pieces + number
            at = rint((piece.plays_at - began) * BYTES_PER_S)
            if not at < <double>size:
                break
            skipped = 0
            if at > 0:
                filled = max(filled, <size_t>at)
            elif -at >= <double>piece.size:
                skipped = piece.size
            else:
                skipped = <size_t>-at
            length = min(piece.size - skipped, size - filled)
            memcpy(heard + filled, piece.audio + skipped, length)
            filled += length
            if filled >= size:
                break
        return 0

    def tail(self, size_t size, turn=None):
        """The newest bytes that were sent and not forgotten, no more than ``size``.

        Args:
            size: How many are wanted.
            turn: Of this turn only.
        """
        cdef const Piece* pieces = pieces_of(&self._pieces)
        cdef size_t count = count_of(&self._pieces)
        cdef bint of_turn = turn is not None
        cdef int64_t wanted = turn if of_turn else 0
        cdef const Piece* piece
        cdef size_t number, missing, length, total = 0
        cdef uint8_t* to
        cdef bytes newest
        for number in range(count):
            if not of_turn or pieces[number].turn == wanted:
                total += pieces[number].size
        missing = min(total, size)
        newest = PyBytes_FromStringAndSize(NULL, missing)
        to = <uint8_t*>PyBytes_AS_STRING(newest) + missing
        number = count
        while missing:
            number -= 1
            piece = pieces + number
            if of_turn and piece.turn != wanted:
                continue
            length = min(missing, piece.size)
            to -= length
            memcpy(to, piece.audio + piece.size - length, length)
            missing -= length
        return newest


# -- speech ----------------------------------------------------------------------------------

cdef enum:
    # Of the detector, 0 to 3: 3 misses beginnings, 1 calls line noise speech (tried on recordings).
    AGGRESSIVENESS = 2
    # Speech in a row that begins a turn: a click is shorter, and 60 ms is not yet a delay.
    START_FRAMES = 3


cdef enum SpeechEvent:
    NO_CHANGE
    STARTED
    ENDED


cdef SpeechEvent hear_speech(
    Speech* speech, bint is_speech, double at, int* ended_frames
) noexcept nogil:
    """Take a frame; echoes of the agent are nobody's speech."""
    if is_speech:
        speech.in_a_row += 1
        speech.frames += 1
        speech.silent_frames = 0
        speech.last_at = at
        if not speech.speaking and speech.in_a_row >= START_FRAMES:
            speech.speaking = True
            return STARTED
        return NO_CHANGE
    speech.in_a_row = 0
    if not speech.speaking:
        speech.frames = 0
        return NO_CHANGE
    speech.silent_frames += 1
    if speech.silent_frames < speech.end_silence_frames:
        return NO_CHANGE
    ended_frames[0] = speech.frames
    forget_speech(speech)
    return ENDED


cdef void forget_speech(Speech* speech) noexcept nogil:
    """What was taken for speech was none: nobody is speaking."""
    speech.speaking = False
    speech.in_a_row = speech.frames = 0


# -- echo ------------------------------------------------------------------------------------
#
# Delay and loss of an echo are constant for a call, so they are found by correlating the loudness
# of both directions; from then on a caller frame that is no louder than the echo to be expected is
# an echo, and a louder one is somebody speaking over it.

cdef enum:
    LEARN_EVERY_FRAMES = 5
    # Verdicts in a row, 100 ms apart: a coincidence does not keep its delay.
    CERTAIN_AFTER = 3

# Correlation from which there is an echo (recordings: 0.86 and more over a whole call, where
# somebody speaking over the agent stays below 0.75), and under which there is none any more.
cdef double FOUND = 0.8
cdef double LOST = 0.5
# Five decibels above the expected echo is somebody's voice.
cdef double MARGIN = 14.0


cdef void push_level(Levels* levels, double level) noexcept nogil:
    """The newest takes the place of the oldest when there are LEVELS of them."""
    if levels.count == LEVELS:
        levels.start += 1
        levels.count -= 1
    if levels.start + levels.count == 2 * LEVELS:
        memmove(levels.at, levels.at + levels.start, levels.count * sizeof(uint16_t))
        levels.start = 0
    levels.at[levels.start + levels.count] = <uint16_t>rint(level * <double>FRAME)
    levels.count += 1


cdef inline double level_at(const Levels* levels, int number) noexcept nogil:
    """What was pushed, to the last bit; the oldest is number 0."""
    return <double>levels.at[levels.start + number] / <double>FRAME


cdef bint hear_echo(Echo* echo, double caller, double played) noexcept nogil:
    """Take the loudness of the same 20 ms in both directions, while the agent is heard.

    Returns:
        Whether the caller's frame is no more than an echo.
    """
    cdef double expected = 0.0
    cdef int newest, number
    push_level(&echo.caller, caller)
    push_level(&echo.played, played)
    echo.frames += 1
    if caller >= LOUD_FROM and echo.frames % LEARN_EVERY_FRAMES == 0:
        learn(echo)
    if echo.delay < 0:
        return False
    newest = echo.played.count - 1 - echo.delay
    for number in range(max(0, newest - TAIL_FRAMES), min(newest + 2, echo.played.count)):
        expected = max(expected, level_at(&echo.played, number))
    return expected >= LOUD_FROM and caller <= expected - echo.loss + MARGIN


cdef void pause_echo(Echo* echo) noexcept nogil:
    """The agent is silent: what comes next is another stretch of its speech.

    The beginning of one would correlate with anybody who begins to speak a moment later.
    """
    echo.caller.start = echo.caller.count = 0
    echo.played.start = echo.played.count = 0


cdef void learn(Echo* echo) noexcept nogil:
    """Look for an echo in the last second, or for whether it is still there."""
    cdef double best
    cdef int delay
    if echo.delay >= 0:
        delay = correlate(echo, max(0, echo.delay - 2), echo.delay + 3, &best)
        echo.verdicts = echo.verdicts + 1 if delay >= 0 and best < LOST else 0
        if echo.verdicts >= CERTAIN_AFTER:
            echo.delay = echo.candidate = -1
            echo.verdicts = 0
        return
    delay = correlate(echo, 0, MAX_DELAY_FRAMES + 1, &best)
    if delay < 0:
        return
    if best < FOUND:
        echo.candidate = -1
        echo.verdicts = 0
        return
    if echo.candidate < 0 or delay - echo.candidate > 1 or echo.candidate - delay > 1:
        echo.verdicts = 0
    echo.candidate = delay
    echo.verdicts += 1
    if echo.verdicts >= CERTAIN_AFTER:
        find_loss(echo, delay)


cdef int correlate(const Echo* echo, int first, int end, double* best) noexcept nogil:
    """Pearson's correlation of the last second with what was played so many frames before.

    Returns:
        The delay from first up to end with the best of them, or -1 when none can be told.
    """
    cdef double caller[WINDOW_FRAMES]
    cdef double played[LEVELS]
    cdef double deviations[WINDOW_FRAMES]
    # Of every stretch of what was played, as differences of sums from the beginning.
    cdef double sums[LEVELS + 1]
    cdef double squares[LEVELS + 1]
    cdef double products[MAX_DELAY_FRAMES + TAIL_FRAMES + 1]
    cdef double mean = 0.0, spread = 0.0, total, spread_played, correlation, deviation
    cdef int i, delay, begin, delays, count = echo.played.count, found = -1
    # Delays that reach back before the beginning cannot be told.
    end = min(end, count - WINDOW_FRAMES + 1)
    if end <= first:
        return -1
    delays = end - first
    for i in range(count):
        played[i] = level_at(&echo.played, i)
    for i in range(WINDOW_FRAMES):
        caller[i] = level_at(&echo.caller, echo.caller.count - WINDOW_FRAMES + i)
        mean += caller[i]
    mean /= <double>WINDOW_FRAMES
    for i in range(WINDOW_FRAMES):
        deviations[i] = caller[i] - mean
        spread += deviations[i] * deviations[i]
    if spread < 1.0:
        return -1
    sums[0] = squares[0] = 0.0
    for i in range(count):
        sums[i + 1] = sums[i] + played[i]
        squares[i + 1] = squares[i] + played[i] * played[i]
    # The deviations add up to nothing, so what was played need not be centred. All delays at once,
    # a frame at a time: each sum is in order, and the loop over delays vectorises.
    begin = count - WINDOW_FRAMES - (end - 1)
    for delay in range(delays):
        products[delay] = 0.0
    for i in range(WINDOW_FRAMES):
        deviation = deviations[i]
        for delay in range(delays):
            products[delay] += deviation * played[begin + i + delay]
    for delay in range(first, end):
        begin = count - WINDOW_FRAMES - delay
        total = sums[begin + WINDOW_FRAMES] - sums[begin]
        spread_played = squares[begin + WINDOW_FRAMES] - squares[begin]
        spread_played -= total * total / <double>WINDOW_FRAMES
        if spread_played < 1.0:
            continue
        correlation = products[end - 1 - delay] / sqrt(spread * spread_played)
        if found < 0 or correlation > best[0]:
            found = delay
            best[0] = correlation
    return found


cdef void find_loss(Echo* echo, int delay) noexcept nogil:
    """How much quieter the echo is, from the frames in which both can be heard."""
    cdef double losses[WINDOW_FRAMES]
    cdef double then, caller, loss
    cdef int i, place, count = 0
    for i in range(WINDOW_FRAMES):
        then = level_at(&echo.played, echo.played.count - delay - WINDOW_FRAMES + i)
        caller = level_at(&echo.caller, echo.caller.count - WINDOW_FRAMES + i)
        if then < LOUD_FROM or caller < LOUD_FROM:
            continue
        loss = then - caller
        place = count
        while place > 0 and losses[place - 1] > loss:
            losses[place] = losses[place - 1]
            place -= 1
        losses[place] = loss
        count += 1
    if count:
        # Under the median: a room adds to the echo, never takes away.
        echo.delay = delay
        echo.loss = losses[count // 3]
        echo.verdicts = 0


# -- barge-in --------------------------------------------------------------------------------
#
# 60 ms of speech hold the agent; then there is time to be sure. Vowels make it an interruption, a
# silence before there were enough of them makes it a false alarm. After false alarms only what is
# louder than they were holds the agent for a while, twice as long after each: there is a room, or
# somebody has a cold, or the telephone is on loudspeaker and its echo is not known yet. Nobody goes
# unheard meanwhile. Of callers to whom the agent was deaf for so long, in a room 15 dB under them,
# half waited for a second and some for ever; they wait for 75 ms now.

cdef enum:
    # 120 ms: longer than the stop of a consonant.
    SILENCE_FRAMES = 6
    # 100 ms of vowel are a word; a cough has less.
    MIN_VOWEL_FRAMES = 5
    # After 800 ms of sound without vowels it is noise.
    MAX_UNCERTAIN_FRAMES = 40

# After a false alarm nothing holds the agent for so long.
cdef double BACK_OFF_S = 0.5
cdef double WARY_S = 2.0
cdef double MAX_WARY_S = 16.0
# Three decibels louder than a false alarm, in steps of mu-law: as far as a room's sounds differ.
cdef double LOUDER_BY = 8.0
# But -35 dBFS are always enough: some callers are no louder, however loud they have coughed.
cdef double LOUD_ENOUGH = 30.0


cdef enum StopEvent:
    GO_ON
    HOLD
    CUT
    RESUME


cdef StopEvent hear_barge_in(
    BargeIn* barge_in, const uint8_t* frame, double level, double at, bint speech, bint agent_heard
) noexcept nogil:
    """Take a frame, whether it is the caller's own speech, and whether the agent is heard."""
    if barge_in.holding:
        return decide(barge_in, frame, level, at, speech)
    if at < barge_in.wary_until and level < barge_in.louder_than:
        speech = False
    if not speech or not agent_heard:
        barge_in.in_a_row = 0
        return GO_ON
    barge_in.in_a_row += 1
    if barge_in.in_a_row < START_FRAMES or at < barge_in.not_before:
        return GO_ON
    barge_in.holding = True
    barge_in.frames = barge_in.vowels = barge_in.silence = 0
    barge_in.speech_frames = 1
    barge_in.loudness = level
    return HOLD


cdef StopEvent decide(
    BargeIn* barge_in, const uint8_t* frame, double level, double at, bint speech
) noexcept nogil:
    cdef bint word, noise
    cdef double mean
    cdef int patience
    barge_in.frames += 1
    if speech:
        barge_in.silence = 0
        barge_in.vowels += is_voiced(frame)
        barge_in.speech_frames += 1
        barge_in.loudness += level
    else:
        barge_in.silence += 1
    if barge_in.vowels >= barge_in.confirm_frames:
        settle(barge_in)
        return CUT
    word = barge_in.vowels >= MIN_VOWEL_FRAMES
    patience = barge_in.agree_frames if word else 0
    noise = not word and barge_in.frames >= MAX_UNCERTAIN_FRAMES
    if barge_in.silence < SILENCE_FRAMES + patience and not noise:
        return GO_ON
    barge_in.holding = False
    barge_in.in_a_row = 0
    if not word:
        mean = barge_in.loudness / <double>max(1, barge_in.speech_frames)
        barge_in.louder_than = min(mean + LOUDER_BY, LOUD_ENOUGH)
        barge_in.not_before = at + BACK_OFF_S
        barge_in.wary_until = at + min(MAX_WARY_S, ldexp(WARY_S, barge_in.false_alarms))
        barge_in.false_alarms = min(barge_in.false_alarms + 1, 16)
    return RESUME


cdef void settle(BargeIn* barge_in) noexcept nogil:
    """The agent has been cut: it was an interruption."""
    barge_in.holding = False
    barge_in.in_a_row = 0
    barge_in.false_alarms = 0
    barge_in.wary_until = 0.0


# -- suspicion -------------------------------------------------------------------------------
#
# Where somebody else judges what is speech (a model that costs too much to be asked about every
# frame), the detector only says when it is worth asking: two frames in a row that are speech to it
# and louder than the room usually is.

cdef enum:
    SUSPECT_FRAMES = 2

# How long after the last such frame the judge goes on.
cdef double SUSPECT_S = 0.5
# Six decibels above the floor: four found no more words, and asked half as often again.
cdef double ABOVE_FLOOR = 16.0
# The floor follows what is quieter within some frames, and what is louder by 6 dB in five seconds.
cdef double FLOOR_FALLS = 0.1
cdef double FLOOR_RISES = 0.064


cdef enum:
    # 100 ms: what a network loses at once, and longer than that it is a pause.
    MAX_HOLES = 5
    # Each frame in the place of one that was lost is 3 dB quieter than the one before.
    FADE_STEPS = 8


cdef void repeat(const uint8_t* before, uint8_t* to) noexcept nogil:
    """Fill a frame with the one before it, quieter."""
    cdef int i, magnitude
    for i in range(FRAME):
        magnitude = max(0, <int>(~before[i] & 0x7F) - FADE_STEPS)
        to[i] = (before[i] & 0x80) | (~magnitude & 0x7F)


cdef bint is_hole(const Suspicion* suspicion, double level) noexcept nogil:
    """Whether a frame of nothing at all is one that was lost, in the middle of something."""
    if level > 0.0 or suspicion.kept - suspicion.valid_from < FRAME:
        return False
    return suspicion.last_level > 0.0 and suspicion.holes < MAX_HOLES


cdef bint suspect(
    Suspicion* suspicion,
    const uint8_t* frame,
    double level,
    double at,
    double came_at,
    bint speech,
    bint is_echo,
) noexcept nogil:
    """Take a frame, and keep it for the judge; True when a suspicion begins with it."""
    cdef Py_ssize_t place = suspicion.kept % RING
    cdef uint8_t* to = suspicion.ring + place
    cdef bint is_new
    cdef bint hole = not is_echo and is_hole(suspicion, level)
    if is_echo:
        memset(to, SILENCE, FRAME)
    elif hole:
        # Where the room falls silent for a moment and comes back, a judge hears no voice.
        repeat(suspicion.ring + (place + RING - FRAME) % RING, to)
    else:
        memcpy(to, frame, FRAME)
    suspicion.came_at[place // FRAME] = came_at
    suspicion.kept += FRAME
    suspicion.kept_at = at
    if hole:
        suspicion.holes += 1
        return False  # what was suspicious before it still is
    suspicion.holes = 0
    suspicion.last_level = 0.0 if is_echo else level
    if level < suspicion.floor:
        suspicion.floor += FLOOR_FALLS * (level - suspicion.floor)
    else:
        suspicion.floor += FLOOR_RISES
    if not speech or level < suspicion.floor + ABOVE_FLOOR:
        suspicion.in_a_row = 0
        return False
    suspicion.in_a_row += 1
    if suspicion.in_a_row < SUSPECT_FRAMES:
        return False
    is_new = at >= suspicion.until
    suspicion.until = at + SUSPECT_S
    return is_new


# -- the ear ---------------------------------------------------------------------------------

# A network that is later than this has lost something.
cdef double MAX_JITTER_S = 1.0
# Of the lateness of each chunk that is taken for the clocks' and not the network's.
cdef double DRIFT = 0.002


cdef enum:
    SPEECH_STARTED
    SPEECH_ENDED
    ECHO_FOUND
    SUSPECTED
    STOP  # and the StopEvent


cdef struct Event:
    int kind
    int frames
    double at
    double known_at


cdef int _frames(double seconds) except -1:
    """How many frames that is, half a frame to the even side."""
    if not 0.0 <= seconds < 86400.0:
        raise ValueError(f"{seconds} seconds are not between 0 and a day")
    return <int>rint(seconds / FRAME_SECONDS)


cdef class Ear:
    """The caller's side of one call, judged from audio.

    Args:
        played: What the caller hears of the agent.
        barge_in: Whether echoes and interruptions are looked for; if not, only speech is.
        end_silence_s: Silence after which a turn is over.
        confirm_s: Vowels that make an interruption certain.
        agree_s: How long after a word or two that were not enough the agent still waits for
            somebody else (the model) to call it an interruption.

    Attributes:
        judges_barge_in: Whether interruptions are judged just now; yes to begin with.
        judges_after: Speech that begins after this time has them judged from then on.
        judged: Whether somebody else finds speech and interruptions, by :class:`codec.hops.Hops`:
            only echoes are found here then, and when to ask. Not to be changed but by
            :meth:`rely_on_judge` and :meth:`rely_on_detector`.
        heard_at: When the last audio came, or would have on a network without jitter.
        echo_frames: How many frames were no more than an echo.

    One thread at a time.
    """

    def __cinit__(
        self,
        Played played not None,
        *,
        bint barge_in,
        double end_silence_s=0.5,
        double confirm_s=0.2,
        double agree_s=0.0,
    ):
        self.played = played
        self.barge_in = barge_in
        self.judges_barge_in = True
        self.judges_after = INFINITY
        self.heard_at = self._last_speech_at = -INFINITY
        self._detector = _webrtcvad.create()
        _webrtcvad.init(self._detector)
        _webrtcvad.set_mode(self._detector, AGGRESSIVENESS)
        self._speech.end_silence_frames = max(1, _frames(end_silence_s))
        self._echo.delay = self._echo.candidate = -1
        self._barge_in.confirm_frames = max(1, _frames(confirm_s))
        self._barge_in.agree_frames = _frames(agree_s)
        self._suspicion.floor = LOUD_FROM
        self._suspicion.until = -INFINITY

    def __dealloc__(self):
        release(&self._found)

    def hear(self, payload, double at):
        """Take caller audio.

        Args:
            payload: Mu-law at 8 kHz, any length; what does not fill a frame waits for the next.
            at: When its last sample was received.

        Returns:
            The same with silence for what of it was an echo: the model would take the agent's own
            voice for the caller's, and interrupt itself.
        """
        cdef Py_buffer view
        cdef bytes heard
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            # Made empty and then filled, so that nobody else has it while it is being changed.
            heard = PyBytes_FromStringAndSize(NULL, view.len)
            if view.len:
                memcpy(PyBytes_AS_STRING(heard), view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        self.hear_c(<uint8_t*>PyBytes_AS_STRING(heard), len(heard), at)
        return heard

    cdef bint hear_c(self, uint8_t* payload, size_t size, double at) except -1:
        cdef size_t total = self._partial_bytes + size
        cdef size_t after = total - total % FRAME  # bytes of whole frames after this one
        cdef size_t length
        self._received_at = at
        self._steady(at, <double>size / BYTES_PER_S)
        if self._partial_bytes and size:
            length = min(<size_t>FRAME - self._partial_bytes, size)
            memcpy(self._partial + self._partial_bytes, payload, length)
            self._partial_bytes += length
            if self._partial_bytes == FRAME:
                self._partial_bytes = 0
                after -= FRAME
                if self._judge(self._partial, self.heard_at - <double>after / BYTES_PER_S):
                    memset(payload, SILENCE, length)
            payload += length
            size -= length
        while size >= FRAME:
            after -= FRAME
            if self._judge(payload, self.heard_at - <double>after / BYTES_PER_S):
                memset(payload, SILENCE, FRAME)
            payload += FRAME
            size -= FRAME
        if size:
            memcpy(self._partial, payload, size)
            self._partial_bytes = size
        return held(&self._found) > 0

    cdef void _steady(self, double at, double duration_s) noexcept nogil:
        """Note when audio would have come on a network without jitter.

        What comes late was not spoken late: its time follows from what came before it. Only what
        comes early says something about the line, and slowly the drift between the two clocks.
        """
        cdef double expected = self.heard_at + duration_s
        if at - expected > MAX_JITTER_S:
            expected = at  # the stream has just begun, or audio was lost
        self.heard_at = min(at, expected + DRIFT * (at - expected))

    cdef bint _judge(self, const uint8_t* frame, double at) except -1:
        """Find out what there is in a frame; True for an echo."""
        cdef double level = loudness_of(frame, FRAME)
        cdef bint speech = level >= LOUD_FROM and self._detects(frame)
        cdef bint is_echo = False
        cdef SpeechEvent event
        cdef StopEvent stop
        cdef double started_at
        cdef int frames = 0
        if self.barge_in:
            self._hear_echo(level, at, &is_echo)
            speech = speech and not is_echo
        if self.judged:
            if suspect(
                &self._suspicion, frame, level, at, self._received_at, speech, is_echo
            ):
                self._note(SUSPECTED, at, at, 0)
            return is_echo
        if speech:
            self._last_speech_at = at
        event = hear_speech(&self._speech, speech, at, &frames)
        if event == STARTED:
            started_at = at - START_FRAMES * FRAME_SECONDS
            if started_at > self.judges_after:
                self.judges_barge_in = True
            self._note(SPEECH_STARTED, started_at, at, 0)
        elif event == ENDED:
            self._note(SPEECH_ENDED, self._speech.last_at, at, frames)
        if self.barge_in and self.judges_barge_in:
            stop = hear_barge_in(
                &self._barge_in, frame, level, at, speech, self.played.is_speaking_c(at)
            )
            if stop != GO_ON:
                self._note(STOP + stop, at, at, 0)
        return is_echo

    cdef bint _detects(self, const uint8_t* frame) except -1:
        """Whether WebRTC's detector, a Gaussian mixture over six bands, calls it speech."""
        cdef bytes pcm = PyBytes_FromStringAndSize(NULL, 2 * FRAME)
        cdef int16_t samples[FRAME]
        cdef int i
        for i in range(FRAME):
            samples[i] = LINEAR[frame[i]]
        memcpy(PyBytes_AS_STRING(pcm), samples, 2 * FRAME)
        return _process(self._detector, 8000, pcm, 160)

    cdef int _hear_echo(self, double level, double at, bint* is_echo) except -1:
        cdef Played played = self.played
        cdef bint knew = self._echo.delay >= 0
        # How long after it was played an echo may still come back.
        cdef double longest_s = (MAX_DELAY_FRAMES + TAIL_FRAMES) * FRAME_SECONDS
        cdef double end
        played.passed_c(at)
        end = max(played.play_end, played.background_end)
        if not played.is_playing_c(at - FRAME_SECONDS) and at - end >= longest_s:
            pause_echo(&self._echo)
            return 0
        is_echo[0] = hear_echo(&self._echo, level, played.loudness_c(at))
        if is_echo[0]:
            self.echo_frames += 1
        if self._echo.delay >= 0 and not knew:
            # What has been heard up to now was the agent, too: a turn in which nothing was said.
            if self._speech.speaking:
                self._note(SPEECH_ENDED, at, at, 0)
            forget_speech(&self._speech)
            self._last_speech_at = -INFINITY
            self._note(ECHO_FOUND, at, at, 0)
        return 0

    cdef int _note(self, int kind, double at, double known_at, int frames) except -1:
        cdef Event event
        event.kind = kind
        event.frames = frames
        event.at = at
        event.known_at = known_at
        append(&self._found, &event, sizeof(Event))
        return 0

    @property
    def has_news(self):
        """Whether :meth:`take_found` has something."""
        return held(&self._found) > 0

    def take_found(self):
        """Everything found since this was last asked, in order."""
        cdef const Event* event = <const Event*>head(&self._found)
        cdef list found = []
        for _ in range(held(&self._found) // sizeof(Event)):
            if event.kind == SPEECH_STARTED:
                found.append(SpeechStarted(event.at))
            elif event.kind == SPEECH_ENDED:
                speech_s = event.frames * FRAME_SECONDS
                found.append(SpeechEnded(event.at, speech_s, event.known_at))
            elif event.kind == ECHO_FOUND:
                found.append(EchoFound(event.at))
            elif event.kind == SUSPECTED:
                found.append(Suspected(event.at))
            else:
                found.append(_STOPS[event.kind - STOP])
            event += 1
        clear(&self._found)
        return found

    @property
    def caller_speaks(self):
        """Whether the caller is in the middle of a turn."""
        return self._speech.speaking

    @property
    def has_echo(self):
        """Whether the agent's voice comes back on this line."""
        return self._echo.delay >= 0

    def spoke_since(self, double at):
        """Whether the caller themselves was heard speaking after this time."""
        return self._last_speech_at > at

    def agent_cut(self):
        """Somebody else has cut the agent: it was an interruption; nothing is held any more."""
        settle(&self._barge_in)

    def rely_on_judge(self):
        """Leave speech and interruptions to somebody else; False while there are any.

        Nothing changes in the middle of a word.
        """
        if self._speech.speaking or self._barge_in.holding:
            return False
        self.judged = True
        self._speech.in_a_row = self._speech.frames = self._barge_in.in_a_row = 0
        self._suspicion.until = -INFINITY
        self._suspicion.valid_from = self._suspicion.kept
        return True

    def rely_on_detector(
        self,
        *,
        bint speaking,
        bint holding,
        double speech_s,
        double last_at,
        double voiced_s,
    ):
        """Find speech and interruptions by the detector alone.

        Args:
            speaking: Whether the caller is in the middle of a turn.
            holding: Whether the agent is held just now.
            speech_s: How much they have spoken in that turn.
            last_at: When they were last heard in it.
            voiced_s: How much voice there has been since the agent is held.
        """
        cdef double kept_at = self._suspicion.kept_at
        cdef double end_silence_s = self._speech.end_silence_frames * FRAME_SECONDS
        self.judged = False
        self._speech.speaking = speaking
        self._speech.in_a_row = self._speech.frames = self._speech.silent_frames = 0
        if speaking:
            # What has been suspicious since is the detector's to judge now, and is speech to it.
            last_at = min(max(last_at, self._suspicion.until - SUSPECT_S), kept_at)
            self._speech.last_at = last_at
            self._speech.frames = _frames(speech_s)
            self._speech.silent_frames = _frames(min(kept_at - last_at, end_silence_s))
        self._barge_in.holding = holding
        self._barge_in.in_a_row = self._barge_in.frames = 0
        self._barge_in.vowels = _frames(voiced_s) if holding else 0
        self._barge_in.silence = self._speech.silent_frames
        self._barge_in.speech_frames = 0
        self._barge_in.loudness = 0.0

    @property
    def suspicious_s(self):
        """For how long without a pause there has been something suspicious."""
        return self._suspicion.in_a_row * FRAME_SECONDS

    @property
    def room_loudness(self):
        """How loud the line is when nobody speaks, as :func:`loudness` says; where it is judged."""
        return self._suspicion.floor

    @property
    def suspects_until(self):
        """Until when the judge is to go on, if nothing else suspicious comes."""
        return self._suspicion.until


_process = _webrtcvad.process
_STOPS = {HOLD: Stop.HOLD, CUT: Stop.CUT, RESUME: Stop.RESUME}
