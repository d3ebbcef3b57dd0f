"""Audio that says whose it is, through the codec and through losses."""

from __future__ import annotations

import pytest

from benchmarks.chaos.numbered import (
    GROUP,
    agent_pcm,
    caller_frames,
    compare,
    level_at,
    levels_of,
    numbers_in,
    of_mulaw,
    of_pcm,
    of_stream,
)
from benchmarks.load.trail import AGENT_LEVELS, CALLER_LEVELS, NO_LEVEL, SILENCE
from codec import MulawDecoder, MulawEncoder

SENT = levels_of(1234, 500)


def test_a_caller_is_recognised_behind_the_codec():
    decoder = MulawDecoder(16_000)

    heard = b"".join(of_pcm(decoder.decode(frame)) for frame in caller_frames(1234, 500))

    assert heard == SENT


def test_an_agent_is_recognised_behind_the_codec():
    encoder = MulawEncoder(24_000)
    pcm = agent_pcm(77, 350)

    heard = b"".join(encoder.encode(pcm[at : at + 9_600]) for at in range(0, len(pcm), 9_600))

    assert of_mulaw(heard, AGENT_LEVELS)[:348] == levels_of(77, 348)


def test_what_a_telephone_says_is_what_it_was_to_say():
    said = b"".join(caller_frames(5, 100))

    assert of_mulaw(said, CALLER_LEVELS) == levels_of(5, 100)


@pytest.mark.parametrize("late", [0, 1, 40, 79, 80, 81, 120, 159])
def test_an_agent_is_recognised_where_its_frames_begin_in_the_middle_of_the_ear_s(late):
    heard = MulawEncoder(24_000).encode(agent_pcm(77, 350))

    found, places = of_stream(b"\xff" * late + heard, AGENT_LEVELS)

    assert found[:348] == levels_of(77, 348)
    assert all(0 <= place - at <= 1 for at, place in enumerate(places))


@pytest.mark.parametrize("at", [16_000, 16_030, 16_080, 16_130])
def test_a_frame_that_silence_has_parted_is_one_frame(at):
    heard = MulawEncoder(24_000).encode(agent_pcm(77, 350))

    found, _ = of_stream(heard[:at] + b"\xff" * 490 + heard[at:], AGENT_LEVELS)

    compared = compare(levels_of(77, 348), found)
    assert (compared.matched, compared.lost, compared.doubled, compared.strange) == (348, 0, 0, 0)
    assert [frames for _, frames in compared.pauses] == [3]


def test_neighbouring_frames_never_have_the_same_level():
    assert all(level_at(1111, at) != level_at(1111, at + 1) for at in range(1000))


def test_who_speaks_is_known_from_any_whole_group():
    assert numbers_in(SENT[3 : 3 + 2 * GROUP]) == [1234]
    assert numbers_in(SENT[:20] + levels_of(9, 20)) == [1234, 9]


def test_what_arrived_whole_has_nothing_missing():
    found = compare(SENT, SENT)

    assert (found.matched, found.gaps, found.doubled, found.strange) == (500, [], 0, 0)


@pytest.mark.parametrize("frames", [1, 2, 7, 13, 14, 26, 200])
@pytest.mark.parametrize("at", [5, 100, 217])
def test_a_gap_is_measured_however_long(at, frames):
    found = compare(SENT, SENT[:at] + SENT[at + frames :])

    (gap,) = found.gaps
    assert gap.frames == frames
    assert 0 <= gap.sent_at - at < GROUP
    assert (found.matched, found.strange, found.doubled) == (500 - frames, 0, 0)


def test_silence_in_between_is_a_pause_and_loses_nothing():
    found = compare(SENT, SENT[:50] + bytes([SILENCE]) * 10 + SENT[50:])

    assert found.pauses == [(50, 10)]
    assert (found.gaps, found.matched) == ([], 500)


def test_what_comes_again_is_doubled():
    found = compare(SENT, SENT[:100] + SENT[60:])

    assert (found.doubled, found.lost) == (40, 0)


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_a_beginning_that_is_cut_at_once_is_too_little_to_be_strange(frames):
    turns = [levels_of(number, 100) for number in (1, 2, 3)]
    arrived = turns[0][:50] + turns[1][:frames] + turns[2]

    found = compare(b"".join(turns), arrived, [0, 100, 200])

    assert (found.matched + found.unclear, found.strange, found.doubled) == (150 + frames, 0, 0)
    assert found.matched >= 150


def test_what_is_somebody_else_s_is_strange():
    found = compare(SENT, SENT[:100] + levels_of(99, 30) + SENT[100:])

    assert found.strange >= 20


def test_noise_is_strange():
    found = compare(SENT, SENT[:10] + bytes([NO_LEVEL]) + SENT[10:])

    assert (found.strange, found.matched) == (1, 500)


def test_what_is_new_has_arrived_from_its_first_frame_on_where_the_old_one_was_cut():
    sent = levels_of(60, 100) + levels_of(63, 50)

    found = compare(sent, sent[:28] + sent[100:], starts=(0, 100))

    assert [(gap.sent_at, gap.frames) for gap in found.gaps] == [(28, 72)]


@pytest.mark.parametrize("at", range(20, 34))
def test_silence_before_something_new_is_no_pause_even_if_it_begins_as_the_old_would_go_on(at):
    sent = levels_of(60, 100) + levels_of(63, 50)

    found = compare(sent, sent[:at] + bytes([SILENCE]) * 10 + sent[100:], starts=(0, 100))

    assert [place for place, _ in found.pauses if place != 100] == []
    assert found.lost == 100 - at


def test_a_few_frames_after_a_gap_are_where_something_new_begins():
    sent = levels_of(60, 100) + levels_of(63, 50)
    arrived = sent[:30] + bytes([SILENCE]) * 9 + sent[100:103] + bytes([SILENCE]) * 9 + sent[103:]

    found = compare(sent, arrived, starts=(0, 100))

    assert (found.lost, found.unclear, found.strange) == (70, 0, 0)


@pytest.mark.parametrize("frames", range(1, 8))
@pytest.mark.parametrize("at", range(20, 48))
def test_what_drips_in_pieces_of_less_than_a_group_loses_nothing_behind_what_was_cut(at, frames):
    sent = levels_of(60, 100) + levels_of(84, 66)
    pieces = [sent[100 + start : 100 + start + frames] for start in range(0, 66, frames)]

    found = compare(
        sent, bytes([SILENCE]) * 6 + (bytes([SILENCE]) * 6).join([sent[:at], *pieces]), (0, 100)
    )

    assert [gap.sent_at + gap.frames for gap in found.gaps] == [100]
    assert (found.lost, found.doubled, found.strange) == (100 - at, 0, 0)


@pytest.mark.parametrize("frames", range(1, 8))
@pytest.mark.parametrize("lost", [1, 5, 9, 30])
def test_what_is_lost_of_what_drips_is_found_to_the_frame(lost, frames):
    sent = levels_of(84, 200)
    left = sent[:70] + sent[70 + lost :]
    pieces = [left[start : start + frames] for start in range(0, len(left), frames)]

    found = compare(sent, (bytes([SILENCE]) * 4).join(pieces), (0,))

    assert (found.lost, found.doubled, found.strange) == (lost, 0, 0)


def test_what_has_not_come_at_the_end_is_unheard():
    assert compare(SENT, SENT[:450]).unheard == 50
