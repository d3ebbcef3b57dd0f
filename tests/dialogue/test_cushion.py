"""How long late audio gathers: what a caller hears of turns whose chunks come at given times."""

from __future__ import annotations

from math import inf

import pytest

from codec.line import BYTES_PER_S
from server.carrier import SendAudio, SendMark
from server.dialogue.cushion import MAX_PAUSE_S, MAX_START_S, Cushion, Lateness, quiet_place
from server.dialogue.playout import Playout

CHUNK_S = 0.2
VOICE, QUIET = b"\x10", b"\xff"
ON_TIME = [n * CHUNK_S for n in range(10)]
SLOW = [n * CHUNK_S / 0.8 for n in range(20)]


class Listener:
    """A call's playout, and when its caller begins to hear each turn, and hears nothing of it."""

    def __init__(self, cushion: Cushion | None = None) -> None:
        self.playout = Playout(cushion=cushion)
        self.playout.open(1.0)
        self.turn = 0
        self.now = 1.0
        self.mark_delay_s = 0.0
        self._play_end = 0.0
        self._marks: list[tuple[float, str]] = []

    def hear(self, offsets: list[float], *, chunk: bytes = VOICE * 1_600) -> tuple[float, list]:
        """Have a turn said whose chunks come at these times from now on.

        Returns:
            How long the caller waits for its first sound, and each silence in it: when it began,
            by the turn's own time, and how long it was.
        """
        self.turn += 1
        began_at = self.now + 5.0
        arrivals = [began_at + offset for offset in offsets]
        heard_at, gaps, said_s = None, [], 0.0
        self._play_end = 0.0
        while True:
            dues = [self.playout.next_due(), *arrivals[:1], *(at for at, _ in self._marks[:1])]
            if min(dues) == inf:
                break
            self.now = max(self.now, min(dues))
            while self._marks and self._marks[0][0] <= self.now:
                self.playout.mark_reached(self._marks.pop(0)[1], self.now)
            while arrivals and arrivals[0] <= self.now:
                self.playout.push(chunk, self.turn, arrivals.pop(0))
                if not arrivals:
                    self.playout.finish_turn(self.turn)
            while (command := self.playout.next_command(self.now)) is not None:
                if isinstance(command, SendMark):
                    reached_at = max(self._play_end, self.now)
                    self._marks.append((reached_at + self.mark_delay_s, command.name))
                if not isinstance(command, SendAudio):
                    continue
                heard_at = self.now if heard_at is None else heard_at
                if self._play_end and self.now > self._play_end + 1e-6:
                    gaps.append((round(said_s, 3), round(self.now - self._play_end, 3)))
                said_s += len(command.payload) / BYTES_PER_S
                self._play_end = max(self.now, self._play_end)
                self._play_end += len(command.payload) / BYTES_PER_S
        return round(heard_at - began_at, 3), gaps


def late_by(seconds: float, chunk: int = 3) -> list[float]:
    """Chunks at the speed of speech, of which one comes late, and with it those behind it."""
    return [
        max(at, chunk * CHUNK_S + seconds) if n >= chunk else at for n, at in enumerate(ON_TIME)
    ]


def test_the_first_chunk_of_every_turn_goes_straight_through_while_audio_is_on_time():
    listener = Listener()

    assert [listener.hear(ON_TIME) for _ in range(12)] == [(0.0, [])] * 12


def test_a_turn_after_one_that_came_late_begins_later_instead_of_having_a_gap():
    listener = Listener()
    listener.hear(late_by(0.25))

    assert listener.hear(late_by(0.25)) == (0.25, [])


def test_one_wait_is_long_enough_for_nine_turns_of_ten():
    listener = Listener()
    for late_s in (0.1, 0.3, *[0.1] * 8):
        listener.hear(late_by(late_s))

    assert listener.hear(late_by(0.1)) == (0.1, [])


def test_turns_that_are_on_time_again_are_not_waited_for_after_ten_of_them():
    listener = Listener()
    listener.hear(late_by(0.25))

    waits_s = [listener.hear(ON_TIME)[0] for _ in range(11)]

    assert waits_s[0] == 0.25
    assert waits_s[-1] == 0.0


def test_a_model_that_sends_faster_than_speech_is_waited_for_no_longer_than_it_needs():
    listener = Listener()
    listener.hear(late_by(0.3))

    waited_s, gaps = listener.hear([at / 4 for at in ON_TIME])

    assert gaps == []
    assert waited_s == pytest.approx(0.1)  # three chunks are there


def test_no_turn_begins_later_than_the_bound():
    listener = Listener()
    listener.hear(SLOW)

    assert listener.hear(late_by(0.3))[0] == MAX_START_S


