"""What kept the loop, by the numbers, and what the log is told of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import CodeType

import pytest

from server.stalls import cause as cause_module
from server.stalls.cause import INNERMOST, Cause, Stall, cause_of, is_heard, told


@pytest.mark.parametrize(
    ("stall", "cause"),
    [
        (Stall(0.020, ran_s=0.020), Cause.CODE),
        (Stall(0.020, ran_s=0.011, waited_s=0.009), Cause.CODE),
        (Stall(0.020, ran_s=0.009, waited_s=0.011), Cause.STARVED),
        (Stall(0.020, ran_s=0.0005), Cause.BLOCKED),
        (Stall(0.020, ran_s=0.0005, watch_late_s=0.018), Cause.STARVED),
        (Stall(0.020, ran_s=0.019, collected_s=0.018), Cause.COLLECTOR),
        (Stall(0.020, ran_s=0.0, collected_s=0.018), Cause.COLLECTOR),
        (Stall(0.020, ran_s=0.008, collected_s=0.019, waited_s=0.012), Cause.STARVED),
        (Stall(0.020, ran_s=0.019, watch_late_s=0.018), Cause.CODE),
        (Stall(30.0, ran_s=30.0, watch_late_s=29.0), Cause.STARVED),
        (Stall(0.0, ran_s=0.0), Cause.STARVED),
        # What is measured beside each other never fits to the microsecond.
        (Stall(0.020, ran_s=0.022, waited_s=0.001, collected_s=0.001), Cause.CODE),
        (Stall(0.020, ran_s=0.001, waited_s=5.0), Cause.STARVED),
    ],
    ids=[
        *("it ran", "it ran for most", "for most it had no core", "it sat", "all stood"),
        *("it collected", "another thread collected", "it collected without a core"),
        *("it had the only core", "a paused machine that counts it as ours", "nothing"),
        *("a little too much", "far too much"),
    ],
)
def test_the_cause_is_what_most_of_the_time_went_to(stall, cause):
    assert cause_of(stall) is cause


@pytest.mark.parametrize(
    ("cause", "late_s", "is_told"),
    [
        (Cause.CODE, 0.02, True),
        (Cause.BLOCKED, 9.0, True),
        (Cause.COLLECTOR, 0.1, True),
        (Cause.CODE, 0.019, False),
        (Cause.STARVED, 9.0, False),
    ],
)
def test_what_nobody_hears_and_what_is_nobodys_code_are_no_line(
    monkeypatch, cause, late_s, is_told
):
    monkeypatch.setattr(cause_module, "SAY_FROM_S", 0.02)

    assert is_heard(cause, late_s) is is_told


def stack(*files: str) -> Iterator[tuple[CodeType, int]]:
    for line, file in enumerate(files, 1):
        code = compile("def look_up(): pass", file, "exec").co_consts[0]
        assert isinstance(code, CodeType)
        yield code, line


OURS = "/srv/app/server/"


def test_the_innermost_places_are_told():
    at = told(stack("/shop/tools.py", f"{OURS}agent/tool.py", *["/py/trio/run.py"] * 9), OURS)

    assert at == [
        "shop/tools.py:1 look_up",
        "agent/tool.py:2 look_up",
        "trio/run.py:3 look_up",
        "trio/run.py:4 look_up",
    ]


def test_what_our_code_has_called_is_told_however_deep_it_went():
    library = ["/py/site-packages/requests/api.py"] * 9

    at = told(stack(*library, "/shop/tools.py", f"{OURS}agent/tool.py", "/py/run.py"), OURS)

    assert len(at) == INNERMOST + 1
    assert at[-1] == "shop/tools.py:10 look_up"


def test_a_stack_without_code_of_ours_is_told_in_part_and_has_an_end():
    def endless() -> Iterator[tuple[CodeType, int]]:
        while True:
            yield from stack("C:\\py\\deep.py")

    assert told(endless(), OURS) == ["py/deep.py:1 look_up"] * INNERMOST
    assert told(iter(()), OURS) == []


def test_outside_a_test_of_it_the_log_of_a_test_has_no_such_line():
    assert math.isinf(cause_module.SAY_FROM_S)
