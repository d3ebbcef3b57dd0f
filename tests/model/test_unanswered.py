"""What a session says again to a new connection: no socket, no clock."""

from __future__ import annotations

from server.model import ToolResult
from server.model.lasting.unanswered import (
    MAX_INPUT_BYTES,
    MAX_KEPT_INPUTS,
    UnansweredInput,
)
from tests.support.lasting_inputs import (
    CHUNK_BYTES,
    loud,
    silent,
    take_all,
)


def test_input_is_given_out_in_order_and_in_messages_of_at_most_100_ms() -> None:
    kept = UnansweredInput()
    chunks = [loud(n) for n in range(12)]
    for chunk in chunks:
        kept.put(chunk)
    kept.put("a text")
    kept.put(chunks[0])

    messages = take_all(kept)

    assert messages == [
        b"".join(chunks[:5]),
        b"".join(chunks[5:10]),
        b"".join(chunks[10:]),
        "a text",
        chunks[0],
    ]
    assert max(len(m) for m in messages if isinstance(m, bytes)) == MAX_INPUT_BYTES


def test_an_unanswered_question_is_said_again_without_the_silence_before_it() -> None:
    kept = UnansweredInput()
    for n in range(100):
        kept.put(silent(n))
    question = [loud(n) for n in range(100, 150)]
    for chunk in question:
        kept.put(chunk)
    take_all(kept)

    kept.rewind(resumed=True)
    again = b"".join(take_all(kept))  # type: ignore[arg-type]

    pre_roll = [silent(n) for n in range(85, 100)]
    assert again == b"".join(pre_roll + question)


def test_silence_alone_is_not_said_again_but_what_waits_is_always_said() -> None:
    kept = UnansweredInput()
    for n in range(100):
        kept.put(silent(n))
    take_all(kept)
    for n in range(100, 110):
        kept.put(silent(n))

    repeated = kept.rewind(resumed=True)

    assert repeated == 0
    assert b"".join(take_all(kept)) == b"".join(silent(n) for n in range(100, 110))  # type: ignore[arg-type]


def test_words_are_said_again_without_the_silence_before_and_after_them() -> None:
    kept = UnansweredInput()
    for n in range(50):
        kept.put(silent(n))
    kept.put("The line was interrupted.")
    for n in range(50, 100):
        kept.put(silent(n))
    take_all(kept)

    repeated = kept.rewind(resumed=True)

    assert repeated == 0
    assert take_all(kept) == ["The line was interrupted."]
    kept.answered(kept.sent_up_to())
    kept.rewind(resumed=True)
    assert take_all(kept) == []


def test_a_question_after_words_is_said_again_without_the_silence_between_them() -> None:
    kept = UnansweredInput()
    kept.put("The line was interrupted.")
    for n in range(100):
        kept.put(silent(n))
    question = [loud(n) for n in range(100, 150)]
    for chunk in question:
        kept.put(chunk)
    take_all(kept)

    repeated = kept.rewind(resumed=True)
    words, *again = take_all(kept)

    assert words == "The line was interrupted."
    assert b"".join(again) == b"".join([silent(n) for n in range(85, 100)] + question)  # type: ignore[arg-type]
    assert repeated == 65 * CHUNK_BYTES


def test_silence_that_is_not_said_again_takes_no_room() -> None:
    kept = UnansweredInput(max_kept_s=1.0)
    for _ in range(10):
        kept.put("The line was interrupted.")
        for n in range(40):
            kept.put(silent(n))
        take_all(kept)
        kept.rewind(resumed=True)
    for n in range(50):
        kept.put(loud(n))
    take_all(kept)

    assert kept.rewind(resumed=True) == 50 * CHUNK_BYTES
    assert kept.lost_bytes == 0


def test_an_answered_question_is_not_said_again() -> None:
    kept = UnansweredInput()
    kept.put(loud(1))
    take_all(kept)
    position = kept.sent_up_to()
    kept.put(loud(2))
    take_all(kept)
    kept.answered(position)

    kept.rewind(resumed=True)

    assert take_all(kept) == [loud(2)]


def test_what_the_session_remembers_is_said_again_only_to_a_fresh_one() -> None:
    kept = UnansweredInput()
    kept.put("Greet the caller.")
    take_all(kept)
    kept.remembered(kept.sent_up_to())

    kept.rewind(resumed=True)
    assert take_all(kept) == []
    kept.rewind(resumed=False)
    assert take_all(kept) == ["Greet the caller."]