def test_a_turn_that_runs_dry_never_pauses_as_long_as_a_turn_end():
    listener = Listener()

    _, gaps = listener.hear(SLOW)

    assert len(gaps) > 2
    assert max(gap for _, gap in gaps) <= MAX_PAUSE_S + 0.001


def test_after_a_stall_that_was_long_enough_the_turn_goes_on_at_once():
    listener = Listener()

    assert listener.hear(late_by(0.5))[1] == [(0.6, 0.5)]


def test_a_burst_after_a_stall_needs_no_more_time():
    listener = Listener()

    # Three chunks come with it, which is more than the cushion would be.
    assert listener.hear([0.0, 0.3, 0.3, 0.3, 0.4])[1] == [(0.2, 0.1)]


def test_a_late_chunk_that_nobody_notices_is_not_waited_for():
    listener = Listener()

    assert listener.hear(late_by(0.008)) == (0.0, [(0.6, 0.008)])


def test_many_chunks_that_are_each_a_little_late_are_waited_for_once():
    listener = Listener()

    _, gaps = listener.hear([n * (CHUNK_S + 0.004) for n in range(10)])

    assert [gap for _, gap in gaps if gap > 0.01] == [0.104]


def test_a_pause_of_the_models_own_is_no_lateness():
    listener = Listener()
    listener.hear([at + (3.0 if n >= 5 else 0.0) for n, at in enumerate(ON_TIME)])

    assert listener.hear(ON_TIME) == (0.0, [])


def test_a_turn_of_a_word_says_nothing_about_the_network():
    listener = Listener()
    listener.hear([0.0, 0.5])

    assert listener.hear(ON_TIME) == (0.0, [])


def test_a_turn_that_drips_pauses_where_it_is_quiet():
    listener = Listener()
    chunk = VOICE * 800 + QUIET * 320 + VOICE * 480
    listener.hear(SLOW, chunk=chunk)

    _, gaps = listener.hear(SLOW, chunk=chunk)

    assert gaps
    assert {round(at % CHUNK_S, 3) for at, _ in gaps} == {0.14}  # where quiet ends in each chunk
    assert max(gap for _, gap in gaps) <= MAX_PAUSE_S + 0.001


def test_a_call_begins_with_what_was_usual_in_the_calls_before():
    usual = Lateness()
    before = Listener(Cushion(usual))
    for _ in range(3):
        before.hear(late_by(0.2))

    assert Listener(Cushion(usual)).hear(late_by(0.2)) == (0.2, [])


def test_one_call_in_trouble_delays_no_other():
    usual = Lateness()
    for offsets in (ON_TIME, ON_TIME, late_by(0.3)):
        listener = Listener(Cushion(usual))
        for _ in range(3):
            listener.hear(offsets)

    assert Listener(Cushion(usual)).hear(ON_TIME) == (0.0, [])


def test_marks_that_come_back_later_than_before_are_gaps_at_the_carrier():
    listener = Listener()
    listener.mark_delay_s = 0.1
    listener.hear(ON_TIME)
    assert listener.hear(ON_TIME) == (0.0, [])  # that is only how far away the carrier is

    listener.mark_delay_s = 0.3
    listener.hear(ON_TIME)

    waited_s, _ = listener.hear(ON_TIME)
    assert waited_s == pytest.approx(0.2)


def test_marks_that_come_early_after_a_pause_of_our_own_delay_no_turn():
    usual = Lateness()
    listener = Listener(Cushion(usual))
    listener.mark_delay_s = 0.1
    listener.hear(ON_TIME)

    listener.playout.cushion.trip(-3.0)

    assert [listener.hear(ON_TIME) for _ in range(3)] == [(0.0, [])] * 3
    assert usual.expected_s == 0.0


def test_marks_that_come_back_a_little_later_say_nothing():
    listener = Listener()
    listener.mark_delay_s = 0.1
    listener.hear(ON_TIME)
    listener.mark_delay_s = 0.13
    listener.hear(ON_TIME)

    assert listener.hear(ON_TIME) == (0.0, [])


def test_another_line_that_is_farther_away_is_not_late():
    listener = Listener()
    listener.hear(ON_TIME)

    listener.playout.leave(listener.now)
    listener.playout.open(listener.now)
    listener.mark_delay_s = 0.3
    listener.hear(ON_TIME)

    assert listener.hear(ON_TIME) == (0.0, [])


def test_a_quiet_place_is_where_a_whole_frame_of_silence_ends():
    assert quiet_place(VOICE * 320 + QUIET * 160 + VOICE * 320) == 480
    assert quiet_place(VOICE * 320 + QUIET * 100 + VOICE * 320) == 0
    assert quiet_place(QUIET * 100) == 0
    assert quiet_place(b"") == 0
