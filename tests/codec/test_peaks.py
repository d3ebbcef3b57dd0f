"""What a drawing of a recording is made of: every sound is in it, at its place."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.peaks import StereoPeaks


def frames_of(pairs: list[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack("<hh", *pair) for pair in pairs)


def readable(pairs: list[tuple[int, int]], per_point: int) -> list[tuple[int, ...]]:
    """The points as they are meant."""
    points = []
    for first in range(0, len(pairs), per_point):
        left, right = zip(*pairs[first : first + per_point], strict=True)
        points.append(
            tuple(
                extreme
                for side in (left, right)
                for extreme in (min(side) // 256, min(127, -(-max(side) // 256)))
            )
        )
    return points


def points_of(packed: bytes) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("<4b", packed))


SAMPLES = st.integers(-32768, 32767)


@given(
    pairs=st.lists(st.tuples(SAMPLES, SAMPLES), max_size=60),
    per_point=st.integers(1, 20),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_points_are_the_extremes_whatever_chunks_the_samples_come_in(pairs, per_point, cuts):
    peaks = StereoPeaks(per_point)
    packed, at = b"", 0

    for cut in [*sorted(cuts), len(pairs)]:
        packed += peaks.take(frames_of(pairs[at:cut]))
        at = max(at, min(cut, len(pairs)))
    packed += peaks.end()

    assert points_of(packed) == readable(pairs, per_point)


def test_a_faint_sound_is_not_drawn_as_none():
    peaks = StereoPeaks(4)

    packed = peaks.take(frames_of([(0, 0), (1, -1), (0, 0), (0, 0)]))

    assert points_of(packed) == [(0, 1, -1, 0)]


def test_another_recording_begins_anew():
    peaks = StereoPeaks(4)
    peaks.take(frames_of([(9000, 9000)]))
    peaks.end()

    assert peaks.end() == b""
    assert points_of(peaks.take(frames_of([(0, 0)] * 4))) == [(0, 0, 0, 0)]


def test_a_long_recording_is_read_from_any_memory():
    generator = random.Random(4)
    pcm = generator.randbytes(4 * 8_000)

    assert len(StereoPeaks(80).take(memoryview(bytearray(pcm)))) == 4 * 100


@pytest.mark.parametrize("per_point", [0, -1])
def test_a_point_has_a_sample_at_least(per_point):
    with pytest.raises(ValueError, match="at least 1"):
        StereoPeaks(per_point)


def test_half_a_frame_is_refused():
    with pytest.raises(ValueError, match="not whole frames"):
        StereoPeaks(1).take(b"\0\0\0")
