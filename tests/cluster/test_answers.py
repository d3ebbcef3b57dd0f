"""What Redis answers is read, or told to be something else; it never does any harm."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cluster.redis import answers
from server.cluster.redis.answers import Heard, OddAnswer, Taken
from server.cluster.registry import Holding, Member, RegistryAway

READERS = (
    answers.holding, answers.taken, answers.flags, answers.puts, answers.begun, answers.call_sids,
    answers.heard, answers.age_ms, answers.wait_s, answers.worked_on, answers.anything,
)  # fmt: skip
SOME = (
    st.none()
    | st.booleans()
    | st.sampled_from([-2, -1, 0, 1, 2, 2**31, 2**53, 2**62, 10**400, -(10**400)])
    | st.integers()
    | st.floats()
    | st.binary(max_size=20)
    | st.sampled_from([b"n1@7", b"1", b"9" * 400, b"-1", b"\xd9\xa1", b"n1@" + b"9" * 400])
    | st.text(max_size=20)
)
ANYTHING = st.recursive(
    SOME,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.lists(inner, max_size=6).map(tuple)
        | st.dictionaries(st.binary(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("read", READERS)
@given(ANYTHING)
def test_whatever_is_answered_is_read_or_counts_as_no_answer(read, answer):
    with suppress(RegistryAway):
        read(answer)


def test_what_scripts_answer_is_read():
    ours = Holding(Member("n1", 7), 3)

    assert answers.holding([b"n1@7", b"3", None]) == (ours, False)
    assert answers.holding([b"n1@7", b"3", b"1"]) == (ours, True)
    assert answers.holding([None, None, None]) is None
    assert answers.taken([2, b"sealed"]) == Taken(2, b"sealed")
    assert answers.taken([2, None]) == Taken(2, None)
    assert (answers.taken(0), answers.taken(-1)) == (False, True)
    assert answers.flags([1, 0], 2) == [True, False]
    assert answers.puts([1, 0, 2], 3) == [1, 0, answers.NEW]
    assert answers.begun(b"1790000000000") == b"1790000000000"
    assert answers.call_sids([b"CA1", b"CA2"]) == ["CA1", "CA2"]
    assert answers.heard([9, 0, None, -2, [b"n1@7", b"1 []"]]) == Heard(
        9, False, b"", -2, {b"n1@7": b"1 []"}
    )
    assert (answers.age_ms(-1), answers.age_ms(5_000)) == (-1, 5_000)
    assert (answers.wait_s(-1), answers.wait_s(250_000)) == (None, 0.25)
    assert (answers.worked_on(None), answers.worked_on(b"n1@7\nprint")) == (None, b"print")


@pytest.mark.parametrize(
    ("read", "answer"),
    [
        (answers.taken, [2, 2**40]),  # as a length it would be all the memory there is
        (answers.taken, [0, b""]),
        (answers.taken, [True, b""]),
        (answers.taken, [2, b"x" * 100_000]),
        (answers.taken, False),
        (answers.holding, [b"n1@7", 2**40, None]),
        (answers.holding, [b"n1@7", b"\xb2", None]),
        (answers.holding, [b"n1@7", b"9" * 16, None]),
        (answers.holding, [b"n1@7", b"1"]),
        (answers.holding, [b"N 1", b"1", None]),
        (answers.flags, 1),
        (answers.flags, [2]),
        (answers.flags, [True]),
        (answers.flags, [1, 1]),
        (answers.flags, []),
        (answers.puts, [3]),
        (answers.puts, [True]),
        (answers.puts, [1, 2]),
        (answers.begun, 7),
        (answers.begun, b"9" * 10_000),
        (answers.call_sids, [b"CA1", 2]),
        (answers.call_sids, None),
        (answers.heard, [9, 0, None, -2, [b"n1@7"]]),
        (answers.heard, [9, 0, 7, -2, []]),
        (answers.age_ms, 2**60),
        (answers.wait_s, 10**12),
        (answers.worked_on, b"x" * 10_000),
    ],
)
def test_what_is_beyond_its_bounds_is_no_answer(read, answer):
    with pytest.raises(OddAnswer, match="the registry should answer"):
        read(answer)


def test_of_what_came_instead_nothing_is_told_but_its_kind():
    with pytest.raises(OddAnswer) as odd:
        answers.taken([1, "what they said"])

    assert str(odd.value) == (
        "the registry should answer with -1, 0, or a generation and a state, and not list of 2"
    )
