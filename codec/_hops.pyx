"""Caller audio as a judge of speech takes it; see ``hops.py``."""

from libc.math cimport INFINITY, log10
from libc.stdint cimport int16_t, int64_t
from libc.string cimport memset

from codec._ear cimport FRAME, RING, Ear
from codec._kernels cimport MulawDecoder

cdef enum:
    HOP = 256  # 32 ms of mu-law
    CONTEXT = 64  # samples at 16 kHz that the model wants to hear again
    SAMPLES = 2 * HOP

cdef double BYTES_PER_S = 8000.0

HOP_S = HOP / BYTES_PER_S
HOP_SAMPLES = CONTEXT + SAMPLES
MOST_HOPS = RING // HOP


cdef class Hops:
    """The newest audio of one ear, 32 ms at a time and without a gap, at 16 kHz.

    Args:
        ear: Keeps the audio. It has to be judged.

    Attributes:
        at: When the last sample of the hop taken last was heard.
        level_dbfs: How loud that hop was; -96 for silence.
    """

    cdef Ear _ear
    cdef MulawDecoder _decoder
    cdef int64_t _taken
    cdef readonly double at
    cdef readonly double level_dbfs
    cdef float _context[CONTEXT]

    def __cinit__(self, Ear ear not None):
        self._ear = ear
        self._decoder = MulawDecoder(16_000)
        memset(self._context, 0, sizeof(self._context))
        self.begin()

    def begin(self):
        """Go back to what was taken last, or as far as the ear remembers.

        The last hop will end with the newest sample.
        """
        cdef int64_t kept = self._ear._suspicion.kept
        cdef int64_t since = max(self._taken, self._ear._suspicion.valid_from)
        cdef int64_t missing = min(kept - since, <int64_t>RING)
        self._taken = kept - missing // HOP * HOP
        self.at = self._ear._suspicion.kept_at

    @property
    def behind_s(self):
        """How much audio has not been taken yet."""
        return <double>(self._ear._suspicion.kept - self._taken) / BYTES_PER_S

    @property
    def due_since(self):
        """When the last byte of the next hop came; infinity while there is none."""
        cdef int64_t kept = self._ear._suspicion.kept
        cdef int64_t last = max(self._taken + HOP - 1, kept - RING)
        if kept - self._taken < HOP:
            return INFINITY
        return self._ear._suspicion.came_at[last % RING // FRAME]

    def take(self, float[::1] row not None):
        """Write the next hop into a row of :data:`HOP_SAMPLES`; False where there is none yet.

        Raises:
            ValueError: The row has another length.
        """
        cdef int64_t kept = self._ear._suspicion.kept
        cdef int16_t pcm[SAMPLES]
        cdef Py_ssize_t first, i
        cdef int64_t energy = 0
        if row.shape[0] != CONTEXT + SAMPLES:
            raise ValueError(f"a row has {CONTEXT + SAMPLES} samples, not {row.shape[0]}")
        if kept - self._taken > RING:  # nobody has asked for too long
            self.begin()
        if kept - self._taken < HOP:
            return False
        first = self._taken % RING  # hops may wrap round
        i = min(<Py_ssize_t>HOP, RING - first)
        self._decoder.decode_into(self._ear._suspicion.ring + first, i, pcm)
        if i < HOP:
            self._decoder.decode_into(self._ear._suspicion.ring, HOP - i, pcm + 2 * i)
        for i in range(SAMPLES):
            energy += <int64_t>pcm[i] * pcm[i]
        self.level_dbfs = 10.0 * log10((<double>energy / SAMPLES + 0.25) / 32768.0 ** 2)
        for i in range(CONTEXT):
            row[i] = self._context[i]
        for i in range(SAMPLES):
            row[CONTEXT + i] = <float>pcm[i] / <float>32768.0
        for i in range(CONTEXT):
            self._context[i] = row[SAMPLES + i]
        self._taken += HOP
        self.at = self._ear._suspicion.kept_at - self.behind_s
        return True
