"""Capacity on paper: what follows from what, in numbers one can check by hand."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import pytest

from benchmarks.__main__ import BENCHMARKS as COMMANDS
from benchmarks.__main__ import main
from benchmarks.plan import (
    ASSUMED,
    SOURCES,
    Measured,
    Told,
    Wish,
    limits,
    line_bit_s,
    measured_from,
    plan,
)
from server.cluster.redis.registry import BEAT_S
from server.cluster.sealing import seal
from server.switchboard.rescue import RECONNECTS_PER_S
from server.web.elsewhere import MAX_ASKED
from tests.call.test_call_state import state

MEASURED = Measured(
    calls_per_core=300,
    cpu_ms_per_call_s=1.5,
    tls_ms_per_call_s=0.5,
    setup_ms=18.0,
    rss_kib_per_call=512.0,
    balancer_ms_per_call_s=2.0,
    registry_us=50.0,
    setup_ops=4,
    state_bytes=4_000,
    state_every_s=8.0,
    beat_s=0.5,
)
TOLD = Told()
WISH = Wish(calls=4_000, minutes=3.0, node_cores=2, full=2 / 3)


def test_nodes_are_as_many_as_two_thirds_full_cores_need_and_a_spare_one():
    needs = plan(WISH, MEASURED, TOLD)

    # 200 calls a core, 20 cores, 10 nodes
    assert (needs.cores, needs.nodes, needs.spare_nodes) == (20, 10, 1)
    assert needs.calls_per_node == 400
    assert needs.node_rss_mib == 200
    # 2 ms a second for talking and 18 ms every 180 s for being set up, 200 calls a core
    assert needs.core_busy == pytest.approx(200 * (2.0 + 0.1) / 1000)


def test_the_registry_has_set_ups_states_and_beats():
    needs = plan(WISH, MEASURED, TOLD)

    # 22.2 set-ups a second of 4, a state every 8 s of each, 22 processes that beat twice a second
    others = 4_000 / 180 * 4 + 22 * 2
    assert needs.registry_ops_per_s == pytest.approx(500 + others)
    assert needs.registry_core == pytest.approx((500 + others) * 50e-6)
    assert needs.state_mb_per_s == pytest.approx(2.0)


def test_the_lines_carry_what_frames_take():
    rates = line_bit_s(0.5)
    needs = plan(WISH, MEASURED, TOLD)

    assert rates["carrier down"] == 50 * 445 * 8
    assert line_bit_s(0.0)["model down"] == 0
    assert 1.9 * line_bit_s(0.5)["model down"] < line_bit_s(1.0)["model down"]
    assert needs.model_up_gbit_s == pytest.approx(4_000 * rates["model up"] / 1e9)


def test_the_calls_of_a_node_that_dies_are_shared_by_all_others():
    needs = plan(WISH, MEASURED, TOLD)

    assert needs.death_calls == 400
    assert needs.death_each == 40
    assert needs.death_redirects_s == 8


def test_a_thousand_calls_need_what_the_page_on_scaling_says():
    needs = plan(Wish(calls=1_000), Measured(), TOLD)

    assert (needs.nodes, needs.spare_nodes, needs.cores) == (2, 1, 4)
    assert needs.balancer_cores == pytest.approx(1.6)


ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| ([\d,]+) \| (\d+) \+ (\d+) \| ([\d,]+)[^|]* \| ([\d.]+) cores \| "
    r"([\d.]+) Gbit/s \| ([\d.]+) Gbit/s \|$",
    (ROOT / "docs" / "scaling.md").read_text(),
    re.M,
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_page_on_scaling_says_what_the_plan_says(row):
    calls, nodes, spare, ops, balancer, carrier, model = (
        float(word.replace(",", "")) for word in row
    )

    needs = plan(Wish(calls=int(calls)), Measured(), TOLD)

    assert (needs.nodes, needs.spare_nodes) == (nodes, spare)
    assert needs.registry_ops_per_s == pytest.approx(ops, rel=0.03)
    assert needs.balancer_cores == pytest.approx(balancer, rel=0.03)
    assert needs.carrier_up_gbit_s + needs.carrier_down_gbit_s == pytest.approx(carrier, rel=0.15)
    assert needs.model_up_gbit_s + needs.model_down_gbit_s == pytest.approx(model, rel=0.03)


def test_the_page_on_scaling_has_a_table_of_the_plan():
    assert [row[0] for row in ROWS] == ["1,000", "10,000", "100,000"]


@pytest.mark.parametrize("calls", [1, 250, 10_000, 100_000])
def test_more_calls_never_need_less(calls):
    fewer, more = (plan(Wish(calls=number), Measured(), TOLD) for number in (calls, calls * 2))

    assert more.nodes >= fewer.nodes
    assert more.registry_ops_per_s > fewer.registry_ops_per_s
    assert more.model_quotas >= fewer.model_quotas


def test_what_breaks_first_comes_first():
    found = limits(WISH, MEASURED, TOLD)

    assert [one.calls for one in found] == sorted(one.calls for one in found)
    assert found[0].what == "the carrier's dial rate"
    assert found[0].calls == 180  # one a second, three minutes each


def test_calls_that_come_in_know_no_dial_rate():
    found = limits(replace(WISH, outbound=0.0), MEASURED, TOLD)

    assert "the carrier's dial rate" not in {one.what for one in found}


def test_a_limit_follows_what_is_said_of_it():
    of = {
        one.what: one.calls
        for one in limits(WISH, MEASURED, replace(TOLD, dials_per_s=20.0, model_sessions=50))
    }

    assert of["the carrier's dial rate"] == 3_600
    assert of["the model's sessions"] == 50
    assert of["the balancer that reads HTTP"] == pytest.approx(4 * 2 / 3 * 500)


def test_a_slow_line_is_a_limit_and_a_fast_one_is_none():
    slow = limits(WISH, MEASURED, replace(TOLD, line_gbit_s=0.1))
    fast = limits(WISH, MEASURED, replace(TOLD, line_gbit_s=10.0))

    assert "a node's line" in {one.what for one in slow}
    assert "a node's line" not in {one.what for one in fast}


def test_every_figure_says_where_it_is_from():
    figures = asdict(Measured()) | asdict(Told())

    assert SOURCES.keys() == figures.keys()
    for source in SOURCES.values():
        if command := re.match(r"python -m benchmarks (\S+)", source):
            assert command[1] in COMMANDS
        else:
            assert source.startswith(
                (ASSUMED, "published: ", "tests/", "the program's own (server/")
            )
            for file in re.findall(r"(?:server|tests)/\S+\.py", source):
                assert (ROOT / file).exists()


def test_what_the_program_says_itself_is_what_it_says():
    assert Measured().beat_s == BEAT_S
    assert Told().redirects_per_s == RECONNECTS_PER_S
    assert Told().fan_out_nodes == MAX_ASKED


def test_a_state_takes_as_much_as_it_is_said_to_with_a_prompt_of_a_thousand_characters():
    prompt = " ".join((ROOT / "docs" / "reliability.md").read_text().split())[:1_000]
    words = (ROOT / "docs" / "safety.md").read_text().split()
    turns = [
        msgspec.structs.replace(turn, text=" ".join(words[number * 15 : number * 15 + 15]))
        for number, turn in enumerate(state().transcript)
    ]
    call = state(
        agent=msgspec.structs.replace(state().agent, prompt=prompt), transcript=tuple(turns)
    )

    sealed = seal(call.encode(), "CA1", ["s" * 32])

    assert len(sealed) == pytest.approx(Measured().state_bytes, rel=0.15)


def point(calls: int, p99: float | None, cpu_ms: float, server: str = "offhook") -> dict:
    return {
        "server": server,
        "calls": calls,
        "cpu_ms_per_call_s": cpu_ms,
        "caller_to_model_ms": {"p99": p99},
        "rss_kib_per_call": 100.0,
    }


def test_measured_is_the_most_calls_of_our_own_that_were_within_their_time():
    figures = {
        "points": [
            point(100, 1.0, 2.0),
            point(300, 5.0, 1.4),
            point(400, 30.0, 1.2),
            point(500, None, 1.0),
            point(500, 1.0, 9.0, server="classic"),
        ],
        "tls_points": [point(100, 1.0, 2.5)],
    }

    found = measured_from(figures, MEASURED)

    assert (found.calls_per_core, found.cpu_ms_per_call_s) == (300, 1.4)
    assert found.tls_ms_per_call_s == pytest.approx(0.5)
    assert found.setup_ms == MEASURED.setup_ms


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"points": [point(100, 40.0, 2.0)]}, "no point of offhook"),
        ({"points": [{"server": "offhook"}]}, "no figures of the benchmark calls"),
        ({}, "no figures of the benchmark calls"),
    ],
)
def test_a_file_without_such_a_figure_is_said(figures, said):
    with pytest.raises(ValueError, match=said):
        measured_from(figures, MEASURED)


@pytest.fixture(autouse=True)
def _signals() -> Generator[None]:
    """The command has its own way to be ended; the tests keep theirs."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_command_shows_the_plan_and_writes_it(tmp_path, capsys):
    measured, written = tmp_path / "calls.json", tmp_path / "plan.json"
    measured.write_text(json.dumps({"points": [point(200, 1.0, 2.0)]}))

    status = main(["plan", "--calls", "20000", "--measured", str(measured), "--json", str(written)])

    assert status == 0
    assert "20,000 calls at once" in capsys.readouterr().out
    figures = json.loads(written.read_text())
    assert figures["plan"]["cores"] == math.ceil(20_000 / 133)
    assert figures["limits"]


@pytest.mark.parametrize(
    "words", [["--calls", "0"], ["--minutes", "0"], ["--minutes", "nan"], ["--speaks", "1.5"]]
)
def test_what_cannot_be_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(["plan", *words])

    assert words[0] in capsys.readouterr().err


def test_a_file_that_says_nothing_ends_the_command_with_why(tmp_path):
    file = tmp_path / "calls.json"
    file.write_text("{}")

    with pytest.raises(SystemExit, match="no figures of the benchmark calls"):
        main(["plan", "--measured", str(file)])
