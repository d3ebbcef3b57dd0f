"""What the benchmark of events calls lost, and out of order."""

from __future__ import annotations

from benchmarks.events import KINDS, judged


def test_all_events_in_order_are_what_is_wanted():
    taken = [(call, kind) for kind in KINDS for call in ("CA1", "CA2")]

    assert judged(taken, 2) == {"lost": 0, "out_of_order": 0}


def test_what_is_missing_is_lost_and_what_came_too_soon_is_out_of_order():
    started, answered, recording, ended = KINDS
    taken = [("CA1", started), ("CA1", ended), ("CA1", answered), ("CA2", recording)]

    assert judged(taken, 2) == {"lost": 4, "out_of_order": 1}
