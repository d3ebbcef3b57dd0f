"""Recordings as they are drawn: in so many points at most, and again only when they have grown."""

from __future__ import annotations

import os
from array import array

import pytest

from server.media.wav import stereo_head
from server.records.waveform import KEPT, Waveforms


def write(path, caller: list[int], agent: list[int]):
    frames = array("h", [sample for pair in zip(caller, agent, strict=True) for sample in pair])
    path.write_bytes(stereo_head(len(caller), 8_000) + frames.tobytes())
    return path


@pytest.fixture
def loud(tmp_path):
    """A second in which the caller speaks, and one in which the agent does."""
    ones, none = [12_800, -12_800] * 4_000, [0] * 8_000
    return write(tmp_path / "a.wav", ones + none, none + ones)


def test_each_side_is_drawn_where_it_is_heard(loud):
    drawn = Waveforms(8_000).draw(loud, 4)

    assert drawn == {
        "version": 2,
        "channels": 2,
        "sample_rate": 8_000,
        "samples_per_pixel": 4_000,
        "bits": 8,
        "length": 4,
        "data": [*(-50, 50, 0, 0), *(-50, 50, 0, 0), *(0, 0, -50, 50), *(0, 0, -50, 50)],
    }


@pytest.mark.parametrize(("points", "length"), [(1, 1), (3, 3), (7, 7), (10_000, 8_000)])
def test_there_are_no_more_points_than_asked_for(loud, points, length):
    drawn = Waveforms(8_000).draw(loud, points)

    assert drawn["length"] == len(drawn["data"]) // 4 == length


def test_an_empty_recording_has_no_points(tmp_path):
    drawn = Waveforms(8_000).draw(write(tmp_path / "a.wav", [], []), 100)

    assert (drawn["length"], drawn["data"]) == (0, [])


def test_a_file_is_read_again_only_if_it_has_changed(loud):
    waveforms = Waveforms(8_000)
    first, status = waveforms.draw(loud, 2), loud.stat()
    samples = len(loud.read_bytes())

    loud.write_bytes(loud.read_bytes()[:44] + b"\0" * (samples - 44))
    os.utime(loud, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert waveforms.draw(loud, 2) == first

    os.utime(loud, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert waveforms.draw(loud, 2)["data"] == [0] * 8


def test_few_are_kept(loud):
    waveforms = Waveforms(8_000)
    for points in range(1, 3 * KEPT):
        waveforms.draw(loud, points)

    assert len(waveforms._kept) == KEPT


def test_a_file_cut_short_meanwhile_is_drawn_as_far_as_it_goes(loud):
    with loud.open("ab") as file:
        file.write(b"\x01")  # half a frame

    assert Waveforms(8_000).draw(loud, 2)["length"] == 2
