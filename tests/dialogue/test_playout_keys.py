"""The tones of keys among what the agent says: alone, whole, and never cleared."""

from __future__ import annotations

from server.carrier import Clear, SendAudio, SendMark
from server.dialogue.key_tones import LOST_MARK_S
from server.dialogue.playout import Playout
from tests.support.playouts import SECOND, drain, opened

KEYS = b"\x55" * 3_200


def test_keys_are_sent_at_once_when_the_line_is_silent():
    playout = opened()
    name = playout.keys.push(KEYS)

    assert drain(playout, 0.0) == [SendAudio(KEYS), SendMark(name)]
    assert playout.keys.is_pending(name)
    assert playout.mark_reached(name, 0.4) is None
    assert not playout.keys.is_pending(name)
    assert playout.all_heard


def test_keys_wait_for_what_the_carrier_holds_and_go_before_what_is_queued():
    playout = opened(lead_s=1.0)
    playout.push(SECOND * 3, turn=1)
    drain(playout, 0.0)
    name = playout.keys.push(KEYS)
    assert drain(playout, 0.5) == []
    for mark in list(playout._marks_out):
        playout.mark_reached(mark, 1.0)
    assert playout.next_due() <= 2.0

    assert drain(playout, 2.0)[:2] == [SendAudio(KEYS), SendMark(name)]
    assert drain(playout, 2.2) == []

    playout.mark_reached(name, 2.4)
    assert SendAudio(SECOND) in drain(playout, 2.4)


def test_no_clear_takes_keys_away():
    playout = opened(mark_every_s=10.0)
    playout.push(SECOND[:4_000], turn=1)
    drain(playout, 0.0)
    name = playout.keys.push(KEYS)
    assert len(drain(playout, 0.5)) == 2
    playout.push(SECOND, turn=1)

    assert playout.interrupt(1, 0.6) is not None
    assert drain(playout, 0.6) == []
    playout.mark_reached(name, 0.9)
    assert drain(playout, 0.9) == []


def test_keys_are_not_held():
    playout = opened(remember=True)
    playout.keys.push(KEYS)
    drain(playout, 0.0)

    assert not playout.hold(0.1)
    assert Clear() not in drain(playout, 0.1)


def test_what_was_held_goes_on_after_the_keys():
    playout = opened(remember=True)
    playout.push(SECOND, turn=1)
    drain(playout, 0.0)
    playout.hold(0.5)
    assert drain(playout, 0.5) == [Clear()]
    name = playout.keys.push(KEYS)
    assert drain(playout, 0.5)[0] == SendAudio(KEYS)
    playout.mark_reached(name, 0.9)
    playout.resume()

    assert drain(playout, 0.9)[0] == SendAudio(SECOND[:4_000])


def test_long_keys_are_sent_in_pieces_with_one_mark():
    playout = opened()
    name = playout.keys.push(KEYS * 4)

    assert drain(playout, 0.0) == [
        SendAudio((KEYS * 4)[:8_000]),
        SendAudio((KEYS * 4)[8_000:]),
        SendMark(name),
    ]


def test_keys_pressed_twice_are_sent_one_after_the_other():
    playout = opened()
    first, second = playout.keys.push(KEYS), playout.keys.push(KEYS)
    assert drain(playout, 0.0) == [SendAudio(KEYS), SendMark(first)]
    playout.mark_reached(first, 0.4)

    assert drain(playout, 0.4) == [SendAudio(KEYS), SendMark(second)]


def test_keys_whose_mark_is_lost_do_not_silence_the_agent_for_ever():
    playout = opened()
    name = playout.keys.push(KEYS)
    drain(playout, 0.0)
    playout.push(SECOND, turn=1)
    due = playout.next_due()

    assert due == 0.4 + LOST_MARK_S
    assert drain(playout, due - 0.1) == []
    assert drain(playout, due)[0] == SendAudio(SECOND)
    assert not playout.keys.is_pending(name)


def test_keys_that_are_withdrawn_in_time_are_not_sent():
    playout = Playout()
    name = playout.keys.push(KEYS)
    playout.keys.withdraw(name)
    playout.open(1.0)

    assert drain(playout, 1.0) == []
    assert not playout.keys.is_pending(name)


def test_keys_do_not_count_as_something_the_agent_said():
    playout = opened()
    playout.keys.push(KEYS)
    drain(playout, 0.0)

    assert playout.heard_s(1.0) == 0.0


def test_keys_are_lost_with_their_stream():
    playout = opened()
    name = playout.keys.push(KEYS)
    drain(playout, 0.0)
    playout.leave(0.1)

    assert not playout.keys.is_pending(name)
    assert playout.keys.were_lost(name)


def test_keys_that_were_heard_are_not_lost_with_their_stream_and_nobody_keeps_those_asked_for():
    playout = opened()
    heard, waits = playout.keys.push(KEYS), playout.keys.push(KEYS)
    drain(playout, 0.0)
    playout.mark_reached(heard, 0.4)
    playout.leave(0.4)

    assert [playout.keys.were_lost(name) for name in (heard, waits)] == [False, True]
    playout.keys.withdraw(waits)
    assert not playout.keys.were_lost(waits)
