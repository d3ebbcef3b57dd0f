"""The hostile benchmark, small: two calls talk, attackers get what they should, and no more."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.__main__ import main
from benchmarks.hostile import (
    ATTACKS,
    FLOOR_MS,
    Outcome,
    calls_table,
    gains_table,
    holds,
    measure,
)
from benchmarks.load.attacker import ATTACKS as DOINGS
from benchmarks.point import OFFHOOK

pytestmark = [pytest.mark.sockets, pytest.mark.slow]


def window(p99_ms: float) -> dict[str, object]:
    percentiles = {"p99": p99_ms}
    return {
        "caller_to_model_ms": percentiles,
        "agent_to_caller_ms": percentiles,
        "server_core": 0.1,
    }


def outcome(quiet_ms: float, attacked_ms: float, **facts: float) -> Outcome:
    return Outcome("malformed", [window(quiet_ms)], [window(attacked_ms)], **facts)


@pytest.mark.parametrize(
    ("quiet_ms", "attacked_ms", "facts", "unnoticed"),
    [
        (3.0, 6.0, {}, True),
        (3.0, 6.1, {}, False),
        (0.1, FLOOR_MS, {}, True),
        (0.1, FLOOR_MS + 0.1, {}, False),
        (3.0, 3.0, {"lost_ms": 20.0}, False),
        (3.0, 3.0, {"doubled_ms": 20.0}, False),
        (3.0, 3.0, {"calls_lost": 1}, False),
    ],
)
def test_what_good_calls_may_notice(quiet_ms, attacked_ms, facts, unnoticed):
    assert holds(outcome(quiet_ms, attacked_ms, **facts)) is unnoticed


def test_every_line_of_the_table_has_somebody_who_does_it():
    assert {attack.attack or name for name, attack in ATTACKS.items()} == set(DOINGS)


def test_the_options_are_explained(capsys):
    with pytest.raises(SystemExit) as left:
        main(["hostile", "--help"])

    assert left.value.code == 0
    assert "--attacks" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="needs POSIX")
def test_attackers_get_nothing_and_calls_arrive_whole():
    expected = {
        "oversized": {"1009"},
        "forged-webhooks": {"403", "left"},
        "costly": {"403", "413", "414", "431"},
        "locked-database": {"200", "call served", "left"},
        "full-disk": {"200", "call served", "left"},
    }

    # The caller is held back in the greeting's first seconds: the calls talk for longer before.
    outcomes, memory = measure(
        OFFHOOK, list(expected), calls=2, window_s=0.7, rounds=1, warm_s=4.0, repeats=False
    )

    for outcome in outcomes:
        endings = {ending for got in outcome.got for ending in got["endings"]}
        assert endings <= expected[outcome.name], outcome.name
        assert sum(got["still_open"] for got in outcome.got) == 0
        assert all(got["tried"] for got in outcome.got)
        assert outcome.lost_ms == outcome.doubled_ms == outcome.calls_lost == 0, outcome.name
        assert outcome.came_of_it.get("lost", 0) == 0
    by_name = {outcome.name: outcome for outcome in outcomes}
    assert by_name["locked-database"].came_of_it["waited"] >= 1
    assert by_name["full-disk"].came_of_it["recordings stopped"] >= 2
    assert memory["after_kib"] > memory["before_kib"] // 2
    assert gains_table(outcomes).row_count == len(expected)
    assert calls_table(outcomes, 2, OFFHOOK).row_count == len(expected)
