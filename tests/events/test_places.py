"""Who is sent how many events at the same time."""

from __future__ import annotations

from server.events import places as places_module
from server.events.places import PER_SILENT, PER_TARGET, PROMPT_S, Places


def taken(places: Places, target: str) -> int:
    count = 0
    while count < 100 and places.take(target):
        count += 1
    return count


def test_a_receiver_has_more_places_once_it_has_answered_and_loses_them_when_it_hangs():
    places = Places(64)

    before = taken(places, "a")
    places.learn("a", 0.1)
    then = taken(places, "a")
    places.learn("a", None)

    assert (before, then) == (PER_SILENT, PER_TARGET - PER_SILENT)
    assert places.full == ["a"]
    assert not places.answers("a")


def test_however_many_receivers_hang_prompt_ones_have_half_of_the_places():
    places = Places(64)
    places.learn("prompt", 0.1)
    places.learn("slow", PROMPT_S + 1.0)

    slow = taken(places, "slow")
    hanging = sum(taken(places, f"hangs{number}") for number in range(100))

    assert slow + hanging == 32
    assert places.only == ["prompt"]
    assert taken(places, "prompt") == PER_TARGET


def test_a_place_that_is_given_back_is_anybodys():
    places = Places(2)
    assert places.take("a")
    assert not places.take("b")

    places.give_back("a")

    assert places.only is None
    assert places.take("b")


def test_places_are_counted_right_though_less_is_known_of_a_receiver_meanwhile():
    places = Places(64)
    places.learn("a", 0.1)
    wanted = taken(places.copy(), "a")

    places.learn("a", None)
    for _ in range(wanted):
        places.began("a")
    full = places.full
    for _ in range(wanted):
        places.give_back("a")

    assert full == ["a"]
    assert taken(places, "a") == PER_SILENT


def test_what_is_tried_on_a_copy_takes_no_place():
    places = Places(64)

    taken(places.copy(), "a")

    assert taken(places, "a") == PER_SILENT


def test_few_receivers_are_remembered(monkeypatch):
    monkeypatch.setattr(places_module, "MAX_REMEMBERED", 2)
    places = Places(64)

    for target in "abac":
        places.learn(target, 0.1)

    assert [target for target in "abc" if places.answers(target)] == ["a", "c"]
