"""The names of processes: in paths, and which there can be."""

from __future__ import annotations

import pytest

from server.cluster.choosing import Candidate, choose
from server.cluster.names import is_name, name_of, path_of, split


@pytest.mark.parametrize("name", ["0", "63", "offhook-3", "offhook-3.1", "A", "a" * 63 + ".63"])
def test_a_process_can_have_this_name(name):
    assert is_name(name)
    assert split(f"{path_of(name)}/stream") == (name, "/stream")


@pytest.mark.parametrize(
    "name",
    ["", "-a", ".", "..", "a.", ".1", "a.b", "a.1.2", "a.100", "a" * 64, "a/b", "a b", "ä", "a\n"],
)
def test_no_process_can_have_this_name(name):
    assert not is_name(name)


@pytest.mark.parametrize("path", ["/stream", "/n", "/n/", "/n/a", "/n//stream", "/N/a/stream", ""])
def test_a_path_that_names_nobody_has_no_name_in_it(path):
    assert split(path) is None


def test_names_are_made_of_a_machine_and_a_number():
    assert name_of(None, 3) == "3"
    assert name_of(None, None) == "0"
    assert name_of("a", None) == "a"
    assert name_of("a", 3) == "a.3"


def test_a_call_goes_to_who_can_dial_soonest_and_then_to_who_has_the_fewest():
    def candidate(name: str, calls: float, wait_s: float, *, accepts: bool = True) -> Candidate:
        return Candidate(name, accepts, calls, wait_s)

    idle, busy = candidate("idle", 1, 0.0), candidate("busy", 9, 0.0)
    late, full = candidate("late", 0, 3.0), candidate("full", 0, 0.0, accepts=False)

    assert choose([late, full, busy, idle]) == "idle"
    assert choose([late, full, busy]) == "busy"
    assert choose([late, full]) == "late"
    assert choose([full]) is None
    assert choose([idle._replace(name="us", is_other=False), idle]) == "us"
