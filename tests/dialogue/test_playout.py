"""Playout: what the caller gets and has heard, on a clock that is just a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.carrier import CarrierCommand, Clear, SendAudio, SendMark
from server.dialogue.playout import MAX_HOLD_S, MAX_TURNS, Playout
from server.simulators.phone import Earpiece
from tests.support.playouts import SECOND, drain, opened


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


def test_sends_no_more_than_the_streams_buffer_takes_and_all_of_the_lead_on_the_next():
    playout = Playout(lead_s=5.0, mark_every_s=100)
    playout.open(0.0, buffer_s=3.0)
    playout.push(SECOND * 9, turn=1)

    assert audio_bytes(drain(playout, 0.0)) == 24_000
    assert playout.next_due() == pytest.approx(1.0)

    playout.leave(1.0)
    playout.open(1.0, buffer_s=600.0)
    playout.push(SECOND * 9, turn=2)
    assert audio_bytes(drain(playout, 1.0)) == 48_000


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


def test_of_a_turn_that_was_cut_before_any_of_it_came_it_is_known_how_much_was_made():
    playout = opened()
    playout.interrupt(1, now=0.0)
    playout.push(SECOND * 2, turn=1)

    heard = playout.turn_heard(1, 5.0)
    assert heard is not None
    assert (heard.heard_s, heard.made_s, heard.cut) == (0.0, 2.0, True)


def test_what_comes_late_of_a_turn_that_is_forgotten_makes_nothing_known_of_it():
    playout = opened()
    for turn in range(1, MAX_TURNS + 3):
        playout.push(SECOND, turn)
        drain(playout, float(turn))
        playout.interrupt(turn, now=turn + 0.5)
    playout.push(SECOND, turn=1)

    assert playout.turn_heard(1, 1_000.0) is None


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


def test_marks_that_came_while_our_clock_stood_say_what_the_caller_hears_now_and_next():
    playout = opened(remember=True)
    playout.push(SECOND * 10, turn=1)
    playout.finish_turn(1)
    drain(playout, 0.0)
    playout.push(SECOND, turn=2)
    drain(playout, 0.0)

    for second in range(1, 9):  # the carrier went on for eight seconds, and our clock for two
        playout.mark_reached(f"1:{second}000", 2.0)

    assert playout.heard_s(2.5) == pytest.approx(8.5)
    assert playout.audible_until(2.5) == pytest.approx(5.0)
    assert playout.heard_s(4.5) == pytest.approx(10.5)  # of the second turn, too
    cut = playout.interrupt(1, 2.5)
    assert cut is not None
    assert cut.heard_s == pytest.approx(8.5)


def test_a_hold_after_our_clock_stood_goes_on_where_the_caller_was():
    playout = opened(remember=True)
    playout.push(bytes(range(250)) * 320, turn=1)  # ten seconds
    drain(playout, 0.0)
    for second in range(1, 9):
        playout.mark_reached(f"1:{second}000", 2.0)

    assert playout.hold(2.0)
    playout.resume()

    assert audio_bytes(drain(playout, 3.0)) == 2 * len(SECOND)


def test_an_agent_that_was_heard_to_the_end_while_our_clock_stood_plays_no_more():
    playout = opened()
    playout.push(SECOND * 3, turn=1)
    playout.finish_turn(1)
    drain(playout, 0.0)

    for second in (1, 2, 3):
        heard = playout.mark_reached(f"1:{second}000", 1.0)

    assert heard is not None
    assert heard.heard_s == 3.0
    assert not playout.is_playing(1.0)


def test_a_gap_in_the_models_delivery_is_not_counted_as_heard():
    playout = opened()
    playout.push(b"\x01" * 4_000, turn=1)
    drain(playout, 0.0)
    playout.push(b"\x01" * 4_000, turn=1)
    drain(playout, 3.0)

    assert playout.heard_s(3.25) == pytest.approx(0.75)


def test_what_was_heard_of_many_turns_is_what_was_heard_of_each():
    playout, heard_s = opened(), 0.0

    for turn in range(1, 2 * MAX_TURNS):
        at = 2.0 * turn
        playout.push(SECOND, turn)
        if turn % 3:
            playout.finish_turn(turn)
        marks = [each.name for each in drain(playout, at) if isinstance(each, SendMark)]
        if turn % 5 == 0:
            playout.interrupt(turn, at + 0.25)
        for name in marks if turn % 7 else ():
            playout.mark_reached(name, at + 1.0)
        drain(playout, at + 1.0)
        heard_s += 1.0 if turn % 5 else 0.25
        assert playout.heard_s(at + 1.5) == pytest.approx(heard_s)


@pytest.mark.parametrize("silent_every", [2, 5, 1_000])
def test_what_was_heard_of_a_turn_is_never_forgotten_in_part(silent_every):
    playout = opened()

    for turn in range(1, 2 * MAX_TURNS):
        if turn % silent_every:
            playout.push(SECOND, turn)
        playout.finish_turn(turn)
        for each in drain(playout, 2.0 * turn):
            if isinstance(each, SendMark):
                playout.mark_reached(each.name, 2.0 * turn + 1.0)
        if turn == MAX_TURNS:
            playout.push(SECOND, turn)
            playout.interrupt(turn, 2.0 * turn + 1.5)

    at = 4.0 * MAX_TURNS
    known = {turn: playout.turn_heard(turn, at) for turn in range(1, 2 * MAX_TURNS)}
    first = min(turn for turn, heard in known.items() if heard is not None)
    assert first == MAX_TURNS
    for turn in range(first, 2 * MAX_TURNS):
        assert known[turn].heard_s == pytest.approx(1.0 if turn % silent_every else 0.0)


def test_nothing_was_heard_of_a_turn_that_was_cut_before_its_first_sound():
    playout = opened()
    playout.push(SECOND, turn=1)
    drain(playout, 0.0)
    playout.interrupt(2, 0.5)  # whose text alone had come

    first, second = playout.turn_heard(1, 1.0), playout.turn_heard(2, 1.0)
    assert first is not None
    assert (first.heard_s, first.cut) == (pytest.approx(0.5), True)
    assert second is not None
    assert (second.heard_s, second.made_s, second.cut) == (0.0, 0.0, True)
    assert playout.turn_heard(3, 1.0) is None


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


# --- A model that is slower than speech
def test_a_turn_that_ran_dry_goes_on_with_a_cushion():
    playout = opened()
    playout.push(b"\x01" * 800, 1, received_at=0.0)
    drain(playout, 0.0)
    playout.push(b"\x02" * 800, 1, received_at=0.3)

    assert drain(playout, 0.3) == []
    assert playout.next_due() == pytest.approx(0.4)
    playout.push(b"\x03" * 800, 1, received_at=0.39)
    assert audio_bytes(drain(playout, 0.4)) == 1_600
    assert playout.starved_s(1) == pytest.approx(0.3)

    playout.push(b"\x04" * 800, 1, received_at=0.65)
    assert playout.next_due() == pytest.approx(0.85)


def test_the_end_of_a_turn_waits_for_no_cushion():
    playout = opened()
    playout.push(b"\x01" * 800, 1, received_at=0.0)
    drain(playout, 0.0)
    playout.push(b"\x02" * 800, 1, received_at=0.3)
    playout.finish_turn(1)

    assert audio_bytes(drain(playout, 0.3)) == 800


def test_a_turn_that_does_not_run_dry_and_a_new_one_go_straight_through():
    playout = opened()
    playout.push(b"\x01" * 800, 1, received_at=0.0)
    assert audio_bytes(drain(playout, 0.0)) == 800
    playout.push(b"\x02" * 800, 1, received_at=0.09)
    assert audio_bytes(drain(playout, 0.09)) == 800
    playout.finish_turn(1)
    drain(playout, 0.1)
    playout.push(b"\x03" * 800, 2, received_at=5.0)
    assert audio_bytes(drain(playout, 5.0)) == 800


# --- Held, and going on
def remembering(**settings: float) -> Playout:
    playout = Playout(remember=True, **settings)
    playout.open(0.0)
    return playout


def numbered(count: int) -> bytes:
    return bytes(n * 7 % 251 for n in range(count))


def test_a_hold_clears_and_goes_on_where_the_caller_was():
    playout = remembering()
    speech = numbered(24_000)
    playout.push(speech, turn=1)
    drain(playout, 0.0)

    assert playout.hold(1.5)
    assert drain(playout, 1.5) == [Clear()]
    assert not playout.is_playing(1.5)
    assert playout.next_due() == 1.5 + MAX_HOLD_S

    playout.resume()
    again = b"".join(c.payload for c in drain(playout, 2.0) if isinstance(c, SendAudio))
    assert again == speech[12_000:]
    assert playout.heard_s(3.0) == pytest.approx(2.5)
    assert playout.starved_s(1) == 0  # it was not the model that paused


def test_a_hold_that_nobody_ends_ends_by_itself():
    playout = remembering()
    speech = numbered(24_000)
    playout.push(speech, turn=1)
    drain(playout, 0.0)
    playout.hold(1.5)
    drain(playout, 1.5)

    assert drain(playout, 1.4 + MAX_HOLD_S) == []
    sent = drain(playout, playout.next_due())

    assert b"".join(c.payload for c in sent if isinstance(c, SendAudio)) == speech[12_000:]
    assert not playout.is_held
    assert playout.hold(1.6 + MAX_HOLD_S)


def test_what_comes_during_a_hold_waits_behind_what_was_held():
    playout = remembering()
    speech = numbered(16_000)
    playout.push(speech[:8_000], turn=1)
    drain(playout, 0.0)
    playout.hold(0.25)
    playout.push(speech[8_000:], turn=1)
    playout.finish_turn(1)

    assert drain(playout, 0.3) == [Clear()]
    playout.resume()
    sent = drain(playout, 0.4)
    assert b"".join(c.payload for c in sent if isinstance(c, SendAudio)) == speech[2_000:]
    assert isinstance(sent[-1], SendMark)
    heard = playout.mark_reached(sent[-1].name, 2.2)
    assert heard is not None
    assert heard.heard_s == heard.sent_s == 2.0


def test_a_mark_that_a_hold_brought_back_is_not_believed():
    playout = remembering()
    playout.push(SECOND * 2, turn=1)
    playout.finish_turn(1)
    marks = [c.name for c in drain(playout, 0.0) if isinstance(c, SendMark)]
    playout.hold(0.5)
    playout.resume()
    drain(playout, 0.6)

    assert [playout.mark_reached(name, 0.7) for name in marks] == [None, None]
    assert playout.heard_s(0.7) == pytest.approx(0.6)


def test_a_turn_held_at_its_very_end_still_says_that_it_was_heard():
    playout = remembering()
    playout.push(SECOND, turn=1)
    playout.finish_turn(1)
    drain(playout, 0.0)
    assert playout.hold(1.0)
    playout.resume()

    clear, mark = drain(playout, 1.1)
    assert clear == Clear()
    assert playout.mark_reached(mark.name, 1.2) is not None


def test_a_held_turn_can_be_cut_without_a_second_clear():
    playout = remembering()
    playout.push(SECOND * 3, turn=1)
    drain(playout, 0.0)
    playout.hold(1.25)
    assert drain(playout, 1.25) == [Clear()]

    cut = playout.interrupt(1, 1.6)

    assert cut is not None
    assert (cut.heard_s, cut.cut) == (1.25, True)
    assert drain(playout, 1.6) == []
    playout.push(SECOND, turn=2)
    assert audio_bytes(drain(playout, 1.7)) == 8_000


def test_there_is_nothing_to_hold_in_silence_or_without_a_memory():
    playout = remembering()
    assert not playout.hold(1.0)
    playout.push(SECOND, turn=1)
    drain(playout, 1.0)
    assert playout.hold(1.5)
    assert not playout.hold(1.5)

    forgetful = opened()
    forgetful.push(SECOND, turn=1)
    drain(forgetful, 0.0)
    assert not forgetful.hold(0.5)


def test_what_was_played_can_be_asked_for():
    playout = remembering()
    speech = numbered(8_000)
    for at in range(0, 8_000, 700):
        playout.push(speech[at : at + 700], turn=1)
    drain(playout, 1.0)

    assert playout.timeline.played(1.0, 160) == b"\xff" * 160
    assert playout.timeline.played(1.01, 160) == b"\xff" * 80 + speech[:80]
    assert playout.timeline.played(1.5, 160) == speech[3_840:4_000]
    assert playout.timeline.played(2.01, 160) == speech[7_920:] + b"\xff" * 80
    playout.push(speech, turn=2)
    drain(playout, 2.02)
    playout.hold(2.52)
    assert playout.timeline.played(2.53, 160) == speech[3_920:4_000] + b"\xff" * 80


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["push", "finish", "hold", "resume", "wait"]), st.integers(1, 120)
        ),
        max_size=60,
    )
)
def test_holds_lose_nothing_and_repeat_nothing(steps):
    playout = remembering(lead_s=1.0)
    ear = Earpiece()
    pushed, heard = bytearray(), bytearray()
    frames = 0

    def send() -> None:
        now = frames * 0.02
        while (command := playout.next_command(now)) is not None:
            match command:
                case SendAudio(payload=payload):
                    ear.push(payload)
                case SendMark(name=name):
                    for reached in ear.mark(name):
                        playout.mark_reached(reached, now)
                case Clear():
                    for reached in ear.clear()[1]:
                        playout.mark_reached(reached, now)

    def wait(count: int) -> None:
        nonlocal frames
        for _ in range(count):
            frame, marks = ear.play()
            heard.extend(frame.replace(b"\xff", b""))
            frames += 1
            for name in marks:
                playout.mark_reached(name, frames * 0.02)
            send()

    turn = 1
    for step, number in steps:
        match step:
            case "push":
                payload = bytes(len(pushed) * 3 % 251 for _ in range(160)) * (number % 20)
                pushed += payload
                playout.push(payload, turn)
            case "finish":
                playout.finish_turn(turn)
                turn += 1
            case "hold":
                playout.hold(frames * 0.02)
            case "resume":
                playout.resume()
            case "wait":
                wait(number)
        send()
    playout.resume()
    wait(len(pushed) // 160 + 1)

    assert bytes(heard) == bytes(pushed)
    assert playout.heard_s(frames * 0.02) == pytest.approx(len(pushed) / 8_000, abs=0.001)
    assert playout.queued_s == 0


def starved() -> Playout:
    """A playout whose caller has heard all that came of a turn, and waits for more of it."""
    playout = opened()
    playout.push(SECOND * 2, turn=1)
    for mark in [c for c in drain(playout, 0.0) if isinstance(c, SendMark)]:
        playout.mark_reached(mark.name, 2.0)
    return playout


def test_a_turn_that_is_interrupted_while_more_of_it_is_awaited_is_cut_there():
    playout = starved()

    cut = playout.interrupt(1, 2.3)
    playout.push(SECOND, turn=1)
    playout.finish_turn(1)

    assert cut is not None
    assert (cut.heard_s, cut.cut) == (2.0, True)
    assert drain(playout, 2.3) == []  # nothing is at the carrier that could be cleared
    assert playout.all_heard


def test_a_turn_whose_line_is_lost_while_more_of_it_is_awaited_is_cut_there():
    playout = starved()

    cut = playout.leave(2.3, waits=True)
    playout.push(SECOND, turn=1)
    playout.finish_turn(1)

    assert cut is not None
    assert (cut.heard_s, cut.cut) == (2.0, True)
    assert playout.all_heard


def test_what_still_comes_of_a_turn_that_was_cut_is_made_and_not_heard():
    playout = starved()
    playout.interrupt(1, 2.3)

    playout.push(SECOND * 3, turn=1)
    heard = playout.turn_heard(1, 9.0)

    assert heard is not None
    assert (heard.heard_s, heard.made_s) == (2.0, 5.0)
