"""A browser's microphone that is a file: what a Chromium is told, and what it hears."""

from __future__ import annotations

import shutil
import wave
from array import array
from pathlib import Path

import codec
from server.media.wav import data_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MICROPHONE_HZ = 48_000
ARGUMENTS = (
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-dev-shm-usage",
)


def arguments_for(microphone: Path) -> list[str]:
    """Chromium's command line: nobody is asked, nothing is played, and a file is heard.

    Args:
        microphone: A WAV of :func:`speech_file`, heard again and again.
    """
    return [*ARGUMENTS, f"--use-file-for-fake-audio-capture={microphone}"]


def speech_file(path: Path, *, speech: Path, before_s: float, after_s: float) -> Path:
    """Write what a microphone hears: silence, speech, silence.

    Args:
        path: Where.
        speech: One of ``server/speech``: mu-law at 8 kHz.
        before_s: How long it is silent before.
        after_s: How long after.
    """
    decoder = codec.MulawDecoder(16_000)
    samples = array("h", decoder.decode(data_of(speech.read_bytes())) + decoder.flush())
    louder = array("h", (sample for sample in samples for _ in range(MICROPHONE_HZ // 16_000)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(MICROPHONE_HZ)
        for seconds, content in ((before_s, b""), (0.0, louder.tobytes()), (after_s, b"")):
            file.writeframes(content + bytes(2 * round(seconds * MICROPHONE_HZ)))
    return path
