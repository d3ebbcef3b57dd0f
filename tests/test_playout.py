"""Playout: what the caller gets and has heard, on a clock that is just a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.carrier import CarrierCommand, Clear, SendAudio, SendMark
from server.playout import Playout

SECOND = b"\x00" * 8_000


def drain(playout: Playout, now: float) -> list[CarrierCommand]:
    commands = []
    while (command := playout.next_command(now)) is not None:
        commands.append(command)
    return commands


def opened(**settings: float) -> Playout:
    playout = Playout(**settings)
    playout.open(0.0)
    return playout


def audio_bytes(commands: list[CarrierCommand]) -> int:
    return sum(len(c.payload) for c in commands if isinstance(c, SendAudio))


def test_holds_the_greeting_until_the_stream_opens():
    playout = Playout()
    playout.push(SECOND, turn=1)

    assert playout.next_command(5.0) is None
    assert playout.queued_s == 1.0

    playout.open(6.0)
    assert playout.next_command(6.0) == SendAudio(SECOND)


def test_marks_every_second_and_the_end_of_the_turn():
    playout = opened()
    for _ in range(5):
        playout.push(b"\x01" * 4_000, turn=1)
    playout.finish_turn(1)

    sent = drain(playout, 0.0)

    assert [c.name for c in sent if isinstance(c, SendMark)] == ["1:1000", "1:2000", "1:2500"]
    assert isinstance(sent[-1], SendMark)


def test_sends_no_second_mark_where_one_already_stands():
    playout = opened()
    playout.push(SECOND, turn=1)
    playout.finish_turn(1)

    assert drain(playout, 0.0) == [SendAudio(SECOND), SendMark("1:1000")]


def test_sends_no_more_than_the_lead():
    playout = opened(lead_s=2.0, mark_every_s=100)
    playout.push(SECOND * 5, turn=1)

    assert audio_bytes(drain(playout, 0.0)) == 24_000  # the third second begins at the lead
    assert playout.next_due() == pytest.approx(1.0)
    assert drain(playout, 0.99) == []
    assert audio_bytes(drain(playout, 1.0)) == 8_000


def test_splits_a_long_payload_into_messages_of_a_second():
    playout = opened()
    playout.push(SECOND * 2 + b"\x02" * 10, turn=1)

    sizes = [len(c.payload) for c in drain(playout, 0.0) if isinstance(c, SendAudio)]
    assert sizes == [8_000, 8_000, 10]


def test_interrupt_clears_before_anything_else_and_drops_the_queue():
    playout = opened(lead_s=0.5)
    playout.push(SECOND * 4, turn=1)
    drain(playout, 0.0)

    cut = playout.interrupt(1, now=0.4)
    playout.push(b"\x05" * 160, turn=2)

    assert cut is not None
    assert cut.heard_s == pytest.approx(0.4)
    assert drain(playout, 0.4) == [Clear(), SendAudio(b"\x05" * 160)]
    assert playout.dropped_bytes == 3 * 8_000


def test_late_audio_of_a_cut_turn_is_dropped():
    playout = opened()
    playout.push(SECOND, turn=1)
    drain(playout, 0.0)
    playout.interrupt(1, now=0.1)

    assert not playout.push(SECOND, turn=1)
    assert drain(playout, 0.2) == [Clear()]


def test_a_greeting_interrupted_before_the_answer_is_dropped_without_a_clear():
    playout = Playout()
    playout.push(SECOND, turn=1)
    playout.interrupt(1, now=0.0)
    playout.open(1.0)

    assert drain(playout, 1.0) == []


def test_no_clear_when_everything_has_been_heard():
    playout = opened()
    playout.push(SECOND, turn=1)
    playout.finish_turn(1)
    drain(playout, 0.0)
    playout.mark_reached("1:1000", 1.1)

    assert playout.interrupt(1, now=2.0) is None
    assert drain(playout, 2.0) == []


def test_a_turn_that_was_heard_to_its_end_is_not_cut_by_a_later_interrupt():
    playout = opened()
    playout.push(SECOND, turn=1)
    playout.finish_turn(1)
    drain(playout, 0.0)
    playout.mark_reached("1:1000", 1.0)
    playout.push(SECOND, turn=2)
    drain(playout, 5.0)

    playout.interrupt(2, now=5.5)

    first, second = playout.turn_heard(1, 6.0), playout.turn_heard(2, 6.0)
    assert first is not None
    assert second is not None
    assert not first.cut
    assert second.cut
    assert second.heard_s == pytest.approx(0.5)


def test_the_last_mark_says_that_the_turn_was_heard():
    playout = opened()
    playout.push(SECOND + b"\x01" * 804, turn=3)
    playout.finish_turn(3)
    marks = [c.name for c in drain(playout, 0.0) if isinstance(c, SendMark)]

    assert playout.mark_reached(marks[0], 1.0) is None or len(marks) == 1
    heard = playout.mark_reached(marks[-1], 1.2)

    assert heard is not None
    assert heard.heard_s == heard.sent_s == pytest.approx(1.1005)


def test_marks_that_a_clear_brings_back_are_not_heard():
    playout = opened()
    playout.push(SECOND * 2, turn=1)
    drain(playout, 0.0)
    playout.interrupt(1, now=0.5)
    drain(playout, 0.5)

    assert playout.mark_reached("1:2000", 0.51) is None
    assert playout.heard_s(9.0) == pytest.approx(0.5)


def test_foreign_marks_are_ignored():
    playout = opened()

    assert playout.mark_reached("hello", 1.0) is None
    assert playout.mark_reached("7:100", 1.0) is None


def test_a_mark_corrects_a_carrier_that_plays_later_than_we_think():
    playout = opened()
    playout.push(SECOND * 3, turn=1)
    drain(playout, 0.0)

    playout.mark_reached("1:1000", 1.3)  # 300 ms behind our clock

    heard = playout.turn_heard(1, 1.8)
    assert heard is not None
    assert heard.heard_s == pytest.approx(1.5)


def test_a_gap_in_the_models_delivery_is_not_counted_as_heard():
    playout = opened()
    playout.push(b"\x01" * 4_000, turn=1)
    drain(playout, 0.0)
    playout.push(b"\x01" * 4_000, turn=1)
    drain(playout, 3.0)

    assert playout.heard_s(3.25) == pytest.approx(0.75)


def test_the_next_turn_is_heard_after_the_one_before_it():
    playout = opened()
    playout.push(SECOND, turn=1)
    playout.push(SECOND, turn=2)
    drain(playout, 0.0)

    second = playout.turn_heard(2, 1.5)
    assert second is not None
    assert second.heard_s == pytest.approx(0.5)
    assert playout.is_playing(1.9)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 20_000)),
            st.tuples(st.just("finish"), st.just(0)),
            st.tuples(st.just("interrupt"), st.just(0)),
            st.tuples(st.just("wait"), st.integers(1, 3_000)),
            st.tuples(st.just("mark"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_nothing_of_a_cut_turn_is_sent_after_its_clear_and_heard_never_exceeds_sent(steps):
    playout, now, turn, cut = opened(lead_s=1.5), 0.0, 1, 0
    sent_by_turn: dict[int, int] = {}
    marks: list[str] = []
    clears = interrupts = 0
    for step, amount in steps:
        match step:
            case "push":
                playout.push(bytes([turn]) * amount, turn)
            case "finish":
                playout.finish_turn(turn)
                turn += 1
            case "interrupt":
                playout.interrupt(turn, now)
                interrupts += 1
                cut, turn, marks = turn, turn + 1, []
            case "wait":
                now += amount / 1000
            case "mark" if marks:
                playout.mark_reached(marks.pop(0), now)
        for command in drain(playout, now):
            match command:
                case SendAudio(payload):
                    assert payload[0] > cut
                    sent_by_turn[payload[0]] = sent_by_turn.get(payload[0], 0) + len(payload)
                case SendMark(name):
                    marks.append(name)
                case Clear():
                    clears += 1
    assert clears <= interrupts
    assert playout.heard_s(now + 1_000) * 8_000 <= sum(sent_by_turn.values()) + 0.5
