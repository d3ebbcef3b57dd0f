from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cluster.redis import ours as ours_module
from server.cluster.redis.ours import Ours


def written(ours):
    """What there is to write, all of which is then written."""
    writes = ours.take(1_000_000)
    for write in writes:
        ours.was_written(write)
    return [(w.call_sid, w.generation, w.state, w.is_over) for w in writes]


def test_of_several_states_of_a_call_the_newest_is_written():
    ours = Ours()
    ours.announce("CA1", 1)
    for number in range(1000):
        ours.keep("CA1", 1, b"%d" % number)
    ours.keep("CA2", 1, b"other")

    assert written(ours) == [("CA1", 1, b"999", False), ("CA2", 1, b"other", False)]
    assert written(ours) == []


def test_what_is_new_while_it_is_written_is_written_after_it():
    ours = Ours()
    ours.keep("CA1", 1, b"first")
    (first,) = ours.take(10)
    ours.keep("CA1", 1, b"second")

    ours.was_written(first)

    assert written(ours) == [("CA1", 1, b"second", False)]


def test_nothing_comes_after_the_end_of_a_call_but_another_generation():
    ours = Ours()
    ours.keep("CA1", 1, b"state")
    ours.release("CA1", 1)
    ours.keep("CA1", 1, b"late")
    ours.announce("CA1", 1)
    assert written(ours) == [("CA1", 1, None, True)]

    ours.announce("CA1", 3)
    ours.release("CA1", 2)

    assert written(ours) == [("CA1", 3, None, False)]


def test_all_that_is_live_and_all_that_ended_unsaid_is_said_again():
    ours = Ours()
    ours.keep("CA1", 1, b"state")
    ours.announce("CA2", 2)
    ours.announce("CA3", 1)
    written(ours)
    ours.release("CA3", 1)

    ours.say_all_again()

    assert sorted(written(ours)) == [
        ("CA1", 1, b"state", False),
        ("CA2", 2, None, False),
        ("CA3", 1, None, True),
    ]
    ours.say_all_again()
    assert sorted(written(ours)) == [("CA1", 1, b"state", False), ("CA2", 2, None, False)]


def test_a_call_that_has_ended_is_struck_off_the_list_and_forgotten_once_that_is_written():
    ours = Ours()
    ours.keep("CA1", 1, b"state")
    ours.keep("CA2", 1, b"state")
    written(ours)

    ours.keep("CA1", 1, b"")
    ours.say_all_again()
    lists = ours.lists(ours.take(9))

    assert (list(lists.join), list(lists.leave)) == (["CA2"], ["CA1"])
    assert not ours.is_held("CA1", 1)
    assert sorted(written(ours)) == [("CA1", 1, b"", False), ("CA2", 1, b"state", False)]
    ours.say_all_again()
    assert written(ours) == [("CA2", 1, b"state", False)]
    ours.release("CA1", 1)
    assert written(ours) == [("CA1", 1, None, True)]


def test_nothing_that_is_kept_of_a_call_comes_after_its_end():
    ours = Ours()
    ours.keep("CA1", 1, b"state")
    ours.keep("CA1", 1, b"")
    ours.keep("CA1", 1, b"late")
    ours.announce("CA1", 1)

    assert written(ours) == [("CA1", 1, b"", False)]
    assert ours.take(9) == []


def test_a_call_is_urgent_until_what_was_in_haste_is_written():
    ours = Ours()
    ours.keep("CA1", 1, b"first", in_haste=True)
    (first,) = ours.take_of("CA1")
    ours.keep("CA1", 1, b"second")
    ours.was_written(first)

    assert ours.is_urgent("CA1")
    written(ours)
    assert not ours.is_urgent("CA1")
    assert ours.take_of("CA1") == []


def test_a_call_that_has_not_begun_is_given_back_once_and_forgotten():
    ours = Ours()
    ours.announce("CA1", 1)
    ours.release("CA1", 1, has_begun=False)
    ours.release("CA1", 1, has_begun=False)
    (write,) = ours.take(9)
    lists = ours.lists([write])
    held = ours.is_held("CA1", 1)
    ours.was_written(write)

    assert (write.is_given_back, held) == (True, False)
    assert (list(lists.join), list(lists.leave)) == ([], ["CA1"])
    assert (ours.known, ours.unsaid) == (0, 0)


@pytest.mark.parametrize("given_back_at", [1, 2])
def test_a_call_that_is_given_back_may_be_ours_anew_before_that_is_written(given_back_at):
    ours = Ours()
    ours.announce("CA1", given_back_at)
    written(ours)
    ours.release("CA1", given_back_at, has_begun=False)
    ours.announce("CA1", 1)

    assert ours.is_held("CA1", 1)
    assert written(ours) == [("CA1", 1, None, False)]
    ours.say_all_again()
    assert written(ours) == [("CA1", 1, None, False)]


