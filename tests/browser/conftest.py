"""What pages of a real browser hear."""

from __future__ import annotations

import wave

import pytest

from benchmarks.microphone import MICROPHONE_HZ


@pytest.fixture
def silent_microphone(tmp_path):
    path = tmp_path / "silent.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, MICROPHONE_HZ, 0, "NONE", ""))
        file.writeframes(bytes(2 * MICROPHONE_HZ))  # which Chromium plays again and again
    return path
