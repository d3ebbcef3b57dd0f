"""The tones of the telephone's keys, measured."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import codec
from server.carrier.keypad import (
    MAX_PRESSED,
    TOLD_EVERY_S,
    PressedKeys,
    frequencies_hz,
    key_tone,
    tones,
)

ALL_HZ = (697, 770, 852, 941, 1209, 1336, 1477, 1633)
KEYS = "123A456B789C*0#D"


def samples_of(payload: bytes) -> list[int]:
    return list(memoryview(codec.decode_mulaw(payload)).cast("h"))


def level_dbm0(samples: list[int], hz: float) -> float:
    """Level of one frequency: mu-law's largest sine is +3.17 dBm0."""
    angle = 2 * math.pi * hz / 8_000
    real = sum(s * math.cos(angle * n) for n, s in enumerate(samples))
    imaginary = sum(s * math.sin(angle * n) for n, s in enumerate(samples))
    peak = 2 * math.hypot(real, imaginary) / len(samples)
    return 3.17 + 20 * math.log10(max(peak, 1e-9) / 32_124)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_its_two_frequencies_at_their_levels_and_nothing_else(key):
    sounding = samples_of(key_tone(key))[:800]
    low_hz, high_hz = frequencies_hz(key)

    assert level_dbm0(sounding, low_hz) == pytest.approx(-9.0, abs=0.3)
    assert level_dbm0(sounding, high_hz) == pytest.approx(-7.0, abs=0.3)
    others = [level_dbm0(sounding, hz) for hz in ALL_HZ if hz not in (low_hz, high_hz)]
    assert max(others) < -27.0  # 20 dB below: what a receiver asks for
    assert max(abs(sample) for sample in sounding) < 32_124


def test_the_keys_are_the_sixteen_of_the_standard():
    pairs = [frequencies_hz(key) for key in KEYS]

    assert pairs == [(low, high) for low in ALL_HZ[:4] for high in ALL_HZ[4:]]


def test_tones_and_pauses_are_a_tenth_of_a_second():
    payload = key_tone("5")

    assert len(payload) == 1_600
    assert set(samples_of(payload)[800:]) == {0}
    assert any(samples_of(payload)[790:800])


def test_keys_follow_one_another_and_a_w_waits_for_half_a_second():
    assert tones("1w2") == key_tone("1") + b"\xff" * 4_000 + key_tone("2")


@pytest.mark.parametrize("key", ["", "E", "12", "a", " "])
def test_there_are_no_other_keys(key):
    with pytest.raises(ValueError, match="no key"):
        frequencies_hz(key)


class Told:
    """Keys as a model is told of them, and when."""

    def __init__(self, nursery: trio.Nursery, pause_s: float = 1.5) -> None:
        self.turns: list[tuple[float, str]] = []
        self.keys = PressedKeys(pause_s)
        nursery.start_soon(self.keys.run, self._tell)

    async def _tell(self, keys: str) -> None:
        self.turns.append((trio.current_time(), keys))


async def test_hash_keys_back_to_back_are_few_turns(autojump_clock, nursery):
    told = Told(nursery)
    for _ in range(1_000):
        told.keys.press("#")
        await trio.sleep(0.01)
    await trio.sleep(2.0)

    gaps_s = [after - before for (before, _), (after, _) in pairwise(told.turns)]
    assert min(gaps_s) > TOLD_EVERY_S - 1e-6
    assert sum(len(keys) for _, keys in told.turns) == 1_000


async def test_keys_without_a_pause_are_no_more_than_anybody_types_in(autojump_clock, nursery):
    told = Told(nursery)
    for _ in range(1_000):
        told.keys.press("1")
    await trio.sleep(5.0)

    assert [keys for _, keys in told.turns] == ["1" * MAX_PRESSED]


async def test_keys_that_nobody_is_told_of_yet_are_no_more_than_that_either(
    autojump_clock, nursery
):
    keys = PressedKeys(1.5)
    for _ in range(1_000):
        keys.press("2")
    turns: list[str] = []

    async def tell(pressed: str) -> None:
        turns.append(pressed)

    nursery.start_soon(keys.run, tell)
    await trio.sleep(5.0)

    assert turns == ["2" * MAX_PRESSED]


async def test_keys_wait_until_the_model_may_be_told_and_all_are_told_then(autojump_clock, nursery):
    keys, free = PressedKeys(1.5), trio.Event()
    turns: list[str] = []

    async def tell(pressed: str) -> None:
        turns.append(pressed)

    nursery.start_soon(keys.run, tell, free.wait)
    for key in "12":
        keys.press(key)
        await trio.sleep(3.0)
    before = list(turns)
    free.set()
    await trio.sleep(5.0)

    assert (before, turns) == ([], ["12"])


async def test_a_hash_key_soon_after_another_is_told_a_little_later_with_what_is_before_it(
    autojump_clock, nursery
):
    told = Told(nursery)
    for key in "1#":
        told.keys.press(key)
    await wait_all_tasks_blocked()
    first_at = trio.current_time()
    for key in "2#3":
        told.keys.press(key)
    await trio.sleep(0.2)
    told.keys.press("#")
    await trio.sleep(5.0)

    assert told.turns == [(first_at, "1#"), (first_at + TOLD_EVERY_S, "2#3#")]
