"""Recordings as they are drawn: in so many points at most, and again only when they have grown."""

from __future__ import annotations

import os
import random
from array import array

import pytest

from codec.peaks import StereoPeaks
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


@pytest.mark.parametrize("points", [1, 2, 7, 50, 1_000])
def test_one_that_grows_is_drawn_as_if_it_had_been_read_whole(tmp_path, points):
    chance, waveforms = random.Random(7), Waveforms(8_000)
    caller, agent = ([chance.randrange(-32_768, 32_768) for _ in range(5_000)] for _ in range(2))
    path = write(tmp_path / "a.wav", [], [])
    frames = 0

    while frames < 5_000:
        frames = min(5_000, frames + chance.randrange(1, 400))
        with path.open("r+b") as file:  # as it is written
            whole = write(tmp_path / "b.wav", caller[:frames], agent[:frames]).read_bytes()
            file.seek(path.stat().st_size)
            file.write(whole[path.stat().st_size :])
        drawn = waveforms.draw(path, points)

        per_point = drawn["samples_per_pixel"]
        assert drawn["length"] == -(-frames // per_point) <= points
        peaks = StereoPeaks(per_point)
        assert drawn["data"] == array("b", peaks.take(whole[44:]) + peaks.end()).tolist()


def test_of_one_that_has_grown_only_what_was_added_is_read(loud):
    waveforms = Waveforms(8_000)
    waveforms.draw(loud, 4)
    with loud.open("r+b") as file:
        file.seek(44)
        file.write(bytes(4 * 12_000))
        file.seek(0, os.SEEK_END)
        file.write(array("h", [25_600, 0] * 16_000).tobytes())

    drawn = waveforms.draw(loud, 4)

    assert drawn["samples_per_pixel"] == 8_000
    assert drawn["data"] == [*(-50, 50, 0, 0), *(0, 0, -50, 50), *(100, 100, 0, 0) * 2]


def test_one_that_has_taken_anothers_place_is_read_whole(loud, tmp_path):
    waveforms = Waveforms(8_000)
    waveforms.draw(loud, 2)

    write(tmp_path / "b.wav", [0] * 20_000, [0] * 20_000).replace(loud)

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