def test_a_call_that_is_ours_anew_while_it_is_given_back_is_not_there_and_said_again():
    ours = Ours()
    ours.announce("CA1", 1)
    written(ours)
    ours.release("CA1", 1, has_begun=False)
    (write,) = ours.take(9)
    ours.announce("CA1", 1)
    ours.was_written(write)
    is_there = ours.is_there("CA1", 1)
    lists = ours.lists(ours.take(9))

    assert not is_there
    assert list(lists.join) == ["CA1"]
    assert written(ours) == [("CA1", 1, None, False)]


def test_a_call_that_is_over_is_never_given_back():
    ours = Ours()
    ours.announce("CA1", 1)
    ours.release("CA1", 1)
    ours.release("CA1", 1, has_begun=False)
    ours.announce("CA2", 2)
    ours.release("CA2", 1, has_begun=False)
    writes = ours.take(9)

    assert [(each.is_over, each.is_given_back) for each in writes] == [
        (True, False),
        (False, False),
    ]


def test_that_a_state_is_too_large_is_told_once_a_call():
    ours = Ours()

    told = [ours.tell_too_large(sid, 1) for sid in ("CA1", "CA1", "CA2", "CA1")]

    assert told == [True, False, True, False]


@pytest.mark.parametrize("has_begun", [True, False])
def test_ends_that_could_not_be_said_are_bounded_and_live_calls_are_kept(monkeypatch, has_begun):
    monkeypatch.setattr(ours_module, "MAX_OVER", 10)
    ours = Ours()
    ours.keep("CA-live", 1, b"state")
    for number in range(100):
        ours.announce(f"CA{number}", 1)
        ours.release(f"CA{number}", 1, has_begun=has_begun)

    known = ours.known
    found = written(ours)

    assert known == 1 + 10
    assert found == [
        ("CA-live", 1, b"state", False),
        *((f"CA{number}", 1, None, True) for number in range(90, 100)),
    ]


def test_a_call_is_put_on_the_list_once_and_struck_off_at_its_end():
    ours = Ours()
    ours.announce("CA1", 1)
    assert list(ours.lists(ours.take(9)).join) == ["CA1"]
    written(ours)

    ours.keep("CA1", 1, b"state")
    assert not ours.lists(ours.take(9)).join
    ours.release("CA1", 1)

    lists = ours.lists(ours.take(9))
    assert (list(lists.join), list(lists.leave)) == ([], ["CA1"])


CALLS = st.sampled_from(["CA1", "CA2"])
GENERATIONS = st.integers(1, 3)
EVENTS = st.one_of(
    st.tuples(st.just("announce"), CALLS, GENERATIONS),
    st.tuples(st.just("keep"), CALLS, GENERATIONS, st.sampled_from([b"", b"state"])),
    st.tuples(st.just("release"), CALLS, GENERATIONS),
    st.just(("write",)),
    st.just(("say_all_again",)),
)


@given(st.lists(EVENTS, max_size=40))
def test_the_generation_of_a_call_never_goes_back_while_it_lives(events):
    ours, last = Ours(), {}
    for name, *what in events:
        if name != "write":
            getattr(ours, name)(*what)
            continue
        for call_sid, generation, state, is_over in written(ours):
            assert generation >= last.get(call_sid, 0)
            last[call_sid] = 0 if is_over or state == b"" else generation
    assert ours.unsaid <= 2


def test_calls_are_said_again_in_turn_without_their_states():
    ours = Ours()
    for number in range(4):
        ours.keep(f"CA{number}", 1, b"state")
    written(ours)

    rounds = []
    for _ in range(4):
        ours.say_some_again(2)
        rounds.append(written(ours))

    assert {sid for one in rounds[:2] for sid, *_ in one} == {"CA0", "CA1", "CA2", "CA3"}
    assert {sid for one in rounds[2:] for sid, *_ in one} == {"CA0", "CA1", "CA2", "CA3"}
    assert {state for one in rounds for _, _, state, _ in one} == {None}


def test_what_was_written_is_there_until_the_registry_is_known_to_have_lost_it():
    ours = Ours()
    ours.keep("CA1", 1, b"state")
    before = ours.is_there("CA1", 1)
    written(ours)

    ours.say_all_again()
    perhaps = ours.is_there("CA1", 1)
    ours.say_all_again(is_lost=True)
    lost = ours.is_there("CA1", 1)

    assert (before, perhaps, lost) == (False, True, False)
