"""A sound for the silence, from a file."""

from __future__ import annotations

import math
import random
import wave
from array import array

import pytest

from codec import decode_mulaw
from server.agent.loading import agent_of
from server.agent.roster.described import Misdescribed, described
from server.agent.thinking import LEVEL_DBFS, PEAK_DBFS
from server.errors import ConfigurationError
from server.settings.settings import Settings


def write(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(array("h", samples).tobytes())
    return path


def noise(seconds, loud=8_000):
    generator = random.Random(1)
    return [round(generator.gauss(0, loud)) // 3 for _ in range(round(8_000 * seconds))]


def levels(payload):
    samples = array("h", decode_mulaw(payload))
    mean = math.sqrt(sum(one * one for one in samples) / len(samples))
    return 20 * math.log10(mean / 32_768), 20 * math.log10(max(map(abs, samples)) / 32_768)


def test_it_is_eighteen_decibels_under_the_agent(tmp_path):
    path = write(tmp_path / "hum.wav", noise(2.0))

    sound = agent_of(Settings.load(_env_file=None, thinking_sound=path)).thinking_sound

    assert levels(sound)[0] == pytest.approx(LEVEL_DBFS, abs=0.5)
    assert len(sound) == 16_000 - 320


def test_clicks_in_much_silence_are_not_louder_than_the_agent(tmp_path):
    path = write(tmp_path / "keys.wav", noise(0.02) + [0] * 40_000)

    sound = agent_of(Settings.load(_env_file=None, thinking_sound=path)).thinking_sound

    assert levels(sound)[1] <= PEAK_DBFS + 0.5


@pytest.mark.parametrize(
    ("samples", "said"), [(noise(0.2), "shorter than"), ([0] * 8_000, "no sound")]
)
def test_what_is_no_such_sound_is_refused(tmp_path, samples, said):
    path = write(tmp_path / "bad.wav", samples)

    with pytest.raises(ConfigurationError, match=f"THINKING_SOUND .*{said}"):
        agent_of(Settings.load(_env_file=None, thinking_sound=path))
    with pytest.raises(ConfigurationError, match="THINKING_SOUND cannot be read"):
        agent_of(Settings.load(_env_file=None, thinking_sound=tmp_path / "missing.wav"))


def test_agents_with_one_sound_share_it_until_the_file_is_another(tmp_path):
    path = write(tmp_path / "hum.wav", noise(2.0))
    settings = Settings.load(_env_file=None, thinking_sound=path)

    one, other = agent_of(settings).thinking_sound, agent_of(settings).thinking_sound
    write(path, noise(1.0))
    changed = agent_of(settings).thinking_sound

    assert one is other
    assert len(changed) == 8_000 - 320


def test_an_agent_may_have_one_of_its_own_beside_its_description(tmp_path):
    write(tmp_path / "own.wav", noise(1.0))
    base = Settings.load(_env_file=None)

    agent = described({"name": "desk", "thinking_sound": "own.wav"}, base, tmp_path)

    assert agent.thinking_sound
    with pytest.raises(Misdescribed, match="thinking_sound"):
        described({"name": "desk", "thinking_sound": "missing.wav"}, base, tmp_path)
