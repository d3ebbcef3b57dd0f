"""What the benchmark of a real Asterisk makes of what it has measured."""

from __future__ import annotations

from benchmarks.asterisk import CALL_S, START_S, Figures, bound_s, lost_in_order

FRAMES = [bytes([number]) * 160 for number in range(10)]


def test_frames_that_came_are_found_in_their_order():
    heard = [b"\xff" * 160, *FRAMES[:4], *FRAMES[5:]]

    assert lost_in_order(FRAMES, heard) == 1
    assert lost_in_order(FRAMES, FRAMES) == 0
    assert lost_in_order(FRAMES, []) == 10


def test_a_figure_beyond_its_bound_is_a_problem():
    good = Figures([0.03] * 20, [0.06] * 20, calls=20, sent=100)
    late = Figures([0.03] * 18 + [0.2] * 2, [0.06] * 20)
    loud = Figures([0.03] * 20, [0.13] * 20)

    assert good.problems() == []
    assert late.problems() == ["first word: p95 200.0 ms, more than 100"]
    assert loud.problems() == ["silence: p95 130.0 ms, more than 120"]


def test_what_rtp_has_lost_is_not_lost_by_us():
    figures = Figures([0.03], [0.06], lost_to_model=1, lost_to_caller=2, lost_by_rtp=2)

    assert figures.problems() == ["1 frames lost by us"]


def test_the_whole_has_an_end_that_is_later_than_what_it_takes():
    for calls, talk_s in ((1, 5.0), (20, 60.0)):
        takes_s = START_S + (calls + 1) * CALL_S + talk_s

        assert takes_s < bound_s(calls, talk_s) < 16 * 60
