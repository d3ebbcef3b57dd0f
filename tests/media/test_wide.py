"""What is kept beside the mu-law of a wide call, found again for whatever is passed on of it."""

from __future__ import annotations

import codec
from codec.line import SILENCE
from server.media.wide import KEPT_SAID_BYTES, MAX_HEARD_BYTES, MAX_SAID_BYTES, Wide

SAID = bytes(range(1, 241)) * 40  # 9,600 bytes: 0.2 s at 24 kHz, 1,600 of mu-law


def test_pieces_of_a_turn_are_found_where_they_were_said():
    wide = Wide()
    wide.said(1, 0, SAID[:4_800])
    wide.said(1, 800, SAID[4_800:])

    assert wide.take(1, 0, 160) == SAID[:960]
    assert wide.take(1, 160, 1_440) == SAID[960:]


def test_a_turn_that_was_held_is_found_again():
    wide = Wide()
    wide.said(1, 0, SAID)
    wide.take(1, 0, 1_600)

    assert wide.take(1, 400, 100) == SAID[2_400:3_000]


def test_a_turn_that_is_kept_from_its_middle_on_is_found_from_there():
    wide = Wide()
    wide.said(1, 800, SAID[4_800:])

    assert wide.take(1, 0, 160) == b""
    assert wide.take(1, 800, 800) == SAID[4_800:]


def test_nothing_is_found_at_another_place_after_a_gap():
    wide = Wide()
    wide.said(1, 0, SAID[:960])
    wide.said(1, 1_000, SAID[:960])

    assert wide.take(1, 0, 160) == SAID[:960]
    assert wide.take(1, 160, 160) == b""


def test_what_was_never_said_is_empty():
    wide = Wide()
    wide.said(2, 0, SAID)

    assert wide.take(1, 0, 160) == b""
    assert wide.take(2, 1_600, 160) == b""
    assert wide.take(3, 0, 160) == b""


def test_turns_that_were_held_together_are_all_found_again():
    wide = Wide()
    for turn in (4, 5, 6):
        wide.said(turn, 0, SAID)
        wide.take(turn, 0, 1_600)

    assert [wide.take(turn, 800, 800) for turn in (4, 5, 6)] == [SAID[4_800:]] * 3


def test_a_turn_that_was_cut_before_any_of_it_was_sent_is_forgotten():
    wide = Wide()
    wide.said(1, 0, SAID)
    wide.said(2, 0, SAID[::-1])

    assert wide.take(2, 0, 160) == SAID[::-1][:960]
    assert wide.take(1, 0, 160) == b""


def test_of_a_turn_before_the_one_that_is_sent_what_was_not_sent_is_forgotten():
    wide = Wide()
    for turn in range(1, 31):  # cut by the caller, each of them, after a moment
        wide.said(turn, 0, bytes(MAX_SAID_BYTES // 20))
        assert wide.take(turn, 0, 160) == bytes(960)

    assert wide.take(29, 0, 160) == bytes(960)
    assert wide.take(29, 160, 160) == b""
    assert wide._said_bytes == sum(len(kept.pcm) for kept in wide._turns.values())
    assert wide._said_bytes <= MAX_SAID_BYTES // 20 + 30 * 960


def test_a_turn_is_forgotten_when_as_much_was_sent_after_it_as_may_be_held():
    wide, second = Wide(), bytes(48_000)
    wide.said(1, 0, SAID)
    wide.take(1, 0, 1_600)
    for at in range(0, KEPT_SAID_BYTES // 6, 8_000):
        wide.said(2, at, second)
        wide.take(2, at, 8_000)
        assert 1 in wide._turns
    wide.said(3, 0, second)
    wide.take(3, 0, 8_000)

    assert wide.take(1, 0, 160) == b""
    assert list(wide._turns) == [2, 3]


def test_what_was_held_is_no_more_than_it_was_when_it_is_sent_again():
    wide, second = Wide(), bytes(48_000)
    for turn in (1, 2):
        wide.said(turn, 0, second)
        wide.take(turn, 0, 8_000)
    for _ in range(100):  # a caller who coughs and coughs
        assert wide.take(1, 4_000, 4_000) == second[24_000:]
        assert wide.take(2, 0, 8_000) == second


def test_a_long_turn_is_kept_as_far_back_as_it_may_be_held_and_no_further():
    wide = Wide()
    second = bytes(48_000)
    for at in range(200):
        wide.said(1, at * 8_000, second)
        assert wide.take(1, at * 8_000, 8_000) == second

    assert wide.take(1, 199 * 8_000 - KEPT_SAID_BYTES // 12, 160) == bytes(960)
    assert wide.take(1, 0, 160) == b""


def test_more_than_ten_minutes_that_wait_are_not_kept_and_nothing_is_found_at_another_place():
    wide = Wide()
    wide.said(1, 0, bytes(MAX_SAID_BYTES))
    wide.said(1, MAX_SAID_BYTES // 6, SAID)
    wide.take(2, 0, 160)
    wide.said(3, 0, SAID)

    assert wide.take(1, MAX_SAID_BYTES // 6, 160) == b""
    assert wide.take(3, 0, 160) == SAID[:960]


def chunk(number: int) -> tuple[bytes, bytes]:
    return bytes([number]) * 160, bytes([number, 0]) * 320


def test_what_was_heard_last_goes_on_as_it_was_brought():
    wide, decoder = Wide(), codec.MulawDecoder(16_000)
    first, second = chunk(1), chunk(2)
    wide.heard(*first)
    one = wide.decode(first[0], decoder)
    wide.heard(*second)

    assert one == first[1]
    assert wide.decode(second[0], decoder) == second[1]


def test_what_was_withheld_at_the_opening_comes_before_it():
    wide, decoder = Wide(), codec.MulawDecoder(16_000)
    for number in range(1, 11):
        wide.heard(*chunk(number))
        assert wide.decode(SILENCE * 160, decoder) == bytes(640)
    wide.heard(*chunk(11))
    held = b"".join(chunk(number)[0] for number in range(1, 12))

    assert wide.decode(held, decoder) == b"".join(chunk(number)[1] for number in range(1, 12))


def test_an_echo_that_was_silenced_stays_silent():
    wide, decoder = Wide(), codec.MulawDecoder(16_000)
    wide.heard(*chunk(1))
    wide.heard(*chunk(2))

    assert wide.decode(SILENCE * 160 + chunk(2)[0], decoder) == bytes(640) + chunk(2)[1]


def test_what_was_heard_without_more_is_decoded_from_mulaw():
    wide = Wide()
    payload = bytes(range(160))
    wide.heard(payload, b"")

    expected = codec.MulawDecoder(16_000).decode(payload)
    assert wide.decode(payload, codec.MulawDecoder(16_000)) == expected


def test_no_more_is_kept_of_the_caller_than_is_ever_withheld():
    wide, decoder = Wide(), codec.MulawDecoder(16_000)
    for number in range(MAX_HEARD_BYTES // 160 + 500):
        wide.heard(*chunk(number % 250 + 1))

    assert wide._heard_bytes <= MAX_HEARD_BYTES
    assert len(wide.decode(SILENCE * (MAX_HEARD_BYTES + 160), decoder)) == 4 * (
        MAX_HEARD_BYTES + 160
    )
