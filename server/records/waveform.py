"""What a recording looks like: the extremes of both sides, in as many points as a drawing has.

The form is that of the BBC's audiowaveform, version 2, which players in browsers read as it is.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from codec.peaks import StereoPeaks
from server.media.wav import STEREO_FRAME_BYTES, STEREO_HEAD_BYTES

MAX_POINTS = 10_000
PIECE_BYTES = 1 << 20
KEPT = 64
"""Waveforms that are kept for whoever asks again, some 40 kB each at most."""


class Waveforms:
    """Draws recordings, each once in the same size and state; from any thread.

    Args:
        rate_hz: Theirs.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._kept: OrderedDict[tuple[Path, int, int, int], tuple[int, bytes]] = OrderedDict()
        self._lock = Lock()

    def draw(self, path: Path, points: int) -> dict[str, Any]:
        """Read a recording and say how loud it is, from its beginning to its end; blocks.

        Args:
            path: Of a recording of ours; it may still grow.
            points: How many there are at most.

        Raises:
            OSError: It is gone.
        """
        status = path.stat()
        key = path, points, status.st_size, status.st_mtime_ns
        with self._lock:
            found = self._kept.get(key)
        if found is None:
            found = _drawn(path, points, status.st_size)
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        per_point, packed = found
        return {
            "version": 2,
            "channels": 2,
            "sample_rate": self._rate_hz,
            "samples_per_pixel": per_point,
            "bits": 8,
            "length": len(packed) // 4,
            "data": array("b", packed).tolist(),
        }


def _drawn(path: Path, points: int, size_bytes: int) -> tuple[int, bytes]:
    """How many samples each point stands for, and the points."""
    frames = max(0, size_bytes - STEREO_HEAD_BYTES) // STEREO_FRAME_BYTES
    per_point = max(1, -(-frames // points))
    peaks, drawn = StereoPeaks(per_point), bytearray()
    with path.open("rb") as file:
        file.seek(STEREO_HEAD_BYTES)
        left = frames * STEREO_FRAME_BYTES
        while left and (piece := file.read(min(PIECE_BYTES, left))):
            left -= len(piece)
            drawn += peaks.take(piece[: len(piece) // STEREO_FRAME_BYTES * STEREO_FRAME_BYTES])
    drawn += peaks.end()
    return per_point, bytes(drawn)
