"""What a recording looks like: the extremes of both sides, in as many points as a drawing has.

The form is that of the BBC's audiowaveform, version 2, which players in browsers read as it is.
"""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from codec.peaks import StereoPeaks
from server.media.wav import STEREO_FRAME_BYTES, STEREO_HEAD_BYTES

MAX_POINTS = 10_000
POINT_BYTES = 4
PIECE_BYTES = 1 << 20
KEPT = 64
"""Waveforms that are kept for whoever asks again, some 40 kB each at most."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A recording as it was when it was last asked for."""

    inode: int
    size_bytes: int
    mtime_ns: int
    frames: int
    per_point: int
    """Samples that each point stands for; the last may have fewer."""
    packed: bytes
    """The points: lowest and highest of the caller's, and of the agent's."""

    def has_grown(self, status: os.stat_result) -> bool:
        """Whether the file is what was read, and more: a recording is only added to."""
        return status.st_ino == self.inode and status.st_size > self.size_bytes


class Waveforms:
    """Draws recordings, each once in the same size and state, and of one that has grown only what
    was added; from any thread.

    Args:
        rate_hz: Theirs.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._kept: OrderedDict[tuple[Path, int], _Drawn] = OrderedDict()
        self._lock = Lock()

    def draw(self, path: Path, points: int) -> dict[str, Any]:
        """Read a recording and say how loud it is, from its beginning to its end; blocks.

        Args:
            path: Of a recording of ours; it may still grow.
            points: How many there are at most.

        Raises:
            OSError: It is gone.
        """
        status, key = path.stat(), (path, points)
        as_it_is = status.st_ino, status.st_size, status.st_mtime_ns
        with self._lock:
            found = self._kept.get(key)
        if found is None or (found.inode, found.size_bytes, found.mtime_ns) != as_it_is:
            found = _drawn(path, points, status, found)
            with self._lock:
                self._kept[key] = found
                self._kept.move_to_end(key)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        packed = found.packed
        return {
            "version": 2,
            "channels": 2,
            "sample_rate": self._rate_hz,
            "samples_per_pixel": found.per_point,
            "bits": 8,
            "length": len(packed) // POINT_BYTES,
            "data": array("b", packed).tolist(),
        }


def _drawn(path: Path, points: int, status: os.stat_result, before: _Drawn | None) -> _Drawn:
    """The recording as it is now, given what was drawn of it before."""
    frames = max(0, status.st_size - STEREO_HEAD_BYTES) // STEREO_FRAME_BYTES
    if before is not None and before.has_grown(status):
        per_point = before.per_point
        drawn = bytearray(before.packed[: before.frames // per_point * POINT_BYTES])
        while per_point * points < frames:
            drawn, per_point = _halved(drawn), 2 * per_point
    else:
        per_point, drawn = max(1, -(-frames // points)), bytearray()
    known = len(drawn) // POINT_BYTES * per_point
    peaks = StereoPeaks(per_point)
    with path.open("rb") as file:
        file.seek(STEREO_HEAD_BYTES + known * STEREO_FRAME_BYTES)
        left = (frames - known) * STEREO_FRAME_BYTES
        while left and (piece := file.read(min(PIECE_BYTES, left))):
            left -= len(piece)
            drawn += peaks.take(piece[: len(piece) // STEREO_FRAME_BYTES * STEREO_FRAME_BYTES])
    drawn += peaks.end()
    return _Drawn(
        status.st_ino, status.st_size, status.st_mtime_ns, frames, per_point, bytes(drawn)
    )


def _halved(packed: bytearray) -> bytearray:
    """Half as many points for the same, without one that is left over."""
    both = array("b", bytes(packed[: len(packed) // (2 * POINT_BYTES) * 2 * POINT_BYTES]))
    halved = array("b", bytes(len(both) // 2))
    for place, of in enumerate((min, max, min, max)):
        first, second = both[place :: 2 * POINT_BYTES], both[place + POINT_BYTES :: 2 * POINT_BYTES]
        halved[place::POINT_BYTES] = array("b", map(of, first, second))
    return bytearray(halved.tobytes())
