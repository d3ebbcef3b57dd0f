"""The names of processes: in paths, and which there can be."""

from __future__ import annotations

import pytest

from server.cluster.choosing import QUIET_S, Candidate, choose, takers
from server.cluster.names import is_name, name_of, path_of, split
from server.cluster.registry import Load, Member, Seen
from server.web.elsewhere import QUIET_ASK_S, TAKEOVER_ASK_S, ask_timeout_s


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


def test_a_call_whose_process_is_gone_may_go_to_whoever_is_there_and_stays_rather_with_room():
    def seen(name: str, live: int, age_s: float = 0.0, **load: bool) -> Seen:
        return Seen(Member(name, 1), Load(live=live, **load), age_s, "")

    gone = seen("gone", 0, accepts=True)
    others = {
        "gone": gone,
        "full": seen("full", 3),
        "fuller": seen("fuller", 9),
        "busy": seen("busy", 40, accepts=True),
        "idle": seen("idle", 1, accepts=True),
        "idle@1": seen("idle", 0, accepts=True),  # another has its name
        "leaves": seen("leaves", 0, accepts=True, draining=True),
        "quiet": seen("quiet", 0, QUIET_S, accepts=True),
    }

    assert takers(others, but=gone.member) == ["idle", "busy", "full", "fuller"]
    assert takers({"gone": gone}, but=gone.member) == []


def test_whoever_was_not_heard_of_lately_has_less_time_unless_nobody_could_be_heard():
    assert ask_timeout_s(0.0, has_settled=True) == TAKEOVER_ASK_S
    assert ask_timeout_s(QUIET_S, has_settled=True) == QUIET_ASK_S
    assert ask_timeout_s(QUIET_S, has_settled=False) == TAKEOVER_ASK_S
