"""What the console's benchmark says of what it has measured."""

from __future__ import annotations

from benchmarks.console import CALL, CALL_MS, FILTERS, LIST, LIST_MS, broken_bounds

QUICK = {name: [100.0, 120.0, 90.0] for name in (LIST, *FILTERS, CALL)}


def test_what_is_shown_at_once_breaks_no_bound():
    assert broken_bounds(QUICK) == []
    assert broken_bounds(QUICK | {LIST: [LIST_MS], CALL: [CALL_MS, 10.0, 20.0]}) == []


def test_what_is_late_as_a_rule_or_was_never_seen_is_told():
    slow = QUICK | {LIST: [200.0, 301.0, 500.0], CALL: []}

    first, second = broken_bounds(slow)

    assert first == "list: half are later than 301 ms, not 300"
    assert second == "one call: never seen"
