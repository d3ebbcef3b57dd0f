"""The README's pictures are small, well formed, and drawn from what the program is."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.pictures import Call, draw_first_word, draw_ladder, draw_waveform, main
from server.settings.settings import Settings

IMAGES = Path(__file__).parents[2] / "docs" / "images"
CALL = Call(
    record={
        "timings": {"answer_to_first_audio_ms": 2.4},
        "timeline": [
            {"what": "initiated", "at_s": 0.1},
            {"what": "model ready", "at_s": 0.3},
            {"what": "agent turn", "at_s": 0.6},
            {"what": "answered", "at_s": 2.1},
        ],
    },
    events=(
        (0.1, "the agent is heard"),
        (2.0, "the callee says: interrupt"),
        (2.06, "the server clears 2.5 s"),
        (4.0, "the agent is heard"),
    ),
    said=[0, 900, -900, 0] * 10_000,
    heard=[0, 500, -700, 0] * 10_000,
)


def words_of(picture: str) -> list[str]:
    return [
        "".join(each.itertext()) for each in ElementTree.fromstring(picture).iter() if each.text
    ]


def test_the_waveform_says_when_the_agent_was_interrupted_and_fell_silent():
    words = words_of(draw_waveform(CALL))

    assert "answered; the first word leaves 2 ms later" in words
    assert "interrupted: cleared after 60 ms" in words


def test_the_first_word_is_shown_with_what_was_done_while_it_rang():
    words = words_of(draw_first_word(CALL))

    assert "rings 2.00 s" in words
    assert "opens: ready after 0.20 s" in words
    assert "first word 2 ms later" in words


def test_the_ladder_in_the_pages_is_the_one_that_the_settings_make():
    settings = Settings(_env_file=None)

    drawn = draw_ladder(settings.reply_timeout_s, settings.rung_timeout_s)

    assert (IMAGES / "ladder.svg").read_text() == drawn
    assert {"6 s", "10 s", "22 s"} <= set(words_of(drawn))


@pytest.mark.parametrize("name", ["demo-waveform.svg", "first-word.svg", "ladder.svg"])
def test_a_picture_is_small_and_well_formed(name):
    picture = (IMAGES / name).read_text()

    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert len(picture) < 20_000


def test_where_to_draw_has_to_be_said(capsys):
    assert main([]) == 2

    assert "usage" in capsys.readouterr().err
