"""What the benchmark of events calls lost, and out of order."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import events
from benchmarks.events import KINDS, judged
from benchmarks.options import Options


def test_all_events_in_order_are_what_is_wanted():
    taken = [(call, kind) for kind in KINDS for call in ("CA1", "CA2")]

    assert judged(taken, 2) == {"lost": 0, "out_of_order": 0}


def test_what_is_missing_is_lost_and_what_came_too_soon_is_out_of_order():
    started, answered, recording, ended = KINDS
    taken = [("CA1", started), ("CA1", ended), ("CA1", answered), ("CA2", recording)]

    assert judged(taken, 2) == {"lost": 4, "out_of_order": 1}


@pytest.mark.parametrize(("lost", "out_of_order"), [(1, 0), (0, 1)])
def test_a_check_fails_if_anything_was_not_as_promised(monkeypatch, lost, out_of_order):
    async def found(calls: int, directory: Path):
        counts = {"events": 4 * calls, "again": 0, "requests": 0, "took_s": 0.0}
        return counts | {"lost": lost, "out_of_order": out_of_order}

    monkeypatch.setattr(events, "_deliver_all", found)
    parser = argparse.ArgumentParser()
    events.add_arguments(parser)

    def run(*arguments: str):
        return events.run(Options(Console(quiet=True), arguments=parser.parse_args(arguments)))

    assert run()["events"]["lost"] == lost
    with pytest.raises(SystemExit):
        run("--check")
