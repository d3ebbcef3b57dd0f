"""The signs of life of an event loop, and what waits for one that is late; see ``beat.py``."""

from libc.stdint cimport int64_t

cdef extern from "beat.h" nogil:
    enum:
        BEAT_AVAILABLE
    int64_t now_ns()
    int64_t ran_ns()
    int open_waits()
    int64_t waited_ns(int number)
    int new_bell()
    void ring(int bell)
    void wait_rung(int bell, int64_t timeout_ns)
    void close_number(int number)
    int64_t loaded(int64_t* source)
    void store(int64_t* target, int64_t value)
    void put(int64_t* target, int64_t value)

cdef enum:
    RING = 256  # stalls that nobody has taken: more than a second of them
    LATE_NS = 5_000_000
    STALE_NS = 1_000_000  # the loop may have worked for so long since its CPU clock was read
    FURTHER = 4  # a step that goes on is looked at again after so many times as long

AVAILABLE = bool(BEAT_AVAILABLE)
LATE_S = LATE_NS / 1e9

cdef struct Late:
    int64_t step
    int64_t since
    int64_t until
    int64_t ran
    int64_t collected
    int64_t waited
    int64_t watch_late


cdef inline int64_t overlap(int64_t a, int64_t b, int64_t c, int64_t d) noexcept nogil:
    """How much the time from ``a`` to ``b`` has in common with that from ``c`` to ``d``."""
    return max(<int64_t>0, min(b, d) - max(a, c))


