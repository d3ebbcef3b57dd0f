"""A short run of every fuzz target, and the same targets on what hypothesis thinks of.

``python -m tests.fuzz_server`` runs them for long.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz_server import TARGETS, fuzz

pytestmark = [pytest.mark.sockets, pytest.mark.slow]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
AT_ONCE = {name: target.check for name, target in TARGETS.items() if target.check is not None}


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_crashes_nothing(name, caplog):
    tally = fuzz(name, inputs=TARGETS[name].quick_inputs, seed=1)

    assert tally.inputs == TARGETS[name].quick_inputs
    assert "by a bug of ours" not in caplog.text


@pytest.mark.parametrize("name", AT_ONCE)
@given(
    data=st.binary()
    | st.text().map(str.encode)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([seed for target in TARGETS.values() for seed in target.seeds])
)
def test_no_bytes_crash_what_reads_them(name, data):
    AT_ONCE[name](data)
