from __future__ import annotations

import pytest

from server.errors import CallRefused
from server.web.api import Answer
from server.web.once import Memory

MADE = Answer({"call_sid": "CA1"}, 201)


def test_the_same_request_gets_the_same_answer():
    store = Memory()
    assert store.begin("a", "k", b"body", 0.0) is None
    store.end("a", "k", MADE)

    assert store.begin("a", "k", b"body", 1.0) is MADE


def test_another_request_with_the_same_key_is_a_mistake():
    store = Memory()
    store.begin("a", "k", b"body", 0.0)
    store.end("a", "k", MADE)

    with pytest.raises(CallRefused) as refused:
        store.begin("a", "k", b"other", 1.0)
    assert refused.value.status == 422


def test_a_request_that_is_being_worked_on_is_a_conflict():
    store = Memory()
    store.begin("a", "k", b"body", 0.0)

    with pytest.raises(CallRefused) as refused:
        store.begin("a", "k", b"body", 1.0)
    assert refused.value.status == 409
    assert refused.value.retry_after_s == 1


def test_a_request_that_did_nothing_may_come_again():
    store = Memory()
    store.begin("a", "k", b"body", 0.0)
    store.end("a", "k", None)

    assert store.begin("a", "k", b"other", 1.0) is None


def test_clients_do_not_share_their_keys():
    store = Memory()
    store.begin("a", "k", b"body", 0.0)

    assert store.begin("b", "k", b"other", 0.0) is None


def test_an_answer_is_kept_for_its_time():
    store = Memory(ttl_s=10.0)
    store.begin("a", "k", b"body", 0.0)
    store.end("a", "k", MADE)

    assert store.begin("a", "k", b"body", 9.0) is MADE
    assert store.begin("a", "k", b"body", 11.0) is None


def test_the_store_is_bounded_for_each_client_and_keeps_what_is_being_worked_on():
    store = Memory(max_kept=10)
    store.begin("a", "working", b"", 0.0)
    for number in range(1_000):
        store.begin("a", str(number), b"", 0.0)
        store.end("a", str(number), MADE)

    assert len(store._requests["a"]) <= 11
    assert "working" in store._requests["a"]
    assert store.begin("a", "999", b"", 0.0) is MADE
