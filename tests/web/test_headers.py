"""Header lines that come more than once."""

from __future__ import annotations

from werkzeug.datastructures import Headers

from server.headers import lines_of, listed, single

LINES = Headers([("X-List", "a, b"), ("x-list", ""), ("X-LIST", " ,c"), ("X-One", "1")])


def test_the_lines_of_a_list_are_one_list_in_their_order():
    assert listed(LINES, "X-List") == ["a", "b", "c"]


def test_every_line_is_seen_whatever_its_case():
    assert lines_of(LINES, "x-LIST") == ["a, b", "", " ,c"]


def test_a_field_that_is_there_once_has_its_value():
    assert single(LINES, "x-one") == "1"


def test_a_field_that_is_there_twice_or_not_at_all_has_none():
    assert single(Headers([("A", "1"), ("a", "1")]), "A") is None
    assert single({}, "A") is None
