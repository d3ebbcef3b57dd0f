from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cluster.sealing import CannotUnseal, seal, unseal

SECRET, OTHER = "a" * 32, "b" * 32
ROOT = Path(__file__).parents[2]


@given(st.binary(max_size=5_000), st.text(min_size=1, max_size=40))
def test_what_was_sealed_is_unsealed(state, call_sid):
    assert unseal(seal(state, call_sid, [SECRET]), call_sid, [SECRET]) == state


@given(st.binary(max_size=200), st.data())
def test_what_was_changed_since_is_refused(state, data):
    sealed = bytearray(seal(state, "CA1", [SECRET]))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(CannotUnseal):
        unseal(bytes(sealed), "CA1", [SECRET])


@given(st.binary(max_size=100))
def test_what_was_never_sealed_is_refused(given):
    with pytest.raises(CannotUnseal):
        unseal(given, "CA1", [SECRET])
    with pytest.raises(CannotUnseal):
        unseal(b"\x01" + given, "CA1", [SECRET])


def test_the_state_of_one_call_is_not_that_of_another():
    with pytest.raises(CannotUnseal, match="CLUSTER_SECRET"):
        unseal(seal(b"state", "CA1", [SECRET]), "CA2", [SECRET])


def test_the_first_secret_seals_and_each_unseals():
    old, new = seal(b"old", "CA1", [OTHER]), seal(b"new", "CA1", [SECRET, OTHER])

    assert unseal(old, "CA1", [SECRET, OTHER]) == b"old"
    assert unseal(new, "CA1", [SECRET]) == b"new"
    with pytest.raises(CannotUnseal, match="CLUSTER_SECRET"):
        unseal(new, "CA1", [OTHER])


@pytest.mark.parametrize(
    "path", [".env.example", "docs/running.md", "server/cluster/sealing.py"], ids=str
)
def test_a_secret_is_replaced_as_it_is_told_and_every_node_knows_what_any_other_seals(path):
    named = {"old": OTHER, "new": SECRET}
    text = (ROOT / path).read_text()
    [told] = re.findall(
        r"replace.{1,9}?`?(old,new)`? on every node,\s+then\s+`?(new,old)`?, then `?(new)\b", text
    )
    steps = [[named[name] for name in step.split(",")] for step in ("old", *told)]

    for before, after in pairwise(steps):  # some nodes have one, some the other
        for sealing, opening in ((before, after), (after, before)):
            assert unseal(seal(b"state", "CA1", sealing), "CA1", opening) == b"state"


def test_nothing_of_the_state_is_to_be_seen_and_no_two_look_alike():
    first, second = (seal(b"what the caller said", "CA1", [SECRET]) for _ in range(2))

    assert b"caller" not in first
    assert first != second
