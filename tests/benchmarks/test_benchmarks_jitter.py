"""The benchmark of bad networks: its own networks and ears, and what a call hears by them."""

from __future__ import annotations

import random

import pytest

from benchmarks.jitter import LONG_S, MODELS, NETWORKS, Network, Passage, call, judge, summary
from benchmarks.jitter_calls import turns_in
from server.dialogue.cushion import Cushion

SILENCE, SOUND = b"\xff", b"\x12"


def test_a_passage_keeps_the_order_and_a_lost_packet_delays_what_is_behind_it():
    passage = Passage(Network(delay_s=0.08, jitter_s=0.02, loss=0.2), random.Random(1))
    sent_at = [n * 0.02 for n in range(200)]

    arrivals = [passage.arrival(at, 500) for at in sent_at]

    assert arrivals == sorted(arrivals)
    late_s = [arrival - at for arrival, at in zip(arrivals, sent_at, strict=True)]
    assert min(late_s) >= 0.06
    assert max(late_s) > 0.24


def test_the_same_seed_has_the_same_call():
    once, again = (
        call(MODELS["1.0x"], NETWORKS["80 ms +- 20, 1 % lost"], Cushion(), "a seed")
        for _ in range(2)
    )

    assert once == again
    assert call(MODELS["1.0x"], NETWORKS["80 ms +- 20, 1 % lost"], Cushion(), "b") != once


def test_a_good_path_has_no_gap_and_no_wait():
    for model in ("4.4x", "1.0x", "1.0x, small chunks"):
        heard = summary(call(MODELS[model], NETWORKS["clean"], Cushion(), "a seed"))

        assert heard["gapless_share"] == 1.0, model
        assert heard["waited_p95_ms"] == 0.0, model


def test_silence_of_a_slow_model_is_its_own():
    turns = call(MODELS["0.9x, long turns"], NETWORKS["clean"], Cushion(), "a seed")

    assert all(turn.made_s == pytest.approx(0.87, abs=0.1) for turn in turns)
    # What is waited for before the first word is a pause less.
    assert sum(turn.unmade_s for turn in turns) < 0.02 * len(turns)
    assert max(gap for turn in turns for gap, _ in turn.gaps) < LONG_S


def test_a_row_that_breaks_its_bounds_is_named():
    well = {
        "waited_p95_ms": 0.0,
        "gaps_per_turn": 0.0,
        "unmade_ms_per_turn": 0.0,
        "long_per_turn": 0.0,
    }
    compared = {
        f"{model}, {network}, {policy}": dict(well)
        for model in MODELS
        for network in NETWORKS
        for policy in ("fixed", "measured")
    }
    assert judge(compared) == []

    compared["4.4x, clean, measured"]["waited_p95_ms"] = 20.0
    compared["1.0x, clean, measured"]["unmade_ms_per_turn"] = 30.0

    assert [fault.partition(":")[0] for fault in judge(compared)] == ["4.4x, clean", "1.0x, clean"]


def test_gaps_are_found_in_what_a_telephone_has_played():
    heard = SILENCE * 500 + SOUND * 4_000 + SILENCE * 800 + SOUND * 800 + SILENCE * 9_000
    heard += SOUND * 100 + SILENCE * 40 + SOUND * 100

    assert turns_in(heard) == [(500, [800]), (15_100, [])]
