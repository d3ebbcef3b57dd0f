"""The tones of the telephone's keys, measured."""

from __future__ import annotations

import math

import pytest

import codec
from server.carrier.keypad import frequencies_hz, key_tone, tones

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
