"""A short run of the fuzz driver, which .ci/fuzz-path runs for long and with sanitizers."""

from __future__ import annotations

from tests.fuzz_path import fuzz


def test_hostile_input_of_every_kind_ends_as_the_oracles_say() -> None:
    tally = fuzz(4400, seed=1)

    kinds = {ending.partition(":")[0] for ending in tally}
    assert kinds == {"frames", "messages", "calls", "ears"}
    assert tally["messages: caller audio"] > 50
    assert tally["messages: agent audio"] > 20
