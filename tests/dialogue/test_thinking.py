"""A sound in the silence while the agent is at work."""

from __future__ import annotations

from array import array

import pytest

from codec import decode_mulaw, encode_mulaw
from codec.ear import Played
from codec.line import BYTES_PER_S
from server.carrier import Clear, SendAudio, SendMark
from server.dialogue.playout import Playout
from server.dialogue.thinking import BACKGROUND, FADE_BYTES, LEAD_S, PIECE_BYTES, faded

LOOP = encode_mulaw(array("h", (400, -400) * 2_000).tobytes())
WORD = encode_mulaw(array("h", (8_000, -8_000) * 800).tobytes())


def thinking() -> Playout:
    playout = Playout(remember=True, thinking=LOOP)
    playout.open(0.0)
    return playout


def sent(playout: Playout, now: float) -> list[object]:
    found = []
    while (command := playout.next_command(now)) is not None:
        found.append(command)
    return found


def peak(payload: bytes) -> int:
    samples = array("h", decode_mulaw(payload))
    return max(max(samples), -min(samples))


def test_it_is_heard_while_it_is_wanted_a_little_ahead_and_without_a_mark():
    playout, now, heard_s = thinking(), 0.0, 0.0
    assert sent(playout, now) == []
    playout.thinking.wanted = True

    while now < 3.0:
        commands = sent(playout, now)
        assert all(isinstance(one, SendAudio) and one.turn == BACKGROUND for one in commands)
        heard_s += sum(len(one.payload) for one in commands) / BYTES_PER_S
        assert now < heard_s <= now + LEAD_S + PIECE_BYTES / BYTES_PER_S + 1e-6
        now = playout.next_due()

    assert playout.heard_s(now) == 0.0
    assert not playout.is_playing(now)
    assert playout.audible_until(now) == 0.0


def test_it_begins_and_ends_softly():
    playout = thinking()
    playout.thinking.wanted = True
    first, *_ = sent(playout, 1.0)
    playout.thinking.wanted = False
    clear, tail = sent(playout, 1.1)

    assert clear == Clear()
    assert len(tail.payload) == FADE_BYTES
    for piece, quiet in ((first.payload[:FADE_BYTES], 0), (tail.payload, -1)):
        parts = [peak(piece[at : at + 40]) for at in range(0, FADE_BYTES, 40)]
        assert parts[quiet] < 100
        assert parts == sorted(parts, reverse=quiet == -1)
    assert sent(playout, 1.2) == []


def test_it_is_over_before_the_first_word():
    playout = thinking()
    playout.thinking.wanted = True
    sent(playout, 1.0)
    playout.push(WORD, turn=1)

    clear, tail, word = sent(playout, 1.1)[:3]

    assert clear == Clear()
    assert tail.turn == BACKGROUND
    assert word == SendAudio(WORD)
    assert playout.timeline.play_end == pytest.approx(1.1 + 0.04 + len(WORD) / BYTES_PER_S)
    assert playout.heard_s(1.14 + 0.1) == pytest.approx(0.1, abs=0.001)


def test_it_waits_until_the_agent_has_been_heard_to_the_end():
    playout = thinking()
    playout.push(WORD, turn=1)
    playout.finish_turn(1)
    *_, mark = sent(playout, 0.0)
    assert isinstance(mark, SendMark)
    playout.thinking.wanted = True

    assert sent(playout, 5.0) == []
    playout.mark_reached(mark.name, 5.1)
    assert sent(playout, 5.1) != []


def test_keys_sound_alone():
    playout = thinking()
    playout.thinking.wanted = True
    sent(playout, 1.0)
    playout.keys.push(WORD)

    clear, tail, keys, mark = sent(playout, 1.1)

    assert (clear, tail.turn, keys.payload) == (Clear(), BACKGROUND, WORD)
    assert isinstance(mark, SendMark)
    assert sent(playout, 1.2) == []


def test_what_has_run_dry_needs_no_clear():
    playout = thinking()
    playout.thinking.wanted = True
    sent(playout, 1.0)
    playout.thinking.wanted = False

    assert sent(playout, 9.0) == []


def test_nothing_is_heard_of_no_sound():
    playout = Playout(remember=True)
    playout.open(0.0)
    playout.thinking.wanted = True

    assert sent(playout, 1.0) == []
    assert playout.next_due() == float("inf")


def test_the_ear_knows_it_for_what_may_come_back():
    played = Played(remember=True)
    played.open = True
    played.background(LOOP, 1.0)

    assert not played.is_speaking(1.2)
    assert played.played(1.2, 800) == LOOP[800:1600]
    played.forget_background(1.3)
    assert played.background_end == 1.3
    assert played.play_end == 0.0
    assert played.tail(BYTES_PER_S, 0) == b""


def test_a_fade_is_as_long_as_what_is_faded():
    assert len(faded(LOOP[:100], up=True)) == 100
    assert peak(faded(LOOP[:1], up=False)) == 0
