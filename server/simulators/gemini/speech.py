"""The agent's voice: the few recordings that a simulated model speaks with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import codec
from server.media.wav import data_of
from server.model import AGENT_RATE_HZ

AGENT_BYTES_PER_S = 2 * AGENT_RATE_HZ


@dataclass(frozen=True, slots=True)
class Speech:
    """Something to say, as text and as pcm at 24 kHz."""

    text: str
    pcm: bytes

    @property
    def seconds(self) -> float:
        """Playing time."""
        return len(self.pcm) / AGENT_BYTES_PER_S


# Spoken by espeak-ng (voice en-us+f3, pitch 62), 8 kHz mu-law.
GREETING = (
    "agent-greeting",
    "Good morning, this is Offhook. I say back to you whatever you tell me. Please go ahead.",
)
STILL_HERE = ("agent-still-here", "I am still here.")
VOICEMAIL = (
    "agent-voicemail",
    "This is Offhook. I am sorry that I missed you. I will call again tomorrow.",
)
LEAD_INS = (
    ("agent-you-said", "You said:"),
    ("agent-i-heard", "I heard:"),
    ("agent-was-it", "Was that:"),
)


CHARS_PER_S = 15.0
"""How fast people speak, letters and spaces."""


def babble(text: str, voice: Speech) -> Speech:
    """Something to say in a voice that takes as long as the words would, and says none of them."""
    size = max(1, round(len(text) / CHARS_PER_S * AGENT_RATE_HZ)) * 2
    return Speech(text, (voice.pcm * (size // len(voice.pcm) + 1))[:size])


def load_agent_speech(name: str, text: str) -> Speech:
    """Read a recording of ``server/speech`` (mu-law at 8 kHz) as the model would send it."""
    wav = files("server").joinpath("speech", f"{name}.wav").read_bytes()
    decoder = codec.MulawDecoder(output_rate_hz=AGENT_RATE_HZ)
    return Speech(text, decoder.decode(data_of(wav)) + decoder.flush())
