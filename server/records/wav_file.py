"""The file of a recording: a two-channel WAV that grows, and is whole at any moment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from server.media.wav import STEREO_FRAME_BYTES, STEREO_HEAD_BYTES, stereo_head, stereo_of_mulaw

SAMPLES_PER_S = 8_000


class WavFile:
    """Appends, and says in the header how much there is. Everything here may block.

    Args:
        path: Where it is to be; what was there is replaced.
    """

    def __init__(self, path: Path) -> None:
        # The file gets its name when it has a header: under that name it is always a WAV.
        self._samples = 0
        unready = path.with_suffix(".part")
        try:
            self._write_all_to(unready)
            unready.replace(path)
        except OSError:
            with suppress(OSError):
                unready.unlink()
            raise
        self._file: BinaryIO = path.open("r+b", buffering=0)

    def _write_all_to(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(stereo_head(0, SAMPLES_PER_S))

    def append(self, caller: bytes, agent: bytes) -> None:
        """Add as many samples to both sides.

        Raises:
            OSError: The disk is full or gone; what was written before stays a whole WAV.
        """
        frames = memoryview(stereo_of_mulaw(caller, agent))
        self._file.seek(STEREO_HEAD_BYTES + self._samples * STEREO_FRAME_BYTES)
        while frames:
            frames = frames[self._file.write(frames) :]
        self._now_has(self._samples + len(caller))

    def skip(self, count: int) -> None:
        """Leave a hole of so many samples, which reads as silence; it may fail as above."""
        samples = self._samples + count
        self._file.truncate(STEREO_HEAD_BYTES + samples * STEREO_FRAME_BYTES)
        self._now_has(samples)

    def _now_has(self, samples: int) -> None:
        # Only now: a header never speaks of what is not there.
        self._file.seek(0)
        self._file.write(stereo_head(samples, SAMPLES_PER_S))
        self._samples = samples

    def close(self) -> None:
        """Let the file go, as long as its header says."""
        with self._file:
            self._file.truncate(STEREO_HEAD_BYTES + self._samples * STEREO_FRAME_BYTES)