cdef class Beat:
    """One loop's signs of life, by which a thread sees that one is late.

    The loop's thread says :meth:`before_io_wait`, :meth:`after_io_wait` and
    :meth:`after_task_step`, as an instrument of trio's; one other thread calls :meth:`watch`.
    Nothing is counted before :meth:`begin`. No lock is shared: what both look at is written by one
    of them.
    """

    # Written by the loop, read by both.
    cdef int64_t _owed  # since when, or from when, the loop owes a sign of life
    cdef int64_t _step  # counts them
    cdef int64_t _written
    cdef Late _late[RING]
    cdef int64_t _rung  # when it rang the bell last
    # Written by the watching thread, read by both; the first by the loop, too.
    cdef int64_t _is_asleep
    cdef int64_t _settled
    # The loop's own.
    cdef bint _is_on
    cdef bint _sleeps
    cdef int64_t _worked
    cdef int64_t _ran
    cdef int64_t _collected_before
    cdef int64_t _taken
    # Whoever collects has the interpreter's lock.
    cdef int64_t _collecting_since
    cdef int64_t _collected
    # Of both, and changed while there is no thread, or to end it.
    cdef int64_t _is_closed
    cdef int _bell
    cdef int _waits
    # The watching thread's own.
    cdef int64_t _planned  # to look again at
    cdef int64_t _seen  # the step that was on when it looked last
    cdef int64_t _waited_before  # what the loop had waited for a core before that step
    cdef int64_t _waited  # and when it looked last
    cdef int64_t _own_late  # within that step
    cdef int64_t _next_look  # at that step's stack, in time since it is owed

    def __cinit__(self):
        self._bell = self._waits = -1

    def __dealloc__(self):
        close_number(self._bell)
        close_number(self._waits)

    # -- the loop's thread -------------------------------------------------------------------

    def begin(self):
        """Count from now on, or again; by the loop's thread, while nobody watches.

        Raises:
            OSError: There is no descriptor left, or no such thing on this system.
        """
        close_number(self._bell)
        close_number(self._waits)
        self._waits = -1
        self._bell = new_bell()
        if self._bell < 0:
            raise OSError("no bell for whoever watches the loop")
        self._waits = open_waits()
        self._ran = ran_ns()
        self._waited = self._waited_before = waited_ns(self._waits)
        self._seen, self._planned = -1, 0
        self._taken = self._settled = self._written
        self._collecting_since = self._worked = 0
        self._sleeps = False
        store(&self._is_asleep, 0)
        store(&self._is_closed, 0)
        store(&self._owed, now_ns())
        self._is_on = True

    def before_io_wait(self, double timeout):
        """The loop waits for this many seconds, unless something comes."""
        if self._is_on:
            self._sign(now_ns(), <int64_t>(min(max(timeout, 0.0), 1e6) * 1e9))
            self._sleeps = True

    def after_io_wait(self, double timeout):
        """The loop's wait is over."""
        if self._is_on:
            self._sign(now_ns(), 0)
            self._sleeps = False
            # Whoever serves in trio's wait has worked, and says nothing: it is asked for too often.
            self._ran, self._worked = ran_ns(), 0
            store(&self._step, self._step)  # is seen before this thread looks, by one that looks
            if loaded(&self._is_asleep):
                put(&self._rung, self._owed)
                store(&self._is_asleep, 0)
                ring(self._bell)

    def after_task_step(self, object task):
        """A task has made a step."""
        if self._is_on:
            self._sign(now_ns(), 0)

    cdef void _sign(self, int64_t now, int64_t after) noexcept:
        """The loop is alive, and owes its next sign from so long after now."""
        cdef int64_t since = self._owed
        if now - since >= LATE_NS:
            self._note(since, now)
        elif not self._sleeps:
            self._worked += now - since
            if self._worked >= STALE_NS:
                self._worked = 0
                self._ran = ran_ns()
        self._collected_before = self._collected
        put(&self._owed, now + after)
        put(&self._step, self._step + 1)

    cdef void _note(self, int64_t since, int64_t now) noexcept:
        """A sign has come late; what the watching thread knows of it is still to come."""
        cdef int64_t ran = ran_ns()
        cdef Late* late = &self._late[self._written % RING]
        if self._written - self._taken < RING:
            late.step, late.since, late.until = self._step, since, now
            late.ran = ran - self._ran
            late.collected = self._collected - self._collected_before
            store(&self._written, self._written + 1)
        self._ran, self._worked = ran, 0

    def take(self):
        """The steps that were late, and of which all is known.

        Returns:
            For each: its number and, in seconds, how long it was late, ran, waited for a core,
            how late the watching thread was meanwhile, and garbage was collected.
        """
        cdef int64_t settled = loaded(&self._settled)
        cdef list taken = []
        cdef Late* late
        while self._taken < settled:
            late = &self._late[self._taken % RING]
            taken.append((
                late.step, (late.until - late.since) / 1e9, late.ran / 1e9, late.waited / 1e9,
                late.watch_late / 1e9, late.collected / 1e9,
            ))
            self._taken += 1
        return taken

    # -- any thread that has the interpreter's lock --------------------------------------------

    @property
    def step(self):
        """The number of the step that is on."""
        return loaded(&self._step)

    def collects(self, str phase, object info):
        """The garbage collector has begun, or ended; one of ``gc.callbacks``."""
        if phase == "start":
            self._collecting_since = now_ns()
        elif self._collecting_since:
            self._collected += now_ns() - self._collecting_since
            self._collecting_since = 0

    def close(self):
        """Count nothing any more; :meth:`watch` returns -1 at once."""
        self._is_on = False
        store(&self._is_closed, 1)
        if self._bell >= 0:
            ring(self._bell)

    # -- the watching thread -------------------------------------------------------------------

    def watch(self):
        """Wait until a step is late whose stack should be looked at; without the lock meanwhile.

        Returns:
            The number of the step, once when it is late and again while it goes on; -1 when closed.
        """
        cdef int64_t step
        with nogil:
            step = self._watch()
        return step

    cdef int64_t _watch(self) noexcept nogil:
        cdef int64_t now, step, owed, timeout
        cdef bint is_new, may_sleep
        while not loaded(&self._is_closed):
            step = loaded(&self._step)
            owed = loaded(&self._owed)
            if step != loaded(&self._step):
                continue  # the two are not of one step
            now = now_ns()
            is_new = step != self._seen
            self._settle(now, step, owed)
            if now - owed >= self._next_look:
                self._planned = 0
                self._next_look = FURTHER * max(<int64_t>LATE_NS, now - owed)
                return step
            timeout = LATE_NS
            may_sleep = now < owed and not is_new  # as the loop does, and has done for a while
            if may_sleep:
                store(&self._is_asleep, 1)
                timeout = owed + LATE_NS - now
                if step != loaded(&self._step):
                    timeout = LATE_NS
            elif now - owed < LATE_NS:
                timeout = min(timeout, owed + LATE_NS - now)
            self._planned = now + timeout
            wait_rung(self._bell, timeout)
            if may_sleep and not loaded(&self._is_asleep):
                # It was to look when the bell rang: a pause may have begun before it could.
                self._planned = min(self._planned, max(now, loaded(&self._rung)))
            store(&self._is_asleep, 0)
        return -1

    cdef void _settle(self, int64_t now, int64_t step, int64_t owed) noexcept nogil:
        """Say of the late steps that have ended what this thread knows of them."""
        cdef int64_t planned = self._planned if self._planned else now
        cdef int64_t waited = waited_ns(self._waits)
        cdef int64_t written = loaded(&self._written)
        cdef int64_t settled = self._settled
        cdef Late* late
        while settled < written:
            late = &self._late[settled % RING]
            late.waited = waited - self._waited
            late.watch_late = overlap(planned, now, late.since, late.until)
            if late.step == self._seen:
                late.waited = waited - self._waited_before
                late.watch_late += self._own_late
            settled += 1
        store(&self._settled, settled)
        if step != self._seen:
            self._waited_before = self._waited
            self._seen, self._own_late, self._next_look = step, 0, LATE_NS
        self._own_late += overlap(planned, now, owed, now)
        self._waited = waited
