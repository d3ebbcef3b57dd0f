"""Caller audio for a judge of speech that is asked only when there is something to ask about.

An ear that is judged (``codec.ear``) keeps the last third of a second. When it suspects somebody
of speaking, :class:`Hops` begins there, and goes on with what comes: stretches of 32 ms at 16 kHz,
each with the end of the one before, as the Silero model takes them. The samples are those that the
model at the other end of the call hears, by the same filter.
"""

from codec._hops import HOP_S, HOP_SAMPLES, MOST_HOPS, Hops

__all__ = ["HOP_S", "HOP_SAMPLES", "MOST_HOPS", "Hops"]
