"""When the caller speaks, judged here from the telephone's own audio: no network, no model.

An :class:`Ear` belongs to one call and is fed mu-law as it comes. Three things happen to each frame
(20 ms) of it:

* speech: where it begins and ends. WebRTC's detector decides, on frames loud enough to matter;
* echo: whether it is what we are playing, come back. A telephone on loudspeaker sends the agent's
  voice back, later and quieter, and nothing on a telephone line takes it out;
* barge-in: whether the agent has to stop for it: hold first, then cut or go on.

:class:`Played` is what the caller hears of the agent, with the times at which they do. Both have no
clock and do no I/O. They are C for whoever cimports ``codec._ear``: a frame costs no Python there
until something has been found.

Loudness is measured in mu-law's own steps, which are nearly logarithmic: 16 steps are 6 dB, and no
code has to be expanded for it.
"""

from codec._ear import FRAME_BYTES, FRAME_S, LINE_RATE_HZ, LOUD, Ear, Played, loudness
from codec.findings import EchoFound, SpeechEnded, SpeechStarted, Stop, Suspected

__all__ = [
    "FRAME_BYTES",
    "FRAME_S",
    "LINE_RATE_HZ",
    "LOUD",
    "Ear",
    "EchoFound",
    "Played",
    "SpeechEnded",
    "SpeechStarted",
    "Stop",
    "Suspected",
    "loudness",
]