def test_old_audio_makes_room_and_is_lost_only_if_it_was_never_sent() -> None:
    kept = UnansweredInput(max_kept_s=1.0, max_waiting_s=1.0)
    for n in range(50):
        kept.put(loud(n))
    take_all(kept)
    for n in range(50, 110):
        kept.put(loud(n))

    assert kept.lost_bytes == 10 * CHUNK_BYTES
    assert b"".join(take_all(kept)) == b"".join(loud(n) for n in range(60, 110))  # type: ignore[arg-type]


def test_what_waits_may_be_longer_than_what_is_kept_once_it_is_sent() -> None:
    kept = UnansweredInput(max_kept_s=1.0, max_waiting_s=2.0)
    chunks = [loud(n) for n in range(150)]
    for chunk in chunks:
        kept.put(chunk)

    assert kept.lost_bytes == 50 * CHUNK_BYTES
    assert b"".join(take_all(kept)) == b"".join(chunks[50:])  # type: ignore[arg-type]
    kept.put(loud(150))
    take_all(kept)
    assert kept.rewind(resumed=True) == 50 * CHUNK_BYTES
    assert kept.lost_bytes == 50 * CHUNK_BYTES


def test_tiny_chunks_make_room_by_their_number_sent_and_waiting_together() -> None:
    kept, tiny = UnansweredInput(), b"\x00\x40"
    for _ in range(MAX_KEPT_INPUTS - 100):
        kept.put(tiny)
    take_all(kept)
    for _ in range(200):
        kept.put(tiny)

    assert kept.lost_bytes == 0
    kept.rewind(resumed=False)
    assert b"".join(take_all(kept)) == tiny * MAX_KEPT_INPUTS  # type: ignore[arg-type]


def test_words_and_tool_answers_outlast_old_audio() -> None:
    kept = UnansweredInput(max_kept_s=1.0, max_waiting_s=1.0)
    results = (ToolResult("1", "look_up", {"output": 1}),)
    kept.put(results)
    kept.put("The caller pressed 5.")
    for n in range(100):
        kept.put(loud(n))

    assert take_all(kept)[:2] == [results, "The caller pressed 5."]


def test_silence_and_what_was_sent_is_no_sound_that_waits() -> None:
    kept = UnansweredInput()
    kept.put(loud())
    assert kept.has_sound()
    take_all(kept)
    kept.put(silent())
    assert not kept.has_sound()
    kept.put("a nudge")
    assert kept.has_sound()


def test_what_was_sent_just_before_is_not_taken_for_noticed() -> None:
    kept = UnansweredInput()
    for n in range(50):
        kept.put(loud(n))
    take_all(kept)

    kept.remembered(kept.sent_up_to(0.5))
    kept.rewind(resumed=True)

    assert b"".join(take_all(kept)) == b"".join(loud(n) for n in range(25, 50))  # type: ignore[arg-type]


def test_what_could_not_be_sent_is_said_again() -> None:
    kept = UnansweredInput()
    kept.put(loud(1))
    kept.take()

    kept.answered(kept.sent_up_to())
    kept.rewind(resumed=True)

    assert take_all(kept) == [loud(1)]


def put_and_send(kept: UnansweredInput, *chunks: bytes) -> None:
    for chunk in chunks:
        kept.put(chunk)
        take_all(kept)


def test_a_turn_of_which_the_beginning_was_let_go_is_not_said_again_from_its_beginning() -> None:
    kept = UnansweredInput(max_kept_s=1.0)
    put_and_send(kept, *[loud(n) for n in range(80)])

    kept.rewind(resumed=False)

    assert not kept.reaches_back


def test_silence_and_answered_sound_that_were_let_go_take_nothing_from_a_turn() -> None:
    kept = UnansweredInput(max_kept_s=1.0)
    put_and_send(kept, *[loud(n) for n in range(80)])
    kept.answered(kept.sent_up_to())
    put_and_send(kept, *[silent(n) for n in range(80)], *[loud(n) for n in range(20)])

    kept.rewind(resumed=False)

    assert kept.reaches_back


def test_what_a_resumed_session_remembers_of_a_turn_is_not_said_again() -> None:
    kept = UnansweredInput()
    put_and_send(kept, *[loud(n) for n in range(20)])
    kept.remembered(kept.sent_up_to())
    put_and_send(kept, *[loud(n) for n in range(20)])

    kept.rewind(resumed=True)
    assert not kept.reaches_back

    kept.rewind(resumed=False)
    assert kept.reaches_back
